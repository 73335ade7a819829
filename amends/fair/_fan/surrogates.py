"""Models that learn what FAN's program says of rows, from tables of any kind."""

from typing import Any

import narwhals as nw
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import hstack, issparse
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import KFold
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _num_samples

from amends.fair._fan.rules import ABSTAINED
from amends.maths.arrays import FloatArray, IntArray


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


def held_out_chances(surrogate: Any, seen: Any, fate_N: IntArray, folds: int, seed: int) -> FloatArray:
    """Chances of abstention and of label 1, (N, 2), by models that did not see the row."""
    chance_N2 = np.zeros((len(fate_N), 2))
    for train, test in KFold(folds, shuffle=True, random_state=seed).split(fate_N):
        in_train_N = np.isin(np.arange(len(fate_N)), train)
        decided_N = in_train_N & (fate_N != ABSTAINED)
        abstain = learnt(surrogate, rows_of(seen, in_train_N), (fate_N[in_train_N] == ABSTAINED).astype(np.int64), seed)
        label = learnt(surrogate, rows_of(seen, decided_N), fate_N[decided_N], seed)
        held = rows_of(seen, ~in_train_N)
        chance_N2[test, 0], chance_N2[test, 1] = said_one(abstain, held), said_one(label, held)
    return chance_N2


def matched_cuts(chance_N2: FloatArray, fate_N: IntArray, code_N: IntArray) -> FloatArray:
    """Return chances, (G, 2), above which a row is abstained on, or else decided 1: as often as in `fate_N`."""
    cut_G2 = np.zeros((int(code_N.max()) + 1, 2))
    for group in range(len(cut_G2)):
        chance_n2, fate_n = chance_N2[code_N == group], fate_N[code_N == group]
        cut_G2[group, 0] = _cut(chance_n2[:, 0], int((fate_n == ABSTAINED).sum()))
        decided_n = chance_n2[:, 0] <= cut_G2[group, 0]
        cut_G2[group, 1] = _cut(chance_n2[decided_n, 1], int((fate_n == 1).sum()))
    return cut_G2


def _cut(chance_n: FloatArray, num: int) -> float:
    """Return the cut with `num` chances above it, or as near to that as equal chances allow."""
    if not 0 < num < len(chance_n):
        return np.inf if num == 0 else -np.inf
    low, high = np.sort(chance_n)[[len(chance_n) - num - 1, len(chance_n) - num]]
    return float((low + high) / 2)


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
