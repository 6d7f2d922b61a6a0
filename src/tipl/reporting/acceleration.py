"""Accelerated runs beside plain ones, in one environment and in several: what is concluded, drawn and tabled.

In: the folders of `tipl accelerate` (their metrics.json).  Out: a `Section` each, and one of all together.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tipl.errors import TiplError
from tipl.evaluation.statistics import LEAST_TRIALS, Interval, holm, p_value
from tipl.files import read_json
from tipl.reporting.across import SHARED, across
from tipl.reporting.parts import (
    NEUTRAL,
    Cell,
    Figure,
    Found,
    Panel,
    Row,
    Rule,
    Section,
    Series,
    linear_axis,
    rows_panel,
)
from tipl.reporting.read import METRICS_BYTES, peeked, section_from
from tipl.reporting.wording import duration, interval_note, listing, number, number_interval, too_few

SCHEMA = 1
KIND_COLORS = {"accepted": 2, "shrunk": 5, "rejected": 4, "taken back": 1, "invalid": 6, "silent": 8}
"""Of what jumps came to; iterations in which none was due are the rest."""
TRUST_COLOR = 3
MOST_PANELS = 3
MOST_BANDS = 4
"""Learning curves that can be told apart with their quartiles shaded."""
TOGETHER = "All environments"
_KIND = "accelerated"
_JUDGED = "steps to 90%"
_AS_MANY = Rule("As many", 1.0)
_FACTS = ("config", "forecaster", "jump", "fit")
_NO_GAIN = (
    "Plain training gained no return here, so that shares of its gain mean nothing: the steps to them are no evidence."
)


def is_acceleration(folder: Path) -> bool:
    """Whether a folder's metrics.json is of `tipl accelerate`; one that cannot be read is not."""
    return "arms" in peeked(folder)


def read_acceleration(folder: Path) -> Section:
    """Read FOLDER/metrics.json; raises as `section_from`."""
    return section_from(folder, SCHEMA, "accelerate again", "an acceleration", _acceleration)


def _acceleration(metrics: Mapping[str, Any]) -> Section:
    arms, levels, seeds = metrics["arms"], metrics["thresholds"], metrics["seeds"]
    first = next(iter(arms))
    config = arms[first]["config"]
    figures = [_curves(metrics), _thresholds(metrics), _finals(metrics), _jumps(metrics)]
    return Section(
        title=str(metrics["env_id"]),
        kind=_KIND,
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
        rows=[Row(name, _cells(entry, list(levels), len(seeds), arms[first])) for name, entry in arms.items()],
        settings={name: {key: entry[key] for key in _FACTS if key in entry} for name, entry in arms.items()}
        | {"Time": {name: duration(entry["seconds"]) for name, entry in arms.items()}, "Versions": metrics["versions"]},
    )  # fmt: skip


def _sentence(arms: Mapping[str, Any], first: str, seeds: int) -> str:
    """Which arms need fewer environment steps to 90% of the gain, and which end lower; corrected for all arms."""
    groups: dict[int, list[str]] = {-1: [], 0: [], 1: []}
    others = {name: entry["beside"] for name, entry in arms.items() if name != first}
    ratios = [(found[_JUDGED]["ratio"], found[_JUDGED]["ratio_ci"]) for found in others.values()]
    ends = [(found["final return"]["difference"], found["final return"]["difference_ci"]) for found in others.values()]
    lower = []
    for name, steps, ratio, final, end in zip(
        others, signs(ratios, 1.0, seeds), ratios, signs(ends, 0.0, seeds), ends, strict=True
    ):
        groups[steps].append(f"{name} ({number(ratio[0])} ×{f' {number_interval(ratio[1])}' if ratio[1] else ''})")
        if final < 0 and end[1]:
            lower.append(f"{name} ({number(end[0])} {number_interval(end[1])})")
    words = {-1: "Fewer", 0: "No fewer", 1: "More"}
    clauses = [f"{words[sign]} environment steps than {first}: {listing(who)}." for sign, who in groups.items() if who]
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


def _cells(entry: Mapping[str, Any], levels: Sequence[str], seeds: int, first: Any) -> list[Cell | None]:
    def own(measure: str, note: str = "") -> Cell:
        return Cell(entry[measure]["mean"], _pair(entry[measure]["mean_ci"]), note)

    def beside(measure: str, kind: str, scale: float = 1.0) -> Cell | None:
        if "beside" not in entry:
            return None
        value, bounds = (entry["beside"][measure][key] for key in (kind, f"{kind}_ci"))
        return Cell(value * scale, (bounds[0] * scale, bounds[1] * scale) if bounds else None)

    # Steps at what they take. Not the clock's seconds of whole arms, which ran one after the other while other work
    # came and went: jumps and the iterations around them were timed side by side.
    slower = (1 + entry["overhead"]) / (1 + first["overhead"])
    jumps = entry["jumps"]["counts"] if "jumps" in entry else None
    made = sum(jumps[kind] for kind in ("accepted", "shrunk")) if jumps else 0
    others = ", ".join(f"{count} {kind}" for kind, count in jumps.items() if count) if jumps else ""
    reached = {level: entry["reached"][level] for level in levels}
    return [
        *(own(f"steps to {level}", f"reached by {n}" if n != seeds else "") for level, n in reached.items()),
        *(beside(f"steps to {level}", "ratio") for level in levels),
        *(beside(f"steps to {level}", "ratio", slower) for level in levels),
        own("final return"),
        beside("final return", "difference"),
        own("mean return"),
        Cell(made, note=others) if jumps else None,
        Cell(entry["overhead"]) if jumps else None,
    ]  # fmt: skip


def _pair(bounds: Sequence[float] | None) -> tuple[float, float] | None:
    return (bounds[0], bounds[1]) if bounds else None


def _steps(metrics: Mapping[str, Any], count: int) -> tuple[float, ...]:
    return tuple(float((i + 1) * metrics["steps_per_iteration"]) for i in range(count))


def _curves(metrics: Mapping[str, Any]) -> Figure:
    series = []
    for place, (name, entry) in enumerate(metrics["arms"].items()):
        curve = entry["curve"]
        color, dash = (NEUTRAL, 0) if place == 0 else ((place - 1) % NEUTRAL, (place - 1) // NEUTRAL % 4)
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
    arms = {name: entry["beside"] for name, entry in metrics["arms"].items() if "beside" in entry}
    if not arms:
        return None
    groups = {
        f"to {level}": [_found(beside[f"steps to {level}"], "ratio") for beside in arms.values()]
        for level in metrics["thresholds"]
    }
    panel = rows_panel("", "Environment steps ÷ plain training’s", list(arms), groups, _AS_MANY)
    caption = "Ratio of mean environment steps until the return of an iteration first reaches a threshold: shares of "
    caption += "the way from plain training’s first return to its final one, or a return asked for. A run that never "
    caption += f"does counts with its length. Paired by seed.{interval_note(len(metrics['seeds']), 'Bars', 'seeds')}"
    return Figure("steps-to-threshold", "Environment steps to a return", caption, (panel,))


def _finals(metrics: Mapping[str, Any]) -> Figure:
    arms = metrics["arms"]
    panels = [
        rows_panel("", title, list(arms), {"Return": [_found(entry[measure], "mean") for entry in arms.values()]})
        for measure, title in (("final return", "Final return"), ("mean return", "Mean return over training"))
    ]
    caption = "Final: of the last tenth of the iterations. Mean: the area under the learning curve."
    caption += interval_note(len(metrics["seeds"]), "Bars", "seeds")
    return Figure("final-return", "Returns", caption, tuple(panels))


def _found(entry: Mapping[str, Any], key: str) -> Found:
    return entry[key], _pair(entry[f"{key}_ci"])


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
    caption = "What came of each iteration: the forecast weights accepted in full, shrunk to the bound on KL, "
    caption += "rejected, taken back by the returns or advantages that came of it, invalid (NaN or huge), or none as "
    caption += "the forecaster has not earned trust. Trust: how much of what it foresaw of the last iterations came "
    caption += "true."
    return Figure("jumps", "Jumps over time", caption, tuple(panels)) if panels else None


def _share_made(counts: Mapping[str, int]) -> float:
    return (counts["accepted"] + counts["shrunk"]) / max(1, sum(counts.values()))


# Several environments


def read_together(folders: Sequence[Path]) -> Section | None:
    """What the accelerations that `read_acceleration` took say together; None if they have no two arms in
    common or two of them are of one environment."""
    metrics = [read_json(folder / "metrics.json", dict, METRICS_BYTES, finite=False) for folder in folders]
    try:
        found = across(metrics)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise TiplError(
            f"{', '.join(map(str, folders))} are no accelerations to take together ({error!r}); accelerate again with "
            "this version."
        ) from error
    beside = {reference: arms for reference, arms in found["beside"].items() if arms}
    environments = found["environments"]
    if not beside or len(set(environments)) < len(folders):
        return None
    arms = list(dict.fromkeys(arm for rows in beside.values() for arm in rows))
    columns = {
        **{f"× {reference}, {measure.removeprefix('steps to ')}": (reference, measure)
           for reference in beside for measure in SHARED if measure.startswith("steps")},
        **{f"final − {reference}, in gains": (reference, "final return") for reference in beside},
    }  # fmt: skip
    return Section(
        title=TOGETHER,
        kind=_KIND,
        sentence=" ".join(_sentence_of_all(reference, rows) for reference, rows in beside.items()),
        facts={"Environments": ", ".join(environments), "Compared with": " and ".join(beside)},
        figures=tuple(
            _figure_of_all("steps" if turn == 0 else f"steps-{turn + 1}", *each, environments)
            for turn, each in enumerate(beside.items())
            if all(row[_JUDGED]["value"] is not None for row in each[1].values())
        ),
        columns=("Arm", *columns),
        rows=[Row(arm, [_cell(beside[by].get(arm), measure) for by, measure in columns.values()]) for arm in arms],
        settings={},
    )


def _cell(row: Mapping[str, Any] | None, measure: str) -> Cell | None:
    if row is None or row[measure]["value"] is None:
        return None
    return Cell(row[measure]["value"], _pair(row[measure]["ci"]))


def _sentence_of_all(reference: str, rows: Mapping[str, Any]) -> str:
    """Which arms need fewer environment steps than a reference, and which end lower; corrected for all arms."""
    steps, finals = ([row[measure] for row in rows.values()] for measure in (_JUDGED, "final return"))
    if any(each["value"] is None for each in (*steps, *finals)):
        return f"Beside {reference} nothing is concluded: plain training gains nothing in one of the environments."
    runs = steps[0]["runs"]
    if not any(each["ci"] for each in steps):
        return f"Beside {reference}: {too_few(runs, 'runs')}"

    def below(found: Sequence[Mapping[str, Any]], null: float, words: str) -> list[str]:
        sides = signs([(each["value"], each["ci"]) for each in found], null, runs)
        return [
            f"{arm} ({number(each['value'])}{words.format(number_interval(each['ci']))})"
            for arm, side, each in zip(rows, sides, found, strict=True)
            if side < 0 and each["ci"]
        ]

    fewer, lower = below(steps, 1.0, " × {}"), below(finals, 0.0, " {} of the gain")
    said = f"Fewer environment steps than {reference} to 90% of the gain: {listing(fewer) if fewer else 'no arm'}."
    ends = f"A lower final return: {listing(lower)}." if lower else "None ends lower beyond the interval."
    return f"{said} {ends}"


def _figure_of_all(name: str, reference: str, rows: Mapping[str, Any], environments: Sequence[str]) -> Figure:
    groups = {TOGETHER: [(row[_JUDGED]["value"], _pair(row[_JUDGED]["ci"])) for row in rows.values()]}
    for place, environment in enumerate(environments):
        each = [row[_JUDGED]["by_environment"][place] for row in rows.values()]
        groups[environment] = [(found["value"], _pair(found["ci"])) for found in each]
    panel = rows_panel("", f"IQM of environment steps ÷ that of {reference}", list(rows), groups, _AS_MANY)
    caption = "Until the return of an iteration first reaches 90% of the way from plain training’s first return to its "
    caption += "final one. All environments: steps divided by the reference’s mean in each, seeds of all of them as "
    runs = next(iter(rows.values()))[_JUDGED]["runs"]
    caption += f"one sample, drawn within each environment, paired.{interval_note(runs, 'Bars', 'runs')}"
    return Figure(name, f"Environment steps beside {reference}", caption, (panel,))
