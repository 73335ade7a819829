"""Canaries: secrets put into training data, and how far a model that was trained on them gives them away."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from amends.io.errors import InputError
from amends.lm.logprobs import PackedRow, note
from amends.lm.memorisation import record_row
from amends.lm.pairs import Pair
from amends.maths.memorisation import exposure, exposure_sampled, exposure_skew_normal

SLOT = re.compile(r"\{([dl])(\d{1,2})\}")
ALPHABETS = {"d": "0123456789", "l": "abcdefghijklmnopqrstuvwxyz"}
ANSWERS_PER_ROW = 32
"""Candidates that share a prompt in one row."""


@dataclass(frozen=True)
class Canary:
    """One secret, and how often it goes into the training data."""

    number: int
    repeats: int
    secret: str


@dataclass(frozen=True)
class Exposure:
    """How much lower a canary's loss is than that of other secrets that might stand in its place."""

    canary: Canary
    loss: float
    """Nats of the whole answer."""
    bits: float
    """By rank among the candidates: all of them, or the sampled ones, which tell log2(samples + 1) bits at most."""
    fitted_bits: float
    """By a skew-normal distribution fitted to the samples; NaN where all candidates were compared."""
    log2_space: float
    """Bits of a secret: the most there can be."""


@dataclass(frozen=True)
class Canaries:
    """Secrets of a known form, put into training data to see how often one must stand there to be memorised.

    Parameters
    ----------
    pattern : str
        Text with one slot, `{d6}` for 6 digits or `{l8}` for 8 letters, and text before it. `{i}` becomes the canary's
        number, so that several do not contradict each other.
    repeats : sequence of int
        How often each canary is inserted; 0 makes one that is not.
    question : str, optional
        Makes question-answer pairs whose answer is the pattern; otherwise plain text. `{i}` as above.
    seed : int, default 0
        Of the secrets and of their places.

    Raises
    ------
    InputError : a pattern without exactly one slot, or nothing before it to continue.
    """

    pattern: str
    repeats: Sequence[int] = (1, 2, 4, 8, 16)
    question: str | None = None
    seed: int = 0
    canaries: list[Canary] = field(init=False)

    def __post_init__(self) -> None:
        if len(SLOT.findall(self.pattern)) != 1 or (self.question is None and not self._around(0)[0].strip()):
            raise InputError(
                f"pattern {self.pattern!r}: expected text with one slot behind it, such as 'the code is {{d6}}'."
            )
        rng = np.random.default_rng(self.seed)
        secrets: dict[str, None] = {}
        while len(secrets) < min(len(self.repeats), self.num_candidates):
            secrets[self._draw(rng)] = None
        if len(secrets) < len(self.repeats):
            raise InputError(f"pattern {self.pattern!r}: too few secrets for {len(self.repeats)} canaries.")
        found = [Canary(i, *both) for i, both in enumerate(zip(self.repeats, secrets, strict=True))]
        object.__setattr__(self, "canaries", found)

    @property
    def num_candidates(self) -> int:
        """Secrets of this form."""
        alphabet, length = self._slot
        return int(len(alphabet) ** length)

    def pairs(self) -> list[Pair]:
        """Make the pairs to train on: each canary as often as it is repeated."""
        return [
            self._pair(canary, canary.secret, f"canary-{canary.number}-{copy}")
            for canary in self.canaries
            for copy in range(canary.repeats)
        ]

    def insert(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Put the canaries into rows, at random places; as question and answer, or as text."""
        rng = np.random.default_rng([self.seed, 1])
        told = [
            {"id": p.id, "text": f"{p.prompt}{p.answer}"}
            if p.is_text
            else {"id": p.id, "question": p.question, "answer": p.answer}
            for p in self.pairs()
        ]
        places = np.sort(rng.integers(len(rows) + 1, size=len(told)))
        out: list[dict[str, Any]] = [dict(row) for row in rows]
        for place, k in zip(places[::-1], rng.permutation(len(told)), strict=True):
            out.insert(int(place), told[k])
        return out

    def exposure(
        self, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, *, samples: int = 1000
    ) -> list[Exposure]:
        """Compare each canary's loss with that of other secrets in its place.

        Parameters
        ----------
        model, tokenizer : trained on the canaries, or not
        samples : int, default 1000
            Candidates; all of them where there are no more.

        Raises
        ------
        InputError : secrets of different numbers of tokens, whose losses cannot be compared.
        """
        rng = np.random.default_rng([self.seed, 2])
        all_of_them = self.num_candidates <= samples
        found = []
        for canary in self.canaries:
            if all_of_them:
                candidates = [self._secret(k) for k in range(self.num_candidates)]
            else:
                candidates = [s for s in (self._draw(rng) for _ in range(samples)) if s != canary.secret]
                candidates.append(canary.secret)
            losses = self._losses(model, tokenizer, canary, candidates)
            place = candidates.index(canary.secret)
            loss = losses[place]
            losses = losses if all_of_them else losses[:place]
            log2_space = float(np.log2(self.num_candidates))
            bits = float(exposure(loss, losses) if all_of_them else exposure_sampled(loss, losses))
            fitted = float("nan") if all_of_them else float(exposure_skew_normal(loss, losses, log2_space))
            found.append(Exposure(canary, loss, bits, fitted, log2_space))
        return found

    def _losses(
        self, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, canary: Canary, secrets: Sequence[str]
    ) -> list[float]:
        pairs = [self._pair(canary, secret, "") for secret in secrets]
        prompt, answers = record_row(tokenizer, pairs[0].prompt, [pair.answer for pair in pairs])
        lengths = {len(answer) for answer in answers}
        if len(lengths) > 1:
            raise InputError(
                f"pattern {self.pattern!r}: this tokenizer makes {min(lengths)} to {max(lengths)} tokens of an answer, "
                "so their losses cannot be compared. Use another slot, such as letters for digits."
            )
        starts = range(0, len(answers), ANSWERS_PER_ROW)
        packed = [PackedRow(prompt, answers[start : start + ANSWERS_PER_ROW]) for start in starts]
        noted = note(model, packed, tokenizer.pad_token_id, lambda out: out.logp_BA)
        return [float(loss) for logp_A1 in noted for loss in -logp_A1.reshape(-1, len(answers[0])).sum(-1)]

    @property
    def _slot(self) -> tuple[str, int]:
        kind, length = SLOT.findall(self.pattern)[0]
        return ALPHABETS[kind], int(length)

    def _draw(self, rng: np.random.Generator) -> str:
        alphabet, length = self._slot
        return "".join(alphabet[k] for k in rng.integers(len(alphabet), size=length))

    def _secret(self, number: int) -> str:
        alphabet, length = self._slot
        return "".join(alphabet[number // len(alphabet) ** k % len(alphabet)] for k in reversed(range(length)))

    def _around(self, number: int) -> tuple[str, str]:
        before, _, _, after = SLOT.split(self.pattern)
        return before.replace("{i}", str(number)), after.replace("{i}", str(number))

    def _pair(self, canary: Canary, secret: str, identity: str) -> Pair:
        before, after = self._around(canary.number)
        if self.question is not None:
            question = self.question.replace("{i}", str(canary.number))
            return Pair(identity, [{"role": "user", "content": question}], f"{before}{secret}{after}", "canaries")
        prompt = before.rstrip()  # a space belongs to the token behind it
        return Pair(identity, prompt, f"{before[len(prompt) :]}{secret}{after}", "canaries")
