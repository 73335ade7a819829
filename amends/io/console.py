"""Where people are told what is going on: standard error; of several processes on one job only the first speaks.

What a command was asked for goes to standard output.
"""

import os
import sys

from rich.console import Console

from amends.io.plain import plain

IS_FIRST_PROCESS = os.environ.get("RANK", "0") == "0"
console = Console(stderr=True, quiet=not IS_FIRST_PROCESS)


def say(text: str) -> None:
    """Tell the user one line."""
    console.print(f"amends: {plain(text)}", markup=False, highlight=False, soft_wrap=True)


def answer(text: str) -> None:
    """Print one line of a result; a character that the terminal's encoding lacks is escaped, as standard error does."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
