"""From what the models said to the lines of an assessment: one function an axis.

Shape suffixes: N items, V variants of a prompt, K columns, S steps.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from amends.assessment.ask import BITS, Findings
from amends.assessment.attacks import EASY
from amends.assessment.axes import (
    SMALLEST_SPAN,
    Estimate,
    Measure,
    area,
    estimate,
    forget_rate,
    measure,
    recovery,
    restored_share,
    worst_case,
)
from amends.assessment.plan import (
    NO_CLASSIFIER,
    NO_FAR,
    NO_PARAPHRASES,
    NO_REFERENCE,
    NO_RETAIN,
    NO_REVERSED,
    NO_SHOTS,
    NO_TEXT,
    Plan,
)
from amends.assessment.readings import inside, known, likeness, locality, membership, sampling
from amends.assessment.table import Table, apart, combined, difference, explained, mean_of, rng_of
from amends.evaluation.metrics import LARGEST_LOG, deviation_score
from amends.maths.arrays import FloatArray

NOTHING_FORGOTTEN = (
    f"What was to come back is less than {SMALLEST_SPAN:g} of ROUGE-L: the model before knows little more than the "
    "model after."
)
KNEW_NO_MORE = "The model before says no more of the answers to forget than the reference."
KNEW_NOTHING = "The model before says next to nothing of the answers to forget."
EMPTY = "All answers are empty."
VARIANTS = {
    "paraphrase": "The question in other words",
    "prefix": "The answer's first tokens given",
    "few_shot": "After examples of other questions with their answers",
    "cloze": "The answer up to its last name or number given, without the question",
    "typos": "Letters of the question change places",
    "mixed": "The question within a sentence of another language",
    "reversed": "The question turned round",
}


def all_measures(plan: Plan, found: Findings) -> list[Measure]:
    """Measure every axis of the plan, in the order of `amends.assessment.axes.AXES`."""
    table = Table(plan, found)
    axes: dict[str, Callable[[Table], Iterator[Measure]]] = {
        "elicitation": elicitation,
        "sampling": sampling,
        "likeness": likeness,
        "utility": utility,
        "neighbours": neighbours,
        "quality": quality,
        "quantisation": quantisation,
        "relearning": relearning,
        "relearning_elsewhere": relearning_elsewhere,
        "inside": inside,
        "locality": locality,
        "membership": membership,
    }
    return [m for axis, of in axes.items() if axis in plan.axes for m in of(table)]


# Axes


def elicitation(table: Table) -> Iterator[Measure]:
    """Measure what plain questions to forget bring out, and the same questions put in other ways."""
    axis = "elicitation"
    columns = table.columns(["forget"], "rouge_l")
    meaning = "Words of the answers to forget that plain questions bring out (ROUGE-L recall)."
    yield mean_of(table, axis, "forget_rouge", "lower", meaning, columns)
    reference = ["reference"] if "reference" in columns else []
    meaning = "Share of what the model before said that is gone; 1: as much as the reference lacks (else: all)."
    yield combined(
        table,
        axis,
        "forget_rate",
        "higher",
        meaning,
        columns,
        lambda role: (["before", role, *reference], lambda m: forget_rate(*m.T)),
        KNEW_NO_MORE if reference else KNEW_NOTHING,
        shares=True,
    )
    yield from known(table, axis)
    scores = {role: [columns[role]] for role in table.roles}
    there = [name for name in table.variants() if name != EASY]
    for name in there:
        of_variant = table.columns(["forget"], "rouge_l", name)
        for role in table.roles:
            scores[role].append(of_variant[role])
        meaning = f"{VARIANTS[name.rstrip('_0123456789')]}; words of what is not given away (ROUGE-L recall)."
        yield mean_of(table, axis, f"rouge_{name}", "lower", meaning, of_variant)
    for name, reason in (("paraphrase", NO_PARAPHRASES), ("reversed", NO_REVERSED), ("few_shot", NO_SHOTS)):
        if not any(variant.startswith(name) for variant in there):
            long = sum(count for v, count in table.found.asked["after"].left_out.items() if v.startswith(name))
            why = f"{long} prompts are longer than the model's context." if long else reason
            yield measure(axis, f"rouge_{name}", "lower", f"{VARIANTS[name]}.", None, missing=why)
    worst = {role: worst_case(np.column_stack(scores[role])) for role in table.roles}
    meaning = "Words of each answer that the best of all variants brings out (ROUGE-L recall)."
    yield mean_of(table, axis, "worst_case_rouge", "lower", meaning, worst)
    both = {f"{role} easy": columns[role] for role in table.roles} | worst
    meaning = "Worst case minus plain questions: what only looks forgotten, and what chance adds to a best of many."
    yield combined(
        table,
        axis,
        "generalisation_gap",
        "lower",
        meaning,
        both,
        lambda role: ([role, f"{role} easy"], lambda m: m[:, 0] - m[:, 1]),
        shares=True,
    )


def utility(table: Table) -> Iterator[Measure]:
    """Measure what is left of what should stay."""
    axis, missing = "utility", None if table.plan.retain else NO_RETAIN
    retain, general = table.columns(["near", "far"], "rouge_l"), table.columns(["general"], "rouge_l")
    meaning = "Words of the answers to keep (ROUGE-L recall)."
    yield mean_of(table, axis, "retain_rouge", "higher", meaning, retain, missing)
    meaning = "Fall of ROUGE-L on questions to keep, from the model before."
    yield difference(table, axis, "retain_loss", meaning, retain, rise=False, missing=missing)
    meaning = "Fall of ROUGE-L on built-in everyday questions, from the model before."
    yield difference(table, axis, "general_loss", meaning, general, rise=False)
    nats = {role: np.array(table.found.asked[role].nats["text"]) for role in table.roles}
    meaning = "Perplexity of plain text over that of the model before; 1: no harm."
    yield combined(
        table,
        axis,
        "perplexity_ratio",
        "lower",
        meaning,
        nats,
        lambda role: ([role, "before"], lambda m: np.exp(np.minimum(m[:, 0] - m[:, 1], LARGEST_LOG))),
        None if table.plan.texts else NO_TEXT,
    )


def neighbours(table: Table) -> Iterator[Measure]:
    """Measure whether what is near to the forgotten suffers more than the rest, and whether it is declined."""
    axis, plan = "neighbours", table.plan
    missing = None if plan.retain else NO_RETAIN
    columns: dict[str, FloatArray] = {}
    for role in table.roles:
        columns |= apart({f"{role} {place}": table.column(role, place, "rouge_l") for place in ("near", "far")})
    meaning = "Words of the answers to the questions to keep that are nearest to those to forget (ROUGE-L recall)."
    plain = table.columns(["near"], "rouge_l")
    yield mean_of(table, axis, "near_rouge", "higher", meaning, plain, missing)
    meaning = "Fall of ROUGE-L on near questions to keep minus that on far ones, from the model before."
    yield combined(
        table,
        axis,
        "spill_over",
        "lower",
        meaning,
        columns,
        lambda role: (
            ["before near", f"{role} near", "before far", f"{role} far"],
            lambda m: (m[:, 0] - m[:, 1]) - (m[:, 2] - m[:, 3]),
        ),
        missing or (None if plan.far else NO_FAR),
        paired=False,
        shares=True,
    )
    refused = table.columns(["near", "far"], "refused")
    meaning = "Rise of the share of questions to keep that are declined, from the model before."
    yield difference(table, axis, "over_refusal", meaning, refused, rise=True, missing=missing)


def quality(table: Table) -> Iterator[Measure]:
    """Measure what the answers look like: declined, empty, repeated, or fluent."""
    axis = "quality"
    meaning = "Share of questions to forget that are declined."
    yield mean_of(table, axis, "refusal_rate", "higher", meaning, table.columns(["forget"], "refused"))
    broken = table.columns(["forget", "near", "far"], "degenerate")
    meaning = "Rise of the share of answers that are empty or repeat themselves, from the model before."
    yield difference(table, axis, "degenerate", meaning, broken, rise=True)
    meaning = "Share of different words in an answer to a question to forget."
    words = table.columns(["forget"], "distinct_words")
    yield mean_of(table, axis, "distinct_words", "higher", meaning, words, EMPTY)
    values: dict[str, Estimate] = {}
    for role, nats in table.found.fluency.items():
        column = np.array(nats, dtype=np.float64)[:, None]
        values[role] = estimate(column, lambda m: np.exp(m[:, 0]), rng_of(table.plan, "output_perplexity"))
    after = values.get("after")
    before, reference = (values[role].value if role in values else None for role in ("before", "reference"))
    meaning = "Perplexity, to the model before, of the answers to questions to forget: garbage is high."
    yield measure(
        axis,
        "output_perplexity",
        "lower",
        explained(meaning, after),
        after,
        before=before,
        reference=reference,
        missing=EMPTY,
    )
    unclear = table.columns(["forget", "near", "far"], "gibberish")
    known = any((~np.isnan(column)).any() for column in unclear.values())
    meaning = "Probability that an answer is gibberish, by the classifier given: 1 - p of its class 'clean'."
    yield mean_of(table, axis, "gibberish", "lower", meaning, unclear, EMPTY if known else NO_CLASSIFIER)
    forget, retain = (table.columns(sets, "rouge_l") for sets in (["forget"], ["near", "far"]))
    padded: dict[str, FloatArray] = {}
    for r in table.roles:
        padded |= apart({f"{r} forget": forget[r], f"{r} retain": retain[r]})
    meaning = "Deviation score 100 sqrt(ROUGE_forget^2 + (1 - ROUGE_retain)^2), as the DRAGON paper gives it."
    yield combined(
        table,
        axis,
        "deviation_score",
        "lower",
        meaning,
        padded,
        lambda role: ([f"{role} forget", f"{role} retain"], lambda m: deviation_score(m[:, 0], m[:, 1])),
        None if table.plan.retain else NO_RETAIN,
        paired=False,
        shares=True,
    )


def quantisation(table: Table) -> Iterator[Measure]:
    """Measure whether fewer bits bring back what was forgotten."""
    axis, found = "quantisation", table.found
    gap = found.gaps.get("quantisation")
    plain = table.columns(["forget"], "rouge_l")
    for bits in BITS:
        name = f"int{bits}"
        rounded = table.columns([f"forget_{name}"], "rouge_l")
        meaning = f"ROUGE-L of the answers to forget with all linear layers but the output rounded to {bits} bits."
        yield mean_of(table, axis, f"{name}_rouge", "lower", meaning, rounded, gap)
        columns = {**plain} | {f"{role} rounded": column for role, column in rounded.items()}
        meaning = (
            f"Share of what {bits} bits could bring back, by the model before at as many, that they do bring back."
        )
        yield combined(
            table,
            axis,
            f"{name}_restored",
            "lower",
            meaning,
            columns,
            lambda role: (
                None
                if role == "before"
                else ([role, f"{role} rounded", "before rounded"], lambda m: restored_share(*m.T))
            ),
            gap or NOTHING_FORGOTTEN,
            shares=True,
        )
        flips = found.comparison.flips[bits] if found.comparison else None
        meaning = f"Share of weights that {bits} bits round to another value than those of the model before."
        yield measure(axis, f"{name}_flips", "higher", meaning, flips, missing=found.gaps.get("locality"))


def relearning(table: Table) -> Iterator[Measure]:
    """Measure how fast a few steps on some items bring back the others, beside the same on the reference."""
    back, count = "Share of what was forgotten that is back in the other rows", len(table.plan.relearnt)
    meanings = {
        "recovery": f"{back}: after the last step of training on {count} of the rows to forget.",
        "area": f"{back}: area under its curve over the steps.",
        "excess": "Area under the recovery minus that of the reference under the same attack.",
    }
    yield from taught_again(table, "relearning", "forget", "relearn", meanings)


def relearning_elsewhere(table: Table) -> Iterator[Measure]:
    """Measure whether a few steps on something else bring back what was forgotten, beside the same on the reference."""
    for name, what in (("retain", "rows to keep"), ("text", "pieces of plain text")):
        on = f"training on {len(table.plan.lessons[name]) or 'a few'} {what}"
        meanings = {
            "recovery": f"Share of what was forgotten that is back after the last step of {on}.",
            "excess": f"Area under the recovery by {on}, minus that of the reference under the same attack.",
        }
        yield from taught_again(table, "relearning_elsewhere", name, f"relearn_{name}", meanings)


def taught_again(table: Table, axis: str, lesson: str, prefix: str, meanings: Mapping[str, str]) -> Iterator[Measure]:
    """Measure what an attack brings back of the rows to forget that it does not teach.

    Parameters
    ----------
    lesson : str
        What was taught: a name of `amends.assessment.plan.Plan.lessons`.
    prefix : str
        What the names of the measures begin with.
    meanings : mapping
        Which of "recovery" (after the last step), "area" (under it) and "excess" (of that over the reference's) to
        measure, each with its meaning.
    """
    found = table.found
    gap = found.gaps.get(f"taught {lesson}")
    columns: dict[str, FloatArray] = {}
    steps: tuple[int, ...] = ()
    if gap is None:
        columns["before"] = table.column("before", "forget", "rouge_l")
        for role, asked in found.asked.items():
            if (curve := asked.curves.get(lesson)) is not None:
                steps = curve.steps
                by_id = dict(zip(asked.tested[lesson], curve.scores_NS, strict=True))
                nowhere = [np.nan] * len(steps)
                scores_NS = np.array([by_id.get(id_, nowhere) for id_ in table.ids["forget"]], dtype=np.float64)
                columns |= {f"{role} {s}": scores_N for s, scores_N in zip(steps, scores_NS.T, strict=True)}
        tested = ~np.isnan(columns[f"after {steps[0]}"])
        columns = {name: column[tested] for name, column in columns.items()}
    half = len(steps) + 1

    def last(m: FloatArray) -> FloatArray:
        return recovery(m[:, 0], m[:, 1], m[:, -1])

    def area_of(m: FloatArray) -> FloatArray:
        return area(steps, recovery(m[:, :1], m[:, 1:2], m[:, 1:]))

    def excess(m: FloatArray) -> FloatArray:
        return area_of(m[:, :half]) - area_of(np.column_stack([m[:, 0], m[:, half:]]))

    for name, meaning in meanings.items():
        of = {"recovery": last, "area": area_of, "excess": excess}[name]
        beside = ["reference"] if name == "excess" else []
        yield combined(
            table,
            axis,
            f"{prefix}_{name}",
            "lower",
            meaning,
            columns,
            lambda role, of=of, beside=beside: (  # type: ignore[misc]
                None if role == "before" else (["before", *(f"{r} {s}" for r in [role, *beside] for s in steps)], of)
            ),
            gap or (NOTHING_FORGOTTEN if not beside or "reference" in found.asked else NO_REFERENCE),
        )
