"""Collect samples query by query, so that an interrupted run goes on where it was and fetches nothing twice.

OUT.part holds the state: what was asked for, a line for each address that was fetched, and the hits of each query that
is done. OUT.part/raw becomes OUT when all is there.
"""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amends.curate._adc.addresses import Missing, Refused, is_on_the_web, shown
from amends.curate._adc.contents import Contents, look_at
from amends.curate._adc.sources import Collector, Hit, Kind
from amends.io.atomic import new_file, write_json
from amends.io.errors import InputError
from amends.io.run import read_jsonl, write_jsonl
from amends.io.tables import read_json

if TYPE_CHECKING:  # protego, which it needs, is asked for when something is fetched
    from amends.curate._adc.fetch import Web

COLUMNS = (
    "text",
    "path",
    "uri",
    "sha256",
    "label",
    "subclass",
    "query",
    "rank",
    "source",
    "licence",
    "time",
    "kind",
    "meta",
)
"""Of samples.parquet."""
MOST_TEXT_BYTES = 2_000_000  # of a text that stands in the table, as tables are read
MOST_META_BYTES = 20_000
MOST_SHOWN = 2000  # characters of where a sample is from
NOT_ASKED = "lies on the web, and --fetch was not given"


class Part:
    """The folder of a run that is not done.

    Parameters
    ----------
    place : Path
    request : dict
        What is collected and how; a folder of another request is refused.

    Raises
    ------
    InputError : something else is there.
    """

    def __init__(self, place: Path, request: dict[str, Any]) -> None:
        self.place, self.raw = place, place / "raw"
        self._queries, self._journal = place / "queries", place / "fetched.jsonl"
        self._guard = threading.Lock()
        asked = place / "request.json"
        self.is_resumed = asked.is_file()
        if self.is_resumed:
            if changed := [name for name, value in read_json(asked).items() if request.get(name) != value]:
                raise InputError(
                    f"{place}: was begun with other settings or data ({', '.join(sorted(changed))}). Go on with those, "
                    "or remove it to begin anew."
                )
        elif place.exists():
            raise InputError(f"{place}: is there already and no unfinished collection. Move it away.")
        for folder in (self.raw / "files", self._queries):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(asked, request)
        self.fetched = self._read_journal()

    def _read_journal(self) -> dict[str, dict[str, Any]]:
        """Read what was fetched: a line that was being written is cut off, a file that is not there is forgotten."""
        if not self._journal.exists():
            return {}
        data = self._journal.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            with new_file(self._journal) as temporary:
                temporary.write_bytes(whole)
        entries = [json.loads(line) for line in whole.splitlines()]
        return {entry["address"]: entry for entry in entries if self._is_there(entry)}

    def _is_there(self, entry: dict[str, Any]) -> bool:
        return not entry["path"] or (self.raw / entry["path"]).is_file()

    def note(self, entry: dict[str, Any]) -> None:
        """Have it on the disk that an address was asked, and what came of it."""
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        with self._guard, self._journal.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
            self.fetched[entry["address"]] = entry

    def keep_file(self, data: bytes, suffix: str) -> tuple[str, str]:
        """Store a file under its digest; return its path in the folder, and the digest."""
        digest = hashlib.sha256(data).hexdigest()
        path = f"files/{digest[:2]}/{digest}{suffix}"
        with self._guard:
            if not (self.raw / path).is_file():
                with new_file(self.raw / path) as temporary:
                    temporary.write_bytes(data)
        return path, digest

    def rows(self, number: int) -> list[dict[str, Any]] | None:
        """Hits of a query that is done, or None."""
        file = self._queries / f"{number:06}.jsonl"
        rows = read_jsonl(file) if file.is_file() else None
        return rows if rows is not None and all(map(self._is_there, rows)) else None

    def keep_rows(self, number: int, rows: Sequence[dict[str, Any]]) -> None:
        """Store the hits of a query that is done."""
        write_jsonl(self._queries / f"{number:06}.jsonl", rows)

    def finish(self, out: Path) -> None:
        """Give the result its name, and remove the rest."""
        self.raw.rename(out)
        self.remove()

    def remove(self) -> None:
        """Remove the state and what was collected."""
        shutil.rmtree(self.place, ignore_errors=True)


class Gatherer:
    """Takes the hits of sources into a folder.

    Parameters
    ----------
    part : Part
    web : Web, optional
        Without it nothing is fetched.
    most_bytes : int
        Of a file.
    wanted : "text", "image" or None for both
    """

    def __init__(self, part: Part, web: "Web | None", most_bytes: int, wanted: Kind | None) -> None:
        self.part, self.web, self.most_bytes, self.wanted = part, web, most_bytes, wanted
        self._passing: dict[str, dict[str, Any]] = {}  # failures that may be gone the next time

    def collect(
        self, sources: Iterable[tuple[str, Collector]], label: str, subclass: str, query: str, most: int
    ) -> list[dict[str, Any]]:
        """Collect for one query: each source is asked for what those before it left open.

        Returns
        -------
        list of rows, one a hit, in the order of sources and ranks: the columns of a sample, its fate and the reason.
        """
        rows: list[dict[str, Any]] = []
        seen: set[str] = set()
        with ThreadPoolExecutor(self.web.manners.concurrency if self.web else 1) as pool:
            try:
                for name, source in sources:
                    left = most - sum(row["fate"] == "collected" for row in rows)
                    if left <= 0:
                        break
                    taken: list[tuple[dict[str, Any], dict[str, Any] | Future[dict[str, Any]]]] = []
                    for rank, hit in enumerate(_hits(source, name, query, left)):
                        row = dict.fromkeys(COLUMNS) | {"uri": _shown(hit.uri), "label": label, "query": query}
                        row |= {"subclass": subclass if hit.of_subclass else None, "rank": rank, "source": name}
                        row |= {"licence": _line(hit.licence), "time": _now(), "meta": _meta(hit.meta)}
                        if hit.uri and hit.uri in seen:
                            found: Any = _fate("refused", "stands twice among the hits of this query")
                        elif hit.content is None and not hit.fault and self.web and is_on_the_web(hit.uri):
                            found = pool.submit(self._fetched, hit, self.web)
                        else:
                            found = self._taken(hit)
                        seen.add(hit.uri)
                        taken.append((row, found))
                    rows += [row | (one.result() if isinstance(one, Future) else one) for row, one in taken]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                if self.web:
                    self.web.stop()
                raise
        return rows

    def _taken(self, hit: Hit) -> dict[str, Any]:
        """Take what a source holds itself."""
        try:
            if hit.fault or not hit.uri:
                raise Refused(hit.fault or "has no uri: where it is from is not known")
            if hit.content is None:
                raise Refused(NOT_ASKED if is_on_the_web(hit.uri) else "holds nothing, and its uri is no address")
            return (
                self._text(hit.content)
                if isinstance(hit.content, str)
                else self._file(_read(hit, self.most_bytes), hit)
            )
        except Refused as error:
            return _fate("refused", str(error))
        except Missing as error:
            return _fate("missing", str(error))

    def _text(self, text: str) -> dict[str, Any]:
        try:
            data = text.encode()
        except UnicodeEncodeError:
            raise Refused("holds half a character") from None
        if not text.strip():
            raise Refused("empty")
        if len(data) > MOST_TEXT_BYTES:
            raise Refused(f"a text of over {MOST_TEXT_BYTES:,} bytes")
        self._check_kind("text")
        return _fate("collected") | {"text": text, "sha256": hashlib.sha256(data).hexdigest(), "kind": "text"}

    def _file(self, data: bytes, hit: Hit, said: str = "") -> dict[str, Any]:
        found = look_at(data)
        self._check_kind(found.kind)
        for kind in (hit.kind, said.partition("/")[0]):
            if kind in ("text", "image") and kind != found.kind:
                raise Refused(f"is said to be {kind}, but is {found.kind}")
        return self._kept(data, found)

    def _check_kind(self, kind: Kind) -> None:
        if self.wanted and kind != self.wanted:
            raise Refused(f"{kind}, and {self.wanted} is wanted")

    def _kept(self, data: bytes, found: Contents) -> dict[str, Any]:
        path, digest = self.part.keep_file(data, found.suffix)
        return _fate("collected") | {"text": found.text, "path": path, "sha256": digest, "kind": found.kind}

    def _fetched(self, hit: Hit, web: "Web") -> dict[str, Any]:
        """Take what lies at an address: as it was noted, else from the web."""
        address = hashlib.sha256(f"{hit.kind} {hit.uri}".encode(errors="replace")).hexdigest()  # may hold a secret
        if noted := self.part.fetched.get(address) or self._passing.get(address):
            return {name: value for name, value in noted.items() if name != "address"}
        lasting = True
        try:
            data, said = web.get(hit.uri)
            found = self._file(data, hit, said)
        except (Refused, Missing) as error:
            fate, lasting = "refused" if isinstance(error, Refused) else "missing", error.lasting
            found = _fate(fate, str(error))
        found["time"] = _now()
        if lasting:
            self.part.note({"address": address, "path": None, **found})
        else:
            self._passing[address] = found
        return found


def _hits(source: Collector, name: str, query: str, limit: int) -> Iterable[Hit]:
    """Search, and hold a source of the user's to what it promises."""
    try:
        for hit in islice(source.search(query, limit), limit):
            if not isinstance(hit, Hit) or not isinstance(hit.uri, str):
                raise InputError(f"{name}: search gave {type(hit).__name__}. Give Hit(uri, ...) with a text as uri.")
            yield hit
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name}: search({query!r}) failed: {type(error).__name__}: {error}") from error


def _read(hit: Hit, most: int) -> bytes:
    """Bytes of a hit, which may lie under a path."""
    if isinstance(hit.content, Path):
        try:
            if not hit.content.is_file():
                raise Missing("no such file")
            with hit.content.open("rb") as file:
                data = file.read(most + 1)
        except OSError as error:
            raise Missing(f"cannot be read: {error.strerror}") from error
    elif isinstance(hit.content, bytes):
        data = hit.content
    else:
        raise Refused(f"its content is {type(hit.content).__name__}: neither text, bytes nor a path")
    if len(data) > most:
        raise Refused(f"larger than {most:,} bytes")
    return data


def _fate(fate: str, reason: str | None = None) -> dict[str, Any]:
    return {"fate": fate, "reason": reason}


def _shown(uri: str) -> str:
    return shown(uri)[:MOST_SHOWN].encode(errors="replace").decode()


def _line(text: object) -> str | None:
    return " ".join(text.split())[:MOST_SHOWN] or None if isinstance(text, str) else None


def _meta(meta: Any) -> str | None:
    """Write what a source adds as JSON; what JSON cannot hold as its text."""
    text = ""
    with suppress(TypeError, ValueError, RecursionError):
        text = json.dumps(dict(meta), default=str, ensure_ascii=True)
    return text if 2 < len(text) <= MOST_META_BYTES else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
