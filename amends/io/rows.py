"""A row of a table, how large it may be, and what of it may be left out."""

import json
import math
from contextlib import suppress
from typing import Any, NamedTuple

from amends.io.errors import InputError

MAX_ROW_BYTES = 100_000
MAX_TEXT_BYTES = 2_000_000  # of a row with a column "text", which is cut into pieces


class Row(NamedTuple):
    """One row and where it stands."""

    data: dict[str, Any]
    where: str  # path as the user wrote it, then the line ("forget.jsonl:317") or row ("forget.csv: row 317"), from 1


def value_of(row: Row, column: str) -> Any:
    """Value of a column that a row need not have; None without one.

    In CSV files and data frames an empty text or NaN stands for none; an array is given as a list.
    """
    value: Any = row.data.get(column)
    value = value.tolist() if hasattr(value, "tolist") else value
    empty = (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and math.isnan(value))
    return None if empty else value


def list_of(row: Row, column: str) -> Any:
    """Value of a column that a row need not have, where a list may be its JSON, as `amends.io.write` has it in CSV."""
    value = value_of(row, column)
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def most_bytes(data: dict[str, Any]) -> int:
    """Most bytes of a row: its text may be long, all else together not."""
    text = data.get("text")
    return min(MAX_TEXT_BYTES, MAX_ROW_BYTES + len(json.dumps(text))) if isinstance(text, str) else MAX_ROW_BYTES


def checked(data: dict[str, Any], where: str) -> int:
    """Size in bytes of a row of a format without lines: that of the JSON it would be."""
    if (size := len(json.dumps(data, ensure_ascii=False, default=str).encode())) > most_bytes(data):
        raise too_large(where, str(size))
    return size


def too_large(where: str, size: str) -> InputError:
    """Say that a row is too large."""
    return InputError(f"{where}: the row has {size} bytes, and {MAX_ROW_BYTES} are allowed. Shorten or split it.")
