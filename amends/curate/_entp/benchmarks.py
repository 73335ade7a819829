"""Runs of words that must not be trained on: those of benchmarks, from files the user gives."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from amends.io.errors import InputError
from amends.io.tables import read_rows

NUM_WORDS = 13
"""Length of a run that is no coincidence (Brown et al. 2020)."""
FEWEST_WORDS = 5
"""A benchmark's text shorter than `NUM_WORDS` counts as a whole, from this many words on."""
_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """Words of a text without case, marks left out."""
    return _WORD.findall(text.casefold())


def runs(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    """Give each run of so many words, in order."""
    return (tuple(words[start : start + length]) for start in range(len(words) - length + 1))


class Benchmark(NamedTuple):
    """What stands in a benchmark."""

    places: dict[int, dict[str, str]]
    """Of each length of a run, each run and where it stands first. Texts, as a hash is another one in each process."""

    def place_of(self, text: str) -> str | None:
        """Say where the first run of words stands that a text shares with the benchmark; None if it shares none."""
        words = words_of(text)
        for length, places in self.places.items():
            for run in runs(words, length):
                if place := places.get(" ".join(run)):
                    return place
        return None


def read_benchmark(path: str | Path) -> Benchmark:
    """Read a benchmark: all texts in all columns of a table.

    Raises
    ------
    InputError : a faulty file, or no text of `FEWEST_WORDS` words in it.
    """
    places: dict[int, dict[str, str]] = {}
    for row in read_rows(path):
        for value in row.data.values():
            words = words_of(value) if isinstance(value, str) else []
            length = min(NUM_WORDS, len(words))
            if length >= FEWEST_WORDS:
                of_length = places.setdefault(length, {})
                for run in runs(words, length):
                    of_length.setdefault(" ".join(run), row.where)
    if not places:
        raise InputError(f"{path}: holds no text of {FEWEST_WORDS} words or more. Give the benchmark's questions.")
    return Benchmark(places)
