"""Where people are told what is going on: standard error; of several processes on one job only the first speaks."""

import os

from rich.console import Console

from amends.io.plain import plain

IS_FIRST_PROCESS = os.environ.get("RANK", "0") == "0"
console = Console(stderr=True, quiet=not IS_FIRST_PROCESS)


def say(text: str) -> None:
    """Tell the user one line."""
    console.print(f"amends: {plain(text)}", markup=False, highlight=False, soft_wrap=True)
