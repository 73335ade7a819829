"""Forget by self-distillation from lowered logits (UNDIAL).

Teaches the model its own words at the start with the logit of each token to forget lowered. Needs no rows to keep.
Dong et al., arXiv 2402.10052. Deviation from OpenUnlearning: only the answers' tokens count.
"""

from dataclasses import dataclass
from typing import Annotated

import typer
from torch import Tensor

from amends.lm.logprobs import AnswerLogprobs, masked_mean
from amends.unlearn._config import ForgetConfig
from amends.unlearn._forget import ForgetTrainer
from amends.unlearn._method import method


@dataclass
class UNDIALConfig(ForgetConfig):
    """Settings of `UNDIALTrainer`."""

    beta: Annotated[float, typer.Option(help="How far the logit of a token to forget is lowered.", min=0)] = 10.0


def undial_cross_entropy(logits_NV: Tensor, target_N: Tensor, before_NV: Tensor, beta: float) -> Tensor:
    """Cross entropy, nats, (N,), of what is said now, with what was said before and the target's logit lowered."""
    column_N1 = target_N[:, None]
    lowered_NV = before_NV.scatter(1, column_N1, before_NV.gather(1, column_N1) - beta)
    return -(lowered_NV.softmax(-1) * logits_NV.log_softmax(-1)).sum(-1)


class UNDIALTrainer(ForgetTrainer):
    """`transformers.Trainer` that forgets by UNDIAL; the states of the reference are noted once."""

    title = "UNDIAL"
    saturates = False
    reference = "states"
    args: UNDIALConfig

    def forget_losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross entropy per answer token."""
        first_BA = out.mask(0)

        def score(logits_NV: Tensor, target_N: Tensor, said_NK: Tensor) -> Tensor:
            return undial_cross_entropy(logits_NV, target_N, self.reference_logits(said_NK), self.args.beta)

        return masked_mean(out.score(score, first_BA, out.noted_BAK), first_BA), self.probabilities(out)


run, command = method(UNDIALTrainer)
