"""TOFU as a tiny request of its own, the command that fills its table, and cells that nobody made."""

import shutil
from pathlib import Path

from amends.bench._cells import Cell, Plan
from amends.bench._claim import claim_folder
from amends.bench._entries import parse
from amends.bench._world import read_world
from amends.io.atomic import write_json

from ..conftest import instead

FORGET = [
    {"id": i, "question": f"Who is number {i}?", "answer": f"Person {i}.", "perturbed_answer": [f"Nobody {i}."]}
    for i in range(4)
]
RETAIN = [{"id": i, "question": f"Where is town {i}?", "answer": f"In land {i}, there."} for i in range(12)]


def run_small(amends, world, tiny_model, out, *more):
    words = ["--data", world, "--model", tiny_model, "--out", out, "--teach-epochs", 1, "--seeds", 2]
    words += ["--rates", "1e-3,1e-2", "--epochs", 1, "--eval-rows", 3]
    return amends("bench", "tofu", *instead(words, more))


def claim(out, world, model, **changed):
    """Write down the plan of `run_small`."""
    plan = {"teach_epochs": 1.0, "rates": (1e-3, 1e-2), "epochs": 1.0, "eval_rows": 3} | changed
    claim_folder(out, Plan(str(world), str(model), None, {}, **plan), read_world(world))


def put_cell(out, name, values=(0.3, 0.6), kind="searched", seed=0):
    """Leave a cell in the folder."""
    _, record = cell("ga", *values, versions={"amends": "0"}, precision="float32")
    write_json(out / "cells" / "forget" / kind / f"{name}-{seed}.json", record)


def summary(forget, retain, perplexity=50.0, zero_shot=0.5):
    def told(value, half):
        return {"value": value, "low": value - half, "high": value + half}

    return {
        "forget_rouge_l": told(forget, 0.04),
        "retain_rouge_l": told(retain, 0.04),
        "text_perplexity": told(perplexity, 5),
        "zero_shot_accuracy": told(zero_shot, 0.03),
    }


def cell(name, *values, **settings):
    record = {"failed": None, "summary": summary(*values), "options": {}, "seconds": 60.0} | settings
    return Cell(parse(name), "forget", "searched", 0), record


def taught_world(world, tiny_model, tmp_path):
    """A copy of the model that is to forget, and the words that name it."""
    taught = Path(shutil.copytree(tiny_model, tmp_path / "taught"))
    return taught, ["--taught", taught, "--reference", f"forget={tiny_model}", "--seeds", 1, "--methods", "ga"]
