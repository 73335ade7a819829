"""A list of the rows most worth a look by a person, as a table for a spreadsheet, and what the person answered.

A cell that a spreadsheet would take for a formula gets an apostrophe before it, which is taken away again when votes
are read.
"""

import difflib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from amends.curate._adc.samples import Samples
from amends.curate._pools.pool import Outcome
from amends.io.errors import InputError
from amends.io.tables import read_rows
from amends.io.write import write_rows

NONE = "(none)"
"""The vote that a row belongs to no class."""
ROW, DIGEST, VOTE = "row", "sha256", "vote"
STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
MOST_SHOWN = 500
"""Characters of a cell."""


def write_queue(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows to look at, with an empty column for the vote."""
    write_rows(path, [{name: _cell(value) for name, value in {**row, VOTE: ""}.items()} for row in rows])


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    text = "".join(char if char.isprintable() or char == "\n" else " " for char in str(value))
    text = text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
    return f"'{text}" if text.startswith(STARTS) or text.lstrip().startswith(STARTS) else text


def read_votes(path: str | Path, digests: Sequence[str | None], labels: Collection[str]) -> dict[int, str]:
    """Read what a person answered.

    Parameters
    ----------
    path : table with the columns "row", "sha256" and "vote", as `write_queue` writes it. An empty vote is none.
    digests : of the contents of each row of the pool, None where there is none.
    labels : that a vote may name, beside `NONE`.

    Returns
    -------
    dict : number of the row to the label, or to `NONE`.

    Raises
    ------
    InputError : a column is missing, a row that is not there or holds something else now, an unknown label, two votes.
    """
    known = (NONE, *labels)
    found: dict[int, str] = {}
    for row in read_rows(path):
        for name in (ROW, DIGEST, VOTE):
            if name not in row.data:
                raise InputError(f'{row.where}: the column "{name}" is missing. Votes are review.csv, filled in.')
        said = str(row.data[VOTE] or "").strip()
        if not said:
            continue
        said = said[1:] if said.startswith("'") and said[1:].lstrip().startswith(STARTS) else said
        number = str(row.data[ROW])
        if not number.isascii() or not number.isdecimal() or int(number) >= len(digests):
            raise InputError(f"{row.where}: there is no row {number[:20]!r} (0 to {len(digests) - 1}).")
        if digests[int(number)] != str(row.data[DIGEST]):
            raise InputError(f"{row.where}: row {number} holds something else now. Votes go with the data they are of.")
        if said not in known:
            near = difflib.get_close_matches(said, known, n=1, cutoff=0.5)
            hint = f'Did you mean "{near[0]}"?' if near else f"Write a label of the data, or {NONE}."
            raise InputError(f'{row.where}: the vote "{said[:60]}" is no label. {hint}')
        if found.setdefault(int(number), said) != said:
            raise InputError(f"{row.where}: row {number} has another vote already. Keep one of the two.")
    return found


def queue_of(
    samples: Samples, outcome: Outcome, disputed: list[int], said: Mapping[int, str], most: int, shown: str
) -> list[dict[str, Any]]:
    """Choose rows for a person: what was found for two classes, then the most doubtful; rare classes before others."""
    sizes = Counter(samples.labels)
    added = outcome.added
    worth = dict.fromkeys(disputed, 1.0)
    worth |= {i: score for i, score in enumerate(added["noise_score"]) if score is not None}
    for i, verdict in enumerate(outcome.verdicts):
        if verdict.fate == "dropped" and str(verdict.reason).startswith("off topic"):
            worth[i] = 0.5
    order = sorted(
        worth.keys() - said.keys(), key=lambda i: (i not in disputed, -worth[i], sizes[samples.labels[i]], i)
    )
    queue = []
    for i in order[:most]:
        row, verdict = samples.rows[i], outcome.verdicts[i]
        beside = {name: row.data.get(name) for name in ("subclass", "query", "rank", "uri")}
        queue.append(
            {
                "row": i,
                "label": samples.labels[i],
                "suggested": added["suggested_label"][i],
                "fate": verdict.fate,
                "why": verdict.reason,
                shown: row.data.get(shown),
                **{name: value for name, value in beside.items() if value is not None},
                "sha256": samples.digests[i],
            }
        )
    return queue
