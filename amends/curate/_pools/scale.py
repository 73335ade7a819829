"""Methods in parts: local statistics, merge, apply. On one machine there is one part, and nothing else is different.

A method is written as steps. A step takes what one part of the rows holds, and what all parts share; it gives
statistics that add up, or what is found of its own rows. What is merged is small; what belongs to the rows stays where
it is.

    found = workers.each(local, parts, shared=(workers.share(points),))
    merged = reduce(add, workers.bring(found))
    applied = workers.each(apply, parts, found, shared=(merged,))

Parts begin at multiples of `TILE` rows and are worked on tile by tile, so that the same numbers come out, to the last
bit, however many parts there are.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from itertools import pairwise
from operator import add
from typing import Any, Protocol

import numpy as np

from amends.maths.neighbors import TILE, Neighbours, search
from amends.maths.ranks import ROUNDS, Cuts, counts_of, first_cuts, narrowed, num_equal, taken


class Workers(Protocol):
    """Where steps are done: in this process (`Here`), on Ray (`_ray.methods`), or anywhere with these three."""

    num_parts: int

    def share(self, value: Any) -> Any:
        """Give what a step takes as this value, of which every worker needs the whole."""

    def each(self, step: Callable[..., Any], *by_part: Sequence[Any], shared: Sequence[Any] = ()) -> list[Any]:
        """Do a step, a function of a module, for every part; give what stands for its results, in order.

        Parameters
        ----------
        by_part : sequences
            With one item a part each: the results of other steps, or small values.
        shared : sequence
            What comes behind these: results of `share`, or small values.
        """

    def bring(self, results: Iterable[Any]) -> list[Any]:
        """Give the results themselves."""


class Here:
    """Workers that are none: steps are done in this process, one part after the other."""

    def __init__(self, num_parts: int = 1) -> None:
        self.num_parts = num_parts

    def share(self, value: Any) -> Any:
        """Give the value."""
        return value

    def each(self, step: Callable[..., Any], *by_part: Sequence[Any], shared: Sequence[Any] = ()) -> list[Any]:
        """Do the step for every part."""
        return [step(*mine, *shared) for mine in zip(*by_part, strict=True)]

    def bring(self, results: Iterable[Any]) -> list[Any]:
        """Give the results."""
        return list(results)


def parts_of(num_rows: int, num_parts: int) -> list[slice]:
    """Part rows into at most so many parts, of whole tiles and about equal."""
    num_tiles = -(-num_rows // TILE)
    bounds = np.linspace(0, num_tiles, min(num_parts, num_tiles) + 1).astype(int) * TILE
    return [slice(int(start), min(int(end), num_rows)) for start, end in pairwise(bounds)]


def merged(workers: Workers, results: Iterable[Any]) -> Any:
    """Add up the statistics of all parts."""
    return reduce(add, workers.bring(results))


def shares_of(items: Sequence[Any], num_parts: int) -> list[Any]:
    """Part what stands for itself, such as clusters or pairs, into at most so many runs, about equal."""
    bounds = np.linspace(0, len(items), min(num_parts, len(items)) + 1).astype(int).tolist()
    return [items[start:end] for start, end in pairwise(bounds)]


def searched(rows: slice, points_ND: Any, k: int) -> Neighbours:
    """Local: the k nearest of the rows of a part among all points, of length 1; none is its own neighbour."""
    tiles = [(start, min(start + TILE, rows.stop)) for start in range(rows.start, rows.stop, TILE)]
    found = [search(points_ND, points_ND[start:end], k, start) for start, end in tiles]
    return neighbours_of(found)


def neighbours_of(found: Sequence[Neighbours]) -> Neighbours:
    """Merge: the neighbours of all parts, one behind another."""
    index_Qk, similarity_Qk = (np.concatenate([of[i] for of in found]) for i in range(2))
    return Neighbours(index_Qk, similarity_Qk, 1.0)


def nearest_in_parts(workers: Workers, points: Any, num: int, k: int) -> Neighbours:
    """Find the k nearest of each of `num` points, as `amends.maths.neighbors.nearest`, in parts.

    Parameters
    ----------
    points : float32 array (N, D) of length 1, or what `workers.share` gives for it
    """
    return neighbours_of(workers.bring(workers.each(searched, parts_of(num, workers.num_parts), shared=[points, k])))


def cut(workers: Workers, valued: Sequence[Any], highest_G: Any) -> Cuts:
    """Find the cut below which none of the highest values lies, of values in parts (`amends.maths.ranks`).

    Parameters
    ----------
    valued : list of `Valued`, or what stands for them
    highest_G : int array (G,)
        How many values of each group are to lie above the cut, or on it.
    """
    cuts = first_cuts(highest_G)
    for _ in range(ROUNDS):
        cuts = narrowed(cuts, merged(workers, workers.each(counts_of, valued, shared=(cuts,))))
    return cuts


def highest(workers: Workers, valued: Sequence[Any], highest_G: Any) -> list[Any]:
    """Mark the highest values of each group, of equal ones the first; masks by part, or what stands for them."""
    cuts = cut(workers, valued, highest_G)
    equal = workers.bring(workers.each(num_equal, valued, shared=(cuts,)))
    earlier = [np.zeros_like(equal[0]), *np.cumsum(equal, axis=0)[:-1]]
    return workers.each(taken, valued, earlier, shared=(cuts,))
