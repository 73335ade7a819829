"""The requests before this one: what they forgot is asked again, and the ledger goes on from them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os.path import isdir, isfile
from typing import Any, NamedTuple

from amends.io.console import say
from amends.io.errors import InputError
from amends.lm.load import Loaded
from amends.lm.pairs import Pair, Pairs
from amends.unlearn._ledger import READING, Entry, entry_of, parse, set_name
from amends.unlearn._read import about, read_data
from amends.unlearn._request import Request


class Earlier(NamedTuple):
    """What is known of the requests that a model's ledger lists."""

    requests: list[dict[str, Any]]
    """The ledger's entries, each with "left_out": why it is not asked again, or None."""
    questions: dict[str, list[Pair]]
    warnings: list[str]


def earlier_requests(ledger: Sequence[Entry], loaded: Loaded, request: Request, weights: str) -> Earlier:
    """Read what earlier requests forgot, to ask it again, and say of which that cannot be done.

    weights : str
        Digest of the model as it is, which should be what the last of them left.
    """
    found = Earlier([], {}, [])
    if ledger and ledger[-1].weights["after"] != weights:
        found.warnings.append(
            "The weights of the model are not those that its last request left, by its ledger: they were changed "
            "since then."
        )
    for number, entry in enumerate(ledger, 1):
        left_out = None if request.eval_rows else "this run is without an evaluation (--eval-rows 0)."
        if left_out is None:
            try:
                found.questions[set_name(number)] = read_earlier(entry, loaded).kept
            except InputError as error:
                left_out = str(error)
                found.warnings.append(f"earlier request {number} is not asked again: {left_out}")
        found.requests.append(asdict(entry) | {"left_out": left_out})
    for text in found.warnings:
        say(f"warning: {text}")
    return found


def read_earlier(entry: Entry, loaded: Loaded) -> Pairs:
    """Read again the pairs that an earlier request forgot.

    Raises
    ------
    InputError : they are not there any more, or others are in their place.
    """
    path, digest = entry.forget["path"], entry.forget["sha256"]
    if path is None:
        raise InputError("its data were given from Python, so they are not stored anywhere.")
    if not (isfile(path) or isdir(path)):  # nor a pipe: the ledger may come from anywhere
        raise InputError(f"{path}: no such file or folder any more.")
    options = {name: entry.forget[name] for name in READING}
    request = Request(forget=path, **options)
    pairs = read_data("forget", request, loaded)
    if about(path, pairs)["sha256"] != digest:
        raise InputError(f"{path}: other rows than those that were forgotten (SHA-256 differs).")
    return pairs


def ledger_of(record: Mapping[str, Any], after: Mapping[str, Any] | None) -> list[Entry]:
    """Put the ledger of a run's model together from the run's record and its evaluation of the model after."""
    earlier = [parse({k: v for k, v in e.items() if k != "left_out"}) for e in record["data"].get("earlier", [])]
    return [*earlier, entry_of(record, after, earlier[-1] if earlier else None)]
