"""Columns of a table, whatever holds it, as arrays by name; and a table of them again, of the kinds that they had."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def columns_of(X: Any) -> dict[Any, NDArray[Any]]:
    """Columns by name, or of an array by number; each a copy; of categories no numbers."""
    if isinstance(X, pd.DataFrame):
        kinds = {name: object if isinstance(X[name].dtype, pd.CategoricalDtype) else None for name in X}
        return {name: X[name].to_numpy(dtype=kind, copy=True) for name, kind in kinds.items()}
    return {number: X[:, number].copy() for number in range(X.shape[1])}


def table_like(columns: dict[Any, NDArray[Any]], like: Any) -> Any:
    """Columns as a table like another, of its kinds of columns: a pipeline may choose them by their kind."""
    if isinstance(like, pd.DataFrame):
        return pd.DataFrame({name: _in_kind(values, like[name]) for name, values in columns.items()}, index=like.index)
    return np.column_stack(list(columns.values()))


def _in_kind(values: NDArray[Any], like: pd.Series) -> pd.Series:
    """Values in the kind of a column; fractions in a column of whole numbers make it one of fractions."""
    plain = pd.Series(values, index=like.index, dtype=values.dtype)
    if plain.dtype == like.dtype:
        return plain
    if isinstance(like.dtype, pd.CategoricalDtype):
        if new := [value for value in plain.dropna().unique() if value not in like.cat.categories]:
            raise ValueError(
                f"the column {like.name!r} knows no category {new[0]!r}: it has {like.cat.categories[:10].tolist()}. "
                "Give one of them, or add it to the column's categories before fit."
            )
        return plain.astype(like.dtype)
    try:
        kept = plain.astype(like.dtype)
    except (TypeError, ValueError):
        return plain
    same = kept.astype(object).to_numpy() == plain.astype(object).to_numpy()
    return kept if (same | plain.isna().to_numpy()).all() else plain


def is_number(values: NDArray[Any]) -> bool:
    """Whether values are numbers, or true and false."""
    return values.dtype.kind in "biuf"
