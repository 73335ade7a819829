"""What all charts share: colours, marks, the frame with room for a legend, and the SVG that stands inside a page.

Text takes the colour of the page (currentColor); lines are mid-tones that stand out on white and on dark.
"""

import io
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amends.report._text import visible

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# After Okabe and Ito, darkened or lightened to at least 3:1 on white and on the dark page.
COLOURS = ("#3a84c4", "#d0622a", "#1f9470", "#a566b8", "#a37f1c", "#7d7d7d")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
TEXT, FAINT = "#767677", "#808081"  # TEXT becomes currentColor
LEGEND_LINE = 0.25  # inches
MOST_NAMED = 28  # letters of a name in a legend
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "amends",
    "font.family": "sans-serif",
    "font.size": 12,  # in a picture 288 wide: what a phone shows at its own size
    "text.parse_math": False,  # names that others gave are no formulas
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


def new_figure(num_panels: int, height: float, legend_lines: int = 0) -> tuple[Figure, list[Axes]]:
    """Make panels one below the other; room for a legend is kept by its lines, whatever its names are."""
    figure = Figure(figsize=(4.0, height))
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - (legend_lines * LEGEND_LINE) / height))
    axes = figure.subplots(num_panels, 1, sharex=True, squeeze=False)
    return figure, list(axes[:, 0])


class Look(NamedTuple):
    """How one of several things in a chart is drawn."""

    colour: str
    marker: str
    dashes: Any


def look(k: int) -> Look:
    """Look of thing `k`; of 36 no two are alike, as marker and dashes go on by one with each round of the colours."""
    shifted = (k + k // 6) % 6
    return Look(COLOURS[k % 6], MARKERS[shifted], DASHES[shifted])


def name_axes(axes: Axes, across: str, up: str) -> None:
    """Say what the axes are."""
    axes.set_xlabel(visible(across))
    axes.set_ylabel(visible(up))


def legend(axes: Axes, names: Sequence[str]) -> None:
    """Put the names above the chart, so that they cover nothing; of long ones both ends are kept."""
    handles: list[Any] = [*(c[0] for c in axes.containers), *axes.lines][: len(names)]  # of error bars the marker
    half = MOST_NAMED // 2
    shown = [n if len(n) <= MOST_NAMED else f"{n[: half - 1]}…{n[-half:]}" for n in map(visible, names)]
    box = axes.legend(handles, shown, loc="lower left", bbox_to_anchor=(0, 1.0), handlelength=2.8, borderpad=0.2)
    box.set_in_layout(len(axes.figure.axes) > 1)  # names that others gave move nothing


def svg(figure: Figure, prefix: str, title: str, description: str) -> str:
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
