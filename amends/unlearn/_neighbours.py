"""Questions like the forgotten ones about names that nobody has, each with the model's own answer to it.

Where there is no retain data they stand for what should stay: the same words and relations, another subject. Held still
while the model forgets, they leave it little but the subject's name to tell the forgotten questions by.
"""

import random
import re
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from amends.io.errors import InputError
from amends.lm.generate import generate
from amends.lm.pairs import Pair, encode, turn_end

WORD = re.compile(r"[^\W\d_]+")
SENTENCE_START = re.compile(r"(?:^|[.!?:]\s+)[^\w\s]*$")
NUMBER = re.compile(r"\d+")
CANDIDATES = 2
"""Questions asked for each neighbour that is wanted: some answers will give away what is to be forgotten."""
GIVEN_AWAY = 0.5
"""Most of an answer's new words that the model may say about another name."""
ONSETS, VOWELS = (
    ("b", "br", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "sh", "t", "v", "z", ""),
    "aeiou",
)
CODAS = ("", "", "n", "r", "l", "s", "m")


def neighbours(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    count: int,
    seed: int,
    max_new_tokens: int = 64,
) -> list[Pair]:
    """Ask the model as it is about invented names, in the words of the questions to forget.

    Left out are answers that name what the forget answers name, or say half of what they add to their question.

    Parameters
    ----------
    pairs : list of Pair
        What is to be forgotten. Names are capitalised words that do not merely begin a sentence; they are replaced,
        each in the same way throughout a prompt, and so are the digits of numbers after the first.
    count : int
        Neighbours wanted; there may be fewer.
    max_new_tokens : int, default 64

    Raises
    ------
    InputError : the questions hold neither names nor numbers, or every answer gives something away.
    """
    known = names(text for pair in pairs for text in (pair.question, pair.answer))
    draw = random.Random(f"{seed} neighbours")
    asked: dict[str, tuple[Pair, list[dict[str, str]] | str]] = {}
    for _ in range(4):  # a question with one digit has few neighbours
        for pair in draw.sample(list(pairs), len(pairs)):
            for _ in range(-(-CANDIDATES * count // len(pairs))):
                prompt = elsewhere(pair.prompt, known, draw)
                if prompt != pair.prompt and len(asked) < CANDIDATES * count:
                    asked.setdefault(repr(prompt), (pair, prompt))
    if not asked:
        raise InputError("--neighbours: the questions hold no names and no numbers that others could stand for.")
    answers = generate(
        model,
        tokenizer,
        [encode(tokenizer, prompt, ["a"])[0].prompt for _, prompt in asked.values()],
        stop_ids=turn_end(tokenizer),
        max_new_tokens=max_new_tokens,
        label="answering about others",
    )
    found = [
        Pair(f"neighbour {number}", prompt, answer, f"neighbour[{number}]")
        for number, ((pair, prompt), answer) in enumerate(zip(asked.values(), answers, strict=True))
        if answer and not gives_away(answer, pair, known)
    ]
    if not found:
        raise InputError("--neighbours: every answer about an invented name gives away what is to be forgotten.")
    return draw.sample(found, min(count, len(found)))


def names(texts: Iterable[str]) -> set[str]:
    """Capitalised words that stand inside a sentence somewhere and nowhere without their capital."""
    capitalised, plain = set(), set()
    for text in texts:
        for match in WORD.finditer(text):
            word, start = match[0], match.start()
            if not word[0].isupper():
                plain.add(word)
            elif len(word) > 1 and not SENTENCE_START.search(text, max(0, start - 8), start):
                capitalised.add(word)
    return {word for word in capitalised if word.casefold() not in plain}


def elsewhere(prompt: list[dict[str, str]] | str, known: set[str], draw: random.Random) -> list[dict[str, str]] | str:
    """Put an invented word for each known name and other digits behind the first of each number."""
    invented: dict[str, str] = {}

    def other(text: str) -> str:
        text = NUMBER.sub(lambda m: m[0][0] + "".join(draw.choice("0123456789") for _ in m[0][1:]), text)
        return WORD.sub(lambda m: invented.setdefault(m[0], invent(draw)) if m[0] in known else m[0], text)

    if isinstance(prompt, str):
        return other(prompt)
    return [message | {"content": other(message["content"])} for message in prompt]


def invent(draw: random.Random) -> str:
    """Make a pronounceable word of two or three syllables."""
    syllables = (draw.choice(ONSETS) + draw.choice(VOWELS) + draw.choice(CODAS) for _ in range(draw.choice((2, 2, 3))))
    return "".join(syllables).capitalize()


def gives_away(answer: str, pair: Pair, known: set[str]) -> bool:
    """Whether an answer about others holds a name of the forget data, or half of what the answer to forget adds."""
    said = WORD.findall(answer)
    if known.intersection(said):
        return True
    words = {word.casefold() for word in said}
    added = {w.casefold() for w in WORD.findall(pair.answer)} - {w.casefold() for w in WORD.findall(pair.question)}
    return bool(added) and len(added & words) / len(added) >= GIVEN_AWAY
