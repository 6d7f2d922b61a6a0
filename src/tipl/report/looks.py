"""How forecasters look in every figure, and how far down their skills are drawn.

In: forecasters and skills.  Out: colors, dashes, marks, row names, and the notes that captions owe to them.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence

from tipl.report.figure import MARKERS, NEUTRAL, Marker, Panel, tick
from tipl.report.read import Forecaster
from tipl.report.wording import listing

LOOK_AHEAD_MODEL, CAUSAL_MODEL, BASELINES_FROM = 0, 1, 2
FAMILIES = {"autoregression": 2, "damped-line": 3, "line": 4, "mean": 5, "last-difference": 6, "random": 7}
"""Colors of the baselines that every evaluation has."""

LOWEST_SKILL = -1.0
"""Where the skill axes end. As long a way from the truth as twice persistence's error needs no finer look."""


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
