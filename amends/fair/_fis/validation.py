"""Validation rows with labels and groups: what a model is worth on them, and which way its gap falls.

Shapes: N rows, K classes, C conditions, G groups.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from amends.fair._tables.groups import Groups
from amends.maths.arrays import FloatArray, IntArray
from amends.maths.disparity import Disparity, Notion, disparity

FEW = 100
"""Rows of a group that count, below which the direction to a smaller gap is not well known."""


@dataclass(frozen=True)
class Round:
    """What a model is worth on the validation rows, and what it cost."""

    number: int
    """0: the start."""
    labels: int
    """Spent until then, with those of the start."""
    trained_on: int
    kept: int
    """Of the labels bought in this round."""
    rejected: int
    rolled_back: bool
    accuracy: float
    disparity: float
    """Of decisions, as fairlearn has it: the largest difference between two groups."""
    smooth_disparity: float
    """Half the sum of squared gaps of mean probabilities: what the influence is on."""


@dataclass(frozen=True, eq=False)
class Validation:
    """Rows with labels and groups; make it with `read_validation`."""

    X: Any
    code_N: IntArray
    """Labels 0 to K - 1."""
    gap: Disparity
    columns: list[int]
    """Classes whose probability counts."""

    def slope(self, p_NK: FloatArray, rows_N: IntArray | None = None) -> FloatArray:
        """Slope of the smooth disparity by each probability, (N, K); of rows drawn again if they are given."""
        cells = self.gap if rows_N is None else Disparity(self.gap.cell_N[rows_N], self.gap.size_CG)
        found = np.zeros_like(p_NK)
        found[:, self.columns] = cells.gradient(p_NK[:, self.columns])
        return found

    def smooth(self, p_NK: FloatArray) -> float:
        """Half the sum of squared gaps between the groups' mean probabilities."""
        return self.gap.loss(p_NK[:, self.columns])

    def decided(self, chosen_N: IntArray, num_classes: int) -> float:
        """Largest difference between two groups in how often a class is said, as fairlearn defines it."""
        said_NK = np.eye(num_classes)[chosen_N][:, self.columns]
        return float(np.ptp(self.gap.means(said_NK), axis=1).max())

    def draw_again(self, rng: np.random.Generator) -> IntArray:
        """Resample rows with replacement within each cell, so that none is left empty; (N,) places."""
        cell_N = self.gap.cell_N
        order_N = np.argsort(cell_N, kind="stable")
        _, first, size = np.unique(cell_N[order_N], return_index=True, return_counts=True)
        place_N = np.repeat(first, size) + (rng.random(len(cell_N)) * np.repeat(size, size)).astype(np.int64)
        return np.asarray(order_N[place_N])


def read_validation(
    X: Any, code_N: IntArray, groups: Groups, classes: np.ndarray, metric: Notion, positive: int | None
) -> Validation:
    """Prepare validation rows.

    Parameters
    ----------
    code_N : int array (N,)
        Labels as places in `classes`.
    positive : int, optional
        Class whose probability counts. Default: the second of two; all of more.

    Raises
    ------
    ValueError : a group without a row that counts, or more than two classes of which none is the opportunity.
    """
    K = len(classes)
    columns = [1] if K == 2 else ([*range(K)] if positive is None else [positive])
    condition_N = np.zeros_like(code_N)
    if metric == "equal_opportunity":
        if K > 2 and positive is None:
            raise ValueError(f"equal_opportunity of {K} classes: name the one that is the opportunity with positive.")
        condition_N = (code_N == (1 if positive is None else positive)).astype(np.int64)
    elif metric == "equalized_odds":
        condition_N = code_N
    _check_cells(condition_N, groups, classes, metric)
    return Validation(X, code_N, disparity(groups.code_N, condition_N, metric), columns)


def _check_cells(condition_N: IntArray, groups: Groups, classes: np.ndarray, metric: Notion) -> None:
    """Refuse a group without a row that counts, and warn of one with few."""
    counted = {"demographic_parity": [0], "equal_opportunity": [1]}.get(metric, [*range(len(classes))])
    size_CG = np.array([np.bincount(groups.code_N[condition_N == c], minlength=len(groups.names)) for c in counted])
    condition, group = np.unravel_index(size_CG.argmin(), size_CG.shape)
    least = int(size_CG.min())
    which = {"demographic_parity": "", "equal_opportunity": " with the positive label"}.get(
        metric, f" with the label {classes[condition]}"
    )
    which = f"of the group {groups.names[group]!r}{which}"
    if not least:
        raise ValueError(
            f"sensitive_features: no validation row {which}, so {metric} cannot be told. Give such rows, merge groups, "
            "or choose demographic_parity."
        )
    if least < FEW and len(groups.names) > 1:
        warnings.warn(
            f"{least} validation rows {which}: below {FEW} the sign of an influence on the gap is often chance. Give "
            "more validation rows, or look at the agreement of what is chosen.",
            UserWarning,
            stacklevel=4,
        )
