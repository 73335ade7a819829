"""Rows chosen by their influence on a gap: identities, planted truths, the guard, and the command."""

import json
from itertools import pairwise

import numpy as np
import pandas as pd
import polars as pl
import pytest
from fairlearn.metrics import demographic_parity_difference, equal_opportunity_difference, equalized_odds_difference
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from amends.cli import main
from amends.fair import FairInfluenceSampler
from amends.fair._fis.heads import head_of
from amends.fair._fis.network import NetworkClassifier
from amends.fair.fis import run
from amends.io.errors import InputError

from ..conftest import instead

ALONE = pytest.mark.filterwarnings("ignore:sensitive_features. one group")
FEW = pytest.mark.filterwarnings("ignore:.*the sign of an influence")


def planted(num, rng, biased):
    """A card's plant: each group has a feature of its own, and training lacks positives of the second."""
    z, y = (rng.random(num) < 0.3).astype(int), (rng.random(num) < 0.5).astype(int)
    if biased:
        there = (z == 0) | (y == 0) | (rng.random(num) < 0.1)
        z, y = z[there], y[there]
    side, x = 2 * y - 1, rng.normal(size=(len(y), 4))
    x += np.column_stack([1.6 * side * (z == 0), 1.6 * side * (z == 1), 0.4 * side, 1.5 * (2 * z - 1)])
    return x, y, z


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x, y, _ = planted(6000, rng, True)
    return {"start": (x[:300], y[:300]), "pool": (x[300:], y[300:]), "seen": planted(2000, rng, False)}


def fitted(data, **options):
    x_val, y_val, z_val = data["seen"]
    sampler = FairInfluenceSampler(random_state=0, **options)
    return sampler.fit(*data["start"], X_val=x_val, y_val=y_val, sensitive_features=z_val)


def three_classes(num=600, seed=0):
    rng = np.random.default_rng(seed)
    y, z = rng.integers(0, 3, num), rng.integers(0, 3, num)
    x = rng.normal(size=(num, 4)) + 1.5 * np.eye(4)[y] + 0.8 * np.eye(4)[:, 3] * z[:, None]
    return x, y, z


MODELS = {
    "logistic": lambda x, y: LogisticRegression().fit(x, y),
    "softmax": lambda x, y: LogisticRegression().fit(x, y),
    "network": lambda x, y: NetworkClassifier(hidden=5, epochs=3, random_state=0).fit(x, y),
}


def trained(name):
    x, y, z = three_classes()
    y = (y > 0).astype(int) if name == "logistic" else y
    model = MODELS[name](x, y)
    if name == "network":
        model.module_.double()
    return x, y, z, model


# Influence ----------------------------------------------------------------------------------------------------------


def stepped(name, model, head, x, label, rate):
    """Probabilities of all rows after one step of gradient descent on one row with a label."""
    import torch

    if name == "network":
        import copy

        moved = copy.deepcopy(model)
        scores = moved.module_(torch.as_tensor(x[:1], dtype=torch.float64))
        torch.nn.functional.cross_entropy(scores, torch.tensor([label])).backward()
        with torch.no_grad():
            for weight in moved.module_.parameters():
                weight -= rate * weight.grad
        return moved.influence_model().predict(x)
    W = np.column_stack([model.coef_, model.intercept_])
    e = np.append(x[0], 1)
    p = model.predict_proba(x[:1])[0]
    slope = p[1:] - (label == 1) if len(W) == 1 else p - np.eye(len(W))[label]
    W = W - rate * np.outer(slope, e)
    score = np.column_stack([x, np.ones(len(x))]) @ W.T
    score = np.column_stack([np.zeros(len(x)), score]) if score.shape[1] == 1 else score
    return np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("metric", ["demographic_parity", "equal_opportunity", "equalized_odds"])
@ALONE
@FEW
def test_influence_is_what_one_small_step_does_to_loss_and_gap(name, metric):
    x, y, z, model = trained(name)
    options = {"positive": 1} if metric == "equal_opportunity" else {}
    sampler = FairInfluenceSampler(metric=metric, **options).fit(x, y, X_val=x, y_val=y, sensitive_features=z)
    head, told = head_of(model, x), sampler.validation_
    rows = head.features(x)
    at_all = head.predict(rows)
    by_loss, by_gap = head.by_loss(rows, y), head.by_probability(rows, told.slope(at_all))
    for label in range(len(np.unique(y))):
        both = [stepped(name, model, head, x, label, sign * 1e-5) for sign in (1, -1)]
        loss = [-np.log(p[np.arange(len(y)), y]).mean() for p in both]
        gap = [told.smooth(p) for p in both]
        assert head.influence(rows[:1], by_loss)[0, label] == pytest.approx((loss[0] - loss[1]) / 2e-5, rel=1e-5)
        assert head.influence(rows[:1], by_gap)[0, label] == pytest.approx((gap[0] - gap[1]) / 2e-5, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_a_row_lowers_its_own_loss_by_the_square_of_its_gradient(name):
    x, y, _, model = trained(name)
    head = head_of(model, x)
    row = head.features(x[:1])
    own = head.by_loss(row, y[:1])
    square = sum(float((part**2).sum()) for part in own.values()) if name == "network" else float((own**2).sum())
    assert head.influence(row, own)[0, y[0]] == pytest.approx(-square, rel=1e-6)


def test_a_network_of_one_layer_has_the_influence_of_a_softmax_regression():
    import torch

    x, y, _, model = trained("softmax")
    layer = torch.nn.Linear(4, 3).double()
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(model.coef_))
        layer.bias.copy_(torch.as_tensor(model.intercept_))
    network = NetworkClassifier(layer, epochs=0).fit(x, y)
    found = []
    for of in (model, network):
        head = head_of(of, x)
        rows = head.features(x)
        found.append(head.influence(rows, head.by_loss(rows[:50], y[:50])))
    assert np.allclose(*found, rtol=1e-9, atol=1e-12)


def test_parameters_name_the_weights_whose_gradients_count():
    x, y, _ = three_classes()
    network = NetworkClassifier(hidden=5, epochs=1, parameters=["3."], random_state=0).fit(x, y)
    direction = head_of(network, x).by_loss(x.astype(np.float32), y)
    assert set(direction) == {"3.weight", "3.bias"}
    with pytest.raises(ValueError, match=r"none begins like that. There are 1.weight"):
        NetworkClassifier(parameters=["head"], epochs=1).fit(x, y).influence_model()


def test_of_two_classes_labels_pull_opposite_ways_and_the_expected_one_is_the_prediction(data):
    sampler = fitted(data)
    x = data["pool"][0]
    head = head_of(sampler.model_, x)
    for direction in sampler._directions(head):
        influence_NK = head.influence(head.features(x), direction)
        assert (np.sign(influence_NK[:, 0]) == -np.sign(influence_NK[:, 1])).all()
    chosen = sampler.query(x)
    assert (sampler.expected_ == sampler.predict(x)).all()
    assert (fitted(data, strategy="least_change").query(x) == chosen).all()
    assert not np.array_equal(fitted(data, strategy="most_helpful").query(x), chosen)


def test_rows_asked_for_are_those_that_narrow_the_gap_most_and_do_not_raise_the_loss(data):
    sampler = fitted(data)
    chosen = sampler.query(data["pool"][0], 50)
    acc, fair = sampler.acc_influence_, sampler.fair_influence_
    assert (acc[chosen] <= 0).all()
    assert (fair[chosen] < 0).all()
    assert (np.diff(fair[chosen]) >= 0).all()
    others = np.setdiff1d(np.flatnonzero(acc <= 0), chosen)
    assert fair[others].min() >= fair[chosen].max()


def test_names_of_groups_do_not_matter(data):
    x_val, y_val, z_val = data["seen"]
    found = []
    for groups in (z_val, 1 - z_val, np.where(z_val == 1, "b", "a")):
        sampler = FairInfluenceSampler(random_state=0).fit(
            *data["start"], X_val=x_val, y_val=y_val, sensitive_features=groups
        )
        found.append((sampler.query(data["pool"][0]).tolist(), sampler.history_[0].disparity))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("metric", "theirs"),
    [
        ("demographic_parity", demographic_parity_difference),
        ("equal_opportunity", equal_opportunity_difference),
        ("equalized_odds", equalized_odds_difference),
    ],
)
def test_the_gap_in_the_history_is_fairlearns(data, metric, theirs):
    sampler = fitted(data, metric=metric)
    x_val, y_val, z_val = data["seen"]
    expected = theirs(y_val, sampler.predict(x_val), sensitive_features=z_val)
    assert sampler.history_[0].disparity == pytest.approx(expected)
    assert sampler.history_[0].accuracy == pytest.approx((sampler.predict(x_val) == y_val).mean())


# What it is for -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "most"), [("demographic_parity", 0.08), ("equal_opportunity", 0.12)])
def test_a_planted_gap_closes_and_accuracy_is_above_that_of_random_rows(data, metric, most):
    x, y = data["pool"]
    test_x, test_y, test_z = planted(6000, np.random.default_rng(9), False)
    sampler = fitted(data, metric=metric, guard_tol=None)
    bought = sampler.acquire(x, lambda rows: y[rows], rounds=10, n=100)
    assert len(set(bought.tolist())) == len(bought) == sampler.history_[-1].labels - 300
    random = np.random.default_rng(0).choice(len(y), len(bought), replace=False)
    start_x, start_y = data["start"]
    other = LogisticRegression().fit(np.vstack([start_x, x[random]]), np.append(start_y, y[random]))

    def worth(model):
        said = model.predict(test_x)
        counted = np.ones_like(test_y, dtype=bool) if metric == "demographic_parity" else test_y == 1
        gap = abs(said[counted & (test_z == 1)].mean() - said[counted & (test_z == 0)].mean())
        return (said == test_y).mean(), gap

    assert worth(sampler)[1] < most < worth(other)[1] / 1.5
    assert worth(sampler)[0] >= worth(other)[0]


def test_where_groups_are_drawn_by_lot_there_is_little_gap_and_little_agreement(data):
    x_val, y_val, z_val = data["seen"]
    lot = np.random.default_rng(1).permutation(z_val)
    by_lot = FairInfluenceSampler(random_state=0).fit(*data["start"], X_val=x_val, y_val=y_val, sensitive_features=lot)
    sampler = fitted(data)
    for of in (by_lot, sampler):
        of.query(data["pool"][0])
    assert by_lot.history_[0].smooth_disparity < sampler.history_[0].smooth_disparity / 20
    assert np.median(sampler.fair_agreement_) > 0.98
    assert np.median(by_lot.fair_agreement_) < 0.95


def test_the_guard_holds_what_it_promises_in_every_round(data):
    x, y = data["pool"]
    sampler = fitted(data, guard_tol=0.0)
    sampler.acquire(x, lambda rows: y[rows], rounds=8, n=40)
    start = sampler.history_[0]
    assert all(of.accuracy >= start.accuracy for of in sampler.history_)
    gaps = [of.disparity for of in sampler.history_]
    assert all(later <= before for before, later in pairwise(gaps))
    assert gaps[-1] < gaps[0]


def test_a_round_of_harmful_labels_is_rolled_back_and_its_labels_stay_spent(data):
    x, _ = data["pool"]
    sampler = fitted(data, keep_rejected=True)
    before = sampler.model_.coef_.copy()
    chosen = sampler.query(x, 200)
    result = sampler.update(x[chosen], 1 - sampler.expected_[chosen])
    assert result.rolled_back
    assert result.after.accuracy < result.before.accuracy - 0.005 or result.after.disparity > result.before.disparity
    assert (sampler.model_.coef_ == before).all()
    last = sampler.history_[-1]
    assert (last.labels, last.trained_on, last.rolled_back) == (500, 300, True)
    assert last.accuracy == sampler.history_[0].accuracy
    unguarded = fitted(data, keep_rejected=True, guard_tol=None)
    assert not unguarded.update(x[chosen], 1 - sampler.expected_[chosen]).rolled_back
    assert unguarded.history_[-1].accuracy == result.after.accuracy


def test_labels_that_do_not_help_are_rejected_and_the_model_stays(data):
    x, _ = data["pool"]
    sampler = fitted(data)
    chosen = sampler.query(x)
    result = sampler.update(x[chosen], 1 - sampler.expected_[chosen])
    assert len(result.kept) == 0
    assert len(result.rejected) == len(chosen)
    assert not result.rolled_back
    assert sampler.history_[-1].trained_on == 300
    good = sampler.update(x[chosen], sampler.expected_[chosen])
    assert len(good.kept) == len(chosen)
    assert np.allclose(good.fair_influence, sampler.fair_influence_[chosen])


def test_the_share_of_new_rows_is_their_weight_in_training(data):
    x, y = data["pool"]
    sampler = fitted(data, new_share=0.9, guard_tol=None)
    chosen = sampler.query(x)
    result = sampler.update(x[chosen], y[chosen])
    start_x, start_y = data["start"]
    n = len(result.kept)
    weight = np.append(np.full(300, 0.1 / 300), np.full(n, 0.9 / n)) * (300 + n)
    rows = np.vstack([start_x, x[chosen][result.kept]])
    expected = LogisticRegression(max_iter=1000).fit(rows, np.append(start_y, y[chosen][result.kept]), weight)
    assert np.allclose(sampler.model_.coef_, expected.coef_)
    network = fitted(data, estimator=NetworkClassifier(epochs=1), new_share=0.9, guard_tol=None)
    assert network.update(x[:20], y[:20]).after.trained_on >= 300


@FEW
def test_several_classes_and_groups_are_steered():
    x, y, z = three_classes(3000)
    sampler = FairInfluenceSampler(guard_tol=0.01, random_state=0)
    sampler.fit(x[:200], y[:200], X_val=x[200:1400], y_val=y[200:1400], sensitive_features=z[200:1400])
    bought = sampler.acquire(x[1400:], lambda rows: y[1400:][rows], rounds=3, n=50)
    assert len(bought) > 50
    assert sampler.history_[-1].disparity <= sampler.history_[0].disparity
    assert sampler.predict_proba(x[:5]).shape == (5, 3)


# As scikit-learn has it ---------------------------------------------------------------------------------------------


@parametrize_with_checks([FairInfluenceSampler(), NetworkClassifier(learning_rate=0.1, epochs=30)])
@ALONE
@FEW
def test_the_estimators_pass_scikit_learns_checks(estimator, check):
    check(estimator)


def test_frames_of_pandas_and_polars_give_what_arrays_give(data):
    x, y = data["pool"]
    x_val, y_val, z_val = data["seen"]
    found = []
    for make in (np.asarray, pd.DataFrame, lambda rows: pl.DataFrame(rows, schema=["0", "1", "2", "3"])):
        frame = make if make is not pd.DataFrame else lambda rows: pd.DataFrame(rows, columns=list("abcd"))
        groups = pd.DataFrame({"z": z_val}) if make is pd.DataFrame else z_val
        sampler = FairInfluenceSampler(random_state=0)
        sampler.fit(
            frame(data["start"][0]), data["start"][1], X_val=frame(x_val), y_val=y_val, sensitive_features=groups
        )
        bought = sampler.acquire(frame(x), lambda rows: y[rows], rounds=3, n=50)
        found.append((bought.tolist(), sampler.history_[-1]))
    assert found[0] == found[1] == found[2]


def test_pipelines_searches_and_clones_work(data):
    x_val, y_val, z_val = data["seen"]
    watched = {"X_val": x_val, "y_val": y_val, "sensitive_features": z_val}
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    sampler = clone(FairInfluenceSampler(pipeline, random_state=0)).fit(*data["start"], **watched)
    assert len(sampler.query(data["pool"][0], 10)) == 10
    nested = make_pipeline(make_pipeline(StandardScaler()), make_pipeline(LogisticRegression()))
    assert np.array_equal(
        FairInfluenceSampler(nested).fit(*data["start"], **watched).query(data["pool"][0]),
        sampler.query(data["pool"][0]),
    )
    inner = GridSearchCV(LogisticRegression(), {"C": [0.1, 1]}, cv=2)
    assert len(FairInfluenceSampler(inner).fit(*data["start"], **watched).query(data["pool"][0], 10)) == 10
    outer = GridSearchCV(FairInfluenceSampler(LogisticRegression()), {"estimator__C": [0.01, 1]}, cv=2)
    outer.fit(*data["start"], **watched)
    assert len(outer.best_estimator_.query(data["pool"][0], 10)) == 10
    within = make_pipeline(StandardScaler(), FairInfluenceSampler())
    within.fit(*data["start"], **{f"fairinfluencesampler__{name}": value for name, value in watched.items()})
    assert within.predict(x_val).shape == y_val.shape


def test_a_torch_module_is_steered_and_stays_as_it_was_given(data):
    import torch

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    weights = module[0].weight.clone()
    sampler = fitted(data, estimator=module, guard_tol=None)
    x, y = data["pool"]
    sampler.acquire(x, lambda rows: y[rows], rounds=3, n=100)
    assert torch.equal(module[0].weight, weights)
    assert sampler.history_[-1].smooth_disparity < sampler.history_[0].smooth_disparity / 2


def test_trees_are_steered_by_a_surrogate_alone(data):
    tree = DecisionTreeClassifier(max_depth=3, random_state=0)
    with pytest.raises(ValueError, match="give such a model as surrogate"):
        fitted(data, estimator=tree)
    sampler = fitted(data, estimator=tree, surrogate=LogisticRegression(max_iter=1000))
    assert np.array_equal(sampler.query(data["pool"][0]), fitted(data).query(data["pool"][0]))
    assert isinstance(sampler.model_, DecisionTreeClassifier)


def test_the_same_question_has_the_same_answer(data):
    sampler = fitted(data)
    first = sampler.query(data["pool"][0]), sampler.fair_agreement_
    again = sampler.query(data["pool"][0]), sampler.fair_agreement_
    assert all((a == b).all() for a, b in zip(first, again, strict=True))


@ALONE
@FEW
def test_what_cannot_be_done_is_said(data):
    x_val = data["seen"][0]
    start = data["start"]
    for options, words in (
        ({"metric": "parity"}, "metric='parity': unknown"),
        ({"strategy": "best"}, "strategy='best': unknown"),
        ({"guard_tol": 2}, "guard_tol=2"),
        ({"new_share": 1.0}, "new_share=1.0"),
        ({"num_draws": 0}, "num_draws=0"),
        ({"positive": 7}, "positive: row 0 has the label 7"),
    ):
        with pytest.raises(ValueError, match=words):
            fitted(data, **options)
    with pytest.raises(ValueError, match="y_val: row 0 has the label 5"):
        FairInfluenceSampler().fit(*start, X_val=x_val[:1], y_val=[5], sensitive_features=[0])
    with pytest.raises(ValueError, match="one is missing"):
        FairInfluenceSampler().fit(*start, X_val=x_val)
    with pytest.raises(ValueError, match=r"no validation row of the group 'c' with the positive label"):
        FairInfluenceSampler(metric="equal_opportunity").fit(
            *start, X_val=x_val[:3], y_val=[1, 1, 0], sensitive_features=["a", "b", "c"]
        )
    x, y, z = three_classes()
    with pytest.raises(ValueError, match="equal_opportunity of 3 classes"):
        FairInfluenceSampler(metric="equal_opportunity").fit(x, y, sensitive_features=z)
    with pytest.raises(ValueError, match="not those of a softmax"):
        FairInfluenceSampler(SGDClassifier(loss="log_loss", random_state=0)).fit(x, y, sensitive_features=z)
    with pytest.raises(ValueError, match="ask for 1 row or more"):
        fitted(data).query(x_val, 0)
    with pytest.raises(ValueError, match="y_bought: row 1 has the label 3"):
        fitted(data).update(x_val[:2], [0, 3])


def test_small_groups_and_missing_groups_are_warned_of(data):
    x_val, y_val, z_val = data["seen"]
    with pytest.warns(UserWarning, match="below 100 the sign of an influence on the gap is often chance"):
        FairInfluenceSampler().fit(*data["start"], X_val=x_val[:150], y_val=y_val[:150], sensitive_features=z_val[:150])
    with pytest.warns(UserWarning, match="No gap can be steered"):
        alone = FairInfluenceSampler().fit(*data["start"])
    assert len(alone.query(data["pool"][0])) == 0
    assert alone.history_[0].disparity == 0


# The command --------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(data, tmp_path):
    """CSV files of labelled rows, a pool and validation rows, of which only the last show a group."""

    def frame(x, **more):
        town = np.where(x[:, 0] > 0, "north", "south")
        return pd.DataFrame(x.round(6), columns=list("abcd")).assign(town=town, **more)

    (x, y), (pool, _), (x_val, y_val, z_val) = data["start"], data["pool"], data["seen"]
    word = np.array(["no", "yes"])
    frame(x, hired=word[y]).to_csv(tmp_path / "labelled.csv", index=False)
    frame(pool[:800]).to_csv(tmp_path / "pool.csv", index=False)
    frame(x_val, hired=word[y_val], sex=np.array(["f", "m"])[z_val]).to_csv(tmp_path / "val.csv", index=False)
    return tmp_path


def ask(files, *more, out, labelled="labelled.csv"):
    with pytest.raises(SystemExit) as stopped:
        args = ["--validation", files / "val.csv", "--label", "hired", "--group", "sex"]
        args += ["--positive", "yes", "--out", files / out]
        main(["fair", "fis", str(files / labelled), *map(str, instead(args, more))])
    return stopped.value.code or 0


def answer(files, out, data):
    rows = pd.read_csv(files / out / "query.csv")
    rows["hired"] = np.array(["no", "yes"])[data["pool"][1][rows["pool_row"]]]
    rows.to_csv(files / "back.csv", index=False)
    return rows


def test_the_command_asks_judges_and_goes_on(files, data):
    assert ask(files, "--pool", files / "pool.csv", "-n", 60, out="one") == 0
    query = pd.read_csv(files / "one/query.csv")
    assert len(query) == 60
    assert query["hired"].isna().all()
    assert "sex" not in query
    answer(files, "one", data)
    more = ["--pool", files / "pool.csv", "--bought", files / "back.csv", "--after", files / "one", "-n", 60]
    assert ask(files, *more, out="two") == 0
    assert not set(pd.read_csv(files / "two/query.csv")["pool_row"]) & set(query["pool_row"])
    judged, labelled = pd.read_csv(files / "two/judged.csv"), pd.read_csv(files / "two/labelled.csv")
    assert set(judged["fate"]) <= {"kept", "rejected"}
    assert len(labelled) == 300 + (judged["fate"] == "kept").sum()
    lines = [json.loads(line) for line in (files / "two/history.jsonl").read_text().splitlines()]
    assert [line["labels"] for line in lines] == [300, 360]
    assert lines[1]["disparity"] < lines[0]["disparity"]
    told = json.loads((files / "two/summary.json").read_text())
    assert told["kept"] == (judged["fate"] == "kept").sum()
    assert told["by_label"][0]["gaps"]["demographic_parity"] == pytest.approx(lines[1]["disparity"])
    sure = pd.read_csv(files / "two/query.csv")["acc_agreement"].median()
    assert told["median_acc_agreement"] == pytest.approx(sure)
    assert "Labels that came back" in (files / "two/report.html").read_text()
    answer(files, "two", data)
    more = ["--bought", files / "back.csv", "--after", files / "two"]
    assert ask(files, *more, out="three", labelled="two/labelled.csv") == 0
    lines = [json.loads(line) for line in (files / "three/history.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines] == [0, 1, 2]


def test_groups_of_labelled_rows_and_of_the_pool_never_enter(files):
    assert ask(files, "--pool", files / "pool.csv", out="clean") == 0
    rng = np.random.default_rng(0)
    for name in ("labelled.csv", "pool.csv"):
        rows = pd.read_csv(files / name)
        rows["sex"] = rng.choice([None, "f", "m", "nan", "?"], len(rows))
        rows.to_csv(files / name, index=False)
    assert ask(files, "--pool", files / "pool.csv", out="poisoned") == 0
    assert (files / "clean/query.csv").read_bytes() == (files / "poisoned/query.csv").read_bytes()
    assert (files / "clean/history.jsonl").read_bytes() == (files / "poisoned/history.jsonl").read_bytes()


def test_the_guard_of_the_command_compares_with_the_first_start(files, data):
    assert ask(files, "--pool", files / "pool.csv", "-n", 60, out="one") == 0
    answer(files, "one", data)
    path = files / "one/history.jsonl"
    line = json.loads(path.read_text())
    path.write_text(json.dumps(line | {"accuracy": 0.999}) + "\n")
    assert ask(files, "--bought", files / "back.csv", "--after", files / "one", out="two") == 0
    assert "rolled back" in (files / "two/judged.csv").read_text()
    assert len(pd.read_csv(files / "two/labelled.csv")) == 300


def test_what_the_command_cannot_use_is_said_and_nothing_is_written(files, data, capsys):
    pool = ["--pool", files / "pool.csv"]
    assert ask(files, *pool, "-n", 20, out="one") == 0
    rows = answer(files, "one", data)
    rows.assign(hired=None).to_csv(files / "open.csv", index=False)
    rows.assign(hired="perhaps").to_csv(files / "odd.csv", index=False)
    pd.read_csv(files / "pool.csv").assign(a="x").to_csv(files / "words.csv", index=False)
    pd.read_csv(files / "pool.csv").drop(columns="a").to_csv(files / "narrow.csv", index=False)
    pd.read_csv(files / "pool.csv").iloc[:50].to_csv(files / "short.csv", index=False)
    back = ["--bought", files / "back.csv"]
    for more, words in (
        ([], "give --pool"),
        (["--bought", files / "open.csv"], "no row has a label"),
        (["--bought", files / "odd.csv"], "'perhaps' is none of no, yes"),
        (["--pool", files / "words.csv"], 'the column "a" holds text, and numbers in LABELLED'),
        (["--pool", files / "narrow.csv"], 'the column "a" is missing'),
        ([*back, "--after", files / "one", "--pool", files / "short.csv"], "other rows than in"),
        ([*pool, "--positive", "maybe"], "--positive maybe"),
    ):
        capsys.readouterr()
        assert ask(files, *more, out="none") == 2
        assert words in capsys.readouterr().err
        assert not (files / "none").exists()
    (files / "one/labelled.csv").write_text((files / "labelled.csv").read_text().rsplit("\n", 2)[0] + "\n")
    assert ask(files, *back, "--after", files / "one", out="none", labelled="one/labelled.csv") == 2
    assert "ended with 300" in capsys.readouterr().err


@FEW
def test_run_takes_rows_of_several_classes_and_groups():
    x, y, z = three_classes(900)
    rows = [
        dict(zip("abcd", row, strict=True)) | {"y": f"c{k}", "z": f"g{g}"}
        for row, k, g in zip(x.tolist(), y, z, strict=True)
    ]
    found = run(rows[:200], validation=rows[200:600], pool=rows[600:], label="y", group="z", num=20, model="network")
    assert {row["expected"] for row in found.query} <= {"c0", "c1", "c2"}
    assert set(found.after) == {"c0", "c1", "c2"}
    with pytest.raises(InputError, match="Give --positive"):
        run(rows[:200], validation=rows[200:600], pool=rows[600:], label="y", group="z", metric="equal_opportunity")
    from amends.fair._fis.page import page, summary

    assert "positive: c2" in page(found)
    assert len(summary(found)["by_label"]) == 3
