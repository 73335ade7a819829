"""Models that are measured in turn, and how their numbers stand beside each other."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amends.io.atomic import new_folder, write_json, write_manifest
from amends.io.console import say
from amends.io.errors import InputError
from amends.io.plain import plain
from amends.io.run import describe, write_jsonl
from amends.lm.config import read_config
from amends.lm.rows import context_of
from amends.report._text import DIRECTIONS


@dataclass(frozen=True)
class Answers:
    """What one model said."""

    weights: str
    items: dict[str, list[dict[str, Any]]]
    """By set of what was asked, in the order that it was asked."""
    warnings: list[str]


def check_room(models: Mapping[str, Any], max_length: int, needed: Mapping[str, int]) -> None:
    """Refuse, before any model is asked, what has no room for a prompt before its new tokens.

    Parameters
    ----------
    models : dict
        Role to a name, of which the configuration alone is read, or to a loaded model; None where there is none.
    needed : dict
        Part to how many new tokens it asks for.

    Raises
    ------
    InputError : names the model and its context, or --max-length, and the part.
    """
    contexts = [
        (f"{role}, {_name_of(model)}", context_of(read_config(model) if isinstance(model, str | Path) else model))
        for role, model in models.items()
        if model is not None
    ]
    for part, count in needed.items():
        if max_length <= count:
            raise InputError(
                f"--max-length {max_length}: no room for a prompt before the {count} new tokens of {part}. Raise it, "
                f"or leave {part} out with --parts."
            )
        for who, context in contexts:
            if context is not None and context <= count:
                raise InputError(
                    f"{who}: its context of {context} tokens has no room for a prompt before the {count} new ones of "
                    f"{part}. Leave {part} out with --parts."
                )


def _name_of(model: Any) -> str:
    if isinstance(model, str | Path):
        return str(model)
    return getattr(model.config, "name_or_path", "") or type(model).__name__


def items_of(answers: Mapping[str, Answers], set_name: str) -> list[dict[str, Any]]:
    """List every answer of every model, one line each, with the name of its set under `set_name`."""
    return [
        {"role": role, set_name: name, **item}
        for role, said in answers.items()
        for name, found in said.items.items()
        for item in found
    ]


def record_of(
    command: str,
    models: Mapping[str, Any],
    answers: Mapping[str, Answers],
    config: Mapping[str, Any],
    data: Mapping[str, Any],
    seed: int,
    started: float,
) -> dict[str, Any]:
    """Record what was measured, for run.json, and tell the user its warnings.

    Parameters
    ----------
    config : dict
        Options beside the models.
    started : float
        When, as `time.time()` has it.
    """
    names = {name: str(m) if isinstance(m, str | Path) else None for name, m in models.items()}
    record = describe(
        command=command,
        config=names | dict(config),
        seed=seed,
        data=data,
        weights={role: said.weights for role, said in answers.items()},
        seconds={"in all": round(time.time() - started, 1)},
        stopped="all asked",
        warnings=[f"{role}: {warning}" for role, said in answers.items() for warning in said.warnings],
    )
    for warning in record["warnings"]:
        say(f"warning: {warning}")
    return record


def write(out: Path, name: str, values: Any, items: Iterable[Mapping[str, Any]], record: Mapping[str, Any]) -> None:
    """Write the folder of a measurement in one move: `name`, items.jsonl, run.json, manifest.json."""
    with new_folder(out) as folder:
        write_json(folder / name, values)
        write_jsonl(folder / "items.jsonl", items)
        write_json(folder / "run.json", record)
        write_manifest(folder)


def table(summaries: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Write the numbers of all models beside each other, a line each measure; the interval behind each value.

    A measure of which no direction is known ("better": None) has none.
    """
    first = next(iter(summaries.values()))
    lines = [["", *summaries, ""]]
    for name, entry in first.items():
        values = [_shown(summary[name]) for summary in summaries.values()]
        lines.append([name, *values, DIRECTIONS.get(entry["better"], "")])
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
