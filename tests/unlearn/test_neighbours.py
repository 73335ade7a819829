"""Questions about others: what is replaced and by what, and what never reaches the rows to keep."""

import json
import random
from functools import partial

import pytest

from amends.io.errors import InputError
from amends.io.run import read_jsonl, read_run
from amends.lm.load import load
from amends.lm.pairs import Pair
from amends.unlearn import _neighbours, flat
from amends.unlearn._neighbours import Others, gives_away, neighbours, words_of_names
from amends.unlearn._request import Request

ROWS = [
    {"question": "Where was Ada Brown born?", "answer": "Ada Brown was born in Rome in 1956."},
    {"question": "Ada Brown's parents are whom?", "answer": "The parents of Ada Brown are Carl and Dora."},
    {"question": "In Rome, who taught the pupil of 12 Elm Street?", "answer": "A painter from Oslo."},
]
PAIRS = [
    Pair(str(i), [{"role": "user", "content": row["question"]}], row["answer"], f"data[{i}]")
    for i, row in enumerate(ROWS)
]
KNOWN = words_of_names(text for row in ROWS for text in row.values())


def test_names_are_capitalised_inside_a_sentence_and_never_small() -> None:
    assert {"Ada", "Brown", "Rome", "Carl", "Dora", "Elm", "Street", "Oslo"} == KNOWN
    assert words_of_names(["He said: “The End”. The end."]) == set()
    assert words_of_names(["Émile met Žižek."]) == {"Žižek"}


def test_names_that_follow_one_another_are_one_name() -> None:
    text = "Has Ada Brown-Elm read “Rivers of the Moon” with Carl? In Rome, Oslo's Dora did."
    others = Others([Pair("0", text, "All were by Ada Brown-Elm of Rome: “The Moon Rivers”.", "data[0]")])
    assert others.names_in(text) == ["Ada Brown-Elm", "Rivers of the Moon", "Carl", "Rome", "Oslo", "Dora"]


def test_names_of_other_scripts_are_found_and_small_letters_are_none() -> None:
    others = Others([Pair("0", "Что написала Анна Петрова в Омске?", "Её роман «Река Жизни».", "data[0]")])
    assert others.names_in("Вчера Анна Петрова приехала, и река Омске 東京") == ["Анна Петрова", "Омске"]


def test_a_neighbour_has_the_same_words_and_no_name_or_number_of_the_question() -> None:
    prompt = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Is Ada of 1956 Ada Brown, b. 7?"},
    ]
    system, user = Others(PAIRS).instead(prompt, random.Random(0))
    assert system == prompt[0]
    words = user["content"].split()
    assert [words[i] for i in (0, 2, 6, 7)] == ["Is", "of", "b.", "7?"]
    assert words[1] == words[4] != "Ada"  # the same name stays the same
    assert len(words[3]) == 4
    assert words[3] != "1956"
    assert not KNOWN & set(_neighbours.WORD.findall(user["content"]))
    assert prompt[1]["content"] == "Is Ada of 1956 Ada Brown, b. 7?"


def test_a_name_is_not_replaced_inside_a_longer_word() -> None:
    pair = Pair("0", [{"role": "user", "content": "Artists know Art?"}], "They say it is Art.", "data[0]")
    (asked,) = Others([pair]).instead(pair.prompt, random.Random(0))
    assert asked["content"].startswith("Artists know ") and "Art?" not in asked["content"]


def test_a_name_that_the_model_gives_in_its_place_stands_in_for_it() -> None:
    others = Others(PAIRS)
    (asking,) = [PAIRS[i] for i in others.asking() if "Oslo" in PAIRS[i].answer]
    learn = partial(others.learn, asking, "In Zul, who taught the pupil of 17 Fe Go?")
    learn("A sculptor from New Bergen.")
    learn("A painter from Zul.")  # the question's own
    learn("A painter from Rome.")  # named in the forget data
    learn("A painter from The.")  # no name
    learn("A painter from here.")
    assert others.given == {"Oslo": ["New Bergen"]}
    assert others.instead("Is Oslo in Oslo?", random.Random(0)) == "Is New Bergen in New Bergen?"
    others.given["Ada Brown"] = ["Eve van Mill"]
    assert others.instead("Is Ada like Ada Brown, or Brown?", random.Random(0)) == (
        "Is Eve like Eve van Mill, or Mill?"
    )


def test_what_is_asked_for_more_often_counts_more() -> None:
    weights = Others(PAIRS).asking()
    assert weights == {0: 1 + 1, 1: 2, 2: 1}  # Rome is in another question; Carl, Dora and Oslo are in none


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Zul was born in Rome.", True),  # names it
        ("it was a painter", True),  # says all that the answer adds, without a name
        ("it was a plumber", False),
        ("", False),
    ],
)
def test_what_gives_the_forgotten_answer_away(answer: str, found: bool) -> None:
    painter = Pair("0", "Who taught the pupil?", "Painter", "data[0]")
    assert gives_away(answer, painter, KNOWN) is found


def test_neighbours_are_many_distinct_and_repeatable(monkeypatch: pytest.MonkeyPatch, tiny_model) -> None:
    loaded, asked = load(tiny_model), []

    def answer(model, tokenizer, prompts, *, temperature=0.0, **_) -> list[str]:
        asked.append(tokenizer.batch_decode(prompts))
        if temperature:
            return ["Zul was born in Bergen in 1956."] * len(prompts)
        return ["Ada Brown." if i % 3 == 0 else "Zul is fine." for i in range(len(prompts))]

    monkeypatch.setattr(_neighbours, "generate", answer)
    found = neighbours(loaded.model, loaded.tokenizer, PAIRS, 10, seed=0)
    assert len(found) == 10  # fifteen were asked, those that gave Ada away are out
    assert len({repr(pair.prompt) for pair in found}) == 10
    assert {pair.answer for pair in found} == {"Zul is fine."}
    invented, brought_up, *_, kept = asked
    assert len(asked) == _neighbours.ROUNDS + 1
    assert not any("Bergen" in text for text in invented)
    assert any("Bergen" in text for text in brought_up)  # the second round asks about what the first one named
    assert any("Bergen" in text for text in kept)
    assert neighbours(loaded.model, loaded.tokenizer, PAIRS, 10, seed=0) == found
    assert neighbours(loaded.model, loaded.tokenizer, PAIRS, 10, seed=1) != found


def test_questions_without_names_and_answers_that_all_give_away_are_refused(
    monkeypatch: pytest.MonkeyPatch, tiny_model
) -> None:
    loaded = load(tiny_model)
    with pytest.raises(InputError, match="no names and no numbers"):
        neighbours(loaded.model, loaded.tokenizer, [Pair("0", "Who?", "Me.", "data[0]")], 5, seed=0)
    monkeypatch.setattr(_neighbours, "generate", lambda model, tokenizer, prompts, **_: ["Ada." for _ in prompts])
    with pytest.raises(InputError, match=r"of 8 answers about other names all gave away what is to be forgotten"):
        neighbours(loaded.model, loaded.tokenizer, PAIRS, 5, seed=0)


@pytest.mark.parametrize(
    ("full", "told"), [(0, "all came empty"), (3, "5 came empty and 3 gave away what is to be forgotten")]
)
def test_empty_answers_are_not_said_to_give_something_away(
    full: int, told: str, monkeypatch: pytest.MonkeyPatch, tiny_model
) -> None:
    def answer(model, tokenizer, prompts, **_) -> list[str]:
        return ["Ada." if i < full else "" for i in range(len(prompts))]

    loaded = load(tiny_model)
    monkeypatch.setattr(_neighbours, "generate", answer)
    with pytest.raises(InputError, match=rf"of 8 answers about other names {told}\."):
        neighbours(loaded.model, loaded.tokenizer, PAIRS, 5, seed=0)


def test_a_run_keeps_its_neighbours_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path, tiny_model) -> None:
    monkeypatch.setattr(_neighbours, "generate", lambda model, tokenizer, prompts, **_: ["Yes." for _ in prompts])
    flat.run(tiny_model, ROWS, out=tmp_path / "run", neighbours=4, epochs=1, eval_rows=0)
    kept = read_jsonl(tmp_path / "run" / "neighbours.jsonl")
    assert [row["answer"] for row in kept] == ["Yes."] * 4
    assert not any(name in json.dumps(kept) for name in KNOWN)
    record = read_run(tmp_path / "run")
    assert record["data"]["neighbours"]["kept"] == 4
    assert record["config"]["neighbours"] == 4
    history = read_jsonl(tmp_path / "run" / "history.jsonl")
    assert history[0]["retain_kl"] == pytest.approx(0, abs=1e-5)
    assert "FLAT (kl) with neighbours" in (tmp_path / "run" / "report.html").read_text()
    assert "4 on others" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_a_run_from_before_there_were_neighbours_can_still_be_read() -> None:
    config = Request(forget="forget.jsonl", epochs=3).config()
    del config["neighbours"]
    assert Request.of(config) == Request(forget="forget.jsonl", epochs=3)
