"""What a row of the training data does to a number that depends on a network: the twin of `influence` in torch.

By the last layer alone (`last_layer`): its input as features of a `LinearModel`, exact where what stands before it
would stay as it is. By all weights (`NetworkModel`): products with the curvature and conjugate gradients, so that
nothing of the size (weights, weights) or (rows, weights) is ever made; the products of all rows' gradients with a
direction are two derivatives backwards (`_moved`).

Training minimises mean loss + penalty / 2 * |w|^2. Influence assumes a minimum that is alone near by; a network that
was not trained to the end, or with dropout, has none: see what `cosine` says of a few refits before believing it. The
Gauss-Newton product leaves out the curvature of the network itself, and so has none that is negative (Martens 2010).

Shapes: N rows, K logits (1: of the second of two classes), P weights in all, E features of the last layer and a 1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp
from torch.nn.functional import cross_entropy, softplus

from amends.maths.arrays import FloatArray
from amends.maths.influence import LinearModel, NotSolved, with_intercept

Curvature = Literal["hessian", "gauss-newton", "identity"]
MOST_ROUNDS = 1000


def last_layer(module: nn.Module, x_N: Tensor) -> tuple[FloatArray, LinearModel]:
    """Take a network's last linear layer as a linear model, and its input as features.

    Returns
    -------
    features (N, E) and the model: "logistic" of one logit, "softmax" of several.

    Raises
    ------
    ValueError : no linear layer, or one whose output is not the network's.
    """
    _check(module)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise ValueError(f"{type(module).__name__} has no linear layer. Use NetworkModel, for all weights.")
    heard: list[tuple[Tensor, Tensor]] = []
    hook = layers[-1].register_forward_hook(lambda _, given, made: heard.append((given[0], made)))
    try:
        with torch.no_grad():
            logit_NK = module(x_N)
    finally:
        hook.remove()
    if len(heard) != 1 or heard[0][0].ndim != 2 or not torch.equal(heard[0][1], logit_NK):
        raise ValueError(
            f"the last linear layer of {type(module).__name__} does not make its output alone, a row at a time. Use "
            "NetworkModel, for all weights."
        )
    features_NE = with_intercept(heard[0][0].double().cpu().numpy())
    bias = layers[-1].bias
    features_NE[:, -1] = bias is not None
    bias_K = torch.zeros(len(layers[-1].weight)) if bias is None else bias.detach()
    weight_KE = torch.column_stack([layers[-1].weight.detach(), bias_K.to(layers[-1].weight)])
    loss: Literal["logistic", "softmax"] = "logistic" if len(weight_KE) == 1 else "softmax"
    return features_NE, LinearModel(weight_KE.double().cpu().numpy(), loss)


@dataclass(frozen=True, eq=False)
class NetworkModel:
    """A network at the weights that it has, with the objective it was trained for. Directions are flat, (P,)."""

    module: nn.Module
    """In eval mode. It maps rows to logits (N, K); for cross-entropy, of one logit for the logistic loss."""
    penalty: float = 0.0
    """Of all weights, as weight_decay of SGD."""
    decay_bias: bool = True
    """Whether biases and gains, weights of one dimension, are penalised too."""
    batch_rows: int = 4096
    """Rows that are worked on at once."""

    def __post_init__(self) -> None:
        _check(self.module)

    def weights(self) -> Tensor:
        """Return the weights that are trained, (P,)."""
        return torch.cat([weight.detach().flatten() for weight in self._named().values()])

    def predict(self, x_N: Tensor) -> Tensor:
        """Predict probabilities (N, K)."""
        with torch.no_grad():
            return torch.cat([self._probability(self.weights(), x_n) for x_n, _ in self._batches(x_N, x_N)])

    def pull_back(self, x_N: Tensor, slope_NK: ArrayLike | Tensor) -> Tensor:
        """Gradient (P,) by the weights of a function whose slope by what the network predicts is known."""
        slope = torch.as_tensor(slope_NK).to(self.weights())
        found = torch.zeros_like(self.weights())
        for x_n, slope_nK in self._batches(x_N, slope):
            _, back = _pulling(partial(self._probability, x_n=x_n), self.weights())
            found += back(slope_nK)
        return found

    def gradient(self, x_N: Tensor, label_N: Tensor) -> Tensor:
        """Gradient (P,) of the objective: at its minimum 0."""
        found = torch.zeros_like(self.weights())
        for x_n, label_n in self._batches(x_N, label_N):
            found += grad(lambda w, x_n=x_n, label_n=label_n: self._losses(w, x_n, label_n).sum())(self.weights())
        return found / len(x_N) + self._penalties() * self.weights()

    def along(self, x_N: Tensor, label_N: Tensor, direction_P: Tensor) -> Tensor:
        """Product of each row's gradient, without the penalty, with a direction, (N,)."""
        parts = [
            _moved(partial(self._losses, x_n=x_n, label_n=label_n), self.weights(), direction_P)
            for x_n, label_n in self._batches(x_N, label_N)
        ]
        return torch.cat(parts)

    def curvature_times(
        self, x_N: Tensor, label_N: Tensor, direction_P: Tensor, curvature: Curvature = "gauss-newton"
    ) -> Tensor:
        """Product of the objective's curvature with a direction, (P,)."""
        if curvature == "identity":
            return direction_P
        found = torch.zeros_like(direction_P)
        for x_n, label_n in self._batches(x_N, label_N):
            found += self._one_product(x_n, label_n, direction_P, curvature)
        return found / len(x_N) + self._penalties() * direction_P

    def solve(
        self,
        x_N: Tensor,
        label_N: Tensor,
        direction_P: Tensor,
        *,
        curvature: Curvature = "gauss-newton",
        damping: float = 0.0,
        tolerance: float = 1e-6,
    ) -> Tensor:
        """Product of the inverse curvature with a direction, (P,), by conjugate gradients.

        Parameters
        ----------
        curvature : {"gauss-newton", "hessian", "identity"}, default "gauss-newton"
            "identity" leaves it out: products of gradients, whose order may serve, and whose size says nothing.
        damping : float, default 0
            Added to the diagonal.
        tolerance : float, default 1e-6
            Length of what is left over, to that of the direction.

        Raises
        ------
        NotSolved : a direction of negative curvature (no minimum), or no end in `MOST_ROUNDS` rounds.
        """
        if curvature == "identity":
            return direction_P
        found, left = torch.zeros_like(direction_P), direction_P.clone()
        step, squared = left.clone(), left @ left
        enough = tolerance**2 * squared
        for _ in range(MOST_ROUNDS):
            if squared <= enough:
                return found
            bent = self.curvature_times(x_N, label_N, step, curvature) + damping * step
            curve = step @ bent
            if not curve > 0:
                raise NotSolved(
                    "the objective does not curve upwards along a direction: the weights are at no minimum. Train to "
                    "the end, give damping, or curvature='gauss-newton' with a penalty."
                )
            found = found + squared / curve * step
            left = left - squared / curve * bent
            before, squared = squared, left @ left
            step = left + squared / before * step
        raise NotSolved(f"conjugate gradients did not end in {MOST_ROUNDS} rounds: give damping, such as 1e-3.")

    def replace(
        self,
        x_N: Tensor,
        label_N: Tensor,
        solved_P: Tensor,
        x_new_N: Tensor | None = None,
        label_new_N: Tensor | None = None,
    ) -> Tensor:
        """Change of a function, (N,), if each row were left out, or another stood in its place, to first order.

        Parameters
        ----------
        solved_P : Tensor
            The inverse curvature times the function's gradient.
        x_new_N, label_new_N : Tensor, optional
            The rows in their place; one that is not given is that of the row. Default: none, the row is left out.
        """
        change_N = self.along(x_N, label_N, solved_P)
        if x_new_N is not None or label_new_N is not None:
            x_new_N, label_new_N = x_N if x_new_N is None else x_new_N, label_N if label_new_N is None else label_new_N
            change_N = change_N - self.along(x_new_N, label_new_N, solved_P)
        return change_N / len(x_N)

    # Inside -------------------------------------------------------------------------------------------------------

    def _named(self) -> dict[str, Tensor]:
        return {name: weight for name, weight in self.module.named_parameters() if weight.requires_grad}

    def _penalties(self) -> Tensor:
        parts = [
            torch.full_like(weight.detach().flatten(), self.penalty if self.decay_bias or weight.ndim > 1 else 0.0)
            for weight in self._named().values()
        ]
        return torch.cat(parts)

    def _logits(self, weight_P: Tensor, x_n: Tensor) -> Tensor:
        named, first, of = self._named(), 0, {}
        for name, weight in named.items():
            of[name] = weight_P[first : first + weight.numel()].view_as(weight)
            first += weight.numel()
        logit_nK: Tensor = functional_call(self.module, of, (x_n,))
        return logit_nK

    def _probability(self, weight_P: Tensor, x_n: Tensor) -> Tensor:
        logit_nK = self._logits(weight_P, x_n)
        return logit_nK.sigmoid() if logit_nK.shape[1] == 1 else logit_nK.softmax(dim=1)

    def _losses(self, weight_P: Tensor, x_n: Tensor, label_n: Tensor) -> Tensor:
        logit_nK = self._logits(weight_P, x_n)
        if logit_nK.shape[1] > 1:
            return cross_entropy(logit_nK, label_n, reduction="none")
        return softplus(logit_nK[:, 0]) - label_n * logit_nK[:, 0]

    def _one_product(self, x_n: Tensor, label_n: Tensor, direction_P: Tensor, curvature: Curvature) -> Tensor:
        weight_P = self.weights()
        if curvature == "hessian":
            slope = grad(lambda w: self._losses(w, x_n, label_n).sum())
            product_P: Tensor = grad(lambda w: slope(w) @ direction_P)(weight_P)
            return product_P
        logit_nK, back = _pulling(partial(self._logits, x_n=x_n), weight_P)
        moved_nK = _moved(partial(self._logits, x_n=x_n), weight_P, direction_P)
        if logit_nK.shape[1] == 1:
            p_nK = logit_nK.sigmoid()
            bent_nK = p_nK * (1 - p_nK) * moved_nK
        else:
            p_nK = logit_nK.softmax(dim=1)
            bent_nK = p_nK * (moved_nK - (p_nK * moved_nK).sum(dim=1, keepdim=True))
        return back(bent_nK)

    def _batches(self, x_N: Tensor, label_N: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, len(x_N), self.batch_rows):
            yield x_N[first : first + self.batch_rows], label_N[first : first + self.batch_rows]


def _moved(function: Callable[[Tensor], Tensor], weight_P: Tensor, direction_P: Tensor) -> Tensor:
    """Say how a function's values move along a direction of the weights, backwards twice.

    The pull back of u is linear in u, and its slope by u is the push forward. torch's own `jvp` warns of a part of
    torch that is going away.
    """
    value, back = _pulling(function, weight_P)
    pushed: Tensor = grad(lambda u: back(u) @ direction_P)(torch.zeros_like(value))
    return pushed


def _pulling(function: Callable[[Tensor], Tensor], weight_P: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the value of a function of the weights, and what pulls a slope by it back to the weights."""
    found = vjp(function, weight_P)
    return found[0], lambda slope: found[1](slope)[0]


def cosine(predicted_n: ArrayLike, actual_n: ArrayLike) -> float:
    """Say how far predicted changes point the way of those that refits had: 1, the same but for their size.

    Raises
    ------
    ValueError : other lengths, or changes that are all 0.
    """
    one_n, two_n = np.asarray(predicted_n, dtype=np.float64), np.asarray(actual_n, dtype=np.float64)
    if one_n.shape != two_n.shape or one_n.ndim != 1 or not one_n.any() or not two_n.any():
        raise ValueError(
            f"changes of shapes {one_n.shape}, {two_n.shape}: expected two lists of one length, not all 0."
        )
    return float(one_n @ two_n / np.linalg.norm(one_n) / np.linalg.norm(two_n))


def _check(module: nn.Module) -> None:
    if module.training:
        raise ValueError("the network is in training mode, where dropout draws: call .eval() first.")
