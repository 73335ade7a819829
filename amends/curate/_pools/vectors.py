"""Embeddings of rows: from a sentence encoder, from a column, or given as an array."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from amends.curate._entp.purge import Sample
from amends.curate._pools.features import numbers_of
from amends.io.console import say
from amends.io.errors import InputError
from amends.io.rows import Row
from amends.lm.encoders import embed, load_encoder
from amends.maths.arrays import Float32Array
from amends.maths.neighbors import unit


def vectors_of(
    samples: Sequence[Sample], rows: Sequence[Row], embedder: str | None, embedding: Any
) -> tuple[list[Sample], Float32Array, dict[int, str]]:
    """Embed samples: instruction and response as one text, or what one of the others gives.

    Parameters
    ----------
    embedder : str, or
    embedding : str or array
        A name for `load_encoder`; a column with lists of numbers (in CSV their JSON), or a vector for each row of the
        pool.

    Returns
    -------
    The samples that have a vector, their vectors at length 1 (N, D), and the numbers of the other rows with the reason.

    Raises
    ------
    InputError : not one of the two, vectors of different lengths, or none at all.
    """
    if (embedder is None) == (embedding is None):
        raise InputError("give one of --embedder and --embedding: where the embeddings come from.")
    column, given = (embedding, None) if isinstance(embedding, str) else (None, embedding)
    if given is not None and (np.ndim(given) != 2 or len(given) != len(rows)):
        raise InputError(f"embeddings {np.shape(given)}: expected a vector for each of the {len(rows)} rows.")
    if not samples:
        return [], np.empty((0, 1), dtype=np.float32), {}
    if embedder is not None:
        say(f"embedding {len(samples)} rows")
        encoder = load_encoder(embedder, "embedding")
        order = sorted(range(len(samples)), key=lambda i: len(samples[i].instruction) + len(samples[i].response))
        found_ND = embed(encoder, [f"{samples[i].instruction}\n{samples[i].response}" for i in order]).numpy()
        return list(samples), unit(found_ND[np.argsort(order)]), {}
    kept, vectors, faulty = list[Sample](), list[Float32Array](), dict[int, str]()
    for sample in samples:
        vector = vector_of(rows[sample.row].data.get(str(column)) if given is None else given[sample.row])
        if vector is None:
            faulty[sample.row] = "no embedding, or one without a direction"
            continue
        if vectors and len(vector) != len(vectors[0]):
            raise InputError(
                f"{sample.where}: an embedding of {len(vector)} numbers, where {kept[0].where} has {len(vectors[0])}."
            )
        kept.append(sample)
        vectors.append(vector)
    if not kept:
        raise InputError(
            f'{samples[0].where}: no row has an embedding in "{column}". Name the column, or an --embedder.'
        )
    return kept, unit(np.stack(vectors)), faulty


def vector_of(value: Any) -> Float32Array | None:
    """Read a list of numbers, or its JSON; None unless it has a direction."""
    found: Float32Array | None = numbers_of(value)
    return found if found is not None and np.isfinite(found).all() and found.any() else None
