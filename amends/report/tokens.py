"""The report of a token cleaning: one HTML page with no script and no address outside itself."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from amends.report._page import environment
from amends.report._text import number, visible
from amends.report.plots import histograms

BINS = 40
Run = tuple[bool, str]
"""Tokens that stand beside each other and have the same fate: whether they are kept, and their text."""


class Example(NamedTuple):
    """An answer as it is shown."""

    where: str
    question: str
    runs: Sequence[Run]
    kept: int
    tokens: int
    more: int
    """Tokens that are left out at the end."""


def render_tokens(
    record: Mapping[str, Any],
    summary: Mapping[str, Any],
    examples: Sequence[Example],
    scores: Mapping[str, np.ndarray],
) -> str:
    """Render the page.

    Parameters
    ----------
    record : mapping
        run.json.
    summary : mapping
        summary.json.
    examples : sequence of Example
    scores : mapping
        "kept" and "dropped" to the scores of these tokens, nats; not both empty.

    Returns
    -------
    str : a whole page. Nothing in it is taken for markup.
    """
    return (
        environment()
        .get_template("tokens.html.jinja")
        .render(
            record=record,
            summary=summary,
            examples=examples,
            chart=Markup(score_histogram(scores)),
            shown=lambda value: "missing" if value is None or value != value else number(value),
            share=lambda part, whole: f"{100 * part / whole:.1f} %" if whole else "missing",
            run=lambda text: visible(text, lines=True).replace("\n", "\u21b5\n"),
            token=lambda text: visible(text).replace(" ", "\u2423") or "(nothing)",
        )
    )


def score_histogram(scores: Mapping[str, np.ndarray]) -> str:
    """Draw the scores of tokens by what became of them; what is beyond the axis stands in its outermost bins.

    Parameters
    ----------
    scores : mapping
        Name of the set to scores in nats; not all sets empty. The axis reaches from the 1st to the 99th percentile.

    Returns
    -------
    str : one svg element.
    """
    scores = {name: of[np.isfinite(of)] for name, of in scores.items()}
    everything = np.concatenate(list(scores.values()))
    low, high = np.percentile(everything, [1, 99])
    edges = np.linspace(low, high, BINS + 1) if high > low else np.linspace(low - 1, low + 1, BINS + 1)
    ends = edges[0], edges[-1]
    shares = {name: np.histogram(np.clip(of, *ends), edges)[0] / everything.size for name, of in scores.items()}
    told = "; ".join(f"{name}: {v.size} tokens, median {np.median(v):.2f}" for name, v in scores.items() if v.size)
    return histograms(
        "scores", edges, shares, ("score, nats", "share of all scored tokens"), "Scores of the tokens", f"{told}."
    )
