"""The packed step on weights sharded over two processes (FSDP2, gloo, CPU) against one process.

accelerate itself shards on accelerators only; it calls the same `fully_shard` there.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT, ROOT = Path(__file__).parent / "fsdp2_step.py", Path(__file__).parents[2]


def run(*launcher: str, words: tuple[str, ...] = ()) -> Any:
    done = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), *words],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_sharded_weights_lose_and_learn_like_whole_ones() -> None:
    one = run()
    two = run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", words=("sharded",))
    assert (one["sharded"], two["sharded"]) == ("Parameter", "DTensor")
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert one["losses"][-1] < 0.6 * one["losses"][0]
