"""SimNPO is NPO of the mean, without a reference."""

from pathlib import Path

import pytest
import torch

from amends.unlearn.npo import npo_loss
from amends.unlearn.simnpo import SimNPOConfig, SimNPOTrainer

from .conftest import said_with, trainer_on

LOGP, ANSWERS = [[-1.0, -3.0, -0.5], [-2.0, -2.0, -0.7]], [[0, 0, 0], [0, 0, -2]]


@pytest.mark.parametrize("delta", [0.0, 0.5])
def test_it_is_npo_of_the_mean_against_a_constant(tiny_model: Path, tmp_path: Path, delta: float) -> None:
    trainer = trainer_on(tiny_model, tmp_path, SimNPOTrainer, SimNPOConfig, beta=2.0, delta=delta)
    losses, _ = trainer.forget_losses(said_with(LOGP, ANSWERS))
    expected = npo_loss(torch.tensor([-1.5, -2.0]), torch.tensor([-delta, -delta]), 2.0)
    torch.testing.assert_close(losses, expected)


def test_length_does_not_weigh(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path, SimNPOTrainer, SimNPOConfig)
    short, _ = trainer.forget_losses(said_with([[-2.0]], [[0]]))
    long, _ = trainer.forget_losses(said_with([[-2.0] * 7], [[0] * 7]))
    torch.testing.assert_close(short, long)
