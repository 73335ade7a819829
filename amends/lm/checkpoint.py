"""Checkpoints of a training: whole or not there, and resumed from only while they are what was written.

A checkpoint is the folder "checkpoint-STEP" with what `transformers.Trainer` writes, request.json where the training
has a request, and manifest.json with size and SHA-256 of every other file, which is written last.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from amends.io.atomic import MANIFEST, check_manifest, finite, lock, new_folder, write_manifest
from amends.io.console import IS_FIRST_PROCESS
from amends.io.errors import Held, InputError
from amends.io.tables import read_json

LEAST_KEPT = 2  # one to fall back on if the newest is damaged
NAME = re.compile(r"checkpoint-(\d+)")
REQUEST, STATE = "request.json", "trainer_state.json"
WHOLE = ("*.safetensors", "optimizer.pt")
SHARDED = ("pytorch_model_fsdp*", "optimizer*")
"""Under FSDP: one file each or, of SHARDED_STATE_DICT, a folder with a file from every process."""
WORDS = {"missing": "is missing", "size": "has another size", "changed": "was changed", "unlisted": "was added"}


class Newest(NamedTuple):
    """What can be resumed from, and why the newer ones cannot."""

    path: Path | None
    skipped: dict[Path, str]


def folder_of(out: str | Path, save_steps: int) -> Path | None:
    """Folder beside the one a run makes, if checkpoints are asked for or are there from a run that ended early."""
    folder = Path(f"{Path(out)}.checkpoints")
    return folder if save_steps or folder.is_dir() else None


def saving(folder: Path | None, save_steps: int) -> dict[str, Any]:
    """Training arguments for checkpoints every `save_steps` steps (0: none) in a folder."""
    return {
        "output_dir": str(folder or "."),  # the trainer makes it if it is not there
        "save_strategy": "steps" if save_steps else "no",
        "save_steps": save_steps or 1,  # 0 is refused
    }


@contextmanager
def not_left_empty(folder: Path | None) -> Iterator[None]:
    """Remove a folder at the end if nothing is in it."""
    try:
        yield
    finally:
        with suppress(OSError):  # not empty, or not there
            if folder and IS_FIRST_PROCESS:
                folder.rmdir()


def checkpoints(folder: str | Path) -> list[Path]:
    """All in a folder, whole or not, newest first."""
    found = [path for path in Path(folder).glob("checkpoint-*") if NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Read the step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def fault(
    checkpoint: str | Path,
    num_processes: int = 1,
    request: Mapping[str, Any] | None = None,
    state: tuple[str, str] = WHOLE,
) -> str:
    """Why a checkpoint cannot be resumed from; empty if it can.

    Parameters
    ----------
    num_processes : int, default 1
        Each has a state of the random generators of its own.
    request : dict, optional
        What the training was asked to do; the checkpoint must have been written for the same.
    state : (str, str), default WHOLE
        Patterns of the names under which weights and optimizer lie there.
    """
    folder = Path(checkpoint)
    try:
        if folder.is_symlink() or (folder / MANIFEST).is_symlink():
            return "it or its manifest is a link"
        if problems := check_manifest(folder):
            return ", ".join(f"{file} {WORDS[what]}" for file, what in problems)
        generators = [f"rng_state_{i}.pth" for i in range(num_processes)] if num_processes > 1 else ["rng_state.pth"]
        needed = ["scheduler.pt", STATE, *generators] + ([REQUEST] if request is not None else [])
        missing = [f"it has no {name}" for name in needed if not (folder / name).is_file()]
        missing += [f"it has no {pattern}" for pattern in state if not any(folder.glob(pattern))]
        if not missing and request is not None:
            return ", ".join(_differences(read_json(folder / REQUEST), finite(request)))
        return ", ".join(missing)
    except (InputError, OSError) as error:
        return str(error).replace(str(folder), "").lstrip(f"{os.sep}: ").removesuffix(".")


def newest(
    folder: str | Path,
    num_processes: int = 1,
    request: Mapping[str, Any] | None = None,
    state: tuple[str, str] = WHOLE,
) -> Newest:
    """Find the newest checkpoint without a `fault`, and the newer ones with theirs.

    Raises
    ------
    InputError : there are checkpoints, but each has a fault; all are named.
    """
    skipped: dict[Path, str] = {}
    for path in checkpoints(folder):
        reason = fault(path, num_processes, request, state)
        if not reason:
            return Newest(path, skipped)
        skipped[path] = reason
    if skipped:
        told = "; ".join(f"{path.name}: {reason}" for path, reason in skipped.items())
        raise InputError(f"{folder}: no checkpoint can be resumed from ({told}). Remove the folder to begin anew.")
    return Newest(None, {})


@contextmanager
def new_checkpoint(place: Path, accelerator: Accelerator) -> Iterator[Path]:
    """Fill a checkpoint, from all processes; the first gives it its name when all are done.

    Yields
    ------
    Path : the temporary folder, the same in all processes. What was at `place` before is replaced: only one that cannot
        be resumed from is ever there.
    """
    if accelerator.is_main_process:
        remove(place)
    with new_folder(place) if accelerator.is_main_process else nullcontext() as own:
        (folder,) = broadcast_object_list([own])
        yield folder
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_manifest(folder)
    accelerator.wait_for_everyone()


def remove_older(checkpoint: Path, num_kept: int) -> str:
    """Remove all but the newest `num_kept`, at least two, up to this one, if this one is on the disk as it was written.

    Returns
    -------
    str : what is wrong with it, in which case nothing was removed; else empty.
    """
    older = [path for path in checkpoints(checkpoint.parent) if step_of(path) < step_of(checkpoint)]
    older = older[max(num_kept, LEAST_KEPT) - 1 :]
    problems = check_manifest(checkpoint) if older else []
    if not problems:
        for path in older:
            remove(path)
    return ", ".join(f"{file} {WORDS[what]}" for file, what in problems)


def remove(path: Path) -> None:
    """Remove a checkpoint under a hidden name, so that one which is half removed is none."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        hidden = path.with_name(f".{path.name}.old")
        shutil.rmtree(hidden, ignore_errors=True)
        shutil.rmtree(path.rename(hidden))


def remove_all(folder: Path | None) -> None:
    """Remove the checkpoints in a folder, and nothing else that may lie there; all stay if a process is at them."""
    if folder and folder.is_dir():
        with suppress(Held), alone_in(folder):
            for path in checkpoints(folder):
                remove(path)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder of checkpoints against other processes, and remove what killed ones left half done.

    Raises
    ------
    Held : another process is at them.
    """
    with lock(folder / "checkpoint"):
        for path in folder.glob(".checkpoint-*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        yield


def _differences(recorded: Any, request: Any) -> list[str]:
    """List the options in which two requests differ."""
    if not isinstance(recorded, dict):
        return [f"{REQUEST} is not a request"]
    names = [name for name in recorded.keys() | request.keys() if recorded.get(name) != request.get(name)]
    return [f"its {n} was {_short(recorded.get(n))}, is now {_short(request.get(n))}" for n in sorted(names)]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"...{text[-30:]}"
