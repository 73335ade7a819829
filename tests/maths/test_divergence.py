"""The eight divergences against their definition f*(t) = sup_u(u t - f(u)), computed here by other means."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import lambertw, xlogy

from amends.maths.divergence import DIVERGENCES, divergence_named, slope

Array = NDArray[np.float64]
EVERY = pytest.mark.parametrize("name", list(DIVERGENCES))

# The generators f with f(1) = 0, written from their definitions; js is the one whose conjugate is -log(2 - e^t).
GENERATORS: dict[str, Callable[[Array], Array]] = {
    "kl": lambda u: xlogy(u, u),
    "tv": lambda u: np.abs(u - 1) / 2,
    "js": lambda u: xlogy(u, u) - (u + 1) * np.log((1 + u) / 2),
    "pearson": lambda u: (u - 1) ** 2,
    "reverse-kl": lambda u: -np.log(u),
    "hellinger": lambda u: (np.sqrt(u) - 1) ** 2,
    "neyman": lambda u: (1 - u) ** 2 / u,
    "jeffrey": lambda u: (u - 1) * np.log(u),
}
INSIDE = torch.linspace(0.0005, 0.9995, 401, dtype=torch.float64)


def conjugate(name: str, t: float) -> float:
    """sup_u(u t - f(u)) over a fine logarithmic grid of u."""
    u = np.exp(np.linspace(-12, 12, 2_000_001))
    return float(np.max(u * t - GENERATORS[name](u)))


@EVERY
@pytest.mark.parametrize("v", [0.01, 0.3, 0.7, 1.0])
def test_the_penalty_is_the_conjugate_of_the_reward(name: str, v: float) -> None:
    divergence, at = DIVERGENCES[name], torch.tensor(v, dtype=torch.float64)
    assert divergence.penalty(at).item() == pytest.approx(conjugate(name, divergence.reward(at).item()), abs=1e-5)


@EVERY
def test_each_generator_is_convex_and_zero_at_one(name: str) -> None:
    u = np.linspace(0.01, 20, 10_001)
    values = GENERATORS[name](u)
    assert GENERATORS[name](np.ones(1))[0] == pytest.approx(0, abs=1e-12)
    assert (np.diff(values, 2) > -1e-12).all()


def test_jeffreys_penalty_agrees_with_scipys_lambert_w() -> None:
    w = lambertw(np.exp(1 - INSIDE.numpy())).real
    expected = w + 1 / w + INSIDE.numpy() - 2
    np.testing.assert_allclose(DIVERGENCES["jeffrey"].penalty(INSIDE).numpy(), expected, atol=1e-12)


def test_jeffreys_slope_is_the_maximiser_of_its_conjugate() -> None:
    u = slope(DIVERGENCES["jeffrey"].penalty, INSIDE).numpy()  # d f*/dt is the u where the supremum is taken
    np.testing.assert_allclose(np.log(u) + 1 - 1 / u, INSIDE.numpy(), atol=1e-9)  # f'(u) = t


@EVERY
def test_the_loss_falls_with_v_e_and_rises_with_v_f(name: str) -> None:
    divergence = DIVERGENCES[name]
    assert (slope(divergence.reward, INSIDE) > 0).all()
    assert (slope(divergence.penalty, INSIDE) > 0).all()


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("kl", math.exp(-1) - 1, 1), ("tv", -0.381, 0.381), ("js", -0.380, 0.620), ("pearson", -1, 1.25)],
)
def test_the_loss_stays_within_its_bounds(name: str, low: float, high: float) -> None:
    divergence, v = DIVERGENCES[name], torch.linspace(0, 1, 201, dtype=torch.float64)
    loss = divergence.penalty(v)[:, None] - divergence.reward(v)[None, :]
    assert loss.min().item() == pytest.approx(low, abs=5e-4)
    assert loss.max().item() == pytest.approx(high, abs=5e-4)


# (slope of the reward, slope of the penalty), derived on paper.
WEIGHTS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "kl": (np.ones_like, lambda v: np.exp(v - 1)),
    "tv": (lambda v: np.cosh(v) ** -2 / 2, lambda v: np.cosh(v) ** -2 / 2),
    "js": (lambda v: 1 / (1 + np.exp(v)), lambda v: 1 / (1 + np.exp(-v))),
    "pearson": (np.ones_like, lambda v: 1 + v / 2),
    "reverse-kl": (lambda v: np.exp(-v), np.ones_like),
    "hellinger": (lambda v: np.exp(-v), np.exp),
    "neyman": (lambda v: np.exp(-v), lambda v: np.exp(-v / 2)),
}


@pytest.mark.parametrize("name", list(WEIGHTS))
def test_the_slopes_are_the_weights_of_the_gradient(name: str) -> None:
    for function, expected in zip(DIVERGENCES[name], WEIGHTS[name], strict=True):
        np.testing.assert_allclose(slope(function, INSIDE).numpy(), expected(INSIDE.numpy()), atol=1e-12)


@EVERY
def test_the_slopes_agree_with_finite_differences(name: str) -> None:
    for function in DIVERGENCES[name]:
        difference = (function(INSIDE + 1e-6) - function(INSIDE - 1e-6)) / 2e-6
        torch.testing.assert_close(slope(function, INSIDE), difference, atol=1e-8, rtol=0)


def test_slope_leaves_the_callers_graph_alone() -> None:
    v = torch.tensor([0.2, 0.8], requires_grad=True)
    with torch.no_grad():
        assert not slope(torch.exp, v).requires_grad
    assert v.grad is None


@EVERY
def test_float32_is_close_to_float64(name: str) -> None:
    for function in DIVERGENCES[name]:
        torch.testing.assert_close(function(INSIDE.float()), function(INSIDE).float(), atol=3e-6, rtol=0)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'chi'.*unknown.*kl, tv, js"):
        divergence_named("chi")
    assert divergence_named("kl") is DIVERGENCES["kl"]
