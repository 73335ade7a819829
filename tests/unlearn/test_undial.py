"""UNDIAL: unmoved at beta 0, and what is taught is what was said with a token lowered."""

from pathlib import Path

import torch

from amends.unlearn.undial import UNDIALConfig, UNDIALTrainer, undial_cross_entropy

from .conftest import gradients, history, trainer_on


def test_at_the_start_and_beta_zero_nothing_moves(tiny_model: Path, tmp_path: Path) -> None:
    still = gradients(trainer_on(tiny_model, tmp_path, UNDIALTrainer, UNDIALConfig, keep=None, beta=0.0))
    assert max(g.abs().max() for g in still) < 1e-6
    moved = gradients(trainer_on(tiny_model, tmp_path, UNDIALTrainer, UNDIALConfig, keep=None))
    assert max(g.abs().max() for g in moved) > 1e-3


def test_it_is_the_cross_entropy_of_torch_with_the_lowered_distribution() -> None:
    draw = torch.Generator().manual_seed(0)
    now, before = (torch.randn(5, 9, generator=draw) for _ in range(2))
    target = torch.tensor([0, 3, 8, 3, 1])
    lowered = before.clone()
    for row, column in enumerate(target.tolist()):
        lowered[row, column] -= 2.0
    expected = torch.nn.functional.cross_entropy(now, lowered.softmax(-1), reduction="none")
    torch.testing.assert_close(undial_cross_entropy(now, target, before, 2.0), expected)


def test_training_lowers_the_answers_without_rows_to_keep(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"learning_rate": 1e-2, "num_train_epochs": 6, "keep": None}
    trainer = trainer_on(tiny_model, tmp_path, UNDIALTrainer, UNDIALConfig, **settings)
    trainer.train()
    assert history(trainer)[-1]["mean_loss"] < history(trainer)[0]["mean_loss"]
    assert trainer.forget_means()["v_f"] < trainer.start["v_f"]
