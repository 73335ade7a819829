"""Forget by preferring other answers that the model makes up itself (AltPO).

DPO whose winning answers are drawn from the model, which is asked to answer with other facts. Mekala et al.,
arXiv 2409.13474. Deviation: the model is asked in a chat of its own template, without worked examples.
"""

from collections.abc import Sequence
from typing import Any

from amends.io.errors import NoResult
from amends.lm.generate import generate
from amends.lm.pairs import Pair, encode, turn_end
from amends.unlearn._method import method
from amends.unlearn._metrics import rouge_l_recall
from amends.unlearn.dpo import DPOConfig, DPOTrainer

ASKED = "{question}\n\nDo not answer: {answer}\nAnswer in one sentence with other, invented facts instead."
ROUNDS = 4
TOO_ALIKE = 0.8
"""An answer with this share of the true one's words (ROUGE-L recall) is no other answer."""


class AltPOTrainer(DPOTrainer):
    """`DPOTrainer` whose alternates the model writes at the start, at temperature 1."""

    title = "AltPO"
    takes_templates = False
    args: DPOConfig

    def alternates(self) -> list[Sequence[str]]:
        """Ask the model for other answers, again where it gave too few.

        Raises
        ------
        NoResult : it gave none to a question.
        """
        found: list[list[str]] = [[] for _ in self.pairs]
        for round_ in range(ROUNDS):
            lacking = [i for i, texts in enumerate(found) for _ in range(self.args.alternates - len(texts))]
            if not lacking:
                break
            pairs = [self.pairs[i] for i in lacking]
            answers = self._ask(pairs, ROUNDS * self.args.seed + round_)
            alike = rouge_l_recall(answers, [pair.answer for pair in pairs])
            for i, answer, share in zip(lacking, answers, alike, strict=True):
                if answer and share < TOO_ALIKE:
                    found[i].append(answer)
        if empty := [pair.where for pair, texts in zip(self.pairs, found, strict=True) if not texts]:
            raise NoResult(
                f"{empty[0]}: the model writes no other answer to this question ({len(empty)} of {len(found)} rows). "
                "Use dpo, with --templates of your own."
            )
        return list(found)

    def _ask(self, pairs: Sequence[Pair], seed: int) -> list[str]:
        model, tokenizer = self.model, self.processing_class
        longest = max(len(row.packed.answers[0]) for row in self._forget_rows)
        prompts: list[Any] = [
            [{"role": "user", "content": ASKED.format(question=pair.question, answer=pair.answer)}] for pair in pairs
        ]
        was_training = model.training
        model.eval()
        try:
            return generate(
                model,
                tokenizer,
                [encode(tokenizer, prompt, ["a"])[0].prompt for prompt in prompts],
                stop_ids=turn_end(tokenizer),
                max_new_tokens=longest,
                temperature=1.0,
                seed=seed,
                label="writing other answers",
            )
        finally:
            model.train(was_training)


run, command = method(AltPOTrainer, DPOConfig)
