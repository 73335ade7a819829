"""Models that learn what FAN's program says of rows, from tables of any kind."""

from typing import Any

import narwhals as nw
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import hstack, issparse
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _num_samples

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def learnt(surrogate: Any, seen: Any, one_N: IntArray, seed: int) -> Any:
    """Fit a surrogate to 0 and 1; of rows that are all the same, return the 0 or 1 that they are; None of no rows."""
    values = np.unique(one_N)
    if len(values) < 2:
        return int(values[0]) if len(values) else None
    model = HistGradientBoostingClassifier(random_state=seed) if surrogate is None else surrogate
    return clone(model).fit(seen, one_N)


def said_one(model: Any, seen: Any) -> FloatArray:
    """Return the probability of 1 by what `learnt` returned."""
    if hasattr(model, "predict_proba"):
        return np.asarray(model.predict_proba(seen)[:, 1], dtype=np.float64)
    return np.full(_num_samples(seen), 0.5 if model is None else float(model))


def rows_of(X: Any, where_N: NDArray[np.bool_]) -> Any:
    """Pick rows of a table of any kind."""
    return _safe_indexing(X, np.flatnonzero(where_N))


def with_columns(X: Any, added: dict[str, FloatArray]) -> Any:
    """Put columns after those of a table of any kind."""
    if hasattr(X, "columns") and all(isinstance(name, str) for name in X.columns):
        frame = nw.from_native(X)
        backend = nw.get_native_namespace(frame)
        return frame.with_columns(*(nw.new_series(k, v, backend=backend) for k, v in added.items())).to_native()
    if issparse(X):
        return hstack([X, np.stack([*added.values()], axis=1)]).tocsr()
    return np.column_stack([np.asarray(X), *added.values()])
