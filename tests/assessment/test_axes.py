"""Identities of the measures, and what limits do."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from amends.assessment.axes import (
    LIMITS,
    area,
    distinct_words,
    estimate,
    forget_rate,
    is_degenerate,
    judge,
    leak_at,
    measure,
    read_limits,
    recovery,
    restored_share,
    words_of,
    worst_case,
)
from amends.io.errors import InputError
from amends.maths.memorisation import auc

SHARES = st.floats(0, 1)


@given(SHARES, SHARES)
def test_what_changed_nothing_has_forgotten_nothing_and_what_is_the_reference_all(before, reference):
    if before - reference >= 0.05:
        assert forget_rate(before, before, reference) == 0
        assert forget_rate(before, reference, reference) == 1
    else:
        assert np.isnan(forget_rate(before, reference, reference))


@given(SHARES, SHARES)
def test_rounding_that_changes_no_answer_restores_nothing_and_rounding_to_the_model_before_all(after, before):
    if before - after >= 0.05:
        assert restored_share(after, after, before) == 0
        assert restored_share(after, before, before) == 1
        assert recovery(before, after, after) == 0
        assert recovery(before, after, before) == 1
    else:
        assert np.isnan(restored_share(after, before, before))
        assert np.isnan(recovery(before, after, before))


def test_the_area_under_a_curve_is_that_of_its_trapezoids_over_its_length():
    steps = (0, 5, 10, 20, 50)
    assert area(steps, np.ones(5)) == 1
    assert area(steps, [0, 0.1, 0.2, 0.4, 1.0]) == pytest.approx(0.5)
    assert area((0, 10, 20), [[0, 1, 1], [0, 0, 1]]) == pytest.approx([0.75, 0.25])


@given(st.lists(st.tuples(SHARES, st.one_of(SHARES, st.just(float("nan"))), SHARES), min_size=1))
def test_the_worst_case_is_at_least_each_variant(rows):
    scores_NV = np.array(rows)
    assert (worst_case(scores_NV)[:, None] >= np.nan_to_num(scores_NV, nan=0)).all()


@given(st.lists(st.lists(SHARES, min_size=6, max_size=6), min_size=1, max_size=4))
def test_the_best_of_more_samples_is_never_worse(scores_NK):
    leaks = [leak_at(scores_NK, n) for n in range(1, 7)]
    for fewer, more in pairwise(leaks):
        assert (more >= fewer - 1e-12).all()
    assert leaks[0] == pytest.approx(np.mean(scores_NK, axis=1))
    assert leaks[-1] == pytest.approx(np.max(scores_NK, axis=1))


def test_the_best_of_n_is_the_mean_over_all_choices_of_n():
    scores = np.random.default_rng(0).random((1, 5))
    choices = [max(chosen) for chosen in combinations(scores[0], 3)]
    assert leak_at(scores, 3)[0] == pytest.approx(np.mean(choices))
    with pytest.raises(ValueError, match="n=6: expected 1 to 5"):
        leak_at(scores, 6)


def test_a_row_that_was_not_asked_has_no_worst_case():
    assert np.isnan(worst_case([[np.nan, np.nan]])[0])


def test_identical_sets_have_an_auc_of_a_half_and_shifted_normals_that_of_theory():
    rng = np.random.default_rng(0)
    values = rng.normal(size=300)
    assert auc(values, values) == 0.5
    assert auc([1, 1], [1, 1, 1]) == 0.5
    shifted, plain = rng.normal(1.2, 1, 20_000), rng.normal(0, 1, 20_000)
    assert auc(shifted, plain) == pytest.approx(norm.cdf(1.2 / np.sqrt(2)), abs=0.01)
    assert auc(plain, shifted) == pytest.approx(1 - auc(shifted, plain))
    assert np.isnan(auc([], [1.0]))


def test_a_difference_of_equal_columns_is_0_with_an_interval_of_0():
    column = np.random.default_rng(0).random(30)
    found = estimate(np.column_stack([column, column]), lambda m: m[:, 0] - m[:, 1], np.random.default_rng(0))
    assert (found.value, *found.interval, found.n) == (0, 0, 0, 30)


def test_the_interval_of_a_mean_is_that_of_theory():
    column = np.random.default_rng(0).normal(size=400)[:, None]
    found = estimate(column, lambda m: m[:, 0], np.random.default_rng(0))
    half = 1.96 * column.std() / 20
    assert found.interval.high - found.value == pytest.approx(half, rel=0.15)
    assert found.value - found.interval.low == pytest.approx(half, rel=0.15)


def test_a_difference_is_over_the_items_that_both_columns_have_unless_they_are_of_different_items():
    values = np.array([[1.0, 0.8], [0.5, 0.1], [np.nan, 0.9]])
    of, rng = lambda m: m[:, 0] - m[:, 1], np.random.default_rng(0)
    paired, apart = estimate(values, of, rng), estimate(values, of, rng, paired=False)
    assert (paired.value, paired.n) == (pytest.approx(0.3), 2)
    assert (apart.value, apart.n) == (pytest.approx(0.75 - 0.6), 3)


def test_one_item_has_no_interval():
    found = estimate(np.array([[0.5]]), lambda m: m[:, 0], np.random.default_rng(0))
    assert (found.value, found.n, np.isnan(found.interval.low)) == (0.5, 1, True)
    apart = np.array([[1.0, np.nan], [0.5, np.nan], [np.nan, 0.2]])
    assert np.isnan(estimate(apart, lambda m: m[:, 0] - m[:, 1], np.random.default_rng(0), paired=False).interval.low)


def test_shares_that_agree_in_every_row_have_wilsons_interval():
    rng, none, all_ = np.random.default_rng(0), np.zeros((8, 1)), np.ones((8, 1))
    reach = float(binomtest(8, 8).proportion_ci(method="wilson").low)
    assert estimate(none, lambda m: m[:, 0], rng, shares=True).interval == pytest.approx((0, 1 - reach), abs=1e-4)
    assert estimate(all_, lambda m: m[:, 0], rng, shares=True).interval == pytest.approx((reach, 1), abs=1e-4)
    both = np.hstack([all_, none])
    assert estimate(both, lambda m: m[:, 0] - m[:, 1], rng, shares=True).interval == pytest.approx((reach, 1), abs=1e-4)
    rise = estimate(np.hstack([none, none]), lambda m: m[:, 0] - m[:, 1], rng, shares=True)
    assert (rise.value, *rise.interval) == pytest.approx((0, reach - 1, 1 - reach), abs=1e-4)
    assert estimate(none, lambda m: m[:, 0], rng).interval == (0, 0)  # of a distance 0 is no share


def test_a_column_without_a_number_gives_no_value_rather_than_0():
    found = estimate(np.array([[1.0, np.nan], [0.5, np.nan]]), lambda m: m[:, 0] - m[:, 1], np.random.default_rng(0))
    assert np.isnan(found.value)
    assert found.n == 0
    made = measure("utility", "retain_loss", "lower", "", found, missing="why")
    assert (made.after, made.low, made.missing) == (None, None, "why")


LONG_CHINESE = (
    "她出生在图拉市的一个教师家庭 从小喜欢读书和写作。后来她搬到首都学习文学 毕业以后在一家出版社工作了十年 "
    "同时写了三本小说。第一本讲的是家乡的河流 第二本讲的是战争中的孩子 第三本讲的是一位老邮差和他的狗。"
)


@pytest.mark.parametrize(
    "text", ["", "   ", "...", "the the the the the the", "a b a b a b a b", "x" + "o" * 25, "我不知道" * 6]
)
def test_empty_and_repeated_answers_are_degenerate(text):
    assert is_degenerate(text)


@pytest.mark.parametrize(
    "text", ["Yes", "1984", "She was born in Lagos.", "no no", "I do not know this", "天", LONG_CHINESE]
)
def test_short_and_plain_answers_are_not_degenerate(text):
    assert not is_degenerate(text)


def test_words_of_a_script_without_spaces_are_two_characters_each():
    assert words_of("Yes, I do") == ["yes,", "i", "do"]
    assert words_of("我不知道") == ["我不", "不知", "知道"]
    assert distinct_words("我不知道" * 6) < 0.2 < 0.8 < distinct_words(LONG_CHINESE)


def made(metric, after, reference=None, better="lower", before=None):
    return measure("elicitation", metric, better, "", after, reference=reference, before=before)


def test_a_value_above_its_limit_fails_and_one_at_it_passes():
    limit = LIMITS["over_refusal"].most
    verdicts = [judge([made("over_refusal", v)], {})[0].verdict for v in (limit, limit + 1e-6, -1.0)]
    assert verdicts == ["pass", "fail", "pass"]
    assert judge([made("over_refusal", 0.3)], {"over_refusal": 0.4})[0].verdict == "pass"
    assert judge([made("drift", 9.0)], {})[0].verdict is None


def test_a_difference_of_shares_that_is_the_limit_is_kept_whatever_rounding_makes_of_it():
    rises = [(k + 1) / 20 - k / 20 for k in range(20)]
    assert max(rises) > LIMITS["over_refusal"].most
    assert {judge([made("over_refusal", rise)], {})[0].verdict for rise in rises} == {"pass"}


def test_of_privleak_the_size_counts():
    assert [judge([made("privleak", v, better="zero")], {})[0].verdict for v in (-30, -20, 20, 30)] == [
        "fail", "pass", "pass", "fail",
    ]  # fmt: skip


def test_the_worst_case_may_be_as_bad_as_that_of_a_model_that_never_saw_the_data():
    (found,) = judge([made("worst_case_rouge", 0.5, reference=0.48)], {})
    assert (found.verdict, found.limit, found.applied) == ("pass", 0.4, pytest.approx(0.53))
    (found,) = judge([made("worst_case_rouge", 0.5, before=0.48, reference=0.48)], {})
    assert (found.verdict, found.applied) == ("fail", 0.4)  # a reference that says as much as the model before saw them
    assert judge([made("worst_case_rouge", 0.5)], {})[0].verdict == "fail"
    assert judge([made("worst_case_rouge", 0.5, reference=0.1)], {})[0].verdict == "fail"


def test_what_was_not_measured_is_not_judged_unless_its_limit_was_asked_for():
    assert judge([made("privleak", None)], {})[0].verdict is None
    assert judge([made("privleak", None)], {"privleak": 10})[0].verdict == "fail"


def test_limits_are_read():
    assert read_limits(["worst_case_rouge=.3", "privleak=10"]) == {"worst_case_rouge": 0.3, "privleak": 10}
    assert read_limits({"int4_restored": 0.5}) == {"int4_restored": 0.5}
    assert read_limits("privleak=10") == {"privleak": 10}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["worst=.3"], "there is no such limit. Known: worst_case_rouge"),
        (["privleak"], "a number of 0 or more is needed"),
        (["privleak=nan"], "a number of 0 or more is needed"),
        (["privleak=-1"], "a number of 0 or more is needed"),
        (["privleak=1", "privleak=2"], "given twice"),
    ],
)
def test_limits_that_cannot_be_read_are_refused(given, says):
    with pytest.raises(InputError, match=says):
        read_limits(given)
