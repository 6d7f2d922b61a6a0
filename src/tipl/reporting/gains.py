"""Figures of what forecasts are worth in return: gained, recovered, wrong by how much, and run in other ways.

In: an `Evaluation`.  Out: `Figure`s, or none where it has not the numbers.
"""

from dataclasses import replace

from tipl.reporting.figure import MARKERS, NEUTRAL, Axis, Figure, Panel, Rule, linear_axis, log_axis, steps_axis
from tipl.reporting.looks import (
    NOTHING,
    PHASE_COLORS,
    arrows,
    dots_of,
    known,
    look_ahead_note,
    panel_horizons,
    rows_panel,
    series_of,
    styled,
    styles_of,
)
from tipl.reporting.read import Evaluation, Forecaster
from tipl.reporting.wording import ahead, interval_note, listing, number


def return_gained(evaluation: Evaluation) -> Figure | None:
    """What forecasts add to the origin's return, beside what training added."""
    rivals = [f for f in evaluation.forecasters if f.returns.gain and f.name != "persistence"]
    if not rivals:
        return None
    styles = styles_of(evaluation.forecasters)
    panels = []
    for phase, title, scores in (
        ("all", "All origins", {f.name: f.returns for f in rivals}),
        ("rising", "While the return rises", {f.name: s for f in rivals if (s := f.returns_by_phase.get("rising"))}),
    ):
        lines = []
        first = next(iter(scores.values()), None)
        if first and first.true_gain:
            lines.append(replace(series_of("Training itself", first.true_gain, first.true_gain_ci, NEUTRAL), dash=1))
        if true := evaluation.true_weights.get(phase):
            lines.append(
                replace(series_of("True weights, origin’s normalizer", true.gain, true.gain_ci, NEUTRAL), dash=2)
            )
        lines += [styled(styles, f, scores[f.name].gain, scores[f.name].gain_ci) for f in rivals if f.name in scores]
        lines = [line for line in lines if line.x]
        if not lines:
            continue
        x = steps_axis([h for line in lines for h in line.x], log=False)
        bounds = [v for line in lines for v in (*line.y, *known(line.low), *known(line.high))]
        y = linear_axis("Return minus the origin’s", [0, *bounds])
        panels.append(Panel(title, x, y, tuple(lines), rules=(NOTHING,)))
    if not panels:
        return None
    caption = "Mean return of the predicted policies less that of their origins, on common episodes."
    caption += interval_note(rivals[0].returns.trials, "Shaded")
    if evaluation.true_weights:
        caption += " Forecasts run under the observation normalizer of their origin; so do the true weights, dotted."
    return Figure("return-gained", "Return gained", caption + look_ahead_note(rivals), tuple(panels))


def gain_recovered(evaluation: Evaluation) -> Figure | None:
    rivals = [f for f in evaluation.forecasters if f.returns.gain_recovered and f.name != "persistence"]
    phases = ["all", *dict.fromkeys(phase for f in rivals for phase in f.returns_by_phase)]
    panels = []
    for horizon in panel_horizons(f.returns.gain_recovered for f in rivals):
        groups = []
        for phase in phases:
            scores = {f.name: f.returns if phase == "all" else f.returns_by_phase.get(phase) for f in rivals}
            values = {name: found.gain_recovered.get(horizon) for name, found in scores.items() if found}
            intervals = {name: found.gain_recovered_ci.get(horizon) for name, found in scores.items() if found}
            index = phases.index(phase)
            shift = 0.3 * (index - (len(phases) - 1) / 2)
            for dots in dots_of(rivals, values, intervals, shift=shift):
                label = "All origins" if phase == "all" else phase.capitalize()
                look = {"marker": MARKERS[index % len(MARKERS)], "color": PHASE_COLORS[index % len(PHASE_COLORS)]}
                groups.append(replace(dots, key=phase, label=label, **look))
        if groups:
            panels.append(rows_panel(ahead([horizon]), "Gain recovered", rivals, groups))
    if not panels:
        return None
    caption = "Share of the return which training added after the origin that the predicted policy already has: 1 is "
    caption += "all of it. Not shown where the interval of what training added is not above 0."
    caption += interval_note(rivals[0].returns.trials, "Bars")
    caption += arrows(panels)
    return Figure("gain-recovered", "Gain recovered", caption + look_ahead_note(rivals), tuple(panels))


def return_errors(evaluation: Evaluation) -> Figure | None:
    """How the return errors of single origins are distributed: their quantiles, for each forecaster."""
    rivals = [f for f in evaluation.forecasters if f.scatter]
    styles = styles_of(evaluation.forecasters)
    panels = []
    for horizon in panel_horizons(dict.fromkeys(f.scatter.horizon, 0.0) for f in rivals if f.scatter):
        errors = {f.name: _return_errors_of(f, horizon) for f in rivals}
        drawn = [value for found in errors.values() for value in found if value > 0]
        if not drawn:
            continue
        least = max(min(drawn), max(drawn) / _DECADES)
        lines = []
        for f in rivals:
            found = errors[f.name]
            quantiles = {(i + 0.5) / len(found): max(value, least) for i, value in enumerate(found)}
            lines.append(replace(styled(styles, f, quantiles, {}), marker="none"))  # pyright: ignore[reportArgumentType]
        floor = evaluation.noise_floor.get(horizon, 0.0)
        rules = (Rule("Noise floor of REPW, a mean", floor),) if floor > least else ()
        shares = tuple((share, f"{share:.0%}") for share in (0.0, 0.25, 0.5, 0.75, 1.0))
        x = Axis("Share of origins", 0.0, 1.0, shares)
        panels.append(Panel(ahead([horizon]), x, log_axis("|ΔJ| at most", [least, *drawn]), tuple(lines), rules=rules))
    if not panels:
        return None
    caption = "Of how many origins the return of the forecast policy is wrong by at most so much. REPW is the mean of "
    caption += "these errors, which a few origins at the right end can make almost alone; the middle is their median. "
    caption += "The smallest errors are drawn at the lower edge."
    return Figure("return-errors", "Return errors of single origins", caption + look_ahead_note(rivals), tuple(panels))


_DECADES = 1e4  # between the largest error and the smallest that is drawn as it is


def _return_errors_of(forecaster: Forecaster, horizon: int) -> list[float]:
    """|ΔJ| of every origin at a horizon, the smallest first."""
    scatter = forecaster.scatter
    if scatter is None:
        return []
    rows = zip(scatter.horizon, scatter.true, scatter.predicted, strict=True)
    return sorted(abs(true - predicted) for h, true, predicted in rows if h == horizon)


VARIANTS = {
    "mean_actions": "Mean actions",
    "oracle_normalizer": "Mean actions, oracle normalizer",
    "sampled_actions": "Sampled actions",
}


def variants(evaluation: Evaluation) -> Figure | None:
    """REPW and return gained where policies are run in other ways."""
    rivals = [f for f in evaluation.forecasters if f.variants]
    horizons = sorted({h for f in rivals for scores in f.variants.values() for h in scores.repw})
    if not horizons:
        return None
    names = ["mean_actions", *dict.fromkeys(name for f in rivals for name in f.variants)]
    panels = []
    for title, curve, bounds in (
        ("REPW", lambda s: s.repw, lambda s: s.repw_ci),
        ("Return minus the origin’s", lambda s: s.gain, lambda s: s.gain_ci),
    ):
        groups = []
        for index, name in enumerate(names):
            scores = {f.name: f.returns if name == "mean_actions" else f.variants.get(name) for f in rivals}
            values = {n: curve(found).get(horizons[-1]) for n, found in scores.items() if found}
            intervals = {n: bounds(found).get(horizons[-1]) for n, found in scores.items() if found}
            look = {"marker": MARKERS[index % len(MARKERS)], "color": PHASE_COLORS[index % len(PHASE_COLORS)]}
            for dots in dots_of(rivals, values, intervals, shift=0.28 * (index - (len(names) - 1) / 2)):
                groups.append(replace(dots, key=name, label=VARIANTS.get(name, name), **look))
        if groups:
            drawn = [v for group in groups for v in (*group.x, *known(group.low), *known(group.high))]
            panels.append(rows_panel(title, title, rivals, groups, None, (min(drawn), max(drawn))))
    caption = f"{ahead(horizons[-1:]).capitalize()}. A forecast is run under its origin’s observation normalizer; the "
    caption += "oracle’s is the true policy’s. Under that even persistence moves: what it gains there, the normalizer "
    caption += f"alone gains.{interval_note(rivals[0].returns.trials, 'Bars')}"
    floors = {"mean_actions": evaluation.noise_floor.get(horizons[-1])}
    floors |= {name: floor for name, (floor, _) in evaluation.variant_floors.items() if name != "oracle_normalizer"}
    said = [
        f"{number(floor)} ({VARIANTS.get(name, name).lower()})" for name, floor in floors.items() if floor is not None
    ]
    if said:
        caption += f" Noise floor of REPW: {listing(said)}."
    return Figure("variants", "Other ways to run the policies", caption + look_ahead_note(rivals), tuple(panels))
