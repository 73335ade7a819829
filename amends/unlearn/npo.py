"""Forget by negative preference optimisation (NPO).

Lowers the likelihood of the answers to forget against that at the start, the less the lower it is already; near the
start it is gradient ascent. Zhang et al., arXiv 2404.05868.
"""

from dataclasses import dataclass
from typing import Annotated

import typer
from torch import Tensor
from torch.nn.functional import logsigmoid

from amends.lm.logprobs import AnswerLogprobs
from amends.unlearn._config import ForgetConfig
from amends.unlearn._forget import ForgetTrainer
from amends.unlearn._method import method


@dataclass
class NPOConfig(ForgetConfig):
    """Settings of `NPOTrainer`."""

    beta: Annotated[float, typer.Option(help="Inverse temperature; towards 0 it is gradient ascent.", min=1e-6)] = 0.1


def npo_loss(logp_S: Tensor, reference_S: Tensor, beta: float) -> Tensor:
    """-(2 / beta) log sigmoid(-beta (log p - log p_reference)) of each sample; log-probabilities of whole answers."""
    return -2 / beta * logsigmoid(-beta * (logp_S - reference_S))


class NPOTrainer(ForgetTrainer):
    """`transformers.Trainer` that forgets by NPO; the reference's log-probabilities are noted once."""

    title = "NPO"
    keeps = "usual"
    reference = "log-probabilities"
    args: NPOConfig

    def forget_losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """NPO of each sample."""
        first_BA = out.mask(0)
        logp_S, reference_S = ((logp_BA * first_BA).sum(-1) for logp_BA in (out.logp_BA, out.noted_BAK[..., 0]))
        return npo_loss(logp_S, reference_S, self.args.beta), self.probabilities(out)


run, command = method(NPOTrainer)
