"""What was found by proxies, for the report and for summary.json."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from amends.fair._proxies.fit import signal
from amends.fair._tables.gaps import gap_table, gaps, rate_table, rates
from amends.fair._tables.groups import Groups
from amends.fair.proxies import ProxyAudit, ProxyFairness
from amends.report.findings import Cell, Chart, Section, Table, render_findings
from amends.report.grids import matrix
from amends.report.plots import Span, spans

MOST_IN_CHART = 12
TESTED = {
    "proxies": "proxies are independent of each other given the group",
    "predictions": "and of predictions; one matrix a proxy holds for all rows",
    "cells": "proxies are independent of each other where a class is predicted",
}


def summary_of(found: ProxyFairness) -> dict[str, Any]:
    """All numbers but the rates, which have a table of their own."""
    return {
        "metric": found.metric,
        "gap": found.disparity,
        "interval": found.interval,
        "level": found.level,
        "naive": found.naive,
        "naive_intervals": found.naive_intervals,
        "majority": found.majority,
        "variant": found.variant,
        "reason": found.reason,
        "groups": found.groups,
        "prior": {str(name): p.tolist() for name, p in zip(found.conditions, found.prior_CG, strict=True)},
        "right": found.right,
        "condition_numbers": found.condition_numbers,
        "misfit": {name: None if test is None else test._asdict() for name, test in found.misfit.items()},
        "smallest_cell": found.smallest_cell,
        "unsure": found.unsure,
        "rows": found.num_rows,
    }


def rate_rows(found: ProxyFairness) -> list[dict[str, Any]]:
    """Rates with their intervals, a row a condition, group and class, beside the naive ones."""
    ends = found.rate_intervals_2CGK
    return [
        {
            "condition": found.conditions[c],
            "group": found.groups[g],
            "class": found.classes[k],
            "rate": float(rate),
            "low": None if ends is None else float(ends[0, c, g, k]),
            "high": None if ends is None else float(ends[1, c, g, k]),
            **{f"by {name}": float(of[c, g, k]) for name, of in zip(found.naive, found.naive_rates_MCGK, strict=True)},
        }
        for (c, g, k), rate in np.ndenumerate(found.rates_CGK)
    ]


def by_fairlearn(
    preds: Groups, truths: Groups | None, said: Mapping[str, Sequence[Any]], positive: str | None
) -> dict[str, Any]:
    """Rates of the groups that each proxy names, by fairlearn; empty where there are more than two classes."""
    names = sorted({str(value) for value in [*preds.names, *([] if truths is None else truths.names)]})
    if len(names) > 2:
        return {}
    chosen = positive if positive in names else names[-1]
    pred_N = np.array([str(value) == chosen for value in preds.names], dtype=np.int64)[preds.code_N]
    truth_N = pred_N
    if truths is not None:
        truth_N = np.array([str(value) == chosen for value in truths.names], dtype=np.int64)[truths.code_N]
    found = {}
    for name, cells in said.items():
        there_N = np.array([cell is not None and cell == cell and str(cell).strip() != "" for cell in cells])
        group_n = np.array([str(cell) for cell, there in zip(cells, there_N, strict=True) if there])
        found[name] = rates(truth_N[there_N], pred_N[there_N], group_n)
    return found


def page(audit: ProxyAudit) -> str:
    """Render the report."""
    found = audit.found
    what = found.metric.replace("_", " ")
    within = "" if found.interval is None else f" ({found.level:.0%} interval {_range(found.interval)})"
    least, most = min(found.naive.values()), max(found.naive.values())
    naive = f"{least:.3f}" if least == most else f"{least:.3f} to {most:.3f}"
    lead = f"The gap in {what} between {', '.join(map(str, found.groups))} is {found.disparity:.3f}{within}. "
    lead += f"Proxies taken for truth say {naive}, most of them together {found.majority:.3f}."
    parts = [_gap(audit), _rates(found), _errors(found), _doubts(found), _fairlearn(audit)]
    path = audit.record["data"]["table"]["path"]
    title = f"Gap between groups, by proxies: {path or 'rows given from Python'}"
    return render_findings(audit.record, title, lead, [part for part in parts if part])


def _range(ends: Any) -> str:
    """Both ends; a word where there are none."""
    return "none" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def _gap(audit: ProxyAudit) -> Section:
    found = audit.found
    low, high = found.interval or (None, None)
    ways = {"calibrated": Span(found.disparity, low, high)}
    for name, value in found.naive.items():
        ways[f"naive, {name}"] = Span(value, *found.naive_intervals.get(name, (None, None)))
    ways["naive, majority"] = Span(found.majority, None, None)
    if found.variant in ("naive", "majority"):
        del ways["calibrated"]
    texts = [
        f"{found.num_rows:,} rows; variant {found.variant} ({found.reason}). Naive: the group that a proxy names "
        "is taken for the true one, which makes the gap smaller if the proxy errs at random.",
        "The interval is of the rows that were drawn. It does not hold what follows if the proxies lean on each other.",
    ]
    charts = [Chart("The gap, calibrated and naive", spans({"gap": ways}, {}))]
    rows = [
        (name, span.value, _range(None if span.low is None else (span.low, span.high))) for name, span in ways.items()
    ]
    return Section("The gap", texts, charts, [Table(("way", "gap", "interval"), rows)])


def _rates(found: ProxyFairness) -> Section:
    tables = []
    for c, condition in enumerate(found.conditions):
        if c not in found.places[0]:
            continue
        body: list[list[Cell]] = []
        for g, group in enumerate(found.groups):
            cells: list[Cell] = [str(group), float(found.prior_CG[c, g])]
            for k in range(len(found.classes)):
                cells.append(float(found.rates_CGK[c, g, k]))
                ends = found.rate_intervals_2CGK
                cells.append(_range(None if ends is None else ends[:, c, g, k]))
            body.append(cells)
        head = ["group", "share of rows"]
        for name in found.classes:
            head += [f"rate of {name}", f"{found.level:.0%} interval"]
        tables.append(Table(head, body, "" if len(found.conditions) == 1 else f"Where {condition} is true"))
    return Section(
        "Rates of the groups", ["Counts of the whole table give these; nobody's group is guessed."], tables=tables
    )


def _errors(found: ProxyFairness) -> Section | None:
    if not found.transition:
        return None
    groups = [str(group) for group in found.groups]
    charts = []
    if len(groups) <= MOST_IN_CHART:
        for m, (name, T) in enumerate(found.transition.items()):
            svg = matrix(
                T.tolist(), groups, groups, name=f"proxy{m}", title=f"How {name} errs", down="group", across="said"
            )
            charts.append(
                Chart(name, svg, "Chance that the proxy says a group (across) of a member of a group (down).")
            )
    rows: list[list[Cell]] = [
        [
            name,
            found.right[name],
            float(signal(T)),
            found.condition_numbers[name],
        ]
        for name, T in found.transition.items()
    ]
    told = (
        "Signal is 1 for a proxy that never errs and 0 for one that tells nothing; about one over it is the factor by "
    )
    told += "which calibration makes noise larger."
    return Section(
        "How the proxies err", [told], charts, [Table(("proxy", "right", "signal", "condition number"), rows)]
    )


def _doubts(found: ProxyFairness) -> Section | None:
    if not found.misfit:
        return None
    rows: list[list[Cell]] = [
        [
            TESTED[name],
            *(("always fits", "no test", "no test") if test is None else (test.distance, test.by_chance, test.p)),
        ]
        for name, test in found.misfit.items()
    ]
    texts = [
        "Misfit: how far shares of what proxies say together are from what the model expects. p: share of tables drawn "
        "from the model that are as far; at 0.01 or below the model does not hold, and there is a warning.",
        f"The smallest cell has {found.smallest_cell:,} rows. In {found.unsure:.0%} of the resamples the groups could "
        "not be told apart.",
    ]
    return Section("Whether this can be relied on", texts, tables=[Table(("claim", "misfit", "by chance", "p"), rows)])


def _fairlearn(audit: ProxyAudit) -> Section | None:
    if not audit.fairlearn:
        return None
    frames = audit.fairlearn
    tables = [rate_table(frame, f"Groups as {name} has them") for name, frame in frames.items()]
    with_labels = audit.record["config"]["label"] is not None
    all_gaps = {name: gaps(frame) for name, frame in frames.items()}
    if not with_labels:
        all_gaps = {name: {"demographic_parity": of["demographic_parity"]} for name, of in all_gaps.items()}
        tables = []
    tables.append(gap_table(all_gaps, "Largest difference between two groups, with each proxy taken for truth"))
    told = "By fairlearn, as an audit would have it that takes a proxy for the truth."
    return Section("fairlearn, with proxies taken for truth", [told], tables=tables)
