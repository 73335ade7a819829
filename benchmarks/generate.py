"""Answers to many prompts, beside what `generate` of transformers takes for them: make bench NAME=generate.

(a) transformers: the same prompts in the same batches, sorted by length and padded on the left, greedy;
(b) amends: what all prompts begin with is read once, and the cache has room for what is to come.

Asked are TOFU's questions, which have the system message in common, and the questions with AltPO's worked examples.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from _measure import claim, in_turn, matmul_flops
from unlearn_step import BASE

from amends.io.tables import read_rows
from amends.lm.generate import common_beginning, generate
from amends.lm.load import Loaded, autocast, device, load, precision
from amends.lm.pairs import encode, read_pairs
from amends.lm.templates import turn_end
from amends.unlearn.altpo import asked

DATA = Path(__file__).resolve().parents[1] / "examples" / "tofu" / "data"


def plainly(loaded: Loaded, prompts: Sequence[list[int]], new_tokens: int, batch: int) -> list[str]:
    """Answer as (a)."""
    texts = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        width = len(prompts[places[-1]])
        pads = [width - len(prompts[place]) for place in places]
        rows = [[0] * pad + prompts[place] for pad, place in zip(pads, places, strict=True)]
        mask = [[0] * pad + [1] * (width - pad) for pad in pads]
        with torch.inference_mode(), autocast():
            said = loaded.model.generate(
                input_ids=torch.tensor(rows, device=device()),
                attention_mask=torch.tensor(mask, device=device()),
                max_new_tokens=new_tokens,
                do_sample=False,
                eos_token_id=sorted(turn_end(loaded.tokenizer)),
                pad_token_id=loaded.tokenizer.pad_token_id,
            )
        for place, text in zip(places, loaded.tokenizer.batch_decode(said[:, width:], True), strict=True):
            texts[place] = text.strip()
    return texts


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    loaded = load(BASE)
    pairs = read_pairs(read_rows(DATA / "forget.jsonl")).kept[: options.rows]
    tokenizer, size = loaded.tokenizer, (options.new_tokens, options.batch)
    dtype = torch.bfloat16 if precision() == "bfloat16" else torch.float32
    limit = matmul_flops(dtype, device())
    weights = sum(weight.numel() for weight in loaded.model.parameters())
    sets = {
        "questions": [encode(tokenizer, pair.prompt, ["a"])[0].prompt for pair in pairs],
        "questions with worked examples": [encode(tokenizer, asked(pair), ["a"])[0].prompt for pair in pairs],
    }
    for name, prompts in sets.items():
        found: dict[str, list[str]] = {}

        def plain(prompts: list[list[int]] = prompts, found: dict[str, list[str]] = found) -> None:
            found["a"] = plainly(loaded, prompts, *size)

        def ours(prompts: list[list[int]] = prompts, found: dict[str, list[str]] = found) -> None:
            found["b"] = generate(
                loaded.model,
                tokenizer,
                prompts,
                stop_ids=turn_end(tokenizer),
                max_new_tokens=options.new_tokens,
                batch_size=options.batch,
            )

        costs = in_turn({"a": plain, "b": ours}, options.rounds)
        lengths = [len(prompt) for prompt in prompts]
        alike = common_beginning(prompts)
        tokens = sum(lengths) - alike * (len(prompts) - 1) + len(prompts) * options.new_tokens
        shape = f"{len(prompts)} of {min(lengths)} to {max(lengths)} tokens, {options.new_tokens} new"
        print(f"{name}: {shape}, {precision()}")
        for side, cost in costs.items():
            print(f"({side}) {cost.wall_s:8.2f} s wall {cost.cpu_s:8.2f} s CPU {cost.peak_bytes / 2**20:8.0f} MB peak")
        print(f"by CPU seconds: {costs['a'].cpu_s / costs['b'].cpu_s:.2f} times")
        print(f"(b) of the rate of a matrix product: {2 * weights * tokens / costs['b'].wall_s / limit:.2f}")
        claim(f"{name}: times faster than transformers", costs["a"].wall_s / costs["b"].wall_s, 1, "x", "higher")
        same = sum(one == other for one, other in zip(found["a"], found["b"], strict=True)) / len(prompts)
        claim(f"{name}: share of answers that are the same", same, 1, "", "higher")


if __name__ == "__main__":
    main()
