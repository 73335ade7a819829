"""PDU: the dual variable follows the cost of keeping, and survives an interruption."""

import shutil
from pathlib import Path

import pytest
import torch

from amends.io.errors import InputError
from amends.unlearn.pdu import PDUConfig, PDUTrainer, logit_spread

from .conftest import history, trainer_on


def test_the_spread_is_that_of_the_largest_logit_from_the_mean() -> None:
    logits = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])
    assert logit_spread(logits, torch.zeros(2)).tolist() == [9, 0]


@pytest.mark.parametrize(("step", "limit", "end"), [(0.0, 0.0, "fixed"), (5.0, 0.0, "risen"), (5.0, 100.0, "nought")])
def test_the_weight_follows_the_limit(step: float, limit: float, end: str, tiny_model: Path, tmp_path: Path) -> None:
    settings = {"dual_step": step, "retain_limit": limit, "dual_warmup_epochs": 1.0, "num_train_epochs": 3}
    trainer = trainer_on(tiny_model, tmp_path, PDUTrainer, PDUConfig, retain_weight=7.0, **settings)
    trainer.train()
    after = [entry["retain_nll"] for entry in history(trainer) if entry["epoch"] > 1]
    assert len(after) == 4
    expected = {"fixed": 7.0, "risen": 7 + 5 * sum(after), "nought": 0.0}
    assert trainer.retain_weight == pytest.approx(expected[end], rel=1e-4)


def test_the_weight_is_in_the_log_and_one_that_will_not_move_is_told(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"dual_warmup_epochs": 1.0, "num_train_epochs": 2, "retain_limit": 0.0}
    trainer = trainer_on(tiny_model, tmp_path, PDUTrainer, PDUConfig, retain_weight=7.0, **settings)
    trainer.train()
    first, *_, last = [entry["retain_weight"] for entry in history(trainer)]
    assert first == 7 < last
    assert trainer.start_warnings() == []
    trainer.args.dual_warmup_epochs = 2.0
    assert trainer.start_warnings()[0].startswith(
        "The weight of the rows to keep stays at 7: its first step comes after 2"
    )


def test_logs_that_tell_nothing_of_the_rows_to_keep_do_not_move_the_weight(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"dual_warmup_epochs": 0.0, "num_train_epochs": 1, "retain_limit": 5.0}
    trainer = trainer_on(tiny_model, tmp_path, PDUTrainer, PDUConfig, retain_weight=7.0, **settings)
    trainer.train()
    after = [entry["retain_nll"] for entry in history(trainer)]
    assert trainer.retain_weight == pytest.approx(7 + 5 * sum(cost - 5 for cost in after), rel=1e-4) != 7
    before = trainer.retain_weight
    trainer.log({"of_mine": 1.0})
    assert trainer.retain_weight == before


def test_the_log_of_every_step_is_needed(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="PDU looks at the log of every step"):
        trainer_on(tiny_model, tmp_path, PDUTrainer, PDUConfig, logging_steps=2)


def test_a_checkpoint_holds_the_dual_variable(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"dual_warmup_epochs": 0.0, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
    whole = trainer_on(tiny_model, tmp_path, PDUTrainer, PDUConfig, **settings)
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-4")
    again = trainer_on(tiny_model, tmp_path, PDUTrainer, PDUConfig, **settings)
    again.train(resume_from_checkpoint=True)
    assert again.retain_weight == whole.retain_weight != 1
    for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_insists_on_rows_to_keep(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="PDU needs rows to keep"):
        trainer_on(tiny_model, tmp_path, PDUTrainer, PDUConfig, keep=None)
