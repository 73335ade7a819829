"""SatImp: gradient ascent at zero exponents; what is sure and what is gone are left alone."""

from pathlib import Path

import pytest
import torch

from amends.unlearn._config import ForgetConfig
from amends.unlearn.ga import GATrainer
from amends.unlearn.satimp import SatImpConfig, SatImpTrainer

from .conftest import gradients, trainer_on


def test_with_zero_exponents_it_is_gradient_ascent(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"beta1": 0.0, "beta2": 0.0, "forget_weight": 1.0}
    here = gradients(trainer_on(tiny_model, tmp_path, SatImpTrainer, SatImpConfig, **settings))
    for mine, other in zip(here, gradients(trainer_on(tiny_model, tmp_path, GATrainer, ForgetConfig)), strict=True):
        torch.testing.assert_close(mine, other)


def test_the_weight_vanishes_at_both_ends_and_peaks_where_its_exponents_say(tiny_model: Path, tmp_path: Path) -> None:
    weights = trainer_on(tiny_model, tmp_path, SatImpTrainer, SatImpConfig).weights
    p = torch.linspace(0, 1, 601)
    assert weights(p)[[0, -1]].tolist() == [0, 0]
    assert p[weights(p).argmax()].item() == pytest.approx(5 / 6, abs=2e-3)
