"""Clean samples that were collected by search: broken ones, copies, off-topic ones and labels that look wrong.

What is broken is refused; copies, what was found for two classes, what is far from everything and what neighbours
contradict is dropped, each with its reason; the rest is split without a copy across (ADC, step 3, arXiv 2408.11338).
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from amends.curate._copies import Copies, Sample, equal, near_copies, nearly_equal
from amends.curate._doubts import Looked, Mixed, look, mixed_subclasses
from amends.curate._images import HASH_BITS, folder_names, hex_of, sha256_of
from amends.curate._pool import Outcome, Verdict, check_columns
from amends.curate._review import NONE, queue_of, read_votes, write_queue
from amends.curate._samples import Samples, embedded, find_table, order_of, read_samples, vectors_in, words_in
from amends.curate._splits import split_groups
from amends.io.atomic import check_new, new_folder, write_json, write_manifest, write_text
from amends.io.console import say
from amends.io.errors import InputError, check_installed
from amends.io.run import RUN, describe
from amends.io.tables import Row
from amends.io.write import kind_of
from amends.maths.neighbors import unit

Method = Literal["simifeat-vote", "simifeat-rank", "knn", "confident", "cleanlab", "cores"]
Flagged = Literal["drop", "keep", "relabel"]
ADDED = (
    "found_as",
    "split",
    "noise_score",
    "label_error",
    "suggested_label",
    "confidence",
    "copy_group",
    "distance",
    "distance_limit",
    "perceptual_hash",
)
"""Columns that every row gets: `found_as` is the label that it was found for."""
NO_VECTOR = "no embedding, or one without a direction (NaN, infinite, zero)"
FEATURELESS = "no wrong label and nothing off topic was looked for: "


@dataclass(frozen=True)
class How:
    """How a pool is cleaned; the defaults are [design], choices of this tool."""

    near: float = 0.95
    """Cosine from which on two samples are nearly the same."""
    hash_bits: int = 4
    """Bits of 64 in which the perceptual hashes of two pictures that are nearly the same may differ; -1: none are."""
    deviations: float = 5.0
    """Of the median, in units of 1.4826 x the median absolute deviation: farther is off topic. 0 drops none."""
    method: Method = "simifeat-vote"
    k: int = 10
    flagged: Flagged = "drop"
    confidence: float = 0.5
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Of train, val and test."""


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

    The others are as on the command line.

    Raises
    ------
    InputError : what the user can mend; nothing is written then.
    """
    options = {name: value for name, value in locals().items() if name not in ("data", "out", "how")}
    how = how or How()
    _check(how, embedder, embedding)
    for module, package in (("sklearn", "scikit-learn"), ("faiss", "faiss-cpu")):
        check_installed(module, package, "curate")
    if out is not None:
        check_new(out)
    started, digests = time.time(), dict[str, str]()
    home = Path(folder) if folder is not None else None
    samples = read_samples(data, label=label, text=text, path=path, folder=home, most_pixels=most_pixels)
    check_columns(samples.rows, ADDED)
    if export and samples.kind == "text":
        raise InputError("--export imagefolder: these are texts. Leave it out; the splits are in the column split.")
    names = sorted({name for i in samples.used if (name := samples.labels[i]) is not None})
    said = read_votes(votes, samples.digests, names) if votes is not None else {}
    verdicts = dict(samples.refused)
    labels = [said.get(i, name) or "" for i, name in enumerate(samples.labels)]
    verdicts |= {i: Verdict("dropped", "a person says that it belongs to no class") for i in said if said[i] == NONE}
    vectors = vectors_in(samples, embedding) if embedding else {}
    verdicts |= {i: Verdict("refused", NO_VECTOR) for i in samples.used if embedding and i not in vectors}
    rows = [i for i in samples.used if i not in verdicts]
    if not rows:
        raise InputError(
            f"{votes}: no row is left that was not voted out. Give a pool with rows that belong to a class."
        )
    copies = equal(
        [Sample(labels[i], i in said, order_of(samples.rows[i]), samples.rows[i].where) for i in rows],
        [samples.keys[i] for i in rows],
    )
    used = [rows[n] for n in copies.stays]
    if not used:
        raise InputError(f"{samples.rows[0].where}: every row was found for two classes, so none can be kept.")
    unit_ND = unit(embedded(samples, used, embedder, digests) if embedder else np.stack([vectors[i] for i in used]))
    number = {i: n for n, i in enumerate(rows)}
    nearly_equal(
        copies,
        (
            (number[i], number[j], near)
            for (i, j), near in near_copies(samples, used, unit_ND, how.near, how.hash_bits).items()
        ),
    )
    verdicts |= {rows[n]: Verdict("dropped", reason) for n, reason in (copies.dropped | copies.disputed).items()}
    left_n = np.array([i not in verdicts for i in used])
    left, unit_nD = [i for i in used if i not in verdicts], unit_ND[left_n]
    looked = look(unit_nD, [(i, labels[i], i in said) for i in left], how.deviations, how.method, how.k, seed)
    verdicts |= looked.verdicts
    group_of = dict(zip(rows, copies.groups().tolist(), strict=True))
    outcome = _outcome(samples, labels, said, verdicts, looked, group_of, label, how, seed)
    subclasses = [words_in(samples.rows[i], "subclass") for i in left]
    mixed = [] if looked.refusal else mixed_subclasses(unit_nD, [labels[i] for i in left], subclasses)
    record = describe(
        command="curate adc_clean",
        config={key: str(value) if isinstance(value, Path) else value for key, value in (options | vars(how)).items()},
        seed=seed,
        data={"pool": outcome.about(data)},
        weights=digests,
        seconds={"in all": round(time.time() - started, 1)},
        stopped="all rows looked at",
        warnings=_warnings(samples, looked, outcome, label),
        method={"title": "ADC, step 3", "summary": (__doc__ or "").split("\n\n")[1].replace("\n", " ")},
    )
    for warning in record["warnings"]:
        say(f"warning: {warning}")
    disputed = [rows[n] for n in copies.disputed]
    queue = queue_of(samples, outcome, disputed, said, review, text if samples.kind == "text" else path)
    found = Cleaned(outcome, samples, copies, disputed, looked, mixed, said, queue, record)
    if out is not None:
        write(found, Path(out), kind_of(find_table(data)[0]), export)
    return found


def _check(how: How, embedder: str | None, embedding: str | None) -> None:
    """Refuse what cannot go together, before anything is read."""
    from amends.curate._detectors import DETECTORS

    if (embedder is None) == (embedding is None):
        raise InputError("give one of --embedder and --embedding: what samples are compared by.")
    if how.method not in DETECTORS:
        raise InputError(f"--method {how.method}: unknown. Choose one of {', '.join(DETECTORS)}.")
    if len(how.shares) != 3 or min(how.shares) < 0 or abs(sum(how.shares) - 1) > 1e-6:
        raise InputError(f"--split {' '.join(map(str, how.shares))}: expected three shares that sum to 1.")
    if not 0 < how.near <= 1 or not -1 <= how.hash_bits < HASH_BITS // 2 or how.deviations < 0:
        raise InputError(
            f"--near {how.near:g}, --hash-bits {how.hash_bits}, --deviations {how.deviations:g}: expected over 0 to 1, "
            f"-1 to {HASH_BITS // 2 - 1}, and 0 or more."
        )


# What becomes of the rows -------------------------------------------------------------------------------------------


def _outcome(
    samples: Samples,
    labels: list[str],
    said: Mapping[int, str],
    verdicts: dict[int, Verdict],
    looked: Looked,
    group_of: Mapping[int, int],
    label: str,
    how: How,
    seed: int,
) -> Outcome:
    """Give every row its fate, with the reason, and the columns that are added."""
    rows, given = list(samples.rows), samples.labels
    added: dict[str, list[Any]] = {name: [None] * len(rows) for name in ADDED}
    values = {name: rows[i].data[label] for i, name in enumerate(given) if name is not None}  # a number stays one
    final = dict(enumerate(labels))
    for i, row in enumerate(rows):
        added["found_as"][i], added["copy_group"][i] = row.data.get(label), group_of.get(i)
        added["perceptual_hash"][i] = hex_of(samples.hashes[i]) if i in samples.hashes else None
        if i in looked.distance:
            added["distance"][i], added["distance_limit"][i] = (round(value, 5) for value in looked.distance[i])
        if i in said and i not in verdicts and said[i] != given[i]:
            verdicts[i] = Verdict("kept", f'label "{given[i]}" -> "{said[i]}" (voted)')
    d = looked.detector
    for n, i in enumerate(looked.judged):
        if i in said:
            continue
        if why := d.why_not_[n]:
            verdicts[i] = Verdict("refused", f"not judged: {why}")
            continue
        other, noise = looked.names[d.suggested_[n]], float(d.noise_score_[n])
        sure = noise * float(d.posterior_[n, int(np.searchsorted(d.classes_, d.suggested_[n]))])
        found = (round(noise, 4), bool(d.flag_[n]), values[other], round(sure, 4))
        for name, value in zip(("noise_score", "label_error", "suggested_label", "confidence"), found, strict=True):
            added[name][i] = value
        if not d.flag_[n]:
            continue
        if how.flagged == "relabel" and sure >= how.confidence:
            final[i] = other
            told = f"(noise score {noise:.2f}, confidence {sure:.2f})"
            verdicts[i] = Verdict("kept", f'label "{labels[i]}" -> "{other}" {told}')
        else:
            reason = f'label "{labels[i]}" looks wrong (noise score {noise:.2f}); rather "{other}"'
            verdicts[i] = Verdict("kept" if how.flagged == "keep" else "dropped", reason)
    everything = [verdicts.get(i, Verdict("kept")) for i in range(len(rows))]
    kept = [i for i, verdict in enumerate(everything) if verdict.fate == "kept"]
    splits = split_groups(
        [final[i] for i in kept], [group_of[i] for i in kept], how.shares, np.random.default_rng(seed)
    )
    for i, split in zip(kept, splits, strict=True):
        added["split"][i] = split
        if final[i] != given[i]:
            rows[i] = Row({**rows[i].data, label: values[final[i]]}, rows[i].where)
    return Outcome(rows, everything, added)


def _warnings(samples: Samples, looked: Looked, outcome: Outcome, label: str) -> list[str]:
    """Say what the numbers rest on, and what became of whole classes."""
    found = [
        f"{num} of {len(samples.rows)} rows were refused: {why}."
        for why, num in Counter(verdict.reason for verdict in samples.refused.values()).most_common()
    ]
    found += [*looked.heard, *([f"{FEATURELESS}{looked.refusal}."] if looked.refusal else [])]
    before = Counter(name for name in samples.labels if name is not None)
    kept = outcome.of("kept")
    after = Counter(str(row[label]) for row in kept)
    for name in (name for name in sorted(before) if after[name] * 2 < before[name]):
        found.append(f'Of the class "{name}" {after[name]} of {before[name]} rows are left: look at what was dropped.')
    tested = {str(row[label]) for row in kept if row["split"] == "test"}
    if untested := sorted(name for name in after if name not in tested):
        found.append(f"No row in test, as they have too few: {', '.join(untested)[:300]}.")
    return found


def write(found: Cleaned, out: Path, kind: str, export: str | None = None) -> None:
    """Write the run folder in one move."""
    from amends.curate._clean_page import card, page, summary

    with new_folder(out) as folder:
        found.outcome.write(folder, kind)
        if found.queue:
            write_queue(folder / "review.csv", found.queue)
        if export:
            _export(found, folder / "pictures")
        write_json(folder / "summary.json", summary(found))
        write_json(folder / RUN, found.record)
        write_text(folder / "README.md", card(found))
        write_text(folder / "report.html", page(found))
        write_manifest(folder)


def _export(found: Cleaned, place: Path) -> None:
    """Copy the pictures that are kept into SPLIT/LABEL, each under its digest; labels.json names the folders."""
    label, kept = found.record["config"]["label"], [i for i, v in enumerate(found.outcome.verdicts) if v.fate == "kept"]
    labels = {i: str(found.outcome.rows[i].data[label]) for i in kept}
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
    seed: Annotated[int, typer.Option(help="Of the draws in which neighbours vote, of folds and of splits.")] = 0,
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
