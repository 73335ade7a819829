"""Find the training rows that make a model unfair, and what would have helped.

Of every training row it says how the gap between groups would change were its label another, had it come from the other
group, had a column another value, or were it left out; without training again for each.

Source: Understanding Unfairness via Training Concept Influence, arXiv 2306.17828 (also: On the Cause of Unfairness: A
Training Sample Perspective). The influence of a row is Koh and Liang's (2017).
"""

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import Progress

from amends.io.atomic import check_new
from amends.io.console import say
from amends.io.errors import InputError, check_installed
from amends.io.frames import about_rows, rows_from
from amends.io.options import SeedOption
from amends.io.progress import bars
from amends.io.rows import Row
from amends.io.run import describe, run_folder
from amends.io.write import kind_of, write_rows

if TYPE_CHECKING:
    import pandas as pd

    from amends.fair._concept_influence.estimator import ConceptInfluence
    from amends.fair._concept_influence.repair import Repair
    from amends.fair._tables.groups import Groups

Metric = Literal["demographic_parity", "equal_opportunity", "equalized_odds"]
Transport = Literal["nearest", "ot", "column"]
NAMED = ("label", "removal", "group")
MOST_VERIFIED = 40
"""Rows of each concept that are changed and refitted to see whether predictions come true."""


@dataclass(frozen=True, eq=False)
class Tested:
    """What models decide."""

    where: str
    """On which rows."""
    frames: dict[str, Any]
    """By model, "as given" and then the repairs: a MetricFrame of fairlearn."""


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found; the run folder holds the same."""

    explainer: "ConceptInfluence"
    """Fitted and explained: `changes_`, `summary`, `quality_`."""
    verified: dict[str, "pd.DataFrame"]
    """By concept: row, predicted, actual."""
    repairs: dict[str, "Repair"]
    tested: Tested
    rows: list[Row]
    """The training rows as they were read."""
    columns: list[str]
    """Columns that the model learns from."""
    group: list[str]
    """Columns that say the group."""
    labels: dict[int, Any]
    """Labels as they stand in the data, by 0 and 1."""
    record: dict[str, Any]
    """As run.json has it."""


def run(
    data: Any,
    *,
    label: str,
    group: Sequence[str],
    validation: Any = None,
    test: Any = None,
    split: str | None = None,
    feature: Sequence[str] = (),
    positive: str | None = None,
    metric: Metric = "demographic_parity",
    concepts: Sequence[str] = NAMED,
    transport: Transport = "nearest",
    set_to: Sequence[str] = (),
    dependent: Sequence[str] = (),
    c: float = 1.0,
    max_rows: float = 0.05,
    step: float = 0.01,
    accuracy_tol: float = 0.005,
    bootstrap: int = 100,
    edited: bool = False,
    out: str | Path | None = None,
    seed: int = 0,
) -> Findings:
    """Say which training rows make the gap between groups, and try what would mend it.

    Parameters
    ----------
    data, validation, test : path, list of paths, `datasets.Dataset`, data frame, or list of dictionaries
        Rows to train on; to measure the gap on (default: the same); to see at the end what repairs did (default: those
        of validation).
    out : path, optional
        Run folder to make.

    The others are as on the command line.

    Raises
    ------
    InputError : what the user can mend; nothing is written then.
    """
    options = {name: value for name, value in locals().items() if name not in ("data", "validation", "test", "out")}
    for package, name in (("sklearn", "scikit-learn"), ("fairlearn", "fairlearn"), ("ot", "pot")):
        check_installed(package, name, "fair")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from amends.fair._concept_influence import table
    from amends.fair._concept_influence.estimator import ConceptInfluence
    from amends.fair._tables.gaps import rates
    from amends.fair._tables.table import binary, check_features, check_seed, classes, encoder, features, groups

    if out is not None:
        check_new(out)
    check_seed(seed)
    check_features(feature, label)
    groups_in = [group] if isinstance(group, str) else list(group)
    _check_options(groups_in, concepts, set_to, dependent, c, max_rows, step, accuracy_tol)
    started = time.time()
    rows, warned = rows_from(data), []
    given = {"validation": validation, "test": test}
    read = {name: rows_from(of) for name, of in given.items() if of is not None}
    if split is not None:
        rows, read = table.parts_of(rows, split, read)
    X = features(rows, feature, [label, *groups_in, *([split] if split else [])])
    y, of = binary(rows, label, "--label", positive), groups(rows, groups_in, "--group")
    known = classes(rows, label, "--label").names
    if len(set(y.tolist())) < 2:
        raise InputError(f'column "{label}": all rows to train on have the same label, and nothing can be learnt.')
    asked = table.concepts_of(concepts, transport, set_to, dependent, [n for n in groups_in if n in X], X, seed)
    others: dict[str, Any] = {}
    for name, of_these in read.items():
        y_these = binary(of_these, label, "--label", positive, known)
        others[name] = table.like(of_these, X, name), y_these, groups(of_these, groups_in, "--group")
    val = others.get("validation", (X, y, of))
    if "validation" not in read:
        warned.append("no --validation: the gap is that of the training rows, which the model knows. Give other rows.")
    model = make_pipeline(encoder(X), LogisticRegression(C=c, max_iter=10_000, tol=1e-7))
    found = ConceptInfluence(model, metric=metric, num_bootstrap=bootstrap, random_state=seed)
    say(f"training on {len(rows)} rows of {len(X.columns)} columns")
    try:
        verified, repairs, heard = _explained(found, asked, (X, y, of), val, max_rows, step, accuracy_tol)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"--label {label}, --group {', '.join(groups_in)}: {error}") from error
    warned += heard
    warned += _doubts(found, repairs)
    for warning in warned:
        say(f"warning: {warning}")
    X_test, y_test, of_test = others.get("test", val)
    models = {"as given": found.estimator_, **{f"repair by {name}": r.estimator for name, r in repairs.items()}}
    group_test = [str(of_test.names[code]) for code in of_test.code_N]
    where = "test" if "test" in read else "validation" if "validation" in read else "training"
    tested = Tested(
        f"{where} rows",
        {name: rates(y_test, estimator.predict(X_test), group_test) for name, estimator in models.items()},
    )
    record = describe(
        command="fair concept_influence",
        config=options,
        seed=seed,
        data={"train": about_rows(data, rows)}
        | {name: about_rows(data if given[name] is None else given[name], of_these) for name, of_these in read.items()},
        weights={},
        seconds={"in all": round(time.time() - started, 1)},
        stopped="all rows scored",
        warnings=warned,
        method={
            "title": "concept influence",
            "summary": (__doc__ or "").split("\n\n")[1].replace("\n", " "),
        },
    )
    labels = dict(zip(y.tolist(), (row.data[label] for row in rows), strict=True))
    result = Findings(found, verified, repairs, tested, rows, list(X), groups_in, labels, record)
    if out is not None:
        write(result, Path(out), kind_of(data), edited, label, positive)
    return result


def _explained(
    found: "ConceptInfluence",
    asked: Mapping[str, Any],
    train: tuple[Any, Any, "Groups"],
    val: tuple[Any, Any, "Groups"],
    max_rows: float,
    step: float,
    accuracy_tol: float,
) -> tuple[dict[str, Any], dict[str, "Repair"], list[str]]:
    """Fit, score the rows, and by each concept check scores by refits and try a repair; with what was warned of."""
    named, named_val = ([of.names[code] for code in of.code_N] for of in (train[2], val[2]))
    verified: dict[str, Any] = {}
    repairs: dict[str, Repair] = {}
    with warnings.catch_warnings(record=True) as heard, bars() as bar:
        warnings.simplefilter("always")
        found.fit(*train[:2], sensitive_features=named, X_val=val[0], y_val=val[1], sensitive_features_val=named_val)
        done = bar.add_task("scoring rows", total=1.0)
        found.explain(asked, told=partial(_tell, bar, done, 0))
        for name in asked:
            done = bar.add_task(f"refits: {name}", total=2.0)
            verified[name] = found.verify(name, MOST_VERIFIED)
            bar.update(done, completed=1.0)
            if max_rows:
                told, step = partial(_tell, bar, done, 1), min(step, max_rows)
                repairs[name] = found.repair(name, max_rows=max_rows, step=step, accuracy_tol=accuracy_tol, told=told)
    return verified, repairs, list(dict.fromkeys(str(warning.message) for warning in heard))


def _tell(bar: Progress, task: Any, before: float, share: float) -> None:
    bar.update(task, completed=before + share)


def _check_options(
    group: list[str],
    concepts: Sequence[str],
    set_to: Sequence[str],
    dependent: Sequence[str],
    c: float,
    share: float,
    step: float,
    tol: float,
) -> None:
    """Refuse what cannot be, before anything is read."""
    if not group:
        raise InputError("name the columns of the group with --group.")
    if unknown := [name for name in concepts if name not in NAMED]:
        raise InputError(f"--concepts {unknown[0]}: unknown. Choose of {', '.join(NAMED)}; for a column, give --set.")
    if not concepts and not set_to:
        raise InputError("no concept: give --concepts or --set.")
    if wrong := [text for text in set_to if "=" not in text]:
        raise InputError(f"--set {wrong[0]}: expected COLUMN=VALUE.")
    if dependent and not set_to:
        raise InputError("--dependent: columns that follow one that is set. Give --set COLUMN=VALUE.")
    if c <= 0 or not 0 <= share <= 1:
        raise InputError(f"--c {c}, --max-rows {share}: expected a number above 0, and a share of 1.")
    if not (0 < step <= 1 and tol >= 0):
        raise InputError(f"--step {step}, --accuracy-tol {tol}: expected a share above 0, and a number of 0 or more.")


def _doubts(found: "ConceptInfluence", repairs: Mapping[str, "Repair"]) -> list[str]:
    """Say where the numbers are less than they seem."""
    warned = []
    for name, made in found.quality_.items():
        if made is not None and made.told_apart is not None and made.told_apart > 0.8:
            warned.append(
                f"{name}: a classifier tells the made-up rows from real ones (AUC {made.told_apart:.2f}), so what is "
                "said of them is of rows that nobody has."
            )
    for name, repair in repairs.items():
        if repair.kept and repair.end.decisions >= repair.start.decisions:
            warned.append(
                f"{name}: the repair lowered the smooth gap, but not that of decisions ({repair.start.decisions:.3f} "
                f"to {repair.end.decisions:.3f})."
            )
    return warned


def write(found: Findings, out: Path, kind: str, edited: bool, label: str, positive: str | None) -> None:
    """Write the run folder in one move."""
    from amends.fair._concept_influence.page import edited_rows, edits_of, page, scored_rows, summary

    with run_folder(out, found.record, summary(found), page(found)) as folder:
        write_rows(folder / f"rows{kind}", scored_rows(found))
        for name, repair in found.repairs.items():
            stem = "".join(sign if sign.isalnum() else "_" for sign in name)
            if len(repair.edits):
                write_rows(folder / f"edits_{stem}{kind}", edits_of(found, name))
            if edited:
                write_rows(folder / f"edited_{stem}{kind}", edited_rows(found, name, label))


def command(
    data: Annotated[list[str], typer.Argument(help="Rows that the model is trained on; several files are one table.")],
    label: Annotated[str, typer.Option(help="Column of the label, of two values.")],
    group: Annotated[list[str], typer.Option(help="Columns of the group; of several, each combination.")],
    out: Annotated[Path, typer.Option(help="Run folder to make; must not exist.")],
    validation: Annotated[str | None, typer.Option(help="Rows on which the gap is measured.")] = None,
    test: Annotated[str | None, typer.Option(help="Rows on which repairs are compared at the end.")] = None,
    split: Annotated[str | None, typer.Option(help="Column that says train, validation or test.")] = None,
    feature: Annotated[
        list[str] | None, typer.Option(help="Columns to learn from. Default: all but label and group.")
    ] = None,
    positive: Annotated[str | None, typer.Option(help="Value of the label that is an advantage.")] = None,
    metric: Annotated[Metric, typer.Option(help="Which gap is explained.")] = "demographic_parity",
    concepts: Annotated[str, typer.Option(help="What rows might have been: some of label,removal,group.")] = ",".join(
        NAMED
    ),
    transport: Annotated[Transport, typer.Option(help="How a row of the other group is found.")] = "nearest",
    set_to: Annotated[
        list[str] | None, typer.Option("--set", help="COLUMN=VALUE: what if the column had this value.")
    ] = None,
    dependent: Annotated[list[str] | None, typer.Option(help="Columns that follow a column that is set.")] = None,
    c: Annotated[float, typer.Option(help="Inverse penalty of the logistic regression.")] = 1.0,
    max_rows: Annotated[
        float, typer.Option(help="Share of rows that a repair may change; 0: no repair.", min=0, max=1)
    ] = 0.05,
    step: Annotated[float, typer.Option(help="Share of rows that a repair changes at once.", min=0, max=1)] = 0.01,
    accuracy_tol: Annotated[float, typer.Option(help="Accuracy that a repair may cost.", min=0)] = 0.005,
    bootstrap: Annotated[int, typer.Option(help="Draws of the validation rows for intervals.", min=0)] = 100,
    edited: Annotated[bool, typer.Option("--edited", help="Write the edited rows too, not only the advice.")] = False,
    seed: SeedOption = 0,
) -> None:
    """Say which rows of DATA make a model unfair, and what would have helped."""
    found = run(
        data if len(data) > 1 else data[0],
        label=label,
        group=group,
        validation=validation,
        test=test,
        split=split,
        feature=feature or (),
        positive=positive,
        metric=metric,
        concepts=[name.strip() for name in concepts.split(",") if name.strip()],
        transport=transport,
        set_to=set_to or (),
        dependent=dependent or (),
        c=c,
        max_rows=max_rows,
        step=step,
        accuracy_tol=accuracy_tol,
        bootstrap=bootstrap,
        edited=edited,
        out=out,
        seed=seed,
    )
    explainer = found.explainer
    notion, decisions = metric.replace("_", " "), explainer.hard_disparity_
    say(f"{notion}: gap {decisions:.3f} of decisions, {explainer.disparity_:.3f} smooth")
    for name, repair in found.repairs.items():
        start, end = repair.start, repair.end
        say(
            f"{name}: {end.in_all} rows changed, gap of decisions {start.decisions:.3f} to {end.decisions:.3f}, "
            f"accuracy {start.accuracy:.3f} to {end.accuracy:.3f}"
        )
    say(f"done: {out / 'report.html'}")
