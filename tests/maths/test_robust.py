import itertools
import math

import pytest
import torch

from amends.maths import robust
from amends.maths.robust import LOSSES, Given

K = 4
COUNTS = torch.tensor([80, 40, 20, 4])
SEED = torch.Generator().manual_seed(0)
LOGITS = 2 * torch.randn(12, K, generator=SEED, dtype=torch.float64)
LABELS = torch.arange(12) % K
T = torch.tensor([[0.7, 0.2, 0.1, 0], [0.1, 0.6, 0, 0.3], [0, 0.1, 0.8, 0.1], [0.2, 0.1, 0, 0.7]], dtype=torch.float64)
CE = robust.cross_entropy(LOGITS, LABELS)
Z = LOGITS.softmax(1)[torch.arange(12), LABELS]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def same(found, expected, **how):
    torch.testing.assert_close(found, expected, **how)


def test_cross_entropy_is_that_of_torch():
    same(CE, torch.nn.functional.cross_entropy(LOGITS, LABELS, reduction="none"))


def test_corrections_without_noise_are_cross_entropy():
    eye = torch.eye(K, dtype=torch.float64)
    same(robust.forward(LOGITS, LABELS, eye), CE)
    same(robust.backward(LOGITS, LABELS, eye), CE)


def test_forward_is_the_loss_of_the_noisy_probability():
    same(robust.forward(LOGITS, LABELS, T), -(LOGITS.softmax(1) @ T)[torch.arange(12), LABELS].log())


def test_the_mean_of_backward_over_the_noise_is_the_clean_loss():
    """For each true class, the sum over given labels of T_ij times the loss with label j."""
    for true in range(K):
        given = [robust.backward(LOGITS, torch.full((12,), label), T) for label in range(K)]
        mean = sum(T[true, label] * given[label] for label in range(K))
        same(mean, robust.cross_entropy(LOGITS, torch.full((12,), true)))


def test_forward_is_least_at_the_true_probabilities_and_cross_entropy_is_not():
    truth = torch.tensor([[0.9, 0.05, 0.03, 0.02]], dtype=torch.float64)
    noisy = truth @ T

    def gradient(loss):
        logits = truth.log().requires_grad_()
        mean = sum(noisy[0, c] * loss(logits, torch.tensor([c])) for c in range(K))
        return torch.autograd.grad(mean.sum(), logits)[0].abs().max().item()

    assert gradient(lambda x, y: robust.forward(x, y, T)) < 1e-12
    assert gradient(robust.cross_entropy) > 0.05


def test_a_transition_that_cannot_be_inverted_is_refused_by_backward_alone():
    flat = torch.full((K, K), 1 / K, dtype=torch.float64)
    with pytest.raises(ValueError, match="too high to invert"):
        robust.backward(LOGITS, LABELS, flat)
    assert torch.isfinite(robust.forward(LOGITS, LABELS, flat)).all()


def test_label_smoothing_is_linear_in_its_rate_and_cross_entropy_at_zero():
    same(robust.label_smoothing(LOGITS, LABELS, 0.0), CE)

    def slope(rate):
        logits = LOGITS.clone().requires_grad_()
        return torch.autograd.grad(robust.label_smoothing(logits, LABELS, rate).sum(), logits)[0]

    same(slope(0.3) - slope(0.1), slope(-0.5) - slope(-0.7))
    soft = 0.9 * torch.nn.functional.one_hot(LABELS, K).double() + 0.1 / K
    same(robust.label_smoothing(LOGITS, LABELS, 0.1), (soft * robust.class_losses(LOGITS)).sum(1))


def test_gce_lies_between_cross_entropy_and_the_mean_absolute_error():
    same(robust.gce(LOGITS, LABELS, 1e-9), CE, rtol=1e-6, atol=1e-7)
    same(robust.gce(LOGITS, LABELS, 1.0), 1 - Z)
    same(robust.gce(LOGITS, LABELS, 0.7), (1 - Z**0.7) / 0.7)
    for q in (0.0, 1.5):
        with pytest.raises(ValueError, match="expected more than 0"):
            robust.gce(LOGITS, LABELS, q)


def test_taylor_grows_with_its_terms_to_cross_entropy():
    found = [robust.taylor_ce(LOGITS, LABELS, terms) for terms in (1, 2, 5, 50)]
    for less, more in itertools.pairwise(found):
        assert (more > less).all()
    same(found[0], 1 - Z)
    likely = Z > 0.3
    same(robust.taylor_ce(LOGITS, LABELS, 200)[likely], CE[likely], rtol=1e-6, atol=1e-9)


def test_symmetric_cross_entropy_adds_the_reverse_one():
    same(robust.sce(LOGITS, LABELS, 1.0, 0.0), CE)
    reverse = -(LOGITS.softmax(1) * torch.where(torch.nn.functional.one_hot(LABELS, K) == 1, 0.0, -4.0)).sum(1)
    same(robust.sce(LOGITS, LABELS, 0.0, 1.0), reverse)


def test_clipped_logits_leave_short_ones_alone_and_bound_the_loss():
    short = LOGITS / LOGITS.norm(dim=1, keepdim=True)
    same(robust.logit_clip(short, LABELS, 1.0), robust.cross_entropy(short, LABELS))
    bound = math.log(1 + (K - 1) * math.exp(math.sqrt(2) * 3))
    assert robust.logit_clip(1000 * LOGITS, LABELS, 3.0).max() <= bound
    assert robust.cross_entropy(1000 * LOGITS, LABELS).max() > bound


def test_the_peer_loss_is_less_the_mean_over_all_pairs_in_the_mean():
    loss = robust.class_losses(LOGITS)
    pairs = loss[:, LABELS].mean()
    rounds = torch.stack([robust.peer(LOGITS, LABELS, rng(seed), 0.5).mean() for seed in range(1500)])
    error = 4 * rounds.std() / len(rounds) ** 0.5
    assert (rounds.mean() - (CE.mean() - 0.5 * pairs)).abs() < error
    same(robust.peer(LOGITS, LABELS, rng(), 0.0), CE)


def test_the_f_divergence_of_total_variation_is_a_peer_loss_of_its_reward():
    reward = torch.tanh(LOGITS.softmax(1)) / 2
    rounds = torch.stack([robust.f_divergence(LOGITS, LABELS, rng(seed)).mean() for seed in range(1500)])
    expected = reward[:, LABELS].mean() - reward[torch.arange(12), LABELS].mean()
    assert (rounds.mean() - expected).abs() < 4 * rounds.std() / len(rounds) ** 0.5


def test_labels_that_say_nothing_earn_nothing_of_the_peer_losses():
    """A model that gives every row the same answer: 0 for any labels; cross-entropy prefers the commonest class."""
    same(robust.peer(LOGITS[:1].expand(12, K), LABELS, rng()).mean(), torch.tensor(0.0, dtype=torch.float64))
    same(robust.f_divergence(LOGITS[:1].expand(12, K), LABELS, rng()).mean(), torch.tensor(0.0, dtype=torch.float64))


def test_cores_is_cross_entropy_without_its_reward_and_bounded_with_it():
    prior = COUNTS / COUNTS.sum()
    same(robust.cores(LOGITS, LABELS, prior, 0.0), CE)
    expected = CE - 2 * robust.class_losses(LOGITS) @ prior.double()
    same(robust.cores(LOGITS, LABELS, prior, 2.0), expected)
    assert robust.cores(1e4 * LOGITS, LABELS, prior, 2.0).min() >= -2 * robust.MOST_CORES
    assert [robust.cores_beta(p) for p in (0.0, 0.05, 0.125, 0.2, 1.0)] == pytest.approx([0, 0, 1, 2, 2])


def test_elr_without_weight_is_cross_entropy_and_pulls_towards_what_was_said_before():
    target = torch.nn.functional.one_hot((LABELS + 1) % K, K).double()
    same(robust.elr(LOGITS, LABELS, target, 0.0), CE)
    logits = torch.zeros_like(LOGITS).requires_grad_()
    extra = robust.elr(logits, LABELS, target, 3.0) - robust.cross_entropy(logits, LABELS)
    same(extra, torch.full((12,), 3 * math.log(1 - 1 / K), dtype=torch.float64))
    slope = torch.autograd.grad(extra.sum(), logits)[0]
    assert (slope.argmin(1) == (LABELS + 1) % K).all()  # a step against it raises the class said before


def test_elr_targets_settle_at_the_models_probabilities():
    target = torch.zeros(12, K, dtype=torch.float64)
    for _ in range(60):
        target = robust.elr_target(target, LOGITS)
    same(target, LOGITS.softmax(1), rtol=1e-6, atol=1e-8)


def test_equal_classes_need_no_adjustment():
    even = torch.full((K,), 1 / K)
    same(robust.cross_entropy(robust.adjusted(LOGITS, even), LABELS), CE)
    prior = COUNTS / COUNTS.sum()
    same(robust.adjusted(LOGITS, prior, 0.0), LOGITS)
    same(robust.adjusted(robust.adjusted(LOGITS, prior), prior, -1.0), LOGITS)
    with pytest.raises(ValueError, match="a class has no rows"):
        robust.adjusted(LOGITS, torch.tensor([0.5, 0.5, 0, 0]))


def test_balanced_softmax_is_least_at_the_probabilities_of_equal_classes():
    """Menon et al.: with P(x | y) known, softmax + log prior is right on the data, so softmax is on equal classes."""
    density = torch.tensor([0.2, 0.5, 0.1, 0.4], dtype=torch.float64)  # p(x | y) of one x
    prior = (COUNTS / COUNTS.sum()).double()
    posterior = density * prior / (density @ prior)
    logits = density.log()[None].requires_grad_()
    adjusted = robust.adjusted(logits, prior)
    mean = sum(posterior[c] * robust.cross_entropy(adjusted, torch.tensor([c])) for c in range(K))
    assert torch.autograd.grad(mean.sum(), logits)[0].abs().max() < 1e-12


def test_margins_grow_as_classes_get_rarer_by_the_fourth_root():
    zeros = torch.zeros(K, K, dtype=torch.float64)
    margins = -robust.ldam(zeros, torch.arange(K), COUNTS)
    same(margins.diagonal() * COUNTS.double() ** 0.25, torch.full((K,), 0.5 * 4**0.25, dtype=torch.float64))
    assert margins.fill_diagonal_(0).abs().max() == 0


def test_focal_is_cross_entropy_at_gamma_zero_and_less_above():
    same(robust.focal(LOGITS, LABELS, 0.0), CE)
    same(robust.focal(LOGITS, LABELS, 2.0), (1 - Z) ** 2 * CE)


def test_class_weights_go_from_equal_to_one_by_count():
    same(robust.class_weights(COUNTS, 0.0), torch.ones(K, dtype=torch.float64))
    weight = robust.class_weights(COUNTS, 1 - 1e-9)
    same(weight * COUNTS, (weight * COUNTS).mean().expand(K), rtol=1e-5, atol=0)
    same(robust.class_weights(COUNTS, 0.9).mean(), torch.tensor(1.0, dtype=torch.float64))


def test_rows_are_added_up_in_one_place():
    weight = torch.tensor([1.0, 3, 0, 0])
    loss = torch.tensor([2.0, 4, 100, 100])
    assert robust.reduced(loss, "sum", weight) == 14
    assert robust.reduced(loss, "mean", weight) == 3.5
    assert robust.reduced(loss, "none", weight).tolist() == [2, 12, 0, 0]
    assert robust.reduced(loss) == 51.5


def given(target=None):
    prior = COUNTS / COUNTS.sum()
    return Given(T, prior, rng(), target_BK=torch.full((12, K), 1 / K) if target is None else target)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_gives_a_finite_number_and_slope_a_row_even_at_extreme_logits(name):
    for scale in (1.0, 1e4):
        logits = (scale * LOGITS).float().requires_grad_()
        loss = robust.loss_named(name)(logits, LABELS, given())
        assert loss.shape == (12,)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(torch.autograd.grad(loss.sum(), logits)[0]).all()


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_follows_the_classes_when_they_are_renamed(name):
    order = torch.tensor([2, 0, 3, 1])  # new class c was order[c]
    place = order.argsort()
    now = given()._replace(prior_K=given().prior_K[order], transition_KK=T[order][:, order])
    before = LOSSES[name](LOGITS, LABELS, given())
    same(LOSSES[name](LOGITS[:, order], place[LABELS], now), before)


def test_an_unknown_loss_and_a_missing_transition_are_named():
    with pytest.raises(ValueError, match="Choose one of cross_entropy, forward"):
        robust.loss_named("mse")
    with pytest.raises(ValueError, match="needs a transition matrix"):
        LOSSES["forward"](LOGITS, LABELS, given()._replace(transition_KK=None))
