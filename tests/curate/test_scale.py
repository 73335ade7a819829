"""Methods in parts: any number of parts gives what one part gives."""

from itertools import pairwise

import numpy as np
import pytest

from amends.curate import ConfidentLearning, DeepKNN, ScoreCurator, SimiFeat, ds2_on_ray
from amends.curate._pools.scale import Here, highest, parts_of
from amends.io.errors import InputError
from amends.maths.neighbors import TILE
from amends.maths.ranks import Valued

from .planted import planted

WORLD = planted(0.05, num_rows=1500)
FEW = {"rounds": 10, "draws": 11, "bootstrap": 4}


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of which there are several in a test."""
    for module in ("scale", "lists"):
        monkeypatch.setattr(f"amends.curate._pools.{module}.TILE", 250)


@pytest.mark.parametrize(("num_rows", "num_parts"), [(1, 1), (TILE, 3), (TILE + 1, 2), (10 * TILE - 1, 3)])
def test_parts_are_whole_tiles_and_together_all_rows(num_rows, num_parts):
    parts = parts_of(num_rows, num_parts)
    assert len(parts) == min(num_parts, -(-num_rows // TILE))
    assert [row for part in parts for row in (part.start, part.stop)] == sorted(
        [0, num_rows, *2 * [part.start for part in parts[1:]]]
    )
    assert all(part.start % TILE == 0 for part in parts)
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= TILE


def test_ratings_mended_in_parts_are_those_mended_at_once(small_tiles):
    points = WORLD.points.copy()
    points[[3, 700]] = 0
    points[900:940] = points[:40]  # twins that lie in another part
    groups = np.arange(1500) // 3
    whole, parts = (ScoreCurator(**FEW).fit(points, WORLD.ratings, groups, Here(num)) for num in (1, 4))
    for name in ("counts_", "error_prob_", "suggested_", "confidence_", "curated_", "long_tail_"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    # Counts are equal to the bit. A fit to them hangs in its last digits on how arrays lie in memory: 1e-9 was seen.
    assert parts.transition_.matrix_KK == pytest.approx(whole.transition_.matrix_KK, abs=1e-6)
    assert parts.num_twins_ == whole.num_twins_ > 0 < whole.num_siblings_ == parts.num_siblings_
    assert (whole.curated_ != WORLD.ratings).any()


@pytest.mark.parametrize(
    "made", [SimiFeat(random_state=0), SimiFeat("rank", random_state=0), DeepKNN(), ConfidentLearning(random_state=0)]
)
def test_labels_judged_in_parts_are_judged_as_at_once(small_tiles, made):
    found = []
    for num_parts in (1, 4):
        made.fit(WORLD.points, WORLD.ratings, workers=Here(num_parts))
        found.append([getattr(made, f"{name}_").copy() for name in ("noise_score", "flag", "suggested", "posterior")])
    for whole, parts in zip(*found, strict=True):
        np.testing.assert_array_equal(parts, whole)
    assert found[0][1].any()


def test_thresholds_and_joint_counts_of_parts_add_up(small_tiles):
    made = ConfidentLearning(random_state=0).fit(WORLD.points, WORLD.ratings, Here(4))
    own = made.posterior_[np.arange(1500), WORLD.ratings]
    assert made.thresholds_ == pytest.approx([own[WORLD.ratings == label].mean() for label in range(6)])
    off_diagonal = made.confident_joint_ * (1 - np.eye(6))
    assert off_diagonal.sum() == made.flag_.sum() > 0
    for label in range(6):
        flagged = made.flag_ & (WORLD.ratings == label)
        counts = np.bincount(made.suggested_[flagged].astype(int), minlength=6)
        assert (off_diagonal[label] == counts).all()


def test_the_highest_scores_are_found_in_parts_as_in_the_whole():
    scores = np.random.default_rng(0).normal(size=1000).round(1).astype(np.float32)  # many are equal
    groups = np.arange(1000) % 3
    bounds = [0, 10, 400, 400, 1000]
    parts = [Valued(scores[a:b], groups[a:b]) for a, b in pairwise(bounds)]
    (whole,) = highest(Here(), [Valued(scores, groups)], np.array([200, 0, 333]))
    assert (np.concatenate(highest(Here(4), parts, np.array([200, 0, 333]))) == whole).all()
    assert [int(whole[groups == group].sum()) for group in range(3)] == [200, 0, 333]


def test_a_row_that_is_seldom_drawn_is_seldom_mended_so_draws_are_not_held_to_a_number_of_rows():
    """A sixth of the rows is 50,000 of 300,000, the source's draw."""
    world = planted(0.095, num_rows=3000)
    error, mended = {}, {}
    for name, made in {"ours": ScoreCurator(bootstrap=4), "sixth": ScoreCurator(most_drawn=500, bootstrap=4)}.items():
        made.fit(world.points, world.ratings)
        error[name] = (made.curated_ != world.truth).mean()
        mended[name] = (made.curated_ != world.ratings).mean()
    raw = (world.ratings != world.truth).mean()
    assert mended["sixth"] < 0.75 * mended["ours"]
    assert error["ours"] < 0.5 * raw
    assert error["sixth"] > error["ours"] + 0.05


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("amends.io.errors.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"ray\[data\] is not installed.*amends\[ray\]"):
        ds2_on_ray(None, ScoreCurator(), rating="score", embedding="vector")
