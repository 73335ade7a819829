"""Masks from scores: exact counts, what is always kept, planted noise, and the bound."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amends.curate._token_cleaning.masks import needed_reduction, offsets_of, token_mask
from amends.io.errors import InputError

ragged = st.lists(st.lists(st.integers(-4, 4), max_size=7), min_size=1, max_size=6)
shares = st.sampled_from([0.01, 0.29, 0.3, 0.5, 0.6, 1.0])


def flat(rows):
    return np.array([s for row in rows for s in row], dtype=np.float32), offsets_of([len(row) for row in rows])


@given(ragged, shares)
def test_global_keeps_exactly_a_share_of_all_tokens_and_none_below_one_that_is_dropped(rows, keep):
    scores, offsets = flat(rows)
    mask = token_mask(scores, offsets, keep=keep)
    assert mask.sum() == int(keep * len(scores))
    by_hand = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: int(keep * len(scores))]  # ties: the first
    assert np.flatnonzero(mask).tolist() == sorted(by_hand)


@given(ragged, shares)
def test_sample_keeps_exactly_a_share_of_each_row(rows, keep):
    scores, offsets = flat(rows)
    mask = token_mask(scores, offsets, keep=keep, level="sample")
    alone = [token_mask(*flat([row]), keep=keep) for row in rows]
    assert [part.sum() for part in alone] == [int(keep * len(row)) for row in rows]
    np.testing.assert_array_equal(mask, np.concatenate(alone))


@given(ragged, shares)
def test_a_quota_keeps_a_share_of_each_source(rows, keep):
    scores, offsets = flat(rows)
    names = ["ab"[i % 2] for i in range(len(rows))]
    mask = token_mask(scores, offsets, keep=keep, sources=names)
    source = np.repeat(names, [len(row) for row in rows])
    for name in "ab":
        mine = source == name
        np.testing.assert_array_equal(mask[mine], token_mask(*flat([scores[mine].tolist()]), keep=keep))


def test_a_threshold_keeps_what_is_above_it():
    scores, offsets = flat([[0.5, 0.2], [0.1, -1]])
    mask = token_mask(scores, offsets, level="threshold", threshold=0.1)
    assert mask.tolist() == [True, True, False, False]


def test_what_is_always_kept_holds_no_row_by_itself():
    scores, offsets = flat([[5, 4, -9], [-5, -6, -7], []])
    always = np.array([False, False, True, False, False, True])
    assert token_mask(scores, offsets, keep=0.34, always_keep=always).tolist() == [True, True, True] + [False] * 3
    assert token_mask(scores, offsets, keep=0.34).sum() == 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"keep": 0}, "--keep"),
        ({"keep": math.nan}, "--keep"),
        ({"keep": 1.1}, "--keep"),
        ({"level": "row"}, "--level"),
        ({"level": "threshold"}, "--threshold"),
        ({"threshold": 0.1}, "--threshold"),
        ({"level": "threshold", "threshold": 0.1, "keep": 0.6}, "--threshold"),
        ({"level": "threshold", "threshold": math.inf}, "--threshold"),
        ({"level": "sample", "sources": ["a"]}, "--source-column"),
    ],
)
def test_settings_that_do_not_go_together_are_named(settings, named):
    with pytest.raises(InputError, match=named):
        token_mask(*flat([[1, 2]]), **settings)


def test_a_score_that_is_no_number_is_refused_with_its_row():
    with pytest.raises(InputError, match="row 1: the score"):
        token_mask(*flat([[1, 2], [3, math.nan]]))


@pytest.mark.parametrize(("keep", "by_rank", "by_row"), [(0.3, 0.26, 0.46), (0.5, 0.43, 0.52)])
def test_ranking_all_tokens_together_leaves_less_noise_than_ranking_each_row(keep, by_rank, by_row):
    random = np.random.default_rng(0)
    informative = random.random((4000, 60)) < np.where(np.arange(4000) % 2, 0.6, 0.05)[:, None]
    scores = np.where(informative, random.normal(1, 0.6, informative.shape), random.normal(0, 0.6, informative.shape))
    scores, noise, offsets = scores.astype(np.float32).ravel(), ~informative.ravel(), offsets_of([60] * 4000)
    assert noise.mean() == pytest.approx(0.67, abs=0.01)
    assert noise[token_mask(scores, offsets, keep=keep)].mean() == pytest.approx(by_rank, abs=0.01)
    assert noise[token_mask(scores, offsets, keep=keep, level="sample")].mean() == pytest.approx(by_row, abs=0.01)
    blind = token_mask(random.permutation(scores), offsets, keep=keep)  # control: scores that say nothing
    assert noise[blind].mean() == pytest.approx(0.67, abs=0.01)


@pytest.mark.parametrize(("num_tokens", "share", "delta"), [(100, 0.6, 0.05), (10**6, 0.3, 0.5), (1, 1.0, 0.01)])
def test_at_the_needed_reduction_both_bounds_are_equal(num_tokens, share, delta):
    def bound(eta, tokens):
        return eta + math.sqrt(2 * math.log(4 / delta) / tokens)

    needed = needed_reduction(num_tokens, share, delta)
    assert bound(0.4, num_tokens) == pytest.approx(bound(0.4 - needed, share * num_tokens), abs=1e-12)
    assert needed_reduction(num_tokens, share, delta) <= needed_reduction(num_tokens, share / 2, delta)
