"""ENTP on Ray: rows are read and purged where they lie, and each worker has its own pairs written and checked.

What passes through the process that calls: what becomes of each row, the embeddings of low rows, and the texts of those
that make a pair.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from amends.curate._entp.benchmarks import read_benchmark
from amends.curate._entp.drafts import Draft, Mixing
from amends.curate._entp.fusion import Writer, fuse
from amends.curate._entp.judge import HIGHEST, LOWEST
from amends.curate._entp.judge import judge as grade_all
from amends.curate._entp.page import fates, fused_row, summary
from amends.curate._entp.plan import ALONE, Plan, instructions_of, plan, rows_of
from amends.curate._entp.purge import Purged, Purging, purge_in_parts, warnings_of
from amends.curate._entp.representatives import Grouping
from amends.curate._entp.rules import Checker, Instructions
from amends.curate._pools.pool import Verdict
from amends.curate._pools.scale import Workers
from amends.curate._ray.blocks import TOLD, OnRay, blocks_of, joined, points_in, rows_in, width_of, with_columns
from amends.io.errors import InputError
from amends.lm.chat import Chat, open_chat
from amends.maths.neighbors import unit

NO_VECTOR = "no embedding, or one without a direction"
GROUPED = {"cluster": pa.int64(), "fused_into": pa.string()}
TEXTS = pa.list_(pa.string())
PAIRED = {"id": pa.string(), "instruction": pa.string(), "output": pa.string(), "source_ids": TEXTS}
PAIRED |= {"source_where": TEXTS, "licences": TEXTS, "generator": pa.string(), "rounds": pa.list_(pa.int64())}
PAIRED |= {"grade": pa.int64(), "checks": pa.string(), "status": pa.string(), "reason": pa.string()}


@dataclass(frozen=True, eq=False)
class MixedOnRay:
    """What a purge and mix on Ray found."""

    rows: Any
    """ray.data.Dataset: all rows, with the columns `cluster`, `fused_into`, `fate` and `reason`."""
    pairs: Any
    """ray.data.Dataset: all pairs as in fused.jsonl, with the reason; those to train on have the status "accepted"."""
    summary: dict[str, Any]
    """As that of `amends.curate.entp.run`."""
    warnings: list[str]


def entp_on_ray(
    dataset: Any,
    llm: str | Callable[[], Chat] | None = None,
    *,
    embedding: str,
    purging: Purging | None = None,
    grouping: Grouping | None = None,
    mixing: Mixing | None = None,
    judge: str | Callable[[], Chat] | None = None,
    benchmark: Any = None,
    seed: int = 0,
    num_parts: int | None = None,
) -> MixedOnRay:
    """Purge a data set on Ray, and fuse what is low, as `amends curate entp` does.

    Parameters
    ----------
    dataset : ray.data.Dataset
        Rows with an instruction, a response and a score.
    llm : str or function, optional
        Model that writes, as `amends.lm.chat.open_chat` takes it, or a function that gives a Chat: each task opens its
        own, so a server is what is meant. Without one the pairs are chosen, and stay open.
    embedding : str
        Column with lists of numbers. A low row without a usable one is refused.
    purging, grouping, mixing, benchmark, seed : see `amends.curate.entp.run`
    judge : str or function, optional
        Model that grades what was accepted.
    num_parts : int, optional
        As of `OnRay`. It changes no result.

    Returns
    -------
    MixedOnRay

    Raises
    ------
    InputError : a column that is missing or would be overwritten, no usable row, Ray is not installed.
    NoResult : fewer than two usable rows with a low score.
    """
    workers = OnRay(num_parts)
    purging, grouping, mixing = purging or Purging(), grouping or Grouping(), mixing or Mixing()
    if mixing.least_grade is not None and (judge is None or not LOWEST <= mixing.least_grade <= HIGHEST):
        raise InputError(f"least_grade={mixing.least_grade}: give {LOWEST} to {HIGHEST}, and a judge.")
    contents = read_benchmark(benchmark) if benchmark else None
    needed = [embedding, purging.column, purging.licence_column]
    blocks = blocks_of(dataset, needed, {**GROUPED, **TOLD})
    width = width_of(workers, blocks, embedding)
    parts, first = rows_in(workers, blocks, [name for name in dataset.columns() if name != embedding])
    purged = purge_in_parts(workers, parts, first, purging, contents)
    verdicts = workers.bring(workers.each(_verdicts, purged))
    found = workers.bring(workers.each(_points, blocks, first, purged, shared=[embedding, width]))
    at_first = [verdict for part in verdicts for verdict in part]
    everything = list(at_first)
    for of_part in found:
        for row, why in of_part[2].items():
            everything[row] = Verdict("refused", why)
    low = [row for rows, _, _, _ in found for row in rows]
    points_ND = np.concatenate([points_MD for _, points_MD, _, _ in found])
    unit_ND = unit(points_ND) if len(points_ND) else points_ND
    planned = plan(workers, purged, low, unit_ND, (purging, grouping, mixing), np.random.default_rng(seed))
    name = _fused(planned, purged, llm, judge, Checker(None, contents), mixing, seed, workers) if llm else ""
    told = fates(everything, low, planned.grouped, planned.drafts)
    shown = [slice(start, start + len(part)) for start, part in zip(first, verdicts, strict=True)]
    columns = [{column: values[part] for column, values in told.items()} for part in shown]
    rows = joined(workers.each(_told, blocks, columns, [everything[part] for part in shown]))
    licences: Collection[str] = {name for part in found for name in part[3]}
    return MixedOnRay(
        rows,
        _dataset(planned.drafts, name),
        summary(planned.drafts, planned.grouped, at_first),
        warnings_of(purging, licences),
    )


def _fused(
    planned: Plan,
    purged: list[Any],
    llm: str | Callable[[], Chat],
    judge: str | Callable[[], Chat] | None,
    checker: Checker,
    mixing: Mixing,
    seed: int,
    workers: Workers,
) -> str:
    """Take all drafts to their end; give the name of the model."""
    opened = _opened(llm)
    writer = Writer(opened, mixing, seed, workers=workers)
    checker = Checker(Instructions(workers.each(instructions_of, purged), workers), checker.benchmark)
    usable = (row for part in workers.bring(workers.each(rows_of, purged)) for row in part)
    number_of = {row: i for i, row in enumerate(usable)}
    again = None if mixing.control in (*ALONE, "random") else planned.pair_again
    fuse(planned.drafts, writer, checker, lambda draft: {number_of[sample.row] for sample in draft.samples}, again)
    if judge is not None:
        grade_all(planned.drafts, Writer(_opened(judge), mixing, seed, workers=workers))
    (name,) = workers.bring(workers.each(_name, [opened]))
    return str(name)


def _opened(llm: str | Callable[[], Chat]) -> Callable[[], Chat]:
    return partial(open_chat, llm) if isinstance(llm, str) else llm


def _name(opened: Callable[[], Chat]) -> str:
    """Local: the name of the model, where it can be opened."""
    return opened().model.name


def _verdicts(purged: Purged) -> list[Verdict]:
    return purged.verdicts


def _points(
    block: pa.Table, first: int, purged: Purged, embedding: str, width: int
) -> tuple[list[int], np.ndarray, dict[int, str], set[str]]:
    """Local: low rows with an embedding, these, the other low rows with the reason, and all their licences."""
    points_MD, num_M = points_in(block, embedding, width)
    used, refused, licences = list[int](), dict[int, str](), set[str]()
    for sample in purged.low:
        place = sample.row - first
        if points_MD[place].any():
            used.append(sample.row)
            licences |= {sample.licence} if sample.licence else set()
        elif num_M[place] not in (0, width):
            refused[sample.row] = f"the embedding has {num_M[place]} numbers, and most have {width}"
        else:
            refused[sample.row] = NO_VECTOR
    return used, points_MD[np.array(used, dtype=int) - first].astype(np.float32), refused, licences


def _told(block: pa.Table, columns: dict[str, Any], verdicts: list[Verdict]) -> pa.Table:
    """Apply: the block with what became of its rows."""
    return with_columns(block, columns, GROUPED, verdicts)


def _dataset(drafts: list[Draft], generator: str) -> Any:
    """Make a data set of the pairs."""
    import ray.data

    rows = [fused_row(draft, generator) | {"reason": draft.reason} for draft in drafts]
    return ray.data.from_arrow(pa.Table.from_pylist(rows, pa.schema(list(PAIRED.items()))))
