"""Collect samples for the classes of a design, from folders, lists, a corpus or a search service.

Each query of the design is put to each source; a sample gets the class and subclass of the query that found it, and
keeps its rank, its source, its licence where known, and the time.

Source: step 2 of ADC (arXiv 2408.11338). There a language model writes the code that searches; here sources are fixed,
as running code that a model wrote is a risk.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from amends.curate._adc.collect import COLUMNS, NOT_ASKED, Gatherer, Part
from amends.curate._adc.design import Design, read_design
from amends.curate._adc.sources import KINDS, Collector, CorpusCollector, FolderCollector, Hit, ListCollector
from amends.curate._pools.scale import Workers
from amends.io.atomic import check_new, lock, sha256_json, write_json, write_manifest, write_text
from amends.io.console import say
from amends.io.errors import InputError, Stopped, check_installed
from amends.io.run import RUN, describe, write_jsonl
from amends.io.write import write_rows

__all__ = ["Collected", "Collector", "Hit", "command", "run"]

Wanted = Literal["any", "text", "image"]


@dataclass(frozen=True)
class Collected:
    """What came of every hit; the folder holds the same."""

    out: Path
    design: Design
    rows: list[dict[str, Any]]
    """One a hit, by query, source and rank: the columns of samples.parquet, `fate` (collected, missing or refused) and
    `reason`."""
    record: dict[str, Any]
    """As run.json has it."""

    def of(self, fate: str) -> list[dict[str, Any]]:
        """Rows of one fate."""
        return [row for row in self.rows if row["fate"] == fate]

    def counts(self) -> dict[str, int]:
        """How many hits there are, and of each fate: they add up."""
        fates = Counter(row["fate"] for row in self.rows)
        return {"hits": len(self.rows)} | {fate: fates[fate] for fate in ("collected", "missing", "refused")}


def run(
    design: str | Path | Design,
    source: str | Collector | Sequence[str | Collector],
    *,
    out: str | Path,
    per_query: int = 100,
    kind: Wanted = "any",
    embedder: str | None = None,
    text: str = "text",
    fetch: bool = False,
    contact: str | None = None,
    allow_private: bool = False,
    pause_s: float = 1.0,
    timeout_s: float = 60.0,
    retries: int = 2,
    most_mb: float = 20.0,
    most_gb: float = 10.0,
    concurrency: int = 8,
    workers: Workers | None = None,
) -> Collected:
    """Collect samples for the classes of a design.

    Nothing is drawn: the same design and sources give the same samples in the same order, apart from times.

    Parameters
    ----------
    design : path or Design
    source : str, object with `search`, or list of these
        As on the command line; or any object whose `search(query, limit)` gives `Hit`s, best first. If it has an
        `identity` that changes when its answers may, a run that was interrupted does not go on with another one.
    out : path
        Folder to make. OUT.part beside it holds what there is so far; the same call goes on from there.
    workers : Workers, optional
        Where parts of a corpus are ranked; default: here, all at once. See `_pools.scale`.

    The others are as on the command line.

    Raises
    ------
    InputError : what the user can mend; also if nothing was collected.
    Stopped : Ctrl-C; the same call goes on.
    """
    options = {name: value for name, value in locals().items() if name not in ("design", "source", "out", "workers")}
    check_new(out)
    started, place = time.time(), Path(out)
    plan = design if isinstance(design, Design) else read_design(design)
    given = [source] if isinstance(source, str) or hasattr(source, "search") else list(source)
    if not given:
        raise InputError(f"--source: give at least one, as KIND:WHERE with one of {', '.join(KINDS)}.")
    if per_query < 1:
        raise InputError(f"--per-query {per_query}: must be at least 1.")
    with lock(place), _web(options, Path(f"{out}.part")) as web:
        sources = [(_name(one), _opened(one, plan, web, embedder, text, workers)) for one in given]
        if twice := [name for name, number in Counter(name for name, _ in sources).items() if number > 1]:
            raise InputError(f'the source "{twice[0]}" is given twice. Give it once, or its objects a `name` each.')
        part = Part(Path(f"{out}.part"), _request(plan, sources, options))
        if part.is_resumed:
            say(f"going on from {part.place}")
        gatherer = Gatherer(part, web, round(most_mb * 1e6), None if kind == "any" else kind)
        try:
            rows = _all(part, gatherer, plan, sources, per_query)
        except KeyboardInterrupt:
            raise Stopped(f"stopped; the same command goes on from {part.place}.", signal.SIGINT) from None
        if not any(row["fate"] == "collected" for row in rows):
            part.remove()
            raise InputError(_nothing(rows))
        warned = [warning for _, one in sources for warning in getattr(one, "warnings", ())]
        warned += [*_left_over(plan, sources, rows, per_query), *_warnings(plan, rows)]
        for warning in warned:
            say(f"warning: {warning}")
        record = describe(
            command="curate adc_collect",
            config=options | {"source": [name for name, _ in sources]},
            seed=0,  # nothing is drawn
            data={"design": {"path": str(design) if isinstance(design, str | Path) else None, "sha256": _digest(plan)}},
            weights={},
            seconds={"in all": round(time.time() - started, 1)},
            stopped="all queries asked",
            warnings=warned,
            method={"title": "ADC collection", "summary": (__doc__ or "").split("\n\n")[1].replace("\n", " ")},
        )
        collected = Collected(place, plan, rows, record)
        _write(collected, part.raw)
        part.finish(place)
    return collected


# Before ------------------------------------------------------------------------------------------------------------


def _web(options: dict[str, Any], part: Path) -> Any:
    """Open the web if it is asked for; nothing is sent yet."""
    if not options["fetch"]:
        return nullcontext()
    check_installed("protego", "protego", "curate")
    from amends.curate._adc.fetch import Manners, Web

    if options["contact"] is None:
        raise InputError("--fetch: tell servers who asks, with --contact and an address of mail or of a page.")
    for name in ("pause_s", "timeout_s", "retries", "most_mb", "most_gb", "concurrency"):
        if options[name] < 0 or (options[name] == 0 and name not in ("pause_s", "retries")):
            raise InputError(f"--{name.replace('_', '-')} {options[name]}: too small.")
    spent = sum(file.stat().st_size for file in (part / "raw" / "files").rglob("*") if file.is_file())
    manners = Manners(
        contact=options["contact"],
        allow_private=options["allow_private"],
        pause_s=options["pause_s"],
        timeout_s=options["timeout_s"],
        retries=options["retries"],
        most_bytes=round(options["most_mb"] * 1e6),
        most_bytes_in_all=round(options["most_gb"] * 1e9),
        concurrency=options["concurrency"],
    )
    return Web(manners, spent)


def _name(source: str | Collector) -> str:
    """Name of a source in the table."""
    if isinstance(source, str):
        return source
    name = getattr(source, "name", type(source).__name__)
    return name if isinstance(name, str) else type(source).__name__


def _opened(
    source: str | Collector, design: Design, web: Any, embedder: str | None, text: str, workers: Workers | None
) -> Collector:
    """Open a source that was given as KIND:WHERE; an object that searches is one."""
    if not isinstance(source, str):
        if not callable(getattr(source, "search", None)):
            raise InputError(
                f"{type(source).__name__}: no source. Give KIND:WHERE or an object with search(query, limit)."
            )
        return source
    kind, mark, where = source.partition(":")
    if not mark or not where or kind not in KINDS:
        raise InputError(f"--source {source}: write KIND:WHERE with one of {', '.join(KINDS)}, such as folder:photos.")
    if kind == "folder":
        return FolderCollector(Path(where), design, source)
    if kind == "list":
        return ListCollector(Path(where), design, source)
    if kind == "corpus":
        if embedder is None:
            raise InputError(f"--source {source}: a corpus is ranked by embeddings. Name a model with --embedder.")
        return CorpusCollector(Path(where), embedder, source, text, workers)
    if web is None:
        raise InputError(f"--source {source}: asks the network, which needs --fetch.")
    from amends.curate._adc.service import ServiceCollector

    return ServiceCollector(Path(where), web, source)


def _digest(design: Design) -> str:
    return sha256_json([[label, sub.name, sub.query] for label, sub in design.queries()])


def _request(design: Design, sources: Sequence[tuple[str, Collector]], options: dict[str, Any]) -> dict[str, Any]:
    """Tell what the hits hang on; how fast the web is asked may change between two runs."""
    own = {
        name: options[name] for name in ("per_query", "kind", "embedder", "text", "fetch", "allow_private", "most_mb")
    }
    names = {name: str(getattr(one, "identity", "")) for name, one in sources}
    return {"design": _digest(design), "sources": names} | own


# The work ----------------------------------------------------------------------------------------------------------


def _all(
    part: Part, gatherer: Gatherer, design: Design, sources: Sequence[tuple[str, Collector]], per_query: int
) -> list[dict[str, Any]]:
    """Put every query that is not done yet to the sources."""
    found: list[dict[str, Any]] = []
    queries = design.queries()
    said = time.monotonic()
    for number, (label, sub) in enumerate(queries):
        rows = part.rows(number)
        if rows is None:
            rows = gatherer.collect(sources, label, sub.name, sub.query, per_query)
            part.keep_rows(number, rows)
        found += rows
        if time.monotonic() > said + 30:
            said = time.monotonic()
            say(f"{number + 1} of {len(queries)} queries done")
    return found


def _nothing(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return "no source has a hit for any query of the design. Look at the names and queries in it."
    (reason, number), *_ = Counter(row["reason"] for row in rows).most_common(1)
    hint = "Give --fetch and --contact." if reason == NOT_ASKED else "Mend that and run it again."
    return f"none of {len(rows)} hits was collected; {number} of them: {reason}. {hint}"


def _left_over(
    design: Design, sources: Sequence[tuple[str, Collector]], rows: Sequence[dict[str, Any]], per_query: int
) -> list[str]:
    """Say what folders and lists have of a class and no query had room for."""
    taken, found = Counter((row["source"], row["label"]) for row in rows), []
    for name, source in sources:
        if isinstance(source, FolderCollector | ListCollector):
            for one in design.classes:
                there = sum(len(source.hits[sub.query]) for sub in one.subclasses)
                if num := there - taken[name, one.name]:
                    found.append(
                        f'{name}: {num} of {there} hits of "{one.name}" were not taken (--per-query {per_query}).'
                    )
    return found


def _warnings(design: Design, rows: Sequence[dict[str, Any]]) -> list[str]:
    hit, reasons = {row["query"] for row in rows}, Counter(row["reason"] for row in rows)
    empty = [sub.query for _, sub in design.queries() if sub.query not in hit]
    found = [f'{len(empty)} queries found nothing, such as "{empty[0]}".'] if empty else []
    if number := reasons[NOT_ASKED]:
        found.append(f"{number} hits lie on the web and were refused: --fetch was not given.")
    if number := sum(row["fate"] == "missing" for row in rows):
        found.append(f"{number} hits are missing; list:missing.jsonl asks for them again.")
    if number := sum(row["fate"] == "collected" and row["licence"] is None for row in rows):
        found.append(f"The licence of {number} samples is not known: find out what you may do with them.")
    return found


def _write(found: Collected, folder: Path) -> None:
    from amends.curate._adc.collect_page import page, summary

    write_rows(folder / "samples.parquet", [{name: row[name] for name in COLUMNS} for row in found.of("collected")])
    for fate in ("missing", "refused"):
        columns = ("uri", "label", "subclass", "query", "rank", "source", "licence", "time", "reason")
        write_jsonl(folder / f"{fate}.jsonl", [{name: row[name] for name in columns} for row in found.of(fate)])
    write_json(folder / RUN, found.record)
    write_json(folder / "summary.json", summary(found))
    write_text(folder / "report.html", page(found))
    write_manifest(folder)


def command(
    design: Annotated[Path, typer.Argument(help="Design: YAML with classes, subclasses and queries.")],
    source: Annotated[list[str], typer.Option(help="folder:PATH, list:FILE, corpus:FILE or service:FILE; repeatable.")],
    out: Annotated[Path, typer.Option(help="Folder to make; must not exist. OUT.part is what there is so far.")],
    per_query: Annotated[int, typer.Option(help="Samples of a query, at most.", min=1)] = 100,
    kind: Annotated[Wanted, typer.Option(help="What is taken.")] = "any",
    embedder: Annotated[
        str | None, typer.Option(help="Ranks a corpus: hub id, folder, or package:NAME/FOLDER.")
    ] = None,
    text: Annotated[str, typer.Option(help="Column of a corpus that is ranked.")] = "text",
    fetch: Annotated[bool, typer.Option("--fetch", help="Use the network: fetch addresses, ask services.")] = False,
    contact: Annotated[str | None, typer.Option(help="Who asks, told to every server: mail or page.")] = None,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Fetch from this machine and private networks, too.")
    ] = False,
    pause_s: Annotated[float, typer.Option(help="Seconds between two requests to a host, at least.", min=0)] = 1.0,
    timeout_s: Annotated[float, typer.Option(help="Seconds that one file may take.", min=0.1)] = 60.0,
    retries: Annotated[int, typer.Option(help="Further tries where there is no answer.", min=0)] = 2,
    most_mb: Annotated[float, typer.Option(help="Megabytes of a file, at most.", min=0.001)] = 20.0,
    most_gb: Annotated[float, typer.Option(help="Gigabytes that are fetched in all, at most.", min=0.000001)] = 10.0,
    concurrency: Annotated[int, typer.Option(help="Hosts asked at the same time, at most.", min=1)] = 8,
) -> None:
    """Collect samples for the classes of DESIGN, with where each is from."""
    found = run(
        design,
        source,
        out=out,
        per_query=per_query,
        kind=kind,
        embedder=embedder,
        text=text,
        fetch=fetch,
        contact=contact,
        allow_private=allow_private,
        pause_s=pause_s,
        timeout_s=timeout_s,
        retries=retries,
        most_mb=most_mb,
        most_gb=most_gb,
        concurrency=concurrency,
    )
    counts = found.counts()
    say(f"{counts.pop('hits')} hits: " + ", ".join(f"{number} {fate}" for fate, number in counts.items()))
    say(f"done: {os.path.join(out, 'report.html')}")
