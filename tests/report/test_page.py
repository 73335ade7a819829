"""What all pages share."""

import pytest

from amends.report._page import environment

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
