"""Choose which rows to label next so that a model becomes fairer and stays as accurate.

A row is asked for if learning it is expected to narrow the gap between groups and not to raise the loss, both on a few
validation rows; these alone show a group.

Source: Pang et al. 2024, Fairness Without Harm: An Influence-Guided Active Sampling Approach (FIS), arXiv 2402.12789.
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import typer
from fairlearn.metrics import MetricFrame
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from amends.fair._fis.rounds import COMMAND, HISTORY, NUMBER, earlier_rounds, places_of
from amends.fair._fis.sampler import FairInfluenceSampler, Strategy, Update
from amends.fair._fis.validation import Round
from amends.fair._tables.gaps import rates
from amends.fair._tables.groups import Groups
from amends.fair._tables.table import check_features, check_seed, classes, encoder, features, groups, is_missing
from amends.io.atomic import check_new
from amends.io.console import say
from amends.io.errors import InputError
from amends.io.frames import about_rows, rows_from
from amends.io.options import SeedOption
from amends.io.rows import Row
from amends.io.run import describe, run_folder, write_jsonl
from amends.io.write import kind_of, write_rows
from amends.maths.disparity import Notion

__all__ = ["FairInfluenceSampler", "Round", "Update", "command", "run"]

Model = Literal["logistic", "network"]
ASKED = (NUMBER, "expected", "acc_influence", "fair_influence", "acc_agreement", "fair_agreement")
JUDGED = ("fate", "acc_influence", "fair_influence")
"""Columns that are written beside those of the rows."""
BOOLEANS = {"0", "0.0", "False", "1", "1.0", "True"}


@dataclass(frozen=True, eq=False)
class Asked:
    """Rows to label and what became of those labelled; the run folder holds the same."""

    sampler: FairInfluenceSampler
    """Trained on all rows that are kept; its classes are numbers."""
    names: list[Any]
    """Labels as they stand in the data, by their number."""
    query: list[dict[str, Any]]
    """Rows of the pool to label next, the most helpful first."""
    judged: list[dict[str, Any]]
    """Rows whose labels came back, each kept, rejected or rolled back."""
    labelled: list[dict[str, Any]]
    """Rows to train on from here."""
    history: list[dict[str, Any]]
    """`Round`s from the first start on, and the rows of the pool whose labels each bought."""
    update: Update | None
    before: dict[Any, MetricFrame]
    """Rates by group on the validation rows, by the label taken as positive; before the labels came back."""
    after: dict[Any, MetricFrame]
    record: dict[str, Any]


def run(
    labelled: Any,
    *,
    validation: Any,
    label: str,
    group: str | Sequence[str],
    pool: Any = None,
    bought: Any = None,
    after: str | Path | None = None,
    feature: Sequence[str] = (),
    positive: str | None = None,
    metric: Notion = "demographic_parity",
    num: int = 100,
    strategy: Strategy = "predicted",
    guard: bool = True,
    guard_tol: float = 0.005,
    keep_rejected: bool = False,
    model: Model = "logistic",
    out: str | Path | None = None,
    seed: int = 0,
) -> Asked:
    """Say which rows of a pool to label, and judge labels that came back.

    Parameters
    ----------
    labelled, validation, pool, bought : path, list of paths, `datasets.Dataset`, data frame, or list of dictionaries
    out : path, optional
        Run folder to make.

    The others are as on the command line.

    Raises
    ------
    InputError : what the user can mend; nothing is written then.
    """
    given = {"labelled": labelled, "validation": validation, "pool": pool, "bought": bought}
    options = {name: value for name, value in locals().items() if name not in (*given, "given", "out")}
    options["after"] = None if after is None else str(after)
    if out is not None:
        check_new(out)
    check_seed(seed)
    check_features(feature, label)
    if pool is None and bought is None:
        raise InputError("give --pool (rows to choose from), --bought (rows whose labels came back), or both.")
    started, named = time.time(), [group] if isinstance(group, str) else list(group)
    rows = {name: rows_from(data) for name, data in given.items() if data is not None}
    about = {name: about_rows(given[name], rows[name]) for name in rows}
    earlier = earlier_rounds(after, about, len(rows["labelled"]), options)
    known = classes(rows["labelled"], label, "--label")
    told = classes(rows["validation"], label, "--label", known.names)
    people = groups(rows["validation"], named, "--group")
    y_positive = _positive(known, label, positive, metric)
    frame = features(rows["labelled"], feature, [label, *named])
    sampler = FairInfluenceSampler(
        _estimator(model, frame, seed),
        metric=metric,
        strategy=strategy,
        positive=y_positive,
        guard_tol=guard_tol if guard else None,
        keep_rejected=keep_rejected,
        random_state=seed,
    )
    say(f"training on {len(frame)} labelled rows; {len(told.code_N)} validation rows of {len(people.names)} groups")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            x_val = _like(rows["validation"], frame, "validation")
            sampler.fit(frame, known.code_N, X_val=x_val, y_val=told.code_N, sensitive_features=_texts(people))
            first = _rates(sampler, known.names, y_positive, people)
            if earlier:
                sampler.start_accuracy_ = earlier[0]["accuracy"]
            history = earlier or [asdict(sampler.history_[0]) | {"pool_rows": []}]
            update, judged, kept = _judge(sampler, rows, frame, label, known.names, history)
            spent = {number for line in history for number in line["pool_rows"]}
            query = _ask(sampler, rows["pool"], frame, spent, num, known.names, label, named) if "pool" in rows else []
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"--label {label}, --group {', '.join(named)}: {error}") from error
    said = list(dict.fromkeys(str(warning.message) for warning in heard))
    if strange := sorted(set(named) & set(frame.columns)):
        said.append(f"{', '.join(strange)}: a feature by --feature, so the model and the pool see the group.")
    if "pool" in rows and len(query) < num:
        said.append(f"{len(query)} rows of the pool are expected to help, where {num} were asked for.")
    if "bought" in rows and "pool" in rows and any(NUMBER not in row.data for row in rows["bought"]):
        said.append(f'the column "{NUMBER}" is missing in --bought: rows may be asked for a second time.')
    for warning in said:
        say(f"warning: {warning}")
    columns = list(rows["labelled"][0].data)
    found = Asked(
        sampler,
        known.names,
        query,
        judged,
        [dict(row.data) for row in rows["labelled"]] + [{name: row.get(name) for name in columns} for row in kept],
        history,
        update,
        first,
        _rates(sampler, known.names, y_positive, people),
        describe(
            command=COMMAND,
            config=options,
            seed=seed,
            data=about,
            weights={},
            seconds={"in all": round(time.time() - started, 1)},
            stopped="labels judged" if update else "rows asked for",
            warnings=said,
            method={"title": "FIS", "summary": (__doc__ or "").split("\n\n")[1].replace("\n", " ")},
        ),
    )
    if out is not None:
        write(found, Path(out), kind_of(labelled))
    return found


# What is read -------------------------------------------------------------------------------------------------------


def _positive(known: Groups, label: str, positive: str | None, metric: Notion) -> int | None:
    """Place of the positive label; None where all of several classes count."""
    texts = [str(name) for name in known.names]
    if positive is not None:
        if positive not in texts:
            raise InputError(f'--positive {positive}: the column "{label}" holds {", ".join(texts[:10])}.')
        return texts.index(positive)
    if len(texts) == 2 and set(texts) <= BOOLEANS:
        return 1
    if len(texts) == 2 or metric == "equal_opportunity":
        raise InputError(f'column "{label}": which of {", ".join(texts[:10])} is the positive value? Give --positive.')
    return None


def _like(rows: Sequence[Row], frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Features of other rows, of the same kinds as those that the model learns from."""
    found = features(rows, list(frame.columns), [])
    for column in frame:
        is_figure = pd.api.types.is_numeric_dtype(frame[column])
        if is_figure and not pd.api.types.is_numeric_dtype(found[column]):
            raise InputError(f'--{name}: the column "{column}" holds text, and numbers in LABELLED. Mend one of them.')
        if not is_figure:
            cells = [row.data[column] for row in rows]
            found[column] = np.array(["" if is_missing(cell) else str(cell) for cell in cells], dtype=object)
    return found


def _texts(people: Groups) -> np.ndarray:
    return np.array([str(name) for name in people.names], dtype=object)[people.code_N]


def _estimator(model: Model, frame: pd.DataFrame, seed: int) -> Any:
    if model == "logistic":
        return make_pipeline(encoder(frame), LogisticRegression(max_iter=1000))
    from amends.fair._fis.network import NetworkClassifier

    return make_pipeline(encoder(frame), NetworkClassifier(random_state=seed))


# What is found ------------------------------------------------------------------------------------------------------


def _ask(
    sampler: FairInfluenceSampler,
    pool: Sequence[Row],
    frame: pd.DataFrame,
    spent: set[int],
    num: int,
    names: list[Any],
    label: str,
    group: Sequence[str],
) -> list[dict[str, Any]]:
    """Rows of the pool to label, with what they are expected to do; never with a group."""
    left = [i for i in range(len(pool)) if i not in spent]
    if not left:
        raise InputError("--pool: the labels of all its rows were bought. Give other rows.")
    if taken := sorted(set(ASKED) & set(pool[0].data)):
        raise InputError(f'{pool[0].where}: the column "{taken[0]}" is there already, and is written here. Rename it.')
    chosen = sampler.query(_like([pool[i] for i in left], frame, "pool"), num)
    columns = (
        [left[i] for i in chosen],
        [names[k] for k in sampler.expected_[chosen]],
        sampler.acc_influence_[chosen].tolist(),
        sampler.fair_influence_[chosen].tolist(),
        sampler.acc_agreement_.tolist(),
        sampler.fair_agreement_.tolist(),
    )
    asked = [dict(zip(ASKED, values, strict=True)) for values in zip(*columns, strict=True)]
    hidden = {label, *group} - set(frame.columns)
    return [
        of | {label: None} | {name: value for name, value in pool[of[NUMBER]].data.items() if name not in hidden}
        for of in asked
    ]


def _judge(
    sampler: FairInfluenceSampler,
    rows: dict[str, list[Row]],
    frame: pd.DataFrame,
    label: str,
    names: list[Any],
    history: list[dict[str, Any]],
) -> tuple[Update | None, list[dict[str, Any]], list[dict[str, Any]]]:
    """Judge the labels that came back, and add their round to the history; the last are the rows to train on."""
    if "bought" not in rows:
        return None, [], []
    answered = [row for row in rows["bought"] if not is_missing(row.data.get(label))]
    if not answered:
        raise InputError(f'{rows["bought"][0].where}: no row has a label in the column "{label}". Fill it in.')
    if num_open := len(rows["bought"]) - len(answered):
        say(f"{num_open} rows have no label yet, and are left out")
    code_N = classes(answered, label, "--label", names).code_N
    places = places_of(answered, history)
    update = sampler.update(_like(answered, frame, "bought"), code_N)
    fates = np.full(len(answered), "rejected", dtype=object)
    fates[update.kept] = "kept"
    # Labels as LABELLED writes them: a file may have come back with 1.0 for 1.
    back = [{**row.data, label: names[code]} for row, code in zip(answered, code_N.tolist(), strict=True)]
    taken = back if sampler.keep_rejected else [row for row, f in zip(back, fates, strict=True) if f == "kept"]
    if update.rolled_back:
        fates[update.kept], taken = "rolled back", []
    values = zip(fates, update.acc_influence.tolist(), update.fair_influence.tolist(), strict=True)
    told = [dict(zip(JUDGED, of, strict=True)) for of in values]
    judged = [dict(row.data) | of for row, of in zip(answered, told, strict=True)]
    last, round_ = history[-1], asdict(sampler.history_[-1])
    spent = {"number": last["number"] + 1, "labels": last["labels"] + len(answered)}
    history.append(round_ | spent | {"pool_rows": places})
    return update, judged, taken


def _rates(
    sampler: FairInfluenceSampler, names: list[Any], positive: int | None, people: Groups
) -> dict[Any, MetricFrame]:
    """Rates by group on the validation rows, for each label that counts as positive."""
    told = sampler.validation_
    said_N = sampler.predict(told.X)
    counted = range(len(names)) if positive is None else [positive]
    return {names[k]: rates((told.code_N == k).astype(int), (said_N == k).astype(int), _texts(people)) for k in counted}


def write(found: Asked, out: Path, kind: str) -> None:
    """Write the run folder in one move."""
    from amends.fair._fis.page import page, summary

    with run_folder(out, found.record, summary(found), page(found)) as folder:
        for name in ("query", "judged", "labelled"):
            if table := getattr(found, name):
                write_rows(folder / f"{name}{kind}", table)
        write_jsonl(folder / HISTORY, found.history)


def command(
    labelled: Annotated[list[str], typer.Argument(help="Rows with labels; no group is asked of them.")],
    validation: Annotated[str, typer.Option(help="A few rows with labels and groups, to steer and to guard by.")],
    label: Annotated[str, typer.Option(help="Column of the label.")],
    group: Annotated[list[str], typer.Option(help="Columns of the group, in the validation rows.")],
    out: Annotated[Path, typer.Option(help="Run folder to make; must not exist.")],
    pool: Annotated[str | None, typer.Option(help="Rows without labels to choose from.")] = None,
    bought: Annotated[str | None, typer.Option(help="Rows whose labels came back: the query, filled in.")] = None,
    after: Annotated[Path | None, typer.Option(help="Run folder of the round before, to go on from.")] = None,
    feature: Annotated[list[str] | None, typer.Option(help="Columns to learn from. Default: all others.")] = None,
    positive: Annotated[str | None, typer.Option(help="Label that counts as positive.")] = None,
    metric: Annotated[Notion, typer.Option(help="Gap to narrow.")] = "demographic_parity",
    num: Annotated[int, typer.Option("--num", "-n", help="Rows to ask for.", min=1)] = 100,
    strategy: Annotated[Strategy, typer.Option(help="Label a row is expected to have; see the page.")] = "predicted",
    guard: Annotated[bool, typer.Option(help="Roll back a round that does harm on the validation rows.")] = True,
    guard_tol: Annotated[
        float, typer.Option(help="Validation accuracy that may be lost since the start.", min=0, max=1)
    ] = 0.005,
    keep_rejected: Annotated[bool, typer.Option(help="Train on labels that do not help too.")] = False,
    model: Annotated[Model, typer.Option(help="Model; network: one hidden layer.")] = "logistic",
    seed: SeedOption = 0,
) -> None:
    """Say which rows of a pool to label so that a model becomes fairer, and judge labels that came back."""
    found = run(
        labelled if len(labelled) > 1 else labelled[0],
        validation=validation,
        label=label,
        group=group,
        pool=pool,
        bought=bought,
        after=after,
        feature=feature or (),
        positive=positive,
        metric=metric,
        num=num,
        strategy=strategy,
        guard=guard,
        guard_tol=guard_tol,
        keep_rejected=keep_rejected,
        model=model,
        out=out,
        seed=seed,
    )
    if found.update:
        fates = [row["fate"] for row in found.judged]
        say(f"{len(fates)} labels: " + ", ".join(f"{fates.count(f)} {f}" for f in dict.fromkeys(fates)))
    now = found.history[-1]
    say(f"on the validation rows: accuracy {now['accuracy']:.3f}, {metric} gap {now['disparity']:.3f}")
    if found.query:
        say(f"{len(found.query)} rows to label in {out}/query{kind_of(labelled[0])}: fill in the column {label}")
    say(f"done: {out}/report.html")
