import numpy as np
import pytest

from amends.maths.memorisation import auc
from amends.maths.words import word_scores

WORDS = np.array([f"word{i}" for i in range(200)])


def texts(rng, count, more=()):
    return [" ".join([*rng.choice(WORDS, 20), *more]) for _ in range(count)]


def test_texts_of_one_kind_cannot_be_told_apart():
    areas = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        areas.append(auc(*word_scores(texts(rng, 300), texts(rng, 200), rng)))
    assert np.mean(areas) == pytest.approx(0.5, abs=0.03)  # seen: 0.476; one of them varies by 0.026


def test_a_date_in_one_set_gives_it_away():
    rng = np.random.default_rng(0)
    assert auc(*word_scores(texts(rng, 60, ["2026"]), texts(rng, 40, ["2023"]), rng)) > 0.95


def test_what_is_written_without_spaces_is_told_apart_by_its_characters():
    rng = np.random.default_rng(0)
    few, others = (
        ["".join(rng.choice(list(of), 12)) for _ in range(40)] for of in ("天地玄黄宇宙洪荒", "日月盈昃辰宿列张")
    )
    assert auc(*word_scores(few, others, rng)) > 0.95


def test_too_few_texts_have_no_scores():
    found = word_scores(["a"] * 4, ["b"] * 9, np.random.default_rng(0))
    assert [len(s) for s in found] == [4, 9]
    assert np.isnan(np.concatenate(found)).all()
