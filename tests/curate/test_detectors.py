import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import ShuffleSplit, StratifiedKFold, cross_val_predict
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from amends.curate import CORES, Cleanlab, ConfidentLearning, DeepKNN, RobustClassifier, SimiFeat
from amends.curate._labels.detectors import ALONE, DETECTORS, ONLY, ZEROS

K = 5
QUICK = RobustClassifier("cores", epochs=3, random_state=0)


@pytest.mark.filterwarnings("ignore")  # the checks' data say nothing of their labels, and the detectors say so
@parametrize_with_checks(
    [
        SimiFeat(),
        SimiFeat("rank", num_draws=3),
        DeepKNN(),
        ConfidentLearning(),
        Cleanlab(cv=2),
        CORES(QUICK, cv=2),
        RobustClassifier(epochs=20, random_state=0),
    ]
)
def test_estimators_keep_to_the_rules_of_scikit_learn(estimator, check):
    check(estimator)


def clusters(num=1000, spread=0.35, seed=0):
    """Points around a centre for each class, and the classes."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, K, num)
    return np.random.default_rng(5).normal(size=(K, 16))[truth] + spread * rng.normal(size=(num, 16)), truth


def planted(rate=0.25, **how):
    """Clusters, their classes, and labels of which some are wrong: class by class another share."""
    points, truth = clusters(**how)
    rng = np.random.default_rng(1)
    wrong = rng.random(len(truth)) < rate * np.linspace(0.6, 1.4, K)[truth]
    return points, truth, np.where(wrong, (truth + rng.integers(1, K, len(truth))) % K, truth)


def detector(name):
    if name == "cores":
        return CORES(RobustClassifier("cores", epochs=40, random_state=0), cv=3, random_state=0)
    return DETECTORS[name]() if name == "knn" else DETECTORS[name](random_state=0)


def f1(flag, wrong):
    return 2 * (flag & wrong).sum() / (flag.sum() + wrong.sum())


@pytest.mark.parametrize("name", DETECTORS)
def test_planted_errors_are_found_and_mended(name):
    points, truth, labels = planted()
    found = detector(name).fit(points, labels)
    wrong = labels != truth
    assert f1(found.flag_, wrong) > 0.85
    assert (np.where(found.flag_, found.suggested_, labels) != truth).mean() < wrong.mean() / 2
    assert found.noise_score_[wrong].mean() > found.noise_score_[~wrong].mean() + 0.4
    assert ((found.noise_score_ >= 0) & (found.noise_score_ <= 1)).all()
    assert (found.suggested_ != labels).all()
    np.testing.assert_allclose(found.posterior_.sum(axis=1), 1)


@pytest.mark.parametrize("name", DETECTORS)
def test_right_labels_are_left_alone(name):
    points, truth = clusters()
    assert detector(name).fit(points, truth).flag_.mean() < 0.03


@pytest.mark.filterwarnings("ignore:neighbours agree")
@pytest.mark.parametrize("name", ["simifeat-vote", "knn", "confident", "cleanlab"])
def test_features_that_say_nothing_find_nothing(name):
    """The same labels beside points of other rows: what is flagged is as often right as the rest."""
    points, truth, labels = planted()
    found = detector(name).fit(np.random.default_rng(2).permutation(points), labels)
    assert f1(found.flag_, labels != truth) < 0.5


def test_features_without_clusters_are_warned_of():
    points, _, labels = planted(num=300)
    with pytest.warns(UserWarning, match="do not cluster by label"):
        DeepKNN().fit(np.random.default_rng(2).permutation(points), labels)


def test_the_noise_is_learnt_without_a_true_label():
    points, truth, labels = planted(num=4000)
    found = SimiFeat("rank").fit(points, labels)
    T = np.array([np.bincount(labels[truth == c], minlength=K) / (truth == c).sum() for c in range(K)])
    assert np.abs(found.transition_.matrix_KK - T).max() < 0.04
    assert found.agreement_.pair > 2 * found.agreement_.pair_by_chance


def test_confident_learning_is_the_filter_of_cleanlab():
    from cleanlab.filter import find_label_issues

    points, _, labels = planted(spread=1.0)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    p = cross_val_predict(LogisticRegression(max_iter=1000), points, labels, cv=folds, method="predict_proba")
    found = ConfidentLearning("precomputed").fit(p, labels)
    theirs = find_label_issues(labels, p, filter_by="confident_learning", n_jobs=1)
    assert (found.flag_ == theirs).all()
    assert theirs.sum() > 100
    pruned = Cleanlab("precomputed").fit(p, labels).flag_
    assert (pruned == find_label_issues(labels, p, n_jobs=1)).all()
    assert (pruned != found.flag_).any()


def test_probabilities_given_and_made_lead_to_the_same_flags():
    points, _, labels = planted(num=300, spread=1.0)
    made = ConfidentLearning(random_state=0).fit(points, labels)
    given = ConfidentLearning("precomputed").fit(made.posterior_, labels)
    assert (made.flag_ == given.flag_).all()


def test_the_sieve_of_cores_keeps_labels_with_less_than_the_mean_loss():
    p = np.random.default_rng(0).dirichlet(np.ones(K), 200)
    labels = np.arange(200) % K
    found = CORES("precomputed").fit(p, labels)
    loss = -np.log(p + 1e-8)
    assert (found.flag_ == (loss[np.arange(200), labels] >= loss.mean(axis=1))).all()
    assert (found.flag_ == (found.noise_score_ >= 0.5)).all()
    assert 0 < found.flag_.sum() < 200


@pytest.mark.parametrize("name", ["simifeat-vote", "simifeat-rank", "knn"])
def test_rows_in_another_order_are_judged_as_before(name):
    points, _, labels = planted(num=800)
    order = np.random.default_rng(3).permutation(800)
    before, after = detector(name).fit(points, labels), detector(name).fit(points[order], labels[order])
    np.testing.assert_allclose(after.noise_score_, before.noise_score_[order])
    assert (after.suggested_ == before.suggested_[order]).all()


@pytest.mark.parametrize("name", ["simifeat-vote", "knn"])
def test_a_copy_is_no_witness_to_a_wrong_label(name):
    points, truth, labels = planted(num=600)
    found = detector(name).fit(np.concatenate([points, points]), np.tile(labels, 2))
    assert f1(found.flag_, np.tile(labels != truth, 2)) > 0.85


def test_what_cannot_be_judged_has_its_reason_and_no_score():
    points, _, labels = planted(num=300)
    points[7] = 0
    labels[11] = 99
    heap = np.concatenate([points, np.tile(points[20], (700, 1))])  # more copies than a list is long
    with pytest.warns(UserWarning) as heard:
        found = DeepKNN().fit(heap, np.concatenate([labels, np.tile(labels[20], 700)]))
    assert found.why_not_[7] == ZEROS
    assert found.why_not_[11] == ONLY
    assert (found.why_not_[300:] == ALONE).all()
    told = sorted(str(w.message).split(":")[0] for w in heard)
    assert told == ["1 rows are not judged", "1 rows are not judged", "701 rows are not judged"]
    left = [i for i, why in enumerate(found.why_not_) if why]
    assert np.isnan(found.noise_score_[left]).all()
    assert not found.flag_[left].any()
    assert np.isfinite(np.delete(found.noise_score_, left)).all()


def test_a_row_with_many_copies_is_judged_as_if_it_had_none():
    points, _, labels = planted(num=300)
    alone = DeepKNN().fit(points, labels).noise_score_
    heap = np.concatenate([points, np.tile(points[20], (60, 1))])
    found = DeepKNN().fit(heap, np.concatenate([labels, np.tile(labels[20], 60)]))
    assert (found.noise_score_[300:] == alone[20]).all()


def test_no_row_counts_for_a_class_of_which_nothing_is_known():
    p = [[0.9, 0.1, 0.0], [0.5, 0.5, 0.0], [0.1, 0.9, 0.0], [0.2, 0.8, 0.0], [0.6, 0.4, 0.0]]
    with pytest.warns(UserWarning, match="1 rows are not judged"):
        found = ConfidentLearning("precomputed").fit(p, [0, 0, 1, 1, 2])
    assert found.thresholds_.tolist() == pytest.approx([0.7, 0.85, 0])
    assert not found.flag_.any()  # the second row is sure of no class
    assert found.confident_joint_.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_folds_may_be_a_splitter_that_tests_each_row_once():
    x, _, y = planted(num=300)
    own = ConfidentLearning(cv=StratifiedKFold(5, shuffle=True, random_state=3)).fit(x, y)
    made = ConfidentLearning(cv=5, random_state=3).fit(x, y)
    assert (own.flag_ == made.flag_).all() and own.flag_.any()
    with pytest.raises(ValueError, match="each row must be in the test rows of one fold"):
        ConfidentLearning(cv=ShuffleSplit(3, random_state=0)).fit(x, y)


def test_a_model_without_probabilities_is_refused_before_it_is_trained():
    x, _, y = planted(num=300)
    for model in (LinearSVC(), LinearSVC):
        with pytest.raises(ValueError, match="has no predict_proba"):
            ConfidentLearning(model).fit(x, y)


@pytest.mark.filterwarnings("ignore:1 (rows|classes)")
@pytest.mark.parametrize("detector", [ConfidentLearning(random_state=0), CORES(random_state=0)])
def test_a_fold_whose_rows_have_one_class_says_that_class(detector):
    x, _ = clusters(num=30)
    y = np.array([0] * 29 + [1])
    found = detector.fit(x, y)
    assert found.why_not_[-1] == ONLY
    assert (found.posterior_[:-1] == [1, 0]).all(axis=1).sum() == 5  # the other rows of its fold


def test_classes_smaller_than_the_folds_are_warned_of():
    points, _, labels = planted(num=200)
    labels[:2] = 99
    with pytest.warns(UserWarning, match="1 classes have fewer rows than the 5 folds"):
        ConfidentLearning().fit(points, labels)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("knn", lambda x, y: (x, np.zeros(len(y))), "1 class in y"),
        ("cores", lambda x, y: (x, np.zeros(len(y))), "1 class in y"),
        ("knn", lambda x, y: (np.where(x == x[3, 3], np.nan, x), y), "NaN"),
        ("knn", lambda x, y: (x[:, :1], y), "n_features = 1"),
        ("knn", lambda x, y: (np.ones_like(x), y), "point the same way"),
        ("simifeat-rank", lambda x, y: (np.ones_like(x), y), "point the same way"),
        ("confident", lambda x, y: (x, np.arange(len(y))), "no row can be judged"),
        ("knn", lambda x, y: (x, np.where(y == 0, np.nan, y)), "NaN"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_no_detector_can_use_is_refused(name, change, message):
    points, _, labels = planted(num=100)
    with pytest.raises(ValueError, match=message):
        detector(name).fit(*change(points, labels.astype(float)))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (SimiFeat("mean"), "choose rank or vote"),
        (SimiFeat(k=2), "expected at least 3"),
        (DeepKNN(k=0), "expected at least 1"),
        (ConfidentLearning(cv=1), "at least 2 folds"),
        (ConfidentLearning("mine"), "give an estimator"),
        (ConfidentLearning("precomputed"), "probabilities of 16 classes, labels of 5"),
    ],
)
def test_settings_out_of_range_are_named(made, message):
    points, _, labels = planted(num=100)
    with pytest.raises(ValueError, match=message):
        made.fit(points, labels)


def test_probabilities_that_do_not_sum_to_one_are_counted_and_the_first_is_named():
    p = np.full((50, K), 1 / K)
    p[[4, 9]] *= 0.9
    with pytest.raises(ValueError, match=r"2 rows hold no probabilities.*the first is row 4: sum 0\.9"):
        ConfidentLearning("precomputed").fit(p, np.arange(50) % K)
