"""From rows to the cells of FAN's program, and from its answer to the fate of each row.

A row's fate is 0 or 1, decided so, or 2, abstained. Shapes: N rows, G groups, B bins of the score, R cells.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.isotonic import isotonic_regression

from amends.fair._fan.program import Cells
from amends.maths.arrays import FloatArray, IntArray

ABSTAINED = 2
MISSED = 0.01
"""Share of a group by which fates may miss a rule's chances before it is told."""
ROUND = 1e-4
"""Share of a bin's rows that is the solver's rounding."""


@dataclass(frozen=True, eq=False)
class Rule:
    """What becomes of a row by its score, and by its group if there is more than one."""

    edge_E: FloatArray
    """Lowest score of each bin but the first, rising."""
    chance_GB3: FloatArray
    """Chances of being decided 0, decided 1 and abstained on; one group if the rule does not look at groups."""

    def chances(self, score_N: FloatArray, code_N: IntArray) -> FloatArray:
        """Chances of the three fates of rows, (N, 3)."""
        bin_N = np.searchsorted(self.edge_E, score_N, side="right")
        return np.asarray(self.chance_GB3[code_N if len(self.chance_GB3) > 1 else 0, bin_N])

    def fates(self, score_N: FloatArray, code_N: IntArray, coin_N: FloatArray) -> IntArray:
        """Fates of rows; `coin_N`, from 0 to 1, says which where a bin has more than one."""
        chance_N3 = self.chances(score_N, code_N)
        fate_N = np.full(len(score_N), ABSTAINED, dtype=np.int64)
        fate_N[coin_N < chance_N3[:, 0]] = 0
        fate_N[coin_N >= 1 - chance_N3[:, 1]] = 1
        return fate_N

    def missed(self, score_N: FloatArray, code_N: IntArray, coin_N: FloatArray) -> float:
        """Largest share of a group by which its fates miss their chances, if by more than four standard errors.

        Rows that are drawn one by one do not come that far; rows that are alike, and so have one coin, do.
        """
        chance_N3 = self.chances(score_N, code_N)
        off_N3 = np.eye(3)[self.fates(score_N, code_N, coin_N)] - chance_N3
        size_G1 = np.maximum(np.bincount(code_N), 1)[:, None]
        off_G3, spread_G3 = (
            np.stack([np.bincount(code_N, of) for of in of_N3.T], axis=1)
            for of_N3 in (off_N3, chance_N3 * (1 - chance_N3))
        )
        far_G3 = np.abs(off_G3) > 4 * np.sqrt(spread_G3)
        return float((np.abs(off_G3) / size_G1 * far_G3).max())


# By score ---------------------------------------------------------------------------------------------------------


def edges(score_N: FloatArray, bins: int, threshold: float) -> FloatArray:
    """Edges between bins of as many rows each; the threshold is one, so that a bin has one decision of the base."""
    bins = min(bins, len(score_N))  # more would part no rows, and make a program as large as they are many
    inner = np.quantile(score_N, np.linspace(0, 1, bins + 1)[1:-1]) if bins > 1 else np.zeros(0)
    return np.unique(np.append(inner, threshold))


def cells_by_score(
    edge_E: FloatArray, score_N: FloatArray, code_N: IntArray, label_N: IntArray, threshold: float, by_group: bool
) -> Cells:
    """Count rows by bin, for a rule that looks at groups by group and bin.

    The share of positives in a group's bins is fitted so as not to fall with the score (isotonic regression, which
    keeps their sum): that of a bin of few rows is mostly noise, and the program would pick the bins with lucky labels.
    """
    G, B = int(code_N.max()) + 1, len(edge_E) + 1
    place_N = code_N * B + np.searchsorted(edge_E, score_N, side="right")
    size_GB = np.bincount(place_N, minlength=G * B).reshape(G, B).astype(np.float64)
    positive_GB = np.bincount(place_N, label_N, minlength=G * B).reshape(G, B).astype(np.float64)
    for size_B, positive_B in zip(size_GB, positive_GB, strict=True):
        there_B = size_B > 0
        share = positive_B[there_B] / size_B[there_B]
        positive_B[there_B] = isotonic_regression(share, sample_weight=size_B[there_B]) * size_B[there_B]
    place_B = np.arange(B) / B
    base_B = np.append(-np.inf, edge_E) >= threshold
    if not by_group:
        return Cells(size_GB, positive_GB, np.asarray(base_B * size_GB.sum(axis=0)), place_B)
    size_GR, positive_GR = np.zeros((G, G * B)), np.zeros((G, G * B))
    for group in range(G):
        size_GR[group, group * B :][:B], positive_GR[group, group * B :][:B] = size_GB[group], positive_GB[group]
    return Cells(size_GR, positive_GR, np.tile(base_B, G) * size_GR.sum(axis=0), np.tile(place_B, G))


def rule_of(edge_E: FloatArray, cells: Cells, fate_R3: FloatArray) -> Rule:
    """Chances by group and bin; a bin without rows of a group has those of the nearest that has some."""
    B = len(edge_E) + 1
    size_GB, fate_GB3 = cells.size_R.reshape(-1, B), fate_R3.reshape(-1, B, 3)
    chance_GB3 = np.zeros_like(fate_GB3)
    for group, (size_B, fate_B3) in enumerate(zip(size_GB, fate_GB3, strict=True)):
        there = np.flatnonzero(size_B)
        nearest_B = there[np.abs(np.arange(B)[:, None] - there).argmin(axis=1)]
        chance_GB3[group] = fate_B3[nearest_B] / size_B[nearest_B, None]
    chance_GB3 = np.where(chance_GB3 < ROUND, 0.0, np.where(chance_GB3 > 1 - ROUND, 1.0, chance_GB3))
    return Rule(edge_E, chance_GB3 / chance_GB3.sum(axis=2, keepdims=True))


def coins(X: Any, seed: int) -> FloatArray:
    """Draw a number from 0 to 1 for each row out of its own cells: equal rows have equal ones, in any order."""
    if issparse(X):
        cell_N = X @ np.random.default_rng(seed).random(X.shape[1])
        hash_N = pd.util.hash_array(np.asarray(cell_N, dtype=np.float64))
    else:
        named = hasattr(X, "columns")
        columns = [np.asarray(X[name]) for name in X.columns] if named else np.asarray(X).reshape(len(X), -1).T
        numbers = {
            str(place): column.astype(np.float64) if column.dtype.kind in "biuf" else column.astype(str).astype(object)
            for place, column in enumerate(columns)
        }
        hash_N = pd.util.hash_pandas_object(pd.DataFrame(numbers), index=False).to_numpy()
    # The hash of numbers knows no seed: it is mixed in after Steele, Lea, Flood 2014 (SplitMix64).
    with np.errstate(over="ignore"):
        z_N = hash_N + np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
        z_N = (z_N ^ (z_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z_N = (z_N ^ (z_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((z_N ^ (z_N >> np.uint64(31))) >> np.uint64(11), dtype=np.float64) / 2**53


# By label ---------------------------------------------------------------------------------------------------------


def cells_by_label(row_GYB: FloatArray) -> Cells:
    """Cells of group and label, group by group, from rows by group, label and the base's decision."""
    G = len(row_GYB)
    size_GR, positive_GR = np.zeros((G, 2 * G)), np.zeros((G, 2 * G))
    group, size_GY = np.arange(G), row_GYB.sum(axis=2)
    size_GR[group, 2 * group], size_GR[group, 2 * group + 1] = size_GY[:, 0], size_GY[:, 1]
    positive_GR[group, 2 * group + 1] = size_GY[:, 1]
    return Cells(size_GR, positive_GR, row_GYB[:, :, 1].reshape(-1), np.zeros(2 * G))


def assigned(fate_R3: FloatArray, cell_N: IntArray, score_N: FloatArray, base_N: NDArray[np.bool_]) -> IntArray:
    """Fates of rows, as many of each cell as the program says: 1 to the highest scores, 0 to the lowest.

    Fates then rise with the score inside a cell, which is what a model can learn.
    """
    order_N = np.lexsort((score_N, base_N, cell_N))
    size_R = np.bincount(cell_N, minlength=len(fate_R3))
    place_N = np.empty(len(cell_N), dtype=np.int64)
    place_N[order_N] = np.arange(len(cell_N)) - np.repeat(np.cumsum(size_R) - size_R, size_R)
    zero_N, one_N = fate_R3[cell_N, 0], size_R[cell_N] - fate_R3[cell_N, 1]
    return np.where(place_N < zero_N, 0, np.where(place_N >= one_N, 1, ABSTAINED)).astype(np.int64)
