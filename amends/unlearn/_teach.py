"""Plain fine-tuning on answers: what teaches a model, and what attacks one that was to forget."""

import random
from typing import Any

from torch import Tensor
from transformers import TrainingArguments

from amends.lm.logprobs import AnswerLogprobs, masked_mean
from amends.lm.pairs import Pair
from amends.lm.rows import context_limit, encode_rows
from amends.lm.samples import TrainRow
from amends.lm.trainer import AnswerTrainer


class TeachTrainer(AnswerTrainer):
    """Supervised fine-tuning on answers: L = mean over samples of the mean negative log-likelihood per answer token."""

    def __init__(self, model: Any, args: TrainingArguments, pairs: list[Pair], processing_class: Any, **kwargs: Any):
        limit = context_limit(model, 2**31)
        self._rows = [TrainRow(row) for row in encode_rows(processing_class, pairs, limit)]
        super().__init__(model, args, len(pairs), processing_class, **kwargs)

    def draw(self, index: int, random_: random.Random) -> list[TrainRow]:
        """Give the pair itself."""
        return [self._rows[index]]

    def losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean NLL per answer token, and the token-normalised probability exp(mean log p)."""
        mean_logp_B = masked_mean(out.logp_BA, out.mask(0))
        return -mean_logp_B, {"probability": mean_logp_B.exp()}
