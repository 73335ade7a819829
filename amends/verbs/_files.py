"""Rows of several files as one set of data: what `teach` and `audit` share."""

from collections import Counter
from collections.abc import Mapping

from amends.lm.pairs import SAME, Dropped, Pair, Pairs


def text_of(pair: Pair) -> tuple[str, str]:
    """Give what makes two pairs the same."""
    return repr(pair.prompt), pair.answer


def place_of(pair: Pair) -> str:
    """Name a pair as what was left out is named: by its row, or as a window of one."""
    return pair.id if pair.is_text else pair.where


def without_repeats(each: Mapping[str, Pairs]) -> dict[str, Pairs]:
    """Leave out of each file the pairs that a file before it has already; files may share ids."""
    found: dict[str, Pairs] = {}
    places: dict[tuple[str, str], str] = {}
    for file, pairs in each.items():
        kept, dropped = [], list(pairs.dropped)
        for pair in pairs.kept:
            if text_of(pair) in places:
                dropped.append(Dropped(place_of(pair), f"{SAME} {places[text_of(pair)]}"))
            else:
                places[text_of(pair)] = place_of(pair)
                kept.append(pair)
        found[file] = Pairs(kept, dropped)
    return found


def copies_of(each: Mapping[str, Pairs]) -> Counter[tuple[str, str]]:
    """Count how often each pair stands in the files, before `without_repeats`."""
    found: Counter[tuple[str, str]] = Counter()
    for pairs in each.values():
        again = Counter(row.reason.removeprefix(f"{SAME} ") for row in pairs.dropped if row.reason.startswith(SAME))
        for pair in pairs.kept:
            found[text_of(pair)] += 1 + again[place_of(pair)]
    return found
