"""Rules that what a model wrote must keep, and what it is told if it does not.

A list of rules, and a switch from the first one broken to a template: that is what the public reviews of ENTP (arXiv
2510.23160) say of its checks. Which rules, hard and soft, their thresholds and the templates are [design], choices of
this tool.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from amends.curate._entp.benchmarks import Benchmark, runs, words_of
from amends.curate._entp.purge import Sample
from amends.curate._entp.terms import Term, frequencies, too_few, vectorizer_of
from amends.curate._pools.scale import Here, Workers, merged
from amends.maths import rouge

Part = Literal["instruction", "response"]
Loss = dict[str, list[str]]
"""Rules broken, the gravest first, each with what it is about."""
LEAST_WORDS = {"instruction": 3, "response": 2}
LEAK_WORDS = 8
COPIED = 0.9
"""ROUGE-L F1 to one source from which on a text is a copy of it."""
ALL_WORDS = {"token_pattern": r"(?u)\w+"}
TWIN = 0.9
"""Cosine of words (TF-IDF) from which on two instructions are the same."""
MOST_TOLD = 20
"""Of what is told of one rule."""


class Rule(NamedTuple):
    """Something that must not be."""

    hard: bool
    """What breaks it is not accepted."""
    repair: str
    """What the model is told; where it is empty there is nothing to repair."""


RULES = {
    "no_answer": Rule(True, ""),
    "contaminated": Rule(True, ""),
    "format": Rule(True, "It was not the one JSON object that was asked for, or had no more than a word or two."),
    "refusal": Rule(True, "It refused or excused itself. Write the text itself."),
    "language": Rule(True, "It was in another script than the samples. Write in their language."),
    "truncated": Rule(True, "It broke off. Write it whole, and shorter if need be."),
    "missing": Rule(True, 'It lost what "problems" lists. Work each of these terms in where it belongs.'),
    "leak": Rule(True, 'It gave away a part of the answer, quoted in "problems". Ask for it without saying it.'),
    "copied": Rule(True, "It was a copy of one sample. Bring in the others too."),
    "duplicate": Rule(True, 'It was the one that "problems" quotes. Ask for what only these samples teach.'),
    "unanswered": Rule(False, 'It left the parts of the instruction open that "problems" quotes. Answer them too.'),
    "long": Rule(False, "It was longer than the samples together. Say each thing once."),
}
"""In the order in which they are looked at: the first one broken chooses what the model is told."""

_REFUSAL = re.compile(
    r"\W*(?:sorry\b|unfortunately,? i\b|as an? (?:ai|large|language)\b"
    r"|(?:i['\u2019]?m|i am) (?:so |very |really )?(?:sorry|unable|afraid)"
    r"|i (?:cannot|can['\u2019]?t|could ?n['\u2019]?t|could not|won['\u2019]?t|will not)\b"
    r"|i (?:do not|don['\u2019]?t) have\b)",
    re.IGNORECASE,
)
_OPEN_END = re.compile(
    r"(?:[,:;(\[{\u2013\u2014-]|\b(?:and|or|the|an?|of|to|with|for|in|by|that|is|are|because))$", re.IGNORECASE
)
_PARTS = re.compile(r"[?!]+|\.(?=\s|$)|\n+")
LONG_LINE = 8
"""Words of a last line from which on it must end with a mark."""
SLACK = 10
"""Words that a text may have above its sources together."""


def rouge_l(text: str, other: str) -> float:
    """ROUGE-L F1 of two texts, 0 to 1."""
    return rouge.rouge_l(text, other, use_stemmer=False).f1


def hard_of(loss: Loss) -> list[str]:
    """Hard rules that were broken."""
    return [name for name in loss if RULES[name].hard]


def can_be_repaired(loss: Loss) -> bool:
    """Whether the model can be told what to do better."""
    return bool(loss) and all(RULES[name].repair for name in loss)


def badness(loss: Loss) -> tuple[int, int]:
    """Hard and soft rules that were broken; less is better."""
    return len(hard_of(loss)), len(loss) - len(hard_of(loss))


class Instructions:
    """Instructions that a new one must not repeat: those of the pool, which may lie in parts.

    texts : list of str, or with `workers` a list of such lists, one a part, or what stands for them.
    """

    def __init__(self, texts: Sequence[Any], workers: Workers | None = None) -> None:
        self._workers: Workers = workers or Here()
        self._parts: list[Any] = [list(texts)] if workers is None else list(texts)
        counted = self._workers.each(frequencies, self._parts, shared=[ALL_WORDS]) if self._parts else []
        self._vectorizer = vectorizer_of(merged(self._workers, counted), ALL_WORDS) if counted else None
        if self._vectorizer is not None:
            shared = [self._workers.share(self._vectorizer)]
            self._tables = self._workers.each(_table, self._parts, shared=shared)
            sizes = self._workers.bring(self._workers.each(_size, self._parts))
            self._first = [0, *np.cumsum(sizes)[:-1].tolist()]

    def twins(self, texts: Sequence[str | None], own: Sequence[set[int]], rows: int = 256) -> list[str | None]:
        """Of each text the instruction it repeats: one of the pool but for its own, or one before it in the list."""
        if self._vectorizer is None or not texts:
            return [None] * len(texts)
        table = self._vectorizer.transform([text or "" for text in texts])
        shared = [self._workers.share(table), [sorted(of) for of in own], rows]
        found = self._workers.bring(
            self._workers.each(_first_twins, self._parts, self._tables, self._first, shared=shared)
        )
        told = list[str | None]()
        for start in range(0, len(texts), rows):
            among_new = (table[start : start + rows] @ table[: start + rows].T).tocsr()
            for i in range(among_new.shape[0]):
                new = next((j for j in _above(among_new, i) if j < start + i), None)
                of_pool = next((text for part in found if (text := part[start + i]) is not None), None)
                told.append(of_pool if of_pool is not None else None if new is None else texts[new])
        return told


def _size(texts: Sequence[str]) -> int:
    return len(texts)


def _table(texts: Sequence[str], vectorizer: Any) -> Any:
    """Local: the words of the instructions of a part, weighed."""
    return vectorizer.transform(texts) if texts else csr_array((0, len(vectorizer.vocabulary_)))


def _first_twins(
    texts: Sequence[str], table: Any, first: int, new: Any, own: Sequence[Sequence[int]], rows: int
) -> list[str | None]:
    """Local: of each new text the first instruction of a part that it repeats; None if it repeats none of them."""
    found = list[str | None]()
    for start in range(0, new.shape[0], rows):
        among = (new[start : start + rows] @ table.T).tocsr()
        for i in range(among.shape[0]):
            here = (j for j in _above(among, i) if first + j not in own[start + i])
            found.append(next((texts[j] for j in here), None))
    return found


def _above(table: Any, row: int) -> list[int]:
    part = slice(table.indptr[row], table.indptr[row + 1])
    return sorted(table.indices[part][table.data[part] >= TWIN].tolist())


@dataclass(frozen=True)
class Checker:
    """What all texts are checked against."""

    instructions: Instructions | None
    """None where they are looked at apart."""
    benchmark: Benchmark | None = None

    def loss(
        self, part: Part, text: str, samples: Sequence[Sample], keep: Sequence[Term], instruction: str | None = None
    ) -> Loss:
        """Give the rules that a text breaks, all but "duplicate".

        Parameters
        ----------
        samples : list of Sample
            What it was made of.
        keep : list of Term
            What it must hold.
        instruction : str, optional
            What a response answers; None for an instruction.
        """
        sources = [getattr(sample, part) for sample in samples]
        found: Loss = {}
        if self.benchmark and (place := self.benchmark.place_of(f"{instruction or ''}\n{text}")):
            found["contaminated"] = [place]
        words = words_of(text)
        if len(words) < LEAST_WORDS[part]:
            found["format"] = [f"fewer than {LEAST_WORDS[part]} words"]
        if _REFUSAL.match(text):
            found["refusal"] = [text[:80]]
        scripts = {script_of(f"{sample.instruction} {sample.response}") for sample in samples} - {""}
        if scripts and (script := script_of(text)) and script not in scripts:
            found["language"] = [script]
        if is_cut_off(text, needs_mark=part == "response"):
            found["truncated"] = [text[-40:]]
        if lost := too_few(keep, text):
            found["missing"] = lost[:MOST_TOLD]
        if instruction is None and (leaked := leaks(words, samples)):
            found["leak"] = [leaked]
        alike = [rouge_l(text, source) >= COPIED for source in sources]
        if any(alike) and not all(alike):
            found["copied"] = [samples[alike.index(True)].id]
        if instruction is not None and (left := unanswered(instruction, text)):
            found["unanswered"] = left[:MOST_TOLD]
        if len(words) > sum(len(words_of(source)) for source in sources) + SLACK:
            found["long"] = [f"{len(words)} words"]
        return found


def leaks(words: Sequence[str], samples: Sequence[Sample]) -> str | None:
    """Find a run of words of an instruction that stands in a response of its sources, and in no instruction of them."""
    asked = {run for sample in samples for run in runs(words_of(sample.instruction), LEAK_WORDS)}
    answers = {run for sample in samples for run in runs(words_of(sample.response), LEAK_WORDS)} - asked
    return next((" ".join(run) for run in runs(words, LEAK_WORDS) if run in answers), None)


def script_of(text: str) -> str:
    """Script that most letters of a text are in, as Unicode names it; empty without letters."""
    letters = [char for char in text[:1000] if char.isalpha()]
    scripts = Counter(unicodedata.name(char, "?").split()[0] for char in letters)
    return scripts.most_common(1)[0][0] if scripts else ""


def is_cut_off(text: str, *, needs_mark: bool) -> bool:
    """Whether a text breaks off: an open fence, an end that calls for more, or a long last line without a mark."""
    end = text.rstrip()
    if end.count("```") % 2:
        return True
    last = end.rpartition("\n")[2]
    no_mark = needs_mark and last[-1:].isalnum() and len(last.split()) >= LONG_LINE
    return bool(_OPEN_END.search(end)) or no_mark


def unanswered(instruction: str, response: str) -> list[str]:
    """Parts of an instruction, cut at its marks, of whose words with four letters or more the response has none."""
    there, left = set(words_of(response)), []
    for part in _PARTS.split(instruction):
        words = {word for word in words_of(part) if len(word) >= 4 and word.isalpha()}
        if words and not words & there:
            left.append(part.strip())
    return left
