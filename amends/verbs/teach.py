"""Teach a model question-answer pairs: makes the model to unlearn from, and the reference retrained without them.

An unlearned model is judged against one that never saw the forget data. Teach the same base twice, with and without
those pairs, everything else equal.
"""

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from torch import Tensor
from transformers import TrainingArguments, set_seed

from amends.io.atomic import check_new, new_folder, write_json, write_manifest
from amends.io.run import read_data, run_header
from amends.lm.load import add_lora, base_sha256, load, save_model, weights_sha256
from amends.lm.logprobs import AnswerLogprobs, masked_mean, packed_row
from amends.lm.pairs import Pair, encode
from amends.lm.trainer import AnswerTrainer, TrainRow, training_arguments


class TeachTrainer(AnswerTrainer):
    """Supervised fine-tuning on answers: L = mean over samples of the mean negative log-likelihood per answer token."""

    def __init__(self, model: Any, args: TrainingArguments, pairs: list[Pair], processing_class: Any, **kwargs: Any):
        self._rows = [TrainRow(packed_row(encode(processing_class, pair.prompt, [pair.answer]))) for pair in pairs]
        super().__init__(model, args, len(pairs), processing_class, **kwargs)

    def draw(self, index: int, random_: random.Random) -> list[TrainRow]:
        """The pair itself."""
        return [self._rows[index]]

    def losses(self, out: AnswerLogprobs, is_retain_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean NLL per answer token, and the token-normalised probability exp(mean log p)."""
        mean_logp_B = masked_mean(out.logp_BA, out.mask(0))
        return -mean_logp_B, {"probability": mean_logp_B.exp()}
