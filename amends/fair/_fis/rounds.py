"""Rounds of buying labels: whether one goes on from another, and that no label is counted twice."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amends.fair._tables.table import numbers
from amends.io.errors import InputError
from amends.io.rows import Row
from amends.io.run import read_jsonl, read_run

COMMAND = "fair fis"
HISTORY = "history.jsonl"
NUMBER = "pool_row"
FIXED = ("label", "group", "metric", "positive", "feature", "model")
"""Settings without which the numbers of two rounds are not of the same."""


def earlier_rounds(
    after: str | Path | None, about: dict[str, Any], num_labelled: int, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Read the rounds of a run folder, and see that this run goes on from there."""
    if after is None:
        return []
    record = read_run(after)
    if record["command"] != COMMAND:
        raise InputError(f"--after {after}: a run of amends {record['command']}. Give a folder of amends {COMMAND}.")
    lines = read_jsonl(Path(after) / HISTORY)
    for name in FIXED:
        was, now = (_plain(config[name]) for config in (record["config"], options))
        if was != now:
            raise InputError(f"--{name}: {now} here, {was} in {after}, so rounds cannot be compared. Give the same.")
    for name, option in (("validation", "--validation"), ("pool", "--pool")):
        if name in about and name in record["data"] and record["data"][name]["sha256"] != about[name]["sha256"]:
            raise InputError(f"{option}: other rows than in {after}, so rounds cannot be compared. Give the same file.")
    if not lines or lines[-1]["trained_on"] != num_labelled:
        raise InputError(
            f"LABELLED has {num_labelled} rows, and {after} ended with {lines[-1]['trained_on'] if lines else 'none'}. "
            f"Give the file labelled in {after}, or leave --after out."
        )
    return lines


def _plain(value: Any) -> str:
    """Write a setting as text, however many values it has and whatever holds them."""
    texts = [str(one) for one in (value if isinstance(value, list | tuple) else [value]) if one is not None]
    return ", ".join(texts) or "not given"


def places_of(answered: Sequence[Row], history: list[dict[str, Any]]) -> list[int]:
    """Places in the pool of rows whose labels came back; none of them twice, in this file or in earlier rounds."""
    numbered = [row for row in answered if NUMBER in row.data]
    places = numbers(numbered, [NUMBER], "--bought", low=0).ravel().astype(int).tolist()
    seen = {place: f"round {line['number']}" for line in history for place in line["pool_rows"]}
    for row, place in zip(numbered, places, strict=True):
        if place in seen:
            raise InputError(
                f"{row.where}: the label of row {place} of the pool ({NUMBER}) came back already ({seen[place]}), and "
                "would count twice. Leave it out of --bought."
            )
        seen[place] = row.where
    return places
