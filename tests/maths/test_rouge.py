import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from amends.maths.rouge import Words, rouge_l, spaced

SENTENCES = [
    ("Москва, столица России", "Москва, столица Франции", 2 / 3),
    ("東京は日本の首都", "大阪は日本の首都", 6 / 8),
    ("القاهرة عاصمة مصر", "القاهرة مدينة", 1 / 3),
    ("नई दिल्ली भारत की राजधानी है", "नई दिल्ली", 2 / 6),
    ("กรุงเทพ", "กรุง", 3 / 6),  # a consonant and its marks are one
    ("서울은 대한민국의 수도", "서울은 크다", 1 / 3),
    ("Αθήνα, πρωτεύουσα της Ελλάδας", "ΑΘΉΝΑ", 1 / 4),
    ("The capital of Japan is 東京", "The capital of Japan is", 5 / 7),
]


@pytest.mark.parametrize(("reference", "prediction", "recall"), SENTENCES)
def test_words_of_every_script_count(reference, prediction, recall):
    assert rouge_l(reference, reference) == (1, 1)
    assert rouge_l(prediction, reference).recall == pytest.approx(recall)


@given(st.text(st.characters(max_codepoint=127)), st.booleans())
def test_text_of_ascii_has_the_words_of_the_published_tool(text, use_stemmer):
    assert Words(use_stemmer).tokenize(text) == DefaultTokenizer(use_stemmer).tokenize(text)


@given(st.text("aetz 0'\u2019\u02bc\u201d\u2014\xe9\xed\xf8\xdf\u010d\u0159\u0131\xc9\u1ea1"), st.booleans())
def test_so_has_text_with_accented_names_and_typographic_marks(text, use_stemmer):
    assert Words(use_stemmer).tokenize(text) == DefaultTokenizer(use_stemmer).tokenize(text)


def test_of_tofus_texts_those_with_ukrainian_titles_and_a_square_kilometre_differ(shared):
    ours, theirs = Words(use_stemmer=False), DefaultTokenizer(use_stemmer=False)
    differ = []
    for name in ("tofu_full", "real_authors", "world_facts", "reference_generations"):
        with gzip.open(shared / f"data/tofu/{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            for row in map(json.loads, file):
                texts = [t for v in row.values() for t in (v if isinstance(v, list) else [v]) if isinstance(t, str)]
                # Of ASCII texts it is so by the test above.
                differ += [t for t in texts if not t.isascii() and ours.tokenize(t) != theirs.tokenize(t)]
    assert sorted("Лісова" in text or "Прогулянка" in text for text in differ) == [False, True, True, True, True]
    assert [text for text in differ if "Лісова" not in text] == [
        "The smallest country in the world by area is the Vatican City, with a total area of approximately 0.44 km² "
        "(0.17 sq mi)."
    ]


@pytest.mark.parametrize(
    ("one", "other"), [("caf\xe9", "cafe\u0301"), ("\uff21\uff22\uff11", "ab1"), ("ﾄﾖﾀ", "トヨタ"), ("Жук", "жук")]
)
def test_forms_of_the_same_letters_are_the_same_words(one, other):
    assert Words().tokenize(one) == Words().tokenize(other) != []


def test_a_reference_without_words_has_no_recall_and_a_prediction_without_words_has_none_of_it():
    for reference in ("", "!!", "…?", "\N{WHITE SMILING FACE}"):
        assert np.isnan(rouge_l("a", reference).recall) and rouge_l("a", reference).f1 == 0
    assert rouge_l("!!", "a") == (0, 0)


def test_only_characters_of_scripts_without_spaces_are_set_apart():
    assert spaced("Ёж, naïve 서울") == "Ёж, naïve 서울"
    assert spaced("ABC東京でデータ。ไทย").split() == ["ABC", *"東京でデータ", "。", *"ไทย"]
