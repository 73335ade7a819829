"""When a training that forgets stops."""

import math
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

if TYPE_CHECKING:
    from amends.unlearn._forget import ForgetTrainer


class StopWhenForgotten(TrainerCallback, ExportableState):
    """Stop when v_f over all forget rows is at most the limit; looked at whenever a batch is.

    patience : float, default 1
        Go on to this many times the steps after which that was first so.
    """

    def __init__(self, trainer: "ForgetTrainer", limit: float, patience: float = 1.0) -> None:
        self.trainer, self.limit, self.patience = trainer, limit, patience
        self.reached: tuple[int, float] | None = None

    def state(self) -> dict[str, Any]:
        """Say what a checkpoint keeps of it."""
        return {"args": {"reached": self.reached}, "attributes": {}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go on from a checkpoint's state; what a training before this one reached does not count."""
        kept = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        self.reached = tuple(kept["args"]["reached"]) if kept and kept["args"]["reached"] else None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget the batch before."""
        self.trainer.v_f_of_step.clear()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the batch first, which is free, then at all rows."""
        if self.reached is None:
            batch = self.trainer.v_f_of_step
            if batch and self.trainer.accelerator.reduce(torch.cat(batch).mean(), "mean").item() > self.limit:
                return
            v_f = self.trainer.forget_means(templates=False)["v_f"]
            if v_f > self.limit:
                return
            self.reached = state.global_step, v_f
        step, v_f = self.reached
        if state.global_step >= self.patience * step:
            later = f", and {state.global_step - step} steps more" if state.global_step > step else ""
            self.trainer.stopped = (
                f"v_f = {v_f:.3f} over all forget rows, at most {self.limit:g}, at step {step}{later}"
            )
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say it where the steps were too few to stop at."""
        if self.reached is not None and state.global_step < self.patience * self.reached[0]:
            step, v_f = self.reached
            self.trainer.stopped += (
                f"; v_f = {v_f:.3f} over all forget rows, at most {self.limit:g}, at step {step}, and "
                f"{math.ceil(self.patience * step)} steps were to be made"
            )
