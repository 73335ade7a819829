import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from fairlearn.metrics import MetricFrame, selection_rate, true_positive_rate
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from amends.cli import main
from amends.fair import AbstainingFairClassifier, Infeasible, fan
from amends.fair._fan.rules import coins
from amends.io.errors import InputError

ADULT = Path(__file__).parents[2] / "examples" / "fair" / "data" / "adult.csv"
BOOSTED = HistGradientBoostingClassifier(max_iter=20, random_state=0)
TREE = DecisionTreeClassifier(max_depth=3, random_state=0)


@pytest.mark.filterwarnings("ignore")  # the checks give no groups, and the estimator says so
@parametrize_with_checks(
    [AbstainingFairClassifier(cv=2), AbstainingFairClassifier(mode="surrogate", surrogate=TREE, cv=2)]
)
def test_the_estimator_keeps_to_the_rules_of_scikit_learn(estimator, check):
    check(estimator)


def planted(num=6000, seed=0, rates=(0.25, 0.7), noise=1.5):
    """Scores that are a noisy logit of the label, labels of which the groups have other shares, and groups."""
    rng = np.random.default_rng(seed)
    z = rng.integers(0, len(rates), num)
    y = (rng.random(num) < np.array(rates)[z]).astype(int)
    score = 1 / (1 + np.exp(-(1.5 * (2 * y - 1) + noise * rng.normal(size=num))))
    return score[:, None], y, np.array(["a", "b", "c"], dtype=object)[z]


def made(mode="scorebins", **how):
    how = {"estimator": "precomputed", "mode": mode, "random_state": 0, "surrogate": TREE, **how}
    return AbstainingFairClassifier(**how)


def gap_of_rates(values, z):
    rates = [values[z == name].mean() for name in np.unique(z)]
    return max(rates) - min(rates)


@pytest.mark.parametrize(("mode", "cap"), [("surrogate", 0.2), ("scorebins", 0.3)])
def test_a_planted_gap_is_closed_on_new_rows_and_no_group_is_harmed(mode, cap):
    X, y, z = planted()
    model = made(mode, max_abstain=cap, surrogate=BOOSTED).fit(X, y, sensitive_features=z)
    X2, y2, z2 = planted(seed=1)
    said = model.predict(X2, sensitive_features=z2)
    base = (X2[:, 0] >= 0.5).astype(int)
    assert gap_of_rates(base == 1, z2) > 0.3
    if mode == "scorebins":
        assert gap_of_rates(said == 1, z2) < 0.05
        for name in "ab":
            of = z2 == name
            assert (said[of] == model.ABSTAIN).mean() < cap + 0.03
            decided = of & (said != model.ABSTAIN)
            assert (said == y2)[decided].mean() >= (base == y2)[of].mean() - 0.01
    # Abstention on as many rows by confidence leaves the gap.
    num = int((said == model.ABSTAIN).sum())
    confident = base.copy()
    confident[np.argsort(np.abs(X2[:, 0] - 0.5))[:num]] = -1
    assert gap_of_rates(confident == 1, z2) > 0.1
    assert gap_of_rates(said == 1, z2) < gap_of_rates(confident == 1, z2) - 0.1


def test_models_abstain_and_accept_on_new_rows_as_often_as_the_program_does():
    X, y, z = planted()
    X2, _, z2 = planted(seed=1)
    model = made("surrogate", max_abstain=0.25, surrogate=BOOSTED).fit(X, y, sensitive_features=z)
    said = model.predict(X2, sensitive_features=z2)
    for name in "ab":
        fate = model.assignment_[z == name]
        assert (said[z2 == name] == -1).mean() == pytest.approx((fate == 2).mean(), abs=0.03)
        assert (said[z2 == name] == 1).mean() == pytest.approx((fate == 1).mean(), abs=0.03)
    half = clone(model).set_params(surrogate_cut="half").fit(X, y, sensitive_features=z)
    assert (half.cut_G2_ == 0.5).all()
    assert (half.predict(X2, sensitive_features=z2) != said).any()


def test_where_there_is_no_gap_nothing_is_abstained_on():
    X, y, z = planted(rates=(0.4, 0.4))
    model = made(objective="abstention", eps=0.05).fit(X, y, sensitive_features=z)
    said = model.predict(X, sensitive_features=z)
    np.testing.assert_array_equal(said, X[:, 0] >= 0.5)


def test_limits_as_wide_as_the_base_keep_the_base():
    X, y, z = planted()
    base = (X[:, 0] >= 0.5).astype(int)
    wide = made(objective="abstention", eps=gap_of_rates(base, z) + 1e-9, max_abstain=0.0)
    np.testing.assert_array_equal(wide.fit(X, y, sensitive_features=z).predict(X, sensitive_features=z), base)
    tight = made(objective="abstention", eps=0.05, max_abstain=1.0).fit(X, y, sensitive_features=z)
    assert (tight.predict(X, sensitive_features=z) != base).mean() > 0.1


@pytest.mark.parametrize("use_groups", [True, False])
@pytest.mark.parametrize("notion", ["demographic_parity", "equal_opportunity", "equalized_odds"])
def test_the_chances_of_the_rule_keep_the_promises_on_the_rows_it_is_made_from(notion, use_groups):
    X, y, z = planted(num=3000, rates=(0.3, 0.5, 0.4))
    model = made(notion=notion, eps=0.04, max_abstain=0.5, sigma=0.1, use_groups=use_groups)
    model.fit(X, y, sensitive_features=z)
    chance = model.decide_proba(X, sensitive_features=z)
    np.testing.assert_allclose(chance.sum(axis=1), 1)
    abstained = [chance[z == name, 2].mean() for name in "abc"]
    assert max(abstained) <= 0.5 + 1e-4
    assert max(abstained) - min(abstained) <= 0.1 + 1e-4
    # Labels are smoothed along the score, so that the rates by label hold nearly; those of all rows exactly.
    parts = {"demographic_parity": [y >= 0], "equal_opportunity": [y == 1], "equalized_odds": [y == 1, y == 0]}[notion]
    room = 1e-4 if notion == "demographic_parity" else 0.02
    for part in parts:
        assert gap_of_rates(chance[part, 1], z[part]) <= 0.04 + room


@pytest.mark.filterwarnings("ignore:rows were rounded")  # at the very edge only parts of rows will do
@pytest.mark.parametrize("mode", ["scorebins", "surrogate"])
def test_an_infeasible_promise_names_the_caps_that_suffice(mode):
    X, y, z = planted(num=3000, noise=0.8)
    with pytest.raises(Infeasible, match=r"Attainable: max_abstain of .*labels would need") as error:
        made(mode, eps=0.01, max_abstain=0.05).fit(X, y, sensitive_features=z)
    caps = error.value.min_abstain
    assert set(caps) == {"a", "b"}
    made(mode, eps=0.01, max_abstain=caps).fit(X, y, sensitive_features=z)
    worst = max(caps, key=caps.get)
    with pytest.raises(Infeasible):
        made(mode, eps=0.01, max_abstain={**caps, worst: caps[worst] - 0.01}).fit(X, y, sensitive_features=z)


def test_curves_fall_agree_with_fit_and_never_pass_the_bound_of_the_labels():
    X, y, z = planted(num=3000)
    model = made(max_abstain=0.5).fit(X, y, sensitive_features=z)
    need = model.feasibility_curve([0.0, 0.05, 0.2, 0.5])
    assert (np.diff(need.by_rule.max(axis=1)) <= 1e-6).all()
    assert (need.by_rule.max(axis=1) >= need.by_labels.max(axis=1) - 1e-6).all()
    caps = dict(zip(need.groups, (need.by_rule[1] + 1e-5).tolist(), strict=True))
    made(eps=0.05, max_abstain=caps).fit(X, y, sensitive_features=z)
    reach = model.disparity_curve([0.0, 0.1, 0.3])
    assert (np.diff(reach.by_rule) <= 1e-6).all()
    assert (reach.by_rule >= reach.by_labels - 1e-6).all()
    assert reach.by_rule[0] > 0.1
    with pytest.raises(Infeasible):
        made(eps=float(reach.by_rule[1]) - 0.01, max_abstain=0.1).fit(X, y, sensitive_features=z)


def test_the_report_counts_as_fairlearn_does():
    X, y, z = planted(num=2000)
    model = made(max_abstain=0.4).fit(X, y, sensitive_features=z)
    X2, y2, z2 = planted(num=2000, seed=1)
    kept = model.report(X2, y2, sensitive_features=z2)
    said, base = model.predict(X2, sensitive_features=z2), (X2[:, 0] >= 0.5).astype(int)
    both = {"selection": selection_rate, "true positive": true_positive_rate}
    before = MetricFrame(metrics=both, y_true=y2, y_pred=base, sensitive_features=z2)
    after = MetricFrame(metrics=both, y_true=y2, y_pred=said == 1, sensitive_features=z2)
    decided = said != -1
    only = MetricFrame(metrics=both, y_true=y2[decided], y_pred=said[decided], sensitive_features=z2[decided])
    for form, frame in (("before", before), ("after", after), ("decided", only)):
        assert kept.gaps["demographic_parity"][form] == pytest.approx(frame.difference()["selection"])
        assert kept.gaps["equal_opportunity"][form] == pytest.approx(frame.difference()["true positive"])
    by_group = {(p.what, p.group): p for p in kept.promises}
    for name in "ab":
        of = z2 == name
        assert by_group["abstained", name].value == pytest.approx((said[of] == -1).mean())
        change = (said != y2)[of & decided].mean() - (base != y2)[of].mean()
        assert by_group["error above what is allowed", name].value == pytest.approx(change)
    for promise in kept.promises:
        assert promise.low <= promise.value <= promise.high
        assert promise.kept == (promise.value <= promise.limit)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    X, y, z = planted(num=4000)
    model = made(max_abstain=0.4).fit(X, y, sensitive_features=z)
    everybody, labels, groups = planted(200_000, 99)
    truth = {p[:2]: p.value for p in model.report(everybody, labels, sensitive_features=groups).promises}
    held = []
    for seed in range(40):
        X2, y2, z2 = planted(500, 100 + seed)
        found = model.report(X2, y2, sensitive_features=z2).promises
        held.append([p.low <= truth[p[:2]] <= p.high for p in found if p.group is not None])
    assert 0.9 < np.mean(held) < 0.99


def test_a_broken_promise_is_called_broken():
    X, y, z = planted()
    model = made(max_abstain=0.4).fit(X, y, sensitive_features=z)
    X2, y2, z2 = planted(seed=1, rates=(0.05, 0.95))  # another world
    kept = model.report(X2, y2, sensitive_features=z2)
    assert kept.promises[0].verdict == "broken"
    assert not kept.all_kept
    only_a = model.report(X2[z2 == "a"], y2[z2 == "a"], sensitive_features=z2[z2 == "a"])
    assert {p.verdict for p in only_a.promises if p.group == "b"} == {"no rows to tell"}


# Coins, tables, labels ------------------------------------------------------------------------------------------------


def test_coins_belong_to_rows_and_are_even():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20_000, 2))
    tossed = coins(X, 7)
    np.testing.assert_array_equal(coins(X[::-1], 7), tossed[::-1])
    np.testing.assert_array_equal(coins(np.vstack([X[:3], X[:3]]), 7), np.tile(tossed[:3], 2))
    assert (coins(X, 8) != tossed).all()
    np.testing.assert_allclose(np.histogram(tossed, 10, (0, 1))[0] / 20_000, 0.1, atol=0.01)
    assert abs(np.corrcoef(tossed, X[:, 0])[0, 1]) < 0.03
    assert abs(np.corrcoef(coins(X, 8), tossed)[0, 1]) < 0.03
    words = pd.DataFrame({"w": ["x", "y", "x"], "n": [1, 2, 1]})
    assert coins(words, 7)[0] == coins(words, 7)[2] != coins(words, 7)[1]
    np.testing.assert_array_equal(coins(pl.DataFrame({"w": ["x", "y", "x"], "n": [1, 2, 1]}), 7), coins(words, 7))
    np.testing.assert_array_equal(coins(words.assign(n=[1.0, 2.0, 1.0]), 7), coins(words, 7))
    sparse = coins(csr_array(X), 7)
    assert len(set(sparse)) == 20_000
    assert abs(sparse.mean() - 0.5) < 0.02


def table(num=400, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.integers(0, 2, num)
    y = (rng.random(num) < np.where(z, 0.6, 0.3)).astype(int)
    columns = {"x": y + rng.normal(size=num), "job": np.where(rng.random(num) < 0.5 + 0.3 * y, "p", "q").astype(object)}
    return pd.DataFrame(columns), np.where(y, "yes", "no"), z


def pipeline():
    words = make_column_transformer((OneHotEncoder(), ["job"]), remainder="passthrough")
    return make_pipeline(words, LogisticRegression())


@pytest.mark.parametrize("mode", ["scorebins", "surrogate"])
def test_any_data_frame_does_with_words_in_a_pipeline(mode):
    X, y, z = table()
    how = {"max_abstain": 0.5, "eps": 0.1, "random_state": 0, "mode": mode, "surrogate": pipeline()}
    one = AbstainingFairClassifier(pipeline(), **how).fit(X, y, sensitive_features=z)
    said = one.predict(X, sensitive_features=pd.Series(z))
    assert set(said) <= {"yes", "no", "abstain"}
    assert mode == "surrogate" or "abstain" in said
    other = clone(one).fit(pl.from_pandas(X), y, sensitive_features=pl.Series(z))
    np.testing.assert_array_equal(other.predict(pl.from_pandas(X), sensitive_features=z), said)


def test_abstention_has_a_name_of_its_own_beside_any_labels():
    X, y, z = planted(num=1000)
    for labels, name in (((0, 1), -1), ((-1, 1), -2), ((False, True), -1), ((1.0, 2.0), -1.0)):
        model = made(max_abstain=0.5).fit(X, np.array(labels)[y], sensitive_features=z)
        said = model.predict(X, sensitive_features=z)
        assert model.abstain_ == name
        assert set(said.tolist()) == {name, *labels}
    text = made(max_abstain=0.5).fit(X, np.array(["abstain", "yes"])[y], sensitive_features=z)
    assert "|abstain|" in text.predict(X, sensitive_features=z)


def test_grid_search_hands_groups_through():
    X, y, z = table()
    with sklearn.config_context(enable_metadata_routing=True):
        model = AbstainingFairClassifier(pipeline(), eps=0.1, random_state=0, cv=2)
        model.set_fit_request(sensitive_features=True).set_score_request(sensitive_features=True)
        search = GridSearchCV(model, {"max_abstain": [0.5, 0.8]}, cv=2).fit(X, y, sensitive_features=z)
    assert search.best_params_["max_abstain"] in (0.5, 0.8)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_a_fitted_base_is_taken_as_it_is():
    X, y, z = table()
    base = pipeline().fit(X[:200], y[:200])
    how = {"max_abstain": 0.6, "eps": 0.1, "random_state": 0}
    prefit = AbstainingFairClassifier(base, cv="prefit", **how).fit(X[200:], y[200:], sensitive_features=z[200:])
    frozen = AbstainingFairClassifier(FrozenEstimator(base), **how).fit(X[200:], y[200:], sensitive_features=z[200:])
    scores = base.predict_proba(X)[:, 1]
    given = made(**how).fit(scores[200:, None], y[200:] == "yes", sensitive_features=z[200:])
    np.testing.assert_allclose(prefit.rule_.chance_GB3, frozen.rule_.chance_GB3)
    np.testing.assert_allclose(prefit.rule_.chance_GB3, given.rule_.chance_GB3)
    with pytest.warns(UserWarning, match="decides .* of 200 rows otherwise"):
        clone(frozen).set_params(threshold=0.7).fit(X[200:], y[200:], sensitive_features=z[200:])


def test_scores_are_of_rows_that_the_base_did_not_see():
    rng = np.random.default_rng(0)
    X, y, z = rng.normal(size=(300, 5)), rng.integers(0, 2, 300), rng.integers(0, 2, 300)
    deep = AbstainingFairClassifier(DecisionTreeClassifier(random_state=0), max_abstain=1.0, random_state=0)
    deep.fit(X, y, sensitive_features=z)
    assert (deep.estimator_.predict(X) == y).all()  # it knows its rows by heart
    assert all(0.35 < error < 0.65 for error in deep.base_error_.values())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"notion": "parity"}, "notion='parity': choose one of demographic_parity"),
        ({"mode": "net"}, "mode='net'"),
        ({"objective": "fun"}, "objective='fun'"),
        ({"eps": -0.1}, "eps=-0.1: expected a number from 0 to 1"),
        ({"max_abstain": 1.5}, "max_abstain=1.5: expected numbers from 0 to 1"),
        ({"max_abstain": {"a": 0.1}}, "max_abstain: b is in it or in the data"),
        ({"slack": -1}, "slack=-1"),
        ({"bins": 0}, "bins=0"),
        ({"cv": 1}, "cv=1"),
        ({"estimator": "mine"}, "estimator='mine'"),
        ({"estimator": RidgeClassifier()}, "no predict_proba"),
    ],
)
def test_settings_out_of_range_are_named(how, message):
    X, y, z = planted(num=200)
    with pytest.raises(ValueError, match=message):
        made(**how).fit(X, y, sensitive_features=z)


def test_rows_that_cannot_be_used_are_named():
    X, y, z = planted(num=200)
    with pytest.raises(ValueError, match=r"1 scores are no probability; the first is row 7: 1\.5"):
        made().fit(np.where(np.arange(200)[:, None] == 7, 1.5, X), y, sensitive_features=z)
    with pytest.raises(ValueError, match="group b: no row has the label 1, of which equal_opportunity needs some"):
        made(notion="equal_opportunity").fit(X, np.where(z == "b", 0, y), sensitive_features=z)
    model = made(max_abstain=0.9).fit(X, y, sensitive_features=z)
    with pytest.raises(ValueError, match="the rule looks at groups"):
        model.predict(X)
    with pytest.raises(ValueError, match="d is no group that was fitted"):
        model.predict(X, sensitive_features=["d"] * 200)
    with pytest.raises(ValueError, match="y holds 3"):
        model.report(X, y * 3, sensitive_features=z)
    with pytest.warns(UserWarning, match="all rows are one group"):
        assert set(made().fit(X, y).predict(X)) <= {0, 1, -1}


# The command ----------------------------------------------------------------------------------------------------------

WORDS = ["--label", "income", "--positive", ">50K", "--group", "sex"]


def command(*words):
    with pytest.raises(SystemExit) as ended:
        main(["fair", "fan", *map(str, words)])
    return ended.value.code


def test_the_command_writes_a_rule_decisions_and_a_report(tmp_path, capsys):
    with ADULT.open() as file:
        rows = list(csv.DictReader(file))
    new = tmp_path / "new.jsonl"
    new.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "income"}) + "\n" for row in rows[-30:]))
    out = tmp_path / "run"
    words = ["--score", "score", "--split", "split", "--max-abstain", "Male=0.25", "--max-abstain", "Female=0.2"]
    assert not command(ADULT, *WORDS, *words, "--apply", new, "--out", out)
    with (out / "decisions.csv").open() as file:
        decided = list(csv.DictReader(file))
    held = [row for row in rows if row["split"] == "test"]
    assert [row["score"] for row in decided] == [row["score"] for row in held]
    assert {row["decision"] for row in decided} == {">50K", "<=50K", "abstain"}
    with (out / "applied.csv").open() as file:
        applied = list(csv.DictReader(file))
    assert [row["decision"] for row in applied] == [row["decision"] for row in decided[-30:]]  # the same rows

    rule = json.loads((out / "rule.json").read_text())
    assert rule["max_abstain"] == {"Female": 0.2, "Male": 0.25}
    for row in decided:  # the rule as it is written says the same
        run = next(r for r in reversed(rule["by_group"][row["sex"]]) if float(row["score"]) >= r["from"])
        assert run["abstain"] == pytest.approx(float(row["chance_abstain"]), abs=1e-5)
        chance = {">50K": run["decide_positive"], "<=50K": run["decide_negative"], "abstain": run["abstain"]}
        assert chance[row["decision"]] > 0

    told = json.loads((out / "summary.json").read_text())
    share = sum(row["decision"] == "abstain" for row in decided) / len(decided)
    assert told["abstained"] == round(share * 800)
    accepted = {s: np.mean([r["decision"] == ">50K" for r in decided if r["sex"] == s]) for s in ("Male", "Female")}
    gap = told["gaps"]["demographic_parity"]
    assert gap["after"] == pytest.approx(abs(accepted["Male"] - accepted["Female"]))
    assert gap["after"] < gap["before"] / 2
    page = (out / "report.html").read_text()
    assert "What was promised" in page
    assert page.count("<svg") == 2
    assert "held-out rows" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["scorebins", "surrogate"])
def test_the_command_learns_a_model_where_there_is_no_score(tmp_path, mode):
    names = ("age", "education_num", "hours_per_week", "marital_status")
    features = [word for name in names for word in ("--feature", name)]
    words = [*WORDS, *features, "--mode", mode, "--max-abstain", "0.4", "--no-use-groups", "--holdout", "0.3"]
    few = tmp_path / "few.csv"
    pd.read_csv(ADULT).sample(500, random_state=0).to_csv(few, index=False)
    assert not command(few, *words, "--out", tmp_path / "run")
    told = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert told["held_out"] == 150
    assert json.loads((tmp_path / "run" / "rule.json").read_text())["mode"] == mode


def test_runs_of_one_seed_are_the_same():
    frame = pd.read_csv(ADULT).iloc[:1200]
    how = {"label": "income", "group": ["sex", "race"], "positive": ">50K", "score": "score", "max_abstain": 0.8}
    frame["race"] = np.where(frame["race"] == "White", "White", "other")
    one, other = (fan.run(frame, **how, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.fate_n, other.fate_n)
    assert one.model.groups_ == ["Female, White", "Female, other", "Male, White", "Male, other"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "pay"}, 'the column "pay" is missing'),
        ({"positive": "rich"}, "--positive rich"),
        ({"score": "age"}, "expected a number from 0 to 1"),
        ({"split": "sex"}, 'split sex: "test" holds out 0 of 2400 rows'),
        ({"max_abstain": ["Male=x"]}, "--max-abstain Male=x: expected a share"),
        ({"max_abstain": ["0.1", "Male=0.2"]}, "give one share, or one for each group"),
        ({"max_abstain": ["Man=0.1"]}, "max_abstain: Female is in it or in the data"),
        ({"max_abstain": 0.0, "eps": 0.0}, "Attainable: max_abstain of"),
        ({"holdout": 1.0}, "--holdout 1"),
        (
            {"apply": [{"score": 0.5, "sex": "other"}]},
            r"--apply: data\[0\]: of the group other, which is none",
        ),
        ({"apply": [{"sex": "Male"}]}, 'the column "score" is missing'),
    ],
)
def test_what_the_command_cannot_use_is_named(change, message):
    how = {"label": "income", "group": "sex", "positive": ">50K", "score": "score"} | change
    with pytest.raises(InputError, match=message):
        fan.run(ADULT, **how)


def test_a_score_of_the_other_label_is_doubted():
    found = fan.run(ADULT, label="income", group="sex", positive="<=50K", score="score", max_abstain=1.0)
    assert any("the score falls with the label" in warning for warning in found.record["warnings"])
