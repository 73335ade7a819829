"""Let a classifier abstain, so that groups fare alike and none fares worse.

A frozen classifier's scores are cut into bins, and a linear program says by group and bin what to decide and what to
hand on to people, such that the gap between groups, each group's errors and each group's abstention keep to given
limits; all of them are measured again on rows that were held out.

Source: FAN, "Fair Classifiers that Abstain without Harm" (arXiv 2310.06205, ICLR 2024).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from amends.fair._fan.program import Mode, Objective, SlackForm
from amends.io.atomic import check_new, write_json
from amends.io.console import say
from amends.io.errors import check_installed
from amends.io.frames import about_rows, rows_from
from amends.io.options import SeedOption
from amends.io.run import describe, run_folder
from amends.io.write import kind_of, write_rows
from amends.maths.arrays import IntArray
from amends.maths.disparity import Notion


@dataclass(frozen=True, eq=False)
class Fan:
    """What was found; the run folder holds the same."""

    model: Any
    """The `AbstainingFairClassifier`, fitted; labels are 0 and 1, groups by their names as text."""
    kept: Any
    """Every promise, measured on the held-out rows: `amends.fair._fan.kept.Kept`."""
    code_n: IntArray
    label_n: IntArray
    base_n: IntArray
    fate_n: IntArray
    """Of the held-out rows: group, label, decision of the base, and fate: 0, 1, or 2: abstained."""
    decisions: list[dict[str, Any]]
    """Held-out rows with the columns base_score, base_decision, decision, chance_positive and chance_abstain."""
    applied: list[dict[str, Any]]
    """New rows with the same columns."""
    gap_by_confidence: float
    """Gap of the notion if as many held-out rows are abstained on, those with scores nearest to the threshold."""
    curve: Any
    """Smallest gap by cap of abstention, on the rows of the rule: `amends.fair._fan.attainable.Curve`."""
    traded: Any
    """Abstention against the gap on the held-out rows: `amends.fair._fan.table.Traded`."""
    names: tuple[Any, Any]
    """The negative and the positive label, as they stand in the data."""
    record: dict[str, Any]
    """As run.json has it."""


def run(
    data: Any,
    *,
    label: str,
    group: str | Sequence[str],
    score: str | None = None,
    feature: Sequence[str] = (),
    positive: str | None = None,
    notion: Notion = "demographic_parity",
    eps: float = 0.03,
    max_abstain: float | Mapping[Any, float] | Sequence[str] = 0.2,
    slack: float = 0.0,
    slack_form: SlackForm = "relative",
    mode: Mode = "scorebins",
    sigma: float = 1.0,
    sigma1: float = 1.0,
    sigma0: float = 1.0,
    objective: Objective = "errors",
    use_groups: bool = True,
    bins: int = 40,
    threshold: float = 0.5,
    split: str | None = None,
    holdout: float = 0.5,
    apply: Any = None,
    out: str | Path | None = None,
    seed: int = 0,
) -> Fan:
    """Find a rule that abstains, and measure it on rows held out.

    Parameters
    ----------
    data, apply : path, list of paths, data frame, or list of dictionaries
        Rows with labels; new rows, which need none.
    max_abstain : float, dict by group, ["0.2"], or ["Male=0.2", "Female=0.1"]
    out : path, optional
        Run folder to make.

    The others are as on the command line.

    Raises
    ------
    InputError : what the user can mend; nothing is written then. `Infeasible`, with caps that would do, is one of them.
    """
    options = {name: value for name, value in locals().items() if name not in ("data", "apply", "out")}
    check_installed("sklearn", "scikit-learn", "fair")
    from amends.fair._fan import table as tables
    from amends.fair._fan.abstaining import AbstainingFairClassifier
    from amends.fair._tables.table import check_features, check_seed

    if out is not None:
        check_new(out)
    check_seed(seed)
    check_features(feature, label)
    started = time.time()
    caps, columns = tables.caps_of(max_abstain), [group] if isinstance(group, str) else list(group)
    rows = rows_from(data)
    new = rows_from(apply) if apply is not None else []
    given = tables.read(rows, new, label, columns, positive, score, feature, split, holdout, seed)
    fit, held = given.fit, given.held
    model = AbstainingFairClassifier(
        "precomputed" if score else tables.base_of(fit.X),
        notion=notion,
        eps=eps,
        max_abstain=caps,
        slack=slack,
        slack_form=slack_form,
        mode=mode,
        sigma=sigma,
        sigma1=sigma1,
        sigma0=sigma0,
        objective=objective,
        use_groups=use_groups,
        bins=bins,
        threshold=threshold,
        surrogate=tables.surrogate_of(fit.X, use_groups, seed) if mode == "surrogate" else None,
        random_state=seed,
    )
    say(f"finding a rule on {len(fit.rows)} rows, to be measured on {len(held.rows)} others")
    warned = tables.fitted(model, fit)
    kept = tables.measured(model, held)
    warned += tables.doubts(model, fit, held)
    for warning in warned:
        say(f"warning: {warning}")
    judged = tables.judge(model, held.X, held.rows, held.group_n, given.names)
    applied = tables.judge_new(model, given, columns) if new else []
    code_n, num_abstained = tables.codes(model, held), int((judged.fate_N == tables.ABSTAINED).sum())
    found = Fan(
        model,
        kept,
        code_n,
        held.label_n,
        (judged.score_N >= threshold).astype(np.int64),
        judged.fate_N,
        judged.added,
        applied,
        tables.gap_by_confidence(model, code_n, held.label_n, judged.score_N, num_abstained),
        model.disparity_curve(tables.CAPS),
        tables.trade(model, fit, held),
        given.names,
        describe(
            command="fair fan",
            config=options,
            seed=seed,
            data={"table": about_rows(data, rows)} | ({"apply": about_rows(apply, new)} if new else {}),
            weights={},
            seconds={"in all": round(time.time() - started, 1)},
            stopped="a rule was found and measured",
            warnings=warned,
            method={"title": "fan", "summary": (__doc__ or "").split("\n\n")[1].replace("\n", " ")},
        ),
    )
    if out is not None:
        write(found, Path(out), kind_of(data))
    return found


def write(found: Fan, out: Path, kind: str) -> None:
    """Write the run folder in one move."""
    from amends.fair._fan.page import page, rule, summary

    with run_folder(out, found.record, summary(found), page(found)) as folder:
        write_rows(folder / f"decisions{kind}", found.decisions)
        if found.applied:
            write_rows(folder / f"applied{kind}", found.applied)
        write_json(folder / "rule.json", rule(found))


def command(
    data: Annotated[list[str], typer.Argument(help="Rows with labels; several files are one table.")],
    label: Annotated[str, typer.Option(help="Column of the label: what is true of the row.")],
    group: Annotated[list[str], typer.Option(help="Columns of the group; of several each combination.")],
    out: Annotated[Path, typer.Option(help="Run folder to make; must not exist.")],
    score: Annotated[
        str | None,
        typer.Option(
            help="Column of the classifier's score: the chance of the positive label, of rows it did not see."
        ),
    ] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option(help="Columns for a model of our own, if there is no --score; for --mode surrogate also with it."),
    ] = None,
    positive: Annotated[str | None, typer.Option(help="The positive label, if labels are not 0 and 1.")] = None,
    notion: Annotated[Notion, typer.Option(help="What must be alike over groups.")] = "demographic_parity",
    eps: Annotated[float, typer.Option(help="Largest gap between two groups.", min=0, max=1)] = 0.03,
    max_abstain: Annotated[
        list[str] | None, typer.Option(help="Largest share of a group that is abstained on; or GROUP=SHARE for each.")
    ] = None,
    slack: Annotated[float, typer.Option(help="How much the errors of a group may rise, of their rate.", min=0)] = 0.0,
    slack_form: Annotated[
        SlackForm, typer.Option(help="Slack is of the error rate, or of what is left to 1.")
    ] = "relative",
    mode: Annotated[Mode, typer.Option(help="A rule by bins of the score, or two models that learn it.")] = "scorebins",
    sigma: Annotated[float, typer.Option(help="Largest difference of two groups' abstention.", min=0, max=1)] = 1.0,
    sigma1: Annotated[float, typer.Option(help="The same among positive labels.", min=0, max=1)] = 1.0,
    sigma0: Annotated[float, typer.Option(help="The same among negative labels.", min=0, max=1)] = 1.0,
    objective: Annotated[Objective, typer.Option(help="What is made least under the limits.")] = "errors",
    use_groups: Annotated[bool, typer.Option(help="Whether a decision may look at the group.")] = True,
    bins: Annotated[int, typer.Option(help="Bins of the score.", min=1)] = 40,
    threshold: Annotated[float, typer.Option(help="Score from which the classifier says yes.", min=0, max=1)] = 0.5,
    split: Annotated[
        str | None, typer.Option(help='Column that says "test" of the rows to hold out, instead of --holdout.')
    ] = None,
    holdout: Annotated[float, typer.Option(help="Share of rows, drawn at random, to measure on.", min=0, max=1)] = 0.5,
    apply: Annotated[list[str] | None, typer.Option(help="New rows to decide; they need no label.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Let the classifier of DATA abstain, so that groups fare alike and none fares worse."""
    found = run(
        data if len(data) > 1 else data[0],
        label=label,
        group=group,
        score=score,
        feature=feature or (),
        positive=positive,
        notion=notion,
        eps=eps,
        max_abstain=max_abstain or ["0.2"],
        slack=slack,
        slack_form=slack_form,
        mode=mode,
        sigma=sigma,
        sigma1=sigma1,
        sigma0=sigma0,
        objective=objective,
        use_groups=use_groups,
        bins=bins,
        threshold=threshold,
        split=split,
        holdout=holdout,
        apply=apply or None,
        out=out,
        seed=seed,
    )
    gap = found.kept.gaps[notion]
    say(f"gap of {notion.replace('_', ' ')} on held-out rows: {gap['before']:.3f} before, {gap['after']:.3f} after")
    for promise in found.kept.promises:
        about = promise.what if promise.group is None else f"{promise.what}, {promise.group}"
        say(f"{about}: {promise.value:.3f} of at most {promise.limit:.3f}, {promise.verdict}")
    say(f"done: {out / 'report.html'}")
