"""Labels weighed against those of a row's neighbours: draws, votes, and what the votes say.

A row's neighbours are found once, in a list long enough that in every draw of the rows the first ones drawn can be
read off it. Which rows a draw holds hangs on the rows themselves, not on their order.

Counting and voting are done in parts (`_pools.scale`): they need only the lists of a part's own rows, and the
labels of all. What is merged: counts of triples, and where the costliest labels begin.

Shapes: N rows, M rows of a part, L neighbours listed, k neighbours wanted, K levels, R draws, C costs.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from amends.curate._pools.lists import Lists
from amends.curate._pools.scale import Workers, cut, merged
from amends.maths.arrays import BoolArray, FloatArray, IntArray
from amends.maths.neighbors import TILE
from amends.maths.ranks import Cuts, Valued, above
from amends.maths.transition import triple_counts

DRAWN_SHARE = 0.9
SHORT = 1e-6
"""Chance that a row without twins finds too few drawn rows in its list; it sets the length of the list."""


# Draws ------------------------------------------------------------------------------------------------------------


def drawn_share(num_rows: int, most_drawn: int | None = None) -> float:
    """Chance of a row to be in a draw: 0.9, and less where a draw would have more than `most_drawn` rows."""
    return DRAWN_SHARE if most_drawn is None else min(DRAWN_SHARE, most_drawn / num_rows)


def length_of_list(share: float, num_neighbours: int) -> int:
    """Neighbours to list so that enough of them are drawn, but for a chance of `SHORT`."""
    length = num_neighbours
    while binom.cdf(num_neighbours - 1, length, share) > SHORT:
        length += max(1, length // 16)
    return length


def row_keys(points_ND: ArrayLike) -> NDArray[np.uint64]:
    """Give each row a number that hangs on what is in it alone, so that draws do not hang on the order of rows."""
    points = np.ascontiguousarray(points_ND, dtype=np.float32)
    odd_D = np.random.default_rng(points.shape[1]).integers(0, 2**63, points.shape[1], dtype=np.uint64) | np.uint64(1)
    tiles = (points[start : start + TILE].view(np.uint32) for start in range(0, len(points), TILE))
    return _mixed(np.concatenate([(tile * odd_D).sum(axis=1, dtype=np.uint64) for tile in tiles]))


class Draws(NamedTuple):
    """Draws of the rows; each row is in one by its own chance, whatever the others are."""

    keys_N: NDArray[np.uint64]
    """Of `row_keys`."""
    seed: int
    share: float
    """Chance of a row to be in a draw."""

    def rows_of(self, number: int) -> BoolArray:
        """Whether each row is in a draw, (N,)."""
        (mark,) = np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint64)
        return np.asarray(_mixed(self.keys_N ^ mark) < np.uint64(self.share * 2.0**64))


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread the bits of each number (the finaliser of SplitMix64, Steele et al. 2014)."""
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(bits ^ (bits >> np.uint64(31)))


class Drawn(NamedTuple):
    """Nearest neighbours inside a draw."""

    row_M: IntArray
    index_Mk: IntArray
    similarity_Mk: FloatArray
    num_short: int
    """Rows drawn whose list does not hold k neighbours that were drawn too; they are left out."""


def neighbours_in(lists: Lists, in_N: BoolArray, k: int) -> Drawn:
    """Read the k nearest drawn neighbours of each drawn row off the lists; `in_N` is the draw, of all rows."""
    found = [_neighbours_in(tile, in_N, k) for tile in lists.tiles()]
    row_M, index_Mk, similarity_Mk = (np.concatenate([of[i] for of in found]) for i in range(3))
    return Drawn(row_M, index_Mk, similarity_Mk, sum(of.num_short for of in found))


def _neighbours_in(lists: Lists, in_N: BoolArray, k: int) -> Drawn:
    row_M = lists.row_M
    drawn_M = in_N[row_M]
    index_ML = lists.index_ML[drawn_M]
    hit_ML = in_N[index_ML] & (np.arange(index_ML.shape[1]) < lists.num_M[drawn_M, None])
    place_ML = hit_ML.cumsum(axis=1, dtype=np.int16)
    enough_M = place_ML[:, -1] >= k
    chosen_ML = (hit_ML & (place_ML <= k))[enough_M]
    return Drawn(
        row_M[drawn_M][enough_M],
        index_ML[enough_M][chosen_ML].reshape(-1, k).astype(np.int64),
        lists.similarity_ML[drawn_M][enough_M][chosen_ML].reshape(-1, k).astype(np.float64),
        int((~enough_M).sum()),
    )


class Triples(NamedTuple):
    """Counts of three labels; those of parts of the rows, or of several draws, are added."""

    count_KKK: IntArray
    num_short: int

    def __add__(self, other: Any) -> "Triples":
        """Add the counts of other rows or draws."""
        return Triples(self.count_KKK + other.count_KKK, self.num_short + other.num_short)


def count_triples(lists: Lists, labels_N: IntArray, num_levels: int, in_N: BoolArray) -> Triples:
    """Local: count the labels of drawn rows with those of their two nearest drawn neighbours; adds up."""
    found = neighbours_in(lists, in_N, 2)
    labels_M3 = np.column_stack([labels_N[found.row_M], labels_N[found.index_Mk]])
    return Triples(triple_counts(labels_M3, num_levels), found.num_short)


def count_in_draws(lists: Lists, labels_N: IntArray, num_levels: int, draws: Draws, numbers: range) -> Triples:
    """Local: `count_triples` of some of the draws, added."""
    found = count_triples(lists, labels_N, num_levels, draws.rows_of(numbers[0]))
    for number in numbers[1:]:
        found += count_triples(lists, labels_N, num_levels, draws.rows_of(number))
    return found


# Votes ------------------------------------------------------------------------------------------------------------


class Votes(NamedTuple):
    """What neighbours say of the rows of a part in each draw."""

    cost_RM: NDArray[np.float32]
    """-log of the cosine between the votes and the row's own label: 0 where all agree. NaN: nothing was said."""
    proposed_RM: NDArray[np.int32]
    """Label with the most votes; -1: nothing was said."""


def votes(lists: Lists, labels_N: IntArray, num_levels: int, draws: Draws, numbers: range, k: int) -> Votes:
    """Local: let each drawn row and its k - 1 nearest drawn neighbours vote for their labels, weighed by cosine.

    A row itself, which would have weight 1, gets that of a distance 2 D_1 - D_2 (SimiFeat: Zhu, Dong, Liu, ICML 2022).
    A neighbour that points the other way (cosine below 0) has no vote.
    """
    shape = (len(numbers), len(lists.num_M))
    said = Votes(np.full(shape, np.nan, dtype=np.float32), np.full(shape, -1, dtype=np.int32))
    for r, number in enumerate(numbers):
        in_N = draws.rows_of(number)
        for tile in lists.tiles():
            found = _neighbours_in(tile, in_N, k - 1)
            here = found.row_M - lists.first
            said.cost_RM[r, here], said.proposed_RM[r, here] = _vote(found, labels_N, num_levels)
    return said


def _vote(found: Drawn, labels_N: IntArray, num_levels: int) -> tuple[FloatArray, IntArray]:
    s = found.similarity_Mk
    own_M = 2 * s[:, 0] - s[:, 1]  # 1 - (2 D_1 - D_2), with D = 1 - s
    weight_Mk = np.clip(np.column_stack([own_M, s]), 0, None)
    labels_Mk = np.column_stack([labels_N[found.row_M], labels_N[found.index_Mk]])
    num = len(found.row_M)
    place_Mk = labels_Mk + num_levels * np.arange(num)[:, None]
    vote_MK = np.bincount(place_Mk.ravel(), weight_Mk.ravel(), minlength=num * num_levels).reshape(num, num_levels)
    length_M = np.sqrt((vote_MK**2).sum(axis=1))
    own_votes_M = vote_MK[np.arange(num), labels_Mk[:, 0]]
    with np.errstate(invalid="ignore", divide="ignore"):
        agreement_M = np.where(length_M > 0, own_votes_M / length_M, 1.0)  # no vote against it
    return -np.log(agreement_M + 1e-8), vote_MK.argmax(axis=1)


def costs(lists: Lists, said: Votes, labels_N: IntArray, num_levels: int) -> Valued:
    """Local: the costs as values of which the highest are wanted, in a group for each draw and label."""
    draw_C, place_C = np.nonzero(said.proposed_RM >= 0)
    label_C = labels_N[lists.first + place_C]
    return Valued(said.cost_RM[draw_C, place_C], (draw_C * num_levels + label_C).astype(np.int32))


def _sizes(valued: Valued, num_groups: int) -> IntArray:
    """Local: how many values each group has; adds up."""
    return np.bincount(valued.group_M, minlength=num_groups)


def cut_costs(workers: Workers, valued: list[Any], wrong_G: FloatArray) -> Cuts:
    """Find the (1 - share) quantile of the costs of each group: those above it are called wrong.

    Where the quantile lies between two costs, the lower one is the cut, as none lies between them.
    """
    size_G = merged(workers, workers.each(_sizes, valued, shared=[len(wrong_G)]))
    below_G = np.floor((size_G - 1) * (1 - wrong_G)).astype(np.int64)
    return cut(workers, valued, np.where(size_G > 0, size_G - below_G, 0))


class Tally(NamedTuple):
    """How often each row was drawn, flagged, and proposed each label."""

    drawn_N: IntArray
    flagged_N: IntArray
    proposed_NK: IntArray

    @property
    def error_prob_N(self) -> FloatArray:
        """Chance that a label is wrong: (flagged + 1) / (drawn + 2)."""
        return np.asarray((self.flagged_N + 1) / (self.drawn_N + 2))

    def suggestion(self, labels_N: IntArray) -> tuple[IntArray, FloatArray]:
        """Other label with the most proposals, and (proposals + 1) / (all + K) of it times `error_prob_N`."""
        num, num_levels = self.proposed_NK.shape
        share_NK = (self.proposed_NK + 1) / (self.proposed_NK.sum(axis=1, keepdims=True) + num_levels)
        share_NK[np.arange(num), labels_N] = -1
        suggested_N = share_NK.argmax(axis=1)
        return suggested_N, share_NK[np.arange(num), suggested_N] * self.error_prob_N


def tally(
    workers: Workers,
    lists: list[Any],
    labels: Any,
    num_levels: int,
    draws: Any,
    numbers: range,
    k: int,
    wrong_K: FloatArray | None,
) -> Tally:
    """Let neighbours vote in some of the draws, and count what they say of every row.

    Parameters
    ----------
    lists : list of `Lists`, or what stands for them
    labels, draws : int array (N,) and `Draws`, or what `workers.share` gives for them
    wrong_K : array, optional
        Share of each label that the noise model calls wrong: in each draw those that cost most are flagged. Default:
        rows for which another label than their own is proposed.
    """
    said = workers.each(votes, lists, shared=[labels, num_levels, draws, numbers, k])
    cuts = None
    if wrong_K is not None:
        valued = workers.each(costs, lists, said, shared=[labels, num_levels])
        cuts = cut_costs(workers, valued, np.tile(wrong_K, len(numbers)))
    found = workers.bring(workers.each(_tallied, lists, said, shared=[labels, num_levels, cuts]))
    return Tally(*(np.concatenate(of) for of in zip(*found, strict=True)))


def _tallied(lists: Lists, said: Votes, labels_N: IntArray, num_levels: int, cuts: Cuts | None) -> Tally:
    """Apply: count by row."""
    row_M, num = lists.row_M, len(lists.num_M)
    there_RM = said.proposed_RM >= 0
    if cuts is None:
        flagged_RM = there_RM & (said.proposed_RM != labels_N[row_M])
    else:
        flagged_RM = np.zeros(there_RM.shape, dtype=bool)
        flagged_RM[there_RM] = above(costs(lists, said, labels_N, num_levels), cuts)
    proposed_MK = np.zeros((num, num_levels), dtype=np.int64)
    for proposed_M, there_M in zip(said.proposed_RM, there_RM, strict=True):
        proposed_MK[np.flatnonzero(there_M), proposed_M[there_M]] += 1
    return Tally(there_RM.sum(axis=0), flagged_RM.sum(axis=0), proposed_MK)
