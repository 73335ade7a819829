import math

import numpy as np
import pytest

from amends.curate._ds2.raters import aggregate, levels_of, rating_of, read_ratings
from amends.io.errors import InputError, NoResult
from amends.io.tables import rows_of
from amends.maths.transition import MISSING

from .planted import said

TWO = (
    np.array([[0.8, 0.2], [0.25, 0.75]]),
    np.array([[0.62, 0.38], [0.24, 0.76]]),
    np.array([[0.65, 0.35], [0.15, 0.85]]),
)


@pytest.mark.parametrize(("value", "number"), [(3, 3), (4.0, 4), ("5", 5), (" 2 ", 2), (np.int8(1), 1), ("-1", -1)])
def test_whole_numbers_are_ratings_also_as_text(value, number):
    assert rating_of(value, -math.inf, math.inf) == (number, None)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "no rating"),
        (float("nan"), "no rating"),
        ("  ", "no rating"),
        ("I'd say 7 of 10", "no whole number: \"I'd say 7"),
        (3.5, "no whole number"),
        (True, "no whole number"),
        ("inf", "no whole number"),
        ([3], "no whole number"),
        ("9" * 400, "no whole number"),
        (11, "the rating 11 is not from 1 to 10"),
        (0, "not from 1 to 10"),
    ],
)
def test_what_is_no_rating_is_missing_with_its_reason(value, reason):
    number, why = rating_of(value, 1, 10)
    assert math.isnan(number)
    assert reason in why


def test_a_row_is_refused_only_if_no_rater_rated_it():
    rows = rows_of([{"a": 1, "b": None}, {"a": None, "b": "x"}, {"a": 2, "b": 3}])
    ratings, reasons = read_ratings(rows, ["a", "b"])
    assert np.isnan(ratings).tolist() == [[False, True], [True, True], [False, False]]
    assert reasons == [None, "no rating", None]


@pytest.mark.parametrize(
    ("rows", "columns", "how", "message"),
    [
        ([{"a": 1}], ["b"], {}, 'no row has the column "b"'),
        ([{"a": "good"}, {"a": "bad"}], ["a"], {}, "no row has a rating"),
        ([{"a": 1, "b": None}], ["a", "b"], {}, '"b": a rater without a single rating'),
        ([{"a": 1}], ["a"], {"scale": "ten"}, "expected LOWEST-HIGHEST"),
        ([{"a": 1}], ["a"], {"scale": "5-1"}, "expected LOWEST-HIGHEST"),
        ([{"a": 1}], ["a"], {"scale": "0-5", "compress": True}, "is for ratings from 1 to 10"),
    ],
)
def test_columns_and_scales_that_cannot_be_used_are_named(rows, columns, how, message):
    with pytest.raises(InputError, match=message):
        read_ratings(rows_of(rows), columns, **how)


def test_levels_are_the_ratings_found_or_parts_of_about_equal_size():
    ratings = np.array([[1.0], [1], [2], [3], [3], [3], [4], [7], [np.nan]])
    own = levels_of(ratings)
    assert own.names.tolist() == [1, 2, 3, 4, 7]
    assert own.labels_NM[:, 0].tolist() == [0, 0, 1, 2, 2, 2, 3, 4, MISSING]
    two = levels_of(ratings, 2)
    assert two.members == [[1, 2], [3, 4, 7]]
    assert two.names.tolist() == [1, 3]
    assert levels_of(ratings, 5).members == [[1], [2], [3], [4], [7]]


def test_equal_ratings_and_too_many_levels_are_refused():
    for ratings, number, message in (
        ([[3.0], [3.0]], None, "all ratings are 3"),
        ([[float(i)] for i in range(30)], None, "30 different ratings"),
        ([[1.0], [2.0]], 3, "--levels 3: expected 2 to 2"),
    ):
        with pytest.raises(InputError, match=message):
            levels_of(np.array(ratings), number)


@pytest.fixture(scope="module")
def three():
    rng = np.random.default_rng(0)
    truth = (rng.random(8000) < 0.55).astype(int)
    return truth, np.stack([said(T, truth, rng) for T in TWO], axis=1)


def test_put_together_raters_err_less_than_each_and_less_than_their_majority(three):
    truth, labels = three
    labels = labels.copy()
    labels[::11, 2] = MISSING
    found = aggregate(labels, 2, exchangeable=False)
    assert found.matrices_MKK == pytest.approx(np.array(TWO), abs=0.08)
    right = (found.labels_N == truth).mean()
    assert right > max((labels[:, m] == truth).mean() for m in range(3)) + 0.01
    assert found.certainty_N.mean() == pytest.approx(right, abs=0.02)
    assert found.misfit < 0.02


def test_exchangeable_raters_share_one_matrix():
    rng = np.random.default_rng(0)
    truth = (rng.random(8000) < 0.55).astype(int)
    labels = np.stack([said(TWO[0], truth, rng) for _ in range(4)], axis=1)
    found = aggregate(labels, 2, exchangeable=True)
    assert (found.matrices_MKK == found.matrices_MKK[0]).all()
    assert found.matrices_MKK[0] == pytest.approx(TWO[0], abs=0.03)
    assert (found.labels_N == truth).mean() > (labels[:, 0] == truth).mean() + 0.05


def test_raters_who_guess_are_not_put_together():
    labels = np.random.default_rng(0).integers(0, 3, (2000, 3))
    with pytest.raises(NoResult, match="do not agree more than by chance"):
        aggregate(labels, 3, exchangeable=False)


def test_raters_who_read_the_scale_in_other_ways_are_not_put_together():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 6000)
    shifted = np.array([[0.1, 0.8, 0.1], [0.05, 0.15, 0.8], [0.02, 0.08, 0.9]])
    plain = np.array([[0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.05, 0.15, 0.8]])
    labels = np.stack([said(T, truth, rng) for T in (plain, plain, shifted)], axis=1)
    with pytest.raises(NoResult, match="mostly as itself"):
        aggregate(labels, 3, exchangeable=False)


def test_two_raters_and_raters_who_never_met_are_refused():
    with pytest.raises(InputError, match="at least three"):
        aggregate(np.zeros((5, 2), dtype=int), 2, exchangeable=False)
    with pytest.raises(InputError, match="no row has ratings by three raters"):
        aggregate(np.array([[0, 1, MISSING], [1, MISSING, 0]]), 2, exchangeable=False)


@pytest.mark.parametrize("exchangeable", [False, True])
def test_it_does_not_matter_which_three_raters_rated_a_row_nor_their_order(exchangeable):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 3000)
    T = 0.75 * np.eye(3) + 0.25 / 3
    labels = np.stack([said(T, truth, rng) for _ in range(5)], axis=1)
    labels[np.arange(3000), np.arange(3000) % 3] = MISSING  # no row has all of the first three
    one = aggregate(labels, 3, exchangeable=exchangeable)
    other = aggregate(labels[:, [3, 4, 0, 1, 2]], 3, exchangeable=exchangeable)
    assert one.three == (0, 3, 4) and other.three == (0, 1, 2)  # two thirds of the rows have such a triple
    assert (one.labels_N == other.labels_N).mean() > 0.99
    assert (one.labels_N == truth).mean() > 0.93
    assert one.agreement.num_rows == 2000
    assert one.misfit < 0.05
