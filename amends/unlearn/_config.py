"""Settings that every forgetting method has."""

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import torch
import typer
from transformers import TrainingArguments

from amends.io.bounds import check_options
from amends.io.errors import InputError

# A method whose setting begins with another value says so in its own settings, with the same annotation.
ForgetWeightOption = Annotated[float, typer.Option(help="Weight of the rows to forget.", min=0)]
RetainWeightOption = Annotated[float, typer.Option(help="Weight of the rows to keep.", min=0)]
RetainLossOption = Annotated[
    Literal["nll", "kl"],
    typer.Option(
        help="Of rows to keep: NLL, or KL from the model at the start; a cost that a method has of its own stays."
    ),
]
StopOption = Annotated[
    float | None,
    typer.Option(help="Stop when the forget answers' mean token probability is at most this.", min=0, max=1),
]
FloorOption = Annotated[
    float | None,
    typer.Option(
        help="Do not push a row further while its answer's mean token probability is at most this.", min=0, max=1
    ),
]
OptimizerOption = Annotated[Literal["adamw", "muon"], typer.Option(help="muon moves matrices only: for LoRA.")]
LengthOption = Annotated[int, typer.Option(help="Most tokens of a prompt with one answer.", min=2)]


@dataclass
class ForgetConfig(TrainingArguments):
    """Settings that every forgetting method has, beside those of `TrainingArguments` and with its defaults.

    The defaults differ for `logging_steps` (1) and `save_total_limit` (2; at least two checkpoints are kept, None keeps
    all). Learning rate, epochs, weight decay, seed and saving are those of transformers, not those of `amends unlearn`.
    """

    stop_v_f: StopOption = None
    forget_weight: ForgetWeightOption = 1.0
    retain_weight: RetainWeightOption = 1.0
    floor_v_f: FloorOption = None
    retain_loss: RetainLossOption = "nll"
    optimizer: OptimizerOption = "adamw"
    max_length: LengthOption = 1024
    logging_steps: float = 1
    save_total_limit: int | None = 2

    def __post_init__(self) -> None:
        """Check what transformers does not: that every value is within the bounds that its option names."""
        super().__post_init__()
        check_options(type(self), vars(self))


MUON = {"momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}
"""Steps as long as those that AdamW takes at a fifth of the rate."""


def optimizer_of(args: ForgetConfig, model: torch.nn.Module) -> dict[str, Any]:
    """Give the arguments of a `Trainer` that make its optimizer; AdamW it makes itself.

    Raises
    ------
    InputError : what is trained is no matrix, which Muon needs.
    """
    if args.optimizer != "muon":
        return {}
    if others := [n for n, p in model.named_parameters() if p.requires_grad and p.ndim != 2]:
        raise InputError(f"optimizer muon: {others[0]} is no matrix. Train an adapter (LoRA), or choose adamw.")
    return {"optimizer_cls_and_kwargs": (torch.optim.Muon, MUON | {"lr": args.learning_rate})}


SHARED = {own.name: own for own in fields(ForgetConfig) if own.name not in {f.name for f in fields(TrainingArguments)}}
"""The settings that all methods have, beside those of `TrainingArguments`."""
