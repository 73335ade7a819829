"""What `amends audit` measures of each record, from the numbers of its tokens."""

import difflib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from amends.io.errors import InputError
from amends.lm.memorisation import AnswerScores
from amends.maths import memorisation as maths
from amends.maths.arrays import FloatArray


class Numbers(NamedTuple):
    """What the measures are computed from."""

    model: AnswerScores
    reference: AnswerScores | None
    answers: list[str]
    share: float
    answer_prefix: int


class Measure(NamedTuple):
    """One measure; higher means more memorised."""

    of: Callable[[Numbers], FloatArray]
    meaning: str
    needs_reference: bool = False
    by_default: bool = True


def _reference(n: Numbers) -> FloatArray:
    """Log-probabilities under the reference model."""
    assert n.reference is not None
    return n.reference.logp_NA


def _sampling(n: Numbers) -> FloatArray:
    rest_NA = maths.without_first(n.model.sampled_NA, n.answer_prefix)
    return np.where(maths.num_tokens(rest_NA) > 0, -maths.log10_queries(maths.token_sum(rest_NA)), np.nan)


MEASURES: dict[str, Measure] = {
    "loss": Measure(lambda n: maths.token_mean(n.model.logp_NA), "mean log-probability of the answer's tokens, nats"),
    "zlib": Measure(
        lambda n: maths.zlib_ratio(-maths.token_mean(n.model.logp_NA), n.answers),
        "the same per byte of the zlib-compressed answer",
    ),
    "min_k": Measure(
        lambda n: maths.min_k(n.model.logp_NA, n.share), "mean log-probability of the least likely tokens, nats"
    ),
    "min_k_plus": Measure(
        lambda n: maths.min_k(maths.standardised(n.model.logp_NA, n.model.mean_NA, n.model.deviation_NA), n.share),
        "the same of log-probabilities standardised by what the model expects of them",
    ),
    "em": Measure(
        lambda n: maths.exact_memorisation(n.model.right_NA), "share of tokens that greedy decoding gets right"
    ),
    "es": Measure(
        lambda n: maths.extraction_strength(n.model.right_NA), "share of the answer's end that greedy decoding gives"
    ),
    "extractable": Measure(
        lambda n: maths.extractable(n.model.right_NA, n.answer_prefix),
        "1 where greedy decoding gives the whole rest of the answer",
    ),
    "sampling": Measure(_sampling, "minus log10 of the samples until the answer came up with probability one half"),
    "gradient": Measure(
        lambda n: -np.sqrt(n.model.squared_gradient_N),
        "minus the gradient's norm in the output layer",
        by_default=False,
    ),
    "reference": Measure(
        lambda n: maths.token_mean(n.model.logp_NA - _reference(n)),
        "mean log-probability above the reference's, nats a token",
        needs_reference=True,
    ),
    "bits": Measure(
        lambda n: maths.unintended_bits(n.model.logp_NA, _reference(n)),
        "bits that the model saves beside the reference",
        needs_reference=True,
    ),
}


def chosen_measures(asked: Sequence[str], has_reference: bool) -> list[str]:
    """Names of the measures that were asked for, or of those that can be had by default.

    Raises
    ------
    InputError : an unknown name, or one that needs a reference where there is none.
    """
    if not asked:
        return [n for n, m in MEASURES.items() if m.by_default and (has_reference or not m.needs_reference)]
    for name in asked:
        if name not in MEASURES:
            near = difflib.get_close_matches(name, MEASURES, 1)
            raise InputError(
                f"--measures {name}: there is no such measure. "
                + (f"Did you mean {near[0]}?" if near else f"Choose among {', '.join(MEASURES)}.")
            )
        if MEASURES[name].needs_reference and not has_reference:
            raise InputError(f"--measures {name}: compares with a model that never saw the data. Give --reference.")
    return list(dict.fromkeys(asked))


def reasons(name: str, score_N: FloatArray, num_tokens_N: Sequence[int], answer_prefix: int) -> list[str | None]:
    """Say of each record why it has no number of a measure; None where it has one."""
    found: list[str | None] = []
    for score, num_tokens in zip(score_N, num_tokens_N, strict=True):
        if np.isfinite(score):
            found.append(None)
        elif num_tokens <= answer_prefix:
            found.append(f"The answer has {num_tokens} tokens, and {answer_prefix} go to the prefix: nothing is left.")
        elif name == "sampling":
            found.append("The sampler cannot give it: a token is not among the top k. It ranks last.")
        else:
            found.append("The model gives one of its tokens no chance at all.")
    return found
