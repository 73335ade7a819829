import numpy as np
import pytest

from amends.curate._rating import compressed, conversation, parse

GOOD = '{"Rarity": 2, "Complexity": 5, "Informativeness": 6, "Overall": 7}'


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        f"Sure! Here it is:\n```json\n{GOOD}\n```\nHope this helps.",
        '{"rarity": 2, "complexity": 5, "informativeness": 6, "overall rating": 7.0}',
        f"{GOOD} To say it again: {GOOD}",
        f'{{"note": "not yet"}} {GOOD}',
    ],
)
def test_the_overall_rating_is_read_whatever_prose_is_around(answer):
    assert parse(answer) == 7


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I would give it a 7 out of 10.", "no JSON object"),
        ("", "no JSON object"),
        ('{"Overall": 7}', "no JSON object with"),
        (GOOD.replace("7", "11"), "Overall is"),
        (GOOD.replace("7", "0"), "Overall is"),
        (GOOD.replace("7", "6.5"), "no whole number"),
        (GOOD.replace("7", '"7"'), "Overall is"),
        (GOOD.replace("7", "true"), "Overall is"),
        (GOOD.replace("7", "NaN"), "Overall is"),
        (GOOD.replace("7", "1e999"), "Overall is"),
        (GOOD.replace("7", "1" + "0" * 400), "Overall is"),
        (GOOD.replace("2", "99"), "Rarity is"),
        (GOOD + GOOD.replace("7", "3"), "several different"),
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
