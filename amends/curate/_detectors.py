"""Detectors of wrong labels, each a scikit-learn estimator: fit(X, y), then what it says of every row.

What all of them learn, row by row: `noise_score_` (N), 0 to 1, higher where the label is more likely wrong; `flag_`
(N), whether it is called wrong; `suggested_` (N), the likeliest other label; `posterior_` (N, K), the chance of each
class in the order of `classes_`; `judged_` (N), whether it could be judged. The only row of its class cannot, nor, by
neighbours, one that is all zeros: it has NaN and no flag.

Shapes: N rows, D features, K classes, k neighbours.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from amends.curate._simifeat import (
    NOBODY,
    BoolArray,
    FloatArray,
    IntArray,
    Rule,
    consensus,
    error_rates,
    judge,
    list_length,
    neighbourhood,
)
from amends.io.errors import check_installed
from amends.maths.transition import Agreement, Transition, agreement, fit_transition

LEAST_ABOVE_CHANCE = 0.2
"""Agreement of neighbours beyond chance (kappa), below which what they say of labels is doubted aloud."""


class Findings(NamedTuple):
    """What a detector says of the rows it could judge."""

    noise_N: FloatArray
    flag_N: BoolArray
    suggested_N: IntArray
    posterior_NK: FloatArray


class LabelErrorDetector(BaseEstimator):
    """What all detectors share; a detector gives `_find`."""

    classes_: np.ndarray

    def fit(self, X: Any, y: Any) -> "LabelErrorDetector":
        """Judge the labels y (N,) by the features X (N, D).

        Raises
        ------
        ValueError : missing or infinite features, missing labels, one class, or as the detector says.
        """
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32))
        check_classification_targets(y)
        self.classes_, labels_N = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"1 class in y ({self.classes_[0]}): a label can only be wrong if there is another one.")
        usable_N = self._usable(X)
        if num := int((~usable_N).sum()):
            warnings.warn(f"{num} rows are all zeros, point nowhere and are not judged.", UserWarning, stacklevel=2)
        counts_K = np.bincount(labels_N[usable_N], minlength=len(self.classes_))
        single_N = usable_N & (counts_K[labels_N] == 1)
        if num := int(single_N.sum()):
            warnings.warn(f"{num} rows are the only ones of their class and are not judged.", UserWarning, stacklevel=2)
        self.judged_ = usable_N & ~single_N
        if not self.judged_.any():
            raise ValueError("every label is the only one of its class: nothing can be compared. Give other labels.")
        found, rows_U = self._find(X[usable_N], labels_N[usable_N]), np.arange(int(usable_N.sum()))
        others_UK = found.posterior_NK.copy()
        others_UK[rows_U, labels_N[usable_N]] = -1
        self.noise_score_ = np.full(len(y), np.nan)
        self.flag_ = np.zeros(len(y), bool)
        self.posterior_ = np.full((len(y), len(self.classes_)), np.nan)
        suggested_N = labels_N.copy()
        self.noise_score_[usable_N], self.flag_[usable_N] = found.noise_N, found.flag_N
        self.posterior_[usable_N] = found.posterior_NK
        suggested_N[usable_N] = np.where(
            found.suggested_N == labels_N[usable_N], others_UK.argmax(axis=1), found.suggested_N
        )
        self.flag_ &= self.judged_
        self.noise_score_[~self.judged_], self.posterior_[~self.judged_] = np.nan, np.nan
        self.suggested_ = self.classes_[suggested_N]
        return self

    def _usable(self, X: np.ndarray) -> BoolArray:
        """Rows that the detector can look at."""
        return np.ones(len(X), bool)

    def _find(self, X: np.ndarray, labels_N: IntArray) -> Findings:
        raise NotImplementedError

    def __sklearn_tags__(self) -> Tags:
        """Labels are needed."""
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


# By neighbours ----------------------------------------------------------------------------------------------------


class _ByNeighbours(LabelErrorDetector):
    """Detectors that compare the directions of rows."""

    def _usable(self, X: np.ndarray) -> BoolArray:
        return np.asarray((X != 0).any(axis=1))


class SimiFeat(_ByNeighbours):
    """Neighbours vote for labels in many random draws; no model is trained.

    Source: Zhu, Dong, Liu 2022. The noise score is the share of draws that flag the row, the posterior the share that
    propose each class, both started at one imagined draw for each outcome.

    Parameters
    ----------
    rule : {"rank", "vote"}, default "rank"
        "rank": of each class the rows that agree least with their neighbours, as many as the transition matrix leaves
        wrong. "vote": rows whose neighbours, and they themselves, mostly have another label.
    k : int, default 10
        Rows that vote, with the row itself.
    num_draws : int, default 21
    approximate : bool, default False
        Search neighbours in a graph: for hundreds of thousands of rows.
    random_state : int, RandomState or None

    Attributes
    ----------
    transition_ : Transition or None
        T_ij = P(label j | truth i) and the prior, from how often a row and its two nearest agree; None for "vote".
    agreement_ : Agreement
        How often they agree, beside chance.
    """

    def __init__(
        self,
        rule: Rule = "rank",
        *,
        k: int = 10,
        num_draws: int = 21,
        approximate: bool = False,
        random_state: Any = None,
    ) -> None:
        self.rule = rule
        self.k = k
        self.num_draws = num_draws
        self.approximate = approximate
        self.random_state = random_state

    def _find(self, X: np.ndarray, labels_N: IntArray) -> Findings:
        if self.rule not in ("rank", "vote"):
            raise ValueError(f"rule={self.rule!r}: choose rank or vote.")
        if self.k < 3 or self.num_draws < 1:
            raise ValueError(f"k={self.k}, num_draws={self.num_draws}: expected at least 3 and 1.")
        K = len(self.classes_)
        near = neighbours_of(X, max(2, list_length(len(X), self.k)), self.approximate)
        counts_KKK = consensus(near, labels_N, K)
        self.agreement_ = told(agreement(counts_KKK))
        self.transition_: Transition | None = fit_transition(counts_KKK) if self.rule == "rank" else None
        rate_K = None if self.transition_ is None else error_rates(self.transition_, labels_N)
        rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31 - 1))
        judged = judge(near, labels_N, K, rng, rate_K=rate_K, rule=self.rule, k=self.k, num_draws=self.num_draws)
        return Findings(judged.error_N, judged.is_wrong_N, judged.suggested(labels_N), judged.proposal_NK)


class DeepKNN(_ByNeighbours):
    """A label is called wrong if most of its nearest neighbours have another one in common.

    The name is from Bahri, Jiang, Gupta 2020, where features are those of a deep model. The posterior is the share of
    the neighbours that has each label; a row without neighbours has its own.

    Parameters
    ----------
    k : int, default 10
        Neighbours, without the row itself.
    approximate : bool, default False
    """

    def __init__(self, k: int = 10, *, approximate: bool = False) -> None:
        self.k = k
        self.approximate = approximate

    def _find(self, X: np.ndarray, labels_N: IntArray) -> Findings:
        if self.k < 1:
            raise ValueError(f"k={self.k}: expected at least 1.")
        K, rows_N = len(self.classes_), np.arange(len(X))
        near = neighbours_of(X, self.k, self.approximate)
        self.agreement_ = told(agreement(consensus(near, labels_N, K))) if near.index_Nm.shape[1] > 1 else None
        line_V, column_V = np.nonzero(near.index_Nm != NOBODY)
        votes = np.bincount(line_V * K + labels_N[near.index_Nm[line_V, column_V]], minlength=len(X) * K)
        votes_NK = votes.reshape(len(X), K).astype(np.float64)
        alone_N = ~votes_NK.any(axis=1)
        votes_NK[alone_N, labels_N[alone_N]] = 1
        share_NK = votes_NK / votes_NK.sum(axis=1, keepdims=True)
        own_N = share_NK[rows_N, labels_N]
        most_N = share_NK.argmax(axis=1)
        return Findings(1 - own_N, share_NK[rows_N, most_N] > own_N, most_N, share_NK)


def neighbours_of(X: np.ndarray, num: int, approximate: bool) -> Any:
    """Find neighbours, with a reason where features cannot have any."""
    if X.shape[1] < 2:
        raise ValueError("n_features = 1: directions need two features or more. Give embeddings.")
    near = neighbourhood(X, num, approximate=approximate)
    if (near.index_Nm == NOBODY).all():
        raise ValueError("all rows point the same way (constant features, or copies of one row). Give other features.")
    return near


def told(found: Agreement) -> Agreement:
    """Warn where neighbours agree hardly more than chance."""
    if found.above_chance < LEAST_ABOVE_CHANCE:
        warnings.warn(
            f"neighbours agree in {found.pair:.0%} of the rows, by chance in {found.pair_by_chance:.0%}: these "
            "features do not cluster by label, and what neighbours say is worth little.",
            UserWarning,
            stacklevel=2,
        )
    return found


# By probabilities -------------------------------------------------------------------------------------------------


class _ByProbability(LabelErrorDetector):
    """Detectors that need, of each row, the probabilities of a model that was not trained on it."""

    def __init__(self, estimator: Any = None, *, cv: int = 5, random_state: Any = None) -> None:
        self.estimator = estimator
        self.cv = cv
        self.random_state = random_state

    def _find(self, X: np.ndarray, labels_N: IntArray) -> Findings:
        p_NK = self._probabilities(X, labels_N)
        own_N = p_NK[np.arange(len(p_NK)), labels_N]
        return self._judged(p_NK, own_N, labels_N)

    def _judged(self, p_NK: FloatArray, own_N: FloatArray, labels_N: IntArray) -> Findings:
        raise NotImplementedError

    def _probabilities(self, X: np.ndarray, labels_N: IntArray) -> FloatArray:
        K = len(self.classes_)
        if isinstance(self.estimator, str):
            if self.estimator != "precomputed":
                raise ValueError(f"estimator={self.estimator!r}: give an estimator, 'precomputed' or None.")
            return checked_probabilities(X, K)
        counts_K = np.bincount(labels_N)
        if self.cv < 2:
            raise ValueError(f"cv={self.cv}: expected at least 2 folds.")
        num_folds = min(self.cv, int(counts_K.max()))
        if few := int((counts_K < num_folds).sum()):
            warnings.warn(
                f"{few} classes have fewer rows than the {num_folds} folds: some folds know nothing of them.",
                UserWarning,
                stacklevel=2,
            )
        folds = StratifiedKFold(num_folds, shuffle=True, random_state=check_random_state(self.random_state))
        model = LogisticRegression(max_iter=1000) if self.estimator is None else self.estimator
        p_NK = np.zeros((len(X), K))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
            splits = list(folds.split(X, labels_N))
        for train, test in splits:
            fitted = clone(model).fit(X[train], labels_N[train])
            p_NK[np.ix_(test, fitted.classes_)] = fitted.predict_proba(X[test])
        return p_NK


class ConfidentLearning(_ByProbability):
    """A label is called wrong if a model is confident, by each class's own standard, of another one.

    t_j is the mean probability of j over the rows with label j; a row counts for the likeliest class among those with
    p_j >= t_j, and is flagged if that is not its label. The same as `cleanlab`'s filter "confident_learning". Source:
    Northcutt, Jiang, Chuang 2021, eq. 1 and 2.

    Parameters
    ----------
    estimator : classifier, "precomputed" or None
        Default: logistic regression, cross-validated. "precomputed": X holds out-of-sample probabilities (N, K), in the
        order of the sorted labels.
    cv : int, default 5
        Folds.
    random_state : int, RandomState or None
        Of the folds.
    """

    def _judged(self, p_NK: FloatArray, own_N: FloatArray, labels_N: IntArray) -> Findings:
        K = p_NK.shape[1]
        self.thresholds_ = np.bincount(labels_N, own_N, K) / np.bincount(labels_N, minlength=K)
        confident_NK = np.where(p_NK >= self.thresholds_ - 1e-12, p_NK, -1.0)
        best_N = confident_NK.argmax(axis=1)
        flag_N = (confident_NK.max(axis=1) >= 0) & (best_N != labels_N)
        return Findings(1 - own_N, flag_N, np.where(flag_N, best_N, p_NK.argmax(axis=1)), p_NK)


class Cleanlab(_ByProbability):
    """`cleanlab.filter.find_label_issues` with its defaults, which prune each class by its estimated noise rate.

    Needs `cleanlab` (extra "cleanlab"). Parameters are those of `ConfidentLearning`.
    """

    def _judged(self, p_NK: FloatArray, own_N: FloatArray, labels_N: IntArray) -> Findings:
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
        from amends.curate._robust import RobustClassifier

        seed = check_random_state(self.random_state).randint(2**31 - 1)
        beside = CORES(RobustClassifier("cores", random_state=seed), cv=self.cv, random_state=seed)
        beside.classes_ = self.classes_
        return beside._probabilities(X, labels_N)

    def _judged(self, p_NK: FloatArray, own_N: FloatArray, labels_N: IntArray) -> Findings:
        loss_NK = -np.log(p_NK + 1e-8)
        excess_N = loss_NK[np.arange(len(p_NK)), labels_N] - loss_NK.mean(axis=1)
        return Findings(1 / (1 + np.exp(-excess_N)), excess_N >= 0, p_NK.argmax(axis=1), p_NK)


def checked_probabilities(p_NK: np.ndarray, num_classes: int) -> FloatArray:
    """Probabilities of given classes, if they are some.

    Raises
    ------
    ValueError : another number of columns, a number outside 0 to 1, or a row that does not sum to 1.
    """
    if p_NK.shape[1] != num_classes:
        raise ValueError(f"probabilities of {p_NK.shape[1]} classes, labels of {num_classes}: give one a class.")
    off_N = ((p_NK < 0) | (p_NK > 1)).any(axis=1) | (np.abs(p_NK.sum(axis=1) - 1) > 1e-3)
    if off_N.any():
        row = int(np.flatnonzero(off_N)[0])
        what = f"{off_N.sum()} rows hold no probabilities (0 to 1, sum 1)"
        raise ValueError(f"{what}, the first is row {row}: sum {p_NK[row].sum():.4g}.")
    return np.asarray(p_NK / p_NK.sum(axis=1, keepdims=True), dtype=np.float64)


DETECTORS: dict[str, Any] = {
    "simifeat-rank": SimiFeat,
    "simifeat-vote": lambda **how: SimiFeat("vote", **how),
    "knn": DeepKNN,
    "confident": ConfidentLearning,
    "cleanlab": Cleanlab,
    "cores": CORES,
}
BY_PROBABILITY = ("confident", "cleanlab", "cores")
