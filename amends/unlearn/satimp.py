"""Forget by gradient ascent weighted by saturation and importance (SatImp).

Gradient ascent in which tokens count that the model believes in, but not those it is quite sure of. Yang et al.,
arXiv 2505.11953.
"""

from dataclasses import dataclass
from typing import Annotated

import typer
from torch import Tensor

from amends.unlearn._config import ForgetConfig, ForgetWeightOption
from amends.unlearn._method import method
from amends.unlearn.wga import WGATrainer


@dataclass
class SatImpConfig(ForgetConfig):
    """Settings of `SatImpTrainer`."""

    forget_weight: ForgetWeightOption = 0.1
    beta1: Annotated[float, typer.Option(help="Exponent of p in the weight.", min=0)] = 5.0
    beta2: Annotated[float, typer.Option(help="Exponent of 1 - p in the weight.", min=0)] = 1.0


class SatImpTrainer(WGATrainer):
    """`WGATrainer` whose weights are p^beta1 (1 - p)^beta2."""

    title = "SatImp"
    keeps = "usual"
    args: SatImpConfig  # type: ignore[assignment]

    def weights(self, p_BA: Tensor) -> Tensor:
        """Weight of each token by its probability."""
        return p_BA**self.args.beta1 * (1 - p_BA) ** self.args.beta2


run, command = method(SatImpTrainer)
