"""What was found of a rule and the priors around its target, for the report, the tables and summary.json."""

from typing import Any

import numpy as np

from amends.fair._drops.ambiguity import distance, worst_prior
from amends.fair._drops.prior_robust import worst_accuracy
from amends.fair._drops.table import text_of
from amends.fair._tables.gaps import gap_table, gaps, rate_table, rates
from amends.fair.drops import ADJUSTED, PLAIN, PriorRobust, rule_of
from amends.maths.arrays import FloatArray, IntArray
from amends.report.curves import curves
from amends.report.findings import Cell, Chart, Section, Table, render_findings
from amends.report.grids import shares

MOST_IN_CHART, POINTS, DRAWS = 12, 13, 100
BAND = (5, 95)
"""Percentiles of the draws that a band is made of."""


def unit(found: PriorRobust) -> str:
    """Name what delta is counted in."""
    return " nats" if found.model.divergence in ("kl", "reverse-kl") else ""


def deltas_of(found: PriorRobust) -> FloatArray:
    """Distances from 0 to where every prior is within reach, and those that were asked for."""
    target_C = found.model.target_prior_
    if found.model.divergence == "reverse-kl":  # there every class keeps some mass, however far
        furthest = 3 * max(1.0, *found.deltas)
    else:
        corners = np.eye(len(target_C))[target_C > 0]
        furthest = max(distance(corner_C, target_C, found.model.divergence) for corner_C in corners)
    return np.unique(np.concatenate([np.linspace(0, furthest, POINTS), found.deltas]))


def curve_rows(found: PriorRobust) -> list[dict[str, Any]]:
    """Least accuracy of each rule at each delta, and its band."""
    rows = []
    for name in found.recalls:
        for delta in deltas_of(found).tolist():
            value, low, high = worst_with_band(found, name, delta)
            rows.append({"rule": name, "delta": delta, "accuracy": value, "low": low, "high": high})
    return rows


def worst_with_band(found: PriorRobust, rule: str, delta: float) -> tuple[float, float, float]:
    """Least accuracy of a rule within delta, and the ends of its 90 % band.

    Recalls are drawn from what their rows leave open, Beta(right + 1/2, wrong + 1/2). The least of noisy numbers lies
    too low, and the least of draws around them twice so, unless one class is clearly the worst: so the band holds the
    draws' percentiles and those reflected at the value (Efron and Tibshirani 1993, the percentile and the basic
    interval), each of which fails where the other does not. How far the least of draws falls is told by recalls drawn
    together as far as noise alone sets them apart: by the recalls as they are it would be told too small.
    """
    target_C, divergence = found.model.target_prior_, found.model.divergence
    count_C = np.bincount(found.cell_N, minlength=len(found.cells.names))
    recall_C = np.nan_to_num(found.recalls[rule])

    def worst(of_C: FloatArray) -> float:
        return worst_accuracy(of_C, target_C, delta, divergence)

    def ends(of_C: FloatArray) -> FloatArray:
        rng, right_C = np.random.default_rng(found.record["seed"]), of_C * count_C
        drawn_BC = rng.beta(right_C + 0.5, count_C - right_C + 0.5, (DRAWS, len(count_C)))
        return np.asarray(np.percentile([worst(drawn_C) for drawn_C in drawn_BC], BAND))

    value, (low, high), together_C = worst(recall_C), ends(recall_C), _together(recall_C, count_C)
    fall = worst(together_C) - ends(together_C)[0]
    low, high = np.clip([min(low, 2 * value - high), max(high, value + fall)], 0, 1)
    return value, float(low), float(high)


def _together(recall_C: FloatArray, count_C: IntArray) -> FloatArray:
    """Recalls moved to their mean by the share of their spread that is noise (James and Stein 1961)."""
    mean = float(recall_C @ count_C / count_C.sum())
    spread = float(count_C @ (recall_C - mean) ** 2)
    noise = (np.count_nonzero(count_C) - 1) * mean * (1 - mean)
    return np.asarray(mean + (recall_C - mean) * max(0.0, 1 - noise / spread) if spread > 0 else recall_C)


def recall_rows(found: PriorRobust) -> list[dict[str, Any]]:
    """Recall of each class, or class in a group, by each rule."""
    count_C = np.bincount(found.cell_N, minlength=len(found.cells.names)).tolist()
    return [
        {"class": text_of(cell), "rows": count_C[c], **{rule: float(of[c]) for rule, of in found.recalls.items()}}
        for c, cell in enumerate(found.cells.names)
    ]


def summary(found: PriorRobust) -> dict[str, Any]:
    """Say of each rule how accurate it is: here, under the target, at worst within each delta, and by class."""
    model, target_C = found.model, found.model.target_prior_
    told: dict[str, Any] = {
        "rows": len(found.label_N),
        "classes": [str(name) for name in found.classes],
        "groups": None if found.groups is None else [str(name) for name in found.groups.names],
        "divergence": model.divergence,
        "delta": found.deltas[0],
        "binds": bool(model.multiplier_ > 0),
        "temperature": model.temperature_,
        "rules": {},
    }
    for name, recall_C in found.recalls.items():
        worst = int(np.where(target_C > 0, recall_C, np.inf).argmin())
        told["rules"][name] = {
            "accuracy": float((found.decided[name] == found.label_N).mean()),
            "under_target": worst_accuracy(recall_C, target_C, 0.0),
            "worst_within": {
                f"{delta:g}": worst_accuracy(recall_C, target_C, delta, model.divergence) for delta in found.deltas
            },
            "worst_recall": float(recall_C[worst]),
            "worst_class": text_of(found.cells.names[worst]),
        }
        if found.groups is not None and len(found.classes) == 2:
            told["rules"][name]["gaps"] = gaps(_rates(found, name))
    return told


def lead(found: PriorRobust) -> str:
    """Say in a sentence or two what came of it."""
    rules, delta = summary(found)["rules"], found.deltas[0]
    plain, ours = rules[PLAIN], rules[rule_of(delta)]
    within = f"{delta:g}"
    value, low, high = worst_with_band(found, rule_of(delta), delta)
    told = f"Under any prior within {within}{unit(found)} of the target, accuracy is estimated to be at least "
    told += f"{value:.3f} (90 % band {low:.3f} to {high:.3f}); the model as it is has "
    told += f"{plain['worst_within'][within]:.3f}"
    if delta:
        told += f", adjusted to the target alone {rules[ADJUSTED]['worst_within'][within]:.3f}"
    return f"{told}. On the rows as they come it is {ours['accuracy']:.3f} instead of {plain['accuracy']:.3f}."


def page(found: PriorRobust, curve: list[dict[str, Any]]) -> str:
    """Render the report; `curve` as `curve_rows` gives it."""
    path = found.record["data"]["table"]["path"]
    parts = [_near(found, curve), _classes(found), _groups(found), _worst(found), _rule(found), _applied(found)]
    title = f"Decisions under other priors: {path or 'rows given from Python'}"
    return render_findings(found.record, title, lead(found), [part for part in parts if part])


def _near(found: PriorRobust, curve: list[dict[str, Any]]) -> Section:
    delta = f"{found.deltas[0]:g}"
    lines = {}
    for name in found.decided:
        of = [row for row in curve if row["rule"] == name]
        lines[name] = [[row[key] for row in of] for key in ("delta", "accuracy", "low", "high")]
    svg = curves(
        lines,
        across=f"delta{unit(found)}",
        up="least accuracy",
        title="Least accuracy within delta of the target",
        name="delta",
        places={"the rule's delta": found.deltas[0]},
    )
    texts = [
        "A prior says how common each class is. The model met one prior in training; at work another one may come. Of "
        "all priors within delta of the target, this is the accuracy under the worst one: at delta 0 that under the "
        "target, at the right end the recall of the worst class.",
        "Every row was decided by weights that were tuned on other rows. Bands are to hold the true value in 90 % of "
        "tables of as many rows of each class; a least value of few rows lies too low on average, so they reach higher "
        "up than down where classes are about even.",
    ]
    rules = summary(found)["rules"]
    head = ["rule", "accuracy here", "under the target", *(f"within {value:g}" for value in found.deltas)]
    body: list[list[Cell]] = [
        [name, of["accuracy"], of["under_target"], *of["worst_within"].values(), of["worst_recall"], of["worst_class"]]
        for name, of in rules.items()
    ]
    table = Table([*head, "worst recall", "of"], body)
    caption = f"The dotted line is delta {delta}{unit(found)}, which the rule was tuned for."
    return Section("Under every prior near the target", texts, [Chart("By delta", svg, caption)], [table])


def _kind(found: PriorRobust) -> str:
    return "class" if found.groups is None else "class, group"


def _classes(found: PriorRobust) -> Section:
    rows, charts, ours = recall_rows(found), [], rule_of(found.deltas[0])
    body: list[list[Cell]] = [list(row.values()) for row in rows]
    if len(rows) <= MOST_IN_CHART:
        of = {name: [row[name] for row in rows] for name in dict.fromkeys((PLAIN, ADJUSTED, ours))}
        svg = shares(
            of,
            [row["class"] for row in rows],
            name="recall",
            title="Recall by class",
            across=_kind(found),
            up="recall",
        )
        charts.append(Chart("Before and after", svg, "Share of the rows of each class that are decided rightly."))
    return Section("By class", charts=charts, tables=[Table((_kind(found), "rows", *found.decided), body)])


def _rates(found: PriorRobust, name: str) -> Any:
    """Rates of every group by fairlearn, with the positive class as 1."""
    assert found.groups is not None
    names_N = np.array([str(group) for group in found.groups.names], dtype=object)[found.groups.code_N]
    of = found.positive
    return rates((found.label_N == of).astype(int), (found.decided[name] == of).astype(int), names_N)


def _groups(found: PriorRobust) -> Section | None:
    if found.groups is None or len(found.classes) != 2:
        return None
    ours = rule_of(found.deltas[0])
    frames = {name: _rates(found, name) for name in (PLAIN, ours)}
    text = (
        f'Rates and gaps are those of fairlearn; "{found.classes[found.positive]}" is the positive label. The '
        "rule makes the worst class of the worst group better; it does not ask that groups be equal."
    )
    tables = [gap_table({name: gaps(_rates(found, name)) for name in found.decided})]
    tables += [rate_table(frame, name) for name, frame in frames.items()]
    return Section("Groups", [text], tables=tables)


def _worst(found: PriorRobust) -> Section:
    model, delta, ours = found.model, found.deltas[0], rule_of(found.deltas[0])
    body: list[list[Cell]] = []
    priors = {
        name: worst_prior(1 - found.recalls[name], model.target_prior_, delta, model.divergence)
        for name in dict.fromkeys((PLAIN, ours))
    }
    for c, cell in enumerate(found.cells.names):
        body.append([text_of(cell), float(model.target_prior_[c]), *(float(g_C[c]) for g_C in priors.values())])
    head = (_kind(found), "target", *(f"worst for the model {name}" if name == PLAIN else name for name in priors))
    text = f"Among the priors within {delta:g}{unit(found)} of the target, these are the ones that hurt most."
    return Section("The worst prior", [text], tables=[Table(head, body)])


def _rule(found: PriorRobust) -> Section:
    model = found.model
    columns = (model.train_prior_, model.target_prior_, model.weights_, model.factors_)
    body: list[list[Cell]] = [
        [text_of(cell), *(float(of_C[c]) for of_C in columns)] for c, cell in enumerate(found.cells.names)
    ]
    texts = ["Multiply each probability by its factor and take the class with the largest. The weights sum to 1."]
    if found.groups is not None:
        texts = ["Multiply by the factors, add up over the groups, and take the class with the largest sum."]
    if found.groups is not None and (by_class_K := getattr(model, "class_factors_", None)) is not None:
        each = ", ".join(f"{name} {value:.3f}" for name, value in zip(found.classes, by_class_K, strict=True))
        texts = [
            "The probabilities tell classes alone. So each class is taken to divide among the groups as in these rows, "
            f"and what is left of the factors is one for each class: {each}. Probabilities of each class in each group "
            "(CLASS,GROUP) give the rule more to go by."
        ]
    if model.temperature_ != 1:
        texts.append(f"Before that, probabilities are raised to the power 1 / {model.temperature_:.3f} and normalised.")
    if found.deltas[0] and model.multiplier_ == 0:
        texts.append(
            f"At the end no more than {distance(model.weights_, model.target_prior_, model.divergence):.3f}"
            f"{unit(found)} were of use to the adversary: a larger delta changes nothing, the classes are as even as "
            "weights can make them."
        )
    return Section("The rule", texts, tables=[Table((_kind(found), "trained on", "target", "weight", "factor"), body)])


def _applied(found: PriorRobust) -> Section | None:
    if found.applied is None:
        return None
    count = {str(name): 0 for name in found.classes}
    for row in found.applied:
        count[str(row["robust_label"])] += 1
    body: list[list[Cell]] = [[name, num, num / len(found.applied)] for name, num in count.items()]
    text = f"{len(found.applied):,} rows were decided; each has robust_label and its rescaled probabilities."
    return Section("The other table", [text], tables=[Table(("decided as", "rows", "share"), body)])
