"""The base trainer: what a step costs depends on its samples, never on how they are cut into batches."""

import io
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from amends.io.errors import InputError, NoResult, Stopped
from amends.lm import logprobs
from amends.lm.callbacks import Bar
from amends.lm.logprobs import AnswerLogprobs, PackedRow, answer_logprobs, masked_mean
from amends.lm.samples import KeyedRows, TrainRow
from amends.lm.trainer import REFUSED, AnswerTrainer, training_arguments

from .conftest import VOCAB, tiny

NUM_SAMPLES = 16


class Teacher(AnswerTrainer):
    """NLL of a random answer; keeps what it drew."""

    drawn: list[tuple[int, tuple[int, ...]]]
    scale = 1.0

    def draw(self, index: int, random_: random.Random) -> list[TrainRow]:
        answer = [random_.randrange(1, VOCAB) for _ in range(random_.randint(1, 6))]
        self.__dict__.setdefault("drawn", []).append((index, tuple(answer)))
        prompt = [1 + index % (VOCAB - 1)] * (1 + index % 5)
        rows = [TrainRow(PackedRow(prompt, [answer]))]
        return [*rows, TrainRow(PackedRow(prompt, [[3]]), is_retain=True)] if index % 2 else rows

    def losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        nll_B = -masked_mean(out.logp_BA, out.mask(0)) * self.scale
        return nll_B, {"p": torch.exp(-nll_B)}

    def retain_losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        nll_B = -masked_mean(out.logp_BA, out.mask(0))
        return nll_B / 2, {"nll": nll_B}


def train(folder: Path, tokenizer: PreTrainedTokenizerBase, kind: type[Teacher] = Teacher, **settings: Any) -> Teacher:
    callbacks = settings.pop("callbacks", None)
    args = training_arguments(
        TrainingArguments, str(folder), **({"learning_rate": 1e-2, "use_cpu": True, "disable_tqdm": True} | settings)
    )
    trainer = kind(tiny("llama"), args, NUM_SAMPLES, tokenizer, callbacks=callbacks)
    trainer.train()
    return trainer


def steps(trainer: Teacher) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "mean_loss" in entry]


def test_eight_by_one_is_four_by_two_is_one_by_eight(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    runs = [
        train(
            tmp_path,
            tokenizer,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            num_train_epochs=3,
        )
        for size in (8, 4, 1)
    ]
    assert [len(steps(run)) for run in runs] == [6, 6, 6]
    for other in runs[1:]:
        for name in ("loss", "mean_loss", "p", "grad_norm"):
            here, there = ([entry[name] for entry in steps(run)] for run in (runs[0], other))
            assert here == pytest.approx(there, rel=2e-4, abs=1e-5), name
        for mine, theirs in zip(runs[0].model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=0)


def test_the_logged_loss_is_the_mean_over_the_samples_of_the_step(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    run = train(tmp_path, tokenizer, per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=1)
    for entry in steps(run):
        assert entry["loss"] == pytest.approx(entry["mean_loss"], abs=1e-4)


def test_draws_depend_on_seed_epoch_and_row_alone(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    one = train(tmp_path, tokenizer, per_device_train_batch_size=8, num_train_epochs=2)
    other = train(tmp_path, tokenizer, per_device_train_batch_size=2, num_train_epochs=2)
    other_seed = train(tmp_path, tokenizer, per_device_train_batch_size=8, num_train_epochs=2, seed=1)
    epochs = [dict(one.drawn[:NUM_SAMPLES]), dict(one.drawn[NUM_SAMPLES:])]
    assert all(len(epoch) == NUM_SAMPLES for epoch in epochs)
    assert epochs == [dict(other.drawn[:NUM_SAMPLES]), dict(other.drawn[NUM_SAMPLES:])]
    assert epochs[0] != epochs[1]
    assert epochs[0] != dict(other_seed.drawn[:NUM_SAMPLES])


def test_a_resumed_training_draws_and_ends_as_an_unbroken_one(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    settings = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3}
    whole = train(tmp_path, tokenizer, **settings)
    args = training_arguments(
        TrainingArguments, str(tmp_path / "on"), learning_rate=1e-2, use_cpu=True, disable_tqdm=True, **settings
    )
    resumed = Teacher(tiny("llama", seed=5), args, NUM_SAMPLES, tokenizer)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    for mine, theirs in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert steps(resumed) == steps(whole)


def test_a_resumed_training_saves_and_logs_as_often_as_is_asked_now(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    of = {"save_strategy": "steps", "use_cpu": True, "disable_tqdm": True, "max_steps": 8}
    train(tmp_path, tokenizer, save_steps=4, **of)
    shutil.rmtree(tmp_path / "checkpoint-8")
    args = training_arguments(TrainingArguments, str(tmp_path), save_steps=3, logging_steps=2, **of)
    resumed = Teacher(tiny("llama"), args, NUM_SAMPLES, tokenizer)
    resumed.train(resume_from_checkpoint=True)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6", "checkpoint-8"}
    assert [entry["step"] for entry in steps(resumed)] == [1, 2, 3, 4, 6, 8]


def test_rows_are_keyed_by_seed_epoch_and_index() -> None:
    def draw(index: int, random_: random.Random) -> Any:
        return index, random_.random()

    rows, again, other = KeyedRows(3, draw, 0), KeyedRows(3, draw, 0), KeyedRows(3, draw, 1)
    assert len(rows) == 3
    assert rows[2] == rows[2] == again[2]
    assert rows[2] != other[2]
    first = rows[2]
    rows.set_epoch(1)
    assert rows[2] != first


class Broken(Teacher):
    scale = float("nan")


def test_a_loss_that_is_not_a_number_stops_and_saves_nothing(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(InputError, match=r"mean_loss is nan at step 1.*nothing was saved.*--learning-rate"):
        train(tmp_path, tokenizer, Broken, per_device_train_batch_size=8, save_strategy="steps", save_steps=1)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_bar_is_taken_away_from_a_training_that_fails(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    bar = Bar("teaching")  # one that stays hides the cursor, and is drawn again below all that is said later
    with pytest.raises(NoResult, match="mean_loss is nan"):
        train(tmp_path, tokenizer, Broken, callbacks=[bar])
    assert not bar.progress.live.is_started


@pytest.mark.parametrize(("every_s", "lines"), [(60.0, 10), (0.0, 20)])
def test_without_a_terminal_a_bar_is_a_line_every_tenth_and_every_minute(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    every_s: float,
    lines: int,
) -> None:
    monkeypatch.setattr("amends.lm.callbacks.EVERY_S", every_s)
    train(tmp_path, tokenizer, callbacks=[Bar("teaching")], max_steps=20)
    assert capsys.readouterr().err.count("amends: teaching, mean_loss") == lines


def test_where_a_bar_is_shown_no_line_is_said(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = Bar("teaching")
    bar.progress = Progress(console=Console(file=io.StringIO()))  # shown where there is no terminal: in a notebook
    train(tmp_path, tokenizer, callbacks=[bar], max_steps=2)
    assert "amends: teaching" not in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["dataloader_persistent_workers", "label_smoothing_factor", "save_only_model"])
def test_a_setting_that_cannot_be_had_is_refused_with_the_reason(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, setting: str
) -> None:
    args = training_arguments(TrainingArguments, str(tmp_path), use_cpu=True)
    setattr(args, setting, True)  # its own checks ask for more
    with pytest.raises(InputError, match=f"{setting}: {REFUSED[setting]}. Leave it out"):
        Teacher(tiny("llama"), args, NUM_SAMPLES, tokenizer)


class Interrupted(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_ends_after_the_step_and_handlers_are_as_before(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"stopped at step 1 of 8; resume from .*checkpoint-1\.$"):
        train(
            tmp_path,
            tokenizer,
            per_device_train_batch_size=4,
            num_train_epochs=2,
            save_strategy="epoch",
            callbacks=[Interrupted()],
        )
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(Stopped, match="at once") as stopped:  # two of them in one step
        train(
            tmp_path / "other",
            tokenizer,
            per_device_train_batch_size=4,
            num_train_epochs=2,
            callbacks=[Interrupted(), Interrupted()],
        )
    assert stopped.value.signal == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before


def test_an_applications_own_handler_stays(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        train(tmp_path, tokenizer, per_device_train_batch_size=4, num_train_epochs=1, callbacks=[Interrupted()])
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT] * 4


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= 2


def test_callbacks_of_the_user_are_heard(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    run = train(tmp_path, tokenizer, per_device_train_batch_size=4, num_train_epochs=5, callbacks=[Stop()])
    assert run.state.global_step == 2


def test_rows_to_keep_come_after_the_backward_pass_of_the_others_and_gradients_add_up(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    args = training_arguments(TrainingArguments, str(tmp_path), use_cpu=True)
    trainer = Teacher(tiny("llama"), args, NUM_SAMPLES, tokenizer)
    model = trainer.model
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
    whole = trainer.compute_loss(model, batch)
    whole.backward()
    at_once = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    has_gradient = []
    model.register_forward_pre_hook(lambda *_: has_gradient.append(model.lm_head.weight.grad is not None))
    loss = trainer.training_step(model, batch)
    assert has_gradient == [False, True]
    torch.testing.assert_close(loss, whole.detach())
    for weight, expected in zip(model.parameters(), at_once, strict=True):
        torch.testing.assert_close(weight.grad, expected, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("processes", [1, 2])
def test_lines_go_one_after_the_other_on_a_cpu_and_gradients_add_up(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(logprobs, "LINE_TOKENS", 12)
    monkeypatch.setattr(TrainingArguments, "world_size", processes)
    args = training_arguments(TrainingArguments, str(tmp_path), use_cpu=True)
    trainer = Teacher(tiny("llama"), args, NUM_SAMPLES, tokenizer)
    samples = [trainer.train_dataset[i] for i in range(6)]
    batch = trainer.data_collator(samples)
    parts = [batch, *batch["more"]]
    if processes == 2:  # all must have as many parts
        assert [part["is_retain"] for part in parts] == [False, True]
        assert len(batch["input_ids"]) > 1
        return
    assert len(parts) > 3
    assert all(len(part["input_ids"]) == 1 for part in parts)
    assert sum(len(part["answer"]) for part in parts if not part["is_retain"]) == 6
    trainer.data_collator.by_line = False
    whole = trainer.compute_loss(trainer.model, trainer.data_collator(samples))
    whole.backward()
    at_once = [weight.grad.clone() for weight in trainer.model.parameters()]
    trainer.model.zero_grad()
    torch.testing.assert_close(trainer.training_step(trainer.model, batch), whole.detach())
    for weight, expected in zip(trainer.model.parameters(), at_once, strict=True):
        torch.testing.assert_close(weight.grad, expected, atol=1e-6, rtol=1e-5)


def test_a_sample_counts_once_in_what_is_logged(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    run = train(tmp_path, tokenizer, per_device_train_batch_size=NUM_SAMPLES, num_train_epochs=1, learning_rate=0.0)
    (logged,) = steps(run)
    assert logged["mean_loss"] == pytest.approx(logged["loss"], rel=1e-5)
    batch = run.data_collator([run.train_dataset[i] for i in range(NUM_SAMPLES)])
    (retain,) = batch["more"]
    assert len(retain["answer"]) == NUM_SAMPLES // 2
    with torch.no_grad():
        half_B, _ = run.retain_losses(answer_logprobs(run.model, retain))
    assert logged["nll"] == pytest.approx(2 * half_B.mean().item(), rel=1e-5)


def test_a_trainer_without_draw_or_losses_says_so(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    args = training_arguments(TrainingArguments, str(tmp_path), use_cpu=True)
    trainer = AnswerTrainer(tiny("llama"), args, NUM_SAMPLES, tokenizer)
    with pytest.raises(TypeError, match=r"which rows a sample has \(draw\)"):
        trainer.draw(0, random.Random(0))
    out = AnswerLogprobs(*torch.zeros(3, 1, 1), logits_of=torch.exp, vocab_size=1)
    with pytest.raises(TypeError, match=r"has no loss \(losses\)"):
        trainer.losses(out)
    with pytest.raises(TypeError, match=r"no loss for rows to keep \(retain_losses\)"):
        trainer.retain_losses(out)


def test_the_houses_defaults_give_way_to_what_is_asked(tmp_path: Path) -> None:
    args = training_arguments(TrainingArguments, str(tmp_path))
    assert (args.logging_steps, args.weight_decay, args.report_to, str(args.save_strategy.value)) == (1, 0.01, [], "no")
    assert training_arguments(TrainingArguments, str(tmp_path), weight_decay=0.5).weight_decay == 0.5
