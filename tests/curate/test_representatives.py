"""Clusters are partitions around hubs, silhouettes are scikit-learn's, and pairs share no row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import silhouette_samples

from amends.curate._entp.representatives import (
    Grouping,
    choose_theta,
    group,
    mmr,
    nearest_pairs,
    one_hop_clusters,
    shuffled,
    silhouettes,
)
from amends.io.errors import InputError
from amends.maths.neighbors import nearest, unit

from .writers import unit_rows


def clumps(rng, num, each, spread, features=12):
    centres = rng.normal(size=(num, features))
    return unit(np.repeat(centres, each, axis=0) + spread * rng.normal(size=(num * each, features)))


@settings(max_examples=25)
@given(st.integers(2, 60), st.integers(1, 12), st.floats(-1, 1), st.integers(0, 10**6))
def test_clusters_partition_the_rows_and_each_member_is_linked_to_its_hub(count, k, theta, seed):
    points = unit_rows(count, 3, seed)
    near = nearest(points, min(k, count - 1))
    found = one_hop_clusters(near, theta)
    assert found.size_C.sum() == count and (found.size_C > 0).all()
    assert (found.label_N[found.hub_C] == np.arange(len(found.hub_C))).all()
    listed = [set(row[similarity >= theta]) for row, similarity in zip(*near[:2], strict=True)]
    for row, label in enumerate(found.label_N):
        hub = found.hub_C[label]
        assert row == hub or row in listed[hub] or hub in listed[row]


def test_the_row_with_the_most_links_is_the_first_hub():
    angles = np.radians([0, 20, 40, 180])
    near = nearest(np.column_stack([np.cos(angles), np.sin(angles)]), 3)
    found = one_hop_clusters(near, np.cos(np.radians(25)))
    assert found.hub_C.tolist() == [1, 3]
    assert found.label_N.tolist() == [0, 0, 0, 1]


def test_a_link_counts_for_both_whichever_of_them_lists_the_other():
    angles = np.radians([0, 10, 30])
    near = nearest(np.column_stack([np.cos(angles), np.sin(angles)]), 1)
    assert one_hop_clusters(near, 0.5).hub_C.tolist() == [1]


@settings(max_examples=25)
@given(st.integers(3, 50), st.integers(2, 8), st.integers(0, 10**6))
def test_silhouettes_are_those_of_scikit_learn(count, num_labels, seed):
    points = unit_rows(count, 4, seed)
    label = np.unique(np.random.default_rng(seed).integers(0, num_labels, count), return_inverse=True)[1]
    if not 2 <= label.max() + 1 < count:
        return
    rows = np.arange(count)
    expected = silhouette_samples(points.astype(np.float64), label, metric="cosine")
    assert silhouettes(points, label, rows) == pytest.approx(expected, abs=1e-5)
    some = rows[::2]
    assert silhouettes(points, label, some) == pytest.approx(expected[some], abs=1e-5)


def test_silhouettes_do_not_hang_on_the_size_of_a_tile(monkeypatch):
    points, label = unit_rows(90, 4, 0), np.arange(90) % 7
    before = silhouettes(points, label, np.arange(90))
    monkeypatch.setattr("amends.curate._entp.representatives.TILE", 50)
    assert silhouettes(points, label, np.arange(90)) == pytest.approx(before, abs=1e-6)


def test_the_threshold_finds_planted_clumps_and_noise_has_none():
    rng = np.random.default_rng(0)
    points = clumps(rng, 30, 4, 0.12)
    near = nearest(points, 10)
    theta, tried = choose_theta(points, near, rng)
    found = one_hop_clusters(near, theta)
    assert len(found.hub_C) == 30 and (found.size_C == 4).all()
    assert tried[f"{theta:g}"] == max(tried.values()) > 0.7
    noise = unit_rows(120, 60, 1)
    _, tried = choose_theta(noise, nearest(noise, 10), rng)
    assert max(tried.values()) < 0.05


def test_without_two_clusters_the_tightest_threshold_is_taken():
    points = unit(np.ones((5, 3)) + 0.001 * unit_rows(5, 3, 0))
    theta, tried = choose_theta(points, nearest(points, 4), np.random.default_rng(0))
    assert theta == 0.9 and set(tried.values()) == {None}


@settings(max_examples=25)
@given(st.integers(1, 12), st.integers(1, 14), st.floats(0, 1), st.integers(0, 10**6))
def test_mmr_never_repeats_and_begins_nearest_to_the_mean(size, count, balance, seed):
    points = unit_rows(size, 3, seed)
    found = mmr(points, count, balance)
    assert len(found) == len(set(found)) == min(size, count)
    nearness = points @ points.mean(axis=0)
    assert nearness[found[0]] >= nearness.max() - 1e-6  # two rows are equally near to their mean


def test_mmr_with_1_is_the_order_of_nearness_to_the_mean():
    points = unit_rows(20, 5, 3)
    assert mmr(points, 20, 1.0) == np.argsort(-(points @ points.mean(axis=0))).tolist()


def test_mmr_with_0_takes_the_row_farthest_from_those_taken():
    points = unit_rows(20, 5, 3)
    found = mmr(points, 20, 0.0)
    for place in range(1, 20):
        closest = (points @ points[found[:place]].T).max(axis=1)
        closest[found[:place]] = np.inf
        assert found[place] == closest.argmin()


@pytest.mark.parametrize("pairing", ["within", "nearest"])
@pytest.mark.parametrize("at_random", [False, True])
def test_no_row_is_in_two_pairs(pairing, at_random):
    rng = np.random.default_rng(0)
    points = clumps(rng, 25, 5, 0.3)
    found = group(points, Grouping(pairing=pairing, per_cluster=3), rng, at_random=at_random)
    rows = [row for pair in found.pairs for row in pair]
    assert rows and len(rows) == len(set(rows))


def test_pairs_are_of_one_cluster_or_of_different_ones():
    points = clumps(np.random.default_rng(0), 25, 5, 0.12)
    for pairing in ("within", "nearest"):
        found = group(points, Grouping(pairing=pairing), np.random.default_rng(0))
        label = found.clusters.label_N
        assert {bool(label[i] == label[j]) for i, j in found.pairs} == {pairing == "within"}


def test_the_control_pairs_the_same_rows_at_random():
    points = clumps(np.random.default_rng(0), 40, 3, 0.12)
    true = group(points, Grouping(most_pairs=30), np.random.default_rng(0)).pairs
    found = group(points, Grouping(most_pairs=30), np.random.default_rng(0), at_random=True).pairs
    assert len(true) == 30 and sorted(sum(found, ())) == sorted(sum(true, ()))
    topic = np.repeat(np.arange(40), 3)
    assert np.mean([topic[i] == topic[j] for i, j in true]) > 0.95
    assert np.mean([topic[i] == topic[j] for i, j in found]) < 0.2
    assert shuffled(true, np.random.default_rng(1)) != shuffled(true, np.random.default_rng(2))


def test_nearest_pairs_take_the_nearest_that_is_allowed():
    angles = np.radians([0, 10, 12, 90])
    points = unit(np.column_stack([np.cos(angles), np.sin(angles)]))
    assert nearest_pairs(points, [0, 1, 2, 3], 3) == [(0, 3), (1, 2)]
    assert nearest_pairs(points, [0, 1, 1, 3], 3) == [(0, 1), (2, 3)]
    assert nearest_pairs(points, [0, 1, 2, 3], 3, lambda i, j: (i, j) != (1, 2)) == [(0, 1), (2, 3)]
    assert nearest_pairs(points[:1], [0], 3) == []


@pytest.mark.parametrize(
    "wrong", [{"neighbours": 0}, {"mmr": 1.5}, {"theta": 2}, {"per_cluster": 1}, {"most_pairs": 0}]
)
def test_a_number_out_of_range_is_refused(wrong):
    with pytest.raises(InputError, match="--"):
        Grouping(**wrong)
