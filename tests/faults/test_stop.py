"""Ends before the end, other than a kill: each leaves what was whole before, and says in one line what to do."""

import json
import re
import shutil
import signal
from pathlib import Path

import pytest

from amends.io.atomic import lock
from amends.io.run import read_run
from amends.lm.checkpoint import fault

from .conftest import STEPS, Run, Whole


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(run: Run, whole: Whole, end: signal.Signals) -> None:
    assert run(signal=end, step=6)["code"] == 128 + end
    assert run.steps_saved() == [4, 7]
    assert f"amends: stopped at step 7 of {STEPS}; resume from {run.checkpoints / 'checkpoint-7'}." in run.told
    assert "Traceback" not in run.told
    assert run()["code"] == 0
    assert run.result() == whole.result
    assert not run.checkpoints.exists()


def test_without_checkpoints_a_signal_leaves_nothing(run: Run) -> None:
    assert run("--save-steps", 0, signal=signal.SIGINT, step=6)["code"] == 130
    assert f"stopped at step 7 of {STEPS}; nothing was saved." in run.told
    assert [path.name for path in run.folder.iterdir()] == ["log"]


def test_the_stop_rule_stops_a_resumed_run_at_the_same_step(run: Run) -> None:
    run.words[1] = "ga"  # lowers v_f even here
    run.words += ["--retain-weight", "0"]
    assert run("--save-steps", 0)["code"] == 0, run.told
    v_f = [json.loads(line)["v_f"] for line in (run.out / "history.jsonl").read_text().splitlines()]
    shutil.rmtree(run.out)
    run.words += ["--stop-v-f", str(min(v_f[:8]))]  # reached by no batch before step 9
    assert run("--save-steps", 0)["code"] == 0, run.told
    result, stopped = run.result(), read_run(run.out)["stopped"]
    step = int(stopped.rpartition(" ")[2])
    assert 8 < step < STEPS
    shutil.rmtree(run.out)
    assert run(signal=signal.SIGTERM, step=5)["code"] == 143
    assert run("--save-steps", 1, signal=signal.SIGTERM, step=step)["code"] == 143  # when the rule has just spoken
    assert run.steps_saved()[-1] == step - 1  # from its own step the run would go on
    assert run()["code"] == 0
    assert (run.result(), read_run(run.out)["stopped"]) == (result, stopped)


def test_no_room_for_a_checkpoint_leaves_those_before_it(run: Run, whole: Whole) -> None:
    assert run(bytes=20_000, step=6)["code"] == 1
    found = re.search(r"error: .*checkpoint-8 was not written: it needs about ([\d,]+) bytes, the disk has ", run.told)
    assert found, run.told
    assert int(found[1].replace(",", "")) > 20_000
    assert "Traceback" not in run.told
    assert [path.name for path in run.checkpoints.iterdir()] == ["checkpoint-4"]
    assert fault(run.checkpoints / "checkpoint-4") == ""
    assert run()["code"] == 0
    assert run.result() == whole.result


def test_a_folder_that_became_read_only_keeps_what_is_in_it(run: Run, whole: Whole) -> None:
    answer = run(read_only=str(run.checkpoints), step=6)
    run.checkpoints.chmod(0o755)
    assert answer["code"] == 2
    assert f"checkpoint-8: {run.checkpoints} cannot be written to. Give another place." in run.told
    assert run.steps_saved() == [4]
    assert run()["code"] == 0
    assert run.result() == whole.result


def test_a_second_process_on_the_same_checkpoints_is_refused(run: Run) -> None:
    with lock(run.checkpoints / "checkpoint"):
        assert run()["code"] == 2
    assert re.search(r"error: .*checkpoint: another process \(\d+ on .*\) is writing there", run.told)


def test_a_run_asked_for_something_else_does_not_use_the_checkpoints(run: Run, whole: Whole) -> None:
    assert run(signal=signal.SIGTERM, step=6)["code"] == 143
    forget = Path(run.words[run.words.index("--forget") + 1])
    other = run.folder / "other.jsonl"
    other.write_text(forget.read_text().replace("town 1", "town 9"))
    for more, told in {
        ("--learning-rate", "0.02"): "its learning_rate was 0.01, is now 0.02",
        ("--forget", str(other)): r"its forget was \S+forget.jsonl, is now \S+other.jsonl, its forget data was \S+, is",
        ("--seed", "1"): "its seed was 0, is now 1",
    }.items():
        assert run(*more)["code"] == 2
        assert re.search(f"no checkpoint can be resumed from .checkpoint-7: {told}.*; checkpoint-4: ", run.told), (
            run.told
        )
    assert run("--save-steps", 5)["code"] == 0  # how often it is saved makes no other model
    assert run.result() == whole.result
