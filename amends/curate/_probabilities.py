"""What probabilities by class say of labels: confident learning in parts (`amends.curate._scale`).

Source: Northcutt, Jiang, Chuang 2021, eq. 1 and 2. Shapes: N rows, M rows of a part, K classes.
"""

from typing import Any, NamedTuple

import numpy as np

from amends.curate._lists import BoolArray, FloatArray, IntArray


class Confidence(NamedTuple):
    """Of the rows with each label, the sum of its probabilities and their number; those of parts are added."""

    sum_K: FloatArray
    size_K: IntArray

    def __add__(self, other: Any) -> "Confidence":
        """Add those of other rows."""
        return Confidence(self.sum_K + other.sum_K, self.size_K + other.size_K)


class Confident(NamedTuple):
    """What confident learning says of a part."""

    flag_M: BoolArray
    best_M: IntArray
    joint_KK: IntArray
    """How many rows with each label count for each class; those of parts are added."""


def confidence_of(rows: slice, p_NK: FloatArray, labels_N: IntArray) -> Confidence:
    """Local: what the thresholds t_j are made of."""
    labels_M, K = labels_N[rows], p_NK.shape[1]
    own_M = p_NK[rows][np.arange(len(labels_M)), labels_M]
    return Confidence(np.bincount(labels_M, own_M, K).astype(np.float64), np.bincount(labels_M, minlength=K))


def confident(rows: slice, p_NK: FloatArray, labels_N: IntArray, thresholds_K: FloatArray) -> Confident:
    """Apply: the class that each row counts for, and whether it is not that of its label."""
    p_MK, labels_M = p_NK[rows], labels_N[rows]
    K = len(thresholds_K)
    confident_MK = np.where(p_MK >= thresholds_K - 1e-12, p_MK, -1.0)
    best_M, is_any_M = confident_MK.argmax(axis=1), confident_MK.max(axis=1) >= 0
    joint = np.bincount(labels_M[is_any_M] * K + best_M[is_any_M], minlength=K * K).reshape(K, K)
    flag_M = is_any_M & (best_M != labels_M)
    return Confident(flag_M, np.where(flag_M, best_M, p_MK.argmax(axis=1)), joint)


def checked_probabilities(p_NK: np.ndarray, num_classes: int) -> FloatArray:
    """Probabilities of given classes, if they are some.

    Raises
    ------
    ValueError : another number of columns, a number outside 0 to 1, or a row that does not sum to 1.
    """
    if p_NK.shape[1] != num_classes:
        raise ValueError(f"probabilities of {p_NK.shape[1]} classes, labels of {num_classes}: give one a class.")
    off_N = ((p_NK < 0) | (p_NK > 1)).any(axis=1) | (np.abs(p_NK.sum(axis=1) - 1) > 1e-3)
    if off_N.any():
        row = int(np.flatnonzero(off_N)[0])
        what = f"{off_N.sum()} rows hold no probabilities (0 to 1, sum 1)"
        raise ValueError(f"{what}, the first is row {row}: sum {p_NK[row].sum():.4g}.")
    return np.asarray(p_NK / p_NK.sum(axis=1, keepdims=True), dtype=np.float64)
