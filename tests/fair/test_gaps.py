"""Gaps and rates as reports state them: what nothing was counted of is missing, and noise is not called a finding."""

import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import demographic_parity_difference, equalized_odds_difference

from amends.fair import AbstainingFairClassifier, fan
from amends.fair._drops.page import lead, worst_with_band
from amends.fair._fan.kept import count, measure, spread
from amends.fair._fan.page import page
from amends.fair._tables.gaps import gaps, rates
from amends.fair.drops import run as run_drops
from amends.io.errors import InputError


def test_a_group_without_positives_has_no_true_positive_rate_and_no_gap_from_it():
    y, said, group = [1, 1, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0], list("aaabbb")
    frame = rates(y, said, group)
    assert np.isnan(frame.by_group.loc["b", "true positive rate"])
    found = gaps(frame)
    assert np.isnan(found["equal_opportunity"])
    assert np.isnan(found["equalized_odds"])
    assert found["demographic_parity"] == pytest.approx(1 / 3)
    three = gaps(rates([*y, 1, 1, 0], [*said, 1, 0, 0], [*group, *"ccc"]))
    assert three["equal_opportunity"] == pytest.approx(0.5)  # of a and c


def test_where_every_group_has_all_labels_gaps_are_fairlearns():
    rng = np.random.default_rng(0)
    y, said, group = rng.integers(0, 2, 300), rng.integers(0, 2, 300), rng.choice(list("abc"), 300)
    found = gaps(rates(y, said, group))
    how = {"sensitive_features": group}
    assert found["demographic_parity"] == pytest.approx(demographic_parity_difference(y, said, **how))
    assert found["equalized_odds"] == pytest.approx(equalized_odds_difference(y, said, **how))


# Promises of FAN ----------------------------------------------------------------------------------------------------


def kept(code, y, fate, eps=0.02, notion="demographic_parity", seed=0):
    G = int(code.max()) + 1
    row = count(code, y, fate == 1, fate, G)
    return measure(row, list(range(G)), notion, eps, np.full(G, 0.2), lambda e: e, (1, 1, 1), seed)


def test_a_gap_that_one_group_alone_tells_of_is_not_called_kept():
    code, y = np.repeat([0, 1], 50), np.r_[np.tile([0, 1], 25), np.zeros(50, int)]
    for notion in ("equal_opportunity", "equalized_odds"):
        promise = kept(code, y, y, notion=notion).promises[0]
        assert np.isnan(promise.value)
        assert promise.verdict == "no rows to tell"
        assert not kept(code, y, y, notion=notion).all_kept
    assert spread(np.array([0.3])) == 0  # one group in all has no gap


@pytest.mark.parametrize("G", [3, 8])
def test_equal_groups_are_seldom_called_unequal_however_many_there_are(G, monkeypatch):
    monkeypatch.setattr("amends.fair._fan.kept.NUM_DRAWS", 300)
    rng, code, promises = np.random.default_rng(0), np.repeat(np.arange(G), 200), []
    for seed in range(40):
        y, fate = rng.integers(0, 2, len(code)), (rng.random(len(code)) < 0.5).astype(int)
        promises.append(kept(code, y, fate, seed=seed, notion="equalized_odds").promises[0])
    assert np.mean([promise.verdict == "broken" for promise in promises]) <= 0.1
    assert np.mean([promise.low <= 0 for promise in promises]) >= 0.88


def test_a_gap_that_is_there_is_called_broken_among_many_groups():
    rng, code = np.random.default_rng(0), np.repeat(np.arange(8), 500)
    fate = (rng.random(len(code)) < np.where(code == 3, 0.8, 0.5)).astype(int)
    promise = kept(code, rng.integers(0, 2, len(code)), fate).promises[0]
    assert promise.verdict == "broken"
    assert promise.low < 0.3 < promise.high


def tied(num=4000):
    rng = np.random.default_rng(0)
    z = rng.integers(0, 2, num)
    y = (rng.random(num) < np.where(z == 1, 0.6, 0.3)).astype(int)
    score = 1 / (1 + np.exp(-(1.2 * rng.normal(size=num) + 2.2 * (y - 0.5))))
    return pd.DataFrame({"s": score.round(1)}), y, z


def test_rows_that_are_alike_and_so_share_a_fate_are_warned_of_where_that_misses_the_rule(recwarn):
    X, y, z = tied()
    model = AbstainingFairClassifier("precomputed", eps=0.02, max_abstain=0.25, random_state=0)
    with pytest.warns(UserWarning, match="rows that are alike share one fate"):
        model.fit(X, y, sensitive_features=z)
    recwarn.clear()
    model.fit(X.assign(id=np.arange(len(X))), y, sensitive_features=z)
    assert not len(recwarn)


def test_the_command_says_once_that_rows_are_alike():
    X, y, z = tied(1000)
    found = fan.run(X.assign(y=y, g=z), label="y", group="g", score="s", eps=0.02, max_abstain=0.4, bins=10)
    assert sum("rows that are alike" in text for text in found.record["warnings"]) == 1


def test_held_out_rows_without_the_label_of_the_notion_are_refused_in_words():
    rng = np.random.default_rng(0)
    score = rng.random(400)
    rows = pd.DataFrame({"s": score, "y": (rng.random(400) < score).astype(int), "g": rng.choice(["f", "m"], 400)})
    rows["part"] = np.where((rows["y"] == 0) & (rows.index < 250), "test", "train")
    how = {"label": "y", "group": "g", "score": "s", "split": "part", "eps": 0.3, "max_abstain": 0.5, "bins": 5}
    for notion in ("equal_opportunity", "equalized_odds"):
        with pytest.raises(InputError, match=f"{notion}: fewer than two groups have held-out rows of the label"):
            fan.run(rows, notion=notion, **how)
    found = fan.run(rows, sigma1=0.5, **how)
    assert "1 could not be measured" in page(found)  # abstention among positives: no row tells of it


# Bands of DROPS -----------------------------------------------------------------------------------------------------


def decided(recall, rows, seed):
    """Tables of a model with these recalls, as `amends fair drops` reads them."""
    rng, K = np.random.default_rng(seed), len(recall)
    y = np.repeat(np.arange(K), rows)
    said = np.where(rng.random(len(y)) < np.repeat(recall, rows), y, (y + 1) % K)
    p = np.full((len(y), K), 0.01) + np.eye(K)[said] * (1 - 0.01 * K)
    return pd.DataFrame({"y": y, **{f"p_{k}": p[:, k] for k in range(K)}})


@pytest.mark.parametrize("recall", [(0.8,) * 4, (0.8,) * 10, (0.9, 0.8, 0.7, 0.5)], ids=["even", "many", "uneven"])
def test_bands_hold_the_true_least_accuracy_about_as_often_as_they_say(recall):
    found = run_drops(decided(recall, 90, 0), label="y", proba="p_*", delta=9.0, folds=2)
    held = []
    for seed in range(100):
        table = decided(recall, 90, seed)
        object.__setattr__(found, "decided", {"as it is": table.filter(like="p_").to_numpy().argmax(axis=1)})
        value, low, high = worst_with_band(found, "as it is", 9.0)
        assert low <= value <= high
        held.append(low <= min(recall) <= high)
    assert np.mean(held) >= 0.82


def test_a_class_that_is_always_right_still_has_a_band_and_the_lead_says_that_it_is_estimated():
    found = run_drops(decided((1.0, 1.0), 30, 0), label="y", proba="p_*", folds=2)
    value, low, high = worst_with_band(found, "as it is", 0.2)
    assert value == high == 1
    assert 0.85 < low < 0.99
    assert f"accuracy is estimated to be at least 1.000 (90 % band {low:.3f} to 1.000)" in lead(found)
