"""Clean samples that were collected by search: broken ones, copies, off-topic ones and labels that look wrong.

What is broken is refused; copies, what was found for two classes, what is far from everything and what neighbours
contradict is dropped, each with its reason; the rest is split without a copy across (ADC, step 3, arXiv 2408.11338).
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from amends.curate._adc.cleaning import ADDED, FEATURELESS, NO_VECTOR, How, check_how, clean
from amends.curate._adc.copies import Copies
from amends.curate._adc.images import folder_names, sha256_of
from amends.curate._adc.review import queue_of, read_votes, write_queue
from amends.curate._adc.samples import Samples, embedded, find_table, read_samples, vectors_in
from amends.curate._labels.doubts import Looked, Mixed
from amends.curate._pools.flagged import Flagged, Method, key_of
from amends.curate._pools.pool import Outcome
from amends.curate._pools.scale import Here, Workers
from amends.io.atomic import check_new, write_json, write_text
from amends.io.console import say
from amends.io.errors import InputError, check_installed
from amends.io.run import describe, run_folder
from amends.io.write import kind_of
from amends.maths.arrays import Float32Array

__all__ = ["ADDED", "Cleaned", "How", "command", "run"]


@dataclass(frozen=True, eq=False)
class Cleaned:
    """What was found of every row; the run folder holds the same."""

    outcome: Outcome
    """Every row with its fate, and the columns of `ADDED`."""
    samples: Samples
    copies: Copies
    disputed: list[int]
    """Rows that were found for two classes."""
    looked: Looked
    mixed: list[Mixed]
    """Subclasses that neighbours do not tell apart."""
    votes: dict[int, str]
    """Row to what a person said."""
    queue: list[dict[str, Any]]
    """Rows that are most worth a look by a person."""
    record: dict[str, Any]
    """As run.json has it."""


def run(
    data: Any,
    *,
    out: str | Path | None = None,
    embedder: str | None = None,
    embedding: str | None = None,
    how: How | None = None,
    label: str = "label",
    text: str = "text",
    path: str = "path",
    folder: str | Path | None = None,
    most_pixels: int = 50_000_000,
    review: int = 0,
    votes: str | Path | None = None,
    export: Literal["imagefolder"] | None = None,
    seed: int = 0,
    workers: Workers | None = None,
) -> Cleaned:
    """Clean a pool of samples.

    Parameters
    ----------
    data : folder, path, list of paths, `datasets.Dataset`, data frame, or list of dictionaries
        A folder that `amends curate adc_collect` wrote (samples.parquet), or a table with a label and a text or a path.
        The columns "subclass", "query", "rank", "uri", "source", "licence", "sha256" and "kind" are used where they
        are there.
    out : path, optional
        Run folder to make.
    embedder, embedding : str
        One of them: an encoder of texts or pictures, or a column with lists of numbers.
    folder : path, optional
        That paths of pictures start from; default is the folder of the table.
    workers : Workers, optional
        Where parts of the rows are worked on; default: here, all rows at once. See `_pools.scale`.

    The others are as on the command line.

    Raises
    ------
    InputError : what the user can mend; nothing is written then.
    """
    options = {name: value for name, value in locals().items() if name not in ("data", "out", "how", "workers")}
    how, workers = how or How(), workers or Here()
    if (embedder is None) == (embedding is None):
        raise InputError("give one of --embedder and --embedding: what samples are compared by.")
    check_how(how)
    for module, package in (("sklearn", "scikit-learn"), ("faiss", "faiss-cpu")):
        check_installed(module, package, "curate")
    if out is not None:
        check_new(out)
    started, digests = time.time(), dict[str, str]()
    home = Path(folder) if folder is not None else None
    samples = read_samples(
        data, label=label, text=text, path=path, folder=home, most_pixels=most_pixels, workers=workers, added=ADDED
    )
    if export and samples.kind == "text":
        raise InputError("--export imagefolder: these are texts. Leave it out; the splits are in the column split.")
    names = sorted({name for i in samples.used if (name := samples.labels[i]) is not None})
    said = read_votes(votes, samples.digests, names) if votes is not None else {}
    vectors = vectors_in(samples, embedding) if embedding else {}
    refused = {i: NO_VECTOR for i in samples.used if embedding and i not in vectors}

    def points_of(used: Sequence[int]) -> Float32Array:
        if embedder is not None:
            return embedded(samples, used, embedder, digests)
        return np.stack([vectors[i] for i in used])

    cleaned = clean(samples, refused, points_of, said, label, how, seed, workers)
    outcome, looked = cleaned.outcome, cleaned.looked
    record = describe(
        command="curate adc_clean",
        config={key: str(value) if isinstance(value, Path) else value for key, value in (options | vars(how)).items()},
        seed=seed,
        data={"pool": outcome.about(data)},
        weights=digests,
        seconds={"in all": round(time.time() - started, 1)},
        stopped="all rows looked at",
        warnings=warnings_of(samples, looked, outcome, label, tests=how.shares[2] > 0),
        method={"title": "ADC, step 3", "summary": (__doc__ or "").split("\n\n")[1].replace("\n", " ")},
    )
    for warning in record["warnings"]:
        say(f"warning: {warning}")
    shown = text if samples.kind == "text" else path
    queue = queue_of(samples, outcome, cleaned.disputed, said, review, shown)
    found = Cleaned(outcome, samples, cleaned.copies, cleaned.disputed, looked, cleaned.mixed, said, queue, record)
    if out is not None:
        write(found, Path(out), kind_of(find_table(data)[0]), export)
    return found


# What becomes of the rows -------------------------------------------------------------------------------------------


def warnings_of(samples: Samples, looked: Looked, outcome: Outcome, label: str, *, tests: bool) -> list[str]:
    """Say what the numbers rest on, and what became of whole classes."""
    found = [
        f"{num} of {len(samples.rows)} rows were refused: {why}."
        for why, num in Counter(verdict.reason for verdict in samples.refused.values()).most_common()
    ]
    found += [*looked.heard, *([f"{FEATURELESS}{looked.refusal}."] if looked.refusal else [])]
    before = Counter(name for name in samples.labels if name is not None)
    kept = outcome.of("kept")
    after = Counter(key_of(row[label]) for row in kept)
    for name in (name for name in sorted(before) if after[name] * 2 < before[name]):
        found.append(f'Of the class "{name}" {after[name]} of {before[name]} rows are left: look at what was dropped.')
    tested = {key_of(row[label]) for row in kept if row["split"] == "test"}
    if tests and (untested := sorted(name for name in after if name not in tested)):
        found.append(f"No row in test, as they have too few: {', '.join(untested)[:300]}.")
    return found


def write(found: Cleaned, out: Path, kind: str, export: str | None = None) -> None:
    """Write the run folder in one move."""
    from amends.curate._adc.clean_page import card, page, summary

    with run_folder(out, found.record, summary(found), page(found)) as folder:
        found.outcome.write(folder, kind)
        if found.queue:
            write_queue(folder / "review.csv", found.queue)
        if export:
            _export(found, folder / "pictures")
        write_text(folder / "README.md", card(found))


def _export(found: Cleaned, place: Path) -> None:
    """Copy the pictures that are kept into SPLIT/LABEL, each under its digest; labels.json names the folders."""
    label, kept = found.record["config"]["label"], [i for i, v in enumerate(found.outcome.verdicts) if v.fate == "kept"]
    labels = {i: key_of(found.outcome.rows[i].data[label]) for i in kept}
    names = folder_names(set(labels.values()))
    for i in kept:
        file, digest = found.samples.files[i], found.samples.digests[i]
        assert file is not None
        data = file.read_bytes()
        if sha256_of(data) != digest:
            raise InputError(f"{found.outcome.rows[i].where}: the file was changed meanwhile. Run it again.")
        folder = place / str(found.outcome.added["split"][i]) / names[labels[i]]
        folder.mkdir(parents=True, exist_ok=True)
        suffix = file.suffix.lower()
        (folder / f"{digest}{suffix if suffix[1:].isalnum() else ''}").write_bytes(data)
    write_json(place / "labels.json", {name: label for label, name in names.items()})


def command(
    raw: Annotated[
        list[str], typer.Argument(help="Folder that adc_collect wrote, or a table with labels; several are one pool.")
    ],
    out: Annotated[Path, typer.Option(help="Run folder to make; must not exist.")],
    embedder: Annotated[
        str | None, typer.Option(help="Encoder of the texts or pictures: hub id, folder, or package:NAME/FOLDER.")
    ] = None,
    embedding: Annotated[str | None, typer.Option(help="Column with embeddings, instead of --embedder.")] = None,
    label: Annotated[str, typer.Option(help="Column of the label.")] = "label",
    text: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    path: Annotated[
        str, typer.Option(help="Column of the file of a picture, relative to the folder of the table.")
    ] = "path",
    near: Annotated[float, typer.Option(help="Cosine from which on two samples are nearly the same.")] = How.near,
    hash_bits: Annotated[
        int, typer.Option(help="Bits of 64 in which perceptual hashes of copies may differ; -1: do not compare them.")
    ] = How.hash_bits,
    deviations: Annotated[
        float, typer.Option(help="Robust deviations from the median, farther than which is off topic; 0 drops none.")
    ] = How.deviations,
    method: Annotated[Method, typer.Option(help="How labels are judged, as label_errors does.")] = How.method,
    k: Annotated[int, typer.Option(help="Neighbours; of SimiFeat with the row itself.", min=3)] = How.k,
    flagged: Annotated[Flagged, typer.Option(help="What becomes of labels that look wrong.")] = How.flagged,
    confidence: Annotated[
        float, typer.Option(help="Replace a label from this confidence on (--flagged relabel).", min=0, max=1)
    ] = How.confidence,
    split: Annotated[tuple[float, float, float], typer.Option(help="Shares of train, val and test.")] = How.shares,
    most_pixels: Annotated[int, typer.Option(help="Of a picture; a larger one is refused.", min=1)] = 50_000_000,
    review: Annotated[int, typer.Option(help="Rows to list in review.csv for a person.", min=0)] = 0,
    votes: Annotated[Path | None, typer.Option(help="review.csv with the column vote filled in.")] = None,
    export: Annotated[
        Literal["imagefolder"] | None, typer.Option(help="Copy the pictures that are kept to OUT/pictures/SPLIT/LABEL.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of the draws in which neighbours vote, of folds and of splits.", min=0, max=2**32 - 1)
    ] = 0,
) -> None:
    """Clean the samples in RAW."""
    found = run(
        raw if len(raw) > 1 else raw[0],
        out=out,
        embedder=embedder,
        embedding=embedding,
        how=How(near, hash_bits, deviations, method, k, flagged, confidence, split),
        label=label,
        text=text,
        path=path,
        most_pixels=most_pixels,
        review=review,
        votes=votes,
        export=export,
        seed=seed,
    )
    counts = found.outcome.counts()
    say(f"{counts['rows']} rows: {counts['kept']} kept, {counts['dropped']} dropped, {counts['refused']} refused")
    say(f"done: {out / 'report.html'}")
