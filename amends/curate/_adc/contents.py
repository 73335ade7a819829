"""What a file holds, by its bytes and not by its name: an image of a known kind, a text, or nothing that is taken."""

import re
from html import unescape
from typing import NamedTuple

from amends.curate._adc.addresses import Refused
from amends.curate._adc.sources import Kind

MOST_COLUMN_BYTES = 100_000  # of a file's text that stands in the table too
_UNSEEN = ("script", "style", "template", "noscript", "title")
_TAG = re.compile("/?[a-zA-Z][a-zA-Z0-9-]*")
_CONTROL = frozenset(map(chr, range(32))) - frozenset("\t\n\r\f")


class Contents(NamedTuple):
    """What was found."""

    kind: Kind
    suffix: str
    """Of a file name; nothing in it is from the data."""
    text: str | None
    """Of a text that is not too long for the table; of a page what a reader sees."""


def look_at(data: bytes) -> Contents:
    """Tell what a file is.

    Raises
    ------
    Refused : empty, or of no kind that is taken.
    """
    if not data:
        raise Refused("empty")
    if suffix := _image(data):
        return Contents("image", suffix, None)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if not _CONTROL.isdisjoint(text) or text.startswith("%PDF-"):
        raise Refused("neither an image of a known kind nor a text in UTF-8")
    begin = text[:1000].lstrip().lower()
    if "<svg" in begin:
        raise Refused("an SVG, which can hold scripts")
    is_page = begin.startswith(("<!doctype html", "<html"))
    if is_page:
        text = _seen(text)
    if not text.strip():
        raise Refused("empty")
    return Contents("text", ".html" if is_page else ".txt", text if len(text.encode()) <= MOST_COLUMN_BYTES else None)


def _image(data: bytes) -> str | None:
    """Suffix of an image by its first bytes, as the formats' specifications have them."""
    for begin, suffix in {
        b"\xff\xd8\xff": ".jpg",
        b"\x89PNG\r\n\x1a\n": ".png",
        b"GIF87a": ".gif",
        b"GIF89a": ".gif",
        b"II*\0": ".tif",
        b"MM\0*": ".tif",
    }.items():
        if data.startswith(begin):
            return suffix
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis"):
        return ".avif"
    return ".bmp" if data[:2] == b"BM" and data[6:10] == bytes(4) else None


def _seen(page: str) -> str:
    """Text of a page that a reader sees, a line for each piece.

    In one pass: the parser of the standard library takes half a minute for 40 kB of tags that are not closed.
    """
    first, *rest = page.split("<!--")
    first, *rest = "".join([first, *(part.partition("-->")[2] for part in rest)]).split("<")
    parts, unseen = [first], ""
    for piece in rest:
        found = _TAG.match(piece)
        name = found[0].lower() if found else ""
        after = piece.partition(">")[2] if found or piece[:1] in ("!", "?") else f"<{piece}"
        if not unseen and name in _UNSEEN:
            unseen = name
        elif not unseen or name == f"/{unseen}":
            unseen = ""
            parts.append(after)
    lines = (" ".join(unescape(part).split()) for part in parts)
    return "\n".join(line for line in lines if line)
