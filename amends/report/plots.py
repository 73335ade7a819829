"""Charts as SVG to stand inside an HTML page: no file, no script, no font of their own, the same bytes every time."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from amends.report._draw import COLOURS, DASHES, FAINT, STYLE, legend, look, name_axes, new_figure, svg
from amends.report._text import visible

SMALLEST_P = 1e-20  # a smaller p is drawn here


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
        figure, (axes,) = new_figure(1, 4.3, len(points))
        for k, point in enumerate(points):
            quality = max(point.quality, SMALLEST_P) if log else point.quality
            style: dict[str, Any] = {"color": look(k).colour, "marker": look(k).marker, "markersize": 9}
            reach: dict[str, Any] = {
                "xerr": _reach(point.utility, point.utility_interval),
                "yerr": _reach(quality, point.quality_interval),
            }
            axes.errorbar([point.utility], [quality], linestyle="none", capsize=4, label=str(k), **reach, **style)
        axes.set_xlim(-0.03, 1.03)  # so that marks at the ends are whole
        if log:
            axes.set_yscale("log")
            axes.set_ylim(min([1e-4, *(max(p.quality, SMALLEST_P) / 5 for p in points)]), 3)
            axes.axhline(0.05, color=FAINT, linewidth=1, linestyle=":")
            _tick_powers(axes)
        else:
            axes.set_ylim(-0.03, 1.03)
        name_axes(axes, across, up)
        legend(axes, [point.name for point in points])
        x, y = across.removesuffix(" (kept →)"), up
        told = "; ".join(f"{p.name}: {x} {p.utility:.3f}, {y} {p.quality:.2g}" for p in points)
        line = " The dotted line is p = 0.05." if log else ""
        return svg(figure, "quality", "Forgetting against keeping", f"{told}.{line}")


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
        figure, (axes,) = new_figure(1, 4.3, len(arrays))
        positive = np.concatenate([np.zeros(0), *(a[(a > 0) & np.isfinite(a)] for a in arrays.values())])
        low, high = (float(positive.min()), float(positive.max())) if positive.size else (0.1, 10.0)
        low, high = max(low / 1.5, 1e-12), min(high * 1.5, 1e12)
        for k, ratios in enumerate(arrays.values()):
            x = np.clip(ratios, low, high)
            share = np.concatenate([[0], np.arange(1, len(x) + 1) / len(x), [1]])
            x = np.concatenate([[low], x, [high]])
            axes.step(x, share, where="post", color=look(k).colour, linestyle=look(k).dashes, linewidth=2)
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(0, 1.02)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.xaxis.set_minor_formatter(lambda x, _: "")
        name_axes(axes, "truth ratio (1: wrong as likely as right)", "share of questions")
        legend(axes, list(arrays))
        told = "; ".join(f"{name}: median {np.median(a):.3g} of {a.size}" for name, a in arrays.items())
        return svg(figure, "truth", "Truth ratios on the questions to forget", f"{told}.")


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
    title, told : text alternative for readers who cannot see the chart

    Returns
    -------
    str : one svg element.
    """
    with mpl.rc_context(STYLE):
        figure, (axes,) = new_figure(1, 4.3, len(shares))
        for k, share in enumerate(shares.values()):
            colour, _, dashes = look(k)
            axes.step(edges, [*share, share[-1]], where="post", color=colour, linestyle=dashes, linewidth=2)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, None)
        name_axes(axes, *names)
        legend(axes, list(shares))
        return svg(figure, prefix, title, told)


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
        alone = sum(bool(_drawable(rows, key)[0].size) for key in panels[0]) if len(panels) == 1 else 0
        figure, all_axes = new_figure(len(panels), 3.4 if len(panels) == 1 else 5.4, alone)
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
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            legend(axes, names)
        all_axes[-1].set_xlabel("step")
        return svg(figure, "history", "The run, step by step", f"{'; '.join(told)}; {len(rows)} steps.")


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
        figure, (axes,) = new_figure(1, 1.4 + 0.32 * len(ways), len(scores))
        for k, of in enumerate(scores.values()):
            places = [ways.index(way) for way in of]
            style: dict[str, Any] = {"color": look(k).colour, "marker": look(k).marker, "markersize": 8}
            style |= {"fillstyle": "none", "markeredgewidth": 2}  # so that one hides no other
            axes.plot(list(of.values()), places, linestyle="none", **style)
        axes.set_yticks(range(len(ways)), [visible(way).replace("_", " ") for way in ways])
        axes.set_ylim(len(ways) - 0.5, -0.5)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel("ROUGE-L recall")
        legend(axes, list(scores))
        told = "; ".join(f"{name}: " + ", ".join(f"{w} {v:.2f}" for w, v in of.items()) for name, of in scores.items())
        return svg(figure, "variants", "Asked in other ways", f"{told}.")


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
            axes.set_xlabel(visible(name))
        row[0].set_yticks(range(len(entries)), [visible(entry) for entry in entries])
        row[0].set_ylim(len(entries) - 0.5, -0.5)
        told = "; ".join(
            f"{name}: " + ", ".join(f"{e} {s.value:.2f}" for e, s in of.items()) for name, of in panels.items()
        )
        line = " The dotted line is the retrained reference." if levels else ""
        return svg(figure, "spans", "Every method, with intervals", f"{told}.{line}")


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
        figure, (axes,) = new_figure(1, 3.4, len(curves))
        for k, (steps, scores) in enumerate(curves.values()):
            style: dict[str, Any] = {"color": look(k + 1).colour, "marker": look(k + 1).marker}
            axes.plot(steps, scores, linestyle=look(k).dashes, linewidth=2, markersize=7, **style)
        legend(axes, list(curves))
        if level is not None:
            axes.axhline(level, color=FAINT, linewidth=1, linestyle=":")
        axes.set_ylim(-0.03, 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        name_axes(axes, across, up)
        told = "; ".join(f"{model}: from {y[0]:.2f} to {y[-1]:.2f}" for model, (_, y) in curves.items())
        line = "" if level is None else f" The dotted line is the model before, {level:.2f}."
        return svg(figure, name, title, f"{told}.{line}")


def _reach(value: float, interval: tuple[float, float] | None) -> list[list[float]] | None:
    """Lengths of an error bar."""
    return None if interval is None else [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]


def _drawable(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Take steps and values of a column, without what is no number."""
    pairs = [(row.get("step", k + 1), row.get(key)) for k, row in enumerate(rows)]
    kept = [(float(x), float(y)) for x, y in pairs if isinstance(x, int | float) and isinstance(y, int | float)]
    both = np.asarray(kept, dtype=float).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _tick_powers(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.yaxis.set_minor_formatter(lambda y, _: "")
