"""A search service that the user describes in a file: how it is asked, and where its answer has the hits."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import yaml

from amends.curate._adc.addresses import Missing, Refused
from amends.curate._adc.fetch import MOVED, Web
from amends.curate._adc.sources import Hit
from amends.io.atomic import sha256_file
from amends.io.errors import InputError

MOST_CONFIG_BYTES = 100_000
MOST_ANSWER_BYTES = 20_000_000
MOST_PAGES = 100
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Service:
    """What the file of a service says. A place in its answer is written with dots: data.items."""

    address: str
    """With {query} and {limit}; with {offset} it is asked page by page; with {key} if the key stands there."""
    results: str = ""
    """Where the list of hits is; empty if the answer is the list."""
    uri: str = "url"
    """Where a hit has its address."""
    text: str = ""
    """Where it has its text, if the text itself is wanted and not what lies under the address."""
    licence: str = ""
    """Where it has its licence."""
    key: str = ""
    """Name of the environment variable with the key; the key itself never stands in the file."""
    headers: dict[str, str] = field(default_factory=dict)
    """Sent with the question, with {key} in it if the key goes there."""


def read_service(path: Path) -> Service:
    """Read the file of a service.

    Raises
    ------
    InputError : unreadable, not YAML, an unknown line, an address without {query}, a key without its variable.
    """
    try:
        if path.stat().st_size > MOST_CONFIG_BYTES:
            raise InputError(f"{path}: larger than {MOST_CONFIG_BYTES} bytes. Give the file that describes a service.")
        data = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_LOADER)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as YAML: {getattr(error, 'strerror', None) or error}.") from error
    known = Service.__dataclass_fields__
    if not isinstance(data, dict) or "address" not in data:
        raise InputError(f"{path}: expected lines such as 'address: https://...'. Known: {', '.join(known)}.")
    if strange := [name for name in data if name not in known]:
        raise InputError(f"{path}: there is no line {str(strange[0])!r}. Known: {', '.join(known)}.")
    for name, value in data.items():
        texts = [*value, *value.values()] if name == "headers" and isinstance(value, dict) else [value]
        if not all(isinstance(text, str) for text in texts) or (name == "headers") != isinstance(value, dict):
            raise InputError(f"{path}: {name}: expected {'name: text lines' if name == 'headers' else 'a text'}.")
    service = Service(**data)
    if not all(text.isascii() and text.isprintable() for pair in service.headers.items() for text in pair):
        raise InputError(f"{path}: headers: only printable ASCII characters can be sent.")
    if "{query}" not in service.address:
        raise InputError(f"{path}: address: {{query}} must stand where the query goes.")
    if any("{key}" in text for text in (service.address, *service.headers.values())) != bool(service.key):
        raise InputError(
            f"{path}: key names an environment variable, and {{key}} stands where its value goes: give both."
        )
    return service


class ServiceCollector:
    """Hits of a search service, in its order."""

    def __init__(self, file: Path, web: Web, name: str) -> None:
        self.name, self.identity, self.web, self.service = name, sha256_file(file), web, read_service(file)
        self._key = os.environ.get(self.service.key, "").strip() if self.service.key else ""
        if self.service.key and not (self._key and self._key.isascii() and self._key.isprintable()):
            raise InputError(f"{file}: the environment variable {self.service.key} holds no key. Set it.")
        if self._key and not (self.service.address.startswith("https://") or _is_here(self.service.address)):
            raise InputError(f"{file}: the key would cross the network unencrypted. Write https in the address.")

    def search(self, query: str, limit: int) -> Iterator[Hit]:
        """Ask, and where the address has {offset}, ask for more until there is no more."""
        given = 0
        for _ in range(MOST_PAGES):
            hits = self._page(query, limit - given, given)
            yield from hits[: limit - given]
            given += len(hits)
            if not hits or given >= limit or "{offset}" not in self.service.address:
                return

    def _page(self, query: str, limit: int, offset: int) -> list[Hit]:
        values = {"query": query, "limit": str(limit), "offset": str(offset), "key": self._key}
        address = _filled(self.service.address, {name: quote(value, safe="") for name, value in values.items()})
        headers = {name: _filled(text, {"key": self._key}) for name, text in self.service.headers.items()}
        try:
            reply = self.web.ask(address, {"Accept": "application/json", **headers}, MOST_ANSWER_BYTES)
        except (Missing, Refused) as error:  # their texts hold no address, and so no key
            raise InputError(f"{self.name}: {error}. The same command goes on from here.") from None
        if reply.status != 200:
            more = " It leads elsewhere: write the new address." if reply.status in MOVED else ""
            raise InputError(f"{self.name}: answered {reply.status}. Look at its address and key.{more}")
        try:
            found = _at(json.loads(reply.data), self.service.results)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, list):
            raise InputError(
                f'{self.name}: its answer has no list at "{self.service.results}". Say under results where it is.'
            )
        return [self._hit(entry, f"{self.name}: hit {offset + number}") for number, entry in enumerate(found)]

    def _hit(self, entry: Any, where: str) -> Hit:
        uri, text, licence = (
            value.strip() if path and isinstance(value := _at(entry, path), str) and value.strip() else None
            for path in (self.service.uri, self.service.text, self.service.licence)
        )
        if self.service.text:
            return Hit(uri or where, text, "text", licence, fault="" if text else "no text in the answer")
        return Hit(uri or where, licence=licence, fault="" if uri and "://" in uri else "no address in the answer")


def _filled(template: str, values: dict[str, str]) -> str:
    """Put values for {names} in one pass: a query that holds "{key}" stays what it is."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), template)


def _is_here(address: str) -> bool:
    return httpx2.URL(address).host in ("localhost", "127.0.0.1", "::1")


def _at(value: Any, path: str) -> Any:
    """Follow names and numbers with dots between them; None where they lead nowhere."""
    for name in path.split(".") if path else ():
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value
