"""What the reports say of groups: rates of each, and gaps between them, by fairlearn."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from fairlearn.metrics import MetricFrame, count, false_positive_rate, selection_rate, true_positive_rate
from sklearn.metrics import accuracy_score

from amends.report.findings import Cell, Table

RATES = {
    "rows": count,
    "accuracy": accuracy_score,
    "selection rate": selection_rate,
    "true positive rate": true_positive_rate,
    "false positive rate": false_positive_rate,
}


def rates(y_true: Any, y_pred: Any, group_N: Any) -> MetricFrame:
    """Rates of every group; labels and predictions are 0 and 1."""
    return MetricFrame(metrics=RATES, y_true=y_true, y_pred=y_pred, sensitive_features=np.asarray(group_N).astype(str))


def gaps(frame: MetricFrame) -> dict[str, float]:
    """Largest difference between two groups under each notion, as fairlearn defines them."""
    apart = frame.difference()
    return {
        "demographic_parity": float(apart["selection rate"]),
        "equal_opportunity": float(apart["true positive rate"]),
        "equalized_odds": float(max(apart["true positive rate"], apart["false positive rate"])),
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
