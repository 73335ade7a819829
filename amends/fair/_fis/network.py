"""A torch network as a scikit-learn classifier, and what influence needs of it.

Gradients of single rows are never made: how the scores of all rows move along one direction of the weights is one
forward pass (a Jacobian-vector product, `torch.func.jvp`).

Shapes: N rows, K classes, M rows of a batch.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.func import functional_call, jvp

from amends.io.console import console
from amends.io.progress import track
from amends.maths.arrays import FloatArray

Direction = dict[str, Tensor]
BATCH = 1024
"""Rows of a batch where nothing is trained."""


@dataclass(frozen=True, eq=False)
class NetworkModel:
    """A network at its weights, with the methods of `amends.maths.influence.LinearModel` that need no curvature."""

    module: nn.Module
    """Gives K scores of a row; in eval mode."""
    num_classes: int
    names: tuple[str, ...]
    """Parameters whose gradients count."""

    def predict(self, x: ArrayLike) -> FloatArray:
        """Predict probabilities, (N, K)."""
        with torch.no_grad():
            found = [self.module(x_M).double().softmax(dim=1).cpu() for _, x_M in self._batches(x)]
        return np.asarray(torch.cat(found).numpy())

    def residual(self, x: ArrayLike, target_NK: ArrayLike) -> FloatArray:
        """Slope of each row's loss by its scores, (N, K)."""
        return np.asarray(self.predict(x) - np.asarray(target_NK))

    def targets(self, label_N: ArrayLike) -> FloatArray:
        """Labels 0, 1, ... as rows of the unit matrix, (N, K)."""
        return np.asarray(np.eye(self.num_classes)[np.asarray(label_N)])

    def gradient(self, x: ArrayLike, residual_NK: ArrayLike) -> Direction:
        """Gradient of the rows' mean loss."""
        return self._back(x, np.asarray(residual_NK) / len(np.asarray(residual_NK)))

    def pull_back(self, x: ArrayLike, slope_NK: ArrayLike) -> Direction:
        """Gradient by the weights of a function whose slope by the probabilities is known."""
        slope_NK, p_NK = np.asarray(slope_NK, dtype=np.float64), self.predict(x)
        return self._back(x, p_NK * (slope_NK - (slope_NK * p_NK).sum(axis=1, keepdims=True)))

    def along(self, x: ArrayLike, residual_NK: ArrayLike, direction: Direction) -> FloatArray:
        """Product of each row's gradient with a direction of the weights, (N,)."""
        return np.asarray((np.asarray(residual_NK) * self.moved(x, direction)).sum(axis=1))

    def moved(self, x: ArrayLike, direction: Direction) -> FloatArray:
        """Change of each row's scores per unit of a step along a direction of the weights, (N, K)."""
        weights = self._weights()

        def scores(chosen: Direction, x_M: Tensor) -> Tensor:
            return functional_call(self.module, chosen, (x_M,))

        along = {name: direction[name] for name in weights}
        found = []
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)  # torch's own
            for _, x_M in self._batches(x):
                moved_MK = jvp(lambda chosen, x_M=x_M: scores(chosen, x_M), (weights,), (along,))[1]
                found.append(moved_MK.double().cpu())
        return np.asarray(torch.cat(found).numpy())

    def _back(self, x: ArrayLike, by_score_NK: FloatArray) -> Direction:
        """Gradient of a function of all rows whose slope by the scores is known; exact in batches, as that is fixed."""
        weights = self._weights()
        found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        slope_NK = torch.as_tensor(by_score_NK)
        for here, x_M in self._batches(x):
            scores_MK = self.module(x_M)
            slope_MK = slope_NK[here].to(scores_MK)
            parts = torch.autograd.grad(scores_MK, list(weights.values()), slope_MK, allow_unused=True)
            for name, part in zip(weights, parts, strict=True):
                if part is not None:  # a parameter that the scores do not depend on moves nothing
                    found[name] += part
        return found

    def _weights(self) -> Direction:
        return {name: weight for name, weight in self.module.named_parameters() if name in self.names}

    def _batches(self, x: ArrayLike) -> Iterator[tuple[slice, Tensor]]:
        """Rows in batches, with where they stand."""
        like = next(self.module.parameters())
        x = np.asarray(x)
        for first in range(0, len(x), BATCH):
            here = slice(first, first + BATCH)
            yield here, torch.as_tensor(x[here]).to(like.device, like.dtype)


class NetworkClassifier(ClassifierMixin, BaseEstimator):
    """A network trained by stochastic gradient descent on cross-entropy.

    Parameters
    ----------
    module : torch module, optional
        Rows to K scores; its weights are where training starts, and it is not changed itself. Default: one hidden layer
        of `hidden` units, as the source has for tables.
    hidden : int, default 64
    epochs : int, default 20
    learning_rate : float, default 0.01
    momentum : float, default 0.9
        Nesterov's, as in the source.
    weight_decay : float, default 0
    batch_size : int, default 64
    parameters : list of str, optional
        What the names of the parameters begin with whose gradients influence counts, such as ["head"]. Default: all
        that are trained. All that require a gradient are trained whatever this says.
    warm_start : bool, default False
        A later fit starts from the weights of the one before.
    random_state : int, RandomState or None

    Attributes
    ----------
    classes_ : array (K,)
    module_ : torch module
        As trained.
    """

    classes_: np.ndarray
    module_: nn.Module

    def __init__(
        self,
        module: Any = None,
        *,
        hidden: int = 64,
        epochs: int = 20,
        learning_rate: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        batch_size: int = 64,
        parameters: Sequence[str] | None = None,
        warm_start: bool = False,
        random_state: Any = None,
    ) -> None:
        self.module = module
        self.hidden = hidden
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.parameters = parameters
        self.warm_start = warm_start
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "NetworkClassifier":
        """Train on X (N, ...) and labels y (N,).

        Raises
        ------
        ValueError : missing or infinite features, one class, or a module with another number of scores than classes.
        """
        X, y = validate_data(self, X, y, dtype=np.float32, allow_nd=True)
        check_classification_targets(y)
        known = self.classes_ if self.warm_start and hasattr(self, "module_") else None
        self.classes_, code_N = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"1 class in y ({self.classes_[0]}): nothing can be learnt. Give rows of another class.")
        with _seeded(check_random_state(self.random_state).randint(2**31 - 1)):
            if known is None or not np.array_equal(known, self.classes_):
                self.module_ = self._start(X)
            self._train(X, code_N)
        return self

    def _start(self, X: np.ndarray) -> nn.Module:
        if self.module is not None:
            return copy.deepcopy(self.module)
        width = X[0].size
        layers = (nn.Flatten(), nn.Linear(width, self.hidden), nn.ReLU(), nn.Linear(self.hidden, len(self.classes_)))
        return nn.Sequential(*layers)

    def _train(self, X: np.ndarray, code_N: np.ndarray) -> None:
        trained = [weight for weight in self.module_.parameters() if weight.requires_grad]
        like = next(self.module_.parameters())
        optimizer = torch.optim.SGD(
            trained, self.learning_rate, self.momentum, weight_decay=self.weight_decay, nesterov=self.momentum > 0
        )
        x = torch.as_tensor(X).to(like.device, like.dtype)
        label = torch.as_tensor(code_N).to(like.device)
        self.module_.train()
        steps = self.epochs * len(x)
        for _ in track(range(self.epochs), "training", shown=steps >= 10**6 and console.is_terminal):
            for some in torch.randperm(len(x)).split(self.batch_size):
                scores_MK = self.module_(x[some])
                if scores_MK.ndim != 2 or scores_MK.shape[1] != len(self.classes_):
                    raise ValueError(
                        f"module: gives scores of shape {tuple(scores_MK.shape)} for {len(some)} rows of "
                        f"{len(self.classes_)} classes. Give one whose last layer has a score for each class."
                    )
                optimizer.zero_grad()
                nn.functional.cross_entropy(scores_MK, label[some]).backward()
                optimizer.step()
        self.module_.eval()

    def predict_proba(self, X: Any) -> FloatArray:
        """Predict probabilities, (N, K)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float32, allow_nd=True)
        return NetworkModel(self.module_, len(self.classes_), ()).predict(X)

    def predict(self, X: Any) -> np.ndarray:
        """Predict labels, (N,)."""
        check_is_fitted(self)
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])

    def influence_model(self) -> NetworkModel:
        """See the trained network as influence does.

        Raises
        ------
        ValueError : no trained parameter begins with a name in `parameters`.
        """
        check_is_fitted(self)
        names = [name for name, weight in self.module_.named_parameters() if weight.requires_grad]
        if self.parameters is not None:
            starts = tuple(self.parameters)
            names, all_names = [name for name in names if name.startswith(starts)], names
            if not names:
                raise ValueError(f"parameters={list(starts)}: none begins like that. There are {', '.join(all_names)}.")
        return NetworkModel(self.module_, len(self.classes_), tuple(names))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from torch's own generators, as dropout does, with a seed; what they were before is restored."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
