"""Labels, groups and words in the kinds that tables and libraries give them: the same people, the same answer."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, ShuffleSplit, StratifiedKFold
from sklearn.pipeline import make_pipeline

from amends.fair import (
    AbstainingFairClassifier,
    ConceptInfluence,
    PriorRobustClassifier,
    Rows,
    concept_influence,
    delta_worst_accuracy,
    drops,
    fis,
    proxies,
    proxy_fairness,
    set_column,
)
from amends.fair._concept_influence.page import edited_rows, edits_of, page, scored_rows
from amends.fair._fan.program import Infeasible, allowed_errors
from amends.fair._fis.page import page as fis_page
from amends.fair._proxies.page import _errors
from amends.fair._tables.groups import read_groups
from amends.io.errors import InputError

# FIS ----------------------------------------------------------------------------------------------------------------


def people(num, seed, **columns):
    rng = np.random.default_rng(seed)
    group, a, word = rng.integers(0, 2, num), rng.normal(size=num), rng.integers(0, 3, num)
    y = (a + 1.5 * (word == 0) + 0.5 * group + rng.normal(size=num) > 0.7).astype(int)
    values = {"a": a, "w": np.array(["none", "few", "many"], dtype=object)[word], "g": np.array(["f", "m"])[group]}
    return pd.DataFrame({**values, "y": y, **columns})


FIS = {"label": "y", "group": "g", "num": 40}


def bought(asked, pool):
    table = pd.DataFrame(asked.query)
    return table.assign(y=pool["y"].to_numpy()[table["pool_row"].astype(int)])


@pytest.mark.filterwarnings("ignore")
def test_a_word_that_is_missing_or_is_0_is_the_same_in_all_tables_of_fis():
    tables = [people(200, 1), people(300, 2), people(100, 3)]

    def asked(empty):
        a, b, c = (of.assign(w=[empty if word == "none" else word for word in of["w"]]) for of in tables)
        found = fis.run(a, validation=b, pool=c, **FIS)
        return found.history[0]["accuracy"], [row["pool_row"] for row in found.query]

    known = asked("none")
    assert all(asked(empty) == known for empty in (float("nan"), pd.NA, 0, False))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    out = tmp_path_factory.mktemp("fis") / "one"
    pool = people(200, 3)
    tables = {"labelled": people(150, 1), "validation": people(300, 2), "pool": pool}
    asked = fis.run(tables["labelled"], validation=tables["validation"], pool=pool, out=out, **FIS)
    return tables, asked, out


@pytest.mark.filterwarnings("ignore")
def test_labels_that_came_back_already_are_refused(first, tmp_path):
    tables, asked, out = first
    back = bought(asked, tables["pool"])
    how = {"validation": tables["validation"], "bought": back, **FIS}
    with pytest.raises(InputError, match=r"row \d+ of the pool \(pool_row\) came back already \(data\[0\]"):
        fis.run(tables["labelled"], **{**how, "bought": pd.concat([back, back[:1]])}, after=out)
    second = fis.run(tables["labelled"], **how, after=out, out=tmp_path / "two")
    with pytest.raises(InputError, match=r"came back already \(round 1\)"):
        fis.run(second.labelled, **how, after=tmp_path / "two")


OTHERS = [
    ({"metric": "equal_opportunity"}, "--metric: equal_opportunity here, demographic_parity in"),
    ({"feature": ["a", "w"]}, "--feature: a, w here, not given in"),
    ({"positive": "0"}, "--positive: 0 here, not given in"),
]


@pytest.mark.parametrize(("other", "told"), OTHERS)
def test_a_round_of_other_settings_does_not_go_on_from_another(first, other, told):
    tables, _, out = first
    how = {"validation": tables["validation"], "pool": tables["pool"], "after": out, **FIS, **other}
    with pytest.raises(InputError, match=f"^{told} .*, so rounds cannot be compared"):
        fis.run(tables["labelled"], **how)


def test_a_run_of_another_method_is_no_round_to_go_on_from(first, tmp_path):
    tables, _, out = first
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    (tmp_path / "run.json").write_text(json.dumps(record | {"command": "unlearn ga", "config": {}}), encoding="utf-8")
    with pytest.raises(InputError, match=r"a run of amends unlearn ga\. Give a folder of amends fair fis"):
        fis.run(tables["labelled"], validation=tables["validation"], pool=tables["pool"], after=tmp_path, **FIS)


@pytest.mark.filterwarnings("ignore")
def test_a_query_that_is_answered_in_part_is_judged_whatever_wrote_it(first, tmp_path):
    tables, asked, _ = first
    part = bought(asked, tables["pool"]).astype({"y": float})
    part.loc[::2, "y"] = np.nan
    part.to_csv(tmp_path / "part.csv", index=False)
    part.to_parquet(tmp_path / "part.parquet")
    found = [
        fis.run(tables["labelled"], validation=tables["validation"], bought=back, guard=False, **FIS)
        for back in (part, tmp_path / "part.csv", tmp_path / "part.parquet")
    ]
    assert all(len(of.judged) == part["y"].notna().sum() for of in found)
    assert len({of.history[-1]["accuracy"] for of in found}) == 1
    assert found[0].history[-1]["kept"]
    assert {str(row["y"]) for of in found for row in of.labelled} == {"0", "1"}  # none 1.0 beside 1
    assert "No guard was asked for" in fis_page(found[0])
    every = fis.run(
        tables["labelled"], validation=tables["validation"], bought=part, keep_rejected=True, guard_tol=1, **FIS
    )
    assert every.update is None or "all labels that came back" in fis_page(every) or every.update.rolled_back


# Groups and labels of any kind --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["string", "boolean", "Int64", object])
def test_a_group_that_is_missing_is_named_by_its_row_whatever_the_column_is(kind):
    values = {"string": ["a", pd.NA, "b"], "boolean": [True, pd.NA, False]}.get(kind, [1, pd.NA, 2])
    with pytest.raises(ValueError, match="row 1 has no group, and 0 more"):
        read_groups(pd.Series(values, dtype=kind), 3)
    with pytest.raises(ValueError, match="y_true: row 1 has no value"):
        delta_worst_accuracy(pd.Series(values, dtype=kind), pd.Series(values, dtype=kind))


def test_a_missing_decision_is_no_class_either():
    with pytest.raises(ValueError, match="y_pred: row 2 has no value"):
        delta_worst_accuracy(np.array([0, 1, 1]), np.array([0, 1, np.nan]))


def scored(num=300):
    rng = np.random.default_rng(0)
    score, group = rng.random((num, 1)), rng.integers(0, 2, num)
    return score, (rng.random(num) < score[:, 0]).astype(int), group


FAN = {"eps": 0.5, "max_abstain": 0.5, "bins": 5, "random_state": 0}
KINDS = {
    "int": lambda y: y,
    "float": lambda y: y.astype(float),
    "bool": lambda y: y.astype(bool),
    "list": lambda y: y.tolist(),
    "Int64": lambda y: pd.Series(y, dtype="Int64"),
    "boolean": lambda y: pd.Series(y, dtype="boolean"),
}


@pytest.mark.parametrize("fitted", ["int", "Int64", "boolean"])
def test_a_report_takes_the_labels_that_fit_takes(fitted):
    X, y, z = scored()
    model = AbstainingFairClassifier("precomputed", **FAN).fit(X, KINDS[fitted](y), sensitive_features=z)
    known = model.report(X, y, sensitive_features=z).promises
    assert all(model.report(X, of(y), sensitive_features=z).promises == known for of in KINDS.values())
    with pytest.raises(ValueError, match=r"y: of shape \(10,\), expected a label for each of 300 rows"):
        model.report(X, y[:10], sensitive_features=z)
    with pytest.raises(ValueError, match="y holds no value"):
        model.report(X, np.where(np.arange(300) == 3, np.nan, y), sensitive_features=z)
    with pytest.raises(ValueError, match=r"y holds '[01]', which is none of"):
        model.report(X, y.astype(str), sensitive_features=z)


def test_the_base_is_cross_fitted_on_the_labels_as_they_are():
    X, y, z = scored()
    words, weighted = np.where(y == 1, "yes", "no"), LogisticRegression(class_weight={"no": 1, "yes": 3})
    found = AbstainingFairClassifier(weighted, **FAN).fit(X, words, sensitive_features=z)
    same = AbstainingFairClassifier(LogisticRegression(class_weight={0: 1, 1: 3}), **FAN)
    same.fit(X, y, sensitive_features=z)
    np.testing.assert_array_equal(found.held_out_score_, same.held_out_score_)


@pytest.mark.parametrize("make", [AbstainingFairClassifier, PriorRobustClassifier])
def test_folds_may_be_given_as_a_splitter(make):
    X, y, z = scored()
    how = {"sensitive_features": z} if make is AbstainingFairClassifier else {}
    options = FAN if make is AbstainingFairClassifier else {}
    by_list = make(cv=list(KFold(3).split(X)), **options).fit(X, y, **how)
    by_folds = make(cv=KFold(3), **options).fit(X, y, **how)
    np.testing.assert_array_equal(by_list.predict(X, **how), by_folds.predict(X, **how))
    make(cv=StratifiedKFold(3), **options).fit(X, y, **how)
    with pytest.raises(ValueError, match="rows twice or never"):
        make(cv=ShuffleSplit(3), **options).fit(X, y, **how)
    for wrong in (None, "many", 1):
        with pytest.raises(ValueError, match="expected at least 2 folds, or a splitter"):
            make(cv=wrong, **options).fit(X, y, **how)


def test_an_infeasible_promise_can_be_sent_to_another_process():
    error = pickle.loads(pickle.dumps(Infeasible("eps=0: no rule.", {"a": 0.3})))
    assert str(error) == "eps=0: no rule."
    assert error.min_abstain == {"a": 0.3}


@pytest.mark.parametrize("form", ["relative", "toward_one"])
def test_slack_without_end_allows_all_errors_but_those_of_a_base_that_makes_none(form):
    allowed = allowed_errors(np.array([0.0, 0.5, 1.0]), np.full(3, np.inf), form)
    np.testing.assert_array_equal(allowed, [0.0 if form == "relative" else 1.0, 1.0, 1.0])


# Proxies and DROPS --------------------------------------------------------------------------------------------------


def guessed(num=2000):
    rng = np.random.default_rng(0)
    group, y = rng.integers(0, 2, (2, num))
    pred = (rng.random(num) < 0.3 + 0.3 * group).astype(int)
    return pred, {f"p{m}": np.where(rng.random(num) < 0.8, group, 1 - group) for m in range(3)}, y


@pytest.mark.parametrize("kind", [str, object])
def test_labels_of_another_type_than_the_predictions_are_refused(kind):
    pred, said, y = guessed()
    labels = y.astype(str) if kind is str else np.array([0, "1"], dtype=object)[y]
    with pytest.raises(ValueError, match="no class in common, or the same class as number and as text"):
        proxy_fairness(pred, said, labels, metric="equalized_odds", n_boot=0)
    same = [proxy_fairness(pred, said, of, metric="equalized_odds", n_boot=0) for of in (y, y.astype(bool))]
    assert same[0].disparity == same[1].disparity


@pytest.mark.parametrize("metric", ["demographic_parity", "equalized_odds", "equal_opportunity"])
def test_a_positive_class_that_is_none_is_refused_under_every_metric(metric):
    pred, said, y = guessed()
    with pytest.raises(ValueError, match=r"positive='yes': no class is called that\. There are 0, 1"):
        proxy_fairness(pred, said, y, metric=metric, positive="yes", n_boot=0)


def test_the_report_says_how_often_proxies_are_right_as_the_summary_does():
    pred, said, y = guessed()
    y = np.where(np.arange(len(y)) % 10 == 0, y, 0)  # few positives: conditions of unlike size
    said["p0"] = np.where(pred == 1, said["p0"], 0)
    rows = pd.DataFrame({"pred": pred, "y": y, **said})
    how = {"pred": "pred", "label": "y", "metric": "equalized_odds", "proxy": list(said), "boot": 0}
    audit = proxies.run(rows, variant="global", **how)
    assert {row[0]: row[1] for row in _errors(audit.found).tables[0].rows} == audit.found.right


def probabilities(num=90, K=2, column="p_{}"):
    rng = np.random.default_rng(0)
    y = rng.integers(0, K, num)
    p = rng.dirichlet(np.ones(K), num) * 0.5 + 0.5 * np.eye(K)[y]
    return pd.DataFrame({"y": y, "g": "x", **{column.format(k): p[:, k] for k in range(K)}})


@pytest.mark.filterwarnings("ignore")
def test_with_one_group_probabilities_may_be_of_classes():
    rows, how = probabilities(), {"label": "y", "group": "g", "folds": 2}
    found = [drops.run(rows, proba="p_*", **how)]
    found += [drops.run(rows.rename(columns={"p_0": "p_0,x", "p_1": "p_1,x"}), proba="p_*", **how)]
    np.testing.assert_array_equal(found[0].model.weights_, found[1].model.weights_)
    with pytest.raises(InputError, match=r"no column for 0 .*Give each of 0, 1, as"):
        drops.run(rows.rename(columns={"p_0": "p_2", "p_1": "p_3"}), proba="p_*", **how)


@pytest.mark.filterwarnings("ignore")
def test_drops_says_that_a_positive_class_of_three_is_not_used_and_needs_a_delta():
    rows = probabilities(K=3)
    found = drops.run(rows, label="y", proba="p_*", positive="1", folds=2)
    assert "--positive 1 is not used: there are 3 classes, and each counts." in found.record["warnings"]
    with pytest.raises(InputError, match="--delta: none is given"):
        drops.run(rows, label="y", proba="p_*", delta=[])


# Concept influence --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_edits_edited_rows_and_report_say_labels_and_groups_as_the_data_do(monkeypatch):
    monkeypatch.setattr("amends.fair.concept_influence.MOST_VERIFIED", 3)
    rows = people(150, 1).assign(y=lambda t: np.where(t["y"] == 1, "yes", "no"), side=lambda t: t["g"] + "!")
    # Of one label, so that they alone do not tell that there is a label "yes".
    validation = people(200, 2).assign(y="no", side=lambda t: t["g"] + "!")
    how = {
        "label": "y",
        "group": ["g", "side"],
        "positive": "yes",
        "feature": ["a", "w"],
        "bootstrap": 0,
        "max_rows": 0.03,
    }
    found = concept_influence.run(rows, validation=validation, concepts=["group", "label"], **how)
    for concept in ("group", "label"):
        edits, edited = edits_of(found, concept), edited_rows(found, concept, "y")
        assert edits
        for edit in edits:
            row = edited[edit["row"]]
            assert (edit["y"], edit["new_y"]) == (rows["y"][edit["row"]], row["y"])
            assert edit["new_group"] == f"{row['g']}, {row['side']}"
        changed = sum(a != dict(b.data) for a, b in zip(edited, found.rows, strict=True))
        assert changed == len(edits)
    assert {row["label"] for row in scored_rows(found)} == {"yes", "no"}
    assert "label yes" in page(found)
    assert "label 1" not in page(found)


def test_a_step_that_is_none_is_refused_before_rows_are_scored():
    for wrong in ({"step": 0}, {"accuracy_tol": -1}):
        with pytest.raises(InputError, match=r"^--step .*, --accuracy-tol"):
            concept_influence.run(people(50, 1), label="y", group=["g"], **wrong)


def test_arrays_with_gaps_have_counterparts_where_the_model_fills_them():
    rng = np.random.default_rng(0)
    x, group = rng.normal(size=(200, 3)), rng.integers(0, 2, 200)
    y = (x[:, 0] + group + rng.normal(size=200) > 0.5).astype(int)
    x[3, 1] = np.nan
    found = ConceptInfluence(make_pipeline(SimpleImputer(), LogisticRegression()), num_bootstrap=0, random_state=0)
    changes = found.fit(x, y, sensitive_features=group).explain(["group"])
    assert np.isfinite(changes["group"]).all()


@pytest.mark.parametrize("value", [30.5, lambda old: old * 1.1])
def test_a_column_of_whole_numbers_can_be_set_to_a_fraction(value):
    old = np.array([30, 41, 52, 63])
    rows = Rows(pd.DataFrame({"age": old, "b": [0.0, 1, 2, 3]}), np.array([0, 1, 0, 1]), np.array(list("aabb")))
    (put,) = set_column("age", value)(rows)
    np.testing.assert_allclose(put.X["age"], value(old) if callable(value) else value)


@pytest.mark.parametrize("kind", ["category", "words with gaps"])
def test_what_follows_a_column_keeps_its_values_and_its_gaps(kind):
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2, 400).astype(float)
    follows = (first + (rng.random(400) < 0.1)).astype(int)
    numbers = pd.Series(follows).astype("category")
    words = pd.Series(np.array([None, "no", "yes"], dtype=object)[follows])
    frame = pd.DataFrame({"first": first, "follows": numbers if kind == "category" else words})
    rows = Rows(frame, np.arange(400) % 2, np.repeat(["a", "b"], 200))
    (put,) = set_column("first", 0.0, dependents=["follows"], random_state=0)(rows)
    assert put.X["follows"].dtype == frame["follows"].dtype
    assert set(put.X["follows"].dropna()) <= set(frame["follows"].dropna())
    assert put.X["follows"].ne(frame["follows"])[first == 1].mean() > 0.5
    lacking = (first == 0) & frame["follows"].isna()
    assert put.X["follows"][lacking].isna().all()
    assert lacking.any() == (kind == "words with gaps")
