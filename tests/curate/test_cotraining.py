import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.utils.estimator_checks import parametrize_with_checks

from amends.curate import CoTeaching, DivideMix, JoCoR
from amends.curate._labels.cotraining import lower_chance

X, Y = load_digits(return_X_y=True)
X, TEST_X, Y, TEST_Y = train_test_split(X / 16, Y, test_size=1 / 3, random_state=0, stratify=Y)
K = 10
QUICK = {"learning_rate": 0.01, "random_state": 0}
TRAINERS = {"co-teaching": CoTeaching, "jocor": JoCoR, "dividemix": DivideMix}


@parametrize_with_checks(
    [CoTeaching(0.1, epochs=20, **QUICK), JoCoR(0.1, epochs=20, **QUICK), DivideMix(warm_up=10, epochs=13, **QUICK)]
)
def test_estimators_keep_to_the_rules_of_scikit_learn(estimator, check):
    check(estimator)


def noisy(rate, seed=0):
    """Labels of which a share is wrong, each class leaning to others of its own."""
    rng = np.random.default_rng(seed)
    T = np.zeros((K, K))
    for i in range(K):
        wrong = rate * (2 / 3 + 2 / 3 * i / (K - 1))
        T[i, np.arange(K) != i] = wrong * rng.dirichlet(np.ones(K - 1))
        T[i, i] = 1 - wrong
    drawn = (rng.random(len(Y))[:, None] > T[Y].cumsum(axis=1)).sum(axis=1)
    return np.minimum(drawn, K - 1)


NOISY = noisy(0.4)


@pytest.fixture(scope="module")
def plain():
    """Both networks by cross-entropy: the same trainer that leaves nothing out."""
    return {name: CoTeaching(0, epochs=50, random_state=0).fit(X, y) for name, y in (("noisy", NOISY), ("right", Y))}


@pytest.mark.parametrize("name", TRAINERS)
def test_each_beats_cross_entropy_in_the_same_networks_where_labels_are_wrong(name, plain):
    model = TRAINERS[name](epochs=50, random_state=0).fit(X, NOISY)
    assert model.score(TEST_X, TEST_Y) > plain["noisy"].score(TEST_X, TEST_Y) + 0.05


@pytest.mark.parametrize("name", TRAINERS)
def test_each_loses_little_where_labels_are_right(name, plain):
    model = TRAINERS[name](epochs=50, random_state=0).fit(X, Y)
    assert model.score(TEST_X, TEST_Y) > plain["right"].score(TEST_X, TEST_Y) - 0.02


def test_networks_that_keep_all_rows_are_trained_apart_by_cross_entropy():
    rows = slice(0, 200)
    model = CoTeaching(0, epochs=2, hidden=8, batch_size=64, weight_decay=0.0, random_state=3).fit(X[rows], Y[rows])
    x = torch.from_numpy(((X[rows].astype(np.float32) - model.mean_) / model.scale_).astype(np.float32))
    y = torch.from_numpy(Y[rows])
    seed = np.random.RandomState(3).randint(np.iinfo(np.int32).max)
    generator = torch.Generator().manual_seed(int(seed))
    networks = []
    for _ in range(2):
        into, out = (torch.nn.Linear(64, 8), torch.nn.Linear(8, K))
        with torch.no_grad():
            into.weight.copy_((torch.randn(64, 8, generator=generator) * (2 / 64) ** 0.5).T)
            out.weight.copy_((torch.randn(8, K, generator=generator) / 8**0.5).T)
            into.bias.zero_()
            out.bias.zero_()
        networks.append(torch.nn.Sequential(into, torch.nn.ReLU(), out))
    batches = [rows for _ in range(2) for rows in torch.randperm(200, generator=generator).split(64)]
    for network in networks:
        optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
        for rows_B in batches:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x[rows_B]), y[rows_B]).backward()
            optimizer.step()
    with torch.no_grad():
        mean = torch.stack([network(x).softmax(1) for network in networks]).mean(0)
    np.testing.assert_allclose(model.predict_proba(X[rows]), mean, atol=1e-5)


def test_the_noise_rate_is_estimated_where_neighbours_agree_and_said():
    estimated = CoTeaching(epochs=1, random_state=0).fit(X, NOISY)
    assert estimated.noise_rate_ == pytest.approx((NOISY != Y).mean(), abs=0.03)
    assert estimated.transition_.matrix_KK.shape == (K, K)
    assert CoTeaching(epochs=1, random_state=0).fit(X, Y).noise_rate_ < 0.03
    given = CoTeaching(0.25, epochs=1).fit(X, NOISY)
    assert given.noise_rate_ == 0.25
    assert given.transition_ is None


def test_a_rate_from_features_that_say_nothing_of_the_labels_is_warned_of():
    with pytest.warns(UserWarning, match="do not cluster by label"):
        JoCoR(epochs=1).fit(np.random.default_rng(0).normal(size=X.shape), Y > 4)
    with pytest.raises(ValueError, match="n_features = 1"):
        CoTeaching().fit(X[:, 20:21], Y)


def test_two_heaps_of_losses_are_told_apart_and_equal_ones_all_look_right():
    rng = np.random.default_rng(0)
    wrong = rng.random(2000) < 0.3
    loss = np.where(wrong, rng.normal(4.0, 0.8, 2000), rng.normal(1.0, 0.3, 2000))
    chance = lower_chance(loss, 0)
    assert ((chance < 0.5) == wrong).mean() > 0.98
    np.testing.assert_allclose(lower_chance(7 * loss + 3, 0), chance, atol=1e-6)
    assert (lower_chance(np.full(20, 2.0), 0) == 1).all()


def test_one_heap_of_losses_is_not_told_apart_from_itself():
    rng = np.random.default_rng(0)
    wrong = rng.random(2000) < 0.3
    chance = lower_chance(rng.normal(1.0, 0.3, 2000), 0)
    assert roc_auc_score(wrong, chance) == pytest.approx(0.5, abs=0.05)


def test_labels_that_dividemix_doubts_are_the_wrong_ones():
    model = DivideMix(epochs=30, random_state=0).fit(X, NOISY)
    assert roc_auc_score(NOISY == Y, model.right_) > 0.9
    assert model.right_.shape == (len(X),)


@pytest.mark.parametrize("name", TRAINERS)
def test_the_same_seed_gives_the_same_weights_and_another_one_does_not(name):
    how = {"epochs": 12, "hidden": 8} | ({} if name == "dividemix" else {"noise_rate": 0.4})
    of = [TRAINERS[name](**how, random_state=seed).fit(X[:300], NOISY[:300]).weights_[0][0] for seed in (1, 1, 2)]
    assert (of[0] == of[1]).all()
    assert (of[0] != of[2]).any()


@pytest.mark.parametrize("name", TRAINERS)
def test_the_two_networks_are_not_the_same_and_labels_may_be_words(name):
    words = np.array([f"digit {y}" for y in Y])
    model = TRAINERS[name](epochs=40, random_state=0).fit(X, words)
    assert (model.weights_[0][0] != model.weights_[1][0]).any()
    assert (model.predict(TEST_X) == [f"digit {y}" for y in TEST_Y]).mean() > 0.9
    np.testing.assert_allclose(model.predict_proba(TEST_X).sum(1), 1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (CoTeaching(1.0), "noise_rate=1.0: expected 0 to less than 1, or 'estimate'"),
        (CoTeaching("guess"), "noise_rate='guess'"),
        (CoTeaching(ramp=0), "ramp=0: expected at least 1"),
        (CoTeaching(hidden=0), "hidden=0: expected at least 1"),
        (JoCoR(0.2, agree=2.0, epochs=1), "agree=2.0: expected 0 to 1"),
        (DivideMix(threshold=1.0), "threshold=1.0: expected 0 to less than 1"),
        (DivideMix(temperature=0), "temperature=0: expected more than 0"),
        (DivideMix(warm_up=0), "warm_up=0: expected at least 1"),
        (DivideMix(alpha=-1.0), "alpha=-1.0: expected at least 0"),
        (DivideMix(threshold=0.9999999, epochs=11, warm_up=10), "no label has a chance above"),
    ],
)
def test_what_cannot_be_used_is_named(model, message):
    with pytest.raises(ValueError, match=message):
        model.fit(X, NOISY)
    with pytest.raises(ValueError, match="one class"):
        CoTeaching().fit(X, np.zeros(len(X)))
