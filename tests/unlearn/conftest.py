"""Answer tokens whose logits are given, for losses without a model."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amends.lm.logprobs import AnswerLogprobs


def said_with(logp_BA: Any, answer_BA: Sequence[Sequence[int]], said_BAK: Tensor | None = None) -> AnswerLogprobs:
    """Tokens with these log-probabilities, among a vocabulary of two."""
    logp_BA = torch.as_tensor(logp_BA, dtype=torch.float32)
    logits_BAV = torch.stack([logp_BA, torch.log1p(-logp_BA.exp())], -1)
    return with_logits(logits_BAV, torch.zeros_like(logp_BA, dtype=torch.int64), answer_BA, said_BAK)


def with_logits(
    logits_BAV: Tensor, target_BA: Any, answer_BA: Sequence[Sequence[int]], said_BAK: Tensor | None = None
) -> AnswerLogprobs:
    """Tokens with these logits; what the output layer gets are the logits themselves."""
    has_said_B = None if said_BAK is None else torch.ones(len(said_BAK), dtype=torch.bool)
    return AnswerLogprobs(
        torch.tensor(answer_BA),
        torch.as_tensor(target_BA),
        logits_BAV,
        lambda hidden: hidden,
        logits_BAV.shape[-1],
        said_BAK,
        has_said_B,
    )
