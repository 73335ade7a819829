"""Which rows to label and what became of those labelled, for the report and for summary.json."""

from collections import Counter
from typing import Any

import numpy as np

from amends.fair._tables.gaps import gap_table, gaps, rate_table
from amends.fair.fis import Asked
from amends.report._text import percent
from amends.report.findings import Cell, Chart, Section, Table, render_findings
from amends.report.scatter import scatter

MOST_ROWS, MOST_COLUMNS = 20, 3


def summary(found: Asked) -> dict[str, Any]:
    """Gaps and rates before and after, what was asked for and what came back."""
    fates = Counter(row["fate"] for row in found.judged)
    told: dict[str, Any] = {
        "rows_asked_for": len(found.query),
        "labels_judged": len(found.judged),
        **{name: fates[name] for name in ("kept", "rejected", "rolled back")},
        "rolled_back": None if found.update is None else found.update.rolled_back,
        "labels_spent": found.history[-1]["labels"],
        "rows_to_train_on": len(found.labelled),
        "accuracy": {"start": found.history[0]["accuracy"], "now": found.history[-1]["accuracy"]},
        "disparity": {"start": found.history[0]["disparity"], "now": found.history[-1]["disparity"]},
        "by_label": [
            {
                "positive": str(name),
                "gaps_before": gaps(found.before[name]),
                "gaps": gaps(frame),
                "by_group": [
                    dict(zip(("group", *frame.by_group.columns), row, strict=True)) for row in _by_group(frame)
                ],
            }
            for name, frame in found.after.items()
        ],
    }
    if found.query:
        for name in ("acc_agreement", "fair_agreement"):
            told[f"median_{name}"] = float(np.median(getattr(found.sampler, f"{name}_")))
    return told


def page(found: Asked) -> str:
    """Render the report."""
    parts = [_back(found), _asked(found), _groups(found), _rounds(found), _limits(found)]
    pool = found.record["data"].get("pool", found.record["data"]["labelled"])["path"]
    return render_findings(
        found.record, f"Rows to label in {pool or 'rows given from Python'}", _lead(found), [p for p in parts if p]
    )


def _lead(found: Asked) -> str:
    start, now = found.history[0], found.history[-1]
    metric = found.sampler.metric.replace("_", " ")
    said = f"On the validation rows the model is right in {percent(now['accuracy'])}, and the {metric} gap between "
    said += f"groups is {now['disparity']:.3f}. "
    if now is not start:
        said += f"It began with {percent(start['accuracy'])} and {start['disparity']:.3f}; since then "
        said += (
            f"{now['labels'] - start['labels']:,} labels were bought and {now['trained_on'] - start['trained_on']:,} "
        )
        said += "of them are trained on. "
    if found.query:
        said += f"{len(found.query):,} rows are asked for next."
    return said


def _back(found: Asked) -> Section | None:
    if found.update is None:
        return None
    of, counts = found.update, Counter(row["fate"] for row in found.judged)
    if not len(of.kept) and not found.sampler.keep_rejected:
        text = "No label that came back lowers both the loss and the gap, so the model stays as it was."
    elif of.rolled_back:
        text = (
            "Trained on these labels, the model would lose more accuracy than allowed, or widen the gap: the round was "
        )
        text += "rolled back, and the model stays as it was. The labels are spent."
    else:
        text = "The model was trained on "
        text += "all labels that came back" if found.sampler.keep_rejected else "the labels that help"
        if found.sampler.guard_tol is None:
            text += ". No guard was asked for: the table says what that did to the model."
        else:
            text += ", and is no worse on the validation rows than allowed."
    rows: list[list[Cell]] = [
        ["accuracy", of.before.accuracy, of.after.accuracy],
        ["gap of decisions", of.before.disparity, of.after.disparity],
        ["half the squared gap of probabilities", of.before.smooth_disparity, of.after.smooth_disparity],
        ["rows trained on", of.before.trained_on, of.after.trained_on],
    ]
    tables = [
        Table(("fate", "labels"), list(counts.items()), "Kept: with its true label the row lowers loss and gap."),
        Table(("on the validation rows", "before", "with these labels"), rows),
    ]
    return Section("Labels that came back", [text], tables=tables)


def _asked(found: Asked) -> Section | None:
    if not found.query:
        return None
    sampler, query = found.sampler, found.query
    both = sampler.acc_influence_, sampler.fair_influence_
    chosen = sampler.chosen_
    svg = scatter(
        "influence",
        {"pool": both, "asked for": (both[0][chosen], both[1][chosen])},
        ("influence on the loss", "influence on the gap"),
        "What each row of the pool is expected to do",
        f"{len(chosen)} of {len(both[0])} rows are asked for. Below 0 a quantity falls.",
    )
    expected = Counter(str(row["expected"]) for row in query)
    sure = sampler.fair_agreement_
    text = (
        f"Of the {len(both[0]):,} rows of the pool, {int(((both[0] <= 0) & (both[1] < 0)).sum()):,} are expected to "
        "lower the gap and not to raise the loss. If the validation rows are drawn again, the median row asked for is "
        f"still said to lower the gap in {percent(float(np.median(sure)))} of the draws, and not to raise the loss in "
        f"{percent(float(np.median(sampler.acc_agreement_)))}. {int((sure < 0.8).sum()):,} rows are said to lower the "
        "gap in fewer than 80 %."
    )
    shown = [name for name in query[0] if name in found.sampler.feature_names_in_][:MOST_COLUMNS]
    keys = ("acc_influence", "acc_agreement", "fair_influence", "fair_agreement")
    body: list[list[Cell]] = [
        [str(row["pool_row"]), str(row["expected"]), *(row[k] for k in keys), *(str(row[name]) for name in shown)]
        for row in query[:MOST_ROWS]
    ]
    return Section(
        "Rows to label next",
        [text],
        [Chart("What each row is expected to do", svg, "With the label it is expected to have; below 0 is better.")],
        [
            Table(("expected label", "rows asked for"), list(expected.most_common())),
            Table(
                ("row", "expected", "on the loss", "sure", "on the gap", "sure", *shown),
                body,
                f"The first {len(body)} of {len(query):,} rows; all are in the file query.",
            ),
        ],
    )


def _groups(found: Asked) -> Section:
    tables, many = [], len(found.after) > 1
    for name, frame in found.after.items():
        before = found.before[name]
        tables.append(rate_table(frame, f"The model as it is now; positive: {name}."))
        sides = {"before": gaps(before), "now": gaps(frame)} if found.update else {"now": gaps(frame)}
        tables.append(gap_table(sides, f"Positive: {name}." if many else "As fairlearn defines them."))
    return Section("Groups, on the validation rows", ["Only these rows show a group."], tables=tables)


def _rounds(found: Asked) -> Section:
    body: list[list[Cell]] = [
        [
            "start" if line["number"] == 0 else str(line["number"]),
            line["labels"],
            line["kept"],
            "rolled back" if line["rolled_back"] else "",
            line["trained_on"],
            line["accuracy"],
            line["disparity"],
        ]
        for line in found.history
    ]
    head = ("round", "labels spent", "kept", "", "trained on", "accuracy", "gap")
    return Section("Rounds", tables=[Table(head, body)])


def _limits(found: Asked) -> Section:
    texts = [
        "Influence is to first order and on few rows: it says what a small step does, not what a round does. What a "
        "round does is measured on the same validation rows: after many rounds a separate test set has the last word.",
        "The rows kept are chosen, and so not like the population: estimate no prevalence or calibration by them.",
    ]
    if len(found.sampler.groups_) < 2:
        texts.insert(0, "There is one group, so nothing can be said of a gap.")
    return Section("What this does not say", texts)


def _by_group(frame: Any) -> list[list[Any]]:
    return [[str(group), *(float(value) for value in row)] for group, row in frame.by_group.iterrows()]
