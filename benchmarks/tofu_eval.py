"""Likelihoods of TOFU's questions: one packed pass against a forward for every answer: make bench NAME=tofu_eval.

(a) each metric asks again, as evaluation scripts do: the answer for its probability; for the truth ratio the
    paraphrased answer and each of the five wrong ones; prompt and answer of each in a padded batch with all logits;
(b) amends: every question once, with all its answers behind it.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from _measure import claim, in_turn
from unlearn_step import BASE, all_logits, padded

from amends.io.tables import read_rows
from amends.lm.load import autocast, load
from amends.lm.logprobs import PackedRow
from amends.lm.pairs import encode, read_pairs
from amends.unlearn._evaluate import mean_logprobs

DATA = Path(__file__).resolve().parents[1] / "examples" / "tofu" / "data"


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
    found: dict[str, np.ndarray] = {}

    def repeated() -> None:
        columns = []
        for k in range(len(rows[0].answers)):
            means = []
            for start in range(0, len(rows), options.batch):
                batch = padded(rows[start : start + options.batch], k, pad)
                with torch.inference_mode(), autocast():
                    logp = all_logits(loaded.model, *batch)
                means.append(logp.sum(-1) / (batch[2][:, 1:] != -100).sum(-1))
            columns.append(torch.cat(means))
        found["a"] = torch.stack(columns, 1).cpu().numpy()

    def packed() -> None:
        found["b"] = np.array(mean_logprobs(loaded.model, rows, pad))

    costs = in_turn({"a": repeated, "b": packed}, options.rounds)
    difference = float(np.abs(found["a"] - found["b"]).max())
    once = sum(row.num_tokens for row in rows)
    again = sum(len(row.prompt) + len(answer) for row in rows for answer in row.answers)
    print(f"{len(rows)} questions of {len(rows[0].answers)} answers; {once} tokens once, {again} asked again each time")
    for name, cost in costs.items():
        print(f"({name}) {cost.wall_s:8.2f} s wall {cost.cpu_s:8.2f} s CPU {cost.peak_bytes / 2**20:8.0f} MB peak")
    print(f"largest difference of a mean log-probability {difference:.1e}")
    ratio = costs["a"].wall_s / costs["b"].wall_s
    claim("TOFU likelihoods: times faster than a forward for every answer", ratio, 5, "x", "higher")
    claim("TOFU likelihoods: largest difference of a mean log-probability", difference, 1e-5, "nats", "lower")


if __name__ == "__main__":
    main()
