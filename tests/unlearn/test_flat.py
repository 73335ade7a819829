"""FLAT: the loss as an identity, and the trainer on a tiny model."""

import math
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from amends.io.errors import InputError
from amends.lm.load import load
from amends.lm.logprobs import answer_logprobs, masked_mean
from amends.lm.pairs import Pair
from amends.lm.trainer import training_arguments
from amends.maths.divergence import DIVERGENCES, divergence_named, slope
from amends.unlearn import FLATConfig, FLATTrainer, flat_loss
from amends.unlearn._config import ForgetConfig
from amends.unlearn._forget import StartWarning
from amends.unlearn._stop import StopWhenForgotten
from amends.unlearn.ga import GATrainer
from amends.unlearn.jensun import JensUnTrainer
from amends.unlearn.po import POTrainer

from .conftest import said_with

EVERY = pytest.mark.parametrize("divergence", list(DIVERGENCES))
TEMPLATES = ["I do not know.", "No idea.", "That is unknown to me."]
PAIRS = [{"question": f"Who is number {i}?", "answer": f"Person {i}, of course."} for i in range(6)]


def random_batch(size: int = 4, width: int = 7, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities and masks as `flat_loss` takes them; every row has at least one answer token."""
    make = torch.Generator().manual_seed(seed)
    template, forget = (-3 * torch.rand(size, w, generator=make, dtype=torch.float64) for w in (width, width + 3))
    masks = [
        torch.arange(t.shape[1]) < torch.randint(1, t.shape[1] + 1, (size, 1), generator=make)
        for t in (template, forget)
    ]
    return template.float(), forget.float(), masks[0], masks[1]


@EVERY
def test_the_loss_is_what_the_paper_says(divergence: str) -> None:
    template, forget, template_mask, forget_mask = random_batch()
    f, expected = divergence_named(divergence), []
    for row in range(4):
        v_e = template[row][template_mask[row]].exp().mean()
        v_f = forget[row][forget_mask[row]].exp().mean()
        expected.append(-(f.reward(v_e) - f.penalty(v_f)))
    loss = flat_loss(template, forget, template_mask, forget_mask, divergence)
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_the_loss_with_kl_by_hand() -> None:
    template = torch.tensor([[0.2, 0.4]]).log()
    forget = torch.tensor([[0.9, 0.7, 0.123]]).log()
    loss = flat_loss(template, forget, torch.tensor([[True, True]]), torch.tensor([[True, True, False]]))
    assert loss.item() == pytest.approx(-(0.3 - math.exp(0.8 - 1)))


@EVERY
@given(extra=st.integers(0, 30), junk=st.floats(-50, 0))
def test_padding_of_any_length_leaves_the_loss_unchanged(divergence: str, extra: int, junk: float) -> None:
    template, forget, template_mask, forget_mask = random_batch()
    padded = [torch.cat([t, torch.full((4, extra), junk)], 1) for t in (template, forget)]
    masks = [torch.cat([m, torch.zeros(4, extra, dtype=torch.bool)], 1) for m in (template_mask, forget_mask)]
    here = flat_loss(padded[0], padded[1], masks[0], masks[1], divergence)
    torch.testing.assert_close(here, flat_loss(template, forget, template_mask, forget_mask, divergence))


@EVERY
def test_a_batch_cut_in_two_has_the_same_loss(divergence: str) -> None:
    batch = random_batch(6)
    whole = flat_loss(*batch, divergence)
    first, second = (flat_loss(*(t[part] for t in batch), divergence) for part in (slice(0, 2), slice(2, 6)))
    torch.testing.assert_close(whole, (2 * first + 4 * second) / 6)


@EVERY
def test_the_gradient_is_the_weighted_sum_of_the_two_gradients(divergence: str) -> None:
    template, forget, template_mask, forget_mask = random_batch()
    template.requires_grad_(), forget.requires_grad_()
    flat_loss(template, forget, template_mask, forget_mask, divergence).backward()
    f = divergence_named(divergence)
    for logp, mask, function, sign in ((template, template_mask, f.reward, -1), (forget, forget_mask, f.penalty, 1)):
        p = logp.detach().exp() * mask
        length = mask.sum(-1, keepdim=True)
        weight = slope(function, p.sum(-1, keepdim=True) / length)
        torch.testing.assert_close(logp.grad, sign * weight * p / length / len(logp))


def test_the_loss_stays_bounded_where_the_likelihood_does_not() -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    sure, hopeless = torch.zeros(1, 3), torch.full((1, 3), -1e4)
    assert flat_loss(sure, hopeless, mask, mask).item() == pytest.approx(math.exp(-1) - 1)
    assert flat_loss(hopeless, sure, mask, mask).item() == pytest.approx(1)


def test_half_precision_is_reduced_in_float32() -> None:
    template, forget, template_mask, forget_mask = random_batch()
    loss = flat_loss(template.bfloat16(), forget.bfloat16(), template_mask, forget_mask)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(flat_loss(template, forget, template_mask, forget_mask).item(), abs=0.01)


def test_faulty_calls_of_the_loss_are_refused() -> None:
    template, forget, template_mask, forget_mask = random_batch()
    forget_mask[2] = False
    with pytest.raises(ValueError, match=r"rows \[2\] have no answer token"):
        flat_loss(template, forget, template_mask, forget_mask)
    with pytest.raises(ValueError, match="'chi': unknown"):
        flat_loss(*random_batch(), "chi")


def trainer_on(folder: Path, out: Path, forget: Any = PAIRS, **settings: Any) -> FLATTrainer:
    of_the_trainer = (
        "compute_metrics",
        "compute_loss_func",
        "templates",
        "retain_dataset",
        "neighbours",
        "peft_config",
        "callbacks",
        "model",
    )
    own = {name: settings.pop(name) for name in of_the_trainer if name in settings}
    loaded = load(folder)
    house = {"per_device_train_batch_size": 3, "use_cpu": True, "disable_tqdm": True, "bf16": False}
    args = training_arguments(FLATConfig, str(out), **(house | settings))
    own = {"templates": TEMPLATES, "model": loaded.model} | own
    return FLATTrainer(args=args, train_dataset=forget, processing_class=loaded.tokenizer, **own)


def history(trainer: FLATTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "v_f" in entry]


def first_batch(trainer: FLATTrainer) -> dict[str, Tensor]:
    batch: dict[str, Tensor] = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    return batch


@EVERY
def test_the_trainer_has_the_loss_of_the_function(divergence: str, tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path, divergence=divergence)
    batch = first_batch(trainer)
    with torch.no_grad():
        out = answer_logprobs(trainer.model, batch)
        loss = trainer.compute_loss(trainer.model, batch)
    torch.testing.assert_close(loss, flat_loss(out.logp_BA, out.logp_BA, out.mask(1), out.mask(0), divergence))


def test_the_official_reduction_is_that_of_the_authors_code(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path, reduction="official", divergence="tv", max_length=300)
    assert not trainer.data_collator.by_line  # it averages over the batch
    batch = first_batch(trainer)
    with torch.no_grad():
        out = answer_logprobs(trainer.model, batch)
        loss = trainer.compute_loss(trainer.model, batch)
    # Rows of 300 tokens have 299 predicted positions; those outside the answer count as 0; one mean over everything.
    means = []
    for answer in (0, 1):
        positions = torch.zeros(4, 299)
        positions[:, : out.logp_BA.shape[1]] = out.logp_BA.exp() * out.mask(answer)
        means.append(positions.mean())
    v_f, v_e = means
    torch.testing.assert_close(loss, -(torch.tanh(v_e) / 2 - torch.tanh(v_f) / 2))


def test_training_moves_probability_from_the_answers_to_the_templates(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path, learning_rate=1e-2, num_train_epochs=20)
    trainer.train()
    end = trainer.forget_means()
    assert trainer.start["v_e"] < end["v_e"]
    assert end["v_e"] > 2 * end["v_f"]
    assert trainer.stopped == "all steps done"


def test_every_step_is_logged_with_both_values_and_their_weights(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path, divergence="js", num_train_epochs=2)
    trainer.train()
    entries = history(trainer)
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4]
    for entry in entries:
        assert entry["loss"] == pytest.approx(entry["mean_loss"], abs=1e-4)
        assert entry["weight_e"] == pytest.approx(1 / (1 + math.exp(entry["v_e"])), abs=1e-4)
        assert entry["weight_f"] == pytest.approx(1 / (1 + math.exp(-entry["v_f"])), abs=1e-4)


def test_batches_of_any_size_give_the_same_course(tiny_model: Path, tmp_path: Path) -> None:
    courses = []
    for size in (6, 3, 1):
        trainer = trainer_on(
            tiny_model,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=6 // size,
            num_train_epochs=3,
            learning_rate=1e-3,
        )
        trainer.train()
        courses.append([(e["mean_loss"], e["v_e"], e["v_f"], e["weight_e"], e["weight_f"]) for e in history(trainer)])
    for course in courses[1:]:
        for here, there in zip(courses[0], course, strict=True):
            assert here == pytest.approx(there, abs=2e-5)


def test_templates_are_drawn_anew_each_epoch_and_only_from_seed_epoch_and_row(tiny_model: Path, tmp_path: Path) -> None:
    pool = [f"Reason {i}." for i in range(50)]
    one, same = (trainer_on(tiny_model, tmp_path, templates=pool).train_dataset for _ in range(2))
    drawn = [one[i][0].packed.answers[1] for i in range(6)]
    assert drawn == [same[i][0].packed.answers[1] for i in reversed(range(6))][::-1]
    assert len(set(map(tuple, drawn))) > 1
    one.set_epoch(1)
    assert drawn != [one[i][0].packed.answers[1] for i in range(6)]
    assert drawn != [trainer_on(tiny_model, tmp_path, templates=pool, seed=1).train_dataset[i][0] for i in range(6)]


class Ear(TrainerCallback):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.heard.append("begin")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.heard += ["v_f"] if "v_f" in logs else []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == 3


def test_callbacks_of_transformers_work(tiny_model: Path, tmp_path: Path) -> None:
    ear = Ear()
    trainer = trainer_on(tiny_model, tmp_path, num_train_epochs=5, callbacks=[ear])
    trainer.train()
    assert ear.heard == ["begin", "v_f", "v_f", "v_f"]
    assert trainer.state.global_step == 3


def test_checkpoints_are_written_and_open_again(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path, num_train_epochs=2, save_strategy="steps", save_steps=2)
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    last = load(tmp_path / "checkpoint-4").model
    for mine, theirs in zip(trainer.model.parameters(), last.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_it_stops_once_the_answers_are_forgotten(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"learning_rate": 1e-2, "num_train_epochs": 200}
    start = trainer_on(tiny_model, tmp_path).forget_means()["v_f"]
    trainer = trainer_on(tiny_model, tmp_path, stop_v_f=start / 3, **settings)
    trainer.train()
    assert 0 < trainer.state.global_step < 400
    assert trainer.forget_means()["v_f"] <= start / 3
    assert trainer.stopped.endswith(f"at step {trainer.state.global_step}")


def test_a_second_training_does_not_stop_where_the_first_one_did(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path, stop_v_f=0.9, num_train_epochs=2)
    with pytest.warns(StartWarning, match="which is at most the 0.9"):
        trainer.train()
    assert "v_f = " in trainer.stopped and trainer.state.global_step == 1
    (rule,) = (found for found in trainer.callback_handler.callbacks if isinstance(found, StopWhenForgotten))
    rule.limit = 0.0
    with pytest.warns(StartWarning):
        trainer.train()
    assert (trainer.state.global_step, trainer.stopped) == (4, "all steps done")


def test_it_does_not_stop_before(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path, stop_v_f=0.0, num_train_epochs=2)
    trainer.train()
    assert (trainer.state.global_step, trainer.stopped) == (4, "all steps done")


def test_the_means_are_taken_over_all_rows_and_leave_the_model_as_it_was(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path, per_device_eval_batch_size=4)
    trainer.model.train()
    means = trainer.forget_means()
    assert trainer.model.training
    with torch.no_grad():
        rows = [first for (first,) in (trainer.train_dataset[i] for i in range(6))]
        out = answer_logprobs(trainer.model, trainer.data_collator([[row] for row in rows]))
    v_f_B = masked_mean(out.logp_BA.exp(), out.mask(0))
    assert means["v_f"] == pytest.approx(v_f_B.mean().item(), abs=1e-6)
    assert trainer.forget_means(most=4)["v_f"] == pytest.approx(v_f_B[::2].mean().item(), abs=1e-6)  # evenly spread


@pytest.mark.parametrize(
    ("start", "warned"),
    [
        ({"v_f": 0.995, "v_e": 0.1}, ["v_f starts at 0.9950"]),
        ({"v_f": 0.5, "v_e": 1e-4}, ["v_e starts at 1.0e-04"]),
        ({"v_f": 0.999, "v_e": 0.0}, ["v_f starts", "v_e starts"]),
        ({"v_f": 0.99, "v_e": 1e-3}, []),
        ({"v_f": 0.5}, []),
    ],
)
def test_a_start_without_gradient_is_told(
    start: dict[str, float], warned: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    trainer = trainer_on(tiny_model, tmp_path)
    trainer.start = {"v_e": 0.5} | start
    texts = trainer.start_warnings()
    assert len(texts) == len(warned)
    assert all(text.startswith(beginning) for text, beginning in zip(texts, warned, strict=True))


def test_training_warns_where_the_answers_are_known_too_surely(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_on(tiny_model, tmp_path, max_steps=1)
    monkeypatch.setattr(trainer, "forget_means", lambda **_: {"v_f": 0.995, "v_e": 0.5})
    with pytest.warns(UserWarning, match=r"v_f starts at 0\.9950.*Raise the learning rate"):
        trainer.train()


def test_a_warm_up_teaches_the_templates_alone(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path, template_warmup_steps=2)
    out = said_with([[-2.0, -1.0, -3.0]], [[0, 1, 1]])
    assert trainer.forget_losses(out)[0].tolist() == [2.0]
    trainer.state.global_step = 2
    expected = math.exp(math.exp(-2) - 1) - (math.exp(-1) + math.exp(-3)) / 2
    assert trainer.forget_losses(out)[0].tolist() == pytest.approx([expected])


def test_retain_rows_add_their_weighted_likelihood(tiny_model: Path, tmp_path: Path) -> None:
    keep = [{"question": "Where is Paris?", "answer": "In France."}]
    trainer = trainer_on(tiny_model, tmp_path, retain_dataset=keep, retain_weight=0.5, max_steps=1)
    trainer.train()
    (entry,) = history(trainer)
    v_e, v_f = entry["v_e"], entry["v_f"]
    assert entry["mean_loss"] == pytest.approx(math.exp(v_f - 1) - v_e + 0.5 * entry["retain_nll"], abs=1e-4)


def test_neighbours_are_held_to_what_the_model_said_of_them(tiny_model: Path, tmp_path: Path) -> None:
    held = [Pair("n", [{"role": "user", "content": "Where is Paris?"}], "In France.", "neighbour[0]")]
    drift = {}
    for weight in (1e-9, 10.0):
        trainer = trainer_on(
            tiny_model, tmp_path, neighbours=held, retain_weight=weight, max_steps=8, learning_rate=1e-2
        )
        trainer.train()
        first, *_, last = history(trainer)
        assert first["retain_kl"] == pytest.approx(0, abs=1e-5)
        assert "retain_nll" not in first
        kept = weight * first["retain_kl"]
        assert first["mean_loss"] == pytest.approx(math.exp(first["v_f"] - 1) - first["v_e"] + kept, abs=1e-4)
        drift[weight] = last["retain_kl"]
    assert drift[10.0] < drift[1e-9] / 2


def test_retain_rows_and_neighbours_are_each_charged_their_own(tiny_model: Path, tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "Where is Paris?"}]
    keep = [Pair(str(i), prompt, "In France.", f"data[{i}]") for i in range(2)]
    trainer = trainer_on(
        tiny_model, tmp_path, neighbours=keep, retain_dataset=keep, retain_weight=0.5, max_steps=4, learning_rate=1e-2
    )
    trainer.train()
    for entry in history(trainer):
        flat = math.exp(entry["v_f"] - 1) - entry["v_e"]
        kept = entry["retain_nll"] + entry["retain_kl"]
        assert entry["mean_loss"] == pytest.approx(flat + 0.5 * kept, abs=1e-3)
    assert history(trainer)[-1]["retain_nll"] > 0
    assert history(trainer)[-1]["retain_kl"] > 0


def test_muon_trains_adapters_and_refuses_what_is_no_matrix(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"optimizer muon: \S*norm\S* is no matrix\. Train an adapter"):
        trainer_on(tiny_model, tmp_path, optimizer="muon")
    adapter = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    settings = {"peft_config": adapter, "optimizer": "muon", "learning_rate": 0.1, "num_train_epochs": 8}
    trainer = trainer_on(tiny_model, tmp_path, **settings)
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, torch.optim.Muon)
    assert trainer.forget_means()["v_e"] > 1.05 * trainer.start["v_e"]


def test_muon_and_neighbours_go_on_from_a_checkpoint_as_if_never_stopped(tiny_model: Path, tmp_path: Path) -> None:
    ended = []
    for resume in (None, True):
        torch.manual_seed(0)
        adapter = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
        settings = {"optimizer": "muon", "learning_rate": 0.3, "save_strategy": "steps", "save_steps": 2}
        held = [Pair("n", [{"role": "user", "content": "Where is Paris?"}], "In France.", "neighbour[0]")]
        trainer = trainer_on(
            tiny_model, tmp_path, peft_config=adapter, neighbours=held, retain_weight=10, max_steps=4, **settings
        )
        trainer.train(resume_from_checkpoint=resume)
        ended.append({name: w.detach().clone() for name, w in trainer.model.named_parameters() if w.requires_grad})
        shutil.rmtree(tmp_path / "checkpoint-4")
    assert all(torch.equal(ended[0][name], ended[1][name]) for name in ended[0])


class StopAtOnce(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


def test_a_datasets_dataset_and_a_name_of_a_model_are_taken(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path, datasets.Dataset.from_list(PAIRS), model=tiny_model, max_steps=3)
    trainer.add_callback(StopAtOnce())
    trainer.train()
    assert len(history(trainer)) == 1
    assert trainer.stopped == "by a callback, at step 1 of 3"
    for ask in (trainer.evaluate, trainer.predict):
        with pytest.raises(InputError, match="a trainer only trains"):
            ask(PAIRS)


def test_all_weights_of_a_model_that_is_named_are_trained_in_float32(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `load` reads bfloat16 weights on a GPU: a small step would be rounded away."""
    loaded = load(tiny_model)
    monkeypatch.setattr(
        "amends.unlearn._forget.load", lambda *_, **__: loaded._replace(model=loaded.model.to(torch.bfloat16))
    )
    trainer = trainer_on(tiny_model, tmp_path, model="a name")
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}


def test_prompts_and_templates_are_read_once_however_often_they_are_drawn(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_on(tiny_model, tmp_path)
    first = [trainer.with_answers(i, *TEMPLATES) for i in range(len(PAIRS))]
    monkeypatch.setattr("amends.unlearn._further.opening", None)
    monkeypatch.setattr("amends.unlearn._further.answer_ids", None)
    assert [trainer.with_answers(i, *TEMPLATES) for i in range(len(PAIRS))] == first


def test_an_adapter_alone_is_trained_when_asked(tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig

    loaded = load(tiny_model)
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    args = training_arguments(FLATConfig, str(tmp_path), use_cpu=True, disable_tqdm=True, bf16=False, max_steps=2)
    trainer = FLATTrainer(loaded.model, args, PAIRS, loaded.tokenizer, templates=TEMPLATES, peft_config=lora)
    trainer.train()
    assert all("lora_" in name for name, weight in trainer.model.named_parameters() if weight.requires_grad)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"divergence": "chi"}, "chi.*unknown.*kl, tv"),
        ({"reduction": "mean"}, "reduction='mean'"),
        ({"stop_v_f": 1.5}, "stop_v_f=1.5"),
        ({"retain_weight": -1.0}, "retain_weight=-1.0"),
        ({"templates": []}, "templates: at least one"),
        ({"templates": ["Ok.", " "]}, "templates: at least one"),
        ({"templates": "Unknown"}, "templates: at least one answer is needed, in a list"),
        ({"max_length": None}, "max_length=None: a whole number"),
        ({"retain_loss": "kl"}, "--retain-loss: there are no rows to keep"),
        ({"retain_weight": 5.0}, "--retain-weight: there are no rows to keep"),
        ({"label_smoothing_factor": 0.5}, "label_smoothing_factor: it has no part"),
        ({"compute_metrics": len}, "compute_metrics: it has no part"),
        ({"compute_loss_func": len}, "compute_loss_func: it has no part"),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 7}, "6 rows fill no batch of 7"),
        ({"max_length": 20}, r"data\[0\]: prompt and answer have \d+ tokens, more than the 20"),
        ({"forget": "forget.jsonl"}, "data is a str"),
        ({"forget": {"question": "a", "answer": "b"}}, "data is a dict"),
        ({"forget": []}, "no usable row"),
    ],
)
def test_settings_and_data_that_cannot_work_are_refused(
    settings: dict[str, Any], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        trainer_on(tiny_model, tmp_path, **settings)


def test_what_a_trainer_would_ignore_is_said(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"left out rows: 1, the first data\[6\]: same prompt and answer as data\[0\]"):
        trainer_on(tiny_model, tmp_path, [*PAIRS, PAIRS[0]])
    with pytest.raises(InputError, match="eval_dataset, eval_strategy: nothing is evaluated"):
        trainer_on(tiny_model, tmp_path, eval_strategy="epoch")
    with pytest.raises(InputError, match="model: all its weights are frozen"):
        trainer_on(tiny_model, tmp_path, model=load(tiny_model).model.requires_grad_(False))
    with pytest.raises(InputError, match=r"templates: Gradient ascent \(GA\) has none"):
        GATrainer(tiny_model, training_arguments(ForgetConfig, str(tmp_path), use_cpu=True), PAIRS, templates=["No."])
    with pytest.raises(InputError, match="args is a TrainingArguments: FLAT needs a FLATConfig"):
        FLATTrainer(str(tiny_model), TrainingArguments(output_dir=str(tmp_path)), PAIRS)


def test_a_stop_that_is_reached_at_the_start_is_told(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path, stop_v_f=0.5)
    trainer.start = trainer.forget_means()
    assert any("which is at most the 0.5 of --stop-v-f" in text for text in trainer.start_warnings())


def test_a_loaded_model_needs_its_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    args = training_arguments(FLATConfig, str(tmp_path), use_cpu=True)
    with pytest.raises(InputError, match="pass the tokenizer"):
        FLATTrainer(load(tiny_model).model, args, PAIRS)


@pytest.mark.parametrize(("method", "warned"), [(POTrainer, []), (JensUnTrainer, ["v_e starts"]), (GATrainer, ["v_f"])])
def test_only_what_holds_a_method_up_is_told(
    method: type[Any], warned: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    args = training_arguments(ForgetConfig, str(tmp_path), use_cpu=True)
    trainer = method(str(tiny_model), args, PAIRS, retain_dataset=PAIRS)
    trainer.start = {"v_f": 0.999, "v_e": 1e-9}
    texts = trainer.start_warnings()
    assert [text[: len(begin)] for text, begin in zip(texts, warned, strict=True)] == warned
    assert "template_warmup_steps" not in "".join(texts)
