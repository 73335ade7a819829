"""Settings that every forgetting method has, and other defaults of some."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_type_hints

from transformers import TrainingArguments

from amends.io.bounds import check_value


@dataclass
class ForgetConfig(TrainingArguments):
    """Settings that every forgetting method has, beside those of `TrainingArguments`."""

    stop_v_f: float | None = field(
        default=None,
        metadata={
            "help": "Stop when the mean probability of the forget answers' tokens is at most this.",
            "min": 0,
            "max": 1,
        },
    )
    forget_weight: float = field(default=1.0, metadata={"help": "Weight of the rows to forget.", "min": 0})
    retain_weight: float = field(default=1.0, metadata={"help": "Weight of the rows to keep.", "min": 0})
    floor_v_f: float | None = field(
        default=None,
        metadata={
            "help": "A row is not pushed further while the mean probability of its answer is at most this.",
            "min": 0,
            "max": 1,
        },
    )
    retain_loss: Literal["nll", "kl"] = field(
        default="nll",
        metadata={"help": "Of retain rows: NLL, or the forward KL from the model at the start (as of neighbours)."},
    )
    optimizer: Literal["adamw", "muon"] = field(
        default="adamw", metadata={"help": "muon: torch.optim.Muon, for matrices only; all directions move alike."}
    )
    max_length: int = field(default=1024, metadata={"help": "Most tokens of a prompt with one answer.", "min": 2})
    logging_steps: float = field(default=1, metadata={"help": "As in TrainingArguments, where the default is 500."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep, at least two; None: all."})

    def __post_init__(self) -> None:
        """Check what transformers does not: that every value is within the bounds that its field names."""
        super().__post_init__()
        hints, known = get_type_hints(type(self)), {own.name for own in fields(TrainingArguments)}
        for own in fields(self):
            if own.name not in known:
                check_value(own.name, getattr(self, own.name), hints[own.name], own.metadata)


def instead(name: str, default: Any) -> Any:
    """Give a setting that all methods have another default, in a method's own settings."""
    return field(default=default, metadata=SHARED[name].metadata)


SHARED = {own.name: own for own in fields(ForgetConfig) if own.name not in {f.name for f in fields(TrainingArguments)}}
"""The settings that all methods have, beside those of `TrainingArguments`."""
