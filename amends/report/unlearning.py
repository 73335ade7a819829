"""The report of an unlearning run: one HTML page that needs nothing else, with no script and no outside address."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from amends.io.errors import InputError
from amends.io.run import read_jsonl, read_run
from amends.io.tables import read_json
from amends.report._page import MOST_ANSWERS, OPEN_ANSWERS, dataset, environment
from amends.report._text import WITH_ARROWS, number, visible
from amends.report.earlier import earlier_findings, earlier_rows
from amends.report.plots import Point, history, quality_against_utility, truth_ratio_distributions
from amends.report.verdict import ROLES, in_short, is_number, verdict

HELD = {"retain": "retain data", "neighbours": "neighbours"}
MOST_STICKY = 5  # models beside each other that fit a wide screen, so that the table's head can stay in view
OLD_METHODS = {"flat": "FLAT", "ga": "Gradient ascent (GA)"}
"""Of runs whose record does not say it yet."""
GROUPS = {
    "Forgetting": {
        "forget_probability": "Probability of the answers to forget",
        "forget_rouge_l": "Words of the answers to forget (ROUGE-L)",
        "forget_truth_ratio": "Truth ratio",
        "forget_refusal_rate": "Declined questions to forget",
        "forget_quality_p": "Forget quality, p",
        "forget_quality_ks": "Forget quality, gap (KS)",
    },
    "Keeping": {
        "retain_probability": "Probability of the answers to keep",
        "retain_rouge_l": "Words of the answers to keep (ROUGE-L)",
        "retain_truth_ratio": "Truth ratio",
        "model_utility_arith": "Model utility, arithmetic",
        "model_utility_geo": "Model utility, geometric",
    },
    "Over-refusal": {
        "retain_refusal_rate": "Declined questions to keep",
        "general_refusal_rate": "Declined everyday questions",
    },
    "General ability": {
        "general_probability": "Probability of everyday answers",
        "general_rouge_l": "Words of everyday answers (ROUGE-L)",
        "zero_shot_accuracy": "Multiple choice",
        "text_perplexity": "Perplexity of plain text",
    },
}
GROUPS_IF_MEASURED = {
    "Memorisation": {
        "forget_extraction_strength": "Extraction strength, to forget",
        "forget_exact_memorisation": "Exact memorisation, to forget",
        "retain_extraction_strength": "Extraction strength, to keep",
        "retain_exact_memorisation": "Exact memorisation, to keep",
        "deviation_score": "Deviation score",
    },
    "What it says": {
        "forget_diversity": "Different tokens in answers to forget",
        "forget_fluency": "Perplexity of answers to forget, under the model before",
        "forget_leak_rate": "Leaked text",
        "forget_hallucination_rate": "Made-up answers",
        "forget_harmful_rate": "Harmful answers",
        "retain_similarity": "Answers to keep, alike to before",
    },
    "Like those to forget, not trained on": {
        "forget_eval_probability": "Probability of the answers",
        "forget_eval_rouge_l": "Words of the answers (ROUGE-L)",
        "forget_eval_refusal_rate": "Declined questions",
        "forget_eval_diversity": "Different tokens in answers",
        "forget_eval_fluency": "Perplexity of answers, under the model before",
        "forget_eval_leak_rate": "Leaked text",
        "forget_eval_hallucination_rate": "Made-up answers",
        "forget_eval_harmful_rate": "Harmful answers",
    },
    "Privacy: forgotten rows among rows never seen": {
        "privleak": "PrivLeak",
        "mia_auc_loss": "AUC of the loss",
        "mia_auc_zlib": "AUC of the loss by compressed length",
        "mia_auc_min_k_40": "AUC of Min-K%, k = 40 %",
        "mia_auc_min_k_20": "AUC of Min-K%, k = 20 %",
        "mia_auc_min_k_plus_40": "AUC of Min-K%++, k = 40 %",
        "mia_auc_reference": "AUC of the loss less the reference's",
        "mia_tpr_min_k_40": "Found at 1 % false alarms",
    },
}
SHARES = {
    "forget_refusal_rate",
    "retain_refusal_rate",
    "general_refusal_rate",
    "zero_shot_accuracy",
    "mia_tpr_min_k_40",
    *(f"{name}_{rate}_rate" for name in ("forget", "forget_eval") for rate in ("leak", "hallucination", "harmful")),
    "forget_eval_refusal_rate",
}
ANSWERS = {
    "forget": ("To forget", "Answer to forget"),
    "forget_eval": ("Like those to forget, not trained on", "Answer to forget"),
    "retain": ("To keep: questions of the same kind", "Answer to keep"),
    "general": ("Unrelated everyday questions", "Expected answer"),
}


class Axis(NamedTuple):
    """What a direction of the chart can show; turned: 1 minus the metric."""

    metric: str
    label: str
    better: str
    turned: bool = False


UP = (
    Axis("forget_quality_p", "forget quality, p", "truth ratios more like those of the retrained reference"),
    Axis(
        "forget_rouge_l",
        "1 - ROUGE-L, to forget",
        "fewer words of the answers to forget (no forget quality: see notes)",
        True,
    ),
)
ACROSS = (
    Axis("model_utility_arith", "model utility (kept →)", "more is kept of what should be"),
    Axis("retain_rouge_l", "ROUGE-L, to keep (kept →)", "more words of the answers to keep"),
    Axis("general_rouge_l", "ROUGE-L, everyday (kept →)", "more words of everyday answers"),
)


class Column(NamedTuple):
    """A model in the tables and charts."""

    name: str
    evaluation: dict[str, Any]


def render_report(run_folder: Path, beside: Sequence[Path] = ()) -> str:
    """Render the report of a run folder.

    Parameters
    ----------
    run_folder : Path
        As `amends unlearn` writes it. Evaluations may be absent, all or some.
    beside : sequence of Path, default none
        Other run folders, whose model after unlearning gets a column of its own.

    Returns
    -------
    str : a whole page. The same folders give the same bytes.

    Raises
    ------
    InputError : one of the folders is not a run folder of an unlearning method, or a file in it is damaged.
    """
    run = read_unlearning(run_folder)
    columns = [Column(ROLES[role], found) for role in ROLES if (found := read_evaluation(run_folder, role))]
    after = next((c.evaluation for c in columns if c.name == "after"), None)
    cautions = [visible(text) for text in run["warnings"]]
    names = {column.name for column in columns}
    for folder in beside:
        name, other = unique(method_name(read_unlearning(folder)), names), read_evaluation(folder, "after")
        names.add(name)
        if other is None:
            cautions.append(f"{name}: that run was made without an evaluation, so it has no column here.")
            continue
        if after and other.get("suite") != after.get("suite"):
            cautions.append(f"{name} was asked other questions than this run: do not compare line by line.")
        columns.append(Column(name, other))
    notes: list[str] = []
    summaries = {column.name: column.evaluation["summary"] for column in columns}
    findings, earlier = verdict(summaries), earlier_rows(run, summaries)
    if ROLES["after"] in summaries:
        findings[1:1] = earlier_findings(earlier)
    asked = ANSWERS | {row.item_set: (f"Earlier {row.title.lower()}", "Answer to forget") for row in earlier}
    rows = read_jsonl(run_folder / "history.jsonl") if (run_folder / "history.jsonl").is_file() else []
    return (
        environment()
        .get_template("unlearning.html.jinja")
        .render(
            run=run,
            method=method_name(run),
            model=run["config"].get("model") or "a model given in memory",
            verdict=findings,
            in_short=in_short(findings),
            facts=facts(run),
            datasets=[dataset(name, about) for name, about in run["data"].items() if isinstance(about, dict)],
            columns=columns,
            groups=[(title, list(table_rows(group, columns, notes))) for title, group in groups(columns).items()],
            notes=notes,
            charts=charts(columns, rows),
            earlier=earlier,
            answers=[(name, *about, answers(name, columns)) for name, about in asked.items()],
            roles=[column.name for column in columns],
            cautions=cautions,
            open_answers=OPEN_ANSWERS,
            sticky=len(columns) <= MOST_STICKY,
        )
    )


def read_unlearning(folder: Path) -> dict[str, Any]:
    """Read run.json and check that it is of an unlearning run."""
    run = read_run(folder)
    if not run["command"].startswith("unlearn "):
        raise InputError(f"{folder}: a run of 'amends {run['command']}'. Give one of 'amends unlearn'.")
    return run


def read_evaluation(folder: Path, role: str) -> dict[str, Any] | None:
    """Read an evaluation file and check its outline; None if there is none."""
    source = Path(folder) / "evaluation" / f"{role}.json"
    if not source.is_file():
        return None
    found = read_json(source)
    sound = isinstance(found, dict) and all(isinstance(found.get(part), dict) for part in ("items", "summary"))
    sound = sound and all(isinstance(entry, dict) for entry in found["summary"].values())
    sound = sound and all(
        isinstance(items, list) and all(isinstance(item, dict) for item in items) for items in found["items"].values()
    )
    if not sound:
        raise InputError(f'{source}: not an evaluation (expected "items" and "summary"). Make the run again.')
    return dict(found)


def method_name(run: Mapping[str, Any]) -> str:
    """Short name of a run's method, such as "FLAT (kl) with retain data"."""
    command = run["command"].removeprefix("unlearn ")
    divergence = run["config"].get("divergence") if command == "flat" else None
    told = run.get("method")
    title = told.get("title") if isinstance(told, dict) else None
    name = str(title or OLD_METHODS.get(command, command)) + (f" ({divergence})" if divergence else "")
    held = [words for kind, words in HELD.items() if kind in run["data"]]
    return visible(" and ".join([f"{name} with {held[0]}", *held[1:]]) if held else name)


def unique(name: str, taken: set[str]) -> str:
    """Name with a number behind it if it is taken."""
    k = 2
    while (new := name if k == 2 and name not in taken else f"{name}, run {k}") in taken:
        k += 1
    return new


# What was asked


def facts(run: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """List the settings that matter most."""
    config = run["config"]
    rank = config.get("lora_rank")
    shown = {
        "Model": config.get("model") or "given in memory",
        "Method": method_name(run),
        "Divergence": config.get("divergence"),
        "Weights trained": None if rank is None else f"LoRA adapter, rank {rank}" if rank else "all",
        "Learning rate": config.get("learning_rate"),
        "Passes over the data, at most": config.get("epochs"),
        "Seed": run["seed"],
        "Why it stopped": run["stopped"],
        "Time": ", ".join(f"{value} s {name}" for name, value in run["seconds"].items()) or None,
        "Made": run["created"],
    }
    return [(name, value) for name, value in shown.items() if value is not None]


# Tables, charts, answers


def groups(columns: Sequence[Column]) -> dict[str, dict[str, str]]:
    """Metrics of the table: the usual ones, there or not, and of the others those that somebody has a value of."""
    if not columns:
        return {}
    measured = {
        title: {name: words for name, words in group.items() if any(is_number(value(c, name)) for c in columns)}
        for title, group in GROUPS_IF_MEASURED.items()
    }
    return GROUPS | {title: group for title, group in measured.items() if group}


def value(column: Column, name: str) -> Any:
    """Value of a metric, None where there is none."""
    return column.evaluation["summary"].get(name, {}).get("value")


def table_rows(names: Mapping[str, str], columns: Sequence[Column], notes: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of a group of metrics; reasons for missing values are put into `notes`."""
    for name, title in names.items():
        entries = [column.evaluation["summary"].get(name, {}) for column in columns]
        about: dict[str, Any] = next((e for e in entries if e.get("meaning")), {})
        yield {
            "title": title,
            "meaning": about.get("meaning", ""),
            "direction": WITH_ARROWS.get(str(about.get("better")), ""),
            "cells": [cell(name, e, notes) for e in entries],
        }


def cell(name: str, e: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Value and interval as text, or the number of the footnote that says why there is none."""
    if not is_number(e.get("value")):
        why = visible(e.get("missing") or "This evaluation does not hold the metric, or it is not a finite number.")
        if why not in notes:
            notes.append(why)
        return {"value": None, "note": notes.index(why) + 1}
    form = (lambda x: f"{100 * x:.1f} %") if name in SHARES else number
    low, high = e.get("low", math.nan), e.get("high", math.nan)
    interval = f"{form(low)} to {form(high)}" if is_number(low) and is_number(high) else None
    if interval and name in SHARES:
        interval = interval.replace(" %", "", 1)
    left_out = e.get("left_out") or 0
    n = f"n = {e.get('n', '?')}" + (f", {left_out} left out" if left_out else "")
    return {"value": form(e["value"]), "interval": interval, "n": n, "note": None}


def charts(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, Markup | None]]:
    """Title, caption and picture of each chart; without a picture the caption says why."""
    found: list[tuple[str, str, Markup | None]] = []
    if columns:
        up, across = axis(UP, columns), axis(ACROSS, columns)
        points = [p for c in columns if up and across and (p := point(c, up, across))]
        if up and across and points:
            text = f"Up: {up.better}. Right: {across.better}."
            picture = quality_against_utility(points, up=up.label, across=across.label, log=not up.turned)
            found.append(("Forgetting against keeping", text, Markup(picture)))
        else:
            text = "No chart: it needs questions to forget, and questions to keep or everyday ones."
            found.append(("Forgetting against keeping", text, None))
        ratios = {c.name: r for c in columns if (r := truth_ratios(c))}
        if ratios:
            text = "The nearer to the retrained reference, the less can be learnt from how likely answers are."
            if ROLES["reference"] not in ratios:
                text = "Right of 1 wrong answers are likelier than the right one; on the left the right one is known."
            found.append(("Truth ratios", text, Markup(truth_ratio_distributions(ratios))))
        else:
            text = "No chart: the questions have no wrong answers to compare with (column perturbed_answer)."
            found.append(("Truth ratios", text, None))
    if any(is_number(row.get(name)) for row in rows for name in ("v_f", "v_e")):
        text = "Mean probability of the tokens of the answers to forget (v_f) and of template answers (v_e), if any."
        found.append(("The run, step by step", text, Markup(history(rows))))
    else:
        found.append(("The run, step by step", "No chart: no step was made, or its history was not recorded.", None))
    return found


def axis(choices: Sequence[Axis], columns: Sequence[Column]) -> Axis | None:
    """Take the first axis that the model of this run, or else any, has a value on."""
    for few in ([c for c in columns if c.name == ROLES["after"]], columns):
        for choice in choices:
            if any(is_number(value(c, choice.metric)) for c in few):
                return choice
    return None


def point(column: Column, up: Axis, across: Axis) -> Point | None:
    """Find the model's place in the chart of forgetting against keeping."""
    kept, forgot = (column.evaluation["summary"].get(a.metric, {}) for a in (across, up))
    if not is_number(kept.get("value")) or not is_number(forgot.get("value")):
        return None
    (x, x_ends), (y, y_ends) = drawn(kept, across.turned), drawn(forgot, up.turned)
    return Point(column.name, x, y, x_ends, y_ends)


def drawn(e: Mapping[str, Any], turned: bool) -> tuple[float, tuple[float, float] | None]:
    """Value and interval of a metric, or of 1 minus it."""
    low, value, high = e.get("low", math.nan), e["value"], e.get("high", math.nan)
    if low is None or high is None or not (is_number(low) and is_number(high)):
        return (1 - value if turned else value), None
    return (1 - value, (1 - high, 1 - low)) if turned else (value, (low, high))


def truth_ratios(column: Column) -> list[float]:
    """Truth ratios on the questions to forget."""
    items = column.evaluation["items"].get("forget") or []
    return [item["truth_ratio"] for item in items if is_number(item.get("truth_ratio"))]


def answers(name: str, columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Questions of a set with what each model said; in the order of the first model that was asked."""
    by_id = [{str(item.get("id")): item for item in c.evaluation["items"].get(name) or []} for c in columns]
    order = next((list(items) for items in by_id if items), [])
    return [
        {
            "question": first.get("question", ""),
            "answer": first.get("answer", ""),
            "said": [
                (column.name, item.get("generated"), bool(item.get("refused")))
                for column, items in zip(columns, by_id, strict=True)
                if (item := items.get(id_)) is not None
            ],
        }
        for id_ in order[:MOST_ANSWERS]
        if (first := next(items[id_] for items in by_id if id_ in items))
    ]
