"""A pool of rows to choose from, and what became of each of them: kept, dropped or refused, with the reason."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from amends.io.errors import InputError
from amends.io.frames import about_rows, rows_from
from amends.io.rows import Row
from amends.io.write import write_rows

Fate = Literal["kept", "dropped", "refused"]
FATES: tuple[Fate, ...] = ("kept", "dropped", "refused")
REASON, WHERE = "reason", "where"
"""Columns that every row gets: why it was dropped, refused or changed, and where it stood in the pool."""
EARLIER = "earlier_"


class Verdict(NamedTuple):
    """What becomes of a row."""

    fate: Fate
    """Refused is what could not be judged: what a method needs of it is missing."""
    reason: str | None = None
    """Why it was dropped or refused, or what was changed; None of a row that is kept as it is."""


def read_pool(data: Any, added: Iterable[str] = ()) -> list[Row]:
    """Read the rows to choose from.

    Parameters
    ----------
    data : path, list of paths, `datasets.Dataset`, pandas or polars data frame, or list of dictionaries
        As `amends.io.frames.rows_from` reads them. What an earlier curation wrote beside a row is renamed: its columns
        "reason" and "where" together are "earlier_reason" and "earlier_where", and beside them those of `added`.
    added : names of columns that the method is going to write

    Raises
    ------
    InputError : no row, a file that is missing or faulty, another kind of object, or a column that is to be written
    and was not written by an earlier curation.
    """
    names = {*added, REASON, WHERE}
    rows = [_of_earlier(row, names) for row in rows_from(data)]
    if names > {REASON, WHERE}:
        check_columns(rows, names)
    return rows


def _of_earlier(row: Row, names: Collection[str]) -> Row:
    if not {REASON, WHERE} <= set(row.data):
        return row
    data = {f"{EARLIER}{name}" if name.split(EARLIER)[-1] in names else name: value for name, value in row.data.items()}
    return Row(data, row.where)


def check_columns(rows: Iterable[Row], added: Iterable[str]) -> None:
    """Refuse rows with a column that is going to be written.

    Raises
    ------
    InputError : names the row and the column.
    """
    names = [*added, REASON, WHERE]
    for row in rows:
        if name := next((name for name in names if name in row.data), None):
            raise InputError(f'{row.where}: the column "{name}" is there already, and is written here. Rename it.')


@dataclass(frozen=True)
class Outcome:
    """What became of every row of a pool."""

    rows: Sequence[Row]
    verdicts: Sequence[Verdict]
    """One a row, in the same order."""
    added: Mapping[str, Sequence[Any]]
    """Columns that the method adds, a value a row; None where there is none."""

    def __post_init__(self) -> None:
        assert all(len(values) == len(self.rows) for values in (self.verdicts, *self.added.values()))
        check_columns(self.rows, self.added)

    def of(self, fate: Fate) -> list[dict[str, Any]]:
        """Rows of one fate in the order of the pool, with what was added to them."""
        return [
            dict(row.data)
            | {name: values[i] for name, values in self.added.items()}
            | {REASON: verdict.reason, WHERE: row.where}
            for i, (row, verdict) in enumerate(zip(self.rows, self.verdicts, strict=True))
            if verdict.fate == fate
        ]

    def counts(self) -> dict[str, int]:
        """How many rows there are, and of each fate: they add up."""
        fates = [verdict.fate for verdict in self.verdicts]
        return {"rows": len(self.rows)} | {fate: fates.count(fate) for fate in FATES}

    def write(self, folder: str | Path, kind: str = ".jsonl") -> None:
        """Write kept, dropped and refused into a folder, as `amends.io.write` writes them; an empty one is left out."""
        for fate in FATES:
            if found := self.of(fate):
                write_rows(Path(folder) / f"{fate}{kind}", found)

    def about(self, data: Any) -> dict[str, Any]:
        """Describe the pool for run.json."""
        return about_rows(data, self.rows) | self.counts()


def missing(value: Any) -> bool:
    """Whether a value is none: None, NaN, or an empty text as in CSV."""
    return value is None or (isinstance(value, float) and value != value) or not str(value).strip()


def texts_of(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """Text of each row: these columns one after another, each behind its name if there are several; [] without any.

    Raises
    ------
    InputError : a column that no row has, or that holds something else. A missing text is left out, or empty.
    """
    if not columns:
        return []
    for name in columns:
        if not any(name in row.data for row in rows):
            there = ", ".join(rows[0].data)[:200]
            raise InputError(f'{rows[0].where}: the column "{name}" is missing (found: {there}). Name another one.')
    return [_text(row, columns) for row in rows]


def _text(row: Row, columns: Sequence[str]) -> str:
    found: dict[str, str] = {}
    for name in columns:
        value = row.data.get(name)
        if missing(value):
            continue
        if not isinstance(value, str):
            raise InputError(f'{row.where}: the column "{name}" holds no text. Name another one.')
        found[name] = value
    if len(columns) == 1:
        return next(iter(found.values()), "")
    return "\n".join(f"{name}: {value}" for name, value in found.items())
