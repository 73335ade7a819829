"""Questions like the forgotten ones about others, each with the model's own answer to it.

Where there is no retain data they stand for what should stay: the same words and relations, another subject. Held
still while the model forgets, they leave it little but the subject's name to tell the forgotten questions by. The
subjects are those that the model brings up itself where the forgotten names stood: what it learnt beside them.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import Any

from transformers import PreTrainedTokenizerBase

from amends.io.errors import InputError
from amends.lm.generate import generate
from amends.lm.pairs import Pair, encode
from amends.lm.templates import turn_end

WORD = re.compile(r"[^\W\d_]+")
TOKEN = re.compile(r"[^\W_]+|[^\w\s]")
SENTENCE_START = re.compile(r"(?:^|[.!?:]\s+)[^\w\s]*$")
NUMBER = re.compile(r"\d+")
LINK = re.compile(r"[ '\u2019-]| (?:of|the|by|by the|of the|in the|de|la|le|du|van|von|bin|al) ")
"""What may stand between the words of a name."""
ROUNDS = 4
"""Times the model is asked for other names; from the second on, about those it has brought up."""
TEMPERATURE = 0.8
CANDIDATES = 1.5
"""Questions asked for each neighbour that is wanted: some answers will give away what is to be forgotten."""
GIVEN_AWAY = 0.5
"""Most of an answer's new words that the model may say about another name."""
ONSETS, VOWELS = (
    ("b", "br", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "sh", "t", "v", "z", ""),
    "aeiou",
)
CODAS = ("", "", "n", "r", "l", "s", "m")
Prompt = list[dict[str, str]] | str


def neighbours(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    count: int,
    seed: int,
    max_new_tokens: int = 64,
) -> list[Pair]:
    """Ask the model as it is about others, in the words of the questions to forget.

    First it is asked, at TEMPERATURE, the questions whose answers hold a name, with invented names in them; the names
    it answers with take the place of the forgotten ones, in a second round of such questions and then in all of them.
    Left out are answers that name what the forget answers name, or say half of what they add to their question.

    Parameters
    ----------
    pairs : list of Pair
        What is to be forgotten. Names are capitalised words that do not merely begin a sentence, together if they
        follow one another; they are replaced, each in the same way throughout a prompt, and so are the digits of
        numbers after the first. A name that the model gave no other for becomes an invented one.
    count : int
        Neighbours wanted; there may be fewer.
    max_new_tokens : int, default 64

    Raises
    ------
    InputError : the questions hold neither names nor numbers, or no answer was left: all are empty or give something
        away.
    """
    others = Others(pairs)
    draw = random.Random(f"{seed} neighbours")

    def ask(prompts: Sequence[Prompt], label: str, **how: Any) -> list[str]:
        encoded = [encode(tokenizer, prompt, ["a"])[0].prompt for prompt in prompts]
        stop_ids = turn_end(tokenizer)
        return generate(model, tokenizer, encoded, stop_ids=stop_ids, max_new_tokens=max_new_tokens, label=label, **how)

    asking = others.asking()
    for round_ in range(ROUNDS if asking else 0):
        chosen = draw.choices(list(asking), weights=list(asking.values()), k=count)
        prompts = [others.instead(pairs[number].prompt, draw) for number in chosen]
        answers = ask(prompts, "asking for other names", temperature=TEMPERATURE, seed=ROUNDS * seed + round_)
        for number, prompt, answer in zip(chosen, prompts, answers, strict=True):
            others.learn(pairs[number], prompt, answer)
    asked: dict[str, tuple[Pair, Prompt]] = {}
    for _ in range(4):  # a question with one digit has few neighbours
        for pair in draw.sample(list(pairs), len(pairs)):
            for _ in range(math.ceil(CANDIDATES * count / len(pairs))):
                prompt = others.instead(pair.prompt, draw)
                if prompt != pair.prompt and len(asked) < CANDIDATES * count:
                    asked.setdefault(repr(prompt), (pair, prompt))
    if not asked:
        raise InputError("--neighbours: the questions hold no names and no numbers that others could stand for.")
    answers = ask([prompt for _, prompt in asked.values()], "answering about others")
    found = [
        Pair(f"neighbour {number}", prompt, answer, f"neighbour[{number}]")
        for number, ((pair, prompt), answer) in enumerate(zip(asked.values(), answers, strict=True))
        if answer and not gives_away(answer, pair, others.words)
    ]
    if not found:
        empty = sum(not answer for answer in answers)
        counts = {"came empty": empty, "gave away what is to be forgotten": len(answers) - empty}
        told = [f"{n if n < len(answers) else 'all'} {what}" for what, n in counts.items() if n]
        raise InputError(f"--neighbours: of {len(answers)} answers about other names {' and '.join(told)}.")
    return draw.sample(found, min(count, len(found)))


class Others:
    """The names in forget data, and for each the other names that the model gave in its place."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs
        texts = [text for pair in pairs for text in (pair.question, pair.answer)]
        self.words = words_of_names(texts)
        self.no_names = {word.casefold() for text in texts for word in WORD.findall(text) if word not in self.words}
        self.names = {name for text in texts for name in self.names_in(text)}
        self.given: dict[str, list[str]] = {}

    def names_in(self, text: str) -> list[str]:
        """Names in a text: runs of capitalised words, from the first that belongs to a name to the last."""
        found = []
        for run in capitalised_runs(text):
            known = [word for word in WORD.finditer(run) if word[0] in self.words]
            if known:
                found.append(run[known[0].start() : known[-1].end()])
        return found

    def asking(self) -> dict[int, float]:
        """Pairs, by number, whose answer holds names that the question does not, and their weight.

        A name counts by the number of questions that another could stand in.
        """
        held = Counter(name for pair in self.pairs for name in set(self.names_in(pair.question)))
        asked = [{name for name in self.names_in(p.answer) if name not in p.question} for p in self.pairs]
        times = Counter(name for names in asked for name in names)
        return {i: sum(1 + held[name] / times[name] for name in names) for i, names in enumerate(asked) if names}

    def learn(self, pair: Pair, prompt: Prompt, answer: str) -> None:
        """Take from an answer the names that stand where the forget answer has one."""
        old, new = list(TOKEN.finditer(pair.answer)), list(TOKEN.finditer(answer))
        matcher = SequenceMatcher(None, [m[0] for m in old], [m[0] for m in new], autojunk=False)
        for kind, i, end_i, j, end_j in matcher.get_opcodes():
            if kind != "replace":
                continue
            before = pair.answer[old[i].start() : old[end_i - 1].end()]
            here = [name for name in self.names_in(before) if name in self.names and name not in pair.question]
            there = capitalised_runs(answer[new[j].start() : new[end_j - 1].end()])
            if not len(here) == len(there) == 1 or there[0] in str(prompt):
                continue
            words = WORD.findall(there[0])
            if not self.words.intersection(words) and not self.no_names.issuperset(map(str.casefold, words)):
                self.given.setdefault(here[0], []).append(there[0])

    def instead(self, prompt: Prompt, draw: random.Random) -> Prompt:
        """Put another name for each, and other digits behind the first of each number.

        A name that is part of another in the prompt becomes the first or the last word of what the other becomes.
        """
        taken: dict[str, str] = {}
        texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        names = sorted({name for text in texts for name in self.names_in(text)}, key=lambda n: (-len(n), n))
        for name in names:
            whole = next(n for n in names if f" {name} " in f" {n} ")
            if whole != name:
                taken[name] = taken[whole].split()[0 if whole.startswith(name) else -1]
            elif given := self.given.get(name):
                taken[name] = draw.choice(given)
            else:
                taken[name] = WORD.sub(lambda _: invent(draw), name)

        def rewrite(text: str) -> str:
            text = NUMBER.sub(lambda m: m[0][0] + "".join(draw.choice("0123456789") for _ in m[0][1:]), text)
            if names:
                whole = rf"(?<![^\W\d_])(?:{'|'.join(map(re.escape, names))})(?![^\W\d_])"
                text = re.sub(whole, lambda m: taken[m[0]], text)
            return WORD.sub(lambda m: invent(draw) if m[0] in self.words else m[0], text)

        if isinstance(prompt, str):
            return rewrite(prompt)
        return [message | {"content": rewrite(message["content"])} for message in prompt]


def capitalised_runs(text: str) -> list[str]:
    """Capitalised words, together where they follow one another."""
    runs: list[tuple[int, int]] = []
    for word in WORD.finditer(text):
        if word[0][0].isupper():
            start = word.start()
            if runs and LINK.fullmatch(text, runs[-1][1], start):
                start = runs.pop()[0]
            runs.append((start, word.end()))
    return [text[start:end] for start, end in runs]


def words_of_names(texts: Iterable[str]) -> set[str]:
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
