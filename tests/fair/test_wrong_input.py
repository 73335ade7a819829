"""What every method of `amends fair` says of wrong input: a mistake that the user can mend, and where it is."""

import warnings
from importlib import import_module
from typing import get_args, get_type_hints

import numpy as np
import pandas as pd
import pytest

from amends.fair import concept_influence, drops, fan, fis, proxies
from amends.io.errors import InputError


def people(num=120, seed=0):
    """Rows that have what every method asks for."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(num):
        a = float(rng.normal() + 0.7 * (i % 2))
        y = int(a + rng.normal() > 0.3)
        s = float(np.clip(rng.normal(0.35 + 0.3 * y, 0.1), 0.01, 0.99))
        guess = dict(zip(("g1", "g2", "g3"), np.where(rng.random(3) < 0.85, i % 2, 1 - i % 2).tolist(), strict=True))
        found.append({"y": y, "g": "FM"[i % 2], "s": s, "a": a, **guess})
    return found


def changed(**of_row_5):
    return [row | of_row_5 if i == 5 else row for i, row in enumerate(people())]


METHODS = {
    "fan": lambda rows, **how: fan.run(rows, label="y", group="g", **{"score": "s", **how}),
    "drops": lambda rows, **how: drops.run(rows, label="y", proba="s", group="g", folds=2, **how),
    "concept_influence": lambda rows, **how: concept_influence.run(
        rows, label="y", group="g", **{"feature": ["a"], **how}
    ),
    "fis": lambda rows, **how: fis.run(
        rows, pool=people(), label="y", group="g", **{"validation": people(), "feature": ["a"], **how}
    ),
    "proxies": lambda rows, **how: proxies.run(rows, pred="y", proxy=["g1", "g2", "g3"], boot=2, **how),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_refused_by_its_option(method, seed):
    with pytest.raises(InputError, match=rf"--seed {seed}: expected a whole number from 0 to 4294967295"):
        METHODS[method](people(), seed=seed)


@pytest.mark.parametrize("method", METHODS)
def test_the_help_says_which_seeds_there_are(method):
    hints = get_type_hints(import_module(f"amends.fair.{method}").command, include_extras=True)
    _, option = get_args(hints["seed"])
    assert (option.min, option.max) == (0, 4294967295)


@pytest.mark.parametrize("value", [["a"], {"a": 1}])
@pytest.mark.parametrize(
    ("method", "column"), [*((m, "y") for m in METHODS), ("fan", "g"), ("drops", "g"), ("proxies", "g1")]
)
def test_a_cell_with_several_values_is_named_by_row_and_column(method, column, value):
    with pytest.raises(InputError, match=rf'data\[5\], column "{column}": a list or an object, expected one value'):
        METHODS[method](changed(**{column: value}))


@pytest.mark.parametrize("method", ["fan", "drops", "fis", "concept_influence"])
def test_a_column_of_numbers_is_told_not_to_be_one_of_groups(method):
    rows = [row | {"g": i} for i, row in enumerate(people())]
    how = {"validation": rows} if method == "fis" else {}
    with pytest.raises(InputError, match=r"--group g: 120 groups among 120 rows\. Name a column of groups"):
        METHODS[method](rows, **how)


@pytest.mark.parametrize("method", ["fan", "fis", "concept_influence"])
def test_both_labels_are_named_where_none_is_known_to_be_positive(method):
    rows = [row | {"y": ["no", "yes"][row["y"]]} for row in people()]
    how = {"validation": rows} if method == "fis" else {}
    with pytest.raises(InputError, match=r'column "y": which of no, yes is the positive value\? Give --positive\.'):
        METHODS[method](rows, **how)


@pytest.mark.parametrize("method", ["fan", "concept_influence"])
def test_three_labels_are_refused_even_if_one_is_named_positive(method):
    with pytest.raises(InputError, match=r'column "y": 3 values \(0, 1, 2\), expected two'):
        METHODS[method](changed(y=2), positive="1")


@pytest.mark.parametrize("method", ["concept_influence", "fis"])
def test_an_infinite_feature_is_named_by_row_and_column(method):
    with pytest.raises(InputError, match=r'data\[5\], column "a": an infinite number'):
        METHODS[method](changed(a=float("inf")))


@pytest.mark.parametrize("method", ["fan", "concept_influence", "fis"])
def test_the_label_is_nothing_to_learn_from(method):
    with pytest.raises(InputError, match="--feature y: it is the label"):
        METHODS[method](people(), feature=["a", "y"])


@pytest.mark.parametrize("method", ["fan", "drops"])
def test_a_missing_value_of_pandas_is_no_label(method):
    table = pd.DataFrame(people()).astype({"y": "Int64"})
    table.loc[5, "y"] = pd.NA
    with pytest.raises(InputError, match=r'data\[5\], column "y": no value'):
        METHODS[method](table)


def test_labels_of_one_kind_teach_nothing():
    with pytest.raises(InputError, match="have the same label"):
        METHODS["concept_influence"]([row | {"y": 1} for row in people()])


def test_a_group_without_the_label_that_counts_is_called_by_its_name():
    rows = [row | {"y": row["y"] * (row["g"] == "M")} for row in people()]
    with pytest.raises(InputError, match="group F has no row with label 1"):
        METHODS["concept_influence"](rows, metric="equal_opportunity")


def test_one_group_has_no_gap_to_close():
    with pytest.raises(InputError, match=r"--group g: all rows are of one group \(F\)"):
        METHODS["fan"]([row | {"g": "F"} for row in people()])


def test_fan_writes_over_no_column():
    with pytest.raises(InputError, match='there is a column "decision" already'):
        METHODS["fan"]([row | {"decision": "mine"} for row in people()])


def test_words_of_new_rows_do_not_turn_a_column_of_numbers_into_words():
    new = [row | {"a": "tall"} if i == 3 else row for i, row in enumerate(people(10, 1))]
    with pytest.raises(InputError, match=r"""data\[3\], column "a": 'tall', expected a number"""):
        METHODS["fan"](people(), score=None, feature=["a"], apply=new)


def test_more_bins_than_rows_are_as_many_as_rows():
    rows = people()
    many = METHODS["fan"](rows, bins=10**6, max_abstain=1.0)
    assert len(many.model.rule_.edge_E) <= len(rows) // 2


def test_a_delta_given_twice_counts_once():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert METHODS["drops"](people(), delta=[0.2, 0.2]).deltas == [0.2]


def test_warnings_of_drops_name_classes_and_groups_as_the_data_do():
    rows = [row | {"y": ["no", "yes"][row["y"]]} for row in people(60)]
    warned = METHODS["drops"](rows, positive="yes").record["warnings"]
    assert any("'no,M': " in text or "'yes,F': " in text or "'yes,M': " in text for text in warned)
    assert not any("(0, " in text or "(1, " in text for text in warned)


def test_an_infinite_smooth_is_refused():
    with pytest.raises(InputError, match="smooth=inf"):
        METHODS["drops"](people(), smooth=float("inf"))


def test_a_group_that_is_named_twice_is_refused():
    with pytest.raises(InputError, match="--group g: named twice"):
        fan.run(people(), label="y", group=["g", "g"], score="s")


def test_truths_and_predictions_that_share_no_class_are_refused():
    rows = [row | {"truth": "yes" if row["y"] else "no"} for row in people()]
    with pytest.raises(InputError, match="--label truth holds 'no', --pred y 0, and they have no class in common"):
        METHODS["proxies"](rows, label="truth", metric="equalized_odds")
