"""Write rows in the kinds of file that `amends.io.tables` reads, whole or not at all."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amends.io.atomic import finite, new_file, write_text
from amends.io.errors import InputError
from amends.io.run import write_jsonl

KINDS = (".jsonl", ".csv", ".parquet")


def kind_of(source: object) -> str:
    """Kind of file that goes with where rows came from: .csv and .parquet stay what they are, the rest is .jsonl."""
    suffix = Path(source).suffix.lower() if isinstance(source, str | os.PathLike) else ""
    return suffix if suffix in KINDS else ".jsonl"


def write_rows(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a .jsonl, .csv or .parquet file.

    Parameters
    ----------
    path : str or Path
        Its suffix says the kind. In CSV a missing value is empty, and a list or an object is its JSON; all else stands
        there as it is, so that a program reads the same again, and a spreadsheet may take it for a formula. A row need
        not have all columns.

    Raises
    ------
    InputError : a column that Parquet cannot hold: values of different kinds, an integer of more than 64 bits.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        write_jsonl(path, rows)
        return
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".csv":
        text = io.StringIO(newline="")
        table = csv.writer(text)
        table.writerow(columns)
        table.writerows([_plain(row.get(name)) for name in columns] for row in rows)
        write_text(path, text.getvalue())
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = {}
    for name in columns:
        try:
            found[name] = pa.array([row.get(name) for row in rows], from_pandas=True)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise InputError(f'{path.name}: Parquet cannot hold the column "{name}": {error}. Write .jsonl.') from error
    with new_file(path) as temporary:
        pq.write_table(pa.table(found), temporary)


def _plain(value: Any) -> Any:
    value = finite(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
