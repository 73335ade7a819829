"""Which model of the proxies' errors is used, whether it identifies the groups, and what speaks against it.

Shapes: B tables, L sets of matrices, M proxies, C conditions, K classes, G groups, U patterns.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from amends.fair._proxies.rates import MOST_PATTERNS, Estimate, Fitted, Misfit, estimate, misfit, naive, parts
from amends.fair._proxies.table import ProxyTable
from amends.io.progress import track
from amends.maths.arrays import FloatArray

Metric = Literal["demographic_parity", "equalized_odds", "equal_opportunity"]
Summary = Literal["mean", "largest"]
Variant = Literal["auto", "global", "local", "joint", "naive", "majority"]
Used = Literal["global", "local", "joint", "naive", "majority"]
LEAST_SIGNAL = 0.1
"""|det T|^(1/(G-1)) below which a proxy tells nothing; of two groups it is the determinant."""
SURE = 0.01
"""Share of draws by chance below which a model is said not to hold."""
LEAST_LOCAL = 200
"""Rows of a condition and class from which "auto" lets it have matrices of its own."""
UNLIKE = 0.05
"""Difference of the proxies' own frequencies above which they are not alike."""


class Model(NamedTuple):
    """The model that is used, fitted to all rows."""

    variant: Used
    reason: str
    point: Estimate | None
    """None: the proxies, or most of them, are taken for truth."""
    matrices_MGG: FloatArray | None
    """How the proxies err in all rows together."""
    tests: dict[str, Misfit | None]
    warnings: list[str]
    shared: bool = False
    known: bool = False

    def rates(self, table: ProxyTable, count_BCKU: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Rates of several tables, (B, C, G, K), not clipped, and in which of them the groups could be told apart."""
        if self.variant == "naive":
            return np.asarray(naive(table.said_MCKG(count_BCKU)).mean(axis=0)), np.ones(len(count_BCKU), dtype=bool)
        if self.variant == "majority":
            return naive(table.voted_CKG(count_BCKU)), np.ones(len(count_BCKU), dtype=bool)
        assert self.point is not None
        found = estimate(
            table,
            count_BCKU,
            self.variant,
            shared=self.shared,
            known_MGG=self.matrices_MGG if self.known else None,
            start_LMGG=self.point.matrices_BLMGG[0],
        )
        filled_L = _filled(table) if self.variant == "local" else [0]
        weakest_B = signal(found.matrices_BLMGG[:, filled_L]).min(axis=(1, 2))
        return found.rates_BCGK, weakest_B >= LEAST_SIGNAL

    def many_rates(
        self, table: ProxyTable, count_BCKU: FloatArray, progress: bool
    ) -> tuple[FloatArray, NDArray[np.bool_]]:
        """`rates` of more tables than fit memory at once, with a bar on standard error if wanted."""
        some = parts(count_BCKU, len(table.groups))
        found = [self.rates(table, part) for part in track(some, "resampling", shown=progress)]
        return np.concatenate([rates for rates, _ in found]), np.concatenate([sure for _, sure in found])


def check_options(
    metric: str,
    variant: str,
    summary: str,
    n_boot: int,
    level: float,
    clip: float | None,
    y_true: Any,
    shared: bool,
    transition: Any,
) -> None:
    """Refuse options that mean nothing, or nothing together."""
    for name, value, kind in (("metric", metric, Metric), ("variant", variant, Variant), ("summary", summary, Summary)):
        if value not in get_args(kind):
            raise ValueError(f"{name}={value!r}: unknown. Choose one of {', '.join(get_args(kind))}.")
    if metric != "demographic_parity" and y_true is None:
        raise ValueError(f"metric={metric!r} needs the true classes: give y_true, or measure demographic_parity.")
    if n_boot < 0 or not 0 < level < 1 or (clip is not None and not 0 <= clip < 0.5):
        raise ValueError(
            f"n_boot={n_boot}, level={level}, clip={clip}: expected 0 or more, a number between 0 and 1, and None or a "
            "number from 0 to less than 0.5."
        )
    if transition is not None and (shared or variant in ("local", "naive", "majority")):
        what = "shared" if shared else f"variant {variant}"
        raise ValueError(f"transition: {what} has no use for known matrices. Leave one of the two out.")


def drawn(table: ProxyTable, num: int, rng: np.random.Generator) -> FloatArray:
    """Tables of rows drawn again with replacement, (num, C, K, U).

    A draw of rows is a draw of counts, so it costs the same for a thousand rows and for a million.
    """
    shares = table.count_CKU.ravel() / table.num_rows
    counts = rng.multinomial(table.num_rows, shares, size=num)
    return counts.reshape(num, *table.count_CKU.shape).astype(np.float64)


def choose(
    table: ProxyTable,
    variant: Variant,
    shared: bool,
    known_MGG: FloatArray | None,
    rng: np.random.Generator,
) -> Model:
    """Fit the variant asked for; "auto" takes global unless a test rejects it and every cell is fit for local.

    Raises
    ------
    ValueError : too few proxies, or groups that they do not identify.
    """
    if variant in ("naive", "majority"):
        return Model(variant, "asked for", None, None, {}, [])
    if known_MGG is None and len(table.proxies) < 3:
        raise ValueError(
            f"{len(table.proxies)} proxies: how they err cannot be told from fewer than three. Add proxies, or give "
            "known matrices (transition); the variant naive takes proxies for truth."
        )
    known = known_MGG is not None
    base: Fitted = "joint" if variant == "joint" else "global"
    point = estimate(table, table.count_CKU[None], base, shared=shared, known_MGG=known_MGG)
    T_MGG = point.matrices_BLMGG[0, 0]
    if variant != "local" and (why := unidentified(T_MGG, table, known)):
        raise ValueError(
            f"{why} Leave that proxy out, add others, or give known matrices (transition); the variant naive takes "
            "proxies for truth."
        )
    cells_LU = table.count_CKU.reshape(-1, len(table.labels_UM))
    how: dict[str, Any] = {"known_MGG": known_MGG, "start_LMGG": T_MGG[None]}
    tests = {
        "proxies": misfit(table, cells_LU.sum(axis=0)[None], rng, **how),
        "predictions": misfit(table, cells_LU, rng, **how),
    }
    warned = [] if known else [*_asymmetric(T_MGG, table), *(_unlike(table) if shared else [])]
    of_all = tests["predictions"]
    rejected = of_all is not None and of_all.p <= SURE
    used, reason = base, "asked for" if variant == base else "no test speaks against one matrix a proxy for all rows"
    if variant == "auto" and rejected:
        reason = "one matrix a proxy for all rows does not fit, but nothing better can be had"
    if variant == "local" or (variant == "auto" and rejected and not known):
        local = estimate(table, table.count_CKU[None], "local", shared=shared)
        if why := _not_local(table, local, variant):
            if variant == "local":
                raise ValueError(f"local: {why} Use global, merge groups or classes, or give more rows.")
            warned.append(
                f"matrices of all rows do not fit, and those of each predicted class are not to be had: {why}"
            )
        else:
            used, point = "local", local
            reason = "asked for" if variant == "local" else "one matrix a proxy for all rows does not fit"
            tests["cells"] = misfit(table, cells_LU, rng, apart=True, start_LMGG=local.matrices_BLMGG[0])
    return Model(used, reason, point, T_MGG, tests, [*warned, *_rejected(tests, used, table, known)], shared, known)


def signal(matrices_MGG: FloatArray) -> FloatArray:
    """|det T|^(1/(G-1)), 0 to 1: the geometric mean of all its eigenvalues but the 1 that every such matrix has.

    Of two groups it is the determinant, which alone falls with the number of groups for proxies that are as good.
    """
    return np.asarray(np.abs(np.linalg.det(matrices_MGG)) ** (1 / (matrices_MGG.shape[-1] - 1)))


def unidentified(matrices_MGG: FloatArray, table: ProxyTable, known: bool = False) -> str:
    """Say why these matrices cannot tell the groups apart or name them; empty if they can.

    Groups get their names from the proxies: each must name a group most often among its own people, and the mean of the
    proxies must name it more often than any other. A single proxy may name another group more often: a weak one that
    says "woman" of long hair says "man" of most women.
    """
    for name, signal_m, T in zip(table.proxies, signal(matrices_MGG), matrices_MGG, strict=True):
        if signal_m < LEAST_SIGNAL:
            return f"{name} tells the groups hardly apart ({signal_m:.2f}; at least {LEAST_SIGNAL} is needed)."
        off = np.flatnonzero(T.argmax(axis=0) != np.arange(len(T)))
        if len(off) and not known:
            said, other = table.groups[off[0]], table.groups[T[:, off[0]].argmax()]
            return f"{name} says {said} more often of group {other} than of group {said}, so groups cannot be named."
    mean_GG = matrices_MGG.mean(axis=0)
    off = np.flatnonzero(mean_GG.argmax(axis=1) != np.arange(len(mean_GG)))
    if len(off) and not known:
        group, other = table.groups[off[0]], table.groups[mean_GG[off[0]].argmax()]
        return f"of group {group} the proxies mostly say {other}, so groups cannot be named."
    return ""


def known_matrices(transition: Any, table: ProxyTable) -> FloatArray:
    """Check matrices that are given, (M, G, G).

    Raises
    ------
    ValueError : another shape, rows that do not sum to 1, or a matrix that tells nothing.
    """
    if isinstance(transition, Mapping) and "transition" in transition:
        named, matrices = [str(group) for group in transition.get("groups", [])], transition["transition"]
        if sorted(named) != sorted(map(str, table.groups)):
            raise ValueError(f"transition: of the groups {', '.join(named)}; the proxies name {_named(table)}.")
        order = [named.index(str(group)) for group in table.groups]
        transition = {name: np.asarray(T)[np.ix_(order, order)] for name, T in matrices.items()}
    if isinstance(transition, Mapping):
        if missing := [name for name in table.proxies if name not in transition]:
            raise ValueError(f"transition: no matrix for {missing[0]}. Give one for each proxy.")
        transition = [transition[name] for name in table.proxies]
    M, G = len(table.proxies), len(table.groups)
    T = np.asarray(transition, dtype=np.float64)
    T = np.broadcast_to(T, (M, G, G)) if T.shape == (G, G) else T
    if T.shape != (M, G, G):
        raise ValueError(f"transition: of shape {T.shape}, expected ({M}, {G}, {G}) for the groups {_named(table)}.")
    if not ((T >= 0).all() and np.allclose(T.sum(axis=2), 1, atol=1e-3)):
        raise ValueError("transition: rows must be chances that sum to 1: P(proxy says j | group a), a row a group.")
    T = T / T.sum(axis=2, keepdims=True)
    if why := unidentified(T, table, known=True):
        raise ValueError(f"transition: {why} Leave that proxy out.")
    return T


def _named(table: ProxyTable) -> str:
    return ", ".join(map(str, table.groups))


def _filled(table: ProxyTable) -> list[int]:
    """Conditions and classes that have rows, as places among all of them."""
    return np.flatnonzero(table.count_CKU.sum(axis=2).ravel()).tolist()


def _not_local(table: ProxyTable, local: Estimate, variant: Variant) -> str:
    """Say why a matrix for each condition and class cannot be had; empty if it can."""
    size_L = table.count_CKU.sum(axis=2).ravel()
    for cell in _filled(table):
        condition, k = divmod(cell, len(table.classes))
        where = f"where {table.classes[k]} is predicted"
        where += f" and {table.conditions[condition]} is true" if len(table.conditions) > 1 else ""
        if variant == "auto" and size_L[cell] < LEAST_LOCAL:
            return f"{where}, there are {size_L[cell]:.0f} rows, fewer than {LEAST_LOCAL}."
        if why := unidentified(local.matrices_BLMGG[0, cell], table):
            return f"{where}, {why}"
    return ""


def _rejected(tests: Mapping[str, Misfit | None], used: Used, table: ProxyTable, known: bool) -> list[str]:
    """Say which tests the model fails, and what that does to the gap."""
    given = "as given" if known else "given the group"
    found = []
    alone, of_all, of_cells = (tests.get(name) for name in ("proxies", "predictions", "cells"))
    if alone is not None and alone.p <= SURE and used != "local":  # predictions alone can make them so
        found.append(
            f"the proxies lean on each other, or err otherwise than {given} (misfit {alone.distance:.3f}, by chance "
            f"{alone.by_chance:.3f}): they look better than they are, which mostly leaves the gap too small."
        )
    elif of_all is not None and of_all.p <= SURE and used != "local":
        found.append(
            f"proxies are not independent of the predictions, or of each other, given the group (misfit "
            f"{of_all.distance:.3f}, by chance {of_all.by_chance:.3f}): the gap may be too large or too small. Look "
            "for proxies made from what the model uses."
        )
    if of_cells is not None and of_cells.p <= SURE:
        found.append(
            f"within predicted classes the proxies lean on each other (misfit {of_cells.distance:.3f}, by chance "
            f"{of_cells.by_chance:.3f}): the gap may be too large or too small."
        )
    tested = of_cells if used == "local" else alone
    if tested is None and not known:
        where = " within predicted classes" if used == "local" else ", and predictions are a weak test of it"
        why = "Of three proxies of two groups nothing can tell; a fourth would."
        if (num := len(table.groups) ** len(table.proxies)) > MOST_PATTERNS:
            where, why = (
                "",
                f"They can say {num:,} things together, more than {MOST_PATTERNS:,}: leave out some for a test.",
            )
        found.append(
            f"whether the proxies lean on each other could not be tested{where}. If they do, the gap is off by more "
            f"than the interval says. {why}"
        )
    return found


def _asymmetric(T_MGG: FloatArray, table: ProxyTable) -> list[str]:
    found = []
    for name, T in zip(table.proxies, T_MGG, strict=True):
        for a in np.flatnonzero(T.argmax(axis=1) != np.arange(len(T))).tolist():
            group, said = table.groups[a], table.groups[T[a].argmax()]
            found.append(f"{name} mostly says {said} of group {group}: the group's name rests on the other proxies.")
    return found


def _unlike(table: ProxyTable) -> list[str]:
    said_MG = table.said_MCKG().sum(axis=(1, 2))
    share_MG = said_MG / said_MG.sum(axis=1, keepdims=True)
    apart = float(np.ptp(share_MG, axis=0).max())
    told = f"shared: the proxies name a group in shares up to {apart:.2f} apart, so one matrix is not right for all."
    return [told] if apart > UNLIKE else []
