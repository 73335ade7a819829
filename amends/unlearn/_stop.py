"""When a training that forgets stops, and whether it will move at all."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

if TYPE_CHECKING:
    from amends.unlearn._forget import ForgetTrainer

TEMPLATE_TOO_LOW, FORGET_TOO_HIGH = 1e-3, 0.99
"""A probability p moves by p(1 - p) of its logit's gradient: beyond these values next to nothing moves at first."""


def start_warnings(start: Mapping[str, float], saturates: bool = True) -> list[str]:
    """Say where the start leaves the loss next to no gradient; `saturates`: whether v_f near 1 does."""
    texts = []
    if saturates and start["v_f"] > FORGET_TOO_HIGH:
        texts.append(
            f"v_f starts at {start['v_f']:.4f}: the forget answers are known so surely that their gradient nearly "
            "vanishes and nothing may move for many steps. Raise the learning rate."
        )
    if start.get("v_e", 1.0) < TEMPLATE_TOO_LOW:
        texts.append(
            f"v_e starts at {start['v_e']:.1e}: the template answers are so unlikely to the model that they will "
            "hardly move at first. Raise the learning rate, set template_warmup_steps, or give templates nearer to its "
            "own words."
        )
    return texts


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
        """Go on from a checkpoint's state."""
        if (kept := state.stateful_callbacks.get(type(self).__name__)) and kept["args"]["reached"]:
            self.reached = tuple(kept["args"]["reached"])

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
