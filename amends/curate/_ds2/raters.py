"""Ratings as they stand in columns, and one rating made of those of several raters.

Shapes: N rows, M raters, K levels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amends.io.errors import InputError, NoResult
from amends.io.rows import Row
from amends.maths.arrays import FloatArray, IntArray
from amends.maths.transition import (
    MISSING,
    Agreement,
    RaterTransitions,
    agreement,
    fit_raters,
    fit_transition,
    patterns,
    triple_counts,
)

MOST_LEVELS = 20
LOWEST, HIGHEST = 1, 10
COMPRESSED = (0, 0, 0, 0, 1, 2, 3, 4, 5, 5)
"""Rating 1 to 10 to level 0 to 5: up to 4 is 0, from 9 on 5 (official code: LLM_scoring/scoring.py)."""
STANDARD_ERRORS = 3
"""By which raters must agree more than chance lets them."""


def rating_of(value: Any, lowest: float, highest: float) -> tuple[float, str | None]:
    """Read a rating: a whole number, or text that is one.

    Returns
    -------
    (float, str or None) : the rating, or NaN with the reason that it is missing.
    """
    if (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    ):
        return math.nan, "no rating"
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not number.is_integer():
        return math.nan, f"the rating is no whole number: {str(value)[:60]!r}"
    if not lowest <= number <= highest:
        return math.nan, f"the rating {number:.0f} is not from {lowest:g} to {highest:g}"
    return number, None


def read_ratings(
    rows: Sequence[Row], columns: Sequence[str], *, scale: str | None = None, compress: bool = False
) -> tuple[FloatArray, list[str | None]]:
    """Read the ratings of all rows.

    Parameters
    ----------
    scale : str, optional
        LOWEST-HIGHEST, such as "1-10"; others are missing. Default: any whole numbers.
    compress : bool, default False
        Ratings are 1 to 10, and become 0 to 5 as in DS2.

    Returns
    -------
    (float array (N, M), list of str or None) : NaN where a rating is missing; the reason of a row without any.

    Raises
    ------
    InputError : a column that no row has, no rating at all, or a scale that is none.
    """
    lowest, highest = _scale(scale, compress)
    for column in columns:
        if not any(column in row.data for row in rows):
            there = ", ".join(rows[0].data)
            raise InputError(
                f'{rows[0].where}: no row has the column "{column}" (found: {there[:200]}). Name another one.'
            )
    found = [[rating_of(row.data.get(column), lowest, highest) for column in columns] for row in rows]
    ratings_NM = np.array([[number for number, _ in of] for of in found], dtype=np.float64)
    reasons = [None if np.isfinite(of).any() else one[0][1] for of, one in zip(ratings_NM, found, strict=True)]
    if None not in reasons:
        raise InputError(
            f'{rows[0].where}: no row has a rating in "{", ".join(columns)}" ({reasons[0]}). Give whole numbers.'
        )
    for m, column in enumerate(columns):
        if np.isnan(ratings_NM[:, m]).all():
            raise InputError(f'"{column}": a rater without a single rating. Leave it out.')
    return (compressed(ratings_NM) if compress else ratings_NM), reasons


def _scale(scale: str | None, compress: bool) -> tuple[float, float]:
    if scale is None:
        return (LOWEST, HIGHEST) if compress else (-math.inf, math.inf)
    low, _, high = scale.strip().partition("-")
    if not (low.isdecimal() and high.isdecimal() and int(low) < int(high)):
        raise InputError(f"--scale {scale}: expected LOWEST-HIGHEST, such as 1-10.")
    if compress and (int(low), int(high)) != (LOWEST, HIGHEST):
        raise InputError(
            f"--scale {scale}: --compress is for ratings from {LOWEST} to {HIGHEST}. Leave one of them out."
        )
    return int(low), int(high)


def compressed(ratings: ArrayLike) -> FloatArray:
    """Levels 0 to 5 of ratings 1 to 10, in the same shape; NaN stays NaN.

    Raises
    ------
    ValueError : a rating that is no whole number from 1 to 10.
    """
    found = np.asarray(ratings, dtype=np.float64)
    there = ~np.isnan(found)
    if not np.isin(found[there], np.arange(LOWEST, HIGHEST + 1)).all():
        raise ValueError(f"a rating is no whole number from {LOWEST} to {HIGHEST}.")
    levels = np.full(found.shape, np.nan)
    levels[there] = np.asarray(COMPRESSED, dtype=np.float64)[found[there].astype(int) - LOWEST]
    return levels


@dataclass(frozen=True, eq=False)
class Levels:
    """Ratings sorted into levels."""

    names: NDArray[np.float64]
    """The rating that stands for each level: of merged ones the most common."""
    members: list[list[float]]
    """Ratings of each level."""
    labels_NM: IntArray
    """Level of each rating, `MISSING` where there is none."""


def levels_of(ratings_NM: FloatArray, num_levels: int | None = None) -> Levels:
    """Sort ratings into levels: each one of its own, or `num_levels` of about equally many ratings.

    Raises
    ------
    InputError : all ratings are equal, or there are too many different ones.
    """
    there = np.isfinite(ratings_NM)
    found, place, count = np.unique(ratings_NM[there], return_inverse=True, return_counts=True)
    if len(found) == 1:
        raise InputError(f"all ratings are {found[0]:g}: nothing can be told apart. Rate anew, asking for spread.")
    if num_levels is None and len(found) > MOST_LEVELS:
        raise InputError(f"{len(found)} different ratings, and {MOST_LEVELS} levels are the most. Give --levels.")
    if num_levels is not None and not 2 <= num_levels <= min(len(found), MOST_LEVELS):
        raise InputError(f"--levels {num_levels}: expected 2 to {min(len(found), MOST_LEVELS)}.")
    group_L = np.arange(len(found)) if num_levels is None else _even(count, num_levels)
    members = [np.flatnonzero(group_L == group) for group in range(int(group_L[-1]) + 1)]
    labels_NM = np.full(ratings_NM.shape, MISSING, dtype=np.int64)
    labels_NM[there] = group_L[place]
    names = np.array([found[max(of, key=count.__getitem__)] for of in members])
    return Levels(names, [found[of].tolist() for of in members], labels_NM)


def _even(count_L: IntArray, num_levels: int) -> IntArray:
    """Cut a row of counts where the shares 1/K, 2/K ... are nearest, leaving no part empty."""
    before_L, cuts = np.cumsum(count_L)[:-1], list[int]()
    for number in range(1, num_levels):
        free = np.arange(cuts[-1] + 1 if cuts else 0, len(before_L) - (num_levels - 1 - number))
        goal = before_L[-1] + count_L[-1]
        cuts.append(int(free[np.abs(before_L[free] - goal * number / num_levels).argmin()]))
    return np.searchsorted(np.array(cuts), np.arange(len(count_L)), side="left")


@dataclass(frozen=True, eq=False)
class Aggregate:
    """One rating a row, made of those of several raters."""

    labels_N: IntArray
    certainty_N: FloatArray
    """P(truth is that level | the row's ratings)."""
    matrices_MKK: FloatArray
    """T_mij = P(rater m says j | truth = i)."""
    prior_K: FloatArray
    three: tuple[int, int, int]
    """The raters who rated most rows together: of several triples the first."""
    agreement: Agreement
    """Of these three, in rows that have all of them."""
    misfit: float
    """Of the same: total variation distance between observed and fitted shares of triples, 0 to 1."""


def aggregate(labels_NM: IntArray, num_levels: int, *, exchangeable: bool) -> Aggregate:
    """Give each row the level that is likeliest after all its ratings.

    Parameters
    ----------
    exchangeable : bool
        All columns are ratings by the same rater, so they have one matrix, learnt from how often three of them agree.
        Otherwise each has its own, learnt by EM.

    Raises
    ------
    InputError : fewer than three columns, or no row with three ratings.
    NoResult : raters whose matrices cannot be learnt, since none of them is mostly right or they hardly agree.
    """
    num_raters = labels_NM.shape[1]
    if num_raters < 3:
        raise InputError(f"{num_raters} columns of ratings: give one, or at least three, which can be told from noise.")
    threes = [*combinations(range(num_raters), 3)]
    triples = [labels_NM[:, list(three)] for three in threes]
    together = [int((of != MISSING).all(axis=1).sum()) for of in triples]
    best = int(np.argmax(together))
    if not together[best]:
        raise InputError("no row has ratings by three raters, which is what tells them from noise. Name more columns.")
    count_KKK = triple_counts(triples[best], num_levels)
    agree = agreement(count_KKK)
    error = np.sqrt(agree.pair_by_chance / (1 - agree.pair_by_chance) / agree.num_rows)  # of no agreement at all
    if agree.above_chance < STANDARD_ERRORS * error:
        raise NoResult(
            f"the raters do not agree more than by chance ({agree.pair:.3f} of pairs, {agree.pair_by_chance:.3f} by "
            "chance), so nothing is learnt of the truth. Name other columns, or one."
        )
    if exchangeable:
        one = fit_transition(np.sum([triple_counts(of, num_levels) for of in triples], axis=0))
        raters = RaterTransitions(np.stack([one.matrix_KK] * num_raters), one.prior_K, np.nan, np.nan)
    else:
        raters = fit_raters(patterns(labels_NM, num_levels), num_levels)
    if not raters.is_dominant:
        raise NoResult(
            f"the ratings cannot be put together: with {num_levels} levels a rater does not rate each of them mostly "
            f"as itself (agreement {agree.above_chance:.2f} above chance). Give fewer --levels, or one column."
        )
    fitted_KKK = np.einsum("i,ij,ik,il->jkl", raters.prior_K, *raters.matrices_MKK[list(threes[best])])
    misfit = float(np.abs(count_KKK / count_KKK.sum() - fitted_KKK).sum() / 2)
    posterior_NK = raters.posterior(labels_NM)
    labels_N = posterior_NK.argmax(axis=1)
    certainty_N = posterior_NK[np.arange(len(labels_N)), labels_N]
    return Aggregate(labels_N, certainty_N, raters.matrices_MKK, raters.prior_K, threes[best], agree, misfit)
