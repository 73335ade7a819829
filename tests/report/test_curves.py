import warnings
from xml.etree import ElementTree

import numpy as np
import pytest

from amends.report.curves import curves, pairs

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert(1)</script>\u202e$x_1$"
X = np.linspace(0, 1, 6)
HOW = {"across": "delta", "up": "accuracy", "title": "A chart"}


def paths(svg):
    """Lines and bands by the colour they have."""
    return [e for e in ElementTree.fromstring(svg).iter(f"{SVG}path") if e.get("style")]


def line(svg, colour):
    return next(p for p in paths(svg) if f"stroke: {colour}" in p.get("style") and "stroke-width: 2" in p.get("style"))


def test_a_chart_names_itself_and_tells_the_ends_of_each_curve():
    svg = curves({"plain": (X, 1 - X / 2), "robust": (X, 0.8 - X / 10)}, **HOW)
    root = ElementTree.fromstring(svg)
    assert root[0].text == "A chart"
    assert "plain: 1 at delta 0, 0.5 at 1, all from 0.5 to 1" in root[1].text
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"plain", "robust", "delta", "accuracy"} <= set(texts)


def test_points_are_drawn_where_they_are():
    svg = curves({"up": ([0, 1, 2], [0, 1, 0])}, **HOW)
    numbers = [float(part) for part in line(svg, "#3a84c4").get("d").replace("M", "").replace("L", "").split()]
    x, y = numbers[::2], numbers[1::2]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=1e-5) and x[1] > x[0]
    assert y[0] == y[2] > y[1]  # downwards in SVG


def test_the_order_of_the_points_does_not_matter():
    turned = np.array([3, 0, 5, 1, 4, 2])
    assert curves({"a": (X, X**2)}, **HOW) == curves({"a": (X[turned], (X**2)[turned])}, **HOW)


def test_a_band_is_drawn_around_its_curve_only_if_given():
    plain, band = curves({"a": (X, X)}, **HOW), curves({"a": (X, X, X - 0.1, X + 0.1)}, **HOW)
    assert [svg.count("fill-opacity: 0.18") for svg in (plain, band)] == [0, 1]


def test_a_value_that_is_missing_leaves_a_gap():
    whole, gap = (curves({"a": ([0, 1, 2, 3, 4], [0, 1, y, 3, 4])}, **HOW) for y in (2, np.nan))
    assert line(whole, "#3a84c4").get("d").count("M") == 1
    assert line(gap, "#3a84c4").get("d").count("M") == 2
    assert "a: no value" in curves({"a": ([0, 1], [np.nan, np.inf])}, **HOW)


def test_levels_and_places_are_dotted_and_told():
    svg = curves({"a": (X, X)}, levels={"before": 0.4}, places={"chosen": 0.2}, **HOW)
    assert "dotted across: before, 0.4" in svg and "dotted up: chosen, 0.2" in svg


def test_a_logarithmic_axis_leaves_out_what_it_cannot_show():
    svg = curves({"a": ([0, 1, 10, 100], [9, 1, 2, 3])}, log=True, **HOW)
    assert "a: 1 at delta 1," in svg


def test_no_two_of_many_curves_look_the_same():
    svg = curves({str(k): (X, X + k) for k in range(12)}, **HOW)
    looks = {
        (p.get("style").split("stroke: #")[1][:6], "".join(s for s in p.get("style").split(";") if "dasharray" in s))
        for p in paths(svg)
        if "stroke-width: 2" in p.get("style")
    }
    assert len(looks) == 12


def test_hostile_names_are_text_and_charts_share_no_id_and_are_the_same_every_time():
    made = [curves({HOSTILE: (X, X)}, **HOW | {"across": HOSTILE, "title": HOSTILE}, name=n) for n in ("one", "two")]
    assert made[0] == curves({HOSTILE: (X, X)}, **HOW | {"across": HOSTILE, "title": HOSTILE}, name="one")
    assert "<script" not in made[0] and "\u202e" not in made[0]
    ids = [{e.get("id") for e in ElementTree.fromstring(svg).iter() if e.get("id")} for svg in made]
    assert ids[0] and not ids[0] & ids[1]


@pytest.mark.parametrize("of", [{}, {"a": ([], [])}, {"a": ([1], [1])}, {"a": (range(500), range(500))}])
def test_few_and_many_points_can_be_drawn(of):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ElementTree.fromstring(curves(of, **HOW))


@pytest.mark.parametrize("values", [([1, 2],), ([1, 2], [1]), ([1, 2], [1, 2], [0, 1]), ([[1]], [[1]])])
def test_arrays_that_do_not_go_together_are_refused(values):
    with pytest.raises(ValueError, match='curve "a": expected'):
        curves({"a": values}, **HOW)


def test_pairs_lie_beside_the_line_on_which_they_are_equal():
    svg = pairs({"refits": ([0, 1, 2, np.nan], [0, 1, 3, 1])}, across="predicted", up="actual", title="A chart")
    root = ElementTree.fromstring(svg)
    assert "refits: 3 pairs, at most 1 apart" in root[1].text
    assert len([use for use in root.iter(f"{SVG}use") if "#3a84c4" in (use.get("style") or "")]) >= 3
    assert "no value" not in pairs({"none": ([], [])}, across="x", up="y", title="A chart")
    with pytest.raises(ValueError, match="one length"):
        pairs({"odd": ([0, 1], [0])}, across="x", up="y", title="A chart")
