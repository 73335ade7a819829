"""What a row's neighbours say of its label: exact neighbours once, then votes over random draws of the rows.

Source: Zhu, Dong, Liu, "Detecting Corrupted Labels Without Training a Model to Predict", ICML 2022 (SimiFeat), used by
DS2 (ICLR 2025) for ratings. Deviations. Neighbours are found once, and a draw takes of each list those that are in it:
the same neighbours as a search in every draw. A duplicate is nobody's second witness: it is left out, where their code
puts each row beside its own copy.

Shapes: N rows, D features, m neighbours listed, k that vote (the row itself is one), R rows of a draw, K classes.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from amends.maths.neighbors import nearest, unit
from amends.maths.transition import Transition, posterior, triple_counts

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Rule = Literal["rank", "vote"]
NOBODY = -1
"""In a list of neighbours: there are no more."""
DUPLICATE = 1 - 1e-6
"""Cosine from which two points are one and the same."""
SHARE, MOST_DRAWN = 0.9, 50_000
"""Of a draw: this share of the rows, at most that many."""
LEAST_RATE, MOST_RATE = 0.05, 0.95
"""Share of a class that is called wrong where none or all would be; the source's."""
ROWS_AT_ONCE = 65_536
MOST_CELLS = 50_000_000  # of lists that are searched again because duplicates fill them
SHORT = 1e-4  # chance that a list is too short for a draw


class Neighbourhood(NamedTuple):
    """The nearest other rows of each row, nearest first."""

    index_Nm: IntArray
    """`NOBODY` where there are no more."""
    similarity_Nm: FloatArray
    """Cosine; 0 where there is nobody."""


def neighbourhood(
    points_ND: ArrayLike,
    num: int,
    *,
    sibling_N: ArrayLike | None = None,
    duplicate: float = DUPLICATE,
    approximate: bool = False,
) -> Neighbourhood:
    """Find the nearest rows of each row that are no duplicates: of it, or of one that is in its list already.

    Parameters
    ----------
    points_ND : array
        Embeddings; compared by cosine.
    num : int
        Neighbours a row, `list_length` for votes; fewer where there are not so many different points, or where heaps of
        duplicates are larger than `MOST_CELLS` lets us look beyond.
    sibling_N : int array, optional
        Rows with the same number (answers to one prompt, say) are not each other's neighbours.
    duplicate : float
        Cosine from which two points are duplicates.

    Raises
    ------
    ValueError : as `amends.maths.neighbors.unit`; fewer than two rows.
    """
    points = unit(points_ND)
    num_rows = len(points)
    if num_rows < 2:
        raise ValueError(f"{num_rows} sample: neighbours need two rows or more.")
    sibling_N = np.arange(num_rows) if sibling_N is None else np.asarray(sibling_N)
    name_N = np.arange(num_rows)  # of every point, the first of its duplicates
    num = min(num, num_rows - 1)
    index_Nm, similarity_Nm = np.full((num_rows, num), NOBODY), np.zeros((num_rows, num))
    rows_Q, room = np.arange(num_rows), min(2 * num + 2, num_rows - 1)
    found = nearest(points, room, approximate=approximate)
    while True:
        twins_Qm = found.similarity_Qk >= duplicate
        name_N[rows_Q] = np.minimum(rows_Q, np.where(twins_Qm, found.index_Qk, num_rows).min(axis=1))
        own_Q1 = rows_Q[:, None]
        out_Qm = twins_Qm | (found.index_Qk == own_Q1) | (sibling_N[found.index_Qk] == sibling_N[own_Q1])
        out_Qm |= _named_before(name_N[found.index_Qk])
        place_Qm = np.argsort(out_Qm, axis=1, kind="stable")[:, :num]
        gone_Qm = np.take_along_axis(out_Qm, place_Qm, axis=1)
        index_Nm[rows_Q] = np.where(gone_Qm, NOBODY, np.take_along_axis(found.index_Qk, place_Qm, axis=1))
        similarity_Nm[rows_Q] = np.where(gone_Qm, 0, np.take_along_axis(found.similarity_Qk, place_Qm, axis=1))
        # Where duplicates or siblings crowd others out, or were known too late: a longer list of these rows.
        names_Nm = np.where(index_Nm == NOBODY, -1 - np.arange(num), name_N[index_Nm])
        rows_Q = np.flatnonzero((index_Nm[:, -1] == NOBODY) | _named_before(names_Nm).any(axis=1))
        longer = min(4 * room, num_rows, MOST_CELLS // max(1, len(rows_Q)))
        if not len(rows_Q) or longer <= room:
            return Neighbourhood(index_Nm, similarity_Nm)
        found, room = nearest(points, longer, points[rows_Q]), longer


def _named_before(names_Qm: IntArray) -> BoolArray:
    """Where a name is in its row for the second time or later."""
    order_Qm = np.argsort(names_Qm, axis=1, kind="stable")
    sorted_Qm = np.take_along_axis(names_Qm, order_Qm, axis=1)
    before_Qm = np.zeros(names_Qm.shape, bool)
    np.put_along_axis(before_Qm, order_Qm[:, 1:], sorted_Qm[:, 1:] == sorted_Qm[:, :-1], axis=1)
    return before_Qm


def num_drawn(num_rows: int) -> int:
    """Rows of a draw: `SHARE` of them, at most `MOST_DRAWN`, at least one."""
    return max(1, min(MOST_DRAWN, int(SHARE * num_rows)))


def list_length(num_rows: int, k: int) -> int:
    """Neighbours to list so that k - 1 of them are in a draw, but for one row in ten thousand."""
    share, length = num_drawn(num_rows) / num_rows, k - 1
    while length < num_rows - 1 and binom.cdf(k - 2, length, share) > SHORT:
        length += 1
    return min(length, num_rows - 1)


def draws(num_rows: int, num: int, rng: np.random.Generator) -> Iterator[IntArray]:
    """Yield the row numbers of each draw, without replacement and in order."""
    for _ in range(num):
        yield np.sort(rng.choice(num_rows, num_drawn(num_rows), replace=False))


# What neighbours agree on -----------------------------------------------------------------------------------------


def consensus(near: Neighbourhood, labels_N: IntArray, num_classes: int) -> IntArray:
    """Count each row's label with those of its two nearest neighbours, (K, K, K), for `fit_transition`.

    A row with fewer neighbours is not counted. Deviation: the sources average over draws, whose neighbours are farther.
    """
    if near.index_Nm.shape[1] < 2:
        raise ValueError("lists of fewer than two neighbours: three labels are needed.")
    two_N2 = near.index_Nm[:, :2]
    there_N = (two_N2 != NOBODY).all(axis=1)
    return triple_counts(np.column_stack([labels_N[there_N], labels_N[two_N2[there_N]]]), num_classes)


def error_rates(transition: Transition, labels_N: IntArray) -> FloatArray:
    """Share of each class to be called wrong, (K,): 1 - P(truth = i | label = i), by the observed frequencies.

    A class that would lose none loses `LEAST_RATE`, one that would lose all `MOST_RATE`, as in the source.
    """
    observed_K = np.bincount(labels_N, minlength=len(transition.prior_K)) / len(labels_N)
    right_K = np.diag(posterior(transition.matrix_KK, transition.prior_K, observed_K))
    rate_K = 1 - np.minimum(np.where(np.isnan(right_K), 1.0, right_K), 1.0)
    return np.asarray(np.where(rate_K >= 1, MOST_RATE, np.where(rate_K <= 0, LEAST_RATE, rate_K)))


class Vote(NamedTuple):
    """What the neighbours in a draw say of each of its rows."""

    agreement_R: FloatArray
    """Cosine of the votes with the row's own label, 0 to 1; 1 where only the row itself votes."""
    proposed_R: IntArray
    """The class with most votes."""


def vote(near: Neighbourhood, labels_N: IntArray, num_classes: int, rows_R: IntArray, k: int = 10) -> Vote:
    """Let each row of a draw and its k - 1 nearest neighbours in it vote for their labels, weighted by cosine.

    The row's own weight is 2 s_1 - s_2 of its two nearest: their cosines continued by one place, so that it does not
    outvote the others. A cosine below 0 counts as 0. Source: SimiFeat, score by cosine; DS2's core/knn.py.
    """
    agreement_R, proposed_R = np.empty(len(rows_R)), np.empty(len(rows_R), np.int64)
    drawn_N = np.zeros(len(labels_N) + 1, bool)  # the last stands for nobody
    drawn_N[rows_R] = True
    for start in range(0, len(rows_R), ROWS_AT_ONCE):
        rows_B = rows_R[start : start + ROWS_AT_ONCE]
        index_Bm, weight_Bm = near.index_Nm[rows_B], near.similarity_Nm[rows_B]
        in_draw_Bm = drawn_N[index_Bm]
        place_Bm = np.cumsum(in_draw_Bm, axis=1)
        s1_B, s2_B = (np.where(in_draw_Bm & (place_Bm == place), weight_Bm, 0.0).sum(axis=1) for place in (1, 2))
        own_B = np.maximum(np.where(place_Bm[:, -1] > 1, 2 * s1_B - s2_B, s1_B), 0.0)
        line_V, column_V = np.nonzero(in_draw_Bm & (place_Bm < k) & (weight_Bm > 0))
        lines = np.concatenate([np.arange(len(rows_B)), line_V])
        classes = np.concatenate([labels_N[rows_B], labels_N[index_Bm[line_V, column_V]]])
        weights = np.concatenate([own_B, weight_Bm[line_V, column_V]])
        votes_BK = np.bincount(lines * num_classes + classes, weights, len(rows_B) * num_classes)
        votes_BK = votes_BK.reshape(len(rows_B), num_classes)
        alone_B = ~votes_BK.any(axis=1)
        votes_BK[alone_B, labels_N[rows_B][alone_B]] = 1.0
        here = slice(start, start + len(rows_B))
        own_votes_B = votes_BK[np.arange(len(rows_B)), labels_N[rows_B]]
        agreement_R[here] = own_votes_B / np.linalg.norm(votes_BK, axis=1)
        proposed_R[here] = votes_BK.argmax(axis=1)
    return Vote(agreement_R, proposed_R)


def flagged(said: Vote, labels_R: IntArray, rate_K: FloatArray | None, rule: Rule) -> BoolArray:
    """Tell which rows of a draw look wrong.

    "vote": another class has most votes. "rank": the row is in the share `rate_K` of its class that agrees least;
    rows that agree as much as the first that stays, stay.
    """
    if rule == "vote":
        return np.asarray(said.proposed_R != labels_R)
    assert rate_K is not None
    limit_K = [
        np.quantile(said.agreement_R[labels_R == c], rate) if (labels_R == c).any() else 0.0
        for c, rate in enumerate(rate_K)
    ]
    return np.asarray(said.agreement_R < np.array(limit_K)[labels_R])


class Judgement(NamedTuple):
    """What the draws say of each row together; a row that was never drawn has what no draw at all would say."""

    error_N: FloatArray
    """Chance that the label is wrong: (draws that flag it + 1) / (draws of it + 2)."""
    proposal_NK: FloatArray
    """Chance of each class: (draws that propose it + 1) / (draws of the row + K); rows sum to 1."""

    @property
    def is_wrong_N(self) -> BoolArray:
        """Flagged in more than half of its draws."""
        return self.error_N > 0.5

    def suggested(self, labels_N: IntArray) -> IntArray:
        """Most often proposed class beside the row's own, (N,)."""
        others_NK = self.proposal_NK.copy()
        others_NK[np.arange(len(labels_N)), labels_N] = -1
        return np.asarray(others_NK.argmax(axis=1))

    def confidence(self, labels_N: IntArray) -> FloatArray:
        """Chance of the suggested class times the chance that the label is wrong, (N,)."""
        rows_N = np.arange(len(labels_N))
        return np.asarray(self.proposal_NK[rows_N, self.suggested(labels_N)] * self.error_N)


def judge(
    near: Neighbourhood,
    labels_N: IntArray,
    num_classes: int,
    rng: np.random.Generator,
    *,
    rate_K: FloatArray | None,
    rule: Rule = "rank",
    k: int = 10,
    num_draws: int = 21,
) -> Judgement:
    """Vote in many draws and count what they say.

    Parameters
    ----------
    near : Neighbourhood
        Of `list_length` neighbours.
    labels_N : int array
        0 to num_classes - 1, none missing.
    rate_K : array, or None
        Of `error_rates`; not needed by the rule "vote".
    num_draws : int, default 21
        The source's; DS2 takes 51.
    """
    num_rows = len(labels_N)
    drawn_N, wrong_N = np.zeros(num_rows), np.zeros(num_rows)
    proposed_NK = np.zeros((num_rows, num_classes), np.int32)
    for rows_R in draws(num_rows, num_draws, rng):
        said = vote(near, labels_N, num_classes, rows_R, k)
        drawn_N[rows_R] += 1
        wrong_N[rows_R] += flagged(said, labels_N[rows_R], rate_K, rule)
        proposed_NK[rows_R, said.proposed_R] += 1
    return Judgement((wrong_N + 1) / (drawn_N + 2), (proposed_NK + 1) / (drawn_N[:, None] + num_classes))
