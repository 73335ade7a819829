"""MUSE's data: what a user's copy holds, and how each question is put.

Layout of the Hub (`muse-bench/MUSE-News`, `muse-bench/MUSE-Books`): a folder for each subset with its splits as
Parquet. Layout of the authors' repository (data/bbc, data/hp, or data/news, data/books): the same folders with .json
and .txt files, in which `retain2_qa` stands for `retain_qa`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from amends.bench._files import Split, read_split, taken, text_of, told
from amends.io.options import check_names
from amends.io.rows import Row
from amends.lm.templates import plain_ids
from amends.maths.rouge import rouge_l

PARTS = ("verbmem", "knowmem", "privleak")
VERBMEM_TOKENS, KNOWMEM_TOKENS = 128, 32
NEW_TOKENS = {"verbmem": VERBMEM_TOKENS, "knowmem": KNOWMEM_TOKENS}
"""Of each part that generates."""
SHARE = 0.4
"""Of the tokens that Min-K% takes."""
STOPS = ("\n\n", "\nQuestion", "Question:")
"""An answer ends where one of these begins."""
_NAMES = {
    "retain_qa": ("retain_qa", "retain2_qa"),
    "retain_qa_icl": ("retain_qa_icl", "retain2_qa_icl"),
}


class Passage(NamedTuple):
    """A passage's beginning and how it goes on."""

    id: str
    prompt: str
    continuation: str


class Question(NamedTuple):
    """A question with the examples before it."""

    id: str
    prompt: str
    answer: str


class Text(NamedTuple):
    """A text that was, or was not, trained on."""

    id: str
    text: str


@dataclass(frozen=True)
class Muse:
    """What is asked; a part that was left out is empty."""

    verbmem: list[Passage] = field(default_factory=list)
    knowmem: dict[str, list[Question]] = field(default_factory=dict)
    """Of "forget" and "retain"."""
    privleak: dict[str, list[Text]] = field(default_factory=dict)
    """Of "forget" and "holdout"."""
    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Each split that was read, for run.json."""


def read_muse(folder: str | Path, parts: Sequence[str] = PARTS, rows: int = 100) -> Muse:
    """Read a copy of MUSE.

    Parameters
    ----------
    folder : path
        With the folders verbmem, knowmem and privleak in it, or in its folder "data".
    parts : list of str, default all
        Of `PARTS`; the files of others are not needed.
    rows : int, default 100
        Most rows of each split, evenly spread over it; of the examples all are used.

    Raises
    ------
    InputError : a part that is none, a file that is missing, a faulty row.
    """
    check_names(parts, PARTS, "--parts", "part")
    found: dict[str, dict[str, Any]] = {}

    def note(name: str, split: Split, items: list[Any]) -> list[Any]:
        found[name] = told(split, items)
        return items

    verbmem: list[Passage] = []
    if "verbmem" in parts:
        split = split_of(folder, "verbmem", "forget")
        verbmem = note("verbmem", split, taken(split, passage, rows))
    knowmem = {}
    for name in ("forget", "retain") if "knowmem" in parts else ():
        split, shots = (split_of(folder, "knowmem", f"{name}_qa{ending}") for ending in ("", "_icl"))
        before = "".join(map(example, shots.rows))
        asked = taken(split, lambda row, number, before=before: question(row, number, before), rows)  # type: ignore[misc]
        knowmem[name] = note(f"knowmem_{name}", split, asked)
    privleak = {}
    for name in ("forget", "holdout") if "privleak" in parts else ():
        split = split_of(folder, "privleak", name)
        privleak[name] = note(f"privleak_{name}", split, taken(split, lambda r, n: Text(n, text_of(r, "text")), rows))
    return Muse(verbmem, knowmem, privleak, found)


def split_of(folder: str | Path, subset: str, split: str) -> Split:
    """Read one split of a subset, by the names that the two layouts have for it."""
    otherwise = f"Put the file there, or leave the part out: --parts with others than {subset}."
    names = [f"{place}{subset}/{name}" for place in ("", "data/") for name in _NAMES.get(split, (split,))]
    return read_split(folder, names, otherwise)


def passage(row: Row, number: str) -> Passage:
    """Make a passage of a row {prompt, gt}."""
    return Passage(number, text_of(row, "prompt"), text_of(row, "gt"))


def example(row: Row) -> str:
    """Make a question that stands with its answer before the one that is asked."""
    return f"Question: {text_of(row, 'question')}\nAnswer: {text_of(row, 'answer')}\n\n"


def question(row: Row, number: str, examples: str) -> Question:
    """Make a question of a row {question, answer}; the prompt ends with a blank, as MUSE's own code has it."""
    return Question(number, f"{examples}Question: {text_of(row, 'question')}\nAnswer: ", text_of(row, "answer"))


def first_tokens(tokenizer: PreTrainedTokenizerBase, text: str, count: int) -> str:
    """Cut a text behind its first tokens: a continuation is compared with as many as are generated."""
    ids = plain_ids(tokenizer, text)
    return text if len(ids) <= count else str(tokenizer.decode(ids[:count], skip_special_tokens=True))


def until_stop(text: str) -> str:
    """Leave out what stands behind the end of an answer."""
    return text[: min((at for stop in STOPS if (at := text.find(stop)) >= 0), default=len(text))]


def rouge_f1(expected: str, said: str) -> float:
    """ROUGE-L F1, 0 to 1, with rouge-score and no stemmer, as MUSE's code has it; NaN where no word is expected.

    Words of other scripts than a-z, of which rouge-score has none, count too (`amends.maths.rouge.Words`).
    """
    score = rouge_l(said, expected, use_stemmer=False)
    return math.nan if math.isnan(score.recall) else score.f1
