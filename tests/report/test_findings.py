from xml.etree import ElementTree

import numpy as np
import pytest

from amends.report.findings import Chart, Example, Section, Table, render_findings
from amends.report.grids import matrix, shares

HOSTILE = "<script>alert(1)</script>\u202e$x_1$"
RECORD = {"command": "curate ds2", "amends": "1", "created": "today", "warnings": [HOSTILE]}


def drawn(**other):
    how = {"name": "noise", "title": "Noise", "down": "truth", "across": "rating"} | other
    return matrix([[0.75, 0.25], [np.nan, 1.0]], ["a", HOSTILE], ["a", "b"], **how)


def page():
    table = Table((HOSTILE, "number", "share", "none"), [[HOSTILE, 12345, 0.25, None]], HOSTILE)
    section = Section(
        HOSTILE, [HOSTILE], [Chart(HOSTILE, drawn(), HOSTILE)], [table], [Example(HOSTILE, HOSTILE, HOSTILE)]
    )
    return render_findings(RECORD, HOSTILE, HOSTILE, [section, Section("Empty")])


def test_nothing_is_taken_for_markup_and_nothing_hides():
    text = page()
    assert "<script" not in text
    assert "\u202e" not in text
    assert text.count("&lt;script&gt;alert(1)") > 10
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_numbers_are_written_for_people_and_none_is_missing():
    text = page()
    for cell in ("12,345", "0.250", "missing"):
        assert f'<td class="number">{cell}</td>' in text


def test_long_texts_are_cut():
    text = render_findings(RECORD, "t", "l", [Section("s", examples=[Example("x" * 5000, "w", "here")])])
    assert "x" * 600 + "…" in text
    assert "x" * 601 not in text


def test_a_matrix_shows_its_numbers_and_leaves_what_is_missing_empty():
    root = ElementTree.fromstring(drawn())
    words = "".join(root.itertext())
    assert "0.75" in words and "0.25" in words and "1.00" in words
    assert "Rows are truth, columns rating" in words
    assert words.count("nan") == 1  # in the description alone
    whole = matrix([[12.0]], ["a"], ["b"], name="n", title="t", down="d", across="a", digits=0)
    assert "12" in [element.text for element in ElementTree.fromstring(whole).iter()]


def test_several_charts_of_a_page_share_no_id():
    ids = [
        {element.get("id") for element in ElementTree.fromstring(drawn(name=name)).iter() if element.get("id")}
        for name in ("one", "other")
    ]
    assert ids[0] and not ids[0] & ids[1]


def test_shares_of_levels_stand_side_by_side():
    svg = shares({"pool": [0.7, 0.3], HOSTILE: [0.1, 0.9]}, ["0", "1"], name="s", title="Shares", across="level")
    assert "pool: 0 0.70, 1 0.30" in svg
    assert "<script" not in svg


@pytest.mark.parametrize("make", [drawn, lambda: shares({"a": [1.0]}, ["0"], name="s", title="t", across="x")])
def test_a_chart_is_the_same_every_time(make):
    assert make() == make()
