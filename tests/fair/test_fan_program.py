import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from amends.fair._fan.program import (
    MOST_INTEGERS,
    Cells,
    Promises,
    _rounded,
    allowed_errors,
    least_abstention,
    least_caps,
    least_eps,
    least_gap,
    solve,
)
from amends.fair._fan.rules import assigned, cells_by_label
from amends.maths.disparity import NOTIONS

PARITY = "demographic_parity"


def drawn(rng, num_groups=2, num=40):
    """Groups, labels and base decisions of a few rows; every group has both labels."""
    z = np.concatenate([np.repeat(np.arange(num_groups), 2), rng.integers(0, num_groups, num - 2 * num_groups)])
    y = (rng.random(num) < rng.uniform(0.1, 0.9, num_groups)[z]).astype(int)
    y[: 2 * num_groups] = np.arange(2 * num_groups) % 2
    b = np.where(rng.random(num) < rng.uniform(0.02, 0.3, num_groups)[z], 1 - y, y)
    return z, y, b


def counted(z, y, b):
    row_GYB = np.zeros((z.max() + 1, 2, 2))
    np.add.at(row_GYB, (z, y, b), 1)
    error_G = (row_GYB[:, 0, 1] + row_GYB[:, 1, 0]) / row_GYB.sum(axis=(1, 2))
    return cells_by_label(row_GYB), error_G


def instance(seed, num_groups):
    rng = np.random.default_rng([seed, num_groups])
    z, y, b = drawn(rng, num_groups)
    cells, error_G = counted(z, y, b)
    sigma = (0.15, 1.0, 0.3) if seed % 4 == 0 else (1.0, 1.0, 1.0)
    eps, cap_G = rng.uniform(0, 0.2), rng.uniform(0, 0.4, num_groups)
    return z, y, cells, Promises(NOTIONS[seed % 3], eps, cap_G, error_G * (seed % 2 + 0.5), sigma)


def by_rows(z, y, promises):
    """Solve the program of the paper row by row, with w, h and k = w h; the least number of errors, or None."""
    n, rows, limits = len(y), [], []
    eye, none, all_rows = np.eye(n), np.zeros(n), np.ones(n, dtype=bool)

    def limit(k, w, most):
        rows.append(np.concatenate([w, np.zeros(n), k]))
        limits.append(most)

    for i in range(n):  # k <= w, k <= h, k >= w + h - 1
        for w, h, k, most in ((-1, 0, 1, 0), (0, -1, 1, 0), (1, 1, -1, 1)):
            rows.append(np.concatenate([w * eye[i], h * eye[i], k * eye[i]]))
            limits.append(most)
    parts = {PARITY: [all_rows], "equal_opportunity": [y == 1], "equalized_odds": [y == 1, y == 0]}
    pairs = [(i, j) for i in range(z.max() + 1) for j in range(z.max() + 1) if i != j]
    for i, j in pairs:
        for part in parts[promises.notion]:
            one, other = (z == i) & part, (z == j) & part
            limit(one / one.sum() - other / other.sum(), none, promises.eps)
        for part, sigma in zip((all_rows, y == 1, y == 0), promises.sigma, strict=True):
            one, other = (z == i) & part, (z == j) & part
            limit(none, one / one.sum() - other / other.sum(), sigma)
    for g in range(z.max() + 1):
        of = (z == g).astype(float)
        limit(none, -of, -(1 - promises.cap_G[g]) * of.sum())
        limit(of * (1 - 2 * y), of * y - promises.error_G[g] * of, 0)
    answer = milp(
        np.concatenate([y, none, 1 - 2 * y]),
        integrality=np.ones(3 * n),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(coo_array(np.array(rows)).tocsr(), -np.inf, np.array(limits)),
        options={"mip_rel_gap": 0.0},
    )
    return None if answer.x is None else round(float(answer.fun))


def errors(fate_R3):
    return fate_R3[0::2, 1].sum() + fate_R3[1::2, 0].sum()


def in_whole_rows(cells, promises):
    """The program's answer, None too where only parts of rows would do."""
    found = solve(cells, promises, whole=True)
    return found if found is not None and found.whole else None


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("num_groups", [2, 3])
def test_cells_lose_nothing_of_the_program_of_rows(seed, num_groups):
    z, y, cells, promises = instance(seed, num_groups)
    found, expected = in_whole_rows(cells, promises), by_rows(z, y, promises)
    assert (found is None) == (expected is None)
    assert found is None or errors(found.fate_R3) == expected


def test_the_random_instances_are_of_every_kind():
    """The test above says something of instances with an answer, with none, and with errors that cannot be avoided."""
    found = [in_whole_rows(*instance(seed, num)[2:]) for seed in range(12) for num in (2, 3)]
    kinds = ["none" if of is None else "errors" if errors(of.fate_R3) else "no errors" for of in found]
    assert {"none", "errors", "no errors"} == set(kinds)


def shares(seed):
    """Cells of label shares that are no whole rows, and promises of demographic parity."""
    rng, num_groups = np.random.default_rng(seed), 2 + seed % 3
    rate_G, size_G = rng.uniform(0.02, 0.98, num_groups), rng.uniform(50, 500, num_groups)
    row_GYB = np.zeros((num_groups, 2, 2))
    row_GYB[:, 0, 0], row_GYB[:, 1, 1] = (1 - rate_G) * size_G, rate_G * size_G
    error_G = rng.uniform(0, 0.4, num_groups)
    promises = Promises(PARITY, rng.uniform(0, 0.2), rng.uniform(0, 0.4, num_groups), error_G)
    return cells_by_label(row_GYB), rate_G, promises


def test_the_formula_of_feasibility_agrees_with_the_solver():
    answers = []
    for seed in range(100):
        cells, rate_G, promises = shares(seed)
        by_formula = bool((least_abstention(rate_G, promises.error_G, promises.eps) <= promises.cap_G).all())
        assert by_formula == (solve(cells, promises) is not None)
        answers.append(by_formula)
    assert 20 < sum(answers) < 80


@pytest.mark.parametrize("seed", range(15))
def test_the_least_abstention_and_gap_of_the_formula_are_those_of_the_program(seed):
    cells, rate_G, promises = shares(seed)
    caps_G = np.maximum(promises.cap_G, least_abstention(rate_G, promises.error_G, promises.eps))
    np.testing.assert_allclose(least_caps(cells, promises), caps_G, atol=1e-6)
    gap = least_gap(rate_G, promises.error_G, promises.cap_G)
    assert least_eps(cells, promises) == pytest.approx(gap, abs=1e-6)


def test_the_least_abstention_of_two_groups_is_that_of_the_closed_form():
    rate_G, error_G, eps = np.array([0.7, 0.25]), np.array([0.1, 0.15]), 0.03
    expected = 1 - (1 + eps + 0.15 - 0.7 + 0.25) / (1 - 0.1)
    np.testing.assert_allclose(least_abstention(rate_G, error_G, eps), [expected, 0])


def test_one_group_needs_no_abstention():
    assert least_abstention(np.array([0.4]), np.array([0.1]), 0.0) == 0
    assert least_gap(np.array([0.4]), np.array([0.1]), np.array([0.0])) == 0


@pytest.mark.parametrize("notion", ["equal_opportunity", "equalized_odds"])
@pytest.mark.parametrize("seed", range(4))
def test_labels_themselves_keep_the_other_notions_without_error_or_abstention(notion, seed):
    cells, error_G = counted(*drawn(np.random.default_rng(seed), 3))
    found = in_whole_rows(cells, Promises(notion, 0.0, np.zeros(3), 0 * error_G))
    assert errors(found.fate_R3) == 0
    assert found.fate_R3[:, 2].sum() == 0


def test_among_rules_without_error_no_right_decision_of_the_base_is_touched():
    cells, error_G = counted(*drawn(np.random.default_rng(0), 3))
    found = in_whole_rows(cells, Promises("equal_opportunity", 1.0, np.ones(3), error_G))
    right_R = np.where(np.arange(6) % 2, cells.base_R, cells.size_R - cells.base_R)
    np.testing.assert_array_equal(found.fate_R3[:, :2].sum(axis=1), right_R)


@pytest.mark.parametrize("seed", range(9))
def test_every_assignment_keeps_every_promise_and_rises_with_the_score(seed):
    rng = np.random.default_rng(seed)
    z, y, b = drawn(rng, 2, 300)
    cells, error_G = counted(z, y, b)
    notion = NOTIONS[seed % 3]
    caps_G = 0.2 + least_caps(cells, Promises(notion, 0.05, np.zeros(2), error_G, (0.2, 1.0, 1.0)))
    caps_G = np.minimum(caps_G, 1)
    found = in_whole_rows(cells, Promises(notion, 0.05, caps_G, error_G, (0.2, 1.0, 1.0)))
    score = np.where(b, rng.uniform(0.5, 1, 300), rng.uniform(0, 0.5, 300))
    fate = assigned(found.fate_R3, 2 * z + y, score, b == 1)
    rates = []
    for g in (0, 1):
        of = z == g
        rates.append([(fate[of & part] == 1).mean() for part in (y >= 0, y == 1, y == 0)])
        decided = of & (fate != 2)
        assert (fate[decided] != y[decided]).sum() <= error_G[g] * decided.sum() + 1e-9
        assert (fate[of] == 2).mean() <= caps_G[g] + 1e-9
        for label in (0, 1):
            inside = of & (y == label)
            place = np.array([0, 2, 1])[fate[inside]][np.argsort(score[inside])]
            assert (np.diff(place) >= 0).all()
    gap = np.abs(np.diff(rates, axis=0))[0]
    limited = {PARITY: [0], "equal_opportunity": [1], "equalized_odds": [1, 2]}[notion]
    assert (gap[limited] <= 0.05 + 1e-9).all()
    assert abs((fate[z == 0] == 2).mean() - (fate[z == 1] == 2).mean()) <= 0.2 + 1e-9


def test_limits_as_wide_as_the_base_keep_the_base():
    z, y, b = drawn(np.random.default_rng(3), 2, 200)
    cells, error_G = counted(z, y, b)
    gap = abs(np.diff(np.bincount(z, b) / np.bincount(z)))[0]
    found = solve(cells, Promises(PARITY, gap, np.zeros(2), error_G), "abstention", whole=True)
    np.testing.assert_array_equal(found.fate_R3[:, 1], cells.base_R)
    tighter = solve(cells, Promises(PARITY, gap - 0.02, np.ones(2), error_G), "abstention", whole=True)
    assert (tighter.fate_R3[:, 1] != cells.base_R).any()


def test_many_groups_are_rounded_to_whole_rows_and_miss_by_less_than_a_row_a_cell():
    cells, error_G = counted(*drawn(np.random.default_rng(0), 20, 8000))
    assert 2 * len(cells.size_R) > MOST_INTEGERS
    found = solve(cells, Promises("equalized_odds", 0.02, np.full(20, 0.2), error_G), whole=True)
    assert not found.whole
    np.testing.assert_array_equal(found.fate_R3, np.rint(found.fate_R3))
    np.testing.assert_array_equal(found.fate_R3.sum(axis=1), cells.size_R)
    assert (found.fate_R3[:, 2].reshape(20, 2).sum(axis=1) <= 0.2 * cells.size_G + 2).all()


def test_the_largest_remainder_keeps_sums_and_moves_no_number_by_one():
    rng = np.random.default_rng(0)
    size_R = rng.integers(1, 50, 200).astype(float)
    exact_R3 = rng.dirichlet(np.ones(3), 200) * size_R[:, None]
    whole_R3 = _rounded(exact_R3, size_R)
    np.testing.assert_array_equal(whole_R3.sum(axis=1), size_R)
    assert np.abs(whole_R3 - exact_R3).max() < 1


def test_slack_has_two_forms_that_agree_at_none():
    error_G = np.array([0.0, 0.2, 1.0])
    np.testing.assert_allclose(allowed_errors(error_G, 0.5 * np.ones(3), "relative"), [0, 0.3, 1])
    np.testing.assert_allclose(allowed_errors(error_G, 0.5 * np.ones(3), "toward_one"), [0.5, 0.6, 1])
    for form in ("relative", "toward_one"):
        np.testing.assert_allclose(allowed_errors(error_G, np.zeros(3), form), error_G)


def test_a_rule_that_knows_no_group_gives_groups_in_a_bin_the_same_chances():
    size_GR = np.array([[30.0, 10], [10, 30]])
    cells = Cells(size_GR, np.array([[9.0, 8], [3, 24]]), np.array([0.0, 40]), np.zeros(2))
    found = solve(cells, Promises(PARITY, 0.1, np.ones(2), np.ones(2)))
    rates = size_GR @ (found.fate_R3[:, 1] / 40) / 40
    assert abs(rates[0] - rates[1]) <= 0.1 + 1e-6
