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

from amends.lm.load import load

ROOT = Path(__file__).parents[2]
SCRIPT, CONFIG = Path(__file__).with_name("fsdp2_run.py"), ROOT / "examples/launch/fsdp2.yaml"
LAUNCH = ("-m", "accelerate.commands.launch", "--config_file", CONFIG, "--num_processes", 2, "--main_process_port", 0)


def run(*words: object) -> Any:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("rank", [0, 4], ids=["all weights, resumed", "lora"])
def test_sharded_weights_lose_and_learn_like_whole_ones(tmp_path: Path, tiny_model: Path, rank: int) -> None:
    one_out, two_out = tmp_path / "one", tmp_path / "two"
    one = run(SCRIPT, tiny_model, one_out, rank)
    two = run(*LAUNCH, SCRIPT, tiny_model, two_out, rank)
    assert (one["sharded"], two["sharded"]) == (False, True)
    assert len(two["steps"]) == len(one["steps"]) == 6
    for name in ("loss", "v_e", "v_f", "retain_nll", "grad_norm"):
        assert [step[name] for step in two["steps"]] == pytest.approx([step[name] for step in one["steps"]], abs=1e-5)
    assert one["steps"][0]["loss"] != pytest.approx(one["steps"][-1]["loss"], abs=1e-3)

    if rank == 0:  # each start of two processes takes seconds
        shutil.rmtree(two_out / "checkpoint-6")
        again = run(*LAUNCH, SCRIPT, tiny_model, two_out, rank, "resume")
        assert again["resumed"] == ["The run was interrupted and went on from checkpoint-3."]
        assert again["steps"] == two["steps"]

    whole, gathered = (load(out / "model").model.state_dict() for out in (one_out, two_out))
    for name, weight in whole.items():
        torch.testing.assert_close(gathered[name], weight, atol=1e-5, rtol=0)
