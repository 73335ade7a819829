"""A classifier that declines some cases, so that groups fare alike and none fares worse; scikit-learn estimator.

Source: FAN (arXiv 2310.06205, ICLR 2024). Shapes: N rows, D features, G groups, B bins of the score, R cells; fates of
a row: 0 and 1, decided so, and 2, abstained.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.utils import Tags, _safe_indexing, check_random_state, get_tags, indexable
from sklearn.utils.validation import _num_samples, check_is_fitted, validate_data

from amends.fair._fan.attainable import Curve, abstention_needed, gap_reached, infeasible
from amends.fair._fan.given import (
    abstain_of,
    by_group,
    check_groups,
    check_settings,
    codes_of,
    dtype_of,
    labels_like,
    labels_of,
    precomputed,
    table_of,
)
from amends.fair._fan.kept import Kept, count, measure
from amends.fair._fan.program import Fates, Mode, Objective, Promises, SlackForm, SurrogateCut, allowed_errors, solve
from amends.fair._fan.rules import ABSTAINED, MISSED, assigned, cells_by_label, cells_by_score, coins, edges, rule_of
from amends.fair._fan.surrogates import held_out_chances, learnt, matched_cuts, rows_of, said_one, with_columns
from amends.fair._tables.folds import num_folds, splits_of
from amends.fair._tables.groups import read_groups
from amends.maths.arrays import FloatArray, IntArray
from amends.maths.disparity import Notion

SCORE, GROUP = "score of the base", "number of the group"
"""Columns that the surrogates see beside the features."""


class AbstainingFairClassifier(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """Wrap a binary classifier so that it abstains on some rows, and keeps what it promises to groups.

    The promises: the gap between groups is at most `eps`; no group's error rate on decided rows is above the base
    classifier's by more than `slack`; no group is abstained on in more than `max_abstain` of its rows.

    Parameters
    ----------
    estimator : classifier with predict_proba, "precomputed" or None
        The base; default: logistic regression. "precomputed": the first column of X is its score, the probability of
        the positive class, for rows that it was not trained on.
    notion : {"demographic_parity", "equal_opportunity", "equalized_odds"}
        What must be alike over groups: acceptance of all rows, of rows with the positive label, or of each label. A
        row that is abstained on counts as not accepted.
    eps : float, default 0.03
    max_abstain : float or dict by group, default 0.2
    slack : float or dict by group, default 0
        Of base error e, (1 + slack) e is allowed; by `slack_form="toward_one"`, as in the authors' code, it is
        e + slack (1 - e).
    mode : {"scorebins", "surrogate"}
        "scorebins": a rule by bin of the score, and by group if `use_groups`, is found by a linear program. Within a
        bin that gets more than one fate a row's is drawn from the row's own cells and `random_state`, so that equal
        rows have equal fates. "surrogate": the program of the paper says for each row of `fit` whether to decide and
        how, with its label known; two models learn that. The promises then hold for the rows of `fit` alone.
    sigma, sigma1, sigma0 : float, default 1 (off)
        Largest difference of the abstention rates of two groups: overall, of positive and of negative labels.
    objective : {"errors", "abstention"}
        What is least under the promises: errors on decided rows, for which abstention is used up; or abstention.
    use_groups : bool, default True
        Whether a decision may look at the group; then `predict` needs `sensitive_features`, if there is more than one.
    bins : int, default 40
        Bins of equal numbers of rows. The share of positives in a group's bins is made to rise with the score.
    threshold : float, default 0.5
        Score from which the base classifier decides 1.
    surrogate : classifier with predict_proba, default gradient boosting of trees (HistGradientBoostingClassifier)
        It sees the features, the score, and the group as a number if `use_groups`.
    surrogate_cut : {"matched", "half"}
        Chance from which the models say so. "matched": such that they, on rows of `fit` that they did not see, abstain
        on and accept as many of each group as the program does. "half": 0.5, as in the source, which abstains less.
    cv : int, splitter or "prefit", default 5
        Folds in which scores of rows that the base did not see are made; "prefit": it is fitted, on other rows, and is
        used as it is, as is a FrozenEstimator.
    random_state : int, RandomState or None

    Attributes
    ----------
    classes_ : array (2,); the second is the positive one.
    groups_ : list of the groups' names.
    base_error_ : dict, error rate of the base by group.
    estimator_ : the base, fitted to all rows.
    held_out_score_ : float (N,), scores of the rows of `fit` by a base that did not see them.
    rule_ : Rule (`amends.fair._fan.rules`), of mode "scorebins".
    abstain_model_, label_model_ : of mode "surrogate"; None where all rows have the same.
    assignment_ : int (N,), of mode "surrogate": what the program gives each row of `fit`; 0, 1, or 2: abstained.
    fates_ : Fates; rows of each cell by fate. `cells_` are the cells.
    abstain_ : what `predict` says of a row that it does not decide: `ABSTAIN` (-1); of text "abstain"; if a class has
        that name, the number below, or the text with a bar before and after.

    Raises
    ------
    Infeasible : from `fit`; its `min_abstain` has the caps under which the promises can be kept.
    """

    ABSTAIN = -1

    def __init__(
        self,
        estimator: Any = None,
        *,
        notion: Notion = "demographic_parity",
        eps: float = 0.03,
        max_abstain: float | Mapping[Any, float] = 0.2,
        slack: float | Mapping[Any, float] = 0.0,
        slack_form: SlackForm = "relative",
        mode: Mode = "scorebins",
        sigma: float = 1.0,
        sigma1: float = 1.0,
        sigma0: float = 1.0,
        objective: Objective = "errors",
        use_groups: bool = True,
        bins: int = 40,
        threshold: float = 0.5,
        surrogate: Any = None,
        surrogate_cut: SurrogateCut = "matched",
        cv: Any = 5,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.notion = notion
        self.eps = eps
        self.max_abstain = max_abstain
        self.slack = slack
        self.slack_form = slack_form
        self.mode = mode
        self.sigma = sigma
        self.sigma1 = sigma1
        self.sigma0 = sigma0
        self.objective = objective
        self.use_groups = use_groups
        self.bins = bins
        self.threshold = threshold
        self.surrogate = surrogate
        self.surrogate_cut = surrogate_cut
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: Any, y: Any, *, sensitive_features: Any = None) -> "AbstainingFairClassifier":
        """Find the rule.

        Parameters
        ----------
        X : table (N, D), as the base classifier takes it.
        y : (N,), two classes.
        sensitive_features : (N,) or (N, C), optional
            The group of every row; without it all rows are one group, for which only errors and abstention matter.

        Raises
        ------
        Infeasible : no rule of this kind keeps the promises.
        ValueError : settings out of range, another number of classes, or a group that the notion cannot be told of.
        """
        check_settings(self)
        validate_data(self, X, skip_check_array=True)
        X = table_of(X)
        self.classes_, label_N = labels_of(self, X, y)
        self.abstain_, N = abstain_of(self.classes_), len(label_N)
        if sensitive_features is None:
            warnings.warn("no sensitive_features: all rows are one group, and no gap is looked at.", stacklevel=2)
        groups = read_groups(sensitive_features, N)
        self.groups_ = groups.names
        self.seed_ = int(check_random_state(self.random_state).randint(2**31 - 1))
        score_N, self.estimator_ = self._held_out(X, label_N)
        self.held_out_score_ = score_N
        base_N = score_N >= self.threshold
        row_GYB = count(groups.code_N, label_N, base_N, np.zeros(N, dtype=np.int64), len(groups.names)).sum(axis=3)
        check_groups(self, row_GYB)
        error_G = (row_GYB[:, 0, 1] + row_GYB[:, 1, 0]) / row_GYB.sum(axis=(1, 2))
        self.base_error_ = dict(zip(groups.names, error_G.tolist(), strict=True))
        if self.mode == "scorebins":
            edge_E = edges(score_N, self.bins, self.threshold)
            self.cells_ = cells_by_score(edge_E, score_N, groups.code_N, label_N, self.threshold, self.use_groups)
            # By the bins' own shares of positives, as the rule's errors are counted; never above the raw rate.
            right_R = (2 * (self.cells_.base_R > 0) - 1) * self.cells_.positive_GR
            error_G = (np.where(self.cells_.base_R > 0, self.cells_.size_GR, 0) - right_R).sum(axis=1)
            error_G /= self.cells_.size_G
        else:
            self.cells_ = cells_by_label(row_GYB)
        self.promises_ = self._promises(error_G)
        fates = solve(self.cells_, self.promises_, self.objective, whole=self.mode == "surrogate")
        if fates is None:
            raise infeasible(self.cells_, self.promises_, self.groups_)
        self.fates_: Fates = fates
        if self.mode == "scorebins":
            self.rule_ = rule_of(edge_E, self.cells_, fates.fate_R3)
            if (missed := self.rule_.missed(score_N, groups.code_N, coins(X, self.seed_))) > MISSED:
                warnings.warn(
                    f"rows that are alike share one fate: a group's shares miss the rule's chances by {missed:.3f} on "
                    "these rows, and a promise may be broken on them. Add a column that tells rows apart.",
                    stacklevel=2,
                )
            return self
        if not fates.whole:
            warnings.warn("rows were rounded: a promise may be missed by a row for each group and label.", stacklevel=2)
        self.assignment_ = assigned(fates.fate_R3, 2 * groups.code_N + label_N, score_N, base_N)
        seen = self._seen(X, score_N, groups.code_N)
        decided_N, looked_N = self.assignment_ != ABSTAINED, groups.code_N * self.use_groups
        self.cut_G2_ = np.full((int(looked_N.max()) + 1, 2), 0.5)
        if self.surrogate_cut == "matched":
            chance_N2 = held_out_chances(self.surrogate, seen, self.assignment_, num_folds(self.cv, N), self.seed_)
            self.cut_G2_ = matched_cuts(chance_N2, self.assignment_, looked_N)
        self.abstain_model_ = learnt(self.surrogate, seen, (~decided_N).astype(np.int64), self.seed_)
        self.label_model_ = learnt(self.surrogate, rows_of(seen, decided_N), self.assignment_[decided_N], self.seed_)
        return self

    def predict(self, X: Any, *, sensitive_features: Any = None) -> np.ndarray:
        """Decide each row: one of `classes_`, or `abstain_`.

        Raises
        ------
        ValueError : the rule looks at groups and none are given, or one that `fit` did not see.
        """
        fate_N = self._fates(self._given(X), sensitive_features)
        said = np.array([*self.classes_.tolist(), self.abstain_], dtype=dtype_of(self.classes_, self.abstain_))
        return np.asarray(said[fate_N])

    def decide_proba(self, X: Any, *, sensitive_features: Any = None) -> FloatArray:
        """Chances of each row to be decided the first class, the second, and to be abstained on, (N, 3).

        Of mode "surrogate": what the two models say, before their cuts (`cut_G2_`).
        """
        X = self._given(X)
        score_N, code_N = self._score(X), self._codes(X, sensitive_features)
        if self.mode == "scorebins":
            return self.rule_.chances(score_N, code_N)
        abstain_N, one_N = self._said(X, score_N, code_N)
        return np.stack([(1 - abstain_N) * (1 - one_N), (1 - abstain_N) * one_N, abstain_N], axis=1)

    def base_score(self, X: Any) -> FloatArray:
        """Return the base's probability of the second class, (N,); from `threshold` on the base decides so."""
        return self._score(self._given(X))

    def score(self, X: Any, y: Any, sample_weight: Any = None, *, sensitive_features: Any = None) -> float:
        """Accuracy on the rows that are decided; NaN if there are none."""
        said_N, y = self.predict(X, sensitive_features=sensitive_features), np.asarray(y)
        weight_N = (said_N != self.abstain_) * (1.0 if sample_weight is None else np.asarray(sample_weight))
        total = float(weight_N.sum())
        return float((weight_N * (said_N == y)).sum() / total) if total > 0 else float("nan")

    def report(self, X: Any, y: Any, *, sensitive_features: Any = None) -> Kept:
        """Measure every promise again, on rows that neither the base nor the rule was made from.

        Parameters
        ----------
        X, y, sensitive_features : as of `fit`; a group of `fit` may be absent, another one may not be there.

        Returns
        -------
        Kept : rates by group before and after, gaps by every notion over whole groups and over decided rows, and each
            promise with its value, its interval and whether it is kept.
        """
        X = self._given(X)
        fate_N = self._fates(X, sensitive_features)
        label_N = labels_like(y, self.classes_, len(fate_N))
        code_N = self._codes(X, sensitive_features, needed=len(self.groups_) > 1)
        base_N = self._score(X) >= self.threshold
        row_G223 = count(code_N, label_N, base_N, fate_N, len(self.groups_))
        slack_G, p = by_group(self.slack, self.groups_, "slack", np.inf), self.promises_

        def allowed(error_G: FloatArray) -> FloatArray:
            return allowed_errors(error_G, slack_G, self.slack_form)

        return measure(row_G223, self.groups_, p.notion, p.eps, p.cap_G, allowed, p.sigma, self.seed_)

    def feasibility_curve(self, eps: Sequence[float]) -> Curve:
        """Smallest abstention of each group that each gap `eps` (C,) needs, if all other promises are kept."""
        check_is_fitted(self, "promises_")
        return abstention_needed(self.cells_, self.promises_, self.groups_, eps)

    def disparity_curve(self, max_abstain: Sequence[float]) -> Curve:
        """Smallest gap that can be had with each cap of abstention (C,), the same for every group."""
        check_is_fitted(self, "promises_")
        return gap_reached(self.cells_, self.promises_, self.groups_, max_abstain)

    # What is given --------------------------------------------------------------------------------------------------

    def _promises(self, error_G: FloatArray) -> Promises:
        allowed_G = allowed_errors(error_G, by_group(self.slack, self.groups_, "slack", np.inf), self.slack_form)
        sigma = (float(self.sigma), float(self.sigma1), float(self.sigma0))
        return Promises(
            self.notion, float(self.eps), by_group(self.max_abstain, self.groups_, "max_abstain", 1.0), allowed_G, sigma
        )

    # The score ------------------------------------------------------------------------------------------------------

    def _held_out(self, X: Any, label_N: IntArray) -> tuple[FloatArray, Any]:
        """Scores of the rows by a base that did not see them, and the base for rows to come."""
        if isinstance(self.estimator, str):
            return precomputed(X), None
        base = LogisticRegression(max_iter=1000) if self.estimator is None else self.estimator
        if not hasattr(base, "predict_proba"):
            raise ValueError(
                f"estimator={type(base).__name__}: it has no predict_proba. Wrap it in CalibratedClassifierCV."
            )
        if isinstance(self.cv, str) or isinstance(base, FrozenEstimator):
            check_is_fitted(base)
            score_N = self._score_by(base, X)
            if apart := int((np.asarray(base.predict(X) == self.classes_[1]) != (score_N >= self.threshold)).sum()):
                warnings.warn(
                    f"the base decides {apart} of {len(score_N)} rows otherwise than by a score of {self.threshold:g} "
                    "or more: harm is measured against that threshold. Set `threshold` to the base's own.",
                    stacklevel=3,
                )
            return score_N, base
        if (rarest := int(np.bincount(label_N).min())) < 2:
            raise ValueError(
                "a class has 1 row: scores of rows that the base did not see need 2 or more of each class."
            )
        y, score_N = self.classes_[label_N], np.empty(len(label_N))  # by its own names, which class_weight may go by
        (X,) = indexable(X)  # not every sparse matrix gives its rows
        for train, test in splits_of(self.cv, label_N, rarest, self.seed_):
            part = clone(base).fit(_safe_indexing(X, train), y[train])
            score_N[test] = self._score_by(part, _safe_indexing(X, test))
        return score_N, clone(base).fit(X, y)

    def _score_by(self, base: Any, X: Any) -> FloatArray:
        column = np.flatnonzero(np.asarray(base.classes_) == self.classes_[1])
        if len(base.classes_) != 2 or not len(column):
            raise ValueError(f"the base knows the classes {list(base.classes_)}, y has {list(self.classes_)}.")
        return np.asarray(base.predict_proba(X)[:, column[0]], dtype=np.float64)

    def _given(self, X: Any) -> Any:
        """Check rows to come."""
        check_is_fitted(self, "promises_")
        X = table_of(X)
        validate_data(self, X, reset=False, skip_check_array=True)
        return X

    def _score(self, X: Any) -> FloatArray:
        """Score of rows to come."""
        return precomputed(X) if isinstance(self.estimator, str) else self._score_by(self.estimator_, X)

    def _codes(self, X: Any, sensitive_features: Any, needed: bool | None = None) -> IntArray:
        """Return the number of each row's group, as in `groups_`; 0 where it is not needed."""
        N = _num_samples(X)
        needed = self.use_groups and len(self.groups_) > 1 if needed is None else needed
        if not needed:
            return np.zeros(N, dtype=np.int64)
        if sensitive_features is None:
            raise ValueError(
                "sensitive_features: missing, and the rule looks at groups. Give them, or fit with use_groups=False."
            )
        return codes_of(sensitive_features, N, self.groups_)

    def _fates(self, X: Any, sensitive_features: Any) -> IntArray:
        score_N, code_N = self._score(X), self._codes(X, sensitive_features)
        if self.mode == "scorebins":
            return self.rule_.fates(score_N, code_N, coins(X, self.seed_))
        abstain_N, one_N = self._said(X, score_N, code_N)
        cut_N2 = self.cut_G2_[code_N * self.use_groups]
        return np.where(abstain_N > cut_N2[:, 0], ABSTAINED, one_N > cut_N2[:, 1]).astype(np.int64)

    # The surrogates -------------------------------------------------------------------------------------------------

    def _seen(self, X: Any, score_N: FloatArray, code_N: IntArray) -> Any:
        """Features of the surrogates: those of the base, the score, and the group as a number."""
        added = {SCORE: score_N} | ({GROUP: code_N.astype(np.float64)} if self.use_groups else {})
        return with_columns(X, added)

    def _said(self, X: Any, score_N: FloatArray, code_N: IntArray) -> tuple[FloatArray, FloatArray]:
        """Chances of abstention, and of the second class, by the two models."""
        seen = self._seen(X, score_N, code_N)
        return said_one(self.abstain_model_, seen), said_one(self.label_model_, seen)

    def __sklearn_tags__(self) -> Tags:
        """Tags of the base, for two classes."""
        tags = super().__sklearn_tags__()
        base = LogisticRegression() if self.estimator is None else self.estimator
        if not isinstance(base, str):
            inputs = get_tags(base).input_tags
            tags.input_tags.sparse, tags.input_tags.allow_nan = inputs.sparse, inputs.allow_nan
        if self.mode == "surrogate":
            beside = get_tags(self.surrogate or HistGradientBoostingClassifier()).input_tags
            tags.input_tags.sparse &= beside.sparse
            tags.input_tags.allow_nan &= beside.allow_nan
        tags.classifier_tags.multi_class = False
        return tags
