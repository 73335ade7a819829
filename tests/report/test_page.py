"""What all pages share."""

import re

import pytest

from amends.report._page import environment
from amends.report._text import percent

PAGES = ["assessment", "audit", "findings", "tokens", "unlearning"]
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def source(name):
    templates = environment()
    return templates.loader.get_source(templates, name)[0]


def test_every_page_is_built_on_the_same_base():
    names = [name for name in environment().list_templates(extensions=["jinja"]) if name.endswith(".html.jinja")]
    assert names == sorted(f"{name}.html.jinja" for name in [*PAGES, "base", "parts"])
    for name in PAGES:
        assert source(f"{name}.html.jinja").startswith('{% extends "base.html.jinja" %}\n')


@pytest.mark.parametrize("page", ["base", *PAGES])
def test_no_page_changes_what_it_may_load(page):
    """The policy stands in no block, before all that a page adds; no other template speaks of one."""
    head, _, rest = source(f"{page}.html.jinja").partition("{% block")
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
    assert head.count("http-equiv") == head.count(policy) == (page == "base")
    assert "http-equiv" not in rest and "<script" not in head + rest


@pytest.mark.parametrize("page", PAGES)
def test_every_page_has_the_shared_style_a_skip_link_and_names_for_what_scrolls(page):
    text = source(f"{page}.html.jinja")
    assert "{% block style %}" not in text or "{% block style %}\n{{ super() }}\n" in text
    assert '<a class="skip" href="#main">' in text and '<main id="main" tabindex="-1">' in text
    scrolling = re.findall(r"<[^>]*tabindex=\"0\"[^>]*>", text)
    assert all('role="region"' in tag and re.search(r' aria-label(ledby)?="[^"]', tag) for tag in scrolling)
    named = set(re.findall(r'aria-labelledby="([a-z]+)"', text))
    assert named <= set(re.findall(r' id="([a-z]+)"', text))
    assert "@media print" in source("style.css.jinja")


@pytest.mark.parametrize(
    ("share", "said"),
    [(0, "0 %"), (0.004, "under 1 %"), (0.005, "under 1 %"), (0.0051, "1 %"), (0.995, "over 99 %"), (1, "100 %")],
)
def test_a_share_that_is_not_quite_none_or_all_is_not_written_as_if_it_were(share, said):
    assert percent(share) == said
