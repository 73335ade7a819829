"""What `amends fair drops` reads: columns of probabilities and shares by class, from a table and from options."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from amends.fair._drops.prior_robust import SUM, Cells
from amends.fair._tables.table import numbers
from amends.io.errors import InputError
from amends.io.rows import Row
from amends.maths.arrays import FloatArray


@dataclass(frozen=True)
class Columns:
    """Which columns hold the probabilities."""

    names: list[str]
    """In the order of the classes, or of the cells; or one, of the positive class."""
    positive: int | None
    """Place of the positive class, if one column tells all."""


def text_of(cell: Any) -> str:
    """Name of a cell as options write it: the class, or "class,group"."""
    return ",".join(map(str, cell)) if isinstance(cell, tuple) else str(cell)


def columns_of(
    proba: Sequence[str], there: Sequence[str], classes: Sequence[Any], cells: Cells, positive: str | None
) -> Columns:
    """Find the column of every class, or of every (class, group).

    Parameters
    ----------
    proba : one pattern with *, which stands for the class ("p_*"); "COLUMN=CLASS", one a class; or, of two classes, one
        column with the probability of the positive one
    there : columns of the table

    Raises
    ------
    InputError : no or two columns for a class, or a class that the labels do not have.
    """
    by_class, by_cell = [str(c) for c in classes], [text_of(cell) for cell in cells.names]
    if len(proba) == 1 and "*" not in proba[0] and "=" not in proba[0]:
        return Columns([proba[0]], _positive(by_class, positive))
    found: dict[str, str] = {}
    for given in proba:
        for name, column in _named(given, there):
            if name in found and found[name] != column:
                raise InputError(f"--proba: {found[name]} and {column} are both of {name}. Give each class once.")
            found[name] = column
    as_many = len(found) == len(by_cell) != len(by_class)
    wanted = by_cell if as_many or set(found) & set(by_cell) else by_class
    if lacking := [name for name in wanted if name not in found]:
        raise InputError(
            f"--proba {' '.join(proba)}: no column for {lacking[0]} (found: {', '.join(found) or 'none'}; the table "
            f"has {', '.join(there)[:200]}). Give each of {', '.join(wanted[:10])}, as --proba COLUMN=CLASS."
        )
    if strange := [name for name in found if name not in wanted]:
        raise InputError(
            f"--proba: {found[strange[0]]} is of {strange[0]}, a class that no label is. Give rows with it, or leave "
            "the column out and make the rest sum to 1."
        )
    return Columns([found[name] for name in wanted], None)


def _named(given: str, there: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of name and column that an option stands for."""
    if "*" in given:
        start, _, end = given.partition("*")
        if "*" in end:
            raise InputError(f"--proba {given}: one * stands for the class. Give one.")
        # A pattern is no regular expression: other signs in it stand for themselves.
        plain = "".join(f"[{sign}]" if sign in "?[" else sign for sign in given)
        return [(column[len(start) : len(column) - len(end)], column) for column in there if fnmatchcase(column, plain)]
    column, sign, name = given.rpartition("=")
    if not sign or not column or not name:
        raise InputError(f"--proba {given}: expected COLUMN=CLASS for each class, or a pattern with * for the class.")
    return [(name, column)]


def _positive(by_class: list[str], positive: str | None) -> int:
    if len(by_class) != 2:
        raise InputError(f"--proba: one column for {len(by_class)} classes. Give a pattern, such as 'p_*'.")
    if positive is not None and positive in by_class:
        return by_class.index(positive)
    if positive is None and by_class in (["0", "1"], ["False", "True"], ["0.0", "1.0"]):
        return 1
    raise InputError(f"--positive: one column of probabilities is of which class, {' or '.join(by_class)}? Name it.")


def read_probabilities(rows: Sequence[Row], columns: Columns) -> FloatArray:
    """Probabilities of the classes or cells, (rows, columns).

    Raises
    ------
    InputError : a value that is no number from 0 to 1, or a row that does not sum to 1.
    """
    p_NC = numbers(rows, columns.names, "--proba", low=0, high=1)
    if columns.positive is not None:
        pair = (1 - p_NC, p_NC) if columns.positive == 1 else (p_NC, 1 - p_NC)
        return np.hstack(pair)
    if (off_N := np.abs(p_NC.sum(axis=1) - 1) > SUM).any():
        row = int(off_N.argmax())
        raise InputError(
            f"{rows[row].where}: the probabilities of {', '.join(columns.names)[:200]} sum to {p_NC[row].sum():.4g}, "
            "expected 1. Give all of them."
        )
    return p_NC


def read_shares(given: Sequence[str], option: str, *namings: Sequence[str]) -> Any:
    """Read a prior: "uniform" or "train" alone, or NAME=SHARE of every class or cell, as one of the namings has them.

    Raises
    ------
    InputError : a name without a share, an unknown one, no number, or a sum that is not 1.
    """
    if len(given) == 1 and "=" not in given[0]:
        if given[0] not in ("uniform", "train"):
            raise InputError(f"{option} {given[0]}: expected uniform, train, or {namings[0][0]}=SHARE and so on.")
        return given[0]
    shares: dict[str, float] = {}
    for item in given:
        name, _, value = item.rpartition("=")
        try:
            shares[name] = float(value)
        except ValueError:
            raise InputError(f"{option} {item}: expected NAME=SHARE, such as {namings[0][0]}=0.5.") from None
    total = sum(shares.values())
    wanted = next((names for names in namings if set(names) == set(shares)), None)
    if wanted is None or not min(shares.values()) >= 0 or not abs(total - 1) <= SUM:
        names = " or ".join(", ".join(names)[:200] for names in dict.fromkeys(map(tuple, namings)))
        raise InputError(
            f"{option} {' '.join(given)} (sum {total:g}): expected a share of 0 or more of each of {names}, with sum 1."
        )
    return [shares[name] for name in wanted]
