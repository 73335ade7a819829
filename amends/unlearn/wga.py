"""Forget by gradient ascent weighted by confidence (WGA).

Gradient ascent in which each token counts as much as the model still believes in it, so that what is gone is left
alone. Wang et al., arXiv 2502.19301.
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
class WGAConfig(ForgetConfig):
    """Settings of `WGATrainer`."""

    beta: Annotated[float, typer.Option(help="Exponent of the weight p^beta; 0 is gradient ascent.", min=0)] = 1.0


class WGATrainer(ForgetTrainer):
    """`transformers.Trainer` that forgets by WGA: L = mean over answer tokens of p^beta log p, p^beta held fixed."""

    title = "WGA"
    keeps = "usual"
    args: WGAConfig

    def weights(self, p_BA: Tensor) -> Tensor:
        """Weight of each token by its probability."""
        return p_BA**self.args.beta

    def forget_losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted mean log-likelihood, to be lowered."""
        weight_BA = self.weights(out.logp_BA.detach().exp())
        return masked_mean(weight_BA * out.logp_BA, out.mask(0)), self.probabilities(out)


run, command = method(WGATrainer)
