"""The page of an assessment: limits kept and broken, every measure by axis, charts, and what came out of what."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from amends.io.errors import InputError
from amends.io.run import read_jsonl, read_run
from amends.io.tables import read_json
from amends.report._page import MOST_ANSWERS, OPEN_ANSWERS, dataset, environment
from amends.report._text import WITH_ARROWS, last_part, number, visible
from amends.report.plots import relearning, scores_by_variant
from amends.report.verdict import is_number

ROLES = ("before", "after", "reference")
AXES = {
    "elicitation": "Elicitation: does it come out when asked in other ways?",
    "sampling": "Sampling: does it come out when answers are drawn?",
    "likeness": "Likeness: is it like a model that never saw it?",
    "utility": "Utility: is the rest still there?",
    "neighbours": "Neighbours: does what is near suffer?",
    "quality": "Quality: what do the answers look like?",
    "quantisation": "Quantisation: do fewer bits bring it back?",
    "relearning": "Relearning: does it come back at a touch?",
    "relearning_elsewhere": "Relearning elsewhere: does it come back when something else is taught?",
    "inside": "Inside: does it stand in the layers?",
    "locality": "Locality: how far did the weights move?",
    "membership": "Membership: can the forgotten rows be told?",
}
DIRECTIONS = WITH_ARROWS | {
    "half": "near the reference, or 0.5, is better",
    "zero": "near 0, the reference's, is better",
}
VERDICTS = {"pass": ("strength", "Pass"), "fail": ("weakness", "Fail"), None: ("open", "Not judged")}
PLAIN = "question"
SETS = {"near": "To keep, near to what was forgotten", "far": "To keep, far from it", "general": "Everyday questions"}


class Lesson(NamedTuple):
    """The chart of an attack that teaches something."""

    title: str
    caption: str
    across: str
    up: str


LESSONS = {
    "forget": Lesson(
        "Taught again",
        "Words of the other answers to forget, after steps of training on a few of them.",
        "steps of training on a few rows",
        "ROUGE-L, other rows",
    ),
    "retain": Lesson(
        "Taught rows to keep",
        "Words of the answers to forget, after steps of training on rows to keep.",
        "steps of training on rows to keep",
        "ROUGE-L, to forget",
    ),
    "text": Lesson(
        "Taught plain text",
        "Words of the answers to forget, after steps of training on pieces of plain text.",
        "steps of training on plain text",
        "ROUGE-L, to forget",
    ),
}


def render_assessment(folder: Path) -> str:
    """Render the page of a folder that `amends assess` wrote.

    Returns
    -------
    str : a whole page. The same folder gives the same bytes.

    Raises
    ------
    InputError : not such a folder, or a file in it is damaged.
    """
    run = read_run(folder)
    source = Path(folder) / "assessment.json"
    found = read_json(source)
    measures = found.get("measures") if isinstance(found, dict) else None
    if run["command"] != "assess" or not isinstance(measures, list) or not all(isinstance(m, dict) for m in measures):
        raise InputError(f"{source}: not an assessment. Give a folder that 'amends assess' wrote.")
    items = read_jsonl(Path(folder) / "items.jsonl")
    roles = [role for role in ROLES if role in run["weights"]]
    limits = [m for m in measures if m.get("limit") is not None]
    limits.sort(key=lambda m: ("fail", "pass", None).index(m.get("verdict")))
    return (
        environment()
        .get_template("assessment.html.jinja")
        .render(
            run=run,
            title=visible(name_of(str(run["config"].get("after") or "")) or "a model given in memory"),
            verdict=found.get("verdict"),
            in_short=in_short(limits),
            limits=[limit_line(m) for m in limits],
            roles=roles,
            groups=[
                (title, [row(m, roles) for m in measures if m.get("axis") == axis])
                for axis, title in AXES.items()
                if any(m.get("axis") == axis for m in measures)
            ],
            charts=charts(items, found.get("curves") or {}, roles),
            drift=[d for d in found.get("drift") or [] if isinstance(d, dict)],
            datasets=[dataset(name, about) for name, about in run["data"].items() if isinstance(about, dict)],
            forgotten=forgotten(items, roles),
            kept=[(title, kept(items, name, roles)) for name, title in SETS.items()],
            cautions=[visible(text) for text in run["warnings"]],
            open_answers=OPEN_ANSWERS,
            number=number,
        )
    )


def name_of(model: str) -> str:
    """Short name of a model; of the one in a run folder, RUN/model, that of the run."""
    path = model.rstrip("/")
    return last_part(path.removesuffix("/model")) if path.endswith("/model") else last_part(path)


def in_short(limits: Sequence[Mapping[str, Any]]) -> str:
    """Say the outcome in a sentence."""
    failed, judged, unmeasured = [], 0, []
    for m in limits:
        if is_number(m.get("after")):
            judged += 1
            failed += [str(m["metric"])] if m.get("verdict") == "fail" else []
        elif m.get("verdict") == "fail":
            unmeasured.append(str(m["metric"]))
    told = f"All {judged} limits are kept." if judged else "No limit could be judged."
    if failed:
        told = f"{len(failed)} of {judged} limits are broken: {', '.join(failed)}."
    if unmeasured:
        told += f" Fails too what was asked for by name and could not be measured: {', '.join(unmeasured)}."
    left = len(limits) - judged - len(unmeasured)
    return told + (f" {left} could not be judged." if left and judged else "")


def limit_line(m: Mapping[str, Any]) -> dict[str, str]:
    """Make a line of the list of limits."""
    kind, word = VERDICTS[m.get("verdict")]
    if not is_number(m.get("after")):
        text = f"{m['metric']}: {m.get('missing')}"
    else:
        size = "size " if m["better"] == "zero" else ""
        text = f"{m['metric']}: {number(m['after'])}, {size}at most {number(m['applied'])}."
        if m["applied"] != m["limit"]:
            asked, known = number(m["limit"]), number(m["reference"])
            text += f" The limit of {asked} is raised, as the reference itself reaches {known}."
        text += f" {m['meaning']}"
    return {"kind": kind, "word": word, "text": text}


def row(m: Mapping[str, Any], roles: Sequence[str]) -> dict[str, Any]:
    """Make a row of the table of measures."""
    interval = None
    if is_number(m.get("low")) and is_number(m.get("high")):
        interval = f"{number(m['low'])} to {number(m['high'])}"
    return {
        "metric": m.get("metric"),
        "meaning": m.get("meaning", ""),
        "direction": DIRECTIONS.get(str(m.get("better")), ""),
        "cells": [number(m[role]) if is_number(m.get(role)) else None for role in roles],
        "interval": interval,
        "n": m.get("n"),
        "missing": m.get("missing"),
        "limit": number(m["applied"]) if is_number(m.get("applied")) else None,
        "verdict": VERDICTS[m.get("verdict")] if m.get("limit") is not None else None,
    }


def charts(
    items: Sequence[Mapping[str, Any]], curves: Mapping[str, Any], roles: Sequence[str]
) -> list[tuple[str, str, Markup | None]]:
    """Title, caption and picture of each chart; without a picture the caption says why."""
    found: list[tuple[str, str, Markup | None]] = []
    scores = variant_scores(items, roles)
    if any(len(of) > 1 for of in scores.values()):
        text = "Words of the answers to forget that each way of asking brings out; last the best of all ways."
        found.append(("Asked in other ways", text, Markup(scores_by_variant(scores))))
    else:
        found.append(("Asked in other ways", "No chart: the questions were asked in one way only.", None))
    plain = [i["rouge_l"] for i in items if place(i) == ("before", "forget", PLAIN) and is_number(i.get("rouge_l"))]
    of_all = sum(plain) / len(plain) if plain else None
    if any("steps" in of for of in curves.values()):  # by role alone, as it was while one attack was all there were
        curves = {"forget": curves}
    for name, (title, text, across, up) in LESSONS.items():
        of = curves.get(name, {})
        attacked = [r for r in roles if r in of and r != "before"]
        lines = {r: (of[r]["steps"], of[r]["rouge_l"]) for r in attacked if all(map(is_number, of[r]["rouge_l"]))}
        if lines:
            level = of["before"]["rouge_l"][0] if "before" in of else of_all  # folders of earlier versions lack it
            picture = relearning(lines, level, across=across, up=up, title=title, name=f"taught-{name}")
            found.append((title, text, Markup(picture)))
        elif name == "forget":
            why = "no answer that is tested has a word to find" if attacked else "the relearning attack was not made"
            found.append((title, f"No chart: {why}.", None))
    return found


def place(item: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Model, set and way of asking."""
    return item.get("role"), item.get("item_set"), item.get("variant")


def variant_scores(items: Sequence[Mapping[str, Any]], roles: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean ROUGE-L by model and way of asking; "worst case" last: the mean of each row's best."""
    found: dict[str, dict[str, float]] = {}
    for role in roles:
        by_variant: dict[str, list[float]] = {}
        best: dict[str, float] = {}
        for item in items:
            if item.get("role") == role and item.get("item_set") == "forget" and is_number(item.get("rouge_l")):
                by_variant.setdefault(str(item["variant"]), []).append(item["rouge_l"])
                best[str(item["id"])] = max(best.get(str(item["id"]), 0.0), item["rouge_l"])
        if by_variant:
            means = {name: sum(values) / len(values) for name, values in by_variant.items()}
            found[role] = means | ({"worst case": sum(best.values()) / len(best)} if len(means) > 1 else {})
    return found


def forgotten(items: Sequence[Mapping[str, Any]], roles: Sequence[str]) -> list[dict[str, Any]]:
    """Rows to forget, those first of which most came out: the plain question, and the way that brought out most."""
    by_id: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {}
    for item in items:
        if item.get("item_set") == "forget":
            by_id.setdefault(str(item["id"]), {}).setdefault(str(item["role"]), {})[str(item["variant"])] = item
    rows = []
    for by_role in by_id.values():
        after = {name: item for name, item in by_role.get("after", {}).items() if is_number(item.get("rouge_l"))}
        plain = after.get(PLAIN)
        if plain is None:
            continue
        worst = max(after.values(), key=lambda i: i["rouge_l"])
        shown = [plain, worst] if worst is not plain else [plain]
        asks = [
            {
                "question": ask["question"],
                "answer": ask["expected"],
                "variant": ask["variant"],
                "said": [
                    (role, said["generated"], bool(said.get("refused")))
                    for role in roles
                    if (said := by_role.get(role, {}).get(ask["variant"])) is not None
                ],
            }
            for ask in shown
        ]
        rows.append({"asks": asks, "score": worst["rouge_l"]})
    rows.sort(key=lambda r: -r["score"])
    return rows[:MOST_ANSWERS]


def kept(items: Sequence[Mapping[str, Any]], item_set: str, roles: Sequence[str]) -> list[dict[str, Any]]:
    """Questions of a set with what each model said."""
    by_id: dict[str, dict[str, Any]] = {}
    for item in items:
        if item.get("item_set") == item_set:
            entry = by_id.setdefault(
                str(item["id"]), {"question": item["question"], "answer": item["expected"], "variant": None, "by": {}}
            )
            entry["by"][item["role"]] = (item["role"], item["generated"], bool(item.get("refused")))
    return [e | {"said": [e["by"][r] for r in roles if r in e["by"]]} for e in by_id.values()][:MOST_ANSWERS]
