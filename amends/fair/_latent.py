"""The latent class model on counts, many tables at once: a bootstrap costs little more than one fit.

Proxies that are independent given a person's group a are right about it by their own matrices: in cell c of the table,
P(x | c) = sum_a q_c[a] prod_m T_m[a, x_m]. The matrices hold in all cells; the shares of the groups are each cell's
own. `amends.maths.transition.fit_raters` is the same for one table of one cell (Dawid and Skene 1979).

Shapes: B tables, C cells, U patterns of what the proxies say, M proxies, G groups.
"""

from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from amends.maths.transition import MISSING, Patterns, Transition, fit_transition

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
TINY = 1e-300


class Latent(NamedTuple):
    """What was fitted to each table."""

    matrices_BMGG: FloatArray
    """T_m[a, j] = P(proxy m says j | group a)."""
    prior_BCG: FloatArray
    """P(group a | cell c)."""


def fit(
    labels_UM: IntArray,
    count_BCU: FloatArray,
    num_groups: int,
    *,
    matrices_BMGG: FloatArray | None = None,
    known: bool = False,
    right: float = 0.75,
    tolerance: float = 1e-10,
    most_rounds: int = 20_000,
) -> Latent:
    """Fit by EM.

    Parameters
    ----------
    labels_UM : int array (U, M)
        Groups that the proxies named, `MISSING` where one named none.
    count_BCU : array (B, C, U)
        Rows of each table; a cell may be empty, and keeps equal shares.
    matrices_BMGG : array (B, M, G, G), optional
        Where to start. Default: every proxy is right with the chance `right`, which fixes the names of the groups.
    known : bool, default False
        The matrices are those, and only the shares of the groups are fitted.
    tolerance : float, default 1e-10
        A table is done when the mean log-likelihood of its rows rises by less in a round, nats.

    Returns
    -------
    Latent
    """
    B, C, _ = count_BCU.shape
    M, G = labels_UM.shape[1], num_groups
    if matrices_BMGG is None:
        matrices_BMGG = np.full((B, M, G, G), (1 - right) / max(1, G - 1))
        matrices_BMGG[..., np.arange(G), np.arange(G)] = right
    weight_BCU = count_BCU / np.maximum(count_BCU.sum(axis=(1, 2), keepdims=True), 1)
    said_U_MG = (labels_UM[:, :, None] == np.arange(G)).reshape(len(labels_UM), M * G).astype(np.float64)
    T, prior, before = matrices_BMGG.copy(), np.full((B, C, G), 1 / G), np.full(B, -np.inf)
    share_BC1 = weight_BCU.sum(axis=2, keepdims=True)
    left = np.arange(B)
    for _ in range(most_rounds):
        weight = weight_BCU[left]
        joint_BCGU = prior[left][..., None] * _chances(T[left], labels_UM)[:, None]
        row_BCU = np.maximum(joint_BCGU.sum(axis=2), TINY)
        now_B = (weight * np.log(row_BCU)).sum(axis=(1, 2))
        mass_BCGU = joint_BCGU * (weight / row_BCU)[:, :, None]
        share = share_BC1[left]
        prior[left] = np.where(share > 0, mass_BCGU.sum(axis=3) / np.where(share > 0, share, 1), prior[left])
        if not known:
            mass_BGMG = (mass_BCGU.sum(axis=1) @ said_U_MG).reshape(len(left), G, M, G)
            total = mass_BGMG.sum(axis=3, keepdims=True)
            T[left] = np.where(total > 0, mass_BGMG / np.where(total > 0, total, 1), 1 / G).transpose(0, 2, 1, 3)
        rising_B = now_B - before[left] >= tolerance
        before[left] = now_B
        left = left[rising_B]
        if not len(left):
            break
    return Latent(T, prior)


def fit_apart(labels_UM: IntArray, count_BCU: FloatArray, num_groups: int, start: FloatArray | None = None) -> Latent:
    """Fit each cell by itself: matrices (B * C, M, G, G), shares of the groups (B * C, 1, G).

    Parameters
    ----------
    start : array (C or 1, M, G, G), optional
        Matrices to start from, of the cells or of all of them.
    """
    B, C, U = count_BCU.shape
    first = None if start is None else np.tile(np.broadcast_to(start, (C, *start.shape[1:])), (B, 1, 1, 1))
    return fit(labels_UM, count_BCU.reshape(B * C, 1, U), num_groups, matrices_BMGG=first)


def fit_shared(labels_UM: IntArray, count_BU: FloatArray, num_groups: int, start: Transition | None = None) -> Latent:
    """Fit one matrix for all proxies of each table, by how often any three of them agree (Zhu et al. 2023).

    A table in which no row has three groups named gets equal chances, which tell nothing.
    """
    counted = [triples(Patterns(labels_UM, count_U), num_groups) for count_U in count_BU]
    nothing = Transition(np.full((num_groups, num_groups), 1 / num_groups), np.full(num_groups, 1 / num_groups), 0.0)
    found = [fit_transition(counts, start) if counts.any() else nothing for counts in counted]
    matrices_BMGG = np.array([np.tile(one.matrix_KK, (labels_UM.shape[1], 1, 1)) for one in found])
    return Latent(matrices_BMGG, np.array([[one.prior_K] for one in found]))


def triples(data: Patterns, num_groups: int) -> FloatArray:
    """Count what three proxies said together, (G, G, G), over all choices of three of them."""
    counts = np.zeros(num_groups**3)
    for three in combinations(range(data.labels_UM.shape[1]), 3):
        labels_U3 = data.labels_UM[:, three]
        there_U = (labels_U3 != MISSING).all(axis=1)
        flat_U = np.ravel_multi_index(tuple(labels_U3[there_U].T), (num_groups,) * 3)
        counts += np.bincount(flat_U, data.count_U[there_U], minlength=num_groups**3)
    return counts.reshape((num_groups,) * 3)


def chances(found: Latent, labels_UM: IntArray) -> FloatArray:
    """P(pattern | cell) under what was fitted, (B, C, U)."""
    return np.asarray(np.einsum("bcg,bgu->bcu", found.prior_BCG, _chances(found.matrices_BMGG, labels_UM)))


def _chances(matrices_BMGG: FloatArray, labels_UM: IntArray) -> FloatArray:
    """P(pattern | group), (B, G, U); what is missing says nothing. Up to some hundred proxies nothing underflows."""
    found = np.ones((len(matrices_BMGG), matrices_BMGG.shape[2], len(labels_UM)))
    for m, label_U in enumerate(labels_UM.T):
        found *= np.where(label_U == MISSING, 1.0, matrices_BMGG[:, m][:, :, label_U])
    return found
