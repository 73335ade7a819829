"""What a text must not lose: its numbers, names, code and weightiest words, found by rules.

The public reviews of ENTP (arXiv 2510.23160) say that rules keep key terms; which terms those are is [design], a choice
of this tool.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from amends.curate._entp.benchmarks import words_of

LEAST_KEPT = {"number": 1.0, "code": 0.8, "name": 0.8, "word": 0.5}
"""Share of the terms of each kind that must be there."""
MOST_WORDS = 5
"""Of the weightiest words of a text."""
WEIGHTY = 0.5
"""Of the weight of the heaviest word; a lighter one is no key term."""
WORDS = {"stop_words": "english", "token_pattern": r"(?u)\b[^\W\d_]{3,}\b", "sublinear_tf": True}
"""What is a word that may be weighty."""

_FENCE = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*(?![\w])")
_LIST_MARK = re.compile(r"^\s*\(?\d+[.)]\s", re.MULTILINE)
_NAME = re.compile(r"(?<!\w)[^\W\d_][\w\u2019'-]*")
_BEGINS = frozenset('.!?:;"\u201c\u201d\u2018«([{*•#>|=-\u2013\u2014')


class Term(NamedTuple):
    """Something a text says."""

    kind: str
    text: str


def exact_terms(text: str) -> list[Term]:
    """Numbers, names and code of a text, each once, in their order.

    Code is every line in a fence and all between backticks. A number is written in digits and is no mark of a list. A
    name is a word with a capital that does not begin a sentence, or with one after its first letter; that is meant for
    languages that write other words small.
    """
    code = [line.strip() for block in _FENCE.findall(text) for line in block.splitlines()]
    prose = _FENCE.sub("\n", text)
    code += [found.strip() for found in _INLINE.findall(prose)]
    prose = _LIST_MARK.sub("", _INLINE.sub(" ", prose))
    found = [Term("code", _squeezed(line)) for line in code if any(char.isalnum() for char in line)]
    found += [Term("number", number) for number in _numbers(prose)]
    for match in _NAME.finditer(prose):
        word = re.sub(r"[\u2019']s?$", "", match[0])
        before = prose[: match.start()].rstrip(" \t")[-1:]
        begins = not before or before == "\n" or before in _BEGINS
        if len(word) > 1 and not re.match(r"I[\u2019']", word):
            inner = word[1:] != word[1:].lower()
            if inner or (word[0].isupper() and not begins):
                found.append(Term("name", word.casefold()))
    return list(dict.fromkeys(found))


class Frequencies(NamedTuple):
    """In how many texts each word stands; those of parts of the texts are added."""

    num_texts: int
    of_word: Counter[str]

    def __add__(self, other: Any) -> "Frequencies":
        """Add those of other texts."""
        return Frequencies(self.num_texts + other.num_texts, self.of_word + other.of_word)


def frequencies(texts: Iterable[str], how: Mapping[str, Any] = WORDS) -> Frequencies:
    """Local: count the texts that each word stands in; `how` says what is a word, as scikit-learn's vectorizers do."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words_in, num, counts = TfidfVectorizer(**how).build_analyzer(), 0, Counter[str]()
    for text in texts:
        counts.update(set(words_in(text)))
        num += 1
    return Frequencies(num, counts)


def vectorizer_of(found: Frequencies, how: Mapping[str, Any] = WORDS) -> Any:
    """Merge: scikit-learn's TF-IDF as it would be learnt from all texts at once; None without a word."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not found.of_word:
        return None
    words = sorted(found.of_word)
    made = TfidfVectorizer(**how, vocabulary={word: number for number, word in enumerate(words)})
    counts_V = np.array([found.of_word[word] for word in words], dtype=np.float64)
    made.idf_ = np.log((found.num_texts + 1) / (counts_V + 1)) + 1
    return made


class Weights:
    """TF-IDF weights of words, learnt from the texts of a pool.

    texts : all texts that words are rare or common in, or what `frequencies` counted in them. English words without a
    meaning of their own are left out.
    """

    def __init__(self, texts: Sequence[str] | Frequencies) -> None:
        self._vectorizer = vectorizer_of(texts if isinstance(texts, Frequencies) else frequencies(texts))

    def weighty(self, texts: Sequence[str]) -> list[list[Term]]:
        """Give the weightiest words of each text, heaviest first: at most `MOST_WORDS`, none lighter than `WEIGHTY`."""
        if self._vectorizer is None or not texts:
            return [[] for _ in texts]
        table, names = self._vectorizer.transform(texts).tocsr(), self._vectorizer.get_feature_names_out()
        found = []
        for row in range(table.shape[0]):
            part = slice(table.indptr[row], table.indptr[row + 1])
            weights = sorted(zip(-table.data[part], names[table.indices[part]], strict=True))[:MOST_WORDS]
            found.append([Term("word", str(name)) for weight, name in weights if weight <= WEIGHTY * weights[0][0]])
        return found


def missing(terms: Iterable[Term], text: str) -> list[Term]:
    """Terms that a text does not hold, in their order.

    Words and names count without case and without a plural's s, numbers without commas, code with any white space.
    """
    numbers, words = set(_numbers(text)), {_singular(word) for word in words_of(text)}
    squeezed = _squeezed(text)
    there = {
        "number": lambda term: term in numbers,
        "code": lambda term: term in squeezed,
        "name": lambda term: {_singular(word) for word in words_of(term)} <= words,
        "word": lambda term: _singular(term) in words,
    }
    return [term for term in terms if not there[term.kind](term.text)]


def recall(terms: Sequence[Term], text: str) -> float | None:
    """Share of the terms that a text holds; None without terms."""
    return 1 - len(missing(terms, text)) / len(terms) if terms else None


def too_few(terms: Sequence[Term], text: str) -> list[str]:
    """Terms that are missing, of the kinds of which more are missing than `LEAST_KEPT` lets be."""
    gone = missing(terms, text)
    found = []
    for kind, least in LEAST_KEPT.items():
        of_kind, lost = [t for t in terms if t.kind == kind], [t for t in gone if t.kind == kind]
        if len(of_kind) - len(lost) < least * len(of_kind):
            found += [term.text for term in lost]
    return found


def _numbers(text: str) -> list[str]:
    return [re.sub(r",(?=\d{3})", "", number) for number in _NUMBER.findall(text)]


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
