"""Charts as SVG to stand inside an HTML page: no file, no script, no font of their own, the same bytes every time.

Text takes the colour of the page (currentColor); lines are mid-tones that stand out on white and on dark.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from amends.report._text import visible

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# After Okabe and Ito, darkened or lightened to at least 3:1 on white and on the dark page.
COLOURS = ("#3a84c4", "#d0622a", "#1f9470", "#a566b8", "#a37f1c", "#7d7d7d")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
TEXT, FAINT = "#767677", "#808081"  # TEXT becomes currentColor
SMALLEST_P = 1e-20  # a smaller p is drawn here
LEGEND_LINE = 0.25  # inches
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "amends",
    "font.family": "sans-serif",
    "font.size": 12,  # in a picture 288 wide: what a phone shows at its own size
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.alpha": 0.25,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "legend.frameon": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
}


class Point(NamedTuple):
    """A model in the chart of forgetting against keeping; an interval is (low, high) or None."""

    name: str
    utility: float
    quality: float
    utility_interval: tuple[float, float] | None = None
    quality_interval: tuple[float, float] | None = None


class Span(NamedTuple):
    """A value with its interval, if there is one."""

    value: float
    low: float | None
    high: float | None


def quality_against_utility(
    points: Sequence[Point], *, up: str = "forget quality, p", across: str = "model utility (kept →)", log: bool = True
) -> str:
    """How much was forgotten over how much was kept; up and to the right is better.

    Parameters
    ----------
    points : sequence of Point
        Shown in this order, each with its own colour and marker. Utilities are shares of 1.
    up, across : str
        Names of the two axes.
    log : bool, default True
        Quality is the p of a test, on a log scale; one below `SMALLEST_P` is drawn there. Otherwise it is a share of 1.

    Returns
    -------
    str : one svg element.
    """
    with mpl.rc_context(STYLE):
        figure, (axes,) = _figure(1, 4.3, len(points))
        for k, point in enumerate(points):
            quality = max(point.quality, SMALLEST_P) if log else point.quality
            style: dict[str, Any] = {"color": COLOURS[k % 6], "marker": MARKERS[k % 6], "markersize": 9}
            reach: dict[str, Any] = {
                "xerr": _reach(point.utility, point.utility_interval),
                "yerr": _reach(quality, point.quality_interval),
            }
            axes.errorbar([point.utility], [quality], linestyle="none", capsize=4, label=str(k), **reach, **style)
        axes.set_xlim(0, 1)
        if log:
            axes.set_yscale("log")
            axes.set_ylim(min([1e-4, *(max(p.quality, SMALLEST_P) / 5 for p in points)]), 3)
            axes.axhline(0.05, color=FAINT, linewidth=1, linestyle=":")
            _tick_powers(axes)
        else:
            axes.set_ylim(0, 1.03)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        _legend(axes, [point.name for point in points])
        x, y = across.removesuffix(" (kept →)"), up
        told = "; ".join(f"{p.name}: {x} {p.utility:.3f}, {y} {p.quality:.2g}" for p in points)
        line = " The dotted line is p = 0.05." if log else ""
        return _svg(figure, "quality", "Forgetting against keeping", f"{told}.{line}")


def truth_ratio_distributions(values: Mapping[str, Sequence[float]]) -> str:
    """Empirical distribution functions of the truth ratios on the questions to forget, on a log axis.

    Parameters
    ----------
    values : mapping
        Name to truth ratios R >= 0; a 0 is drawn at the left edge, a name without any not at all.

    Returns
    -------
    str : one svg element.
    """
    with mpl.rc_context(STYLE):
        arrays = {name: np.sort(np.asarray(list(some), dtype=float)) for name, some in values.items() if len(some)}
        figure, (axes,) = _figure(1, 4.3, len(arrays))
        positive = np.concatenate([np.zeros(0), *(a[(a > 0) & np.isfinite(a)] for a in arrays.values())])
        low, high = (float(positive.min()), float(positive.max())) if positive.size else (0.1, 10.0)
        low, high = max(low / 1.5, 1e-12), min(high * 1.5, 1e12)
        for k, ratios in enumerate(arrays.values()):
            x = np.clip(ratios, low, high)
            share = np.concatenate([[0], np.arange(1, len(x) + 1) / len(x), [1]])
            x = np.concatenate([[low], x, [high]])
            axes.step(x, share, where="post", color=COLOURS[k % 6], linestyle=DASHES[k % 6], linewidth=2)
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(0, 1.02)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.xaxis.set_minor_formatter(lambda x, _: "")
        axes.set_xlabel("truth ratio (1: wrong as likely as right)")
        axes.set_ylabel("share of questions")
        _legend(axes, list(arrays))
        told = "; ".join(f"{name}: median {np.median(a):.3g} of {a.size}" for name, a in arrays.items())
        return _svg(figure, "truth", "Truth ratios on the questions to forget", f"{told}.")


def rank_histogram(ranks: Mapping[str, Sequence[float]]) -> str:
    """Share of each set of records whose combined rank falls into each of 20 bins.

    Parameters
    ----------
    ranks : mapping
        Name of the set to mean ranks, 0 least to 1 most memorised.

    Returns
    -------
    str : one svg element.
    """
    edges = np.linspace(0, 1, 21)
    shares = {name: np.histogram(of, edges)[0] / max(1, len(of)) for name, of in ranks.items()}
    told = "; ".join(f"{name}: median {np.median(list(v)):.2f} of {len(v)}" for name, v in ranks.items() if len(v))
    axes = ("mean rank over the measures", "share of records")
    return histograms("ranks", edges, shares, axes, "Mean rank of the records", f"{told}.")


def histograms(
    prefix: str, edges: np.ndarray, shares: Mapping[str, np.ndarray], names: tuple[str, str], title: str, told: str
) -> str:
    """Draw histograms over the same bins as steps.

    Parameters
    ----------
    prefix : str
        What the ids in the svg begin with.
    edges : float (bins + 1,)
    shares : mapping
        Name of a set to what each bin holds, (bins,).
    names : of the axis across and of the one up
    title, told : for who does not see it

    Returns
    -------
    str : one svg element.
    """
    with mpl.rc_context(STYLE):
        figure, (axes,) = _figure(1, 4.3, len(shares))
        for k, share in enumerate(shares.values()):
            axes.step(edges, [*share, share[-1]], where="post", color=COLOURS[k], linestyle=DASHES[k], linewidth=2)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, None)
        axes.set_xlabel(names[0])
        axes.set_ylabel(names[1])
        _legend(axes, list(shares))
        return _svg(figure, prefix, title, told)


def history(rows: Sequence[Mapping[str, Any]]) -> str:
    """Probabilities v_e (template answers) and v_f (answers to forget) by step; below them FLAT's weights.

    Parameters
    ----------
    rows : sequence of mapping
        Lines of history.jsonl. A run of GA has v_f alone and gets one panel.

    Returns
    -------
    str : one svg element.
    """
    panels = [{"v_f": "v_f, answers to forget", "v_e": "v_e, template answers"}]
    weights = {"weight_f": "on answers to forget", "weight_e": "on template answers"}
    if any(_drawable(rows, name)[0].size for name in weights):
        panels.append(weights)
    told = []
    with mpl.rc_context(STYLE):
        figure, all_axes = _figure(len(panels), 3.2 if len(panels) == 1 else 5.4)
        for axes, panel, label in zip(all_axes, panels, ("mean probability", "weight"), strict=False):
            names = []
            for k, (key, name) in enumerate(panel.items()):
                x, y = _drawable(rows, key)
                if not x.size:
                    continue
                marker = "." if x.size < 40 else ""
                axes.plot(x, y, color=COLOURS[1 - k], linestyle=DASHES[k], linewidth=2, marker=marker, label=name)
                names.append(name)
                told.append(f"{key} from {y[0]:.3g} to {y[-1]:.3g}")
            axes.set_ylabel(label)
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            _legend(axes, names)
        all_axes[-1].set_xlabel("step")
        return _svg(figure, "history", "The run, step by step", f"{'; '.join(told)}; {len(rows)} steps.")


def scores_by_variant(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Scores of several models by the way of asking, one line a way, each model with its own marker.

    Parameters
    ----------
    scores : mapping
        Model to way of asking to score, 0 to 1; a way that a model was not asked in is left out.

    Returns
    -------
    str : one svg element.
    """
    ways = list(dict.fromkeys(way for of in scores.values() for way in of))
    with mpl.rc_context(STYLE):
        figure, (axes,) = _figure(1, 1.4 + 0.32 * len(ways), len(scores))
        for k, of in enumerate(scores.values()):
            places = [ways.index(way) for way in of]
            style: dict[str, Any] = {"color": COLOURS[k % 6], "marker": MARKERS[k % 6], "markersize": 8}
            style |= {"fillstyle": "none", "markeredgewidth": 2}  # so that one hides no other
            axes.plot(list(of.values()), places, linestyle="none", **style)
        axes.set_yticks(range(len(ways)), [visible(way).replace("_", " ") for way in ways])
        axes.set_ylim(len(ways) - 0.5, -0.5)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel("ROUGE-L recall")
        _legend(axes, list(scores))
        told = "; ".join(f"{name}: " + ", ".join(f"{w} {v:.2f}" for w, v in of.items()) for name, of in scores.items())
        return _svg(figure, "variants", "Asked in other ways", f"{told}.")


def spans(panels: Mapping[str, Mapping[str, Span]], levels: Mapping[str, float]) -> str:
    """Values of many entries with their intervals, an entry a line, in panels side by side.

    Parameters
    ----------
    panels : mapping
        Name of the measure to entry to `Span`, shares of 1; an entry that lacks a measure has no mark there.
    levels : mapping
        By measure, a value to compare with, drawn as a dotted line.

    Returns
    -------
    str : one svg element.
    """
    entries = list(dict.fromkeys(entry for of in panels.values() for entry in of))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.2 + 2.6 * len(panels), 1.0 + 0.3 * len(entries)))
        figure.set_layout_engine("constrained")
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for k, (axes, (name, of)) in enumerate(zip(row, panels.items(), strict=True)):
            for entry, span in of.items():
                reach = _reach(span.value, None if span.low is None or span.high is None else (span.low, span.high))
                axes.errorbar(
                    [span.value], [entries.index(entry)], xerr=reach, fmt="o", capsize=3, color=COLOURS[k % 6]
                )
            if name in levels:
                axes.axvline(levels[name], color=FAINT, linewidth=1, linestyle=":")
            axes.set_xlim(-0.03, 1.03)
            axes.set_xlabel(name)
        row[0].set_yticks(range(len(entries)), [visible(entry) for entry in entries])
        row[0].set_ylim(len(entries) - 0.5, -0.5)
        told = "; ".join(
            f"{name}: " + ", ".join(f"{e} {s.value:.2f}" for e, s in of.items()) for name, of in panels.items()
        )
        line = " The dotted line is the retrained reference." if levels else ""
        return _svg(figure, "spans", "Every method, with intervals", f"{told}.{line}")


def relearning(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    level: float | None,
    *,
    across: str,
    up: str,
    title: str,
    name: str,
) -> str:
    """Scores on rows that were not trained on, over the steps of an attack that trains on something else.

    Parameters
    ----------
    curves : mapping
        Model to steps and scores, 0 to 1.
    level : float, optional
        Score of the model before, as a dotted line.
    across, up, title, name : str
        As of `amends.report.curves.curves`.

    Returns
    -------
    str : one svg element.
    """
    with mpl.rc_context(STYLE):
        figure, (axes,) = _figure(1, 3.4, len(curves))
        for k, (steps, scores) in enumerate(curves.values()):
            style: dict[str, Any] = {"color": COLOURS[(k + 1) % 6], "marker": MARKERS[(k + 1) % 6]}
            axes.plot(steps, scores, linestyle=DASHES[k % 6], linewidth=2, markersize=7, **style)
        _legend(axes, list(curves))
        if level is not None:
            axes.axhline(level, color=FAINT, linewidth=1, linestyle=":")
        axes.set_ylim(-0.03, 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        told = "; ".join(f"{model}: from {y[0]:.2f} to {y[-1]:.2f}" for model, (_, y) in curves.items())
        line = "" if level is None else f" The dotted line is the model before, {level:.2f}."
        return _svg(figure, name, title, f"{told}.{line}")


def _reach(value: float, interval: tuple[float, float] | None) -> list[list[float]] | None:
    """Lengths of an error bar."""
    return None if interval is None else [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]


def _drawable(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Take steps and values of a column, without what is no number."""
    pairs = [(row.get("step", k + 1), row.get(key)) for k, row in enumerate(rows)]
    kept = [(float(x), float(y)) for x, y in pairs if isinstance(x, int | float) and isinstance(y, int | float)]
    both = np.asarray(kept, dtype=float).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _figure(num_panels: int, height: float, legend_lines: int = 0) -> tuple[Figure, list[Axes]]:
    """Panels one below the other; room for a legend is kept by its lines, whatever its names are."""
    figure = Figure(figsize=(4.0, height))
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - (legend_lines * LEGEND_LINE) / height))
    axes = figure.subplots(num_panels, 1, sharex=True, squeeze=False)
    return figure, list(axes[:, 0])


def _tick_powers(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.yaxis.set_minor_formatter(lambda y, _: "")


def _legend(axes: Axes, names: Sequence[str]) -> None:
    """Above the chart, so that it covers nothing; names are not read as formulas."""
    handles: list[Any] = [*(c[0] for c in axes.containers), *axes.lines][: len(names)]  # of error bars the marker
    shown = [name if len(name) <= 28 else f"{name[:27]}…" for name in (visible(name) for name in names)]
    legend = axes.legend(handles, shown, loc="lower left", bbox_to_anchor=(0, 1.0), handlelength=2.8, borderpad=0.2)
    legend.set_in_layout(len(axes.figure.axes) > 1)  # names that others gave move nothing
    for text in legend.get_texts():
        text.set_parse_math(False)


def _svg(figure: Figure, prefix: str, title: str, description: str) -> str:
    """Draw; then keep only what belongs inside a page, name every id after the chart, and add title and description."""
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the page's font draws the text, not matplotlib's
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(file.getvalue())
    for child in list(root):
        if child.tag == f"{{{SVG}}}metadata":
            root.remove(child)
        elif child.tag == f"{{{SVG}}}defs" and child.find(f"{{{SVG}}}style") is not None:
            root.remove(child)  # its rule would hold for the whole page
    for element in root.iter():
        if "id" in element.attrib:
            element.set("id", f"{prefix}-{element.get('id')}")
        for name in {"clip-path", f"{{{XLINK}}}href"}.intersection(element.keys()):
            element.set(name, element.attrib[name].replace("#", f"#{prefix}-"))
        if "style" in element.attrib:
            element.set("style", element.attrib["style"].replace(TEXT, "currentColor"))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("width", "100%")
    root.set("role", "img")
    root.set("aria-labelledby", f"{prefix}-title {prefix}-desc")
    for place, (name, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{{{SVG}}}{name}", {"id": f"{prefix}-{name}"})
        element.text = visible(text)
        root.insert(place, element)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode")
