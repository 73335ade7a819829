"""Forget by preferring a template answer (DPO, here IdkDPO).

Raises the likelihood of a template answer to each question against that of the answer to forget, both against the model
at the start. Rafailov et al., arXiv 2305.18290, equation 7; as a way to forget: Maini et al., arXiv 2401.06121.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn.functional import logsigmoid

from amends.lm.logprobs import AnswerLogprobs, PackedRow, note
from amends.lm.samples import TrainRow
from amends.unlearn._config import ForgetConfig
from amends.unlearn._forget import ForgetTrainer, log_probabilities
from amends.unlearn._method import method


@dataclass
class DPOConfig(ForgetConfig):
    """Settings of `DPOTrainer`."""

    beta: Annotated[float, typer.Option(help="Inverse temperature.", min=1e-6)] = 0.1
    alternates: Annotated[
        int, typer.Option(help="Other answers of each row, chosen once; an epoch takes one of them.", min=1)
    ] = 5


def dpo_loss(gain_win_S: Tensor, gain_lose_S: Tensor, beta: float) -> Tensor:
    """-(2 / beta) log sigmoid(beta (gain of the winning - gain of the losing answer)) of each sample.

    A gain is the log-probability of a whole answer, nats, less that of the reference. The factor 2 / beta, as in NPO,
    makes the gradient's size at the start the same for every beta. Where the gain of the winning one is 0, it is NPO.
    """
    return -2 / beta * logsigmoid(beta * (gain_win_S - gain_lose_S))


class DPOTrainer(ForgetTrainer):
    """`transformers.Trainer` that forgets by DPO; the reference's log-probabilities are noted once."""

    title = "DPO (IdkDPO)"
    keeps = "usual"
    saturates = False
    takes_templates = True
    args: DPOConfig

    def __init__(self, model: Any, args: DPOConfig, *rest: Any, **kwargs: Any) -> None:
        super().__init__(model, args, *rest, **kwargs)
        self._choices: list[list[TrainRow]] = []

    def alternates(self) -> list[Sequence[str]]:
        """Draw other answers for each row; one without any is forgotten by NPO."""
        count = min(self.args.alternates, len(self.templates))
        rows = range(len(self.pairs))
        return [random.Random(f"{self.args.seed} alternates {i}").sample(self.templates, count) for i in rows]

    def note_reference(self) -> None:
        """Note the log-probabilities of the answers to forget and of all alternates, each with its prompt once."""
        super().note_reference()
        rows = [self.with_answers(i, *texts).packed for i, texts in enumerate(self.alternates())]
        pad_id, exact = self.processing_class.pad_token_id, not self.args.bf16
        notes = note(self.model, rows, pad_id, log_probabilities, exact=exact)
        self._choices = []
        for (prompt, answers), notes_A1 in zip(rows, notes, strict=True):
            forget_A1, *others = notes_A1.split([len(answer) for answer in answers])
            choices = [
                TrainRow(PackedRow(prompt, [answers[0], answer]), notes=torch.cat([forget_A1, other_A1]))
                for answer, other_A1 in zip(answers[1:], others, strict=True)
            ]
            self._choices.append(choices or [TrainRow(PackedRow(prompt, answers), notes=forget_A1)])

    def forget_row(self, index: int, random_: random.Random) -> TrainRow:
        """Give the answer to forget and one of the alternates."""
        return random_.choice(self._choices[index]) if self._choices else super().forget_row(index, random_)

    def forget_losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """DPO of each sample."""
        gain_BA = out.logp_BA - out.noted_BAK[..., 0]
        lose_S, win_S = ((gain_BA * out.mask(k)).sum(-1) for k in (0, 1))
        return dpo_loss(win_S, lose_S, self.args.beta), self.probabilities(out)


run, command = method(DPOTrainer)
