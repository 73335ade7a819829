"""What a run reads: the model, and the rows of its request."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from amends.io.atomic import sha256_json
from amends.io.errors import InputError
from amends.io.tables import read_rows, rows_of
from amends.lm.load import Loaded, load
from amends.lm.pairs import Pair, Pairs, read_pairs
from amends.lm.rows import context_limit, encode_rows, without_too_long
from amends.unlearn._request import Data, Request


class Rows(NamedTuple):
    """The rows of a request by what they are for; None where it names none."""

    forget: Pairs
    retain: Pairs | None
    holdout: Pairs | None
    forget_eval: Pairs | None

    def about(self, request: Request) -> dict[str, Any]:
        """Describe them for run.json."""
        return {
            name: about(getattr(request, name), pairs) for name, pairs in self._asdict().items() if pairs is not None
        }


def read_request(request: Request, loaded: Loaded) -> Rows:
    """Read all rows of a request.

    Raises
    ------
    InputError : rows that cannot be read or are too long, rows to measure with that are trained on.
    """
    limit = context_limit(loaded.model, request.max_length)
    given = [getattr(request, name) for name in Rows._fields]
    forget, *others = (
        None if source is None else read_data(source, request, loaded.tokenizer, limit) for source in given
    )
    assert forget is not None  # no default
    rows = Rows(forget, *others)
    encode_rows(loaded.tokenizer, [pair for pairs in rows if pairs for pair in pairs.kept], limit)
    if rows.retain:
        check_unseen(rows.retain, rows.forget.kept, "--retain")
    trained = [pair for pairs in (rows.forget, rows.retain) if pairs for pair in pairs.kept]
    for option, unseen in (("--holdout", rows.holdout), ("--forget-eval", rows.forget_eval)):
        if unseen:
            check_unseen(unseen, trained, option)
    return rows


def model_for(model: str | Path | Any, tokenizer: PreTrainedTokenizerBase | None) -> Loaded:
    """Load a model by name, or take one that is loaded already."""
    if isinstance(model, str | Path):
        loaded = load(model, trainable=True)
        return loaded if tokenizer is None else loaded._replace(tokenizer=tokenizer)
    if tokenizer is None:
        raise InputError("processing_class: pass the tokenizer along with a model that is loaded already.")
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    name = str(inner.config.name_or_path or type(inner).__name__)
    return Loaded(model, tokenizer, name, name)


def read_data(source: Data, request: Request, tokenizer: PreTrainedTokenizerBase, limit: int) -> Pairs:
    """Pairs from a file or from dictionaries; with skip_bad_rows, without those of more than `limit` tokens."""
    rows = read_rows(source) if isinstance(source, str | Path) else rows_of(source)
    pairs = read_pairs(
        rows,
        question_column=request.question_column,
        answer_column=request.answer_column,
        skip_bad_rows=request.skip_bad_rows,
        tokenizer=tokenizer,
        prefix_tokens=request.prefix_tokens,
        continuation_tokens=request.continuation_tokens,
    )
    return without_too_long(pairs, tokenizer, limit) if request.skip_bad_rows else pairs


SETS = {"retain": "retain_eval", "real_authors": "real_authors", "world_facts": "world_facts"}
"""Questions that a run asks, and the options that name them."""


def read_sets(
    request: Request, tokenizer: PreTrainedTokenizerBase | None = None, most: int | None = None
) -> dict[str, Pairs]:
    """Read the questions to ask; the columns that the request names are read if they are there, else a known shape.

    Parameters
    ----------
    tokenizer : optional
        For plain text, and to find rows that are too long.
    most : int, optional
        Tokens that the model takes.

    Raises
    ------
    InputError : rows that cannot be read, or are too long.
    """
    found = {}
    for name, option in SETS.items():
        if (source := getattr(request, option)) is not None:
            rows = list(read_rows(source) if isinstance(source, str | Path) else rows_of(source, name))
            named = request.question_column is not None and rows and request.question_column in rows[0].data
            pairs = read_pairs(
                rows,
                question_column=request.question_column if named else None,
                answer_column=request.answer_column if named else None,
                skip_bad_rows=request.skip_bad_rows,
                tokenizer=tokenizer,
                prefix_tokens=request.prefix_tokens,
                continuation_tokens=request.continuation_tokens,
            )
            if most is not None and tokenizer is not None:
                pairs = without_too_long(pairs, tokenizer, most) if request.skip_bad_rows else pairs
                encode_rows(tokenizer, pairs.kept, most)
            found[name] = pairs
    return found


def check_unseen(unseen: Pairs, trained: Sequence[Pair], option: str = "--holdout") -> None:
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
            f"{where}: the same row as {there} ({len(seen)} of {len(unseen.kept)} rows of {option} are among those "
            f"to forget or to keep). {give}"
        )


def about(source: Data | None, pairs: Pairs | None) -> dict[str, Any]:
    """Describe a data set for run.json."""
    assert pairs is not None
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
