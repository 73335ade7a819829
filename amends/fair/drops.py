"""Rescale a model's probabilities so that accuracy holds under every prior near a target.

Each class, or class in a group, gets a factor, tuned on rows with labels against the worst prior within delta of the
target; the model is not trained again.

Source: DROPS, Wei et al., ICLR 2023 (arXiv 2309.08825).
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from sklearn.model_selection import StratifiedKFold

from amends.fair._drops.ambiguity import Name
from amends.fair._drops.classifier import PRECOMPUTED, PriorRobustClassifier
from amends.fair._drops.prior_robust import (
    SMOOTH,
    Average,
    Cells,
    Loss,
    cells_of,
    check_delta,
    delta_worst_accuracy,
    means,
    rescaled,
    warn_of,
)
from amends.fair._drops.table import columns_of, read_probabilities, read_shares, text_of
from amends.fair._tables.groups import Groups
from amends.fair._tables.table import check_seed
from amends.fair._tables.table import classes as read_classes
from amends.fair._tables.table import groups as read_group_columns
from amends.io.atomic import check_new, write_json
from amends.io.console import say
from amends.io.errors import InputError
from amends.io.frames import about_rows, rows_from
from amends.io.options import MOST_SEED
from amends.io.progress import track
from amends.io.rows import Row
from amends.io.run import describe, run_folder
from amends.io.write import kind_of, write_rows
from amends.maths.arrays import FloatArray, IntArray

__all__ = ["PriorRobustClassifier", "delta_worst_accuracy"]

PLAIN, ADJUSTED = "as it is", "adjusted to the target"


@dataclass(frozen=True, eq=False)
class PriorRobust:
    """What was tuned, and how well it decides; the run folder holds the same."""

    classes: list[Any]
    groups: Groups | None
    cells: Cells
    label_N: IntArray
    cell_N: IntArray
    decided: dict[str, IntArray]
    """Rule to the class of every row, by weights that were tuned on other rows: as it is, adjusted, and each delta."""
    model: PriorRobustClassifier
    """The rule, by the first delta, tuned on all rows; classes and groups are numbers."""
    deltas: list[float]
    positive: int
    """Place of the class that counts as positive where there are two."""
    applied: list[dict[str, Any]] | None
    """Rows of another table with what the rule says of them."""
    record: dict[str, Any]

    @property
    def recalls(self) -> dict[str, FloatArray]:
        """Rule to the recall of every cell, (C,)."""
        right = {name: decided_N == self.label_N for name, decided_N in self.decided.items()}
        return {name: means(right_N, self.cell_N, len(self.cells.names)) for name, right_N in right.items()}


def rule_of(delta: float) -> str:
    """Name of the rule of a delta."""
    return f"delta {delta:g}" if delta else ADJUSTED


def run(
    data: Any,
    *,
    label: str,
    proba: str | Sequence[str],
    group: str | Sequence[str] = (),
    train_prior: Sequence[str] = (),
    target_prior: Sequence[str] = ("uniform",),
    delta: float | Sequence[float] = 0.2,
    divergence: Name = "kl",
    loss: Loss = "zero-one",
    average: Average = "best",
    calibrate: Literal["none", "temperature"] = "none",
    smooth: float = SMOOTH,
    positive: str | None = None,
    apply: Any = None,
    folds: int = 5,
    out: str | Path | None = None,
    seed: int = 0,
) -> PriorRobust:
    """Tune a rule that is robust to a shift of the prior, and measure it on rows that it was not tuned on.

    Parameters
    ----------
    data, apply : path, list of paths, `datasets.Dataset`, data frame, or list of dictionaries
    out : path, optional
        Run folder to make.

    The others are as on the command line.

    Raises
    ------
    InputError : what the user can mend; nothing is written then.
    """
    options = {name: value for name, value in locals().items() if name not in ("data", "apply", "out")}
    if out is not None:
        check_new(out)
    check_seed(seed)
    started = time.time()
    deltas = list(dict.fromkeys(float(value) for value in ([delta] if isinstance(delta, int | float) else delta)))
    if not deltas:
        raise InputError("--delta: none is given. Give one or several, such as 0.2.")
    rows = rows_from(data)
    new_rows = [] if apply is None else rows_from(apply)
    found = read_classes(rows, label, "--label")
    names, label_N = found.names, found.code_N
    columns_of_groups = [group] if isinstance(group, str) else list(group)
    groups = read_group_columns(rows, columns_of_groups, "--group") if columns_of_groups else None
    cells = cells_of(names, groups)
    if positive is not None and positive not in [str(name) for name in names]:
        raise InputError(f'--positive {positive}: the column "{label}" holds {", ".join(map(str, names[:10]))}.')
    given = [proba] if isinstance(proba, str) else list(proba)
    columns = columns_of(given, list(rows[0].data), names, cells, positive)
    p_NC, new_p_MC = read_probabilities(rows, columns), read_probabilities(new_rows, columns)
    if taken := [column for column in _added(names) if new_rows and column in new_rows[0].data]:
        raise InputError(f'--apply: the table has a column "{taken[0]}" already, which this writes. Rename it.')
    by_class, by_cell = [str(name) for name in names], [text_of(cell) for cell in cells.names]
    try:
        for value in deltas:
            check_delta(value)
        how: dict[str, Any] = {
            "target_prior": read_shares([*target_prior], "--target-prior", by_cell),
            "divergence": divergence,
            "loss": loss,
            "average": average,
            "calibrate": None if calibrate == "none" else calibrate,
            "smooth": smooth,
        }
        trained = read_shares([*train_prior], "--train-prior", by_class, by_cell) if train_prior else None
        group_N = None if groups is None else groups.code_N
        cell_N = label_N if groups is None else label_N * len(groups.names) + groups.code_N
        models, decided, warned = _cross_fitted(
            p_NC, label_N, group_N, cell_N, cells, trained, dict.fromkeys([0.0, *deltas]), how, folds, seed
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{_path(data) or 'data'}, --label {label}: {error}") from error
    model = models[deltas[0]]
    if positive is not None and len(names) > 2:
        warned.append(f"--positive {positive} is not used: there are {len(names)} classes, and each counts.")
    for warning in warned:
        say(f"warning: {warning}")
    described = {"table": about_rows(data, rows)} | ({"applied to": about_rows(apply, new_rows)} if new_rows else {})
    record = describe(
        command="fair drops",
        config=options,
        seed=seed,
        data=described,
        weights={},
        seconds={"in all": round(time.time() - started, 1)},
        stopped=f"weights tuned for {len(deltas)} {'delta' if len(deltas) == 1 else 'deltas'}",
        warnings=warned,
        method={"title": "DROPS", "summary": (__doc__ or "").split("\n\n")[1].replace("\n", " ")},
    )
    place = positive if positive is None else by_class.index(positive)
    told = _applied(new_rows, new_p_MC, model, names) if apply is not None else None
    made = PriorRobust(
        names, groups, cells, label_N, cell_N, decided, model, deltas, 1 if place is None else place, told, record
    )
    if out is not None:
        write(made, Path(out), kind_of(data), kind_of(apply))
    return made


def _cross_fitted(
    p_NC: FloatArray,
    label_N: IntArray,
    group_N: IntArray | None,
    cell_N: IntArray,
    cells: Cells,
    train_prior: Any,
    deltas: dict[float, Any],
    how: dict[str, Any],
    folds: int,
    seed: int,
) -> tuple[dict[float, PriorRobustClassifier], dict[str, IntArray], list[str]]:
    """Tune by each delta on all rows, and let each row be decided by weights that were tuned on other ones."""
    counts, by_cell = np.bincount(cell_N, minlength=len(cells.names)), p_NC.shape[1] == len(cells.names)
    num_folds = min(folds, int(counts[counts > 0].min()))
    if num_folds < 2:
        raise ValueError(
            "a class, or a class in a group, has 1 row: none is left to check its recall on. Give more rows of it."
        )
    splits = list(StratifiedKFold(num_folds, shuffle=True, random_state=seed).split(p_NC, cell_N))
    everything = (np.arange(len(label_N)), None)
    models: dict[float, PriorRobustClassifier] = {}
    decided = {name: np.zeros_like(label_N) for name in (PLAIN, *map(rule_of, deltas))}
    heard: list[str] = []
    jobs = [(delta, split) for delta in deltas for split in (everything, *splits)]
    if train_prior is None:
        # What is taken for the training prior must not change with the fold.
        train_prior = counts / len(cell_N)
    for delta, (train, test) in track(jobs, "weights"):
        model = PriorRobustClassifier(PRECOMPUTED, delta=delta, **how)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(p_NC[train], label_N[train], train_prior, None if group_N is None else group_N[train])
        if test is None:
            models[delta] = model
            # The model knows cells by number; people know them by name.
            about = model._of_cells(model._probabilities(p_NC)), cell_N, model.train_prior_, model.target_prior_
            by_name = Cells([text_of(cell) for cell in cells.names], cells.class_C)
            words = dict(zip(warn_of(*about, model._cells), warn_of(*about, by_name), strict=True))
            heard += [words.get(text, text) for text in (str(warning.message) for warning in caught)]
        else:
            decided[rule_of(delta)][test] = model.predict(p_NC[test])
    decided[PLAIN] = (rescaled(p_NC, np.ones(len(cells.names)), cells) if by_cell else p_NC).argmax(axis=1)
    return models, decided, list(dict.fromkeys(heard))


def _applied(
    rows: Sequence[Row], p_MC: FloatArray, model: PriorRobustClassifier, names: list[Any]
) -> list[dict[str, Any]]:
    """Rows with the decision and the rescaled probability of each class."""
    q_MK, columns = model.predict_proba(p_MC), _added(names)
    best_M = q_MK.argmax(axis=1).tolist()
    return [
        row.data | dict(zip(columns, [names[best], *(round(q, 6) for q in q_K)], strict=True))
        for row, best, q_K in zip(rows, best_M, q_MK.tolist(), strict=True)
    ]


def _added(names: Sequence[Any]) -> list[str]:
    """Columns that rows get."""
    return ["robust_label", *(f"robust_{name}" for name in names)]


def _path(data: Any) -> str | None:
    return str(data) if isinstance(data, str | Path) else None


def rule(found: PriorRobust) -> dict[str, Any]:
    """Everything that is needed to rescale other probabilities: multiply by the factors, then normalise."""
    model = found.model
    numbers = {
        "train_prior": model.train_prior_,
        "target_prior": model.target_prior_,
        "weight": model.weights_,
        "factor": model.factors_,
    }
    columns = {name: [float(value) for value in values] for name, values in numbers.items()}
    return {
        "delta": found.deltas[0],
        "divergence": model.divergence,
        "temperature": model.temperature_,
        "class_factors": [float(value) for value in getattr(model, "class_factors_", [])] or None,
        "cells": [
            {"cell": text_of(cell), **{name: values[c] for name, values in columns.items()}}
            for c, cell in enumerate(found.cells.names)
        ],
    }


def write(found: PriorRobust, out: Path, kind: str, kind_applied: str) -> None:
    """Write the run folder in one move."""
    from amends.fair._drops.page import curve_rows, page, recall_rows, summary

    curve = curve_rows(found)
    with run_folder(out, found.record, summary(found), page(found, curve)) as folder:
        write_json(folder / "rule.json", rule(found))
        write_rows(folder / f"curve{kind}", curve)
        write_rows(folder / f"recall{kind}", recall_rows(found))
        if found.applied is not None:
            write_rows(folder / f"applied{kind_applied}", found.applied)


def command(
    data: Annotated[list[str], typer.Argument(help="Rows with labels and a model's probabilities, not trained on.")],
    label: Annotated[str, typer.Option(help="Column of the label.")],
    proba: Annotated[
        list[str],
        typer.Option(help="Probabilities: 'p_*' (* is the class), COLUMN=CLASS of each, or that of --positive."),
    ],
    out: Annotated[Path, typer.Option(help="Run folder to make; must not exist.")],
    group: Annotated[list[str] | None, typer.Option(help="Column of a group; of several, each combination.")] = None,
    train_prior: Annotated[
        list[str] | None,
        typer.Option(help="CLASS=SHARE where the model was trained; default: as in DATA."),
    ] = None,
    target_prior: Annotated[
        list[str] | None,
        typer.Option(help="uniform, train, or CLASS=SHARE (CLASS,GROUP=SHARE with groups); default uniform."),
    ] = None,
    delta: Annotated[
        list[float] | None,
        typer.Option(help="How far the prior may lie from it; the first makes the rule; default 0.2.", min=0),
    ] = None,
    divergence: Annotated[Name, typer.Option(help="What delta is measured in; KL in nats.")] = "kl",
    loss: Annotated[Loss, typer.Option(help="What the adversary counts.")] = "zero-one",
    average: Annotated[Average, typer.Option(help="Which weights of the search are kept.")] = "best",
    calibrate: Annotated[
        Literal["none", "temperature"], typer.Option(help="Fit a temperature to the probabilities first.")
    ] = "none",
    smooth: Annotated[
        float, typer.Option(help="Rows of mean loss that each class is given on top of its own.", min=0)
    ] = SMOOTH,
    positive: Annotated[str | None, typer.Option(help="The positive label, where there are two.")] = None,
    apply: Annotated[str | None, typer.Option(help="Table of probabilities to rescale and decide by the rule.")] = None,
    folds: Annotated[int, typer.Option(help="Folds by which the rule is measured.", min=2)] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the folds and of the bands.", min=0, max=MOST_SEED)] = 0,
) -> None:
    """Make the decisions of a model robust to a shift of the prior, by the probabilities and labels in DATA."""
    found = run(
        data if len(data) > 1 else data[0],
        label=label,
        proba=proba,
        group=group or (),
        train_prior=train_prior or (),
        target_prior=target_prior or ("uniform",),
        delta=delta or (0.2,),
        divergence=divergence,
        loss=loss,
        average=average,
        calibrate=calibrate,
        smooth=smooth,
        positive=positive,
        apply=apply,
        folds=folds,
        out=out,
        seed=seed,
    )
    from amends.fair._drops.page import lead

    say(lead(found))
    say(f"done: {out / 'report.html'}")
