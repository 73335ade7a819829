"""An estimator that mends noisy ratings by those of neighbours, as DS2 does (Pang et al., arXiv 2410.10877).

Shapes: N rows, D features, K levels.
"""

from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data

from amends.curate._labels.votes import Draws, count_in_draws, drawn_share, length_of_list, row_keys, tally
from amends.curate._pools.lists import MANY_SHORT, list_in_parts, long_tail
from amends.curate._pools.scale import Here, Workers, merged
from amends.io.progress import track
from amends.maths.arrays import FloatArray, IntArray
from amends.maths.transition import Transition, agreement, bootstrap, fit_transition, posterior

MOST_LEVELS = 20
REFUSED_BELOW, WARNED_BELOW = 0.10, 0.20
"""Agreement of nearest neighbours above chance (Cohen's kappa of the ratings).

On planted ratings with 35 % noise it is 0.33 where neighbours always share their true score, 0.27 where 0.78 of them do
(mending wins), 0.17 where 0.44 do (ratings get better, the rows selected get worse) and 0.09 where 0.21 do (ratings get
worse). GPT-4's ratings of UltraFeedback have 0.05; its ratings of MT-Bench answers 0.25 while answers to one question
are neighbours, and 0.07 when they are not. benchmarks/ds2.py prints all but UltraFeedback.
"""
WIDE = 0.3
"""Width of the interval of an entry of the diagonal from which on it is warned of."""
LEAST_WRONG, MOST_WRONG = 0.05, 0.95
"""Shares of a level to flag where the noise model says none, or all (official code: core/knn.py)."""


def joined(count_L: ArrayLike, fewest: int) -> IntArray:
    """Merge each level with fewer rows than `fewest` with the smaller of those beside it, rarest first.

    Returns
    -------
    int array (L,) : the group of each level, from 0 up.
    """
    sizes = [int(count) for count in np.asarray(count_L)]
    groups = [[level] for level in range(len(sizes))]
    while len(groups) > 1 and min(sizes) < fewest:
        rarest = sizes.index(min(sizes))
        beside = min((place for place in (rarest - 1, rarest + 1) if 0 <= place < len(sizes)), key=sizes.__getitem__)
        low, high = sorted((rarest, beside))
        sizes[low : high + 1] = [sizes[low] + sizes[high]]
        groups[low : high + 1] = [groups[low] + groups[high]]
    return np.repeat(np.arange(len(groups)), [len(group) for group in groups])


def wrong_shares(found: Transition, observed_K: ArrayLike) -> FloatArray:
    """Share of each rating that is wrong: 1 - T_ii p_i / P(rating = i), by Bayes with the frequencies observed."""
    right_K = np.minimum(np.diag(posterior(found.matrix_KK, found.prior_K, observed_K)), 1)
    wrong_K = 1 - right_K
    return np.where(wrong_K >= 1, MOST_WRONG, np.where(wrong_K <= 0, LEAST_WRONG, wrong_K))


def select(curated: ArrayLike, long_tail: ArrayLike, budget: int) -> IntArray:
    """Select rows: best ratings first, and of equal ones those that lie farthest from others.

    That takes whole levels from the best down, and of the level that does not fit the largest long-tail scores.

    Parameters
    ----------
    curated, long_tail : array (N,)
        A long-tail score that is NaN comes last in its level.

    Returns
    -------
    int array (budget,) : numbers of rows, best first.

    Raises
    ------
    ValueError : fewer rows than the budget, or a rating that is NaN.
    """
    score_N, tail_N = np.asarray(curated, dtype=np.float64), np.asarray(long_tail, dtype=np.float64)
    if not 0 <= budget <= len(score_N):
        raise ValueError(f"budget {budget}: expected 0 to {len(score_N)}, as there are so many rows.")
    if np.isnan(score_N).any():
        raise ValueError("a rating is NaN. Leave out what has no rating.")
    return np.lexsort((-np.where(np.isnan(tail_N), -1, tail_N), -score_N))[:budget]


class ScoreCurator(BaseEstimator):
    """Mend ratings that their nearest neighbours contradict, by a noise model learnt from the ratings alone.

    Parameters
    ----------
    k : int, default 10
        Rows that vote on a row, itself among them; also the neighbours of the long-tail score.
    rounds : int, default 50
        Draws whose triples are counted for the transition matrix.
    draws : int, default 51
        Draws in which neighbours vote.
    most_drawn : int, optional
        Mean number of rows of a draw, at most; 0.9 of the rows if that is fewer, and by default. The source has 50,000.
    confidence : float, default 0.5
        A rating is replaced from this confidence on.
    near : float, default 0.99
        Rows with at least this cosine are twins: they never vote on each other, and on others as one.
    fewest : int, default 100
        A level with fewer rows is merged with a level beside it.
    bootstrap : int, default 100
        Refits for the interval of the transition matrix.
    random_state : int, RandomState instance or None, default 0

    Attributes
    ----------
    levels_ : array (L,)
        Ratings found, in order.
    group_ : int array (L,)
        Which of the K levels of the noise model each belongs to, after rare ones were merged.
    transition_, interval_, agreement_ : Transition, Interval, Agreement
        Of `amends.maths.transition`, for the merged levels; None where it was refused before they were known.
    refusal_ : str or None
        Why nothing was mended: then `curated_` is y, and `error_prob_` and `confidence_` are NaN.
    warnings_ : list of str
    error_prob_, confidence_ : float array (N,)
        NaN of a row that had too few neighbours in every draw.
    score_, suggested_, curated_ : array (N,)
        In the kind of y, which `score_` is; a row that was not judged is suggested its own.
    long_tail_ : float array (N,)
        0 to 1; NaN of a row with nothing but twins and siblings beside it.
    num_twins_, num_siblings_ : int
        Entries that were left out of the lists of neighbours.

    Notes
    -----
    Deviations from the source: a row is in a draw by its own chance, not so that the draw has an
    exact size; neighbours inside a draw are read off one exact list, so that a draw need not be held to 50,000 rows,
    by which a row of a pool of 300,000 would be drawn 8 times in 51 and few reach a confidence of 0.5; twins and
    siblings are no neighbours.

    References
    ----------
    Pang et al., ICLR 2025, arXiv 2410.10877; Zhu, Song, Liu, ICML 2021; Zhu, Dong, Liu, ICML 2022.
    """

    refusal_: str | None

    def __init__(
        self,
        *,
        k: int = 10,
        rounds: int = 50,
        draws: int = 51,
        most_drawn: int | None = None,
        confidence: float = 0.5,
        near: float = 0.99,
        fewest: int = 100,
        bootstrap: int = 100,
        random_state: Any = 0,
    ) -> None:
        self.k = k
        self.rounds = rounds
        self.draws = draws
        self.most_drawn = most_drawn
        self.confidence = confidence
        self.near = near
        self.fewest = fewest
        self.bootstrap = bootstrap
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: ArrayLike | None = None, workers: Workers | None = None) -> Self:
        """Learn the noise of the ratings, and mend them.

        Parameters
        ----------
        X : array (N, D)
            Embeddings; only their directions count.
        y : array (N,)
            Ratings, of at most `MOST_LEVELS` levels in the order of their values.
        groups : int array (N,), optional
            Rows with the same number are siblings and never vote on each other; a negative one has none.
        workers : Workers, optional
            Where parts of the rows are worked on; default: here, all rows at once. See `_pools.scale`.

        Raises
        ------
        ValueError : a single level, too many, NaN, a parameter out of range.
        """
        for name, least in (("k", 3), ("rounds", 1), ("draws", 1), ("confidence", 0), ("fewest", 1), ("bootstrap", 2)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}.")
        if self.most_drawn is not None and self.most_drawn < 1:
            raise ValueError(f"most_drawn={self.most_drawn}: must be at least 1.")
        if self.confidence > 1 or np.isnan(self.near):
            raise ValueError(f"confidence={self.confidence}, near={self.near}: expected 0 to 1, and a cosine.")
        self._index = X.index if hasattr(X, "iloc") else None
        X, y = validate_data(self, X, y, ensure_min_features=2, ensure_min_samples=3)
        groups_N = None if groups is None else _checked_groups(groups, len(X))
        self.levels_, level_N, count_L = np.unique(y, return_inverse=True, return_counts=True)
        if not 2 <= len(self.levels_) <= MOST_LEVELS:
            found = f"one level only ({self.levels_[0]})" if len(self.levels_) == 1 else f"{len(self.levels_)} levels"
            raise ValueError(
                f"y has {found}: expected 2 to {MOST_LEVELS}. Round the ratings, or leave them as they are."
            )
        self.group_ = joined(count_L, self.fewest)
        labels_N = self.group_[level_N]
        workers = workers or Here()
        share = drawn_share(len(X), self.most_drawn)
        listed = list_in_parts(workers, X, length_of_list(share, self.k - 1), near=self.near, groups_N=groups_N)
        self.long_tail_ = np.concatenate(workers.bring(workers.each(long_tail, listed.by_part, shared=[self.k])))
        self.num_twins_, self.num_siblings_ = listed.num_twins, listed.num_siblings
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        labels, draws = workers.share(labels_N), workers.share(Draws(row_keys(X), seed, share))
        self._measure(workers, listed.by_part, labels, draws, np.random.default_rng(seed))
        if zeros := int((~X.any(axis=1)).sum()):
            self.warnings_.append(f"{zeros} rows of zeros have no direction, so no neighbours, and keep their rating.")
        num, self.score_ = len(y), np.array(y)
        self.error_prob_, self.confidence_ = np.full(num, np.nan), np.full(num, np.nan)
        self.suggested_, self.curated_ = np.array(y), np.array(y)
        if self.refusal_ is None:
            # A merged level speaks with the rating that is most common in it.
            commonest_K = [
                max(np.flatnonzero(self.group_ == g), key=count_L.__getitem__) for g in np.unique(self.group_)
            ]
            wrong_K = wrong_shares(self.transition_, np.bincount(labels_N) / num)
            numbers = range(self.rounds, self.rounds + self.draws)
            votes = tally(workers, listed.by_part, labels, len(wrong_K), draws, numbers, self.k, wrong_K)
            judged_N = votes.drawn_N > 0
            if not judged_N.any():
                self.refusal_ = f"no row has {self.k - 1} neighbours that are no twins or siblings of it (k={self.k})"
                return self
            if alone := int((~judged_N & X.any(axis=1)).sum()):
                self.warnings_.append(
                    f"{alone} rows are not judged and keep their rating: none of them has {self.k - 1} neighbours that "
                    "are no twins or siblings of it."
                )
            suggested_N, confidence_N = votes.suggestion(labels_N)
            self.error_prob_ = np.where(judged_N, votes.error_prob_N, np.nan)
            self.confidence_ = np.where(judged_N, confidence_N, np.nan)
            self.suggested_ = np.where(judged_N, self.levels_[commonest_K][suggested_N], y)
            changed_N = (self.error_prob_ > 0.5) & (self.confidence_ >= self.confidence)
            self.curated_ = np.where(changed_N, self.suggested_, y)
        return self

    def _measure(self, workers: Workers, lists: list[Any], labels: Any, draws: Any, rng: np.random.Generator) -> None:
        """Count triples, learn the noise, and say whether it can be believed."""
        num_levels = int(self.group_[-1]) + 1
        self.transition_: Any = None
        self.interval_: Any = None
        self.agreement_: Any = None
        self.warnings_: list[str] = []
        self.refusal_ = None
        if num_levels < len(self.group_):
            together = [self.levels_[self.group_ == group].tolist() for group in range(num_levels)]
            told = ", ".join(" with ".join(map(str, some)) for some in together if len(some) > 1)
            self.warnings_.append(f"Levels with fewer than {self.fewest} rows were merged: {told}.")
        if num_levels == 1:
            self.refusal_ = f"no two levels have {self.fewest} rows each, too few to learn how ratings err"
            return
        counted = workers.each(count_in_draws, lists, shared=[labels, num_levels, draws, range(self.rounds)])
        found = merged(workers, counted)
        self.counts_, num_drawn = found.count_KKK, int(found.count_KKK.sum()) + found.num_short
        if not found.count_KKK.any():
            self.refusal_ = "no row has two neighbours that are no twins or siblings of it"
            return
        self.agreement_ = agreement(self.counts_)
        above = self.agreement_.above_chance
        told = (
            f"the ratings of nearest neighbours agree {above:.2f} above chance "
            f"({self.agreement_.pair:.3f} of pairs, {self.agreement_.pair_by_chance:.3f} by chance)"
        )
        if above < REFUSED_BELOW:
            self.refusal_ = f"{told}, and {REFUSED_BELOW:.2f} is the least: neighbours do not share their score"
            return
        self.transition_ = fit_transition(self.counts_)
        if not self.transition_.is_dominant:
            self.refusal_ = "the noise model does not rate each level mostly as itself, so its levels have no names"
            return
        # A refit of 20 levels takes seconds, and there are a hundred.
        shown = partial(track, label="refitting the noise model", total=self.bootstrap)
        self.interval_ = bootstrap(self.counts_ / self.rounds, rng, rounds=self.bootstrap, shown=shown)
        if above < WARNED_BELOW:
            self.warnings_.append(
                f"{told[0].upper()}{told[1:]}; below {WARNED_BELOW:.2f} mended ratings may select worse rows than raw."
            )
        width_K = np.diag(self.interval_.high_KK - self.interval_.low_KK)
        if (width_K > WIDE).any():
            of = ", ".join(str(self.levels_[self.group_ == group].tolist()) for group in np.flatnonzero(width_K > WIDE))
            self.warnings_.append(
                f"How often these levels are rated right is hardly known (interval over {WIDE}): {of}."
            )
        if found.num_short > MANY_SHORT * num_drawn:
            self.warnings_.append(
                f"{found.num_short / num_drawn:.1%} of the rows drawn had too few neighbours in their lists, after "
                "twins and siblings were left out, and were not counted."
            )

    def to_frame(self) -> Any:
        """Give what was found of each row as a pandas data frame, with the index of X if that was one."""
        import pandas as pd

        names = ("score", "error_prob", "suggested", "confidence", "curated", "long_tail")
        return pd.DataFrame({name: getattr(self, f"{name}_") for name in names}, index=self._index)


def _checked_groups(groups: ArrayLike, num: int) -> IntArray:
    """Give the groups of rows as whole numbers, -1 of a row that has none."""
    found = np.asarray(groups)
    if found.shape != (num,) or found.dtype.kind not in "iuf":
        raise ValueError(f"groups: {found.dtype} {found.shape}, expected a whole number for each of the {num} rows.")
    whole = np.where(np.isnan(found), -1, found)
    if (off := np.flatnonzero(~np.isfinite(whole) | (whole != np.floor(whole)))).size:
        raise ValueError(f"groups: {whole[off[0]]} of row {off[0]} is no whole number. Number the groups, -1 for none.")
    return whole.astype(np.int64)
