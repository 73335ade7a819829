"""Find the tables of a benchmark in a user's copy, whichever way it was downloaded, and read their columns.

A split is a file named after it, or after its shards (`forget_qa-00000-of-00002.parquet`, as the Hub has them), of any
kind that `amends.io.tables` reads, or a folder of `datasets.save_to_disk`.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from amends.evaluation.evaluate import spread
from amends.io.atomic import sha256_json
from amends.io.errors import InputError
from amends.io.rows import Row
from amends.io.tables import READERS, read_rows

Item = TypeVar("Item")
_PREFERRED = (".parquet", ".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".json", ".csv", ".txt")
assert set(_PREFERRED) == set(READERS)


class Split(NamedTuple):
    """Rows of a split, and where they came from."""

    rows: list[Row]
    paths: list[str]


def find_split(folder: str | Path, names: Sequence[str]) -> list[Path]:
    """Find the files of a split; none of them where there is none.

    Parameters
    ----------
    folder : path of the copy
    names : list of str
        Names that the split may have, in this order, with the folders in the copy and without the ending:
        "knowmem/forget_qa". Where several kinds of file are there, or a whole file and shards, they hold the same: one
        kind is taken, and the whole file.

    Raises
    ------
    InputError : some of the shards are missing, or there are shards of two cuts.
    """
    for name in names:
        whole = Path(folder) / name
        if any((whole / file).is_file() for file in ("dataset_info.json", "dataset_dict.json")):
            return [whole]
        there = sorted(whole.parent.iterdir()) if whole.parent.is_dir() else []
        for ending in _PREFERRED:
            pattern = re.compile(re.escape(whole.name) + r"(?:-(\d{5})-of-(\d{5}))?" + re.escape(ending), re.IGNORECASE)
            found = [(file, match) for file in there if (match := pattern.fullmatch(file.name))]
            if single := [file for file, match in found if not match[1]]:
                return single[:1]
            if found:
                return _all_shards(whole, {(int(match[1]), int(match[2])): file for file, match in found})
    return []


def _all_shards(whole: Path, shards: Mapping[tuple[int, int], Path]) -> list[Path]:
    """Files of all shards in their order, by number and how many there are."""
    counts = sorted({count for _, count in shards})
    if len(counts) > 1:
        raise InputError(
            f"{whole}: cut into {' and into '.join(map(str, counts))} shards. Leave those of one download there."
        )
    wanted = [(number, counts[0]) for number in range(counts[0])]
    if absent := [f"{number:05d}-of-{count:05d}" for number, count in wanted if (number, count) not in shards]:
        raise InputError(
            f"{whole}: shard {absent[0]} is missing ({len(absent)} of {counts[0]} in all). Put it beside the others."
        )
    if odd := [file for (number, count), file in shards.items() if number >= count]:
        raise InputError(f"{odd[0]}: there is no such shard, as they count from 00000. Mend its name.")
    return [shards[one] for one in wanted]


def read_split(folder: str | Path, names: Sequence[str], otherwise: str) -> Split:
    """Read a split.

    Raises
    ------
    InputError : no such folder; no such file, with all names that were looked for and what to do `otherwise`; some of
        its shards are missing.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder. Give the folder of your copy.")
    files = find_split(folder, names)
    if not files:
        raise InputError(
            f"{folder}: {names[0]} is missing. Looked for {' or '.join(names)}, with an ending of "
            f"{', '.join(_PREFERRED)}, in one file or in shards (-00000-of-00001). {otherwise}"
        )
    return Split([row for file in files for row in read_rows(file)], [str(file) for file in files])


def taken(split: Split, make: Callable[[Row, str], Item], most: int) -> list[Item]:
    """At most so many rows of a split, evenly spread, each made into what it stands for, with its number as id."""
    return spread([make(row, f"{number:05d}") for number, row in enumerate(split.rows)], most)


def text_of(row: Row, column: str) -> str:
    """Text of a column as it stands there, white space and all.

    Raises
    ------
    InputError : no such column, no text, or nothing in it.
    """
    value = cell_of(row, column)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f'{row.where}: column "{column}" holds {shown(value)}, expected some text. Mend the file.')
    return value


def cell_of(row: Row, column: str) -> Any:
    """Value of a column.

    Raises
    ------
    InputError : no such column.
    """
    if column not in row.data:
        found = ", ".join(row.data)[:200] or "none"
        raise InputError(
            f'{row.where}: column "{column}" is missing (found: {found}). Rename it, or give another file.'
        )
    return row.data[column]


def shown(value: Any) -> str:
    """Show a value that is none of those wanted, as JSON has it and not at length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:60]}..."


def told(split: Split, items: Sequence[Any]) -> dict[str, Any]:
    """Describe a split for run.json."""
    digest = sha256_json(list(items))
    numbers = {"rows": len(split.rows), "kept": len(items), "dropped": [], "sha256": digest}
    return {"path": split.paths[0], "paths": split.paths, **numbers}
