import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from amends.curate._votes import (
    count_triples,
    draw,
    drawn_share,
    flagged,
    length_of_list,
    list_neighbours,
    long_tail,
    neighbours_in,
    row_keys,
    votes,
)

rng = np.random.default_rng(0)
POINTS = rng.normal(size=(900, 8)).astype(np.float32)
LABELS = rng.integers(0, 4, 900)
LISTS = list_neighbours(POINTS, length_of_list(0.9, 9), near=1.1)
IN = draw(row_keys(POINTS), 0, 0, 0.9)


@pytest.mark.parametrize("share", [0.9, 0.3])
def test_neighbours_read_off_the_lists_are_those_searched_for_inside_the_draw(share):
    in_N = draw(row_keys(POINTS), 3, 1, share)
    found = neighbours_in(list_neighbours(POINTS, length_of_list(share, 9), near=1.1), in_N, 9)
    drawn = np.flatnonzero(in_N)
    peer = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(POINTS[drawn])
    distance, index = peer.kneighbors(POINTS[drawn])
    assert found.num_short == 0
    assert (found.row_M == drawn).all()
    assert (found.index_Mk == drawn[index[:, 1:]]).all()
    assert found.similarity_Mk == pytest.approx(1 - distance[:, 1:], abs=1e-5)


def test_rows_whose_list_does_not_suffice_are_counted_and_left_out():
    short = neighbours_in(list_neighbours(POINTS, 4, near=1.1), draw(row_keys(POINTS), 0, 0, 0.3), 9)
    assert short.num_short > 0
    assert len(short.row_M) + short.num_short == draw(row_keys(POINTS), 0, 0, 0.3).sum()


def test_draws_have_their_size_and_differ_and_hang_on_no_order():
    keys = row_keys(POINTS)
    assert len(np.unique(keys)) == len(keys)
    sizes = [draw(keys, 0, number, 0.9).mean() for number in range(50)]
    assert np.mean(sizes) == pytest.approx(0.9, abs=0.005)
    both = np.mean([draw(keys, 0, r, 0.5) & draw(keys, 0, r + 1, 0.5) for r in range(50)])
    assert both == pytest.approx(0.25, abs=0.01)
    order = rng.permutation(900)
    assert (draw(row_keys(POINTS[order]), 0, 0, 0.9) == IN[order]).all()
    assert drawn_share(300_000, 50_000) == pytest.approx(1 / 6)
    assert drawn_share(1000, 50_000) == 0.9


def test_counts_and_votes_of_four_parts_add_up_to_those_of_the_whole():
    parts = [slice(start, start + 225) for start in range(0, 900, 225)]
    whole = count_triples(LISTS, LABELS, 4, IN)
    added = [count_triples(LISTS, LABELS, 4, IN, part) for part in parts]
    assert (sum(part.count_KKK for part in added) == whole.count_KKK).all()
    assert sum(part.num_short for part in added) == whole.num_short
    assert whole.count_KKK.sum() == IN.sum()
    all_votes = votes(LISTS, LABELS, 4, IN, 10)
    some = [votes(LISTS, LABELS, 4, IN, 10, part) for part in parts]
    for name in ("row_M", "cost_M", "proposed_M"):
        assert (np.concatenate([getattr(part, name) for part in some]) == getattr(all_votes, name)).all()


def test_votes_are_weighed_by_cosine_and_the_row_itself_by_its_two_nearest():
    angle = np.deg2rad([0, 10, -20, 40])
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    found = votes(list_neighbours(points, 3, near=1.1), np.array([0, 1, 1, 0]), 2, np.ones(4, bool), 4)
    near, far, farthest = np.cos(np.deg2rad([10, 20, 40]))
    for_0, for_1 = 2 * near - far + farthest, near + far
    assert found.cost_M[0] == pytest.approx(-np.log(for_0 / np.hypot(for_0, for_1)), abs=1e-5)
    assert found.proposed_M[0] == (for_1 > for_0)


def test_a_row_that_all_agree_with_costs_nothing():
    found = votes(LISTS, np.zeros(900, dtype=int), 3, IN, 10)
    assert found.cost_M == pytest.approx(0, abs=1e-6)
    assert (found.proposed_M == 0).all()


def test_of_each_label_the_share_with_the_highest_cost_is_flagged():
    cost, labels = np.arange(200.0), np.repeat([0, 1], 100)
    found = flagged(cost, labels, [0.1, 0.3])
    assert np.flatnonzero(found).tolist() == [*range(90, 100), *range(170, 200)]
    assert not flagged(np.zeros(10), np.zeros(10, dtype=int), [0.5]).any()


def test_the_long_tail_score_is_tanh_of_half_the_mean_distance():
    distance = 1 - LISTS.similarity_NL[:, :10].astype(float).mean(axis=1)
    assert long_tail(LISTS, 10) == pytest.approx(2 / (1 + np.exp(-distance)) - 1)


@pytest.mark.parametrize("how", [{"near": 0.9999}, {"near": 1.1, "groups_N": np.arange(1800) % 900}])
def test_no_row_has_a_twin_or_sibling_in_its_list_nor_two_that_are_each_others(how):
    lists = list_neighbours(np.concatenate([POINTS, POINTS]), 20, **how)
    for row, (index, similarity, num) in enumerate(zip(*lists[:3], strict=True)):
        assert num >= 20
        listed = [row % 900, *(index[:num] % 900)]
        assert len(set(listed)) == len(listed)
        assert np.isfinite(similarity[:num]).all() and np.isnan(similarity[num:]).all()
    assert lists.num_twins + lists.num_siblings > 1800 * 20
    plain = list_neighbours(POINTS, 20, near=1.1)
    assert (lists.index_NL[:900, :20] % 900 == plain.index_NL[:, :20]).all()


def test_rows_without_a_group_are_no_siblings():
    assert list_neighbours(POINTS, 20, near=1.1, groups_N=np.full(900, -1)).num_siblings == 0


def test_a_row_with_nothing_but_twins_beside_it_has_no_long_tail_score():
    lists = list_neighbours(np.repeat(POINTS[:1], 4, axis=0), 3, near=0.99)
    assert np.isnan(long_tail(lists, 3)).all()
