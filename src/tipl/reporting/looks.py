"""How forecasters look in every figure, as lines and as dots in rows, and how far down their skills are drawn.

In: forecasters and curves.  Out: `Series` and `Panel`s, and the notes that captions owe to them.
"""

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tipl.reporting.figure import MARKERS, NEUTRAL, Axis, Marker, Panel, Rule, Series, linear_axis, tick
from tipl.reporting.read import Forecaster
from tipl.reporting.values import Curve, Intervals
from tipl.reporting.wording import listing

LOOK_AHEAD_MODEL, CAUSAL_MODEL, BASELINES_FROM = 0, 1, 2
FAMILIES = {"autoregression": 2, "damped-line": 3, "line": 4, "mean": 5, "last-difference": 6, "random": 7}
"""Colors of the baselines that every evaluation has."""

LOWEST_SKILL = -1.0
"""Where the skill axes end. As long a way from the truth as twice persistence's error needs no finer look."""

DOT_COLOR, PHASE_COLORS = 0, (0, 4, 2, 6)
NOTHING = Rule("Doing nothing", 0.0)


def styles_of(forecasters: Sequence[Forecaster]) -> dict[str, tuple[int, int, Marker]]:
    """Color, dash and marker of every forecaster; the color of a known family does not depend on the others."""
    styles: dict[str, tuple[int, int, Marker]] = {}
    members: dict[int, int] = {}
    for forecaster in forecasters:
        color = color_of(forecaster)
        turn = members[color] = members.get(color, -1) + 1
        styles[forecaster.name] = (color, turn % 4, MARKERS[(color + turn) % len(MARKERS)])
    return styles


def color_of(forecaster: Forecaster) -> int:
    if forecaster.is_model:
        return CAUSAL_MODEL if forecaster.causal else LOOK_AHEAD_MODEL
    if forecaster.name == "persistence":
        return NEUTRAL
    family = re.sub(r"-?\d+$", "", forecaster.name)
    return FAMILIES.get(family, BASELINES_FROM + sum(map(ord, family)) % (NEUTRAL - BASELINES_FROM))


def row_name(forecaster: Forecaster) -> str:
    """The label in short lines, what stands in brackets on its own."""
    head, _, rest = forecaster.full_label.partition(" (")
    return "\n".join([*textwrap.wrap(head, 24), *([f"({rest}"] if rest else [])])


def look_ahead_note(forecasters: Iterable[Forecaster]) -> str:
    seers = [forecaster.full_label for forecaster in forecasters if not forecaster.causal]
    return f" Hollow, and no forecast: {listing(seers)}." if seers else ""


def on_scale(skill: float) -> float:
    return min(1.0, max(LOWEST_SKILL, skill))


def below_note(panels: Iterable[Panel]) -> str:
    below = any(value < LOWEST_SKILL for panel in panels for line in panel.series for value in line.y)
    return f" What is below {tick(LOWEST_SKILL)} is off the scale." if below else ""


def series_of(label: str, curve: Mapping[int, float], intervals: Intervals, color: int) -> Series:
    pairs = [intervals.get(x) for x in curve]
    low, high = (tuple(pair[side] if pair else None for pair in pairs) for side in (0, 1))
    return Series(label, label, color, tuple(map(float, curve)), tuple(curve.values()), low, high)


def styled(styles: dict[str, tuple[int, int, Marker]], f: Forecaster, curve: Curve, intervals: Intervals) -> Series:
    color, dash, marker = styles[f.name]
    line = series_of(f.full_label, curve, intervals, color)
    return replace(line, key=f.name, dash=dash, marker=marker, filled=f.causal)


def dots_of(
    forecasters: Sequence[Forecaster],
    values: Mapping[str, float | None],
    intervals: Mapping[str, tuple[float, float] | None],
    shift: float = 0.0,
) -> list[Series]:
    """One dot a forecaster in the forecasters' rows, `shift` rows below the middle; hollow for look-ahead."""
    dots = []
    for causal in (True, False):
        rows = [
            (row + shift, value, intervals.get(f.name))
            for row, f in enumerate(forecasters)
            if f.causal == causal and (value := values.get(f.name)) is not None
        ]
        dots.append(
            Series(
                key="value",
                label="",
                color=DOT_COLOR,
                x=tuple(value for _, value, _ in rows),
                y=tuple(row for row, _, _ in rows),
                low=tuple(pair[0] if pair else None for _, _, pair in rows),
                high=tuple(pair[1] if pair else None for _, _, pair in rows),
                line=False,
                filled=causal,
            )
        )
    return [series for series in dots if series.x]


def rows_panel(
    title: str,
    label: str,
    forecasters: Sequence[Forecaster],
    groups: Sequence[Series],
    rule: Rule | None = NOTHING,
    span: tuple[float, float] = (LOWEST_SKILL, 1.5),
) -> Panel:
    """A panel with a row for each forecaster; its axis shows what lies in `span`."""
    values = [v for group in groups for v in (*group.x, *known(group.low), *known(group.high))]
    y = Axis(
        "",
        -0.6,
        len(forecasters) - 0.4,
        tuple((float(i), row_name(f)) for i, f in enumerate(forecasters)),
        categorical=True,
    )
    x = linear_axis(label, [0, *(min(span[1], max(span[0], value)) for value in values)])
    return Panel(title, x, y, tuple(groups), rules=(rule,) if rule else ())


def panel_horizons(curves: Iterable[Curve]) -> list[int]:
    """At most two horizons to show side by side: the first and the tenth, or the last where there is no tenth."""
    known = sorted({horizon for curve in curves for horizon in curve})
    return list(dict.fromkeys((known[0], 10 if 10 in known else known[-1]))) if known else []


def arrows(panels: Iterable[Panel]) -> str:
    beyond = any(not p.x.low <= value <= p.x.high for p in panels for series in p.series for value in series.x)
    return " Arrows: beyond the scale." if beyond else ""


def known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
