"""What the report of a token cleaning shows: counts, tokens by their scores, and answers with their kept tokens."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from amends.curate._token_cleaning.masks import (
    Floats,
    Mask,
    Offsets,
    Rise,
    kept_by,
    kept_by_token,
    needed_reduction,
    rise_of,
)
from amends.curate._token_cleaning.rows import TokenPool
from amends.report.tokens import Example

EXAMPLES, EXAMPLE_TOKENS = 10, 300
TOKENS_SHOWN, AT_LEAST = 15, 5
DELTA = 0.05


def summary(
    pool: TokenPool,
    scores: Floats,
    mask: Mask,
    offsets: Offsets,
    first: int,
    ends: int,
    parts: Sequence[str],
    sources: Sequence[str] | None,
    tokenizer: PreTrainedTokenizerBase,
    beside: Floats,
) -> dict[str, Any]:
    """Count the scored tokens, those from row `first` on.

    Parameters
    ----------
    ends : int
        Tokens that are kept whatever their score is.
    parts : list of str (N,)
        Of each row the part of the data that it is in.
    sources : list of str (N,), optional
    beside : float32 (M, 2)
        From `clean`.
    """
    start = int(offsets[first])
    own, kept, rows = scores[start:], mask[start:], offsets[first:] - start
    ids = np.array([i for row in pool.packed[first:] for i in row.answers[0]], dtype=np.int64)
    tokens = kept_by_token(ids, own, kept, AT_LEAST)
    named = [{"id": i} | counted._asdict() | {"name": str(tokenizer.decode([i]))} for i, counted in tokens]
    return {
        "tokens": len(own),
        "kept": int(kept.sum()),
        "ends": ends,
        "mean_score": float(own.mean(dtype=np.float64)),
        "least_likely": rise_of(own, *beside[start:].T)._asdict(),
        "parts": [counted._asdict() for counted in kept_by(parts[first:], own, kept, rows)],
        "sources": [c._asdict() for c in kept_by(sources[first:], own, kept, rows)] if sources else [],
        "delta": DELTA,
        "needed_reduction": needed_reduction(len(own), float(kept.mean()), DELTA) if kept.any() else None,
        "at_least": AT_LEAST,
        "highest": named[:TOKENS_SHOWN],
        "lowest": named[max(TOKENS_SHOWN, len(named) - TOKENS_SHOWN) :][::-1],
    }


def examples(
    pool: TokenPool, mask: Mask, offsets: Offsets, first: int, tokenizer: PreTrainedTokenizerBase
) -> list[Example]:
    """Take some of the scored rows, evenly spread."""
    num_rows = len(pool.pairs) - first
    chosen = np.unique(np.linspace(first, len(pool.pairs) - 1, min(EXAMPLES, num_rows)).astype(int)).tolist()
    return [
        Example(
            where=pool.pairs[i].where,
            question=pool.pairs[i].question,
            runs=runs(tokenizer, pool.packed[i].answers[0][:EXAMPLE_TOKENS], own := mask[offsets[i] : offsets[i + 1]]),
            kept=int(own.sum()),
            tokens=len(own),
            more=max(0, len(own) - EXAMPLE_TOKENS),
        )
        for i in chosen
    ]


def runs(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], mask: Mask) -> list[tuple[bool, str]]:
    """Give the text of tokens, in runs of the same fate; a character of several tokens goes with the last of them."""
    texts: list[str] = []
    told = 0
    for end in range(1, len(ids) + 1):
        text = str(tokenizer.decode(list(ids[:end])))
        whole = len(text) if end == len(ids) else len(text.rstrip("\ufffd"))
        texts.append(text[told:whole])
        told = max(told, whole)
    fates = [(kept, text) for kept, text in zip(mask.tolist(), texts, strict=False) if text]
    return [(kept, "".join(text for _, text in run)) for kept, run in groupby(fates, key=lambda fate: fate[0])]


def warnings_of(scores: Floats, told: dict[str, Any]) -> list[str]:
    """Say what makes a cleaning doubtful."""
    found = []
    if scores.min() == scores.max():
        found.append(
            "All scores are the same, so the reference is no other model than the base here, and the tokens that are "
            "kept are only the first ones."
        )
    elif told["mean_score"] < 0:
        found.append(
            f"The reference says the answers less well than the base (mean score {told['mean_score']:.3f} nats): what "
            "it learned does not help here. Make it of rows like these, of more of them, or at a lower rate."
        )
    rise = Rise(**told["least_likely"])
    if rise.is_most:
        found.append(
            f"The {rise.tokens} tokens that the base finds least likely have a mean score of {rise.mean_score:.3f} "
            f"nats, but where they stand any token of the vocabulary rises by {rise.mean_rise:.3f}: the reference is "
            "less sure than the base, and their scores do not say that it learned them. Noise among them is kept like "
            "the rest. Make the reference of more rows, or at a lower rate."
        )
    if not told["kept"]:
        found.append("No token is kept.")
    if told["rows"]["refused"]:
        found.append(f"{told['rows']['refused']} of {told['rows']['rows']} rows were refused; see the reasons.")
    return found
