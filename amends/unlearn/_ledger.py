"""The ledger of a model: every request that was carried out on its weights, oldest first, and none of the texts.

`ledger.json` lies beside the weights, so that it goes where they go. The digests of the weights chain its entries.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from amends.io.atomic import write_json
from amends.io.errors import InputError
from amends.io.tables import read_json

LEDGER = "ledger.json"
READING = {
    "question_column": str | None,
    "answer_column": str | None,
    "skip_bad_rows": bool,
    "prefix_tokens": int,
    "continuation_tokens": int,
    "max_length": int,
}
"""Options, of those of a request, that its data must be read with to give the same pairs again."""
MEASURED = ("forget_probability", "forget_rouge_l")


@dataclass(frozen=True)
class Entry:
    """One request that was carried out."""

    command: str
    created: str
    forget: dict[str, Any]
    """path (None: given from Python), sha256, rows, and the options in READING."""
    weights: dict[str, str]
    """Digests before and after."""
    weights_changed: bool
    """The weights before are not those that the entry before this one left: somebody changed them in between."""
    measured: dict[str, dict[str, Any]]
    """value, low, high and n of the metrics in MEASURED, right after the request; those that were not are not here."""

    def chained(self, previous: "Entry | None") -> bool:
        """Whether it says truly if it goes on from the weights that `previous` left."""
        return self.weights_changed == (previous is not None and previous.weights["after"] != self.weights["before"])


def set_name(number: int) -> str:
    """Name of a request's questions in an evaluation, with the requests counted from 1."""
    return f"request_{number}"


def read_ledger(model: Any) -> list[Entry]:
    """Read the ledger of a model folder; a model without one, or one that is not a folder, has no entries.

    Raises
    ------
    InputError : there is one, but it is damaged, or its entries do not follow from each other.
    """
    if not isinstance(model, str | Path):
        return []
    file = Path(model).expanduser() / LEDGER
    if not os.path.lexists(file):
        return []
    found = read_json(file)
    if not isinstance(found, dict) or found.keys() != {"requests"} or not isinstance(found["requests"], list):
        raise _damaged(file, 'expected {"requests": [...]}')
    entries: list[Entry] = []
    for number, value in enumerate(found["requests"], 1):
        try:
            entry = parse(value)
        except ValueError as error:
            raise _damaged(file, f"request {number}: {error}") from None
        if not entry.chained(entries[-1] if entries else None):
            raise _damaged(file, f"request {number} does not go on from the weights that the one before it left")
        entries.append(entry)
    if not entries:
        raise _damaged(file, "no request is in it")
    return entries


def write_ledger(folder: Path, entries: Sequence[Entry]) -> None:
    """Write the ledger of the model in `folder`."""
    write_json(folder / LEDGER, {"requests": [asdict(entry) for entry in entries]})


def entry_of(record: Mapping[str, Any], evaluation: Mapping[str, Any] | None, previous: Entry | None) -> Entry:
    """Make the entry of a run from its record in run.json and the evaluation of the model after, if there is one."""
    about, summary = record["data"]["forget"], evaluation["summary"] if evaluation else {}
    weights = {name: record["weights"][name] for name in ("before", "after")}
    return Entry(
        record["command"],
        record["created"],
        {"path": about["path"], "sha256": about["sha256"], "rows": about["kept"]}
        | {name: record["config"][name] for name in READING},
        weights,
        previous is not None and previous.weights["after"] != weights["before"],
        {
            name: {key: summary[name][key] for key in ("value", "low", "high", "n")}
            for name in MEASURED
            if name in summary and summary[name]["value"] is not None
        },
    )


def parse(value: Any) -> Entry:
    """Make an entry from JSON.

    Raises
    ------
    ValueError : something is missing, too much, or of another kind.
    """
    expected = [field.name for field in fields(Entry)]
    if not isinstance(value, dict) or value.keys() != set(expected):
        raise ValueError(f"expected {', '.join(expected)}")
    forget, weights, measured = value["forget"], value["weights"], value["measured"]
    kinds = {"path": str | None, "sha256": str, "rows": int, **READING}
    numbers = {"value": float | int, "low": float | int | None, "high": float | int | None, "n": int}
    sound = {
        "command": isinstance(value["command"], str),
        "created": isinstance(value["created"], str),
        "forget": _fits(forget, kinds),
        "weights": _fits(weights, {"before": str, "after": str}),
        "weights_changed": isinstance(value["weights_changed"], bool),
        "measured": isinstance(measured, dict)
        and measured.keys() <= set(MEASURED)
        and all(_fits(entry, numbers) for entry in measured.values()),
    }
    if wrong := [name for name, fits in sound.items() if not fits]:
        raise ValueError(f'"{wrong[0]}" is not as amends writes it')
    return Entry(**value)


def _fits(value: Any, kinds: Mapping[str, Any]) -> bool:
    """Whether a JSON object has exactly these fields, of these kinds; int stands for a number of things, 1 or more."""
    return (
        isinstance(value, dict)
        and value.keys() == kinds.keys()
        and all(
            isinstance(value[name], kind)
            and (kind is bool or not isinstance(value[name], bool))
            and (kind is not int or value[name] > 0)
            for name, kind in kinds.items()
        )
    )


def _damaged(file: Path, what: str) -> InputError:
    return InputError(
        f"{file}: not a ledger as amends writes it: {what}. Take the file from the run folder again; without it the "
        "model counts as one that nothing was asked of before."
    )
