"""Forget by flattening logits, with the cost of keeping as a constraint (PDU).

Makes the logits on the answers to forget alike; the weight of the rows to keep is a dual variable that rises while
their loss is above a limit and falls while it is below. Entesari et al., arXiv 2506.05314; formulas as in
OpenUnlearning, but over the answers' tokens alone.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers.trainer_callback import ExportableState, TrainerCallback

from amends.lm.logprobs import AnswerLogprobs, masked_mean
from amends.unlearn._config import ForgetConfig, RetainWeightOption
from amends.unlearn._forget import ForgetTrainer
from amends.unlearn._method import method


@dataclass
class PDUConfig(ForgetConfig):
    """Settings of `PDUTrainer`."""

    retain_weight: RetainWeightOption = 50.0
    retain_limit: Annotated[
        float, typer.Option(help="Loss that the rows to keep may have; above what it is at the start.", min=0)
    ] = 0.3
    dual_step: Annotated[
        float, typer.Option(help="Step of the retain weight for each nat over the limit; 0 fixes it.", min=0)
    ] = 5.0
    dual_warmup_epochs: Annotated[float, typer.Option(help="Epochs before the first such step.", min=0)] = 5.0


def logit_spread(logits_NV: Tensor, _: Tensor) -> Tensor:
    """Square of the largest logit's distance from their mean, (N,)."""
    return (logits_NV.amax(-1) - logits_NV.mean(-1)) ** 2


class PDUTrainer(ForgetTrainer):
    """`transformers.Trainer` that forgets by PDU. `retain_weight` is where the dual variable begins."""

    title = "PDU"
    keeps = "needed"
    saturates = False
    reads_logs = True
    moves_retain_weight = True
    args: PDUConfig

    def __init__(self, model: Any, args: PDUConfig, *rest: Any, **kwargs: Any) -> None:
        super().__init__(model, args, *rest, **kwargs)
        self.dual = Dual(args.retain_weight)
        self.add_callback(self.dual)

    @property
    def retain_weight(self) -> float:
        """The dual variable."""
        return self.dual.value

    def forget_losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean spread of the logits per answer token."""
        first_BA = out.mask(0)
        return masked_mean(out.score(logit_spread, first_BA), first_BA), self.probabilities(out)

    def retain_losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """Weigh rows to keep by the dual variable, which is logged."""
        losses_S, costs = super().retain_losses(out)
        return losses_S, costs | {"retain_weight": torch.full_like(losses_S, self.retain_weight)}

    def start_warnings(self) -> list[str]:
        """Say it, too, where the dual variable will not move."""
        args, texts = self.args, super().start_warnings()
        if args.dual_step and args.max_steps < 0 and args.dual_warmup_epochs >= args.num_train_epochs:
            texts.append(
                f"The weight of the rows to keep stays at {args.retain_weight:g}: its first step comes after "
                f"{args.dual_warmup_epochs:g} epochs, and there are {args.num_train_epochs:g}. Lower "
                "dual_warmup_epochs, or train for longer."
            )
        return texts


class Dual(TrainerCallback, ExportableState):
    """The dual variable; checkpoints hold it."""

    def __init__(self, value: float) -> None:
        self.value = value

    def state(self) -> dict[str, Any]:
        """Say what a checkpoint keeps of it."""
        return {"args": {"value": self.value}, "attributes": {}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go on from a checkpoint's value."""
        if kept := state.stateful_callbacks.get(type(self).__name__):
            self.value = kept["args"]["value"]

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Move it by how far the rows to keep are from their limit; the log has their mean over all processes."""
        costs = [value for name, value in (logs or {}).items() if name in ("retain_nll", "retain_kl")]
        if costs and state.epoch > args.dual_warmup_epochs:  # other logs tell nothing of the rows to keep
            self.value = max(0.0, self.value + args.dual_step * (sum(costs) - args.retain_limit))


run, command = method(PDUTrainer)
