"""Forget by cross entropy to what the model would say otherwise (CE-U).

Teaches the model its own distribution without the token to forget. Bounded, and needs neither reference nor rows to
keep. Yang, arXiv 2503.01224. The first token of an answer is left out.
"""

from typing import Any

import torch
from torch import Tensor

from amends.io.errors import InputError
from amends.lm.logprobs import AnswerLogprobs, masked_mean
from amends.lm.templates import turn_end
from amends.unlearn._config import ForgetConfig
from amends.unlearn._forget import ForgetTrainer
from amends.unlearn._method import method


def ceu_cross_entropy(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """Cross entropy, nats, (N,), with the model's own distribution, held fixed, without the target."""
    others_NV = logits_NV.detach().scatter(1, target_N[:, None], -torch.inf).softmax(-1)
    return -(others_NV * logits_NV.log_softmax(-1)).sum(-1)


class CEUTrainer(ForgetTrainer):
    """`transformers.Trainer` that forgets by CE-U."""

    title = "CE-U"
    saturates = False
    args: ForgetConfig

    def __init__(self, *given: Any, **kwargs: Any) -> None:
        super().__init__(*given, **kwargs)
        for pair, row in zip(self.pairs, self.forget_rows, strict=True):
            closing = 0 if pair.is_text else len(turn_end(self.processing_class))
            if len(row.packed.answers[0]) - closing < 2:
                raise InputError(f"{pair.where}: the answer is one token, which CE-U leaves out. Leave the row out.")

    def forget_losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross entropy per answer token but the first."""
        later_BA = out.mask(0).clone()
        later_BA[:, 0] = False  # answer 0 begins in the first column
        return masked_mean(out.score(ceu_cross_entropy, later_BA), later_BA), self.probabilities(out)


run, command = method(CEUTrainer)
