import numpy as np
import pytest

from amends.maths.disparity import NOTIONS, disparity

rng = np.random.default_rng(0)
N = 60
GROUP, LABEL = rng.integers(0, 3, N), rng.integers(0, 2, N)
SCORE = rng.random((N, 2))


@pytest.mark.parametrize("notion", NOTIONS)
@pytest.mark.parametrize("form", ["squared", "absolute"])
@pytest.mark.parametrize("score", [SCORE, SCORE[:, 0]], ids=["two", "one"])
def test_the_gradient_is_that_of_finite_differences(notion, form, score):
    found = disparity(GROUP, LABEL, notion)
    slope = found.gradient(score, form)
    step = 1e-6
    for place in np.ndindex(score.shape):
        moved = [score.copy(), score.copy()]
        moved[0][place] += step
        moved[1][place] -= step
        expected = (found.loss(moved[0], form) - found.loss(moved[1], form)) / (2 * step)
        assert slope[place] == pytest.approx(expected, abs=1e-9)


def test_two_groups_have_the_difference_of_their_means():
    group = GROUP % 2
    rows = [SCORE[(group == g) & (LABEL == 1), 0].mean() for g in (0, 1)]
    assert disparity(group, LABEL, "equal_opportunity").gaps(SCORE[:, 0]).item() == pytest.approx(rows[0] - rows[1])
    found = disparity(group, LABEL, "equalized_odds").gaps(SCORE[:, 0])
    assert found.shape == (2, 1, 1)
    assert found[1].item() == pytest.approx(rows[0] - rows[1])


@pytest.mark.parametrize("notion", NOTIONS)
def test_names_of_groups_and_order_of_rows_change_nothing(notion):
    order = rng.permutation(N)
    expected = disparity(GROUP, LABEL, notion).loss(SCORE)
    assert disparity(2 - GROUP[order], LABEL[order], notion).loss(SCORE[order]) == pytest.approx(expected)


def test_one_group_has_no_gap():
    found = disparity(np.zeros(N, int))
    assert found.loss(SCORE) == found.loss(SCORE, "absolute") == 0
    assert not found.gradient(SCORE, "absolute").any()


def test_what_cannot_be_told_is_refused():
    with pytest.raises(ValueError, match="group 2 has no row with label 1"):
        disparity(GROUP, np.where(GROUP == 2, 0, LABEL), "equal_opportunity")
    with pytest.raises(ValueError, match="needs labels"):
        disparity(GROUP, notion="equalized_odds")
    with pytest.raises(ValueError, match="Choose one of"):
        disparity(GROUP, LABEL, "parity")
    with pytest.raises(ValueError, match="for each of 60 rows"):
        disparity(GROUP).loss(SCORE[:5])
