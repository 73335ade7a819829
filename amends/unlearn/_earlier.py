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
from amends.unlearn._read import Rows, about, read_data, record_sha256
from amends.unlearn._request import Request


class Earlier(NamedTuple):
    """What is known of the requests that a model's ledger lists."""

    requests: list[dict[str, Any]]
    """The ledger's entries, each with "left_out": why it is not asked again, or None."""
    questions: dict[str, list[Pair]]
    """What is asked of them again."""
    forgotten: dict[str, str]
    """Digest of each of their rows that could be read, and what it is: "row file:line of earlier request 1"."""
    warnings: list[str]


def earlier_requests(ledger: Sequence[Entry], loaded: Loaded, request: Request, weights: str) -> Earlier:
    """Read what earlier requests forgot, to ask it again, and say of which that cannot be done.

    weights : str
        Digest of the model as it is, which should be what the last of them left.
    """
    found = Earlier([], {}, {}, [])
    if ledger and ledger[-1].weights["after"] != weights:
        found.warnings.append(
            "The weights of the model are not those that its last request left, by its ledger: they were changed "
            "since then."
        )
    for number, entry in enumerate(ledger, 1):
        left_out = None if request.eval_rows else "this run is without an evaluation (--eval-rows 0)."
        try:
            pairs = read_earlier(entry, loaded).kept
        except InputError as error:
            if left_out is None:
                left_out = str(error)
                found.warnings.append(f"earlier request {number} is not asked again: {left_out}")
        else:
            found.forgotten.update({record_sha256(p): f"{p.where} of earlier request {number}" for p in pairs})
            if left_out is None:
                found.questions[set_name(number)] = pairs
        found.requests.append(asdict(entry) | {"left_out": left_out})
    for text in found.warnings:
        say(f"warning: {text}")
    return found


def check_not_forgotten(rows: Rows, forgotten: Mapping[str, str]) -> None:
    """Refuse rows to keep, to be answered as before or never seen that the model was asked to forget.

    Raises
    ------
    InputError : names the first.
    """
    for option, why in WHY_NOT_FORGOTTEN.items():
        pairs = getattr(rows, option)
        there = [(p.where, forgotten.get(record_sha256(p))) for p in (pairs.kept if pairs else [])]
        same = [(where, earlier) for where, earlier in there if earlier]
        if same:
            raise InputError(
                f"{same[0][0]}: the same row as {same[0][1]} ({len(same)} of {len(there)} rows of "
                f"--{option.replace('_', '-')} are such): {why} Leave them out."
            )


WHY_NOT_FORGOTTEN = {
    "retain": "the training would teach the model again what it was to forget.",
    "retain_eval": "the model is not to answer them as before.",
    "holdout": "the model saw them.",
}


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
