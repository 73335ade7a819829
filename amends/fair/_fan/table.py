"""Tables in and out of `amends fair fan`: what is learnt from, what is held out, and what becomes of each row.

Shapes: N rows of the table and the new ones behind them, G groups.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from amends.fair._fan.abstaining import GROUP, SCORE, AbstainingFairClassifier
from amends.fair._fan.kept import Kept, columns_of, count, rates_of, widest
from amends.fair._fan.rules import ABSTAINED
from amends.fair._fan.surrogates import with_columns
from amends.fair._tables.groups import Groups
from amends.fair._tables.table import binary, column, encoder, features, groups, numbers
from amends.io.errors import InputError
from amends.io.progress import track
from amends.io.rows import Row
from amends.maths.arrays import FloatArray, IntArray

TEST = "test"
CAPS = tuple(np.round(np.arange(0, 0.4001, 0.025), 3).tolist())
"""Caps of abstention at which the report shows what is to be had."""
NUM_GAPS = 9
"""Gaps, from none to that of the base, that abstention is shown for."""
FEW = 50
"""Rows of a group, below which little can be said of its rates."""
CELLS = "cells of the row"
ADDED = ("base_score", "base_decision", "decision", "chance_positive", "chance_abstain")
"""Columns that rows get."""


@dataclass(frozen=True, eq=False)
class Traded:
    """Abstention against the gap on the held-out rows, a point for each gap that was asked for."""

    eps: list[float]
    abstained: list[float]
    """Share of all rows: as little as the gap needs."""
    gap: list[float]
    by_confidence: list[float]
    """Gap if as many rows are abstained on, those with scores nearest to the threshold."""


class Part(NamedTuple):
    """Rows that the rule is made from, or measured on."""

    rows: list[Row]
    X: pd.DataFrame
    label_n: IntArray
    group_n: np.ndarray
    """Names, as text."""


class Given(NamedTuple):
    """What is read."""

    fit: Part
    held: Part
    new: list[Row]
    X_new: pd.DataFrame
    names: tuple[Any, Any]
    """The negative and the positive label, as they stand in the data."""


class Judged(NamedTuple):
    """What is said of rows."""

    score_N: FloatArray
    fate_N: IntArray
    added: list[dict[str, Any]]


def read(
    rows: Sequence[Row],
    new: Sequence[Row],
    label: str,
    group: Sequence[str],
    positive: str | None,
    score: str | None,
    feature: Sequence[str],
    split: str | None,
    holdout: float,
    seed: int,
) -> Given:
    """Read a table, the rows of it that are held out, and new rows, as `amends.fair.fan.run` is told to.

    Raises
    ------
    InputError : labels or groups of one kind, columns or values that do not fit, or no rows to hold out.
    """
    label_N, cells = binary(rows, label, "--label", positive), column(rows, label, "--label")
    if len(set(label_N.tolist())) < 2:
        raise InputError(f'column "{label}": all rows have the same label, and there is nothing to decide.')
    held_N, people = held_out(rows, split, holdout, seed), groups(rows, group, "--group")
    if len(people.names) < 2:
        raise InputError(f"--group {', '.join(group)}: all rows are of one group ({people.names[0]}): no gap to close.")
    group_N, without = names_of(people), [label, *group, *([split] if split else [])]
    check_added([*rows[:1], *new[:1]])
    check_kinds(rows, new, feature, without, score)
    X = table([*rows, *new], score, feature, without)
    parts = (np.flatnonzero(~held_N), np.flatnonzero(held_N))
    fit, held = (Part([rows[i] for i in n.tolist()], X.iloc[n], label_N[n], group_N[n]) for n in parts)
    names = (cells[int((label_N == 0).argmax())], cells[int(label_N.argmax())])
    return Given(fit, held, list(new), X.iloc[len(rows) :], names)


def held_out(rows: Sequence[Row], split: str | None, holdout: float, seed: int) -> np.ndarray:
    """Say which rows are held out, bool (N,): those that a column calls "test", or a random share.

    Raises
    ------
    InputError : none, or all.
    """
    if not 0 < holdout < 1:
        raise InputError(f"--holdout {holdout:g}: expected a share of the rows between 0 and 1.")
    if split is None:
        held_N = np.zeros(len(rows), dtype=bool)
        held_N[np.random.default_rng(seed).permutation(len(rows))[: round(holdout * len(rows))]] = True
        where = f"--holdout {holdout:g}"
    else:
        held_N = np.array([str(cell) == TEST for cell in column(rows, split, "--split")])
        where = f'--split {split}: "{TEST}"'
    if held_N.all() or not held_N.any():
        raise InputError(
            f"{where} holds out {held_N.sum()} of {len(rows)} rows: the rule needs rows, and so does its test."
        )
    return held_N


def names_of(found: Groups) -> np.ndarray:
    """Name of each row's group, text (N,)."""
    return np.array([str(name) for name in found.names], dtype=object)[found.code_N]


def table(rows: Sequence[Row], score: str | None, feature: Sequence[str], without: Sequence[str]) -> pd.DataFrame:
    """Make what the classifier is given: the score first, if there is one, the features, and a row's cells as one text.

    Out of that text a row's fate is drawn where the rule leaves it to chance; the label is no part of it.
    """
    texts = [
        json.dumps({k: v for k, v in row.data.items() if k not in without}, sort_keys=True, default=str) for row in rows
    ]
    frame = features(rows, feature, without) if feature or not score else pd.DataFrame(index=range(len(rows)))
    if score:
        frame.insert(0, SCORE, numbers(rows, [score], "--score", low=0, high=1)[:, 0])
    return frame.assign(**{CELLS: np.array(texts, dtype=object)})


def check_added(rows: Sequence[Row]) -> None:
    """Refuse rows with a column that this would write over.

    Raises
    ------
    InputError
    """
    for row in rows:
        if taken := [name for name in ADDED if name in row.data]:
            raise InputError(f'{row.where}: there is a column "{taken[0]}" already, which this writes. Rename it.')


def check_kinds(
    rows: Sequence[Row], new: Sequence[Row], feature: Sequence[str], without: Sequence[str], score: str | None
) -> None:
    """Refuse new rows with words where the others have numbers: these would be taken for words as well.

    Raises
    ------
    InputError : with the first such row and its column.
    """
    if not new or (score and not feature):
        return
    for name, dtype in features(rows, feature, without).dtypes.items():
        if dtype.kind == "f":
            column(new, str(name), "--feature")
            for row in new:
                if row.data[name] not in (None, ""):
                    numbers([row], [str(name)], "--feature")


def base_of(X: pd.DataFrame) -> Any:
    """Make the classifier for features that have no score: logistic regression."""
    return make_pipeline(encoder(X.drop(columns=CELLS)), LogisticRegression(max_iter=1000))


def surrogate_of(X: pd.DataFrame, use_groups: bool, seed: int) -> Any:
    """Make the model that learns what the program says."""
    added = {name: np.zeros(len(X)) for name in ([SCORE, GROUP] if use_groups else [SCORE])}
    seen = with_columns(X.drop(columns=[CELLS, *([SCORE] if SCORE in X else [])]), added)
    return make_pipeline(encoder(seen), HistGradientBoostingClassifier(random_state=seed))


def caps_of(given: float | Mapping[Any, float] | Sequence[str]) -> float | dict[str, float]:
    """Read caps of abstention: a number, or of each group "NAME=NUMBER".

    Raises
    ------
    InputError : no number, or both forms.
    """
    if isinstance(given, Mapping):
        return {str(group): float(value) for group, value in given.items()}
    if isinstance(given, int | float):
        return float(given)
    found: dict[str, float] = {}
    for text in given:
        name, _, value = str(text).rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise InputError(f"--max-abstain {text}: expected a share of 1, or GROUP=SHARE.") from None
    if ("" in found and len(found) > 1) or len(found) < len(given) or not found:
        raise InputError(f"--max-abstain {' '.join(given)}: give one share, or one for each group as GROUP=SHARE.")
    return found.get("", found)


def fitted(model: AbstainingFairClassifier, part: Part) -> list[str]:
    """Fit the model, and return what it warns of.

    Raises
    ------
    InputError
    """
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            model.fit(part.X, part.label_n, sensitive_features=part.group_n)
        except InputError:
            raise
        except ValueError as error:
            raise InputError(str(error)) from error
    return list(dict.fromkeys(str(warning.message) for warning in heard))


def codes(model: AbstainingFairClassifier, part: Part) -> IntArray:
    """Return the number of each row's group, as in `groups_`."""
    place = {name: number for number, name in enumerate(model.groups_)}
    return np.array([place[name] for name in part.group_n], dtype=np.int64)


def judge(
    model: AbstainingFairClassifier,
    X: pd.DataFrame,
    rows: Sequence[Row],
    group_N: np.ndarray | None,
    names: tuple[Any, Any],
) -> Judged:
    """Say of every row what the base decides, what the rule decides, and by what chances."""
    said_N = model.predict(X, sensitive_features=group_N)
    chance_N3 = model.decide_proba(X, sensitive_features=group_N)
    score_N = model.base_score(X)
    fate_N = np.where(said_N == model.abstain_, ABSTAINED, said_N).astype(np.int64)
    fates = [*names, "abstain"]
    base = [names[number] for number in (score_N >= model.threshold).astype(int).tolist()]
    added = [
        dict(zip(ADDED, (round(score, 6), before, fates[fate], *(round(c, 6) for c in chances[1:])), strict=True))
        for score, before, fate, chances in zip(
            score_N.tolist(), base, fate_N.tolist(), chance_N3.tolist(), strict=True
        )
    ]
    return Judged(score_N, fate_N, [{**row.data, **more} for row, more in zip(rows, added, strict=True)])


def judge_new(model: AbstainingFairClassifier, given: Given, group: Sequence[str]) -> list[dict[str, Any]]:
    """Decide new rows, which need no group if the rule does not look at groups.

    Raises
    ------
    InputError : a row without a group where the rule needs one, or of a group that it does not know.
    """
    try:
        group_n = names_of(groups(given.new, group, "--group", model.groups_)) if model.use_groups else None
        return judge(model, given.X_new, given.new, group_n, given.names).added
    except ValueError as error:
        raise InputError(f"--apply: {error}") from error


def measured(model: AbstainingFairClassifier, held: Part) -> Kept:
    """Measure every promise on rows that were held out.

    Raises
    ------
    InputError : a group that has held-out rows alone, or no two groups of which the rows tell the notion's rates.
    """
    if odd := sorted(set(held.group_n) - set(model.groups_)):
        raise InputError(f"the group {odd[0]} has held-out rows alone. Hold out others, or join it with another group.")
    kept = model.report(held.X, held.label_n, sensitive_features=held.group_n)
    if np.isnan(kept.gaps[model.notion]["before"]):
        raise InputError(
            f"{model.notion}: fewer than two groups have held-out rows of the label that it is about. Hold out others "
            "(--holdout, --split, --seed), or choose demographic_parity."
        )
    return kept


def doubts(model: AbstainingFairClassifier, fit: Part, held: Part) -> list[str]:
    """Say what makes the rule, or the measure of it, worth less than it looks."""
    found = []
    score_n = model.held_out_score_
    if (auc := roc_auc_score(fit.label_n, score_n)) < 0.5:
        found.append(
            f"the score falls with the label (AUC {auc:.2f}): is --positive the value that it is the chance of?"
        )
    if len(set((score_n >= model.threshold).tolist())) < 2:
        found.append(f"the base decides all rows alike at a threshold of {model.threshold:g}: set --threshold.")
    for part, code_n in (("made from", codes(model, fit)), ("measured on", codes(model, held))):
        for group, name in enumerate(model.groups_):
            if (size := int((code_n == group).sum())) < FEW:
                found.append(f"the rule is {part} {size} rows of {name}: of so few little can be said.")
    return found


def gap_by_confidence(
    model: AbstainingFairClassifier, code_n: IntArray, label_n: IntArray, score_n: FloatArray, num_abstained: int
) -> float:
    """Gap if the rows with the scores nearest to the threshold are abstained on, whatever their group."""
    base_n = (score_n >= model.threshold).astype(np.int64)
    fate_n = base_n.copy()
    fate_n[np.argsort(np.abs(score_n - model.threshold), kind="stable")[:num_abstained]] = ABSTAINED
    rates = rates_of(count(code_n, label_n, base_n, fate_n, len(model.groups_)))
    return widest(rates, columns_of(model.notion))


def trade(model: AbstainingFairClassifier, fit: Part, held: Part) -> Traded:
    """Make a rule by score bins for each gap, with the least abstention, and measure it on the held-out rows."""
    score_n, code_n, label_n = model.base_score(held.X), codes(model, held), held.label_n
    fit_table = pd.DataFrame({SCORE: model.held_out_score_, CELLS: fit.X[CELLS].to_numpy()})
    held_table = pd.DataFrame({SCORE: score_n, CELLS: held.X[CELLS].to_numpy()})
    most = gap_by_confidence(model, code_n, label_n, score_n, 0)
    points: list[tuple[float, float, float, float]] = []
    for eps in track(np.linspace(0, most, NUM_GAPS), "trade-offs"):
        how = {"estimator": "precomputed", "mode": "scorebins", "max_abstain": 1.0, "objective": "abstention"}
        rule = clone(model).set_params(**how, eps=float(eps))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="rows that are alike")  # said of the rule itself
            rule.fit(fit_table, fit.label_n, sensitive_features=fit.group_n)
        kept = rule.report(held_table, label_n, sensitive_features=held.group_n)
        num = int((rule.predict(held_table, sensitive_features=held.group_n) == rule.abstain_).sum())
        plain = gap_by_confidence(model, code_n, label_n, score_n, num)
        points.append((float(eps), num / len(label_n), kept.gaps[model.notion]["after"], plain))
    return Traded(*(list(values) for values in zip(*points, strict=True)))
