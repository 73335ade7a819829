"""f-divergences in variational form, as losses use them.

D_f(P||Q) = sup_g E_P[g] - E_Q[f*(g)] (Nguyen, Wainwright, Jordan 2010). A divergence is here a pair of functions of one
scalar v: the reward g*(v) that mass on P earns and the penalty f*(g*(v)) that mass on Q costs.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus


class Divergence(NamedTuple):
    """One f-divergence, both functions elementwise on a float tensor of any shape."""

    reward: Callable[[Tensor], Tensor]
    """v -> g*(v)."""
    penalty: Callable[[Tensor], Tensor]
    """v -> f*(g*(v))."""


def _lambert_w(x: Tensor) -> Tensor:
    """Principal branch of w e^w = x for x > 0, by five Halley steps from log(1 + x); exact to float precision there.

    torch has no differentiable LambertW; autograd through the last step gives the derivative, because a Halley step at
    a fixed point depends on x exactly as the root does.
    """
    w = torch.log1p(x)
    for _ in range(5):
        e = torch.exp(w)
        residual = w * e - x
        w = w - residual / (e * (w + 1) - (w + 2) * residual / (2 * w + 2))
    return w


def _jeffrey_penalty(v: Tensor) -> Tensor:
    """f*(v) = W + 1/W + v - 2 with W = LambertW(e^(1 - v)), the conjugate of f(u) = (u - 1) log u."""
    w = _lambert_w(torch.exp(1 - v))
    return w + 1 / w + v - 2


# FLAT (arXiv 2410.11143) has the first four in its table. Its code has all eight, three of them (reverse-kl, hellinger,
# neyman) with a sign that pushes the wrong way; the signs here are those of f*(t) = sup_u(ut - f(u)).
DIVERGENCES: dict[str, Divergence] = {
    "kl": Divergence(lambda v: v, lambda v: torch.exp(v - 1)),
    "tv": Divergence(lambda v: torch.tanh(v) / 2, lambda v: torch.tanh(v) / 2),
    "js": Divergence(lambda v: math.log(2) - softplus(-v), lambda v: softplus(v) - math.log(2)),
    "pearson": Divergence(lambda v: v, lambda v: v + v * v / 4),
    "reverse-kl": Divergence(lambda v: -torch.exp(-v), lambda v: v - 1),
    "hellinger": Divergence(lambda v: 1 - torch.exp(-v), lambda v: torch.exp(v) - 1),
    "neyman": Divergence(lambda v: 1 - torch.exp(-v), lambda v: 2 - 2 * torch.exp(-v / 2)),
    "jeffrey": Divergence(lambda v: v, _jeffrey_penalty),
}


def divergence_named(name: str) -> Divergence:
    """Look a divergence up by name.

    Raises
    ------
    ValueError : unknown name; the message lists the known ones.
    """
    if name not in DIVERGENCES:
        raise ValueError(f"divergence={name!r}: unknown. Choose one of {', '.join(DIVERGENCES)}.")
    return DIVERGENCES[name]


def slope(function: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    """Differentiate an elementwise function at v, same shape, without touching v's own graph."""
    with torch.enable_grad():
        point = v.detach().requires_grad_()
        return torch.autograd.grad(function(point).sum(), point)[0]
