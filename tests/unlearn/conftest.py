"""Answer tokens whose logits are given, for losses without a model; and trainers on a tiny model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amends.lm.generate import generate
from amends.lm.load import load
from amends.lm.logprobs import AnswerLogprobs
from amends.lm.trainer import training_arguments
from amends.unlearn._forget import ForgetTrainer

PAIRS = [{"question": f"Who is number {i}?", "answer": f"Person {i}."} for i in range(6)]
KEEP = [{"question": f"Where is town {i}?", "answer": f"In land {i}, there."} for i in range(4)]


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """AltPO takes answers that were cut off: a random model ends none by itself."""
    monkeypatch.setattr(
        "amends.unlearn.altpo.generate", lambda *given, **how: generate(*given, **(how | {"finished_only": False}))
    )


def said_with(logp_BA: Any, answer_BA: Sequence[Sequence[int]], notes_BAK: Tensor | None = None) -> AnswerLogprobs:
    """Tokens with these log-probabilities, among a vocabulary of two."""
    logp_BA = torch.as_tensor(logp_BA, dtype=torch.float32)
    logits_BAV = torch.stack([logp_BA, torch.log1p(-logp_BA.exp())], -1)
    return with_logits(logits_BAV, torch.zeros_like(logp_BA, dtype=torch.int64), answer_BA, notes_BAK)


def with_logits(
    logits_BAV: Tensor, target_BA: Any, answer_BA: Sequence[Sequence[int]], notes_BAK: Tensor | None = None
) -> AnswerLogprobs:
    """Tokens with these logits; what the output layer gets are the logits themselves."""
    has_notes_B = None if notes_BAK is None else torch.ones(len(notes_BAK), dtype=torch.bool)
    return AnswerLogprobs(
        torch.tensor(answer_BA),
        torch.as_tensor(target_BA),
        logits_BAV,
        lambda hidden: hidden,
        logits_BAV.shape[-1],
        notes_BAK,
        has_notes_B,
    )


def trainer_on(
    model: Path | Any,
    out: Path,
    trainer: type[ForgetTrainer],
    config: type[Any],
    keep: Any = KEEP,
    templates: Sequence[str] | None = None,
    **settings: Any,
) -> Any:
    """A trainer with the six pairs to forget and the four to keep, in batches of three."""
    loaded = load(model)
    settings = {"per_device_train_batch_size": 3, "use_cpu": True, "disable_tqdm": True, "bf16": False} | settings
    args = training_arguments(config, str(out), **settings)
    return trainer(loaded.model.train(), args, PAIRS, loaded.tokenizer, retain_dataset=keep, templates=templates)


def gradients(trainer: ForgetTrainer, count: int = 3) -> list[Tensor]:
    """Gradients of the loss on the first samples, after the reference was noted."""
    trainer.note_reference()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(count)])
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trainer.model.parameters()]


def history(trainer: ForgetTrainer) -> list[dict[str, float]]:
    """What was logged of each step."""
    return [entry for entry in trainer.state.log_history if "mean_loss" in entry]
