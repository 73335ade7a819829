"""Several named curves over one axis of numbers, with bands, and pairs of numbers, as SVG inside an HTML page."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from numpy.typing import ArrayLike

from amends.report._draw import FAINT, STYLE, legend, look, name_axes, new_figure, svg

MOST_MARKED = 40
"""Points of a curve above which they are not marked one by one."""
BAND = 0.18
"""Opacity of a band: several may lie over each other."""


def curves(
    of: Mapping[str, Sequence[ArrayLike]],
    *,
    across: str,
    up: str,
    title: str,
    name: str = "curves",
    limits: tuple[float | None, float | None] = (None, None),
    levels: Mapping[str, float] | None = None,
    places: Mapping[str, float] | None = None,
    log: bool = False,
) -> str:
    """Draw curves, each with its own colour, dashes and marker.

    Parameters
    ----------
    of : mapping
        Name to (x, y) or (x, y, low, high), arrays of one length, drawn in the order of x; low and high are a band
        around y. A y that is not finite leaves a gap, a low or high one a gap in the band.
    across, up : str
        What the axes are.
    title : str
        Text alternative for readers who cannot see the chart; its description tells each curve's ends.
    name : str
        Of letters; stands before the ids inside, so that several charts fit one page.
    limits : (low, high), default (None, None)
        Of the axis up; None is taken from the values.
    levels, places : mapping, optional
        Name to a value up, or across, to compare with, drawn as dotted lines and told in the description.
    log : bool, default False
        Whether the axis across is logarithmic; x that are not above 0 are left out then.

    Returns
    -------
    str : one svg element.

    Raises
    ------
    ValueError : arrays of a curve that do not go together.
    """
    told = []
    with mpl.rc_context(STYLE):
        figure, (axes,) = new_figure(1, 3.8, len(of))
        for k, (curve, values) in enumerate(of.items()):
            x, *ys = _checked(curve, values, log)
            colour, marker, dashes = look(k)
            marked = marker if len(x) <= MOST_MARKED else ""
            axes.plot(x, ys[0], color=colour, linestyle=dashes, linewidth=2, marker=marked, markersize=6)
            if len(ys) == 3:
                axes.fill_between(x, ys[1], ys[2], color=colour, alpha=BAND, linewidth=0)
            told.append(f"{curve}: {_ends(x, ys[0], across)}")
        legend(axes, list(of))
        for what, value in (levels or {}).items():
            axes.axhline(value, color=FAINT, linewidth=1, linestyle=":")
            told.append(f"dotted across: {what}, {value:.3g}")
        for what, value in (places or {}).items():
            axes.axvline(value, color=FAINT, linewidth=1, linestyle=":")
            told.append(f"dotted up: {what}, {value:.3g}")
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            axes.xaxis.set_minor_formatter(lambda x, _: "")
        axes.set_ylim(*limits)
        name_axes(axes, across, up)
        return svg(figure, name, title, f"{'; '.join(told)}.")


def pairs(
    of: Mapping[str, tuple[ArrayLike, ArrayLike]], *, across: str, up: str, title: str, name: str = "pairs"
) -> str:
    """Draw pairs of numbers that should be equal, as marks beside the line on which they are.

    Parameters
    ----------
    of : mapping
        Name to (x, y), arrays of one length; pairs that are not finite are left out.
    across, up, title, name : as of `curves`

    Returns
    -------
    str : one svg element.

    Raises
    ------
    ValueError : arrays that do not go together.
    """
    told, ends = [], []
    with mpl.rc_context(STYLE):
        figure, (axes,) = new_figure(1, 3.8, len(of))
        for k, (label, values) in enumerate(of.items()):
            x, y = _checked(label, values, log=False)
            colour, marker, _ = look(k)
            axes.plot(x, y, linestyle="none", marker=marker, color=colour, fillstyle="none", markersize=6)
            there = np.isfinite(y)
            ends += [*x[there], *y[there]]
            furthest = f", at most {np.abs(x - y)[there].max():.2g} apart" if there.any() else ""
            told.append(f"{label}: {int(there.sum())} pairs{furthest}")
        legend(axes, list(of))
        if ends:
            axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=FAINT, linewidth=1, linestyle=":")
        name_axes(axes, across, up)
        return svg(figure, name, title, f"{'; '.join(told)}. On the dotted line both are equal.")


def _checked(name: str, values: Sequence[ArrayLike], log: bool) -> list[np.ndarray]:
    """Arrays of one curve in the order of x."""
    arrays = [np.asarray(value, dtype=float) for value in values]
    shapes = {array.shape for array in arrays}
    if len(arrays) not in (2, 4) or len(shapes) != 1 or arrays[0].ndim != 1:
        got = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f'curve "{name}": expected (x, y) or (x, y, low, high) of one length, not {got}.')
    kept = np.isfinite(arrays[0]) & ((arrays[0] > 0) | (not log))
    order = np.argsort(arrays[0][kept], kind="stable")
    return [np.where(np.isfinite(array), array, np.nan)[kept][order] for array in arrays]


def _ends(x: np.ndarray, y: np.ndarray, across: str) -> str:
    """Say where a curve begins and ends."""
    there = np.flatnonzero(np.isfinite(y))
    if not there.size:
        return "no value"
    first, last = there[0], there[-1]
    at_first = f"{y[first]:.3g} at {across} {x[first]:.3g}"
    if first == last:
        return at_first
    return f"{at_first}, {y[last]:.3g} at {x[last]:.3g}, all from {np.nanmin(y):.3g} to {np.nanmax(y):.3g}"
