"""Where samples come from: a folder, a list, a corpus that is ranked, a search service; or any object with `search`."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from amends.curate._adc.design import Design
from amends.curate._pools.scale import Here, Workers, parts_of
from amends.io.atomic import sha256_file, sha256_json
from amends.io.console import say
from amends.io.errors import InputError
from amends.io.rows import Row
from amends.io.tables import read_rows
from amends.maths.neighbors import TILE

Kind = Literal["text", "image"]
KINDS = ("folder", "list", "corpus", "service")


class Hit(NamedTuple):
    """What a source has for a query."""

    uri: str
    """Where it is from: an address, a path, a row of a file."""
    content: bytes | str | Path | None = None
    """A text stands in the table; bytes, and what lies under a path, become a file; None is fetched from `uri`."""
    kind: Kind | None = None
    """What it must be, where the source knows; contents are looked at all the same."""
    licence: str | None = None
    meta: Mapping[str, Any] = {}
    """Anything else that JSON can hold."""
    of_subclass: bool = True
    """False: it shows the class of the query, and perhaps another subclass of it."""
    fault: str = ""
    """Why the source itself refuses it; it is counted with this reason."""


class Collector(Protocol):
    """Something that can be searched. It may have a `name`, and an `identity` that changes when its answers may."""

    def search(self, query: str, limit: int) -> Iterable[Hit]:
        """Give hits for a query, best first, at most `limit`."""
        ...


def plain_name(name: str) -> str:
    """Give a name as names are compared: without case, and with spaces for dashes and underscores."""
    return " ".join(re.split(r"[\s_-]+", name.casefold().strip()))


class _Names:
    """The classes and subclasses of a design, by the names that folders and lists give them."""

    def __init__(self, design: Design) -> None:
        self.queries = {plain_name(sub.query): sub.query for _, sub in design.queries()}
        self.classes: dict[str, set[str]] = defaultdict(set)
        self.subs: dict[str, set[tuple[str, str]]] = defaultdict(set)
        self.alone: dict[str, str] = {}
        for one in design.classes:
            self.classes[plain_name(one.name)].add(one.name)
            if len(one.subclasses) == 1 and plain_name(one.subclasses[0].name) == plain_name(one.name):
                self.alone[one.name] = one.subclasses[0].query
            for sub in one.subclasses:
                for name in {plain_name(sub.name), plain_name(sub.query)}:
                    self.subs[name].add((one.name, sub.query))

    def find(self, names: Iterable[str]) -> tuple[str, bool] | None:
        """Query that some names mean together, and True; their class and False; None where they do not tell."""
        known = [plain_name(name) for name in names]
        classes = set().union(*(self.classes.get(name, set()) for name in known))
        subs = set().union(*(self.subs.get(name, set()) for name in known))
        subs = {found for found in subs if not classes or found[0] in classes}
        if len(subs) == 1:
            return next(iter(subs))[1], True
        if len(classes) != 1 or subs:
            return None
        name = next(iter(classes))
        return (self.alone[name], True) if name in self.alone else (name, False)


class _Sorted:
    """Hits that were sorted under their queries when the source was opened.

    One that is only known to be of a class goes to that of the class's queries which has the fewest.
    """

    def __init__(self, name: str, design: Design) -> None:
        self.name, self.identity = name, ""
        self.hits: dict[str, list[Hit]] = {sub.query: [] for _, sub in design.queries()}
        self._queries = {one.name: [sub.query for sub in one.subclasses] for one in design.classes}
        self._of_class: dict[str, list[Hit]] = {one.name: [] for one in design.classes}
        self.warnings: list[str] = []

    def search(self, query: str, limit: int) -> Iterator[Hit]:
        """Give the hits of a query in their order."""
        yield from self.hits.get(query, [])[:limit]

    def sort(self, hit: Hit, place: tuple[str, bool]) -> None:
        """Put a hit where `_Names.find` says."""
        name, of_subclass = place
        (self.hits if of_subclass else self._of_class)[name].append(hit._replace(of_subclass=of_subclass))

    def leave(self, what: str, strange: list[str]) -> None:
        """Share out what is of a class; say what belongs to no query, or refuse a source of which nothing does."""
        for name, hits in self._of_class.items():
            for hit in hits:
                self.hits[min(self._queries[name], key=lambda query: len(self.hits[query]))].append(hit)
        if not any(self.hits.values()):
            hint = f" (such as {strange[0]})" if strange else ""
            raise InputError(
                f"{self.name}: nothing in it is named like a class, subclass or query of the design{hint}. Name it so."
            )
        if strange:
            self.warnings.append(
                f"{self.name}: {len(strange)} {what} have no class of the design, such as {strange[0]}."
            )


class FolderCollector(_Sorted):
    """Files in folders that are named after classes, subclasses or queries.

    Files come in the order of their names, in which 2 stands before 10; hidden ones are left out. Links are followed to
    files inside the folder, and refused where they lead out of it.
    """

    def __init__(self, folder: Path, design: Design, name: str) -> None:
        super().__init__(name, design)
        if not folder.is_dir():
            raise InputError(f"{name}: no such folder. Give one with a folder for each class.")
        names, strange = _Names(design), []
        listing = []
        for path in sorted(_files(folder), key=lambda path: _in_order(path.relative_to(folder).as_posix())):
            inner = path.relative_to(folder)
            found = names.find(inner.parent.parts)
            if found is None:
                strange.append(inner.as_posix())
                continue
            fault = ""
            if path.is_dir():
                fault = "a link to a folder, which is not followed"
            elif path.is_symlink() and not _is_inside(path, folder):
                fault = "a link that leaves the folder"
            self.sort(Hit(inner.as_posix(), None if fault else path, fault=fault), found)
            listing.append([os.fsencode(inner).hex(), fault, 0 if fault else _size(path)])
        self.leave("files", strange)
        self.identity = sha256_json(listing)


def _files(folder: Path) -> Iterator[Path]:
    """All files, and links to folders."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        yield from (Path(place) / name for name in (*files, *links) if not name.startswith("."))


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a path, after all links, lies in a folder; one that leads nowhere does not."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, links in a circle
        return False


def _in_order(name: str) -> list[tuple[int, str]]:
    """Numbers in a name by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


class ListCollector(_Sorted):
    """Rows of a table with an address, a path or a text, and the query, class or subclass that each is for.

    Paths are relative to the folder of the table, and may not leave it.
    """

    def __init__(self, file: Path, design: Design, name: str) -> None:
        super().__init__(name, design)
        names, strange = _Names(design), []
        for row in read_rows(file):
            said = [str(row.data[column]) for column in ("query",) if row.data.get(column)]
            found = (
                (names.queries[plain_name(said[0])], True) if said and plain_name(said[0]) in names.queries else None
            )
            if not said:
                found = names.find(str(row.data[column]) for column in ("label", "subclass") if row.data.get(column))
            if found is None:
                strange.append(row.where)
            else:
                self.sort(_listed(row, file.parent), found)
        self.leave("rows", strange)
        self.identity = sha256_file(file)


def _listed(row: Row, folder: Path) -> Hit:
    """Take a row of a list: its text, else its file, else its address."""
    place = next((str(row.data[column]) for column in ("uri", "url", "path") if row.data.get(column)), "")
    licence = _first_text(row.data, ("licence", "license"))
    if isinstance(text := row.data.get("text"), str) and text.strip():
        return Hit(place or row.where, text, "text", licence)
    if not place:
        return Hit(row.where, licence=licence, fault="no address, path or text")
    if "://" in place:
        return Hit(place, licence=licence)
    path = folder / place
    if not _is_inside(path, folder):
        return Hit(place, licence=licence, fault="a path that leaves the list's folder")
    return Hit(place, path, licence=licence)


def _first_text(data: Mapping[str, Any], columns: Iterable[str]) -> str | None:
    return next(
        (data[name].strip() for name in columns if isinstance(data.get(name), str) and data[name].strip()), None
    )


class CorpusCollector:
    """Texts without labels, ranked by the cosine of their embedding with the query's: a search engine without network.

    A text may be a hit of several queries. A part of the texts gives its best (`_pools.scale`), and of all of
    these the best are taken.
    """

    def __init__(
        self, file: Path, embedder: str, name: str, text: str = "text", workers: Workers | None = None
    ) -> None:
        from amends.lm.encoders import load_encoder

        self.name, self.identity, self.embedder = name, sha256_file(file), embedder
        self.rows = [row for row in read_rows(file) if isinstance(row.data.get(text), str) and row.data[text].strip()]
        if not self.rows:
            raise InputError(f'{name}: no row has a text in the column "{text}". Name another one with --text.')
        self.text, self._encoder = text, load_encoder(embedder, "embedding")
        self._workers = workers or Here()
        self._corpus: Any = None

    def search(self, query: str, limit: int) -> Iterator[Hit]:
        """Give the texts that are most like the query; of equal ones the first."""
        if self._corpus is None:
            say(f"embedding {len(self.rows)} texts of {self.name}")
            self._corpus = self._workers.share(self._embed([row.data[self.text] for row in self.rows]))
        parts = parts_of(len(self.rows), self._workers.num_parts)
        shared = [self._corpus, self._embed([query])[0], limit]
        for i, likeness in best_of(self._workers.bring(self._workers.each(likest, parts, shared=shared)), limit):
            row = self.rows[i]
            uri = _first_text(row.data, ("uri", "url")) or row.where
            licence = _first_text(row.data, ("licence", "license"))
            yield Hit(uri, row.data[self.text], "text", licence, {"cosine": round(likeness, 4)})

    def _embed(self, texts: list[str]) -> np.ndarray:
        """Embed texts (N, D); each once and those of like length together."""
        from amends.lm.encoders import embed

        order = sorted(set(texts), key=lambda text: (len(text), text))
        place = {text: number for number, text in enumerate(order)}
        found_UD: np.ndarray = embed(self._encoder, order).numpy()
        return found_UD[[place[text] for text in texts]]


def likest(rows: slice, corpus_ND: np.ndarray, query_D: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Local: the numbers of the texts of a part that are most like a query, and their cosines; of equal ones the first.

    Tile by tile, so that the same bits come out of any number of parts.
    """
    tiles = [slice(start, min(start + TILE, rows.stop)) for start in range(rows.start, rows.stop, TILE)]
    likeness_M = np.concatenate([corpus_ND[tile] @ query_D for tile in tiles])
    best = np.argsort(-likeness_M, kind="stable")[:limit]
    return rows.start + best, likeness_M[best]


def best_of(parts: Sequence[tuple[np.ndarray, np.ndarray]], limit: int) -> list[tuple[int, float]]:
    """Merge: the best of all parts, with their cosines."""
    number_P, likeness_P = (np.concatenate([part[i] for part in parts]) for i in range(2))
    best = np.argsort(-likeness_P, kind="stable")[:limit]
    return list(zip(number_P[best].tolist(), likeness_P[best].tolist(), strict=True))
