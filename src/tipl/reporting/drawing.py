"""Draws figures by matplotlib: each panel as SVG for the page, all of them together as PNG and PDF for a paper.

In: a `Figure`.  Out: SVG and JSON; NAME.png and NAME.pdf. The same bytes for the same numbers.
"""

import io
import itertools
import math
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from tipl.errors import printable
from tipl.reporting.parts import LIGHT, NEUTRAL, Axis, Figure, Panel, Series
from tipl.reporting.wording import number, number_interval

INK, SOFT, GRID, GROUND = "#000000", "#4b5563", "#e5e7eb", "#ffffff"
VARIABLES = {INK: "ink", SOFT: "soft", GRID: "grid", GROUND: "ground", **{c: f"c{i}" for i, c in enumerate(LIGHT)}}
"""Color of the figures → the page's variable that stands for it, which a dark page sets otherwise."""
# fmt: off
STYLE: Any = {  # matplotlib names its settings by literals
    "font.size": 8,
    "font.family": "DejaVu Sans",
    "text.parse_math": False,  # a dollar in a label is a dollar
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.linewidth": 0.6,
    "axes.edgecolor": SOFT,
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    **{f"{x}tick.{name}": value for x in "xy" for name, value in (
        ("labelsize", 7.5), ("color", SOFT), ("labelcolor", INK), ("major.width", 0.6))},
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.columnspacing": 1.4,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "tipl",
    "figure.dpi": 72,  # a unit of the SVG is a point
    "savefig.dpi": 300,
}
# fmt: on
COLUMN = 3.4
"""Inches: the width of a panel, and of a column of a two-column paper."""
LEGEND_LINE, LONGEST = 0.17, 90
"""Inches that a line of the legend takes; characters of the longest text that is drawn."""
DASHES = ("-", (0, (4, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))
MARKS = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^", "none": ""}


def entries_of(panels: Iterable[Panel]) -> dict[str, Series]:
    """A legend's entries by key: the first series of each key, then the rules as if they were series."""
    found: dict[str, Series] = {}
    for series in (series for panel in panels for series in panel.series):
        found.setdefault(series.key, series)
    rules = {rule.label for panel in panels for rule in panel.rules}
    return found | {label: Series(label, label, NEUTRAL, (), (), dash=2, marker="none") for label in sorted(rules)}


def draw_panel(panel: Panel, keys: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Draw one panel for the page.

    Args:
        keys: those of its figure's legend.

    Returns:
        The SVG, in which every series has the place of its key in `keys` as data-key; and what may be pointed at: the
        `size` of the drawing, the `frame` of its axes, its `stops`, and by which coordinates the `nearest` stop is
        found (x, y or xy). A stop is x, y, a heading, and for each value there its data-key and its text.
    """
    with _styled():
        canvas, (axes,) = _canvas([panel], 1)
        _draw(axes, panel, keys)
        _lay_out(canvas)
        (x0, y0), (x1, y1) = axes.get_window_extent().get_points()
        stops, nearest = _stops(canvas.axes, panel, keys)
        return _svg(canvas), {
            "size": [canvas.bbox.width, canvas.bbox.height],
            "frame": [round(float(v), 1) for v in (x0, canvas.bbox.height - y1, x1, canvas.bbox.height - y0)],
            "nearest": nearest,
            "stops": stops,
        }


def draw_entry(series: Series) -> str:
    """How a series looks in the legend, as SVG."""
    return _entry(series.color, series.line, series.dash, series.marker, series.filled)


@lru_cache
def _entry(color: int, line: bool, dash: int, marker: Any, filled: bool) -> str:
    look = _look(Series("", "", color, (), (), line=line, dash=dash, marker=marker, filled=filled), in_rows=True)
    with _styled():
        canvas = Canvas(figsize=(22 / 72, 9 / 72))
        canvas.add_artist(Line2D([1, 21], [4.5, 4.5], transform=None, **dict(look, marker="")))
        canvas.add_artist(Line2D([11], [4.5], transform=None, **dict(look, ls="none")))
        return _svg(canvas)


def print_figure(figure: Figure, folder: Path) -> None:
    """Write FOLDER/NAME.png and FOLDER/NAME.pdf.

    Raises:
        OSError: the folder cannot be written to.
    """
    for ending, content in figure_files(figure, ("png", "pdf")).items():
        (folder / f"{figure.name}.{ending}").write_bytes(content)


def figure_files(figure: Figure, endings: Sequence[str]) -> dict[str, bytes]:
    """Draw all panels of a figure together as png, pdf or svg, whose layout is found once."""
    entries = entries_of(figure.panels)
    across = 2 if len(figure.panels) > 1 else 1
    with _styled():
        canvas, all_axes = _canvas(figure.panels, across, is_wide=across > 1 or len(entries) > 4)
        handles: dict[str, Line2D] = {}
        for axes, panel in zip(all_axes, figure.panels, strict=True):
            handles |= _draw(axes, panel, list(entries))
        if len(entries) > 1:
            lines = _legend(canvas, [handles[key] for key in entries], [part.label for part in entries.values()])
            canvas.set_figheight(canvas.get_figheight() + LEGEND_LINE * lines)
        _lay_out(canvas)
        return {ending: written(canvas, ending) for ending in endings}


def written(canvas: Canvas, ending: str) -> bytes:
    """A canvas as a file of this kind, without the time at which it was made."""
    dates = {"svg": ("Date", "Creator"), "png": ("Software",), "pdf": ("CreationDate", "Producer")}[ending]
    made = io.BytesIO()
    with _lean_fonts():
        canvas.savefig(made, format=ending, metadata=dict.fromkeys(dates))
    return made.getvalue()


@contextmanager
def _lean_fonts() -> Iterator[None]:
    """A PDF holds its fonts without the tables by which text is set, since it is set. To cut them down to the glyphs
    in use took a quarter of a report's time."""
    from fontTools.subset import Options

    dropped = getattr(Options, "_drop_tables_default", None)  # to which matplotlib adds its own
    if dropped is None:  # a version that has it elsewhere: slower, and as right
        yield
        return
    Options._drop_tables_default = [*dropped, "GSUB", "GPOS", "GDEF", "kern"]
    try:
        yield
    finally:
        Options._drop_tables_default = dropped


@contextmanager
def _styled() -> Iterator[None]:
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the page has other fonts
        yield


def _canvas(panels: Sequence[Panel], across: int, is_wide: bool = False) -> tuple[Canvas, list[Axes]]:
    rows = math.ceil(len(panels) / across)
    heights = [max(map(_height, panels[row * across : (row + 1) * across])) for row in range(rows)]
    canvas = Canvas(figsize=(2 * COLUMN if is_wide else COLUMN, sum(heights)), layout="constrained")
    FigureCanvasAgg(canvas)
    canvas.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr]
    places = list(canvas.subplots(rows, across, squeeze=False, height_ratios=heights).flat)
    for place in places[len(panels) :]:
        place.remove()
    return canvas, places[: len(panels)]


def _lay_out(canvas: Canvas) -> None:
    """Place all axes for good. With an engine that is only told to rest, `savefig` would draw everything twice."""
    canvas.get_layout_engine().execute(canvas)  # type: ignore[union-attr]
    for axes in canvas.axes:
        axes.apply_aspect()
    canvas.set_layout_engine(None)


def _height(panel: Panel) -> float:
    """Inches, with its title and the text under it."""
    if panel.diagonal:
        return 3.2
    if not panel.y.categorical:
        return 2.5
    lines = max(1 + text.count("\n") for _, text in panel.y.ticks)
    groups = len({series.key for series in panel.series})
    return 0.75 + len(panel.y.ticks) * (0.05 + max(0.13 * lines, 0.07 * groups))


def _draw(axes: Axes, panel: Panel, keys: Sequence[str]) -> dict[str, Line2D]:
    """Draw a panel; its legend's entries by label."""
    axes.set_title(textwrap.fill(_clean(panel.title if panel.title != panel.x.label else ""), 44))
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
        axes.plot([panel.x.low, panel.x.high], [panel.x.low, panel.x.high], color=LIGHT[NEUTRAL], lw=0.8, ls=DASHES[1])
    handles: dict[str, Line2D] = {}
    for rule in panel.rules:
        line = axes.axvline if panel.y.categorical else axes.axhline
        gid = f"key-{keys.index(rule.label)}"
        handles[rule.label] = line(rule.value, color=LIGHT[NEUTRAL], lw=1, ls=DASHES[2], gid=gid)
    for series in panel.series:
        into = right if series.right and right is not None else axes
        handles.setdefault(series.key, _series(into, series, panel, f"key-{keys.index(series.key)}"))
    return handles


def _scale(axes: Axes, axis: Axis, side: str) -> None:
    axes.set(**{f"{side}label": _clean(axis.label)})
    if axis.log:
        axes.set(**{f"{side}scale": "log"})
    axes.set(**{f"{side}lim": (axis.low, axis.high)})
    place = axes.xaxis if side == "x" else axes.yaxis
    place.set_ticks([value for value, _ in axis.ticks], [_clean(text) for _, text in axis.ticks])
    place.set_ticks([], minor=True)


def _clean(text: str) -> str:
    """The text, no line of it too long to draw, and no character in it that a file may not hold."""
    lines = map(printable, text.split("\n"))
    return "\n".join(line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…" for line in lines)


def _color_axes(left: Axes, right: Axes, panel: Panel) -> None:
    """Say by color which of the two axes a curve belongs to."""
    for axes, is_right, side in ((left, False, "left"), (right, True, "right")):
        color = LIGHT[next((series.color for series in panel.series if series.right == is_right), NEUTRAL)]
        axes.yaxis.label.set_color(color)
        axes.tick_params(axis="y", labelcolor=color, color=color)
        right.spines[side].set_color(color)


def _look(series: Series, in_rows: bool) -> dict[str, Any]:
    color = LIGHT[series.color]
    return {
        "color": color,
        "marker": MARKS[series.marker],
        "ms": 3.6 if series.line or in_rows else 3,
        "mew": 0.9,
        "mfc": color if series.filled else GROUND if series.line else "none",
        "lw": (0.6 if series.faint else 1.3) if series.line else 0,
        "ls": DASHES[series.dash] if series.line else "none",
        "alpha": 0.55 if series.faint else 1 if series.line or in_rows else 0.6,
    }


def _series(axes: Axes, series: Series, panel: Panel, gid: str) -> Line2D:
    in_rows, look = panel.y.categorical, _look(series, panel.y.categorical)
    bounds = [
        (x, y, low, high)
        for x, y, low, high in zip(series.x, series.y, series.low, series.high, strict=False)
        if low is not None and high is not None
    ]
    if bounds and in_rows:
        for _, row, low, high in bounds:
            axes.plot([low, high], [row, row], color=look["color"], lw=1.1, solid_capstyle="butt", gid=gid)
    elif bounds:
        x, _, low, high = zip(*bounds, strict=True)
        axes.fill_between(x, low, high, color=look["color"], alpha=0.13, lw=0, gid=gid)  # type: ignore[arg-type]
    if series.line:
        axes.add_line(Line2D(series.x, series.y, gid=gid, **dict(look, marker="")))
    # Marks on the frame's edge are drawn whole; those beyond it are not drawn, or named by an arrow at their row.
    y_axis = panel.right if series.right and panel.right else panel.y
    points = list(zip(series.x, series.y, strict=True))
    inside = [(x, y) for x, y in points if panel.x.low <= x <= panel.x.high and y_axis.low <= y <= y_axis.high]
    _marks(axes, inside, look, gid)
    if in_rows:
        for edge, mark in ((panel.x.low, "<"), (panel.x.high, ">")):
            beyond = [(edge, y) for x, y in points if (x < edge if mark == "<" else x > edge)]
            _marks(axes, beyond, dict(look, marker=mark, mfc=look["color"]), gid)
    return Line2D([], [], **look)


def _marks(axes: Axes, points: Sequence[tuple[float, float]], look: Mapping[str, Any], gid: str) -> None:
    if points and look["marker"]:
        x, y = zip(*points, strict=True)
        axes.add_line(Line2D(x, y, gid=gid, **{**look, "lw": 0, "ls": "none", "clip_on": False}))


def _legend(canvas: Canvas, handles: Sequence[Line2D], labels: Sequence[str]) -> int:
    """Under the panels, in so many columns as the labels leave room for; the lines it has."""
    for columns in (3, 2, 1):
        legend = canvas.legend(
            handles,
            list(map(_clean, labels)),
            loc="outside lower center",  # type: ignore[arg-type]  # matplotlib's annotations lack the outside places
            ncols=columns,
        )
        if columns == 1 or legend.get_window_extent().width <= canvas.bbox.width:
            for handle in legend.legend_handles:
                if handle is not None:
                    handle.set_alpha(1)
            return math.ceil(len(handles) / columns)
        legend.remove()
    raise AssertionError("one column always fits")


def _stops(all_axes: Sequence[Axes], panel: Panel, keys: Sequence[str]) -> tuple[list[list[Any]], str]:
    """Where the page has something to read: every point of a scatter, every row, or every x of lines."""
    lively = [series for series in panel.series if not series.faint]
    in_rows, height = panel.y.categorical, all_axes[0].get_figure().bbox.height  # type: ignore[union-attr]
    nearest = "y" if in_rows else "x" if all(series.line for series in lively) else "xy"
    named = {value: text.replace("\n", " ") for value, text in (panel.y if in_rows else panel.x).ticks}
    stops: dict[Any, list[Any]] = {}
    longest = itertools.zip_longest
    points: list[Any] = [
        (series, *point)
        for series in lively
        for point in longest(series.x, series.y, longest(series.low, series.high), series.notes)
    ]
    if nearest == "x":
        points.sort(key=lambda point: (point[0].right, -point[2]))
    for series, x, y, pair, note in points:
        at = round(y) if in_rows else x if nearest == "x" else len(stops)
        axes = all_axes[-1 if series.right else 0]
        px, py = axes.transData.transform((x, at if in_rows else y))
        if nearest == "xy":
            heading, text = note or "", f"true {number(x)}, predicted {number(y)}"
        else:
            heading = named.get(at) or (f"{at:,.0f}" if at == int(at) else number(at))
            heading = heading if in_rows else f"{panel.x.label}: {heading}"
            text = number(x if in_rows else y)
            text += f" {number_interval(pair)}" if pair and None not in pair else ""
        stop = stops.setdefault(at, [round(float(px), 1), round(float(height - py), 1), heading, []])
        stop[3].append([keys.index(series.key), text])
    return [stops[at] for at in (stops if nearest == "xy" else sorted(stops))], nearest


def _svg(canvas: Canvas) -> str:
    """What is on a canvas, as an element of a page: its colors are variables, nothing in it has an id of its own."""
    written = io.StringIO()
    canvas.savefig(
        written, format="svg", dpi=72, transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    root = ElementTree.fromstring(written.getvalue())
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag.endswith(("}style", "}metadata"))]:
            parent.remove(child)
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
        attributes = {name.rpartition("}")[2]: value for name, value in node.attrib.items()}
        identity = attributes.get("id", "")
        if node.tag == "g" and attributes.pop("id", "").startswith("key-"):
            attributes["data-key"] = identity.removeprefix("key-")
        if style := attributes.pop("style", ""):
            style = re.sub(r" ?font-family: [^;]*;?", "", style)
            attributes["style"] = re.sub("#[0-9a-f]{6}", lambda found: f"var(--{VARIABLES[found[0]]})", style)
        for name in attributes.keys() & {"d", "x", "y", "transform"}:
            attributes[name] = re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", attributes[name])
        node.attrib.clear()
        node.attrib.update(attributes)
        node.text, node.tail = (part if part and part.strip() else None for part in (node.text, node.tail))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    return ElementTree.tostring(root, encoding="unicode")
