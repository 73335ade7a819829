"""Measure the gap between groups that nobody recorded, from three or more weak guesses of them.

How each proxy errs is learnt from how often the proxies agree, without one true group; the rates of the groups are
calibrated by it, and the gap is given with its interval beside what the proxies taken for truth would say.

Source: Zhu, Yao, Sun, Li, Liu, "Weak Proxies are Sufficient and Preferable for Fairness with Missing Sensitive
Attributes", ICML 2023 (arXiv 2210.03175).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from amends.fair._proxies.fit import Metric, Summary, Variant, check_options, choose, drawn, known_matrices
from amends.fair._proxies.rates import Misfit, clipped, gaps, interval, naive
from amends.fair._proxies.table import check_prior, count_proxies, measured, shares, smallest_cell
from amends.fair._tables.table import check_seed, check_single, column
from amends.fair._tables.table import classes as classes_of
from amends.io.atomic import check_new, write_json
from amends.io.console import say
from amends.io.errors import InputError, check_installed
from amends.io.frames import about_rows, rows_from
from amends.io.options import SeedOption
from amends.io.run import describe, run_folder
from amends.io.tables import read_json
from amends.io.write import write_rows

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
    naive_intervals: dict[str, tuple[float, float]]
    """Where those lie by the same resamples; empty without them."""
    majority: float
    """The gap if what most proxies say is taken for truth; a tie counts for each of its groups in part."""
    groups: list[Any]
    classes: list[Any]
    conditions: list[Any]
    places: tuple[list[int], list[int]]
    """Which conditions and classes the gap is of, by their number."""
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
    right: dict[str, float]
    """Share of rows in which a proxy is right, by its matrix."""
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
        gap = f"{self.metric.replace('_', ' ')} gap {self.disparity:.3f}{within}"
        lines = [
            f"{gap} ({self.variant}, {self.num_rows:,} rows)",
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
        All proxies err alike, as in the paper's code; else each has its own matrix. With clip=None the groups' shares
        of each true class are the code's too: from fits by predicted class, so that rates need not sum to 1.
    transition : array (G, G) or (M, G, G), or mapping of proxy to (G, G), optional
        Known matrices, groups in sorted order, so that the proxies' errors are not estimated; or what
        transition.json of a run holds: {"groups": [...], "transition": {proxy: matrix}}.
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
        Lowest rate; rates are cut to [clip, 1] and made to sum to 1. None: as they come out, which may be below 0,
        and given a true class need not sum to 1.
    progress : bool, default False
        Show a bar on standard error.

    Returns
    -------
    ProxyFairness

    Raises
    ------
    ValueError : an input that cannot be used, or groups that these proxies do not identify; with what to do.
    """
    check_options(metric, variant, summary, n_boot, level, clip, y_true, shared, transition)
    table = count_proxies(y_pred, proxies, None if metric == "demographic_parity" else y_true)
    conditions, classes = measured(table, metric == "equal_opportunity", positive)
    said_MCKG = table.said_MCKG()
    smallest = smallest_cell(table, said_MCKG, conditions)
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
    prior_CG = shares(table, said_MCKG) if model.point is None else model.point.prior_BCG[0]
    check_prior(table, prior_CG, conditions)
    if clip is not None and (num := int((raw_CGK[conditions] < clip).sum())):
        warned.append(f"{num} rates came out below {clip:g} and were set to it, which makes the gap smaller.")
    ends, ends_2CGK, unsure, naive_ends = None, None, 0.0, {}
    if n_boot:
        tails = [(1 - level) / 2, (1 + level) / 2]
        count_BCKU = drawn(table, n_boot, rng)
        rates_BCGK, sure_B = model.many_rates(table, count_BCKU, progress)
        rates_BCGK, unsure = clipped(rates_BCGK, clip), float(1 - sure_B.mean())
        gap_J, gap_BJ = gaps(rates_CGK, conditions, classes), gaps(rates_BCGK, conditions, classes)
        ends = interval(gap_J, gap_BJ, size(rates_BCGK), level)
        ends_2CGK = np.quantile(rates_BCGK, tails, axis=0)
        naive_MB = [size(naive(said_BCKG)) for said_BCKG in table.said_MCKG(count_BCKU)]
        naive_ends = {
            name: (float(low), float(high))
            for name, (low, high) in zip(table.proxies, np.nanquantile(naive_MB, tails, axis=1).T, strict=True)
        }
    if unsure > MOST_UNSURE:
        warned.append(f"in {unsure:.0%} of the resamples the groups could not be told apart: the gap is hardly known.")
    if smallest < FEW:
        warned.append(f"the smallest cell has {smallest} rows: rates of so few are uncertain.")
    if table.num_unnamed:
        warned.append(f"{table.num_unnamed} rows have no group from any proxy and were left out.")
    naive_MCGK = naive(said_MCKG)
    whole_G = table.count_CKU.sum(axis=(1, 2)) @ prior_CG / table.num_rows
    T = {} if model.matrices_MGG is None else dict(zip(table.proxies, model.matrices_MGG, strict=True))
    return ProxyFairness(
        disparity=float(size(rates_CGK)),
        interval=ends,
        level=level,
        metric=metric,
        variant=model.variant,
        reason=model.reason,
        naive={name: float(size(rates)) for name, rates in zip(table.proxies, naive_MCGK, strict=True)},
        naive_intervals=naive_ends,
        majority=float(size(naive(table.voted_CKG()))),
        groups=table.groups,
        classes=table.classes,
        conditions=table.conditions,
        places=(conditions, classes),
        rates_CGK=rates_CGK,
        rate_intervals_2CGK=ends_2CGK,
        naive_rates_MCGK=naive_MCGK,
        prior_CG=prior_CG,
        transition=T,
        cell_transition_LMGG=model.point.matrices_BLMGG[0] if model.point and model.variant == "local" else None,
        right={name: float((of.diagonal() * whole_G).sum()) for name, of in T.items()},
        condition_numbers={name: float(np.linalg.cond(of)) for name, of in T.items()},
        misfit=model.tests,
        smallest_cell=smallest,
        unsure=unsure,
        num_rows=table.num_rows,
        warnings=warned,
    )


# The command line ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ProxyAudit:
    """What was found of a table; the run folder holds the same."""

    found: ProxyFairness
    fairlearn: dict[str, Any]
    """MetricFrame with each proxy taken for truth, by proxy; empty where there are more than two classes."""
    record: dict[str, Any]
    """As run.json has it."""


def run(
    data: Any,
    *,
    pred: str,
    proxy: Sequence[str],
    label: str | None = None,
    metric: Metric = "demographic_parity",
    variant: Variant = "auto",
    shared: bool = False,
    transition: str | Path | None = None,
    positive: str | None = None,
    missing: Sequence[str] = ("-1",),
    summary: Summary = "mean",
    boot: int = 200,
    level: float = 0.9,
    clip: float | None = 1e-3,
    out: str | Path | None = None,
    seed: int = 0,
) -> ProxyAudit:
    """Measure the gap between groups that only proxies tell, and write the run folder.

    Parameters
    ----------
    data : path, list of paths, `datasets.Dataset`, data frame, or list of dictionaries
    out : path, optional
        Run folder to make.

    The others are as on the command line.

    Raises
    ------
    InputError : what the user can mend; nothing is written then.
    """
    options = {name: value for name, value in locals().items() if name not in ("data", "out")}
    check_installed("fairlearn", "fairlearn", "fair")
    if out is not None:
        check_new(out)
    check_seed(seed)
    started = time.time()
    rows = rows_from(data)
    preds, truths = classes_of(rows, pred, "--pred"), classes_of(rows, label, "--label") if label else None
    for name in proxy:
        for row, cell in zip(rows, column(rows, name, "--proxy"), strict=True):
            check_single(row, name, cell)
    said = {name: [None if str(cell) in missing else cell for cell in column(rows, name, "--proxy")] for name in proxy}
    if len(said) != len(proxy):
        raise InputError("--proxy: a column is named twice. Each proxy counts once.")
    say(f"measuring {len(rows)} rows by {len(said)} proxies")
    try:
        found = proxy_fairness(
            np.array(preds.names, dtype=object)[preds.code_N],
            said,
            None if truths is None else np.array(truths.names, dtype=object)[truths.code_N],
            metric=metric,
            variant=variant,
            shared=shared,
            transition=None if transition is None else read_json(transition),
            positive=positive,
            summary=summary,
            n_boot=boot,
            level=level,
            clip=clip,
            random_state=seed,
            progress=True,
        )
    except InputError:
        raise
    except ValueError as error:
        told = str(error).replace("y_true", f"--label {label or ''}".rstrip()).replace("y_pred", f"--pred {pred}")
        raise InputError(told) from error
    for warning in found.warnings:
        say(f"warning: {warning}")
    record = describe(
        command="fair proxies",
        config={**options, "transition": None if transition is None else str(transition)},
        seed=seed,
        data={"table": about_rows(data, rows)},
        weights={},
        seconds={"in all": round(time.time() - started, 1)},
        stopped="all rows counted",
        warnings=found.warnings,
        method={"title": "proxies", "summary": (__doc__ or "").split("\n\n")[1].replace("\n", " ")},
    )
    from amends.fair._proxies.page import by_fairlearn, page, rate_rows, summary_of

    audit = ProxyAudit(found, by_fairlearn(preds, truths, said, positive), record)
    if out is not None:
        with run_folder(out, record, summary_of(found), page(audit)) as folder:
            write_json(folder / "transition.json", _transition_json(found))
            write_rows(folder / "rates.csv", rate_rows(found))
    return audit


def _transition_json(found: ProxyFairness) -> dict[str, Any]:
    return {"groups": found.groups, "transition": {name: T.tolist() for name, T in found.transition.items()}}


def command(
    data: Annotated[list[str], typer.Argument(help="Rows with predictions and proxies; several files are one table.")],
    pred: Annotated[str, typer.Option(help="Column of the predicted class.")],
    proxy: Annotated[list[str], typer.Option(help="Column of a proxy's guess of the group; give three or more.")],
    out: Annotated[Path, typer.Option(help="Run folder to make; must not exist.")],
    label: Annotated[str | None, typer.Option(help="Column of the true class, for all but demographic parity.")] = None,
    metric: Annotated[Metric, typer.Option(help="Whose gap is measured.")] = "demographic_parity",
    variant: Annotated[Variant, typer.Option(help="How proxies are taken to err; see the page.")] = "auto",
    shared: Annotated[bool, typer.Option("--shared", help="All proxies err alike, as in the paper's code.")] = False,
    transition: Annotated[
        Path | None, typer.Option(help="Known matrices, as transition.json of a run.", exists=True, dir_okay=False)
    ] = None,
    positive: Annotated[str | None, typer.Option(help="The class that equal opportunity is about; default 1.")] = None,
    missing: Annotated[
        list[str] | None, typer.Option(help="A proxy's sign for no guess, beside none; default -1.")
    ] = None,
    summary: Annotated[Summary, typer.Option(help="Of the gaps: their mean, or the largest as fairlearn.")] = "mean",
    boot: Annotated[int, typer.Option(help="Resamples for the interval; 0: none.", min=0)] = 200,
    level: Annotated[float, typer.Option(help="Level of the interval, between 0 and 1.", min=0, max=1)] = 0.9,
    clip: Annotated[float, typer.Option(help="Lowest rate that a group can have.", min=0, max=0.5)] = 1e-3,
    no_clip: Annotated[bool, typer.Option("--no-clip", help="Leave rates as they come out.")] = False,
    seed: SeedOption = 0,
) -> None:
    """Measure the gap between groups that nobody recorded, from three or more weak guesses of them."""
    audit = run(
        data if len(data) > 1 else data[0],
        pred=pred,
        proxy=proxy,
        label=label,
        metric=metric,
        variant=variant,
        shared=shared,
        transition=transition,
        positive=positive,
        missing=missing or ("-1",),
        summary=summary,
        boot=boot,
        level=level,
        clip=None if no_clip else clip,
        out=out,
        seed=seed,
    )
    say(str(audit.found).split("\n")[0])
    say(str(audit.found).split("\n")[1])
    say(f"done: {out}/report.html")
