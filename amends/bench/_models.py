"""Models that are measured in turn, and how their numbers stand beside each other."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from amends.io.console import say
from amends.io.errors import InputError
from amends.io.plain import plain
from amends.lm.load import Loaded, load, shares_base
from amends.unlearn._run import model_for

Found = TypeVar("Found")
BETTER = {"higher": "higher is better", "lower": "lower is better", "half": "0.5 is best", "zero": "0 is best"}


def measure_each(
    models: Mapping[str, Any], measure: Callable[[str, Loaded], Found], tokenizer: PreTrainedTokenizerBase | None
) -> dict[str, Found]:
    """Measure one model after the other; one that is named is in memory for its turn alone.

    Parameters
    ----------
    models : dict
        Role to what `amends.lm.load` takes, or to a model that is loaded already (with `tokenizer`); None where there
        is none.
    """
    found: dict[str, Found] = {}
    loaded: Loaded | None = None
    for role, source in models.items():
        if source is None:
            continue
        if isinstance(source, str | Path):
            say(f"{role}: reading {source}")
            instead = loaded if loaded is not None and shares_base(loaded, source) else None
            loaded = None  # so that it is gone before the next one comes
            loaded = load(source, instead_of=instead)
        else:
            loaded = model_for(source, tokenizer)
        was_training = loaded.model.training
        loaded.model.eval()
        found[role] = measure(role, loaded)
        loaded.model.train(was_training)
    return found


def check_models(models: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Refuse a loaded model without a tokenizer before anything is read.

    Raises
    ------
    InputError : as said.
    """
    if tokenizer is None and any(m is not None and not isinstance(m, str | Path) for m in models.values()):
        raise InputError("processing_class: pass the tokenizer along with models that are loaded already.")


def table(summaries: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Write the numbers of all models beside each other, a line each measure; the interval behind each value."""
    first = next(iter(summaries.values()))
    lines = [["", *summaries, ""]]
    for name, entry in first.items():
        values = [_shown(summary[name]) for summary in summaries.values()]
        lines.append([name, *values, BETTER[entry["better"]]])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _shown(entry: Mapping[str, Any]) -> str:
    if entry["value"] is None:
        return "-"
    ends = "" if entry["low"] is None else f" [{entry['low']:.3f}, {entry['high']:.3f}]"
    return f"{entry['value']:.3f}{ends}"


def gaps(summaries: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Say why a number of the first model is missing."""
    first = next(iter(summaries.values()))
    return [f"{name}: {plain(entry['missing'])}" for name, entry in first.items() if entry["missing"]]
