"""Labels weighed against those of a row's neighbours: who the neighbours are, draws, votes, and what the votes say.

A row's neighbours are found once, in a list long enough that in every draw of the rows the first ones drawn can be
read off it. Which rows a draw holds hangs on the rows themselves, not on their order. Counts of parts of the rows add
up: `count_triples` and `votes` take the rows to work on.

Shapes: N rows, D features, L neighbours listed, k neighbours wanted, K levels, M rows worked on, 3 labels of a triple.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import binom

from amends.maths.neighbors import nearest
from amends.maths.transition import triple_counts

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
DRAWN_SHARE = 0.9
SHORT = 1e-6
"""Chance that a row without twins finds too few drawn rows in its list; it sets the length of the list."""
SPARE = 8  # places in the list for twins and siblings, which are no neighbours
MANY_SHORT = 0.01
LONGEST = 512
TILE = 16_384  # rows at once


class Lists(NamedTuple):
    """Neighbours of each row, nearest first; those that do not count stand last."""

    index_NL: NDArray[np.int32]
    similarity_NL: NDArray[np.float32]
    """Cosine; NaN of those that do not count."""
    num_N: NDArray[np.int32]
    """How many count."""
    num_twins: int
    """Entries left out of the lists: twins of the row, or of a nearer neighbour."""
    num_siblings: int
    """Likewise, siblings."""


def list_neighbours(points_ND: ArrayLike, num_wanted: int, *, near: float, groups_N: ArrayLike | None = None) -> Lists:
    """List the nearest neighbours of each row, without its twins and siblings, and of those one of each kind.

    Twins say the same and get the same rating, right or wrong. So a row learns nothing from its own twin, and no more
    from two neighbours that are each other's twins than from one of them. Where more than `MANY_SHORT` of the rows have
    fewer than `num_wanted` neighbours left, longer lists are made, up to `LONGEST`.

    Parameters
    ----------
    near : float
        Rows with at least this cosine are twins, and so are twins of twins.
    groups_N : array, optional
        Rows with the same value are siblings, such as answers to one prompt; a negative one has none.

    Raises
    ------
    ValueError : as `amends.maths.neighbors.nearest`, but for rows of zeros, which have no neighbours.
    """
    points = np.asarray(points_ND, dtype=np.float32)
    pointed = np.flatnonzero(points.any(axis=1))
    length = num_wanted + SPARE
    while True:
        length = min(length, len(pointed) - 1)
        lists = _listed(points, pointed, length, near, groups_N)
        if length == len(pointed) - 1 or 2 * length > max(LONGEST, num_wanted + SPARE):
            return lists
        if (lists.num_N[pointed] < num_wanted).mean() <= MANY_SHORT:
            return lists
        length *= 2


def _listed(
    points_ND: NDArray[np.float32], pointed: IntArray, length: int, near: float, groups_N: ArrayLike | None
) -> Lists:
    found = nearest(points_ND[pointed], length)
    num = len(points_ND)
    # Rows of zeros have no direction: they stand in no list, and theirs is empty.
    index_NL = np.zeros((num, length), dtype=np.int32)
    similarity_NL = np.full(index_NL.shape, np.nan, dtype=np.float32)
    index_NL[pointed], similarity_NL[pointed] = pointed[found.index_Qk], found.similarity_Qk
    del found
    row_P, place_P = np.nonzero(similarity_NL >= near)
    pairs = coo_array((np.ones(len(row_P)), (row_P, index_NL[row_P, place_P])), shape=(num, num))
    alike = [connected_components(pairs, directed=False)[1]]
    if groups_N is not None:
        groups = np.asarray(groups_N)  # a row without a group is one of its own
        alike.append(np.where(groups < 0, groups.max() + 1 + np.arange(num), groups))
    num_N, num_left_out = np.empty(num, dtype=np.int32), [0, 0]
    for start in range(0, num, TILE):
        part = slice(start, start + TILE)
        left_out = np.isnan(similarity_NL[part])
        for kind, of_N in enumerate(alike):
            new = _seen(index_NL[part], of_N[part], of_N) & ~left_out
            num_left_out[kind] += int(new.sum())
            left_out |= new
        order = np.argsort(left_out, axis=1, kind="stable")
        similarity_NL[part][left_out] = np.nan
        index_NL[part] = np.take_along_axis(index_NL[part], order, axis=1)
        similarity_NL[part] = np.take_along_axis(similarity_NL[part], order, axis=1)
        num_N[part] = (~left_out).sum(axis=1)
    return Lists(index_NL, similarity_NL, num_N, *num_left_out)


def _seen(index_ML: NDArray[np.int32], group_M: IntArray, group_N: IntArray) -> BoolArray:
    """Whether the row itself, or one that stands before in its list, is of the same group."""
    group_ML = np.column_stack([group_M, group_N[index_ML]])
    order_ML = np.argsort(group_ML, axis=1, kind="stable")
    group_ML = np.take_along_axis(group_ML, order_ML, axis=1)
    again_ML = np.zeros(group_ML.shape, dtype=bool)
    again_ML[:, 1:] = group_ML[:, 1:] == group_ML[:, :-1]
    seen_ML = np.empty_like(again_ML)
    np.put_along_axis(seen_ML, order_ML, again_ML, axis=1)
    return seen_ML[:, 1:]


# Draws ------------------------------------------------------------------------------------------------------------


def drawn_share(num_rows: int, most_drawn: int) -> float:
    """Chance of a row to be in a draw: 0.9, and less where a draw would have more than `most_drawn` rows."""
    return min(DRAWN_SHARE, most_drawn / num_rows)


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


def draw(keys_N: NDArray[np.uint64], seed: int, number: int, share: float) -> BoolArray:
    """Rows of a draw: each is in it by its own chance, whatever the others are."""
    (mark,) = np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)
    return np.asarray(_mixed(keys_N ^ mark) < np.uint64(share * 2.0**64))


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


def neighbours_in(lists: Lists, in_N: BoolArray, k: int, rows: slice = slice(None)) -> Drawn:
    """Read the k nearest drawn neighbours of each drawn row off the lists.

    Parameters
    ----------
    in_N : bool array
        The draw, of all rows.
    rows : slice
        Rows to work on.
    """
    rows_M = np.arange(len(in_N))[rows]
    rows_M = rows_M[in_N[rows_M]]
    index, similarity, kept = [], [], []
    for start in range(0, len(rows_M), TILE):
        part = rows_M[start : start + TILE]
        index_ML = lists.index_NL[part]
        hit_ML = in_N[index_ML] & (np.arange(index_ML.shape[1]) < lists.num_N[part, None])
        place_ML = hit_ML.cumsum(axis=1, dtype=np.int16)
        enough_M = place_ML[:, -1] >= k
        chosen_ML = (hit_ML & (place_ML <= k))[enough_M]
        index.append(index_ML[enough_M][chosen_ML].reshape(-1, k).astype(np.int64))
        similarity.append(lists.similarity_NL[part][enough_M][chosen_ML].reshape(-1, k).astype(np.float64))
        kept.append(part[enough_M])
    if not kept:
        return Drawn(rows_M, np.empty((0, k), dtype=np.int64), np.empty((0, k)), 0)
    row_M = np.concatenate(kept)
    return Drawn(row_M, np.concatenate(index), np.concatenate(similarity), len(rows_M) - len(row_M))


class Triples(NamedTuple):
    """Counts of three labels; those of parts of the rows, or of several draws, are added."""

    count_KKK: IntArray
    num_short: int

    def __add__(self, other: Any) -> "Triples":
        """Add the counts of other rows or draws."""
        return Triples(self.count_KKK + other.count_KKK, self.num_short + other.num_short)


def count_triples(
    lists: Lists, labels_N: IntArray, num_levels: int, in_N: BoolArray, rows: slice = slice(None)
) -> Triples:
    """Count the labels of drawn rows with those of their two nearest drawn neighbours."""
    found = neighbours_in(lists, in_N, 2, rows)
    labels_M3 = np.column_stack([labels_N[found.row_M], labels_N[found.index_Mk]])
    return Triples(triple_counts(labels_M3, num_levels), found.num_short)


# Votes ------------------------------------------------------------------------------------------------------------


class Votes(NamedTuple):
    """What the neighbours of drawn rows say of them."""

    row_M: IntArray
    cost_M: FloatArray
    """-log of the cosine between the votes and the row's own label: 0 where all agree."""
    proposed_M: IntArray
    """Label with the most votes."""
    num_short: int


def votes(
    lists: Lists, labels_N: IntArray, num_levels: int, in_N: BoolArray, k: int, rows: slice = slice(None)
) -> Votes:
    """Let each drawn row and its k - 1 nearest drawn neighbours vote for their labels, weighed by cosine.

    A row itself, which would have weight 1, gets that of a distance 2 D_1 - D_2 (SimiFeat: Zhu, Dong, Liu, ICML 2022).
    A neighbour that points the other way (cosine below 0) has no vote.
    """
    found = neighbours_in(lists, in_N, k - 1, rows)
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
    return Votes(found.row_M, -np.log(agreement_M + 1e-8), vote_MK.argmax(axis=1), found.num_short)


def flagged(cost_M: FloatArray, labels_M: IntArray, wrong_K: ArrayLike) -> BoolArray:
    """Flag, of each label, the share of rows that the noise model calls wrong: those that cost most.

    A row is flagged if it costs more than the (1 - share) quantile of its label, and not if it costs just that.
    """
    found = np.zeros(len(cost_M), dtype=bool)
    for label, share in enumerate(np.asarray(wrong_K, dtype=np.float64)):
        own_M = labels_M == label
        if own_M.any():
            found[own_M] = cost_M[own_M] > np.quantile(cost_M[own_M], 1 - share)
    return found


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


def long_tail(lists: Lists, k: int) -> FloatArray:
    """How far a row lies from others, 0 to 1: tanh(x / 2) of the mean cosine distance x to its k nearest neighbours.

    A row with fewer listed is measured by those; with none it has NaN.
    """
    counts_NL = np.arange(min(k, lists.similarity_NL.shape[1])) < lists.num_N[:, None]
    distance_NL = np.where(counts_NL, 1 - lists.similarity_NL[:, :k].astype(np.float64), 0.0)
    with np.errstate(invalid="ignore"):
        mean_N = distance_NL.sum(axis=1) / counts_NL.sum(axis=1)
    return np.asarray(np.tanh(np.maximum(mean_N, 0) / 2))
