"""ROUGE-L in every script: the published tool's words where there are letters a-z, words or characters elsewhere.

rouge-score, the tool of TOFU and MUSE, drops every character but a-z and 0-9, so that an answer in Russian, Arabic or
Japanese has no words at all. Here those words count too, and English text is read by rouge-score itself.
"""

import math
from functools import cache
from typing import NamedTuple
from unicodedata import normalize

import regex
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

_UNSPACED = r"""[[\p{L}\p{N}]&&[\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}
    \p{Myanmar}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\p{Javanese}\p{Balinese}]]"""
_SPACED = rf"[[\p{{L}}\p{{N}}]--[\p{{Latin}}0-9\u02b0-\u02ff]--{_UNSPACED}]"  # less apostrophes that count as letters


class RougeL(NamedTuple):
    """How much of a reference a prediction says, 0 to 1."""

    recall: float
    """Share of the reference's words that the prediction has in the same order; NaN where the reference has none."""
    f1: float
    """Harmonic mean of that and of the share of the prediction's words that the reference has; 0 where one has none."""


def rouge_l(prediction: str, reference: str, use_stemmer: bool = True) -> RougeL:
    """ROUGE-L of a prediction by rouge-score, of the words of `Words`.

    Parameters
    ----------
    prediction, reference : str
    use_stemmer : bool, default True
        Whether English words are compared without their endings.

    Source: Lin, ROUGE, 2004.
    """
    score = _scorer(use_stemmer).score(reference, prediction)["rougeL"]
    if not score.recall and not Words(use_stemmer=False).tokenize(reference):
        return RougeL(math.nan, 0.0)
    return RougeL(float(score.recall), float(score.fmeasure))


@cache
def _scorer(use_stemmer: bool) -> RougeScorer:
    return RougeScorer(["rougeL"], tokenizer=Words(use_stemmer))


def spaced(text: str) -> str:
    """Put spaces around each character of a script that is written without them: a word for all that count words."""
    return text if text.isascii() else str(_character().sub(r" \g<0> ", text))


class Words(Tokenizer):  # type: ignore[misc]  # rouge-score has no types
    """Tokenizer for rouge-score.

    Letters a-z and digits are read as rouge-score does: lower case, everything else between them divides, words of four
    letters or more are stemmed. So text without other letters has the same words as there, and so has text whose only
    other letters are Latin ones: "Vásquez" is "v" and "squez", as in published values. Of other scripts each word is
    kept, casefolded, and each character where a script puts no spaces between words (Chinese, Japanese, Thai, ...).
    Text is brought into normal form NFKC first, which makes one of "é" and "e" with an accent after it, and of letters
    in full and half width; a sign such as "²" or "™" becomes a digit or letters, where rouge-score drops it.
    """

    def __init__(self, use_stemmer: bool = True) -> None:
        self._latin = DefaultTokenizer(use_stemmer)

    def tokenize(self, text: str) -> list[str]:
        """Words of a text, in their order."""
        if text.isascii():
            return list(self._latin.tokenize(text))
        text = normalize("NFKC", text)
        words: list[str] = []
        end = 0
        for found in _other().finditer(text):
            words += self._latin.tokenize(text[end : found.start()]) if found.start() > end else []
            words.append(found[0].casefold())
            end = found.end()
        return [*words, *self._latin.tokenize(text[end:])]


@cache
def _character() -> "regex.Pattern[str]":
    return regex.compile(rf"{_UNSPACED}\p{{M}}*", regex.V1 | regex.VERBOSE)


@cache
def _other() -> "regex.Pattern[str]":
    return regex.compile(rf"{_UNSPACED}\p{{M}}*|{_SPACED}[{_SPACED}\p{{M}}]*", regex.V1 | regex.VERBOSE)
