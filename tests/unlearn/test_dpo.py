"""DPO: what it is without a winner and at the start, and that what is noted is what the model says."""

import math
from pathlib import Path

import pytest
import torch

from amends.lm.logprobs import note
from amends.unlearn.dpo import DPOConfig, DPOTrainer, dpo_loss
from amends.unlearn.npo import npo_loss

from .conftest import history, trainer_on

TEMPLATES = ["No idea.", "That I do not know.", "I cannot say."]


def test_without_a_winner_it_is_npo() -> None:
    gains = torch.tensor([-5.0, 0.0, 3.0])
    torch.testing.assert_close(dpo_loss(torch.zeros(3), gains, 0.1), npo_loss(gains, torch.zeros(3), 0.1))


def test_what_is_noted_is_what_the_model_says_of_each_pair_of_answers(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path, DPOTrainer, DPOConfig, templates=TEMPLATES, alternates=2)
    trainer.note_reference()
    rows = [row for choices in trainer._choices for row in choices]
    assert len(rows) == 12
    assert len({tuple(row.packed.answers[1]) for row in rows}) > 1
    for row in rows:
        (said,) = note(trainer.model, [row.packed], 0, lambda out: out.logp_BA)
        torch.testing.assert_close(row.notes, said, atol=1e-5, rtol=0)


def test_it_starts_at_two_log_two_over_beta_and_learns_the_templates(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"templates": TEMPLATES, "learning_rate": 1e-2, "num_train_epochs": 6, "keep": None}
    trainer = trainer_on(tiny_model, tmp_path, DPOTrainer, DPOConfig, **settings)
    trainer.train()
    first, *_, last = history(trainer)
    assert first["mean_loss"] == pytest.approx(20 * math.log(2), abs=1e-3)
    assert last["mean_loss"] < first["mean_loss"]
    assert last["v_e"] / last["v_f"] > first["v_e"] / first["v_f"]
