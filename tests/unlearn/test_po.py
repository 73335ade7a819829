"""PO teaches the templates and does not touch the answers."""

from pathlib import Path

import pytest
import torch

from amends.unlearn._forget import ForgetConfig
from amends.unlearn.po import POTrainer

from .conftest import history, said_with, trainer_on


def test_only_the_template_costs(tiny_model: Path, tmp_path: Path) -> None:
    logp = torch.tensor([[-1.0, -2.0, -4.0]], requires_grad=True)
    trainer = trainer_on(tiny_model, tmp_path, POTrainer, ForgetConfig)
    losses, values = trainer.forget_losses(said_with(logp, [[0, 1, 1]]))
    assert losses.tolist() == pytest.approx([3.0])
    assert values["v_f"].item() == pytest.approx(torch.tensor(-1.0).exp().item())
    losses.sum().backward()
    torch.testing.assert_close(logp.grad, torch.tensor([[0.0, -0.5, -0.5]]), atol=1e-5, rtol=0)


def test_it_learns_the_templates(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"learning_rate": 1e-2, "num_train_epochs": 6, "templates": ["No idea."]}
    trainer = trainer_on(tiny_model, tmp_path, POTrainer, ForgetConfig, **settings)
    trainer.train()
    assert history(trainer)[-1]["v_e"] > 2 * history(trainer)[0]["v_e"]
