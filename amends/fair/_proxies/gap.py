"""The calibrated gap as a penalty: train or tune a model on it where the groups of people are not known.

Calibrated rates are linear in the model's scores: a row counts for group a by sum_m (T_m^-1)[x_m, a], where x_m is what
proxy m says. So the penalty has an exact gradient, and costs as much as one on known groups.

Source: Zhu et al. 2023 (arXiv 2210.03175), which proposes calibrated gaps as the constraint of training.

Shapes: N rows, M proxies, C conditions, G groups, P pairs of groups, K scores of a row.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from amends.fair._proxies.table import codes, columns_of
from amends.fair.proxies import ProxyFairness
from amends.maths.arrays import FloatArray, IntArray
from amends.maths.disparity import Form
from amends.maths.transition import MISSING


@dataclass(frozen=True, eq=False)
class CalibratedGap:
    """Gaps between the groups of given rows, as a function of the rows' scores; make it with `calibrated_gap`.

    As `amends.maths.disparity.Disparity`, which is for groups that are known.
    """

    cell_NM: IntArray
    """Condition times (G + 1), plus what the proxy says, G where it says nothing; of a row that no condition counts C
    times (G + 1)."""
    weight_MCJG: FloatArray
    """What a row of which the proxy says j adds to the rate of group a; of nothing said, 0."""

    def rates(self, score_NK: ArrayLike) -> FloatArray:
        """Calibrated mean scores of every group, (C, G, K); not clipped. Scores may also be (N,)."""
        score_NK = self._scores(score_NK)
        M, C, J, _ = self.weight_MCJG.shape
        total = np.zeros((C, self.weight_MCJG.shape[3], score_NK.shape[1]))
        for m in range(M):
            cell_N = self.cell_NM[:, m]
            sums = [np.bincount(cell_N, score, minlength=C * J + 1)[: C * J] for score in score_NK.T]
            total += np.einsum("cja,cjk->cak", self.weight_MCJG[m], np.stack(sums, axis=1).reshape(C, J, -1))
        return total

    def gaps(self, score_NK: ArrayLike) -> FloatArray:
        """Difference between the groups of each pair, first minus second, (C, P, K)."""
        rate_CGK = self.rates(score_NK)
        first, second = self._pairs
        return np.asarray(rate_CGK[:, first] - rate_CGK[:, second])

    def loss(self, score_NK: ArrayLike, form: Form = "squared") -> float:
        """One number of all gaps: half the sum of their squares, or the mean of their sizes."""
        gap_CPK = self.gaps(score_NK)
        return float((gap_CPK**2).sum() / 2 if form == "squared" else np.abs(gap_CPK).mean())

    def gradient(self, score_NK: ArrayLike, form: Form = "squared") -> FloatArray:
        """Slope of `loss` by each score, in the shape of the scores. A size of exactly 0 has slope 0."""
        gap_CPK = self.gaps(score_NK)
        by_gap_CPK = gap_CPK if form == "squared" else np.sign(gap_CPK) / gap_CPK.size
        M, C, J, G = self.weight_MCJG.shape
        by_rate_CGK = np.zeros((C, G, gap_CPK.shape[2]))
        for pair, (first, second) in enumerate(zip(*self._pairs, strict=True)):
            by_rate_CGK[:, first] += by_gap_CPK[:, pair]
            by_rate_CGK[:, second] -= by_gap_CPK[:, pair]
        by_cell = np.einsum("mcja,cak->mcjk", self.weight_MCJG, by_rate_CGK).reshape(M, C * J, -1)
        by_cell = np.concatenate([by_cell, np.zeros((M, 1, by_cell.shape[2]))], axis=1)  # rows that do not count
        slopes = np.sum([by_cell[m][self.cell_NM[:, m]] for m in range(M)], axis=0)
        return np.asarray(slopes.reshape(np.shape(score_NK)))

    @property
    def _pairs(self) -> tuple[list[int], list[int]]:
        found = list(combinations(range(self.weight_MCJG.shape[3]), 2))
        return [i for i, _ in found], [j for _, j in found]

    def _scores(self, score_NK: ArrayLike) -> FloatArray:
        found = np.asarray(score_NK, dtype=np.float64)
        if found.ndim not in (1, 2) or len(found) != len(self.cell_NM):
            num = len(self.cell_NM)
            raise ValueError(f"scores of shape {found.shape}: expected one or several for each of {num} rows.")
        return found.reshape(len(found), -1)


def calibrated_gap(found: ProxyFairness, proxies: Any, y_true: Any = None) -> CalibratedGap:
    """Prepare the calibrated gaps between groups that only proxies tell.

    Parameters
    ----------
    found : ProxyFairness
        Of any predictions on such rows, by `proxy_fairness`: its metric, its matrices of all rows, and its shares of
        the groups.
    proxies : as in `proxy_fairness`
        Of the rows that scores will be given of; the same names.
    y_true : array (N,), optional
        Their true classes, unless the metric is demographic parity.

    Raises
    ------
    ValueError : what was found has no matrices, a name is unknown, labels are missing, or a condition has no row.
    """
    if not found.transition:
        raise ValueError(f"found: the variant {found.variant} learns no matrices. Measure with global, joint or auto.")
    columns = columns_of(proxies)
    if set(columns) != set(found.transition):
        raise ValueError(f"proxies: {', '.join(columns)}; expected {', '.join(found.transition)}, as were measured.")
    label_NM = np.stack([codes(columns[name], found.groups, name) for name in found.transition], axis=1)
    chosen, G = found.places[0], len(found.groups)
    condition_N = np.zeros(len(label_NM), dtype=np.int64)
    if found.metric != "demographic_parity":
        if y_true is None:
            raise ValueError(f"y_true: {found.metric} needs the true classes. Give them.")
        y_N = codes(y_true, found.conditions, "y_true")
        if len(y_N) != len(label_NM):
            raise ValueError(f"y_true: {len(y_N)} rows, the proxies have {len(label_NM)}. Give the same rows.")
        place = np.array([chosen.index(c) if c in chosen else len(chosen) for c in range(len(found.conditions))])
        condition_N = np.where(y_N == MISSING, len(chosen), place[y_N])
    C, J = len(chosen), G + 1
    said_NM = np.where(label_NM == MISSING, G, label_NM)
    cell_NM = np.where(condition_N[:, None] < C, condition_N[:, None] * J + said_NM, C * J)
    weight_MCJG = np.zeros((len(columns), C, J, G))
    for m, T in enumerate(found.transition.values()):
        size_C = np.bincount(cell_NM[:, m], minlength=C * J + 1)[: C * J].reshape(C, J)[:, :G].sum(axis=1)
        if not size_C.all():
            value = found.conditions[chosen[int(np.flatnonzero(size_C == 0)[0])]]
            raise ValueError(f"proxies: no row of condition {value} has a group. Give such rows.")
        per_row_CG = 1 / (found.prior_CG[chosen] * size_C[:, None] * len(columns))
        weight_MCJG[m, :, :G] = np.linalg.inv(T)[None] * per_row_CG[:, None, :]
    return CalibratedGap(cell_NM, weight_MCJG)
