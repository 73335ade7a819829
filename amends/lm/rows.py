"""Pairs as rows of token ids, each of which fits the model."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from amends.io.errors import InputError
from amends.lm.logprobs import PackedRow, packed_row
from amends.lm.pairs import OR_SKIP, Dropped, Pair, Pairs, encode


def context_of(model: Any) -> int | None:
    """Most tokens that a model, or a configuration, takes, if it says so."""
    found = getattr(getattr(model, "config", model).get_text_config(), "max_position_embeddings", None)
    return int(found) if found else None


def context_limit(model: Any, max_length: int) -> int:
    """Most tokens a row may have: what was asked, or the model's context where that is shorter."""
    return min(max_length, context_of(model) or max_length)


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], limit: int, *, alternatives: int | None = None
) -> list[PackedRow]:
    """One packed row a pair, its answer alone.

    Parameters
    ----------
    alternatives : int, optional
        Most tokens of a prompt with the paraphrase or a wrong answer, where a model is asked for them, too.

    Raises
    ------
    InputError : a pair longer than `limit` tokens, or one that the chat template does not take; with its place.
    """
    rows = []
    for pair in pairs:
        named = [("answer", pair.answer, limit)]
        if alternatives is not None:
            named += [("paraphrased_answer", text, alternatives) for text in (pair.paraphrase,) if text]
            named += [("perturbed_answer", text, alternatives) for text in pair.wrong]
        try:
            row = packed_row(encode(tokenizer, pair.prompt, [text for _, text, _ in named]))
        except InputError as error:
            raise InputError(f"{pair.where}: {error}") from error
        rows.append(PackedRow(row.prompt, row.answers[:1]))
        for (name, _, most), answer in zip(named, row.answers, strict=True):
            if (length := len(row.prompt) + len(answer)) > most:
                cut = "Lower --prefix-tokens and --continuation-tokens" if pair.is_text else "Shorten or split it"
                raise InputError(
                    f"{pair.where}: prompt and {name} have {length} tokens, more than the {most} that fit "
                    f"(--max-length and the model's context). {cut}{OR_SKIP}"
                )
    return rows


def without_too_long(
    pairs: Pairs, tokenizer: PreTrainedTokenizerBase, limit: int, *, alternatives: int | None = None
) -> Pairs:
    """Leave out, and count, the pairs that `encode_rows` would refuse.

    Raises
    ------
    InputError : none is short enough.
    """
    kept, dropped = [], list(pairs.dropped)
    for pair in pairs.kept:
        try:
            encode_rows(tokenizer, [pair], limit, alternatives=alternatives)
            kept.append(pair)
        except InputError as error:
            dropped.append(Dropped(pair.where, str(error).removeprefix(f"{pair.where}: ").replace(OR_SKIP, ".")))
    if not kept:
        raise InputError(f"no row is short enough; the first: {dropped[-1].where}: {dropped[-1].reason}")
    return Pairs(kept, dropped)
