import numpy as np
import pytest

from amends.curate import ds2
from amends.curate._ds2 import rating
from amends.curate._ds2.raters import compressed
from amends.curate._ds2.rating import conversation, parse, rate
from amends.io.errors import InputError, NoResult
from amends.lm._calls import Answer
from amends.lm.chat import Chat

from .planted import planted

GOOD = '{"Rarity": 2, "Complexity": 5, "Informativeness": 6, "Overall": 7}'


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        f"Sure! Here it is:\n```json\n{GOOD}\n```\nHope this helps.",
        '{"rarity": 2, "complexity": 5, "informativeness": 6, "overall rating": 7.0}',
        f"{GOOD} To say it again: {GOOD}",
    ],
)
def test_the_overall_rating_is_read_whatever_prose_is_around(answer):
    assert parse(answer) == 7


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I would give it a 7 out of 10.", "no JSON object"),
        ("", "no JSON object"),
        ('{"Overall": 7}', "Rarity is 'None'"),
        (f'{{"note": "not yet"}} {GOOD}', "2 JSON objects"),
        (GOOD.replace("7", "11"), "Overall is"),
        (GOOD.replace("7", "0"), "Overall is"),
        (GOOD.replace("7", "6.5"), "no whole number"),
        (GOOD.replace("7", '"7"'), "Overall is"),
        (GOOD.replace("7", "true"), "Overall is"),
        (GOOD.replace("7", "NaN"), "not a finite number"),
        (GOOD.replace("7", "1e999"), "not a finite number"),
        (GOOD.replace("7", "1" + "0" * 400), "Overall is"),
        (GOOD.replace("2", "99"), "Rarity is"),
        (GOOD + GOOD.replace("7", "3"), "2 JSON objects"),
        (GOOD[:-1], "no JSON object"),
    ],
)
def test_an_answer_that_does_not_rate_says_why(answer, reason):
    with pytest.raises(ValueError, match=reason):
        parse(answer)


def test_ratings_are_compressed_and_missing_ones_stay_missing():
    assert compressed(range(1, 11)).tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 5, 5]
    assert np.isnan(compressed([np.nan, 3])[0])
    for bad in (0, 11, 2.5):
        with pytest.raises(ValueError, match="whole number"):
            compressed([bad])


def test_the_sample_stands_in_the_prompt_between_marks_and_is_cut():
    (message,) = conversation("% of {braces}" + "x" * 20_000)
    assert message["role"] == "user"
    assert "<<<\n% of {braces}x" in message["content"]
    assert len(message["content"]) < 10_000


class Model:
    """Rates by a function of the sample; prose where that gives none."""

    def __init__(self, name, judge):
        self.name = self.identity = name
        self.judge = judge
        self.calls = 0

    def answers(self, conversations, seeds, *, max_new_tokens, temperature):
        for number, (message,) in enumerate(conversations):
            self.calls += 1
            overall = self.judge(message["content"].partition("<<<\n")[2].partition("\n>>>")[0])
            said = "A fine sample indeed." if overall is None else GOOD.replace("7", str(overall))
            yield number, Answer(said)


def test_what_cannot_be_read_is_asked_for_again_and_then_missing_with_its_reason():
    model = Model("m", lambda sample: None if sample == "b" else 9)
    found = rate(Chat(model), ["a", "b", "c"])
    assert found.values == [9, None, 9]
    assert "no JSON object" in found.reasons[1]
    assert (found.counts.unparseable, model.calls) == (1, 5)


def test_answers_are_kept_beside_the_run_so_that_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch):
    model = Model("m", lambda sample: 5 + int(sample) % 2)
    monkeypatch.setattr(rating, "open_chat", lambda name, **how: Chat(model, how["cache"], how["most_calls"]))
    rows, how = [{"text": str(i)} for i in range(30)], {"rater": "m", "text": "text", "curate": False}
    with pytest.raises(InputError, match="run it again and it goes on"):
        ds2.run(rows, **how, out=tmp_path / "deep" / "run", most_calls=20)
    assert (tmp_path / "deep" / "run.answers.sqlite").exists()
    ds2.run(rows, **how, out=tmp_path / "deep" / "run")
    assert model.calls == 30


def test_models_rate_the_rows_and_what_they_say_is_mended():
    world = planted(0.0, num_rows=1500)
    rows = [{"text": f"{i}", "v": point.tolist()} for i, point in enumerate(world.points)]
    rows[7]["text"] = "8"
    by_text = {f"{i}": [2, 5, 6, 7, 8, 9][rating] for i, rating in enumerate(world.ratings)} | {"3": None}
    model = Model("m", by_text.get)
    found = ds2.run(rows, rater=Chat(model), text="text", embedding="v", budget=100, rounds=10, draws=11)
    (refused,) = found.outcome.of("refused")
    assert (refused["text"], refused["rating"]) == ("3", None)
    assert refused["reason"].startswith("no rating by a model: no JSON object")
    assert found.outcome.added["rating"][:3] == [by_text[f"{i}"] for i in range(3)]
    assert found.outcome.added["level"][:3] == world.ratings[:3].tolist()
    assert found.outcome.verdicts[8].reason == "the same text as data[7]"
    assert model.calls == 1498 + 3
    raw = np.argsort(-world.ratings, kind="stable")[:100]
    assert (world.truth[found.selected] >= 4).mean() > (world.truth[raw] >= 4).mean() + 0.05
    assert found.record["config"]["rater"] == ["m"]
    assert found.asked["1, m"]["unparseable"] == 1


def test_several_models_are_put_together_with_a_matrix_each():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 600)
    wrong = {name: rng.random(600) < share for name, share in (("a", 0.1), ("b", 0.2), ("c", 0.3))}
    models = [
        Chat(Model(name, lambda sample, of=of: [6, 8][int(truth[int(sample)] ^ of[int(sample)])]))
        for name, of in wrong.items()
    ]
    found = ds2.run([{"text": str(i)} for i in range(600)], rater=models, text="text", budget=100)
    assert found.sources == ["a", "b", "c"]
    right = [np.trace(T) / 2 for T in found.raters.matrices_MKK]
    assert right == pytest.approx([0.9, 0.8, 0.7], abs=0.06)
    assert truth[found.selected].mean() > 0.95
    assert set(found.outcome.of("kept")[0]) >= {"rating_1", "rating_2", "rating_3", "certainty"}


def test_a_model_that_only_chats_gives_no_result():
    with pytest.raises(NoResult, match="not one answer could be read"):
        ds2.run([{"text": "a"}] * 4, rater=Chat(Model("m", lambda _: None)), text="text", curate=False)


def test_ratings_and_raters_exclude_each_other():
    for how in ({}, {"rating": "r", "rater": "m"}):
        with pytest.raises(InputError, match="give one of them, columns"):
            ds2.run([{"text": "a", "r": 1}], text="text", **how)
    with pytest.raises(InputError, match="name the columns to rate"):
        ds2.run([{"text": "a", "r": 1}], rater="m")
