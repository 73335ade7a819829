"""Folds in which rows are scored by a model that did not see them."""

from numbers import Integral
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedKFold, check_cv

from amends.maths.arrays import IntArray


def check_folds(cv: Any, beside: str = "") -> None:
    """Refuse what makes no folds.

    Raises
    ------
    ValueError
    """
    if isinstance(cv, Integral) and int(cv) >= 2:
        return
    if isinstance(cv, str | Integral) or not (hasattr(cv, "split") or hasattr(cv, "__iter__")):
        raise ValueError(f"cv={cv!r}: expected at least 2 folds, or a splitter{beside}.")


def num_folds(cv: Any, most: int) -> int:
    """Return the number of folds, no more than that; 2 where `cv` says how to part the rows, but not in how many."""
    return min(int(cv), most) if isinstance(cv, Integral) else 2


def splits_of(cv: Any, code_N: IntArray, most: int, random_state: Any) -> list[tuple[IntArray, IntArray]]:
    """Places to learn from and places to score: by a splitter as it says, by a number shuffled and stratified.

    Parameters
    ----------
    cv : int, splitter of scikit-learn, or list of pairs
    most : int
        Largest number of folds, if `cv` is a number.

    Raises
    ------
    ValueError : a splitter that scores a row twice, or never.
    """
    own = StratifiedKFold(num_folds(cv, most), shuffle=True, random_state=random_state)
    splitter = own if isinstance(cv, Integral) else check_cv(cv)
    splits = [(np.asarray(train), np.asarray(test)) for train, test in splitter.split(np.zeros(len(code_N)), code_N)]
    times_N = np.bincount(np.concatenate([test for _, test in splits]), minlength=len(code_N))
    if (times_N != 1).any():
        raise ValueError(f"cv={cv!r}: it scores {(times_N != 1).sum()} rows twice or never. Choose one such as KFold.")
    return splits
