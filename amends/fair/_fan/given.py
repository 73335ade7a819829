"""What an abstaining classifier is given: labels, groups, scores and settings by group, checked.

Shapes: N rows, G groups.
"""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd
from scipy.sparse import issparse
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_y, _num_samples

from amends.fair._fan.program import OBJECTIVES, Mode, SlackForm, SurrogateCut
from amends.fair._tables.folds import check_folds
from amends.fair._tables.groups import read_groups
from amends.maths.arrays import FloatArray, IntArray
from amends.maths.disparity import NOTIONS

ABSTAIN = -1


def check_settings(estimator: Any) -> None:
    """Refuse settings out of range.

    Raises
    ------
    ValueError : which, and what is expected.
    """
    choices = {"notion": NOTIONS, "mode": get_args(Mode), "slack_form": get_args(SlackForm), "objective": OBJECTIVES}
    choices["surrogate_cut"] = get_args(SurrogateCut)
    for name, known in choices.items():
        if (value := getattr(estimator, name)) not in known:
            raise ValueError(f"{name}={value!r}: choose one of {', '.join(known)}.")
    for name in ("eps", "sigma", "sigma1", "sigma0", "threshold"):
        if not 0 <= (value := getattr(estimator, name)) <= 1:
            raise ValueError(f"{name}={value!r}: expected a number from 0 to 1.")
    if estimator.bins < 1:
        raise ValueError(f"bins={estimator.bins}: expected at least 1.")
    if not (isinstance(estimator.cv, str) and estimator.cv == "prefit"):
        check_folds(estimator.cv, ', or "prefit"')
    if isinstance(estimator.estimator, str) and estimator.estimator != "precomputed":
        raise ValueError(f"estimator={estimator.estimator!r}: give a classifier, 'precomputed' or None.")


def table_of(X: Any) -> Any:
    """Return a data frame or a sparse matrix as it is, and anything else as an array (N, D).

    Raises
    ------
    ValueError : no row, no feature, or an array that is no table.
    """
    if not hasattr(X, "columns") and not issparse(X):
        X = np.asarray(X)
        if X.ndim != 2:
            raise ValueError(
                f"Expected 2D array, got an array of shape {X.shape}. Reshape your data to (rows, features)."
            )
    if X.shape[0] == 0:
        raise ValueError(f"Found array with 0 sample(s) (shape={X.shape}) while a minimum of 1 is required.")
    if X.shape[1] == 0:
        raise ValueError(f"Found array with 0 feature(s) (shape={X.shape}) while a minimum of 1 is required.")
    return X


def labels_of(estimator: Any, X: Any, y: Any) -> tuple[np.ndarray, IntArray]:
    """Classes, two, and the labels as 0 and 1.

    Raises
    ------
    ValueError : no labels, another number of them, or not two classes.
    """
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None.")
    kind = getattr(getattr(y, "dtype", None), "numpy_dtype", None)
    if kind is not None and kind.kind in "biuf" and not pd.isna(y).any():
        y = y.to_numpy(dtype=kind)  # columns of pandas that may have gaps would become floats
    y = _check_y(y, estimator=estimator)
    check_classification_targets(y)
    if len(y) != (N := _num_samples(X)):
        raise ValueError(f"Found input variables with inconsistent numbers of samples: {[N, len(y)]}")
    if (kind := type_of_target(y, input_name="y", raise_unknown=True)) != "binary":
        raise ValueError(f"Only binary classification is supported. The type of the target is {kind}.")
    classes, label_N = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"1 class in y ({classes[0]}): there is nothing to decide.")
    return classes, label_N.astype(np.int64)


def labels_like(y: Any, classes: np.ndarray, num_rows: int) -> IntArray:
    """Labels of other rows as 0 and 1.

    Raises
    ------
    ValueError : another number of labels, one that is missing, or one that is no class.
    """
    y = np.asarray(y, dtype=object)
    if y.shape not in ((num_rows,), (num_rows, 1)):
        raise ValueError(f"y: of shape {y.shape}, expected a label for each of {num_rows} rows.")
    y = y.reshape(-1)
    code_N, found = pd.factorize(y)  # -1: missing
    place = {value: number for number, value in enumerate(classes.tolist())}
    if odd := [repr(value) for value in found if value not in place] + ["no value"] * bool((code_N < 0).any()):
        raise ValueError(f"y holds {odd[0]}, which is none of {classes.tolist()}.")
    return np.array([place[value] for value in found], dtype=np.int64)[code_N]


def check_groups(estimator: Any, row_GYB: FloatArray) -> None:
    """Refuse a group without rows of a label that a promise is about.

    Raises
    ------
    ValueError : the group, and the label.
    """
    needed = {"demographic_parity": (), "equal_opportunity": (1,), "equalized_odds": (0, 1)}[estimator.notion]
    by_sigma = [label for label, sigma in ((1, estimator.sigma1), (0, estimator.sigma0)) if sigma < 1]
    for label in {*needed, *by_sigma}:
        for group in np.flatnonzero(row_GYB[:, label].sum(axis=1) == 0):
            what = estimator.notion if label in needed else f"sigma{label}"
            raise ValueError(
                f"group {estimator.groups_[group]}: no row has the label {estimator.classes_[label]}, of which {what} "
                "needs some. Leave the group out, join it with another, or choose demographic_parity."
            )


def codes_of(sensitive_features: Any, num_rows: int, groups: Sequence[Any]) -> IntArray:
    """Read each row's group as its place among those that are known.

    Raises
    ------
    ValueError : one that is not known.
    """
    found = read_groups(sensitive_features, num_rows)
    place = {str(name): number for number, name in enumerate(groups)}
    if odd := [name for name in found.names if str(name) not in place]:
        raise ValueError(f"sensitive_features: {odd[0]} is no group that was fitted ({', '.join(place)}).")
    return np.array([place[str(name)] for name in found.names], dtype=np.int64)[found.code_N]


def by_group(given: Any, groups: Sequence[Any], name: str, most: float) -> FloatArray:
    """Return a setting for every group, (G,), from one number or a number for each by name.

    Raises
    ------
    ValueError : a number below 0 or above `most`, or other groups.
    """
    values = given
    if isinstance(given, Mapping):
        if odd := sorted({str(group) for group in groups} ^ {str(group) for group in given}):
            there = ", ".join(map(str, groups))
            raise ValueError(f"{name}: {odd[0]} is in it or in the data, but not in both (groups: {there}).")
        of = {str(group): value for group, value in given.items()}
        values = [of[str(group)] for group in groups]
    value_G = np.broadcast_to(np.asarray(values, dtype=np.float64), (len(groups),))
    if not ((value_G >= 0) & (value_G <= most)).all():
        raise ValueError(f"{name}={given!r}: expected numbers from 0 to {most:g}.")
    return value_G


def precomputed(X: Any) -> FloatArray:
    """First column as scores."""
    column = X[X.columns[0]] if hasattr(X, "columns") else X[:, 0]
    score_N = np.asarray(column.toarray() if issparse(column) else column).reshape(-1).astype(np.float64)
    outside_N = ~((score_N >= 0) & (score_N <= 1))
    if outside_N.any():
        first = int(np.flatnonzero(outside_N)[0])
        raise ValueError(
            f"{outside_N.sum()} scores are no probability; the first is row {first}: {score_N[first]:g}. "
            "Give numbers from 0 to 1 in the first column."
        )
    return score_N


def abstain_of(classes: np.ndarray) -> Any:
    """Name of an abstention among these classes."""
    if classes.dtype.kind in "biuf":
        numbers = classes.astype(float)
        name: Any = ABSTAIN if -1 not in numbers else int(np.floor(numbers.min())) - 1
        return float(name) if classes.dtype.kind == "f" else name
    return "abstain" if "abstain" not in {str(value) for value in classes} else "|abstain|"


def dtype_of(classes: np.ndarray, name: Any) -> Any:
    """Kind of array that holds the classes and an abstention."""
    if classes.dtype.kind in "bu":
        return np.int64
    return np.result_type(classes, np.asarray(name)) if classes.dtype.kind in "ifU" else object
