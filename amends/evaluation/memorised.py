"""What the tokens of an answer give away: how much is known by heart, and whether the row looks like training data.

All of it follows from four numbers of each token of the right answer, with the right tokens before it
(`amends.lm.logprobs.token_statistics`), so from the pass that gives the answer's probability. The token that closes the
answer counts as one of it, as it does there.

Definitions are those of OpenUnlearning (arXiv 2506.12618) but for extraction strength, which can be 0 here; they are in
`amends.maths.memorisation`. Log-probabilities are in nats. Scores of membership: higher = less like training data.

Shape suffixes: T tokens of an answer, N rows to forget, M rows of the holdout set, R resamples, S models.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amends.evaluation.intervals import (
    LEAST_ROWS,
    NOWHERE,
    RESAMPLES,
    Direction,
    Interval,
    Items,
    Sets,
    counts,
    entry,
    field,
    interval_of,
    saturated,
)
from amends.maths.arrays import FloatArray
from amends.maths.memorisation import exact_memorisation, extraction_strength, min_k, standardised, zlib_ratio

FALSE_ALARMS = 0.01
LEAST_VARIANCE = 1e-6
DIGITS = 7
"""What single precision holds; more would only make files longer."""

# Of one answer


def answer_scores(tokens_T4: FloatArray, answer: str) -> dict[str, float]:
    """All that is kept of the tokens of a row's right answer.

    Parameters
    ----------
    tokens_T4 : array (tokens, 4)
        From `amends.lm.logprobs.token_statistics`.
    answer : str
        Its text.

    Returns
    -------
    dict : extraction_strength and exact_memorisation, 0 to 1; nll, mean over the tokens, nats; nll_per_zlib_byte, that
        over the length of the compressed text; min_k_40 and min_k_20, mean NLL of the least likely 40 and 20 % of the
        tokens; min_k_plus_40, as min_k_40 of standardised log-probabilities.
    """
    logp_1T, is_right_1T, mean_1T, variance_1T = np.asarray(tokens_T4, dtype=np.float64).T[:, None]
    standard_1T = standardised(logp_1T, mean_1T, np.sqrt(np.maximum(variance_1T, LEAST_VARIANCE)))
    nll_1 = -logp_1T.mean(axis=1)
    found = {
        "extraction_strength": extraction_strength(is_right_1T),
        "exact_memorisation": exact_memorisation(is_right_1T),
        "nll": nll_1,
        "nll_per_zlib_byte": -zlib_ratio(nll_1, [answer]),
        "min_k_40": -min_k(logp_1T, 0.4),
        "min_k_20": -min_k(logp_1T, 0.2),
        "min_k_plus_40": -min_k(standard_1T, 0.4),
    }
    return {name: float(f"{value[0]:.{DIGITS}g}") for name, value in found.items()}


# Rows to forget against rows that no model saw


def true_positive_rate(forget_N: ArrayLike, holdout_M: ArrayLike) -> float:
    """Share of rows to forget that are found by a threshold with at most FALSE_ALARMS in the holdout set.

    Parameters
    ----------
    forget_N, holdout_M : array (rows,), some of each
        Scores, higher = less like training data.

    Returns
    -------
    float, 0 to 1. With fewer than 100 holdout rows no false alarm is allowed.
    """
    forget_N, holdout_M = np.asarray(forget_N, dtype=np.float64), np.asarray(holdout_M, dtype=np.float64)
    return float(found_of(forget_N, holdout_M, np.ones((1, forget_N.size)), np.ones((1, holdout_M.size)))[0])


def priv_leak(auc_model: ArrayLike, auc_reference: ArrayLike = 0.5) -> FloatArray:
    """PrivLeak = 100 [(1 - AUC) - (1 - AUC_ref)] / (1 - AUC_ref), per cent; NaN where AUC_ref is 1.

    -100: forget looks like training data throughout; 0: as to the reference; above 0: less so than to the reference.

    Parameters
    ----------
    auc_model, auc_reference : array
        AUC of an attack, 1 where forget looks like training data.

    Source: MUSE, Shi et al. 2024 (arXiv 2407.06460), which writes 1 - AUC, so that its sign is this one: below 0 too
    little was forgotten, above 0 too much.
    """
    there, reference = (1 - np.asarray(a, dtype=np.float64) for a in (auc_model, auc_reference))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(reference > 0, 100 * (there - reference) / reference, np.nan)


def auc_of(forget_N: FloatArray, holdout_M: FloatArray, forget_RN: FloatArray, holdout_RM: FloatArray) -> FloatArray:
    """`amends.maths.memorisation.auc` of resamples (R,), given how often each row is drawn.

    Scores are higher for what is less like training data, so this is the AUC of minus the scores, 1: forget looks like
    training data.
    """
    lower_N, upper_N, below_RM = _places(forget_N, holdout_M, holdout_RM)
    num_holdout_R1 = below_RM[:, -1:]
    above_RN = num_holdout_R1 - (below_RM[:, lower_N] + below_RM[:, upper_N]) / 2
    return np.asarray((forget_RN * above_RN / num_holdout_R1).sum(axis=1) / forget_RN.sum(axis=1))


def found_of(forget_N: FloatArray, holdout_M: FloatArray, forget_RN: FloatArray, holdout_RM: FloatArray) -> FloatArray:
    """`true_positive_rate` of resamples (R,)."""
    _, upper_N, below_RM = _places(forget_N, holdout_M, holdout_RM)
    # What lies under the first score up to which more than the allowed number of holdout rows lie is found.
    first_R1 = (below_RM[:, 1:] > FALSE_ALARMS * below_RM[:, -1:]).argmax(axis=1)[:, None]
    return np.asarray((forget_RN * (upper_N <= first_R1)).sum(axis=1) / forget_RN.sum(axis=1))


def _places(
    forget_N: FloatArray, holdout_M: FloatArray, holdout_RM: FloatArray
) -> tuple[NDArray[np.intp], NDArray[np.intp], FloatArray]:
    """Holdout rows below each row to forget, those not above it, and how often the lowest 0..M of them are drawn."""
    order_M = np.argsort(holdout_M)
    lower_N, upper_N = (np.searchsorted(holdout_M[order_M], forget_N, side=side) for side in ("left", "right"))
    return lower_N, upper_N, np.pad(np.cumsum(holdout_RM[:, order_M], axis=1), ((0, 0), (1, 0)))


# Their summary

ATTACKS = {
    "mia_auc_loss": ("nll", "mean NLL"),
    "mia_auc_zlib": ("nll_per_zlib_byte", "mean NLL over the length of the compressed text"),
    "mia_auc_min_k_40": ("min_k_40", "the least likely 40 % of its tokens (Min-K%)"),
    "mia_auc_min_k_20": ("min_k_20", "the least likely 20 % of its tokens (Min-K%)"),
    "mia_auc_min_k_plus_40": ("min_k_plus_40", "the least likely 40 % of its tokens, standardised (Min-K%++)"),
}
"""Attacks that every evaluation makes: name of the AUC to the score of `answer_scores`, and what it is."""
BESIDE = "nll beside the reference"
MORE_ATTACKS = {
    "mia_auc_gradient": ("gradient_norm", "the gradient's norm, mean over the weight tensors"),
    "mia_auc_reference": (BESIDE, "mean NLL less the reference's"),
}
"""Attacks that an assessment makes beside them; an evaluation makes the second, where there is a reference."""
LEAK_SCORE = "min_k_40"
"""The score of PrivLeak."""
PRIVACY_NAMES = (*ATTACKS, "mia_tpr_min_k_40", "privleak")
BESIDE_NAMES = ("mia_auc_reference",)
"""Apart from PRIVACY_NAMES, for evaluations have it since later."""
NO_VALUES = np.full(1, np.nan)
_NOTHING = np.empty((0, 1))
ALIKE = "Share of pairs of a row to forget and one no model saw in which the first looks more like training data by"
HALF = "0.5: cannot be told apart."
FINDS = "Share of rows to forget that are found with at most 1 false alarm in 100 rows no model saw, by"
FEWER = "lower: fewer stand out."
NOTHING_LEFT = (
    "To the reference all rows to forget look more like training data than the holdout rows: nothing is left."
)
Statistic = Callable[[FloatArray, FloatArray, FloatArray, FloatArray], FloatArray]
"""(scores to forget (N,), of holdout (M,), how often each is drawn (R, N), (R, M)) -> (R,)."""


class Both(NamedTuple):
    """A score of rows to forget and of holdout rows, of each of S models, without rows that lack one."""

    forget_NS: FloatArray
    holdout_MS: FloatArray
    left_out: int
    missing: str | None

    def values_of(self, of: Statistic, rng: np.random.Generator) -> list[FloatArray]:
        """Give for each model the statistic of the rows, and after it those of resamples: the same of all models.

        All NaN where one of the sets has no row.
        """
        sizes = len(self.forget_NS), len(self.holdout_MS)
        if not all(sizes):
            return [np.full(1 + RESAMPLES, np.nan) for _ in self.forget_NS.T]
        drawn = [np.vstack([np.ones(n), *counts(n, rng, RESAMPLES, RESAMPLES)]) for n in sizes]
        scores = zip(self.forget_NS.T, self.holdout_MS.T, strict=True)
        return [of(forget_N, holdout_M, *drawn) for forget_N, holdout_M in scores]

    @property
    def num_rows(self) -> int:
        """Of both sets."""
        return len(self.forget_NS) + len(self.holdout_MS)

    def interval(self, values_R: FloatArray) -> Interval:
        """Of the first of `values_of`, from the others; none with less than two rows in a set.

        At 0 or 1 all resamples agree. There it is that of a share of as many rows as the smaller set has, whose
        variance that of an AUC never exceeds (Birnbaum and Klose, Annals of Mathematical Statistics 28 (1957) 933).
        """
        fewest = min(len(self.forget_NS), len(self.holdout_MS))
        if fewest < LEAST_ROWS:
            return NOWHERE
        return saturated(float(values_R[0]), fewest) or interval_of(values_R[1:])

    def leak(self, auc_R: FloatArray, auc_reference_R: FloatArray) -> tuple[float, Interval]:
        """Give PrivLeak of AUCs of `values_of`, with its interval; where the AUC is 0 or 1, from the AUC's."""
        leak_R, interval = priv_leak(auc_R, auc_reference_R), self.interval(auc_R)
        if auc_R[0] not in (0, 1) or np.array_equal(auc_R, auc_reference_R) or interval is NOWHERE:
            return float(leak_R[0]), interval if interval is NOWHERE else interval_of(leak_R[1:])
        high, low = priv_leak(interval, auc_reference_R[0])
        return float(leak_R[0]), Interval(float(low), float(high))

    def entry(self, value: float, interval: Interval, better: Direction, meaning: str) -> dict[str, Any]:
        """Write a value."""
        return entry(value, interval, self.num_rows, self.left_out, better, meaning, self.missing)


def summarise_privacy(
    sets: Sets, reference: Sets | None, rngs: Mapping[str, np.random.Generator]
) -> dict[str, dict[str, Any]]:
    """Summarise whether the rows to forget can be told from rows that no model saw: each name of PRIVACY_NAMES.

    Parameters
    ----------
    sets, reference : as for `amends.evaluation.summary.summarise`; rows in the order of their ids.
    rngs : dict
        The random stream of each name. Both sets are resampled for an interval.
    """
    found = {}
    for name, (score, by) in ATTACKS.items():
        found[name] = _summarise_attack(sets, score, auc_of, rngs[name], "half", f"{ALIKE} {by}; {HALF}")
    score, by = ATTACKS["mia_auc_min_k_40"]
    found["mia_tpr_min_k_40"] = _summarise_attack(
        sets, score, found_of, rngs["mia_tpr_min_k_40"], "lower", f"{FINDS} {by}; {FEWER}"
    )
    found["privleak"] = _summarise_privleak(sets, reference, rngs["privleak"])
    return found


def summarise_beside(sets: Sets, reference: Sets | None, rng: np.random.Generator) -> dict[str, Any]:
    """Summarise the attack by what the loss is less than the reference's, from what the evaluations of both hold."""
    both = _both([sets] if reference is None else [sets, reference], "nll")
    if reference is None and not both.missing:
        both = both._replace(missing="There is no reference, a model trained without the forget rows, to compare with.")
    meaning = f"{ALIKE} {MORE_ATTACKS['mia_auc_reference'][1]}; {HALF}"
    if both.missing:
        return both.entry(np.nan, NOWHERE, "half", meaning)
    less = both._replace(**{name: -np.diff(getattr(both, name), axis=1) for name in ("forget_NS", "holdout_MS")})
    values_R = less.values_of(auc_of, rng)[0]
    return both.entry(float(values_R[0]), less.interval(values_R), "half", meaning)


def _summarise_attack(
    sets: Sets, score: str, of: Statistic, rng: np.random.Generator, better: Direction, meaning: str
) -> dict[str, Any]:
    both = _both([sets], score)
    values_R = NO_VALUES if both.missing else both.values_of(of, rng)[0]
    return both.entry(float(values_R[0]), both.interval(values_R), better, meaning)


def _summarise_privleak(sets: Sets, reference: Sets | None, rng: np.random.Generator) -> dict[str, Any]:
    """PrivLeak; the same rows are drawn of the model and of the reference."""
    both = _both([sets] if reference is None else [sets, reference], LEAK_SCORE)
    than = "0.5, as there is no reference" if reference is None else "the reference's"
    meaning = (
        f"AUC of Min-K% (k = 40 %) against {than}, in %; 0: as if never seen, -100: not forgotten, above: too much."
    )
    if both.missing:
        return both.entry(np.nan, NOWHERE, "zero", meaning)
    auc_R, *others = both.values_of(auc_of, rng)
    auc_reference_R = others[0] if others else np.full_like(auc_R, 0.5)
    if auc_reference_R[0] == 1:
        both = both._replace(missing=NOTHING_LEFT)
    return both.entry(*both.leak(auc_R, auc_reference_R), "zero", meaning)


def _both(models: Sequence[Sets], score: str) -> Both:
    rows = {name: [_sorted(sets.get(name) or []) for sets in models] for name in ("forget", "holdout")}
    if any(
        [item.get("id") for item in other] != [item.get("id") for item in items[0]]
        for items in rows.values()
        for other in items
    ):
        return Both(_NOTHING, _NOTHING, 0, "The reference was asked other rows.")
    values = {name: np.column_stack([field(score)(items) for items in each]) for name, each in rows.items()}
    kept = {name: values_NS[~np.isnan(values_NS).any(axis=1)] for name, values_NS in values.items()}
    missing = None
    if not len(values["forget"]):
        missing = "There are no forget items in this evaluation."
    elif not len(values["holdout"]):
        missing = "There are no rows that no model saw, to compare with (--holdout)."
    elif lacking := [name for name, values_NS in kept.items() if not len(values_NS)]:
        missing = f"No {' and no '.join(lacking)} item has {score}."
    left_out = sum(map(len, values.values())) - sum(map(len, kept.values()))
    return Both(kept["forget"], kept["holdout"], left_out, missing)


def _sorted(items: Items) -> list[Mapping[str, Any]]:
    """By id, so that rows of two models stand beside each other and an interval depends on no order."""
    return sorted(items, key=lambda item: str(item.get("id", "")))
