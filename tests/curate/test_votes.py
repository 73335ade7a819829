import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from amends.curate._labels.votes import (
    Draws,
    count_in_draws,
    cut_costs,
    drawn_share,
    length_of_list,
    neighbours_in,
    row_keys,
    tally,
    votes,
)
from amends.curate._pools.lists import SPARE, list_in_parts, list_neighbours, long_tail
from amends.curate._pools.scale import Here
from amends.maths.ranks import Valued, above

rng = np.random.default_rng(0)
POINTS = rng.normal(size=(900, 8)).astype(np.float32)
LABELS = rng.integers(0, 4, 900)
LISTS = list_neighbours(POINTS, length_of_list(0.9, 9), near=1.1)
DRAWS = Draws(row_keys(POINTS), 0, 0.9)
IN = DRAWS.rows_of(0)


@pytest.mark.parametrize("share", [0.9, 0.3])
def test_neighbours_read_off_the_lists_are_those_searched_for_inside_the_draw(share):
    in_N = Draws(row_keys(POINTS), 3, share).rows_of(1)
    found = neighbours_in(list_neighbours(POINTS, length_of_list(share, 9), near=1.1), in_N, 9)
    drawn = np.flatnonzero(in_N)
    peer = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(POINTS[drawn])
    distance, index = peer.kneighbors(POINTS[drawn])
    assert found.num_short == 0
    assert (found.row_M == drawn).all()
    assert (found.index_Mk == drawn[index[:, 1:]]).all()
    assert found.similarity_Mk == pytest.approx(1 - distance[:, 1:], abs=1e-5)


def test_rows_whose_list_does_not_suffice_are_counted_and_left_out():
    in_N = Draws(row_keys(POINTS), 0, 0.3).rows_of(0)
    short = neighbours_in(list_neighbours(POINTS, 4, near=1.1), in_N, 9)
    assert short.num_short > 0
    assert len(short.row_M) + short.num_short == in_N.sum()


def test_draws_have_their_size_and_differ_and_hang_on_no_order():
    keys = row_keys(POINTS)
    assert len(np.unique(keys)) == len(keys)
    sizes = [Draws(keys, 0, 0.9).rows_of(number).mean() for number in range(50)]
    assert np.mean(sizes) == pytest.approx(0.9, abs=0.005)
    half = Draws(keys, 0, 0.5)
    both = np.mean([half.rows_of(r) & half.rows_of(r + 1) for r in range(50)])
    assert both == pytest.approx(0.25, abs=0.01)
    order = rng.permutation(900)
    assert (Draws(row_keys(POINTS[order]), 0, 0.9).rows_of(0) == IN[order]).all()
    assert drawn_share(300_000) == drawn_share(1000, 50_000) == 0.9
    assert drawn_share(300_000, 50_000) == pytest.approx(1 / 6)


@pytest.mark.parametrize("near", [1.1, 0.9])
def test_lists_counts_and_votes_of_four_parts_are_those_of_the_whole(monkeypatch, near):
    monkeypatch.setattr("amends.curate._pools.scale.TILE", 225)
    groups = np.arange(900) // 2

    def done(num_parts):
        workers = Here(num_parts)
        listed = list_in_parts(workers, POINTS, 19, near=near, groups_N=groups)
        assert len(listed.by_part) == num_parts
        triples = [count_in_draws(part, LABELS, 4, DRAWS, range(3)) for part in listed.by_part]
        flags = tally(workers, listed.by_part, LABELS, 4, DRAWS, range(5), 10, np.full(4, 0.3))
        most = tally(workers, listed.by_part, LABELS, 4, DRAWS, range(5), 10, None)
        lists = [np.concatenate([part[i] for part in listed.by_part]) for i in range(3)]
        tail = np.concatenate([long_tail(part, 10) for part in listed.by_part])
        return [
            *lists,
            tail,
            listed[1:],
            sum(t.count_KKK for t in triples),
            sum(t.num_short for t in triples),
            *flags,
            *most,
        ]

    for whole, added in zip(done(1), done(4), strict=True):
        np.testing.assert_array_equal(added, whole)
    assert done(1)[4][1] > 0  # siblings were left out


def test_a_list_is_made_longer_by_what_all_parts_lack(monkeypatch):
    monkeypatch.setattr("amends.curate._pools.scale.TILE", 225)
    heap = np.repeat(POINTS[:30], 30, axis=0)  # each row has 29 copies, more than the places to spare
    lists = list_in_parts(Here(4), heap, 5, near=0.9999).by_part
    assert min(part.num_M.min() for part in lists) >= 5
    assert lists[0].index_ML.shape[1] > 5 + SPARE
    assert all((part.index_ML // 30 != part.row_M[:, None] // 30)[:, :5].all() for part in lists)


def test_votes_are_weighed_by_cosine_and_the_row_itself_by_its_two_nearest():
    angle = np.deg2rad([0, 10, -20, 40])
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    all_4 = Draws(row_keys(points), 0, 0.9999999)
    found = votes(list_neighbours(points, 3, near=1.1), np.array([0, 1, 1, 0]), 2, all_4, range(1), 4)
    near, far, farthest = np.cos(np.deg2rad([10, 20, 40]))
    for_0, for_1 = 2 * near - far + farthest, near + far
    assert found.cost_RM[0, 0] == pytest.approx(-np.log(for_0 / np.hypot(for_0, for_1)), abs=1e-5)
    assert found.proposed_RM[0, 0] == (for_1 > for_0)


def test_a_row_that_all_agree_with_costs_nothing():
    found = votes(LISTS, np.zeros(900, dtype=int), 3, DRAWS, range(1), 10)
    assert (np.isfinite(found.cost_RM[0]) == IN).all()
    assert found.cost_RM[0, IN] == pytest.approx(0, abs=1e-6)
    assert (found.proposed_RM[0] == np.where(IN, 0, -1)).all()


def test_of_each_label_the_share_with_the_highest_cost_is_flagged():
    costs = Valued(np.arange(200, dtype=np.float32), np.repeat([0, 1], 100))
    found = above(costs, cut_costs(Here(), [costs], np.array([0.1, 0.3])))
    assert np.flatnonzero(found).tolist() == [*range(90, 100), *range(170, 200)]
    equal = Valued(np.zeros(10, dtype=np.float32), np.zeros(10, dtype=np.int64))
    assert not above(equal, cut_costs(Here(), [equal], np.array([0.5]))).any()


@pytest.mark.parametrize("share", [0.05, 0.317, 0.5, 0.95])
def test_what_is_flagged_lies_above_the_quantile(share):
    cost = rng.exponential(size=901).round(2).astype(np.float32)
    costs = Valued(cost, np.zeros(901, dtype=np.int64))
    found = above(costs, cut_costs(Here(), [costs], np.array([share])))
    assert (found == (cost > np.quantile(cost.astype(float), 1 - share))).all()


def test_the_long_tail_score_is_tanh_of_half_the_mean_distance():
    distance = 1 - LISTS.similarity_ML[:, :10].astype(float).mean(axis=1)
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
    assert (lists.index_ML[:900, :20] % 900 == plain.index_ML[:, :20]).all()


def test_rows_without_a_group_are_no_siblings():
    assert list_neighbours(POINTS, 20, near=1.1, groups_N=np.full(900, -1)).num_siblings == 0


def test_a_row_with_nothing_but_twins_beside_it_has_no_long_tail_score():
    lists = list_neighbours(np.repeat(POINTS[:1], 4, axis=0), 3, near=0.99)
    assert np.isnan(long_tail(lists, 3)).all()
