"""Texts that others wrote, made safe to look at, and numbers, and which of them is better, as people read them."""

import math
import re
import unicodedata

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
JOINERS = "\u200c\u200d"  # Persian, Indic scripts and emoji need them
DIRECTIONS = {
    "higher": "higher is better",
    "lower": "lower is better",
    "half": "near 0.5 is better",
    "zero": "near 0 is better",
}
"""Which value of a measure is better."""
WITH_ARROWS = DIRECTIONS | {name: f"{DIRECTIONS[name]} {sign}" for name, sign in (("higher", "↑"), ("lower", "↓"))}


def visible(value: object, lines: bool = False) -> str:
    """Text in which nothing hides: control and formatting characters and lone surrogates become signs.

    Parameters
    ----------
    value : object
        Taken as `str`.
    lines : bool, default False
        Keep line breaks; otherwise they become signs too.
    """
    text = str(value)
    return "".join(c if c.isprintable() or c in JOINERS or (lines and c == "\n") else _sign(c) for c in text)


def _sign(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return f"\u27e8U+{code:04X}\u27e9" if unicodedata.category(character) in HIDDEN else " "  # the rest: odd spaces


def last_part(path: str) -> str:
    """Name of a file or folder without where it lies, by the separators of any system; empty if there is none."""
    return next((part for part in reversed(re.split(r"[/\\]", path)) if part), "")


def percent(share: float) -> str:
    """Share of 1 in per cent; a share that is not quite none or all is not written as if it were."""
    if 0 < share <= 0.005:  # half a per cent is rounded to none
        return "under 1 %"
    if 0.995 <= share < 1:
        return "over 99 %"
    return f"{100 * share:.0f} %"


def number(value: float) -> str:
    """Three digits that count; very small ones as a power of ten."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.1e}"
