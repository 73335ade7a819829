import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from amends.report._draw import COLOURS, look
from amends.report.curves import curves, pairs
from amends.report.grids import matrix, shares
from amends.report.plots import (
    Point,
    Span,
    histograms,
    history,
    quality_against_utility,
    relearning,
    scores_by_variant,
    spans,
    truth_ratio_distributions,
)
from amends.report.scatter import scatter

ROWS = [{"step": k, "v_f": 0.9**k, "v_e": 1 - 0.9**k, "weight_e": 1.0, "weight_f": 0.8**k} for k in range(1, 30)]
CHARTS = {
    "quality": lambda: quality_against_utility([Point("before", 0.6, 1e-40, (0.5, 0.7)), Point("after", 0.4, 0.3)]),
    "truth": lambda: truth_ratio_distributions({"before": [0.1, 0.2], "after": [0.0, 1.5, 2.0]}),
    "history": lambda: history(ROWS),
}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(params=CHARTS)
def chart(request):
    return CHARTS[request.param]


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_a_chart_is_well_formed_and_names_itself(chart):
    root = ElementTree.fromstring(chart())
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img" and root.get("viewBox") and root.get("width") == "100%"
    assert [child.tag for child in root][:2] == [f"{SVG}title", f"{SVG}desc"]
    assert root.get("aria-labelledby") == f"{root[0].get('id')} {root[1].get('id')}"
    assert root[1].text


def test_a_chart_has_the_same_bytes_every_time(chart):
    assert chart() == chart()


def test_a_chart_has_no_prolog_metadata_date_or_script(chart):
    svg = chart()
    assert svg.startswith("<svg ")
    for word in ("<?xml", "<!DOCTYPE", "metadata", "dc:date", "<script", "<style", "<image", "Matplotlib"):
        assert word not in svg


def test_ids_of_different_charts_do_not_meet():
    ids = [e.get("id") for make in CHARTS.values() for e in ElementTree.fromstring(make()).iter() if e.get("id")]
    assert len(ids) == len(set(ids))


def test_text_takes_the_colour_of_the_page_and_is_large_enough(chart):
    styles = [element.get("style") for element in ElementTree.fromstring(chart()).iter(f"{SVG}text")]
    assert styles and all("currentColor" in style and "12px" in style for style in styles)


def luminance(colour):
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("page", ["#ffffff", "#1b1f23"])
@pytest.mark.parametrize("colour", COLOURS)
def test_every_line_stands_out_on_light_and_dark(colour, page):
    light, dark = sorted((luminance(colour), luminance(page)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3


@pytest.mark.parametrize("name", ["<b>&\"'", "$x^{2$", "漢字 مرحبا", "\x00\x1b\u202e", "_hidden", "a" * 500])
def test_any_name_can_stand_in_a_legend(name):
    for svg in (quality_against_utility([Point(name, 0.5, 0.5)]), truth_ratio_distributions({name: [1.0]})):
        ElementTree.fromstring(svg)
        assert len(texts(svg)) == len(texts(svg.replace("no such", "")))
    assert any(text.startswith(name[:3]) for text in texts(svg) if text) or not name.isprintable()


FORMULA = "price_$\\foo$ \x01"  # no formula of matplotlib's, and a sign that XML does not have
DRAWN = {
    "quality": lambda name: quality_against_utility([Point(name, 0.5, 0.5)], up=name, across=name),
    "histograms": lambda name: histograms("h", np.arange(3.0), {name: np.ones(2)}, (name, name), "t", "t"),
    "relearning": lambda name: relearning({name: ([0, 1], [0, 1])}, None, across=name, up=name, title="t", name="r"),
    "spans": lambda name: spans({name: {name: Span(0.5, 0.4, 0.6)}}, {}),
    "variants": lambda name: scores_by_variant({name: {name: 0.5}}),
    "scatter": lambda name: scatter("s", {name: ([1], [2])}, (name, name), "t", "t"),
    "matrix": lambda name: matrix([[1.0]], [name], [name], name="m", title="t", down=name, across=name),
    "shares": lambda name: shares({name: [1.0]}, [name], name="s", title="t", across=name, up=name),
    "curves": lambda name: curves({name: ([1, 2], [1, 2])}, across=name, up=name, title="t"),
    "pairs": lambda name: pairs({name: ([1, 2], [1, 2])}, across=name, up=name, title="t"),
}


@pytest.mark.parametrize("chart", DRAWN)
def test_no_name_in_a_chart_is_read_as_a_formula(chart):
    said = [text for text in texts(DRAWN[chart](FORMULA)) if text and "foo" in text]
    assert said and {text.replace(" ", "_") for text in said} == {"price_$\\foo$_\u2401"}


def test_long_names_of_two_runs_stay_two_names_in_a_legend():
    names = ["FLAT (kl) with retain data and neighbours", "FLAT (kl) with retain data and neighbours, run 2"]
    shown = [t for t in texts(quality_against_utility([Point(n, 0.5, 0.5) for n in names])) if t and "FLAT" in t]
    assert len(set(shown)) == 2 and all(len(text) <= 28 for text in shown) and shown[1].endswith(", run 2")


def test_of_many_things_in_a_chart_no_two_look_the_same():
    for parts in ((0, 1), (0, 2)):
        assert len({tuple(look(k)[part] for part in parts) for k in range(36)}) == 36
    svg = quality_against_utility([Point(f"run {k}", 0.5, 0.5) for k in range(12)])
    marks = re.findall(r'<use [^>]*href="(#[^"]*)"[^>]*style="fill: (#\w+)', svg)
    assert len(set(marks)) >= 12


def test_without_a_test_forgetting_is_a_share_on_a_plain_axis():
    points = [Point("after", 0.6, 0.9, (0.5, 0.7), (0.8, 0.95))]
    svg = quality_against_utility(points, up="1 - ROUGE-L", across="everyday", log=False)
    assert {"1 - ROUGE-L", "everyday", "0.2", "1.0"} <= set(texts(svg))
    assert "after: everyday 0.600, 1 - ROUGE-L 0.9." in svg and "p = 0.05" not in svg


def test_history_of_gradient_ascent_has_one_panel_and_one_line():
    svg = history([{"step": 1, "loss": -1.0, "v_f": 0.9}, {"step": 2, "loss": -2.0, "v_f": 0.4}])
    assert "v_f, answers to forget" in svg and "v_e" not in svg and "axes_2" not in svg
    assert "axes_2" in history(ROWS)


@pytest.mark.parametrize("rows", [[], [{"step": 1, "v_f": None}], [{"step": 1, "v_f": 0.5}], [{"v_f": 0.5}]])
def test_short_or_empty_histories_can_be_drawn(rows):
    ElementTree.fromstring(history(rows))


@pytest.mark.parametrize("values", [[], [0.0], [0.0, math.inf], [1e-300, 1e300], [1.0]])
def test_odd_truth_ratios_can_be_drawn(values):
    ElementTree.fromstring(truth_ratio_distributions({"after": values}))
