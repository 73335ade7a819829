"""What a row might have been: of another label, of another group, with another value in a column, or not there.

A concept is a function of rows. It returns what may stand in their place: rows of the same number and order, or a list
of such, of which each counts an equal share. An empty list leaves the rows out. Any function of this kind will do:

    def younger(rows):
        return replace(rows, X=rows.X.assign(age=rows.X["age"] - 10))

Shapes: N rows, F numbers that stand for a row where distances are taken.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import pairwise_distances_argmin_min, roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.utils import check_random_state

from amends.fair._concept_influence.columns import columns_of, is_number, table_like
from amends.fair._tables.table import encoder
from amends.maths.arrays import FloatArray

Transport = Literal["nearest", "ot", "column"]
MOST_CANDIDATES, MOST_COUPLED, MOST_FITTED = 5000, 1000, 50_000
"""Rows of a cell that others are mapped to; that optimal transport couples; that a model of a column is fitted to."""
MOST_COMPARED, MOST_NEAR, FEWEST_COMPARED = 1000, 20_000, 20


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of training data."""

    X: Any
    """Data frame, or float array (N, D)."""
    y: NDArray[Any]
    group: NDArray[Any]
    """Name of each row's group, (N,)."""
    has: NDArray[np.bool_] | None = None
    """Of counterparts: False where there is none, as the other group has no such row. None: all have one."""
    like: NDArray[np.bool_] | None = None
    """Of counterparts: which rows of the data they should look like. None: those of the same group and label."""
    fixed: tuple[Any, ...] = ()
    """Of counterparts: columns that were set, and so tell of no likeness."""

    def __len__(self) -> int:
        return len(self.y)

    def take(self, which: Any) -> "Rows":
        """Take some of the rows, by number or mask."""
        X = self.X.iloc[which] if isinstance(self.X, pd.DataFrame) else self.X[which]
        return Rows(X, self.y[which], self.group[which], None if self.has is None else self.has[which])

    def put(self, place_n: NDArray[np.int64], other: "Rows") -> "Rows":
        """Rows of which these (n,) are others; both of all N rows."""
        X = self.X
        if other.X is not self.X:  # another label or group alone leaves the table as it is
            columns, new = columns_of(self.X), columns_of(other.X)
            for name, values in columns.items():
                columns[name] = values.astype(np.result_type(values, new[name]))
                columns[name][place_n] = new[name][place_n]
            X = table_like(columns, self.X)
        y, group = self.y.copy(), self.group.copy()
        y[place_n], group[place_n] = other.y[place_n], other.group[place_n]
        return Rows(X, y, group)


Concept = Callable[[Rows], Rows | Sequence[Rows]]


def counterparts(concept: Concept, rows: Rows) -> list[Rows]:
    """Make what may stand in the place of rows.

    Raises
    ------
    ValueError : a concept that returns another number of rows, or something else.
    """
    found = concept(rows)
    puts = [found] if isinstance(found, Rows) else list(found)
    for put in puts:
        if not isinstance(put, Rows) or len(put) != len(rows) or len(put.X) != len(rows):
            raise ValueError(f"a concept must return Rows, or a list of them, as many as it got ({len(rows)}).")
    return puts


# The concepts -------------------------------------------------------------------------------------------------------


def label_flip(to: Any = None) -> Concept:
    """Give each row the other label; of several classes each other one; or `to`, for rows that have it not."""

    def flipped(rows: Rows) -> list[Rows]:
        classes = np.unique(rows.y)
        if to is not None:
            if to not in classes:
                raise ValueError(f"to={to!r}: no label of the rows, which have {classes[:10].tolist()}.")
            return [replace(rows, y=np.full_like(rows.y, to), has=rows.y != to)]
        code_N = np.searchsorted(classes, rows.y)
        return [replace(rows, y=classes[(code_N + step) % len(classes)]) for step in range(1, len(classes))]

    return flipped


def removal() -> Concept:
    """Leave each row out."""
    return lambda rows: []


def group_transport(
    method: Transport = "nearest", *, to: Any = None, columns: Sequence[Any] = (), random_state: Any = None
) -> Concept:
    """Ask what each row would be, had it come from another group: its counterpart in each other group, of its label.

    Parameters
    ----------
    method : {"nearest", "ot", "column"}, default "nearest"
        "nearest": the real row of the other group that is nearest, in scaled columns. "ot": the mean of the rows that
        the optimal transport of the one group to the other couples it with (POT, the barycentric map); of columns of
        words, the row that it is coupled with most. "column": the row itself, with the other group's commonest value in
        `columns`.
    to : optional
        The one group that is asked about. Rows of it have no counterpart.
    columns : names, or numbers of an array's columns
        Columns that say the group: they count in no distance, and get the other group's value.
    random_state : int, RandomState or None
        Of large cells, 5,000 rows are drawn to choose from, and 1,000 of each side are coupled; the others move as the
        one of these does that is nearest.

    Source: the paper trains a W-GAN for this; these are the substitutes of its reviewers' question, without one.
    """
    if method not in ("nearest", "ot", "column"):
        raise ValueError(f"method={method!r}: unknown. Choose one of nearest, ot, column.")

    def moved(rows: Rows) -> list[Rows]:
        rng = check_random_state(random_state)
        names = sorted(set(rows.group.tolist()), key=lambda name: (isinstance(name, str), name))
        if len(names) < 2 or (to is not None and to not in names):
            raise ValueError(f"group_transport needs another group to ask about: the rows have {names}, to={to!r}.")
        if method == "column" and not len(columns):
            raise ValueError("group_transport('column') needs the columns that say the group: give columns=.")
        number_N = np.array([names.index(name) for name in rows.group.tolist()])
        space_NF = None if method == "column" else _space(rows.X, columns)(rows.X)
        asked = [names.index(to)] * len(names) if to is not None else None
        found = []
        for step in range(1, 2 if asked else len(names)):
            target_N = np.full(len(rows), asked[0]) if asked else (number_N + step) % len(names)
            found.append(_moved(rows, names, number_N, target_N, space_NF, method, columns, rng))
        return found

    return moved


def set_column(
    column: Any, value: Any, *, dependents: Sequence[Any] = (), draws: int = 1, random_state: Any = None
) -> Concept:
    """Set a column, and let columns that depend on it follow.

    Parameters
    ----------
    column : name, or number of an array's column
    value : a value, or a function of the column's values (N,)
    dependents : columns that follow, in this order
        Each by a model (gradient boosting) of it given all columns that do not depend, and those that followed before.
        A number keeps its distance to what the model expects of its row; a word stays with the chance min(1, q / p), p
        and q its chances before and after, and is else drawn from what gained chance (the maximal coupling).
    draws : int, default 1
        Counterparts of each row; more than one only says more where words are drawn.
    random_state : int, RandomState or None
    """
    if column in dependents or draws < 1:
        raise ValueError(
            f"draws={draws}, dependents={list(dependents)}: expected 1 or more, and not the column itself."
        )

    def changed(rows: Rows) -> list[Rows]:
        rng = check_random_state(random_state)
        before = columns_of(rows.X)
        for name in (column, *dependents):
            if name not in before:
                raise ValueError(f"set_column: there is no column {name!r}; there are {list(before)[:20]}.")
        old = before[column]
        new = np.asarray(value(old) if callable(value) else np.full(len(rows), value))
        if is_number(old) and not is_number(new):
            raise ValueError(f"set_column: {value!r} is no number, which the column {column!r} holds.")
        near_N = np.abs(old - np.median(new)) <= 0.1 * np.std(old) if is_number(old) else np.isin(old, new)
        found = []
        for _ in range(draws):
            # 30.5 in a column of whole numbers stays 30.5.
            after = {**before, column: new.astype(np.result_type(old, new) if is_number(old) else object)}
            known = [name for name in before if name not in dependents]
            for name in dependents:
                after[name] = _followed(before, after, known, name, rng)
                known.append(name)
            found.append(replace(rows, X=table_like(after, rows.X), like=near_N, fixed=(column,)))
        return found

    return changed


def named(given: Concept | str) -> Concept:
    """Take a concept, or the one of a name: label, removal, or group, which is that of nearest rows."""
    if not isinstance(given, str):
        return given
    made = {"label": label_flip, "removal": removal, "group": lambda: group_transport(random_state=0)}
    if given not in made:
        raise ValueError(f"concept {given!r}: unknown. Choose of {', '.join(made)}, or give a function of rows.")
    return made[given]()


# How much a counterpart looks like a real row -----------------------------------------------------------------------


class Quality(NamedTuple):
    """How far what a concept makes up resembles real rows of the same group and label, or with the same value."""

    distance: float
    """Median distance to the nearest real row, in scaled columns."""
    real_distance: float
    """The same of real rows, to the nearest other one."""
    told_apart: float | None
    """AUC of a classifier between the two, cross-validated; 0.5: cannot be told apart. None: fewer than 20 rows."""


def quality(rows: Rows, puts: Sequence[Rows], random_state: Any = None) -> Quality | None:
    """Compare counterparts with real rows; None if the concept leaves the features as they are."""
    puts = [put for put in puts if put.X is not rows.X]
    if not puts:
        return None
    rng, space = check_random_state(random_state), _space(rows.X, puts[0].fixed)
    made, real = [], []
    for put in puts:
        has_N = np.ones(len(rows), bool) if put.has is None else put.has
        cells = sorted({(str(g), str(y)) for g, y in zip(put.group[has_N], put.y[has_N], strict=True)})
        for cell in cells:
            here = np.flatnonzero(has_N & (put.group.astype(str) == cell[0]) & (put.y.astype(str) == cell[1]))
            like_N = put.like if put.like is not None else rows.group.astype(str) == cell[0]
            there = np.flatnonzero(like_N & (rows.y.astype(str) == cell[1]))
            num = min(len(here), len(there), MOST_COMPARED // (len(cells) * len(puts)))
            made.append(space(put.take(rng.permutation(here)[:num]).X))
            real.append(space(rows.take(rng.permutation(there)[:num]).X))
    all_NF = space(rows.take(rng.permutation(len(rows))[:MOST_NEAR]).X)
    made_nF, real_nF = np.vstack(made), np.vstack(real)
    if not len(made_nF):
        return None
    distance = float(np.median(pairwise_distances_argmin_min(made_nF, all_NF)[1]))
    sample_nF = all_NF[:MOST_COMPARED]
    apart = [_to_another(sample_nF[i : i + 100], all_NF, i) for i in range(0, len(sample_nF), 100)]
    auc = None
    if len(made_nF) >= FEWEST_COMPARED:
        # A counterpart and the real row that it comes from stand in one fold: else the one tells of the other.
        near_n = pairwise_distances_argmin_min(made_nF, real_nF)[0]
        model = HistGradientBoostingClassifier(max_iter=30, early_stopping=False, random_state=0)
        both_nF, which = np.vstack([made_nF, real_nF]), np.repeat([1, 0], len(made_nF))
        folds = GroupKFold(3, shuffle=True, random_state=rng.randint(2**31 - 1))
        of = np.concatenate([near_n, np.arange(len(real_nF))])
        p = cross_val_predict(model, both_nF, which, groups=of, cv=folds, method="predict_proba")
        auc = float(roc_auc_score(which, p[:, 1]))
    return Quality(distance, float(np.median(np.concatenate(apart))), auc)


def _to_another(sample_nF: FloatArray, all_NF: FloatArray, first: int) -> FloatArray:
    """Distance of rows, which are those of `all_NF` from `first` on, to the nearest that is another."""
    squared = (sample_nF**2).sum(axis=1)[:, None] + (all_NF**2).sum(axis=1) - 2 * sample_nF @ all_NF.T
    squared[np.arange(len(sample_nF)), first + np.arange(len(sample_nF))] = np.inf
    return np.asarray(np.sqrt(np.maximum(squared.min(axis=1), 0)))


def _space(X: Any, without: Sequence[Any]) -> Callable[[Any], FloatArray]:
    """Return what makes numbers of rows, so that distances mean something: scaled columns, words one-hot."""
    columns = [name for name in columns_of(X) if name not in without]
    if not columns:
        raise ValueError("no column is left to tell rows apart by: each says the group.")

    def table(of: Any) -> pd.DataFrame:
        values = {name: of_name for name, of_name in columns_of(of).items() if name in columns}
        return pd.DataFrame({str(name): v.astype(float) if is_number(v) else v for name, v in values.items()})

    scale = encoder(table(X)).fit(table(X))
    return lambda rows: np.asarray(scale.transform(table(rows)), dtype=float)


def _moved(
    rows: Rows,
    names: list[Any],
    number_N: NDArray[np.int64],
    target_N: NDArray[np.int64],
    space_NF: FloatArray | None,
    method: Transport,
    said_in: Sequence[Any],
    rng: Any,
) -> Rows:
    """Rows of each group and label moved to their target group."""
    columns, has_N = columns_of(rows.X), number_N != target_N
    columns = {name: values.astype(float) if values.dtype.kind in "iu" else values for name, values in columns.items()}
    after = {name: values.copy() for name, values in columns.items()}
    for own, target in sorted(set(zip(number_N.tolist(), target_N.tolist(), strict=True))):
        for label in np.unique(rows.y) if own != target else ():
            here = np.flatnonzero((number_N == own) & (target_N == target) & (rows.y == label))
            there = np.flatnonzero((number_N == target) & (rows.y == label))
            if not len(there):
                has_N[here] = False
            elif len(here) and method == "nearest" and space_NF is not None:
                there = np.sort(rng.permutation(there)[:MOST_CANDIDATES])
                chosen = there[pairwise_distances_argmin_min(space_NF[here], space_NF[there])[0]]
                for name, values in columns.items():
                    after[name][here] = values[chosen]
            elif len(here) and method == "ot" and space_NF is not None:
                _transport(columns, after, space_NF, here, there, rng)
        if own != target:
            here = np.flatnonzero((number_N == own) & (target_N == target))
            for name in said_in:
                values, counts = np.unique(columns[name][number_N == target], return_counts=True)
                after[name][here] = values[counts.argmax()]
    group = np.array([names[number] for number in target_N.tolist()], dtype=object)
    return Rows(table_like(after, rows.X), rows.y, group, has_N)


def _transport(
    columns: dict[Any, NDArray[Any]],
    after: dict[Any, NDArray[Any]],
    space_NF: FloatArray,
    here: NDArray[np.int64],
    there: NDArray[np.int64],
    rng: Any,
) -> None:
    """Move the rows `here` by the optimal transport to the rows `there`, in place."""
    import ot

    source, sink = (np.sort(rng.permutation(side)[:MOST_COUPLED]) for side in (here, there))
    plan_ST = ot.emd([], [], ot.dist(space_NF[source], space_NF[sink]), numItermax=1_000_000)
    plan_ST = plan_ST / plan_ST.sum(axis=1, keepdims=True)
    most_S = sink[plan_ST.argmax(axis=1)]
    near_n = pairwise_distances_argmin_min(space_NF[here], space_NF[source])[0]
    near_n[np.searchsorted(here, source)] = np.arange(len(source))  # each of its own, even if another is equal
    for name, values in columns.items():
        if values.dtype.kind == "f":
            shift_S = plan_ST @ values[sink] - values[source]
            new = values[here] + shift_S[near_n]
            after[name][here] = np.where(np.isfinite(new), new, values[most_S[near_n]])  # a missing number has no mean
        else:
            after[name][here] = values[most_S[near_n]]


def _followed(
    before: dict[Any, NDArray[Any]], after: dict[Any, NDArray[Any]], known: list[Any], name: Any, rng: Any
) -> NDArray[Any]:
    """Values of a column after those that it depends on have changed."""
    old = before[name]
    frames = [pd.DataFrame({str(key): of[key] for key in known}) for of in (before, after)]
    drawn = rng.permutation(len(old))[:MOST_FITTED]
    if is_number(old):
        model = make_pipeline(encoder(frames[0]), HistGradientBoostingRegressor(random_state=0))
        there = drawn[np.isfinite(old[drawn])]
        was, now = (of for of in map(model.fit(frames[0].iloc[there], old[there]).predict, frames))
        return np.asarray(old + now - was)
    texts, first, code_N = np.unique(old.astype(str), return_index=True, return_inverse=True)
    if len(texts) < 2:
        return old
    model = make_pipeline(encoder(frames[0]), HistGradientBoostingClassifier(random_state=0))
    model.fit(frames[0].iloc[drawn], code_N[drawn])
    p_NK, q_NK = (model.predict_proba(frame) for frame in frames)
    classes = model.classes_
    own_N = np.minimum(np.searchsorted(classes, code_N), len(classes) - 1)
    row_N = np.arange(len(old))
    stays_N = rng.uniform(size=len(old)) * p_NK[row_N, own_N] <= q_NK[row_N, own_N]
    gained_NK = np.maximum(q_NK - p_NK, 1e-12).cumsum(axis=1)
    drawn_N = (rng.uniform(size=len(old))[:, None] * gained_NK[:, -1:] > gained_NK).sum(axis=1)
    new_N = old[first[classes[np.minimum(drawn_N, len(classes) - 1)]]]  # as they stand in the column, not as text
    return np.where(stays_N, old, new_N)
