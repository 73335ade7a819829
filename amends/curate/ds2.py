"""Mend noisy ratings by those of neighbours, and select a small, good and diverse part of a pool.

Learns from the ratings and the embeddings alone how the rater errs, replaces ratings that contradict those of nearest
neighbours, and takes the best-rated rows, of equal ones those that lie farthest from others.

Source: Pang et al., DS2, ICLR 2025, arXiv 2410.10877.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from amends.curate._ds2.options import CONFIDENCE, DRAWS, NEAR, ROUNDS, K, check_options, check_unused, check_values
from amends.curate._ds2.raters import Aggregate, Levels, aggregate, compressed, levels_of, read_ratings
from amends.curate._pools.features import embeddings, groups, unusable
from amends.curate._pools.pool import Outcome, Verdict, read_pool, texts_of
from amends.io.atomic import check_new, new_folder, write_json, write_manifest, write_text
from amends.io.console import say
from amends.io.errors import InputError, NoResult, check_installed
from amends.io.options import SeedOption
from amends.io.rows import Row
from amends.io.run import RUN, describe
from amends.io.write import kind_of

LONG_TAIL_DIGITS = 4
MENDED = ("error_prob", "suggested", "confidence")
"""Columns that mending adds."""


@dataclass(frozen=True, eq=False)
class Curation:
    """What became of a pool; the run folder holds the same."""

    outcome: Outcome
    """Every row with its fate, and the columns level, error_prob, suggested, confidence, curated, long_tail."""
    selected: list[int]
    """Numbers of the rows that were kept, best first."""
    levels: Levels
    """Ratings in use."""
    curator: Any
    """`ScoreCurator` fitted to the rows in `used`; None without mending."""
    raters: Aggregate | None
    """How several raters were put together."""
    sources: list[str]
    """Columns of ratings, or names of the models that rated."""
    asked: dict[str, Any]
    """Of each model that rated, `amends.lm.chat.Counts`."""
    used: list[int]
    """Numbers of the rows that were judged."""
    texts: list[str]
    """Of all rows; empty where no text column was named."""
    record: dict[str, Any]
    """As run.json has it."""


def run(
    data: Any,
    *,
    rating: str | Sequence[str] = (),
    rater: Any = None,
    text: str | Sequence[str] = (),
    out: str | Path | None = None,
    embedder: str | None = None,
    embedding: str | None = None,
    budget: int | None = None,
    group: str | None = None,
    exchangeable: bool = False,
    curate: bool = True,
    scale: str | None = None,
    compress: bool = False,
    levels: int | None = None,
    confidence: float = CONFIDENCE,
    k: int = K,
    rounds: int = ROUNDS,
    draws: int = DRAWS,
    near: float = NEAR,
    cache: str | Path | None = None,
    most_calls: int | None = None,
    seed: int = 0,
) -> Curation:
    """Mend the ratings of a pool, and select from it.

    Parameters
    ----------
    data : path, list of paths, `datasets.Dataset`, data frame, or list of dictionaries
    rater : str, `amends.lm.chat.Chat`, or list of them
    out : path, optional
        Run folder to make.

    The others are as on the command line.

    Raises
    ------
    InputError : what the user can mend; nothing is written then.
    NoResult : neighbours do not share their ratings, or raters cannot be put together.
    """
    options = {name: value for name, value in locals().items() if name not in ("data", "out", "rater")}
    for package, name in (("sklearn", "scikit-learn"), ("faiss", "faiss-cpu")):
        check_installed(package, name, "curate")
    from amends.curate._ds2.curator import ScoreCurator, select
    from amends.curate._pools.lists import list_neighbours, long_tail

    if out is not None:
        check_new(out)
    started, columns = time.time(), _listed(text)
    raters_asked = [] if rater is None else _listed(rater)
    sources = raters_asked or _listed(rating)
    check_options(raters_asked, _listed(rating), columns, embedder, embedding, curate, budget)
    is_mended = curate and bool(embedder or embedding)
    check_values(options)
    check_unused(options, bool(raters_asked), len(sources) > 1, bool(embedder or embedding), is_mended)
    written = ["level", "curated", "long_tail", *(MENDED if is_mended else ()), *["certainty"] * (len(sources) > 1)]
    if raters_asked:
        if cache is None and out is not None:
            cache = Path(f"{Path(out)}.answers.sqlite")
            cache.parent.mkdir(parents=True, exist_ok=True)
        written += rating_columns(raters_asked)
        pool = _rated(read_pool(data, written), columns, embedding, raters_asked, cache, most_calls, seed)
    else:
        pool = _read(read_pool(data, written), columns, embedding, sources, scale, compress)
    used, rows = _judged(pool, budget), pool.rows
    sorted_into = levels_of(pool.ratings_NM[used], levels)
    warnings = _refusals(pool.verdicts, len(rows))
    labels_n, raters = sorted_into.labels_NM[:, 0], None
    if len(pool.sources) > 1:
        raters = aggregate(sorted_into.labels_NM, len(sorted_into.names), exchangeable=exchangeable)
        labels_n = raters.labels_N
    level_n = sorted_into.names[labels_n]
    digests: dict[str, str] = {}
    curator, curated_n, tail_n = None, level_n, np.full(len(used), np.nan)
    if embedder or embedding:
        points_nD = embeddings(rows, pool.texts, used, embedder, embedding, digests)
        groups_n = groups(rows, used, group)
        if curate:
            curator = ScoreCurator(k=k, rounds=rounds, draws=draws, confidence=confidence, near=near, random_state=seed)
            curated_n, tail_n = _mended(curator, points_nD, level_n, groups_n)
            warnings += curator.warnings_
        else:
            tail_n = long_tail(list_neighbours(points_nD, k, near=near, groups_N=groups_n), k)
    second_n = raters.certainty_N if raters and not (embedder or embedding) else tail_n
    chosen_n = select(curated_n, second_n, len(used) if budget is None else budget)
    added = pool.added | columns_of(len(rows), used, level_n, curated_n, tail_n, curator, raters)
    verdicts = pool.verdicts | fates(used, set(chosen_n.tolist()), level_n, curated_n, added, budget)
    outcome = Outcome(rows, [verdicts[i] for i in range(len(rows))], added)
    for warning in warnings:
        say(f"warning: {warning}")
    record = describe(
        command="curate ds2",
        config={name: str(of) if isinstance(of, Path) else of for name, of in options.items()}
        | {"rater": pool.sources if raters_asked else None},
        seed=seed,
        data={"pool": outcome.about(data)},
        weights=digests,
        seconds={"in all": round(time.time() - started, 1)},
        stopped="all rows judged",
        warnings=warnings,
        method={"title": "DS2", "summary": (__doc__ or "").split("\n\n")[1].replace("\n", " ")},
    )
    selected = [used[n] for n in chosen_n.tolist()]
    found = Curation(
        outcome, selected, sorted_into, curator, raters, pool.sources, pool.asked, used, pool.texts, record
    )
    if out is not None:
        write(found, Path(out), kind_of(data))
    return found


class _Pool(NamedTuple):
    """Rows with their texts and ratings."""

    rows: list[Row]
    texts: list[str]
    ratings_NM: Any
    verdicts: dict[int, Verdict]
    """Of the rows that are not judged."""
    sources: list[str]
    asked: dict[str, Any]
    added: dict[str, list[Any]]


def _read(
    rows: list[Row], columns: list[str], embedding: str | None, ratings: list[str], scale: str | None, compress: bool
) -> _Pool:
    """Read the ratings that stand in columns."""
    texts = texts_of(rows, columns)
    ratings_NM, unrated = read_ratings(rows, ratings, scale=scale, compress=compress)
    verdicts = {i: Verdict("refused", why) for i, why in enumerate(unrated) if why}
    verdicts |= unusable(rows, texts, embedding, verdicts)
    return _Pool(rows, texts, ratings_NM, verdicts, ratings, {}, {})


def _rated(
    rows: list[Row],
    columns: list[str],
    embedding: str | None,
    raters: list[Any],
    cache: str | Path | None,
    most_calls: int | None,
    seed: int,
) -> _Pool:
    """Have models rate the texts of the rows that can be judged."""
    from amends.curate._ds2.rating import rate_all

    texts = texts_of(rows, columns)
    verdicts = unusable(rows, texts, embedding, {})
    there = [i for i in range(len(rows)) if i not in verdicts]
    if not there:
        raise InputError(f"{rows[0].where}: no row can be rated ({verdicts[0].reason}).")
    found = rate_all(raters, [texts[i] for i in there], cache=cache, most_calls=most_calls, seed=seed)
    ratings_NM = np.full((len(rows), len(raters)), np.nan)
    ratings_NM[there] = found.ratings_NM
    verdicts |= {i: Verdict("refused", why) for i, why in zip(there, found.reasons, strict=True) if why}
    added = {
        name: [None if value != value else int(value) for value in of]
        for name, of in zip(rating_columns(raters), ratings_NM.T.tolist(), strict=True)
    }
    return _Pool(rows, texts, compressed(ratings_NM), verdicts, found.names, found.asked, added)


def _judged(pool: _Pool, budget: int | None) -> list[int]:
    """Return the numbers of the rows that can be judged."""
    used = [i for i in range(len(pool.rows)) if i not in pool.verdicts]
    if budget is not None and budget > len(used):
        raise InputError(f"--budget {budget}: only {len(used)} of {len(pool.rows)} rows can be judged. Lower it.")
    if len(used) < 3:
        why = "".join(f"; {pool.rows[i].where}: {verdict.reason}" for i, verdict in list(pool.verdicts.items())[:1])
        raise InputError(f"{len(used)} of {len(pool.rows)} rows can be judged, and three are the least{why}.")
    return used


def _mended(curator: Any, points_nD: Any, level_n: Any, groups_n: Any) -> tuple[Any, Any]:
    """Compare the rows with their neighbours: their levels as mended, and how far each lies from others."""
    say(f"comparing {len(level_n)} rows with their neighbours")
    curator.fit(points_nD, level_n, groups_n)
    if curator.refusal_:
        raise NoResult(
            f"the ratings were not mended: {curator.refusal_}. Rate anew or embed otherwise; --no-curate selects by "
            "the ratings as they are."
        )
    return curator.curated_, curator.long_tail_


def rating_columns(raters: Sequence[Any]) -> list[str]:
    """Columns that the ratings of models are written to."""
    return ["rating"] if len(raters) == 1 else [f"rating_{m}" for m in range(1, len(raters) + 1)]


def _listed(names: Any) -> list[Any]:
    return list(names) if isinstance(names, list | tuple) else [names]


def _refusals(verdicts: dict[int, Verdict], num_rows: int) -> list[str]:
    """Count what was refused, by the beginning of its reason."""
    counts: dict[str, int] = {}
    for verdict in verdicts.values():
        if verdict.fate == "refused" and verdict.reason:
            reason = verdict.reason.split(":")[0]
            counts[reason] = counts.get(reason, 0) + 1
    return [f"{count} of {num_rows} rows were refused: {reason}." for reason, count in counts.items()]


def columns_of(
    num_rows: int, used: list[int], level_n: Any, curated_n: Any, tail_n: Any, curator: Any, raters: Aggregate | None
) -> dict[str, list[Any]]:
    """Columns that every row gets; None where it was not judged."""
    found: dict[str, Any] = {"level": level_n.astype(int)}
    if raters is not None:
        found["certainty"] = raters.certainty_N
    if curator is not None:
        suggested_n = curator.suggested_.astype(int).astype(object)
        suggested_n[np.isnan(curator.error_prob_)] = None  # too few neighbours: nothing is known of it
        found |= {"error_prob": curator.error_prob_, "suggested": suggested_n}
        found["confidence"] = curator.confidence_
    found |= {"curated": curated_n.astype(int), "long_tail": tail_n.round(LONG_TAIL_DIGITS)}
    added: dict[str, list[Any]] = {}
    for name, values in found.items():
        added[name] = [None] * num_rows
        for i, value in zip(used, values.tolist(), strict=True):
            added[name][i] = None if value != value else value
    return added


def fates(
    used: list[int], chosen: set[int], level_n: Any, curated_n: Any, added: dict[str, list[Any]], budget: int | None
) -> dict[int, Verdict]:
    """Keep what was selected, and say of the rest why not."""
    found = {}
    for n, i in enumerate(used):
        changed = f"rating {level_n[n]:g} -> {curated_n[n]:g}" if curated_n[n] != level_n[n] else None
        if changed:
            changed += f" (confidence {added['confidence'][i]:.2f})"
        if n in chosen:
            found[i] = Verdict("kept", changed)
            continue
        tail = added["long_tail"][i]
        far = "" if tail is None else f" and long-tail score {tail:g}"
        reason = f"not among the {budget} best, with rating {curated_n[n]:g}{far}"
        found[i] = Verdict("dropped", f"{reason}; {changed}" if changed else reason)
    return found


def write(found: Curation, out: Path, kind: str) -> None:
    """Write the run folder in one move."""
    from amends.curate._ds2.page import page, summary

    with new_folder(out) as folder:
        found.outcome.write(folder, kind)
        write_json(folder / "noise.json", summary(found))
        write_json(folder / RUN, found.record)
        write_text(folder / "report.html", page(found))
        write_manifest(folder)


def command(
    data: Annotated[list[str], typer.Argument(help="Rows with ratings; several files are one pool.")],
    out: Annotated[Path, typer.Option(help="Run folder to make; must not exist.")],
    rating: Annotated[
        list[str] | None, typer.Option(help="Column of a rating; several are put together first, from three on.")
    ] = None,
    rater: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead, language model that rates the text: as --model elsewhere, or http://HOST/v1#MODEL."
        ),
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="Columns of the text, in this order.")] = None,
    embedder: Annotated[
        str | None, typer.Option(help="Embed the text: hub id, folder, or package:NAME/FOLDER.")
    ] = None,
    embedding: Annotated[str | None, typer.Option(help="Column with embeddings, instead of --embedder.")] = None,
    budget: Annotated[int | None, typer.Option(help="Rows to select; default: all that can be judged.", min=1)] = None,
    group: Annotated[
        str | None, typer.Option(help="Column whose equal values mark siblings, such as answers to one prompt.")
    ] = None,
    exchangeable: Annotated[
        bool, typer.Option("--exchangeable", help="The columns are repeated ratings by one rater.")
    ] = False,
    curate: Annotated[bool, typer.Option(help="Mend ratings by neighbours; otherwise only select.")] = True,
    scale: Annotated[str | None, typer.Option(help="LOWEST-HIGHEST rating; rows with others are refused.")] = None,
    compress: Annotated[
        bool, typer.Option("--compress", help="Ratings are 1 to 10; make them 0 to 5: up to 4 is 0, from 9 on 5.")
    ] = False,
    levels: Annotated[
        int | None, typer.Option(help="Merge ratings into so many levels of about equal size.", min=2)
    ] = None,
    confidence: Annotated[
        float, typer.Option(help="Replace a rating from this confidence on.", min=0, max=1)
    ] = CONFIDENCE,
    k: Annotated[int, typer.Option(help="Rows that vote on a row, itself among them.", min=3)] = K,
    rounds: Annotated[int, typer.Option(help="Draws to learn how ratings err.", min=1)] = ROUNDS,
    draws: Annotated[int, typer.Option(help="Draws in which neighbours vote.", min=1)] = DRAWS,
    near: Annotated[
        float, typer.Option(help="Rows with at least this cosine do not vote on each other.", max=1)
    ] = NEAR,
    cache: Annotated[
        Path | None, typer.Option(help="File of the answers of --rater; default OUT.answers.sqlite.")
    ] = None,
    most_calls: Annotated[int | None, typer.Option(help="New answers of each --rater, at most.", min=0)] = None,
    seed: SeedOption = 0,
) -> None:
    """Mend the ratings in DATA, and select the best and most diverse rows."""
    found = run(
        data if len(data) > 1 else data[0],
        rating=rating or (),
        rater=rater,
        text=text or (),
        out=out,
        embedder=embedder,
        embedding=embedding,
        budget=budget,
        group=group,
        exchangeable=exchangeable,
        curate=curate,
        scale=scale,
        compress=compress,
        levels=levels,
        confidence=confidence,
        k=k,
        rounds=rounds,
        draws=draws,
        near=near,
        cache=cache,
        most_calls=most_calls,
        seed=seed,
    )
    counts = found.outcome.counts()
    say(f"{counts['rows']} rows: {counts['kept']} kept, {counts['dropped']} dropped, {counts['refused']} refused")
    say(f"done: {out / 'report.html'}")
