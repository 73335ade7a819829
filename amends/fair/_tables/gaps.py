"""What the reports say of groups: rates of each, and gaps between them, by fairlearn."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from fairlearn.metrics import MetricFrame, count, selection_rate
from sklearn.metrics import accuracy_score

from amends.report.findings import Cell, Table


def _accepted(label: int) -> Callable[[Any, Any], float]:
    """Rate of positive decisions among rows of a label; NaN, where fairlearn says 0, if there is no such row."""

    def rate(y_true: Any, y_pred: Any) -> float:
        there = np.asarray(y_true) == label
        return float(np.asarray(y_pred)[there].mean()) if there.any() else float("nan")

    return rate


RATES = {
    "rows": count,
    "accuracy": accuracy_score,
    "selection rate": selection_rate,
    "true positive rate": _accepted(1),
    "false positive rate": _accepted(0),
}


def rates(y_true: Any, y_pred: Any, group_N: Any) -> MetricFrame:
    """Rates of every group; labels and predictions are 0 and 1."""
    return MetricFrame(metrics=RATES, y_true=y_true, y_pred=y_pred, sensitive_features=np.asarray(group_N).astype(str))


def gaps(frame: MetricFrame) -> dict[str, float]:
    """Largest difference between two groups under each notion, as fairlearn defines them.

    Groups without a rate are left out; NaN where fewer than two have one. Of equalized odds both rates must be known.
    """
    rate_GM = frame.by_group
    apart = rate_GM.max() - rate_GM.min()
    if len(rate_GM) > 1:
        apart = apart.where(rate_GM.notna().sum() > 1)
    return {
        "demographic_parity": float(apart["selection rate"]),
        "equal_opportunity": float(apart["true positive rate"]),
        "equalized_odds": float(apart[["true positive rate", "false positive rate"]].max(skipna=False)),
    }


def rate_table(frame: MetricFrame, caption: str = "") -> Table:
    """Rates as a table, a row a group."""
    names = [name for name in RATES if name != "rows"]
    body: list[list[Cell]] = [
        [str(group), int(row["rows"]), *(float(row[name]) for name in names)]
        for group, row in frame.by_group.iterrows()
    ]
    return Table(("group", "rows", *names), body, caption)


def gap_table(found: Mapping[str, Mapping[str, float]], caption: str = "") -> Table:
    """Gaps of several models side by side, a row a notion."""
    notions = list(dict.fromkeys(notion for gaps_of in found.values() for notion in gaps_of))
    body = [[notion.replace("_", " "), *(of.get(notion) for of in found.values())] for notion in notions]
    return Table(("gap between groups", *found), body, caption)
