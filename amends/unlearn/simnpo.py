"""Forget by NPO without a reference, normalised by length (SimNPO).

Lowers the mean log-likelihood of the answers to forget, the less the lower it is already. Fan et al., arXiv 2410.07163.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from torch import Tensor

from amends.lm.logprobs import AnswerLogprobs, masked_mean
from amends.unlearn._config import ForgetConfig, ForgetWeightOption
from amends.unlearn._forget import ForgetTrainer
from amends.unlearn._method import method
from amends.unlearn.npo import npo_loss


@dataclass
class SimNPOConfig(ForgetConfig):
    """Settings of `SimNPOTrainer`."""

    forget_weight: ForgetWeightOption = 0.125
    beta: Annotated[float, typer.Option(help="Inverse temperature.", min=1e-6)] = 4.5
    delta: Annotated[float, typer.Option(help="NLL per token, in nats, that an answer should have at least.")] = 0.0


class SimNPOTrainer(ForgetTrainer):
    """`transformers.Trainer` that forgets by SimNPO: NPO of the mean log-probability, against -delta."""

    title = "SimNPO"
    keeps = "usual"
    args: SimNPOConfig

    def forget_losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """SimNPO of each sample."""
        mean_S = masked_mean(out.logp_BA, out.mask(0))
        return npo_loss(mean_S, torch.full_like(mean_S, -self.args.delta), self.args.beta), self.probabilities(out)


run, command = method(SimNPOTrainer)
