"""How far a job is: a bar in a terminal; elsewhere, in a log file say, a line a minute."""

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.markup import escape
from rich.progress import Progress, ProgressColumn

from amends.io.console import console, say

EVERY_S = 60.0
Item = TypeVar("Item")


def bars(*columns: ProgressColumn | str) -> Progress:
    """Make a display for progress bars; without a terminal it shows nothing, where rich would leave an empty line."""
    return Progress(*columns, console=console, transient=True, disable=not _has_screen())


def _has_screen() -> bool:
    return console.is_terminal or console.is_jupyter


@contextmanager
def progress(label: str, total: float | None) -> Iterator[Callable[[float], None]]:
    """Show how far a job is; what it gives is called with the amount that was done since."""
    if _has_screen():
        with bars() as bar:
            task = bar.add_task(escape(label), total=total)
            yield lambda amount: bar.advance(task, amount)
        return
    done, told_s = 0.0, time.monotonic()

    def advance(amount: float) -> None:
        nonlocal done, told_s
        done += amount
        if time.monotonic() - told_s >= EVERY_S:
            told_s = time.monotonic()
            say(f"{label}: {done:g}" + (f" of {total:g}" if total else ""))

    yield advance


def track(items: Iterable[Item], label: str, total: float | None = None, *, shown: bool = True) -> Iterator[Item]:
    """Give items one after the other, and show how many were done.

    Parameters
    ----------
    total : float, optional
        How many there are; default: their length, where they have one.
    shown : bool, default True
        Else nothing is shown.
    """
    if not shown:
        yield from items
        return
    with progress(label, len(items) if total is None and isinstance(items, Sized) else total) as advance:
        for item in items:
            yield item
            advance(1)
