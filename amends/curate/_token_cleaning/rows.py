"""Rows of a pool as prompts and answers in token ids, and chosen tokens as labels."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from amends.curate._pools.pool import Fate, Outcome, Verdict, read_pool
from amends.curate._token_cleaning.masks import Floats, Mask, Offsets
from amends.io.errors import InputError
from amends.io.rows import Row
from amends.lm.logprobs import PackedRow
from amends.lm.pairs import OR_SKIP, SAME, Pair, is_plain_text, read_pairs
from amends.lm.rows import encode_rows

ADDED = ("answer_tokens", "kept_tokens", "mean_score")
"""Columns that every row gets."""
FEATURES = datasets.Features(
    {
        "input_ids": datasets.List(datasets.Value("int32")),
        "attention_mask": datasets.List(datasets.Value("int8")),
        "labels": datasets.List(datasets.Value("int64")),
    }
)
NO_LOSS = -100


class Scored(NamedTuple):
    """Scores of the answer tokens of N rows, M in all."""

    where: list[str]
    """(N,): where each stands."""
    rows: list[PackedRow]
    """(N,): token ids of prompt and answer."""
    scores: Floats
    """(M,): S, nats; NaN in rows that made the reference."""
    offsets: Offsets
    """(N + 1,): where each row's tokens begin."""


class TokenPool(NamedTuple):
    """A pool as it was read; N rows of it can be scored."""

    rows: list[Row]
    """All of them."""
    left_out: dict[int, Verdict]
    """By number of the row, of those that cannot be scored, or are there twice."""
    numbers: list[int]
    """(N,): of the others."""
    pairs: list[Pair]
    """(N,)"""
    packed: list[PackedRow]
    """(N,)"""


def read_token_pool(
    data: Any,
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    question_column: str | None = None,
    answer_column: str | None = None,
) -> TokenPool:
    """Read rows of prompts and answers; one that cannot be scored, as it is longer than `limit`, is refused.

    Raises
    ------
    InputError : no row can be scored; plain text; a column that is written here is there already.
    """
    rows = read_pool(data, ADDED)
    for row in rows:
        if question_column is None and is_plain_text(row):
            raise InputError(f"{row.where}: plain text has no prompt and answer to tell apart. Give rows with both.")
    unnamed = (Row({k: v for k, v in row.data.items() if k != "id"}, row.where) for row in rows)  # files may share ids
    found = read_pairs(unnamed, question_column=question_column, answer_column=answer_column, skip_bad_rows=True)
    pool = TokenPool(rows, {}, [], [], [])
    kept, dropped = found.kept[::-1], found.dropped[::-1]  # both are in the order of the rows
    for number, row in enumerate(rows):
        if not kept or kept[-1].where != row.where:
            reason = dropped.pop().reason
            fate: Fate = "dropped" if reason.startswith(SAME) else "refused"
            pool.left_out[number] = Verdict(fate, reason.replace(OR_SKIP, "."))
            continue
        pair = kept.pop()
        try:
            (packed,) = encode_rows(tokenizer, [pair], limit)
        except InputError as error:
            pool.left_out[number] = Verdict("refused", str(error).removeprefix(f"{row.where}: ").replace(OR_SKIP, "."))
            continue
        pool.numbers.append(number)
        pool.pairs.append(pair)
        pool.packed.append(packed)
    if not pool.pairs:
        number, verdict = next(iter(pool.left_out.items()))
        raise InputError(f"no row can be scored; the first: {rows[number].where}: {verdict.reason}")
    return pool


def outcome_of(pool: TokenPool, scores: Floats, mask: Mask, offsets: Offsets, first: int) -> Outcome:
    """Say what becomes of every row; those before `first` made the reference."""
    verdicts = dict(pool.left_out)
    added: dict[str, list[Any]] = {name: [None] * len(pool.rows) for name in ADDED}
    for i, number in enumerate(pool.numbers):
        own, kept = scores[offsets[i] : offsets[i + 1]], int(mask[offsets[i] : offsets[i + 1]].sum())
        if i < first:
            verdicts[number] = Verdict("kept", "made the reference: all its tokens are kept")
        elif kept == 0:
            verdicts[number] = Verdict("dropped", f"none of its {len(own)} answer tokens is among those kept")
        else:
            verdicts[number] = Verdict("kept", None if kept == len(own) else f"{kept} of {len(own)} tokens are kept")
        mean = None if i < first else float(own.mean())
        for name, value in zip(ADDED, (len(own), kept, mean), strict=True):
            added[name][number] = value
    return Outcome(pool.rows, [verdicts[number] for number in range(len(pool.rows))], added)


def save_dataset(dataset: datasets.Dataset, folder: Path) -> None:
    """Write a folder of `datasets`, without its progress bar."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        dataset.save_to_disk(folder)
    finally:
        if shown:
            datasets.enable_progress_bars()


def source_of(row: Row, column: str) -> str:
    """Name of a row's source.

    Raises
    ------
    InputError : the column is missing or empty.
    """
    value = row.data.get(column)
    if value is None or not str(value).strip():
        raise InputError(f'{row.where}: the column "{column}" (--source-column) is missing or empty. Fill it.')
    return str(value)


def lengths(rows: Sequence[PackedRow]) -> list[int]:
    """Count the answer tokens of each row, (N,)."""
    return [len(row.answers[0]) for row in rows]


def to_dataset(rows: Sequence[PackedRow], mask: Mask, offsets: Offsets) -> datasets.Dataset:
    """Rows as input_ids, attention_mask and labels, -100 where a token is of the prompt or not kept.

    Parameters
    ----------
    rows : list of PackedRow (N,)
        With one answer each.
    mask : bool (M,)
        The answer tokens that are kept. Rows without any are left out.
    offsets : int64 (N + 1,)
    """
    columns: dict[str, list[list[int]]] = {name: [] for name in FEATURES}
    for row, (start, end) in zip(rows, pairwise(offsets.tolist()), strict=True):
        prompt, answer = row.prompt, row.answers[0]
        if mask[start:end].any():
            columns["input_ids"].append(prompt + answer)
            columns["attention_mask"].append([1] * (len(prompt) + len(answer)))
            columns["labels"].append([NO_LOSS] * len(prompt) + np.where(mask[start:end], answer, NO_LOSS).tolist())
    return datasets.Dataset.from_dict(columns, features=FEATURES)
