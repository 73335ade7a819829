"""GradDiff is gradient ascent that insists on rows to keep."""

from pathlib import Path

import pytest
import torch

from amends.io.errors import InputError
from amends.unlearn._config import ForgetConfig
from amends.unlearn.ga import GATrainer
from amends.unlearn.graddiff import GradDiffTrainer

from .conftest import gradients, trainer_on


def test_its_gradient_is_ascent_on_what_to_forget_and_descent_on_what_to_keep(tiny_model: Path, tmp_path: Path) -> None:
    both = gradients(trainer_on(tiny_model, tmp_path, GradDiffTrainer, ForgetConfig))
    ascent = gradients(trainer_on(tiny_model, tmp_path, GATrainer, ForgetConfig, keep=None))
    descent = gradients(trainer_on(tiny_model, tmp_path, GradDiffTrainer, ForgetConfig, forget_weight=0.0))
    assert max(g.abs().max() for g in descent) > 1e-3
    for whole, up, down in zip(both, ascent, descent, strict=True):
        torch.testing.assert_close(whole, up + down, atol=1e-5, rtol=1e-4)


def test_without_rows_to_keep_it_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"GradDiff needs rows to keep\. Give --retain, or --neighbours"):
        trainer_on(tiny_model, tmp_path, GradDiffTrainer, ForgetConfig, keep=None)
