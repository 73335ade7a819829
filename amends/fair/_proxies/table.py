"""What proxies say of people, counted: all that the measurement needs of them, and all that it keeps.

Shapes: N rows, M proxies, G groups, C conditions, K classes, U patterns of what the proxies say.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from amends.maths.arrays import FloatArray, IntArray
from amends.maths.transition import MISSING

MOST_GROUPS, MOST_CLASSES = 20, 50
"""More values than that are scores or names rather than groups or classes."""


class ProxyTable(NamedTuple):
    """How often every pattern came, by condition and predicted class."""

    proxies: list[str]
    groups: list[Any]
    classes: list[Any]
    conditions: list[Any]
    """Classes of the truth; ["all rows"] where it is not asked for."""
    labels_UM: IntArray
    """Groups that the proxies named; `MISSING` where one named none, never all."""
    count_CKU: FloatArray
    num_unnamed: int
    """Rows that no proxy gave a group; they are not counted."""

    @property
    def num_rows(self) -> int:
        """Rows that were counted."""
        return round(self.count_CKU.sum())

    def said_MCKG(self, count_BCKU: FloatArray | None = None) -> FloatArray:
        """Rows by what each proxy said, (M, C, K, G); of several tables (M, B, C, K, G)."""
        counts = self.count_CKU if count_BCKU is None else count_BCKU
        return np.array([counts @ (label_U[:, None] == np.arange(len(self.groups))) for label_U in self.labels_UM.T])

    def voted_CKG(self, count_BCKU: FloatArray | None = None) -> FloatArray:
        """Rows by what most proxies said, (..., C, K, G); a tie is shared by the groups in it."""
        votes_UG = (self.labels_UM[:, :, None] == np.arange(len(self.groups))).sum(axis=1)
        first_UG = votes_UG == votes_UG.max(axis=1, keepdims=True)
        counts = self.count_CKU if count_BCKU is None else count_BCKU
        return np.asarray(counts @ (first_UG / first_UG.sum(axis=1, keepdims=True)))


def count_proxies(y_pred: Any, proxies: Any, y_true: Any = None) -> ProxyTable:
    """Count the rows by condition, class and what the proxies say.

    Raises
    ------
    ValueError : another number of rows, a class that is missing, fewer than two groups, or values that are scores.
    """
    k_N, found = _coded("y_pred", y_pred)
    y_N, truths = (np.zeros(len(k_N), dtype=np.int64), []) if y_true is None else _coded("y_true", y_true)
    for name, code_N in (("y_pred", k_N), ("y_true", y_N)):
        if len(code_N) != len(k_N):
            raise ValueError(f"{name}: {len(code_N)} rows, y_pred has {len(k_N)}. Give the same rows, in their order.")
        if (code_N == MISSING).any():
            row, num = int(np.flatnonzero(code_N == MISSING)[0]), int((code_N == MISSING).sum())
            raise ValueError(f"{name}: row {row} has no value, and {num - 1} more. Leave such rows out.")
    classes = _sorted([*found, *truths])
    if truths and (not set(found) & set(truths) or len({str(value) for value in classes}) < len(classes)):
        raise ValueError(
            f"y_true holds {truths[0]!r}, y_pred {found[0]!r}, and they have no class in common, or the same class as "
            "number and as text. Call classes alike in both."
        )
    if len(classes) > MOST_CLASSES:
        raise ValueError(f"y_pred: {len(classes)} different values. Give predicted classes, not scores.")
    k_N = _recoded(k_N, found, classes)
    conditions = _sorted(truths) if truths else ["all rows"]
    y_N = _recoded(y_N, truths, conditions) if truths else y_N
    columns = [(name, *_coded(name, values)) for name, values in columns_of(proxies).items()]
    if not columns:
        raise ValueError("proxies: no column. Give what each proxy says of every row.")
    for name, code_N, _ in columns:
        if len(code_N) != len(k_N):
            raise ValueError(f"proxies: {name} has {len(code_N)} rows, y_pred has {len(k_N)}. Give the same rows.")
    groups = _sorted([value for _, _, values in columns for value in values if not _is_missing(value)])
    if not 2 <= len(groups) <= MOST_GROUPS:
        told = "Give groups, not scores or names" if len(groups) > 2 else "There is nothing to compare"
        raise ValueError(f"proxies: {len(groups)} different values. {told}; two to {MOST_GROUPS} groups can be told.")
    label_NM = np.stack([_recoded(code_N, values, groups) for _, code_N, values in columns], axis=1)
    labels_UM, count_CKU = _counted(y_N, k_N, label_NM, (len(conditions), len(classes), len(groups)))
    named_U = (labels_UM != MISSING).any(axis=1)
    unnamed = round(count_CKU[..., ~named_U].sum())
    if unnamed == len(k_N):
        raise ValueError("proxies: no row has a group. -1, None and an empty text are taken for missing.")
    names = [name for name, _, _ in columns]
    return ProxyTable(names, groups, classes, conditions, labels_UM[named_U], count_CKU[..., named_U], unnamed)


def measured(table: ProxyTable, one_class: bool, positive: Any) -> tuple[list[int], list[int]]:
    """Places of the conditions and classes that the gap is of: all, or those of the positive class."""
    names = [str(value) for value in table.classes]
    if positive is not None and str(positive) not in names:
        raise ValueError(f"positive={positive!r}: no class is called that. There are {', '.join(names)}.")
    if not one_class:
        return list(range(len(table.conditions))), list(range(len(table.classes)))
    wanted = [str(positive)] if positive is not None else ["1", "True", "1.0"]
    there = [names.index(name) for name in wanted if name in names]
    if not there or table.classes[there[0]] not in table.conditions:
        raise ValueError(
            f"positive={positive!r}: which class is equal opportunity about? The true classes are "
            f"{', '.join(map(str, table.conditions))}."
        )
    return [table.conditions.index(table.classes[there[0]])], there[:1]


def smallest_cell(table: ProxyTable, said_MCKG: FloatArray, conditions: list[int]) -> int:
    """Rows of the smallest group under a condition, as a proxy has it; refuses one without rows."""
    size_MCG = said_MCKG.sum(axis=2)[:, conditions]
    if not size_MCG.all():
        m, c, g = np.argwhere(size_MCG == 0)[0].tolist()
        where = f" among rows of class {table.conditions[conditions[c]]}" if len(table.conditions) > 1 else ""
        raise ValueError(
            f"{table.proxies[m]} never says {table.groups[g]}{where}. All proxies must use the same names of groups "
            f"(found: {', '.join(map(str, table.groups))}); merge groups that are rare."
        )
    return round(size_MCG.min())


def check_prior(table: ProxyTable, prior_CG: FloatArray, conditions: list[int]) -> None:
    """Refuse a group of which the fit leaves no row under a condition: its rates would be of nobody."""
    rows_CG = prior_CG[conditions] * table.count_CKU[conditions].sum(axis=(1, 2))[:, None]
    if (rows_CG < 1).any():
        c, g = np.argwhere(rows_CG < 1)[0].tolist()
        raise ValueError(
            f"the fit leaves no row for group {table.groups[g]} (condition: {table.conditions[conditions[c]]}). Merge "
            "groups, or give more rows."
        )


def shares(table: ProxyTable, said_MCKG: FloatArray) -> FloatArray:
    """Shares of the groups as the proxies have them, the mean."""
    size_MCG = said_MCKG.sum(axis=2)
    return np.asarray((size_MCG / size_MCG.sum(axis=2, keepdims=True)).mean(axis=0))


# Reading ----------------------------------------------------------------------------------------------------------


def columns_of(proxies: Any) -> dict[str, Any]:
    """Columns of a data frame, a mapping, or an array (N, M), by name."""
    if isinstance(proxies, Mapping):
        return {str(name): values for name, values in proxies.items()}
    if hasattr(proxies, "columns"):
        return {str(name): proxies[name] for name in proxies.columns}
    values = np.asarray(proxies, dtype=None if isinstance(proxies, np.ndarray) else object)
    if values.ndim != 2:
        raise ValueError(f"proxies: of shape {values.shape}, expected a column for each proxy. Give them side by side.")
    return {f"proxy {m + 1}": values[:, m] for m in range(values.shape[1])}


def codes(values: Any, names: Sequence[Any], what: str) -> IntArray:
    """Places of values among names that are known, (N,); `MISSING` where there is no value.

    Raises
    ------
    ValueError : a value that is none of them.
    """
    code_N, found = _coded(what, values)
    if strange := [value for value in found if not _is_missing(value) and value not in names]:
        raise ValueError(f"{what}: {strange[0]!r} is none of {', '.join(map(str, names))}.")
    return _recoded(code_N, found, names)


def _coded(what: str, values: Any) -> tuple[IntArray, list[Any]]:
    """Codes of values in the order they come in, and the values; whole numbers are int, whatever their type was."""
    if type(values).__module__.startswith("polars"):
        values = np.array([*values.to_list(), None], dtype=object)[:-1]
    values = values.to_numpy() if hasattr(values, "to_numpy") else values
    if not isinstance(values, np.ndarray):
        values = np.array([*values, None], dtype=object)[:-1]
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{what}: of shape {values.shape}, expected one value a row.")
    code_N, found = pd.factorize(values)
    names = [value.item() if isinstance(value, np.generic) else value for value in found]
    names = [int(value) if isinstance(value, float) and value.is_integer() else value for value in names]
    code_N = np.asarray(code_N, dtype=np.int64)
    empty = [place for place, value in enumerate(names) if isinstance(value, str) and not value.strip()]
    return np.where(np.isin(code_N, empty), MISSING, code_N) if empty else code_N, names


def _is_missing(value: Any) -> bool:
    return value is None or value != value or str(value).strip() == "" or (value == -1 and not isinstance(value, str))


def _sorted(values: Sequence[Any]) -> list[Any]:
    return sorted(dict.fromkeys(values), key=lambda value: (isinstance(value, str), value))


def _recoded(code_N: IntArray, found: Sequence[Any], names: Sequence[Any]) -> IntArray:
    """Places of codes' values in a list; what is not in it, and what was missing, is `MISSING`, the last entry."""
    place = {value: number for number, value in enumerate(names)}
    table = np.array([*(place.get(value, MISSING) for value in found), MISSING])
    return np.asarray(table[code_N], dtype=np.int64)


def _counted(
    y_N: IntArray, k_N: IntArray, label_NM: IntArray, sizes: tuple[int, int, int]
) -> tuple[IntArray, FloatArray]:
    """Different patterns, (U, M), and rows of each by condition and class, (C, K, U)."""
    C, K, G = sizes
    M = label_NM.shape[1]
    if (G + 1.0) ** M < 2**62:  # one number a pattern sorts many times faster than a row
        flat_N = np.ravel_multi_index(tuple(label_NM.T + 1), (G + 1,) * M)
        flat_U, place_N = np.unique(flat_N, return_inverse=True)
        labels_UM = np.stack(np.unravel_index(flat_U, (G + 1,) * M), axis=1) - 1
    else:
        labels_UM, place_N = np.unique(label_NM, axis=0, return_inverse=True)
    U = len(labels_UM)
    cell_N = (y_N * K + k_N) * U + place_N.ravel()
    return labels_UM.astype(np.int64), np.bincount(cell_N, minlength=C * K * U).reshape(C, K, U).astype(np.float64)
