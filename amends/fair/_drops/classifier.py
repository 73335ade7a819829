"""The estimator of `amends fair drops`: any classifier, and the weights that make it robust to a shift of the prior.

Shapes: N rows, K classes, C cells (see `amends.fair._drops.prior_robust`), D deltas.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.utils import Tags, _safe_indexing, check_random_state, get_tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    assert_all_finite,
    check_array,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from amends.fair._drops.ambiguity import NAMES, Name
from amends.fair._drops.prior_robust import (
    FLOOR,
    SMOOTH,
    Average,
    Cells,
    Loss,
    cells_of,
    check_delta,
    check_probabilities,
    check_rows,
    fit_temperature,
    losses,
    read_prior,
    rescaled,
    tempered,
    tune,
    warn_of,
    worst_accuracy,
)
from amends.fair._tables.folds import check_folds, splits_of
from amends.fair._tables.groups import Groups, read_groups
from amends.maths.arrays import FloatArray, IntArray

PRECOMPUTED = "precomputed"
DELTAS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True, eq=False)
class Curve:
    """Delta-worst accuracy of three rules on the same rows, over delta."""

    delta_D: FloatArray
    plain_D: FloatArray
    """The model as it is."""
    adjusted_D: FloatArray
    """Its probabilities adjusted to the target prior: delta 0."""
    robust_D: FloatArray
    """The rule that was tuned."""


def _readable(X: Any) -> Any:
    """Leave data frames and texts to the estimator; the rest becomes an array of rows."""
    text = isinstance(X, list | np.ndarray) and len(X) > 0 and isinstance(X[0], str)
    if text or hasattr(X, "columns") or hasattr(X, "str"):  # data frames, and series of texts
        return X
    return check_array(X, accept_sparse="csr", dtype=None, ensure_all_finite=False)


class PriorRobustClassifier(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """Rescale a classifier's probabilities so that accuracy stays high under every prior within delta of a target.

    Parameters
    ----------
    estimator : estimator, "precomputed" or None
        One that is fitted stays as it is, and `fit` only tunes weights: give it other rows than it was trained on (in
        a `FrozenEstimator` it survives `clone`). One that is not fitted is trained on the rows that `fit` gets, and the
        weights are tuned on out-of-fold probabilities. "precomputed": X holds the probabilities, in the order of the
        sorted classes, or of (class, group), class by class. None: logistic regression.
    target_prior : "uniform", "train", list of float, or mapping, default "uniform"
        Centre of the priors that may come: of the classes, in the order of `classes_`; with groups of `cells_`.
    delta : float, default 0.2
        How far from it they may lie; 0 adjusts to the target alone. KL in nats: from log K on, around a uniform
        target of K classes, any prior may come.
    divergence : {"kl", "reverse-kl", "l1", "l2"}, default "kl"
        KL(g||r), KL(r||g), sum |g - r| or sum (g - r)^2 of a prior g and the target r.
    loss : {"zero-one", "cross-entropy"}, default "zero-one"
        What the adversary counts: errors, or the log-probability of the right class, which is smoother on few rows.
    average : {"best", "last-half"}, default "best"
        The weights on the path with the best delta-worst accuracy on these rows, smoothed, which is never below that
        of delta 0 there, or the mean of the last half of the path.
    calibrate : {None, "temperature"}, default None
        Fit one temperature to the probabilities first.
    smooth : float, default 10
        Rows of mean loss that each class is given on top of its own, so that a few are not taken at their word.
    cv : int or splitter, default 5
        Folds, for an estimator that is not fitted.
    steps, rate : int, float, default 400, 0.1
        Of the search.
    random_state : int, RandomState or None
        Of the folds.

    Attributes
    ----------
    classes_ : (K,)
    cells_ : list
        Classes, or (class, group), that the following arrays (C,) go by.
    weights_ : the prior g that the rule is the best one for
    factors_ : weights by training prior, what probabilities are multiplied by; 0 where a cell was never seen
    train_prior_, target_prior_ : float (C,)
    multiplier_ : float
        0 where delta does not bind: a larger one changes nothing.
    temperature_ : float
        1 if not calibrated.
    class_factors_ : float (K,), where the estimator tells classes alone: its probabilities by these say the same
    estimator_ : the fitted estimator, or "precomputed"
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        target_prior: Any = "uniform",
        delta: float = 0.2,
        divergence: Name = "kl",
        loss: Loss = "zero-one",
        average: Average = "best",
        calibrate: Any = None,
        smooth: float = SMOOTH,
        cv: Any = 5,
        steps: int = 400,
        rate: float = 0.1,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.target_prior = target_prior
        self.delta = delta
        self.divergence = divergence
        self.loss = loss
        self.average = average
        self.calibrate = calibrate
        self.smooth = smooth
        self.cv = cv
        self.steps = steps
        self.rate = rate
        self.random_state = random_state

    def fit(self, X: Any, y: Any, train_prior: Any = None, sensitive_features: Any = None) -> "PriorRobustClassifier":
        """Tune the weights, after training the estimator if it is not fitted.

        Parameters
        ----------
        X, y : rows and labels, as the estimator takes them
            Of a fitted estimator: rows that it was not trained on. Their shares of classes need not be any prior.
        train_prior : list or mapping, optional
            Shares of the classes, or of (class, group), among the rows that a fitted estimator was trained on. Default:
            the shares in y, which are right if these rows were drawn from the same.
        sensitive_features : as in fairlearn, optional
            The weights then hold for each class in each group. An estimator that is not fitted learns to tell these
            apart. Of a fitted one that tells classes alone, or "precomputed" by class, P(y, a|x) is taken to be
            P(y|x) P(a|y).

        Raises
        ------
        ValueError : options or data that do not fit; what is expected.
        """
        self._check_options()
        X = _readable(X)
        validate_data(self, X, y, skip_check_array=True)
        y = column_or_1d(y, warn=True)
        check_consistent_length(X, y)
        assert_all_finite(y, input_name="y")
        check_classification_targets(y)
        groups = None if sensitive_features is None else read_groups(sensitive_features, len(y))
        self.estimator_, trained = self._given(), self._given() is not None
        classes = np.unique(y)
        if trained and self.estimator_ != PRECOMPUTED and groups is None:
            classes = np.unique(np.concatenate([self.estimator_.classes_, classes]))
        if len(classes) < 2:
            raise ValueError(f"1 class in y ({classes.tolist()[0]!r}): give rows of another one.")
        self.classes_, self.groups_ = classes, None if groups is None else groups.names
        self._cells = cells_of(classes.tolist(), groups)
        self.cells_ = self._cells.names
        cell_N = self._cell(y, groups)
        count_C = np.bincount(cell_N, minlength=len(self.cells_))
        self._learnt_cells = not trained and groups is not None
        if not trained and train_prior is not None:
            raise ValueError(
                "train_prior: the estimator is not fitted and is trained on these rows, whose shares are its prior. "
                "Leave it out, or give an estimator that is fitted."
            )
        self.train_prior_ = self._train_prior(train_prior, count_C / count_C.sum())
        self.target_prior_ = read_prior(self.target_prior, self._cells, self.train_prior_, "target_prior")
        if (lost_C := (self.target_prior_ > 0) & (self.train_prior_ == 0)).any():
            name = self.cells_[int(lost_C.argmax())]
            raise ValueError(f"{name!r} has a training prior of 0, and so no probability: give it a target prior of 0.")
        check_rows(count_C, self.target_prior_, self._cells)
        raw_NC = self._probabilities(X) if trained else self._cross_fitted(X, y, cell_N)
        self.temperature_ = 1.0
        if self.calibrate == "temperature":
            self.temperature_ = self._temperature(raw_NC, cell_N)
        p_NC = self._of_cells(raw_NC)
        for warning in warn_of(p_NC, cell_N, self.train_prior_, self.target_prior_, self._cells):
            warnings.warn(warning, UserWarning, stacklevel=2)
        found = tune(
            self._by_prior(p_NC),
            cell_N,
            self._cells,
            self.target_prior_,
            delta=self.delta,
            divergence=self.divergence,
            loss=self.loss,
            average=self.average,
            smooth=self.smooth,
            steps=self.steps,
            rate=self.rate,
        )
        self.weights_, self.multiplier_ = found.g_C, found.multiplier
        self.factors_ = self._by_prior(self.weights_)
        if raw_NC.shape[1] == len(classes):
            shares_C = np.ones(len(classes)) if groups is None else self._within_C
            self.class_factors_ = np.bincount(self._cells.class_C, self.factors_ * shares_C)
        return self

    def predict_proba(self, X: Any) -> FloatArray:
        """Rescaled probabilities, (N, K): what they are under the prior `weights_`, if the model's are calibrated."""
        score_NK = rescaled(self._odds(X), self.weights_, self._cells)
        return np.asarray(score_NK / score_NK.sum(axis=1, keepdims=True))

    def predict(self, X: Any) -> Any:
        """Class of the largest rescaled probability, (N,)."""
        p_NK = self.predict_proba(X)  # first, so that one that is not fitted says so
        return self.classes_[p_NK.argmax(axis=1)]

    def curve(self, X: Any, y: Any, deltas: Sequence[float] = DELTAS, sensitive_features: Any = None) -> Curve:
        """Delta-worst accuracy of the model, of the model adjusted to the target, and of this rule, on given rows.

        Raises
        ------
        ValueError : a class or group that was not there in `fit`, or one of the target that has no row here.
        """
        odds_NC = self._odds(X)
        if (sensitive_features is None) != (self.groups_ is None):
            raise ValueError("sensitive_features: give them here if they were given to fit, and only then.")
        groups = None if sensitive_features is None else read_groups(sensitive_features, len(odds_NC))
        cell_N = self._cell(column_or_1d(y), groups)
        check_rows(np.bincount(cell_N, minlength=len(self.cells_)), self.target_prior_, self._cells)

        def worst(g_C: FloatArray) -> FloatArray:
            recall_C = 1 - losses(rescaled(odds_NC, g_C, self._cells), cell_N, self._cells)
            found = [worst_accuracy(recall_C, self.target_prior_, delta, self.divergence) for delta in deltas]
            return np.array(found)

        rules = (self.train_prior_, self.target_prior_, self.weights_)
        return Curve(np.asarray(deltas, dtype=float), *(worst(g_C) for g_C in rules))

    def __sklearn_tags__(self) -> Tags:
        """As the estimator's."""
        tags = super().__sklearn_tags__()
        if self.estimator is not None and not isinstance(self.estimator, str):
            inner = get_tags(self.estimator)
            tags.input_tags.sparse, tags.input_tags.allow_nan = inner.input_tags.sparse, inner.input_tags.allow_nan
        else:
            tags.input_tags.sparse = self.estimator is None
        return tags

    # What is inside ------------------------------------------------------------------------------------------------

    def _check_options(self) -> None:
        allowed = {
            "divergence": NAMES,
            "loss": ("zero-one", "cross-entropy"),
            "average": ("best", "last-half"),
            "calibrate": (None, "temperature"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                choices = ", ".join(map(repr, values))
                raise ValueError(f"{name}={getattr(self, name)!r}: unknown. Choose one of {choices}.")
        check_delta(self.delta)
        if self.steps < 1 or not 0 < self.rate <= 1 or not 0 <= self.smooth < np.inf:
            given = f"steps={self.steps}, rate={self.rate}, smooth={self.smooth}"
            raise ValueError(f"{given}: expected at least 1, above 0 and at most 1, and a number of 0 or more.")

    def _given(self) -> Any:
        """Return the estimator if it is fitted already; else None."""
        if isinstance(self.estimator, str):
            if self.estimator != PRECOMPUTED:
                raise ValueError(f"estimator={self.estimator!r}: give an estimator, {PRECOMPUTED!r} or None.")
            return PRECOMPUTED
        if self.estimator is None:
            return None
        try:
            check_is_fitted(self.estimator)
        except NotFittedError:
            return None
        return self.estimator

    def _cell(self, y: Any, groups: Groups | None) -> IntArray:
        """Cell of every row."""
        label_N = np.searchsorted(self.classes_, y)
        strange_N = self.classes_[np.minimum(label_N, len(self.classes_) - 1)] != y
        if strange_N.any():
            raise ValueError(f"y holds {y[strange_N].tolist()[0]!r}, which is none of {self.classes_.tolist()}.")
        if groups is None:
            return np.asarray(label_N)
        assert self.groups_ is not None
        place = {name: number for number, name in enumerate(self.groups_)}
        if strange := [name for name in groups.names if name not in place]:
            raise ValueError(f"sensitive_features holds {strange[0]!r}, which is none of {self.groups_}.")
        code_N = np.array([place[name] for name in groups.names])[groups.code_N]
        return np.asarray(label_N * len(self.groups_) + code_N)

    def _train_prior(self, given: Any, seen_C: FloatArray) -> FloatArray:
        """Prior of the cells; shares of classes alone are divided among the groups as they are in each class."""
        K, C = len(self.classes_), len(seen_C)
        by_class_K = np.asarray(np.bincount(self._cells.class_C, seen_C), dtype=float)
        with np.errstate(invalid="ignore"):
            # Of a group that is given its class.
            self._within_C = np.nan_to_num(seen_C / by_class_K[self._cells.class_C])
        if given is None:
            return seen_C
        if K != C and len(given) == K:
            classes = Cells(self.classes_.tolist(), np.arange(K))
            given_K = read_prior(given, classes, by_class_K, "train_prior")
            return np.asarray(given_K[self._cells.class_C] * self._within_C)
        return read_prior(given, self._cells, seen_C, "train_prior")

    def _cross_fitted(self, X: Any, y: Any, cell_N: IntArray) -> FloatArray:
        """Train the estimator, and give probabilities of models that did not see the row."""
        check_folds(self.cv)
        base = LogisticRegression(max_iter=1000) if self.estimator is None else self.estimator
        learnt = cell_N if self._learnt_cells else y
        if (most := int(np.bincount(cell_N).max())) < 2:
            raise ValueError(f"{len(y)} rows, none of them of the same class: give several rows of each class.")
        raw_NC = np.empty((len(y), len(self.cells_)))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
            # Few rows of a cell: said by `warn_of`.
            splits = splits_of(self.cv, cell_N, most, check_random_state(self.random_state))
        for train, test in splits:
            self.estimator_ = clone(base).fit(_safe_indexing(X, train), learnt[train])
            raw_NC[test] = self._probabilities(_safe_indexing(X, test))
        self.estimator_ = clone(base).fit(X, learnt)
        return raw_NC

    def _probabilities(self, X: Any) -> FloatArray:
        """Probabilities as the estimator gives them: of every cell, (N, C), or if it tells classes alone, (N, K)."""
        K, C = len(self.classes_), len(self.cells_)
        if isinstance(self.estimator_, str):
            p = check_array(X, dtype=np.float64)
            by_class, at = p.shape[1] == K, np.arange(p.shape[1])
        elif not hasattr(self.estimator_, "predict_proba"):
            raise ValueError(f"{self.estimator_!r} gives no probabilities (predict_proba). Calibrate it first.")
        else:
            p, known = self.estimator_.predict_proba(X), self.estimator_.classes_
            by_class = not self._learnt_cells and bool(np.isin(known, self.classes_).all())
            others = known if self._learnt_cells else np.arange(p.shape[1])
            at = np.searchsorted(self.classes_, known) if by_class else others
        num = K if by_class else C
        if not by_class and not self._learnt_cells:
            check_probabilities(p, num)
        placed = np.zeros((len(p), num))  # a fold may not know a class
        placed[:, at] = p
        return check_probabilities(placed, num)

    def _temperature(self, raw_NC: FloatArray, cell_N: IntArray) -> float:
        """Fit the temperature to what the estimator tells: cells, or classes."""
        class_C = self._cells.class_C
        if raw_NC.shape[1] == len(class_C):
            return fit_temperature(raw_NC, cell_N, self.train_prior_)
        prior_K = np.asarray(np.bincount(class_C, self.train_prior_), dtype=float)
        return fit_temperature(raw_NC, class_C[cell_N], prior_K)

    def _of_cells(self, raw_NC: FloatArray) -> FloatArray:
        """Probability of every cell, (N, C), calibrated; classes are divided among groups as in the rows of `fit`."""
        p_NC = raw_NC if self.temperature_ == 1 else tempered(raw_NC, self.temperature_)
        if p_NC.shape[1] < len(self.cells_):
            p_NC = p_NC[:, self._cells.class_C] * self._within_C
        return np.maximum(p_NC, FLOOR)

    def _odds(self, X: Any) -> FloatArray:
        """Probability by training prior, (N, C)."""
        check_is_fitted(self)
        X = _readable(X)
        validate_data(self, X, reset=False, skip_check_array=True)
        return self._by_prior(self._of_cells(self._probabilities(X)))

    def _by_prior(self, value: FloatArray) -> FloatArray:
        """Divide by the training prior; 0 in cells that were never seen."""
        seen_C = self.train_prior_ > 0
        return np.asarray(np.where(seen_C, value / np.where(seen_C, self.train_prior_, 1.0), 0.0))
