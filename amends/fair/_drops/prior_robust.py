"""Class probabilities rescaled so that accuracy stays high under every prior near a target: the rule and its estimator.

For fixed class weights g the best rule is argmax_y (g_y / pi_y) p_y(x), with pi the prior that the model was trained
under (Bayes' rule for the prior g). So all that is searched is g: what an adversary, who may choose any prior within
delta of the target, ends at when the rule always answers as well as it can.

Source: Wei et al., ICLR 2023 (arXiv 2309.08825). Their update leaves the adversary's multiplier free to become
negative, which turns the adversary round; here it is held at 0 or above, steps are small and damped, and what is kept
is a mean or the best of the path. One evaluation in the official code divides by g; here g multiplies everywhere.

Shapes: N rows, K classes, G groups, C cells: the classes, or with groups K x G, class by class; T steps, D deltas.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from amends.fair._drops.ambiguity import Name, damped_step, distance, worst_prior
from amends.fair._tables.groups import Groups, read_groups
from amends.maths.arrays import FloatArray, IntArray

Loss = Literal["zero-one", "cross-entropy"]
Average = Literal["last-half", "best"]
FEW = 20
"""Rows of a class below which its loss is mostly chance."""
SMOOTH = 10.0
"""Rows of mean loss that each class is given on top of its own, so that a few rows are not taken at their word."""
FLOOR = 1e-12
"""A probability is taken to be at least this, so that a class that is weighted enough can be predicted."""
SUM = 1e-3
"""Distance from a sum of 1 that is taken for rounding."""
APART, SURE = 0.05, 4.0
"""Mean probability and prior lie too far apart from here on, and by so many standard errors."""


class Cells(NamedTuple):
    """What losses are counted by: classes, or each class in each group."""

    names: list[Any]
    """Of each cell: the class, or (class, group)."""
    class_C: IntArray

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.class_C[-1]) + 1


class Tuned(NamedTuple):
    """The weights found."""

    g_C: FloatArray
    multiplier: float
    """Lambda at the end: what a unit of distance from the target costs the adversary; 0 where delta does not bind."""


def cells_of(classes: Any, groups: Groups | None) -> Cells:
    """Cells of classes, or of classes and groups, class by class."""
    if groups is None:
        return Cells(list(classes), np.arange(len(classes)))
    names = [(c, g) for c in classes for g in groups.names]
    return Cells(names, np.repeat(np.arange(len(classes)), len(groups.names)))


def rescaled(odds_NC: FloatArray, g_C: FloatArray, cells: Cells) -> FloatArray:
    """Unnormalised probability of each class under the prior g, (N, K), summed over the groups: odds are p / pi."""
    scaled_NC = odds_NC * g_C
    if len(g_C) == cells.num_classes:
        return np.asarray(scaled_NC)
    return np.asarray(scaled_NC.reshape(len(scaled_NC), cells.num_classes, -1).sum(axis=2))


def losses(score_NK: FloatArray, cell_N: IntArray, cells: Cells, loss: Loss = "zero-one") -> FloatArray:
    """Mean loss of each cell, (C,): share of errors, or -log of the probability of the right class; NaN of no rows."""
    label_N = cells.class_C[cell_N]
    if loss == "zero-one":
        value_N = (score_NK.argmax(axis=1) != label_N).astype(float)
    else:
        value_N = np.log(score_NK.sum(axis=1)) - np.log(score_NK[np.arange(len(label_N)), label_N])
    return means(value_N, cell_N, len(cells.class_C))


def means(value_N: ArrayLike, cell_N: IntArray, num_cells: int) -> FloatArray:
    """Mean of the rows of each cell; NaN of no rows."""
    count_C = np.bincount(cell_N, minlength=num_cells)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.bincount(cell_N, value_N, minlength=num_cells) / count_C)


def tune(
    odds_NC: FloatArray,
    cell_N: IntArray,
    cells: Cells,
    target_C: FloatArray,
    *,
    delta: float = 0.2,
    divergence: Name = "kl",
    loss: Loss = "zero-one",
    average: Average = "best",
    smooth: float = SMOOTH,
    steps: int = 400,
    rate: float = 0.1,
    each: Callable[[], object] | None = None,
) -> Tuned:
    """Search g: a damped step for the adversary, then one for the multiplier of its budget, held at 0 or above.

    Parameters
    ----------
    odds_NC : float (N, C)
        p / pi of rows with known labels: probabilities by the prior that the model was trained under.
    cell_N : int (N,)
    target_C : float (C,)
        Sums to 1; 0 in cells that have no rows.
    smooth : float, default 10
        Rows of mean loss that each cell is given on top of its own; 0 takes few rows at their word. Ours.
    steps : int, default 400
    rate : float, default 0.1
        Of both steps.
    each : callable, optional
        Called after every step, for a progress bar.
    """
    inside_C = target_C > 0
    g_C, multiplier = target_C.copy(), 1.0
    total_C, best_C, best = np.zeros_like(g_C), g_C, -np.inf
    count_C = np.bincount(cell_N, minlength=len(target_C))

    def smoothed(loss_C: FloatArray) -> FloatArray:
        return np.asarray((loss_C * count_C + smooth * loss_C[inside_C].mean()) / np.maximum(count_C + smooth, FLOOR))

    num_steps = steps if delta > 0 else 0  # at 0 there is no other prior
    for t in range(num_steps):
        score_NK = rescaled(odds_NC, g_C, cells)
        loss_C = error_C = smoothed(losses(score_NK, cell_N, cells))
        if average == "best" and (value := worst_accuracy(1 - error_C, target_C, delta, divergence)) > best:
            best_C, best = g_C, value
        if loss == "cross-entropy":
            loss_C = smoothed(losses(score_NK, cell_N, cells, loss))
        moved_C = damped_step(g_C[inside_C], loss_C[inside_C], target_C[inside_C], multiplier, rate, divergence)
        g_C = np.zeros_like(target_C)
        g_C[inside_C] = moved_C
        multiplier = max(0.0, multiplier + rate * (distance(g_C, target_C, divergence) - delta))
        if t >= num_steps // 2:
            total_C += g_C
        if each is not None:
            each()
    if not num_steps:
        return Tuned(g_C, multiplier)
    return Tuned(total_C / total_C.sum() if average == "last-half" else best_C, multiplier)


def worst_accuracy(recall_C: FloatArray, target_C: FloatArray, delta: float, divergence: Name = "kl") -> float:
    """Least mean of the recalls under a prior within delta of the target."""
    check_delta(delta)
    g_C = worst_prior(1 - recall_C, target_C, delta, divergence)
    return float((g_C * recall_C)[target_C > 0].sum())


def delta_worst_accuracy(
    y_true: Any,
    y_pred: Any,
    delta: float = 0.2,
    target_prior: Any = "uniform",
    divergence: Name = "kl",
    groups: Any = None,
) -> float:
    """Least accuracy of given decisions under any prior within delta of the target.

    It is the least of sum_y g_y recall_y: at delta 0 the mean recall under the target, from -log(min target) nats on
    (KL) the recall of the worst class.

    Parameters
    ----------
    y_true, y_pred : (N,)
    delta : float, default 0.2
        Under "kl" and "reverse-kl" in nats, under "l1" 0 to 2, under "l2" 0 to 2.
    target_prior : "uniform", list of float, or mapping, default "uniform"
        Shares of the sorted classes of y_true, or a mapping from each; with groups of (class, group), class by class.
    divergence : {"kl", "reverse-kl", "l1", "l2"}, default "kl"
    groups : (N,), (N, C) or data frame, optional
        Of each class in each group, instead of each class.

    Raises
    ------
    ValueError : no rows, rows that do not match, a prior that does not fit, or one of a class that has no rows.
    """
    y_true, y_pred = np.asarray(y_true), np.asarray(y_pred)
    if y_true.ndim != 1 or y_true.shape != y_pred.shape or not y_true.size:
        raise ValueError(f"y_true {y_true.shape}, y_pred {y_pred.shape}: expected one value each for every row.")
    for name, of in (("y_true", y_true), ("y_pred", y_pred)):
        if (lost_N := pd.isna(of)).any():
            raise ValueError(f"{name}: row {lost_N.argmax()} has no value. Leave such rows out of both.")
    classes, label_N = np.unique(y_true, return_inverse=True)
    found = None if groups is None else read_groups(groups, len(y_true), "groups")
    cells = cells_of(classes.tolist(), found)
    cell_N = label_N if found is None else label_N * len(found.names) + found.code_N
    count_C = np.bincount(cell_N, minlength=len(cells.names))
    target_C = read_prior(target_prior, cells, count_C / count_C.sum(), "target_prior")
    check_delta(delta)
    check_rows(count_C, target_C, cells)
    return worst_accuracy(means(y_true == y_pred, cell_N, len(cells.names)), target_C, delta, divergence)


def check_delta(delta: float) -> None:
    """Refuse what is no distance."""
    if not (isinstance(delta, int | float | np.number) and 0 <= delta < np.inf):
        raise ValueError(f"delta={delta!r}: expected a number of 0 or more.")


def check_rows(count_C: IntArray, target_C: FloatArray, cells: Cells) -> None:
    """Refuse a target that counts on a cell without rows."""
    if (empty_C := (count_C == 0) & (target_C > 0)).any():
        name = cells.names[int(empty_C.argmax())]
        raise ValueError(f"{name!r} has no row in y: its recall is not known. Give such rows, or a target prior of 0.")


def read_prior(given: Any, cells: Cells, seen_C: FloatArray, name: str) -> FloatArray:
    """Shares of the cells, (C,): "uniform" over those that were seen, "train" as seen, a list, or a mapping by name.

    Raises
    ------
    ValueError : another number of shares, one below 0, a sum that is not 1, or an unknown word.
    """
    if isinstance(given, str):
        if given not in ("uniform", "train"):
            raise ValueError(f'{name}={given!r}: choose "uniform" or "train", or give the share of each class.')
        return seen_C if given == "train" else (seen_C > 0) / (seen_C > 0).sum()
    wanted = f"{len(cells.names)} shares of 0 or more that sum to 1, in the order of {cells.names}"
    if isinstance(given, Mapping):
        if set(given) != set(cells.names):
            raise ValueError(f"{name}={dict(given)}: expected {wanted}, each by its name.")
        given = [given[cell] for cell in cells.names]
    shares = np.asarray(given, dtype=float).ravel()
    if len(shares) != len(cells.names) or not (shares >= 0).all() or abs(shares.sum() - 1) > SUM:
        total = f" (their sum is {shares.sum():g})" if len(shares) == len(cells.names) else ""
        raise ValueError(f"{name}={shares.tolist()}: expected {wanted}{total}.")
    return np.asarray(shares / shares.sum())


def fit_temperature(p_NC: FloatArray, cell_N: IntArray, train_C: FloatArray) -> float:
    """Find T so that p^(1/T), normalised, is likeliest, with rows weighted to the training prior.

    Source: Guo et al. 2017, temperature scaling.
    """
    log_NC, rows = np.log(p_NC), np.arange(len(p_NC))
    weight_N = (train_C / np.maximum(np.bincount(cell_N, minlength=len(train_C)), 1))[cell_N]

    def loss(log_T: float) -> float:
        scaled_NC = log_NC / np.exp(log_T)
        most_N = scaled_NC.max(axis=1)
        log_sum_N = most_N + np.log(np.exp(scaled_NC - most_N[:, None]).sum(axis=1))
        return float(weight_N @ (log_sum_N - scaled_NC[rows, cell_N]))

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def tempered(p_NC: FloatArray, temperature: float) -> FloatArray:
    """p^(1/T), normalised."""
    log_NC = np.log(p_NC) / temperature
    scaled_NC = np.exp(log_NC - log_NC.max(axis=1, keepdims=True))
    return np.asarray(scaled_NC / scaled_NC.sum(axis=1, keepdims=True))


def check_probabilities(p_NC: FloatArray, num: int) -> FloatArray:
    """Check that rows are probabilities, and lift zeros to `FLOOR`.

    Raises
    ------
    ValueError : another number of columns, a value below 0, or a sum that is not 1; with the first such row.
    """
    p_NC = np.asarray(p_NC, dtype=float)
    if p_NC.ndim != 2 or p_NC.shape[1] != num:
        raise ValueError(f"probabilities of shape {p_NC.shape}: expected {num} in each row.")
    wrong_N = (p_NC < 0).any(axis=1) | ~(np.abs(p_NC.sum(axis=1) - 1) <= SUM)
    if wrong_N.any():
        row = int(wrong_N.argmax())
        raise ValueError(f"row {row}: {p_NC[row].tolist()} are no probabilities, of 0 or more with sum 1.")
    return np.maximum(p_NC, FLOOR)


def warn_of(p_NC: FloatArray, cell_N: IntArray, train_C: FloatArray, target_C: FloatArray, cells: Cells) -> list[str]:
    """Say what makes the weights doubtful: few rows of a cell, or probabilities whose means are not the prior."""
    count_C = np.bincount(cell_N, minlength=len(train_C))
    said = []
    if (few_C := (count_C < FEW) & (target_C > 0)).any():
        worst = int(np.where(few_C, count_C, len(cell_N) + 1).argmin())
        said.append(
            f"{int(few_C.sum())} of {len(count_C)} classes or groups have fewer than {FEW} rows to tune on "
            f"({cells.names[worst]!r}: {count_C[worst]}): their recall is mostly chance, and delta 0 may do better."
        )
    # Under the training prior the mean of calibrated probabilities is that prior.
    weight_N = (train_C / np.maximum(count_C, 1))[cell_N]
    weight_N = weight_N / weight_N.sum()
    off_C = weight_N @ p_NC - train_C
    error_C = np.sqrt((weight_N**2) @ (p_NC - np.eye(len(train_C))[cell_N]) ** 2) + 1e-12
    if ((np.abs(off_C) > APART) & (np.abs(off_C) > SURE * error_C)).any():
        c = int(np.abs(off_C).argmax())
        said.append(
            f"the probabilities of {cells.names[c]!r} average {off_C[c] + train_C[c]:.2f}, where the training prior is "
            f"{train_C[c]:.2f}: it is another one, or they are not calibrated. Give it, or calibrate by temperature."
        )
    return said
