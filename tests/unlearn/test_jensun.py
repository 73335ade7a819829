"""JensUn: its closed form is the divergence it stands for, bounded, and nought at the start for what is kept."""

import math
from pathlib import Path

import pytest
import torch

from amends.unlearn._config import ForgetConfig
from amends.unlearn.jensun import JensUnTrainer, js_divergence, js_to_token

from .conftest import history, trainer_on


def test_the_closed_form_is_the_divergence_from_a_certain_token() -> None:
    logits = 3 * torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 3, 4, 8])
    certain = torch.full_like(logits, -1e4).scatter(1, target[:, None], 0.0)
    logp = logits.log_softmax(-1)[range(6), target]
    torch.testing.assert_close(js_to_token(logp), js_divergence(logits, certain))


def test_it_lies_between_nought_and_log_two() -> None:
    p = torch.tensor([1e-30, 1e-6, 0.3, 0.999, 1.0])
    assert js_to_token(p.log())[[0, -1]].tolist() == pytest.approx([math.log(2), 0], abs=1e-6)
    assert (js_to_token(p.log()).diff() <= 0).all()
    here, there = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(1))
    assert js_divergence(here, here).abs().max() < 1e-6
    assert (js_divergence(here, there) > 0).all()
    assert (js_divergence(here, there) < math.log(2)).all()


def test_what_is_kept_costs_nothing_at_the_start(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"learning_rate": 1e-2, "num_train_epochs": 4, "templates": ["No idea."]}
    trainer = trainer_on(tiny_model, tmp_path, JensUnTrainer, ForgetConfig, **settings)
    trainer.train()
    first, *_, last = history(trainer)
    assert abs(first["retain_js"]) < 1e-6 < last["retain_js"]
    assert last["v_e"] > first["v_e"]
