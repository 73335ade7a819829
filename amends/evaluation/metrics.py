"""What an audit measures, as functions of arrays: truth ratio, forget quality, model utility, ROUGE-L.

Definitions are those of TOFU (Maini et al. 2024, arXiv 2401.06121); where two conventions are in use, both are given.
Log-probabilities are natural and per token: the mean over an answer's tokens, in nats, so that ``exp`` of one is the
length-normalised probability of the answer.

Shape suffixes: N rows, P wrong answers of a row, R resamples, M distinct values.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp
from scipy.stats import ks_2samp

from amends.evaluation.intervals import CHUNK, LEVEL, RESAMPLES, counts, mean_of, numbers
from amends.maths.arrays import FloatArray
from amends.maths.rouge import rouge_l

LARGEST_LOG = 700.0  # a ratio stays within exp(+-700), so that it is a finite number in JSON too


# Likelihood metrics


def truth_ratio(wrong_logp_NP: ArrayLike, right_logp_N: ArrayLike, mean: Literal["geo", "arith"] = "geo") -> FloatArray:
    """Truth ratio of each row: how likely its wrong answers are against the right one.

    R = mean_P[p(wrong)] / p(right). 1: the model cannot tell them apart; near 0: it knows the answer.

    Parameters
    ----------
    wrong_logp_NP : array (rows, wrong answers)
        Mean log-probability per token, nats. NaN where a row has fewer wrong answers than the widest.
    right_logp_N : array (rows,)
        The same of the right answer, by convention in its paraphrased wording.
    mean : {"geo", "arith"}, default "geo"
        Over wrong answers: "geo" is exp of the mean log-probability (OpenUnlearning, TOFU's forget quality), "arith"
        the mean of probabilities (TOFU's model utility). They are 0.02 to 0.04 of model utility apart.

    Returns
    -------
    array (rows,), within [exp(-700), exp(700)]; NaN for a row without wrong answers or without a right one.

    Raises
    ------
    ValueError : unknown mean, or shapes that do not fit.

    Source: arXiv 2401.06121, section 2.2.2, equation 1.
    """
    wrong_NP, right_N = _wrong_and_right(wrong_logp_NP, right_logp_N)
    present_NP = ~np.isnan(wrong_NP)
    num_wrong_N = present_NP.sum(axis=1)
    log_count_N = np.log(np.where(num_wrong_N, num_wrong_N, 1))
    with np.errstate(invalid="ignore"):
        if mean == "geo":
            wrong_N = np.where(present_NP, wrong_NP, 0.0).sum(axis=1) / np.maximum(num_wrong_N, 1)
        elif mean == "arith":
            wrong_N = _log_sum(np.where(present_NP, wrong_NP, -np.inf)) - log_count_N
        else:
            raise ValueError(f'mean={mean!r}: expected "geo" or "arith".')
        ratio_N = np.exp(np.clip(wrong_N - right_N, -LARGEST_LOG, LARGEST_LOG))
    return np.where(num_wrong_N > 0, ratio_N, np.nan)


def truth_ratio_score(ratio_N: ArrayLike, kind: Literal["forget", "keep"] = "forget") -> float:
    """One number from the truth ratios R of a set of rows, higher is better.

    Parameters
    ----------
    ratio_N : array (rows,)
        From `truth_ratio`; NaN is left out.
    kind : {"forget", "keep"}, default "forget"
        "forget": mean of min(R, 1/R), 1 when right and wrong answers are equally likely. "keep": mean of max(0, 1 - R),
        1 when the wrong answers are far less likely than the right one.

    Returns
    -------
    float in [0, 1]; NaN when there is no ratio.

    Raises
    ------
    ValueError : unknown kind, or a negative ratio.

    Source: arXiv 2401.06121, section 2.2.2 ("keep" is its model utility, "forget" its evaluation code).
    """
    return mean_of(truth_scores(ratio_N, kind))


def normalised_probability(right_logp_N: ArrayLike, wrong_logp_NP: ArrayLike) -> FloatArray:
    """Probability of the right answer among the alternatives: p / (p + sum of the wrong p).

    Parameters
    ----------
    right_logp_N : array (rows,)
        Mean log-probability per token of the right answer, nats.
    wrong_logp_NP : array (rows, wrong answers)
        The same of the wrong ones; NaN where a row has fewer.

    Returns
    -------
    array (rows,) in [0, 1]; NaN where the right answer's is NaN, 1 for a row without wrong answers.

    Raises
    ------
    ValueError : shapes that do not fit.

    Source: arXiv 2401.06121, section 2.2.1, for real authors and world facts.
    """
    wrong_NP, right_N = _wrong_and_right(wrong_logp_NP, right_logp_N)
    all_NP = np.column_stack([right_N, np.where(np.isnan(wrong_NP), -np.inf, wrong_NP)])
    with np.errstate(invalid="ignore"):
        return np.asarray(np.exp(right_N - _log_sum(all_NP)), dtype=np.float64)


def model_utility(values: ArrayLike) -> float:
    """Harmonic mean of the nine utility numbers.

    Parameters
    ----------
    values : array of 9 numbers in [0, 1], any shape
        {retain, real authors, world facts} x {probability, ROUGE-L recall, truth-ratio score ("keep")}.

    Returns
    -------
    float in [0, 1]; 0 when one of them is 0, NaN when one is NaN.

    Raises
    ------
    ValueError : not nine numbers, or a negative one.

    Source: arXiv 2401.06121, section 2.2.1.
    """
    values_9 = np.asarray(values, dtype=np.float64).ravel()
    if values_9.size != 9 or (values_9 < 0).any():
        raise ValueError(f"values={values_9.tolist()}: expected nine numbers, none negative.")
    return float(harmonic_mean(values_9[None])[0])


class ForgetQuality(NamedTuple):
    """Two-sample Kolmogorov-Smirnov test of truth ratios. p shrinks with more rows, the statistic does not."""

    statistic: float  # largest distance of the two distribution functions: 0 the same, 1 fully apart
    p: float  # high: no difference from the reference was found
    n_model: int
    n_reference: int
    low: float  # 95 % interval of the statistic
    high: float


def forget_quality(
    ratio: ArrayLike, ratio_reference: ArrayLike, rng: np.random.Generator, resamples: int = RESAMPLES
) -> ForgetQuality:
    """Compare the truth ratios of an unlearned model with those of a model that never saw the forget rows.

    Parameters
    ----------
    ratio, ratio_reference : array (rows,)
        Truth ratios on the forget rows; the numbers of rows may differ. NaN is left out.
    rng : numpy.random.Generator
    resamples : int, default 1000
        For the interval of the statistic D: D -+ the 95 % quantile of sup|(F* - F) - (G* - G)| over bootstrap samples
        F*, G* of the two samples' distribution functions F, G. The plain percentile interval would leave out D itself
        when the samples agree, since resampling only adds distance.

    Returns
    -------
    ForgetQuality

    Raises
    ------
    ValueError : a sample without numbers.

    Source: arXiv 2401.06121, section 2.2.2 (p); Bickel and Freedman, Annals of Statistics 9 (1981) 1196 (the bootstrap
    of a distribution function). The interval is an addition.
    """
    model_N, reference_N = numbers(ratio), numbers(ratio_reference)
    if not (model_N.size and reference_N.size):
        raise ValueError(
            f"truth ratios: {model_N.size} of the model, {reference_N.size} of the reference; need some of each."
        )
    with warnings.catch_warnings():  # scipy says when it falls back on the asymptotic p, as it should for large samples
        warnings.filterwarnings("ignore", message="ks_2samp", category=RuntimeWarning)
        test = ks_2samp(model_N, reference_N)
    values_M = np.unique(np.concatenate([model_N, reference_N]))
    deviations = zip(
        *(_deviations(sample_N, values_M, rng, resamples) for sample_N in (model_N, reference_N)), strict=True
    )
    gap_R = np.concatenate([np.abs(model_RM - reference_RM).max(axis=1) for model_RM, reference_RM in deviations])
    reach = float(np.quantile(gap_R, LEVEL))
    statistic = float(test.statistic)
    return ForgetQuality(
        statistic,
        float(test.pvalue),
        model_N.size,
        reference_N.size,
        max(0.0, statistic - reach),
        min(1.0, statistic + reach),
    )


# Text metrics


def rouge_l_recall(predictions: Sequence[str], references: Sequence[str]) -> FloatArray:
    """ROUGE-L recall: share of a reference's words that the prediction holds in the same order.

    Parameters
    ----------
    predictions, references : sequences of str, same length

    Returns
    -------
    array (rows,) in [0, 1], with rouge-score and its stemmer, as TOFU does, and words of other scripts beside them
    (`amends.maths.rouge.Words`). A long prediction is not punished. NaN where a reference has no word.

    Raises
    ------
    ValueError : different lengths.

    Source: arXiv 2401.06121, section 2.2.1; Lin, ROUGE, 2004.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references: give one for each.")
    pairs = zip(predictions, references, strict=True)
    return np.array([rouge_l(prediction, reference).recall for prediction, reference in pairs], dtype=np.float64)


# The summary of an evaluation


def deviation_score(forget_rouge: ArrayLike, retain_rouge: ArrayLike) -> FloatArray:
    """DS = 100 sqrt(ROUGE_forget^2 + (1 - ROUGE_retain)^2), 0 to 141, lower is better."""
    return 100 * np.hypot(forget_rouge, 1 - np.asarray(retain_rouge, dtype=np.float64))


def _wrong_and_right(wrong_logp_NP: ArrayLike, right_logp_N: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Both as float64, checked: one row of wrong answers for each right one."""
    wrong_NP, right_N = np.asarray(wrong_logp_NP, dtype=np.float64), np.asarray(right_logp_N, dtype=np.float64)
    if wrong_NP.ndim != 2 or right_N.shape != wrong_NP.shape[:1]:
        raise ValueError(
            f"wrong answers: shape {wrong_NP.shape}, right ones: {right_N.shape}; "
            "expected (rows, wrong answers) and (rows,)."
        )
    return wrong_NP, right_N


def truth_scores(ratio_N: ArrayLike, kind: str) -> FloatArray:
    """Truth-ratio score of each row, NaN where there is no ratio."""
    numbers_N = np.asarray(ratio_N, dtype=np.float64)
    if (numbers_N < 0).any():
        raise ValueError(f"a truth ratio is negative ({np.nanmin(numbers_N)}): expected ratios of probabilities.")
    if kind == "forget":
        with np.errstate(divide="ignore"):
            return np.minimum(numbers_N, 1.0 / numbers_N)
    if kind == "keep":
        return np.maximum(0.0, 1.0 - numbers_N)
    raise ValueError(f'kind={kind!r}: expected "forget" or "keep".')


def _log_sum(logp_NP: FloatArray) -> FloatArray:
    """Row by row log of the sum of exp; -inf for a row without columns, as for one of -inf alone."""
    if not logp_NP.size:
        return np.full(len(logp_NP), -np.inf)
    with np.errstate(divide="ignore"):
        return np.asarray(logsumexp(logp_NP, axis=1), dtype=np.float64)


def harmonic_mean(values_RK: FloatArray) -> FloatArray:
    """Row by row; a 0 gives 0, a NaN gives NaN."""
    with np.errstate(divide="ignore"):
        return np.asarray(values_RK.shape[1] / (1.0 / values_RK).sum(axis=1), dtype=np.float64)


def _deviations(
    sample_N: FloatArray, values_M: FloatArray, rng: np.random.Generator, resamples: int
) -> Iterator[FloatArray]:
    """F* - F at `values_M` for bootstrap distribution functions F* of a sample: arrays (some resamples, values)."""
    sorted_N = np.sort(sample_N)
    position_M = np.searchsorted(sorted_N, values_M, side="right")
    for counts_RN in counts(sample_N.size, rng, resamples, max(1, CHUNK // values_M.size)):
        below_RN = np.pad(np.cumsum(counts_RN - 1.0, axis=1), ((0, 0), (1, 0)))  # F itself counts each row once
        yield below_RN[:, position_M] / sample_N.size
