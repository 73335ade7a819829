"""NPO: what it is at the start, and what it becomes at the ends of its temperature."""

import math
from pathlib import Path

import pytest
import torch

from amends.lm.load import add_lora, load
from amends.lm.trainer import training_arguments
from amends.unlearn._config import ForgetConfig
from amends.unlearn.ga import GATrainer
from amends.unlearn.npo import NPOConfig, NPOTrainer, npo_loss

from .conftest import PAIRS, gradients, history, trainer_on


@pytest.mark.parametrize("beta", [0.05, 0.1, 2.0])
def test_at_the_start_it_is_two_log_two_over_beta_and_pushes_like_ascent(beta: float) -> None:
    logp = torch.tensor([-3.0, -40.0], requires_grad=True)
    loss = npo_loss(logp, logp.detach(), beta)
    torch.testing.assert_close(loss, torch.full((2,), 2 / beta * math.log(2)))
    loss.sum().backward()
    torch.testing.assert_close(logp.grad, torch.ones(2))


def test_a_small_beta_is_ascent_and_what_is_gone_is_left_alone() -> None:
    logp = torch.tensor([-1.0, -30.0, -5000.0], dtype=torch.float64, requires_grad=True)
    reference = torch.full((3,), -1.0, dtype=torch.float64)
    ascent = npo_loss(logp, reference, 1e-6) - 2e6 * math.log(2)
    torch.testing.assert_close(ascent, logp - reference, atol=7.0, rtol=1e-3)
    npo_loss(logp, reference, 0.1).sum().backward()
    assert logp.grad is not None
    assert logp.grad[0] == 1
    assert logp.grad[1] < 0.2
    assert logp.grad[2] < 1e-100


def test_its_first_gradient_is_that_of_the_summed_likelihood(tiny_model: Path, tmp_path: Path) -> None:
    here = gradients(trainer_on(tiny_model, tmp_path, NPOTrainer, NPOConfig, keep=None))
    ascent = trainer_on(tiny_model, tmp_path, GATrainer, ForgetConfig, keep=None)
    lengths = {len(row.packed.answers[0]) for row in ascent.forget_rows}
    assert len(lengths) == 1  # so that the sum is the mean times the same number for all
    for mine, other in zip(here, gradients(ascent), strict=True):
        torch.testing.assert_close(mine, next(iter(lengths)) * other, atol=1e-5, rtol=1e-4)


def test_training_goes_down_from_the_start_and_stays_bounded_below(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path, NPOTrainer, NPOConfig, learning_rate=1e-2, num_train_epochs=6)
    trainer.train()
    first, *_, last = history(trainer)
    assert first["mean_loss"] - first["retain_nll"] == pytest.approx(20 * math.log(2), abs=1e-4)
    assert 0 < last["mean_loss"] - last["retain_nll"] < 20 * math.log(2)
    assert trainer.forget_means()["v_f"] < trainer.start["v_f"]


def test_what_was_noted_is_what_the_model_says_without_its_adapter(tiny_model: Path, tmp_path: Path) -> None:
    loaded = load(tiny_model)
    model = add_lora(loaded.model, rank=2)
    settings = {"use_cpu": True, "bf16": False, "disable_tqdm": True, "max_steps": 4, "learning_rate": 1e-2}
    args = training_arguments(NPOConfig, str(tmp_path), **settings)
    trainer = NPOTrainer(model, args, PAIRS, loaded.tokenizer)
    trainer.train()
    model.eval()
    for row in trainer.forget_rows:
        (answer,) = row.packed.answers
        ids, first = torch.tensor([[*row.packed.prompt, *answer]]), len(row.packed.prompt)
        with torch.no_grad():
            now = model(input_ids=ids).logits
            with model.disable_adapter():
                before = model(input_ids=ids).logits
        at = torch.tensor(answer)[:, None]
        assert row.notes is not None
        torch.testing.assert_close(
            row.notes, before[0, first - 1 : -1].log_softmax(-1).gather(1, at), atol=1e-5, rtol=0
        )
        assert (now - before).abs().max() > 1e-2


def test_the_start_is_noted_at_the_precision_of_the_training_whatever_the_hardware_could(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = []
    for precision in ("float32", "bfloat16"):
        monkeypatch.setattr("amends.lm.load.precision", lambda precision=precision: precision)
        trainer = trainer_on(tiny_model, tmp_path, NPOTrainer, NPOConfig)
        trainer.note_reference()
        notes.append(trainer.forget_rows[0].notes)
    assert torch.equal(*notes)
