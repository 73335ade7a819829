import numpy as np
import pytest
from scipy.stats import norm
from sklearn.datasets import load_digits
from sklearn.dummy import DummyClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.tree import DecisionTreeClassifier

from amends.maths.memorisation import auc
from amends.maths.subsets import influence, lira, lira_offline, subset_estimate, subset_scores


def nearest(X, y, seed):
    return KNeighborsClassifier(1, algorithm="brute").fit(X, y)


def noisy_digits(num_rows=1000, share=0.1, seed=0):
    """Digits of which some have another label: data, labels, and which are wrong."""
    X, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(y))[:num_rows]
    wrong = np.arange(num_rows) < share * num_rows
    return X[chosen], np.where(wrong, (y[chosen] + rng.integers(1, 10, num_rows)) % 10, y[chosen]), wrong


def leave_one_out(num_rows):
    """The model of all rows, then each row's that was not trained on it."""
    return np.vstack([np.ones(num_rows, bool), ~np.eye(num_rows, dtype=bool)])


def others_by_distance(X):
    distance = np.linalg.norm(X[:, None] - X[None], axis=-1) + np.diag(np.full(len(X), np.inf))
    return np.argsort(distance, axis=1)[:, :-1]


def test_a_constant_classifier_memorises_nothing():
    X, y, _ = noisy_digits(100)
    found = subset_scores(
        lambda X, y, seed: DummyClassifier(strategy="constant", constant=3).fit(X, [3] * len(y)), X, y, num_models=40
    )
    assert (found.memorisation_N == 0).all()


def test_leave_one_out_of_nearest_neighbours_is_its_closed_form():
    X, y, _ = noisy_digits(80)
    mask = leave_one_out(80)
    right = np.stack([nearest(X[row], y[row], 0).predict(X) == y for row in mask])
    other_label = y[others_by_distance(X)[:, 0]] != y
    found = subset_estimate(mask, right).memorisation_N
    assert found == pytest.approx(other_label.astype(float))
    assert 5 < other_label.sum() < 75


def test_subsets_of_nearest_neighbours_are_near_the_closed_form_and_the_error_says_how_near():
    num_rows, share = 60, 0.7
    X, y, _ = noisy_digits(num_rows)
    size = round(share * num_rows)
    same = y[others_by_distance(X)] == y[:, None]  # (N, N - 1), nearest first
    # Among the size rows out of the N - 1 others, the j-th nearest is the first that is in with this probability.
    first, left = [], 1.0
    for j in range(num_rows - 1):
        first.append(left * size / (num_rows - 1 - j))
        left *= max(0.0, 1 - size / (num_rows - 1 - j))
    expected = 1 - same @ np.minimum(first, 1)
    found = subset_scores(nearest, X, y, num_models=400, share=share, seed=1)
    z = (found.memorisation_N - expected) / found.standard_error_N
    assert np.abs(z).max() < 4
    assert found.in_N == pytest.approx(np.ones(num_rows))
    assert found.out_N == pytest.approx(1 - found.memorisation_N)
    assert (found.standard_error_N <= np.sqrt((1 / (400 * share) + 1 / (400 * (1 - share))) / 4) * 1.3).all()


def test_leave_one_out_of_ridge_regression_is_its_closed_form():
    rng = np.random.default_rng(0)
    X, y, penalty = rng.normal(size=(30, 4)), rng.normal(size=30), 0.7
    mask = leave_one_out(30)

    def predict(rows):
        coefficients = np.linalg.solve(X[rows].T @ X[rows] + penalty * np.eye(4), X[rows].T @ y[rows])
        return X @ coefficients

    hat = X @ np.linalg.solve(X.T @ X + penalty * np.eye(4), X.T)
    residual = y - hat @ y
    without = residual / (1 - np.diag(hat))
    elsewhere = hat * without  # what leaving j out adds to the residual of i
    within = residual + (elsewhere.sum(axis=1) - np.diag(elsewhere)) / 30
    found = subset_estimate(mask, np.stack([y - predict(row) for row in mask]))
    assert found.in_N == pytest.approx(within)
    assert found.out_N == pytest.approx(without)
    assert np.isnan(found.standard_error_N).all()  # one model without each: no variance to estimate


def test_influence_on_the_records_themselves_has_memorisation_on_its_diagonal():
    X, y, _ = noisy_digits(60)
    found = subset_scores(nearest, X, y, num_models=40, X_test=X, y_test=y)
    assert np.diag(found.influence_NM) == pytest.approx(found.memorisation_N)
    assert influence(found.mask_TN, found.measured_TN) == pytest.approx(found.influence_NM)


def test_what_was_never_left_out_has_no_estimate():
    found = subset_estimate([[1, 1], [1, 0]], [[1, 1], [0, 0]])
    assert np.isnan(found.memorisation_N).tolist() == [True, False]
    assert np.isnan(found.standard_error_N).tolist() == [True, False]
    with pytest.raises(ValueError, match="same"):
        subset_estimate([[1, 1]], [[1]])


def test_parts_do_not_depend_on_the_number_of_threads_but_on_the_seed():
    X, y, _ = noisy_digits(100)
    bars = []
    trees = lambda X, y, seed: DecisionTreeClassifier(random_state=seed).fit(X, y)  # noqa: E731
    one, two, other = (
        subset_scores(trees, X, y, num_models=12, jobs=jobs, seed=seed, advance=bars.append)
        for jobs, seed in ((1, 0), (3, 0), (1, 1))
    )
    assert (one.mask_TN == two.mask_TN).all() and (one.measured_TN == two.measured_TN).all()
    assert (one.mask_TN != other.mask_TN).any()
    assert (one.mask_TN.sum(axis=1) == 70).all()
    assert bars == [1] * 36
    with pytest.raises(ValueError, match="share"):
        subset_scores(trees, X, y, share=1.0)
    with pytest.raises(ValueError, match="X has"):
        subset_scores(trees, X[:5], y)


def test_memorisation_finds_flipped_digits_where_the_training_loss_does_not():
    X, y, wrong = noisy_digits()
    found = subset_scores(nearest, X, y, num_models=200)
    memorised = found.memorisation_N
    naive = nearest(X, y, 0).predict(X) != y  # an overfitted model: every row is right
    assert auc(memorised[wrong], memorised[~wrong]) > 0.95
    assert auc(naive[wrong], naive[~wrong]) == 0.5
    assert found.standard_error_N.max() < 0.08


# LiRA


def shadows(num_shadows, gap, num_records=400, seed=0, share=0.5):
    """Shadow models and a target with phi of N(mu_i, 1), mu_i moved by `gap` where the record was trained on."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(0, 5, num_records)
    mask = rng.random((num_shadows + 1, num_records)) < share
    phi = hard + gap * mask + rng.normal(size=mask.shape)
    return phi[0], mask[0], mask[1:], phi[1:]


@pytest.mark.parametrize("num_shadows", [8, 64])
def test_lira_finds_members_where_the_confidence_alone_does_not(num_shadows):
    phi, member, mask, shadow_phi = shadows(num_shadows, gap=3.0)
    areas = [
        auc(s[member], s[~member]) for s in (lira(phi, mask, shadow_phi), lira_offline(phi, mask, shadow_phi), phi)
    ]
    assert areas[0] > 0.95 and areas[1] > 0.9
    assert areas[2] < 0.7


def test_lira_of_models_without_memory_is_chance():
    phi, member, mask, shadow_phi = shadows(64, gap=0.0, num_records=4000)
    for attack in (lira, lira_offline):
        score = attack(phi, mask, shadow_phi)
        assert auc(score[member], score[~member]) == pytest.approx(0.5, abs=0.03)


def test_equal_fits_in_and_out_say_nothing():
    mask = np.tile([[True], [False]], (4, 3))
    phi = np.repeat([[1.0, 2.0, 3.0], [2.0, 1.0, 0.0]], 4, axis=0)[[0, 0, 4, 4, 1, 1, 5, 5]]  # each value in and out
    assert lira([5.0, -1.0, 0.0], mask, phi) == pytest.approx([0.0, 0.0, 0.0])


def test_variances_are_pooled_for_few_shadow_models_and_not_for_many():
    rng = np.random.default_rng(0)
    for num_shadows, same in ((15, True), (16, False)):
        mask = np.arange(num_shadows)[:, None] % 2 == np.zeros(2, int)
        phi = rng.normal(size=(num_shadows, 2)) * [1.0, 10.0]
        centre = np.where(mask, np.nan, phi)
        far = lira_offline(np.nanmean(centre, axis=0) + 5, mask, phi)
        assert bool(far[0] == pytest.approx(far[1])) is same


def test_the_pooled_variance_is_that_within_the_records():
    mask = np.array([[False, False], [False, False], [False, True], [True, True]])
    phi = np.array([[0.0, 10.0], [1.0, 14.0], [5.0, 99.0], [99.0, 99.0]])  # means 2 and 12
    variance = (4 + 1 + 9 + 4 + 4) / (3 + 2 - 2)
    assert lira_offline([3.0, 12.0], mask, phi) == pytest.approx(-norm.logsf([1.0, 0.0], scale=variance**0.5))


@pytest.mark.parametrize(("share", "attack"), [(0.7, lira), (0.3, lira), (0.9, lira), (0.9, lira_offline)])
def test_shadow_models_on_the_smaller_side_decide_what_is_pooled(share, attack):
    phi, member, mask, shadow_phi = shadows(16, gap=2.0, num_records=2000, share=share)
    score = attack(phi, mask, shadow_phi)
    alone = ~mask.all(axis=0) if attack is lira_offline else mask.any(axis=0) & ~mask.all(axis=0)
    assert (np.isnan(score) == ~alone).all()
    # As good as with the true deviation, which is 1, within what the means alone leave open.
    sides = [np.where(side, shadow_phi, np.nan)[:, alone] for side in (mask, ~mask)]
    means = [np.nanmean(side, axis=0) for side in sides]
    exact = norm.logpdf(phi[alone], means[0]) - norm.logpdf(phi[alone], means[1])
    exact = exact if attack is lira else phi[alone] - means[1]
    member = member[alone]
    assert auc(score[alone][member], score[alone][~member]) > auc(exact[member], exact[~member]) - 0.01


def test_equal_phis_on_a_side_have_the_pooled_variance_or_none():
    mask = np.arange(20)[:, None] % 2 == np.zeros(2, int)
    phi = np.random.default_rng(0).normal(size=(20, 2))
    phi[:, 1] = np.where(mask[:, 1], 3.3, 0.1)
    score = lira([0.0, 3.0], mask, phi)
    assert np.isfinite(score).all() and score[1] > 0
    assert np.isnan(lira([0.0, 3.0], mask, np.where(mask, 3.3, 0.1))).all()
    assert np.isnan(lira_offline([0.0, 3.0], mask, np.where(mask, 3.3, 0.1))).all()


def test_a_record_that_no_shadow_model_lacks_has_no_score():
    mask = np.array([[True, True], [True, False], [True, False], [True, True]])
    assert np.isnan(lira([0.0, 0.0], mask, np.arange(8.0).reshape(4, 2))).tolist() == [True, False]
