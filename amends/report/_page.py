"""What the pages share: templates in which nothing is taken for markup, and how data sets and answers are shown."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from amends.report._text import visible

OPEN_ANSWERS = 12  # shown without a click, of each set
MOST_ANSWERS = 400  # shown at all, of each set
DATA_SETS = {
    "forget": "To forget",
    "retain": "To keep, used in training",
    "neighbours": "Questions on others, answered by the model itself",
    "retain_eval": "To be answered as before, asked only",
    "real_authors": "Real authors, asked only",
    "world_facts": "World facts, asked only",
    "forget_eval": "Like those to forget, not trained on",
    "holdout": "Like those to forget, never seen by a model (holdout)",
}


def environment() -> jinja2.Environment:
    """Templates that escape everything and stop at an unknown name."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["line"] = lambda value: visible(value) if str(value) else "(empty)"
    made.filters["text"] = text
    made.filters["unbroken"] = unbroken
    return made


def unbroken(value: str) -> Markup:
    """Keep a sign on the line of the word before it."""
    return Markup(re.sub(r" (?=[%↑↓])", "&nbsp;", str(escape(value))))


def text(value: object) -> str:
    """Show a text of one or more lines; an empty one is named."""
    shown = visible("" if value is None else value, lines=True)
    return shown if shown.strip() else "(empty)"


def dataset(name: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what run.json says of a data set, with every part there."""
    dropped = about.get("dropped")
    rows = [row if isinstance(row, dict) else {} for row in dropped] if isinstance(dropped, list) else []
    return {
        "name": DATA_SETS.get(name, name),
        "path": about.get("path") or "given in memory",
        "rows": about.get("rows", "?"),
        "kept": about.get("kept", "?"),
        "dropped": [(row.get("where", "?"), row.get("reason", "no reason recorded")) for row in rows],
        "sha256": about.get("sha256", "not recorded"),
    }
