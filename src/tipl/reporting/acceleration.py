"""Accelerated runs beside plain ones: what is concluded, drawn and tabled.

In: the folder of `tipl accelerate` (its metrics.json).  Out: an `Acceleration`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tipl.errors import TiplError
from tipl.evaluation.statistics import LEAST_TRIALS, Interval, holm, p_value
from tipl.files import read_json
from tipl.reporting.figure import MARKERS, NEUTRAL, Axis, Figure, Panel, Rule, Series, linear_axis
from tipl.reporting.metrics import METRICS_BYTES, read_metrics
from tipl.reporting.wording import duration, interval_note, listing, number, number_interval, slug, too_few

SCHEMA = 1
KIND_COLORS = {"accepted": 2, "shrunk": 5, "rejected": 4, "taken back": 1, "invalid": 6, "silent": 8}
"""Of what jumps came to; iterations in which none was due are the rest."""
TRUST_COLOR = 3
MOST_PANELS = 3
MOST_BANDS = 4
"""Learning curves that can be told apart with their quartiles shaded."""
_FACTS = ("config", "forecaster", "jump", "fit")


_NO_GAIN = (
    "Plain training gained no return here, so that shares of its gain mean nothing: the steps to them are no evidence."
)


@dataclass(frozen=True)
class Cell:
    """A number of the table."""

    value: float
    interval: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True)
class Acceleration:
    """What one metrics.json of `tipl accelerate` says; arms are compared with the first."""

    title: str
    sentence: str
    facts: Mapping[str, str]
    figures: tuple[Figure, ...]
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[Cell | None]]
    settings: Mapping[str, Mapping[str, Any]]

    @property
    def heading(self) -> str:
        return f"{self.title}, accelerated"

    @property
    def anchor(self) -> str:
        return slug(self.heading)

    def file_name(self, figure: Figure) -> str:
        """Of the figure's files, without an ending."""
        return f"{self.anchor}-{figure.name}"


def is_acceleration(folder: Path) -> bool:
    """Whether a folder's metrics.json is of `tipl accelerate`; one that cannot be read is not."""
    try:
        return "arms" in read_json(folder / "metrics.json", dict, METRICS_BYTES, finite=False)
    except TiplError:
        return False


def read_acceleration(folder: Path) -> Acceleration:
    """Read FOLDER/metrics.json.

    Raises:
        TiplError: it has another schema, or holds something that is no acceleration.
    """
    path = folder / "metrics.json"
    metrics = read_metrics(folder, "accelerate again")
    if metrics.get("schema") != SCHEMA:
        raise TiplError(
            f"{path} has schema {metrics.get('schema')!r}, this version reads {SCHEMA}; accelerate again with it."
        )
    try:
        return _acceleration(metrics)
    except (AttributeError, KeyError, TypeError, ValueError, StopIteration) as error:
        raise TiplError(f"{path} is not an acceleration ({error!r}); accelerate again with this version.") from error


def _acceleration(metrics: Mapping[str, Any]) -> Acceleration:
    arms, levels, seeds = metrics["arms"], metrics["thresholds"], metrics["seeds"]
    first = next(iter(arms))
    config = arms[first]["config"]
    figures = [_curves(metrics), _thresholds(metrics), _finals(metrics), _jumps(metrics)]
    return Acceleration(
        title=str(metrics["env_id"]),
        sentence=_sentence(arms, first, len(seeds)) if metrics.get("gain", 1) > 0 else _NO_GAIN,
        facts={
            "Policy": f"{'-'.join(map(str, config['hidden_sizes']))} hidden",
            "Seeds, paired": str(len(seeds)),
            "Steps a run": f"{config['total_steps']:,}",
            "Compared with": first,
        },
        figures=tuple(figure for figure in figures if figure),
        columns=("Arm", *(f"steps to {level}" for level in levels), *(f"× {first}, {level}" for level in levels),
                 *(f"in seconds, {level}" for level in levels), "final return", f"final − {first}", "mean return",
                 "jumps", "overhead"),
        rows={name: _row(entry, list(levels), len(seeds), arms[first]["overhead"]) for name, entry in arms.items()},
        settings={name: {key: entry[key] for key in _FACTS if key in entry} for name, entry in arms.items()}
        | {"Time": {name: duration(entry["seconds"]) for name, entry in arms.items()}, "Versions": metrics["versions"]},
    )  # fmt: skip


def _sentence(arms: Mapping[str, Any], first: str, seeds: int) -> str:
    """Which arms need fewer environment steps to 90% of the gain, and which end lower; corrected for all arms."""
    groups: dict[str, list[str]] = {"Fewer": [], "No fewer": [], "More": []}
    others = {name: entry["beside"] for name, entry in arms.items() if name != first}
    ratios = [(found["steps to 90%"]["ratio"], found["steps to 90%"]["ratio_ci"]) for found in others.values()]
    finals = [
        (found["final return"]["difference"], found["final return"]["difference_ci"]) for found in others.values()
    ]
    lower = []
    for name, steps, (ratio, ratio_ci), final, (difference, difference_ci) in zip(
        others, signs(ratios, 1.0, seeds), ratios, signs(finals, 0.0, seeds), finals, strict=True
    ):
        said = f"{number(ratio)} ×{f' {number_interval(ratio_ci)}' if ratio_ci else ''}"
        groups[{-1: "Fewer", 0: "No fewer", 1: "More"}[steps]].append(f"{name} ({said})")
        if final < 0 and difference_ci:
            lower.append(f"{name} ({number(difference)} {number_interval(difference_ci)})")
    clauses = [f"{word} environment steps than {first}: {listing(who)}." for word, who in groups.items() if who]
    sentence = f"To 90% of the return that plain training gains, paired over {seeds} seeds. {' '.join(clauses)}"
    if seeds < LEAST_TRIALS:
        return f"{sentence} {too_few(seeds, 'seeds')} All of this may be chance."
    if lower:
        return f"{sentence} A lower final return beyond the interval: {listing(lower)}."
    return f"{sentence} None ends with a lower return beyond the interval."


def signs(found: Sequence[tuple[float, Sequence[float] | None]], null: float, trials: int) -> list[int]:
    """−1, 0 or 1: on which side of `null` each value lies, 0 where it is not told apart from it by p-values that are
    corrected for all of them; by the value alone where it has no interval."""
    single = [p_value(Interval(value, *(bounds or (None, None)), trials), null) for value, bounds in found]  # pyright: ignore[reportCallIssue]
    adjusted = iter(holm([p for p in single if p is not None]))
    apart = [p is None or next(adjusted) <= 0.05 for p in single]
    return [int(np.sign(value - null)) if is_apart else 0 for (value, _), is_apart in zip(found, apart, strict=True)]


def _row(entry: Mapping[str, Any], levels: Sequence[str], seeds: int, overhead: float) -> list[Cell | None]:
    """`overhead`: of the first arm."""

    def own(measure: str, note: str = "") -> Cell:
        return Cell(entry[measure]["mean"], _pair(entry[measure]["mean_ci"]), note)

    def beside(measure: str, kind: str) -> Cell | None:
        found = entry["beside"][measure] if "beside" in entry else None
        return Cell(found[kind], _pair(found[f"{kind}_ci"])) if found else None

    def in_seconds(measure: str) -> Cell | None:
        """Steps at what they take. Not the clock's seconds of whole arms, which ran one after the other while other
        work came and went: jumps and the iterations around them were timed side by side."""
        found = beside(measure, "ratio")
        if found is None:
            return None
        slower = (1 + entry["overhead"]) / (1 + overhead)
        low_high = found.interval and (found.interval[0] * slower, found.interval[1] * slower)
        return Cell(found.value * slower, low_high)

    jumps = entry["jumps"]["counts"] if "jumps" in entry else None
    made = sum(jumps[kind] for kind in ("accepted", "shrunk")) if jumps else 0
    others = ", ".join(f"{count} {kind}" for kind, count in jumps.items() if count) if jumps else ""
    return [
        *(
            own(
                f"steps to {level}", "" if entry["reached"][level] == seeds else f"reached by {entry['reached'][level]}"
            )
            for level in levels
        ),
        *(beside(f"steps to {level}", "ratio") for level in levels),
        *(in_seconds(f"steps to {level}") for level in levels),
        own("final return"),
        beside("final return", "difference"),
        own("mean return"),
        Cell(made, note=others) if jumps else None,
        Cell(entry["overhead"]) if jumps else None,
    ]


def _pair(bounds: Sequence[float] | None) -> tuple[float, float] | None:
    return (bounds[0], bounds[1]) if bounds else None


def _steps(metrics: Mapping[str, Any], count: int) -> tuple[float, ...]:
    return tuple(float((i + 1) * metrics["steps_per_iteration"]) for i in range(count))


def _curves(metrics: Mapping[str, Any]) -> Figure:
    series = []
    for place, (name, entry) in enumerate(metrics["arms"].items()):
        curve = entry["curve"]
        color, dash = (NEUTRAL, 0) if place == 0 else ((place - 1) % NEUTRAL, (place - 1) // NEUTRAL)
        x = _steps(metrics, len(curve["iqm"]))
        bounds = (tuple(curve["low"]), tuple(curve["high"])) if len(metrics["arms"]) <= MOST_BANDS else ((), ())
        series.append(Series(name, name, color, x, tuple(curve["iqm"]), *bounds, dash=dash, marker="none"))
    values = [v for line in series for v in (*line.y, *line.low, *line.high) if v is not None]
    shares = {level: value for level, value in metrics["thresholds"].items() if "%" in level}
    rules = tuple(Rule(f"{', '.join(shares)} of the gain", value) for value in shares.values())
    x = linear_axis("Environment step", [0, *(v for line in series for v in line.x)], is_tight=True)
    panel = Panel("", x, linear_axis("Return while training", values), tuple(series), rules=rules)
    caption = "Interquartile mean over seeds of the mean return of the episodes that ended in an iteration."
    if any(line.low for line in series):
        caption += " Shaded: the quartiles over seeds."
    return Figure("curves", "Learning curves", caption, (panel,))


def _thresholds(metrics: Mapping[str, Any]) -> Figure | None:
    arms = {name: entry for name, entry in metrics["arms"].items() if "beside" in entry}
    levels = list(metrics["thresholds"])
    groups = []
    for turn, level in enumerate(levels):
        found = [entry["beside"][f"steps to {level}"] for entry in arms.values()]
        shift = 0.6 * ((turn + 0.5) / len(levels) - 0.5)
        groups.append(
            dot_series(f"to {level}", turn, [f["ratio"] for f in found], [f["ratio_ci"] for f in found], shift)
        )
    if not arms:
        return None
    panel = dot_rows("Environment steps ÷ plain training’s", list(arms), groups, Rule("As many", 1.0))
    caption = "Ratio of mean environment steps until the return of an iteration first reaches a threshold: shares of "
    caption += "the way from plain training’s first return to its final one, or a return asked for. A run that never "
    caption += f"does counts with its length. Paired by seed.{interval_note(len(metrics['seeds']), 'Bars', 'seeds')}"
    return Figure("steps-to-threshold", "Environment steps to a return", caption, (panel,))


def _finals(metrics: Mapping[str, Any]) -> Figure:
    panels = []
    for measure, title in (("final return", "Final return"), ("mean return", "Mean return over training")):
        found = [entry[measure] for entry in metrics["arms"].values()]
        dots = dot_series(title, 0, [f["mean"] for f in found], [f["mean_ci"] for f in found], 0.0)
        panels.append(dot_rows(title, list(metrics["arms"]), [dots], None))
    caption = "Final: of the last tenth of the iterations. Mean: the area under the learning curve."
    caption += interval_note(len(metrics["seeds"]), "Bars", "seeds")
    return Figure("final-return", "Returns", caption, tuple(panels))


def _jumps(metrics: Mapping[str, Any]) -> Figure | None:
    panels = []
    jumping = {name: e["jumps"] for name, e in metrics["arms"].items() if "jumps" in e and e["jump"]["full_trust"]}
    for name in [name for name, jumps in jumping.items() if _share_made(jumps["counts"]) < 0.01]:
        if len(jumping) > MOST_PANELS:  # a picture of silence is the first to go
            del jumping[name]
    for name, jumps in list(jumping.items())[:MOST_PANELS]:
        series = []
        for turn, (kind, color) in enumerate(KIND_COLORS.items()):
            shares = jumps["by_iteration"][kind]
            if any(shares):
                x = _steps(metrics, len(shares))
                series.append(Series(kind, kind, color, x, tuple(shares), marker="none", dash=turn % 3))
        x = _steps(metrics, len(jumps["trust"]))
        trust = Series("trust", "Mean trust", TRUST_COLOR, x, tuple(jumps["trust"]), marker="none", dash=3)
        axis = linear_axis("Environment step", [0, *x], is_tight=True)
        panels.append(Panel(name, axis, linear_axis("Share of seeds; trust", [0, 1]), (*series, trust)))
    if not panels:
        return None
    caption = "What came of each iteration: the forecast weights accepted in full, shrunk to the bound on KL, "
    caption += "rejected, taken back by the returns or advantages that came of it, invalid (NaN or huge), or none as "
    caption += "the forecaster has not earned trust. Trust: how much of what it foresaw of the last iterations came "
    caption += "true."
    return Figure("jumps", "Jumps over time", caption, tuple(panels))


def _share_made(counts: Mapping[str, int]) -> float:
    return (counts["accepted"] + counts["shrunk"]) / max(1, sum(counts.values()))


def dot_series(label: str, turn: int, values: Sequence[float], bounds: Sequence[Any], shift: float) -> Series:
    return Series(
        label, label, turn % NEUTRAL, tuple(values), tuple(row + shift for row in range(len(values))),
        tuple(b[0] if b else None for b in bounds), tuple(b[1] if b else None for b in bounds),
        line=False, marker=MARKERS[turn % len(MARKERS)],
    )  # fmt: skip


def dot_rows(label: str, names: Sequence[str], groups: Sequence[Series], rule: Rule | None) -> Panel:
    values = [v for group in groups for v in (*group.x, *group.low, *group.high) if v is not None]
    ticks = tuple((float(row), name) for row, name in enumerate(names))
    y = Axis("", -0.6, len(names) - 0.4, ticks, categorical=True)
    x = linear_axis(label, [*values, *([rule.value] if rule else [])])
    return Panel(label, x, y, tuple(groups), rules=(rule,) if rule else ())
