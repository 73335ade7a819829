"""Charts of small tables: a matrix with its numbers, and shares of the same levels side by side."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.patches import Rectangle

from amends.report._draw import COLOURS, STYLE, TEXT, legend, name_axes, new_figure, svg
from amends.report._text import visible

DEEPEST = 0.6
"""Opacity of the largest entry: the number in it stands out on a white page and on a dark one."""
MOST_ACROSS = 30
"""Letters of all labels below bars above which they are turned."""


def matrix(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    name: str,
    title: str,
    down: str,
    across: str,
    digits: int = 2,
) -> str:
    """Draw a matrix as a heat map with its numbers; an entry is as deep as its share of the largest one of its row.

    Parameters
    ----------
    values : (rows, columns)
        Numbers from 0 up; NaN is left empty.
    name : str
        Of letters; stands before the ids inside, so that several charts fit one page.
    down, across : str
        What rows and columns are.

    Returns
    -------
    str : one svg element.
    """
    table = np.asarray(values, dtype=float)
    with mpl.rc_context(STYLE):
        figure, (axes,) = new_figure(1, 1.1 + 0.42 * len(rows))
        axes.grid(False)
        for (i, j), value in np.ndenumerate(table):
            if not np.isfinite(value):
                continue
            largest = np.nanmax(table[i])
            depth = DEEPEST * value / largest if largest > 0 else 0.0
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=COLOURS[0], alpha=depth, linewidth=0))
            size = 11 if len(columns) < 8 else 8
            axes.text(j, i, f"{value:,.{digits}f}", ha="center", va="center", color=TEXT, fontsize=size)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), [visible(label) for label in columns])
        axes.set_yticks(range(len(rows)), [visible(label) for label in rows])
        axes.tick_params(length=0)
        name_axes(axes, across, down)
        told = "; ".join(
            f"{rows[i]}: " + ", ".join(f"{columns[j]} {table[i, j]:.{digits}f}" for j in range(len(columns)))
            for i in range(len(rows))
        )
        return svg(figure, name, title, f"Rows are {down}, columns {across}. {told}.")


def shares(
    of: Mapping[str, Sequence[float]],
    labels: Sequence[str],
    *,
    name: str,
    title: str,
    across: str,
    up: str = "share of rows",
) -> str:
    """Draw shares of the same levels in several sets of rows, as bars beside each other.

    Parameters
    ----------
    of : mapping
        Set to its shares, one a label.
    name : str
        As in `matrix`.

    Returns
    -------
    str : one svg element.
    """
    with mpl.rc_context(STYLE):
        figure, (axes,) = new_figure(1, 3.4, len(of))
        width = 0.8 / len(of)
        for k, values in enumerate(of.values()):
            axes.bar(np.arange(len(labels)) + (k - (len(of) - 1) / 2) * width, values, width, color=COLOURS[k % 6])
        axes.set_xticks(range(len(labels)), [visible(label) for label in labels])
        name_axes(axes, across, up)
        if sum(map(len, labels)) > MOST_ACROSS:
            axes.tick_params(axis="x", rotation=30)
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("right")
        legend(axes, list(of))
        told = "; ".join(
            f"{one}: " + ", ".join(f"{label} {value:.2f}" for label, value in zip(labels, values, strict=True))
            for one, values in of.items()
        )
        return svg(figure, name, title, f"{told}.")
