"""The program of FAN: how many rows of each cell to decide for, against, or not at all, so that promises are kept.

Every coefficient of the row-wise program depends only on what is known of a row: its group and its label, or its group
and the bin of its score. So rows of a cell are exchangeable, and the program has two unknowns a cell however many rows
there are: P rows decided 1 and N rows decided 0 (stage 1 of FAN, arXiv 2310.06205, after that step).

Shapes: G groups, R cells that a rule can tell apart, V unknowns, 3 fates: decided 0, decided 1, abstained.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, eye_array

from amends.io.errors import InputError
from amends.maths.arrays import FloatArray
from amends.maths.disparity import Notion

Mode = Literal["scorebins", "surrogate"]
SlackForm = Literal["relative", "toward_one"]
SurrogateCut = Literal["matched", "half"]
Objective = Literal["errors", "abstention"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
Aim = Literal["errors", "disagreement", "abstention", "order", "excess", "worst excess", "eps"]
ORDER: dict[Objective, tuple[Aim, ...]] = {
    "errors": ("errors", "disagreement", "abstention", "order"),
    "abstention": ("abstention", "disagreement", "errors", "order"),
}
"""What is made least first, and what among equals; without the rest the solver abstains at its whim.

The last one puts 1 to high scores and 0 to low ones where cells are equal in everything else.
"""
MOST_INTEGERS = 64
"""Unknowns up to which the program is solved in whole rows; above it is solved in shares of rows, then rounded."""
SLACK = 1e-8
"""Rows, as a share of all, by which a first aim may be missed for the next."""
TOLERANCE = 1e-6
"""What it may be missed by at least: above the solver's own tolerance."""
UNDECIDED = {1: "it ran out of time", 3: "it has no bound", 4: "it failed on the numbers"}


class Infeasible(InputError):
    """The promises cannot be kept together; `min_abstain` has caps by group under which they can.

    They are the caps asked for, raised where they are too low by as little as will do.
    """

    def __init__(self, message: str, min_abstain: dict[object, float]) -> None:
        super().__init__(message, min_abstain)
        self.min_abstain = min_abstain

    def __str__(self) -> str:
        return str(self.args[0])


class Stuck(RuntimeError):
    """The solver came to no answer, for reasons of its own."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Rows of each group in each cell."""

    size_GR: FloatArray
    positive_GR: FloatArray
    """Rows of them with label 1; of score bins an estimate."""
    base_R: FloatArray
    """Rows of a cell that the base classifier decides 1."""
    place_R: FloatArray
    """Place of a cell among those of its group by score, 0 to 1; all 0 where cells know no score."""

    @property
    def size_R(self) -> FloatArray:
        """Rows of each cell."""
        return np.asarray(self.size_GR.sum(axis=0))

    @property
    def size_G(self) -> FloatArray:
        """Rows of each group."""
        return np.asarray(self.size_GR.sum(axis=1))

    @property
    def positive_G(self) -> FloatArray:
        """Rows of each group with label 1."""
        return np.asarray(self.positive_GR.sum(axis=1))


@dataclass(frozen=True, eq=False)
class Promises:
    """What a rule must keep to."""

    notion: Notion
    eps: float
    """Largest gap between two groups, over whole groups: a row that is abstained on counts as not accepted."""
    cap_G: FloatArray
    """Largest share of a group that is abstained on."""
    error_G: FloatArray
    """Largest share of a group's decided rows that is decided wrongly."""
    sigma: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Largest difference of two groups' abstention: of all rows, of rows with label 1, with label 0."""


class Fates(NamedTuple):
    """How many rows of each cell are decided 0, decided 1 and abstained on."""

    fate_R3: FloatArray
    whole: bool
    """In whole rows by the program itself."""


def allowed_errors(error_G: FloatArray, slack_G: FloatArray, form: SlackForm) -> FloatArray:
    """Largest error rates: (1 + slack) e, or e + slack (1 - e) as in the authors' code; both are e at slack 0."""
    slack_G = np.minimum(slack_G, 1e9)  # infinite slack of no errors allows none
    raised_G = (1 + slack_G) * error_G if form == "relative" else error_G + slack_G - slack_G * error_G
    return np.minimum(raised_G, 1.0)


# In closed form, for a rule that sees the labels --------------------------------------------------------------------


def least_abstention(rate_G: FloatArray, error_G: FloatArray, eps: float) -> FloatArray:
    """Smallest abstention of each group with which demographic parity to `eps` can be kept.

    Parameters
    ----------
    rate_G : share of label 1 in each group.
    error_G : largest error rate of each, as of `allowed_errors`.

    Notes
    -----
    A group can be accepted from max(0, rate - a - error (1 - a)) with abstention a, to rate + min(error, 1 - rate): for
    less, its positives are abstained on or missed; for more, its negatives are accepted. Promises can be kept if and
    only if no group's least is above another's most by more than eps. No other knowledge can do better than labels.
    """
    need_G = rate_G - error_G - eps - _most_of_others(rate_G, error_G)
    room_G = 1 - error_G
    return np.clip(np.divide(need_G, room_G, out=np.zeros_like(need_G), where=room_G > 0), 0, 1)


def least_gap(rate_G: FloatArray, error_G: FloatArray, cap_G: FloatArray) -> float:
    """Smallest gap of demographic parity that abstention up to the caps can reach; arguments as `least_abstention`."""
    least_G = np.maximum(0, rate_G - cap_G - error_G * (1 - cap_G))
    return float(max(0.0, (least_G - _most_of_others(rate_G, error_G)).max()))


def _most_of_others(rate_G: FloatArray, error_G: FloatArray) -> FloatArray:
    """Of each group, the least of what the others can be accepted at most; of one group alone there is no such."""
    most_G = rate_G + np.minimum(error_G, 1 - rate_G)
    if len(most_G) == 1:
        return np.array([np.inf])
    first, second = np.sort(most_G)[:2]
    return np.where(np.arange(len(most_G)) == most_G.argmin(), second, first)


# As a program -------------------------------------------------------------------------------------------------------


def solve(cells: Cells, promises: Promises, objective: Objective = "errors", *, whole: bool = False) -> Fates | None:
    """Find the best rule; None if there is none.

    Parameters
    ----------
    objective : {"errors", "abstention"}, default "errors"
        Least errors among decided rows, then least disagreement with the base classifier, then least abstention; or
        least abstention, then disagreement, then errors.
    whole : bool, default False
        Count in whole rows, for cells of one group each: up to `MOST_INTEGERS` unknowns. Of more, or where only parts
        of rows can keep the promises, or the solver cannot tell, rows are rounded by the largest remainder: `whole` of
        the answer is then False, and a promise may be missed by less than a row a cell.

    Raises
    ------
    Stuck : the solver comes to no answer.
    """
    program = _Program(cells, promises)
    integers = whole and 2 * len(cells.size_R) <= MOST_INTEGERS
    try:
        if integers and (fate_R3 := program.least(ORDER[objective], True)) is not None:
            return Fates(fate_R3, True)
    except Stuck:
        pass  # of very many rows: numbers as large as these and a tolerance of one row do not go together
    fate_R3 = program.least(ORDER[objective], False)
    if fate_R3 is None:
        return None
    return Fates(_rounded(fate_R3, cells.size_R), False) if whole else Fates(fate_R3, False)


def least_caps(cells: Cells, promises: Promises) -> FloatArray:
    """Caps of abstention, (G,), under which there is a rule: those promised, raised where that is needed.

    The largest raise is made least, then the sum of all. With caps of 0: the least abstention that there is.
    """
    program = _Program(cells, promises)
    program.free("excess")
    raised_G = program.least_values(("worst excess", "excess"), "excess")
    return np.minimum(1.0, promises.cap_G + raised_G)


def least_eps(cells: Cells, promises: Promises) -> float:
    """Smallest gap that a rule can reach under all other promises; NaN if these cannot be kept at any."""
    program = _Program(cells, promises)
    program.free("eps")
    try:
        return float(program.least_values(("eps",), "eps")[0])
    except Infeasible:
        return float("nan")


def _rounded(fate_R3: FloatArray, size_R: FloatArray) -> FloatArray:
    """Whole rows of each fate that sum to the rows of the cell, by the largest remainder."""
    down_R3 = np.floor(fate_R3 + 1e-9)
    left_R = np.rint(size_R - down_R3.sum(axis=1))
    place_R3 = (down_R3 - fate_R3).argsort(axis=1, kind="stable").argsort(axis=1)
    return np.asarray(down_R3 + (place_R3 < left_R[:, None]))


class _Program:
    """Unknowns, limits and aims; all in rows, so that the solver's tolerance is one of rows.

    Unknowns: P and N of each cell; what they exceed the base's decisions by; excess of each group's abstention over its
    cap, and the worst of these; eps; highest and lowest rate of each gap that is limited. Excess and eps are fixed
    unless they are freed.
    """

    def __init__(self, cells: Cells, promises: Promises) -> None:
        G, R = cells.size_GR.shape
        self.cells, self.promises = cells, promises
        gaps = self._gaps()
        widths = {"P": R, "N": R, "more P": R, "more N": R, "excess": G, "worst excess": 1, "eps": 1}
        widths |= {"highest": len(gaps), "lowest": len(gaps)}
        starts = np.concatenate([[0], np.cumsum([*widths.values()])])
        self.at = {name: slice(a, b) for name, a, b in zip(widths, starts[:-1], starts[1:], strict=True)}
        self.num = int(starts[-1])
        self.low_V, self.high_V = np.zeros(self.num), np.ones(self.num)
        for name in ("P", "N", "more P", "more N"):
            self.high_V[self.at[name]] = cells.size_R
        self.high_V[self.at["excess"]] = self.high_V[self.at["worst excess"]] = 0.0
        self.low_V[self.at["eps"]] = self.high_V[self.at["eps"]] = promises.eps
        self.rows: list[tuple[dict[str, Any], FloatArray]] = []  # coefficients by unknown, and what they are below
        self._limit(gaps)

    def free(self, name: Literal["excess", "eps"]) -> None:
        """Let what was promised be found."""
        for part in (name, "worst excess") if name == "excess" else (name,):
            self.low_V[self.at[part]], self.high_V[self.at[part]] = 0.0, 1.0

    def _shares(self) -> tuple[FloatArray, FloatArray]:
        """Of a row of a cell, the share that is each group's, and the share that is each group's with label 1."""
        size_R = np.where(self.cells.size_R > 0, self.cells.size_R, 1.0)
        return self.cells.size_GR / size_R, self.cells.positive_GR / size_R

    def _gaps(self) -> list[tuple[FloatArray, FloatArray, FloatArray, float | None]]:
        """Rates whose spread over groups is limited: rows by P and by N, (G, R), divided by (G,); limit, None: eps."""
        share_GR, positive_GR = self._shares()
        size_G, positive_G = self.cells.size_G, self.cells.positive_G
        none_GR = np.zeros_like(share_GR)
        accepted = {
            "demographic_parity": [(share_GR, none_GR, size_G, None)],
            "equal_opportunity": [(positive_GR, none_GR, positive_G, None)],
            "equalized_odds": [
                (positive_GR, none_GR, positive_G, None),
                (share_GR - positive_GR, none_GR, size_G - positive_G, None),
            ],
        }[self.promises.notion]
        parts = ((share_GR, size_G), (positive_GR, positive_G), (share_GR - positive_GR, size_G - positive_G))
        decided = [(of, of, by, cap) for (of, by), cap in zip(parts, self.promises.sigma, strict=True) if cap < 1]
        return [*accepted, *decided]

    def _limit(self, gaps: Sequence[tuple[FloatArray, FloatArray, FloatArray, float | None]]) -> None:
        cells, promises = self.cells, self.promises
        G, R = cells.size_GR.shape
        share_GR, positive_GR = self._shares()
        one_R = eye_array(R)
        self.rows += [
            ({"P": one_R, "N": one_R}, cells.size_R),
            ({"P": one_R, "more P": -one_R}, cells.base_R),
            ({"N": one_R, "more N": -one_R}, cells.size_R - cells.base_R),
            # Decided rows of a group, and rows that exceed its cap.
            (
                {"P": -share_GR, "N": -share_GR, "excess": -np.diag(cells.size_G)},
                -(1 - promises.cap_G) * cells.size_G,
            ),
            ({"excess": eye_array(G), "worst excess": -np.ones((G, 1))}, np.zeros(G)),
            # No harm: errors <= allowed rate x decided rows.
            (
                {
                    "P": share_GR - positive_GR - promises.error_G[:, None] * share_GR,
                    "N": positive_GR - promises.error_G[:, None] * share_GR,
                },
                np.zeros(G),
            ),
        ]
        for k, (p_GR, n_GR, by_G, limit) in enumerate(gaps):
            pick_GK = np.zeros((G, len(gaps)))
            pick_GK[:, k] = by_G
            self.rows.append(({"P": p_GR, "N": n_GR, "highest": -pick_GK}, np.zeros(G)))
            self.rows.append(({"P": -p_GR, "N": -n_GR, "lowest": pick_GK}, np.zeros(G)))
            spread = {"highest": pick_GK[:1] * 0, "lowest": pick_GK[:1] * 0}
            spread["highest"][0, k], spread["lowest"][0, k] = 1.0, -1.0
            if limit is None:
                spread["eps"] = np.array([[-1.0]])
            self.rows.append((spread, np.array([0.0 if limit is None else limit])))

    def _aim(self, aim: Aim) -> FloatArray:
        share_GR, positive_GR = self._shares()
        cost_V = np.zeros(self.num)
        if aim == "errors":
            cost_V[self.at["P"]] = (share_GR - positive_GR).sum(axis=0)
            cost_V[self.at["N"]] = positive_GR.sum(axis=0)
        elif aim == "disagreement":
            cost_V[self.at["more P"]] = cost_V[self.at["more N"]] = 1.0
        elif aim == "abstention":
            cost_V[self.at["P"]] = cost_V[self.at["N"]] = -1.0
        elif aim == "order":
            cost_V[self.at["P"]], cost_V[self.at["N"]] = -self.cells.place_R, self.cells.place_R
        else:
            cost_V[self.at[aim]] = 1.0
        return cost_V

    def _matrix(self) -> tuple[coo_array, FloatArray]:
        values, places, limits, first = [], [], [], 0
        for parts, limit in self.rows:
            for name, matrix in parts.items():
                part = coo_array(matrix)
                values.append(part.data)
                places.append(np.stack([part.row + first, part.col + self.at[name].start]))
            limits.append(limit)
            first += len(limit)
        at = np.concatenate(places, axis=1)
        return coo_array((np.concatenate(values), (at[0], at[1])), shape=(first, self.num)), np.concatenate(limits)

    def _solved(self, aims: Sequence[Aim], integers: bool) -> FloatArray | None:
        """Make the aims least one after the other; each holds the ones before."""
        matrix, limit = self._matrix()
        whole_V = np.zeros(self.num)
        if integers:
            whole_V[self.at["P"]] = whole_V[self.at["N"]] = 1
        held = [LinearConstraint(matrix.tocsr(), -np.inf, limit)]
        found_V: FloatArray | None = None
        for aim in aims:
            cost_V = self._aim(aim)
            if found_V is not None and not cost_V.any():
                continue
            answer = milp(
                cost_V,
                integrality=whole_V,
                bounds=Bounds(self.low_V, self.high_V),
                constraints=held,
                options={"mip_rel_gap": 0.0},
            )
            if answer.status == 2 and found_V is None:
                return None
            if answer.x is None:
                why = UNDECIDED.get(answer.status, answer.message)
                raise Stuck(f"the solver found no rule with least {aim}: {why}.")
            found_V = np.asarray(answer.x)
            # In whole rows the aims are whole too, apart from those of groups, which are never asked for there.
            in_rows = aim in ("errors", "disagreement", "abstention")
            room = 0.5 if integers else max(TOLERANCE, SLACK * self.cells.size_R.sum() * in_rows)
            held.append(LinearConstraint(cost_V[None], -np.inf, float(cost_V @ found_V) + room))
        return found_V

    def least(self, aims: Sequence[Aim], integers: bool) -> FloatArray | None:
        """Rows of each cell by fate, (R, 3); None if no rule keeps the promises."""
        found_V = self._solved(aims, integers)
        if found_V is None:
            return None
        one_R, zero_R = (np.clip(found_V[self.at[name]], 0, self.cells.size_R) for name in ("P", "N"))
        if integers:
            one_R, zero_R = np.rint(one_R), np.rint(zero_R)
        zero_R = np.minimum(zero_R, self.cells.size_R - one_R)
        return np.stack([zero_R, one_R, self.cells.size_R - one_R - zero_R], axis=1)

    def least_values(self, aims: Sequence[Aim], name: str) -> FloatArray:
        """Values of an unknown."""
        found_V = self._solved(aims, False)
        if found_V is None:
            raise Infeasible("the promises cannot be kept at any value of this one.", {})
        return np.clip(found_V[self.at[name]], 0, 1)
