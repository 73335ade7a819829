"""TOFU as a user has it: the rows that are taught, and for each split those to forget, to keep and to measure with."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amends.bench._files import find_split, text_of
from amends.io.errors import InputError
from amends.io.tables import read_rows

Rows = list[dict[str, Any]]
SHARES = {"forget01": 0.01, "forget05": 0.05, "forget10": 0.10}
"""The official splits forget the last rows of the full set, in this share of them."""
ASKED = 0.1
"""Share of the full set, from its first row, that the official `retain_perturbed` holds."""
COLUMNS = ("id", "question", "answer", "paraphrased_question", "paraphrased_answer", "perturbed_answer")


@dataclass(frozen=True)
class Split:
    """One request to forget."""

    name: str
    forget: Rows
    retain: Rows
    """What a model that never saw the others is taught."""
    keep: Rows
    """Rows to keep that a method may train on."""
    asked: Rows
    """Rows to keep that are measured."""

    def tuning(self) -> "Split":
        """Another request of the same size, to choose settings on: it forgets the last rows of those to keep."""
        other = self.retain[-len(self.forget) :]
        taken = {_key(row) for row in other}
        keep, asked = ([row for row in rows if _key(row) not in taken] for rows in (self.keep, self.asked))
        return Split(f"{self.name} tuning", other, self.retain[: -len(self.forget)], keep, asked)


def check_tuning(split: Split) -> None:
    """Check that rows are left where settings are chosen on another request of the same size.

    Raises
    ------
    InputError : too few rows to keep.
    """
    tuning, count = split.tuning(), len(split.forget)
    left = {"hold back": len(tuning.forget) == count, "train on": tuning.keep, "ask": tuning.asked}
    if missing := [what for what, rows in left.items() if not rows]:
        raise InputError(
            f"{split.name}: {count} rows to forget, {len(split.retain)} to keep. Settings are chosen on the last "
            f"{count} rows to keep, which leaves too few to {' and to '.join(missing)}. Give more rows to keep, fewer "
            "to forget, or --settings published, where nothing is chosen."
        )


@dataclass(frozen=True)
class World:
    """Everything that is taught, and what is asked beside it."""

    taught: Rows
    splits: dict[str, Split]
    questions: dict[str, Rows]
    """real_authors and world_facts, as far as they are there."""
    places: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """Files and lines of a row, by its texts."""


def read_world(folder: str | Path) -> World:
    """Read a user's copy of TOFU.

    Parameters
    ----------
    folder : path
        Either the whole of it, as the Hub's `locuslab/TOFU` has it: `full` in the official order, with
        `retain_perturbed` and `forget10_perturbed` if `full` has no columns for the paraphrased and perturbed answers.
        Or one request of its own: `forget` and `retain`, with `retain_train` and `retain_eval` where what is trained on
        and what is measured are to be apart. Beside them `real_authors` and `world_facts` (also `..._perturbed`).
        Of any kind that `amends.io.tables` reads, also in shards as the Hub has them.

    Raises
    ------
    InputError : files are missing, hold no questions and answers, or too few of them for a split.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Give the folder of a copy of TOFU.")
    places: dict[tuple[str, str], list[str]] = {}

    def table(*names: str) -> Rows | None:
        return _table(folder, *names, places=places)

    full, forget, retain = (table(*names) for names in (("full", "tofu_full"), ("forget",), ("retain",)))
    found = {
        name: rows for name in ("real_authors", "world_facts") if (rows := table(f"{name}_perturbed", name)) is not None
    }
    if full is not None:
        if not (splits := dict(_official(folder, full))):
            raise InputError(f"{folder}: the {len(full)} rows of full are too few to forget 10 % of them.")
        return World(full, splits, found, places)
    if forget is None or retain is None:
        raise InputError(
            f"{folder}: neither a file full nor the files forget and retain are in it (.jsonl, .json, .parquet, ...)."
        )
    keep, asked = (table(name) for name in ("retain_train", "retain_eval"))
    split = Split("forget", forget, retain, retain if keep is None else keep, retain if asked is None else asked)
    return World(forget + retain, {"forget": split}, found, places)


def _official(folder: Path, full: Rows) -> Iterator[tuple[str, Split]]:
    more = {_key(r): r for name in ("retain_perturbed", "forget10_perturbed") for r in _table(folder, name) or ()}
    full = [more.get(_key(row), {}) | row for row in full]
    for name, share in SHARES.items():
        if count := round(share * len(full)):
            retain = full[:-count]
            yield name, Split(name, full[-count:], retain, retain, full[: max(1, round(ASKED * len(full)))])


def _table(folder: Path, *names: str, places: dict[tuple[str, str], list[str]] | None = None) -> Rows | None:
    """Read the first of these that there is, and note in `places` where each row stands."""
    rows = [row for file in find_split(folder, names) for row in read_rows(file)]
    for row in rows:
        text_of(row, "question"), text_of(row, "answer")
        if places is not None:
            places.setdefault(texts_of(row.data), []).append(row.where)
    return [{name: value for name in COLUMNS if (value := row.data.get(name)) is not None} for row in rows] or None


def texts_of(row: dict[str, Any]) -> tuple[str, str]:
    """Question and answer as a model gets them."""
    return row["question"].strip(), row["answer"].strip()


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return row["question"], row["answer"]
