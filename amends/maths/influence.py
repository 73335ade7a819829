"""What a row of the training data does to a number that depends on a model: gradients, curvature, and their product.

A generalised linear model with weights W has scores Z = X W' and a loss with slope R = dl/dZ, which is what it predicts
minus the truth for all three losses here. The gradient of a row's loss is then its R times its features, so nothing of
the size (rows, weights) is ever made: its product with a direction V is the sum of R and X V' over the scores.

Training minimises mean loss + penalty / 2 * |W|^2, with intercepts left out of the penalty (as scikit-learn does:
penalty = 1 / (C * rows)). Source of influence functions: Koh and Liang 2017, eq. 1 and 2.

Shapes: N rows, E features and a last one that is 1 (the intercept), K scores of a row.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import lstsq
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import expit, softmax

FloatArray = NDArray[np.float64]
Loss = Literal["logistic", "softmax", "squared"]
Solver = Literal["exact", "cg"]
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
        """Gradient of the rows' mean loss, (K, E), without the penalty."""
        return np.asarray(np.asarray(residual_NK).T @ np.asarray(x_NE) / len(np.asarray(x_NE)))

    def pull_back(self, x_NE: ArrayLike, slope_NK: ArrayLike) -> FloatArray:
        """Gradient (K, E) by the weights of a function whose slope by what the model predicts is known."""
        by_score_NK, p_NK = np.asarray(slope_NK, dtype=np.float64), self.predict(x_NE)
        if self.loss == "logistic":
            by_score_NK = by_score_NK * p_NK * (1 - p_NK)
        elif self.loss == "softmax":
            by_score_NK = p_NK * (by_score_NK - (by_score_NK * p_NK).sum(axis=1, keepdims=True))
        return np.asarray(by_score_NK.T @ np.asarray(x_NE))

    def along(self, x_NE: ArrayLike, residual_NK: ArrayLike, direction_KE: ArrayLike) -> FloatArray:
        """Product of each row's gradient with a direction of the weights, (N,)."""
        return np.asarray((np.asarray(residual_NK) * (np.asarray(x_NE) @ np.asarray(direction_KE).T)).sum(axis=1))

    # Curvature ----------------------------------------------------------------------------------------------------

    def hessian(self, x_NE: ArrayLike, penalty: float = 0.0) -> FloatArray:
        """Second derivative of the objective by the weights row by row of W, (K E, K E)."""
        x_NE = np.asarray(x_NE, dtype=np.float64)
        N, E = x_NE.shape
        bend_NKK = self._bend(x_NE)
        K = bend_NKK.shape[1]
        found = np.empty((K, E, K, E))
        for i in range(K):
            for j in range(i, K):
                found[i, :, j] = (x_NE * bend_NKK[:, i, j, None]).T @ x_NE / N
                found[j, :, i] = found[i, :, j].T
        return np.asarray(found.reshape(K * E, K * E) + np.diag(self._penalties(E, penalty)))

    def hessian_times(self, x_NE: ArrayLike, direction_KE: ArrayLike, penalty: float = 0.0) -> FloatArray:
        """Product of the Hessian with a direction, (K, E), without the Hessian."""
        x_NE, direction_KE = np.asarray(x_NE), np.asarray(direction_KE)
        moved_NK = np.einsum("nij,nj->ni", self._bend(x_NE), x_NE @ direction_KE.T)
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
    ) -> FloatArray:
        """Product of the inverse Hessian with a direction, (K, E).

        Parameters
        ----------
        damping : float, default 0
            Added to the diagonal, as a multiple of its mean.
        solver : {"exact", "cg"}, optional
            Least squares with the Hessian, which of many solutions takes the shortest (the weights of softmax are
            known but for a common shift); or conjugate gradients with products alone. Default: exact up to
            `MOST_EXACT` weights.

        Raises
        ------
        NotSolved : conjugate gradients did not end. Give damping.
        """
        x_NE, direction_KE = np.asarray(x_NE, dtype=np.float64), np.asarray(direction_KE, dtype=np.float64)
        size = direction_KE.size
        diagonal = self._diagonal(x_NE, penalty)
        added = damping * float(diagonal.mean())
        if (solver or ("exact" if size <= MOST_EXACT else "cg")) == "exact":
            hessian = self.hessian(x_NE, penalty)
            hessian[np.diag_indices(size)] += added
            found, *_ = lstsq(hessian, direction_KE.ravel(), lapack_driver="gelsy")
            return np.asarray(found.reshape(direction_KE.shape))

        def times(flat: FloatArray) -> FloatArray:
            moved = self.hessian_times(x_NE, flat.reshape(direction_KE.shape), penalty)
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

    def _bend(self, x_NE: ArrayLike) -> FloatArray:
        """Second derivative of each row's loss by its scores, (N, K, K)."""
        p_NK = self.predict(x_NE)
        if self.loss == "softmax":
            return np.asarray(p_NK[:, :, None] * (np.eye(p_NK.shape[1]) - p_NK[:, None, :]))
        bend_NK = p_NK * (1 - p_NK) if self.loss == "logistic" else np.ones_like(p_NK)
        return np.asarray(bend_NK[:, :, None] * np.eye(p_NK.shape[1]))

    def _diagonal(self, x_NE: FloatArray, penalty: float) -> FloatArray:
        """Diagonal of the Hessian, (K E,)."""
        bend_NK = np.einsum("nii->ni", self._bend(x_NE))
        return np.asarray((bend_NK.T @ x_NE**2 / len(x_NE)).ravel() + self._penalties(x_NE.shape[1], penalty))

    def _penalties(self, num_features: int, penalty: float) -> FloatArray:
        by_feature = np.full(num_features, penalty)
        by_feature[-1] = 0
        return np.tile(by_feature, len(self.weight_KE))


def with_intercept(x_ND: ArrayLike) -> FloatArray:
    """Features with a last column of ones, (N, E)."""
    x_ND = np.asarray(x_ND, dtype=np.float64)
    return np.asarray(np.column_stack([x_ND, np.ones(len(x_ND))]))
