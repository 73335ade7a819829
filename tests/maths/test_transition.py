import numpy as np
import pytest

from amends.maths.transition import (
    MISSING,
    Transition,
    agreement,
    bootstrap,
    consensus_shares,
    fit_raters,
    fit_transition,
    patterns,
    posterior,
    triple_counts,
)


def planted(num_classes, seed, diagonal=0.5):
    """A diagonally dominant matrix with its prior."""
    rng = np.random.default_rng(seed)
    T = (1 - diagonal) * rng.dirichlet(np.ones(num_classes), num_classes) + diagonal * np.eye(num_classes)
    return T, rng.dirichlet(5 * np.ones(num_classes))


def drawn(matrices_MKK, prior_K, num_rows, rng):
    """True classes, and what each rater says of them."""
    truth_N = rng.choice(len(prior_K), num_rows, p=prior_K)
    said = [(T[truth_N].cumsum(axis=1) < rng.random(num_rows)[:, None]).sum(axis=1) for T in matrices_MKK]
    return truth_N, np.stack(said, axis=1)


def test_shares_of_pairs_and_labels_follow_from_those_of_triples():
    T, p = planted(4, 0)
    c3 = consensus_shares(T, p)
    assert c3.sum(axis=2) == pytest.approx(T.T @ np.diag(p) @ T)
    assert c3.sum(axis=(1, 2)) == pytest.approx(T.T @ p)
    assert c3 == pytest.approx(c3.transpose(2, 0, 1))
    assert consensus_shares(np.eye(4), p).sum(axis=2) == pytest.approx(np.diag(p))


@pytest.mark.parametrize("num_classes", [2, 3, 6, 10])
@pytest.mark.parametrize("seed", range(3))
def test_exact_shares_give_the_matrix_back(num_classes, seed):
    T, p = planted(num_classes, seed)
    found = fit_transition(consensus_shares(T, p))
    assert found.matrix_KK == pytest.approx(T, abs=1e-9)
    assert found.prior_K == pytest.approx(p, abs=1e-9)
    assert found.residual < 1e-12
    assert found.is_dominant


def test_many_classes_are_found_by_descent():
    T, p = planted(24, 0)
    found = fit_transition(consensus_shares(T, p))
    assert np.abs(found.matrix_KK - T).mean() < 1e-3
    assert found.matrix_KK.sum(axis=1) == pytest.approx(1)


def test_counts_of_parts_add_up_and_what_is_missing_is_not_counted():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (100, 3))
    labels[0, 1] = MISSING
    assert (triple_counts(labels[:40], 3) + triple_counts(labels[40:], 3) == triple_counts(labels, 3)).all()
    assert triple_counts(labels, 3).sum() == 99


def test_the_order_of_raters_does_not_matter():
    labels = drawn([planted(3, 1)[0]] * 3, planted(3, 1)[1], 500, np.random.default_rng(0))[1]
    one, other = (fit_transition(triple_counts(labels[:, order], 3)) for order in ([0, 1, 2], [2, 0, 1]))
    assert one.matrix_KK == pytest.approx(other.matrix_KK, abs=1e-6)


def test_raters_who_only_guess_do_not_agree_above_chance():
    rng = np.random.default_rng(0)
    T, p = planted(4, 0)
    guessed = agreement(triple_counts(rng.choice(4, (20_000, 3), p=p), 4))
    rated = agreement(triple_counts(drawn([T] * 3, p, 20_000, rng)[1], 4))
    assert abs(guessed.above_chance) < 0.02 < 0.2 < rated.above_chance
    assert guessed.three == pytest.approx(guessed.three_by_chance, abs=0.01)


def test_posterior_is_that_of_bayes():
    T, p = planted(5, 3)
    found = posterior(T, p)
    assert found.sum(axis=0) == pytest.approx(1)
    assert found == pytest.approx(posterior(T, p, observed_K=T.T @ p))
    assert posterior(np.eye(3), [0.5, 0.5, 0])[:2, :2] == pytest.approx(np.eye(2))
    assert np.isnan(posterior(np.eye(3), [0.5, 0.5, 0])[:, 2]).all()


def test_bootstrap_intervals_hold_the_planted_matrix():
    T, p = planted(3, 5, diagonal=0.6)
    inside = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        found = bootstrap(triple_counts(drawn([T] * 3, p, 1500, rng)[1], 3), rng, rounds=40)
        inside.append((found.low_KK <= T) & (found.high_KK >= T))
        assert (found.low_KK < found.high_KK).all()
    assert 0.85 < np.mean(inside) <= 1


def test_raters_with_noise_of_their_own_are_told_apart():
    matrices = [[[0.7, 0.3], [0.35, 0.65]], [[0.8, 0.2], [0.25, 0.75]], [[0.65, 0.35], [0.3, 0.7]]]
    rng = np.random.default_rng(1)
    truth, labels = drawn(np.array(matrices), np.array([0.6, 0.4]), 40_000, rng)
    found = fit_raters(patterns(labels, 2), 2)
    assert found.matrices_MKK == pytest.approx(np.array(matrices), abs=0.05)
    assert found.prior_K == pytest.approx([0.6, 0.4], abs=0.05)
    assert found.is_dominant
    right = (found.posterior(labels).argmax(axis=1) == truth).mean()
    assert right > max((labels[:, m] == truth).mean() for m in range(3)) + 0.01
    assert found.misfit < 1e-3


def test_raters_who_copy_each_other_show_as_misfit():
    T, p = planted(2, 0, diagonal=0.6)
    rng = np.random.default_rng(0)
    _, labels = drawn([T] * 4, p, 20_000, rng)
    copied = labels.copy()
    for one, other in ((0, 1), (2, 3)):
        copied[:, other] = np.where(rng.random(20_000) < 0.5, labels[:, one], labels[:, other])
    alone, leaning = (fit_raters(patterns(x, 2), 2).misfit for x in (labels, copied))
    assert leaning > 3 * alone


def test_missing_labels_say_nothing():
    T, p = planted(3, 0)
    labels = drawn([T] * 3, p, 3000, np.random.default_rng(0))[1]
    labels[::7, 1] = MISSING
    found = fit_raters(patterns(labels, 3), 3)
    assert found.posterior([[MISSING] * 3])[0] == pytest.approx(found.prior_K)
    assert found.matrices_MKK.mean(axis=0) == pytest.approx(T, abs=0.06)


def test_equal_raters_give_the_same_by_both_fits():
    T, p = planted(3, 2, diagonal=0.7)
    labels = drawn([T] * 3, p, 60_000, np.random.default_rng(0))[1]
    shared, each = fit_transition(triple_counts(labels, 3)), fit_raters(patterns(labels, 3), 3)
    assert each.matrices_MKK.mean(axis=0) == pytest.approx(shared.matrix_KK, abs=0.02)


def test_a_matrix_without_dominance_says_so():
    assert not Transition(np.array([[0.4, 0.6], [0.1, 0.9]]), np.array([0.5, 0.5]), 0.0).is_dominant


@pytest.mark.parametrize("labels", [[[0, 1]], [[0, 1, 3]], [[0.5, 1, 1]], [0, 1, 2], [[0, 1, -2]]])
def test_labels_that_are_none_are_refused(labels):
    with pytest.raises(ValueError, match=r"expected|labels"):
        triple_counts(labels, 3)


def test_two_raters_are_too_few_and_no_row_is_none():
    with pytest.raises(ValueError, match="three are needed"):
        fit_raters(patterns([[0, 1], [1, 1]], 2), 2)
    with pytest.raises(ValueError, match="no row"):
        fit_transition(np.zeros((3, 3, 3)))
    with pytest.raises(ValueError, match="gave no label"):
        fit_raters(patterns([[0, 1, MISSING], [1, 1, MISSING]], 2), 2)
