"""How often raters say j where the truth is i, learnt without a single true label.

Three labels of a row that are independent given its true one (three raters, or a row and its two nearest neighbours)
tell the noise transition matrix T, T_ij = P(label = j | truth = i), and the prior p of the truth, by how often they
agree (Zhu, Song, Liu, ICML 2021: consensus of clusterable neighbours; Kruskal 1977: identified up to the names of the
classes if T is invertible). Names are fixed by the diagonal: raters are right more often than they say any one other
class.

What is counted on parts of the data adds up: count, add, fit.

Shapes: N rows, M raters, K classes, U different rows of labels.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations_with_replacement, permutations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares, linear_sum_assignment, minimize
from scipy.special import logsumexp, softmax

from amends.maths.arrays import FloatArray, IntArray

MISSING = -1
"""A label that a rater did not give."""
DIAGONAL = 5.0
"""Logit by which the fit starts in favour of right labels; the source's start."""
MOST_CLASSES_EXACT = 20


# Three exchangeable labels ----------------------------------------------------------------------------------------


def triple_counts(labels_N3: ArrayLike, num_classes: int) -> IntArray:
    """Count how often three labels came together, (K, K, K); counts of parts of the data are added.

    Parameters
    ----------
    labels_N3 : int array (rows, 3)
        0 to num_classes - 1. A row where one is `MISSING` is not counted.

    Raises
    ------
    ValueError : another shape, or a label outside the classes.
    """
    labels_N3 = _labels(labels_N3, num_classes)
    if labels_N3.shape[1] != 3:
        raise ValueError(f"labels {labels_N3.shape}: expected (rows, 3).")
    there_N3 = labels_N3[(labels_N3 != MISSING).all(axis=1)]
    flat_N = np.ravel_multi_index(tuple(there_N3.T), (num_classes,) * 3)
    counts: IntArray = np.bincount(flat_N, minlength=num_classes**3).reshape((num_classes,) * 3).astype(np.int64)
    return counts


class Agreement(NamedTuple):
    """How often labels that should be alike are, beside what chance gives."""

    pair: float
    """Share of rows whose first two labels agree."""
    pair_by_chance: float
    three: float
    """Share of rows of which all three agree."""
    three_by_chance: float
    num_rows: int

    @property
    def above_chance(self) -> float:
        """Of the pairs that chance leaves apart, the share that agrees: 0 by chance, 1 always (Cohen's kappa)."""
        return (self.pair - self.pair_by_chance) / (1 - self.pair_by_chance) if self.pair_by_chance < 1 else 0.0


def agreement(counts_KKK: ArrayLike) -> Agreement:
    """Compare how often labels agree with what labels drawn from the same classes would.

    Raises
    ------
    ValueError : no row was counted.
    """
    share_KKK = _shares(counts_KKK)
    share_K = share_KKK.sum(axis=(1, 2))
    return Agreement(
        float(np.trace(share_KKK.sum(axis=2))),
        float((share_K**2).sum()),
        float(np.einsum("iii->", share_KKK)),
        float((share_K**3).sum()),
        int(np.sum(counts_KKK)),
    )


@dataclass(frozen=True, eq=False)
class Transition:
    """Noise of exchangeable raters."""

    matrix_KK: FloatArray
    """T_ij = P(label = j | truth = i); rows sum to 1."""
    prior_K: FloatArray
    """P(truth = i)."""
    residual: float
    """Root of the summed squared differences between observed and fitted shares: 0 where the assumptions hold."""

    @property
    def is_dominant(self) -> bool:
        """Whether each class is mostly rated as itself: else the classes' names cannot be trusted."""
        return bool((self.matrix_KK.argmax(axis=1) == np.arange(len(self.matrix_KK))).all())


def fit_transition(counts_KKK: ArrayLike, start: Transition | None = None) -> Transition:
    """Find the transition matrix and prior whose shares of labels, pairs and triples are nearest to those counted.

    Minimises |c1 - T'p|^2 + |c2 - T' diag(p) T|^2 + |c3 - sum_i p_i T_i T_i T_i|^2 over the logits of T's rows and of
    p, where c1, c2 and c3 are the shares counted; then names the classes so that the diagonal is largest. Source: Zhu
    et al. 2021, eq. 4 to 6. Deviations: their code takes unsquared norms by Adam, which stops some 3e-3 short of an
    exact answer; Levenberg-Marquardt finds it (above `MOST_CLASSES_EXACT` classes L-BFGS, as the Jacobian would not
    fit). The labels of a row are exchangeable, so counts are averaged over their orders.

    Parameters
    ----------
    counts_KKK : array (K, K, K)
        Of `triple_counts`, or exact shares.
    start : Transition, optional
        Where to start; default: raters that are mostly right, and equal classes.

    Raises
    ------
    ValueError : no row was counted.
    """
    share_KKK = _shares(counts_KKK)
    orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    share_KKK = np.mean([share_KKK.transpose(order) for order in orders], axis=0)
    num_classes = len(share_KKK)
    if start is None:
        first = np.concatenate([(DIAGONAL * np.eye(num_classes) - 1).ravel(), np.zeros(num_classes)])
    else:
        first = np.log(np.maximum(np.concatenate([start.matrix_KK.ravel(), start.prior_K]), 1e-12))
    solve = _least_squares if num_classes <= MOST_CLASSES_EXACT else _descend
    T, p = _unpacked(solve(share_KKK, first), num_classes)
    truth_K, label_K = linear_sum_assignment(T, maximize=True)
    order_K = truth_K[np.argsort(label_K)]
    T, p = T[order_K], p[order_K]
    gaps = [(consensus_shares(T, p) - share_KKK).sum(axis=axes) for axes in ((1, 2), 2, ())]
    return Transition(T, p, float(np.sqrt(sum((gap**2).sum() for gap in gaps))))


def _least_squares(share_KKK: FloatArray, first: FloatArray) -> FloatArray:
    """Logits at the minimum, by Levenberg-Marquardt on one residual for each set of labels, whatever their order."""
    K = len(share_KKK)
    sets = [np.array(list(combinations_with_replacement(range(K), size))).T for size in (1, 2, 3)]
    # As often as its orders come in the whole table.
    weights = [np.sqrt([len(set(permutations(labels))) for labels in numbers.T]) for numbers in sets]
    counted = [share_KKK.sum(axis=(1, 2)), share_KKK.sum(axis=2), share_KKK]
    goal = np.concatenate([w * c[tuple(n)] for n, w, c in zip(sets, weights, counted, strict=True)])

    def gaps(logits: FloatArray) -> FloatArray:
        T, p = _unpacked(logits, K)
        fitted = [w * (p @ T[:, n].prod(axis=1)) for n, w in zip(sets, weights, strict=True)]
        return np.asarray(np.concatenate(fitted) - goal)

    def slopes(logits: FloatArray) -> FloatArray:
        T, p = _unpacked(logits, K)
        by_T, by_p = np.zeros((K, K, len(goal))), np.empty((K, len(goal)))
        end = 0
        for numbers, weight in zip(sets, weights, strict=True):
            here = np.arange(end, end := end + len(weight))
            by_p[:, here] = weight * T[:, numbers].prod(axis=1)
            for one in range(len(numbers)):
                others = np.delete(numbers, one, axis=0)
                by_T[:, numbers[one], here] += p[:, None] * weight * T[:, others].prod(axis=1)
        to_rows = T[:, :, None] * (by_T - (by_T * T[:, :, None]).sum(axis=1, keepdims=True))
        return np.concatenate([to_rows.reshape(K * K, -1), p[:, None] * (by_p - p @ by_p)]).T

    exact = 1e-15
    found = least_squares(gaps, first, slopes, method="lm", ftol=exact, xtol=exact, gtol=exact, max_nfev=2000)
    return np.asarray(found.x)


def _descend(share_KKK: FloatArray, first: FloatArray) -> FloatArray:
    """Logits at the minimum, by L-BFGS; a step costs K^4."""
    K = len(share_KKK)
    c2 = share_KKK.sum(axis=2)
    c1 = c2.sum(axis=1)
    scale = 1e6  # brings squared differences of shares to where the solver's stopping rules see them

    def loss(logits: FloatArray) -> tuple[float, FloatArray]:
        T, p = _unpacked(logits, K)
        TT = T[:, :, None] * T[:, None, :]
        r1 = T.T @ p - c1
        r2 = (T.T * p) @ T - c2
        r3 = np.tensordot(p[:, None] * T, TT, axes=(0, 0)) - share_KKK
        r3TT = TT.reshape(K, -1) @ r3.reshape(K, -1).T  # (i, j): sum_kl r3_jkl T_ik T_il
        by_T = p[:, None] * (2 * r1 + 4 * T @ r2 + 6 * r3TT)
        by_p = 2 * (T @ r1 + ((T @ r2) * T).sum(axis=1) + (r3TT * T).sum(axis=1))
        to_rows = T * (by_T - (by_T * T).sum(axis=1, keepdims=True))
        value = (r1**2).sum() + (r2**2).sum() + (r3**2).sum()
        return scale * float(value), scale * np.concatenate([to_rows.ravel(), p * (by_p - by_p @ p)])

    return np.asarray(minimize(loss, first, jac=True, method="L-BFGS-B", options={"maxiter": 2000}).x)


def _unpacked(logits: FloatArray, num_classes: int) -> tuple[FloatArray, FloatArray]:
    T = softmax(logits[: num_classes**2].reshape(num_classes, num_classes), axis=1)
    return T, softmax(logits[num_classes**2 :])


def consensus_shares(matrix_KK: ArrayLike, prior_K: ArrayLike) -> FloatArray:
    """Shares of triples (K, K, K) that raters with this matrix give: c3_jkl = sum_i p_i T_ij T_ik T_il."""
    T, p = np.asarray(matrix_KK, dtype=np.float64), np.asarray(prior_K, dtype=np.float64)
    return np.asarray(np.einsum("i,ij,ik,il->jkl", p, T, T, T))


# What a label says of the truth -----------------------------------------------------------------------------------


def posterior(matrix_KK: ArrayLike, prior_K: ArrayLike, observed_K: ArrayLike | None = None) -> FloatArray:
    """P(truth = i | label = j), (K, K), by Bayes: T_ij p_i / P(label = j).

    Parameters
    ----------
    observed_K : array (K,), optional
        Frequencies of the labels to divide by; default: those that follow from T and p, so that columns sum to 1. With
        others they need not. A label that never comes has NaN.
    """
    T, p = np.asarray(matrix_KK, dtype=np.float64), np.asarray(prior_K, dtype=np.float64)
    joint_KK = T * p[:, None]
    label_K = joint_KK.sum(axis=0) if observed_K is None else np.asarray(observed_K, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(label_K > 0, joint_KK / label_K, np.nan))


class Interval(NamedTuple):
    """Interval of each entry of a transition matrix and of the prior."""

    low_KK: FloatArray
    high_KK: FloatArray
    prior_low_K: FloatArray
    prior_high_K: FloatArray


def bootstrap(
    counts_KKK: ArrayLike,
    rng: np.random.Generator,
    *,
    rounds: int = 100,
    level: float = 0.95,
    shown: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Interval:
    """Refit on rows drawn again with replacement; percentiles of what comes out.

    The rounds go through `shown`, which may tell how far they are.

    Rows are taken as independent. Triples of a row with its neighbours share rows, so for them it is somewhat short.
    """
    counts_KKK = np.asarray(counts_KKK)
    share_KKK, num_rows = _shares(counts_KKK), int(counts_KKK.sum())
    start = fit_transition(counts_KKK)
    drawn = (rng.multinomial(num_rows, share_KKK.ravel()).reshape(share_KKK.shape) for _ in range(rounds))
    fits = [fit_transition(counts, start) for counts in shown(drawn)]
    ends = [(1 - level) / 2, (1 + level) / 2]
    low_KK, high_KK = np.quantile([fit.matrix_KK for fit in fits], ends, axis=0)
    prior_low_K, prior_high_K = np.quantile([fit.prior_K for fit in fits], ends, axis=0)
    return Interval(low_KK, high_KK, prior_low_K, prior_high_K)


# Raters who differ ------------------------------------------------------------------------------------------------


class Patterns(NamedTuple):
    """Different rows of labels, and how often each came: all that the fit needs of the data."""

    labels_UM: IntArray
    count_U: FloatArray


def patterns(labels_NM: ArrayLike, num_classes: int) -> Patterns:
    """Count the different rows of labels; `MISSING` where a rater gave none.

    Raises
    ------
    ValueError : another shape, or a label outside the classes.
    """
    labels_UM, count_U = np.unique(_labels(labels_NM, num_classes), axis=0, return_counts=True)
    return Patterns(labels_UM, count_U.astype(np.float64))


@dataclass(frozen=True, eq=False)
class RaterTransitions:
    """Noise of raters who each have their own."""

    matrices_MKK: FloatArray
    """T_mij = P(rater m says j | truth = i)."""
    prior_K: FloatArray
    log_likelihood: float
    """Mean of a row, nats."""
    misfit: float
    """Total variation distance between observed and fitted shares of patterns, 0 to 1. Raters who lean on each other
    make it larger than chance does; three raters of two classes always fit, so there it says nothing."""

    def posterior(self, labels_NM: ArrayLike) -> FloatArray:
        """P(truth = i | a row's labels), (N, K); a row without labels has the prior."""
        labels_NM = _labels(labels_NM, len(self.prior_K))
        joint_NK = _log_joint(labels_NM, self.matrices_MKK, self.prior_K)
        return np.asarray(softmax(joint_NK, axis=1))

    @property
    def is_dominant(self) -> bool:
        """Whether every rater mostly says the class that is true."""
        return bool((self.matrices_MKK.argmax(axis=2) == np.arange(len(self.prior_K))).all())


def fit_raters(
    data: Patterns, num_classes: int, *, right: float = 0.75, tolerance: float = 1e-10, most_rounds: int = 20_000
) -> RaterTransitions:
    """Fit a transition matrix for each rater by EM for the latent class model P(x) = sum_i p_i prod_m T_m[i, x_m].

    Source: Dawid and Skene 1979; identified up to the classes' names with three raters whose matrices are invertible
    (Kruskal 1977).

    Parameters
    ----------
    right : float, default 0.75
        Where every rater starts: the chance to be right. It fixes the names of the classes.
    tolerance : float, default 1e-10
        EM stops when a row's mean log-likelihood rises by less, nats.

    Raises
    ------
    ValueError : fewer than three raters, or no label at all.
    """
    labels_UM, weight_U = data.labels_UM, data.count_U / data.count_U.sum()
    num_raters = labels_UM.shape[1]
    if num_raters < 3:
        raise ValueError(f"{num_raters} raters: three are needed to tell their noise from the truth.")
    said_MKU = labels_UM.T[:, None, :] == np.arange(num_classes)[None, :, None]
    if not said_MKU.any(axis=(1, 2)).all():
        raise ValueError("a rater gave no label. Leave out raters without labels.")
    matrices_MKK = np.full((num_raters, num_classes, num_classes), (1 - right) / max(1, num_classes - 1))
    matrices_MKK[:, np.arange(num_classes), np.arange(num_classes)] = right
    prior_K, before = np.full(num_classes, 1 / num_classes), -np.inf
    for _ in range(most_rounds):
        joint_UK = _log_joint(labels_UM, matrices_MKK, prior_K)
        row_U = logsumexp(joint_UK, axis=1)
        now = float(weight_U @ row_U)
        mass_UK = weight_U[:, None] * np.exp(joint_UK - row_U[:, None])
        prior_K = mass_UK.sum(axis=0)
        mass_MKK = np.einsum("mju,ui->mij", said_MKU, mass_UK)
        total_MK1 = mass_MKK.sum(axis=2, keepdims=True)
        matrices_MKK = np.where(total_MK1 > 0, mass_MKK / np.where(total_MK1 > 0, total_MK1, 1), 1 / num_classes)
        if now - before < tolerance:
            break
        before = now
    fitted_U = np.exp(logsumexp(_log_joint(labels_UM, matrices_MKK, prior_K), axis=1))
    whole_U = (labels_UM != MISSING).all(axis=1)
    seen = weight_U[whole_U].sum()
    # Patterns that never came have no share of the data, but all that the fit gives them.
    gap = np.maximum(weight_U[whole_U] / seen - fitted_U[whole_U], 0).sum() if seen > 0 else np.nan
    return RaterTransitions(matrices_MKK, prior_K, now, float(gap))


def _log_joint(labels_UM: IntArray, matrices_MKK: FloatArray, prior_K: FloatArray) -> FloatArray:
    """Log p_i prod_m T_m[i, x_m], (U, K); what is missing says nothing."""
    with np.errstate(divide="ignore"):
        log_MKK, joint_UK = np.log(matrices_MKK), np.broadcast_to(np.log(prior_K), (len(labels_UM), len(prior_K)))
    for log_KK, label_U in zip(log_MKK, labels_UM.T, strict=True):
        joint_UK = joint_UK + np.where(label_U[:, None] == MISSING, 0.0, log_KK.T[label_U])
    return np.asarray(np.maximum(joint_UK, -1e300))  # no class fits: none is preferred


def _labels(labels: ArrayLike, num_classes: int) -> IntArray:
    found: NDArray[Any] = np.asarray(labels)
    if found.ndim != 2 or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"labels {found.shape}, {found.dtype}: expected whole numbers, (rows, raters).")
    if found.size and (found.min() < MISSING or found.max() >= num_classes):
        raise ValueError(f"labels from {found.min()} to {found.max()}: expected 0 to {num_classes - 1}, or {MISSING}.")
    return found.astype(np.int64)


def _shares(counts_KKK: ArrayLike) -> FloatArray:
    counts = np.asarray(counts_KKK, dtype=np.float64)
    if not counts.sum() > 0:
        raise ValueError("no row was counted.")
    return np.asarray(counts / counts.sum())
