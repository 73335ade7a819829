"""What every method must do: run from the command line, add up over batches, go on where it stopped."""

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from transformers import HfArgumentParser

from amends.io.errors import InputError
from amends.lm.load import load, weights_sha256
from amends.lm.pairs import Pair
from amends.lm.trainer import training_arguments
from amends.unlearn._config import SHARED, ForgetConfig
from amends.unlearn._forget import ForgetTrainer
from amends.unlearn._method import method_names, trainer_named

from .conftest import KEEP, PAIRS, history

pytestmark = pytest.mark.usefixtures("cut_off")
METHODS = method_names()
OWN: dict[str, dict[str, Any]] = {
    "rmu": {"layer": 0},
    "dpo": {"alternates": 2},
    "altpo": {"alternates": 1},
    "llmu": {"learning_rate": 1e-3},
    "pdu": {"dual_warmup_epochs": 0.5},
}


def words(settings: dict[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for name, rows in {"forget": PAIRS, "retain": KEEP}.items():
        found[name] = tmp_path / f"{name}.jsonl"
        found[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


@pytest.mark.parametrize("method", METHODS)
def test_it_runs_from_the_command_line_and_its_record_verifies(
    method: str, tiny_model: Path, tmp_path: Path, files: dict[str, Path], amends: Callable[..., tuple[int, str, str]]
) -> None:
    out = tmp_path / "run"
    settings = {"learning_rate": 1e-2, "epochs": 2, "batch_size": 3, "eval_rows": 1, "lora_rank": 2}
    settings |= OWN.get(method, {}) | ({"layers": 0} if method == "rmu" else {})
    code, _, err = amends(
        *("unlearn", method, "--model", tiny_model, "--forget", files["forget"], "--out", out),
        *(words(settings) + ([] if trainer_named(method).keeps == "none" else ["--retain", files["retain"]])),
    )
    assert code == 0, err
    record = json.loads((out / "run.json").read_text())
    title = import_module(f"amends.unlearn.{method}").run.__doc__
    assert record["command"] == f"unlearn {method}"
    assert record["method"]["title"] in (out / "report.html").read_text()
    assert record["method"]["how"] in (out / "model" / "README.md").read_text().replace("\\", "")
    assert title and len((out / "history.jsonl").read_text().splitlines()) == 4
    assert weights_sha256(load(out / "model").model) == record["weights"]["after"] != record["weights"]["before"]
    code, told, err = amends("verify", out)
    assert code == 0, told + err


def trainer_of(method: str, model: Path, out: Path, **settings: Any) -> ForgetTrainer:
    """The trainer of a method with the settings of these tests."""
    trainer = trainer_named(method)
    base = {"use_cpu": True, "disable_tqdm": True, "bf16": False, "learning_rate": 1e-2}
    args = training_arguments(trainer.config_class(), str(out), **(base | settings | OWN.get(method, {})))
    loaded = load(model)
    keep = None if trainer.keeps == "none" else KEEP
    return trainer(loaded.model.train(), args, PAIRS, loaded.tokenizer, retain_dataset=keep)


@pytest.mark.parametrize("method", METHODS)
def test_six_at_once_are_three_twice_and_two_thrice(method: str, tiny_model: Path, tmp_path: Path) -> None:
    found = []
    for size in (6, 3, 2):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 6 // size, "max_steps": 3}
        trainer = trainer_of(method, tiny_model, tmp_path, **settings)
        trainer.train()
        found.append([(entry["mean_loss"], entry["grad_norm"]) for entry in history(trainer)])
    assert len(found[0]) == 3
    for other in found[1:]:
        for here, there in zip(other, found[0], strict=True):
            assert here == pytest.approx(there, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_it_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(method: str, tiny_model: Path, tmp_path: Path) -> None:
    settings = {"per_device_train_batch_size": 3, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
    whole = trainer_of(method, tiny_model, tmp_path / "whole", **settings)
    whole.train()
    again = trainer_of(method, tiny_model, tmp_path / "whole", **settings)
    (tmp_path / "whole" / "checkpoint-4").rename(tmp_path / "checkpoint-4")
    again.train(resume_from_checkpoint=True)
    for here, there in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(here, there)


@pytest.mark.parametrize("method", METHODS)
def test_values_beyond_the_bounds_of_an_option_are_refused_in_python_too(method: str) -> None:
    config = trainer_named(method).config_class()
    hints = get_type_hints(config, include_extras=True).items()
    told = {name: vars(hint.__metadata__[0]) for name, hint in hints if hasattr(hint, "__metadata__")}
    bounded = {name: bounds for name, bounds in told.items() if {bounds["min"], bounds["max"]} != {None}}
    assert bounded.keys() > {"forget_weight", "retain_weight", "stop_v_f", "floor_v_f"}
    for name, bounds in bounded.items():
        beyond = bounds["min"] - 1 if bounds["min"] is not None else bounds["max"] + 1
        with pytest.raises(InputError, match=f"{name}={beyond}"):
            config(output_dir=".", **{name: beyond})


@pytest.mark.parametrize("method", METHODS)
def test_its_settings_are_read_as_those_of_any_training(method: str) -> None:
    config = trainer_named(method).config_class()
    (read,) = HfArgumentParser(config).parse_args_into_dataclasses(
        ["--output_dir", "x", "--forget_weight", "0.25", "--stop_v_f", "0.5", "--retain_loss", "nll"]
    )
    assert (type(read), read.forget_weight, read.stop_v_f) == (config, 0.25, 0.5)


@pytest.mark.parametrize("method", METHODS)
def test_a_trainer_begins_with_the_defaults_of_the_command(method: str) -> None:
    trainer = trainer_named(method)
    shown = signature(import_module(f"amends.unlearn.{method}").command).parameters
    config = trainer.config_class()(output_dir=".")
    for name in SHARED.keys() & shown.keys():
        assert getattr(config, name) == shown[name].default
    assert not shown.keys() & trainer.useless()


@pytest.mark.parametrize("method", METHODS)
def test_the_help_of_run_says_what_each_option_is(method: str) -> None:
    run = import_module(f"amends.unlearn.{method}").run
    for name in signature(run).parameters.keys() - {"model", "forget", "processing_class", "out"}:
        assert re.search(rf"^    {name} : .{{9}}", run.__doc__, re.M)


@pytest.mark.parametrize("method", METHODS)
def test_what_weighs_nothing_goes_neither_forward_nor_back(method: str, tiny_model: Path, tmp_path: Path) -> None:
    free = trainer_named(method).keeps == "none" or trainer_named(method).moves_retain_weight
    settings = {"per_device_train_batch_size": 6, "forget_weight": 0.0}
    settings |= {} if trainer_named(method).keeps == "none" else {"retain_weight": 0.0}
    trainer = trainer_of(method, tiny_model, tmp_path, **settings)
    assert len(trainer.train_dataset[0]) == (1 if method == "task_vector" or not free else 2)
    trainer.note_reference()
    passes: list[Any] = []
    block = next(module for module in trainer.model.modules() if "DecoderLayer" in type(module).__name__)
    block.register_full_backward_hook(lambda *_: passes.append(1))
    trainer.training_step(trainer.model, trainer.data_collator([trainer.train_dataset[i] for i in range(6)]))
    assert not passes
    assert all(p.grad is not None and not p.grad.any() for p in trainer.model.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", METHODS)
def test_an_option_that_a_method_has_no_use_for_is_refused(method: str) -> None:
    trainer = trainer_named(method)
    config = trainer.config_class()
    for name, value, is_used in (
        ("retain_loss", "kl", not trainer.holds_retain and trainer.keeps != "none"),
        ("floor_v_f", 0.5, trainer.sees_probabilities and method != "task_vector"),
    ):
        args = config(output_dir=".", **{name: value})
        with nullcontext() if is_used else pytest.raises(InputError, match=f"--{name.replace('_', '-')}: "):
            trainer.check(args, keeps=trainer.keeps != "none")


def test_after_plain_text_other_answers_begin_with_a_space(tiny_model: Path, tmp_path: Path) -> None:
    args = training_arguments(ForgetConfig, str(tmp_path), use_cpu=True)
    pairs = [Pair(str(i), prompt, " gate.", f"data[{i}]") for i, prompt in enumerate(("by the", "by the "))]
    trainer = trainer_named("po")(str(tiny_model), args, pairs, templates=["No idea.", "No idea."])
    decode = trainer.processing_class.decode
    assert [decode(trainer.with_answers(i, "No idea.").packed.answers[1]) for i in (0, 1)] == [" No idea.", "No idea."]
    assert decode(trainer.with_answers(0, "\nNo idea.").packed.answers[1]) == "\nNo idea."
