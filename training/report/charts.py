"""Charts as SVG whose colours follow the page's theme. A chart on its own has the colours of a light page."""

import io
import re
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Colours as the page's stylesheet names them.
INK, SOFT, LINE = "#1c2733", "#5b6b7c", "#dbe1e8"
BLUE, PALE, GREEN, RED, AMBER = "#2468b0", "#8db4e2", "#1f8a54", "#c23b31", "#b97812"
_NAMES = ("ink", "soft", "line", "blue", "pale", "green", "red", "amber")
_VARIABLES = dict(zip((INK, SOFT, LINE, BLUE, PALE, GREEN, RED, AMBER), _NAMES, strict=True))

# Legible on white and on near black; the first ten differ most (Tableau, matplotlib's tab20, darkened).
CATEGORIES = (
    *("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#9c755f", "#edc948", "#76b7b2", "#ff9da7"),
    *("#8a8f98", "#2f4b7c", "#a05195", "#d45087", "#665191", "#66a61e", "#1b9e77", "#b3a000", "#00a1d5"),
    *("#c49c94", "#7f4f24"),
)

_RESOLUTION = 96  # CSS pixels per inch
_DOTS_PER_INCH = 120  # of PNG files
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font
    "font.size": 9,
    "text.parse_math": False,  # a label may hold dollar signs
    "axes.unicode_minus": False,
}


Place = Literal["best", "upper left", "lower left", "lower right"]


def chart(width: float = 4.4, height: float = 3.0) -> tuple[Figure, Axes]:
    """An empty chart without a frame. Sizes are in inches; one chart fills the width of a phone."""
    figure, (axes,) = charts(1, width, height)
    return figure, axes


def charts(count: int, width: float = 4.4, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    """Empty charts without a frame, side by side. Sizes are those of each, in inches."""
    figure = Figure(figsize=(count * width, height), layout="constrained", facecolor="none")
    with mpl.rc_context(_STYLE):
        row = figure.subplots(1, count, squeeze=False)[0].tolist()
    for axes in row:
        axes.set_facecolor("none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(SOFT)
        axes.tick_params(colors=SOFT, labelcolor=INK)
        axes.grid(color=LINE, linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, row


def legend(axes: Axes, place: Place = "best") -> None:
    """Add a legend without a frame."""
    axes.legend(frameon=False, labelcolor=INK, loc=place)


def png(figure: Figure) -> bytes:
    """Encode a figure as PNG on white, at 120 dots per inch."""
    # Without pyplot: it needs a display, and keeps every figure open.
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, facecolor="white")
    return buffer.getvalue()


def svg(figure: Figure, name: str) -> bytes:
    """Encode a chart as SVG.

    Args:
        figure: made by `chart`.
        name: unique on the page: it begins the ids of what the chart refers to.
    """
    for axes in figure.axes:
        for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
            text.set_color(INK)
    buffer = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", dpi=_RESOLUTION, transparent=True, metadata={"Date": None})
    return _themed(buffer.getvalue(), name).encode()


def _themed(text: str, name: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"(<svg[^>]*?) width=\"[^\"]*\"", r"\1", text, count=1)
    text = re.sub(r"(<svg[^>]*?) height=\"[^\"]*\"", r"\1", text, count=1)
    # Groups of matplotlib are named figure_1, axes_1, ... in every chart; nothing refers to them.
    text = re.sub(r"<g id=\"[^\"]*\"", "<g", text)
    text = re.sub(r"\b(id=\"|url\(#|href=\"#)", rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    text = re.sub(r"<text style=\"(?![^\"]*fill:)", f'<text style="fill: {INK}; ', text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable}, {colour})")
    return text
