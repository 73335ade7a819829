"""Mend noisy ratings by those of neighbours, and select a small, good and diverse part of a pool.

Learns from the ratings and the embeddings alone how the rater errs, replaces ratings that contradict those of nearest
neighbours, and takes the best-rated rows, of equal ones those that lie farthest from others.

Source: Pang et al., DS2, ICLR 2025, arXiv 2410.10877.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from amends.curate._pool import Outcome, Verdict, read_pool, text_of
from amends.curate._raters import Aggregate, Levels, aggregate, levels_of, read_ratings
from amends.io.atomic import check_new, new_folder, write_json, write_manifest, write_text
from amends.io.console import say
from amends.io.errors import InputError, NoResult, check_installed
from amends.io.run import RUN, describe
from amends.io.tables import Row
from amends.io.write import kind_of

LONG_TAIL_DIGITS = 4


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
    used: list[int]
    """Numbers of the rows that were judged."""
    texts: list[str]
    """Of all rows; empty where no text column was named."""
    record: dict[str, Any]
    """As run.json has it."""


def run(
    data: Any,
    *,
    rating: str | Sequence[str],
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
    confidence: float = 0.5,
    k: int = 10,
    rounds: int = 50,
    draws: int = 51,
    near: float = 0.99,
    seed: int = 0,
) -> Curation:
    """Mend the ratings of a pool, and select from it.

    Parameters
    ----------
    data : path, list of paths, `datasets.Dataset`, data frame, or list of dictionaries
    out : path, optional
        Run folder to make.

    The others are as on the command line.

    Raises
    ------
    InputError : what the user can mend; nothing is written then.
    NoResult : neighbours do not share their ratings, or raters cannot be put together.
    """
    options = {name: value for name, value in locals().items() if name not in ("data", "out")}
    for package, name in (("sklearn", "scikit-learn"), ("faiss", "faiss-cpu")):
        check_installed(package, name, "curate")
    from amends.curate._curator import ScoreCurator, select
    from amends.curate._votes import list_neighbours, long_tail

    if out is not None:
        check_new(out)
    started = time.time()
    ratings, columns = _listed(rating), _listed(text)
    has_points = bool(embedding or embedder)
    _check_options(ratings, columns, embedder, embedding, curate, budget)
    rows = read_pool(data)
    texts = [text_of(row, columns) for row in rows] if columns else []
    ratings_NM, unrated = read_ratings(rows, ratings, scale=scale, compress=compress)
    verdicts: dict[int, Verdict] = {i: Verdict("refused", reason) for i, reason in enumerate(unrated) if reason}
    verdicts |= _unusable(rows, texts, embedding, verdicts)
    used = [i for i in range(len(rows)) if i not in verdicts]
    if budget is not None and budget > len(used):
        raise InputError(f"--budget {budget}: only {len(used)} of {len(rows)} rows can be judged. Lower it.")
    if len(used) < 3:
        why = "".join(f"; {rows[i].where}: {verdict.reason}" for i, verdict in list(verdicts.items())[:1])
        raise InputError(f"{len(used)} of {len(rows)} rows can be judged, and three are the least{why}.")
    sorted_into = levels_of(ratings_NM[used], levels)
    warnings = _refusals(verdicts, len(rows))
    raters = None
    labels_n = sorted_into.labels_NM[:, 0]
    if len(ratings) > 1:
        raters = aggregate(sorted_into.labels_NM, len(sorted_into.names), exchangeable=exchangeable)
        labels_n = raters.labels_N
    level_n = sorted_into.names[labels_n]
    digests: dict[str, str] = {}
    curator, curated_n, tail_n = None, level_n, np.full(len(used), np.nan)
    if has_points:
        points_nD = _points(rows, texts, used, embedder, embedding, digests)
        groups_n = _groups(rows, used, group)
        if curate:
            say(f"comparing {len(used)} rows with their neighbours")
            curator = ScoreCurator(
                k=k, rounds=rounds, draws=draws, confidence=confidence, near=near, random_state=seed
            ).fit(points_nD, level_n, groups_n)
            if curator.refusal_:
                raise NoResult(
                    f"the ratings were not mended: {curator.refusal_}. Rate anew or embed otherwise; --no-curate "
                    "selects by the ratings as they are."
                )
            curated_n, tail_n = curator.curated_, curator.long_tail_
            warnings += curator.warnings_
        else:
            tail_n = long_tail(list_neighbours(points_nD, k, near=near, groups_N=groups_n), k)
    second_n = tail_n if has_points else (raters.certainty_N if raters else tail_n)
    chosen_n = select(curated_n, second_n, len(used) if budget is None else budget)
    added = _columns(len(rows), used, level_n, curated_n, tail_n, curator, raters)
    verdicts |= _fates(used, set(chosen_n.tolist()), level_n, curated_n, added, budget)
    outcome = Outcome(rows, [verdicts[i] for i in range(len(rows))], added)
    for warning in warnings:
        say(f"warning: {warning}")
    record = describe(
        command="curate ds2",
        config={name: str(value) if isinstance(value, Path) else value for name, value in options.items()},
        seed=seed,
        data={"pool": outcome.about(data)},
        weights=digests,
        seconds={"in all": round(time.time() - started, 1)},
        stopped="all rows judged",
        warnings=warnings,
        method={"title": "DS2", "summary": (__doc__ or "").split("\n\n")[1].replace("\n", " ")},
    )
    selected = [used[n] for n in chosen_n.tolist()]
    found = Curation(outcome, selected, sorted_into, curator, raters, used, texts, record)
    if out is not None:
        write(found, Path(out), kind_of(data))
    return found


def _check_options(
    ratings: list[str],
    columns: list[str],
    embedder: str | None,
    embedding: str | None,
    curate: bool,
    budget: int | None,
) -> None:
    """Refuse what cannot go together, before anything is read."""
    if embedder and embedding:
        raise InputError("--embedder and --embedding: give one of them.")
    if embedder and not columns:
        raise InputError("--embedder: name the columns to embed with --text.")
    if curate and len(ratings) == 1 and not (embedder or embedding):
        raise InputError(
            "One column of ratings is mended by neighbours: give --text with --embedder, or --embedding. Several "
            "columns of ratings need neither; --no-curate selects by the ratings as they are."
        )
    if budget is not None and budget < 1:
        raise InputError(f"--budget {budget}: must be at least 1.")


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _unusable(
    rows: Sequence[Row], texts: list[str], embedding: str | None, known: dict[int, Verdict]
) -> dict[int, Verdict]:
    """Refuse rows without a text or an embedding, and drop those that say the same as an earlier one."""
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
    if column not in row.data:
        raise InputError(f'{row.where}: the column "{column}" is missing. Name another one with --embedding.')
    try:
        values = np.asarray(row.data[column], dtype=np.float64)
    except (TypeError, ValueError):
        return "the embedding is no list of numbers", width
    if values.ndim != 1 or values.size < 2:
        return "the embedding is no list of numbers", width
    if not np.isfinite(values).all() or not values.any():
        return "the embedding has no direction (NaN, infinite or zero)", width
    if width not in (None, values.size):
        return f"the embedding has {values.size} numbers, and others have {width}", width
    return None, values.size


def _refusals(verdicts: dict[int, Verdict], num_rows: int) -> list[str]:
    """Count what was refused, by the beginning of its reason."""
    counts: dict[str, int] = {}
    for verdict in verdicts.values():
        if verdict.fate == "refused" and verdict.reason:
            reason = verdict.reason.split(":")[0]
            counts[reason] = counts.get(reason, 0) + 1
    return [f"{count} of {num_rows} rows were refused: {reason}." for reason, count in counts.items()]


def _points(
    rows: Sequence[Row],
    texts: list[str],
    used: list[int],
    embedder: str | None,
    embedding: str | None,
    digests: dict[str, str],
) -> Any:
    """Embeddings of the rows in use, (n, D), float32."""
    if embedding:
        return np.array([rows[i].data[embedding] for i in used], dtype=np.float32)
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


def _groups(rows: Sequence[Row], used: list[int], column: str | None) -> Any:
    """Give the number of the group of each row, -1 where it has none; None without such a column."""
    if column is None:
        return None
    if not any(column in rows[i].data for i in used):
        raise InputError(f'{rows[0].where}: no row has the column "{column}". Name another one with --group.')
    numbers: dict[str, int] = {}
    values = [rows[i].data.get(column) for i in used]
    return np.array([-1 if value is None else numbers.setdefault(str(value), len(numbers)) for value in values])


def _columns(
    num_rows: int, used: list[int], level_n: Any, curated_n: Any, tail_n: Any, curator: Any, raters: Aggregate | None
) -> dict[str, list[Any]]:
    """Columns that every row gets; None where it was not judged."""
    found: dict[str, Any] = {"level": level_n.astype(int)}
    if raters is not None:
        found["certainty"] = raters.certainty_N
    if curator is not None:
        found |= {"error_prob": curator.error_prob_, "suggested": curator.suggested_.astype(int)}
        found["confidence"] = curator.confidence_
    found |= {"curated": curated_n.astype(int), "long_tail": tail_n.round(LONG_TAIL_DIGITS)}
    added: dict[str, list[Any]] = {}
    for name, values in found.items():
        added[name] = [None] * num_rows
        for i, value in zip(used, values.tolist(), strict=True):
            added[name][i] = None if value != value else value
    return added


def _fates(
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
    from amends.curate._ds2_page import page, summary

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
        list[str], typer.Option(help="Column of a rating; several are put together first, from three on.")
    ],
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
    confidence: Annotated[float, typer.Option(help="Replace a rating from this confidence on.", min=0, max=1)] = 0.5,
    k: Annotated[int, typer.Option(help="Rows that vote on a row, itself among them.", min=3)] = 10,
    rounds: Annotated[int, typer.Option(help="Draws to learn how ratings err.", min=1)] = 50,
    draws: Annotated[int, typer.Option(help="Draws in which neighbours vote.", min=1)] = 51,
    near: Annotated[
        float, typer.Option(help="Rows with at least this cosine do not vote on each other.", max=1)
    ] = 0.99,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
) -> None:
    """Mend the ratings in DATA, and select the best and most diverse rows."""
    found = run(
        data if len(data) > 1 else data[0],
        rating=rating,
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
        seed=seed,
    )
    counts = found.outcome.counts()
    say(f"{counts['rows']} rows: {counts['kept']} kept, {counts['dropped']} dropped, {counts['refused']} refused")
    say(f"done: {out / 'report.html'}")
