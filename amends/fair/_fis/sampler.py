"""Choose which rows to label next so that ordinary training becomes fairer and stays as accurate.

Source: Pang et al. 2024 (Fairness Without Harm, FIS; arXiv 2402.12789) and the authors' code. Groups are known of
validation rows alone. Deviations, each said where it happens: the model is refitted after a round instead of trained
on, and a round that costs validation accuracy or widens the gap is taken back.

Shapes: N rows, K classes, n rows chosen.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.utils import _safe_indexing, assert_all_finite, check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data

from amends.fair._fis.heads import Head, head_of
from amends.fair._fis.validation import Round, read_validation
from amends.fair._tables.groups import read_groups
from amends.io.console import console
from amends.io.progress import track
from amends.maths.arrays import BoolArray, FloatArray, IntArray
from amends.maths.disparity import NOTIONS, Notion

Strategy = Literal["predicted", "least_change", "most_helpful"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
BATCH = 2**16
"""Rows of the pool that are looked at together."""


@dataclass(frozen=True, eq=False)
class Update:
    """What became of labels that were bought."""

    kept: IntArray
    """Places of the rows that lower both the loss and the gap, by their true label."""
    rejected: IntArray
    rolled_back: bool
    """Whether the round was taken back: then none of its rows is trained on."""
    acc_influence: FloatArray
    """By the true label, of every row bought."""
    fair_influence: FloatArray
    before: Round
    after: Round
    """The model with these rows, on the validation rows; if it was rolled back, what it would have been."""


class FairInfluenceSampler(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """Say which rows of a pool to label next, and train on those whose labels help.

    Influence is to first order: what one small step on a row's loss does to a validation quantity,
    - < grad l(x, k), grad quantity >; negative if it falls. A row is asked for if, with the label it is expected to
    have, it does not raise the loss and lowers the gap; of those the ones that lower it most. A label that was bought
    is trained on if the same holds with its true value.

    Parameters
    ----------
    estimator : classifier or torch module, optional
        Logistic or softmax regression, a `NetworkClassifier`, or a pipeline or search that ends in
        one. Default: `LogisticRegression(max_iter=1000)`. A bare torch module is wrapped in NetworkClassifier.
    metric : {"demographic_parity", "equal_opportunity", "equalized_odds"}
        Gap to lower.
    strategy : {"predicted", "least_change", "most_helpful"}, default "predicted"
        Label a row is expected to have: the model's, the one with the least influence on the loss (strategy 2 of the
        source; the same for two classes), or the one that lowers the loss most (strategy 3).
    positive : label, optional
        Whose probability counts. Default: the second of two; of more classes all count (the source's way).
    guard_tol : float or None, default 0.005
        Validation accuracy that may be lost since `fit`. A round that loses more, or widens the gap of decisions, is
        rolled back. None: no guard, as in the source.
    new_share : float, optional
        Share of the weight that the rows kept have together in training; the source draws .9 of its batches from them.
        An estimator that takes no weights is trained on rows drawn by them. Default: each row weighs the same.
    keep_rejected : bool, default False
        Train also on labels that do not help; they were paid for.
    surrogate : classifier, optional
        Tells influence in place of an `estimator` without a gradient, such as trees; fitted to the same rows. Guard and
        predictions are the estimator's.
    num_draws : int, default 50
        Resamples of the validation rows that tell how sure an influence's sign is.
    random_state : int, RandomState or None

    Attributes
    ----------
    model_ : classifier
        Fitted to all rows that are kept. `classes_` are its classes, `groups_` the validation groups.
    history_ : list of Round
        From the start on.
    acc_influence_, fair_influence_ : float array (pool,)
        After `query`: with the expected label, of every row; `expected_` has the label.
    chosen_ : int array (n,)
        What `query` returned; `acc_agreement_` and `fair_agreement_` (n,) are the shares of the resamples in which the
        influence of these rows has the same sign.
    start_accuracy_ : float
        What the guard compares with. It may be set, to carry on where another process began.
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        metric: Notion = "demographic_parity",
        strategy: Strategy = "predicted",
        positive: Any = None,
        guard_tol: float | None = 0.005,
        new_share: float | None = None,
        keep_rejected: bool = False,
        surrogate: Any = None,
        num_draws: int = 50,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.metric = metric
        self.strategy = strategy
        self.positive = positive
        self.guard_tol = guard_tol
        self.new_share = new_share
        self.keep_rejected = keep_rejected
        self.surrogate = surrogate
        self.num_draws = num_draws
        self.random_state = random_state

    def fit(
        self, X: Any, y: Any, *, X_val: Any = None, y_val: Any = None, sensitive_features: Any = None
    ) -> "FairInfluenceSampler":
        """Start: train on the labelled rows.

        Parameters
        ----------
        X, y : rows (N, ...) and labels (N,)
            Labelled rows; no group is asked of them.
        X_val, y_val : rows and labels, optional
            Validation rows. Default: the labelled rows, which a model that fits them well says little of.
        sensitive_features : array, series or frame
            Group of each validation row.

        Raises
        ------
        ValueError : an unknown option, rows that cannot be used, a validation label that is not in y, or a group
            without a validation row that counts.
        """
        self._check_options()
        X, y = self._read(X, y, reset=True)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(f"1 class in y ({self.classes_[0]}): nothing can be learnt. Give rows of another class.")
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val: one is missing. Give the validation rows with their labels.")
        X_val, y_val = (X, y) if X_val is None else self._read(X_val, y_val)
        groups = read_groups(sensitive_features, len(y_val))
        self.groups_ = groups.names
        if len(groups.names) < 2:
            warnings.warn(
                "sensitive_features: one group, or none was given. No gap can be steered, so no row will be asked for.",
                UserWarning,
                stacklevel=2,
            )
        positive = None if self.positive is None else int(self._codes(np.array([self.positive]), "positive")[0])
        code_N = self._codes(y_val, "y_val")
        self.validation_ = read_validation(X_val, code_N, groups, self.classes_, self.metric, positive)
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.X_, self.y_, self.new_ = X, y, np.zeros(len(y), dtype=bool)
        self.model_, self.scored_ = self._fitted(X, y, self.new_)
        head_of(self.scored_, X)  # refuses a model without a gradient now rather than at the first query
        self.history_ = [self._measured(self.model_, 0, len(y), len(y))]
        self.start_accuracy_ = self.history_[0].accuracy
        return self

    def query(self, X_pool: Any, n: int = 100) -> IntArray:
        """Name the rows to label next, the most helpful first.

        Returns
        -------
        int array : places in the pool, at most n; fewer, or none, if no other row is expected to help.

        Raises
        ------
        ValueError : n below 1, or rows that cannot be used.
        """
        check_is_fitted(self)
        X_pool = self._read(X_pool)
        if n < 1:
            raise ValueError(f"n={n}: ask for 1 row or more.")
        head = head_of(self.scored_, self.X_)
        by_loss, by_gap = self._directions(head)
        parts = [slice(at, at + BATCH) for at in range(0, len(X_pool), BATCH)]
        found = []
        for part in track(parts, "scoring the pool", shown=console.is_terminal):
            x = head.features(_safe_indexing(X_pool, part))
            acc_NK, fair_NK = head.influence(x, by_loss), head.influence(x, by_gap)
            expected_N = self._expected(acc_NK, head.predict(x))
            at = np.arange(len(expected_N)), expected_N
            found.append((acc_NK[at], fair_NK[at], expected_N))
        self.acc_influence_, self.fair_influence_, expected_N = (np.concatenate(x) for x in zip(*found, strict=True))
        self.expected_ = self.classes_[expected_N]
        score_N = np.where(self.acc_influence_ > 0, 0.0, self.fair_influence_)
        order_N = np.argsort(score_N, kind="stable")[:n]
        self.chosen_ = order_N[score_N[order_N] < 0]
        self._tell_agreement(head, X_pool, expected_N)
        return self.chosen_

    def update(self, X_bought: Any, y_bought: Any) -> Update:
        """Judge labels that were bought, train on those that help, and keep the model if it does no harm.

        Raises
        ------
        ValueError : rows that cannot be used, or a label that no row of the start had.
        """
        check_is_fitted(self)
        X_bought, y_bought = self._read(X_bought, y_bought)
        code_N = self._codes(y_bought, "y_bought")
        head = head_of(self.scored_, self.X_)
        x, at = head.features(X_bought), (np.arange(len(code_N)), code_N)
        acc_N, fair_N = (head.influence(x, direction)[at] for direction in self._directions(head))
        helps_N = (acc_N <= 0) & (fair_N <= 0)
        before = self.history_[-1]
        taken_N = np.ones_like(helps_N) if self.keep_rejected else helps_N
        spent, kept = before.labels + len(code_N), int(helps_N.sum())
        X = _joined([self.X_, _safe_indexing(X_bought, np.flatnonzero(taken_N))])
        y, new = np.concatenate([self.y_, y_bought[taken_N]]), np.concatenate([self.new_, helps_N[taken_N]])
        model, scored = self._fitted(X, y, new) if taken_N.any() else (self.model_, self.scored_)
        after = self._measured(model, before.number + 1, spent, len(y), kept, len(code_N) - kept)
        harmed = after.accuracy < self.start_accuracy_ - (self.guard_tol or 0) or after.disparity > before.disparity
        rolled_back = self.guard_tol is not None and bool(taken_N.any()) and harmed
        if rolled_back:
            spent_on = {name: getattr(after, name) for name in ("number", "labels", "kept", "rejected")}
            self.history_ = [*self.history_, replace(before, **spent_on, rolled_back=True)]
        else:
            self.X_, self.y_, self.new_, self.model_, self.scored_ = X, y, new, model, scored
            self.history_ = [*self.history_, after]
        return Update(np.flatnonzero(helps_N), np.flatnonzero(~helps_N), rolled_back, acc_N, fair_N, before, after)

    def acquire(self, X_pool: Any, oracle: Callable[[IntArray], Any], *, rounds: int = 10, n: int = 100) -> IntArray:
        """Query, ask and update until the rounds are over or no row helps.

        Parameters
        ----------
        oracle : function
            Places in the pool to their labels.

        Returns
        -------
        int array : places in the pool whose labels were bought, in that order.
        """
        check_is_fitted(self)
        X_pool = self._read(X_pool)
        left, bought = np.arange(len(X_pool)), np.zeros(0, dtype=np.int64)
        for _ in track(range(rounds), "rounds", shown=console.is_terminal):
            chosen = left[self.query(_safe_indexing(X_pool, left), n)] if len(left) else left
            if not len(chosen):
                break
            self.update(_safe_indexing(X_pool, chosen), oracle(chosen))
            left, bought = np.setdiff1d(left, chosen), np.concatenate([bought, chosen])
        return bought

    def predict(self, X: Any) -> np.ndarray:
        """Predict labels by `model_`, (N,)."""
        check_is_fitted(self)
        return np.asarray(self.model_.predict(self._read(X)))

    def predict_proba(self, X: Any) -> FloatArray:
        """Predict probabilities by `model_`, (N, K)."""
        check_is_fitted(self)
        return np.asarray(self.model_.predict_proba(self._read(X)))

    # What is read -----------------------------------------------------------------------------------------------

    def _check_options(self) -> None:
        if self.metric not in NOTIONS:
            raise ValueError(f"metric={self.metric!r}: unknown. Choose one of {', '.join(NOTIONS)}.")
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy={self.strategy!r}: unknown. Choose one of {', '.join(STRATEGIES)}.")
        if self.guard_tol is not None and not 0 <= self.guard_tol <= 1:
            raise ValueError(f"guard_tol={self.guard_tol}: expected 0 to 1, or None for no guard.")
        if self.new_share is not None and not 0 < self.new_share < 1:
            raise ValueError(f"new_share={self.new_share}: expected more than 0 and less than 1, or None.")
        if self.num_draws < 1:
            raise ValueError(f"num_draws={self.num_draws}: expected 1 or more.")

    def _read(self, X: Any, y: Any = None, reset: bool = False) -> Any:
        """Make arrays of rows; data frames stay what they are, as a pipeline may need their columns."""
        if hasattr(X, "columns"):
            validate_data(self, X, reset=reset, skip_check_array=True)
        else:
            X = validate_data(self, X, reset=reset, allow_nd=True, ensure_all_finite=False)
        if y is None and not reset:
            return X
        if y is None:
            raise ValueError("FairInfluenceSampler requires y to be passed, but the target y is None.")
        y = column_or_1d(y, warn=True)
        assert_all_finite(y, input_name="y")
        check_consistent_length(X, y)
        check_classification_targets(y)
        return X, y

    def _codes(self, y: np.ndarray, name: str) -> IntArray:
        known_N = np.isin(y, self.classes_)
        if not known_N.all():
            first = int(np.flatnonzero(~known_N)[0])
            raise ValueError(
                f"{name}: row {first} has the label {y[first]}, which no labelled row of the start has "
                f"({', '.join(map(str, self.classes_))}). Add such rows to the start, or leave these out."
            )
        return np.asarray(np.searchsorted(self.classes_, y))

    # What is learnt ---------------------------------------------------------------------------------------------

    def _fitted(self, X: Any, y: np.ndarray, new_N: BoolArray) -> tuple[Any, Any]:
        """Train the estimator, and what influence is told by: its surrogate, or itself."""
        estimator = LogisticRegression(max_iter=1000) if self.estimator is None else self.estimator
        if _is_module(estimator):
            from amends.fair._fis.network import NetworkClassifier

            estimator = NetworkClassifier(estimator, random_state=self._seed)
        weight_N = None
        if self.new_share is not None and new_N.any():
            share_N = np.where(new_N, self.new_share / new_N.sum(), (1 - self.new_share) / (~new_N).sum())
            weight_N = share_N * len(y)
        warm = hasattr(self, "model_") and len(self.X_) < len(y) and getattr(estimator, "warm_start", False)
        model = _fit(copy.deepcopy(self.model_) if warm else clone(estimator), X, y, weight_N, self._seed)
        return model, model if self.surrogate is None else _fit(clone(self.surrogate), X, y, weight_N, self._seed)

    def _measured(self, model: Any, number: int, labels: int, rows: int, kept: int = 0, rejected: int = 0) -> Round:
        told, p_NK = self.validation_, model.predict_proba(self.validation_.X)
        chosen_N = self._codes(model.predict(told.X), "predict")
        accuracy = float((chosen_N == told.code_N).mean())
        gap, smooth = told.decided(chosen_N, len(self.classes_)), told.smooth(p_NK)
        return Round(number, labels, rows, kept, rejected, False, accuracy, gap, smooth)

    # Influence --------------------------------------------------------------------------------------------------

    def _directions(self, head: Head) -> tuple[Any, Any]:
        """Gradients by the weights of the validation loss and of the smooth disparity."""
        told = self.validation_
        x = head.features(told.X)
        # The gap is told on all rows, then its slope: squares of gaps of parts would not add up to it.
        return head.by_loss(x, told.code_N), head.by_probability(x, told.slope(head.predict(x)))

    def _expected(self, acc_NK: FloatArray, p_NK: FloatArray) -> IntArray:
        if self.strategy == "predicted":
            return np.asarray(p_NK.argmax(axis=1))
        return np.asarray((np.abs(acc_NK) if self.strategy == "least_change" else acc_NK).argmin(axis=1))

    def _tell_agreement(self, head: Head, X_pool: Any, expected_N: IntArray) -> None:
        """Say how often the rows chosen have the same influences when validation rows are drawn again."""
        told, n = self.validation_, self.chosen_
        self.acc_agreement_ = self.fair_agreement_ = np.zeros(0)
        if not len(n):
            return
        # Seeded by the round, so that the same question has the same answer.
        rng = np.random.default_rng([self._seed, len(self.history_)])
        x_val, x = head.features(told.X), head.features(_safe_indexing(X_pool, n))
        p_NK, at = head.predict(x_val), (np.arange(len(n)), expected_N[n])
        acc_n, fair_n = np.zeros(len(n)), np.zeros(len(n))
        for _ in range(self.num_draws):
            again_N = told.draw_again(rng)
            x_again = x_val[again_N]
            by_gap = head.by_probability(x_again, told.slope(p_NK[again_N], again_N))
            by_loss = head.by_loss(x_again, told.code_N[again_N])
            acc_n += np.sign(head.influence(x, by_loss)[at]) == np.sign(self.acc_influence_[n])
            fair_n += np.sign(head.influence(x, by_gap)[at]) == np.sign(self.fair_influence_[n])
        self.acc_agreement_, self.fair_agreement_ = acc_n / self.num_draws, fair_n / self.num_draws


def _fit(model: Any, X: Any, y: np.ndarray, weight_N: FloatArray | None, seed: int) -> Any:
    """Train with weights; where the model takes none, as a network, on rows drawn again by them, as the source does."""
    if weight_N is None:
        return model.fit(X, y)
    steps = getattr(model, "steps", None)
    if has_fit_parameter(steps[-1][1] if steps else model, "sample_weight"):
        return model.fit(X, y, **{f"{steps[-1][0]}__sample_weight" if steps else "sample_weight": weight_N})
    drawn = np.random.default_rng(seed).choice(len(y), len(y), p=weight_N / weight_N.sum())
    return model.fit(_safe_indexing(X, drawn), y[drawn])


def _is_module(estimator: Any) -> bool:
    """Whether this is a torch module, told without torch."""
    return hasattr(estimator, "state_dict") and not hasattr(estimator, "fit")


def _joined(parts: Sequence[Any]) -> Any:
    """Rows one after another, in the kind of the first."""
    first = parts[0]
    if hasattr(first, "vstack"):  # polars
        return first.vstack(parts[1])
    if hasattr(first, "iloc"):
        import pandas as pd

        return pd.concat(parts, ignore_index=True)
    return np.concatenate(parts)
