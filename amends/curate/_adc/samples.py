"""Samples that were collected: rows with a text or a picture, and a label; and those that cannot be used."""

import io
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amends.curate._adc.images import Broken, inside, open_picture, perceptual_hash, sha256_of
from amends.curate._pools.flagged import is_label, key_of
from amends.curate._pools.pool import Verdict, missing, read_pool
from amends.curate._pools.scale import Here, Workers, parts_of
from amends.io.console import say
from amends.io.errors import InputError, check_installed
from amends.io.progress import track
from amends.io.rows import Row

TABLES = ("samples.parquet", "samples.jsonl", "samples.csv")
MOST_UNREADABLE = 0.1
"""Share of a text's characters that may be signs of bytes that were no text."""


@dataclass
class Samples:
    """A pool of one kind; lists have an entry for each row."""

    rows: list[Row]
    kind: Literal["text", "image"]
    labels: list[str | None]
    """As text; None where there is none."""
    refused: dict[int, Verdict]
    digests: list[str | None]
    """SHA-256 of the picture's file or of the text; None where it could not be read."""
    keys: list[str | None]
    """Equal of samples that are the same: the digest of a picture, the text without case and odd spaces."""
    texts: list[str]
    """Empty of pictures."""
    files: list[Path | None]
    hashes: dict[int, NDArray[np.bool_]]
    """Perceptual hashes of pictures."""
    most_pixels: int

    @property
    def used(self) -> list[int]:
        """Rows that were not refused."""
        return [i for i in range(len(self.rows)) if i not in self.refused]


def find_table(data: Any) -> tuple[Any, Path | None]:
    """Find the rows, and the folder that paths start from: that of the table."""
    if not isinstance(data, str | Path):
        return data, None
    if found := next((Path(data) / name for name in TABLES if (Path(data) / name).is_file()), None):
        return found, Path(data)
    return data, Path(data) if Path(data).is_dir() else Path(data).parent


def read_samples(
    data: Any,
    *,
    label: str,
    text: str,
    path: str,
    folder: Path | None,
    most_pixels: int,
    workers: Workers | None = None,
    added: Iterable[str] = (),
) -> Samples:
    """Read a pool, open every picture, and refuse what cannot be used.

    Parameters
    ----------
    data : as `amends.curate._pools.pool.read_pool` takes it, or a folder with a table of `TABLES`
    label, text, path : names of columns
    folder : path, optional
        That paths of pictures start from; default is the folder of the table.
    most_pixels : int
        Of a picture.
    workers : Workers, optional
        Where parts of the rows are read; default: here, all at once.
    added : names of columns that are going to be written

    Raises
    ------
    InputError : no such columns, texts and pictures in one pool, or no row that can be used.
    """
    table, home = find_table(data)
    rows, workers = read_pool(table, added), workers or Here()
    for names in ((label,), (text, path)):
        if not any(name in row.data for row in rows for name in names):
            told = " or ".join(f'"{name}"' for name in names)
            raise InputError(f"{rows[0].where}: no row has the column {told}. Name another one with --{names[0]}.")
    parts = [rows[part] for part in parts_of(len(rows), workers.num_parts)]
    how = Reading(label, text, path, folder or home, most_pixels)
    return joined(workers.bring(read_in_parts(workers, parts, how)))


class Reading(NamedTuple):
    """How rows are read; as `read_samples` has it."""

    label: str
    text: str
    path: str
    folder: Path | None
    most_pixels: int


def read_in_parts(workers: Workers, parts: Sequence[Any], how: Reading) -> list[Any]:
    """Read rows that lie in parts: `Samples` of each, or what stands for them.

    Parameters
    ----------
    parts : list of lists of `Row`, or what stands for them

    Raises
    ------
    InputError : texts and pictures in one pool; what pictures need is missing.
    """
    wheres: dict[str, str] = {}
    for found in workers.bring(workers.each(_kinds, parts, shared=[how])):
        wheres = found | wheres
    if {"text", "image"} <= wheres.keys():
        one, other = wheres["text"], wheres["image"]
        raise InputError(f"{one} is a text and {other} a picture. Clean them apart: they are compared by other means.")
    kind: Literal["text", "image"] = "image" if "image" in wheres else "text"
    if kind == "image":
        for package, name in (("PIL", "pillow"), ("imagehash", "ImageHash")):
            check_installed(package, name, "curate")
        if how.folder is None:
            raise InputError("pictures need the folder that their paths start from. Give it as folder.")
    return workers.each(_samples, parts, shared=[kind, how])


def _kinds(rows: Sequence[Row], how: Reading) -> dict[str, str]:
    """Local: where the first row of each kind stands."""
    found: dict[str, str] = {}
    for row in rows:
        if kind := _kind(row, how.text, how.path):
            found.setdefault(kind, row.where)
    return found


def _samples(rows: Sequence[Row], kind: Literal["text", "image"], how: Reading) -> Samples:
    """Local: the samples of a part."""
    num = len(rows)
    labels = [_label(row.data.get(how.label)) for row in rows]
    found = Samples(
        list(rows), kind, labels, {}, [None] * num, [None] * num, [""] * num, [None] * num, {}, how.most_pixels
    )
    for i in track(range(num), "opening pictures", shown=kind == "image"):
        try:
            if labels[i] is None:
                raise Broken("no label")
            if kind == "image":
                assert how.folder is not None
                _picture(found, i, how.folder, how.path)
            else:
                _text(found, i, how.text)
        except Broken as error:
            found.refused[i] = Verdict("refused", str(error))
    return found


def joined(parts: Sequence[Samples]) -> Samples:
    """Merge: the samples of all parts.

    Raises
    ------
    InputError : none of them can be used.
    """
    first, start = parts[0], 0
    found = Samples([], first.kind, [], {}, [], [], [], [], {}, first.most_pixels)
    for part in parts:
        for name in ("rows", "labels", "digests", "keys", "texts", "files"):
            getattr(found, name).extend(getattr(part, name))
        found.refused |= {start + i: verdict for i, verdict in part.refused.items()}
        found.hashes |= {start + i: bits for i, bits in part.hashes.items()}
        start += len(part.rows)
    if not found.used:
        raise InputError(f"{found.rows[0].where}: {found.refused[0].reason}, and no other row can be used either.")
    return found


def _kind(row: Row, text: str, path: str) -> str | None:
    said = row.data.get("kind")
    if said in ("text", "image"):
        return str(said)
    return "text" if row.data.get(text) else "image" if row.data.get(path) else None


def _label(value: Any) -> str | None:
    return key_of(value) if is_label(value) else None


def _picture(found: Samples, i: int, folder: Path, column: str) -> None:
    row = found.rows[i]
    file = inside(folder, row.data.get(column))
    data = file.read_bytes()
    digest = sha256_of(data)
    if isinstance(said := row.data.get("sha256"), str) and said != digest:
        raise Broken("the file is not the one that was collected (sha256)")
    found.hashes[i] = perceptual_hash(open_picture(io.BytesIO(data), found.most_pixels))
    found.files[i], found.digests[i], found.keys[i] = file, digest, digest


def _text(found: Samples, i: int, column: str) -> None:
    value = found.rows[i].data.get(column)
    if value is not None and not isinstance(value, str):
        raise Broken("the text is no text")
    if not value or not value.strip():
        raise Broken("no text")
    odd = sum(unicodedata.category(char) in ("Cc", "Cs", "Co", "Cn") and char not in "\t\n\r" for char in value)
    if odd + value.count("\ufffd") > MOST_UNREADABLE * len(value):
        raise Broken("the text is no readable text")
    found.texts[i] = value
    found.digests[i] = sha256_of(value.encode(errors="replace"))
    found.keys[i] = normal(value)


def normal(text: str) -> str:
    """Text without differences of case, of spaces and of how characters are encoded."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def vectors_in(samples: Samples, column: str) -> dict[int, NDArray[np.float32]]:
    """Read the vectors in a column, of the rows in use that have one.

    Raises
    ------
    InputError : no such column, vectors of different lengths, or none.
    """
    from amends.curate._pools.vectors import vector_of

    rows = samples.rows
    if not any(column in row.data for row in rows):
        raise InputError(f'{rows[0].where}: no row has the column "{column}". Name another with --embedding.')
    found = {i: vector for i in samples.used if (vector := vector_of(rows[i].data.get(column))) is not None}
    if not found:
        raise InputError(f'{rows[0].where}: no row has a usable vector in "{column}". Name another column.')
    first = next(iter(found))
    if strange := next((i for i, vector in found.items() if len(vector) != len(found[first])), None):
        sizes = f"{len(found[strange])} numbers, where {rows[first].where} has {len(found[first])}"
        raise InputError(f"{rows[strange].where}: an embedding of {sizes}. Mend the column.")
    return found


def embedded(samples: Samples, some: Sequence[int], embedder: str, digests: dict[str, str]) -> NDArray[np.float32]:
    """Embed some rows by an encoder of texts or of pictures, (n, D)."""
    from amends.curate._pools.features import embeddings
    from amends.lm.load import weights_sha256

    if samples.kind == "text":
        found: NDArray[np.float32] = embeddings(samples.rows, samples.texts, [*some], embedder, None, digests)
        return found
    from amends.lm.image_encoders import embed_images, load_image_encoder

    encoder = load_image_encoder(embedder)
    digests["embedder"] = weights_sha256(encoder.model)
    say(f"embedding {len(some)} pictures")
    bar = track(some, "embedding")
    return embed_images(encoder, (open_picture(samples.files[i], samples.most_pixels) for i in bar)).numpy()


def words_in(row: Row, column: str) -> str | None:
    """Text of a value; None where it is missing or empty."""
    value = row.data.get(column)
    return None if missing(value) else str(value)


def rank_of(row: Row) -> int | None:
    """Rank of a row in the search that found it, 0 for the best hit; None where it has none."""
    said = words_in(row, "rank")
    return int(float(said)) if said and said.replace(".", "", 1).isdecimal() else None


def order_of(row: Row) -> int:
    """Rank of a row, or a number after all ranks: the best hit of a search stays before its copies."""
    rank = rank_of(row)
    return 2**62 if rank is None else rank
