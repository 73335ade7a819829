"""What stands in a line of the table: a method, what it is given to keep, and its settings."""

from functools import cache
from typing import Any, Literal, NamedTuple

from amends.io.errors import InputError
from amends.unlearn._method import method_names, trainer_named

Settings = Literal["searched", "published"]
RETAIN, NEIGHBOURS = "retain", "neighbours"


class Entry(NamedTuple):
    """A method, alone or with rows to keep: "flat", "flat+retain", "flat+neighbours"."""

    method: str
    keep: str | None = None

    def __str__(self) -> str:
        return f"{self.method}+{self.keep}" if self.keep else self.method


@cache
def entries() -> tuple[Entry, ...]:
    """All lines: FLAT with all kinds of rows to keep and without; the others as their source runs them."""
    with_retain = {name: trainer_named(name).keeps in ("needed", "usual") for name in method_names() if name != "flat"}
    others = [Entry(name, RETAIN if keeps else None) for name, keeps in with_retain.items()]
    flat = [Entry("flat", keep) for keep in (None, NEIGHBOURS, RETAIN)]
    return (*flat, *sorted(others, key=lambda entry: (entry.keep is not None, entry.method)))


# Rows to keep that the model writes, and the floor that goes with them: docs/unlearn/flat.md.
WITH_NEIGHBOURS = {"neighbours": 80, "floor_v_f": 0.8}

# Of the sources, for all weights: 32 rows a step. What a method's file has as its default is not repeated.
COMMON: dict[str, Any] = {"lora_rank": 0, "learning_rate": 1e-5, "epochs": 10, "batch_size": 8, "accumulation": 4}
PUBLISHED: dict[str, dict[str, Any]] = {
    "flat": {"epochs": 5},
    "undial": {"learning_rate": 1e-4},
    "altpo": {"learning_rate": 2e-5, "epochs": 2},
    "llmu": {"learning_rate": 2e-6, "batch_size": 2, "accumulation": 1, "mismatches": 5},
}


def parse(text: str) -> Entry:
    """Read "METHOD", "METHOD+retain" or "METHOD+neighbours".

    Raises
    ------
    InputError : no such method, or nothing of the kind to keep.
    """
    method, plus, keep = text.partition("+")
    if method not in {entry.method for entry in entries()}:
        raise InputError(f"--methods {text}: no such method. There are: {', '.join(map(str, entries()))}.")
    if plus and keep not in (RETAIN, NEIGHBOURS):
        raise InputError(f"--methods {text}: write {RETAIN} or {NEIGHBOURS} after the +.")
    if plus and trainer_named(method).keeps == "none":
        raise InputError(f"--methods {text}: this method takes no rows to keep. Write {method}.")
    entry = Entry(method, keep or None)
    if keep != RETAIN and Entry(method, RETAIN) in entries() and Entry(method) not in entries():
        raise InputError(f"--methods {text}: write {method}+{RETAIN}, as its source runs it.")
    return entry


def options(entry: Entry, settings: Settings) -> dict[str, Any]:
    """Give what an entry is run with, but for what is searched."""
    own = COMMON | PUBLISHED.get(entry.method, {}) if settings == "published" else {}
    return own | (WITH_NEIGHBOURS if entry.keep == NEIGHBOURS else {})
