"""Figures fit for a paper: PNG for slides and drafts, PDF with its fonts for print.

In: a `Figure`.  Out: NAME.png and NAME.pdf, the same bytes for the same numbers.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from tipl.reporting.figure import LIGHT, Axis, Figure, Panel, Rule, Series

STYLE: Any = {  # matplotlib names its settings by literals
    "font.size": 8,
    "font.family": "sans-serif",
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#4b5563",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.visible": False,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.columnspacing": 1.4,
    "pdf.fonttype": 42,
    "figure.dpi": 300,
    "savefig.dpi": 300,
}
COLUMN, TEXT = 3.4, 6.9
"""Inches: the width of a column and of the text of a two-column paper."""
LEGEND_LINE = 0.17
DASHES = ("-", (0, (4, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^", "none": ""}


def print_figure(figure: Figure, folder: Path) -> None:
    """Write FOLDER/NAME.png and FOLDER/NAME.pdf.

    Raises:
        OSError: the folder cannot be written to.
    """
    labels = {part.label for panel in figure.panels for part in (*panel.series, *panel.rules) if part.label}
    is_wide = len(figure.panels) > 1 or len(labels) > 4
    across = len(figure.panels) if len(figure.panels) <= 3 else 2
    rows = math.ceil(len(figure.panels) / across)
    height = rows * max(map(_panel_height, figure.panels))
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(TEXT if is_wide else COLUMN * 1.2, height), layout="constrained")
        FigureCanvasAgg(canvas)
        canvas.get_layout_engine().set(wspace=0.08)  # type: ignore[union-attr]
        axes = canvas.subplots(rows, across, squeeze=False).flat
        handles: dict[str, Line2D] = {}
        for place, panel in itertools.zip_longest(axes, figure.panels):
            if panel is None:
                place.remove()
                continue
            handles |= _draw(place, panel)
        if len(labels) > 1:
            canvas.set_figheight(height + LEGEND_LINE * _legend(canvas, handles, 3 if is_wide else 2))
        canvas.draw_without_rendering()
        canvas.set_layout_engine("none")  # the layout is found once, for both files
        canvas.savefig(folder / f"{figure.name}.png", metadata={"Software": None})
        canvas.savefig(folder / f"{figure.name}.pdf", metadata={"CreationDate": None, "Producer": None})


def _panel_height(panel: Panel) -> float:
    """Inches, with its title and the text under it."""
    if not panel.y.categorical:
        return 2.4
    lines = max(1 + text.count("\n") for _, text in panel.y.ticks)
    return 0.75 + len(panel.y.ticks) * (0.04 + max(0.125 * lines, 0.06 * len(panel.series)))


def _draw(axes: Axes, panel: Panel) -> dict[str, Line2D]:
    """Draw a panel; its legend's entries by label."""
    axes.set_title(panel.title if panel.title != panel.x.label else "")
    _scale(axes, panel.x, "x")
    _scale(axes, panel.y, "y")
    right = axes.twinx() if panel.right else None
    if right is not None and panel.right is not None:
        _scale(right, panel.right, "y")
        right.spines["right"].set_visible(True)
        right.grid(False)
        _color_axes(axes, right, panel)
    if panel.y.categorical:
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0, pad=6)
    if panel.diagonal:
        axes.set_box_aspect(1)
        axes.plot([panel.x.low, panel.x.high], [panel.x.low, panel.x.high], color="#9ca3af", lw=0.8, ls=DASHES[1])
    handles: dict[str, Line2D] = {}
    for rule in panel.rules:
        handle = _rule(axes, rule, is_vertical=panel.y.categorical)
        handles[rule.label] = handle
    for series in panel.series:
        into = right if series.right and right is not None else axes
        handle = _series(into, series, panel)
        if series.label:
            handles.setdefault(series.label, handle)
    ordered = {label: handle for label, handle in handles.items() if label not in {r.label for r in panel.rules}}
    return ordered | {rule.label: handles[rule.label] for rule in panel.rules}


def _scale(axes: Axes, axis: Axis, side: str) -> None:
    axes.set(**{f"{side}label": axis.label})
    if axis.log:
        axes.set(**{f"{side}scale": "log"})
    axes.set(**{f"{side}lim": (axis.low, axis.high)})
    place = axes.xaxis if side == "x" else axes.yaxis
    place.set_ticks([value for value, _ in axis.ticks], [text for _, text in axis.ticks])
    place.set_ticks([], minor=True)


def _color_axes(left: Axes, right: Axes, panel: Panel) -> None:
    """Say by color which of the two axes a curve belongs to."""
    for axes, is_right, side in ((left, False, "left"), (right, True, "right")):
        color = LIGHT[next(series.color for series in panel.series if series.right == is_right)]
        axes.yaxis.label.set_color(color)
        axes.tick_params(axis="y", labelcolor=color, color=color)
        right.spines[side].set_color(color)


def _series(axes: Axes, series: Series, panel: Panel) -> Line2D:
    color = LIGHT[series.color]
    bounds = [
        (u, v, low, high)
        for u, v, low, high in zip(series.x, series.y, series.low, series.high, strict=False)
        if low is not None and high is not None
    ]
    if bounds and panel.y.categorical:
        for _, row, low, high in bounds:
            axes.plot([low, high], [row, row], color=color, lw=1.1, solid_capstyle="butt")
    elif bounds:
        x, _, low, high = zip(*bounds, strict=True)
        axes.fill_between(x, low, high, color=color, alpha=0.13, lw=0)  # type: ignore[arg-type]
    look: dict[str, Any] = {
        "color": color,
        "marker": MARKERS[series.marker],
        "ms": 3.6 if series.line or panel.y.categorical else 3,
        "mew": 0.9,
        "mfc": color if series.filled else "white" if series.line else "none",
        "lw": (0.6 if series.faint else 1.3) if series.line else 0,
        "ls": DASHES[series.dash] if series.line else "none",
        "alpha": 0.55 if series.faint else 1 if series.line or panel.y.categorical else 0.6,
    }
    axes.add_line(Line2D(series.x, series.y, **dict(look, marker="")))
    # Marks on the frame's edge are drawn whole; those beyond it are not drawn, or named by an arrow at their row.
    y_axis = panel.right if series.right and panel.right else panel.y
    points = list(zip(series.x, series.y, strict=True))
    inside = [(x, y) for x, y in points if panel.x.low <= x <= panel.x.high and y_axis.low <= y <= y_axis.high]
    _marks(axes, inside, look)
    if panel.y.categorical:
        _marks(axes, [(panel.x.low, y) for x, y in points if x < panel.x.low], dict(look, marker="<", mfc=color))
        _marks(axes, [(panel.x.high, y) for x, y in points if x > panel.x.high], dict(look, marker=">", mfc=color))
    return Line2D([], [], **look)


def _marks(axes: Axes, points: Sequence[tuple[float, float]], look: dict[str, Any]) -> None:
    if points:
        x, y = zip(*points, strict=True)
        axes.add_line(Line2D(x, y, **dict(look, lw=0, ls="none", clip_on=False)))


def _rule(axes: Axes, rule: Rule, is_vertical: bool) -> Line2D:
    color = LIGHT[rule.color]
    draw, span = (axes.axvline, axes.axvspan) if is_vertical else (axes.axhline, axes.axhspan)
    if rule.interval:
        span(*rule.interval, color=color, alpha=0.1, lw=0)
    return draw(rule.value, color=color, lw=1, ls=DASHES[2])


def _legend(canvas: Canvas, handles: dict[str, Line2D], columns: int) -> int:
    """Under the panels, in so many columns or as few as the longest labels take; the lines it has."""
    while True:
        legend = canvas.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",  # type: ignore[arg-type]  # matplotlib's annotations lack the outside places
            ncols=columns,
        )
        if columns == 1 or legend.get_window_extent().width <= canvas.bbox.width:
            break
        legend.remove()
        columns -= 1
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
    return math.ceil(len(handles) / columns)
