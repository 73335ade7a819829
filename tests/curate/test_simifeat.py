import numpy as np
import pytest

from amends.curate._simifeat import (
    NOBODY,
    Judgement,
    Neighbourhood,
    Vote,
    consensus,
    draws,
    error_rates,
    flagged,
    judge,
    list_length,
    neighbourhood,
    vote,
)
from amends.maths.neighbors import nearest, unit
from amends.maths.transition import Transition, fit_transition

K = 6


def clusters(num, *, spread=0.4, num_features=16):
    """Points around a centre for each class, and the classes."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(K, num_features))
    truth = rng.integers(0, K, num)
    return (centres[truth] + spread * rng.normal(size=(num, num_features))).astype(np.float32), truth


def noisy(truth, rate, seed=1):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(truth)) < rate, (truth + rng.integers(1, K, len(truth))) % K, truth)


def found(points, labels, rule="rank", seed=0, rate=None):
    near = neighbourhood(points, list_length(len(points), 10))
    if rate is None:
        rate = error_rates(fit_transition(consensus(near, labels, K)), labels)
    return judge(near, labels, K, np.random.default_rng(seed), rate_K=rate, rule=rule)


def f1(flag, wrong):
    return 2 * (flag & wrong).sum() / (flag.sum() + wrong.sum())


def test_masks_on_one_list_find_the_neighbours_that_a_search_in_the_draw_finds():
    points, truth = clusters(400)
    labels, k = noisy(truth, 0.3), 10
    near = neighbourhood(points, list_length(400, k))
    (rows,) = draws(400, 1, np.random.default_rng(3))
    inside = nearest(points[rows], k - 1)
    said = vote(near, labels, K, rows, k)
    for place, row in enumerate(rows):
        weights = inside.similarity_Qk[place].astype(float)
        votes = np.zeros(K)
        np.add.at(votes, labels[rows[inside.index_Qk[place]]], np.maximum(weights, 0))
        votes[labels[row]] += max(2 * weights[0] - weights[1], 0)
        assert said.proposed_R[place] == votes.argmax()
        assert said.agreement_R[place] == pytest.approx(votes[labels[row]] / np.linalg.norm(votes), abs=1e-5)


def test_a_list_is_long_enough_for_all_but_one_row_in_ten_thousand():
    rng = np.random.default_rng(0)
    length = list_length(1_000_000, 10)  # 50,000 are drawn
    assert (rng.binomial(length, 0.05, 100_000) < 9).mean() < 3e-4
    assert (rng.binomial(length // 2, 0.05, 100_000) < 9).mean() > 0.1
    assert list_length(5, 10) == 4


def test_no_row_is_its_own_witness_nor_is_its_copy():
    points, truth = clusters(300)
    labels = noisy(truth, 0.3)
    twice = np.concatenate([points, points + 1e-6])
    near = neighbourhood(twice, 9)
    rows = np.arange(600)[:, None]
    assert not (near.index_Nm == rows).any()
    assert not (near.index_Nm % 300 == rows % 300).any()
    sorted_ = np.sort(near.index_Nm % 300, axis=1)
    assert (sorted_[:, 1:] != sorted_[:, :-1]).all()  # nor do two copies count as two
    # The copies change nothing of what is believed of the labels, where a plain search calls them all right.
    counts = consensus(near, np.tile(labels, 2), K)
    assert (counts == 2 * consensus(neighbourhood(points, 9), labels, K)).all()
    plain = nearest(twice, 2)
    fooled = consensus(Neighbourhood(plain.index_Qk, plain.similarity_Qk), np.tile(labels, 2), K)
    assert np.einsum("iij->", fooled) > 0.99 * fooled.sum()
    assert np.einsum("iij->", counts) < 0.7 * counts.sum()


def test_a_heap_of_copies_longer_than_the_list_does_not_hide_the_others():
    points, _ = clusters(100)
    heap = np.concatenate([points, np.repeat(points[:1], 80, axis=0)])
    near = neighbourhood(heap, 5)
    assert (near.index_Nm != NOBODY).all()
    alone = neighbourhood(points, 5)
    assert (near.index_Nm[0] == alone.index_Nm[0]).all()
    assert (near.index_Nm[150] == alone.index_Nm[0]).all()


def test_siblings_are_not_each_others_neighbours():
    points, _ = clusters(60)
    sibling = np.arange(60) // 20
    near = neighbourhood(points, 5, sibling_N=sibling)
    assert (near.index_Nm != NOBODY).all()
    assert (sibling[near.index_Nm] != sibling[:, None]).all()
    assert (sibling[neighbourhood(points, 5).index_Nm] == sibling[:, None]).any()


def test_a_row_without_neighbours_keeps_its_label():
    near = Neighbourhood(np.array([[NOBODY, NOBODY], [2, NOBODY], [1, NOBODY]]), np.array([[0.0, 0], [1, 0], [1, 0]]))
    said = vote(near, np.array([0, 1, 2]), K, np.arange(3))
    assert said.proposed_R[0] == 0
    assert said.agreement_R[0] == 1


def test_rows_in_another_order_are_judged_as_before():
    points, truth = clusters(200)
    labels, order = noisy(truth, 0.3), np.random.default_rng(5).permutation(200)
    before = vote(neighbourhood(points, 9), labels, K, np.arange(200))
    after = vote(neighbourhood(points[order], 9), labels[order], K, np.arange(200))
    np.testing.assert_allclose(after.agreement_R, before.agreement_R[order], atol=1e-6)
    assert (after.proposed_R == before.proposed_R[order]).all()


def test_the_share_to_flag_is_what_bayes_leaves():
    transition = Transition(np.array([[0.7, 0.3, 0], [0, 1, 0], [0, 0, 1.0]]), np.array([0.5, 0.25, 0.25]), 0.0)
    labels = np.repeat([0, 1, 2], [35, 40, 25])
    np.testing.assert_allclose(error_rates(transition, labels), [0.05, 0.15 / 0.4, 0.05])


def test_each_class_loses_the_share_that_agrees_least():
    labels = np.repeat([0, 1], 100)
    said = Vote(np.concatenate([np.arange(100), np.arange(100)]) / 100, np.zeros(200, int))
    flag = flagged(said, labels, np.array([0.3, 0.1]), "rank")
    assert flag[labels == 0].sum() == 30
    assert flag[labels == 1].sum() == 10
    assert said.agreement_R[flag].max() < 0.3
    assert (flagged(said, labels, None, "vote") == (labels == 1)).all()


@pytest.mark.parametrize("rule", ["rank", "vote"])
def test_planted_errors_are_found_where_classes_cluster_and_not_where_they_do_not(rule):
    points, truth = clusters(1500)
    labels = noisy(truth, 0.3)
    judged = found(points, labels, rule)
    assert f1(judged.is_wrong_N, labels != truth) > 0.95
    mended = np.where(judged.is_wrong_N, judged.suggested(labels), labels)
    assert (mended != truth).mean() < 0.03
    noise = np.random.default_rng(9).normal(size=points.shape).astype(np.float32)
    assert f1(found(noise, labels, rule, rate=np.full(K, 0.3)).is_wrong_N, labels != truth) < 0.6


def test_clean_labels_lose_next_to_nothing():
    points, truth = clusters(1500)
    assert found(points, truth).is_wrong_N.mean() < 0.02


def test_chances_add_up_and_leave_out_the_rows_own_label():
    points, truth = clusters(300, spread=1.0)
    labels = noisy(truth, 0.3)
    judged = found(points, labels)
    np.testing.assert_allclose(judged.proposal_NK.sum(axis=1), 1)
    assert (judged.suggested(labels) != labels).all()
    assert (judged.confidence(labels) <= judged.error_N).all()
    never = Judgement(np.array([0.5]), np.full((1, K), 1 / K))
    assert not never.is_wrong_N.any()


def test_the_same_generator_gives_the_same_judgement():
    points, truth = clusters(300, spread=1.0)
    labels = noisy(truth, 0.3)
    assert (found(points, labels, seed=4).error_N == found(points, labels, seed=4).error_N).all()
    assert (found(points, labels, seed=4).error_N != found(points, labels, seed=5).error_N).any()


def test_points_without_direction_are_refused():
    points = unit(clusters(20)[0])
    points[3] = np.nan
    with pytest.raises(ValueError, match="the first in row 3"):
        neighbourhood(points, 5)
    with pytest.raises(ValueError, match="1 sample"):
        neighbourhood(points[:1], 5)
