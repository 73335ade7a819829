"""Nearest neighbours by cosine similarity: exact, or by a graph where only their order of size matters.

Numbers that are estimated from neighbours need exact ones. FAISS computes both: the exact search in tiles at the speed
of a matrix product, so that the table of all similarities never exists.

Shapes: N points, Q queries, D features, k neighbours.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amends.maths.arrays import Float32Array

LINKS, SEARCHED = 32, 128  # of the graph: links a point, candidates a query; recall is measured, not assumed
RECALL_QUERIES = 1000
TILE = 16_384
"""Queries searched for at once. FAISS gives the same bits for the same tiles."""


class Neighbours(NamedTuple):
    """The k nearest points of each query, nearest first."""

    index_Qk: NDArray[np.int64]
    similarity_Qk: Float32Array
    """Cosine, -1 to 1."""
    recall: float
    """Share of the true neighbours that was found: 1 of an exact search, else measured on `RECALL_QUERIES` queries."""


def unit(points_ND: ArrayLike) -> Float32Array:
    """Points at length 1 in float32, (N, D).

    Raises
    ------
    ValueError : no table of points, or one that has no direction: NaN, infinite or zero; its row is named.
    """
    points = np.ascontiguousarray(points_ND, dtype=np.float32)
    if points.ndim != 2 or 0 in points.shape:
        raise ValueError(f"points {points.shape}: expected (rows, features), at least one of each.")
    length_N = np.sqrt(np.einsum("nd,nd->n", points, points, dtype=np.float64))
    if bad := np.flatnonzero(~np.isfinite(length_N) | (length_N == 0)).tolist():
        raise ValueError(f"{len(bad)} points have no direction (NaN, infinite or zero), the first in row {bad[0]}.")
    found = np.empty_like(points)
    np.divide(points, length_N[:, None], out=found, casting="same_kind")  # computed in float64, never held in it
    return found


def nearest(
    points_ND: ArrayLike, k: int, queries_QD: ArrayLike | None = None, *, approximate: bool = False
) -> Neighbours:
    """Find the k points nearest to each query.

    Parameters
    ----------
    points_ND : array
    k : int
    queries_QD : array, optional
        Default: the points themselves, of which none is its own neighbour. Points that are equal are each other's.
    approximate : bool, default False
        Search a graph (HNSW), some ten times faster from 100,000 points on.

    Raises
    ------
    ValueError : as `unit`, or fewer than k points.
    """
    import faiss

    points, own = unit(points_ND), queries_QD is None
    queries = points if queries_QD is None else unit(queries_QD)
    num_there = len(points) - own
    if not 0 < k <= num_there:
        raise ValueError(f"k={k}: expected 1 to {num_there}, as there are {len(points)} points.")
    if not approximate:
        tiles = [slice(start, start + TILE) for start in range(0, len(queries), TILE)]
        found = [search(points, queries[tile], k, tile.start if own else None) for tile in tiles]
        return Neighbours(
            np.concatenate([f.index_Qk for f in found]), np.concatenate([f.similarity_Qk for f in found]), 1.0
        )
    graph = faiss.IndexHNSWFlat(points.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efSearch = max(SEARCHED, 2 * k)
    graph.add(points)
    similarity_Qk, index_Qk = graph.search(queries, k + own)
    asked = np.linspace(0, len(queries) - 1, min(RECALL_QUERIES, len(queries))).astype(int)
    true_Qk = search(points, queries[asked], k + own).index_Qk
    recall = np.mean([np.isin(found, true).mean() for found, true in zip(index_Qk[asked], true_Qk, strict=True)])
    return _without_self(similarity_Qk, index_Qk, np.arange(len(queries)) if own else None, float(recall))


def search(points_ND: Float32Array, queries_QD: Float32Array, k: int, first: int | None = None) -> Neighbours:
    """Find the k points nearest to each query, exactly; all have length 1 (`unit`).

    Parameters
    ----------
    first : int, optional
        The queries are the points from this number on, and none is its own neighbour.
    """
    import faiss

    own_Q = None if first is None else first + np.arange(len(queries_QD))
    found = faiss.knn(queries_QD, points_ND, k + (first is not None), metric=faiss.METRIC_INNER_PRODUCT)
    return _without_self(*found, own_Q, 1.0)


def _without_self(similarity_Qk: Any, index_Qk: Any, own_Q: NDArray[np.int64] | None, recall: float) -> Neighbours:
    """Leave out each point itself, or, where equal points crowded it out, the last one."""
    if own_Q is not None:
        is_self_Qk = index_Qk == own_Q[:, None]
        is_self_Qk[~is_self_Qk.any(axis=1), -1] = True
        shape = (len(index_Qk), index_Qk.shape[1] - 1)
        index_Qk, similarity_Qk = index_Qk[~is_self_Qk].reshape(shape), similarity_Qk[~is_self_Qk].reshape(shape)
    return Neighbours(index_Qk, np.clip(similarity_Qk, -1, 1), recall)
