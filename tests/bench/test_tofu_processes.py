"""Several processes, or one that was stopped, on one folder of the table."""

import json
import os
import signal
import socket

from amends.io.atomic import write_json
from amends.unlearn._teach import TeachTrainer

from .tofu_world import run_small, taught_world


def held_by_another(place):
    """Lock a place as another process does that is alive."""
    lock = place.with_name(f".{place.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text(f"{os.getppid()} {socket.gethostname()}")
    return lock


def test_what_another_process_makes_is_waited_for_and_the_rest_made_meanwhile(
    amends, world, tiny_model, tmp_path, monkeypatch
):
    out = tmp_path / "bench"
    files = {role: out / "evaluations" / "forget" / f"{role}.json" for role in ("reference", "before")}
    held = held_by_another(files["reference"])
    waits = []

    def until_the_other_is_done(seconds):
        waits.append((files["before"].exists(), files["reference"].exists()))
        held.unlink()

    monkeypatch.setattr("amends.bench._cells.time.sleep", until_the_other_is_done)
    code, _, err = run_small(amends, world, tiny_model, out, "--methods", "ga", "--seeds", 1)
    assert code == 0, err
    assert waits == [(True, False)] and files["reference"].exists()
    assert "waiting: " in err and "reference.json: another process" in " ".join(err.split())
    assert "1 of 1 cells are made" in (out / "tofu.md").read_text(encoding="utf-8")


def test_a_trial_that_another_process_makes_is_waited_for_and_not_made_again(
    amends, world, tiny_model, tmp_path, monkeypatch
):
    out = tmp_path / "bench"
    trials = {rate: out / "search" / "forget" / f"ga-{rate}.json" for rate in ("0.001", "0.01")}
    held = held_by_another(trials["0.001"])
    found = {"learning_rate": 1e-3, "failed": None, "distance": -1.0}

    def until_the_other_is_done(seconds):
        assert trials["0.01"].exists()  # made meanwhile
        write_json(trials["0.001"], found)
        held.unlink()

    monkeypatch.setattr("amends.bench._cells.time.sleep", until_the_other_is_done)
    code, _, err = run_small(amends, world, tiny_model, out, "--methods", "ga", "--seeds", 1)
    assert code == 0, err
    cell = json.loads((out / "cells/forget/searched/ga-0.json").read_text(encoding="utf-8"))
    assert cell["trials"][0] == found and cell["options"]["learning_rate"] == 1e-3


def test_a_cell_that_another_process_holds_is_left_with_the_lock_to_remove_should_it_be_gone(
    amends, world, tiny_model, tmp_path
):
    out = tmp_path / "bench"
    held = held_by_another(out / "cells/forget/searched/ga-0.json")
    _, words = taught_world(world, tiny_model, tmp_path)
    code, _, err = run_small(amends, world, tiny_model, out, *words)
    assert code == 0, err
    told = " ".join(err.split())
    assert "ga, forget, searched, seed 0: left to another." in told and f"if it no longer runs, remove {held}." in told
    assert "0 of 1 cells are made" in (out / "tofu.md").read_text(encoding="utf-8")


def test_teaching_goes_on_from_its_checkpoint_by_another_path_of_the_same_folder(
    amends, world, tiny_model, tmp_path, monkeypatch
):
    losses, steps = TeachTrainer.losses, []

    def stopped(trainer, out):
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return losses(trainer, out)

    monkeypatch.setattr("amends.bench._cells.SAVE_STEPS", 1)
    monkeypatch.chdir(tmp_path)
    more = ["--methods", "ga", "--seeds", 1, "--settings", "published", "--teach-epochs", 3]
    with monkeypatch.context() as patch:
        patch.setattr(TeachTrainer, "losses", stopped)
        assert run_small(amends, world, tiny_model, "bench", *more)[0] == 130
    assert (tmp_path / "bench/models/reference-forget.checkpoints").is_dir()
    nearer = os.path.relpath(tiny_model)
    code, _, err = run_small(amends, world, nearer, tmp_path / "bench", *more)
    assert code == 0, err
    assert "going on from" in err
    assert not list((tmp_path / "bench/models").glob("*.checkpoints"))
