"""ENTP: fuse low-scored samples two by two into fewer, denser ones; rules check what a language model writes.

Rows with a high score are kept as they are; of the low ones those that stand for their topic are paired, fused, and
checked (arXiv 2510.23160). The paper's text, prompts and thresholds could not be read: each file says which part of it
the public reviews describe, and what is [design], a choice of this tool.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from numpy.typing import ArrayLike

from amends.curate._entp.benchmarks import read_benchmark
from amends.curate._entp.drafts import Control, Form, Mixing
from amends.curate._entp.fusion import Writer, estimate, fuse
from amends.curate._entp.judge import HIGHEST, LOWEST, grade_prompt
from amends.curate._entp.judge import judge as grade_all
from amends.curate._entp.page import fused_row, lead, outcome_of, pair_row, sections, summary
from amends.curate._entp.plan import ALONE, instructions_of, plan, rows_of
from amends.curate._entp.purge import Purging, check_scored, purge_in_parts, warnings_of
from amends.curate._entp.representatives import Grouping
from amends.curate._entp.rules import Checker, Instructions
from amends.curate._pools.pool import Outcome, Verdict, read_pool
from amends.curate._pools.scale import Here, Workers, parts_of
from amends.curate._pools.vectors import vectors_of
from amends.io.atomic import check_new, new_folder, write_json, write_manifest, write_text
from amends.io.console import say
from amends.io.errors import InputError, check_installed
from amends.io.options import SeedOption
from amends.io.run import describe, write_jsonl
from amends.io.write import kind_of
from amends.lm.chat import Chat, open_chat
from amends.report.findings import render_findings

__all__ = ["Control", "Grouping", "Mixed", "Mixing", "Purging", "run"]
ADDED = ("cluster", "fused_into")


@dataclass(frozen=True, eq=False)
class Mixed:
    """What a purge and mix found; the run folder holds the same."""

    outcome: Outcome
    """What became of every row."""
    fused: list[dict[str, Any]]
    """Rows to train on: the drafts that were accepted."""
    pairs: list[dict[str, Any]]
    """All drafts, whatever became of them."""
    summary: dict[str, Any]
    """Numbers that hang on the rows, the seed and the answers alone."""
    record: dict[str, Any]
    """As run.json has it: with the calls, and the summary."""
    page: str
    """As report.html has it; empty after a dry run."""


def run(
    data: Any,
    llm: str | Chat | None = None,
    *,
    out: str | Path | None = None,
    embedder: str | None = None,
    embedding: str | ArrayLike | None = None,
    purging: Purging | None = None,
    grouping: Grouping | None = None,
    mixing: Mixing | None = None,
    judge: str | Chat | None = None,
    benchmark: str | Path | None = None,
    cache: str | Path | None = None,
    most_calls: int | None = None,
    batch_size: int = 32,
    concurrency: int = 8,
    dry_run: bool = False,
    seed: int = 0,
    workers: Workers | None = None,
) -> Mixed:
    """Purge a pool, and fuse what is low.

    Parameters
    ----------
    data : path, list of paths, `datasets.Dataset`, data frame, or list of dictionaries
        Rows with an instruction, a response (in a shape that `amends.lm.pairs.read_pairs` knows) and a score. The
        columns "reason" and "where" of rows that an earlier curation wrote are renamed to "earlier_...".
    llm : str or Chat
        What `amends.lm.chat.open_chat` takes, or one that is open; then `cache`, `most_calls`, `batch_size` and
        `concurrency` are its own. Not needed for a dry run.
    out : path, optional
        Run folder to make.
    embedder : str
        Sentence encoder that `amends.lm.encoders.load_encoder` reads, which embeds instruction and response; or
    embedding : str or array (rows of the pool, features)
        A column with lists of numbers, or the embeddings themselves.
    purging, grouping, mixing : optional
        How each step goes.
    judge : str or Chat, optional
        Model that grades what was accepted, 1 to 5; its own `most_calls` apply to it.
    benchmark : path, optional
        Table whose texts must not be trained on.
    cache : path, optional
        File of answers; default OUT.answers.sqlite. A run that was interrupted goes on from it.
    dry_run : bool, default False
        Ask nothing and write nothing; `record["estimate"]` says what the calls and tokens would be.
    seed : int, default 0
        Of the rows whose silhouettes are measured, of random pairs, and of draws above temperature 0.
    workers : Workers, optional
        Where parts of the rows are worked on; default: here, all rows at once. See `_pools.scale`. In other
        processes `most_calls` holds for each of them, and each time that they ask.

    Raises
    ------
    InputError : what the user can mend. If `most_calls` is reached, all answers so far are in the cache.
    NoResult : fewer than two usable rows with a low score.
    """
    options = {name: value for name, value in locals().items() if name != "workers"}
    workers = workers or Here()
    purging, grouping, mixing = purging or Purging(), grouping or Grouping(), mixing or Mixing()
    options |= {"purging": asdict(purging), "grouping": asdict(grouping), "mixing": asdict(mixing)}
    if out is not None:
        check_new(out)
    if llm is None and not dry_run:
        raise InputError("--llm: name the model that writes, or take --dry-run.")
    if mixing.least_grade is not None and (judge is None or not LOWEST <= mixing.least_grade <= HIGHEST):
        raise InputError(f"--least-grade {mixing.least_grade}: give {LOWEST} to {HIGHEST}, and a --judge.")
    for module, package in (("faiss", "faiss-cpu"), ("sklearn", "scikit-learn")):
        check_installed(module, package, "curate")
    started, contents = time.time(), read_benchmark(benchmark) if benchmark else None
    say("reading the pool")
    rows = read_pool(data, ADDED)
    check_scored(rows, purging)
    parts = parts_of(len(rows), workers.num_parts)
    purged = purge_in_parts(workers, [rows[part] for part in parts], [part.start for part in parts], purging, contents)
    found = workers.bring(purged)
    first = [verdict for part in found for verdict in part.verdicts]
    low, unit_ND, faulty = vectors_of([sample for part in found for sample in part.low], rows, embedder, embedding)
    verdicts = [Verdict("refused", faulty[i]) if i in faulty else verdict for i, verdict in enumerate(first)]
    planned = plan(
        workers,
        purged,
        [sample.row for sample in low],
        unit_ND,
        (purging, grouping, mixing),
        np.random.default_rng(seed),
    )
    drafts, warnings = planned.drafts, warnings_of(purging, {sample.licence for sample in low if sample.licence})
    for warning in warnings:
        say(f"warning: {warning}")
    say(f"{len(low)} rows with a low score, {len(planned.grouped.clusters.hub_C)} clusters, {len(drafts)} pairs")
    graded = grade_prompt if judge is not None else None
    would_take = estimate([draft for draft in drafts if draft.status == "open"], mixing, graded)
    chat, calls, judging = None, dict[str, Any](), dict[str, Any]()
    if not dry_run:
        assert llm is not None
        chat = llm if isinstance(llm, Chat) else _open(llm, out, cache, most_calls, batch_size, concurrency)
        writer = Writer(chat, mixing, seed, workers=workers)
        checker = Checker(Instructions(workers.each(instructions_of, purged), workers), contents)
        usable = (row for part in workers.bring(workers.each(rows_of, purged)) for row in part)
        number_of = {row: i for i, row in enumerate(usable)}
        again = None if mixing.control in (*ALONE, "random") else planned.pair_again
        fuse(drafts, writer, checker, lambda draft: {number_of[sample.row] for sample in draft.samples}, again)
        calls = asdict(writer.counts)
        if judge is not None:
            same = chat if judge == llm else judge if isinstance(judge, Chat) else None
            critic = same or _open(str(judge), out, cache, most_calls, batch_size, concurrency)
            grader = Writer(critic, mixing, seed, workers=workers)
            grade_all(drafts, grader)
            judging = {"model": critic.model.name, **asdict(grader.counts)}
    outcome = outcome_of(rows, verdicts, planned.low, planned.grouped, drafts)
    told: dict[str, Any] = {"rows": outcome.counts(), "low": len(low)}
    told |= summary(drafts, planned.grouped, first)
    name = chat.model.name if chat else ""
    if not dry_run and drafts and not told["fusion"]["accepted"]:
        warnings.append("No pair was accepted. The report says what they were rejected for.")
        say(f"warning: {warnings[-1]}")
    record = describe(
        command="curate entp",
        config={key: _told(value) for key, value in options.items()},
        seed=seed,
        data={"data": outcome.about(data)},
        weights={"generator": chat.model.identity} if chat else {},
        seconds={"in all": round(time.time() - started, 1)},
        stopped="nothing was asked" if dry_run else "all pairs looked at",
        warnings=warnings,
    ) | {"generator": name, "calls": calls, "judging": judging, "estimate": would_take, "found": told}
    asking = calls | {f"judge: {what}": value for what, value in judging.items()}
    page = "" if dry_run else render_findings(record, "Purge and mix", lead(told), sections(told, drafts, asking))
    mixed = Mixed(
        outcome,
        [fused_row(draft, name) for draft in drafts if draft.status == "accepted"],
        [pair_row(draft, name) for draft in drafts],
        told,
        record,
        page,
    )
    if out is not None and not dry_run:
        write(mixed, Path(out), kind_of(data))
    return mixed


def write(mixed: Mixed, out: Path, kind: str) -> None:
    """Write the run folder in one move."""
    with new_folder(out) as folder:
        write_jsonl(folder / "fused.jsonl", mixed.fused)
        write_jsonl(folder / "pairs.jsonl", mixed.pairs)
        mixed.outcome.write(folder, kind)
        write_json(folder / "run.json", mixed.record)
        write_text(folder / "report.html", mixed.page)
        write_manifest(folder)


def _open(
    llm: str,
    out: str | Path | None,
    cache: str | Path | None,
    most_calls: int | None,
    batch_size: int,
    concurrency: int,
) -> Chat:
    if cache is None and out is not None:
        cache = Path(f"{Path(out)}.answers.sqlite")
        cache.parent.mkdir(parents=True, exist_ok=True)
    return open_chat(llm, cache=cache, most_calls=most_calls, batch_size=batch_size, concurrency=concurrency)


def _told(value: Any) -> Any:
    """Write an option as run.json keeps it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Chat):
        return value.model.name
    if isinstance(value, list | tuple) and all(isinstance(item, str | Path) for item in value):
        return [str(item) for item in value]
    return value if isinstance(value, str | int | float | dict | None) else "given from Python"


def command(
    pool: Annotated[
        list[str], typer.Argument(help="Rows with an instruction, a response and a score; several files are one pool.")
    ],
    out: Annotated[Path, typer.Option(help="Run folder to make; must not exist.")],
    llm: Annotated[
        str | None, typer.Option(help="Model that writes: a name that amends loads, or http://HOST:PORT/v1#MODEL.")
    ] = None,
    curated: Annotated[
        str | None, typer.Option(help='Column of the curated score; "curated" if none is given.')
    ] = None,
    raw: Annotated[str | None, typer.Option(help="Column of raw scores, instead of curated ones; warns.")] = None,
    low: Annotated[float, typer.Option(help="Largest score that is low.")] = 2,
    high: Annotated[float, typer.Option(help="Least score that is high; rows between are dropped.")] = 3,
    embedder: Annotated[
        str | None, typer.Option(help="Sentence encoder: hub id, folder, or package:NAME/FOLDER.")
    ] = None,
    embedding: Annotated[str | None, typer.Option(help="Column with embeddings, instead of --embedder.")] = None,
    question_column: Annotated[str | None, typer.Option(help="Column of the instruction, if named otherwise.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Column of the response, if named otherwise.")] = None,
    licence_column: Annotated[
        str | None, typer.Option(help="Column of the licence; fused rows carry those of both sources.")
    ] = None,
    never_mix: Annotated[
        list[str] | None, typer.Option(help="Two licences, A|B, that no row may carry together; repeat for several.")
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Refuse rows that are surely in another language than this, such as en.")
    ] = None,
    benchmark: Annotated[
        Path | None, typer.Option(help="Table whose texts must not be trained on: runs of 13 words are looked for.")
    ] = None,
    neighbours: Annotated[int, typer.Option(help="Nearest rows that may be linked to a row.", min=1)] = 10,
    theta: Annotated[
        float | None, typer.Option(help="Least cosine of a link; by silhouette from 0.5 to 0.9 if none is given.")
    ] = None,
    per_cluster: Annotated[int, typer.Option(help="Rows that stand for a cluster.", min=1)] = 2,
    mmr: Annotated[float, typer.Option(help="1: nearest to the mean; 0: far from each other.", min=0, max=1)] = 0.6,
    pairing: Annotated[
        Literal["within", "nearest"], typer.Option(help="Pair those of one cluster, or of different ones.")
    ] = "within",
    most_pairs: Annotated[
        int | None, typer.Option(help="Pairs at most, of the clusters that come first.", min=1)
    ] = None,
    rounds: Annotated[int, typer.Option(help="Repairs of an instruction, and of a response, at most.", min=0)] = 3,
    control: Annotated[
        Control | None,
        typer.Option(
            help="Rewrite the first of each pair alone, or make it harder (evolve); pair at random; or let the checks "
            "decide nothing."
        ),
    ] = None,
    form: Annotated[
        Form, typer.Option(help="How the model answers: JSON, or plain words, for models that write no JSON.")
    ] = "json",
    judge: Annotated[str | None, typer.Option(help="Model that grades what was accepted, 1 to 5; as --llm.")] = None,
    least_grade: Annotated[int | None, typer.Option(help="Reject what the judge gives a lower grade.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Of an answer of the model.", min=1)] = 512,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.", min=0)] = 0,
    cache: Annotated[Path | None, typer.Option(help="File of answers; OUT.answers.sqlite if none is given.")] = None,
    most_calls: Annotated[int | None, typer.Option(help="New calls of the model at most.", min=0)] = None,
    batch_size: Annotated[int, typer.Option(help="Local model: conversations answered together.", min=1)] = 32,
    concurrency: Annotated[int, typer.Option(help="Server: calls under way at the same time.", min=1)] = 8,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Ask and write nothing; say what calls and tokens it would take.")
    ] = False,
    seed: SeedOption = 0,
) -> None:
    """Split POOL by score, and fuse the low rows two by two."""
    mixed = run(
        pool if len(pool) > 1 else pool[0],
        llm,
        out=out,
        embedder=embedder,
        embedding=embedding,
        purging=Purging(
            curated, raw, low, high, question_column, answer_column, licence_column, tuple(never_mix or ()), language
        ),
        grouping=Grouping(neighbours, theta, per_cluster, mmr, pairing, most_pairs),
        mixing=Mixing(rounds, control, max_new_tokens, temperature, form, least_grade),
        judge=judge,
        benchmark=benchmark,
        cache=cache,
        most_calls=most_calls,
        batch_size=batch_size,
        concurrency=concurrency,
        dry_run=dry_run,
        seed=seed,
    )
    if dry_run:
        for name, value in mixed.record["estimate"].items():
            say(f"{name.replace('_', ' ')}: {value:,}")
        return
    say(lead(mixed.summary))
    say(f"done: {out / 'report.html'}; rows to train on are in {out / 'fused.jsonl'}")
