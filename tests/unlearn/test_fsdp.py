"""`accelerate launch` with the shipped fsdp2.yaml: two processes (gloo, CPU) that share the weights train like one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from amends.io.run import read_run
from amends.lm.load import load, weights_sha256

ROOT = Path(__file__).parents[2]
SCRIPT, CONFIG = Path(__file__).with_name("fsdp2_run.py"), ROOT / "examples/launch/fsdp2.yaml"
LAUNCH = ("-m", "accelerate.commands.launch", "--config_file", CONFIG, "--num_processes", 2, "--main_process_port", 0)


COLUMNS = ("loss", "v_e", "v_f", "retain_nll", "grad_norm")


def run(*words: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def told(*words: object) -> Any:
    return json.loads(run(*words).splitlines()[-1])


def assert_alike(two: list[dict[str, float]], one: list[dict[str, float]]) -> None:
    assert len(two) == len(one) == 6
    for name in COLUMNS:
        assert [step[name] for step in two] == pytest.approx([step[name] for step in one], abs=1e-5)
    assert one[0]["loss"] != pytest.approx(one[-1]["loss"], abs=1e-3)


def assert_same_weights(two: Path, one: Path) -> None:
    gathered, whole = (load(folder).model.state_dict() for folder in (two, one))
    assert gathered.keys() == whole.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(gathered[name], weight, atol=1e-5, rtol=0)


def test_the_trainer_loses_and_learns_and_goes_on_as_with_whole_weights(tmp_path: Path, tiny_model: Path) -> None:
    one_out, two_out = tmp_path / "one", tmp_path / "two"
    one = told(SCRIPT, tiny_model, one_out)
    two = told(*LAUNCH, SCRIPT, tiny_model, two_out)
    assert (one["sharded"], two["sharded"]) == (False, True)
    assert_alike(two["steps"], one["steps"])

    shutil.rmtree(two_out / "checkpoint-6")
    again = told(*LAUNCH, SCRIPT, tiny_model, two_out, "resume")
    assert again["resumed"] == ["The run was interrupted and went on from checkpoint-3."]
    assert again["steps"] == two["steps"]
    assert_same_weights(two_out / "model", one_out / "model")


def test_the_command_saves_and_evaluates_whole_weights(tmp_path: Path, tiny_model: Path) -> None:
    data = [{"question": f"Where was {i} born?", "answer": f"In town {i}." + "x" * i} for i in range(12)]
    for name, rows in {"forget": data, "retain": [row | {"answer": "Here."} for row in data[:5]]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["unlearn", "flat", "--model", tiny_model, "--forget", tmp_path / "forget.jsonl", "--eval-rows", 2]
    command += ["--retain", tmp_path / "retain.jsonl", "--epochs", 2, "--learning-rate", 1e-2]
    one, two = tmp_path / "one", tmp_path / "two"
    run("-m", "amends", *command, "--batch-size", 4, "--out", one)
    run(*LAUNCH, SCRIPT, *command, "--batch-size", 2, "--out", two)
    assert_alike(*(list(map(json.loads, (out / "history.jsonl").read_text().splitlines())) for out in (two, one)))
    assert_same_weights(two / "model", one / "model")
    assert weights_sha256(load(two / "model").model) == read_run(two)["weights"]["after"]
    two_after, one_after = (json.loads((out / "evaluation/after.json").read_text())["summary"] for out in (two, one))
    there = [name for name, told in one_after.items() if told["value"] is not None]
    assert {"forget_probability", "forget_exact_memorisation"} < set(there)
    for name in there:
        assert two_after[name]["value"] == pytest.approx(one_after[name]["value"], rel=1e-3)
