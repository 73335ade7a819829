"""All that TOFU's questions are asked, in one packed pass and as rival toolkits do it: make bench NAME=tofu_eval.

(a) each metric runs the model again over the same rows, in padded batches with all logits: probability, exact
    memorisation, extraction strength, loss, zlib, Min-K% and Min-K%++ of the answer, and for the truth ratio the
    paraphrased answer and each of the five wrong ones: thirteen forwards;
(p) a forward for every answer, for its probability alone: seven;
(b) amends: every question once, with all its answers behind it, for all of (a).
"""

import argparse
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _measure import claim, in_turn
from torch import Tensor
from unlearn_step import BASE, all_logits, padded

from amends.evaluation.evaluate import likelihoods
from amends.evaluation.memorised import answer_scores
from amends.io.tables import read_rows
from amends.lm.load import autocast, load
from amends.lm.logprobs import PackedRow
from amends.lm.pairs import encode, read_pairs

DATA = Path(__file__).resolve().parents[1] / "examples" / "tofu" / "data"

# What each metric makes of the logits of one row's answer (T, V) and its tokens (T,), with its text.


def probability(logits_TV: Tensor, target_T: Tensor, text: str) -> float:
    """Length-normalised, 0 to 1."""
    return float(_logp(logits_TV, target_T).mean().exp())


def exact_memorisation(logits_TV: Tensor, target_T: Tensor, text: str) -> float:
    """Share of tokens that are the model's first choice."""
    return float((logits_TV.argmax(-1) == target_T).float().mean())


def extraction_strength(logits_TV: Tensor, target_T: Tensor, text: str) -> float:
    """One comparison for every k, as rivals have it; 0 where nothing matches, as they have not."""
    first_T = logits_TV.argmax(-1)
    k = 0
    while k < len(target_T) and not torch.equal(first_T[k:], target_T[k:]):
        k += 1
    return 1 - k / len(target_T)


def loss(logits_TV: Tensor, target_T: Tensor, text: str) -> float:
    """Mean NLL, nats."""
    return -float(_logp(logits_TV, target_T).mean())


def by_zlib(logits_TV: Tensor, target_T: Tensor, text: str) -> float:
    """Mean NLL over the length of the compressed text."""
    return loss(logits_TV, target_T, text) / len(zlib.compress(text.encode()))


def min_k(logits_TV: Tensor, target_T: Tensor, text: str) -> float:
    """Of the least likely 40 % of the tokens."""
    return _least(_logp(logits_TV, target_T))


def min_k_plus(logits_TV: Tensor, target_T: Tensor, text: str) -> float:
    """Of standardised log-probabilities, the lowest 40 %."""
    logp_TV = logits_TV.log_softmax(-1)
    mean_T = (logp_TV.exp() * logp_TV).sum(-1)
    variance_T = (logp_TV.exp() * logp_TV.square()).sum(-1) - mean_T.square()
    return _least((_logp(logits_TV, target_T) - mean_T) / variance_T.clamp(min=1e-6).sqrt())


def _logp(logits_TV: Tensor, target_T: Tensor) -> Tensor:
    return logits_TV.log_softmax(-1).gather(-1, target_T[:, None])[:, 0]


def _least(values_T: Tensor) -> float:
    return -float(values_T.sort().values[: max(1, int(0.4 * len(values_T)))].mean())


Metric = Callable[[Tensor, Tensor, str], float]
OF_THE_ANSWER: dict[str, Metric] = {
    "probability": probability,
    "exact_memorisation": exact_memorisation,
    "extraction_strength": extraction_strength,
    "nll": loss,
    "nll_per_zlib_byte": by_zlib,
    "min_k_40": min_k,
    "min_k_plus_40": min_k_plus,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    loaded = load(BASE)
    pad = loaded.tokenizer.pad_token_id
    pairs = read_pairs(read_rows(DATA / "forget.jsonl")).kept[: options.rows]
    rows = []
    for pair in pairs:
        encoded = encode(loaded.tokenizer, pair.prompt, [pair.answer, str(pair.paraphrase), *pair.wrong])
        rows.append(PackedRow(encoded[0].prompt, [e.answer for e in encoded]))
    num_answers = len(rows[0].answers)
    found: dict[str, dict[str, np.ndarray]] = {}
    starts = range(0, len(rows), options.batch)

    def means(answer: int) -> np.ndarray:
        parts = []
        for start in starts:
            batch = padded(rows[start : start + options.batch], answer, pad)
            with torch.inference_mode(), autocast():
                logp = all_logits(loaded.model, *batch)
            parts.append(logp.sum(-1) / (batch[2][:, 1:] != -100).sum(-1))
        return torch.cat(parts).cpu().numpy()

    def once_more(metric: Metric) -> np.ndarray:
        values = []
        for start in starts:
            ids, mask, labels = padded(rows[start : start + options.batch], 0, pad)
            with torch.inference_mode(), autocast():
                logits = loaded.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
                for pair, row_TV, label_T in zip(pairs[start:], logits, labels[:, 1:], strict=False):
                    values.append(metric(row_TV[label_T != -100], label_T[label_T != -100], pair.answer))
        return np.array(values)

    def as_rivals() -> None:
        found["a"] = {name: once_more(metric) for name, metric in OF_THE_ANSWER.items()}
        found["a"] |= {f"mean {k}": means(k) for k in range(1, num_answers)}

    def every_answer() -> None:
        found["p"] = {f"mean {k}": means(k) for k in range(num_answers)}

    def packed() -> None:
        told = likelihoods(loaded.model, rows, pad, tokens=True)
        scores = [answer_scores(tokens_T4, pair.answer) for (_, tokens_T4), pair in zip(told, pairs, strict=True)]
        means_NK = np.array([each.means for each in told])
        found["b"] = {"probability": np.exp(means_NK[:, 0])}
        found["b"] |= {f"mean {k}": means_NK[:, k] for k in range(num_answers)}
        found["b"] |= {name: np.array([score[name] for score in scores]) for name in scores[0]}

    costs = in_turn({"a": as_rivals, "p": every_answer, "b": packed}, options.rounds)
    once = sum(row.num_tokens for row in rows)
    again = [sum(len(row.prompt) + len(row.answers[k]) for row in rows) for k in range(num_answers)]
    print(f"{len(rows)} questions of {num_answers} answers; {once} tokens once, {sum(again)} with a forward an answer,")
    print(f"{sum(again) + (len(OF_THE_ANSWER) - 1) * again[0]} with a forward a metric; padding not counted")
    for name, cost in costs.items():
        print(f"({name}) {cost.wall_s:8.2f} s wall {cost.cpu_s:8.2f} s CPU {cost.peak_bytes / 2**20:8.0f} MB peak")
    apart = {name: float(np.abs(values - found["b"][name]).max()) for name, values in (found["p"] | found["a"]).items()}
    for name, difference in apart.items():
        print(f"largest difference of {name:<20} {difference:.1e}")
    for side, what in {"a": "a forward for every metric", "p": "a forward for every answer"}.items():
        ratio = costs[side].wall_s / costs["b"].wall_s
        print(f"({side}) by CPU seconds: {costs[side].cpu_s / costs['b'].cpu_s:.2f} times (b)")
        claim(f"TOFU likelihoods: times faster than {what}", ratio, 5, "x", "higher")
    claim("TOFU likelihoods: largest difference of any value", max(apart.values()), 1e-4, "", "lower")


if __name__ == "__main__":
    main()
