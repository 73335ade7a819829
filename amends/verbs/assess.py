"""Assess whether a model forgot: attacks it, measures what it lost, and holds both to limits.

A model may only look as if it forgot. It is asked in other ways, taught again, and rounded to fewer bits, beside the
model before and one that never saw the data; what should stay is asked too.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from transformers import PreTrainedTokenizerBase

from amends.assessment.ask import Findings, add_gibberish, ask_in_turn
from amends.assessment.attacks import EASY
from amends.assessment.axes import AXES, LIMITS, Measure, check_limits, judge, read_limits
from amends.assessment.measures import all_measures
from amends.assessment.plan import Plan, Sources, make_plan
from amends.evaluation.intervals import mean_of
from amends.io.atomic import check_new, new_folder, write_json, write_manifest, write_text
from amends.io.bounds import check_options
from amends.io.console import answer, say
from amends.io.errors import InputError
from amends.io.options import ModelOption, SeedOption, check_names, listed
from amends.io.plain import plain
from amends.io.run import describe, told, write_jsonl
from amends.lm.encoders import class_named, embed, load_encoder
from amends.lm.turns import check_models
from amends.maths.words import word_scores
from amends.report.assessment import render_assessment
from amends.unlearn._compare import SAME_WEIGHTS
from amends.unlearn._read import about, read_templates
from amends.unlearn._request import Data
from amends.verbs._advice import without
from amends.verbs._holdout import WORDS, compare, warnings_of_holdout

CLEAN = "clean"
"""Class of an answer that is no gibberish, as the usual classifier names it."""
UNSAID = {"out", "seed", "templates", "texts", "processing_class"}
"""Arguments of `run` that are not in what run.json has under config."""
FAILED = 3
"""Exit code when a limit is not kept."""


@dataclass(frozen=True)
class Assessment:
    """What an assessment leaves in memory; its folder holds the same."""

    measures: list[Measure]
    items: list[dict[str, Any]]
    """One answer each: role, item_set, id, variant, question, expected, generated, rouge_l, refused, gibberish."""
    curves: dict[str, dict[str, dict[str, list[float]]]]
    """Of the relearning attacks, by what was taught ("forget", "retain", "text") and role: steps and mean ROUGE-L
    of the rows that are tested; of the model before, which is not attacked, at step 0 alone."""
    drift: list[dict[str, Any]]
    """Of the weights, by layer."""
    out: Path | str | None

    @property
    def failures(self) -> list[Measure]:
        """Measures that do not keep their limit."""
        return [m for m in self.measures if m.verdict == "fail"]

    @property
    def verdict(self) -> Literal["pass", "fail"]:
        """Pass if no limit is broken."""
        return "fail" if self.failures else "pass"

    def __getitem__(self, metric: str) -> Measure:
        """Find a measure by its name."""
        try:
            return next(m for m in self.measures if m.metric == metric)
        except StopIteration:
            raise KeyError(f"{metric}: no such measure. Known: {', '.join(m.metric for m in self.measures)}.") from None


def command(
    before: Annotated[str, typer.Option(help="The model before it forgot: as for --after.")],
    after: ModelOption,
    forget: Annotated[str, typer.Option(help="What was to be forgotten; paraphrased_question is read if there.")],
    out: Annotated[Path, typer.Option(help="Folder to make; must not exist.")],
    reference: Annotated[str | None, typer.Option(help="Model retrained without the forget data.")] = None,
    retain: Annotated[str | None, typer.Option(help="Questions to keep: for what was lost, and as examples.")] = None,
    holdout: Annotated[str | None, typer.Option(help="Rows of the same kind that no model was trained on.")] = None,
    axes: Annotated[
        list[str] | None, typer.Option(help=f"Axes to measure, of: {', '.join(AXES)}; default: all; repeatable.")
    ] = None,
    limit: Annotated[
        list[str] | None, typer.Option(help=f"NAME=VALUE to hold the model to; repeatable. Names: {', '.join(LIMITS)}.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Most rows of each set, evenly spread.", min=1)] = 100,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            help="Longest answer that is generated, tokens; default: 64, or the longest plain text to continue.", min=1
        ),
    ] = None,
    question_column: Annotated[str | None, typer.Option(help="Column of the question, if it has another name.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Column of the answer, if it has another name.")] = None,
    prefix_tokens: Annotated[
        int, typer.Option(help="Plain text: tokens of each prefix, as the run that forgot it had them.", min=1)
    ] = 100,
    continuation_tokens: Annotated[int, typer.Option(help="Plain text: tokens of each continuation.", min=1)] = 100,
    embedder: Annotated[
        str | None,
        typer.Option(help="Sentence embedding (mean of tokens) that says what is near; default: rare words shared."),
    ] = None,
    gibberish: Annotated[
        str | None, typer.Option(help="Classifier of texts with a class 'clean', for the share of gibberish.")
    ] = None,
    seed: SeedOption = 0,
) -> None:
    """Assess whether AFTER forgot FORGET; exit code 0 if all limits are kept, 3 if one is not."""
    options = dict(locals())
    options["limits"] = options.pop("limit")
    found = run(**options)
    for m in found.measures:
        if m.limit is not None:
            answer(line(m))
    say(f"done: {out / 'report.html'}")
    if found.failures:
        raise typer.Exit(FAILED)


def line(m: Measure) -> str:
    """Say of one measure whether its limit is kept."""
    word = {"pass": "pass", "fail": "fail", None: "not judged"}[m.verdict]
    size = "size " if m.better == "zero" else ""
    value = m.missing if m.after is None else f"{m.after:.3g}, {size}at most {m.applied:.3g}"
    return f"{word:<10} {plain(f'{m.metric}: {value}')}"


def run(
    before: Any,
    after: Any,
    forget: Data,
    *,
    out: Path | str | None = None,
    reference: Any = None,
    retain: Data | None = None,
    holdout: Data | None = None,
    axes: Sequence[str] | None = None,
    limits: Sequence[str] | Mapping[str, float] | None = None,
    rows: int = 100,
    max_new_tokens: int | None = None,
    seed: int = 0,
    templates: Data | Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    prefix_tokens: int = 100,
    continuation_tokens: int = 100,
    embedder: str | Path | None = None,
    gibberish: str | Path | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
) -> Assessment:
    """Assess whether a model forgot.

    Parameters
    ----------
    before, after, reference : str, Path or model
        What `amends.lm.load` takes, read in turn, or models that are loaded already (with `processing_class`).
    forget, retain, holdout : path or list of dict
        As for the methods of unlearning. What is not given is a gap with its reason in the result, never a 0.
    axes : list of str, optional
        Of `AXES`; default: all. A text may name several with commas between them.
    limits : list of "name=value" or dict, optional
        In place of those in `LIMITS`. One that is asked for and cannot be judged fails.
    templates : list of str, or a file as for the methods of unlearning, optional
        Answers that count as refusals beside the general patterns; default: the built-in refusals.
    texts : list of str, optional
        Plain text for the perplexity; default: the built-in passages.
    max_new_tokens : int, optional
        Longest answer that is generated; default: 64, or the longest plain text to continue.
    prefix_tokens, continuation_tokens : int, default 100
        Lengths of the two parts that plain text is cut into: those of the run that forgot it.
    embedder, gibberish : str or Path, optional
        What `amends.lm.encoders.load_encoder` takes: a sentence embedding for what is near, and a classifier with a
        class "clean" for the answers.

    Returns
    -------
    Assessment; with `out` also as a folder of assessment.json, items.jsonl, run.json, report.html and manifest.json.

    Raises
    ------
    InputError : anything that the user can mend; then nothing is written.
    """
    options, started = dict(locals()), time.time()
    check_options(command, options)
    chosen, asked_limits = read_axes(axes), read_limits(limits or {})
    check_limits(asked_limits, chosen)
    texts = read_texts(texts)
    if out is not None:
        check_new(out)
    models = {"before": before, "after": after, "reference": reference}
    check_models(models, processing_class)
    sources = Sources(forget, retain, holdout, question_column, answer_column, prefix_tokens, continuation_tokens)
    classifier = load_encoder(str(gibberish), "classes") if gibberish is not None else None
    clean = class_named(classifier, CLEAN) if classifier else 0
    embedding = load_encoder(str(embedder), "embedding") if embedder is not None else None
    known = read_templates(templates)
    read: dict[str, Any] = {}

    def plan_for(tokenizer: PreTrainedTokenizerBase) -> Plan:
        plan, pairs = make_plan(
            sources,
            tokenizer,
            chosen,
            rows=rows,
            max_new_tokens=max_new_tokens,
            seed=seed,
            templates=known,
            texts=texts,
            embed=None if embedding is None else lambda some: np.asarray(embed(embedding, some), dtype=np.float64),
        )
        read.update({name: about(getattr(sources, name), found) for name, found in pairs.items()})
        return plan

    with without("--skip-bad-rows", "--max-length"):
        plan, findings = ask_in_turn(models, plan_for, processing_class)
    warnings = warnings_of(plan, findings)
    for warning in warnings:
        say(f"warning: {warning}")
    if classifier:
        add_gibberish(findings, classifier, clean)
    measures = judge(all_measures(plan, findings), asked_limits)
    result = Assessment(measures, items_of(findings), curves_of(findings), drift_of(findings), out)
    if out is not None:
        options |= {"axes": list(chosen), "limits": asked_limits, "max_new_tokens": plan.max_new_tokens}
        record = describe(
            command="assess",
            config={name: told(value) for name, value in options.items() if name not in UNSAID},
            seed=seed,
            data=read,
            weights={role: asked.weights for role, asked in findings.asked.items()},
            seconds={"in all": round(time.time() - started, 1)},
            warnings=warnings,
        )
        write(result, record, Path(out))
    return result


def read_axes(given: Sequence[str] | None) -> tuple[str, ...]:
    """Choose axes by name, in their order.

    Raises
    ------
    InputError : a name that is none.
    """
    names = listed(given or AXES)
    check_names(names, AXES, "--axes", "axis")
    return tuple(axis for axis in AXES if axis in names)


def read_texts(given: Sequence[str] | None) -> list[str] | None:
    """Take texts from Python; one alone is a list of one.

    Raises
    ------
    InputError : something in the list is no text.
    """
    if given is None:
        return None
    texts = [given] if isinstance(given, str) else list(given)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"texts[{number}] is {type(text).__name__}: give a list of texts.")
    return texts


def items_of(findings: Findings) -> list[dict[str, Any]]:
    """List every answer, one line each."""
    items = []
    for role, asked in findings.asked.items():
        items += [{"role": role, **answer} for answer in asked.answers]
    return items


def curves_of(findings: Findings) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Mean ROUGE-L of the tested rows at each step of each relearning attack; of the model before that at step 0."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    plain = (a for a in findings.asked["before"].answers if (a["item_set"], a["variant"]) == ("forget", EASY))
    before = {a["id"]: np.nan if a["rouge_l"] is None else a["rouge_l"] for a in plain}
    for role, asked in findings.asked.items():
        for lesson, curve in asked.curves.items():
            means = [mean_of(column) for column in zip(*curve.scores_NS, strict=True)]
            level = mean_of([before.get(id_, np.nan) for id_ in asked.tested[lesson]])
            found.setdefault(lesson, {"before": {"steps": [0.0], "rouge_l": [level]}})
            found[lesson][role] = {"steps": [float(step) for step in curve.steps], "rouge_l": means}
    return found


def drift_of(findings: Findings) -> list[dict[str, Any]]:
    """How far each layer moved."""
    return [d._asdict() for d in findings.comparison.drift] if findings.comparison else []


def warnings_of(plan: Plan, findings: Findings) -> list[str]:
    """Say what was left out, what could not be said, and whether the holdout is of another kind."""
    found = [
        f"{role}: {count} prompts of the variant {variant} leave no room for the answer (--max-new-tokens) in the "
        "model's context and were left out."
        for role, asked in findings.asked.items()
        for variant, count in asked.left_out.items()
    ]
    weights = {role: asked.weights for role, asked in findings.asked.items()}
    if "reference" in weights and weights["reference"] == weights.get("before"):
        found.append(SAME_WEIGHTS)
    if "after" in weights and weights["after"] == weights.get("before"):
        found.append("The model after has the weights of the model before: nothing was forgotten, or a path is wrong.")
    if plan.cut_short:
        found.append(
            f"{plan.cut_short} of {len(plan.forget)} answers to forget have more than {plan.max_new_tokens} tokens "
            "(--max-new-tokens): their ROUGE-L stays below 1 whatever is known of them."
        )
    if "membership" in plan.axes and plan.holdout:
        texts, others = ([f"{p.question} {p.answer}" for p in pairs] for pairs in (plan.forget, plan.holdout))
        found += warnings_of_holdout({WORDS: compare(*word_scores(texts, others, np.random.default_rng(plan.seed)))})
    return found


def write(result: Assessment, record: Mapping[str, Any], out: Path) -> None:
    """Write the folder in one move."""
    with new_folder(out) as folder:
        write_json(folder / "run.json", record)
        write_json(
            folder / "assessment.json",
            {
                "verdict": result.verdict,
                "measures": [asdict(m) for m in result.measures],
                "curves": result.curves,
                "drift": result.drift,
            },
        )
        write_jsonl(folder / "items.jsonl", result.items)
        write_text(folder / "report.html", render_assessment(folder))
        write_manifest(folder)
