"""Records of an audit: read from several files as one set, and written in a shape that is read as the same record."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from amends.io.console import say
from amends.io.errors import InputError
from amends.io.rows import Row
from amends.io.tables import read_rows, rows_of
from amends.lm.pairs import Dropped, Pair, Pairs, read_pairs
from amends.lm.rows import encode_rows, without_too_long
from amends.unlearn._read import about
from amends.unlearn._request import Data
from amends.verbs._files import copies_of, text_of, without_repeats

ALSO = "is also a record,"


@dataclass(frozen=True)
class Reading:
    """How records are read; the options of the same names."""

    question_column: str | None = None
    answer_column: str | None = None
    skip_bad_rows: bool = False
    prefix_tokens: int = 100
    continuation_tokens: int = 100


class Records(NamedTuple):
    """What was read."""

    pairs: Pairs
    copies: list[int]
    """How often each kept record stands in the files, itself among them."""
    told: dict[str, Any]
    """As run.json describes each file."""


NOTHING = Records(Pairs([]), [], {})


def read(
    source: Data | Sequence[str | Path],
    name: str,
    how: Reading,
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    known: Records | None = None,
) -> Records:
    """Read records, without those that are also in `known`, and describe each file for run.json.

    Files may share ids: of those that do, an id is then FILE:id, so that no two records have the same.
    """
    sources: Any = [source] if isinstance(source, str | Path) else source
    files = [str(s) for s in sources if isinstance(s, str | Path)] if isinstance(sources, list | tuple) else []
    if files and len(files) < len(sources):
        raise InputError(f"{name}: files and rows in one list. Give files, or rows.")
    for file in (file for i, file in enumerate(files) if file in files[:i]):
        say(f"left out {file}: given twice")
    each = {}
    tables: dict[str, Iterable[Row]] = {file: read_rows(file) for file in files} or {name: rows_of(sources, name)}
    for file, rows in tables.items():
        pairs = read_pairs(rows, tokenizer=tokenizer, **vars(how))
        each[file] = without_too_long(pairs, tokenizer, limit) if how.skip_bad_rows else pairs
        encode_rows(tokenizer, each[file].kept, limit)  # stop here at what is too long
    found = without_repeats(each)
    if known is not None:
        there = {text_of(pair): pair.where for pair in known.pairs.kept}
        found = {file: _without(pairs, there) for file, pairs in found.items()}
        if not any(pairs.kept for pairs in found.values()):
            first = next(row for pairs in found.values() for row in pairs.dropped if ALSO in row.reason)
            raise InputError(f"--holdout: all its rows are among the data ({first.where}). Give rows never seen.")
    shared = Counter(pair.id for pairs in found.values() for pair in pairs.kept)
    kept = [
        replace(pair, id=f"{file}:{pair.id}") if shared[pair.id] > 1 else pair
        for file, pairs in found.items()
        for pair in pairs.kept
    ]
    copies = copies_of(each)
    return Records(
        Pairs(kept, [row for pairs in found.values() for row in pairs.dropped]),
        [copies[text_of(pair)] for pair in kept],
        {file: about(file if files else None, pairs) for file, pairs in found.items()},
    )


def _without(pairs: Pairs, there: Mapping[tuple[str, str], str]) -> Pairs:
    dropped = [Dropped(p.where, f"{ALSO} {there[text_of(p)]}") for p in pairs.kept if text_of(p) in there]
    return Pairs([p for p in pairs.kept if text_of(p) not in there], [*pairs.dropped, *dropped])


def row_of(pair: Pair) -> dict[str, Any]:
    """Write a record in a shape that is read as the same record."""
    if isinstance(pair.prompt, str):
        row: dict[str, Any] = {"text": f"{pair.prompt}{pair.answer}"}
    elif len(pair.prompt) == 1 and pair.prompt[0]["role"] == "user":
        row = {"question": pair.question, "answer": pair.answer}
    else:
        row = {"messages": [*pair.prompt, {"role": "assistant", "content": pair.answer}]}
    alternatives = {
        "paraphrased_answer": pair.paraphrase,
        "perturbed_answer": list(pair.wrong),
        "right_answer": pair.right,
    }
    return {"id": pair.id} | row | {name: value for name, value in alternatives.items() if value}
