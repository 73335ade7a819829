"""Before the first cell: every row that will be read fits the model, and nothing to forget is among what is kept."""

import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from amends.bench._world import Rows, Split, World, texts_of
from amends.evaluation.evaluate import spread
from amends.io.errors import InputError
from amends.io.rows import Row
from amends.lm.config import read_config
from amends.lm.find import base_of, first_line, resolve
from amends.lm.pairs import read_pairs
from amends.lm.quiet import quiet
from amends.lm.rows import context_limit, encode_rows
from amends.unlearn._request import Request
from amends.verbs._advice import ADVICE, without


class Weightless(NamedTuple):
    """What a model is asked with, without its weights."""

    config: Any
    tokenizer: PreTrainedTokenizerBase


def read_weightless(source: str) -> Weightless:
    """Read configuration and tokenizer of a model, as `amends.lm.load` would.

    Raises
    ------
    InputError : as `read_config`; the tokenizer cannot be read.
    """
    config = read_config(source)
    path = resolve(source)
    if path is not None and (path / "adapter_config.json").exists():
        own = (path / "tokenizer_config.json").exists()
        return Weightless(config, _tokenizer(source, str(path))) if own else read_weightless(base_of(source, path))
    where = {"gguf_file": path.name} if path is not None and not path.is_dir() else {}
    place = source if path is None else str(path.parent if where else path)
    return Weightless(config, _tokenizer(source, place, **where))


def _tokenizer(source: str, place: str, **where: str) -> PreTrainedTokenizerBase:
    try:
        with quiet():
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **where)
    except MemoryError:
        raise
    except Exception as error:
        raise InputError(f"{source}: its tokenizer could not be read: {first_line(error)}") from error
    return found


def check_apart(world: World, split: Split) -> None:
    """Check that no row to forget is among those that its reference is taught, a method keeps or is asked to keep.

    Raises
    ------
    InputError : names the first.
    """
    forget = {texts_of(row) for row in split.forget}
    kept = {texts_of(row) for rows in (split.retain, split.keep, split.asked) for row in rows}
    if shared := [row for row in split.forget if texts_of(row) in kept]:
        places = " and ".join(world.places.get(texts_of(shared[0]), [])[:3])
        raise InputError(
            f"{places}: the same question and answer are to be forgotten and to be kept in {split.name} "
            f"({len(forget & kept)} of {len(forget)} rows to forget). Leave them in one of the two."
        )


def check_rows(
    world: World, splits: Iterable[Split], model: str, *, taught: bool, retain: bool, searched: bool, eval_rows: int
) -> None:
    """Check that the rows of some splits can be read and fit a model, which is not loaded for it.

    Parameters
    ----------
    taught : bool
        A model is still to be taught them.
    retain, searched : bool
        A method trains on rows to keep; settings are searched on other rows to forget.
    eval_rows : int
        Most questions to keep that are asked.

    Raises
    ------
    InputError : a row that is too long or faulty, with its place.
    """
    found = read_weightless(model)
    context = context_limit(found, sys.maxsize)
    trained = min(context, Request.max_length)
    fit: set[tuple[str, str, int, int | None]] = set()

    def check(rows: Rows, limit: int, alternatives: int | None) -> None:
        read = read_pairs([Row(row, world.places[texts_of(row)][0]) for row in rows], tokenizer=found.tokenizer)
        new = [pair for pair in read.kept if (pair.question, pair.answer, limit, alternatives) not in fit]
        try:
            encode_rows(found.tokenizer, new, limit, alternatives=alternatives)
        except InputError as error:
            told = "--max-length and the model's context"
            if limit < context:  # which is not an option here
                raise InputError(str(error).replace(told, "most of a row that is trained on here")) from error
            raise
        fit.update((pair.question, pair.answer, limit, alternatives) for pair in new)

    with without(*ADVICE):
        if taught:  # references are taught some of these
            check([{name: row[name] for name in ("question", "answer")} for row in world.taught], context, None)
        for split in splits:
            check(split.forget, trained, context)
            if retain:
                check(split.keep, trained, None)
            if searched:
                check(split.tuning().forget, trained, None)
            check(spread(split.asked, eval_rows), context, context)
        for rows in world.questions.values():
            check(rows, context, context)
