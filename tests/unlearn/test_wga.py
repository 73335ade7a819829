"""WGA: gradient ascent at beta 0, and unmoved by what is gone."""

from pathlib import Path

import torch

from amends.unlearn._config import ForgetConfig
from amends.unlearn.ga import GATrainer
from amends.unlearn.wga import WGAConfig, WGATrainer

from .conftest import gradients, said_with, trainer_on


def test_at_beta_zero_it_is_gradient_ascent(tiny_model: Path, tmp_path: Path) -> None:
    here = gradients(trainer_on(tiny_model, tmp_path, WGATrainer, WGAConfig, beta=0.0))
    for mine, other in zip(here, gradients(trainer_on(tiny_model, tmp_path, GATrainer, ForgetConfig)), strict=True):
        torch.testing.assert_close(mine, other)


def test_the_weight_is_the_probability_and_is_held_fixed(tiny_model: Path, tmp_path: Path) -> None:
    logp = torch.tensor([[-0.1, -2.0, -20.0]], requires_grad=True)
    losses, _ = trainer_on(tiny_model, tmp_path, WGATrainer, WGAConfig).forget_losses(said_with(logp, [[0, 0, 0]]))
    torch.testing.assert_close(losses, (logp.exp() * logp).mean(-1))
    losses.sum().backward()
    torch.testing.assert_close(logp.grad, logp.detach().exp() / 3, atol=1e-6, rtol=1e-3)
