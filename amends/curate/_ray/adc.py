"""Cleaning of collected samples on Ray: texts and pictures are read where they lie, and judged in parts.

What passes through the process that calls: labels, ranks, digests and hashes, embeddings, and what becomes of each row.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from amends.curate._adc.cleaning import ADDED, NO_VECTOR, How, check_how, clean
from amends.curate._adc.images import sha256_of
from amends.curate._adc.review import read_votes
from amends.curate._adc.samples import Reading, Samples, read_in_parts
from amends.curate._adc.samples import joined as samples_of
from amends.curate._labels.doubts import Looked, Mixed
from amends.curate._pools.pool import Verdict
from amends.curate._ray.blocks import TOLD, OnRay, blocks_of, joined, points_in, rows_in, width_of, with_columns
from amends.curate.adc_clean import warnings_of
from amends.io.errors import InputError
from amends.io.rows import Row
from amends.maths.arrays import Float32Array

USED = ("kind", "sha256", "subclass", "rank")
"""Columns that are used where they are there, beside those that are named."""
TYPES = {"split": pa.string(), "noise_score": pa.float64(), "label_error": pa.bool_(), "confidence": pa.float64()}
TYPES |= {"copy_group": pa.int64(), "distance": pa.float64(), "distance_limit": pa.float64()}
TYPES |= {"perceptual_hash": pa.string()}


@dataclass(frozen=True, eq=False)
class CleanedOnRay:
    """What cleaning on Ray found."""

    rows: Any
    """ray.data.Dataset: all rows, with the columns of `amends curate adc_clean`, and `fate` and `reason`."""
    disputed: list[int]
    """Numbers of rows that were found for two classes."""
    looked: Looked
    mixed: list[Mixed]
    """Subclasses that neighbours do not tell apart."""
    warnings: list[str]


def adc_clean_on_ray(
    dataset: Any,
    *,
    embedding: str,
    how: How | None = None,
    label: str = "label",
    text: str = "text",
    path: str = "path",
    folder: str | Path | None = None,
    most_pixels: int = 50_000_000,
    votes: str | Path | None = None,
    seed: int = 0,
    num_parts: int | None = None,
) -> CleanedOnRay:
    """Clean a data set of collected samples on Ray, as `amends curate adc_clean` does.

    Parameters
    ----------
    dataset : ray.data.Dataset
        Rows with a label, and a text or the path of a picture.
    embedding : str
        Column with lists of numbers. A row without a usable one is refused.
    folder : path, optional
        That paths of pictures start from, the same on every machine.
    how, label, text, path, most_pixels, votes, seed : see `amends.curate.adc_clean.run`
    num_parts : int, optional
        As of `OnRay`. It changes no result.

    Returns
    -------
    CleanedOnRay

    Raises
    ------
    InputError : a column that is missing or would be overwritten, no usable row, Ray is not installed; and as `run`.
    """
    workers, how = OnRay(num_parts), how or How()
    check_how(how)
    there = list(dataset.columns() or [])
    if text not in there and path not in there:
        raise InputError(f'the data set has no column "{text}" or "{path}" (found: {", ".join(there)[:200]}).')
    blocks = blocks_of(dataset, [label, embedding], {**dict.fromkeys(ADDED), **TOLD})
    width = width_of(workers, blocks, embedding)
    parts, first = rows_in(workers, blocks, [name for name in (label, text, path, *USED) if name in there])
    read = read_in_parts(
        workers, parts, Reading(label, text, path, None if folder is None else Path(folder), most_pixels)
    )
    samples = samples_of(workers.bring(workers.each(_light, read, shared=[label])))
    names = sorted({name for i in samples.used if (name := samples.labels[i]) is not None})
    said = read_votes(votes, samples.digests, names) if votes is not None else {}
    found = workers.bring(workers.each(_points, blocks, shared=[embedding, width]))
    points_ND, num_N = (np.concatenate([of[i] for of in found]) for i in range(2))
    refused = {
        i: NO_VECTOR if num_N[i] in (0, width) else f"the embedding has {num_N[i]} numbers, and most have {width}"
        for i in samples.used
        if not points_ND[i].any()
    }

    def points_of(used: Any) -> Float32Array:
        chosen: Float32Array = points_ND[used]
        return chosen

    cleaned = clean(samples, refused, points_of, said, label, how, seed, workers)
    outcome = cleaned.outcome
    columns = [
        {name: values[part] for name, values in outcome.added.items()}
        | {label: [row.data.get(label) for row in outcome.rows[part]]}
        for part in (slice(start, start + len(of[1])) for start, of in zip(first, found, strict=True))
    ]
    verdicts = [outcome.verdicts[start : start + len(of[1])] for start, of in zip(first, found, strict=True)]
    rows = joined(workers.each(_cleaned, blocks, columns, verdicts, shared=[label]))
    warned = warnings_of(samples, cleaned.looked, outcome, label, tests=how.shares[2] > 0)
    return CleanedOnRay(rows, cleaned.disputed, cleaned.looked, cleaned.mixed, warned)


def _light(samples: Samples, label: str) -> Samples:
    """Local: what all parts need of the samples of one: no texts, and of what tells equal ones a digest."""
    keys = [None if key is None else sha256_of(key.encode(errors="surrogatepass")) for key in samples.keys]
    wanted = (label, "rank", "subclass")
    rows = [Row({name: row.data[name] for name in wanted if name in row.data}, row.where) for row in samples.rows]
    return replace(samples, rows=rows, keys=keys, texts=[""] * len(rows), files=[None] * len(rows))


def _points(block: pa.Table, embedding: str, width: int) -> tuple[Float32Array, np.ndarray]:
    """Local: the embeddings of a block, zeros where there is none, and how many numbers each row has."""
    points_MD, num_M = points_in(block, embedding, width)
    return points_MD.astype(np.float32), num_M


def _cleaned(block: pa.Table, columns: dict[str, Any], verdicts: list[Verdict], label: str) -> pa.Table:
    """Apply: the block with its labels as they are now, and what was found of its rows."""
    place, field = block.column_names.index(label), block.schema.field(label)
    block = block.set_column(place, field, pa.array(columns.pop(label), field.type))
    types = {name: TYPES.get(name, field.type) for name in ADDED}
    return with_columns(block, columns, types, verdicts)
