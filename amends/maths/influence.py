"""What a row of the training data does to a number that depends on a model: gradients, curvature, and their product.

A generalised linear model with weights W has scores Z = X W' and a loss with slope R = dl/dZ, which is what it predicts
minus the truth for all three losses here. The gradient of a row's loss is then its R times its features, so nothing of
the size (rows, weights) is ever made: its product with a direction V is the sum of R and X V' over the scores.

Training minimises mean loss + penalty / 2 * |W|^2, with intercepts left out of the penalty (as scikit-learn does:
penalty = 1 / (C * rows)). Source of influence functions: Koh and Liang 2017, eq. 1 and 2.

To first order, leaving row i out moves the weights by H^-1 g_i / N, where H is the curvature of the objective and g_i
the row's gradient. One Newton step on the objective without the row uses the curvature that is left, and needs no other
solve: the row's residual is only scaled by what it weighs (`newton`). For the squared loss that is the refit itself, as
in the leave-one-out formula of ridge regression; for the others it is the refit to second order.

Shapes: N rows, E features and a last one that is 1 (the intercept), K scores of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import lstsq, pinvh
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import expit, softmax

from amends.maths.arrays import FloatArray

Loss = Literal["logistic", "softmax", "squared"]
Solver = Literal["exact", "cg", "identity"]
MOST_EXACT = 5000
"""Weights up to which the Hessian is made and solved: 200 MB, and about ten seconds on two cores."""


class NotSolved(ValueError):
    """Conjugate gradients did not come to an end."""


@dataclass(frozen=True, eq=False)
class LinearModel:
    """A generalised linear model at given weights."""

    weight_KE: FloatArray
    """The last column holds the intercepts. "logistic" has one row, for the second of two classes."""
    loss: Loss

    def predict(self, x_NE: ArrayLike) -> FloatArray:
        """Predict, (N, K): probabilities, or values under the squared loss."""
        score_NK = np.asarray(x_NE) @ self.weight_KE.T
        if self.loss == "squared":
            return np.asarray(score_NK)
        return np.asarray(expit(score_NK) if self.loss == "logistic" else softmax(score_NK, axis=1))

    def residual(self, x_NE: ArrayLike, target_NK: ArrayLike) -> FloatArray:
        """Slope of each row's loss by its scores, (N, K), for targets as `targets` makes them."""
        return np.asarray(self.predict(x_NE) - np.asarray(target_NK))

    def targets(self, label_N: ArrayLike) -> FloatArray:
        """Labels as the model's outputs would be were it always right, (N, K): classes 0, 1, ..., or values."""
        label_N = np.asarray(label_N)
        if self.loss == "softmax":
            return np.asarray(np.eye(len(self.weight_KE))[label_N.astype(np.int64)])
        return np.asarray(label_N, dtype=np.float64)[:, None]

    def gradient(self, x_NE: ArrayLike, residual_NK: ArrayLike) -> FloatArray:
        """Gradient of the rows' mean loss, (K, E), without the penalty; of weighted rows, residuals times weights."""
        return np.asarray(np.asarray(residual_NK).T @ np.asarray(x_NE) / len(np.asarray(x_NE)))

    def pull_back(self, x_NE: ArrayLike, slope_NK: ArrayLike) -> FloatArray:
        """Gradient (K, E) by the weights of a function whose slope by what the model predicts is known."""
        return np.asarray(self.by_score(x_NE, slope_NK).T @ np.asarray(x_NE))

    def by_score(self, x_NE: ArrayLike, slope_NK: ArrayLike) -> FloatArray:
        """Slope by the scores, (N, K), of a function whose slope by what the model predicts is known."""
        slope_NK, p_NK = np.asarray(slope_NK, dtype=np.float64), self.predict(x_NE)
        if self.loss == "logistic":
            return np.asarray(slope_NK * p_NK * (1 - p_NK))
        if self.loss == "softmax":
            return np.asarray(p_NK * (slope_NK - (slope_NK * p_NK).sum(axis=1, keepdims=True)))
        return slope_NK

    def along(self, x_NE: ArrayLike, residual_NK: ArrayLike, direction_KE: ArrayLike) -> FloatArray:
        """Product of each row's gradient with a direction of the weights, (N,)."""
        return np.asarray((np.asarray(residual_NK) * (np.asarray(x_NE) @ np.asarray(direction_KE).T)).sum(axis=1))

    # Curvature ----------------------------------------------------------------------------------------------------

    def hessian(self, x_NE: ArrayLike, penalty: float = 0.0, *, weight_N: ArrayLike | None = None) -> FloatArray:
        """Second derivative of the objective by the weights row by row of W, (K E, K E); rows may have weights."""
        x_NE = np.asarray(x_NE, dtype=np.float64)
        N, E = x_NE.shape
        bend_NKK = self.bend(x_NE, weight_N)
        K = bend_NKK.shape[1]
        found = np.empty((K, E, K, E))
        for i in range(K):
            for j in range(i, K):
                found[i, :, j] = (x_NE * bend_NKK[:, i, j, None]).T @ x_NE / N
                found[j, :, i] = found[i, :, j].T
        return np.asarray(found.reshape(K * E, K * E) + np.diag(self._penalties(E, penalty)))

    def hessian_times(
        self, x_NE: ArrayLike, direction_KE: ArrayLike, penalty: float = 0.0, *, weight_N: ArrayLike | None = None
    ) -> FloatArray:
        """Product of the Hessian with a direction, (K, E), without the Hessian."""
        x_NE, direction_KE = np.asarray(x_NE), np.asarray(direction_KE)
        moved_NK = np.einsum("nij,nj->ni", self.bend(x_NE, weight_N), x_NE @ direction_KE.T)
        penalty_KE = self._penalties(x_NE.shape[1], penalty).reshape(direction_KE.shape)
        return np.asarray(moved_NK.T @ x_NE / len(x_NE) + penalty_KE * direction_KE)

    def solve(
        self,
        x_NE: ArrayLike,
        direction_KE: ArrayLike,
        penalty: float = 0.0,
        *,
        damping: float = 0.0,
        solver: Solver | None = None,
        weight_N: ArrayLike | None = None,
    ) -> FloatArray:
        """Product of the inverse Hessian with a direction, (K, E).

        Parameters
        ----------
        damping : float, default 0
            Added to the diagonal, as a multiple of its mean.
        solver : {"exact", "cg", "identity"}, optional
            Least squares with the Hessian, which of many solutions takes the shortest (the weights of softmax are
            known but for a common shift); or conjugate gradients with products alone. Default: exact up to
            `MOST_EXACT` weights. "identity" takes the direction as it is: products of gradients (Wang, Wang, Liu 2022),
            whose order may serve where a solve is too dear; their size is that of no change.
        weight_N : float array (N,), optional
            Weights of the rows' losses. Default: 1.

        Raises
        ------
        NotSolved : conjugate gradients did not end. Give damping.
        """
        x_NE, direction_KE = np.asarray(x_NE, dtype=np.float64), np.asarray(direction_KE, dtype=np.float64)
        size = direction_KE.size
        if solver == "identity":
            return direction_KE
        diagonal = self._diagonal(x_NE, penalty, weight_N)
        added = damping * float(diagonal.mean())
        if (solver or ("exact" if size <= MOST_EXACT else "cg")) == "exact":
            hessian = self.hessian(x_NE, penalty, weight_N=weight_N)
            hessian[np.diag_indices(size)] += added
            found, *_ = lstsq(hessian, direction_KE.ravel(), lapack_driver="gelsy")
            return np.asarray(found.reshape(direction_KE.shape))

        def times(flat: FloatArray) -> FloatArray:
            moved = self.hessian_times(x_NE, flat.reshape(direction_KE.shape), penalty, weight_N=weight_N)
            return np.asarray(moved.ravel() + added * flat)

        scale = 1 / np.maximum(diagonal + added, np.finfo(np.float64).tiny)
        with np.errstate(divide="ignore", invalid="ignore"):  # of a direction without curvature, which is refused below
            near, failed = cg(
                LinearOperator((size, size), matvec=times, dtype=np.float64),
                direction_KE.ravel(),
                M=LinearOperator((size, size), matvec=lambda flat: scale * flat, dtype=np.float64),
                rtol=1e-9,
                maxiter=10 * size,
            )
        if failed or not np.isfinite(near).all():
            raise NotSolved(f"conjugate gradients did not end in {10 * size} rounds: give damping, such as 1e-3.")
        return np.asarray(near.reshape(direction_KE.shape))

    def inverse(
        self, x_NE: ArrayLike, penalty: float = 0.0, *, damping: float = 0.0, weight_N: ArrayLike | None = None
    ) -> FloatArray:
        """Inverse of the Hessian, (K E, K E), for `newton`; where it has none, its pseudo-inverse."""
        hessian = self.hessian(x_NE, penalty, weight_N=weight_N)
        hessian[np.diag_indices(len(hessian))] += damping * float(np.diag(hessian).mean())
        return np.asarray(pinvh(hessian))

    def bend(self, x_NE: ArrayLike, weight_N: ArrayLike | None = None) -> FloatArray:
        """Second derivative of each row's loss by its scores, (N, K, K), times the row's weight."""
        p_NK = self.predict(x_NE)
        weight_N11 = 1.0 if weight_N is None else np.asarray(weight_N)[:, None, None]
        if self.loss == "softmax":
            return np.asarray(p_NK[:, :, None] * (np.eye(p_NK.shape[1]) - p_NK[:, None, :]) * weight_N11)
        bend_NK = p_NK * (1 - p_NK) if self.loss == "logistic" else np.ones_like(p_NK)
        return np.asarray(bend_NK[:, :, None] * np.eye(p_NK.shape[1]) * weight_N11)

    def _diagonal(self, x_NE: FloatArray, penalty: float, weight_N: ArrayLike | None) -> FloatArray:
        """Diagonal of the Hessian, (K E,)."""
        bend_NK = np.einsum("nii->ni", self.bend(x_NE, weight_N))
        return np.asarray((bend_NK.T @ x_NE**2 / len(x_NE)).ravel() + self._penalties(x_NE.shape[1], penalty))

    def _penalties(self, num_features: int, penalty: float) -> FloatArray:
        by_feature = np.full(num_features, penalty)
        by_feature[-1] = 0
        return np.tile(by_feature, len(self.weight_KE))


def with_intercept(x_ND: ArrayLike) -> FloatArray:
    """Features with a last column of ones, (N, E)."""
    x_ND = np.asarray(x_ND, dtype=np.float64)
    return np.asarray(np.column_stack([x_ND, np.ones(len(x_ND))]))


def settle(
    model: LinearModel,
    x_NE: ArrayLike,
    target_NK: ArrayLike,
    inverse: FloatArray,
    penalty: float = 0.0,
    *,
    weight_N: ArrayLike | None = None,
) -> LinearModel:
    """Move a model to the minimum of the objective on data that differ in a few rows from those it was fitted to.

    Steps of the inverse Hessian of the data before, which is nearly that of the data after: each divides the distance
    by about the number of rows over those that differ, and none needs a solve.

    Raises
    ------
    NotSolved : no minimum in 200 steps; the data differ too much.
    """
    x_NE, weight_KE = np.asarray(x_NE), model.weight_KE
    weight_N1 = 1.0 if weight_N is None else np.asarray(weight_N)[:, None]
    for _ in range(200):
        near = LinearModel(weight_KE, model.loss)
        slope_KE = near.gradient(x_NE, near.residual(x_NE, target_NK) * weight_N1)
        slope_KE[:, :-1] += penalty * weight_KE[:, :-1]
        step_KE = (inverse @ slope_KE.ravel()).reshape(weight_KE.shape)
        weight_KE = weight_KE - step_KE
        if not np.isfinite(step_KE).all():
            break
        if np.abs(step_KE).max() <= 1e-10 * max(1.0, float(np.abs(weight_KE).max())):
            return LinearModel(weight_KE, model.loss)
    raise NotSolved("the model did not settle: the rows that differ weigh too much. Refit it from the start.")


# Rows that leave, and rows that come in their place ------------------------------------------------------------------


class Move(NamedTuple):
    """A row for each of N changes of the training data, which leaves it or comes in."""

    x_NE: FloatArray
    residual_NK: FloatArray
    share_N: FloatArray
    """Weight that the training data lose: the row's weight if it leaves, minus its weight if it comes in."""


def newton(model: LinearModel, moves: Sequence[Move], inverse: FloatArray | None, num_rows: int) -> list[FloatArray]:
    """Say what each move pushes the scores by: its share times its residual, or what a Newton step makes of that.

    Change i is made of row i of every move. It shifts the weights by H'^-1 (sum of pushes times features) / N, with H'
    the curvature after the change: H - U D U' / N, where U holds the features of the rows that move and D the curvature
    of their losses by their scores. By Woodbury's identity H'^-1 U q = H^-1 U (I - D S / N)^-1 q with S = U' H^-1 U, so
    that H^-1 alone is needed.

    Parameters
    ----------
    inverse : float array (K E, K E), or None
        Of the Hessian, from `LinearModel.inverse`. None: to first order.
    num_rows : int
        Rows of the training data, N of the objective.

    Returns
    -------
    list of float array (N, K), one a move. Multiplied by `LinearModel.along` with H^-1 times the gradient of a
        function, summed over the moves and divided by `num_rows`, they are the change of that function.
    """
    plain = [move.share_N[:, None] * move.residual_NK for move in moves]
    if inverse is None or not moves:
        return plain
    K, E = model.weight_KE.shape
    M = len(moves)
    inverse_KEKE = inverse.reshape(K, E, K, E)
    S = np.empty((len(plain[0]), M, K, M, K))
    for k in range(K):
        for other in range(K):
            for i, one in enumerate(moves):
                seen_NE = one.x_NE @ inverse_KEKE[k, :, other]
                for j, two in enumerate(moves):
                    S[:, i, k, j, other] = np.einsum("ne,ne->n", seen_NE, two.x_NE)
    bends = [model.bend(move.x_NE, move.share_N) for move in moves]
    for i, bend_NKK in enumerate(bends):
        S[:, i] = np.einsum("nab,nbmc->namc", bend_NKK, S[:, i])
    left = np.eye(M * K) - S.reshape(-1, M * K, M * K) / num_rows
    pushed = np.linalg.solve(left, np.concatenate(plain, axis=1)[:, :, None])[:, :, 0]
    return [np.asarray(pushed[:, i * K : (i + 1) * K], dtype=np.float64) for i in range(M)]


# Models of scikit-learn ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Fitted:
    """A linear model of scikit-learn, as the objective that it is the minimum of."""

    model: LinearModel
    penalty: float
    """Of the mean loss, as in the module's objective."""
    classes: NDArray[Any] | None
    """In the order of the labels 0, 1, ...; None of a regression."""
    has_intercept: bool = True

    def features(self, x_ND: ArrayLike) -> FloatArray:
        """Features with the last column that the model has: ones, or zeros if it has no intercept, (N, E)."""
        x_NE = with_intercept(x_ND)
        x_NE[:, -1] = self.has_intercept
        return x_NE

    def targets(self, label_N: ArrayLike) -> FloatArray:
        """Make the outputs of a model that is always right, (N, K), for classes as numbers from 0, or for values."""
        if self.model.loss != "squared" or self.classes is None:
            return self.model.targets(label_N)
        sign_NK = 2.0 * np.eye(len(self.classes))[np.asarray(label_N, dtype=np.int64)] - 1  # as RidgeClassifier has it
        return np.asarray(sign_NK[:, -len(self.model.weight_KE) :])


def from_sklearn(estimator: Any, num_rows: int) -> Fitted:
    """Take a fitted LogisticRegression, Ridge, RidgeClassifier (or their CV), or LinearRegression.

    Parameters
    ----------
    estimator : fitted
        With penalty C, or alpha: 1 / (C N) and alpha / N per mean loss.
    num_rows : int
        N, of the data it was fitted to.

    Raises
    ------
    ValueError : another kind of model, an L1 penalty, or liblinear, which penalises the intercept too.
    """
    kind = type(estimator).__name__
    if not hasattr(estimator, "coef_"):
        raise ValueError(f"{kind}: no fitted linear model. Fit a LogisticRegression or a RidgeClassifier.")
    weight_KD = np.atleast_2d(np.asarray(estimator.coef_, dtype=np.float64))
    intercept_K = np.broadcast_to(np.asarray(estimator.intercept_, dtype=np.float64), len(weight_KD))
    weight_KE = np.column_stack([weight_KD, intercept_K])
    classes, has_intercept = getattr(estimator, "classes_", None), bool(estimator.fit_intercept)
    if kind in ("LogisticRegression", "LogisticRegressionCV"):
        loss: Loss = "logistic" if len(weight_KD) == 1 else "softmax"
        return Fitted(LinearModel(weight_KE, loss), _logistic_penalty(estimator, num_rows), classes, has_intercept)
    if kind in ("Ridge", "RidgeCV", "RidgeClassifier", "RidgeClassifierCV", "LinearRegression"):
        alpha = np.unique(getattr(estimator, "alpha_", getattr(estimator, "alpha", 0.0)))
        if len(alpha) > 1:
            raise ValueError(f"{kind}: alpha differs between targets ({alpha}). Refit with one alpha.")
        return Fitted(LinearModel(weight_KE, "squared"), float(alpha[0]) / num_rows, classes, has_intercept)
    raise ValueError(f"{kind}: its objective is not known here. Use LogisticRegression, Ridge or RidgeClassifier.")


def _logistic_penalty(estimator: Any, num_rows: int) -> float:
    """Penalty of the mean loss, 1 / (C N)."""
    if estimator.solver == "liblinear" and estimator.fit_intercept:
        raise ValueError("solver='liblinear' penalises the intercept too. Use another solver, such as 'lbfgs'.")
    named = getattr(estimator, "penalty", "deprecated")
    share = np.asarray(getattr(estimator, "l1_ratio_", getattr(estimator, "l1_ratio", 0)), dtype=np.float64)
    if named == "l1" or (named in ("elasticnet", "deprecated") and (share > 0).any()):
        raise ValueError("an L1 penalty has no curvature at 0, where it holds weights. Use an L2 penalty (l1_ratio=0).")
    C = np.unique(estimator.C_ if hasattr(estimator, "C_") else estimator.C)
    if len(C) > 1:
        raise ValueError(f"C differs between classes ({C}): there is no one objective. Refit with one C.")
    return 0.0 if named is None or np.isinf(C[0]) else float(1 / (C[0] * num_rows))
