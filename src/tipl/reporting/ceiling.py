"""How much can be known, and what forecasts know of it: what is concluded, drawn and tabled.

In: the folder of `tipl ceiling` (its metrics.json).  Out: a `Section`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tipl.reporting.parts import (
    MARKERS,
    NEUTRAL,
    Cell,
    Figure,
    Panel,
    Row,
    Rule,
    Section,
    Series,
    known,
    linear_axis,
    steps_axis,
)
from tipl.reporting.read import peeked, section_from
from tipl.reporting.wording import ahead, duration, interval_note, listing, score

SCHEMA, KIND = 1, "ceiling"
_MOST_BASELINES = 2  # that are drawn, those of the best direction
_BELOW = 0.5  # of the ceiling's height, as far as the axis of skill goes below doing nothing
_NAME = "The ceiling"


def is_ceiling(folder: Path) -> bool:
    """Whether a folder's metrics.json is of `tipl ceiling`; one that cannot be read is not."""
    return peeked(folder).get("kind") == KIND


def read_ceiling(folder: Path) -> Section:
    """Read FOLDER/metrics.json; raises as `section_from`."""
    return section_from(folder, SCHEMA, "run tipl ceiling again", "of a ceiling", _section)


def _section(metrics: Mapping[str, Any]) -> Section:
    horizons = [int(h) for h in metrics["horizons"]]
    ranked = _ranked(metrics["forecasters"], horizons)
    return Section(
        title=str(metrics["env_id"]),
        kind=KIND,
        sentence=_sentence(metrics, ranked, horizons),
        facts={
            "Policy": f"{'-'.join(map(str, metrics['hidden_sizes'] or []))} hidden, {metrics['num_weights']:,} weights",
            "Origins": f"{len(metrics['origins'])} at ends of iterations, {metrics['ceiling_origins']} by time",
            "Futures of each": str(metrics["futures"]),
            "Trials": str(len(metrics["test_trials"])),
        },
        figures=(_figure(metrics, ranked, horizons),),
        columns=(
            "Forecaster",
            *(f"{what}, h = {h}" for what in ("skill", "share", "cosine") for h in horizons),
        ),
        rows=[
            Row(_NAME, [*(_cell(metrics, "ceiling", h) for h in horizons), *[None] * (2 * len(horizons))]),
            *(
                Row(entry["label"], [_cell(entry, key, h) for key in ("skill", "share", "cosine") for h in horizons])
                for _, entry in ranked
            ),
        ],
        settings={
            "Settings": metrics["config"]["ceiling"],
            "Time": {"ceiling": duration(metrics["seconds"]["ceiling"])},
            "Versions": metrics["versions"],
        },
    )


def _ranked(forecasters: Mapping[str, Any], horizons: Sequence[int]) -> list[tuple[str, Any]]:
    """Models first, then by how good the direction is, at all horizons together."""

    def direction(entry: Mapping[str, Any]) -> float:
        return sum(entry["cosine"][str(h)] or 0.0 for h in horizons)

    return sorted(forecasters.items(), key=lambda item: (not item[1]["model"], -direction(item[1])))


def _sentence(metrics: Mapping[str, Any], ranked: Sequence[tuple[str, Any]], horizons: Sequence[int]) -> str:
    whole = listing([f"{score(metrics['ceiling'][str(h)])} at {ahead([h])}" for h in horizons])
    said = f"The best forecast that anybody could make has a skill of {whole}; the rest is noise that is yet to come."
    for _, entry in ranked[:1]:
        known_shares = [entry["share"][str(h)] for h in horizons if entry["share"][str(h)] is not None]
        shares = [f"{100 * share:.0f}%" if share > 0 else "nothing" for share in known_shares]
        said += f" {entry['label']} knows {listing(shares)} of that."
    return said


def _cell(entry: Mapping[str, Any], key: str, horizon: int) -> Cell | None:
    value, bounds = entry[key][str(horizon)], entry[f"{key}_ci"][str(horizon)]
    return None if value is None else Cell(value, (bounds[0], bounds[1]) if bounds else None, write=score)


def _figure(metrics: Mapping[str, Any], ranked: Sequence[tuple[str, Any]], horizons: Sequence[int]) -> Figure:
    def curve(entry: Mapping[str, Any], key: str, label: str, color: int, dash: int = 0, turn: int = 0) -> Series:
        there = [h for h in horizons if entry[key][str(h)] is not None]
        bounds = [entry[f"{key}_ci"][str(h)] or (None, None) for h in there]
        low, high = (tuple(pair[side] for pair in bounds) for side in (0, 1))
        values = tuple(float(entry[key][str(h)]) for h in there)
        marker = MARKERS[turn % len(MARKERS)]
        return Series(label, label, color, tuple(map(float, there)), values, low, high, dash=dash, marker=marker)

    models = sum(bool(entry["model"]) for _, entry in ranked)
    drawn = [*enumerate(ranked[: models + _MOST_BASELINES])]
    skills = [curve(metrics, "ceiling", _NAME, NEUTRAL, dash=2)]
    skills += [curve(entry, "skill", entry["label"], turn, turn=turn + 1) for turn, (_, entry) in drawn]
    cosines = [curve(entry, "cosine", entry["label"], turn, turn=turn + 1) for turn, (_, entry) in drawn]
    highest = max([0.02, *known(*skills[0].y, *skills[0].high)])
    panels = []
    for title, label, lines, least in (
        ("What can be known, and what is", "Skill over all futures", skills, -_BELOW * highest),
        ("How good is the direction?", "Cosine with the mean future", cosines, -1.0),
    ):
        lines = [each for each in lines if each.x]
        if lines:
            values = [v for each in lines for v in (*each.y, *known(*each.low, *each.high))]
            y = linear_axis(label, [0, *(min(1.0, max(least, v)) for v in values)])
            panels.append(
                Panel(title, steps_axis(lines, log=True), y, tuple(lines), rules=(Rule("Doing nothing", 0.0),))
            )
    caption = (
        "Each origin has been branched: from one exact state, futures with other noise. The ceiling is the skill of "
    )
    caption += "their mean, without the luck of a few branches. Skill is over all these futures; the cosine is with "
    caption += "their mean." + interval_note(len(metrics["test_trials"]), "Shaded")
    if any(value < -_BELOW * highest for line in skills for value in line.y):
        caption += " Lower skills are off the scale."
    if len(ranked) > len(drawn):
        caption += f" Not drawn: {len(ranked) - len(drawn)} baselines of worse directions."
    return Figure("ceiling", "The ceiling", caption, tuple(panels))
