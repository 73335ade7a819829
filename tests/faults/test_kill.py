"""Killed at any moment, a run that is started again ends with the bytes of one that was never killed.

Most processes here are forks of one that has imported everything (`nursery.py`); some are fresh interpreters.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from .conftest import ENVIRONMENT, STEPS, Run, Whole

MOMENTS = [random.Random(seed).random() for seed in range(20)]


def finish(run: Run, whole: Whole) -> None:
    """Give the same command again, and compare what it leaves."""
    if not run.out.exists():
        saved = run.steps_saved()
        assert run()["code"] == 0, run.told
        assert ("going on from" in run.told) == bool(saved)
        assert sorted(path.name for path in run.folder.iterdir()) == ["log", "run"]
        warnings = json.loads((run.out / "run.json").read_text(encoding="utf-8"))["warnings"]
        assert any("went on from" in text for text in warnings) == bool(saved)
    assert run.result() == whole.result


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment:.2f}")
def test_killed_at_a_random_moment(run: Run, whole: Whole, moment: float) -> None:
    delay = moment * whole.seconds
    while run(kill_after_s=delay)["code"] != -signal.SIGKILL:  # it was done before: not what is asked here
        shutil.rmtree(run.out)
        delay *= 0.8
    if moment < 0.15:
        run(kill_after_s=whole.seconds / 2)  # in the resumed run too
    finish(run, whole)


@pytest.mark.parametrize("tenth", range(10))
def test_killed_inside_a_save(run: Run, whole: Whole, tenth: int) -> None:
    assert whole.touched > 100  # operations on files, in the three saves
    at = round((tenth + 0.5) / 10 * whole.touched)
    assert run(kill_at=at)["code"] == -signal.SIGKILL
    finish(run, whole)


def fresh(run: Run, end: signal.Signals) -> tuple[int, str]:
    """Start an interpreter of its own and send it a signal as soon as it has written a checkpoint."""
    saved = run.steps_saved()
    process = subprocess.Popen(
        [sys.executable, "-m", "amends", *run.words], stderr=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT
    )
    while process.poll() is None and run.steps_saved()[-1:] == saved[-1:]:
        time.sleep(0.005)
    process.send_signal(end)
    _, told = process.communicate()
    return process.returncode, told


def test_fresh_processes_told_to_terminate_then_killed(run: Run, whole: Whole) -> None:
    code, told = fresh(run, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert re.fullmatch(
        rf"amends: stopped at step \d+ of {STEPS}; resume from \S+/checkpoint-\d+\.", told.splitlines()[-1]
    )
    stopped_at = run.steps_saved()[-1]
    code, told = fresh(run, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert f"going on from {run.checkpoints / f'checkpoint-{stopped_at}'}" in told
    assert run.steps_saved()[-1] > stopped_at
    finish(run, whole)
