import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from amends.curate import RobustClassifier
from amends.maths.robust import LOSSES

X, Y = load_digits(return_X_y=True)
X, TEST_X, Y, TEST_Y = train_test_split(X / 16, Y, test_size=1 / 3, random_state=0, stratify=Y)
K = 10


def noisy(rate, seed=0):
    """Labels of which a share is wrong, each class leaning to others of its own."""
    rng = np.random.default_rng(seed)
    T = np.zeros((K, K))
    for i in range(K):
        T[i, np.arange(K) != i] = rate * rng.dirichlet(np.ones(K - 1))
        T[i, i] = 1 - rate
    drawn = (rng.random(len(Y))[:, None] > T[Y].cumsum(axis=1)).sum(axis=1)
    return np.minimum(drawn, K - 1), T


def accuracy(labels, **how):
    return RobustClassifier(random_state=0, epochs=50, **how).fit(X, labels).score(TEST_X, TEST_Y)


def test_forward_with_a_matrix_that_was_learnt_beats_cross_entropy_on_noisy_labels():
    labels, T = noisy(0.4)
    plain = accuracy(labels)
    assert accuracy(labels, loss="forward") > plain + 0.03
    assert accuracy(labels, loss="forward", transition=T) > plain + 0.03


def test_forward_gains_nothing_on_right_labels_or_with_a_matrix_without_noise():
    assert abs(accuracy(Y, loss="forward", transition="estimate") - accuracy(Y)) < 0.02
    labels, _ = noisy(0.4)
    plain = RobustClassifier(random_state=0, epochs=20).fit(X, labels)
    same = RobustClassifier("forward", transition=np.eye(K), random_state=0, epochs=20).fit(X, labels)
    np.testing.assert_allclose(plain.predict_proba(TEST_X), same.predict_proba(TEST_X), atol=1e-3)


def rare():
    """Rows of which five classes have a twentieth."""
    rng = np.random.default_rng(0)
    rows = [rng.permutation(np.flatnonzero(c == Y)) for c in range(K)]
    return np.concatenate([r if c % 2 else r[: len(r) // 20] for c, r in enumerate(rows)])


def recalls(rows, **how):
    right = RobustClassifier(random_state=0, **how).fit(X[rows], Y[rows]).predict(TEST_X) == TEST_Y
    return np.bincount(TEST_Y, right) / np.bincount(TEST_Y)


@pytest.mark.parametrize("name", ["balanced_softmax", "post_hoc"])
def test_adjusting_for_unequal_classes_lifts_the_worst_without_loss_in_the_mean(name):
    plain, adjusted = recalls(rare()), recalls(rare(), imbalance=name)
    assert adjusted.min() > plain.min() + 0.10
    assert adjusted.mean() > plain.mean() - 0.02


def test_adjusting_changes_nothing_where_classes_are_equal():
    rows = np.concatenate([np.flatnonzero(c == Y)[:60] for c in range(K)])
    np.testing.assert_allclose(recalls(rows, imbalance="post_hoc"), recalls(rows))
    assert np.abs(recalls(rows, imbalance="balanced_softmax") - recalls(rows)).max() < 0.02


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_from_right_labels(loss):
    rows = np.arange(600)
    model = RobustClassifier(loss, epochs=40, random_state=0).fit(X[rows], Y[rows])
    assert model.score(TEST_X, TEST_Y) > 0.85
    assert np.isfinite(model.predict_proba(TEST_X)).all()


@pytest.mark.parametrize("imbalance", ["ldam", "class_weights"])
def test_other_corrections_learn_too_with_a_hidden_layer(imbalance):
    model = RobustClassifier(imbalance=imbalance, hidden=32, epochs=30, random_state=0).fit(X, Y)
    assert model.score(TEST_X, TEST_Y) > 0.9


def test_the_same_seed_gives_the_same_weights_and_another_one_does_not():
    labels, _ = noisy(0.2)
    of = [RobustClassifier("peer", epochs=3, random_state=seed).fit(X, labels).weights_[0] for seed in (1, 1, 2)]
    assert (of[0] == of[1]).all()
    assert (of[0] != of[2]).any()


def test_a_constant_feature_counts_for_nothing_and_scales_do_not_matter():
    more = np.column_stack([1000 * X, np.full(len(X), 7.0)])
    test = np.column_stack([1000 * TEST_X, np.full(len(TEST_X), 7.0)])
    plain = RobustClassifier(epochs=5, random_state=0).fit(X, Y).predict_proba(TEST_X)
    np.testing.assert_allclose(
        RobustClassifier(epochs=5, random_state=0).fit(more, Y).predict_proba(test), plain, atol=1e-3
    )


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"loss": "hinge"}, "Choose one of cross_entropy"),
        ({"imbalance": "smote"}, "Choose one of balanced_softmax"),
        ({"loss": "forward", "transition": np.eye(3)}, "expected 10 rows of 10 numbers"),
        ({"loss": "forward", "transition": "guess"}, "give a matrix or 'estimate'"),
        ({"loss": "backward", "transition": np.full((K, K), 0.1)}, "too high to invert"),
    ],
)
def test_what_cannot_be_used_is_named(how, message):
    with pytest.raises(ValueError, match=message):
        RobustClassifier(**how).fit(X, Y)
    with pytest.raises(ValueError, match="one class"):
        RobustClassifier().fit(X, np.zeros(len(X)))
