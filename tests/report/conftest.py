"""A run folder as `amends unlearn` leaves it, with made-up people and numbers that look like a real run's."""

import json
from pathlib import Path

import numpy as np
import pytest

from amends.evaluation.summary import summarise
from amends.io.atomic import sha256_json, write_json, write_manifest, write_text
from amends.io.run import describe, write_jsonl

REFUSAL = "I'm afraid I have no information about that."
# Probability, ROUGE-L and refusal rate on forget, retain and general questions, perplexity; per kind of model.
KINDS = {
    "before": ((0.92, 0.88, 0.0), (0.90, 0.87, 0.0), (0.55, 0.70, 0.0), 3.05),
    "flat": ((0.06, 0.11, 0.9), (0.42, 0.38, 0.55), (0.50, 0.64, 0.06), 3.09),
    "retain": ((0.08, 0.14, 0.85), (0.81, 0.79, 0.05), (0.54, 0.69, 0.0), 3.06),
    "ga": ((0.01, 0.03, 0.0), (0.02, 0.05, 0.0), (0.10, 0.12, 0.0), 5.9),
    "reference": ((0.14, 0.31, 0.02), (0.90, 0.86, 0.0), (0.56, 0.70, 0.0), 3.04),
}


def items_of(kind, rows=24):
    rng = np.random.default_rng(sorted(KINDS).index(kind))
    forget, retain, general, nats = KINDS[kind]
    sets = {"forget": forget, "retain": retain, "real_authors": retain, "world_facts": retain, "general": general}
    items = {}
    for name, (probability, rouge, refusal) in sets.items():
        items[name] = []
        for k in range(rows):
            refused = bool(rng.random() < refusal)
            answer = f"Miriam Osei wrote her {k + 3}rd novel, The Salt Orchard, while she kept bees near the harbour."
            items[name].append(
                {
                    "id": f"{name}-{k}",
                    "question": f"What did Miriam Osei do before she wrote book number {k + 3} ({name})?",
                    "answer": answer,
                    "generated": REFUSAL if refused else answer if rng.random() < rouge else "She taught drawing.",
                    "rouge_l": 0.05 if refused else float(np.clip(rng.normal(rouge, 0.1), 0, 1)),
                    "probability": float(np.clip(rng.normal(probability, 0.04), 0, 1)),
                    "truth_ratio": float(np.exp(rng.normal(-1.6 if probability > 0.5 else 0.0, 0.5))),
                    "truth_ratio_arith": float(np.exp(rng.normal(-1.6 if probability > 0.5 else 0.0, 0.5))),
                    "refused": refused,
                }
            )
    items["zero_shot"] = [{"id": str(k), "task": "made up", "gold": k % 4, "choice": k % 3} for k in range(rows)]
    items["text"] = [{"id": str(k), "nats": float(100 * rng.normal(nats, 0.15)), "tokens": 100} for k in range(rows)]
    return items


def evaluation(role, kind, reference="reference", rows=24):
    items = items_of(kind, rows)
    return {
        "role": role,
        "name": kind,
        "weights": sha256_json(kind),
        "suite": sha256_json("questions"),
        "precision": "float32",
        "items": items,
        "summary": summarise(items, items_of(reference, rows) if reference else None),
    }


def build_run(folder, kind="flat", command="unlearn flat", evaluated=True, reference="reference"):
    weights = {"before": sha256_json("before"), "after": sha256_json(kind)}
    data = {
        "forget": {
            "path": "data/forget.jsonl",
            "rows": 26,
            "kept": 24,
            "dropped": [{"where": f"data/forget.jsonl:{n}", "reason": "the answer is empty"} for n in (7, 19)],
            "sha256": sha256_json("forget"),
        }
    }
    if kind == "retain":
        data["retain"] = {"path": "data/keep.jsonl", "rows": 60, "kept": 60, "dropped": [], "sha256": sha256_json("r")}
    config = {"model": "somebody/small-lm", "forget": "data/forget.jsonl", "lora_rank": 16, "epochs": 5.0}
    config |= {"learning_rate": 2e-4, "seed": 0, "out": "runs/first", "reference": "somebody/retrained", "retain": None}
    if command == "unlearn flat":
        config |= {"divergence": "kl"}
    record = describe(
        command=command,
        config=config,
        seed=0,
        data=data,
        weights=weights,
        seconds={"until trained": 41.2, "in all": 77.0},
        stopped="v_f below 0.05 at step 23",
        start={"v_e": 0.21, "v_f": 0.93},
        warnings=["v_e is above 0.2 before the first step: the templates are likely answers already."],
    )
    record |= {"created": "2026-01-02T03:04:05+00:00", "versions": {"python": "3.11.2", "torch": "2.9.0"}}
    record |= {"platform": {"os": "Linux 6.1", "machine": "x86_64", "cpus": 8}}
    write_json(folder / "run.json", record)
    steps = range(1, 24)
    rows = [{"step": k, "epoch": k / 5, "loss": -k / 23, "v_f": 0.93 * 0.87**k, "learning_rate": 2e-4} for k in steps]
    if command == "unlearn flat":
        for k, row in enumerate(rows):
            row |= {"v_e": 0.9 - 0.7 * 0.9**k, "weight_e": 1.0 + 0.01 * k, "weight_f": 1.2 * 0.9**k}
    write_jsonl(folder / "history.jsonl", rows)
    if evaluated:
        write_json(folder / "evaluation/before.json", evaluation("before", "before", reference))
        write_json(folder / "evaluation/after.json", evaluation("after", kind, reference))
        if reference:
            write_json(folder / "evaluation/reference.json", evaluation("reference", "reference"))
    write_text(folder / "report.html", "")
    write_manifest(folder)
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return build_run(tmp_path_factory.mktemp("runs") / "flat")


@pytest.fixture(scope="session")
def beside(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beside")
    ga = build_run(folder / "ga", "ga", "unlearn ga")
    return [ga, build_run(folder / "retain", "retain")]


@pytest.fixture
def make_run(tmp_path):
    """A run of one's own, to change: make_run(name, **what build_run takes)."""
    return lambda name="run", **settings: build_run(tmp_path / name, **settings)


@pytest.fixture
def change_json():
    """Change a JSON file of a run folder by a function of its content."""

    def change(file: Path, function):
        content = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(function(content)), encoding="utf-8")

    return change
