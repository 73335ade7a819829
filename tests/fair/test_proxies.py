import itertools
import json

import numpy as np
import pandas as pd
import polars as pl
import pytest
from fairlearn.metrics import demographic_parity_difference, equalized_odds_difference
from scipy.optimize import minimize

from amends.cli import main
from amends.fair import calibrated_gap, proxies, proxy_fairness
from amends.fair._proxies.fit import signal
from amends.fair._proxies.latent import fit, fit_shared
from amends.fair._proxies.rates import calibrated, interval, misfit, naive
from amends.fair._proxies.table import count_proxies
from amends.io.errors import InputError
from amends.maths.transition import MISSING, fit_raters, patterns

THREE = np.array([[[0.7, 0.3], [0.35, 0.65]], [[0.8, 0.2], [0.25, 0.75]], [[0.65, 0.35], [0.3, 0.7]]])
FOUR = np.concatenate([THREE, [[[0.75, 0.25], [0.3, 0.7]]]])
PRIOR = (0.6, 0.4)
RATES = np.array([[0.6, 0.4], [0.4, 0.6]])
"""P(class | group): the true gap is 0.2."""


def drawn(chance_N, rng):
    """One value a row by its chances, (rows, values)."""
    return (chance_N.cumsum(axis=1) < rng.random(len(chance_N))[:, None]).sum(axis=1)


def planted(num_rows, seed, matrices=THREE, prior=PRIOR, rates=RATES):
    """Predictions, what proxies say, and the groups."""
    rng = np.random.default_rng(seed)
    group_N = rng.choice(len(prior), num_rows, p=prior)
    return drawn(np.asarray(rates)[group_N], rng), np.stack([drawn(T[group_N], rng) for T in matrices], 1), group_N


def expanded(matrices, prior, rates, num_rows):
    """Rows whose shares are exactly those of the model, as far as whole rows go."""
    G, K = np.shape(rates)
    rows = []
    for k, *said in itertools.product(range(K), *[range(G)] * len(matrices)):
        chance_G = [np.prod([T[a][j] for T, j in zip(matrices, said, strict=True)]) for a in range(G)]
        share = sum(prior[a] * rates[a][k] * chance_G[a] for a in range(G))
        rows += [[k, *said]] * round(num_rows * share)
    found = np.array(rows)
    return found[:, 0], found[:, 1:]


def random_model(num_groups, num_classes, seed):
    rng = np.random.default_rng(seed)
    T = 0.4 * rng.dirichlet(np.ones(num_groups), (3, num_groups)) + 0.6 * np.eye(num_groups)
    return T, rng.dirichlet(5 * np.ones(num_groups)), rng.dirichlet(np.ones(num_classes), num_groups)


# Identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_groups", "num_classes"), [(2, 2), (3, 3), (4, 2)])
def test_true_matrices_give_the_rates_back_exactly(num_groups, num_classes):
    T, p, H = random_model(num_groups, num_classes, 0)
    said_MBCKG = np.einsum("a,ak,maj->mkj", p, H, T)[:, None, None]  # shares of the population
    found = calibrated(said_MBCKG, T[None], p[None, None])[0, 0]
    assert found == pytest.approx(H, abs=1e-12)
    assert found.sum(axis=1) == pytest.approx(1, abs=1e-12)


def test_proxies_that_never_err_are_the_naive_audit():
    y_pred, _, group_N = planted(500, 0)
    found = proxy_fairness(y_pred, np.stack([group_N] * 3, axis=1), n_boot=0, clip=None)
    apart = abs(y_pred[group_N == 0].mean() - y_pred[group_N == 1].mean())
    assert found.disparity == pytest.approx(apart, abs=1e-9)
    assert found.majority == pytest.approx(apart, abs=1e-12)
    assert list(found.naive.values()) == pytest.approx([apart] * 3, abs=1e-12)
    assert all(pytest.approx(np.eye(2), abs=1e-9) == T for T in found.transition.values())


@pytest.mark.parametrize("m", range(3))
def test_a_naive_gap_is_the_true_one_times_the_determinant_and_the_shares(m):
    T, p, H = THREE[m], np.array(PRIOR), RATES
    said_KG = np.einsum("a,ak,aj->kj", p, H, T)
    rates_GK = naive(said_KG)
    said_G = p @ T
    shrunk = (H[0] - H[1]) * np.linalg.det(T) * p.prod() / said_G.prod()
    assert rates_GK[0] - rates_GK[1] == pytest.approx(shrunk, abs=1e-12)


def test_other_names_for_the_groups_change_nothing():
    y_pred, said, _ = planted(3000, 1)
    one = proxy_fairness(y_pred, said, n_boot=0)
    other = proxy_fairness(y_pred, np.array(["b", "a"])[said], n_boot=0)  # sorts the other way round
    assert other.groups == ["a", "b"]
    assert other.disparity == pytest.approx(one.disparity, abs=1e-6)
    assert other.rates_CGK[0, ::-1] == pytest.approx(one.rates_CGK[0], abs=1e-6)
    assert other.transition["proxy 1"][::-1, ::-1] == pytest.approx(one.transition["proxy 1"], abs=1e-6)


def test_one_table_of_one_cell_is_fitted_as_raters_are():
    _, said, _ = planted(4000, 2, FOUR)
    said[::7, 0] = MISSING
    told = patterns(said, 2)
    one, other = fit_raters(told, 2, tolerance=1e-15), fit(told.labels_UM, told.count_U[None, None], 2)
    assert other.matrices_BMGG[0] == pytest.approx(one.matrices_MKK, abs=1e-5)  # plain EM creeps, and stops short
    assert other.prior_BCG[0, 0] == pytest.approx(one.prior_K, abs=1e-5)


def test_many_tables_at_once_are_fitted_as_each_alone():
    parts = [patterns(planted(2000, seed)[1], 2) for seed in range(3)]
    together = fit(parts[0].labels_UM, np.stack([part.count_U[None] for part in parts]), 2)
    for b, part in enumerate(parts):
        alone = fit(part.labels_UM, part.count_U[None, None], 2)
        assert together.matrices_BMGG[b] == pytest.approx(alone.matrices_BMGG[0], abs=1e-12)


def test_one_matrix_for_all_is_found_from_exact_shares():
    T = THREE[1]
    said = expanded([T] * 3, PRIOR, RATES, 300_000)[1]
    told = patterns(said, 2)
    found = fit_shared(told.labels_UM, told.count_U[None], 2)
    assert found.matrices_BMGG[0] == pytest.approx(np.stack([T] * 3), abs=3e-4)


def test_for_two_groups_and_classes_the_naive_gap_is_fairlearns():
    y_pred, said, _ = planted(2000, 3)
    y_true = (np.arange(2000) % 3 == 0).astype(int)
    found = proxy_fairness(y_pred, said, n_boot=0)
    assert found.naive["proxy 1"] == pytest.approx(
        demographic_parity_difference(y_true, y_pred, sensitive_features=said[:, 0])
    )
    odds = proxy_fairness(y_pred, said, y_true, metric="equalized_odds", summary="largest", n_boot=0, variant="naive")
    assert odds.naive["proxy 2"] == pytest.approx(
        equalized_odds_difference(y_true, y_pred, sensitive_features=said[:, 1])
    )


# Planted truths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["global", "joint"])
def test_the_planted_gap_is_found_where_proxies_taken_for_truth_see_half_of_it(variant):
    found = [proxy_fairness(*planted(5000, seed)[:2], variant=variant, n_boot=0) for seed in range(5)]
    for one in found:
        assert abs(one.disparity - 0.2) < 0.06
        assert one.naive["proxy 1"] < 0.12
        assert one.naive["proxy 3"] < 0.12
    assert np.mean([one.majority for one in found]) == pytest.approx(0.117, abs=0.03)


def test_where_there_is_no_gap_none_is_found_and_the_interval_begins_at_0():
    level = [[0.5, 0.5], [0.5, 0.5]]
    found = [proxy_fairness(*planted(5000, seed, rates=level)[:2], n_boot=100, random_state=0) for seed in range(5)]
    assert np.mean([one.disparity for one in found]) < 0.04
    assert sum(one.interval[0] == 0 for one in found) >= 4


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(20):
        low, high = proxy_fairness(*planted(3000, seed)[:2], variant="joint", n_boot=100, random_state=seed).interval
        covered += low <= 0.2 <= high
    assert covered >= 15  # of 20 at 90 %: fewer come by chance once in 90 times


def test_exact_shares_give_rates_of_three_groups_and_classes_back():
    T, p, H = random_model(3, 3, 4)
    y_pred, said = expanded(T, p, H, 500_000)
    found = proxy_fairness(y_pred, said, n_boot=0, variant="global")
    assert found.rates_CGK[0] == pytest.approx(H, abs=2e-3)
    assert found.prior_CG[0] == pytest.approx(p, abs=2e-3)
    gaps = [np.abs(H[a] - H[b]) for a, b in itertools.combinations(range(3), 2)]
    assert found.disparity == pytest.approx(np.mean(gaps), abs=2e-3)
    largest = proxy_fairness(y_pred, said, n_boot=0, variant="global", summary="largest")
    assert largest.disparity == pytest.approx(np.max(gaps), abs=4e-3)


def with_labels(num_rows, seed):
    """Predictions that depend on label and group, what proxies say, labels, groups."""
    rng = np.random.default_rng(seed)
    group_N = rng.choice(2, num_rows, p=PRIOR)
    y_true = (rng.random(num_rows) < np.array([0.3, 0.6])[group_N]).astype(int)
    chance = np.array([[0.1, 0.25], [0.5, 0.85]])[y_true, group_N]
    said = np.stack([drawn(T[group_N], rng) for T in FOUR], axis=1)
    return (rng.random(num_rows) < chance).astype(int), said, y_true, group_N


@pytest.mark.parametrize("variant", ["global", "local", "joint"])
def test_gaps_given_the_label_are_found(variant):
    y_pred, said, y_true, group_N = with_labels(100_000, 0)
    rate = [[y_pred[(y_true == y) & (group_N == a)].mean() for a in (0, 1)] for y in (0, 1)]
    apart = [abs(of[0] - of[1]) for of in rate]
    odds = proxy_fairness(y_pred, said, y_true, metric="equalized_odds", variant=variant, n_boot=0)
    one = proxy_fairness(y_pred, said, y_true, metric="equal_opportunity", variant=variant, n_boot=0)
    assert odds.disparity == pytest.approx(np.mean(apart), abs=0.02)
    assert one.disparity == pytest.approx(apart[1], abs=0.03)
    share = [[(group_N[y_true == y] == a).mean() for a in (0, 1)] for y in (0, 1)]
    assert odds.prior_CG == pytest.approx(np.array(share), abs=0.02)


def leaning_on_predictions(num_rows, seed):
    """Proxies that say group 1 more often where 1 is predicted, beside the groups."""
    rng = np.random.default_rng(seed + 1000)
    y_pred, _, group_N = planted(num_rows, seed)
    right = np.where(y_pred == group_N, 0.85, 0.6)
    said = [np.where(rng.random(num_rows) < right, group_N, 1 - group_N) for _ in range(4)]
    return y_pred, np.stack(said, axis=1), group_N


def test_proxies_that_lean_on_predictions_are_noticed_and_fitted_by_class():
    y_pred, said, _ = leaning_on_predictions(50_000, 0)
    found = proxy_fairness(y_pred, said, n_boot=0, random_state=0)
    fixed = proxy_fairness(y_pred, said, n_boot=0, variant="global", random_state=0)
    assert found.variant == "local"
    assert found.misfit["predictions"].p <= 0.01
    assert found.disparity == pytest.approx(0.2, abs=0.02)
    assert fixed.disparity > 0.3  # what independence that does not hold makes of it
    assert any("lean on each other" in warning for warning in fixed.warnings)
    assert not found.warnings


def leaning_on_each_other(num_rows, seed, num_proxies):
    """The second proxy repeats the first in half of the rows, whatever the group is."""
    rng = np.random.default_rng(seed + 1000)
    y_pred, said, group_N = planted(num_rows, seed, FOUR[:num_proxies])
    said[:, 1] = np.where(rng.random(num_rows) < 0.5, said[:, 0], said[:, 1])
    return y_pred, said, group_N


def test_three_proxies_that_lean_on_each_other_leave_the_gap_too_small_unnoticed():
    found = proxy_fairness(*leaning_on_each_other(50_000, 0, 3)[:2], n_boot=50, random_state=0)
    assert found.disparity < 0.17  # the documented failure: the truth is 0.2
    assert found.interval[1] < 0.2
    assert found.misfit["proxies"] is None
    assert any("could not be tested" in warning for warning in found.warnings)


def test_a_fourth_proxy_makes_it_noticed():
    found = proxy_fairness(*leaning_on_each_other(20_000, 0, 4)[:2], n_boot=0, random_state=0)
    assert found.misfit["proxies"].p <= 0.01
    assert any("lean on each other" in warning for warning in found.warnings)


def test_more_proxies_than_can_be_tested_are_fitted_all_the_same():
    y_pred, said, _ = planted(3000, 5, [THREE[m % 3] for m in range(13)])
    found = proxy_fairness(y_pred, said, n_boot=20, random_state=0)
    assert found.disparity == pytest.approx(0.2, abs=0.06)
    assert found.misfit == {"proxies": None, "predictions": None}
    assert any("leave out some" in warning for warning in found.warnings)


def test_independent_proxies_are_seldom_suspected():
    found = [proxy_fairness(*planted(2000, seed, FOUR)[:2], n_boot=0, random_state=seed) for seed in range(10)]
    assert sum(one.misfit["proxies"].p <= 0.05 for one in found) <= 3
    assert all(one.variant == "global" for one in found)
    assert np.mean([one.misfit["predictions"].p for one in found]) > 0.25


def test_what_is_missing_is_left_out_of_each_proxy_alone():
    y_pred, said, _ = planted(20_000, 5)
    hidden = np.random.default_rng(0).random(said.shape) < 0.3
    found = proxy_fairness(y_pred, np.where(hidden, MISSING, said), n_boot=0)
    assert found.disparity == pytest.approx(0.2, abs=0.04)
    all_hidden = int(hidden.all(axis=1).sum())
    assert found.num_rows == 20_000 - all_hidden
    assert any(str(all_hidden) in warning for warning in found.warnings)
    words = np.array(["f", "m"], dtype=object)[said]
    words[hidden] = None
    assert proxy_fairness(y_pred, words, n_boot=0).disparity == pytest.approx(found.disparity, abs=1e-9)


# Given matrices, other ways ------------------------------------------------------------------------------------------


def test_with_a_known_matrix_one_proxy_is_enough():
    y_pred, said, _ = planted(50_000, 6)
    found = proxy_fairness(y_pred, said[:, :1], transition=THREE[0], n_boot=50, random_state=0)
    assert found.disparity == pytest.approx(0.2, abs=0.03)
    assert found.interval[0] < 0.2 < found.interval[1]
    named = {"groups": [1, 0], "transition": {"proxy 1": THREE[0][::-1, ::-1]}}
    assert proxy_fairness(y_pred, said[:, :1], transition=named, n_boot=0).disparity == found.disparity


def test_a_wrong_matrix_is_noticed():
    y_pred, said, _ = planted(20_000, 7)
    right = proxy_fairness(y_pred, said, transition=THREE, n_boot=0, random_state=0)
    wrong = proxy_fairness(y_pred, said, transition=THREE[::-1], n_boot=0, random_state=0)
    assert right.misfit["proxies"].p > 0.01
    assert wrong.misfit["proxies"].p <= 0.01
    assert any("as given" in warning for warning in wrong.warnings)


def test_one_matrix_for_all_is_said_to_be_wrong_where_proxies_differ():
    y_pred, said, _ = planted(5000, 8)
    said[:, 2] = np.where(np.random.default_rng(0).random(5000) < 0.3, 1, said[:, 2])
    found = proxy_fairness(y_pred, said, shared=True, n_boot=5)
    assert any("one matrix is not right" in warning for warning in found.warnings)
    assert len({T.tobytes() for T in found.transition.values()}) == 1
    assert not any("one matrix" in warning for warning in proxy_fairness(y_pred, said, n_boot=0).warnings)


def test_most_votes_and_single_proxies_can_be_taken_for_truth():
    y_pred, said, group_N = planted(3000, 9)
    voted = (said.sum(axis=1) > 1).astype(int)
    apart = abs(y_pred[voted == 0].mean() - y_pred[voted == 1].mean())
    assert proxy_fairness(y_pred, said, variant="majority", n_boot=20).disparity == pytest.approx(apart)
    one = proxy_fairness(y_pred, group_N[:, None], variant="naive", n_boot=20)
    assert one.disparity == pytest.approx(abs(y_pred[group_N == 0].mean() - y_pred[group_N == 1].mean()))
    assert not one.transition


def test_a_tie_of_votes_is_shared():
    table = count_proxies([0, 1], np.array([[0, 1], [1, 1]]))
    assert table.voted_CKG()[0].tolist() == [[0.5, 0.5], [0.0, 1.0]]


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame, dict])
def test_frames_and_mappings_keep_the_proxies_names(frame):
    y_pred, said, _ = planted(2000, 10)
    columns = {name: said[:, m] for m, name in enumerate(("census", "florida", "carolina"))}
    found = proxy_fairness(pd.Series(y_pred), frame(columns), n_boot=0)
    assert list(found.naive) == ["census", "florida", "carolina"]
    assert found.disparity == proxy_fairness(y_pred, said, n_boot=0).disparity


def test_the_same_seed_gives_the_same_interval_and_no_global_state_is_touched():
    y_pred, said, _ = planted(2000, 11)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one, two = (proxy_fairness(y_pred, said, random_state=3, n_boot=20) for _ in range(2))
    assert one.interval == two.interval
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_nothing_that_is_returned_has_a_row_for_each_person():
    y_pred, said, _ = planted(997, 12)
    found = proxy_fairness(y_pred, said, n_boot=7)
    arrays = [value for value in vars(found).values() if isinstance(value, np.ndarray)]
    assert arrays
    assert all(997 not in value.shape for value in arrays)
    assert "warning" in str(found)


# What is refused ----------------------------------------------------------------------------------------------------


def test_what_does_not_identify_the_groups_is_refused():
    y_pred, said, _ = planted(3000, 13)
    noise = np.random.default_rng(0).integers(0, 2, 3000)
    with pytest.raises(ValueError, match="fewer than three"):
        proxy_fairness(y_pred, said[:, :2])
    with pytest.raises(ValueError, match="proxy 3 tells the groups hardly apart"):
        proxy_fairness(y_pred, np.stack([said[:, 0], said[:, 1], noise], axis=1))
    with pytest.raises(ValueError, match="proxy 3 says 0 more often of group 1"):
        proxy_fairness(y_pred, np.stack([said[:, 0], said[:, 1], 1 - said[:, 2]], axis=1))
    with pytest.raises(ValueError, match="proxy 1 never says F"):
        proxy_fairness(y_pred, {"proxy 1": said[:, 0], "proxy 2": np.array(["F", "M"])[said[:, 1]], "c": said[:, 2]})


def test_an_asymmetric_proxy_is_used_and_named():
    lazy = np.array([[0.4, 0.6], [0.03, 0.97]])  # says 1 of most members of 0, and still tells them apart
    y_pred, said, _ = planted(50_000, 14, np.array([lazy, *THREE[1:]]))
    found = proxy_fairness(y_pred, said, n_boot=0)
    assert found.disparity == pytest.approx(0.2, abs=0.03)
    assert any("proxy 1 mostly says 1 of group 0" in warning for warning in found.warnings)


BAD = [
    ({"y_pred": [0, 1]}, "rows"),
    ({"y_pred": np.full(60, np.nan)}, "row 0 has no value"),
    ({"y_pred": np.linspace(0, 1, 60)}, "predicted classes, not scores"),
    ({"proxies": np.zeros((60, 3), dtype=int)}, "nothing to compare"),
    ({"proxies": np.full((60, 3), -1)}, "different values"),
    ({"proxies": np.random.default_rng(0).random((60, 3))}, "Give groups, not scores"),
    ({"proxies": np.zeros(60)}, "a column for each proxy"),
    ({"proxies": {}}, "no column"),
    ({"metric": "parity"}, "unknown. Choose one of"),
    ({"metric": "equalized_odds"}, "needs the true classes"),
    (
        {"metric": "equal_opportunity", "y_pred": ["a", "b"] * 30, "y_true": ["a", "b"] * 30},
        "which class is equal opportunity about",
    ),
    ({"level": 1.0}, "between 0 and 1"),
    ({"n_boot": -1}, "0 or more"),
    ({"clip": 0.7}, "less than 0.5"),
    ({"variant": "best"}, "unknown"),
    ({"transition": THREE, "variant": "local"}, "no use for known matrices"),
    ({"transition": THREE, "shared": True}, "no use for known matrices"),
    ({"transition": THREE[:2]}, "of shape"),
    ({"transition": -THREE}, "chances that sum to 1"),
    ({"transition": np.full((2, 2), 0.5)}, "hardly apart"),
    ({"transition": {"a": THREE[0]}}, "no matrix for proxy 1"),
    ({"transition": {"groups": ["x", "y"], "transition": {}}}, "of the groups x, y"),
]


@pytest.mark.parametrize(("change", "told"), BAD, ids=[told for _, told in BAD])
def test_bad_input_is_refused_with_what_to_do(change, told):
    y_pred, said, _ = planted(60, 0)
    with pytest.raises(ValueError, match=told):
        proxy_fairness(**{"y_pred": y_pred, "proxies": said, **change})


def test_local_is_refused_where_a_cell_tells_nothing():
    y_pred, said, _ = planted(3000, 15)
    said[y_pred == 1, 2] = np.random.default_rng(0).integers(0, 2, (y_pred == 1).sum())
    with pytest.raises(ValueError, match="where 1 is predicted"):
        proxy_fairness(y_pred, said, variant="local")


# The pieces -----------------------------------------------------------------------------------------------------------


def test_the_signal_is_1_for_proxies_that_never_err_and_0_for_noise():
    assert signal(np.eye(4)) == pytest.approx(1)
    assert signal(np.full((4, 4), 0.25)) == pytest.approx(0)
    assert signal(THREE[0]) == pytest.approx(np.linalg.det(THREE[0]))
    even = [np.full((G, G), 0.4 / G) + 0.6 * np.eye(G) for G in (2, 3, 6)]
    assert [signal(T) for T in even] == pytest.approx([0.6] * 3)  # as good, whatever the number of groups


def test_three_proxies_of_two_groups_cannot_be_tested_alone():
    table = count_proxies(*planted(500, 16)[:2])
    rng = np.random.default_rng(0)
    assert misfit(table, table.count_CKU[0].sum(axis=0)[None], rng) is None
    assert misfit(table, table.count_CKU[0], rng) is not None
    assert misfit(table, table.count_CKU[0], rng, apart=True) is None


def test_an_interval_of_gaps_that_do_not_stand_out_begins_at_0():
    rng = np.random.default_rng(0)
    gap_BJ = rng.normal(0.5, 1, (1000, 1))
    low, high = interval(np.array([0.5]), gap_BJ, np.abs(gap_BJ[:, 0]), 0.9)
    assert low == 0
    assert high == pytest.approx(2.2, abs=0.3)
    gap_BJ += 9.5
    low, high = interval(np.array([10.0]), gap_BJ, np.abs(gap_BJ[:, 0]), 0.9)
    assert low == pytest.approx(10 - 1.645, abs=0.2)


def test_calibrated_rates_of_hard_predictions_are_those_that_were_measured():
    y_pred, said, y_true, _ = with_labels(20_000, 1)
    for metric in ("demographic_parity", "equalized_odds", "equal_opportunity"):
        found = proxy_fairness(y_pred, said, y_true, metric=metric, variant="global", n_boot=0, clip=None)
        score_NK = np.eye(2)[y_pred][:, found.places[1]]
        gap = calibrated_gap(found, said, y_true)
        assert gap.rates(score_NK) == pytest.approx(found.rates_CGK[found.places[0]][..., found.places[1]], abs=1e-9)
        assert gap.loss(score_NK, "absolute") == pytest.approx(found.disparity, abs=1e-9)


@pytest.mark.parametrize("form", ["squared", "absolute"])
def test_the_gradient_of_the_penalty_is_that_of_small_steps(form):
    y_pred, said, y_true, _ = with_labels(4000, 2)
    found = proxy_fairness(y_pred, said, y_true, metric="equalized_odds", variant="global", n_boot=0)
    some = slice(0, 40)
    said[0, 1] = MISSING
    gap = calibrated_gap(found, said[some], y_true[some])
    scores = np.random.default_rng(0).random((40, 2))
    slopes, step = gap.gradient(scores, form), 1e-6
    for n, k in itertools.product((0, 3, 17), (0, 1)):
        moved = scores.copy()
        moved[n, k] += step
        assert (gap.loss(moved, form) - gap.loss(scores, form)) / step == pytest.approx(slopes[n, k], abs=1e-4)


def test_training_on_the_calibrated_gap_closes_the_true_one_and_on_the_naive_one_it_does_not():
    rng = np.random.default_rng(0)
    group_N = rng.choice(2, 8000, p=PRIOR)
    x_ND = np.c_[rng.normal(size=(8000, 2)) + [[1.5, 0]] * group_N[:, None], np.ones(8000)]
    y_true = (rng.random(8000) < 1 / (1 + np.exp(-x_ND @ [1.0, 1.0, -0.5]))).astype(int)
    said = np.stack([drawn(T[group_N], rng) for T in THREE], axis=1)
    found = proxy_fairness(y_true, said, n_boot=0)
    taken = proxy_fairness(y_true, said[:, :1], transition=[[1, 0], [0, 1]], n_boot=0)
    penalties = {"calibrated": calibrated_gap(found, said), "naive": calibrated_gap(taken, said[:, :1])}

    def gap_after(penalty, weight):
        def loss(w):
            score = 1 / (1 + np.exp(-x_ND @ w))
            log_loss = -np.mean(np.where(y_true == 1, np.log(score + 1e-12), np.log(1 - score + 1e-12)))
            by_score = penalty.gradient(score) * score * (1 - score)
            return log_loss + weight * penalty.loss(score), x_ND.T @ ((score - y_true) / 8000 + weight * by_score)

        score = 1 / (1 + np.exp(-x_ND @ minimize(loss, np.zeros(3), jac=True).x))
        return abs(score[group_N == 0].mean() - score[group_N == 1].mean())

    before = gap_after(penalties["calibrated"], 0)
    assert before > 0.2
    assert gap_after(penalties["calibrated"], 10) < before / 4
    assert gap_after(penalties["naive"], 10) > before / 2


def test_a_penalty_of_other_columns_or_of_nothing_learnt_is_refused():
    y_pred, said, y_true, _ = with_labels(3000, 3)
    found = proxy_fairness(y_pred, said, y_true, metric="equalized_odds", n_boot=0)
    with pytest.raises(ValueError, match="expected proxy 1"):
        calibrated_gap(found, said[:, :2], y_true)
    with pytest.raises(ValueError, match="needs the true classes"):
        calibrated_gap(found, said)
    with pytest.raises(ValueError, match="7 is none of"):
        calibrated_gap(found, np.full_like(said, 7), y_true)
    with pytest.raises(ValueError, match="one or several for each"):
        calibrated_gap(found, said, y_true).loss([0.5])
    with pytest.raises(ValueError, match="learns no matrices"):
        calibrated_gap(proxy_fairness(y_pred, said, variant="naive", n_boot=0), said)


# The command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    y_pred, said, y_true, _ = with_labels(4000, 4)
    words = np.array(["f", "m", ""])[said]
    words[::9, 1] = "?"
    frame = pd.DataFrame({"y": y_true, "y_hat": y_pred, **{f"p{m}": words[:, m] for m in range(4)}})
    frame.to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def command(*args):
    with pytest.raises(SystemExit) as stopped:
        main(["fair", "proxies", *map(str, args)])
    assert not stopped.value.code


ASKED = ["--pred", "y_hat", "--proxy", "p0", "--proxy", "p1", "--proxy", "p2", "--proxy", "p3", "--missing", "?"]


def test_the_command_writes_report_numbers_and_matrices_that_can_be_given_again(table, tmp_path):
    out, again = tmp_path / "out", tmp_path / "again"
    how = [*ASKED, "--label", "y", "--metric", "equalized_odds", "--boot", "30"]
    command(table, *how, "--out", out)
    told = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert told["interval"][0] < told["gap"] < told["interval"][1]
    assert max(told["naive"].values()) < told["gap"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "How the proxies err" in page
    assert "fairlearn, with proxies taken for truth" in page
    assert len(pd.read_csv(out / "rates.csv")) == 2 * 2 * 2
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["command"] == "fair proxies"
    how = [*ASKED, "--transition", str(out / "transition.json"), "--boot", "0"]
    command(table, *how, "--out", again)
    assert json.loads((again / "summary.json").read_text(encoding="utf-8"))["interval"] is None


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["--pred", "y_hat", "--proxy", "p9"], 'the column "p9" is missing'),
        (["--pred", "y_hat", "--proxy", "p0", "--proxy", "p0"], "named twice"),
        (["--pred", "y_hat", "--proxy", "p0", "--proxy", "p2"], "fewer than three"),
        ([*ASKED, "--metric", "equal_opportunity"], "needs the true classes: give --label, or"),
    ],
)
def test_the_command_says_what_is_wrong_and_writes_nothing(table, tmp_path, asked, told):
    options = {"pred": "y_hat", "proxy": []}
    options["proxy"] = [asked[i + 1] for i, word in enumerate(asked) if word == "--proxy"]
    if "--metric" in asked:
        options |= {"metric": "equal_opportunity", "missing": ["?"]}
    with pytest.raises(InputError, match=told):
        proxies.run(str(table), **options, out=tmp_path / "out", boot=0)
    assert not (tmp_path / "out").exists()


def test_more_than_two_classes_are_measured_without_fairlearns_table():
    rng = np.random.default_rng(0)
    T, p, H = random_model(2, 3, 0)
    group_N = rng.choice(2, 3000, p=p)
    y_pred = np.array(["no", "maybe", "yes"])[drawn(H[group_N], rng)]
    rows = pd.DataFrame({"y_hat": y_pred, **{f"p{m}": drawn(T[m][group_N], rng) for m in range(3)}})
    found = proxies.run(rows, pred="y_hat", proxy=["p0", "p1", "p2"], boot=10)
    assert found.fairlearn == {}
    assert found.found.classes == ["maybe", "no", "yes"]
