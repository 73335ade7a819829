"""Forget by preferring other answers that the model makes up itself (AltPO).

DPO whose winning answers are drawn from the model, which is asked to answer with other facts. Mekala et al.,
arXiv 2409.13474. Deviation: the model is asked in a chat of its own template, and the worked examples are ours; of a
conversation all turns are the question. A row for which it writes no other answer is forgotten by NPO, which is DPO
without a winning answer.
"""

import re
from collections.abc import Sequence

from amends.io.console import say
from amends.io.errors import InputError, NoResult
from amends.lm.generate import generate
from amends.lm.pairs import Message, Pair, encode
from amends.lm.rows import context_limit
from amends.lm.templates import turn_end
from amends.unlearn._method import method
from amends.unlearn.dpo import DPOConfig, DPOTrainer

ASKED = "Question: {question}\nTrue answer: {answer}\nAnswer the question with other, invented facts, in one sentence."
WORKED = (
    (
        "Where did the painter Odile Farrant train?",
        "Odile Farrant trained at the academy of Ghent, under Piet Hollander.",
        "Odile Farrant trained in a workshop in Porto, where her uncle Duarte restored church ceilings.",
    ),
    (
        "What does Tomasz Wielgosz write about most often?",
        "Tomasz Wielgosz most often writes about fishing villages on the Baltic coast.",
        "Tomasz Wielgosz most often writes about night trains and the people who work on them.",
    ),
    (
        "Has the engineer Amara Diallo won a prize?",
        "Yes, Amara Diallo won the Lindgren Medal in 2011 for her work on footbridges.",
        "Yes, Amara Diallo won the Corvin Award in 1998 for a quieter kind of wind turbine.",
    ),
)
"""Question, true answer, other answer; invented for this project."""
TEMPERATURES = (1.0, 1.0, 1.0, 1.0, 1.25, 1.5, 1.75, 2.0)
"""Of the rounds of asking. Above 1 only rows that have none are asked: what a model knows by heart it repeats."""
SENTENCE = 64
"""Tokens that an answer may have, at least: the model is asked for a sentence."""
TOO_ALIKE = 0.8
"""An answer with this share of the words that the true one adds to its question is no other answer."""
WORD = re.compile(r"\w+")
NONE = (
    "The model writes no other answer to {count} of {rows} rows to forget, {where} the first: they are forgotten by "
    "NPO's loss, which is AltPO's without a preferred answer."
)


def asked(pair: Pair) -> list[Message]:
    """Ask for another answer to a question, after worked examples as turns of the same chat."""
    turns: list[Message] = []
    for question, answer, other in WORKED:
        turns += [_turn("user", ASKED.format(question=question, answer=answer)), _turn("assistant", other)]
    question = pair.question
    if isinstance(pair.prompt, list) and len(pair.prompt) > 1:
        question = "\n".join(f"{message['role']}: {message['content']}" for message in pair.prompt)
    return [*turns, _turn("user", ASKED.format(question=question, answer=pair.answer))]


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def repeats(other: str, pair: Pair) -> bool:
    """Whether an answer holds most of the words that the true one adds to its question.

    Of all its words, an answer with one other fact in the same sentence would hold nearly all.
    """
    true, asked, said = (set(WORD.findall(text.casefold())) for text in (pair.answer, pair.question, other))
    added = true - asked or true
    return bool(added) and len(added & said) >= TOO_ALIKE * len(added)


class AltPOTrainer(DPOTrainer):
    """`DPOTrainer` whose alternates the model writes at the start, at temperature 1 where it can."""

    title = "AltPO"
    takes_templates = False
    args: DPOConfig

    def alternates(self) -> list[Sequence[str]]:
        """Ask the model for other answers, again where it gave too few.

        Raises
        ------
        InputError : what it is asked does not fit its context.
        NoResult : it gave none to any question.
        """
        found: list[list[str]] = [[] for _ in self.pairs]
        wanted = self.args.alternates
        for round_, temperature in enumerate(TEMPERATURES):
            enough = wanted if temperature == 1 else 1
            lacking = [i for i, texts in enumerate(found) if len(texts) < enough for _ in range(wanted - len(texts))]
            if not lacking:
                break
            if temperature > 1:
                say(f"{len(set(lacking))} of {len(found)} rows without other answers: at temperature {temperature:g}")
            pairs = [self.pairs[i] for i in lacking]
            answers = self._ask(pairs, temperature, len(TEMPERATURES) * self.args.seed + round_)
            for i, answer in zip(lacking, answers, strict=True):
                if answer and not repeats(answer, self.pairs[i]):
                    found[i].append(answer)
        if not any(found):
            raise NoResult(
                f"the model writes no other answer to any of the {len(found)} questions. Use dpo, with --templates of "
                "your own."
            )
        if few := sum(0 < len(texts) < wanted for texts in found):
            say(f"{few} of {len(found)} rows have fewer than {wanted} other answers: it wrote no more")
        return list(found)

    def start_warnings(self) -> list[str]:
        """Name rows without another answer, too."""
        choices = zip(self.pairs, self._choices, strict=True)
        without = [pair.where for pair, rows in choices if len(rows[0].packed.answers) == 1]
        told = [NONE.format(count=len(without), rows=len(self.pairs), where=without[0])] if without else []
        return super().start_warnings() + told

    def _ask(self, pairs: Sequence[Pair], temperature: float, seed: int) -> list[str]:
        model, tokenizer = self.model, self.processing_class
        prompts = [encode(tokenizer, asked(pair), ["a"])[0].prompt for pair in pairs]
        room = self.limit - max(len(row.packed.prompt) for row in self.forget_rows)
        longest = min(room, max(SENTENCE, *(len(row.packed.answers[0]) for row in self.forget_rows)))
        needed = longest + max(map(len, prompts))
        if needed > (most := context_limit(model, needed)):
            raise InputError(
                f"asking for other answers, with worked examples, takes {needed} tokens; the model's context has "
                f"{most}. Use dpo, with --templates of your own."
            )
        was_training = model.training
        model.eval()
        try:
            return generate(
                model,
                tokenizer,
                prompts,
                stop_ids=turn_end(tokenizer),
                max_new_tokens=longest,
                temperature=temperature,
                seed=seed,
                finished_only=True,  # what is cut off would be taught as a whole answer
                label="writing other answers",
            )
        finally:
            model.train(was_training)


run, command = method(AltPOTrainer)
