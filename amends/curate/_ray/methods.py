"""Curation of data sets on Ray: the methods of one machine, done in parts by the workers of a cluster.

Each block is read and written where it lies. Embeddings, labels and what comes out by row pass through the process that
calls, and all embeddings have one copy in the object store of each machine, as an exact search needs them.

Shapes: N rows, M rows of a block, D features.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from amends.curate import ds2, label_errors
from amends.curate._ds2.raters import rating_of
from amends.curate._labels.probabilities import check_order
from amends.curate._pools.features import codes_of
from amends.curate._pools.flagged import Flagged, is_label, key_of, names_of
from amends.curate._pools.pool import Verdict
from amends.curate._ray.blocks import TOLD, OnRay, blocks_of, joined, numbers_in, read, with_columns
from amends.curate._token_cleaning.masks import Level, Tokens, masks_in_parts, offsets_of
from amends.io.errors import InputError, NoResult
from amends.io.rows import Row

RATED = {"level": pa.int64(), "error_prob": pa.float64(), "suggested": pa.int64(), "confidence": pa.float64()}
RATED |= {"curated": pa.int64(), "long_tail": pa.float64()}
JUDGED = {"noise_score": pa.float64(), "label_error": pa.bool_(), "suggested_label": None, "confidence": pa.float64()}
KEPT = {"kept": pa.list_(pa.bool_()), "kept_tokens": pa.int64()}


def ds2_on_ray(
    dataset: Any,
    curator: Any,
    *,
    rating: str,
    embedding: str,
    group: str | None = None,
    budget: int | None = None,
    num_parts: int | None = None,
) -> Any:
    """Mend the ratings of a data set on Ray, and select from it, as `amends curate ds2` does.

    Parameters
    ----------
    dataset : ray.data.Dataset
    curator : ScoreCurator
        Is fitted to the rows that can be judged.
    rating, embedding : str
        Columns: whole numbers, and lists of numbers. A row without one of them is refused with the reason.
    group : str, optional
        Column whose equal values mark siblings.
    budget : int, optional
        Rows to select; default: all that can be judged.
    num_parts : int, optional
        As of `OnRay`. It changes no result.

    Returns
    -------
    ray.data.Dataset : all rows, with the columns of `amends curate ds2`, and `fate` and `reason`.

    Raises
    ------
    InputError : a column that is missing or would be overwritten, no row that can be judged, Ray is not installed.
    NoResult : neighbours do not share their ratings.
    """
    from amends.curate._ds2.curator import select

    workers = OnRay(num_parts)
    blocks = blocks_of(dataset, [rating, embedding, group], {**RATED, **TOLD})
    there = read(workers, blocks, embedding, rating, group, _rating)
    ratings_n = np.array(there.targets, dtype=np.float64)
    if budget is not None and not 0 < budget <= len(ratings_n):
        raise InputError(f"budget={budget}: {len(ratings_n)} rows can be judged. Give a number up to that.")
    curator.fit(
        np.asarray(there.points_nD, dtype=np.float32), ratings_n, codes_of(there.groups) if group else None, workers
    )
    if curator.refusal_:
        raise NoResult(f"the ratings were not mended: {curator.refusal_}. Rate anew or embed otherwise.")
    chosen_n = select(curator.curated_, curator.long_tail_, len(ratings_n) if budget is None else budget)
    is_chosen_n = np.zeros(len(ratings_n), dtype=bool)
    is_chosen_n[chosen_n] = True
    found = {name: getattr(curator, f"{name}_") for name in ("error_prob", "suggested", "confidence", "curated")}
    found |= {"long_tail": curator.long_tail_, "level": ratings_n, "is_chosen": is_chosen_n}
    parts = [{name: values[part] for name, values in found.items()} for part in there.parts]
    return joined(workers.each(_rated, blocks, there.refused, parts, shared=[budget]))


def label_errors_on_ray(
    dataset: Any,
    detector: Any,
    *,
    label: str,
    embedding: str,
    flagged: Flagged = "keep",
    confidence: float = 0.5,
    num_parts: int | None = None,
) -> Any:
    """Judge the labels of a data set on Ray as `amends curate label_errors` does.

    Parameters
    ----------
    dataset : ray.data.Dataset
    detector : estimator of `amends.curate`
        Is fitted to the rows that can be judged. What trains a model trains it in the process that calls.
    label, embedding : str
        Columns: numbers or text, and lists of numbers: embeddings, or for "precomputed" the probabilities.
    flagged, confidence : see `amends.curate.label_errors.run`
    num_parts : int, optional
        As of `OnRay`. It changes no result.

    Returns
    -------
    ray.data.Dataset : all rows, with the columns of `amends curate label_errors`, and `fate` and `reason`.

    Raises
    ------
    InputError, ValueError : as `ds2_on_ray`, and as the detector.
    """
    workers = OnRay(num_parts)
    blocks = blocks_of(dataset, [label, embedding], {**JUDGED, **TOLD})
    there = read(workers, blocks, embedding, label, None, _label)
    names = names_of(there.targets)
    if isinstance(kind := getattr(detector, "estimator", None), str) and kind == "precomputed":
        check_order(names, embedding, "the data set", f'Make "{label}" a column of numbers')
    number = {key: code for code, key in enumerate(names)}
    labels_n = np.array([number[key_of(value)] for value in there.targets])
    detector.fit(there.points_nD, labels_n, workers)
    found = {name: getattr(detector, f"{name}_") for name in ("noise_score", "flag", "suggested", "posterior")}
    found |= {"why_not": detector.why_not_, "label": labels_n}
    parts = [{name: values[part] for name, values in found.items()} for part in there.parts]
    shared = [label, [*names.values()], detector.classes_, flagged, confidence]
    return joined(workers.each(_judged, blocks, there.refused, parts, shared=shared))


def token_mask_on_ray(
    dataset: Any,
    *,
    scores: str,
    keep: float | None = None,
    level: Level = "global",
    threshold: float | None = None,
    keep_ends: bool = True,
    source: str | None = None,
    num_parts: int | None = None,
) -> Any:
    """Choose the answer tokens that carry loss, of a data set on Ray, as `amends.curate.token_cleaning.token_mask`.

    Parameters
    ----------
    dataset : ray.data.Dataset
    scores : str
        Column with the scores of each row's answer tokens, as in scores.parquet; a row that lacks some is refused.
    keep, level, threshold : see `token_mask`
    keep_ends : bool, default True
        Keep the last token of a row wherever another one of it is kept.
    source : str, optional
        Column of the source; the share is kept of each source's tokens.

    Returns
    -------
    ray.data.Dataset : all rows, with the columns `kept` (a list), `kept_tokens`, `fate` and `reason`.
    """
    workers = OnRay(num_parts)
    blocks = blocks_of(dataset, [scores, source], {**KEPT, **TOLD})
    tokens = workers.each(_tokens, blocks, shared=[scores, source, keep_ends])
    masks = masks_in_parts(workers, tokens, keep=keep, level=level, threshold=threshold, by_source=source is not None)
    return joined(workers.each(_masked, blocks, tokens, masks))


# Rows in and out ------------------------------------------------------------------------------------------------


def _rating(value: Any) -> tuple[Any, str | None]:
    return rating_of(value, -np.inf, np.inf)


def _label(value: Any) -> tuple[Any, str | None]:
    return (value, None) if is_label(value) else (None, "no label")


def _rated(block: pa.Table, refused: dict[int, str], found: dict[str, Any], budget: int | None) -> pa.Table:
    verdicts = {i: Verdict("refused", why) for i, why in refused.items()}
    used = [i for i in range(block.num_rows) if i not in refused]
    level_n, curated_n = found["level"], found["curated"]
    curator = SimpleNamespace(**{f"{name}_": found[name] for name in ("error_prob", "suggested", "confidence")})
    added = ds2.columns_of(block.num_rows, used, level_n, curated_n, found["long_tail"], curator, None)
    chosen = set(np.flatnonzero(found["is_chosen"]).tolist())
    verdicts |= ds2.fates(used, chosen, level_n, curated_n, added, budget)
    return with_columns(block, added, RATED, [verdicts[i] for i in range(block.num_rows)])


def _judged(
    block: pa.Table,
    refused: dict[int, str],
    found: dict[str, Any],
    label: str,
    names: list[Any],
    classes: np.ndarray,
    flagged: Flagged,
    confidence: float,
) -> pa.Table:
    of_type = block.schema.field(label).type
    rows = [Row({label: value}, "") for value in block.column(label).to_pylist()]
    detector = SimpleNamespace(**{f"{name}_": values for name, values in found.items()}, classes_=classes)
    verdicts = {i: Verdict("refused", why) for i, why in refused.items()}
    used = [i for i in range(block.num_rows) if i not in refused]
    outcome = label_errors.outcome_of(rows, label, names, used, found["label"], detector, verdicts, flagged, confidence)
    labels = pa.array([row.data[label] for row in outcome.rows], of_type)
    block = block.set_column(block.column_names.index(label), block.schema.field(label), labels)
    return with_columns(block, dict(outcome.added), {**JUDGED, "suggested_label": of_type}, outcome.verdicts)


def _tokens(block: pa.Table, scores: str, source: str | None, keep_ends: bool) -> Tokens:
    flat, num_M = numbers_in(block, scores)
    row_T = np.repeat(np.arange(len(num_M)), num_M)
    # A row that made the reference has tokens without a score: none of them is looked at.
    whole_M = np.bincount(row_T[np.isnan(flat)], minlength=len(num_M)) == 0
    flat, num_M = flat[whole_M[row_T]].astype(np.float32), num_M * whole_M
    offsets = offsets_of(num_M.tolist())
    ends = np.zeros(len(flat), dtype=bool)
    ends[offsets[1:][num_M > 0] - 1] = True
    sources = block.column(source).to_pylist() if source else None
    return Tokens(flat, offsets, sources, ends if keep_ends else None)


def _masked(block: pa.Table, tokens: Tokens, mask: np.ndarray) -> pa.Table:
    num_M = np.diff(tokens.offsets)
    kept_M = np.add.reduceat(np.append(mask, False), tokens.offsets[:-1], dtype=np.int64) * (num_M > 0)
    kept = pa.ListArray.from_arrays(pa.array(tokens.offsets, pa.int32()), pa.array(mask))
    verdicts = [
        Verdict("refused", "its tokens have no scores")
        if not num
        else Verdict("kept", None if kept == num else f"{kept} of {num} tokens are kept")
        if kept
        else Verdict("dropped", f"none of its {num} answer tokens is among those kept")
        for num, kept in zip(num_M.tolist(), kept_M.tolist(), strict=True)
    ]
    return with_columns(block, {"kept": kept, "kept_tokens": kept_M}, KEPT, verdicts)
