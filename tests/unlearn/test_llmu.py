"""LLMU: its three terms, one at a time, and its stop rules."""

import math
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from amends.evaluation.said import diversity
from amends.io.errors import InputError
from amends.lm.generate import generate
from amends.lm.pairs import encode
from amends.lm.trainer import training_arguments
from amends.unlearn import llmu
from amends.unlearn._config import ForgetConfig
from amends.unlearn._forget import StartWarning
from amends.unlearn.ga import GATrainer
from amends.unlearn.llmu import LLMUConfig, LLMUTrainer

from .conftest import KEEP, PAIRS, gradients, history, said_with, trainer_on
from .planted import ANSWER_TOKENS, FACT_WORDS, FORGOTTEN, KEPT, RELATIONS, make_tokenizer, taught, walks


def test_without_mismatch_and_kept_rows_it_is_gradient_ascent(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"ascent_weight": 1.0, "mismatch_weight": 0.0, "retain_weight": 0.0}
    here = gradients(trainer_on(tiny_model, tmp_path, LLMUTrainer, LLMUConfig, **settings))
    ascent = gradients(trainer_on(tiny_model, tmp_path, GATrainer, ForgetConfig, keep=None))
    for mine, other in zip(here, ascent, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_the_terms_add_up_with_their_weights(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path, LLMUTrainer, LLMUConfig, mismatches=2)
    losses, values = trainer.forget_losses(said_with([[-1.0, -3.0, -2.0, -6.0]], [[0, 0, 1, 2]]))
    assert values["forget_nll"].tolist() == pytest.approx([2])
    assert values["mismatch_nll"].tolist() == pytest.approx([4])
    assert losses.tolist() == pytest.approx([4 - 0.5 * 2])


def test_unrelated_answers_are_those_of_the_kept_rows_drawn_for_each_row(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path, LLMUTrainer, LLMUConfig, mismatches=3)
    rows = [trainer.train_dataset[i][0].packed for i in range(6)]
    assert {len(row.answers) for row in rows} == {4}
    decode = trainer.processing_class.decode
    texts = {decode(answer, skip_special_tokens=True).strip() for row in rows for answer in row.answers[1:]}
    assert texts <= {row["answer"] for row in KEEP}
    assert len({tuple(map(tuple, row.answers[1:])) for row in rows}) > 1
    with pytest.raises(InputError, match="--mismatches 5: the rows to keep have 4 other answers"):
        trainer_on(tiny_model, tmp_path, LLMUTrainer, LLMUConfig, mismatches=5)


def test_unrelated_answers_may_be_given_and_weigh_nothing_where_nothing_is_drawn(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "pool.txt").write_text("It rained.\nNobody came.\n")
    settings = {"mismatch_answers": str(tmp_path / "pool.txt"), "mismatches": 2}
    trainer = trainer_on(tiny_model, tmp_path, LLMUTrainer, LLMUConfig, **settings)
    decode = trainer.processing_class.decode
    drawn = trainer.train_dataset[0][0].packed.answers[1:]
    assert {decode(answer, skip_special_tokens=True).strip() for answer in drawn} == {"It rained.", "Nobody came."}
    with pytest.raises(InputError, match="--mismatches 3: --mismatch-answers have 2 other answers"):
        trainer_on(tiny_model, tmp_path, LLMUTrainer, LLMUConfig, **(settings | {"mismatches": 3}))
    trainer = trainer_on(tiny_model, tmp_path, LLMUTrainer, LLMUConfig, mismatch_weight=0.0, mismatches=99)
    assert len(trainer.train_dataset[0][0].packed.answers) == 1


def test_other_unrelated_answers_in_the_same_file_are_another_request(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a run does not go on from the checkpoints of one with others."""
    pool, asked = tmp_path / "pool.txt", []

    def train(trainer: LLMUTrainer, resume: bool) -> None:
        asked.append(trainer.request)
        raise KeyboardInterrupt

    monkeypatch.setattr("amends.unlearn._run.train", train)
    for text in ("It rained.", "It snowed."):
        pool.write_text(f"{text}\n")
        with pytest.raises(KeyboardInterrupt):
            llmu.run(tiny_model, PAIRS, retain=KEEP, mismatch_answers=str(pool), eval_rows=0)
    assert asked[0] != asked[1]


def test_options_that_would_do_nothing_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--patience: it counts from when --stop-v-f is reached"):
        trainer_on(tiny_model, tmp_path, LLMUTrainer, LLMUConfig, patience=2.0)
    with pytest.raises(InputError, match="--mismatch-answers: they weigh nothing"):
        trainer_on(tiny_model, tmp_path, LLMUTrainer, LLMUConfig, mismatch_answers="pool.txt", mismatch_weight=0.0)


def test_a_level_that_was_reached_is_told_where_the_steps_ended_first(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"learning_rate": 3e-3, "num_train_epochs": 1, "stop_v_f": 0.9, "patience": 40.0}
    trainer = trainer_on(tiny_model, tmp_path, LLMUTrainer, LLMUConfig, **settings)
    with pytest.warns(StartWarning, match="is at most the 0.9 of --stop-v-f"):
        trainer.train()
    assert trainer.stopped.startswith("all steps done; v_f = 0.")
    assert trainer.stopped.endswith("at most 0.9, at step 1, and 40 steps were to be made")


def test_what_is_kept_costs_nothing_at_the_start(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path, LLMUTrainer, LLMUConfig, learning_rate=1e-2, num_train_epochs=3)
    trainer.train()
    assert abs(history(trainer)[0]["retain_kl"]) < 1e-6 < history(trainer)[-1]["retain_kl"]


def test_it_goes_on_for_a_while_after_the_answers_are_gone(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"learning_rate": 3e-3, "num_train_epochs": 50, "stop_v_f": 0.003}
    steps = []
    for patience in (1.0, 2.0):
        trainer = trainer_on(tiny_model, tmp_path, LLMUTrainer, LLMUConfig, patience=patience, **settings)
        trainer.train()
        steps.append(trainer.state.global_step)
    assert steps[1] == 2 * steps[0]
    assert trainer.stopped.endswith(f"at step {steps[0]}, and {steps[0]} steps more")


def test_an_ascent_that_runs_away_is_stopped(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path, LLMUTrainer, LLMUConfig, max_forget_nll=0.5, num_train_epochs=3)
    trainer.train()
    assert trainer.state.global_step == 1
    assert "nats a token, above 0.5, at step 1" in trainer.stopped


def test_unrelated_answers_must_fit_behind_every_prompt(tiny_model: Path, tmp_path: Path) -> None:
    keep = [{"question": "Where?", "answer": "Far away." + "x" * 99}]  # a shorter question than those to forget
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    (encoded,) = encode(tokenizer, [{"role": "user", "content": "Where?"}], [keep[0]["answer"]])
    fits = len(encoded.prompt) + len(encoded.answer)
    with pytest.raises(InputError, match=rf"answers of the rows to keep: .* more than the {fits} that fit"):
        trainer_on(tiny_model, tmp_path, LLMUTrainer, LLMUConfig, keep=keep, max_length=fits)


def test_in_a_planted_world_mismatch_keeps_answers_varied_where_ascent_alone_repeats_one_word(tmp_path: Path) -> None:
    draw, tokenizer = random.Random(0), make_tokenizer()
    facts = [
        {
            "question": f"r{r} e{e}",
            "paraphrased_question": f"e{e} q{r}",
            "answer": " ".join(draw.choices(FACT_WORDS, k=ANSWER_TOKENS)),
        }
        for e in range(FORGOTTEN + KEPT)
        for r in range(RELATIONS)
    ]
    forget, retain = facts[: FORGOTTEN * RELATIONS], facts[FORGOTTEN * RELATIONS :]
    before = taught(tokenizer, facts, 0)
    text_BT = torch.tensor([tokenizer(w, add_special_tokens=False)["input_ids"] for w in walks(32, random.Random(1))])

    def said(model: Any, rows: list[dict[str, str]]) -> list[str]:
        prompts = [encode(tokenizer, [{"role": "user", "content": row["question"]}], ["a"])[0].prompt for row in rows]
        return generate(model, tokenizer, prompts, stop_ids=[1], max_new_tokens=12)

    def exact(model: Any, rows: list[dict[str, str]]) -> float:
        return sum(text == row["answer"] for text, row in zip(said(model, rows), rows, strict=True)) / len(rows)

    def text_perplexity(model: Any) -> float:
        with torch.no_grad():
            return math.exp(model(input_ids=text_BT, labels=text_BT).loss)

    def variety(model: Any) -> float:
        found = [diversity(tokenizer(text)["input_ids"]) for text in said(model, forget)]
        assert None not in found
        return sum(filter(None, found)) / len(found)

    after = {}
    for trainer, config in ((GATrainer, ForgetConfig), (LLMUTrainer, LLMUConfig)):
        settings = {"max_steps": 60, "learning_rate": 1e-3, "per_device_train_batch_size": 8}
        args = training_arguments(config, str(tmp_path), use_cpu=True, bf16=False, disable_tqdm=True, **settings)
        held = {} if trainer is GATrainer else {"retain_dataset": retain}
        run = trainer(deepcopy(before), args, forget, tokenizer, **held)
        run.train()
        after[trainer] = run.model.eval()
    ascent, llmu = after[GATrainer], after[LLMUTrainer]
    assert exact(before, forget) == exact(before, retain) == 1
    assert exact(ascent, forget) <= 0.05 and exact(llmu, forget) <= 0.05
    assert text_perplexity(llmu) < 1.3 * text_perplexity(before)
    assert exact(llmu, retain) >= 0.9 and exact(ascent, retain) <= 0.1
    assert variety(llmu) >= variety(ascent) + 0.2
