import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from amends.maths.neighbors import nearest, unit

rng = np.random.default_rng(0)
POINTS = rng.normal(size=(300, 16))


def test_neighbours_are_those_of_scikit_learn():
    found = nearest(POINTS, 5)
    peer = NearestNeighbors(n_neighbors=6, metric="cosine", algorithm="brute").fit(POINTS)
    distance, index = peer.kneighbors(POINTS)
    assert (found.index_Qk == index[:, 1:]).all()
    assert found.similarity_Qk == pytest.approx(1 - distance[:, 1:], abs=1e-5)
    assert found.recall == 1


def test_neighbours_of_other_points_may_be_the_nearest_of_all():
    found = nearest(POINTS, 1, 3 * POINTS[:7])
    assert found.index_Qk[:, 0].tolist() == list(range(7))


def test_no_point_is_its_own_neighbour_even_among_equal_ones():
    points = np.concatenate([np.repeat(POINTS[:1], 8, axis=0), POINTS[1:20]])
    found = nearest(points, 3)
    assert (found.index_Qk != np.arange(len(points))[:, None]).all()
    assert found.index_Qk[:8].max() < 8
    assert found.similarity_Qk[:8] == pytest.approx(1, abs=1e-6)


def test_length_does_not_matter_and_order_only_renames():
    order = rng.permutation(len(POINTS))
    found = nearest(POINTS, 4)
    other = nearest((POINTS * rng.uniform(0.1, 10, (300, 1)))[order], 4)
    assert (order[other.index_Qk] == found.index_Qk[order]).all()


def test_a_graph_says_how_many_true_neighbours_it_found():
    exact, graph = nearest(POINTS, 5), nearest(POINTS, 5, approximate=True)
    shared = np.mean([np.isin(a, b).mean() for a, b in zip(graph.index_Qk, exact.index_Qk, strict=True)])
    assert graph.recall == pytest.approx((5 * shared + 1) / 6, abs=0.01)  # the point itself is always found
    assert graph.recall > 0.9


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([[1.0, np.nan], [1, 1]], "row 0"),
        ([[1.0, 1], [0, 0]], "row 1"),
        ([1.0, 2], "expected"),
        (np.empty((0, 3)), "expected"),
    ],
)
def test_points_without_a_direction_are_named(points, message):
    with pytest.raises(ValueError, match=message):
        unit(points)


@pytest.mark.parametrize("k", [0, 300])
def test_more_neighbours_than_points_are_refused(k):
    with pytest.raises(ValueError, match="expected 1 to 299"):
        nearest(POINTS, k)
