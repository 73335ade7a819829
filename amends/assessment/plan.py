"""What an assessment asks: which rows, which of those to keep are near to the forgotten, and the prompts of all."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from amends.assessment.attacks import EASY, NUM_SHOTS, RELEARN_ITEMS, Ask, Wordings, variants, wordings
from amends.evaluation.evaluate import BUILT_IN, room_for, spread
from amends.io.errors import InputError
from amends.io.tables import read_rows, rows_of
from amends.lm.memorisation import record_row
from amends.lm.pairs import Pair, Pairs, encode, read_pairs
from amends.maths.arrays import FloatArray
from amends.maths.rouge import spaced
from amends.unlearn._read import check_lengths, check_unseen, columns_of
from amends.unlearn._request import Data, Request

Embed = Callable[[Sequence[str]], FloatArray]
"""Texts -> vectors of length 1, (texts, D)."""
NEAREST = 5
"""Questions to keep that count as near to each question to forget."""
PIECE_TOKENS = 100
"""Most tokens of a piece of plain text that an attack teaches, beside its first: about those of an answer."""
NO_RETAIN = "It needs questions to keep (--retain)."
NO_FAR = "Every question to keep is near to one to forget: there are no far ones to compare with."
NO_HOLDOUT = "It needs rows of the same kind that no model was trained on (--holdout)."
NO_REFERENCE = "It needs a model retrained without the forget rows (--reference)."
NO_PARAPHRASES = "No row to forget has another wording (column paraphrased_question)."
NO_REVERSED = "No row to forget has its question turned round (columns reversed_question and reversed_answer)."
NO_CLASSIFIER = "It needs a classifier of gibberish (--gibberish)."
NO_SHOTS = "It needs questions to keep as examples (--retain)."
NO_TEXT = "There is no text."


@dataclass(frozen=True)
class Plan:
    """What every model is asked; any part but the forget pairs may be empty."""

    axes: tuple[str, ...]
    forget: list[Pair]
    wordings: dict[str, Wordings]
    """By the place of the row."""
    near: list[Pair]
    far: list[Pair]
    shots: list[Pair]
    general: list[Pair]
    holdout: list[Pair]
    texts: list[str]
    pieces: list[Pair]
    """Beginnings of the texts as an attack teaches them; none where no axis asks for them."""
    templates: list[str]
    max_new_tokens: int
    seed: int
    cut_short: int = 0
    """Rows to forget of which no answer of `max_new_tokens` can say all."""

    @property
    def retain(self) -> list[Pair]:
        """Questions to keep, the near ones first."""
        return [*self.near, *self.far]

    @property
    def relearnt(self) -> list[int]:
        """Numbers of the forget rows that the attack trains on; none if there are too few to test others."""
        count = min(RELEARN_ITEMS, len(self.forget) // 2)
        return spread(list(range(len(self.forget))), count) if count > 1 else []

    @property
    def lessons(self) -> dict[str, list[Pair]]:
        """What the attacks of these axes teach: rows to "forget", rows to keep ("retain"), pieces of plain "text".

        Those taught elsewhere are as many as those to forget, so that the attacks compare, or RELEARN_ITEMS where there
        are too few to forget for that attack. One without pairs cannot be made.
        """
        found: dict[str, list[Pair]] = {}
        if "relearning" in self.axes:
            found["forget"] = [self.forget[i] for i in self.relearnt]
        if "relearning_elsewhere" in self.axes:
            count = len(self.relearnt) or RELEARN_ITEMS
            found |= {"retain": spread(self.retain, count), "text": spread(self.pieces, count)}
        return found


class Sources(NamedTuple):
    """Where the rows come from, and how they are read."""

    forget: Data
    retain: Data | None = None
    holdout: Data | None = None
    question_column: str | None = None
    answer_column: str | None = None
    prefix_tokens: int = Request.prefix_tokens
    continuation_tokens: int = Request.continuation_tokens


def make_plan(
    sources: Sources,
    tokenizer: PreTrainedTokenizerBase,
    axes: Sequence[str],
    *,
    rows: int,
    max_new_tokens: int | None,
    seed: int,
    templates: Sequence[str],
    texts: Sequence[str] | None = None,
    embed: Embed | None = None,
) -> tuple[Plan, dict[str, Pairs]]:
    """Read the rows and choose what is asked; at most `rows` of each set, evenly spread.

    Of the questions to keep, up to half are the nearest to the questions to forget, the others far ones.

    Parameters
    ----------
    max_new_tokens : int, optional
        Default: 64, or the length of the longest plain text to continue (`room_for`).

    Returns
    -------
    The plan, and every row read by the name of its set.

    Raises
    ------
    InputError : faulty rows; rows to forget among those to keep, or either among the holdout; lengths of plain text
        where there is none.
    """
    read: dict[str, Pairs] = {}
    places: dict[str, Wordings] = {}
    for name in ("forget", "retain", "holdout"):
        source: Data | None = getattr(sources, name)
        if source is None:
            continue
        found = list(read_rows(source) if isinstance(source, str | Path) else rows_of(source, name))
        _, (question_column, answer_column) = columns_of(name, found, sources.question_column, sources.answer_column)
        read[name] = read_pairs(
            found,
            question_column=question_column,
            answer_column=answer_column,
            tokenizer=tokenizer,
            prefix_tokens=sources.prefix_tokens,
            continuation_tokens=sources.continuation_tokens,
        )
        if name == "forget":
            places = wordings(found)
    check_lengths(read.values(), sources.prefix_tokens, sources.continuation_tokens)
    trained: list[Pair] = []
    for name, pairs in read.items():
        check_unseen(pairs, trained, f"--{name}")
        trained += pairs.kept
    forget = spread(read["forget"].kept, rows)
    retain = read["retain"].kept if "retain" in read else []
    near, far = near_and_far(forget, retain, max(1, rows // 2), embed)
    used = {id(pair) for pair in (*near, *far)}
    shots = spread([p for p in retain if id(p) not in used] or retain, NUM_SHOTS)
    everyday = read_pairs(read_rows(BUILT_IN / "general_questions.jsonl")).kept
    built_in = [row.data["text"] for row in read_rows(BUILT_IN / "text.jsonl")]
    chosen = spread(list(built_in if texts is None else texts), rows)
    lengths = [len(record_row(tokenizer, p.prompt, [p.answer]).answers[0]) for p in forget]
    longest = max_new_tokens or room_for(tokenizer, forget)
    plan = Plan(
        axes=tuple(axes),
        forget=forget,
        wordings=places,
        near=near,
        far=far,
        shots=shots,
        general=spread(everyday, rows),
        holdout=spread(read["holdout"].kept, rows) if "holdout" in read else [],
        texts=chosen,
        pieces=pieces_of(chosen, tokenizer) if "relearning_elsewhere" in axes else [],
        templates=list(templates),
        max_new_tokens=longest,
        seed=seed,
        cut_short=sum(length > longest for length in lengths),
    )
    return plan, read


def pieces_of(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Pair]:
    """Cut the beginning of each text so that all but its first token is the answer; texts of one token have none."""
    rows = rows_of([{"text": text} for text in texts], "text")
    try:
        cut = read_pairs(
            rows, tokenizer=tokenizer, prefix_tokens=1, continuation_tokens=PIECE_TOKENS, skip_bad_rows=True
        )
    except InputError:  # not one can be cut
        return []
    return [pair for pair in cut.kept if pair.id.endswith("#0")]


def near_and_far(
    forget: Sequence[Pair], retain: Sequence[Pair], most: int, embed: Embed | None = None
) -> tuple[list[Pair], list[Pair]]:
    """Part the questions to keep: those nearest to questions to forget, and the others; at most `most` of each.

    Near is one of the NEAREST to some question to forget, by the cosine of what `embed` gives; without it, of its
    words, each weighted by how rare it is among all questions.
    """
    if not retain:
        return [], []
    wanted, kept = ([p.question for p in pairs] for pairs in (forget, retain))
    both_ND = (embed or word_vectors)([*kept, *wanted])
    similar = both_ND[: len(kept)] @ both_ND[len(kept) :].T
    nearest = np.argsort(-similar, axis=0, kind="stable")[:NEAREST]
    order = sorted(set(nearest.ravel().tolist()), key=lambda i: (-similar[i].max(), i))
    chosen = set(order)
    return [retain[i] for i in order[:most]], spread([p for i, p in enumerate(retain) if i not in chosen], most)


def word_vectors(texts: Sequence[str]) -> FloatArray:
    """Vectors of length 1 (texts, words): each word as rare as it is among the texts. An empty text has length 0.

    Where a script is written without spaces, each character is a word.
    """
    words = [
        {"".join(c for c in word if c.isalnum()) for word in spaced(text.casefold()).split()} - {""} for text in texts
    ]
    counts = Counter(word for of in words for word in of)
    places = {word: i for i, word in enumerate(counts)}
    found = np.zeros((len(texts), len(places)))
    for row, of in enumerate(words):
        for word in of:
            found[row, places[word]] = math.log(1 + len(texts) / counts[word])
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12))


def all_asks(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> list[Ask]:
    """List every prompt of the plan for one model."""
    asks: list[Ask] = []
    for pair in plan.forget:
        found = variants(tokenizer, pair, plan.wordings.get(pair.where, Wordings()), plan.shots, plan.seed)
        asks += found if "elicitation" in plan.axes else found[:1]
    sets: dict[str, list[Pair]] = {}
    if {"utility", "neighbours", "quality"} & set(plan.axes):
        sets |= {"near": plan.near, "far": plan.far}
    if "utility" in plan.axes:
        sets |= {"general": plan.general}
    for name, pairs in sets.items():
        for p in pairs:
            asks.append(Ask(name, p.id, EASY, p.question, encode(tokenizer, p.prompt, ["a"])[0].prompt, p.answer))
    return asks
