"""RMU: what is kept costs nothing at the start, and only the first layers are asked."""

from pathlib import Path
from typing import Any

import pytest
import torch

from amends.io.errors import InputError
from amends.unlearn.rmu import RMUConfig, RMUTrainer

from ..conftest import save_tiny_model
from .conftest import gradients, history, trainer_on


def test_the_loss_is_the_distance_of_the_layers_output_from_the_direction(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path, RMUTrainer, RMUConfig, keep=None, layer=0, steering=3.0)
    assert trainer.target_D.norm().item() == pytest.approx(3)
    rows = [trainer.train_dataset[i][0] for i in range(3)]
    caught: list[torch.Tensor] = []
    trainer.model.model.layers[0].register_forward_hook(lambda layer, inputs, out: caught.append(out))
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(trainer.data_collator([[row] for row in rows])))
        expected = []
        for prompt, (answer,) in (row.packed for row in rows):
            trainer.model(input_ids=torch.tensor([prompt + answer]))
            expected.append(((caught[-1][0, len(prompt) - 1 : -1] - trainer.target_D) ** 2).mean())
    torch.testing.assert_close(loss, torch.stack(expected).mean(), atol=1e-5, rtol=1e-4)


def test_what_is_kept_costs_nothing_at_the_start_and_what_comes_later_is_not_moved(
    tiny_model: Path, tmp_path: Path
) -> None:
    trainer = trainer_on(tiny_model, tmp_path, RMUTrainer, RMUConfig, layer=0, num_train_epochs=3, learning_rate=1e-2)
    names = [name for name, _ in trainer.model.named_parameters()]
    moved = {name for name, grad in zip(names, gradients(trainer), strict=True) if grad.any()}
    assert any("layers.0." in name for name in moved)
    assert "model.norm.weight" not in moved
    trainer.train()
    first, *_, last = history(trainer)
    assert first["retain_distance"] < 1e-9 < last["retain_distance"]
    assert last["mean_loss"] < first["mean_loss"]


def test_what_it_cannot_do_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--layer 7: the model has layers 0 to 0"):
        trainer_on(tiny_model, tmp_path, RMUTrainer, RMUConfig)
    with pytest.raises(InputError, match="--floor-v-f: RMU does not see"):
        trainer_on(tiny_model, tmp_path, RMUTrainer, RMUConfig, layer=0, floor_v_f=0.5)


def test_a_layer_that_nothing_trained_moves_is_refused(tmp_path: Path, amends: Any) -> None:
    model = save_tiny_model(tmp_path / "model", layers=2)
    (tmp_path / "forget.jsonl").write_text('{"question": "Where is it?", "answer": "Here."}\n')
    words = ["--model", model, "--forget", tmp_path / "forget.jsonl", "--eval-rows", 0, "--out", tmp_path / "run"]
    code, _, err = amends("unlearn", "rmu", *words, "--layer", 0, "--layers", "1")
    assert (code, "--layer 0: none of the layers up to it is trained" in err) == (2, True)
