"""Measure the gap between groups that nobody recorded, from three or more weak guesses of them.

How each proxy errs is learnt from how often the proxies agree, without one true group; the rates of the groups are
calibrated by it, and the gap is given with its interval beside what the proxies taken for truth would say.

Source: Zhu, Yao, Sun, Li, Liu, "Weak Proxies are Sufficient and Preferable for Fairness with Missing Sensitive
Attributes", ICML 2023 (arXiv 2210.03175).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import typer
from rich.progress import track

from amends.fair._proxy_fit import Model, Variant, choose, known_matrices
from amends.fair._proxy_rates import Misfit, clipped, gaps, interval, naive, parts
from amends.fair._proxy_table import ProxyTable, count_proxies
from amends.io.console import console, say

Metric = Literal["demographic_parity", "equalized_odds", "equal_opportunity"]
Summary = Literal["mean", "largest"]
FEW = 100
MOST_UNSURE = 0.05


@dataclass(frozen=True, eq=False)
class ProxyFairness:
    """What was found. No guess of anyone's group is kept: all is computed from counts."""

    disparity: float
    """Gap between the groups, 0 to 1."""
    interval: tuple[float, float] | None
    """Where the gap lies, by resampled rows; None without resamples."""
    level: float
    metric: Metric
    variant: Variant
    """The one that was used."""
    reason: str
    """Why that one."""
    naive: dict[str, float]
    """The gap if a proxy is taken for truth, by proxy."""
    majority: float
    """The gap if what most proxies say is taken for truth; a tie counts for each of its groups in part."""
    groups: list[Any]
    classes: list[Any]
    conditions: list[Any]
    measured: tuple[list[int], list[int]]
    """Places of the conditions and classes that the gap is of."""
    rates_CGK: np.ndarray
    """P(class k | condition c, group a); conditions are classes of the truth, of demographic parity one for all."""
    rate_intervals_2CGK: np.ndarray | None
    """Low and high ends."""
    naive_rates_MCGK: np.ndarray
    prior_CG: np.ndarray
    """P(group a | condition c)."""
    transition: dict[str, np.ndarray]
    """T[a, j] = P(proxy says j | group a), by proxy, (G, G); empty for "naive" and "majority"."""
    cell_transition_LMGG: np.ndarray | None
    """Of the variant local: matrices in each condition and class, in the order of (condition, class)."""
    condition_numbers: dict[str, float]
    """Of the matrices: about how much noise is amplified."""
    misfit: dict[str, Misfit | None]
    """Tests of what the variant takes for granted: "proxies" are independent given the group; with "predictions" too;
    "cells", of the variant local: in each of its cells. None: always fits, so nothing can be told."""
    smallest_cell: int
    """Rows of the smallest group under a condition, as a proxy has it; under local also of a condition and class."""
    unsure: float
    """Share of resamples in which the groups could not be told apart; 0 without resamples."""
    num_rows: int
    warnings: list[str]

    def __str__(self) -> str:
        """Few lines for people."""
        within = "" if self.interval is None else f", {self.level:.0%} interval {_range(self.interval)}"
        told = ", ".join(f"{name} {value:.3f}" for name, value in self.naive.items())
        lines = [
            f"{self.metric.replace('_', ' ')} gap {self.disparity:.3f}{within} ({self.variant}, {self.num_rows:,} rows)",
            f"taken for truth: {told}; majority {self.majority:.3f}",
        ]
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


def _range(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.3f} to {ends[1]:.3f}"


def proxy_fairness(
    y_pred: Any,
    proxies: Any,
    y_true: Any = None,
    *,
    metric: Metric = "demographic_parity",
    variant: Variant = "auto",
    shared: bool = False,
    transition: Any = None,
    positive: Any = None,
    summary: Summary = "mean",
    n_boot: int = 200,
    level: float = 0.9,
    clip: float | None = 1e-3,
    random_state: int | np.random.Generator | None = None,
    progress: bool = False,
) -> ProxyFairness:
    """Measure how far apart a model's rates are between groups that only proxies tell.

    Parameters
    ----------
    y_pred : array (N,)
        Predicted classes.
    proxies : data frame, mapping, or array (N, M)
        A column a proxy, three or more unless `transition` is given; each names a group of every row, by the same
        names. None, NaN, the number -1 and an empty text are missing.
    y_true : array (N,), optional
        True classes; needed for equalized odds and equal opportunity, not used for demographic parity.
    metric : {"demographic_parity", "equalized_odds", "equal_opportunity"}
        Gaps of P(class), of P(class | each true class), or of P(positive | positive).
    variant : {"auto", "global", "local", "joint", "naive", "majority"}, default "auto"
        global: a proxy errs alike whatever is predicted. local: by condition and predicted class. joint: as global, but
        predictions help to learn how proxies err. auto: global, unless a test says that it does not hold and every cell
        of local is large enough. naive, majority: proxies, or most of them, taken for truth.
    shared : bool, default False
        All proxies err alike, as in the paper's code; else each has its own matrix.
    transition : array (G, G) or (M, G, G), or mapping of proxy to (G, G), optional
        Known matrices, groups in sorted order; the proxies' errors are then not estimated.
    positive : optional
        The class that equal opportunity is about; default 1 or True.
    summary : {"mean", "largest"}, default "mean"
        Of the gaps over pairs of groups, classes and conditions: the mean, as in the paper, or the largest, which is
        fairlearn's `demographic_parity_difference` and `equalized_odds_difference`. The same for two groups and two
        classes, but for equalized odds.
    n_boot : int, default 200
        Resamples for the interval; 0: none.
    level : float, default 0.9
        Of the interval, 0 to 1.
    clip : float or None, default 1e-3
        Lowest rate; rates are cut to [clip, 1] and made to sum to 1. None: as they come out, which may be below 0.
    progress : bool, default False
        Show a bar on standard error.

    Returns
    -------
    ProxyFairness

    Raises
    ------
    ValueError : an input that cannot be used, or groups that these proxies do not identify; with what to do.
    """
    _check(metric, variant, summary, n_boot, level, clip, y_true, shared, transition)
    table = count_proxies(y_pred, proxies, None if metric == "demographic_parity" else y_true)
    conditions, classes = _measured(table, metric, positive)
    said_MCKG = table.said_MCKG()
    smallest = _smallest(table, said_MCKG, conditions)
    rng = np.random.default_rng(random_state)
    model = choose(table, variant, shared, None if transition is None else known_matrices(transition, table), rng)
    if model.variant == "local":
        smallest = min(smallest, round(table.count_CKU[conditions].sum(axis=2).min()))
    clip = None if model.point is None else clip  # rates that were counted need none
    warned = [*model.warnings]

    def size(rates: np.ndarray) -> np.ndarray:
        gap = np.abs(gaps(rates, conditions, classes))
        return np.asarray(gap.mean(axis=-1) if summary == "mean" else gap.max(axis=-1))

    raw_CGK = model.rates(table, table.count_CKU[None])[0][0] if model.point is None else model.point.rates_BCGK[0]
    rates_CGK = clipped(raw_CGK, clip)
    prior_CG = _shares(table, said_MCKG) if model.point is None else model.point.prior_BCG[0]
    _check_prior(table, prior_CG, conditions)
    if clip is not None and (num := int((raw_CGK[conditions] < clip).sum())):
        warned.append(f"{num} rates came out below {clip:g} and were set to it, which makes the gap smaller.")
    ends, ends_2CGK, unsure = None, None, 0.0
    if n_boot:
        rates_BCGK, sure_B = _resampled(model, table, n_boot, rng, progress)
        rates_BCGK, unsure = clipped(rates_BCGK, clip), float(1 - sure_B.mean())
        gap_J, gap_BJ = gaps(rates_CGK, conditions, classes), gaps(rates_BCGK, conditions, classes)
        ends = interval(gap_J, gap_BJ, size(rates_BCGK), level)
        ends_2CGK = np.quantile(rates_BCGK, [(1 - level) / 2, (1 + level) / 2], axis=0)
    if unsure > MOST_UNSURE:
        warned.append(f"in {unsure:.0%} of the resamples the groups could not be told apart: the gap is hardly known.")
    if smallest < FEW:
        warned.append(f"the smallest cell has {smallest} rows: rates of so few are uncertain.")
    if table.num_unnamed:
        warned.append(f"{table.num_unnamed} rows have no group from any proxy and were left out.")
    naive_MCGK = naive(said_MCKG)
    T = {} if model.matrices_MGG is None else dict(zip(table.proxies, model.matrices_MGG, strict=True))
    return ProxyFairness(
        disparity=float(size(rates_CGK)),
        interval=ends,
        level=level,
        metric=metric,
        variant=model.variant,
        reason=model.reason,
        naive={name: float(size(rates)) for name, rates in zip(table.proxies, naive_MCGK, strict=True)},
        majority=float(size(naive(table.voted_CKG()))),
        groups=table.groups,
        classes=table.classes,
        conditions=table.conditions,
        measured=(conditions, classes),
        rates_CGK=rates_CGK,
        rate_intervals_2CGK=ends_2CGK,
        naive_rates_MCGK=naive_MCGK,
        prior_CG=prior_CG,
        transition=T,
        cell_transition_LMGG=model.point.matrices_BLMGG[0] if model.point and model.variant == "local" else None,
        condition_numbers={name: float(np.linalg.cond(of)) for name, of in T.items()},
        misfit=model.tests,
        smallest_cell=smallest,
        unsure=unsure,
        num_rows=table.num_rows,
        warnings=warned,
    )


def _check(
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


def _measured(table: ProxyTable, metric: Metric, positive: Any) -> tuple[list[int], list[int]]:
    """Places of the conditions and classes that the gap is of."""
    every = list(range(len(table.conditions))), list(range(len(table.classes)))
    if metric != "equal_opportunity":
        return every
    names = [str(value) for value in table.classes]
    wanted = [str(positive)] if positive is not None else ["1", "True", "1.0"]
    there = [names.index(name) for name in wanted if name in names]
    if not there or table.classes[there[0]] not in table.conditions:
        raise ValueError(
            f"positive={positive!r}: which class is equal opportunity about? The true classes are "
            f"{', '.join(map(str, table.conditions))}."
        )
    return [table.conditions.index(table.classes[there[0]])], there[:1]


def _smallest(table: ProxyTable, said_MCKG: np.ndarray, conditions: list[int]) -> int:
    """Rows of the smallest group under a condition, as a proxy has it; refuses one without rows."""
    size_MCG = said_MCKG.sum(axis=2)[:, conditions]
    if not size_MCG.all():
        m, c, g = np.argwhere(size_MCG == 0)[0].tolist()
        where = f" among rows of class {table.conditions[conditions[c]]}" if len(table.conditions) > 1 else ""
        raise ValueError(
            f"{table.proxies[m]} never says {table.groups[g]}{where}. All proxies must use the same names of groups "
            f"(found: {', '.join(map(str, table.groups))}); merge groups that are rare."
        )
    return round(size_MCG.min())


def _check_prior(table: ProxyTable, prior_CG: np.ndarray, conditions: list[int]) -> None:
    """Refuse a group of which the fit leaves no row under a condition: its rates would be of nobody."""
    rows_CG = prior_CG[conditions] * table.count_CKU[conditions].sum(axis=(1, 2))[:, None]
    if (rows_CG < 1).any():
        c, g = np.argwhere(rows_CG < 1)[0].tolist()
        raise ValueError(
            f"the fit leaves no row for group {table.groups[g]} (condition: {table.conditions[conditions[c]]}). Merge "
            "groups, or give more rows."
        )


def _shares(table: ProxyTable, said_MCKG: np.ndarray) -> np.ndarray:
    """Shares of the groups as the proxies have them, the mean."""
    size_MCG = said_MCKG.sum(axis=2)
    return np.asarray((size_MCG / size_MCG.sum(axis=2, keepdims=True)).mean(axis=0))


def _resampled(
    model: Model, table: ProxyTable, n_boot: int, rng: np.random.Generator, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Rates of rows drawn again with replacement, (B, C, G, K), and in which of them groups were told apart.

    A draw of rows is a draw of counts, so it costs the same for a thousand rows and for a million.
    """
    shares = table.count_CKU.ravel() / table.num_rows
    count_BCKU = rng.multinomial(table.num_rows, shares, size=n_boot).reshape(n_boot, *table.count_CKU.shape)
    pieces = parts(count_BCKU.astype(np.float64), len(table.groups))
    bar = track(pieces, "resampling", console=console, transient=True, disable=not progress)
    found = [model.rates(table, piece) for piece in bar]
    return np.concatenate([rates for rates, _ in found]), np.concatenate([sure for _, sure in found])
