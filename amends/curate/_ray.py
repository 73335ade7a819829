"""Curation of data sets on Ray: the methods of one machine, done in parts by the workers of a cluster.

Each block is read and written where it lies. Embeddings, labels and what comes out by row pass through the process that
calls, and all embeddings have one copy in the object store of each machine, as an exact search needs them.

Shapes: N rows, M rows of a block, D features.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from amends.curate import ds2, label_errors
from amends.curate._pool import REASON, Verdict
from amends.curate._raters import rating_of
from amends.curate._scale import Workers, merged
from amends.curate._tokens import Level, Tokens, masks_in_parts, offsets_of
from amends.io.errors import InputError, NoResult, check_installed
from amends.io.tables import Row

FATE = "fate"
RATED = {"level": pa.int64(), "error_prob": pa.float64(), "suggested": pa.int64(), "confidence": pa.float64()}
RATED |= {"curated": pa.int64(), "long_tail": pa.float64()}
JUDGED = {"noise_score": pa.float64(), "label_error": pa.bool_(), "suggested_label": None, "confidence": pa.float64()}
KEPT = {"kept": pa.list_(pa.bool_()), "kept_tokens": pa.int64()}
LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
TOLD = {FATE: pa.string(), REASON: pa.string()}


class OnRay:
    """Workers (`amends.curate._scale`) that are tasks of Ray, of one core each.

    Parameters
    ----------
    num_parts : int, optional
        Into which rows are parted; default: the cores of the cluster.
    """

    def __init__(self, num_parts: int | None = None) -> None:
        check_installed("ray", "ray[data]", "ray")
        import ray

        self._ray = ray
        self._tasks: dict[Any, Any] = {}
        self.num_parts = num_parts or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def share(self, value: Any) -> Any:
        """Put the value into the object store."""
        return self._ray.put(value)

    def each(self, step: Callable[..., Any], *by_part: Sequence[Any], shared: Sequence[Any] = ()) -> list[Any]:
        """Start a task for every part."""
        task = self._tasks.setdefault(step, self._ray.remote(num_cpus=1)(step))
        return [task.remote(*mine, *shared) for mine in zip(*by_part, strict=True)]

    def bring(self, results: Iterable[Any]) -> list[Any]:
        """Wait for the results, and get them."""
        found: list[Any] = self._ray.get(list(results))
        return found


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
    from amends.curate._curator import select

    workers = OnRay(num_parts)
    blocks = _blocks(dataset, [rating, embedding, group], {**RATED, **TOLD})
    read = _read(workers, blocks, embedding, rating, group, _rating)
    ratings_n = np.array(read.targets, dtype=np.float64)
    if budget is not None and not 0 < budget <= len(ratings_n):
        raise InputError(f"budget={budget}: {len(ratings_n)} rows can be judged. Give a number up to that.")
    curator.fit(
        np.asarray(read.points_nD, dtype=np.float32), ratings_n, _codes(read.groups) if group else None, workers
    )
    if curator.refusal_:
        raise NoResult(f"the ratings were not mended: {curator.refusal_}. Rate anew or embed otherwise.")
    chosen_n = select(curator.curated_, curator.long_tail_, len(ratings_n) if budget is None else budget)
    is_chosen_n = np.zeros(len(ratings_n), dtype=bool)
    is_chosen_n[chosen_n] = True
    found = {name: getattr(curator, f"{name}_") for name in ("error_prob", "suggested", "confidence", "curated")}
    found |= {"long_tail": curator.long_tail_, "level": ratings_n, "is_chosen": is_chosen_n}
    parts = [{name: values[part] for name, values in found.items()} for part in read.parts]
    return _joined(workers.each(_rated, blocks, read.refused, parts, shared=[budget]))


def label_errors_on_ray(
    dataset: Any,
    detector: Any,
    *,
    label: str,
    embedding: str,
    flagged: label_errors.Flagged = "keep",
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
    blocks = _blocks(dataset, [label, embedding], {**JUDGED, **TOLD})
    read = _read(workers, blocks, embedding, label, None, _label)
    names = sorted({str(value): value for value in read.targets}.values(), key=lambda v: (isinstance(v, str), v))
    number = {str(name): code for code, name in enumerate(names)}
    labels_n = np.array([number[str(value)] for value in read.targets])
    detector.fit(read.points_nD, labels_n, workers)
    found = {name: getattr(detector, f"{name}_") for name in ("noise_score", "flag", "suggested", "posterior")}
    found |= {"why_not": detector.why_not_, "label": labels_n}
    parts = [{name: values[part] for name, values in found.items()} for part in read.parts]
    shared = [label, names, detector.classes_, flagged, confidence]
    return _joined(workers.each(_judged, blocks, read.refused, parts, shared=shared))


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
    blocks = _blocks(dataset, [scores, source], {**KEPT, **TOLD})
    tokens = workers.each(_tokens, blocks, shared=[scores, source, keep_ends])
    masks = masks_in_parts(workers, tokens, keep=keep, level=level, threshold=threshold, by_source=source is not None)
    return _joined(workers.each(_masked, blocks, tokens, masks))


# Blocks in --------------------------------------------------------------------------------------------------------


def _blocks(dataset: Any, columns: Sequence[str | None], added: Iterable[str]) -> list[Any]:
    """Blocks of the data set, where they lie; columns are there, and none that is added."""
    dataset = dataset.materialize()
    there = list(dataset.columns() or [])
    if missing := [name for name in columns if name is not None and name not in there]:
        raise InputError(f'the data set has no column "{missing[0]}" (found: {", ".join(there)[:200]}).')
    if twice := [name for name in added if name in there]:
        raise InputError(f'the column "{twice[0]}" is there already, and is written here. Rename it.')
    return list(dataset.to_arrow_refs())


class _Block(NamedTuple):
    """What of a block can be judged, and why the other rows cannot."""

    points_mD: np.ndarray
    targets: list[Any]
    groups: list[Any]
    refused: dict[int, str]


class _Read(NamedTuple):
    """What can be judged."""

    points_nD: np.ndarray
    targets: list[Any]
    groups: list[Any]
    parts: list[slice]
    """Of these rows, those of each block."""
    refused: list[dict[int, str]]
    """By block: the other rows."""


def _read(
    workers: Workers, blocks: list[Any], embedding: str, target: str, group: str | None, value_of: Callable[..., Any]
) -> _Read:
    """Read what is needed of every block."""
    widths = merged(workers, workers.each(_widths, blocks, shared=[embedding])) if blocks else Counter()
    if not widths:
        raise InputError(f'no row has an embedding in the column "{embedding}". Give lists of numbers.')
    width = max(sorted(widths), key=widths.__getitem__)
    found = workers.bring(workers.each(_of_block, blocks, shared=[embedding, width, target, group, value_of]))
    ends = np.cumsum([0, *(len(block.targets) for block in found)]).tolist()
    targets = [value for block in found for value in block.targets]
    if len(targets) < 3:
        why = next((f' ("{reason}")' for block in found for reason in block.refused.values()), "")
        raise InputError(f"{len(targets)} rows can be judged, and three are the least{why}.")
    return _Read(
        np.concatenate([block.points_mD for block in found]),
        targets,
        [value for block in found for value in block.groups],
        [slice(start, end) for start, end in pairwise(ends)],
        [block.refused for block in found],
    )


def _lists(block: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of a column of lists one behind another, and how many each row has."""
    values = block.column(column).combine_chunks()
    if isinstance(values, pa.ExtensionArray):  # of Ray: arrays of one shape
        values = values.storage
    if not any(is_kind(values.type) for is_kind in LISTS):
        raise InputError(f'the column "{column}" holds {values.type}, and lists of numbers are needed.')
    num_M = pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = pc.list_flatten(values)
    if not (pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)):
        raise InputError(f'the column "{column}" holds lists of {flat.type}, and numbers are needed.')
    precise = flat.type == pa.float64()
    return flat.to_numpy(zero_copy_only=False).astype(np.float64 if precise else np.float32), num_M


def _widths(block: pa.Table, column: str) -> Counter[int]:
    """Local: how many rows have so many numbers; adds up."""
    return Counter(num for num in _lists(block, column)[1].tolist() if num > 1)


def _of_block(
    block: pa.Table, embedding: str, width: int, target: str, group: str | None, value_of: Callable[..., Any]
) -> _Block:
    """Local: the rows that can be judged."""
    flat, num_M = _lists(block, embedding)
    right_M = num_M == width
    points_MD = np.zeros((len(num_M), width), dtype=flat.dtype)
    points_MD[right_M] = flat[np.repeat(right_M, num_M)].reshape(-1, width)
    points_MD[~np.isfinite(points_MD).all(axis=1)] = 0
    pointed_M = np.asarray(points_MD.any(axis=1))
    targets, refused = {}, {}
    for i, value in enumerate(block.column(target).to_pylist()):
        found, why = value_of(value)
        if why is None and num_M[i] < 2:
            why = "the embedding is no list of numbers"
        elif why is None and not right_M[i]:
            why = f"the embedding has {num_M[i]} numbers, and most have {width}"
        elif why is None and not pointed_M[i]:
            why = "the embedding has no direction (NaN, infinite or zero)"
        if why is None:
            targets[i] = found
        else:
            refused[i] = why
    used = list(targets)
    groups = block.column(group).take(pa.array(used, pa.int64())).to_pylist() if group else []
    return _Block(points_MD[used], list(targets.values()), groups, refused)


def _rating(value: Any) -> tuple[Any, str | None]:
    return rating_of(value, -np.inf, np.inf)


def _label(value: Any) -> tuple[Any, str | None]:
    return (value, None) if label_errors.is_label(value) else (None, "no label")


def _codes(values: Sequence[Any]) -> np.ndarray:
    """Give the number of each row's group, -1 where it has none."""
    numbers: dict[str, int] = {}
    return np.array([-1 if value is None else numbers.setdefault(str(value), len(numbers)) for value in values])


# Blocks out -------------------------------------------------------------------------------------------------------


def _joined(blocks: list[Any]) -> Any:
    import ray.data

    return ray.data.from_arrow_refs(blocks)


def _with(block: pa.Table, columns: dict[str, Any], types: dict[str, Any], verdicts: Sequence[Verdict]) -> pa.Table:
    """Apply: the block with more columns."""
    columns |= {FATE: [verdict.fate for verdict in verdicts], REASON: [verdict.reason for verdict in verdicts]}
    for name, of_type in {**types, **TOLD}.items():
        block = block.append_column(name, pa.array(columns[name], of_type))
    return block


def _rated(block: pa.Table, refused: dict[int, str], found: dict[str, Any], budget: int | None) -> pa.Table:
    verdicts = {i: Verdict("refused", why) for i, why in refused.items()}
    used = [i for i in range(block.num_rows) if i not in refused]
    level_n, curated_n = found["level"], found["curated"]
    curator = SimpleNamespace(**{f"{name}_": found[name] for name in ("error_prob", "suggested", "confidence")})
    added = ds2.columns_of(block.num_rows, used, level_n, curated_n, found["long_tail"], curator, None)
    chosen = set(np.flatnonzero(found["is_chosen"]).tolist())
    verdicts |= ds2.fates(used, chosen, level_n, curated_n, added, budget)
    return _with(block, added, RATED, [verdicts[i] for i in range(block.num_rows)])


def _judged(
    block: pa.Table,
    refused: dict[int, str],
    found: dict[str, Any],
    label: str,
    names: list[Any],
    classes: np.ndarray,
    flagged: label_errors.Flagged,
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
    return _with(block, dict(outcome.added), {**JUDGED, "suggested_label": of_type}, outcome.verdicts)


def _tokens(block: pa.Table, scores: str, source: str | None, keep_ends: bool) -> Tokens:
    flat, num_M = _lists(block, scores)
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
    return _with(block, {"kept": kept, "kept_tokens": kept_M}, KEPT, verdicts)
