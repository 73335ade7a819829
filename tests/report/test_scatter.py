"""Points in sets, drawn over each other."""

from xml.etree import ElementTree

import numpy as np

from amends.report.scatter import MOST_DRAWN, scatter


def drawn(svg):
    return [element for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}use")]


def test_every_point_is_drawn_and_of_very_many_a_part():
    x = np.linspace(-1, 1, 100)
    empty = len(drawn(scatter("a", {}, ("across", "up"), "Title", "Told.")))
    few = len(drawn(scatter("a", {"pool": (x, x)}, ("across", "up"), "Title", "Told.")))
    two = len(drawn(scatter("a", {"pool": (x, x), "asked": (x[:9], x[:9])}, ("across", "up"), "Title", "Told.")))
    assert 100 <= few - empty <= 110
    assert 9 <= two - few <= 15
    many = np.linspace(-1, 1, 10**5)
    assert len(drawn(scatter("a", {"pool": (many, many)}, ("across", "up"), "Title", "Told."))) <= MOST_DRAWN + 60


def test_a_set_may_be_empty_and_names_are_not_taken_for_markup():
    svg = scatter("a", {"<b>": (np.zeros(3), np.ones(3)), "$x$": ([], [])}, ("across", "up"), "T & t", "Told.")
    assert "<b>" not in svg
    assert "T &amp; t" in svg
    assert "$x$" in svg
