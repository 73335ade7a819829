"""KL minimisation: what is kept costs nothing at the start, and pulls back afterwards."""

from pathlib import Path

import torch

from amends.unlearn._config import ForgetConfig
from amends.unlearn.ga import GATrainer
from amends.unlearn.kl import KLTrainer

from .conftest import gradients, history, trainer_on


def test_its_first_gradient_is_that_of_ascent_alone(tiny_model: Path, tmp_path: Path) -> None:
    here = gradients(trainer_on(tiny_model, tmp_path, KLTrainer, ForgetConfig))
    ascent = gradients(trainer_on(tiny_model, tmp_path, GATrainer, ForgetConfig, keep=None))
    for mine, other in zip(here, ascent, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_the_divergence_is_nought_at_first_and_the_less_the_more_it_weighs(tiny_model: Path, tmp_path: Path) -> None:
    ends = []
    for weight in (1e-9, 30.0):
        settings = {"learning_rate": 1e-2, "num_train_epochs": 5, "retain_weight": weight}
        trainer = trainer_on(tiny_model, tmp_path, KLTrainer, ForgetConfig, **settings)
        trainer.train()
        assert abs(history(trainer)[0]["retain_kl"]) < 1e-6
        assert "retain_nll" not in history(trainer)[0]
        ends.append(history(trainer)[-1]["retain_kl"])
    assert 0 < ends[1] < 0.5 * ends[0]
