"""Key terms are found and missed by their rules, and each rule fires on what it is about and on nothing beside it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amends.curate._entp.benchmarks import read_benchmark
from amends.curate._entp.purge import Sample
from amends.curate._entp.rules import (
    RULES,
    Checker,
    Instructions,
    badness,
    can_be_repaired,
    is_cut_off,
    rouge_l,
    script_of,
)
from amends.curate._entp.terms import Term, Weights, exact_terms, missing, recall, too_few
from amends.io.errors import InputError

A = Sample(
    0,
    "a",
    "data[0]",
    "Where does the river Oder rise, and how long is it?",
    "It rises in Moravia. It is 840 km long.",
    None,
)
B = Sample(
    1,
    "b",
    "data[1]",
    "Which towns stand on the Oder?",
    "Wroclaw and Szczecin stand on it, with 1,060,000 people.",
    None,
)
ASKED = "Where does the Oder rise, how long is it, and which towns stand on it?"
SAID = "The Oder rises in Moravia and is 840 km long. The towns Wroclaw and Szczecin stand on it, with 1060000 people."
KEEP = [*exact_terms(A.response), *exact_terms(B.response)]


def loss(text, part="response", keep=None, instruction=ASKED, samples=(A, B), **more):
    checker = Checker(Instructions([]), **more)
    keep = KEEP if keep is None and part == "response" else keep or []
    return checker.loss(part, text, samples, keep, instruction if part == "response" else None)


# Key terms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("In 1905 he had 2,500 kg or 3.5 t.", "number:1905 number:2500 number:3.5"),
        ("1. Boil it.\n2) Eat it.\n(3) Rest.", ""),
        ("Use `git push` twice.", "code:git push"),
        ("Run:\n```sh\nls  -a\n\ncd /tmp\n```\nThen stop.", "code:ls -a|code:cd /tmp"),
        ("She met Marie Curie's friend. Later NASA called.", "name:marie|name:curie|name:nasa"),
        ("I'm sure I know. Ask me: Who?", ""),
        ("- Bread\n- Milk\nThe end", ""),
        ("the iPhone and the x86", "name:iphone"),
    ],
)
def test_exact_terms_are_numbers_names_and_code(text, expected):
    expected = expected.split("|") if "|" in expected or "code" in expected else expected.split()
    assert [f"{term.kind}:{term.text}" for term in exact_terms(text)] == expected


@settings(max_examples=100)
@given(st.text(max_size=200))
def test_no_text_misses_a_term_of_its_own(text):
    assert missing(exact_terms(text), text) == []


def test_a_term_is_missing_if_it_is_not_there_as_such():
    terms = [Term("number", "12"), Term("name", "oder"), Term("code", "a + b"), Term("word", "rivers")]
    assert missing(terms, "The river Oder: 12, a  +  b") == []
    assert missing(terms, "The riverside at Oderberg, 120, 12.5, a+b") == terms
    assert recall(terms, "12 and Oder") == 0.5
    assert recall([], "anything") is None


def test_too_few_looks_at_each_kind_by_itself():
    words = [Term("word", word) for word in ("one", "two", "three", "four")]
    assert too_few([*words, Term("number", "7")], "one two 7") == []
    assert too_few([*words, Term("number", "7")], "one two three four") == ["7"]
    assert too_few(words, "one") == ["two", "three", "four"]


def test_weighty_words_are_those_that_are_rare_elsewhere():
    texts = [f"Please note that this is general. The {word} is here." for word in ("walrus", "teapot", "comet")] * 3
    weights = Weights([*texts, "Please note the general idea."])
    assert weights.weighty(["Please note that the walrus is general."]) == [[Term("word", "walrus")]]
    assert weights.weighty(["of the and", ""]) == [[], []]
    assert Weights(["1 2 3", ""]).weighty(["walrus"]) == [[]]


# Rules


def test_a_good_text_breaks_no_rule():
    assert loss(SAID) == {}
    assert loss(ASKED, "instruction", exact_terms(A.instruction)) == {}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("Moravia", "format"),
        ("I'm sorry, but I cannot say.", "refusal"),
        ("As an AI language model, " + SAID, "refusal"),
        ("Одра начинается в Моравии, её длина 840 км, на ней Вроцлав и Щецин.", "language"),
        (SAID.removesuffix("with 1060000 people.") + "with", "truncated"),
        (SAID.rstrip("."), "truncated"),
        (f"{SAID}\n```python\nprint(1)", "truncated"),
        (SAID.replace("840", "854"), "missing"),
        (SAID.replace("Moravia", "a hill").replace("Wroclaw", "one"), "missing"),
        (A.response, "copied"),
        (SAID.replace("Oder", "stream").replace("towns", "places"), None),
        (f"{SAID} " + "It flows and flows along its banks. " * 3, "long"),
        ("840 and 1060000 of Moravia, Wroclaw, Szczecin.", "unanswered"),
    ],
)
def test_a_response_breaks_the_rule_it_is_made_to_break(text, rule):
    found = loss(text)
    assert rule in found if rule else not found
    assert list(found) == sorted(found, key=list(RULES).index)


def test_a_refusal_is_only_one_at_the_beginning():
    assert "refusal" not in loss(SAID + " I am sorry for the man who says: I cannot swim.")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("Say which towns stand: Wroclaw and Szczecin stand on it, with 1,060,000 people.", "leak"),
        ("Which towns stand on the Oder?", "copied"),
        ("Oder, and", "truncated"),
        ("Oder towns", "format"),
    ],
)
def test_an_instruction_breaks_the_rule_it_is_made_to_break(text, rule):
    assert rule in loss(text, "instruction")


def test_what_the_instructions_say_themselves_is_no_leak():
    run = "Say that one two three four five six seven eight nine."
    one, two = A._replace(instruction=run, response=run), B._replace(instruction="Ask more.")
    assert "leak" not in loss(run + " And ask more.", "instruction", samples=(one, two))
    assert "leak" in loss(run, "instruction", samples=(one._replace(instruction="Count."), two))


def test_two_sources_with_the_same_instruction_may_share_it():
    twin = B._replace(instruction=A.instruction)
    assert "copied" not in loss(A.instruction, "instruction", samples=(A, twin))
    assert "copied" in loss(A.instruction, "instruction")
    assert "copied" not in loss(A.response, samples=(A,), keep=[])  # a rewriting of one may keep it


def test_twins_are_found_in_the_pool_and_among_those_before():
    known = Instructions([A.instruction, B.instruction, "Multiply 3 by 4.", ""])
    texts = [A.instruction, A.instruction.upper(), "Multiply 3 by 5.", "Name a bird.", None, "name a bird", ""]
    for rows in (1, 3, 256):
        found = known.twins(texts, [{0}, set(), set(), set(), set(), set(), set()], rows)
        assert found == [None, A.instruction, None, None, None, None, None]
    known = Instructions([A.instruction, "Name a bird."])
    assert known.twins(["Name a bird."] * 2, [{1}, {1}]) == [None, "Name a bird."]
    assert Instructions([]).twins(["x y z"], [set()]) == [None]


def test_hard_rules_count_before_soft_ones_and_some_cannot_be_repaired():
    assert badness({"missing": []}) > badness({"long": [], "unanswered": []}) > badness({})
    assert can_be_repaired({"missing": []}) and not can_be_repaired({})
    assert not can_be_repaired({"contaminated": [], "missing": []}) and not can_be_repaired({"no_answer": []})


def test_short_ends_and_closed_fences_are_no_break():
    for text in ("- flour\n- two eggs", "```\nx = 1\n```", "Yes, it is.", "It is (so)"):
        assert not is_cut_off(text, needs_mark=True)
    assert not is_cut_off("Name all of the towns that stand on this river", needs_mark=False)


def test_scripts_are_told_apart_and_numbers_have_none():
    assert script_of("Oder 840") == "LATIN" and script_of("Одра") == "CYRILLIC" and script_of("8 + 4") == ""


def test_rouge_l_is_1_of_itself_and_0_of_strangers():
    assert rouge_l(SAID, SAID) == 1 and rouge_l("one two", "three four") == 0


# Benchmarks


def test_runs_of_words_are_found_whatever_the_case_and_marks(tmp_path):
    path = tmp_path / "bench.jsonl"
    long = " ".join(f"w{i}" for i in range(20))
    path.write_text(
        f'{{"q": "{long}", "n": 3}}\n{{"q": "Is five words enough here?"}}\n{{"q": "too short"}}\n', encoding="utf-8"
    )
    found = read_benchmark(path)
    assert found.place_of("so W3, w4 w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15!") == f"{path}:1"
    assert found.place_of("so w3 w4 w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 and w15") is None
    assert found.place_of("I ask: is FIVE words enough, here?") == f"{path}:2"
    assert found.place_of("too short") is None
    path.write_text('{"q": "too short"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="holds no text of 5 words"):
        read_benchmark(path)
