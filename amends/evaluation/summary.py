"""The summary of an evaluation: every metric of the items that there are, with its interval, direction and meaning."""

import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from amends.evaluation.intervals import (
    LEAST_ROWS,
    NOWHERE,
    RESAMPLES,
    Direction,
    Interval,
    Items,
    Mean,
    Sets,
    bootstrap_mean,
    entry,
    field,
    interval_of,
    mean_of,
    numbers,
    resampled_means,
)
from amends.evaluation.memorised import BESIDE_NAMES, PRIVACY_NAMES, summarise_beside, summarise_privacy
from amends.evaluation.metrics import (
    LARGEST_LOG,
    ForgetQuality,
    deviation_score,
    forget_quality,
    harmonic_mean,
    model_utility,
    truth_scores,
)
from amends.evaluation.said import (
    FLUENCY_NEEDS,
    FORGET_EVAL,
    SAID_NAMES,
    SIMILARITY,
    fluency_meaning,
    name_thresholds,
    said_means,
)
from amends.maths.arrays import FloatArray


def _truth_of(kind: Literal["forget", "keep"], name: str = "truth_ratio") -> Callable[[Items], FloatArray]:
    """Reader of the truth-ratio score of items."""
    read = field(name)
    return lambda items: truth_scores(read(items), kind)


def _correct(items: Items) -> FloatArray:
    """1 where the choice is the right one."""
    return np.array([item["choice"] == item["gold"] for item in items], dtype=np.float64)


_PROBABILITY, _ROUGE, _REFUSED = field("probability"), field("rouge_l"), field("refused")
_WRONG = "wrong answers to compare with (column perturbed_answer)"
_SAID = "a generated answer"
_WORDS = "a generated answer, and a right one with words to find in it"
_TOKENS = "what its answer's tokens give away (evaluations made before amends kept it have none)"


def _by_heart(item_set: str, what: str, better: Direction, good: str) -> dict[str, Mean]:
    """Describe extraction strength and exact memorisation of the right answers of a question set."""
    told = "given the right words before"
    strength = f"Share of an answer to {what}, from its end, that the model says without a miss {told}"
    tokens = f"Share of the tokens of answers to {what} that are the model's first choice {told}"
    read = field("extraction_strength"), field("exact_memorisation")
    return {
        f"{item_set}_extraction_strength": Mean(item_set, read[0], better, f"{strength}; {better}: {good}.", _TOKENS),
        f"{item_set}_exact_memorisation": Mean(item_set, read[1], better, f"{tokens}; {better}: {good}.", _TOKENS),
    }


def _means(item_set: str, what: str, good: str, forget: bool = False) -> dict[str, Mean]:
    """Probability, ROUGE-L and refusal rate of a question set."""
    know: Direction = "lower" if forget else "higher"
    refuse: Direction = "higher" if forget else "lower"
    probability = f"Probability of the answers to {what}, length-normalised; {know}: {good}."
    rouge = f"Share of the expected words, in order, that the model says to {what} (ROUGE-L recall); {know}: {good}."
    refusal = f"Share of {what} that the model declines or says it does not know; {refuse}: {good}."
    return {
        f"{item_set}_probability": Mean(item_set, _PROBABILITY, know, probability, "a probability"),
        f"{item_set}_rouge_l": Mean(item_set, _ROUGE, know, rouge, _WORDS),
        f"{item_set}_refusal_rate": Mean(item_set, _REFUSED, refuse, refusal, _SAID),
    }


MEANS = {
    **_means("forget", "questions to forget", "more forgotten", forget=True),
    **_means("retain", "questions to keep", "better kept"),
    **_means("general", "unrelated everyday questions", "less harm"),
    "forget_truth_ratio": Mean(
        "forget",
        _truth_of("forget"),
        "higher",
        "Mean of min(R, 1/R), R = probability of wrong answers to the right one's; higher: cannot tell them apart.",
        _WRONG,
    ),
    "retain_truth_ratio": Mean(
        "retain",
        _truth_of("keep"),
        "higher",
        "Mean of max(0, 1 - R) on questions to keep; higher: right answers stand out from wrong ones.",
        _WRONG,
    ),
    "zero_shot_accuracy": Mean(
        "zero_shot",
        _correct,
        "higher",
        "Share of multiple-choice questions answered right without examples; higher: less harm.",
        "a choice",
    ),
    **_by_heart("forget", "questions to forget", "lower", "less known by heart"),
    **_by_heart("retain", "questions to keep", "higher", "better kept"),
    **said_means("forget", "questions to forget"),
    "retain_similarity": SIMILARITY,
}
_LIKE_THEM = "questions like those to forget, not trained on"
FORGET_EVAL_MEANS = {
    **_means(FORGET_EVAL, _LIKE_THEM, "more forgotten", forget=True),
    **said_means(FORGET_EVAL, _LIKE_THEM),
}
REQUEST = re.compile(r"request_([1-9]\d{0,5})")  # set of the questions of an earlier request
UTILITY_SETS = ("retain", "real_authors", "world_facts")
FIRST_NAMES = (
    "forget_probability", "forget_rouge_l", "forget_truth_ratio", "forget_refusal_rate", "forget_quality_p",
    "forget_quality_ks", "retain_probability", "retain_rouge_l", "retain_truth_ratio", "retain_refusal_rate",
    "general_probability", "general_rouge_l", "general_refusal_rate", "model_utility_arith", "model_utility_geo",
    "zero_shot_accuracy", "text_perplexity",
)  # fmt: skip
LATER_NAMES = (
    "forget_extraction_strength", "forget_exact_memorisation", "retain_extraction_strength",
    "retain_exact_memorisation", "deviation_score", *PRIVACY_NAMES,
)  # fmt: skip
"""Not in the evaluations of 0.1.0. New names go to the end: the random streams of the others depend on their places."""
SUMMARY_NAMES = FIRST_NAMES + LATER_NAMES + SAID_NAMES + BESIDE_NAMES


def summarise(
    items: Sets,
    reference_items: Sets | None,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Build the summary of an evaluation file from its items.

    Parameters
    ----------
    items : dict
        Sets of items: forget, retain, real_authors, world_facts, general, forget_eval, holdout, zero_shot, text; any
        may be absent or empty.
        request_1, request_2, ...: those of earlier requests.
    reference_items : dict or None
        The same of a model that never saw the forget rows, for forget quality and PrivLeak.
    seed : int, default 0
        Of the bootstrap. Each metric has its own stream, and rows are put in the order of their ids first, so an
        interval changes neither with the order of rows nor with the metrics that are there.

    Returns
    -------
    dict : every name of `SUMMARY_NAMES` -> {"value", "low", "high": float or None, "n": rows used, "left_out": rows
        without a value, "better": a `Direction`, "meaning": str, "missing": None or the reason}.
        Intervals are 95 % bootstrap over rows; forget_quality_p has none. After them, where they are there, those of
        forget_eval, and probability, ROUGE-L and refusal rate of each earlier request.
    """
    sets = {name: sorted(rows, key=lambda item: str(item.get("id", ""))) for name, rows in items.items()}
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(len(SUMMARY_NAMES))]
    rngs = dict(zip(SUMMARY_NAMES, streams, strict=True))
    found = {name: summarise_mean(metric, sets, rngs[name]) for name, metric in MEANS.items()}
    found |= _summarise_forget_quality(sets, reference_items, rngs["forget_quality_ks"])
    for name in ("model_utility_arith", "model_utility_geo"):
        found[name] = _summarise_utility(sets, name.removeprefix("model_utility_"), rngs[name])
    found["text_perplexity"] = _summarise_perplexity(sets, rngs["text_perplexity"])
    found["forget_fluency"] = _summarise_fluency(sets, "forget", "questions to forget", rngs["forget_fluency"])
    found["deviation_score"] = _summarise_deviation(sets, rngs["deviation_score"])
    found |= summarise_privacy(sets, reference_items, rngs)
    found |= {name: summarise_beside(sets, reference_items, rngs[name]) for name in BESIDE_NAMES}
    extra = _summarise_forget_eval(sets, seed) | _summarise_requests(sets, seed)
    summary = {name: found[name] for name in SUMMARY_NAMES} | extra
    name_thresholds(summary, sets)
    return summary


def _summarise_forget_eval(sets: Sets, seed: int) -> dict[str, dict[str, Any]]:
    """Summarise the rows like those to forget, if there are some; requests count from 1, so 0 is free."""
    if FORGET_EVAL not in sets:
        return {}
    keys = [(0, k) for k in range(1 + len(FORGET_EVAL_MEANS))]
    rng, *rngs = (np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key)) for key in keys)
    fluency = _summarise_fluency(sets, FORGET_EVAL, _LIKE_THEM, rng)
    metrics = zip(FORGET_EVAL_MEANS.items(), rngs, strict=True)
    found = {name: summarise_mean(metric, sets, rng) for (name, metric), rng in metrics}
    return found | {f"{FORGET_EVAL}_fluency": fluency}


def _summarise_requests(sets: Sets, seed: int) -> dict[str, dict[str, Any]]:
    """Summarise earlier requests; their streams depend on their number alone, not on which others are there."""
    found = {}
    for number, name in sorted((int(match[1]), name) for name in sets if (match := REQUEST.fullmatch(name))):
        metrics = _means(name, f"questions of earlier request {number}", "more forgotten", forget=True)
        for k, (metric_name, metric) in enumerate(metrics.items()):
            rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, k)))
            found[metric_name] = summarise_mean(metric, sets, rng)
    return found


def summarise_mean(metric: Mean, sets: Sets, rng: np.random.Generator) -> dict[str, Any]:
    """Write the mean of a measure over its set, with its interval."""
    rows = sets.get(metric.item_set) or []
    values_N = metric.values(rows)
    n = int((~np.isnan(values_N)).sum())
    missing = None
    if not rows:
        missing = f"There are no {metric.item_set} items in this evaluation."
    elif not n:
        missing = f"No {metric.item_set} item has {metric.needs}."
    return entry(
        mean_of(values_N), bootstrap_mean(values_N, rng), n, len(rows) - n, metric.better, metric.meaning, missing
    )


def _summarise_forget_quality(
    sets: Sets,
    reference_items: Sets | None,
    rng: np.random.Generator,
) -> dict[str, dict[str, Any]]:
    rows = sets.get("forget") or []
    reference_rows = sorted((reference_items or {}).get("forget") or [], key=lambda item: str(item.get("id", "")))
    ratio_N, reference_N = field("truth_ratio")(rows), field("truth_ratio")(reference_rows)
    n, num_reference = int((~np.isnan(ratio_N)).sum()), int((~np.isnan(reference_N)).sum())
    missing = None
    if not rows:
        missing = "There are no forget items in this evaluation."
    elif not n:
        missing = f"No forget item has {_WRONG}."
    elif reference_items is None:
        missing = "There is no reference, a model trained without the forget rows, to compare with."
    elif not num_reference:
        missing = "The reference has no truth ratios on forget items."
    elif [str(item.get("id")) for item in rows] != [str(item.get("id")) for item in reference_rows]:
        missing = "The reference was asked other forget questions."
    quality = ForgetQuality(np.nan, np.nan, n, num_reference, np.nan, np.nan)
    if missing is None:
        quality = forget_quality(ratio_N, reference_N, rng)
    p_meaning = "p of the Kolmogorov-Smirnov test of truth ratios against the reference; higher: no difference found."
    ks_meaning = "Largest gap (0 to 1) between the truth ratios' distributions of model and reference; lower: closer."
    left_out = len(rows) - n
    return {
        "forget_quality_p": entry(quality.p, NOWHERE, n, left_out, "higher", p_meaning, missing),
        "forget_quality_ks": entry(
            quality.statistic, Interval(quality.low, quality.high), n, left_out, "lower", ks_meaning, missing
        ),
    }


def _summarise_utility(sets: Sets, mean: str, rng: np.random.Generator) -> dict[str, Any]:
    ratio = "truth_ratio" if mean == "geo" else "truth_ratio_arith"
    readers = (_PROBABILITY, _ROUGE, _truth_of("keep", ratio))
    columns = {name: np.column_stack([read(sets.get(name) or []) for read in readers]) for name in UTILITY_SETS}
    lacking = [name for name, values_N3 in columns.items() if not (~np.isnan(values_N3)).any(axis=0).all()]
    kind = "arithmetic (TOFU)" if mean == "arith" else "geometric (OpenUnlearning)"
    meaning = f"Harmonic mean of probability, ROUGE-L and truth ratio on three sets to keep, {kind}; higher: less harm."
    n = sum(int((~np.isnan(values_N3)).all(axis=1).sum()) for values_N3 in columns.values())
    left_out = sum(map(len, columns.values())) - n
    if lacking:
        needed = f"It needs probability, rouge_l and {ratio} on {', '.join(UTILITY_SETS)}"
        missing = f"{needed}; not complete: {', '.join(lacking)}."
        return entry(np.nan, NOWHERE, n, left_out, "higher", meaning, missing)
    value = model_utility([mean_of(values_N) for values_N3 in columns.values() for values_N in values_N3.T])
    resampled_R9 = np.hstack([resampled_means(values_N3, rng, RESAMPLES) for values_N3 in columns.values()])
    fewest = min(int((~np.isnan(values_N3)).sum(axis=0).min()) for values_N3 in columns.values())
    interval = interval_of(harmonic_mean(resampled_R9)) if fewest >= LEAST_ROWS else NOWHERE
    return entry(value, interval, n, left_out, "higher", meaning, None)


def _summarise_perplexity(sets: Sets, rng: np.random.Generator) -> dict[str, Any]:
    meaning = "Perplexity per token on a public-domain book: exp of the nats per token; lower: less harm."
    return _perplexity(sets, "text", ("nats", "tokens"), meaning, "nats and tokens", rng)


def _summarise_fluency(sets: Sets, item_set: str, what: str, rng: np.random.Generator) -> dict[str, Any]:
    return _perplexity(sets, item_set, ("said_nats", "said_tokens"), fluency_meaning(what), FLUENCY_NEEDS, rng)


def _perplexity(
    sets: Sets, item_set: str, columns: tuple[str, str], meaning: str, needs: str, rng: np.random.Generator
) -> dict[str, Any]:
    """Exp of the sum of the nats over the sum of the tokens."""
    rows = sets.get(item_set) or []
    both_N2 = np.column_stack([field(name)(rows) for name in columns])
    both_N2 = both_N2[~np.isnan(both_N2).any(axis=1) & (both_N2[:, 1] > 0)]
    n = len(both_N2)
    if not n:
        missing = f"No {item_set} item has {needs}." if rows else f"There are no {item_set} items in this evaluation."
        return entry(np.nan, NOWHERE, 0, len(rows), "lower", meaning, missing)

    def perplexity(means_K2: FloatArray) -> FloatArray:
        return np.exp(np.minimum(means_K2[:, 0] / means_K2[:, 1], LARGEST_LOG))

    interval = interval_of(perplexity(resampled_means(both_N2, rng, RESAMPLES))) if n >= LEAST_ROWS else NOWHERE
    value = float(perplexity(both_N2.mean(axis=0, keepdims=True))[0])
    return entry(value, interval, n, len(rows) - n, "lower", meaning, None)


def _summarise_deviation(sets: Sets, rng: np.random.Generator) -> dict[str, Any]:
    """Deviation score; Shen et al. 2025 (arXiv 2502.07218) has it with ROUGE-1 where this has ROUGE-L recall."""
    forget_N, retain_N = (_ROUGE(sets.get(name) or []) for name in ("forget", "retain"))
    said = [numbers(values_N) for values_N in (forget_N, retain_N)]
    n = sum(map(len, said))
    left_out = len(forget_N) + len(retain_N) - n
    meaning = "Distance (0 to 141) from saying no word of the answers to forget and all to keep; lower: nearer to both."
    lacking = [name for name, values_N in zip(("forget", "retain"), said, strict=True) if not values_N.size]
    if lacking:
        missing = f"It needs {_SAID} on questions to forget and to keep; there is none on {' and '.join(lacking)}."
        return entry(np.nan, NOWHERE, n, left_out, "lower", meaning, missing)
    value = deviation_score(*(values_N.mean() for values_N in said))
    resampled = [resampled_means(values_N[:, None], rng, RESAMPLES)[:, 0] for values_N in said]
    interval = interval_of(deviation_score(*resampled)) if min(map(len, said)) >= LEAST_ROWS else NOWHERE
    return entry(float(value), interval, n, left_out, "lower", meaning, None)
