"""Whether what is predicted of rows comes true: one row at a time, and many of them, a few at a time.

Predictions are right for small changes of the data. Many rows at once overshoot, and past 0 the gap has another sign;
so rows are changed in batches, the model is refitted and all is predicted anew, and a batch that did not do what it was
changed for is taken back.

Shapes: N rows, n of them that are left.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from amends.fair._concept_influence.concepts import Rows
from amends.maths.influence import settle

if TYPE_CHECKING:
    from amends.fair._concept_influence.estimator import ConceptInfluence

SMALLEST, PATIENCE = 8, 10
"""A batch that fails is tried again with half of its rows, until it is this many times smaller; then its rows are set
aside. So many of these in a row end the repair."""
Why = Literal["kept", "the gap did not fall", "the accuracy fell too far", "a class would have no row"]


@dataclass(frozen=True)
class Step:
    """A batch of rows that was changed: what was foreseen, and what came of it on the validation rows."""

    rows: int
    in_all: int
    """Rows changed until then, with these."""
    predicted: float
    """The smooth gap after it, as it was predicted."""
    actual: float
    decisions: float
    """The gap of the decisions."""
    accuracy: float
    why: Why
    """Why it was kept, or taken back."""


@dataclass(frozen=True, eq=False)
class Repair:
    """What was changed, and what came of it. It is advice: the data that were given are as they were."""

    concept: str
    start: Step
    steps: list[Step]
    edits: pd.DataFrame
    """Of each row that was changed, in their order: row, step, group, y, new_group, new_y, predicted."""
    stopped: str
    rows: Rows
    """The training rows as they would be."""
    estimator: Any
    """The model fitted to them."""

    @property
    def kept(self) -> list[Step]:
        """Steps that were not taken back."""
        return [step for step in self.steps if step.why == "kept"]

    @property
    def end(self) -> Step:
        """What holds after the last step that was kept."""
        return (self.kept or [self.start])[-1]

    @property
    def predicted(self) -> list[float]:
        """Smooth gaps after the steps that were kept, as they were predicted."""
        return [step.predicted for step in self.kept]

    @property
    def actual(self) -> list[float]:
        """Smooth gaps after the steps that were kept."""
        return [step.actual for step in self.kept]


def repair(
    found: "ConceptInfluence",
    concept: str,
    *,
    max_rows: float = 0.05,
    step: float = 0.01,
    accuracy_tol: float = 0.005,
    told: Callable[[float], None] | None = None,
) -> Repair:
    """Change the rows whose change is predicted to lower the gap most, in batches, each checked by a refit.

    A batch ends where the gap is predicted to be 0. It is kept if the gap of the refitted model falls and the accuracy
    stays within `accuracy_tol` of what it was at the start, both on the validation rows; else it is taken back and half
    of it tried. The rows of a batch that cannot be made smaller are set aside: a few rows that weigh much may cost more
    accuracy than all others. After a batch that was kept, the next one is twice as large. No row is changed twice.

    Parameters
    ----------
    concept : one of those that were explained
        Of several counterparts of a row, the one that is predicted to lower the gap most.
    max_rows, step : float
        Share of the training rows to change in all, and at once.
    accuracy_tol : float
        Share of the validation rows.
    told : function of the share that is done, optional

    Raises
    ------
    ValueError : shares that are none.
    """
    if not (0 < step <= 1 and 0 < max_rows <= 1 and accuracy_tol >= 0):
        raise ValueError(f"max_rows={max_rows}, step={step}, accuracy_tol={accuracy_tol}: expected shares of 1.")
    puts, N = found.puts_[concept], len(found.rows_)
    most, full = max(1, round(max_rows * N)), max(1, round(step * N))
    least, size, failed = max(1, full // SMALLEST), full, 0
    rows, estimator, there_N, changed_N = found.rows_, found.estimator_, np.ones(N, bool), np.zeros(N, bool)
    aside_N = np.zeros(N, bool)
    start = Step(0, 0, found.disparity_, found.disparity_, found.hard_disparity_, found.accuracy_, "kept")
    last, steps, edits, stopped = start, [], [], "as many rows were changed as may be"
    while (left := most - last.in_all) > 0:
        if not (~changed_N & ~aside_N).any():
            stopped = "no row is left"
            break
        change_N, which_N = _ranked(found, estimator, rows, puts, there_N, np.flatnonzero(~changed_N & ~aside_N))
        batch = _batch(change_N, min(size, left), last.actual)
        if not len(batch):
            stopped = "no row is left whose change would lower the gap"
            break
        foreseen = max(0.0, last.actual + float(change_N[batch].sum()))
        new_rows, new_there_N = rows, there_N.copy()
        for number, put in enumerate(puts):
            new_rows = new_rows.put(batch[which_N[batch] == number], put)
        if not puts:
            new_there_N[batch] = False
        tried, done = _refitted(found, new_rows.take(new_there_N), last, len(batch), foreseen, start, accuracy_tol)
        steps.append(done)
        if done.why == "kept":
            for i in batch.tolist():
                new = (None, None) if not puts else (new_rows.group[i], new_rows.y[i])
                edits.append((i, len(steps), rows.group[i], rows.y[i], *new, change_N[i]))
            rows, there_N, estimator, last = new_rows, new_there_N, tried, done
            changed_N[batch] = True
            size, failed = min(2 * size, full), 0
        elif len(batch) > least:
            size = max(least, min(size, len(batch)) // 2)
        else:
            aside_N[batch] = True
            failed += 1
            if failed == PATIENCE:
                stopped = f"{failed} times in a row {done.why}, of {done.rows} rows each"
                break
        if told:
            told(last.in_all / most)
    names = ("row", "step", "group", "y", "new_group", "new_y", "predicted")
    frame = pd.DataFrame(edits, columns=names)
    return Repair(concept, start, steps, frame, stopped, rows.take(there_N), estimator)


def _ranked(
    found: "ConceptInfluence",
    estimator: Any,
    rows: Rows,
    puts: list[Rows],
    there_N: np.ndarray,
    open_n: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Predict what each row that may be changed does now, (N,), and by which counterpart; infinite of the others."""
    scorer, _ = found.scorer(estimator, rows.take(there_N))
    place_N = np.cumsum(there_N) - 1
    put = [Rows(p.take(open_n).X if p.X is not found.rows_.X else None, *_rest(p, open_n)) for p in puts]
    own = rows.take(open_n)
    put = [Rows(own.X, p.y, p.group, p.has) if p.X is None else p for p in put]  # another label: the very same features
    scores = scorer.score(own, put, place_N[open_n])
    change_N, which_N = np.full(len(rows), np.inf), np.zeros(len(rows), dtype=np.int64)
    each_Mn = np.where(np.isnan(scores.each_MN), np.inf, scores.each_MN) if puts else scores.change_N[None]
    change_N[open_n], which_N[open_n] = each_Mn.min(axis=0), each_Mn.argmin(axis=0)
    return change_N, which_N


def _rest(put: Rows, which: np.ndarray) -> tuple[Any, Any, Any]:
    return put.y[which], put.group[which], None if put.has is None else put.has[which]


def _batch(change_N: np.ndarray, size: int, gap: float) -> np.ndarray:
    """Rows to change at once: the most helpful ones, until the gap is predicted to be 0."""
    order = np.argsort(change_N, kind="stable")[:size]
    order = order[change_N[order] < 0]
    enough = int(np.searchsorted(-change_N[order].cumsum(), gap)) + 1
    return np.asarray(order[:enough])


def _refitted(
    found: "ConceptInfluence",
    rows: Rows,
    last: Step,
    num: int,
    foreseen: float,
    start: Step,
    accuracy_tol: float,
) -> tuple[Any, Step]:
    if len(np.unique(rows.y)) < len(found.classes_):
        return None, Step(num, last.in_all, foreseen, np.nan, np.nan, np.nan, "a class would have no row")
    tried = found.unfitted().fit(rows.X, rows.y)
    fitted, gap = found.gap(tried, len(rows))
    actual = gap.value(fitted.model)
    accuracy, decisions = found.decide(tried)
    why: Why = "kept"
    if actual >= last.actual:
        why = "the gap did not fall"
    elif accuracy < start.accuracy - accuracy_tol:
        why = "the accuracy fell too far"
    return tried, Step(num, last.in_all + num * (why == "kept"), foreseen, actual, decisions, accuracy, why)


def verify(found: "ConceptInfluence", concept: str, num: int) -> pd.DataFrame:
    """Change single rows and refit; see `ConceptInfluence.verify`."""
    scorer, scores = found.scorer_, found.scores_[concept]
    model, fitted, weight_N = scorer.fitted.model, scorer.fitted, scorer.weight_N
    inverse = scorer.inverse
    if inverse is None:
        inverse = model.inverse(scorer.x_NE, fitted.penalty, weight_N=weight_N)
    target_NK = fitted.targets(scorer.code_N)
    ground = settle(model, scorer.x_NE, target_NK, inverse, fitted.penalty, weight_N=weight_N)
    known = np.flatnonzero(np.isfinite(scores.change_N))
    order = known[np.argsort(scores.change_N[known], kind="stable")]
    chosen = np.unique(order[np.linspace(0, len(order) - 1, min(num, len(order))).astype(int)])
    before, actual = found.gap_.value(ground), []
    puts = [put.take(chosen) for put in found.puts_[concept]]
    x_MnE = [scorer.features(put.X) for put in puts]
    code_Mn = [scorer.codes(put.y) for put in puts]
    for n, i in enumerate(chosen.tolist()):
        there = [m for m, put in enumerate(puts) if put.has is None or put.has[n]]
        x_nE = np.vstack([scorer.x_NE, *(x_MnE[m][[n]] for m in there)])
        codes = [code_Mn[m][[n]] for m in there]
        target_nK = np.vstack([target_NK, *(fitted.targets(code) for code in codes)])
        weight_n = np.concatenate([weight_N, *(scorer.weights(code) / len(there) for code in codes)])
        weight_n[i] = 0
        weight_n *= len(x_nE) / len(weight_N)  # the objective divides by the rows it is given, not by N
        moved = settle(ground, x_nE, target_nK, inverse, fitted.penalty, weight_N=weight_n)
        actual.append(found.gap_.value(moved) - before)
    return pd.DataFrame({"row": chosen, "predicted": scores.change_N[chosen], "actual": actual})
