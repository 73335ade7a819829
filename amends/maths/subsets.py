"""Ground truth of memorisation: what a record's presence changes, from models trained on random parts of the data.

mem(i) = E[M(f, i) | i in training] - E[M(f, i) | i not in it], with M = 1 where f is right (label memorisation, Feldman
2020) or any other number, such as the mean log-likelihood of a text (counterfactual memorisation, Zhang et al. 2021).
The same models give influence, consistency scores and the shadow models of LiRA.

Shapes: T models, N records, M test points.
"""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from amends.maths.arrays import FloatArray

POOL_BELOW = 8
"""With fewer shadow models on a side a variance of one record alone is too rough (Carlini et al. 2022: 16, half in)."""


@dataclass(frozen=True, eq=False)
class SubsetScores:
    """Memorisation of each record, with what it was estimated from."""

    memorisation_N: FloatArray
    """Within [-1, 1] for correctness; NaN where a record was in all models, or in none."""
    standard_error_N: FloatArray
    """Of it. Differences below about two of these are noise: do not rank them."""
    in_N: FloatArray
    """Mean of M over the models with the record."""
    out_N: FloatArray
    """Mean of M over those without: the consistency score (C-score) at this share."""
    mask_TN: NDArray[np.bool_]
    """True where the model was trained on the record."""
    measured_TN: FloatArray
    """M of each model on each record."""
    influence_NM: FloatArray | None = None
    """By how much training on a record changes M on each test point."""


def subset_estimate(mask_TN: ArrayLike, measured_TN: ArrayLike) -> SubsetScores:
    """Estimate memorisation from models of which each was trained on a part of the records.

    Parameters
    ----------
    mask_TN : array, bool
        Which model was trained on which record.
    measured_TN : array
        Its M on each record, whether trained on it or not.

    Notes
    -----
    The standard error is that of a difference of two means. Where all values are 0 or 1, each share is first moved
    towards one half by one success and one failure (Agresti and Caffo 2000), so that a few models that agree are not
    taken for certain; other values need two models on each side. For s T models with and (1 - s) T without it is at
    most sqrt((1/4)(1/(sT) + 1/((1 - s)T))). Source: Feldman and Zhang 2020, equation 2.
    """
    mask_TN, measured_TN = _checked(mask_TN, measured_TN)
    parts = [_mean_and_variance(side_TN, measured_TN) for side_TN in (mask_TN, ~mask_TN)]
    (in_N, in_variance_N), (out_N, out_variance_N) = parts
    return SubsetScores(in_N - out_N, np.sqrt(in_variance_N + out_variance_N), in_N, out_N, mask_TN, measured_TN)


def influence(mask_TN: ArrayLike, measured_TM: ArrayLike) -> FloatArray:
    """E[M(f, j) | i in training] - E[M(f, j) | i not in it] of each record i on each test point j, (N, M).

    NaN for records that were in all models, or in none. Source: Feldman and Zhang 2020.
    """
    mask_TN, measured_TM = np.asarray(mask_TN, dtype=bool), np.asarray(measured_TM, dtype=np.float64)
    sides = [side_TN.T.astype(np.float64) for side_TN in (mask_TN, ~mask_TN)]
    with np.errstate(invalid="ignore"):
        with_NM, without_NM = (side_NT @ measured_TM / side_NT.sum(axis=1, keepdims=True) for side_NT in sides)
    return np.asarray(with_NM - without_NM, dtype=np.float64)


def subset_scores(
    fit: Callable[[Any, Any, int], Any],
    X: Any,
    y: ArrayLike,
    *,
    num_models: int = 200,
    share: float = 0.7,
    seed: int = 0,
    jobs: int = 1,
    X_test: Any = None,
    y_test: ArrayLike | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> SubsetScores:
    """Train models on random parts of a table and measure what each record's presence changes.

    Parameters
    ----------
    fit : callable
        (X, y, seed) -> something with `predict`, as scikit-learn has it. The seed differs from model to model, for the
        randomness of training belongs to what is measured.
    X, y : arrays of N rows, and their labels
    num_models : int, default 200
        At 200 models and a share of .7 the standard error is at most .077; below 100 it exceeds .1.
    share : float, default 0.7
        Of the rows, for each model.
    seed : int, default 0
        Parts and models depend on it and on their number alone, not on `jobs`.
    jobs : int, default 1
        Threads. What scikit-learn and numpy compute runs beside each other, what is pure Python does not.
    X_test, y_test : optional
        Test points, for influence.
    advance : callable, optional
        Called with 1 after each model, for a progress bar.

    Raises
    ------
    ValueError : lengths that differ, or a share that leaves no row in or none out.
    """
    y = np.asarray(y)
    num_rows = len(y)
    size = round(share * num_rows)
    if X.shape[0] != num_rows:
        raise ValueError(f"X has {X.shape[0]} rows, y {num_rows}.")
    if not 0 < size < num_rows or num_models < 2:
        raise ValueError(
            f"share={share}, num_models={num_models}: {size} of {num_rows} rows would be in; some must be in and some "
            "out, and two models at least be trained."
        )
    mask_TN = np.zeros((num_models, num_rows), dtype=bool)
    sources = np.random.SeedSequence(seed).spawn(num_models)

    def train(t: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_] | None]:
        rng = np.random.default_rng(sources[t])
        rows = np.sort(rng.permutation(num_rows)[:size])
        mask_TN[t, rows] = True
        model = fit(X[rows], y[rows], int(rng.integers(2**31)))
        right_N = np.asarray(model.predict(X)) == y
        right_M = None if X_test is None else np.asarray(model.predict(X_test)) == np.asarray(y_test)
        advance(1)
        return right_N, right_M

    with ThreadPoolExecutor(jobs) as pool:
        found = list(pool.map(train, range(num_models)))
    scores = subset_estimate(mask_TN, np.stack([right_N for right_N, _ in found]))
    if X_test is None:
        return scores
    influence_NM = influence(mask_TN, np.stack([right_M for _, right_M in found if right_M is not None]))
    return SubsetScores(**{**vars(scores), "influence_NM": influence_NM})


def lira(phi_N: ArrayLike, mask_TN: ArrayLike, phi_TN: ArrayLike) -> FloatArray:
    """Online likelihood-ratio attack: log ratio of two normal densities at phi, (N,); higher: more like a member.

    Parameters
    ----------
    phi_N : array
        log(p / (1 - p)) of each record under the model in question: `amends.maths.memorisation.logit_confidence`.
    mask_TN, phi_TN : array
        Which shadow model was trained on which record, and its phi.

    Notes
    -----
    A record with fewer than 8 shadow models on its smaller side gets the variances of all records pooled, one for each
    side. So does a record whose phis are all equal on a side, there. NaN where a record has no shadow model on a side,
    and for all of them where no two phis of a record differ. Source: Carlini et al. 2022, algorithm 1, which pools by
    the number of shadow models, half of them with the record.
    """
    mask_TN, phi_TN = _checked(mask_TN, phi_TN)
    phi_N, sides = np.asarray(phi_N, dtype=np.float64), (mask_TN, ~mask_TN)
    few_N = np.minimum(*(side_TN.sum(axis=0) for side_TN in sides)) < POOL_BELOW
    densities = [norm.logpdf(phi_N, *_normal(side_TN, phi_TN, few_N)) for side_TN in sides]
    return np.asarray(densities[0] - densities[1], dtype=np.float64)


def lira_offline(phi_N: ArrayLike, mask_TN: ArrayLike, phi_TN: ArrayLike) -> FloatArray:
    """Offline likelihood-ratio attack: -log Pr[N(mu_out, s_out) > phi], (N,), from shadow models without the record.

    The order is that of Pr[N(mu_out, s_out) < phi], which is 1 to the last digit far above all others. Variances are
    pooled as in `lira`, by the number of shadow models without the record.
    """
    mask_TN, phi_TN = _checked(mask_TN, phi_TN)
    spread = _normal(~mask_TN, phi_TN, (~mask_TN).sum(axis=0) < POOL_BELOW)
    return np.asarray(-norm.logsf(np.asarray(phi_N, dtype=np.float64), *spread), dtype=np.float64)


def _normal(side_TN: NDArray[np.bool_], phi_TN: FloatArray, few_N: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of each record over the shadow models of one side; pooled where these are few."""
    with warnings.catch_warnings():  # columns without a number are NaN, as promised
        warnings.simplefilter("ignore", RuntimeWarning)
        there_TN = np.where(side_TN, phi_TN, np.nan)
        mean_N = np.nanmean(there_TN, axis=0)
        differ_N = np.nanmax(there_TN, axis=0) > np.nanmin(there_TN, axis=0)
        own_N = np.where(differ_N, np.nanstd(there_TN, axis=0, ddof=1), 0.0)  # exactly: a mean of equals may be off
        count_N = side_TN.sum(axis=0)
        freedom = count_N.sum() - (count_N > 0).sum()
        squares = np.nansum((there_TN - mean_N)[:, differ_N] ** 2)
        pooled = np.sqrt(squares / freedom) if freedom > 0 else 0.0
    deviation_N = np.where(few_N | (own_N == 0), pooled, own_N)
    return mean_N, np.where(deviation_N > 0, deviation_N, np.nan)


def _mean_and_variance(side_TN: NDArray[np.bool_], measured_TN: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean over one side's models, and the variance of that mean."""
    count_N = side_TN.sum(axis=0)
    sum_N = (side_TN * measured_TN).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_N = sum_N / count_N
        if np.isin(measured_TN, (0.0, 1.0)).all():
            smooth_N = (sum_N + 1) / (count_N + 2)
            variance_N = np.where(count_N > 0, smooth_N * (1 - smooth_N) / (count_N + 2), np.nan)
        else:
            squares_N = (side_TN * (measured_TN - mean_N) ** 2).sum(axis=0)
            variance_N = np.where(count_N > 1, squares_N / (count_N - 1) / count_N, np.nan)
    return mean_N, variance_N


def _checked(mask_TN: ArrayLike, measured_TN: ArrayLike) -> tuple[NDArray[np.bool_], FloatArray]:
    mask_TN, measured_TN = np.asarray(mask_TN, dtype=bool), np.asarray(measured_TN, dtype=np.float64)
    if mask_TN.ndim != 2 or mask_TN.shape != measured_TN.shape:
        raise ValueError(f"mask {mask_TN.shape}, measured {measured_TN.shape}: expected the same (models, records).")
    return mask_TN, measured_TN
