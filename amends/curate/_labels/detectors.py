"""Detectors of wrong labels, each a scikit-learn estimator: fit(X, y), then what it says of every row.

What all of them learn, row by row: `noise_score_` (N), 0 to 1, higher where the label is more likely wrong; `flag_`
(N), whether it is called wrong; `suggested_` (N), the likeliest other label; `posterior_` (N, K), the chance of each
class in the order of `classes_`; `why_not_` (N), None, or why a row could not be judged: then it has NaN and no flag.

Shapes: N rows, D features, K classes, k neighbours.
"""

import warnings
from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from amends.curate._ds2.curator import WARNED_BELOW, wrong_shares
from amends.curate._labels.probabilities import checked_probabilities, confidence_of, confident, out_of_sample
from amends.curate._labels.votes import (
    DRAWN_SHARE,
    Draws,
    count_triples,
    length_of_list,
    neighbours_in,
    row_keys,
    tally,
)
from amends.curate._pools.lists import Lists, list_in_parts
from amends.curate._pools.scale import Here, Workers, merged, parts_of
from amends.io.errors import check_installed
from amends.maths.arrays import BoolArray, FloatArray, IntArray
from amends.maths.transition import Agreement, Transition, agreement, fit_transition

FEW = 100
"""Rows of a class, below which its share of wrong labels is not well known."""
ONLY, ZEROS, ALONE = (
    "it is the only row of its class",
    "its features are all zeros",
    "no draw held it with enough neighbours that are no copies",
)
"""Why a row is not judged."""


class Findings(NamedTuple):
    """What a detector says of the rows it looked at; NaN as noise where it cannot say."""

    noise_N: FloatArray
    flag_N: BoolArray
    suggested_N: IntArray
    posterior_NK: FloatArray


class LabelErrorDetector(BaseEstimator, ABC):
    """What all detectors share; a detector gives `_find`."""

    classes_: np.ndarray

    def fit(self, X: Any, y: Any, workers: Workers | None = None) -> "LabelErrorDetector":
        """Judge the labels y (N,) by the features X (N, D).

        Parts of the rows are worked on by `workers`; default: here, all rows at once (`_pools.scale`).

        Raises
        ------
        ValueError : missing or infinite features, missing labels, one class, or as the detector says.
        """
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32))
        check_classification_targets(y)
        self.classes_, labels_N = np.unique(y, return_inverse=True)
        K = len(self.classes_)
        if K < 2:
            raise ValueError(f"1 class in y ({self.classes_[0]}): a label can only be wrong if there is another one.")
        only_N = np.bincount(labels_N, minlength=K)[labels_N] == 1
        if only_N.all():
            raise ValueError("no row can be judged: every label is the only one of its class. Give other labels.")
        self.why_not_ = np.full(len(y), None, dtype=object)
        self.why_not_[~self._usable(X)] = ZEROS
        usable_N = self.why_not_ == None  # noqa: E711  (elementwise)
        found = self._find(X[usable_N], labels_N[usable_N], workers or Here())
        self.why_not_[np.flatnonzero(usable_N)[np.isnan(found.noise_N)]] = ALONE
        self.why_not_[only_N] = ONLY
        judged_N = self.why_not_ == None  # noqa: E711
        if not judged_N.any():
            raise ValueError(f"no row can be judged: of the first, {self.why_not_[0]}. Give other features or labels.")
        for reason in (ONLY, ZEROS, ALONE):
            if num := int((self.why_not_ == reason).sum()):
                warnings.warn(f"{num} rows are not judged: of each, {reason}.", UserWarning, stacklevel=2)
        self.noise_score_, self.flag_ = np.full(len(y), np.nan), np.zeros(len(y), bool)
        self.posterior_, suggested_N = np.full((len(y), K), np.nan), labels_N.copy()
        here_N = judged_N[usable_N]
        self.noise_score_[judged_N], self.flag_[judged_N] = found.noise_N[here_N], found.flag_N[here_N]
        self.posterior_[judged_N] = found.posterior_NK[here_N]
        suggested_N[judged_N] = found.suggested_N[here_N]
        # Where the label itself is likeliest, the next one is suggested.
        others_NK = self.posterior_.copy()
        others_NK[np.arange(len(y)), labels_N] = -1
        same_N = judged_N & (suggested_N == labels_N)
        suggested_N[same_N] = others_NK[same_N].argmax(axis=1)
        self.suggested_ = self.classes_[suggested_N]
        return self

    def _usable(self, X: np.ndarray) -> BoolArray:
        """Rows that the detector can look at."""
        return np.ones(len(X), bool)

    @abstractmethod
    def _find(self, X: np.ndarray, labels_N: IntArray, workers: Workers) -> Findings:
        """Judge the usable rows."""

    def __sklearn_tags__(self) -> Tags:
        """Labels are needed."""
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


# By neighbours ----------------------------------------------------------------------------------------------------


class _ByNeighbours(LabelErrorDetector):
    """Detectors that compare the directions of rows."""

    def _usable(self, X: np.ndarray) -> BoolArray:
        if X.shape[1] < 2:
            raise ValueError("n_features = 1: directions need two features or more. Give embeddings.")
        return np.asarray((X != 0).any(axis=1))

    def _agree(self, lists: list[Any], labels: Any, in_all: Any, workers: Workers) -> IntArray:
        """Count labels with those of the two nearest, and warn where these agree hardly more than chance."""
        counted = workers.each(count_triples, lists, shared=[labels, len(self.classes_), in_all])
        counts_KKK: IntArray = merged(workers, counted).count_KKK
        self.agreement_ = checked_agreement(counts_KKK)
        return counts_KKK


def checked_agreement(counts_KKK: IntArray) -> Agreement:
    """Say how far labels agree with those of the two nearest, and warn where it is hardly more than chance."""
    if not counts_KKK.any():
        raise ValueError("all rows point the same way (constant features or copies of a row). Give other features.")
    found = agreement(counts_KKK)
    if found.above_chance < WARNED_BELOW:
        warnings.warn(
            f"neighbours agree in {found.pair:.0%} of the rows, by chance in {found.pair_by_chance:.0%}: these "
            "features do not cluster by label, and what neighbours say is worth little.",
            UserWarning,
            stacklevel=4,
        )
    return found


def _copies(X: np.ndarray) -> IntArray:
    return np.asarray(np.unique(row_keys(X), return_inverse=True)[1])


def lists_in_parts(workers: Workers, X: np.ndarray, num: int) -> list[Any]:
    """List neighbours; of rows that are equal none is another's, nor do two of them count in one list."""
    return list_in_parts(workers, X, num, near=np.inf, groups_N=_copies(X)).by_part


def lists_of(X: np.ndarray, num: int) -> Lists:
    """List neighbours in this process, as `lists_in_parts`."""
    found: Lists
    (found,) = lists_in_parts(Here(), X, num)
    return found


class SimiFeat(_ByNeighbours):
    """Neighbours vote for labels in many random draws; no model is trained.

    Source: Zhu, Dong, Liu 2022; the votes are those of `amends curate ds2`. The noise score is the share of draws that
    flag the row, started at one imagined draw for each outcome. The posterior is the share that propose each class,
    started at one draw divided among them; the source imagines one for each class, which would outweigh all if there
    are many.

    Parameters
    ----------
    rule : {"vote", "rank"}, default "vote"
        "vote": rows whose neighbours, and they themselves, mostly have another label. "rank": of each class the rows
        that agree least with their neighbours, as many as the transition matrix says are wrong.
    k : int, default 10
        Rows that vote, with the row itself; at most half of the rows there are.
    num_draws : int, default 21
    random_state : int, RandomState or None

    Attributes
    ----------
    transition_ : Transition or None
        T_ij = P(label j | truth i) and the prior, from how often a row and its two nearest agree; None for "vote".
    agreement_ : Agreement
        How often they agree, beside chance.
    """

    def __init__(
        self, rule: Literal["vote", "rank"] = "vote", *, k: int = 10, num_draws: int = 21, random_state: Any = None
    ) -> None:
        self.rule = rule
        self.k = k
        self.num_draws = num_draws
        self.random_state = random_state

    def _find(self, X: np.ndarray, labels_N: IntArray, workers: Workers) -> Findings:
        if self.rule not in ("rank", "vote"):
            raise ValueError(f"rule={self.rule!r}: choose rank or vote.")
        if self.k < 3 or self.num_draws < 1:
            raise ValueError(f"k={self.k}, num_draws={self.num_draws}: expected at least 3 and 1.")
        N, K = len(X), len(self.classes_)
        k, share = max(3, min(self.k, N // 2)), DRAWN_SHARE
        lists, labels = lists_in_parts(workers, X, length_of_list(share, k - 1)), workers.share(labels_N)
        counts_KKK = self._agree(lists, labels, workers.share(np.ones(N, bool)), workers)
        self.transition_: Transition | None = None
        wrong_K: FloatArray | None = None
        if self.rule == "rank":
            self.transition_ = fit_transition(counts_KKK)
            size_K = np.bincount(labels_N, minlength=K)
            wrong_K = wrong_shares(self.transition_, size_K / N)
            if few := int((size_K < FEW).sum()):
                warnings.warn(
                    f"{few} classes have fewer than {FEW} rows: how many of them are wrong is not well known. Votes do "
                    "without.",
                    UserWarning,
                    stacklevel=3,
                )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        draws = workers.share(Draws(row_keys(X), seed, share))
        found = tally(workers, lists, labels, K, draws, range(self.num_draws), k, wrong_K)
        noise_N = np.where(found.drawn_N > 0, found.error_prob_N, np.nan)
        posterior_NK = (found.proposed_NK + 1 / K) / (found.drawn_N[:, None] + 1)
        return Findings(noise_N, noise_N > 0.5, found.suggestion(labels_N)[0], posterior_NK)


class DeepKNN(_ByNeighbours):
    """A label is called wrong if more of the nearest neighbours have another one in common than have it.

    The name is from Bahri, Jiang, Gupta 2020, where features are those of a deep model. The posterior is the share of
    the neighbours that has each label.

    Parameters
    ----------
    k : int, default 10
        Neighbours, without the row itself; at most half of the rows there are.
    """

    def __init__(self, k: int = 10) -> None:
        self.k = k

    def _find(self, X: np.ndarray, labels_N: IntArray, workers: Workers) -> Findings:
        if self.k < 1:
            raise ValueError(f"k={self.k}: expected at least 1.")
        N, K = len(X), len(self.classes_)
        lists = lists_in_parts(workers, X, k := max(1, min(self.k, N // 2)))
        labels, in_all = workers.share(labels_N), workers.share(np.ones(N, bool))
        self._agree(lists, labels, in_all, workers)
        found = workers.bring(workers.each(_shares, lists, shared=[labels, K, in_all, k]))
        votes_NK = np.concatenate(found)
        noise_N = np.where(votes_NK.any(axis=1), 1 - votes_NK[np.arange(N), labels_N], np.nan)
        most_N = votes_NK.argmax(axis=1)
        return Findings(noise_N, votes_NK[np.arange(N), most_N] > 1 - noise_N, most_N, votes_NK)


def _shares(lists: Lists, labels_N: IntArray, num_classes: int, in_N: BoolArray, k: int) -> FloatArray:
    """Local: the share of the k nearest that has each label, (M, K); zeros where fewer are listed."""
    found = neighbours_in(lists, in_N, k)
    votes_MK = np.zeros((len(lists.num_M), num_classes))
    np.add.at(votes_MK, (found.row_M[:, None] - lists.first, labels_N[found.index_Mk]), 1 / k)
    return votes_MK


# By probabilities -------------------------------------------------------------------------------------------------


class _ByProbability(LabelErrorDetector):
    """Detectors that need, of each row, the probabilities of a model that was not trained on it."""

    def __init__(self, estimator: Any = None, *, cv: Any = 5, random_state: Any = None) -> None:
        self.estimator = estimator
        self.cv = cv
        self.random_state = random_state

    def _find(self, X: np.ndarray, labels_N: IntArray, workers: Workers) -> Findings:
        p_NK = self._probabilities(X, labels_N)
        own_N = p_NK[np.arange(len(p_NK)), labels_N]
        return self._judged(p_NK, own_N, labels_N, workers)

    @abstractmethod
    def _judged(self, p_NK: FloatArray, own_N: FloatArray, labels_N: IntArray, workers: Workers) -> Findings:
        """Judge rows by the probabilities of a model that did not see them; `own_N` are those of their labels."""

    def _probabilities(self, X: np.ndarray, labels_N: IntArray) -> FloatArray:
        if isinstance(self.estimator, str):
            if self.estimator != "precomputed":
                raise ValueError(f"estimator={self.estimator!r}: give an estimator, 'precomputed' or None.")
            return checked_probabilities(X, len(self.classes_))
        model = LogisticRegression(max_iter=1000) if self.estimator is None else self.estimator
        return out_of_sample(model, X, labels_N, len(self.classes_), self.cv, self.random_state)


class ConfidentLearning(_ByProbability):
    """A label is called wrong if a model is confident, by each class's own standard, of another one.

    t_j is the mean probability of j over the rows with label j; a row counts for the likeliest class among those with
    p_j >= t_j, and is flagged if that is not its label. The same as `cleanlab`'s filter "confident_learning", except
    that no row counts for a class with t_j = 0, of which nothing is known. Source: Northcutt, Jiang, Chuang 2021, eq. 1
    and 2.

    Parameters
    ----------
    estimator : classifier, "precomputed" or None
        Default: logistic regression, cross-validated. "precomputed": X holds out-of-sample probabilities (N, K), in the
        order of the sorted labels.
    cv : int or splitter, default 5
        Folds; each row is tested in one.
    random_state : int, RandomState or None
        Of the folds.

    Attributes
    ----------
    thresholds_ : float array (K,)
        t_j; 0 of a class of a single row, as no model that was trained on others knows it.
    confident_joint_ : int array (K, K)
        How many rows with each label count for each class.
    """

    def _judged(self, p_NK: FloatArray, own_N: FloatArray, labels_N: IntArray, workers: Workers) -> Findings:
        p, labels = workers.share(p_NK), workers.share(labels_N)
        parts = parts_of(len(p_NK), workers.num_parts)
        told = merged(workers, workers.each(confidence_of, parts, shared=[p, labels]))
        self.thresholds_ = told.sum_K / told.size_K
        found = workers.bring(workers.each(confident, parts, shared=[p, labels, self.thresholds_]))
        flag_N, best_N = np.concatenate([of.flag_M for of in found]), np.concatenate([of.best_M for of in found])
        self.confident_joint_ = sum(of.joint_KK for of in found)
        return Findings(1 - own_N, flag_N, best_N, p_NK)


class Cleanlab(_ByProbability):
    """`cleanlab.filter.find_label_issues` with its defaults, which prune each class by its estimated noise rate.

    Needs `cleanlab` (extra "cleanlab"). Parameters are those of `ConfidentLearning`.
    """

    def _judged(self, p_NK: FloatArray, own_N: FloatArray, labels_N: IntArray, workers: Workers) -> Findings:
        check_installed("cleanlab", "cleanlab", "cleanlab")
        from cleanlab.filter import find_label_issues

        flag_N = find_label_issues(labels_N, p_NK, n_jobs=1)
        return Findings(1 - own_N, np.asarray(flag_N), p_NK.argmax(axis=1), p_NK)


class CORES(_ByProbability):
    """The sieve of CORES: a label is called wrong if its loss is not below the mean loss over all classes.

    The model is trained with the CORES loss, which rewards confidence; without that few labels fail. The noise score is
    the logistic function of what the label's loss has above the mean. Source: Cheng et al. 2021. Deviation: they sieve
    the rows they train on, here a row is judged by a model that did not see it.

    Parameters
    ----------
    estimator : classifier, "precomputed" or None
        Default: `RobustClassifier(loss="cores")`.
    cv, random_state : as of `ConfidentLearning`
    """

    def _probabilities(self, X: np.ndarray, labels_N: IntArray) -> FloatArray:
        if self.estimator is not None:
            return super()._probabilities(X, labels_N)
        from amends.curate._labels.robust import RobustClassifier

        seed = check_random_state(self.random_state).randint(2**31 - 1)
        model = RobustClassifier("cores", random_state=seed)
        return out_of_sample(model, X, labels_N, len(self.classes_), self.cv, seed)

    def _judged(self, p_NK: FloatArray, own_N: FloatArray, labels_N: IntArray, workers: Workers) -> Findings:
        loss_NK = -np.log(p_NK + 1e-8)
        excess_N = loss_NK[np.arange(len(p_NK)), labels_N] - loss_NK.mean(axis=1)
        return Findings(1 / (1 + np.exp(-excess_N)), excess_N >= 0, p_NK.argmax(axis=1), p_NK)


DETECTORS: dict[str, Any] = {
    "simifeat-vote": lambda **how: SimiFeat("vote", **how),
    "simifeat-rank": lambda **how: SimiFeat("rank", **how),
    "knn": DeepKNN,
    "confident": ConfidentLearning,
    "cleanlab": Cleanlab,
    "cores": CORES,
}
BY_PROBABILITY = ("confident", "cleanlab", "cores")
