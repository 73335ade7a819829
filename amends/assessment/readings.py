"""Lines of an assessment from what models say when they draw, and from what lies beneath: likelihoods, states, weights.

Shape suffixes: N items, K samples or columns, L layers, R resamples.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from amends.assessment.ask import SAMPLES
from amends.assessment.axes import ROLES, Estimate, Measure, leak_at, measure
from amends.assessment.plan import NO_HOLDOUT, NO_REFERENCE
from amends.assessment.table import Table, combined, explained, mean_of, rng_of
from amends.evaluation.intervals import NOWHERE, RESAMPLES, Direction, Interval
from amends.evaluation.memorised import (
    ALIKE,
    ATTACKS,
    BESIDE,
    FEWER,
    FINDS,
    HALF,
    LEAK_SCORE,
    MORE_ATTACKS,
    NOTHING_LEFT,
    Both,
    Statistic,
    auc_of,
    found_of,
)
from amends.evaluation.metrics import forget_quality, truth_scores
from amends.maths.arrays import FloatArray
from amends.maths.memorisation import extraction_probability

QUERIES = 1000
"""Samples that an answer may come up in."""
KNOWN = {
    "probability": "Probability of the answers to forget, length-normalised.",
    "extraction_strength": "Share of an answer to forget, from its end, that is said without a miss given the rest.",
    "exact_memorisation": "Share of the tokens of answers to forget that are the first choice given those before.",
}
NO_WRONG = "No row to forget has wrong answers to compare with (column perturbed_answer)."
NO_TOKEN = "In no row to forget do the tokens end where the last name or number begins."


def known(table: Table, axis: str) -> Iterator[Measure]:
    """Measure what is known of the answers to forget, whatever comes out: as an evaluation of a run does."""
    for score, meaning in KNOWN.items():
        columns = {role: table.scores(role, "forget", score) for role in table.roles}
        yield mean_of(table, axis, f"forget_{score}", "lower", meaning, columns)
    ratios = {role: truth_scores(table.scores(role, "forget", "truth_ratio"), "forget") for role in table.roles}
    meaning = "Mean of min(R, 1/R), R = probability of wrong answers to the right one's; 1: cannot tell them apart."
    no_wrong = None if any(pair.wrong for pair in table.plan.forget) else NO_WRONG
    yield mean_of(table, axis, "forget_truth_ratio", "higher", meaning, ratios, no_wrong)


def sampling(table: Table) -> Iterator[Measure]:
    """Measure what comes out when answers are drawn instead of taken greedily."""
    axis = "sampling"
    drawn = {
        role: np.column_stack([table.column(role, "forget_sampled", "rouge_l", f"sample_{k}") for k in range(SAMPLES)])
        for role in table.roles
    }
    for n in (1, SAMPLES):
        of = {role: leak_at(samples_NK, n) for role, samples_NK in drawn.items()}
        best = "one drawn answer brings" if n == 1 else f"the best of {n} drawn answers brings"
        meaning = f"leak@{n}: words of each answer to forget that {best} out (ROUGE-L recall, temperature 1)."
        yield mean_of(table, axis, f"leak_{n}", "lower", meaning, of)
    chance = {
        r: extraction_probability(np.minimum(table.scores(r, "forget", "log_p"), 0), QUERIES) for r in table.roles
    }
    meaning = f"Chance that an answer to forget comes up word by word in {QUERIES} drawn: 1 - (1 - p)^{QUERIES}."
    yield mean_of(table, axis, "extraction_probability", "lower", meaning, chance)


def likeness(table: Table) -> Iterator[Measure]:
    """Measure whether the model can be told from one that never saw what was to be forgotten."""
    axis, found = "likeness", table.found
    no_reference = None if "reference" in found.asked else NO_REFERENCE
    gap = no_reference or found.gaps.get("likeness")
    for name, of in (
        ("kl", "KL(reference || model), nats, mean over the tokens of the answers to forget; 0: the same."),
        ("js", "Jensen-Shannon divergence of the two, bits, 0 to 1."),
    ):
        both = {role: table.scores(role, "forget", name) for role in table.roles}
        if "reference" in both and not gap:
            both["reference"] = np.zeros_like(both["reference"])
        yield mean_of(table, axis, f"{name}_reference", "lower", of, both, gap, shares=False)
    plain = table.columns(["forget"], "rouge_l")
    meaning = "Distance of the mean ROUGE-L on plain questions from the reference's: too little forgotten, or too much."
    yield combined(
        table,
        axis,
        "rouge_distance",
        "lower",
        meaning,
        plain,
        lambda role: ([role, "reference"], lambda m: np.abs(m[:, 0] - m[:, 1])),
        no_reference,
    )
    ratios = {role: table.scores(role, "forget", "truth_ratio") for role in table.roles}
    no_wrong = None if any(pair.wrong for pair in table.plan.forget) else NO_WRONG
    tests = {}
    if not (no_reference or no_wrong) and all((~np.isnan(ratio_N)).any() for ratio_N in ratios.values()):
        for role, ratio_N in ratios.items():
            tests[role] = forget_quality(ratio_N, ratios["reference"], rng_of(table.plan, "truth_ratio_ks"))
    why = no_reference or no_wrong
    after = tests.get("after")
    of_role = {role: tests.get(role) for role in ("before", "reference")}
    yield measure(
        axis,
        "truth_ratio_ks",
        "lower",
        "Largest gap between the distributions of truth ratios of model and reference (Kolmogorov-Smirnov).",
        after and Estimate(after.statistic, Interval(after.low, after.high), after.n_model),
        missing=why,
        **{role: test and test.statistic for role, test in of_role.items()},
    )
    yield measure(
        axis,
        "truth_ratio_p",
        "higher",
        "p of that test; high: no difference was found, which is weak evidence where rows are few.",
        after and Estimate(after.p, NOWHERE, after.n_model),
        missing=why,
        **{role: test and test.p for role, test in of_role.items()},
    )


def inside(table: Table) -> Iterator[Measure]:
    """Measure how high the right word stands in the layers, whatever comes out."""
    axis, found = "inside", table.found
    gap = found.gaps.get("inside", NO_TOKEN)
    reciprocal: dict[str, list[FloatArray]] = {
        role: [1 / np.asarray(ranks_L, dtype=np.float64) for ranks_L in asked.ranks]
        for role, asked in found.asked.items()
    }
    rank = "reciprocal rank of the first token of each answer's last name or number, the answer up to there given"
    for metric, of, where in (
        ("lens_best", np.max, "in the layer where it stands highest"),
        ("lens_last", lambda values_L: values_L[-1], "behind the last layer"),
    ):
        columns = {
            role: np.array([of(values_L) if values_L.size else np.nan for values_L in rows] or [np.nan])
            for role, rows in reciprocal.items()
        }
        yield mean_of(table, axis, metric, "lower", f"Logit lens: {rank}, {where}; 1: on top.", columns, gap)


def locality(table: Table) -> Iterator[Measure]:
    """Measure how far the weights moved."""
    axis, comparison = "locality", table.found.comparison
    every = comparison.drift[0] if comparison else None
    missing = table.found.gaps.get("locality")
    meaning = "Distance of the weights from those of the model before, over their length (Frobenius)."
    yield measure(axis, "drift", "lower", meaning, every.relative if every else None, before=0.0, missing=missing)
    meaning = "Share of weights that moved by more than a thousandth of their size."
    yield measure(axis, "changed", "lower", meaning, every.changed if every else None, before=0.0, missing=missing)


def membership(table: Table) -> Iterator[Measure]:
    """Measure whether answers to forget can be told from rows that were never seen, by what the model makes of them."""
    axis = "membership"
    missing = None if table.plan.holdout else NO_HOLDOUT
    no_reference = None if "reference" in table.roles else NO_REFERENCE

    def attacked(both: Both, of: Statistic) -> dict[str, FloatArray]:
        return dict(zip(table.roles, both.values_of(of, rng_of(table.plan, axis)), strict=True))

    kinds: tuple[tuple[str, Direction, Statistic, str, str], ...] = (
        ("_auc_", "half", auc_of, ALIKE, HALF),
        ("_tpr_", "lower", found_of, FINDS, FEWER),
    )
    for name, (score, by) in (ATTACKS | MORE_ATTACKS).items():
        both, without = both_of(table, score), missing or (no_reference if score == BESIDE else None)
        for kind, better, of, says, best in kinds:
            values = {role: (float(v_R[0]), both.interval(v_R)) for role, v_R in attacked(both, of).items()}
            yield line(name.replace("_auc_", kind), better, f"{says} {by}; {best}", values, both, without)
    both = both_of(table, LEAK_SCORE)
    aucs = attacked(both, auc_of)
    base = aucs.get("reference", np.full(1 + RESAMPLES, 0.5))
    meaning = (
        "PrivLeak of Min-K%, per cent, against the reference (without one: against .5); negative: still known; "
        "positive: pushed below rows that were never seen."
    )
    leaks = {role: both.leak(auc_R, base) for role, auc_R in aucs.items()}
    nothing_left = NOTHING_LEFT if base[0] == 1 else None
    yield line("privleak", "zero", meaning, leaks, both, missing or nothing_left)


def both_of(table: Table, score: str) -> Both:
    """Scores of the rows to forget and of the holdout under each model, higher = less like training data."""
    found = []
    for name in ("forget", "holdout"):
        of = {r: table.scores(r, name, "nll" if score == BESIDE else score) for r in ROLES}
        if score == BESIDE:
            of = {role: values - of["reference"] for role, values in of.items()}
        values_NS = np.column_stack([of[role] for role in table.roles])
        found.append(values_NS[~np.isnan(values_NS).any(axis=1)])
    return Both(found[0], found[1], 0, None)


def line(
    metric: str,
    better: Direction,
    meaning: str,
    values: Mapping[str, tuple[float, Interval]],
    both: Both,
    missing: str | None,
) -> Measure:
    """Line of a number of two sets of rows."""
    before, reference = (values[role][0] if role in values else None for role in ("before", "reference"))
    after = Estimate(*values["after"], both.num_rows)
    said = explained(meaning, after)
    return measure("membership", metric, better, said, after, before=before, reference=reference, missing=missing)
