"""PO teaches the templates and does not touch the answers."""

from pathlib import Path

import pytest
import torch

from amends.unlearn._config import ForgetConfig
from amends.unlearn.po import POTrainer

from .conftest import history, said_with, trainer_on


def test_only_the_template_costs(tiny_model: Path, tmp_path: Path) -> None:
    logp = torch.tensor([[-1.0, -2.0, -4.0]], requires_grad=True)
    trainer = trainer_on(tiny_model, tmp_path, POTrainer, ForgetConfig, stop_v_f=0.01)
    losses, values = trainer.forget_losses(said_with(logp, [[0, 1, 1]]))
    assert losses.tolist() == pytest.approx([3.0])
    assert values["v_f"].item() == pytest.approx(torch.tensor(-1.0).exp().item())
    losses.sum().backward()
    torch.testing.assert_close(logp.grad, torch.tensor([[0.0, -0.5, -0.5]]), atol=1e-5, rtol=0)


def test_the_answers_to_forget_are_asked_only_where_a_rule_looks_at_them(tiny_model: Path, tmp_path: Path) -> None:
    for settings, answers in (({}, 1), ({"stop_v_f": 0.01}, 2), ({"floor_v_f": 0.01}, 2)):
        trainer = trainer_on(tiny_model, tmp_path, POTrainer, ForgetConfig, templates=["No idea."], **settings)
        row = trainer.train_dataset[0][0].packed
        assert len(row.answers) == answers
        text = trainer.processing_class.decode(row.answers[-1], skip_special_tokens=True)
        assert text.strip() == "No idea."
        assert trainer.forget_means().keys() == {"v_f", "v_e"}


def test_it_learns_the_templates(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"learning_rate": 1e-2, "num_train_epochs": 6, "templates": ["No idea."]}
    trainer = trainer_on(tiny_model, tmp_path, POTrainer, ForgetConfig, **settings)
    trainer.train()
    assert history(trainer)[-1]["v_e"] > 2 * history(trainer)[0]["v_e"]
