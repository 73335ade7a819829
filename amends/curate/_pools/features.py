"""Texts and embeddings of the rows of a pool, and the rows that lack them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from amends.curate._pools.pool import Verdict, missing
from amends.io.console import say
from amends.io.errors import InputError
from amends.io.rows import Row


def unusable(
    rows: Sequence[Row], texts: list[str], embedding: str | None, known: Mapping[int, Verdict]
) -> dict[int, Verdict]:
    """Refuse rows without a text or an embedding, and drop those that say the same as an earlier one."""
    if embedding and not any(embedding in row.data for row in rows):
        raise InputError(f'{rows[0].where}: no row has the column "{embedding}". Name another one with --embedding.')
    found: dict[int, Verdict] = {}
    first: dict[str, str] = {}
    width = None
    for i, row in enumerate(rows):
        if i in known:
            continue
        if texts and not texts[i].strip():
            found[i] = Verdict("refused", "no text")
            continue
        if embedding:
            reason, width = _faulty(row, embedding, width)
            if reason:
                found[i] = Verdict("refused", reason)
                continue
        if texts and (same := first.setdefault(texts[i], row.where)) != row.where:
            found[i] = Verdict("dropped", f"the same text as {same}")
    return found


def _faulty(row: Row, column: str, width: int | None) -> tuple[str | None, int | None]:
    """Say why an embedding cannot be used, and how wide embeddings are."""
    values = numbers_of(row.data.get(column))
    if values is None or values.size < 2:
        return "the embedding is no list of numbers", width
    if not np.isfinite(values).all() or not values.any():
        return "the embedding has no direction (NaN, infinite or zero)", width
    if width not in (None, values.size):
        return f"the embedding has {values.size} numbers, and others have {width}", width
    return None, values.size


def numbers_of(value: Any, dtype: Any = np.float32) -> Any:
    """Read a list of numbers, or its JSON, as it stands in CSV: array (n,); None if it is none."""
    try:
        with np.errstate(over="ignore"):  # too large for it: infinite, which is no direction
            found = np.asarray(json.loads(value) if isinstance(value, str) else value, dtype=dtype)
    except (TypeError, ValueError, RecursionError):
        return None
    return found if found.ndim == 1 and found.size else None


def embeddings(
    rows: Sequence[Row],
    texts: list[str],
    used: list[int],
    embedder: str | None,
    embedding: str | None,
    digests: dict[str, str],
) -> Any:
    """Embeddings of the rows in use, (n, D), float32."""
    if embedding:
        return np.array([numbers_of(rows[i].data[embedding]) for i in used])
    from amends.lm.encoders import embed, load_encoder
    from amends.lm.load import weights_sha256

    encoder = load_encoder(str(embedder), "embedding")
    digests["embedder"] = weights_sha256(encoder.model)
    say(f"embedding {len(used)} texts")
    order = sorted(range(len(used)), key=lambda n: len(texts[used[n]]))  # little padding
    found = embed(encoder, [texts[used[n]] for n in order]).numpy()
    points_nD = np.empty_like(found)
    points_nD[order] = found
    return points_nD


def groups(rows: Sequence[Row], used: list[int], column: str | None) -> Any:
    """Give the number of the group of each row, -1 where it has none; None without such a column."""
    if column is None:
        return None
    if not any(column in rows[i].data for i in used):
        raise InputError(f'{rows[0].where}: no row has the column "{column}". Name another one with --group.')
    return codes_of(rows[i].data.get(column) for i in used)


def codes_of(values: Iterable[Any]) -> Any:
    """Give the number of each value, -1 of one that is missing: None, NaN, or empty as in CSV."""
    numbers: dict[str, int] = {}
    return np.array([-1 if missing(value) else numbers.setdefault(str(value), len(numbers)) for value in values])
