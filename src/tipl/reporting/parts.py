"""The few parts that the page is made of: sections, tables, figures with their axes, ticks and colors.

In: values to show.  Out: plain data with every limit, tick and label chosen, which drawing.py draws.
"""

import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from tipl.reporting.wording import number, power, slug

Marker = Literal["circle", "square", "diamond", "triangle", "none"]
MARKERS: tuple[Marker, ...] = ("circle", "square", "diamond", "triangle")

# One hue a family of forecasters, told apart by color-blind readers through lightness; a family's members, and hues
# that return, differ in dash and marker as well. The last is the neutral one.
LIGHT = ("#2450c8", "#d0450c", "#1c864a", "#6a2c7a", "#c08605", "#1a95dd", "#8a1245", "#4d4300", "#6b7280")
DARK = ("#6aa5ff", "#ff7f4a", "#7fdcab", "#a678e8", "#f6cf4a", "#5fdcf5", "#ffb3d0", "#8d7d22", "#9aa1ad")
NEUTRAL = len(LIGHT) - 1
GROUP_COLORS = (0, 4, 2, 6, 1, 3, 5, 7)
"""Of groups that share the rows of a panel."""
Found = tuple[float | None, tuple[float, float] | None]
"""A value and its 95% interval, each None where it is not known."""


@dataclass(frozen=True)
class Axis:
    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False
    categorical: bool = False
    """Ticks are named rows or columns, at 0, 1, 2…"""


@dataclass(frozen=True)
class Series:
    """Points to draw; `low` and `high` bound them by 95% intervals along the axis that carries the value."""

    key: str
    """Series of one key share a legend entry and are shown and hidden together."""
    label: str
    color: int
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    line: bool = True
    dash: int = 0
    marker: Marker = "circle"
    filled: bool = True
    faint: bool = False
    """One of a crowd: thin, without hover values."""
    right: bool = False
    """Measured on the right axis."""
    notes: tuple[str, ...] = ()
    """What else to say of each point."""

    def __post_init__(self) -> None:
        """Raises TypeError where a point, or a bound of one, is no number: a file may say anything."""
        _check_numbers(*self.x, *self.y, *self.low, *self.high)


@dataclass(frozen=True)
class Rule:
    """A line across the panel at a value of note."""

    label: str
    value: float

    def __post_init__(self) -> None:
        """Raises TypeError as `Series` does."""
        _check_numbers(self.value)


def _check_numbers(*values: Any) -> None:
    for value in values:
        if value is not None and not isinstance(value, Real):
            raise TypeError(f"{str(value)[:40]!r} is drawn, and is no number")


@dataclass(frozen=True)
class Panel:
    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    right: Axis | None = None
    rules: tuple[Rule, ...] = ()
    diagonal: bool = False
    """Draw y = x, and the panel as a square."""


@dataclass(frozen=True)
class Figure:
    name: str
    """Of its files."""
    title: str
    caption: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Cell:
    """A number of a table."""

    value: float
    interval: tuple[float, float] | None = None
    note: str = ""
    write: Callable[[float], str] = number
    sign: str = ""
    """better, worse or no better than what it is held against."""


@dataclass(frozen=True)
class Row:
    """A row of a table: its name, what stands small beside it, and its cells."""

    name: str
    cells: Sequence[Cell | None]
    note: str = ""
    is_warned: bool = False
    """The note is a warning."""
    horizon: int | None = None


@dataclass(frozen=True)
class Section:
    """What the page says of an evaluation or an acceleration, in plain text."""

    title: str
    sentence: str
    """The answer; where `findings` are given, they stand for it on the first screen."""
    facts: Mapping[str, str]
    figures: Sequence[Figure]
    columns: Sequence[str]
    """Of the table of all numbers; the first is that of the rows' names."""
    rows: Sequence[Row]
    settings: Mapping[str, Mapping[str, Any]]
    kind: str = ""
    """What is added to the title."""
    findings: Sequence[tuple[str, str]] = ()
    """Headings and what is said under them."""
    answer: tuple[Sequence[str], Sequence[Row], str] = ((), (), "")
    """Columns, rows and note of the table of the first screen."""
    left_out: Sequence[str] = ()
    command: str = ""

    @property
    def heading(self) -> str:
        return f"{self.title}, {self.kind}" if self.kind else self.title

    @property
    def anchor(self) -> str:
        return slug(self.heading)

    def file_name(self, figure: Figure) -> str:
        """Of the figure's files, without an ending."""
        return f"{self.anchor}-{figure.name}"


@dataclass(frozen=True)
class Shown:
    """A video or picture that is part of the page."""

    name: str
    kind: str
    """Its media type."""
    content: bytes


def steps_axis(lines: Sequence[Series], log: bool = False) -> Axis:
    """Steps ahead, with ticks at the horizons that are there, or at round ones of them."""
    known = sorted({h for line in lines for h in line.x})
    ticks = [h for h in known if not log or h in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)] or known
    low, high = (known[0] * 0.9, known[-1] * 1.1) if log else (known[0] - 0.4, known[-1] + 0.4)
    return Axis("Steps ahead", low, high, tuple((h, f"{h:g}") for h in ticks), log=log)


def linear_axis(label: str, values: Iterable[float], is_tight: bool = False) -> Axis:
    """A linear axis with round ticks around the values; a tight one ends at the values themselves."""
    known = list(values)
    low, high = min(known), max(known)
    if high == low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    raw = (high - low) / 5
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = magnitude * next(m for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ends = (low, high) if is_tight else (first * step, last * step)
    slack = 1e-9 * step
    marks = [i * step for i in range(first, last + 1) if ends[0] - slack <= i * step <= ends[1] + slack]
    exponent = math.floor(math.log10(max(abs(low), abs(high))))
    if exponent < -2 or exponent >= 6:
        label, unit = f"{label} (10{power(exponent)})", 10.0**exponent
    else:
        unit = 1.0
    decimals = max(0, -math.floor(math.log10(step / unit) + 1e-9) + (1 if step / magnitude == 2.5 else 0))
    return Axis(label, *ends, tuple((mark, tick(mark / unit, decimals)) for mark in marks))


def log_axis(label: str, values: Sequence[float]) -> Axis:
    low, high = min(values) * 0.9, max(values) * 1.1
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if len(exponents) > 4 else (1, 2, 5)
    marks = [m * 10.0**e for e in exponents for m in steps if low <= m * 10.0**e <= high]
    if len(marks) < 2:
        return linear_axis(label, values)
    return Axis(label, low, high, tuple((mark, _power_tick(mark)) for mark in marks), log=True)


def _power_tick(value: float) -> str:
    exponent = math.floor(math.log10(value) + 1e-9)
    if -4 <= exponent < 5:
        return f"{value:g}"
    mantissa = round(value / 10.0**exponent)
    return f"{'' if mantissa == 1 else f'{mantissa}×'}10{power(exponent)}"


def tick(value: float, decimals: int = 0) -> str:
    if abs(value) >= 10_000 and value % 100 == 0:
        return (f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k").replace("-", "−")
    text = f"{value:,.{decimals}f}"
    return "0" if float(text.replace(",", "")) == 0 else text.replace("-", "−")


def rows_panel(
    title: str,
    label: str,
    names: Sequence[str],
    groups: Mapping[str, Sequence[Found]],
    rule: Rule | None = None,
    ends: Sequence[float] = (),
    span: tuple[float, float] = (-math.inf, math.inf),
    hollow: Iterable[int] = (),
) -> Panel:
    """Named rows, and in each a dot of every group.

    Args:
        groups: label → a value for each row.
        ends: what the axis shows besides the values.
        span: beyond it the axis does not go.
        hollow: rows whose dots are hollow.
    """
    series = []
    for turn, (group, found) in enumerate(groups.items()):
        shift = 0.6 * ((turn + 0.5) / len(groups) - 0.5)
        color, marker = GROUP_COLORS[turn % len(GROUP_COLORS)], MARKERS[turn % len(MARKERS)]
        for filled in (True, False):
            dots = [
                (value, row + shift, *(pair or (None, None)))
                for row, (value, pair) in enumerate(found)
                if value is not None and (row not in hollow) == filled
            ]
            if dots:
                points = zip(*dots, strict=True)
                series.append(Series(group, group, color, *points, line=False, marker=marker, filled=filled))
    drawn = [min(span[1], max(span[0], v)) for each in series for v in known(*each.x, *each.low, *each.high)]
    rows = tuple((float(row), _wrapped(name)) for row, name in enumerate(names))
    y = Axis("", -0.6, len(names) - 0.4, rows, categorical=True)
    x = linear_axis(label, [*drawn, *ends, *([rule.value] if rule else [])])
    return Panel(title, x, y, tuple(series), rules=(rule,) if rule else ())


def _wrapped(name: str) -> str:
    """A row's name in short lines; what stands in brackets after it on lines of its own."""
    parts = re.split(r"\n| (?=\()", name, maxsplit=1)
    return "\n".join(line for part in parts for line in textwrap.wrap(part, 24, max_lines=4, placeholder="…"))


def known(*values: float | None) -> list[float]:
    return [value for value in values if value is not None]
