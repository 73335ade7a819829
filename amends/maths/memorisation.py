"""Measures of memorisation and membership as functions of arrays; a number is higher where more was memorised.

Numbers of tokens stand in arrays (N, A) of N records, padded at the end with NaN (`padded` makes them from lists).
Where a measure is not defined (no token, too few rows to compare with), it is NaN; each function says when. What needs
models trained on parts of the data is in `amends.maths.subsets`.

Shapes: N records, A tokens of a record, M rows to compare with, T checkpoints, S seeds, K classes, D features.
"""

import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from scipy.stats import rankdata, skewnorm

from amends.maths.arrays import FloatArray

LOG_2 = float(np.log(2))


# Tokens of a record -----------------------------------------------------------------------------------------------


def padded(rows: Iterable[ArrayLike]) -> FloatArray:
    """Stand lists of numbers of different lengths under one another, (N, A), with NaN after their ends."""
    arrays = [np.asarray(row, dtype=np.float64).ravel() for row in rows]
    out_NA = np.full((len(arrays), max((a.size for a in arrays), default=0)), np.nan)
    for i, array in enumerate(arrays):
        out_NA[i, : array.size] = array
    return out_NA


def num_tokens(values_NA: ArrayLike) -> NDArray[np.int64]:
    """Tokens of each record, (N,).

    Raises
    ------
    ValueError : NaN before a number, which is no padding.
    """
    there_NA = ~np.isnan(_table(values_NA))
    if (there_NA[:, 1:] & ~there_NA[:, :-1]).any():
        raise ValueError("NaN stands before a number: padding must be at the end of a row.")
    return np.asarray(there_NA.sum(axis=1), dtype=np.int64)


def token_mean(values_NA: ArrayLike) -> FloatArray:
    """Mean over the tokens of each record, (N,); NaN for one without tokens."""
    count_N = num_tokens(values_NA)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nansum(_table(values_NA), axis=1) / count_N, dtype=np.float64)


def token_sum(values_NA: ArrayLike) -> FloatArray:
    """Sum over the tokens of each record, (N,); 0 for one without tokens."""
    num_tokens(values_NA)
    return np.asarray(np.nansum(_table(values_NA), axis=1), dtype=np.float64)


def without_first(values_NA: ArrayLike, count: int) -> FloatArray:
    """Leave out the first `count` tokens of each record."""
    return _table(values_NA)[:, count:]


def exact_memorisation(right_NA: ArrayLike) -> FloatArray:
    """Share of the tokens that greedy decoding gets right after the true tokens before them, (N,), 0 to 1.

    right_NA is 1 where the likeliest token is the record's, else 0. Source: Tirumala et al. 2022, as OpenUnlearning has
    it.
    """
    return token_mean(right_NA)


def extraction_strength(right_NA: ArrayLike) -> FloatArray:
    """1 - k/n, with k the fewest first tokens after which greedy decoding gives all others, (N,), 0 to 1.

    Greedy decoding from the first k tokens gives the rest exactly if, and only if, each token of the rest is the
    likeliest after the true ones before it, so one forward pass says it. Source: Carlini et al. 2021. OpenUnlearning's
    loop gives 1/n also where not even the last token is right; here that is 0.
    """
    count_N = num_tokens(right_NA)
    right_NA = _table(right_NA)
    suffix_N = np.cumprod(np.where(np.isnan(right_NA), 1.0, right_NA > 0)[:, ::-1], axis=1).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray((suffix_N - (right_NA.shape[1] - count_N)) / count_N, dtype=np.float64)


def extractable(right_NA: ArrayLike, prefix_tokens: int = 0) -> FloatArray:
    """1 where greedy decoding from the first `prefix_tokens` gives the rest exactly, else 0, (N,); NaN if none is left.

    Source: "k-extractable", Carlini et al. 2023.
    """
    rest_NA = without_first(right_NA, prefix_tokens)
    return np.where(num_tokens(rest_NA) > 0, (np.nan_to_num(rest_NA, nan=1.0) > 0).all(axis=1).astype(float), np.nan)


def min_k(values_NA: ArrayLike, share: float = 0.2) -> FloatArray:
    """Mean of the lowest max(1, floor(share n)) of a record's n tokens, (N,); NaN without tokens.

    Of log-probabilities it is Min-K% (Shi et al. 2024), of standardised ones Min-K%++.

    Raises
    ------
    ValueError : a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: expected a number above 0 and at most 1.")
    count_N = num_tokens(values_NA)
    if not count_N.any():
        return np.full(len(count_N), np.nan)
    lowest_N = np.maximum(1, np.floor(share * count_N + 1e-9)).astype(int)  # .3 * 10 is a little under 3
    sums_NA = np.cumsum(np.sort(_table(values_NA), axis=1), axis=1)  # NaN comes last
    return np.asarray(np.take_along_axis(sums_NA, lowest_N[:, None] - 1, axis=1)[:, 0] / lowest_N, dtype=np.float64)


def standardised(logp_NA: ArrayLike, mean_NA: ArrayLike, deviation_NA: ArrayLike) -> FloatArray:
    """(log p - mu) / sigma of each token, (N, A); mu and sigma of log p under the model's own next-token distribution.

    Where the model is so sure that sigma is 0 the token is neither above nor below: 0. `min_k` of it is Min-K%++ (Zhang
    et al. 2025).
    """
    above_NA, deviation_NA = _table(logp_NA) - _table(mean_NA), _table(deviation_NA)
    return np.where(deviation_NA > 0, above_NA / np.where(deviation_NA > 0, deviation_NA, 1.0), 0.0 * above_NA)


def zlib_ratio(nll_N: ArrayLike, texts: Sequence[str]) -> FloatArray:
    """Minus the loss over the bytes of the zlib-compressed text, (N,); NaN for an empty text.

    Low loss counts for more where the text is not repetitive anyway. Very short texts are dominated by zlib's header.
    Source: Carlini et al. 2021.
    """
    bytes_N = np.array(
        [len(zlib.compress(text.encode("utf-8", "surrogatepass"))) if text else np.nan for text in texts]
    )
    return np.asarray(-np.asarray(nll_N, dtype=np.float64) / bytes_N, dtype=np.float64)


def unintended_bits(logp_NA: ArrayLike, reference_NA: ArrayLike) -> FloatArray:
    """Bits that the model saves on each record beside a reference that was not trained on it, at least 0, (N,).

    Source: the compression view of Morris et al. 2025; the clip is at the record, not at the token.
    """
    return np.maximum(0.0, token_sum(_table(logp_NA) - _table(reference_NA)) / LOG_2)


def extraction_probability(logp_N: ArrayLike, queries: float) -> FloatArray:
    """Chance that `queries` samples give the record at least once: 1 - (1 - p_z)^n, (N,), from log p_z in nats.

    Source: (n, p)-discoverable extraction, Hayes et al. 2025.
    """
    with np.errstate(divide="ignore"):
        return np.asarray(-np.expm1(queries * np.log1p(-np.exp(_log_probability(logp_N)))), dtype=np.float64)


def log10_queries(logp_N: ArrayLike, probability: float = 0.5) -> FloatArray:
    """Decimal logarithm of the samples n after which the record came up with the given probability, (N,).

    n = log(1 - p) / log(1 - p_z), at least 1; infinite where the sampler cannot give the record. Exact also where p_z
    is far below the smallest number.

    Raises
    ------
    ValueError : a probability outside (0, 1).
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability={probability}: expected a number between 0 and 1.")
    logp_N = _log_probability(logp_N)
    with np.errstate(divide="ignore"):
        # log(-log(1 - e^x)), which is x itself to 1e-15 below -35
        per_sample_N = np.where(logp_N < -35, logp_N, np.log(-np.log1p(-np.exp(np.maximum(logp_N, -36)))))
    found_N = (np.log(-np.log1p(-probability)) - per_sample_N) / np.log(10)
    return np.asarray(np.maximum(0.0, found_N), dtype=np.float64)


# Canaries ---------------------------------------------------------------------------------------------------------


def exposure(loss: ArrayLike, space_losses: ArrayLike) -> FloatArray:
    """log2 |R| - log2 rank of each loss among those of all candidates R, itself among them; 0 to log2 |R| bits.

    The best has rank 1; of equal losses each has the rank of the last, so a model that cannot tell them apart has
    exposure 0. For strings that were not trained on the mean is log2 e = 1.44 bits. Source: Carlini et al. 2019,
    definition 4.

    Raises
    ------
    ValueError : a loss lower than all of the space, so that it is not in it.
    """
    sorted_R = np.sort(np.asarray(space_losses, dtype=np.float64).ravel())
    rank = np.searchsorted(sorted_R, np.asarray(loss, dtype=np.float64), side="right")
    if not np.all(rank):
        raise ValueError("a loss is lower than that of every candidate: the canary must be one of the space.")
    return np.asarray(np.log2(sorted_R.size) - np.log2(rank), dtype=np.float64)


def exposure_sampled(loss: ArrayLike, sample_losses: ArrayLike) -> FloatArray:
    """Exposure beside m random candidates: -log2 of the share, with the canary, of losses as low; to log2(m + 1) bits.

    Carlini et al. leave the canary out of the share, which gives all of log2 |R| where no sample is lower, more than m
    samples can tell. With it this is a lower bound there, and -log2 of a valid p-value everywhere.
    """
    sorted_M = np.sort(np.asarray(sample_losses, dtype=np.float64).ravel())
    lower = np.searchsorted(sorted_M, np.asarray(loss, dtype=np.float64), side="right")
    return np.asarray(np.log2(sorted_M.size + 1) - np.log2(lower + 1), dtype=np.float64)


def exposure_skew_normal(loss: ArrayLike, sample_losses: ArrayLike, log2_space: float) -> FloatArray:
    """-log2 of the skew-normal distribution function, fitted to random candidates, at each loss; at most log2 |R|.

    It reaches beyond what the samples can tell, on the word of the fit. Source: Carlini et al. 2019, equation 2.

    Raises
    ------
    ValueError : fewer than 10 samples, or all alike.
    """
    sample_M = np.asarray(sample_losses, dtype=np.float64).ravel()
    if sample_M.size < 10 or not np.ptp(sample_M):
        raise ValueError(f"{sample_M.size} samples: a skew-normal distribution needs at least 10, not all alike.")
    shape, location, scale = skewnorm.fit(sample_M)
    with np.errstate(divide="ignore"):
        bits = -np.log2(np.clip(skewnorm.cdf(loss, shape, location, scale), 0.0, 1.0))
    return np.asarray(np.clip(bits, 0.0, log2_space), dtype=np.float64)


# Membership -------------------------------------------------------------------------------------------------------


def auc(members_N: ArrayLike, others_M: ArrayLike) -> float:
    """Chance that a member's score is above another's, ties half: 0.5 is chance; NaN where one side is empty.

    Rows whose score is NaN are left out. Invariant to monotone maps of the scores.
    """
    members_N, others_M = _scores(members_N), _scores(others_M)
    if not members_N.size or not others_M.size:
        return float("nan")
    ranks = rankdata(np.concatenate([members_N, others_M]))[: members_N.size]
    return float((ranks.sum() - members_N.size * (members_N.size + 1) / 2) / (members_N.size * others_M.size))


def auc_standard_error(members_N: ArrayLike, others_M: ArrayLike) -> float:
    """Give the standard error of `auc`; NaN with fewer than two rows on a side. Source: DeLong et al. 1988."""
    members_N, others_M = _scores(members_N), _scores(others_M)
    if members_N.size < 2 or others_M.size < 2:
        return float("nan")
    ranks = rankdata(np.concatenate([members_N, others_M]))
    above_N = (ranks[: members_N.size] - rankdata(members_N)) / others_M.size
    above_M = (ranks[members_N.size :] - rankdata(others_M)) / members_N.size
    return float(np.sqrt(above_N.var(ddof=1) / members_N.size + above_M.var(ddof=1) / others_M.size))


def tpr_at_fpr(members_N: ArrayLike, others_M: ArrayLike, fpr: float) -> float:
    """Largest share of members found by a threshold that takes at most a share `fpr` of the others for members.

    NaN where a side is empty, or where there are fewer than 1 / fpr others: such a rate cannot be seen in them.
    """
    members_N, others_M = _scores(members_N), _scores(others_M)
    if not members_N.size or others_M.size * fpr < 1:
        return float("nan")
    threshold = np.sort(others_M)[::-1][int(np.floor(fpr * others_M.size + 1e-9)) :][:1]
    return float((members_N > threshold).mean()) if threshold.size else 1.0


def advantage(members_N: ArrayLike, others_M: ArrayLike) -> float:
    """Largest TPR - FPR over all thresholds, 0 to 1; NaN where a side is empty. Source: Yeom et al. 2018."""
    members_N, others_M = np.sort(_scores(members_N)), np.sort(_scores(others_M))
    if not members_N.size or not others_M.size:
        return float("nan")
    thresholds = np.concatenate([members_N, others_M])
    tpr, fpr = (1 - np.searchsorted(s, thresholds) / s.size for s in (members_N, others_M))
    return float(max(0.0, (tpr - fpr).max()))


def rmia(ratio_N: ArrayLike, others_M: ArrayLike, gamma: float = 1.0) -> FloatArray:
    """Share of other rows z with ratio(x) / ratio(z) >= gamma, (N,), ratio = p(x) / mean p(x) over reference models.

    Source: Zarifzadeh et al. 2024.
    """
    sorted_M = np.sort(_scores(others_M))
    below_N = np.searchsorted(sorted_M, np.asarray(ratio_N, dtype=np.float64) / gamma, side="right")
    return np.asarray(below_N / sorted_M.size, dtype=np.float64)


def mean_rank(scores: Sequence[ArrayLike]) -> FloatArray:
    """Mean over several scores of a row's rank among the rows, as a share, 0 lowest, 1 highest, (N,).

    Equal scores share the middle of their ranks. Scores that a row does not have (NaN) are left out of its mean, and it
    out of their ranks; NaN if it has none.
    """
    shares = []
    for score in scores:
        score_N = np.asarray(score, dtype=np.float64)
        share_N = np.full(score_N.shape, np.nan)
        there_N = ~np.isnan(score_N)
        share_N[there_N] = (rankdata(score_N[there_N]) - 0.5) / max(1, there_N.sum())
        shares.append(share_N)
    shares_CN = np.stack(shares)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nansum(shares_CN, axis=0) / (~np.isnan(shares_CN)).sum(axis=0), dtype=np.float64)


# While a training runs --------------------------------------------------------------------------------------------


class Forgetting(NamedTuple):
    """What became of each record from checkpoint to checkpoint."""

    events_N: NDArray[np.int64]
    """How often right became wrong."""
    learned_N: NDArray[np.bool_]
    """Whether it was ever right; one that never was has 0 events, which does not make it unforgettable."""
    stays_from_N: FloatArray
    """First checkpoint, from 0, from which on it is right to the end; NaN where it is not right at the end."""

    @property
    def score_N(self) -> NDArray[np.int64]:
        """Events; one more than the most for what was never learned."""
        return np.where(self.learned_N, self.events_N, self.events_N.max(initial=0) + 1)

    @property
    def unforgettable_N(self) -> NDArray[np.bool_]:
        """Learned, and right ever after."""
        return np.asarray(self.learned_N & (self.events_N == 0), dtype=np.bool_)


def forgetting(right_TN: ArrayLike) -> Forgetting:
    """Count forgetting events: right at one checkpoint, wrong at the next. Source: Toneva et al. 2019."""
    right_TN = _table(right_TN) > 0
    tail_N = np.cumprod(right_TN[::-1], axis=0).sum(axis=0)
    return Forgetting(
        np.asarray((right_TN[:-1] & ~right_TN[1:]).sum(axis=0), dtype=np.int64),
        np.asarray(right_TN.any(axis=0), dtype=np.bool_),
        np.where(tail_N > 0, len(right_TN) - tail_N.astype(float), np.nan),
    )


def margin(logits: ArrayLike, label_N: ArrayLike) -> FloatArray:
    """Logit of the label less the highest of the others, (..., N), from logits (..., N, K)."""
    right, others = _label_and_others(logits, label_N)
    return np.asarray(right - others.max(axis=-1), dtype=np.float64)


def area_under_margin(logits_TNK: ArrayLike, label_N: ArrayLike) -> FloatArray:
    """Mean margin over the checkpoints, (N,). Low, not high, means mislabelled. Source: AUM, Pleiss et al. 2020."""
    return np.asarray(margin(logits_TNK, label_N).mean(axis=0), dtype=np.float64)


def el2n(probability: ArrayLike, label_N: ArrayLike) -> FloatArray:
    """|p - onehot(label)|_2, (..., N), from probabilities (..., N, K); early in training, and meant over seeds.

    Source: Paul et al. 2021.
    """
    return np.asarray(np.linalg.norm(_residual(probability, label_N), axis=-1), dtype=np.float64)


def last_layer_gradient(features: ArrayLike, probability: ArrayLike, label_N: ArrayLike) -> FloatArray:
    """Squared norm of the cross-entropy's gradient in the last layer's matrix: |a|^2 |p - onehot|^2, (..., N).

    Features (..., N, D) are its inputs; with a bias among its weights, append a column of ones. Its root is GraNd of
    the last layer (Paul et al. 2021).
    """
    features = np.asarray(features, dtype=np.float64)
    return np.asarray((features**2).sum(axis=-1) * el2n(probability, label_N) ** 2, dtype=np.float64)


def tracin(squared_gradient_TN: ArrayLike, learning_rate_T: ArrayLike) -> FloatArray:
    """Self-influence, sum_t eta_t |grad|^2, (N,). Source: TracInCP, Pruthi et al. 2020, of a record on itself."""
    return np.asarray(np.asarray(learning_rate_T, dtype=np.float64) @ _table(squared_gradient_TN), dtype=np.float64)


def noise_share(predicted_N: ArrayLike, given_N: ArrayLike, true_N: ArrayLike) -> float:
    """Share of the mislabelled rows that a model fits to their wrong label, 0 to 1; NaN where none is mislabelled."""
    predicted_N, given_N, true_N = np.asarray(predicted_N), np.asarray(given_N), np.asarray(true_N)
    wrong_N = given_N != true_N
    return float((predicted_N == given_N)[wrong_N].mean()) if wrong_N.any() else float("nan")


def logit_confidence(logits: ArrayLike, label_N: ArrayLike) -> FloatArray:
    """Give phi = log(p / (1 - p)) of the label, (..., N), from logits (..., N, K), exact also where p is next to 1."""
    right, others = _label_and_others(logits, label_N)
    return np.asarray(right - logsumexp(others, axis=-1), dtype=np.float64)


# Checks -----------------------------------------------------------------------------------------------------------


def _table(values: ArrayLike) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(f"shape {array.shape}: expected a table of two dimensions.")
    return array


def _scores(values: ArrayLike) -> FloatArray:
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[~np.isnan(array)]


def _log_probability(logp_N: ArrayLike) -> FloatArray:
    array = np.asarray(logp_N, dtype=np.float64)
    if (array > 1e-6).any():
        raise ValueError(f"a log-probability is {array.max():.3g}: expected at most 0.")
    return np.minimum(array, 0.0)


def _label_and_others(logits: ArrayLike, label_N: ArrayLike) -> tuple[FloatArray, FloatArray]:
    logits = np.asarray(logits, dtype=np.float64)
    is_label_NK = np.arange(logits.shape[-1]) == np.asarray(label_N)[:, None]
    right = logits[..., is_label_NK]
    return right, logits[..., ~is_label_NK].reshape(*logits.shape[:-1], -1)


def _residual(probability: ArrayLike, label_N: ArrayLike) -> FloatArray:
    probability = np.asarray(probability, dtype=np.float64)
    onehot_NK = np.arange(probability.shape[-1]) == np.asarray(label_N)[:, None]
    return np.asarray(probability - onehot_NK, dtype=np.float64)
