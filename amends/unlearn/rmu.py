"""Forget by misdirecting an inner layer (RMU).

Drives what a layer says where answers to forget are predicted to one random direction, and holds it at rows to keep.
Li et al., arXiv 2403.03218. Deviations from OpenUnlearning: upstream takes the positions of the answers' tokens, one
further on; here the mean over them is per row, where upstream divides a row's sum by another row's count.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from amends.io.errors import InputError
from amends.lm.config import LAYER
from amends.lm.logprobs import AnswerLogprobs, masked_mean
from amends.unlearn._config import ForgetConfig
from amends.unlearn._forget import ForgetTrainer
from amends.unlearn._method import method


@dataclass
class RMUConfig(ForgetConfig):
    """Settings of `RMUTrainer`."""

    layer: Annotated[int, typer.Option(help="Layer whose output is driven, counted from 0.", min=0)] = 7
    steering: Annotated[float, typer.Option(help="Length of the random direction.", min=0)] = 2.0


class RMUTrainer(ForgetTrainer):
    """`transformers.Trainer` that forgets by RMU. The model runs no further than the layer."""

    title = "RMU"
    keeps = "usual"
    holds_retain = True
    sees_probabilities = False
    saturates = False
    layers = "5-7"
    args: RMUConfig

    def __init__(self, model: Any, args: RMUConfig, *rest: Any, **kwargs: Any) -> None:
        super().__init__(model, args, *rest, **kwargs)
        config: Any = self.model.config.get_text_config()  # type: ignore[operator,union-attr]
        if args.layer >= config.num_hidden_layers:
            raise InputError(f"--layer {args.layer}: the model has layers 0 to {config.num_hidden_layers - 1}.")
        numbers = [LAYER.search(name) for name, weight in self.model.named_parameters() if weight.requires_grad]
        if not any(int(found[1]) <= args.layer for found in numbers if found):
            raise InputError(
                f"--layer {args.layer}: none of the layers up to it is trained, so nothing can move it. Give others "
                "with --layers."
            )
        self.layer = args.layer
        direction_D = torch.rand(config.hidden_size, generator=torch.Generator().manual_seed(args.seed))
        self.target_D = args.steering * direction_D / direction_D.norm()

    def forget_losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared distance from the direction, over an answer's tokens and the layer's width."""
        away_BA = (out.hidden_BAD.float() - self.target_D.to(out.hidden_BAD.device)).square().mean(-1)
        return masked_mean(away_BA, out.mask(0)), {}

    def retain_costs(self, out: AnswerLogprobs) -> dict[str, Tensor]:
        """Mean squared distance from what the layer said at the start."""
        moved_BA = (out.hidden_BAD.float() - out.noted_BAK).square().mean(-1)
        return {"retain_distance": masked_mean(moved_BA, out.mask(0))}


run, command = method(RMUTrainer)
