"""The few parts that every figure is made of, and its axes, ticks and colors.

In: values to show.  Out: plain data with every limit, tick and label chosen, drawn alike by page.js and paper.py.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from tipl.reporting.wording import power

Marker = Literal["circle", "square", "diamond", "triangle", "none"]
MARKERS: tuple[Marker, ...] = ("circle", "square", "diamond", "triangle")

# One hue a family of forecasters, told apart by color-blind readers through lightness; a family's members, and hues
# that return, differ in dash and marker as well. The last is the neutral one.
LIGHT = ("#2450c8", "#d0450c", "#1c864a", "#6a2c7a", "#c08605", "#1a95dd", "#8a1245", "#4d4300", "#6b7280")
DARK = ("#6aa5ff", "#ff7f4a", "#7fdcab", "#a678e8", "#f6cf4a", "#5fdcf5", "#ffb3d0", "#8d7d22", "#9aa1ad")
NEUTRAL = len(LIGHT) - 1


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
    """A line across the panel at a value of note, with its 95% interval."""

    label: str
    value: float
    color: int = NEUTRAL
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Raises TypeError as `Series` does."""
        _check_numbers(self.value, *(self.interval or ()))


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


def steps_axis(horizons: Iterable[float], log: bool) -> Axis:
    known = sorted(set(horizons))
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
