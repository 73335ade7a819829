"""Columns of a table as arrays, for the command line; a value that cannot be used is named by its row and column."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from amends.fair._tables.groups import Groups, read_groups
from amends.io.errors import InputError
from amends.io.options import MOST_SEED
from amends.io.rows import Row

MOST_CATEGORIES = 100
"""Values of a column of words above which it is an identifier rather than a feature."""


def check_seed(seed: int) -> None:
    """Refuse a seed that no generator takes.

    Raises
    ------
    InputError
    """
    if not 0 <= seed <= MOST_SEED:
        raise InputError(f"--seed {seed}: expected a whole number from 0 to {MOST_SEED}.")


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: None, NaN, pandas' NA and NaT, or blanks."""
    return bool(np.ndim(value) == 0 and pd.isna(value)) or (isinstance(value, str) and not value.strip())


def check_single(row: Row, name: str, value: Any) -> None:
    """Refuse a cell that holds several values.

    Raises
    ------
    InputError
    """
    if np.ndim(value) or isinstance(value, dict):
        raise InputError(f'{row.where}, column "{name}": a list or an object, expected one value. Mend or leave out.')


def column(rows: Sequence[Row], name: str, option: str) -> list[Any]:
    """Values of a column.

    Raises
    ------
    InputError : a row lacks it; the first such row, and the columns that it has.
    """
    for row in rows:
        if name not in row.data:
            there = ", ".join(row.data)
            raise InputError(
                f'{row.where}: the column "{name}" is missing (found: {there[:200]}). Name another one with {option}.'
            )
    return [row.data[name] for row in rows]


def numbers(
    rows: Sequence[Row], names: Sequence[str], option: str, *, low: float = -np.inf, high: float = np.inf
) -> NDArray[np.float64]:
    """Columns of numbers, (rows, columns); numbers written as text, as in CSV, are read.

    Raises
    ------
    InputError : a value that is missing, no number, or outside low to high; with its row and column.
    """
    found = np.empty((len(rows), len(names)))
    for place, name in enumerate(names):
        for i, value in enumerate(column(rows, name, option)):
            try:
                found[i, place] = np.nan if value is None or isinstance(value, bool) else float(value)
            except (TypeError, ValueError):
                found[i, place] = np.nan
            if not low <= found[i, place] <= high:
                wanted = "a number" if np.isinf([low, high]).all() else f"a number from {low:g} to {high:g}"
                raise InputError(f'{rows[i].where}, column "{name}": {value!r}, expected {wanted}. Mend or leave out.')
    return found


def groups(rows: Sequence[Row], names: Sequence[str], option: str, known: Sequence[Any] | None = None) -> Groups:
    """Group of every row, of these if they are known; of several columns, each combination.

    Raises
    ------
    InputError : a column or a value is missing, a column is named twice, or a group is none of those known.
    """
    if twice := [name for name in names if list(names).count(name) > 1]:
        raise InputError(f"{option} {twice[0]}: named twice. Name each column once.")
    values = [column(rows, name, option) for name in names]
    for name, cells in zip(names, values, strict=True):
        for row, value in zip(rows, cells, strict=True):
            if is_missing(value):
                raise InputError(f'{row.where}, column "{name}": no group. Leave such rows out, or name their group.')
            check_single(row, name, value)
    found = read_groups(np.array(values, dtype=object).T, len(rows), option)
    if known is None and len(rows) < 2 * len(found.names) > 4:
        raise InputError(
            f"{option} {', '.join(names)}: {len(found.names)} groups among {len(rows)} rows. Name a column of groups; "
            "put numbers, such as ages, into classes first."
        )
    if known is not None:
        strange = [n for n, name in enumerate(found.names) if str(name) not in set(map(str, known))]
        if strange:
            at = int(np.isin(found.code_N, strange).argmax())
            raise InputError(
                f"{rows[at].where}: of the group {found.names[found.code_N[at]]}, which is none of "
                f"{', '.join(map(str, known))}. Leave such rows out."
            )
    return found


def classes(rows: Sequence[Row], name: str, option: str, known: Sequence[Any] | None = None) -> Groups:
    """Class of every row, of these if they are known.

    Raises
    ------
    InputError : a column or a value is missing, or a class is none of those known.
    """
    cells = column(rows, name, option)
    for row, value in zip(rows, cells, strict=True):
        if is_missing(value):
            raise InputError(f'{row.where}, column "{name}": no value. Leave such rows out.')
        check_single(row, name, value)
    if known is None:
        return read_groups(np.array(cells, dtype=object), len(rows), option)
    place = {str(value): number for number, value in enumerate(known)}
    like = {_whole(text): number for text, number in place.items()}
    found = [place.get(str(value), like.get(_whole(str(value)))) for value in cells]
    if None in found:
        at = found.index(None)
        raise InputError(f'{rows[at].where}, column "{name}": {cells[at]!r} is none of {", ".join(place)}.')
    return Groups(list(known), np.array(found, dtype=np.int64))


def _whole(text: str) -> str:
    """Text of a whole number as "1", also where it was written "1.0", as a column with gaps is saved."""
    try:
        return str(int(float(text))) if float(text).is_integer() else text
    except ValueError:
        return text


def binary(
    rows: Sequence[Row], name: str, option: str, positive: str | None, known: Sequence[Any] | None = None
) -> NDArray[np.int64]:
    """Labels as 0 and 1, of these classes if they are known; 1 is `positive`.

    Without `positive` the values must be 0 and 1, or false and true.

    Raises
    ------
    InputError : more than two values, or two of which none is known to be the positive one.
    """
    found = classes(rows, name, option, known)
    names = [str(value) for value in found.names]
    if positive is not None and positive not in names:
        raise InputError(f'--positive {positive}: the column "{name}" holds {", ".join(names[:10])}.')
    if len(names) > 2:
        raise InputError(
            f'column "{name}": {len(names)} values ({", ".join(names[:10])}), expected two. Join some or drop rows.'
        )
    if positive is not None:
        return (found.code_N == names.index(positive)).astype(np.int64)
    place = {"0": 0, "0.0": 0, "False": 0, "1": 1, "1.0": 1, "True": 1}
    if not set(names) <= place.keys():
        raise InputError(f'column "{name}": which of {", ".join(names)} is the positive value? Give --positive.')
    return np.array([place[value] for value in names], dtype=np.int64)[found.code_N]


def check_features(names: Sequence[str], label: str) -> None:
    """Refuse the label as a column to learn from.

    Raises
    ------
    InputError
    """
    if label in names:
        raise InputError(f"--feature {label}: it is the label, which a model would only repeat. Leave it out.")


def features(rows: Sequence[Row], names: Sequence[str], without: Sequence[str]) -> pd.DataFrame:
    """Columns to learn from, as a data frame: numbers as float with NaN where missing, the others as text.

    Parameters
    ----------
    names : list of str
        The columns; empty: all columns of the first row but those in `without`.

    Raises
    ------
    InputError : a column is missing, none is left, a column of words has too many values, or one of neither.
    """
    chosen = list(names) or [name for name in rows[0].data if name not in without]
    if not chosen:
        raise InputError(f"{rows[0].where}: no column is left to learn from. Name some with --feature.")
    found: dict[str, Any] = {}
    for name in chosen:
        cells = column(rows, name, "--feature")
        try:
            values_N = np.array([np.nan if is_missing(cell) else float(cell) for cell in cells])
            if np.isinf(values_N).any():
                row = rows[int(np.isinf(values_N).argmax())]
                raise InputError(f'{row.where}, column "{name}": an infinite number. Mend it, or leave it empty.')
            found[name] = values_N
        except InputError:
            raise
        except (TypeError, ValueError):
            if any(isinstance(cell, list | dict) for cell in cells):
                raise InputError(
                    f'the column "{name}" holds lists or objects. Name the columns with --feature.'
                ) from None
            texts = ["" if is_missing(cell) else str(cell) for cell in cells]
            if (num := len(set(texts))) > MOST_CATEGORIES:
                raise InputError(
                    f'the column "{name}" holds {num} different texts: no feature. Name the columns with --feature.'
                ) from None
            found[name] = np.array(texts, dtype=object)
    return pd.DataFrame(found)


def encoder(frame: pd.DataFrame) -> ColumnTransformer:
    """Make features of columns: words one-hot, numbers scaled, their gaps filled with the median and marked."""
    words = [name for name in frame if not pd.api.types.is_numeric_dtype(frame[name])]
    figures = [name for name in frame if name not in words]
    filled = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    return ColumnTransformer(
        [("numbers", filled, figures), ("words", OneHotEncoder(handle_unknown="ignore", sparse_output=False), words)]
    )
