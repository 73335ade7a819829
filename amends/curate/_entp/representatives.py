"""Which rows stand for their topic, and which two of them go together.

One-hop clusters, a threshold by silhouette, and maximal marginal relevance are named by the public reviews of ENTP
(arXiv 2510.23160); their numbers and how they work together are [design], choices of this tool.

In parts (`_pools.scale`): a part's rows search among all, silhouettes are local to a row, and representatives
to a cluster. What is merged: links become clusters, and pairs across clusters are taken nearest first.

Shapes: N rows, D features, C clusters, M rows of a sample or of one cluster.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from amends.curate._pools.scale import Here, Workers, nearest_in_parts, shares_of
from amends.io.errors import InputError
from amends.maths.arrays import Float32Array, IntArray
from amends.maths.neighbors import Neighbours

THETAS = (0.5, 0.6, 0.7, 0.8, 0.9)
SILHOUETTE_ROWS = 5000
TILE = 2**24  # entries of the table of a tile
Pairs = list[tuple[int, int]]


@dataclass(frozen=True)
class Grouping:
    """How rows are grouped and paired; the options of the same names."""

    neighbours: int = 10
    theta: float | None = None
    """Least cosine of a link; chosen from `THETAS` if none is given."""
    per_cluster: int = 2
    mmr: float = 0.6
    pairing: Literal["within", "nearest"] = "within"
    most_pairs: int | None = None

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.per_cluster < 1 or (self.most_pairs is not None and self.most_pairs < 1):
            raise InputError("--neighbours, --per-cluster and --most-pairs: must be at least 1.")
        if not 0 <= self.mmr <= 1 or not (self.theta is None or -1 <= self.theta <= 1):
            raise InputError(f"--mmr {self.mmr}, --theta {self.theta}: must be from 0 to 1, and from -1 to 1.")
        if self.pairing == "within" and self.per_cluster < 2:
            raise InputError("--per-cluster 1: a pair within a cluster needs 2. Raise it, or take --pairing nearest.")


class Clusters(NamedTuple):
    """A partition in which each row is linked to the hub of its cluster."""

    label_N: IntArray
    hub_C: IntArray

    @property
    def size_C(self) -> IntArray:
        """Rows of each."""
        return np.bincount(self.label_N, minlength=len(self.hub_C))


class Grouped(NamedTuple):
    """What grouping found."""

    clusters: Clusters
    theta: float
    silhouettes: dict[str, float | None]
    """Mean silhouette at each threshold that was tried; None with fewer than two clusters."""
    representatives: list[list[int]]
    """Of each cluster, in the order in which they were chosen."""
    pairs: Pairs


def one_hop_clusters(near: Neighbours, theta: float) -> Clusters:
    """Take rows with the most links first, each with all its linked rows that are not taken yet.

    Two rows are linked if one is among the nearest of the other and their cosine is at least theta. Of rows with
    equally many links the earlier one comes first.
    """
    num_rows = len(near.index_Qk)
    from_E, place_E = np.nonzero(near.similarity_Qk >= theta)
    to_E = near.index_Qk[from_E, place_E]
    one_way = csr_array((np.ones(len(from_E), dtype=np.int8), (from_E, to_E)), shape=(num_rows, num_rows))
    linked = csr_array(one_way + one_way.T)
    degree_N = np.diff(linked.indptr)
    label_N, hubs = np.full(num_rows, -1, dtype=np.int64), list[int]()
    for hub in np.argsort(-degree_N, kind="stable").tolist():
        if label_N[hub] < 0:
            there = linked.indices[linked.indptr[hub] : linked.indptr[hub + 1]]
            label_N[there[label_N[there] < 0]] = len(hubs)
            label_N[hub] = len(hubs)
            hubs.append(hub)
    return Clusters(label_N, np.array(hubs, dtype=np.int64))


def cluster_means(unit_ND: Float32Array, label_N: IntArray) -> NDArray[np.float64]:
    """Merge: the mean of each cluster, (C, D)."""
    size_C = np.bincount(label_N)
    member_CN = csr_array((np.ones(len(label_N)), (label_N, np.arange(len(label_N)))))
    sums = [member_CN @ unit_ND[:, start : start + 64].astype(np.float64) for start in range(0, unit_ND.shape[1], 64)]
    return np.asarray(np.concatenate(sums, axis=1) / size_C[:, None])


def silhouettes(
    unit_ND: Float32Array, label_N: IntArray, rows_M: IntArray, workers: Workers | None = None, points: Any = None
) -> Float32Array:
    """Silhouettes by cosine distance of some rows, among all clusters of all rows.

    s = (b - a) / max(a, b), a the mean distance to the others of the own cluster, b to the nearest other cluster; 0 in
    a cluster of one. Of vectors of length 1 the mean distance to a cluster is 1 - cosine with its mean, so that no
    table of all pairs is needed. A silhouette on a sample alone would be another one: small clusters fall apart there.

    Parameters
    ----------
    points : optional
        What `workers.share` gave for `unit_ND`.

    Raises
    ------
    ValueError : fewer than two clusters.
    """
    num_clusters, workers = int(label_N.max()) + 1, workers or Here()
    if num_clusters < 2:
        raise ValueError("one cluster only: a silhouette needs two.")
    step = max(1, TILE // num_clusters)
    parts = shares_of([rows_M[start : start + step] for start in range(0, len(rows_M), step)], workers.num_parts)
    shared = [unit_ND if points is None else points, workers.share(label_N)]
    shared.append(workers.share(cluster_means(unit_ND, label_N)))
    return np.concatenate(workers.bring(workers.each(_silhouettes, parts, shared=shared)))


def _silhouettes(
    tiles: Sequence[IntArray], unit_ND: Float32Array, label_N: IntArray, mean_CD: NDArray[np.float64]
) -> Float32Array:
    """Local: the silhouettes of the rows of some tiles."""
    found, size_C = [], np.bincount(label_N)
    for rows_B in tiles:
        own_B, all_B = label_N[rows_B], np.arange(len(rows_B))
        distance_BC = 1 - unit_ND[rows_B].astype(np.float64) @ mean_CD.T
        inner_B = distance_BC[all_B, own_B] * size_C[own_B] / np.maximum(size_C[own_B] - 1, 1)
        distance_BC[all_B, own_B] = np.inf
        outer_B = distance_BC.min(axis=1)
        larger_B = np.maximum(inner_B, outer_B)
        score_B = np.divide(outer_B - inner_B, larger_B, out=np.zeros_like(larger_B), where=larger_B > 1e-12)
        found.append(np.where(size_C[own_B] > 1, score_B, 0).astype(np.float32))
    return np.concatenate(found)


def choose_theta(
    unit_ND: Float32Array,
    near: Neighbours,
    rng: np.random.Generator,
    thetas: Sequence[float] = THETAS,
    workers: Workers | None = None,
    points: Any = None,
) -> tuple[float, dict[str, float | None]]:
    """Choose the threshold whose clusters have the largest mean silhouette on at most `SILHOUETTE_ROWS` rows.

    Of equal ones the least is taken; the largest of all, if none makes two clusters.
    """
    rows_M = np.sort(rng.permutation(len(unit_ND))[:SILHOUETTE_ROWS])
    found: dict[float, float | None] = {}
    for theta in thetas:
        label_N, hub_C = one_hop_clusters(near, theta)
        several = len(hub_C) > 1
        found[theta] = float(silhouettes(unit_ND, label_N, rows_M, workers, points).mean()) if several else None
    measured = {theta: value for theta, value in found.items() if value is not None}
    best = max(measured, key=lambda theta: (measured[theta], -theta)) if measured else max(thetas)
    return best, {f"{theta:g}": value for theta, value in found.items()}


def mmr(unit_MD: Float32Array, count: int, balance: float) -> list[int]:
    """Choose rows of a cluster by maximal marginal relevance (Carbonell and Goldstein 1998).

    The first is the nearest to the mean; each next one has the largest balance cos(x, mean) - (1 - balance) max cos(x,
    y) over the y chosen. With balance 1 that is the order of nearness to the mean, with 0 farthest-point order.

    Returns
    -------
    list of int, min(count, M) of them, none twice.
    """
    mean_D = unit_MD.mean(axis=0)
    relevance_M = unit_MD @ (mean_D / max(float(np.linalg.norm(mean_D)), 1e-12))
    chosen = [int(relevance_M.argmax())]
    closest_M = unit_MD @ unit_MD[chosen[0]]
    while len(chosen) < min(count, len(unit_MD)):
        score_M = balance * relevance_M - (1 - balance) * closest_M
        score_M[chosen] = -np.inf
        chosen.append(int(score_M.argmax()))
        closest_M = np.maximum(closest_M, unit_MD @ unit_MD[chosen[-1]])
    return chosen


def _representatives(
    clusters: Sequence[IntArray], unit_ND: Float32Array, count: int, balance: float
) -> list[list[int]]:
    """Local: the rows that stand for each of some clusters."""
    return [rows[mmr(unit_ND[rows], count, balance)].tolist() for rows in clusters]


def nearest_pairs(
    unit_MD: Float32Array,
    label_M: Sequence[int],
    k: int,
    allowed: Callable[[int, int], bool] = lambda i, j: True,
    workers: Workers | None = None,
) -> Pairs:
    """Pair rows with different labels, nearest first, each row at most once; only among the k nearest of a row."""
    if len(unit_MD) < 2:
        return []
    workers, k = workers or Here(), min(k, len(unit_MD) - 1)
    near = nearest_in_parts(workers, workers.share(unit_MD), len(unit_MD), k)
    from_E = np.repeat(np.arange(len(unit_MD)), near.index_Qk.shape[1])
    to_E, taken, pairs = near.index_Qk.ravel(), set[int](), []
    for edge in np.argsort(-near.similarity_Qk.ravel(), kind="stable").tolist():
        i, j = sorted((int(from_E[edge]), int(to_E[edge])))
        if i not in taken and j not in taken and label_M[i] != label_M[j] and allowed(i, j):
            taken |= {i, j}
            pairs.append((i, j))
    return sorted(pairs)


def shuffled(pairs: Pairs, rng: np.random.Generator) -> Pairs:
    """Pair the same rows at random: the control."""
    rows = rng.permutation([row for pair in pairs for row in pair]).tolist()
    return list(zip(rows[::2], rows[1::2], strict=True))


def group(
    unit_ND: Float32Array,
    how: Grouping,
    rng: np.random.Generator,
    *,
    at_random: bool = False,
    workers: Workers | None = None,
) -> Grouped:
    """Cluster rows, choose representatives, and pair them.

    Parameters
    ----------
    unit_ND : array
        Embeddings at length 1, at least two.
    at_random : bool, default False
        Pair the rows that would be paired, but at random.
    workers : Workers, optional
        Where parts of the rows are worked on; default: here, all rows at once.
    """
    workers = workers or Here()
    points = workers.share(unit_ND)
    near = nearest_in_parts(workers, points, len(unit_ND), min(how.neighbours, len(unit_ND) - 1))
    theta, tried = how.theta, dict[str, float | None]()
    if theta is None:
        theta, tried = choose_theta(unit_ND, near, rng, workers=workers, points=points)
    clusters = one_hop_clusters(near, theta)
    order_N = np.argsort(clusters.label_N, kind="stable")
    members = np.split(order_N, np.cumsum(clusters.size_C)[:-1])
    parts, shared = shares_of(members, workers.num_parts), [points, how.per_cluster, how.mmr]
    chosen = [rows for part in workers.bring(workers.each(_representatives, parts, shared=shared)) for rows in part]
    if how.pairing == "within":
        pairs = [pair for rows in chosen for pair in zip(rows[::2], rows[1::2], strict=False)]
    else:
        rows = sorted(row for some in chosen for row in some)
        found = nearest_pairs(unit_ND[rows], clusters.label_N[rows].tolist(), how.neighbours, workers=workers)
        pairs = [(rows[i], rows[j]) for i, j in found]
    pairs = pairs[: how.most_pairs]
    return Grouped(clusters, theta, tried, chosen, shuffled(pairs, rng) if at_random else pairs)
