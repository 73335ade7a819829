import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div, one_hot

from amends.maths import cotraining
from amends.maths.robust import cross_entropy

K = 4
SEED = torch.Generator().manual_seed(0)
FIRST, SECOND = (2 * torch.randn(12, K, generator=SEED, dtype=torch.float64) for _ in range(2))
LABELS = torch.arange(12) % K
Z = FIRST.softmax(1)
PRIOR = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


def same(found, expected, **how):
    torch.testing.assert_close(found, expected, **how)


def test_the_share_that_is_kept_falls_from_all_to_the_right_labels_and_stays():
    kept = [cotraining.keep_share(epoch, 0.3, ramp=4) for epoch in range(8)]
    assert kept == pytest.approx([1, 0.925, 0.85, 0.775, 0.7, 0.7, 0.7, 0.7])
    assert {cotraining.keep_share(epoch, 0.0, ramp=4) for epoch in range(8)} == {1.0}


def test_small_losses_are_kept_and_exchanged():
    loss_a, loss_b = torch.tensor([3.0, 1, 2, 0]), torch.tensor([0.0, 1, 2, 3])
    assert cotraining.small_loss(loss_a, 0.5).tolist() == [False, True, False, True]
    for_a, for_b = cotraining.exchange(loss_a, loss_b, 0.5)
    assert for_a.tolist() == [True, True, False, False]
    assert for_b.tolist() == [False, True, False, True]
    assert cotraining.small_loss(loss_a, 1.0).all()
    with pytest.raises(ValueError, match="at most 1"):
        cotraining.small_loss(loss_a, 1.5)


def test_the_joint_loss_is_both_cross_entropies_and_the_divergence_both_ways():
    both = cross_entropy(FIRST, LABELS) + cross_entropy(SECOND, LABELS)
    same(cotraining.joint(FIRST, SECOND, LABELS, 0.0), both)
    log_p, log_q = FIRST.log_softmax(1), SECOND.log_softmax(1)
    ways = [kl_div(a, b, reduction="none", log_target=True).sum(1) for a, b in ((log_p, log_q), (log_q, log_p))]
    same(cotraining.joint(FIRST, SECOND, LABELS, 1.0), ways[0] + ways[1])
    same(cotraining.joint(FIRST, SECOND, LABELS, 0.3), 0.7 * both + 0.3 * (ways[0] + ways[1]))
    same(cotraining.joint(FIRST, FIRST + 5, LABELS, 0.5), cross_entropy(FIRST, LABELS))
    with pytest.raises(ValueError, match="expected 0 to 1"):
        cotraining.joint(FIRST, SECOND, LABELS, 1.5)


def test_sharpening_keeps_the_order_and_changes_nothing_at_temperature_one():
    same(cotraining.sharpen(Z, 1.0), Z)
    same(cotraining.sharpen(Z, 0.5), Z**2 / (Z**2).sum(1, keepdim=True))
    sure = [cotraining.sharpen(Z, temperature).max(1).values for temperature in (2.0, 1.0, 0.5, 0.1)]
    for less, more in itertools.pairwise(sure):
        assert (more > less).all()
    assert (cotraining.sharpen(Z, 0.1).argmax(1) == Z.argmax(1)).all()


def test_a_sure_label_is_refined_to_itself_and_an_unsure_one_to_what_the_model_says():
    same(cotraining.refine(LABELS, Z, torch.ones(12), 0.5), one_hot(LABELS, K).double())
    same(cotraining.refine(LABELS, Z, torch.zeros(12), 0.5), cotraining.sharpen(Z, 0.5))
    half = cotraining.refine(LABELS, Z, torch.full((12,), 0.5), 1.0)
    same(half, (one_hot(LABELS, K) + Z) / 2)


def test_rows_are_mixed_with_others_by_a_share_of_at_least_half():
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    same(cotraining.mix(Z, order, 1.0), Z)
    same(cotraining.mix(Z, order, 0.7), 0.7 * Z + 0.3 * Z[order])
    same(cotraining.mix(Z, order, 0.7).sum(0), Z.sum(0))
    rng = np.random.default_rng(0)
    drawn = {alpha: np.array([cotraining.mix_share(alpha, rng) for _ in range(500)]) for alpha in (0, 1e-3, 1, 4, 1e4)}
    assert (drawn[0] == 1).all()
    assert (drawn[1e-3] > 0.999).mean() > 0.95
    assert all((found >= 0.5).all() and (found <= 1).all() for found in drawn.values())
    assert drawn[1].mean() > drawn[4].mean() > drawn[1e4].mean()
    assert drawn[1e4].max() < 0.52


def test_the_loss_of_mixed_rows_is_cross_entropy_on_labels_and_squared_error_on_guesses():
    sure, labelled, guessed = one_hot(LABELS, K).double(), torch.ones(12, dtype=bool), torch.zeros(12, dtype=bool)
    own = Z.mean(0)  # a prior that the model meets: no penalty
    same(cotraining.mixed_loss(FIRST, sure, labelled, own, 25.0), cross_entropy(FIRST, LABELS).mean())
    same(cotraining.mixed_loss(FIRST, sure, guessed, own, 3.0), 3 * ((Z - sure) ** 2).mean())
    same(cotraining.mixed_loss(FIRST, Z, guessed, own, 25.0), torch.tensor(0.0, dtype=torch.float64))
    half = torch.arange(12) < 6
    parts = cross_entropy(FIRST, LABELS)[:6].mean() + 3 * ((Z - sure)[6:] ** 2).mean()
    same(cotraining.mixed_loss(FIRST, sure, half, own, 3.0), parts)


def test_the_penalty_is_zero_at_the_prior_and_grows_where_a_class_vanishes():
    at_prior = PRIOR.log().expand(12, K)
    guessed = torch.zeros(12, dtype=bool)
    nothing = torch.tensor(0.0, dtype=torch.float64)
    same(cotraining.mixed_loss(at_prior, PRIOR.expand(12, K), guessed, PRIOR, 1.0), nothing)
    lost = [
        cotraining.mixed_loss(at_prior - shift * torch.eye(K)[3], at_prior, guessed, PRIOR, 0.0) for shift in (1, 3)
    ]
    assert 0 < lost[0] < lost[1]


def test_confidence_is_the_negative_entropy():
    same(cotraining.confidence(FIRST), -torch.distributions.Categorical(Z).entropy())
    assert cotraining.confidence(torch.zeros(1, K)).item() == pytest.approx(-np.log(K))
