"""Rows from whatever holds them: files, data sets, data frames, lists of dictionaries."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amends.io.atomic import sha256_json
from amends.io.errors import InputError
from amends.io.rows import Row
from amends.io.tables import read_rows, rows_of


def rows_from(data: Any) -> list[Row]:
    """Read the rows of a table.

    Parameters
    ----------
    data : path, list of paths, `datasets.Dataset`, pandas or polars data frame, or list of dictionaries
        Paths as `amends.io.tables.read_rows` reads them; several are one table.

    Raises
    ------
    InputError : no row, a file that is missing or faulty, or another kind of object.
    """
    if isinstance(data, str | Path):
        return list(read_rows(data))
    if hasattr(data, "to_dicts"):  # polars
        data = data.to_dicts()
    elif hasattr(data, "to_dict") and hasattr(data, "iloc"):  # pandas
        data = data.to_dict("records")
    if not isinstance(data, Iterable):
        raise InputError(f"{type(data).__name__}: no table of rows. Give a file, a data set, a data frame or a list.")
    items = list(data)
    if items and all(isinstance(item, str | Path) for item in items):
        return [row for path in items for row in read_rows(path)]
    if not items or not all(isinstance(item, Mapping) for item in items):
        raise InputError("data: expected rows with named columns, at least one. Give a list of dictionaries or a file.")
    return rows_of([{name: _own(value) for name, value in item.items()} for item in items])


def _own(value: Any) -> Any:
    """Value as Python has it: numbers of NumPy are numbers, and what pandas has for a missing one is None."""
    if isinstance(value, np.bool_ | np.integer | np.floating):
        return value.item()
    return None if type(value).__name__ in ("NAType", "NaTType") else value


def about_rows(data: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Describe a table for run.json: its path, if it is one, how many rows it has, and a digest of them."""
    path = str(data) if isinstance(data, str | Path) else None
    return {"path": path, "rows": len(rows), "sha256": sha256_json([sha256_json(_plain(row.data)) for row in rows])}


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """Row as it is digested: dates, lists and missing numbers as their text, an array as a list of the same numbers."""
    plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in data.items()}
    return {name: value if isinstance(value, str | int | bool | None) else str(value) for name, value in plain.items()}
