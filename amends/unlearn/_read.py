"""What a run reads: the model, and the rows of its request."""

import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from amends.evaluation.refusals import refusals
from amends.io.atomic import sha256_json
from amends.io.errors import InputError
from amends.io.rows import Row, value_of
from amends.io.tables import read_rows, rows_of
from amends.lm.load import Loaded
from amends.lm.pairs import Pair, Pairs, read_pairs
from amends.lm.rows import context_limit, encode_rows, without_too_long
from amends.unlearn._request import Data, Request

QUESTIONS = {"retain": "retain_eval", "real_authors": "real_authors", "world_facts": "world_facts"}
"""Sets of questions that a run asks, and the options that name them."""
FORGOTTEN = "those to forget"
LIKE_FORGET = ("forget", "forget_eval", "holdout")
"""Options that name rows of one kind, in the columns that a request names; others may have a known shape instead."""


class Rows(NamedTuple):
    """The rows of a request by the option that names them; None where there are none."""

    forget: Pairs
    retain: Pairs | None = None
    holdout: Pairs | None = None
    forget_eval: Pairs | None = None
    retain_eval: Pairs | None = None
    real_authors: Pairs | None = None
    world_facts: Pairs | None = None

    def given(self) -> dict[str, Pairs]:
        """Give those that there are."""
        return {option: pairs for option, pairs in self._asdict().items() if pairs is not None}

    def about(self, request: Request) -> dict[str, Any]:
        """Describe them for run.json."""
        return {option: about(getattr(request, option), pairs) for option, pairs in self.given().items()}


def read_request(request: Request, loaded: Loaded) -> Rows:
    """Read all rows of a request.

    Raises
    ------
    InputError : rows that cannot be read or are too long, rows to measure with that are trained on, lengths of plain
        text where there is none.
    """
    rows = read_asked(request, loaded)
    forget = rows.forget.kept
    if request.retain is not None:
        retain = read_data("retain", request, loaded)
        check_unseen(retain, forget, "--retain", FORGOTTEN)
        rows = rows._replace(retain=retain)
    if rows.retain_eval:
        check_unseen(rows.retain_eval, forget, "--retain-eval", FORGOTTEN)
    trained = [*forget, *(rows.retain.kept if rows.retain else [])]
    for option, unseen in (("--holdout", rows.holdout), ("--forget-eval", rows.forget_eval)):
        if unseen:
            check_unseen(unseen, trained, option)
    check_lengths(rows.given().values(), request.prefix_tokens, request.continuation_tokens)
    return rows


def read_asked(request: Request, loaded: Loaded) -> Rows:
    """Read the rows of a request that models are asked: all but those to keep.

    Raises
    ------
    InputError : rows that cannot be read or are too long.
    """
    asked = [option for option in Rows._fields if option != "retain" and getattr(request, option) is not None]
    return Rows(**{option: read_data(option, request, loaded) for option in asked})


def read_data(option: str, request: Request, loaded: Loaded) -> Pairs:
    """Read the rows that an option of a request names; with skip_bad_rows, without those that are too long.

    Only the model's context limits the questions of `QUESTIONS`.

    Raises
    ------
    InputError : rows that cannot be read or are too long.
    """
    source: Data = getattr(request, option)
    rows: Iterable[Row] = read_rows(source) if isinstance(source, str | Path) else rows_of(source, option)
    rows, (question_column, answer_column) = columns_of(option, rows, request.question_column, request.answer_column)
    pairs = read_pairs(
        rows,
        question_column=question_column,
        answer_column=answer_column,
        skip_bad_rows=request.skip_bad_rows,
        tokenizer=loaded.tokenizer,
        prefix_tokens=request.prefix_tokens,
        continuation_tokens=request.continuation_tokens,
    )
    context, asked_only = context_limit(loaded.model, sys.maxsize), option in QUESTIONS.values()
    limit = context if asked_only else min(context, request.max_length)
    alternatives = context if request.eval_rows and option != "retain" else None
    if request.skip_bad_rows:
        return without_too_long(pairs, loaded.tokenizer, limit, alternatives=alternatives)
    encode_rows(loaded.tokenizer, pairs.kept, limit, alternatives=alternatives)
    return pairs


def columns_of(
    option: str, rows: Iterable[Row], question_column: str | None, answer_column: str | None
) -> tuple[Iterable[Row], tuple[str | None, str | None]]:
    """Choose the columns of the rows that an option names: those named by the user, or None for a known shape.

    The names are those of the rows to forget, which may be the only ones to have them: rows to keep or to ask whose
    first has not both are read by their shape.

    Returns
    -------
    The same rows, and their two columns.
    """
    named = question_column, answer_column
    if option in LIKE_FORGET or None in named:
        return rows, named
    rows = iter(rows)
    start = [row for row in (next(rows, None),) if row is not None]
    there = bool(start) and all(name in start[0].data for name in named)
    return chain(start, rows), named if there else (None, None)


def check_lengths(read: Iterable[Pairs], prefix_tokens: int, continuation_tokens: int) -> None:
    """Refuse lengths of plain text where no row is plain text.

    Raises
    ------
    InputError
    """
    if any(pair.is_text for pairs in read for pair in pairs.kept):
        return
    for name, given in (("prefix_tokens", prefix_tokens), ("continuation_tokens", continuation_tokens)):
        if given != getattr(Request, name):
            raise InputError(f"--{name.replace('_', '-')}: no row is plain text that is cut. Leave it out.")


def read_templates(source: Data | Sequence[str] | None) -> list[str]:
    """Template answers: lines of a text file, rows with an `answer` or `text` column, a list of texts, or built in.

    Raises
    ------
    InputError : a file that cannot be read, a row without such a text, something else.
    """
    if source is None:
        return refusals()
    rows: Iterable[Row]
    if isinstance(source, str | Path):
        rows = read_rows(source)
        if Path(source).suffix.lower() == ".txt":
            (row,) = rows
            return [line.strip() for line in row.data["text"].splitlines() if line.strip()]
    else:
        given: Any = source if isinstance(source, Mapping) or not isinstance(source, Iterable) else list(source)
        if isinstance(given, list) and all(isinstance(text, str) for text in given):
            return [str(text) for text in given]  # numpy's, too
        rows = rows_of(given, "templates")
    found = []
    for row in rows:
        answer = value_of(row, "answer")
        text = value_of(row, "text") if answer is None else answer
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{row.where}: a text is needed in the column answer or text.")
        found.append(text.strip())
    return found


def templates_of(given: Sequence[str] | None, title: str, are_taken: bool) -> list[str]:
    """Template answers of a trainer; built in if none are given.

    Raises
    ------
    InputError : the method takes none; none in the list, or one that is empty; a text in place of a list.
    """
    if given is not None and not are_taken:
        raise InputError(f"templates: {title} has none. Leave them out.")
    found = refusals() if given is None else list(given)
    if isinstance(given, str) or not found or not all(isinstance(text, str) and text.strip() for text in found):
        raise InputError("templates: at least one answer is needed, in a list, and none may be empty.")
    return found


def check_unseen(
    unseen: Pairs, trained: Sequence[Pair], option: str = "--holdout", those: str = "those to forget or to keep"
) -> None:
    """Refuse rows to measure with that are among those of the training.

    Raises
    ------
    InputError : names the first.
    """
    trained_where = {record_sha256(pair): pair.where for pair in trained}
    seen = [(pair.where, there) for pair in unseen.kept if (there := trained_where.get(record_sha256(pair)))]
    if seen:
        where, there = seen[0]
        give = "Give rows that no model saw." if option == "--holdout" else "Give other rows."
        raise InputError(
            f"{where}: the same row as {there} ({len(seen)} of {len(unseen.kept)} rows of {option} are among {those}). "
            f"{give}"
        )


def about(source: Data | None, pairs: Pairs) -> dict[str, Any]:
    """Describe a data set for run.json."""
    return {
        "path": str(source) if isinstance(source, str | Path) else None,
        "rows": pairs.num_rows,
        "kept": len(pairs.kept),
        "dropped": [row._asdict() for row in pairs.dropped],
        "sha256": sha256_json([record_sha256(p) for p in pairs.kept]),
    }


def record_sha256(pair: Any) -> str:
    """Digest of one record: its prompt and answer, not its place."""
    return sha256_json({"prompt": pair.prompt, "answer": pair.answer})


def as_pairs(dataset: Any, tokenizer: PreTrainedTokenizerBase) -> list[Pair]:
    """Pairs from a list of pairs, a list of dictionaries or a `datasets.Dataset`."""
    if isinstance(dataset, Sequence) and dataset and isinstance(dataset[0], Pair):
        return list(dataset)
    found = read_pairs(rows_of(dataset), tokenizer=tokenizer)
    if found.dropped:
        where, reason = found.dropped[0]
        warnings.warn(f"left out rows: {len(found.dropped)}, the first {where}: {reason}", stacklevel=3)
    return found.kept
