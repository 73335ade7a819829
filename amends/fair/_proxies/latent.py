"""The latent class model on counts, many tables at once: a bootstrap costs little more than one fit.

Proxies that are independent given a person's group a are right about it by their own matrices: in cell c of the table,
P(x | c) = sum_a q_c[a] prod_m T_m[a, x_m]. The matrices hold in all cells; the shares of the groups are each cell's
own. `amends.maths.transition.fit_raters` is the same for one table of one cell (Dawid and Skene 1979).

Shapes: B tables, C cells, U patterns of what the proxies say, M proxies, G groups.
"""

from itertools import combinations
from typing import NamedTuple

import numpy as np

from amends.maths.arrays import FloatArray, IntArray
from amends.maths.transition import MISSING, Patterns, Transition, fit_transition

TINY = 1e-300
SMALLEST = 1e-9
"""Chance that a leap leaves at least; the round after it may go lower."""


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
    tolerance: float = 1e-12,
    most_rounds: int = 20_000,
) -> Latent:
    """Fit by EM, in leaps.

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
    tolerance : float, default 1e-12
        A table is done when the mean log-likelihood of its rows rises by less in three rounds, nats.

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
    found = Latent(np.array(matrices_BMGG), np.full((B, C, G), 1 / G))
    left, before_B = np.arange(B), np.full(B, -np.inf)
    for _ in range(0, most_rounds, 3):
        start, weight = Latent(*(part[left] for part in found)), weight_BCU[left]
        one, value_B = _round(start, labels_UM, said_U_MG, weight, known)
        two, _ = _round(one, labels_UM, said_U_MG, weight, known)
        # A leap along the path of two rounds, then a round from there, where it is no step back (SQUAREM, Varadhan and
        # Roland 2008, S3): EM itself takes thousands of rounds for weak proxies.
        leap = _leap(start, one, two)
        three, leapt_B = _round(leap, labels_UM, said_U_MG, weight, known)
        keeps_B = leapt_B >= value_B
        for part, new, old in zip(found, three, two, strict=True):
            part[left] = np.where(keeps_B.reshape(-1, *[1] * (part.ndim - 1)), new, old)
        rising_B = value_B - before_B[left] >= tolerance
        before_B[left] = value_B
        left = left[rising_B]
        if not len(left):
            break
    return found


def _round(
    at: Latent, labels_UM: IntArray, said_U_MG: FloatArray, weight_BCU: FloatArray, known: bool
) -> tuple[Latent, FloatArray]:
    """Do one round of EM; and the mean log-likelihood of a row before it, nats, (B,)."""
    B, M, G, _ = at.matrices_BMGG.shape
    joint_BCGU = at.prior_BCG[..., None] * _chances(at.matrices_BMGG, labels_UM)[:, None]
    row_BCU = np.maximum(joint_BCGU.sum(axis=2), TINY)
    value_B = (weight_BCU * np.log(row_BCU)).sum(axis=(1, 2))
    mass_BCGU = joint_BCGU * (weight_BCU / row_BCU)[:, :, None]
    share_BC1 = weight_BCU.sum(axis=2, keepdims=True)
    mass_BCG = mass_BCGU.sum(axis=3)
    # What is cut off near 0, and a cell without rows, keep what they had.
    prior_BCG = np.where(share_BC1 > 0, mass_BCG / np.where(share_BC1 > 0, share_BC1, 1), at.prior_BCG)
    if known:
        return Latent(at.matrices_BMGG, prior_BCG), value_B
    mass_BGMG = (mass_BCGU.sum(axis=1) @ said_U_MG).reshape(B, G, M, G)
    total = mass_BGMG.sum(axis=3, keepdims=True)
    T = np.where(total > 0, mass_BGMG / np.where(total > 0, total, 1), 1 / G)
    return Latent(T.transpose(0, 2, 1, 3), prior_BCG), value_B


def _leap(start: Latent, one: Latent, two: Latent) -> Latent:
    """Extrapolate two rounds of EM by each table's own length, within chances that sum to 1."""
    first = [a - b for a, b in zip(one, start, strict=True)]
    bend = [a - 2 * b + c for a, b, c in zip(two, one, start, strict=True)]
    size_B, bend_B = (np.sqrt(sum((part**2).reshape(len(part), -1).sum(axis=1) for part in of)) for of in (first, bend))
    length_B = np.maximum(1.0, size_B / np.maximum(bend_B, TINY))
    length_B = np.where(bend_B > 0, length_B, 1.0)
    found = []
    for at, r, v in zip(start, first, bend, strict=True):
        alpha = length_B.reshape(-1, *[1] * (at.ndim - 1))
        leapt = np.clip(at + 2 * alpha * r + alpha**2 * v, SMALLEST, 1)
        found.append(leapt / leapt.sum(axis=-1, keepdims=True))
    return Latent(*found)


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
