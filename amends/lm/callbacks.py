"""What happens between the steps of a training: the epoch is told, bad numbers and signals stop it, a bar moves."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import SaveStrategy

from amends.io.console import say
from amends.io.errors import NoResult, Stopped
from amends.io.progress import EVERY_S, bars
from amends.lm.checkpoint import checkpoints, fault


class HasEpoch(Protocol):
    """Rows that are drawn anew each epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Take note of the epoch that starts."""


class TellEpoch(TrainerCallback):
    """Tell the rows which epoch it is: accelerate's data loaders do not on several processes or on resuming."""

    def __init__(self, rows: HasEpoch) -> None:
        self.rows = rows

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Come before the first batch is drawn; a resumed epoch is a fraction here."""
        self.rows.set_epoch(int(state.epoch))


class StopOnNonFinite(TrainerCallback):
    """Stop at a loss or gradient that is not a number, before it reaches a saved model.

    Every step that is saved is logged first, and the last one, so that no checkpoint holds what came of such a loss.

    state : (str, str)
        What the run's checkpoints are made of (`amends.lm.checkpoint.fault`).
    """

    def __init__(self, state: tuple[str, str]) -> None:
        self.state = state

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Have the losses since the last log looked at."""
        control.should_log = control.should_log or control.should_save or state.global_step >= state.max_steps

    on_epoch_end = on_step_end

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Raise NoResult with the step and the last good checkpoint."""
        for name in ("mean_loss", "grad_norm"):
            value = (logs or {}).get(name)
            if value is not None and not math.isfinite(float(value)):
                saves = args.save_strategy != SaveStrategy.NO
                there = checkpoints(args.output_dir) if saves else []
                good = next((path for path in there if not fault(path, args.world_size, state=self.state)), None)
                raise NoResult(
                    f"{name} is {value} at step {state.global_step}: training stopped and "
                    + (f"the last good checkpoint is {good}. " if good else "nothing was saved. ")
                    + "Lower --learning-rate, or train in float32."
                )


USUAL = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
"""Handlers that are replaced during a training; an application that has its own keeps them."""


class StopOnSignal(TrainerCallback):
    """End the training in good order at SIGTERM and Ctrl-C."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.signal = trainer, 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals meanwhile instead of being ended by them, where that is possible: in the main thread."""
        self.signal = 0
        in_main = threading.current_thread() is threading.main_thread()
        before = {number: usual for number, usual in USUAL.items() if in_main and signal.getsignal(number) == usual}
        for number in before:
            signal.signal(number, self.note)
        try:
            yield
        finally:
            for number, usual in before.items():
                signal.signal(number, usual)

    def note(self, number: int, frame: Any) -> None:
        """Hear a signal."""
        if self.signal:
            raise Stopped("stopped at once.", number)
        self.signal = number

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop all processes at the same step, as soon as one was told to."""
        heard = torch.tensor([self.signal], device=args.device)
        self.signal = int(self.trainer.accelerator.gather(heard).max()) if args.world_size > 1 else self.signal
        if self.signal:
            control.should_training_stop = True
            control.should_save = control.should_save or args.save_strategy != SaveStrategy.NO


class Bar(TrainerCallback):
    """One progress bar of a training, with the last value of a measure beside it; takes the place of printed logs.

    Of several measures it is the first that there is.

    Where no bar is to be seen, in a log file say, a line for every tenth of the steps instead, and every minute.
    """

    def __init__(self, label: str, *measures: str) -> None:
        text = TextColumn("{task.description}")
        self.progress = bars(text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.label, self.measures = label, measures
        self._told_s = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar."""
        self.task = self.progress.add_task(self.label, total=state.max_steps, completed=state.global_step)
        self.progress.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Advance it."""
        if logs and "mean_loss" in logs:
            measure = next((name for name in self.measures if name in logs), "mean_loss")
            text = f"{self.label}, {measure} {logs[measure]:.3f}"
            self.progress.update(self.task, completed=state.global_step, description=text)
            tenths, before = (10 * step // state.max_steps for step in (state.global_step, state.global_step - 1))
            long_ago = time.monotonic() - self._told_s >= EVERY_S
            if (tenths > before or long_ago) and self.progress.disable:
                self._told_s = time.monotonic()
                say(f"{text} at step {state.global_step} of {state.max_steps}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take it away."""
        self.take_away()

    def take_away(self) -> None:
        """Take it away, also after a training that failed, of which callbacks do not hear."""
        if self.progress.live.is_started:
            self.progress.stop()
