"""What was found of rows and concepts, for the report, for summary.json and for the tables."""

from typing import Any

import numpy as np
import pandas as pd

from amends.fair._tables.gaps import gap_table, gaps, rate_table
from amends.fair.concept_influence import Findings
from amends.report._text import percent
from amends.report.curves import curves, pairs
from amends.report.findings import Cell, Chart, Example, Section, Table, render_findings

MOST_EXAMPLES = 4
TITLES = {"label": "of another label", "removal": "left out", "group": "of the other group"}


def summary(found: Findings) -> dict[str, Any]:
    """Say it in numbers."""
    e = found.explainer
    return {
        "rows": len(found.rows),
        "metric": e.metric,
        "groups": [str(name) for name in e.groups_],
        "gap": e.disparity_,
        "gap_of_decisions": e.hard_disparity_,
        "accuracy": e.accuracy_,
        "cells": [{**cell, "y": _told(found, cell["y"])} for cell in _plain(e.summary())],
        "counterparts": {name: made._asdict() if made else None for name, made in e.quality_.items()},
        "predicted_against_actual": {name: _agreement(table) for name, table in found.verified.items()},
        "repairs": {
            name: {
                "rows": r.end.in_all,
                "stopped": r.stopped,
                "start": vars(r.start),
                "steps": [vars(s) for s in r.steps],
            }
            for name, r in found.repairs.items()
        },
        "decisions_on": found.tested.where,
        "gaps_of_decisions": {name: gaps(frame) for name, frame in found.tested.frames.items()},
    }


def page(found: Findings) -> str:
    """Render the report."""
    e = found.explainer
    best = {name: r for name, r in found.repairs.items() if r.kept}
    lead = f"The gap between groups is {e.hard_disparity_:.3f} in decisions and {e.disparity_:.3f} in probabilities."
    if best:
        name = min(best, key=lambda n: best[n].end.actual)
        end = best[name].end
        lead += (
            f" Changing {end.in_all:,} of {len(found.rows):,} training rows ({_title(name)}) would bring it to "
            f"{end.decisions:.3f} and {end.actual:.3f} on the validation rows."
        )
    sections = [_gap(found), _cells(found), _rows(found), _verified(found), _repairs(found), _counterparts(found)]
    title = f"What makes the gap: {found.record['data']['train']['path'] or 'rows given from Python'}"
    return render_findings(found.record, title, lead, [section for section in sections if section])


def _title(name: str) -> str:
    return TITLES.get(name, name)


def _gap(found: Findings) -> Section:
    frames = found.tested.frames
    texts = [
        f"Explained is {found.explainer.metric.replace('_', ' ')}. The tables are fairlearn's, of decisions on the "
        f"{found.tested.where}. Negative numbers below mean that the gap falls."
    ]
    if found.tested.where == "validation rows" and found.repairs:
        texts.append(
            "Repairs were chosen on these rows, so their gaps flatter them. Give --test for rows of their own."
        )
    return Section(
        "The gap",
        texts,
        tables=[
            rate_table(frames["as given"], "Rates of the model as given."),
            gap_table({name: gaps(frame) for name, frame in frames.items()}, "Gaps, as given and after repairs."),
            Table(("model", "accuracy"), [(name, float(frame.overall["accuracy"])) for name, frame in frames.items()]),
        ],
    )


def _cells(found: Findings) -> Section:
    tables = []
    for concept, part in found.explainer.summary().groupby("concept", sort=False):
        rows: list[list[Cell]] = [
            [
                f"{row.group}, label {_told(found, row.y)}",
                row.rows,
                1e4 * row.mean,
                row.total,
                _share(row.falls),
                row.lift,
            ]
            for row in part.itertuples()
        ]
        head = ("group and label", "rows", "mean change, 1/10,000", "all at once", "share that helps", "lift")
        tables.append(Table(head, rows, f"If it were {_title(str(concept))}."))
    texts = [
        "What each kind of training row does to the gap. Lift says how much more often than others these rows are "
        "among the hundredth that helps most: above 1, the cause lies here. All at once is a sum of single changes, "
        "and overshoots."
    ]
    return Section("Which rows make it", texts, tables=tables)


def _rows(found: Findings) -> Section:
    e, examples = found.explainer, []
    for name, scores in e.scores_.items():
        order = np.argsort(np.where(np.isnan(scores.change_N), np.inf, scores.change_N), kind="stable")
        for i in order[:MOST_EXAMPLES].tolist():
            row = found.rows[i]
            told = ", ".join(f"{column}: {row.data[column]}" for column in found.columns)
            what = f"{_title(name)}: {scores.change_N[i]:+.5f}"
            if np.isfinite(scores.low_N[i]):
                what += f" ({scores.low_N[i]:+.5f} to {scores.high_N[i]:+.5f})"
            examples.append(Example(f"label {_told(found, e.rows_.y[i])}, {e.rows_.group[i]}; {told}", what, row.where))
    texts = [
        "Predicted change of the gap, with a 95 % interval over the validation rows. A row here is a cause of the gap, "
        "not a mistake: whether its label or value is wrong, somebody who knows must say."
    ]
    return Section("The rows that would help most", texts, examples=examples)


def _verified(found: Findings) -> Section:
    points = {_title(name): (t.predicted.tolist(), t.actual.tolist()) for name, t in found.verified.items()}
    rows: list[list[Cell]] = []
    for name, table in found.verified.items():
        fit = _agreement(table)
        rows.append([_title(name), len(table), fit["correlation"], fit["slope"], fit["cosine"]])
    how = {"across": "predicted change of the gap", "up": "actual change", "name": "verified"}
    chart = Chart(
        "One row changed, and refitted",
        pairs(points, title="Predicted against actual change", **how),
        "Rows from all places of the ranking, each changed alone.",
    )
    table = Table(("if it were", "refits", "correlation", "slope", "cosine"), rows, "1 is perfect.")
    return Section("Whether predictions come true", charts=[chart], tables=[table])


def _repairs(found: Findings) -> Section | None:
    if not found.repairs:
        return None
    charts, tables = [], []
    for number, (name, repair) in enumerate(found.repairs.items()):
        kept = [repair.start, *repair.kept]
        count = [step.in_all for step in kept]
        lines = {
            "predicted": (count, [step.predicted for step in kept]),
            "actual": (count, [step.actual for step in kept]),
            "decisions": (count, [step.decisions for step in kept]),
        }
        svg = curves(
            lines,
            across="training rows changed",
            up="gap on the validation rows",
            title="Gap by rows changed",
            name=f"repair{number}",
            limits=(0, None),
        )
        told = f"{repair.end.in_all} rows; it ended: {repair.stopped}."
        charts.append(Chart(f"Repair: {_title(name)}", svg, told))
        body: list[list[Cell]] = [
            [f"{step.in_all}", step.rows, step.predicted, step.actual, step.decisions, step.accuracy, step.why]
            for step in (repair.start, *repair.steps)
        ]
        body[0][-1] = "start"
        head = ("rows in all", "rows", "predicted gap", "actual gap", "of decisions", "accuracy", "what became of it")
        tables.append(Table(head, body, f"Batches: {_title(name)}."))
    texts = [
        "Rows were changed in batches, the model refitted and all predicted anew. A batch stays if the gap fell and "
        "the accuracy held; otherwise it is taken back. This is advice: DATA is as it was. Changing the group or the "
        "label of people in the data that decide over them is a matter of law.",
    ]
    return Section("What repairs would do", texts, charts, tables)


def _counterparts(found: Findings) -> Section | None:
    rows: list[list[Cell]] = [
        [_title(name), made.distance, made.real_distance, made.told_apart]
        for name, made in found.explainer.quality_.items()
        if made is not None
    ]
    if not rows:
        return None
    text = (
        "What the model was asked about are made-up rows, and nobody's. They should lie as near to real rows as real "
        "rows to each other, and no classifier should tell them from real ones of that group and label (AUC 0.5)."
    )
    head = ("if it were", "distance to the nearest real row", "of real rows", "AUC")
    return Section("Whether the counterparts look real", [text], tables=[Table(head, rows)])


def _agreement(table: pd.DataFrame) -> dict[str, float | None]:
    """How far predicted and actual changes agree; None where all are the same."""
    x, y = table.predicted.to_numpy(), table.actual.to_numpy()
    if len(x) < 2 or not x.std() or not y.std():
        return {"correlation": None, "slope": None, "cosine": None}
    return {
        "correlation": float(np.corrcoef(x, y)[0, 1]),
        "slope": float(np.polyfit(x, y, 1)[0]),
        "cosine": float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)),
    }


def _share(value: float) -> str:
    return "missing" if np.isnan(value) else percent(value)


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {name: value.item() if hasattr(value, "item") else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


# Tables --------------------------------------------------------------------------------------------------------------


def scored_rows(found: Findings) -> list[dict[str, Any]]:
    """Every training row with its predicted changes; None where it has no counterpart."""
    e = found.explainer
    frame = e.changes_.astype(object).where(e.changes_.notna(), None)
    told = frame.rename(columns={name: f"{name}_change" for name in e.scores_}).to_dict("records")
    return [
        {"where": row.where, "group": str(e.rows_.group[i]), "label": _told(found, e.rows_.y[i]), **told[i]}
        for i, row in enumerate(found.rows)
    ]


def edits_of(found: Findings, concept: str) -> list[dict[str, Any]]:
    """Say what a repair would change, in its order: the advice; labels as the data have them."""
    return [
        {"where": found.rows[edit["row"]].where, **edit, **{key: _told(found, edit[key]) for key in ("y", "new_y")}}
        for edit in _plain(found.repairs[concept].edits)
    ]


def _told(found: Findings, code: Any) -> Any:
    """Label as the data have it, of its code."""
    return None if code is None else found.labels[int(code)]


def edited_rows(found: Findings, concept: str, label: str) -> list[dict[str, Any]]:
    """Training rows as a repair would have them; columns that it does not touch keep their values.

    A group that is made of several columns is written to them as the group has it that the row is moved to.
    """
    repair, e = found.repairs[concept], found.explainer
    of_group = {name: [row.data[c] for c in found.group] for name, row in zip(e.rows_.group, found.rows, strict=True)}
    rows, taken = [dict(row.data) for row in found.rows], set()
    puts = repair.rows
    gone = set() if e.puts_[concept] else set(repair.edits["row"].tolist())
    place = np.cumsum([i not in gone for i in range(len(rows))]) - 1
    for i in repair.edits["row"].tolist():
        if i in gone:
            taken.add(i)
            continue
        rows[i][label] = _told(found, puts.y[place[i]])
        rows[i] |= dict(zip(found.group, of_group[puts.group[place[i]]], strict=True))
        for column in found.columns:
            new, old = puts.X[column].iloc[place[i]], e.rows_.X[column].iloc[i]
            if new != old and not (pd.isna(new) and pd.isna(old)):
                rows[i][column] = new.item() if hasattr(new, "item") else new
    return [row for i, row in enumerate(rows) if i not in taken]
