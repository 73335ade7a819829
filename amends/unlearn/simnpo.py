"""Forget by NPO without a reference, normalised by length (SimNPO).

Lowers the mean log-likelihood of the answers to forget, the less the lower it is already. Fan et al., arXiv 2410.07163.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from amends.lm.logprobs import AnswerLogprobs, masked_mean
from amends.unlearn._config import ForgetConfig, instead
from amends.unlearn._forget import ForgetTrainer
from amends.unlearn._method import method
from amends.unlearn.npo import npo_loss


@dataclass
class SimNPOConfig(ForgetConfig):
    """Settings of `SimNPOTrainer`."""

    forget_weight: float = instead("forget_weight", 0.125)
    beta: float = field(default=4.5, metadata={"help": "Inverse temperature.", "min": 1e-6})
    delta: float = field(default=0.0, metadata={"help": "NLL per token, in nats, that an answer should have at least."})


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
