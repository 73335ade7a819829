"""The report of what a method found: one HTML page that needs nothing else, with no script and no outside address.

A method says what it found as sections of text, tables, figures and examples; nothing of it is taken for markup, apart
from the figures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from amends.report._page import environment
from amends.report._text import number

MOST_SHOWN = 600  # characters of a text in an example
Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """A table; its first column names the rows. A number is shown with three digits, None as missing."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""

    def is_text(self, column: int) -> bool:
        """Whether a column holds words alone, and no number."""
        return all(isinstance(row[column], str) for row in self.rows)


@dataclass(frozen=True)
class Chart:
    """A chart of `amends.report.plots` or `amends.report.grids`."""

    title: str
    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Example:
    """A row: what it says, what was done with it, and where it stands."""

    text: str
    what: str
    where: str


@dataclass(frozen=True)
class Section:
    """A part of the page, shown in this order: texts, charts, tables, examples."""

    title: str
    texts: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    examples: Sequence[Example] = ()


def render_findings(record: Mapping[str, Any], title: str, lead: str, sections: Sequence[Section]) -> str:
    """Render the page.

    Parameters
    ----------
    record : mapping
        run.json; its warnings stand at the top.
    title : str
        What was looked at.
    lead : str
        What came of it, in a sentence or two.

    Returns
    -------
    str : a whole page.
    """
    return (
        environment()
        .get_template("findings.html.jinja")
        .render(record=record, title=title, lead=lead, sections=sections, shown=_shown, svg=Markup, cut=_cut)
    )


def _shown(value: Cell) -> str:
    if value is None or value != value:
        return "missing"
    if isinstance(value, int):
        return f"{value:,}"
    return number(value) if isinstance(value, float) else value


def _cut(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
