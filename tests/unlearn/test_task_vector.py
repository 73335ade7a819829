"""A task vector is the update of a training, turned round."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from amends.io.errors import InputError
from amends.lm.load import add_lora, load
from amends.lm.quiet import quiet
from amends.lm.trainer import training_arguments
from amends.unlearn._forget import ForgetTrainer
from amends.unlearn.task_vector import TaskVectorConfig, TaskVectorTrainer

from .conftest import PAIRS, history, trainer_on


def weights(trainer: ForgetTrainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def test_it_goes_as_far_back_as_it_is_told(tiny_model: Path, tmp_path: Path) -> None:
    found = {}
    for scale in (-1.0, 0.0, 0.5):  # -1: what the training itself makes
        settings = {"learning_rate": 1e-2, "num_train_epochs": 2, "keep": None}
        trainer = trainer_on(tiny_model, tmp_path, TaskVectorTrainer, TaskVectorConfig, **settings)
        trainer.args.scale = scale
        start = weights(trainer)
        trainer.train()
        found[scale] = weights(trainer)
        assert history(trainer)[-1]["v_f"] > history(trainer)[0]["v_f"]
    for before, trained, same, back in zip(start, found[-1.0], found[0.0], found[0.5], strict=True):
        torch.testing.assert_close(same, before)
        torch.testing.assert_close(back, before - 0.5 * (trained - before), atol=1e-5, rtol=1e-4)
    assert trainer.forget_means()["v_f"] < trainer.start["v_f"]


def test_of_an_adapter_only_b_moves_so_that_the_weights_are_linear_in_it(tiny_model: Path, tmp_path: Path) -> None:
    loaded = load(tiny_model)
    model = add_lora(loaded.model, rank=2)
    settings = {"use_cpu": True, "bf16": False, "max_steps": 2, "learning_rate": 1e-2, "disable_tqdm": True}
    args = training_arguments(TaskVectorConfig, str(tmp_path), **settings)
    trainer = TaskVectorTrainer(model, args, PAIRS, loaded.tokenizer)
    assert {name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad} == {"lora_B"}
    trainer.train()
    assert any(p.any() for name, p in model.named_parameters() if "lora_B" in name)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer")
def test_adapters_in_which_the_weights_are_not_linear_are_refused_or_held(tiny_model: Path, tmp_path: Path) -> None:
    args = training_arguments(TaskVectorConfig, str(tmp_path), use_cpu=True)
    loaded = load(tiny_model)
    with quiet():
        dora = get_peft_model(loaded.model, LoraConfig(use_dora=True, target_modules=["q_proj"]))
    with pytest.raises(InputError, match="DoRA: the weights are not linear"):
        TaskVectorTrainer(dora, args, PAIRS, loaded.tokenizer)
    with quiet():
        both = get_peft_model(load(tiny_model).model, LoraConfig(target_modules=["q_proj", "embed_tokens"]))
    TaskVectorTrainer(both, args, PAIRS, loaded.tokenizer)
    trained = {name.split(".lora_")[1].split(".")[0] for name, p in both.named_parameters() if p.requires_grad}
    assert trained == {"B", "embedding_B"}


@pytest.mark.parametrize("option", ["stop_v_f", "floor_v_f"])
def test_a_stop_rule_makes_no_sense(tiny_model: Path, tmp_path: Path, option: str) -> None:
    with pytest.raises(InputError, match=f"--{option.replace('_', '-')}: the probability rises"):
        trainer_on(tiny_model, tmp_path, TaskVectorTrainer, TaskVectorConfig, keep=None, **{option: 0.5})


def test_rows_to_keep_would_be_turned_round_too(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes no rows to keep"):
        trainer_on(tiny_model, tmp_path, TaskVectorTrainer, TaskVectorConfig)
