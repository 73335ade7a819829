"""Probabilities by class: as they stand in a column, and what they say of labels.

Confident learning works in parts (`_pools.scale`). Source: Northcutt, Jiang, Chuang 2021, eq. 1 and 2.
Shapes: N rows, M rows of a part, K classes, L labels.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold, check_cv
from sklearn.utils import check_random_state

from amends.curate._pools.features import numbers_of
from amends.curate._pools.flagged import key_of
from amends.io.errors import InputError
from amends.io.rows import Row
from amends.maths.arrays import BoolArray, FloatArray, IntArray

SUM = 1e-3
"""Distance of a row's probabilities from a sum of 1 that is taken for rounding."""


def probabilities_in(rows: Sequence[Row], column: str, names: Mapping[str, Any]) -> list[Any]:
    """Read the probabilities of the labels of each row: a list in the order of the labels, or an object by label.

    Parameters
    ----------
    names : mapping
        `amends.curate._pools.flagged.names_of`: labels by their keys, in order.

    Returns
    -------
    list of float array (L,), or of str, which says what is wrong. What an object gives to other labels is left out.

    Raises
    ------
    InputError : a list, and labels are texts whose order as numbers is another one.
    """
    values = [_read(row.data.get(column)) for row in rows]
    if any(isinstance(value, list) for value in values):
        check_order(names, column, rows[0].where, "Give an object by label")
    return [_of_labels(value, column, [*names]) for value in values]


def check_order(names: Mapping[str, Any], column: str, where: str, advice: str) -> None:
    """Refuse a column with lists of probabilities where the order of the labels cannot be told.

    Raises
    ------
    InputError : labels are texts whose order as numbers is another one.
    """
    if doubtful(names):
        raise InputError(
            f'{where}: the labels are texts that are numbers, and "{column}" is a list. Sorted as texts they are '
            f"{', '.join(sorted(names))[:60]}, as numbers {', '.join(sorted(names, key=float))[:60]}: which of these "
            f"it follows cannot be told. {advice}."
        )


def doubtful(names: Mapping[str, Any]) -> bool:
    """Whether labels are texts, as all are in CSV, whose order as numbers is another one."""
    try:
        return all(isinstance(name, str) for name in names.values()) and sorted(names, key=float) != sorted(names)
    except ValueError:
        return False


def _read(value: Any) -> Any:
    """Read JSON, and an array as a list."""
    try:
        return json.loads(value) if isinstance(value, str) else value.tolist() if hasattr(value, "tolist") else value
    except (ValueError, RecursionError):
        return None


def _of_labels(value: Any, column: str, labels: Sequence[str]) -> Any:
    """Probabilities of the labels; a text says what is wrong with them."""
    others: list[Any] = []
    if isinstance(value, Mapping):
        by_label = {_label_of(name, labels): number for name, number in value.items()}
        if lacking := [label for label in labels if label not in by_label]:
            return f"{column} and the labels have other classes ({lacking[0]})"
        others = [number for label, number in by_label.items() if label not in labels]
        value = [by_label[label] for label in labels]
    found = numbers_of([*value, *others], np.float64) if isinstance(value, list) else None
    if found is None:
        return f"{column} is no list of numbers"
    if not np.isfinite(found).all():
        return f"{column} holds a number that is missing or infinite"
    if len(found) - len(others) != len(labels):
        told = f"{len(found)} numbers for {len(labels)} labels ({', '.join(labels)[:60]})"
        return f"{column} holds {told}; an object by label may have more"
    if (found < 0).any() or abs(found.sum() - 1) > SUM:
        return "the probabilities are below 0 or do not sum to 1"
    return _whole(found[: len(labels)]) if found[: len(labels)].any() else "no label has a probability above 0"


def _label_of(name: Any, labels: Sequence[str]) -> str:
    """Key of a label in an object: in JSON all are texts, and 1.0 is the label 1."""
    if (key := key_of(name)) in labels:
        return key
    try:
        return key_of(float(key))
    except ValueError:
        return key


def _whole(p: FloatArray) -> FloatArray:
    """Scale probabilities so that those of a row sum to 1."""
    return np.asarray(p / p.sum(axis=-1, keepdims=True))


def among(p_NL: FloatArray, classes_K: IntArray) -> FloatArray:
    """Probabilities (N, K) of those labels that a row has which is judged.

    Raises
    ------
    InputError : they are all 0 in some row.
    """
    found = p_NL[:, classes_K]
    if not found.any(axis=1).all():
        raise InputError(
            f"{int((~found.any(axis=1)).sum())} rows have probability 0 for every label of the rows that can be "
            "judged. Leave these rows out."
        )
    return _whole(found)


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
    """Apply: the class that each row counts for, and whether it is not that of its label.

    None counts for a class with threshold 0, such as one of a single row, which no model that judged its rows knew.
    """
    p_MK, labels_M = p_NK[rows], labels_N[rows]
    K = len(thresholds_K)
    confident_MK = np.where((p_MK >= thresholds_K - 1e-12) & (thresholds_K > 0), p_MK, -1.0)
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
    off_N = ((p_NK < 0) | (p_NK > 1)).any(axis=1) | (np.abs(p_NK.sum(axis=1) - 1) > SUM)
    if off_N.any():
        row = int(np.flatnonzero(off_N)[0])
        what = f"{off_N.sum()} rows hold no probabilities (0 to 1, sum 1)"
        raise ValueError(f"{what}, the first is row {row}: sum {p_NK[row].sum():.4g}.")
    return np.asarray(p_NK / p_NK.sum(axis=1, keepdims=True), dtype=np.float64)


def out_of_sample(
    model: Any, X: np.ndarray, labels_N: IntArray, num_classes: int, cv: Any, random_state: Any
) -> FloatArray:
    """Probabilities (N, K) by models that were not trained on the row.

    Parameters
    ----------
    cv : int or splitter of scikit-learn
        Folds, at random and with equal shares of the labels; fewer if no class has so many rows.

    Raises
    ------
    ValueError : a model without `predict_proba`, fewer than two folds, folds that do not part the rows.
    """
    if not hasattr(model, "predict_proba"):
        raise ValueError(
            f"estimator={model!r}: has no predict_proba. Give one that has, or CalibratedClassifierCV of it."
        )
    counts_K = np.bincount(labels_N)
    if isinstance(cv, Integral):
        if cv < 2:
            raise ValueError(f"cv={cv}: expected at least 2 folds.")
        num_folds = min(int(cv), int(counts_K.max()))
        if few := int((counts_K < num_folds).sum()):
            warnings.warn(
                f"{few} classes have fewer rows than the {num_folds} folds: some folds know nothing of them.",
                UserWarning,
                stacklevel=2,
            )
        cv = StratifiedKFold(num_folds, shuffle=True, random_state=check_random_state(random_state))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        splits = list(check_cv(cv, labels_N, classifier=True).split(X, labels_N))
    if not np.array_equal(np.sort(np.concatenate([test for _, test in splits])), np.arange(len(X))):
        raise ValueError(f"cv={cv!r}: each row must be in the test rows of one fold. Give another one.")
    p_NK = np.zeros((len(X), num_classes))
    for train, test in splits:
        if len(here := np.unique(labels_N[train])) == 1:  # a model of one class says nothing else
            p_NK[test, here[0]] = 1
            continue
        fitted = clone(model).fit(X[train], labels_N[train])
        p_NK[np.ix_(test, fitted.classes_)] = fitted.predict_proba(X[test])
    return p_NK
