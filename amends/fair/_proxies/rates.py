"""Rates of groups that only proxies tell: naive, and calibrated by how the proxies err; of many tables at once.

Source: Zhu, Yao, Sun, Li, Liu, ICML 2023 (arXiv 2210.03175). With proxy m independent of the prediction given the
group, P(m says j, class k) = sum_a T_m[a, j] P(group a, class k); so P(a, k) = (T_m')^-1 P(m = ., k) tells the rates.

Shapes: B tables, M proxies, C conditions, K classes, G groups, U patterns, J gaps.
"""

from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amends.fair._proxies import latent
from amends.fair._proxies.latent import Latent
from amends.fair._proxies.table import ProxyTable
from amends.maths.arrays import FloatArray
from amends.maths.transition import MISSING, Transition

Fitted = Literal["global", "local", "joint"]
NULL_DRAWS, CLEARLY = (199, 800), 0.05
"""Draws at first, and more if the first give a p of no more than that."""
MOST_PATTERNS = 5_000
"""Patterns up to which the fit is tested: twelve proxies of two groups, seven of three."""


class Estimate(NamedTuple):
    """Rates of each table, and what they rest on."""

    rates_BCGK: FloatArray
    """P(class k | condition c, group a), before clipping."""
    prior_BCG: FloatArray
    """P(group a | condition c)."""
    matrices_BLMGG: FloatArray
    """How the proxies err: one set for all rows (L = 1), or for every condition and class (L = C K, variant local)."""


def estimate(
    table: ProxyTable,
    count_BCKU: FloatArray,
    variant: Fitted,
    *,
    shared: bool = False,
    known_MGG: FloatArray | None = None,
    start_LMGG: FloatArray | None = None,
) -> Estimate:
    """Estimate the rates of every group.

    Parameters
    ----------
    count_BCKU : array (B, C, K, U)
        Rows of each table; patterns as in `table`.
    variant : {"global", "local", "joint"}
        One set of matrices for all rows, from what proxies say alone, and rates by inversion; a set for every condition
        and class; or one set and the groups' shares in every condition and class, fitted together.
    known_MGG : array, optional
        Matrices that are known.
    start_LMGG : array, optional
        Where to start; of several sets the cells' own.
    """
    B, C, K, U = count_BCKU.shape
    labels_UM, G = table.labels_UM, len(table.groups)
    M = labels_UM.shape[1]
    if variant == "global":
        found = _matrices(labels_UM, count_BCKU.sum(axis=(1, 2)), G, shared, known_MGG, start_LMGG)
        T = found.matrices_BMGG
        prior_BCG = found.prior_BCG
        if C > 1 and shared:  # as the paper's code, whose rates need not sum to 1 then
            prior_BCG = estimate(table, count_BCKU, "local", shared=True).prior_BCG
        elif C > 1:
            prior_BCG = latent.fit(labels_UM, count_BCKU.sum(axis=2), G, matrices_BMGG=T, known=True).prior_BCG
        return Estimate(calibrated(table.said_MCKG(count_BCKU), T, prior_BCG), prior_BCG, T[:, None])
    if variant == "joint":
        first = known_MGG if start_LMGG is None else start_LMGG[0]
        first_BMGG = None if first is None else np.broadcast_to(first, (B, M, G, G))
        cells = count_BCKU.reshape(B, C * K, U)
        found = latent.fit(labels_UM, cells, G, matrices_BMGG=first_BMGG, known=known_MGG is not None)
        matrices_BLMGG = found.matrices_BMGG[:, None]
    else:
        cells = count_BCKU.reshape(B, C * K, U)
        if shared:
            found = latent.fit_shared(labels_UM, cells.reshape(B * C * K, U), G)
        else:
            found = latent.fit_apart(labels_UM, cells, G, start_LMGG)
        matrices_BLMGG = found.matrices_BMGG.reshape(B, C * K, M, G, G)
    # P(a | c, k) P(k | c) = P(a, k | c).
    size_BCK = count_BCKU.sum(axis=3)
    share_BCK1 = (size_BCK / np.maximum(size_BCK.sum(axis=2, keepdims=True), 1))[..., None]
    joint_BCKG = found.prior_BCG.reshape(B, C, K, G) * share_BCK1
    prior_BCG = joint_BCKG.sum(axis=2)
    rates = joint_BCKG / np.maximum(prior_BCG, latent.TINY)[:, :, None]
    return Estimate(rates.transpose(0, 1, 3, 2), prior_BCG, matrices_BLMGG)


def _matrices(
    labels_UM: NDArray[np.int64],
    count_BU: FloatArray,
    num_groups: int,
    shared: bool,
    known_MGG: FloatArray | None,
    start_LMGG: FloatArray | None,
) -> Latent:
    if shared and known_MGG is None:
        uniform_G = np.full(num_groups, 1 / num_groups)
        start = None if start_LMGG is None else Transition(start_LMGG[0, 0], uniform_G, 0.0)
        return latent.fit_shared(labels_UM, count_BU, num_groups, start)
    first = known_MGG if start_LMGG is None else start_LMGG[0]
    first_BMGG = None if first is None else np.broadcast_to(first, (len(count_BU), *first.shape))
    known = known_MGG is not None
    return latent.fit(labels_UM, count_BU[:, None], num_groups, matrices_BMGG=first_BMGG, known=known)


def calibrated(said_MBCKG: FloatArray, matrices_BMGG: FloatArray, prior_BCG: FloatArray) -> FloatArray:
    """Rates from what each proxy says and how it errs, the mean over the proxies, (B, C, G, K); not clipped.

    H[:, k] = diag(p)^-1 (T')^-1 diag(pt) Ht[:, k], where diag(pt) Ht are the shares of the proxy's groups and classes.

    Parameters
    ----------
    said_MBCKG : array (M, B, C, K, G)
        Rows, or shares, by condition, class and what the proxy said.
    """
    size = said_MBCKG.sum(axis=(3, 4), keepdims=True)
    share_MBCKG = said_MBCKG / np.where(size > 0, size, np.nan)
    joint_BCGK = np.einsum("bmja,mbckj->bcak", np.linalg.pinv(matrices_BMGG), share_MBCKG) / len(said_MBCKG)
    return np.asarray(joint_BCGK / np.maximum(prior_BCG, 1e-9)[..., None])


def naive(said_CKG: FloatArray) -> FloatArray:
    """Rates of groups taken as said, (..., C, G, K); NaN of a group that nobody was said to be in."""
    size = said_CKG.sum(axis=-2, keepdims=True)
    return np.asarray(np.swapaxes(said_CKG / np.where(size > 0, size, np.nan), -1, -2))


def clipped(rates_CGK: FloatArray, clip: float | None) -> FloatArray:
    """Rates within [clip, 1] that sum to 1 again; None leaves them."""
    if clip is None:
        return rates_CGK
    within = np.clip(rates_CGK, clip, 1)
    return np.asarray(within / within.sum(axis=-1, keepdims=True))


# Gaps -------------------------------------------------------------------------------------------------------------


def gaps(rates_CGK: FloatArray, conditions: list[int], classes: list[int]) -> FloatArray:
    """Differences between groups, first minus second of each pair, of these conditions and classes, (..., J)."""
    first, second = zip(*combinations(range(rates_CGK.shape[-2]), 2), strict=True)
    apart = rates_CGK[..., list(first), :] - rates_CGK[..., list(second), :]
    return np.asarray(apart[..., conditions, :, :][..., classes].reshape(*rates_CGK.shape[:-3], -1))


def interval(gap_J: FloatArray, gap_BJ: FloatArray, size_B: FloatArray, level: float) -> tuple[float, float]:
    """Percentiles of the resampled sizes; from 0 on if no gap stands out from its spread.

    A size cannot fall below 0, so its percentiles never reach it: equal groups would always look apart. Whether any gap
    is there is told by the largest of them in units of its spread, beside the same of the resamples around it.
    """
    low, high = np.quantile(size_B, [(1 - level) / 2, (1 + level) / 2])
    spread_J = gap_BJ.std(axis=0)
    there = spread_J > 0
    if not there.any():
        return float(low), float(high)
    largest = (np.abs(gap_J) / np.where(there, spread_J, np.inf)).max()
    noise_B = (np.abs(gap_BJ - gap_J) / np.where(there, spread_J, np.inf)).max(axis=1)
    return (0.0 if largest <= np.quantile(noise_B, level) else float(low)), float(high)


# Whether the model holds --------------------------------------------------------------------------------------------


class Misfit(NamedTuple):
    """How far the fitted model is from what was counted."""

    distance: float
    """Total variation distance between the shares of patterns, the mean over the cells, 0 to 1."""
    by_chance: float
    """Its mean where the model holds, by drawing from it."""
    p: float
    """Share of such draws that are as far."""


def misfit(
    table: ProxyTable,
    count_LU: FloatArray,
    rng: np.random.Generator,
    *,
    apart: bool = False,
    known_MGG: FloatArray | None = None,
    start_LMGG: FloatArray | None = None,
) -> Misfit | None:
    """Test whether proxies are independent given the group, in and across cells, by parametric bootstrap.

    Parameters
    ----------
    count_LU : array (L, U)
        Rows by cell, such as the predicted class: that one matrix a proxy holds in all of them is tested as well.
    apart : bool, default False
        Every cell has matrices of its own.

    Returns
    -------
    Misfit, or None where the model has as many numbers as the table, or there are more patterns than `MOST_PATTERNS`.
    """
    G, M = len(table.groups), table.labels_UM.shape[1]
    num_cells = len(count_LU)
    free = 0 if known_MGG is not None else M * G * (G - 1) * (num_cells if apart else 1)
    if num_cells * (G**M - 1) <= free + num_cells * (G - 1) or G**M > MOST_PATTERNS:
        return None
    all_UM = np.stack(np.unravel_index(np.arange(G**M), (G,) * M), axis=1)
    whole_U = (table.labels_UM != MISSING).all(axis=1)
    counts = np.zeros((1, num_cells, G**M))
    counts[0][:, np.ravel_multi_index(tuple(table.labels_UM[whole_U].T), (G,) * M)] = count_LU[:, whole_U]
    kept_L = counts[0].sum(axis=1) > 0
    counts = counts[:, kept_L]
    if not counts.size:
        return None
    if apart and start_LMGG is not None:
        start_LMGG = start_LMGG[kept_L]

    def distances(count_BLU: FloatArray, start: FloatArray | None) -> tuple[FloatArray, FloatArray, FloatArray]:
        B = len(count_BLU)
        if apart:
            found = latent.fit_apart(all_UM, count_BLU, G, start)
            chance = latent.chances(found, all_UM).reshape(count_BLU.shape)
        else:
            first = known_MGG if known_MGG is not None else None if start is None else start[0]
            first_BMGG = None if first is None else np.broadcast_to(first, (B, M, G, G))
            found = latent.fit(all_UM, count_BLU, G, matrices_BMGG=first_BMGG, known=known_MGG is not None)
            chance = latent.chances(found, all_UM)
        size_BL1 = count_BLU.sum(axis=2, keepdims=True)
        gap_BL = np.maximum(count_BLU / size_BL1 - chance, 0).sum(axis=2)
        matrices = found.matrices_BMGG.reshape(B, -1, M, G, G)[0]
        return (gap_BL * size_BL1[..., 0]).sum(axis=1) / size_BL1.sum(axis=(1, 2)), chance, matrices

    (distance,), chance_1LU, fitted_LMGG = distances(counts, start_LMGG)
    size_L = counts[0].sum(axis=1).astype(np.int64)
    chance_LU = chance_1LU[0] / chance_1LU[0].sum(axis=1, keepdims=True)
    null_B = np.zeros(0)
    for num in NULL_DRAWS:
        draws = np.array([rng.multinomial(size_L, chance_LU) for _ in range(num)], dtype=np.float64)
        null_B = np.concatenate([null_B, *(distances(part, fitted_LMGG)[0] for part in parts(draws, G))])
        p = (1 + (null_B >= distance).sum()) / (1 + len(null_B))
        if p > CLEARLY:
            break
    return Misfit(float(distance), float(null_B.mean()), float(p))


def parts(count_BLU: FloatArray, num_groups: int, most: int = 1_000_000) -> list[FloatArray]:
    """Cut many tables into parts that are fitted at once, by memory."""
    size = max(1, most // max(1, count_BLU[0].size * num_groups))
    return [count_BLU[start : start + size] for start in range(0, len(count_BLU), size)]
