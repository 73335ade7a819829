"""Two processes (gloo, CPU) make the run that one process makes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from amends.io.run import read_run
from amends.lm.load import load, weights_sha256

ROOT = Path(__file__).parents[2]


def run(folder: Path, out: str, *options: object, launcher: tuple[object, ...] = ()) -> list[dict[str, float]]:
    words = [sys.executable, *launcher, "-m", "amends", "unlearn", "flat", "--out", folder / out, *options]
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("reading the model and the data") == 1  # only the first process speaks
    return [json.loads(line) for line in (folder / out / "history.jsonl").read_text().splitlines()]


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--config_file", ROOT / "examples/launch/ddp.yaml")


@pytest.mark.parametrize(
    ("launcher", "rank"),
    [(TORCHRUN, 4), ((*ACCELERATE, "--num_processes", "2", "--main_process_port", "0"), 0)],
    ids=["torchrun, lora", "accelerate launch, all weights"],
)
def test_two_processes_lose_and_learn_like_one(
    tmp_path: Path, tiny_model: Path, launcher: tuple[object, ...], rank: int
) -> None:
    data = [{"id": i, "question": f"Where was {i} born?", "answer": f"In town {i}." + "x" * i} for i in range(12)]
    for name, rows in {"forget": data, "retain": [row | {"answer": "Here."} for row in data[:5]]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--model", tiny_model, "--forget", tmp_path / "forget.jsonl", "--retain", tmp_path / "retain.jsonl"]
    options += ["--epochs", 2, "--learning-rate", 1e-2, "--lora-rank", rank, "--eval-rows", 1]
    one = run(tmp_path, "one", *options, "--batch-size", 4)
    two = run(tmp_path, "two", *options, "--batch-size", 2, launcher=launcher)
    assert len(one) == len(two) == 6
    for name in ("loss", "v_e", "v_f", "retain_nll", "grad_norm"):
        assert [step[name] for step in two] == pytest.approx([step[name] for step in one], abs=1e-5)
    assert one[0]["loss"] != pytest.approx(
        one[-1]["loss"], abs=1e-3
    )  # it did learn: equal by standing still is nothing
    assert weights_sha256(load(tmp_path / "two" / "model").model) == read_run(tmp_path / "two")["weights"]["after"]
