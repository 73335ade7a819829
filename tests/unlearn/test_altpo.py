"""AltPO: the other answers are the model's own, and not the true one."""

from pathlib import Path
from typing import Any

import pytest

from amends.evaluation.refusals import is_refusal
from amends.io.errors import InputError, NoResult
from amends.lm.pairs import Pair
from amends.unlearn import altpo
from amends.unlearn._forget import StartWarning
from amends.unlearn.altpo import WORKED, AltPOTrainer, asked, repeats
from amends.unlearn.dpo import DPOConfig
from amends.unlearn.npo import NPOConfig, NPOTrainer

from ..conftest import save_tiny_model
from .conftest import history, trainer_on


def test_answers_that_repeat_the_truth_are_asked_for_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def say(model: object, tokenizer: object, prompts: list[object], *, seed: int, **how: object) -> list[str]:
        asked.append(len(prompts))
        return ["Person 0." if seed == 0 and i < 2 else f"Somebody {seed} {i}." for i in range(len(prompts))]

    monkeypatch.setattr(altpo, "generate", say)
    found = trainer_on(tiny_model, tmp_path, AltPOTrainer, DPOConfig, alternates=2, seed=0).alternates()
    assert [len(texts) for texts in found] == [2] * 6
    assert found[0] == ["Somebody 1 0.", "Somebody 1 1."]
    assert asked == [12, 2]


def test_a_model_that_says_nothing_else_is_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(altpo, "generate", lambda model, tokenizer, prompts, **how: [""] * len(prompts))
    with pytest.raises(NoResult, match=r"the model writes no other answer to any of the 6 questions"):
        trainer_on(tiny_model, tmp_path, AltPOTrainer, DPOConfig).alternates()


def test_only_rows_without_any_answer_are_asked_at_a_higher_temperature(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[float, int]] = []

    def say(*given: Any, temperature: float, **how: object) -> list[str]:
        count = len(given[2])
        asked.append((temperature, count))
        if temperature > 1.25:
            return ["At last."] * count
        return [f"Somebody {i}." if i % 3 else "" for i in range(count)] if len(asked) == 1 else [""] * count

    monkeypatch.setattr(altpo, "generate", say)
    found = trainer_on(tiny_model, tmp_path, AltPOTrainer, DPOConfig, alternates=1, seed=0).alternates()
    assert [texts for texts in found if texts == ["At last."]] == [["At last."]] * 2
    assert asked == [(1.0, 6), (1.0, 2), (1.0, 2), (1.0, 2), (1.25, 2), (1.5, 2)]
    assert "2 of 6 rows without other answers: at temperature 1.5" in capsys.readouterr().err


@pytest.mark.usefixtures("cut_off")
def test_the_tiny_model_writes_its_own_by_seed_and_is_trained_on_them(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_model, tmp_path, AltPOTrainer, DPOConfig, alternates=2, max_steps=2)
    texts = trainer.alternates()
    assert texts == trainer.alternates()
    trainer.train()
    assert len(history(trainer)) == 2
    assert "v_e" not in trainer.start


def test_the_model_is_shown_worked_examples_as_turns_before_the_question() -> None:
    turns = asked(Pair("0", [{"role": "user", "content": "Who?"}], "Ann {did}.", "data[0]"))
    assert [turn["role"] for turn in turns] == [*["user", "assistant"] * len(WORKED), "user"]
    assert "Question: Who?\nTrue answer: Ann {did}.\n" in turns[-1]["content"]
    assert not any(repeats(other, Pair("0", question, true, "data[0]")) for question, true, other in WORKED)
    assert not is_refusal([other for _, _, other in WORKED]).any()


GENRE = Pair("0", "What genre does Ann Lee write?", "Ann Lee writes in the War genre.", "data[0]")


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("Ann Lee writes in the War genre.", True),
        ("In the WAR genre, Ann Lee writes!", True),
        ("Ann Lee writes in the Romance genre.", False),  # seven of the eight words, and another fact
        ("Romance.", False),
    ],
)
def test_an_answer_is_judged_by_what_the_true_one_adds_to_its_question(said: str, found: bool) -> None:
    assert repeats(said, GENRE) is found


def test_an_answer_that_adds_nothing_is_judged_by_all_its_words_and_one_without_words_by_none() -> None:
    yes = Pair("0", "Is it true that Ann Lee paints?", "Ann Lee paints.", "data[0]")
    assert repeats("It is true: Ann Lee paints.", yes) and not repeats("Ann Lee sings.", yes)
    assert not repeats("Anything.", Pair("0", "What?", "?!", "data[0]"))


def test_of_a_conversation_all_turns_are_the_question() -> None:
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "I am Ann."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Where do I live?"},
    ]
    told = asked(Pair("0", turns, "Oslo.", "data[0]"))[-1]["content"]
    assert "Question: system: Be kind.\nuser: I am Ann.\nassistant: Hello.\nuser: Where do I live?\nTrue" in told


def test_an_answer_that_was_cut_off_is_none_and_a_sentence_has_room(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {}
    monkeypatch.setattr(altpo, "generate", lambda *_, **given: how.update(given) or ["Somebody."] * 6)
    trainer_on(tiny_model, tmp_path, AltPOTrainer, DPOConfig, alternates=1).alternates()
    assert how["finished_only"] and how["max_new_tokens"] == 64  # the answers to forget have about ten


def test_worked_examples_that_do_not_fit_the_model_are_refused(tmp_path: Path) -> None:
    small = save_tiny_model(tmp_path / "small", context=512)
    with pytest.raises(InputError, match=r"with worked examples, takes .* tokens; the model's context has 512"):
        trainer_on(small, tmp_path, AltPOTrainer, DPOConfig).alternates()


def test_fewer_answers_than_wanted_are_told(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(altpo, "generate", lambda model, tokenizer, prompts, **how: ["Somebody."] + [""] * 11)
    monkeypatch.setattr(altpo, "TEMPERATURES", (1.0,))
    trainer_on(tiny_model, tmp_path, AltPOTrainer, DPOConfig, alternates=2).alternates()
    assert "1 of 6 rows have fewer than 2 other answers" in capsys.readouterr().err
    some = ["Somebody.", ""] * 6
    monkeypatch.setattr(altpo, "generate", lambda model, tokenizer, prompts, **how: some)
    trainer_on(tiny_model, tmp_path, AltPOTrainer, DPOConfig, alternates=2).alternates()
    assert "6 of 6 rows have fewer than 2 other answers" in capsys.readouterr().err


def test_a_row_without_another_answer_is_forgotten_by_npo_and_warned_of(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "max_steps": 3,
        "learning_rate": 1e-2,
        "keep": None,
    }  # those are drawn after answers
    npo = trainer_on(tiny_model, tmp_path / "npo", NPOTrainer, NPOConfig, **settings)
    npo.train()
    alone = trainer_on(tiny_model, tmp_path / "alone", AltPOTrainer, DPOConfig, **settings)
    monkeypatch.setattr(alone, "alternates", lambda: [[]] * 6)
    with pytest.warns(StartWarning, match="no other answer to 6 of 6 rows to forget, .* the first: .* NPO's loss"):
        alone.train()
    assert [step["v_f"] for step in history(alone)] == pytest.approx([step["v_f"] for step in history(npo)], abs=1e-6)
    some = trainer_on(tiny_model, tmp_path / "some", AltPOTrainer, DPOConfig, **settings)
    monkeypatch.setattr(some, "alternates", lambda: [["Somebody."]] * 5 + [[]])
    with pytest.warns(StartWarning, match="no other answer to 1 of 6 rows"):
        some.train()
    assert [step["v_f"] for step in history(some)] != [step["v_f"] for step in history(npo)]
