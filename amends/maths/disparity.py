"""How far groups lie apart in what a model says of them, smooth, so that it has a gradient.

A gap is the difference between two groups' mean scores, over all rows (demographic parity), over the rows with the
positive label (equal opportunity), or over the rows of each label (equalized odds). It is linear in the scores, so all
that is needed of the rows is which cell, condition and group, each belongs to.

Shapes: N rows, K scores of a row, G groups, C conditions, P pairs of groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from amends.maths.arrays import FloatArray, IntArray

Notion = Literal["demographic_parity", "equal_opportunity", "equalized_odds"]
NOTIONS: tuple[Notion, ...] = get_args(Notion)
Form = Literal["squared", "absolute"]


@dataclass(frozen=True, eq=False)
class Disparity:
    """Gaps between the groups of given rows, as a function of the rows' scores; make it with `disparity`."""

    cell_N: IntArray
    """Condition times G, plus group; -1 of a row that no condition counts."""
    size_CG: IntArray

    def means(self, score_NK: ArrayLike) -> FloatArray:
        """Mean scores of every cell, (C, G, K); scores may also be (N,)."""
        score_NK = _scores(score_NK, len(self.cell_N))
        counted_N = self.cell_N >= 0
        cell = self.cell_N[counted_N]
        sums = [np.bincount(cell, column[counted_N], minlength=self.size_CG.size) for column in score_NK.T]
        return np.asarray(np.stack(sums, axis=1).reshape(*self.size_CG.shape, -1) / self.size_CG[:, :, None])

    def gaps(self, score_NK: ArrayLike) -> FloatArray:
        """Difference between the groups of each pair, first minus second, (C, P, K); pairs as in `pairs`."""
        mean_CGK = self.means(score_NK)
        first, second = self.pairs
        return np.asarray(mean_CGK[:, first] - mean_CGK[:, second])

    @property
    def pairs(self) -> tuple[list[int], list[int]]:
        """Groups of each pair: (0, 1), (0, 2), ..., (G-2, G-1)."""
        found = list(combinations(range(self.size_CG.shape[1]), 2))
        return [i for i, _ in found], [j for _, j in found]

    def loss(self, score_NK: ArrayLike, form: Form = "squared") -> float:
        """One number of all gaps: half the sum of their squares, or the mean of their sizes. One group has 0."""
        gap_CPK = self.gaps(score_NK)
        if not gap_CPK.size:
            return 0.0
        return float((gap_CPK**2).sum() / 2 if form == "squared" else np.abs(gap_CPK).mean())

    def gradient(self, score_NK: ArrayLike, form: Form = "squared") -> FloatArray:
        """Slope of `loss` by each score, in the shape of the scores. A size of exactly 0 has slope 0."""
        shape = np.shape(score_NK)
        gap_CPK = self.gaps(score_NK)
        by_gap_CPK = gap_CPK if form == "squared" else np.sign(gap_CPK) / max(1, gap_CPK.size)
        by_mean_CGK = np.zeros((*self.size_CG.shape, gap_CPK.shape[2]))
        for pair, (first, second) in enumerate(zip(*self.pairs, strict=True)):
            by_mean_CGK[:, first] += by_gap_CPK[:, pair]
            by_mean_CGK[:, second] -= by_gap_CPK[:, pair]
        by_cell = (by_mean_CGK / self.size_CG[:, :, None]).reshape(self.size_CG.size, -1)
        # A last cell of zeros stands for rows that do not count: -1 finds it.
        return np.asarray(np.vstack([by_cell, np.zeros(by_cell.shape[1])])[self.cell_N].reshape(shape))


def disparity(
    group_N: ArrayLike,
    label_N: ArrayLike | None = None,
    notion: Notion = "demographic_parity",
    *,
    num_groups: int | None = None,
    names: Sequence[object] | None = None,
) -> Disparity:
    """Prepare the gaps between groups.

    Parameters
    ----------
    group_N : int array (N,)
        0 to G - 1.
    label_N : int array (N,), optional
        0 or 1 under "equal_opportunity", where label 1 counts; 0 to C - 1 under "equalized_odds". Not used otherwise.
    num_groups : int, optional
        G; default: the highest group and one.
    names : sequence, optional
        What the groups are called in an error; default: their numbers.

    Raises
    ------
    ValueError : an unknown notion, labels that are missing, or a group without rows under a condition.
    """
    if notion not in NOTIONS:
        raise ValueError(f"notion={notion!r}: unknown. Choose one of {', '.join(NOTIONS)}.")
    group_N = np.asarray(group_N, dtype=np.int64)
    G = int(group_N.max(initial=-1)) + 1 if num_groups is None else num_groups
    condition_N = np.zeros_like(group_N)
    if notion != "demographic_parity":
        if label_N is None:
            raise ValueError(f"notion={notion!r} needs labels: give them, or ask for demographic_parity.")
        condition_N = np.asarray(label_N, dtype=np.int64)
        if notion == "equal_opportunity":
            condition_N = np.where(condition_N == 1, 0, -1)
    C = max(1, int(condition_N.max(initial=-1)) + 1)
    cell_N = np.where(condition_N >= 0, condition_N * G + group_N, -1)
    size_CG = np.bincount(cell_N[cell_N >= 0], minlength=C * G).reshape(C, G)
    if not size_CG.all():
        condition, group = np.argwhere(size_CG == 0)[0].tolist()
        label = {"demographic_parity": "", "equal_opportunity": " with label 1"}.get(notion, f" with label {condition}")
        group = group if names is None else names[group]
        raise ValueError(f"group {group} has no row{label}: {notion} cannot be told. Give such rows, or merge groups.")
    return Disparity(cell_N, size_CG)


def _scores(score_NK: ArrayLike, num_rows: int) -> FloatArray:
    found = np.asarray(score_NK, dtype=np.float64)
    if found.ndim not in (1, 2) or len(found) != num_rows:
        raise ValueError(f"scores of shape {found.shape}: expected one or several for each of {num_rows} rows.")
    return found.reshape(num_rows, -1)
