"""Priors within a distance of a target prior: how far one is, the worst of them, and a damped step towards it.

G(delta) = {g in the simplex, D(g, r) <= delta} around the target prior r, for four D. All of them keep g_i = 0 where
r_i = 0: a class that the target rules out stays out.

Source: Wei et al., ICLR 2023 (arXiv 2309.08825). The steps for divergences other than KL are ours: the same proximal
problem, solved.

Shapes: C classes, or cells of class and group.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import rel_entr, wrightomega

from amends.maths.arrays import FloatArray

Name = Literal["kl", "reverse-kl", "l1", "l2"]
TIED = 1e-12
"""Losses this near to the largest one, by their range, count as equal to it: which of them is worst is rounding."""


class Divergence(NamedTuple):
    """How far a prior g is from the target r, and what follows from that; r is above 0 everywhere."""

    value: Callable[[FloatArray, FloatArray], float]
    """(g, r) -> D(g, r)."""
    worst: Callable[[FloatArray, FloatArray, float], FloatArray]
    """(loss, r, delta) -> the g in G(delta) of largest sum g_i loss_i; losses lie in 0 to 1, delta is above 0."""
    step: Callable[[FloatArray, FloatArray, float], FloatArray]
    """(c, r, w) -> u that solves log u + w dD/du = c + constants, before it is normalised by a shift of c."""


def distance(g_C: ArrayLike, target_C: ArrayLike, divergence: Name = "kl") -> float:
    """D(g, r); infinite if g holds a class that r rules out.

    Parameters
    ----------
    divergence : {"kl", "reverse-kl", "l1", "l2"}
        KL(g||r) in nats, KL(r||g) in nats, sum |g - r|, sum (g - r)^2.
    """
    g_C, target_C = np.asarray(g_C, dtype=float), np.asarray(target_C, dtype=float)
    inside_C = target_C > 0
    if (g_C[~inside_C] > 0).any():
        return float("inf")
    return float(_named(divergence).value(g_C[inside_C], target_C[inside_C]))


def worst_prior(loss_C: ArrayLike, target_C: ArrayLike, delta: float, divergence: Name = "kl") -> FloatArray:
    """Find the prior within delta of the target under which the mean loss is largest: exact, no solver of programs.

    Parameters
    ----------
    loss_C : float (C,)
        Loss of each class; of classes that the target rules out any value, NaN too.
    target_C : float (C,), sums to 1
    delta : float, at least 0

    Returns
    -------
    float (C,) : sums to 1.
    """
    loss_C, target_C = np.asarray(loss_C, dtype=float), np.asarray(target_C, dtype=float)
    found = _named(divergence)
    inside_C = target_C > 0
    g_C = np.zeros_like(target_C)
    r, loss = target_C[inside_C], loss_C[inside_C]
    spread = float(np.ptp(loss))
    still = delta <= 0 or spread <= TIED * max(1.0, float(np.abs(loss).max()))
    g_C[inside_C] = r if still else found.worst((loss - loss.min()) / spread, r, delta)
    return g_C


def damped_step(
    g_C: FloatArray, loss_C: FloatArray, target_C: FloatArray, multiplier: float, rate: float, divergence: Name = "kl"
) -> FloatArray:
    """Take a step of exponentiated gradient from g towards larger loss, held back by the distance from the target.

    g' = argmax_u rate (<u, loss> - multiplier D(u, r)) - KL(u||g); for KL(g||r) in closed form the update of the
    official code, log g' = (log g + rate loss + rate multiplier log r) / (1 + rate multiplier) + constant.

    Parameters
    ----------
    g_C, target_C : float (C,), above 0
    multiplier : float, at least 0
        Lambda.
    """
    step, weight = _named(divergence).step, rate * multiplier
    c_C = np.log(g_C) + rate * loss_C
    if divergence == "kl" or weight == 0:
        u_C = step(c_C, target_C, weight) if weight else np.exp(c_C - c_C.max())
        return np.asarray(u_C / u_C.sum())

    def excess(shift: float) -> float:
        return float(step(c_C - shift, target_C, weight).sum() - 1)

    low, high = _bracket(excess)
    u_C = step(c_C - brentq(excess, low, high, xtol=1e-13), target_C, weight)
    return np.asarray(u_C / u_C.sum())


# The four divergences ------------------------------------------------------------------------------------------------


def _bracket(excess: Callable[[float], float]) -> tuple[float, float]:
    """Find where a falling function changes its sign."""
    low, high = -1.0, 1.0
    while excess(low) < 0:
        low *= 2
    while excess(high) > 0:
        high *= 2
    return low, high


def _worst_kl(loss: FloatArray, r: FloatArray, delta: float) -> FloatArray:
    """G proportional to r exp(loss / lambda), lambda by the root of KL(g||r) = delta."""
    most = loss >= 1 - TIED
    if delta >= -np.log(r[most].sum()):
        return np.where(most, r / r[most].sum(), 0.0)

    def tilted(slope: float) -> FloatArray:
        w = r * np.exp(slope * (loss - 1))  # at most r, and r where the loss is largest: no overflow, never all 0
        return np.asarray(w / w.sum())

    return _at(tilted, lambda g: float(rel_entr(g, r).sum()) - delta)


def _worst_l2(loss: FloatArray, r: FloatArray, delta: float) -> FloatArray:
    """G = r + slope loss, projected onto the simplex, slope by the root of sum (g - r)^2 = delta."""
    most = loss >= 1 - TIED
    furthest = np.zeros_like(r)
    furthest[most] = r[most] + (1 - r[most].sum()) / most.sum()
    if delta >= ((furthest - r) ** 2).sum():
        return furthest
    return _at(lambda slope: _onto_simplex(r + slope * (loss - 1)), lambda g: float(((g - r) ** 2).sum()) - delta)


def _at(prior: Callable[[float], FloatArray], excess: Callable[[FloatArray], float]) -> FloatArray:
    """Prior at the slope where it lies on the edge; its distance grows with the slope from 0."""
    high = 1.0
    while excess(prior(high)) < 0 and high < 1e15:
        high *= 2
    if excess(prior(high)) < 0:  # nothing but ties beyond what floats tell apart
        return prior(high)
    return prior(brentq(lambda slope: excess(prior(slope)), 0.0, high, xtol=1e-300, rtol=1e-14, maxiter=500))


def _onto_simplex(v: FloatArray) -> FloatArray:
    """Nearest point of the simplex (Held, Wolfe, Crowder 1974)."""
    falling = np.sort(v)[::-1]
    shift = (np.cumsum(falling) - 1) / np.arange(1, len(v) + 1)
    return np.asarray(np.maximum(v - shift[np.flatnonzero(falling > shift)[-1]], 0.0))


def _worst_reverse_kl(loss: FloatArray, r: FloatArray, delta: float) -> FloatArray:
    """G proportional to r / (s + 1 - loss), s > 0 by the root of KL(r||g) = delta; no class ever loses all mass."""
    with np.errstate(divide="ignore"):
        log_gap = np.log(1 - loss)

    def ratio(log_s: float) -> FloatArray:
        log_w = -np.logaddexp(log_s, log_gap)
        return np.asarray(log_w - log_w.max() - np.log((r * np.exp(log_w - log_w.max())).sum()))

    def excess(log_s: float) -> float:
        return float(-(r * ratio(log_s)).sum() - delta)

    low, high = _bracket(excess)
    return np.asarray(r * np.exp(ratio(brentq(excess, low, high, xtol=1e-13))))


def _worst_l1(loss: FloatArray, r: FloatArray, delta: float) -> FloatArray:
    """Half of delta moves to the largest loss, from the smallest ones first."""
    most = loss >= 1 - TIED
    moved = min(delta / 2, 1 - r[most].sum())
    order = np.argsort(loss, kind="stable")
    taken = np.zeros_like(r)
    taken[order] = np.clip(moved - (np.cumsum(r[order]) - r[order]), 0.0, r[order])
    return np.asarray(r - taken + moved * np.where(most, r / r[most].sum(), 0.0))


def _step_kl(c: FloatArray, r: FloatArray, w: float) -> FloatArray:
    log_u = (c + w * np.log(r)) / (1 + w)
    return np.asarray(np.exp(log_u - log_u.max()))  # normalised by whoever asks: any constant will do


def _step_reverse_kl(c: FloatArray, r: FloatArray, w: float) -> FloatArray:
    """Log u - w r / u = c: with v = w r / u, v + log v = log(w r) - c."""
    return np.asarray(w * r / wrightomega(np.log(w * r) - c))


def _step_l2(c: FloatArray, r: FloatArray, w: float) -> FloatArray:
    """Log u + 2 w (u - r) = c: with v = 2 w u, v + log v = c + 2 w r + log(2 w)."""
    return np.asarray(wrightomega(c + 2 * w * r + np.log(2 * w)) / (2 * w))


def _step_l1(c: FloatArray, r: FloatArray, w: float) -> FloatArray:
    """Log u + w sign(u - r) = c; at u = r the sign is any number from -1 to 1."""
    return np.asarray(np.clip(r, np.exp(c - w), np.exp(np.minimum(c + w, 700.0))))


DIVERGENCES: dict[Name, Divergence] = {
    "kl": Divergence(lambda g, r: float(rel_entr(g, r).sum()), _worst_kl, _step_kl),
    "reverse-kl": Divergence(lambda g, r: float(rel_entr(r, g).sum()), _worst_reverse_kl, _step_reverse_kl),
    "l1": Divergence(lambda g, r: float(np.abs(g - r).sum()), _worst_l1, _step_l1),
    "l2": Divergence(lambda g, r: float(((g - r) ** 2).sum()), _worst_l2, _step_l2),
}
NAMES: tuple[Name, ...] = get_args(Name)


def _named(divergence: Name) -> Divergence:
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence={divergence!r}: unknown. Choose one of {', '.join(NAMES)}.")
    return DIVERGENCES[divergence]
