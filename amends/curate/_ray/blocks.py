"""Blocks of data sets on Ray, and workers that are its tasks: what all methods on Ray share.

Shapes: N rows, M rows of a block, n rows that can be judged, m of them in a block, D features.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from amends.curate._pools.pool import REASON, Verdict
from amends.curate._pools.scale import Workers, merged
from amends.io.errors import InputError, check_installed
from amends.io.rows import Row

FATE = "fate"
LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
TOLD = {FATE: pa.string(), REASON: pa.string()}


class OnRay:
    """Workers (`_pools.scale`) that are tasks of Ray, of one core each.

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


# Blocks in --------------------------------------------------------------------------------------------------------


def blocks_of(dataset: Any, columns: Sequence[str | None], added: Iterable[str]) -> list[Any]:
    """Blocks of the data set, where they lie; columns are there, and none that is added."""
    dataset = dataset.materialize()
    there = list(dataset.columns() or [])
    if missing := [name for name in columns if name is not None and name not in there]:
        raise InputError(f'the data set has no column "{missing[0]}" (found: {", ".join(there)[:200]}).')
    if twice := [name for name in added if name in there]:
        raise InputError(f'the column "{twice[0]}" is there already, and is written here. Rename it.')
    return list(dataset.to_arrow_refs())


class Block(NamedTuple):
    """What of a block can be judged, and why the other rows cannot."""

    points_mD: np.ndarray
    targets: list[Any]
    groups: list[Any]
    refused: dict[int, str]


class Read(NamedTuple):
    """What can be judged."""

    points_nD: np.ndarray
    targets: list[Any]
    groups: list[Any]
    parts: list[slice]
    """Of these rows, those of each block."""
    refused: list[dict[int, str]]
    """By block: the other rows."""


def read(
    workers: Workers, blocks: list[Any], embedding: str, target: str, group: str | None, value_of: Callable[..., Any]
) -> Read:
    """Read what is needed of every block."""
    width = width_of(workers, blocks, embedding)
    found = workers.bring(workers.each(_of_block, blocks, shared=[embedding, width, target, group, value_of]))
    ends = np.cumsum([0, *(len(block.targets) for block in found)]).tolist()
    targets = [value for block in found for value in block.targets]
    if len(targets) < 3:
        why = next((f' ("{reason}")' for block in found for reason in block.refused.values()), "")
        raise InputError(f"{len(targets)} rows can be judged, and three are the least{why}.")
    return Read(
        np.concatenate([block.points_mD for block in found]),
        targets,
        [value for block in found for value in block.groups],
        [slice(start, end) for start, end in pairwise(ends)],
        [block.refused for block in found],
    )


def numbers_in(block: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
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


def points_in(block: pa.Table, column: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Local: vectors of so many numbers, zeros where there is none with a direction; how many numbers each row has."""
    flat, num_M = numbers_in(block, column)
    right_M = num_M == width
    points_MD = np.zeros((len(num_M), width), dtype=flat.dtype)
    points_MD[right_M] = flat[np.repeat(right_M, num_M)].reshape(-1, width)
    points_MD[~np.isfinite(points_MD).all(axis=1)] = 0
    return points_MD, num_M


def width_of(workers: Workers, blocks: list[Any], column: str) -> int:
    """Say how many numbers most vectors have.

    Raises
    ------
    InputError : there is none.
    """
    widths: Counter[int] = merged(workers, workers.each(_widths, blocks, shared=[column])) if blocks else Counter()
    if not widths:
        raise InputError(f'no row has an embedding in the column "{column}". Give lists of numbers.')
    return max(sorted(widths), key=widths.__getitem__)


def rows_in(workers: Workers, blocks: list[Any], columns: Sequence[str]) -> tuple[list[Any], list[int]]:
    """Read rows where they lie: what stands for a list of `Row` of each block, and the numbers of their first rows."""
    sizes = workers.bring(workers.each(_num_rows, blocks))
    first = [0, *np.cumsum(sizes)[:-1].tolist()]
    return workers.each(_rows, blocks, first, shared=[list(columns)]), first


def _num_rows(block: pa.Table) -> int:
    return block.num_rows


def _rows(block: pa.Table, first: int, columns: list[str]) -> list[Row]:
    """Local: rows as `amends.io.tables.rows_of` makes them of all."""
    return [Row(data, f"data[{number}]") for number, data in enumerate(block.select(columns).to_pylist(), first)]


def _widths(block: pa.Table, column: str) -> Counter[int]:
    """Local: how many rows have so many numbers; adds up."""
    return Counter(num for num in numbers_in(block, column)[1].tolist() if num > 1)


def _of_block(
    block: pa.Table, embedding: str, width: int, target: str, group: str | None, value_of: Callable[..., Any]
) -> Block:
    """Local: the rows that can be judged."""
    points_MD, num_M = points_in(block, embedding, width)
    right_M, pointed_M = num_M == width, np.asarray(points_MD.any(axis=1))
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
    return Block(points_MD[used], list(targets.values()), groups, refused)


# Blocks out -------------------------------------------------------------------------------------------------------


def joined(blocks: list[Any]) -> Any:
    """Make a data set of blocks, which stay where they are."""
    import ray.data

    return ray.data.from_arrow_refs(blocks)


def with_columns(
    block: pa.Table, columns: dict[str, Any], types: dict[str, Any], verdicts: Sequence[Verdict]
) -> pa.Table:
    """Apply: the block with more columns."""
    columns |= {FATE: [verdict.fate for verdict in verdicts], REASON: [verdict.reason for verdict in verdicts]}
    for name, of_type in {**types, **TOLD}.items():
        block = block.append_column(name, pa.array(columns[name], of_type))
    return block
