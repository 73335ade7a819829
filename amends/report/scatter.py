"""A chart of points in sets, such as what rows do to two quantities at once."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from numpy.typing import ArrayLike

from amends.report._draw import FAINT, STYLE, legend, look, name_axes, new_figure, svg

MOST_DRAWN = 1500
"""Points of a set that are drawn; of more, every so many-th, so that the page stays small."""


def scatter(
    prefix: str, points: Mapping[str, tuple[ArrayLike, ArrayLike]], names: tuple[str, str], title: str, told: str
) -> str:
    """Draw sets of points over each other, the last on top, with lines through zero.

    Parameters
    ----------
    prefix : str
        What the ids in the svg begin with.
    points : mapping
        Name of a set to x (N,) and y (N,).
    names : of the axis across and of the one up
    title, told : text alternative for readers who cannot see the chart

    Returns
    -------
    str : one svg element.
    """
    with mpl.rc_context(STYLE):
        figure, (axes,) = new_figure(1, 4.3, len(points))
        for k, (x, y) in enumerate(points.values()):
            x_N, y_N = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
            step = -(-len(x_N) // MOST_DRAWN) or 1
            size = 3 if k == 0 else 4
            colour, marker, _ = look(k)
            axes.plot(x_N[::step], y_N[::step], linestyle="none", color=colour, marker=marker, markersize=size)
        axes.axhline(0, color=FAINT, linewidth=1)
        axes.axvline(0, color=FAINT, linewidth=1)
        axes.locator_params(nbins=5)
        name_axes(axes, *names)
        legend(axes, list(points))
        return svg(figure, prefix, title, told)
