"""Answers of several models as columns of numbers, and lines of an assessment from their means.

Shape suffixes: N items, K columns.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from amends.assessment.ask import BITS, Findings
from amends.assessment.attacks import EASY
from amends.assessment.axes import ROLES, Estimate, Measure, distinct_words, estimate, is_degenerate, measure
from amends.assessment.plan import Plan
from amends.evaluation.intervals import RESAMPLES, Direction
from amends.maths.arrays import FloatArray

FORGET_SETS = ("forget", "forget_sampled", *(f"forget_int{bits}" for bits in BITS))
OF_TEXT: Mapping[str, Callable[[str], float]] = {"degenerate": is_degenerate, "distinct_words": distinct_words}
"""Numbers of an answer's text."""
ONE_ROW = "One row has no interval."
Columns = Mapping[str, FloatArray]


class Table:
    """Answers as columns of numbers: one for each model, aligned by item."""

    def __init__(self, plan: Plan, found: Findings) -> None:
        self.plan, self.found = plan, found
        self.roles = [role for role in ROLES if role in found.asked]
        self.by_place = {
            role: {(a["item_set"], a["variant"], a["id"]): a for a in asked.answers}
            for role, asked in found.asked.items()
        }
        self.ids: dict[str, list[str]] = {
            **{name: [p.id for p in plan.forget] for name in FORGET_SETS},
            "near": [p.id for p in plan.near],
            "far": [p.id for p in plan.far],
            "general": [p.id for p in plan.general],
            "holdout": [p.id for p in plan.holdout],
        }

    def column(self, role: str, item_set: str, name: str, variant: str = EASY) -> FloatArray:
        """Numbers of a model's answers, NaN where it was not asked; all NaN for a model that there is not."""
        of: Callable[[str], float] | None = OF_TEXT.get(name)
        places = self.by_place.get(role, {})
        found = (places.get((item_set, variant, id_)) for id_ in self.ids[item_set])
        values = (None if a is None else of(a["generated"]) if of else a.get(name) for a in found)
        return np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)

    def columns(self, sets: Sequence[str], name: str, variant: str = EASY) -> Columns:
        """`column` of every model, several sets after one another."""
        return {r: np.concatenate([self.column(r, s, name, variant) for s in sets]) for r in self.roles}

    def scores(self, role: str, item_set: str, name: str) -> FloatArray:
        """Numbers of a model's right answers, NaN where there is none; all NaN for a model that there is not."""
        asked = self.found.asked.get(role)
        found = asked.scores.get(item_set) if asked else None
        return np.array([item.get(name, np.nan) for item in found or [{}] * len(self.ids[item_set])], dtype=np.float64)

    def variants(self) -> list[str]:
        """Names of all variants of a question to forget that some model was asked, the plain one first."""
        every = (a for asked in self.found.asked.values() for a in asked.answers)
        return list(dict.fromkeys(a["variant"] for a in every if a["item_set"] == "forget"))


def apart(parts: Columns) -> dict[str, FloatArray]:
    """Columns of several sets of items as columns of all of them, NaN at the others'."""
    ends = np.cumsum([0, *map(len, parts.values())])
    found = {name: np.full(ends[-1], np.nan) for name in parts}
    for (name, values), start in zip(parts.items(), ends, strict=False):
        found[name][start : start + len(values)] = values
    return found


def explained(meaning: str, after: Estimate | None) -> str:
    """Meaning of a line, and why a value that there is has no interval."""
    one = after is not None and np.isfinite(after.value) and np.isnan(after.interval.low)
    return f"{meaning} {ONE_ROW}" if one else meaning


def rng_of(plan: Plan, metric: str) -> np.random.Generator:
    """Give each metric a stream of its own, so that none changes with the others that are there."""
    return np.random.default_rng([plan.seed, zlib.crc32(metric.encode())])


def mean_of(
    table: Table,
    axis: str,
    metric: str,
    better: Direction,
    meaning: str,
    columns: Columns,
    missing: str | None = None,
    *,
    shares: bool = True,
) -> Measure:
    """Line of a mean that every model has, of numbers within 0 and 1 unless said otherwise."""
    return combined(
        table, axis, metric, better, meaning, columns, lambda role: ([role], lambda m: m[:, 0]), missing, shares=shares
    )


def difference(
    table: Table, axis: str, metric: str, meaning: str, columns: Columns, *, rise: bool, missing: str | None = None
) -> Measure:
    """Line of how far a mean of shares rose, or fell, from the model before, over the same items; lower is better."""
    sign = 1.0 if rise else -1.0
    of: Callable[[FloatArray], FloatArray] = lambda m: sign * (m[:, 0] - m[:, 1])  # noqa: E731
    return combined(
        table, axis, metric, "lower", meaning, columns, lambda role: ([role, "before"], of), missing, shares=True
    )


def combined(
    table: Table,
    axis: str,
    metric: str,
    better: Direction,
    meaning: str,
    columns: Columns,
    how: Callable[[str], tuple[list[str], Callable[[FloatArray], FloatArray]] | None],
    missing: str | None = None,
    *,
    paired: bool = True,
    shares: bool = False,
) -> Measure:
    """Line of a function of means: for each model, of which columns and which function (None: it has no value).

    `paired` and `shares` are those of `amends.assessment.axes.estimate`.
    """
    values: dict[str, Estimate] = {}
    for role in table.roles:
        formula = how(role)
        if formula is None or any(name not in columns for name in formula[0]):
            continue
        names, of = formula
        both_NK = np.column_stack([columns[name] for name in names])
        resamples = RESAMPLES if role == "after" else 1
        rng = rng_of(table.plan, metric)
        values[role] = estimate(both_NK, of, rng, resamples, paired=paired, shares=shares)
    before, reference = (values[role].value if role in values else None for role in ("before", "reference"))
    after = values.get("after")
    return measure(
        axis, metric, better, explained(meaning, after), after, before=before, reference=reference, missing=missing
    )
