"""What became of the promises on other rows: rates by group before and after, gaps by every notion, with intervals.

All of it follows from how many rows there are of each group, label, decision of the base, and fate (0 or 1, decided so;
2, abstained), so that intervals cost the same for a thousand rows and a million. Shapes: G groups, S draws.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from amends.maths.arrays import FloatArray, IntArray
from amends.maths.disparity import NOTIONS

NUM_DRAWS = 2000
LEVEL = 0.95
TINY = 1e-12


class Promise(NamedTuple):
    """A promise, and what came of it."""

    what: str
    group: Any
    """None of a promise about all groups."""
    limit: float
    value: float
    """NaN where no row says anything of it."""
    low: float
    high: float
    """Interval of 95 %, by the Bayesian bootstrap over rows."""

    @property
    def kept(self) -> bool:
        """Whether the value is within the limit."""
        return bool(self.value <= self.limit + 1e-12)

    @property
    def verdict(self) -> str:
        """Whether it is kept, and whether these rows are enough to say so."""
        if np.isnan(self.value):
            return "no rows to tell"
        if self.kept:
            return "kept" if self.high <= self.limit else "kept, but within chance of being broken"
        return "broken" if self.low > self.limit else "broken, but within chance of being kept"


@dataclass(frozen=True, eq=False)
class Kept:
    """Measured on rows that the rule was not made from; rates are shares of 1, NaN where no row is counted."""

    groups: list[Any]
    rates: dict[str, FloatArray]
    """By group, (G,): see `rates_of`."""
    gaps: dict[str, dict[str, float]]
    """By notion, the gap "before", "after" (over whole groups: what is promised) and "decided" (rows decided only)."""
    promises: list[Promise]

    @property
    def all_kept(self) -> bool:
        """Whether every promise is kept on these rows; not, if they tell nothing of one."""
        return all(promise.kept for promise in self.promises)


def count(code_N: IntArray, label_N: IntArray, base_N: NDArray[Any], fate_N: IntArray, num_groups: int) -> FloatArray:
    """Rows by group, label, base decision and fate, (G, 2, 2, 3)."""
    place_N = ((code_N * 2 + label_N) * 2 + np.asarray(base_N, dtype=np.int64)) * 3 + fate_N
    return np.bincount(place_N, minlength=num_groups * 12).reshape(num_groups, 2, 2, 3).astype(np.float64)


def rates_of(row_G223: FloatArray) -> dict[str, FloatArray]:
    """Rates of each group, (..., G), from counts or shares (..., G, 2, 2, 3).

    "accepted", "true positive" and "false positive" are over the whole group, abstained rows being not accepted;
    those that end in "of decided" are over the rows that are decided.
    """
    by_label = row_G223.sum(axis=-2)  # (..., G, label, fate)
    before = row_G223.sum(axis=-1)  # (..., G, label, base)
    size, decided = by_label.sum(axis=(-2, -1)), by_label[..., :2].sum(axis=(-2, -1))
    label = by_label.sum(axis=-1)
    found = {
        "base error": _ratio(before[..., 0, 1] + before[..., 1, 0], size),
        "error of decided": _ratio(by_label[..., 0, 1] + by_label[..., 1, 0], decided),
        "abstained": _ratio(by_label[..., 2].sum(axis=-1), size),
        "abstained of label 1": _ratio(by_label[..., 1, 2], label[..., 1]),
        "abstained of label 0": _ratio(by_label[..., 0, 2], label[..., 0]),
        "base accepted": _ratio(before[..., 1].sum(axis=-1), size),
        "accepted": _ratio(by_label[..., 1].sum(axis=-1), size),
        "accepted of decided": _ratio(by_label[..., 1].sum(axis=-1), decided),
    }
    for name, y in (("true positive", 1), ("false positive", 0)):
        found |= {
            f"base {name}": _ratio(before[..., y, 1], label[..., y]),
            name: _ratio(by_label[..., y, 1], label[..., y]),
            f"{name} of decided": _ratio(by_label[..., y, 1], by_label[..., y, :2].sum(axis=-1)),
        }
    return found


def measure(
    row_G223: FloatArray,
    groups: list[Any],
    notion: str,
    eps: float,
    cap_G: FloatArray,
    allowed: Any,
    sigma: tuple[float, float, float],
    random_state: Any = None,
) -> Kept:
    """Measure every promise.

    Parameters
    ----------
    row_G223 : counts, as of `count`.
    allowed : function of the base's error rates, (..., G), that returns those allowed; they are measured on these rows.
    random_state : int, RandomState or None
        Of the draws: shares of rows in each group are Dirichlet with the counts, plus one imagined row spread over all
        twelve cells (Rubin 1981), so that what was never seen is not held for impossible.
    """
    rng = check_random_state(random_state)
    drawn_SG = [rng.dirichlet(rows.reshape(-1) + 1 / 12, NUM_DRAWS) for rows in row_G223]
    drawn_SG223 = np.stack(drawn_SG, axis=1).reshape(NUM_DRAWS, len(groups), 2, 2, 3)
    seen, drawn = rates_of(row_G223), rates_of(drawn_SG223)
    # "base true positive" is before, "true positive" after, "true positive of decided" after, of those decided.
    forms = {"before": "base {}", "after": "{}", "decided": "{} of decided"}
    gaps = {str(name): {form: _gap(seen, name, text) for form, text in forms.items()} for name in NOTIONS}
    promises = [_promised_gap(f"gap, {notion.replace('_', ' ')}", eps, seen, drawn, columns_of(notion))]
    for k, column in enumerate(("abstained", "abstained of label 1", "abstained of label 0")):
        if sigma[k] < 1:
            promises.append(_promised_gap(f"difference of {column}", sigma[k], seen, drawn, [column]))
    excess_G, excess_SG = (of["error of decided"] - allowed(of["base error"]) for of in (seen, drawn))
    for g, group in enumerate(groups):
        low, high = _interval(drawn["abstained"][:, g])
        promises.append(Promise("abstained", group, float(cap_G[g]), float(seen["abstained"][g]), low, high))
    for g, group in enumerate(groups):
        low, high = _interval(excess_SG[:, g])
        promises.append(Promise("error above what is allowed", group, 0.0, float(excess_G[g]), low, high))
    return Kept(groups, seen, gaps, promises)


def columns_of(notion: str, form: str = "{}") -> list[str]:
    """Names of the rates that a notion compares, as in `rates_of`."""
    rates = {
        "demographic_parity": ["accepted"],
        "equal_opportunity": ["true positive"],
        "equalized_odds": ["true positive", "false positive"],
    }[notion]
    return [form.format(rate) for rate in rates]


def _gap(rates: dict[str, FloatArray], notion: str, form: str) -> float:
    """Largest difference of two groups in any of the notion's rates; NaN if one of these tells nothing."""
    return widest(rates, columns_of(notion, form))


def widest(rates: dict[str, FloatArray], columns: list[str]) -> float:
    """Largest difference of two groups in any of these rates; NaN if one of them tells nothing."""
    return float(np.max([spread(rates[name]) for name in columns]))


def spread(rate_G: FloatArray) -> float:
    """Return the largest difference of two groups; groups without a rate are left out, and of one alone there is none.

    A single group has a gap of 0 from itself.
    """
    there = rate_G[np.isfinite(rate_G)]
    return float(there.max() - there.min()) if there.size >= min(2, len(rate_G)) else float("nan")


def _promised_gap(
    what: str, limit: float, seen: dict[str, FloatArray], drawn: dict[str, FloatArray], columns: list[str]
) -> Promise:
    """Largest gap of two groups in these rates, with an interval that holds for all pairs of groups at once.

    The pair that lies furthest apart is picked by the noise too, so its own interval would call equal groups unequal.
    Each gap gets as many of its standard errors as the largest of all gaps is off by in `LEVEL` of the draws.
    """
    value = widest(seen, columns)
    if np.isnan(value) or len(seen[columns[0]]) < 2:
        return Promise(what, None, limit, value, value, value)
    apart, error, most_S = [], [], np.zeros(NUM_DRAWS)
    for name in columns:
        for first, second in combinations(np.flatnonzero(np.isfinite(seen[name])).tolist(), 2):
            gap = seen[name][first] - seen[name][second]
            off_S = np.nan_to_num(drawn[name][:, first] - drawn[name][:, second] - gap)
            apart.append(abs(gap))
            error.append(max(float(off_S.std()), TINY))
            most_S = np.maximum(most_S, np.abs(off_S) / error[-1])
    times = float(np.quantile(most_S, LEVEL))
    ends = [(gap - times * of, gap + times * of) for gap, of in zip(apart, error, strict=True)]
    return Promise(what, None, limit, value, max(0.0, *(low for low, _ in ends)), min(1.0, max(e[1] for e in ends)))


def _interval(value_S: FloatArray) -> tuple[float, float]:
    low, high = np.nanquantile(value_S, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    return np.asarray(np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0))
