"""Gradient ascent, the baseline."""

import random
from pathlib import Path

import pytest
import torch

from amends.lm.load import load
from amends.lm.logprobs import answer_logprobs, masked_mean, pack
from amends.lm.trainer import training_arguments
from amends.unlearn import GATrainer
from amends.unlearn._config import ForgetConfig

PAIRS = [{"question": f"Who is number {i}?", "answer": f"Person {i}."} for i in range(6)]


def trainer_on(folder: Path, out: Path, **settings: object) -> GATrainer:
    loaded = load(folder)
    settings = {"per_device_train_batch_size": 3, "use_cpu": True, "disable_tqdm": True, "bf16": False} | settings
    args = training_arguments(ForgetConfig, str(out), **settings)
    return GATrainer(loaded.model.train(), args, PAIRS, loaded.tokenizer)


def test_its_gradient_is_the_negative_of_the_likelihoods(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    here = [weight.grad.clone() for weight in trainer.model.parameters()]
    trainer.model.zero_grad()
    nll = []
    for i in range(3):  # the cross entropy of transformers on each answer alone
        (row,) = trainer.train_dataset[i]
        prompt, (answer,) = row.packed
        labels = torch.tensor([[-100] * len(prompt) + answer])
        nll.append(trainer.model(input_ids=torch.tensor([prompt + answer]), labels=labels).loss)
    torch.stack(nll).mean().backward()
    for mine, weight in zip(here, trainer.model.parameters(), strict=True):
        torch.testing.assert_close(mine, -weight.grad, atol=1e-5, rtol=1e-4)


def test_its_loss_is_the_mean_log_likelihood(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path)
    with torch.no_grad():
        out = answer_logprobs(trainer.model, pack([trainer.forget_row(0, random.Random(0)).packed], 0))
    losses, values = trainer.forget_losses(out)
    torch.testing.assert_close(losses, masked_mean(out.logp_BA, out.mask(0)))
    torch.testing.assert_close(values["v_f"], masked_mean(out.logp_BA.exp(), out.mask(0)))
    assert (losses < 0).all()


def test_training_lowers_the_probability_and_logs_it(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path, learning_rate=1e-2, num_train_epochs=5)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "v_f" in entry]
    assert len(history) == 10
    assert set(history[0]) >= {"loss", "v_f", "learning_rate", "step", "epoch"}
    assert "v_e" not in history[0]
    assert trainer.forget_means()["v_f"] < trainer.start["v_f"]
    assert trainer.stopped == "all steps done"


def test_what_to_keep_stands_beside_what_to_forget(tiny_model: Path, tmp_path: Path) -> None:
    loaded = load(tiny_model)
    args = training_arguments(
        ForgetConfig, str(tmp_path), use_cpu=True, disable_tqdm=True, bf16=False, retain_weight=2.0, max_steps=1
    )
    keep = [{"question": "Where is Paris?", "answer": "In France."}]
    trainer = GATrainer(loaded.model, args, PAIRS, loaded.tokenizer, retain_dataset=keep)
    trainer.train()
    (entry,) = [e for e in trainer.state.log_history if "retain_nll" in e]
    likelihood = entry["mean_loss"] - 2 * entry["retain_nll"]
    assert likelihood < 0 < entry["retain_nll"]
    assert likelihood == pytest.approx(-entry["retain_nll"], rel=0.3)  # a random model finds all texts as unlikely
