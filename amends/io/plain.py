"""Text that others wrote, made safe for a terminal."""

import re

MOST_CHARACTERS = 2000
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?")


def plain(text: str) -> str:
    """Make text safe to show: one line without escape sequences, control characters or changes of direction.

    Of a text that is too long for a message, begin and end are kept.
    """
    line = " ".join("".join(char if char.isprintable() else " " for char in _ESCAPES.sub("", text)).split())
    half = MOST_CHARACTERS // 2
    return line if len(line) <= MOST_CHARACTERS else f"{line[:half]} [...] {line[-half:]}"
