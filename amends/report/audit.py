"""The report of an audit: one HTML page that needs nothing else, with no script and no address outside itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from amends.report._page import environment
from amends.report._text import number, percent
from amends.report.plots import rank_histogram

OPEN_RECORDS = 20  # shown in full


def render_audit(
    record: Mapping[str, Any],
    summary: Mapping[str, Mapping[str, Any]],
    records: Sequence[tuple[str, str, str]],
    ranks: Mapping[str, Sequence[float]],
) -> str:
    """Render the page.

    Parameters
    ----------
    record : mapping
        run.json.
    summary : mapping
        summary.json.
    records : sequence of (where, question, answer)
        Most memorised first; the first `OPEN_RECORDS` are shown.
    ranks : mapping
        Combined ranks of the records, and of the holdout if there is one.

    Returns
    -------
    str : a whole page. Nothing in it is taken for markup.
    """
    return (
        environment()
        .get_template("audit.html.jinja")
        .render(
            record=record,
            summary=summary,
            records=records[:OPEN_RECORDS],
            num_records=len(ranks["records"]),
            chart=Markup(rank_histogram(ranks)),
            percent=percent,
            shown=lambda value: "missing" if value is None or value != value else number(value),
        )
    )
