"""Lists of the nearest neighbours of each row, without copies, made in parts (`_pools.scale`).

Searching needs a part's own rows and the points of all. What is merged: which rows are twins.

Shapes: N rows, M rows of a part, D features, L neighbours listed, P points with a direction, or pairs.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from amends.curate._pools.scale import Here, Workers, merged, parts_of
from amends.maths.arrays import BoolArray, FloatArray, IntArray
from amends.maths.neighbors import TILE, search, unit

SPARE = 8  # places in the list for twins and siblings, which are no neighbours
MANY_SHORT = 0.01
LONGEST = 512


class Lists(NamedTuple):
    """Neighbours of each row of a part, nearest first; those that do not count stand last."""

    index_ML: NDArray[np.int32]
    """Numbers among all rows."""
    similarity_ML: NDArray[np.float32]
    """Cosine; NaN of those that do not count."""
    num_M: NDArray[np.int32]
    """How many count."""
    first: int = 0
    """Number of the first row."""
    num_twins: int = 0
    """Entries left out of the lists: twins of the row, or of a nearer neighbour."""
    num_siblings: int = 0
    """Likewise, siblings."""

    @property
    def row_M(self) -> IntArray:
        """Numbers of the rows."""
        return np.arange(self.first, self.first + len(self.num_M))

    def tiles(self) -> Iterator["Lists"]:
        """Give the lists of a tile of the rows after another."""
        for start in range(0, len(self.num_M), TILE):
            part = slice(start, start + TILE)
            yield Lists(self.index_ML[part], self.similarity_ML[part], self.num_M[part], self.first + start)


class Listed(NamedTuple):
    """Lists of all rows."""

    by_part: list[Any]
    """`Lists` of each part, or what stands for them."""
    num_twins: int
    num_siblings: int


def list_neighbours(points_ND: ArrayLike, num_wanted: int, *, near: float, groups_N: ArrayLike | None = None) -> Lists:
    """List the nearest neighbours of each row in this process, as `list_in_parts` does."""
    (lists,) = list_in_parts(Here(), points_ND, num_wanted, near=near, groups_N=groups_N).by_part
    found: Lists = lists
    return found


def list_in_parts(
    workers: Workers, points_ND: ArrayLike, num_wanted: int, *, near: float, groups_N: ArrayLike | None = None
) -> Listed:
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
    num = len(points)
    # Rows of zeros have no direction: they stand in no list, and theirs is empty.
    pointed = np.flatnonzero(points.any(axis=1))
    directions = unit(points if len(pointed) == num else points[pointed])
    if len(pointed) < 2:
        raise ValueError(f"{len(pointed)} points with a direction: a neighbour needs two.")
    shared = [workers.share(directions), workers.share(pointed)]
    parts = parts_of(num, workers.num_parts)
    length = num_wanted + SPARE
    while True:
        length = min(length, len(pointed) - 1)
        found = workers.each(_searched, parts, shared=[*shared, length])
        pairs_P2 = np.concatenate(workers.bring(workers.each(_near_pairs, found, shared=[near])))
        alike = [_groups_of(pairs_P2, num)]
        if groups_N is not None:
            groups = np.asarray(groups_N)  # a row without a group is one of its own
            alike.append(np.where(groups < 0, groups.max() + 1 + np.arange(num), groups))
        lists = workers.each(_left_out, found, shared=[workers.share(alike)])
        del found
        num_short, *left_out = merged(workers, workers.each(_counted, lists, shared=[num_wanted]))
        num_short -= num - len(pointed)
        if length == len(pointed) - 1 or 2 * length > max(LONGEST, num_wanted + SPARE):
            return Listed(lists, *map(int, left_out))
        if num_short <= MANY_SHORT * len(pointed):
            return Listed(lists, *map(int, left_out))
        length *= 2


def _searched(rows: slice, points_PD: NDArray[np.float32], pointed: IntArray, length: int) -> Lists:
    """Local: the nearest rows of those of a part, whoever they are."""
    num = rows.stop - rows.start
    index_ML = np.zeros((num, length), dtype=np.int32)
    similarity_ML = np.full(index_ML.shape, np.nan, dtype=np.float32)
    for start in range(rows.start, rows.stop, TILE):
        first, end = np.searchsorted(pointed, [start, min(start + TILE, rows.stop)]).tolist()
        if first == end:
            continue
        found = search(points_PD, points_PD[first:end], length, first)
        here = pointed[first:end] - rows.start
        index_ML[here], similarity_ML[here] = pointed[found.index_Qk], found.similarity_Qk
    return Lists(index_ML, similarity_ML, np.full(num, length, dtype=np.int32), rows.start)


def _near_pairs(lists: Lists, near: float) -> IntArray:
    """Local: pairs of rows that are twins, (P, 2); those of parts are put one behind another."""
    row, place = np.nonzero(lists.similarity_ML >= near)
    return np.stack([row + lists.first, lists.index_ML[row, place]], axis=1).astype(np.int64)


def _groups_of(pairs_P2: IntArray, num: int) -> IntArray:
    """Merge: a number for each row, the same for twins and twins of twins."""
    graph = coo_array((np.ones(len(pairs_P2)), (pairs_P2[:, 0], pairs_P2[:, 1])), shape=(num, num))
    return np.asarray(connected_components(graph, directed=False)[1])


def _left_out(lists: Lists, alike: list[IntArray]) -> Lists:
    """Apply: of each row and its list, none but the first of each group."""
    index_ML, similarity_ML = lists.index_ML.copy(), lists.similarity_ML.copy()
    num_M, num_left_out = np.empty_like(lists.num_M), [0, 0]
    for start in range(0, len(num_M), TILE):
        part = slice(start, start + TILE)
        left_out = np.isnan(similarity_ML[part])
        for kind, of_N in enumerate(alike):
            own_M = of_N[lists.first + start :][: len(left_out)]
            new = _seen(index_ML[part], own_M, of_N) & ~left_out
            num_left_out[kind] += int(new.sum())
            left_out |= new
        order = np.argsort(left_out, axis=1, kind="stable")
        similarity_ML[part][left_out] = np.nan
        index_ML[part] = np.take_along_axis(index_ML[part], order, axis=1)
        similarity_ML[part] = np.take_along_axis(similarity_ML[part], order, axis=1)
        num_M[part] = (~left_out).sum(axis=1)
    return Lists(index_ML, similarity_ML, num_M, lists.first, *num_left_out)


def _counted(lists: Lists, num_wanted: int) -> IntArray:
    """Local: rows with too few neighbours, twins and siblings left out; adds up."""
    return np.array([(lists.num_M < num_wanted).sum(), lists.num_twins, lists.num_siblings])


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


def long_tail(lists: Lists, k: int) -> FloatArray:
    """Local: how far rows lie from others, 0 to 1: tanh(x / 2) of the mean cosine distance x to the k nearest.

    A row with fewer listed is measured by those; with none it has NaN.
    """
    counts_ML = np.arange(min(k, lists.similarity_ML.shape[1])) < lists.num_M[:, None]
    distance_ML = np.where(counts_ML, 1 - lists.similarity_ML[:, :k].astype(np.float64), 0.0)
    with np.errstate(invalid="ignore"):
        mean_M = distance_ML.sum(axis=1) / counts_ML.sum(axis=1)
    return np.asarray(np.tanh(np.maximum(mean_M, 0) / 2))
