"""The estimator of `amends fair concept_influence`: a classifier that says which of its training rows make the gap.

Shapes: N training rows, V validation rows, D columns, E features and the intercept, K scores, M counterparts of a row.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data

from amends.fair._concept_influence.concepts import Concept, Rows, counterparts, named, quality
from amends.fair._concept_influence.scores import MOST_NEWTON, Gap, Scorer, Surrogate, by_cell
from amends.fair._tables.groups import Groups, read_groups
from amends.maths.arrays import FloatArray
from amends.maths.disparity import Disparity, Notion, disparity
from amends.maths.influence import Fitted, Solver, from_sklearn

if TYPE_CHECKING:
    from amends.fair._concept_influence.repair import Repair

UNSETTLED = 1e-3
"""Change of the gap, were the training finished, above which it is warned of."""


def _has(name: str) -> Any:
    return lambda self: hasattr(getattr(self, "estimator_", None) or self._made(), name)


class ConceptInfluence(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """Say what each training row does to the gap between groups, and what it would be had the row been another.

    The gap is the mean size of the difference between two groups in what the model says of the validation rows: its
    probabilities, as hard decisions have no gradient. Negative numbers: the gap falls.

    Parameters
    ----------
    estimator : LogisticRegression, RidgeClassifier, or a Pipeline that ends in one; default LogisticRegression
        What stands before it in a Pipeline is taken as fixed. In `sklearn.frozen.FrozenEstimator`, one that is fitted.
    metric : {"demographic_parity", "equal_opportunity", "equalized_odds"}, default "demographic_parity"
    pos_label : optional
        The label that is an advantage. Default: of two labels the higher; of more, the gaps of all count, and equal
        opportunity needs it.
    surrogate : {"probability", "logit"}, default "probability"
        What stands for the decision.
    solver : {"exact", "cg", "identity"}, optional
        As in `amends.maths.influence.LinearModel.solve`. "identity" leaves out the curvature: an order, and no sizes.
    damping : float, default 0
        Added to the Hessian's diagonal, as a multiple of its mean.
    newton : bool, default True
        Predict by one Newton step; otherwise to first order, which is nearly the same for all but rows that weigh much.
        Above 2,000 weights, and by other solvers than "exact", all is of first order.
    num_bootstrap : int, default 100
        Draws of the validation rows for the intervals (95 %); 0: none.
    random_state : int, RandomState or None

    Attributes
    ----------
    estimator_ : the fitted model
    classes_ : array (K,)
    disparity_ : float
        The smooth gap on the validation rows.
    hard_disparity_ : float
        The same of the decisions.
    groups_, accuracy_ : list, float
        Groups of the validation rows, sorted, and accuracy on them.
    changes_ : data frame; what `explain` returned

    Source: arXiv 2306.17828; signs are ours (there, positive may mean better).
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        metric: Notion = "demographic_parity",
        pos_label: Any = None,
        surrogate: Surrogate = "probability",
        solver: Solver | None = None,
        damping: float = 0.0,
        newton: bool = True,
        num_bootstrap: int = 100,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.metric = metric
        self.pos_label = pos_label
        self.surrogate = surrogate
        self.solver = solver
        self.damping = damping
        self.newton = newton
        self.num_bootstrap = num_bootstrap
        self.random_state = random_state

    # The model ----------------------------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        sensitive_features: Any = None,
        X_val: Any = None,
        y_val: Any = None,
        sensitive_features_val: Any = None,
    ) -> "ConceptInfluence":
        """Fit the model, and find what moves its gap.

        Parameters
        ----------
        X : data frame or array (N, D)
        y : (N,)
        sensitive_features : (N,) or (N, C), optional
            Groups of the training rows: for `summary`, and concepts that ask about groups.
        X_val, y_val, sensitive_features_val : optional
            Rows on which the gap is measured. Default: the training rows, which the model knows: the gap of new rows
            may be another.

        Raises
        ------
        ValueError : a model or an option that is none of those above, validation rows without labels, a group without
            rows under the metric, or as scikit-learn says.
        """
        if self.surrogate not in ("probability", "logit"):
            raise ValueError(f"surrogate={self.surrogate!r}: unknown. Choose probability or logit.")
        if self.num_bootstrap < 0 or self.damping < 0:
            raise ValueError(f"num_bootstrap={self.num_bootstrap}, damping={self.damping}: expected 0 or more.")
        X = self._read(X, reset=True)
        y = column_or_1d(y, warn=True)
        check_consistent_length(X, y)
        check_classification_targets(y)
        own = X_val is None
        if own != (y_val is None) or (own and sensitive_features_val is not None):
            raise ValueError("X_val, y_val, sensitive_features_val: of validation rows give all, or none of the three.")
        self.estimator_ = self._made().fit(X, y)
        self.classes_ = np.asarray(self._last(self.estimator_).classes_)
        if len(self.classes_) < 2:
            raise ValueError(f"1 class in y ({self.classes_[0]}): there is nothing to decide. Give rows of another.")
        groups = read_groups(sensitive_features, len(y))
        self.rows_ = Rows(X, y, np.array([groups.names[code] for code in groups.code_N], dtype=object))
        rows_val = X if own else self._read(X_val, reset=False)
        label_V = self._codes(y if own else column_or_1d(y_val), "y_val")
        check_consistent_length(rows_val, label_V)
        of_val = groups if own else read_groups(sensitive_features_val, len(label_V), "sensitive_features_val")
        self._measure(rows_val, label_V, of_val)
        self._prepare()
        return self

    def _measure(self, rows_val: Any, label_V: np.ndarray, groups: Groups) -> None:
        """Set up the gap on the validation rows."""
        self.groups_ = groups.names
        if len(groups.names) < 2:
            warnings.warn(
                "all validation rows are of one group: there is no gap to explain, and every change is 0. Give "
                "sensitive_features, or sensitive_features_val beside X_val.",
                UserWarning,
                stacklevel=3,
            )
        self._val = (rows_val, label_V, groups.code_N)
        condition_V = label_V if self._positive is None else (label_V == self._positive).astype(np.int64)
        notion = self.metric
        if notion == "equal_opportunity" and self._positive is None:
            raise ValueError(f"metric={notion!r} of {len(self.classes_)} classes needs pos_label: give one of them.")
        of = groups.names
        self._gap_of: Disparity = disparity(groups.code_N, condition_V, notion, num_groups=len(of), names=of)
        self.accuracy_, self.hard_disparity_ = self.decide(self.estimator_)

    @property
    def _positive(self) -> int | None:
        """Number of the label that is an advantage; None: of several each counts."""
        if self.pos_label is None:
            return 1 if len(self.classes_) == 2 else None
        if self.pos_label not in self.classes_:
            raise ValueError(f"pos_label={self.pos_label!r}: none of the labels {self.classes_[:10].tolist()}.")
        return int(np.flatnonzero(self.classes_ == self.pos_label)[0])

    def decide(self, estimator: Any) -> tuple[float, float]:
        """Let a model decide on the validation rows: its accuracy, and the gap of its decisions."""
        rows_val, label_V, _ = self._val
        code_V = self._codes(estimator.predict(rows_val))
        decided = np.eye(len(self.classes_))[code_V]
        decided = decided if self._positive is None else decided[:, self._positive]
        return float((code_V == label_V).mean()), self._gap_of.loss(decided, "absolute")

    def _prepare(self) -> None:
        self.scorer_, self.gap_ = self.scorer(self.estimator_, self.rows_, self.num_bootstrap)
        model, scorer = self.scorer_.fitted.model, self.scorer_
        self.disparity_ = self.gap_.value(model)
        residual_NK = model.residual(scorer.x_NE, scorer.fitted.targets(scorer.code_N))
        slope_KE = model.gradient(scorer.x_NE, residual_NK * scorer.weight_N[:, None])
        slope_KE[:, :-1] += scorer.fitted.penalty * model.weight_KE[:, :-1]
        self.unsettled_ = float(-(scorer.direction_KE * slope_KE).sum()) if self.solver != "identity" else 0.0
        if abs(self.unsettled_) > UNSETTLED:
            warnings.warn(
                f"the model is not at its minimum: trained to the end, its gap moves by {self.unsettled_:+.4f}, and "
                "what is said of single rows is as uncertain. Scale the features, or raise max_iter and lower tol.",
                UserWarning,
                stacklevel=3,
            )

    def gap(self, estimator: Any, num_rows: int) -> tuple[Fitted, Gap]:
        """Take a model that was fitted to so many rows, and the gap on the validation rows as a function of it."""
        fitted = from_sklearn(self._last(estimator), num_rows)
        K = len(fitted.model.weight_KE)
        counted = (0,) if K == 1 else tuple(range(K)) if self._positive is None else (self._positive,)
        return fitted, Gap(_features(fitted, estimator, self._val[0]), self._gap_of, self.surrogate, counted)

    def scorer(self, estimator: Any, rows: Rows, num_bootstrap: int = 0) -> tuple[Scorer, Gap]:
        """Find, of a model fitted to rows, what moves the gap on the validation rows."""
        fitted, gap = self.gap(estimator, len(rows))
        model = fitted.model
        features = partial(_features, fitted, estimator)
        x_NE, code_N = features(rows.X), self._codes(rows.y)
        asked = getattr(self._last(estimator), "class_weight", None)
        by_class = compute_class_weight(asked, classes=self.classes_, y=rows.y)
        weight_N = by_class[code_N]
        how: dict[str, Any] = {"damping": self.damping, "weight_N": weight_N}
        slope_KE = gap.gradient(model)
        slopes_BKE = gap.gradients(model, num_bootstrap, np.random.default_rng(self._seed()))
        inverse = None
        if self.solver in (None, "exact") and slope_KE.size <= MOST_NEWTON:
            inverse = model.inverse(x_NE, fitted.penalty, **how)
            direction_KE = (inverse @ slope_KE.ravel()).reshape(slope_KE.shape)
            directions_BKE = (slopes_BKE.reshape(num_bootstrap, slope_KE.size) @ inverse).reshape(slopes_BKE.shape)
        else:
            direction_KE, *solved = (
                model.solve(x_NE, of_KE, fitted.penalty, solver=self.solver, **how) for of_KE in (slope_KE, *slopes_BKE)
            )
            directions_BKE = np.array(solved).reshape(slopes_BKE.shape)
        used = inverse if self.newton else None
        scorer = Scorer(
            fitted, x_NE, code_N, weight_N, direction_KE, directions_BKE, used, features, self._codes, by_class.take
        )
        return scorer, gap

    def predict(self, X: Any) -> np.ndarray:
        """Predict labels (N,)."""
        check_is_fitted(self)
        return np.asarray(self.estimator_.predict(self._read(X, reset=False)))

    @available_if(_has("predict_proba"))
    def predict_proba(self, X: Any) -> np.ndarray:
        """Predict probabilities (N, K)."""
        check_is_fitted(self)
        return np.asarray(self.estimator_.predict_proba(self._read(X, reset=False)))

    @available_if(_has("decision_function"))
    def decision_function(self, X: Any) -> np.ndarray:
        """Say on which side, and how far from the border: (N,) or (N, K)."""
        check_is_fitted(self)
        return np.asarray(self.estimator_.decision_function(self._read(X, reset=False)))

    # What rows do -------------------------------------------------------------------------------------------------

    def explain(
        self,
        concepts: Mapping[str, Concept | str] | Sequence[str] = ("label", "removal"),
        told: Callable[[float], None] | None = None,
    ) -> pd.DataFrame:
        """Predict for each row and concept how the gap changes if the row is replaced by its counterpart.

        Parameters
        ----------
        concepts : mapping of name to concept, or names out of label, removal, group
        told : function of the share that is done, optional

        Returns
        -------
        data frame with a row for each training row: of each concept the change, NaN where there is no counterpart, and
        the ends of its interval over the validation rows (NAME_low, NAME_high) if there are bootstraps.
        """
        check_is_fitted(self)
        asked = concepts if isinstance(concepts, Mapping) else {name: name for name in concepts}
        if not asked:
            raise ValueError("concepts: none is given. Choose of label, removal, group, or give functions of rows.")
        self.puts_, self.scores_, self.quality_ = {}, {}, {}
        found: dict[str, FloatArray] = {}
        for name, concept in asked.items():
            self.puts_[name] = counterparts(named(concept), self.rows_)
            self.scores_[name] = self.scorer_.score(self.rows_, self.puts_[name])
            self.quality_[name] = quality(self.rows_, self.puts_[name], self._seed())
            found[name] = self.scores_[name].change_N
            if self.num_bootstrap:
                found |= {f"{name}_low": self.scores_[name].low_N, f"{name}_high": self.scores_[name].high_N}
            if told:
                told(len(self.scores_) / len(asked))
        self.changes_ = pd.DataFrame(found, index=getattr(self.rows_.X, "index", None))
        return self.changes_

    def summary(self, by: Sequence[str] = ("group", "y"), top: float = 0.01) -> pd.DataFrame:
        """Say which cells of the training rows make the gap.

        Parameters
        ----------
        by : some of group, y
        top : float, default 0.01
            Share of the rows that counts as the most helpful to change.

        Returns
        -------
        data frame, a row for each cell and concept: rows; mean change of one; total, were all changed at once (of first
        order, so it overshoots); share whose change lets the gap fall; and lift, how much more often than others they
        are among the most helpful.
        """
        check_is_fitted(self, "changes_")
        return by_cell({name: scores.change_N for name, scores in self.scores_.items()}, self.rows_, by, top)

    def verify(self, concept: str, num: int = 40) -> pd.DataFrame:
        """Change single rows, refit the model, and see whether the gap moves as predicted.

        Rows are taken at equal steps along the ranking. What stands before the last step of a Pipeline stays as it is.

        Returns
        -------
        data frame: row, predicted, actual.

        Raises
        ------
        ValueError : a concept that was not explained, or scores that no curvature went into.
        """
        from amends.fair._concept_influence.repair import verify

        self._check_explained(concept)
        return verify(self, concept, num)

    def repair(
        self,
        concept: str,
        *,
        max_rows: float = 0.05,
        step: float = 0.01,
        accuracy_tol: float = 0.005,
        told: Callable[[float], None] | None = None,
    ) -> "Repair":
        """Change the rows that are most helpful to change, a few at a time; see `_concept_influence.repair`."""
        from amends.fair._concept_influence.repair import repair

        self._check_explained(concept)
        return repair(self, concept, max_rows=max_rows, step=step, accuracy_tol=accuracy_tol, told=told)

    # Plumbing -----------------------------------------------------------------------------------------------------

    def _check_explained(self, concept: str) -> None:
        check_is_fitted(self, "changes_")
        if concept not in self.scores_:
            raise ValueError(f"concept={concept!r}: not explained. Choose one of {', '.join(self.scores_)}.")

    def _made(self) -> Any:
        return LogisticRegression(max_iter=1000) if self.estimator is None else clone(self.estimator)

    def unfitted(self) -> Any:
        """Return the model to be fitted anew, also where a fitted one was given."""
        made = self._made()
        return clone(made.estimator) if isinstance(made, FrozenEstimator) else made

    @staticmethod
    def _last(estimator: Any) -> Any:
        estimator = estimator.estimator if isinstance(estimator, FrozenEstimator) else estimator
        return estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator

    def _codes(self, y: Any, name: str = "y") -> np.ndarray:
        y = np.asarray(y)
        code_N = np.minimum(np.searchsorted(self.classes_, y), len(self.classes_) - 1)
        if (self.classes_[code_N] != y).any():
            strange = y[self.classes_[code_N] != y][0]
            raise ValueError(f"{name}: {strange!r} is none of the labels that the model knows, {self.classes_[:10]}.")
        return np.asarray(code_N, dtype=np.int64)

    def _read(self, X: Any, *, reset: bool) -> Any:
        """Keep a data frame as one of pandas, so that concepts and pipelines find its columns; else an array."""
        if hasattr(X, "columns"):
            validate_data(self, X, reset=reset, skip_check_array=True)
            frame = X if isinstance(X, pd.DataFrame) else X.to_pandas()
            if not len(frame) or not len(frame.columns):
                raise ValueError(f"a data frame of shape {frame.shape}: expected rows and columns.")
            return frame
        given = self.estimator.estimator if isinstance(self.estimator, FrozenEstimator) else self.estimator
        finite = "allow-nan" if isinstance(given, Pipeline) else True
        return validate_data(self, X, reset=reset, dtype=np.float64, ensure_all_finite=finite)

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31 - 1))


def _features(fitted: Fitted, estimator: Any, X: Any) -> FloatArray:
    """Features as the last step of a model gets them, (N, E)."""
    estimator = estimator.estimator if isinstance(estimator, FrozenEstimator) else estimator
    found = estimator[:-1].transform(X) if isinstance(estimator, Pipeline) and len(estimator.steps) > 1 else X
    found = found.toarray() if hasattr(found, "toarray") else found
    return fitted.features(np.asarray(found, dtype=np.float64))
