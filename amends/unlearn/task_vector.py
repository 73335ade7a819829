"""Forget by subtracting what more training on the answers would add (task vector).

Trains on the answers to forget, then goes the same way in the opposite direction from the start. Ilharco et al.,
arXiv 2212.04089. Of LoRA adapters only B is trained, so that the weights are linear in what is trained.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from amends.io.errors import InputError
from amends.lm.logprobs import AnswerLogprobs, masked_mean
from amends.lm.shards import like
from amends.unlearn._config import ForgetConfig
from amends.unlearn._forget import ForgetTrainer
from amends.unlearn._method import method


@dataclass
class TaskVectorConfig(ForgetConfig):
    """Settings of `TaskVectorTrainer`."""

    scale: Annotated[
        float, typer.Option(help="How far to go back, in lengths of the way that the training went.", min=0)
    ] = 1.0


class TaskVectorTrainer(ForgetTrainer):
    """`transformers.Trainer` on the answers to forget; at the end of `train` its update is turned round.

    W = W_start - scale (W_trained - W_start)
    """

    title = "Task vector"
    keeps = "none"  # it would turn them round, too
    args: TaskVectorConfig

    @classmethod
    def useless(cls) -> set[str]:
        """Without rules that look at the probability, which rises."""
        return super().useless() | {"stop_v_f", "floor_v_f"}

    @classmethod
    def check(cls, args: ForgetConfig, *, keeps: bool) -> None:
        """Refuse stop rules."""
        super().check(args, keeps=keeps)
        for option in ("stop_v_f", "floor_v_f"):
            if getattr(args, option) is not None:
                raise InputError(
                    f"--{option.replace('_', '-')}: the probability rises in the training. Leave it out, and choose "
                    "--scale."
                )

    def __init__(self, model: Any, args: TaskVectorConfig, *rest: Any, **kwargs: Any) -> None:
        super().__init__(model, args, *rest, **kwargs)
        for name, weight in self.model.named_parameters():
            if "lora_magnitude_vector" in name:
                raise InputError("DoRA: the weights are not linear in such an adapter. Train another, or all weights.")
            if "lora_A" in name or "lora_embedding_A" in name:
                weight.requires_grad_(False)

    def forget_losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean negative log-likelihood per answer token, to be lowered."""
        return -masked_mean(out.logp_BA, out.mask(0)), self.probabilities(out)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, then turn the update round."""
        start = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}
        done = super().train(*args, **kwargs)
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if name in start:
                    began = like(start[name], weight)
                    weight.copy_(began - self.args.scale * (weight - began))
        self.check_finite()
        return done


run, command = method(TaskVectorTrainer)
