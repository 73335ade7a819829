"""What can be promised at all: abstention that a gap needs, the gap that abstention reaches, and caps that would do.

Shapes: G groups, C points of a curve.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from amends.fair._fan.program import Cells, Infeasible, Promises, least_abstention, least_caps, least_eps, least_gap
from amends.maths.arrays import FloatArray


@dataclass(frozen=True, eq=False)
class Curve:
    """What must be given up for what; NaN where nothing will do."""

    across: FloatArray
    """The gaps, or the caps of abstention, that were asked about, (C,)."""
    by_rule: FloatArray
    """What a rule of this kind needs, abstention by group (C, G), or reaches, the gap (C,), on the rows of `fit`."""
    by_labels: FloatArray
    """The same for a rule that sees the labels: no rule can do better."""
    groups: list[Any]


def abstention_needed(cells: Cells, promises: Promises, groups: list[Any], eps: Sequence[float]) -> Curve:
    """Smallest abstention of each group, (C, G), for each gap.

    By the rule, the largest of the groups' is made least, then their sum: caps that suffice together.
    """
    zero = replace(promises, cap_G=np.zeros(len(groups)))
    by_rule = [least_caps(cells, replace(zero, eps=float(value))) for value in eps]
    by_labels = [_bound(cells, replace(promises, eps=float(value))) for value in eps]
    return Curve(np.asarray(eps, dtype=float), np.array(by_rule), np.array(by_labels), groups)


def gap_reached(cells: Cells, promises: Promises, groups: list[Any], max_abstain: Sequence[float]) -> Curve:
    """Smallest gap, (C,), for each cap of abstention of every group; NaN where the other promises cannot be kept."""
    caps = [np.full(len(groups), float(value)) for value in max_abstain]
    by_rule = [least_eps(cells, replace(promises, cap_G=cap_G)) for cap_G in caps]
    by_labels = [0.0] * len(caps)  # of the other notions: the labels themselves have no gap
    if promises.notion == "demographic_parity":
        by_labels = [least_gap(cells.positive_G / cells.size_G, promises.error_G, cap_G) for cap_G in caps]
    return Curve(np.asarray(max_abstain, dtype=float), np.array(by_rule), np.array(by_labels), groups)


def infeasible(cells: Cells, promises: Promises, groups: list[Any]) -> Infeasible:
    """Make the error that names the caps which would do."""
    cap_G, bound_G = least_caps(cells, promises), _bound(cells, promises)
    caps = {group: _up(cap) for group, cap in zip(groups, cap_G.tolist(), strict=True)}
    told = f"Attainable: max_abstain of {_listed(caps)}; or a larger eps or slack."
    if (bound_G > promises.cap_G + 1e-9).any():
        told += f" Even a rule that saw the labels would need {_listed(dict(zip(groups, bound_G, strict=True)))}."
    return Infeasible(
        f"eps={promises.eps:g}: no rule has that small a gap in {promises.notion.replace('_', ' ')} and no more errors "
        f"with abstention up to {_listed(dict(zip(groups, promises.cap_G, strict=True)))}. {told}",
        caps,
    )


def _bound(cells: Cells, promises: Promises) -> FloatArray:
    """Abstention that no rule can do without; none for the other notions, which the labels themselves keep."""
    if promises.notion != "demographic_parity":
        return np.zeros(len(cells.size_G))
    return least_abstention(cells.positive_G / cells.size_G, promises.error_G, promises.eps)


def _listed(of: dict[Any, float]) -> str:
    return ", ".join(f"{_up(value):g} ({group})" for group, value in of.items())


def _up(share: float) -> float:
    """Round up to three digits, so that what is told is enough."""
    return min(1.0, float(np.ceil(round(share * 1000, 3)) / 1000))
