"""A process that has imported everything, and forks one that runs ``amends`` for each line of JSON it is given.

A fresh interpreter needs seconds for its imports; a fork is a real process too, and dies as one, without them. A line
has "words", "log", and what is to go wrong: "kill_after_s"; "kill_at", a number of operations on files; or at a "step"
"signal", "bytes" (room for each file) or "read_only" (a folder). The answer has "code" (-signal if killed), "seconds"
and "touched", the operations on files while checkpoints were made or removed.
"""

import ctypes
import gc
import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pydantic  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import amends.unlearn._run
import amends.unlearn.flat
import amends.unlearn.ga
from amends.cli import main
from amends.lm.trainer import AnswerTrainer

# Half of the time of so short a run are the charts of its report, which come after everything that is tried here.
amends.unlearn._run.render_report = lambda folder: "no charts"
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


touched = 0


def watch(kill_at: int | None) -> None:
    """Count the operations on files while checkpoints are made or removed; die right before one of them."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        global touched
        if event in EVENTS and any("/.checkpoint-" in str(arg) for arg in args[:2]):
            if touched == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            touched += 1

    sys.addaudithook(hook)


def at_step(step: int, act: Any) -> None:
    """Do something right after a step's values were logged, before it may be saved."""
    log = AnswerTrainer.log

    def logged(self: Any, logs: Any, start_time: Any = None) -> None:
        log(self, logs, start_time)
        if "loss" in logs and self.state.global_step == step:
            act()

    AnswerTrainer.log = logged  # type: ignore[method-assign]


def drop_rights() -> None:
    """Obey the permissions of files although we may be root: no capability is kept (Linux)."""
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capset(header, nothing) == 0


def child(job: dict[str, Any], answer: int) -> None:
    with open(job["log"], "wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    watch(job.get("kill_at"))
    if "signal" in job:
        at_step(job["step"], lambda: os.kill(os.getpid(), job["signal"]))
    if "bytes" in job:
        at_step(job["step"], lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (job["bytes"], job["bytes"])))
    if "read_only" in job:
        at_step(job["step"], lambda: (Path(job["read_only"]).chmod(0o555), drop_rights()))
    try:
        main(job["words"])
    except SystemExit as done:
        os.write(answer, str(touched).encode())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(done.code or 0))


gc.freeze()  # so that forks share these pages
for line in sys.stdin:
    job = json.loads(line)
    started = time.perf_counter()
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        child(job, write)
    os.close(write)
    timer = threading.Timer(job.get("kill_after_s", 0), os.kill, (pid, signal.SIGKILL))
    if "kill_after_s" in job:
        timer.start()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    timer.cancel()
    with open(read) as told:
        answer = {"code": code, "seconds": time.perf_counter() - started, "touched": int(told.read() or 0)}
    print(json.dumps(answer), flush=True)
