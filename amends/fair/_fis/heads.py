"""What influence needs of a fitted classifier: the weights that training moves, and the features they stand on.

Logistic and softmax regression are read as they are, at the end of a pipeline too; a network is asked through
`influence_model` (`amends.fair._fis.network`). The gradient of a row's loss with label k by its scores is p - e_k, so
its product with any direction of the weights follows from how the scores move along that direction.

Shapes: N rows, E features with the intercept, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from amends.maths.arrays import FloatArray
from amends.maths.influence import LinearModel, with_intercept

CLOSE = 1e-6
"""Distance between what a classifier says and what its weights say that is taken for rounding."""
LOOKED_AT = 100
"""Rows on which this is checked."""


@dataclass(frozen=True, eq=False)
class Head:
    """A fitted classifier as influence sees it."""

    features: Callable[[Any], Any]
    """Rows as the model takes them."""
    model: Any
    """`LinearModel`, or a network with the same methods."""

    def influence(self, x_NE: Any, direction: Any) -> FloatArray:
        """Change of a validation quantity per unit of learning rate, (N, K), if a row were learnt with each label.

        - < grad l(x, k), direction > for direction = gradient of the quantity by the weights; negative: it falls.
        Source: Pang et al. 2024 (FIS), first order, without the Hessian.
        """
        if isinstance(self.model, LinearModel):
            moved_NK = np.asarray(x_NE) @ direction.T
        else:
            moved_NK = self.model.moved(x_NE, direction)
        p_NK = self.predict(x_NE)
        if moved_NK.shape[1] == 1:  # logistic: the first class has the score 0, which nothing moves
            moved_NK = np.column_stack([np.zeros(len(moved_NK)), moved_NK])
        return np.asarray(moved_NK - (p_NK * moved_NK).sum(axis=1, keepdims=True))

    def predict(self, x_NE: Any) -> FloatArray:
        """Predict probabilities of all classes, (N, K)."""
        return both_classes(self.model.predict(x_NE))

    def by_loss(self, x_NE: Any, label_N: ArrayLike) -> Any:
        """Gradient by the weights of the rows' mean loss."""
        return self.model.gradient(x_NE, self.model.residual(x_NE, self.model.targets(label_N)))

    def by_probability(self, x_NE: Any, slope_NK: ArrayLike) -> Any:
        """Gradient by the weights of a function whose slope by the probabilities of all classes is known."""
        slope_NK = np.asarray(slope_NK)
        if isinstance(self.model, LinearModel) and self.model.loss == "logistic":
            slope_NK = slope_NK[:, 1:] - slope_NK[:, :1]
        return self.model.pull_back(x_NE, slope_NK)


def both_classes(p_NK: ArrayLike) -> FloatArray:
    """Probabilities of all classes, (N, K), where a logistic model gives that of the second alone."""
    p_NK = np.asarray(p_NK)
    return np.column_stack([1 - p_NK, p_NK]) if p_NK.shape[1] == 1 else p_NK


def head_of(fitted: Any, X: Any) -> Head:
    """Read a fitted classifier.

    Parameters
    ----------
    fitted : classifier
        With `coef_` and `intercept_` that say all of `predict_proba`, or with `influence_model`; also as the last step
        of a pipeline, or the best of a search.
    X : rows (N, D)
        Some rows, to check that.

    Raises
    ------
    ValueError : the classifier is of neither kind; what can be done.
    """
    inner = getattr(fitted, "best_estimator_", fitted)
    features, last = _steps(inner)
    name = type(last).__name__
    if hasattr(last, "influence_model"):
        return Head(features, last.influence_model())
    if not (hasattr(last, "coef_") and hasattr(last, "predict_proba")):
        raise ValueError(
            f"{name}: its loss has no gradient that is known here. Give logistic regression, a torch network, or a "
            "pipeline that ends in one, or give such a model as surrogate."
        )
    weight_KE = np.column_stack([last.coef_, np.broadcast_to(last.intercept_, len(last.coef_))]).astype(np.float64)
    model = LinearModel(weight_KE, "logistic" if len(weight_KE) == 1 else "softmax")
    head = Head(lambda rows: with_intercept(features(rows)), model)
    some = X[:LOOKED_AT]
    apart = float(np.abs(both_classes(model.predict(head.features(some))) - inner.predict_proba(some)).max())
    if apart > CLOSE:
        raise ValueError(
            f"{name}: its probabilities are not those of a softmax over its weights ({apart:.2g} apart), so its "
            "gradient is not known. Give LogisticRegression, or give it as surrogate."
        )
    return head


def _steps(fitted: Any) -> tuple[Callable[[Any], Any], Any]:
    """Split a pipeline, nested or not, into what it does to rows and its last step."""
    if not hasattr(fitted, "steps"):
        return np.asarray, fitted
    within, last = _steps(getattr(fitted[-1], "best_estimator_", fitted[-1]))
    if len(fitted.steps) == 1:
        return within, last
    return (lambda rows: within(_dense(fitted[:-1].transform(rows)))), last


def _dense(rows: Any) -> Any:
    return rows.toarray() if hasattr(rows, "toarray") else rows
