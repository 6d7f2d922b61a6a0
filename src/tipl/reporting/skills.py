"""Figures of what forecasts are worth in weights: by horizon, place, phase, trial and basis.

In: an `Evaluation`.  Out: `Figure`s, or none where it has not the numbers.
"""

from dataclasses import replace

from tipl.reporting.figure import MARKERS, Axis, Figure, Panel, Rule, linear_axis, steps_axis
from tipl.reporting.looks import (
    NOTHING,
    PHASE_COLORS,
    arrows,
    below_note,
    color_of,
    dots_of,
    known,
    look_ahead_note,
    on_scale,
    panel_horizons,
    rows_panel,
    series_of,
    styled,
    styles_of,
)
from tipl.reporting.read import Evaluation
from tipl.reporting.wording import ahead, interval_note, listing


def skill(evaluation: Evaluation) -> Figure | None:
    rivals = [f for f in evaluation.forecasters if f.skill and f.name != "persistence"]
    styles = styles_of(evaluation.forecasters)
    lines = [styled(styles, f, f.skill, f.skill_ci) for f in rivals]
    if not lines:
        return None
    x = steps_axis([h for line in lines for h in line.x], log=True)
    bounds = [v for line in lines for v in (*line.y, *known(line.low), *known(line.high))]
    whole = linear_axis("Skill", [0, *map(on_scale, bounds)])
    panels = [Panel("All forecasters", x, whole, tuple(lines), rules=(NOTHING,))]
    # Where honest skills are small beside the scale, a second panel is drawn for them alone.
    top = max(
        [0.02, *(v for f in rivals if f.causal for v in (*f.skill.values(), *(p[1] for p in f.skill_ci.values())))]
    )
    close = linear_axis("Skill", [-0.3 * top, top])
    if whole.high - whole.low > 2.2 * (close.high - close.low):
        panels.append(Panel("The same, near zero", x, close, tuple(lines), rules=(NOTHING,)))
    caption = "Skill is 1 for a perfect forecast and 0 for doing nothing."
    caption += interval_note(rivals[0].trials, "Shaded")
    return Figure(
        "skill", "Skill by horizon", caption + below_note(panels[:1]) + look_ahead_note(rivals), tuple(panels)
    )


def look_ahead(evaluation: Evaluation) -> Figure | None:
    """What a basis is worth: skill in weights, the most that it allows, and skill within it."""
    coded = [f for f in evaluation.forecasters if f.skill_in_basis]
    if not coded:
        return None
    styles, still = styles_of(evaluation.forecasters), evaluation.get("persistence")
    honest = evaluation.get("autoregression")
    in_weights = [styled(styles, f, f.skill, f.skill_ci) for f in (*coded, *([honest] if honest else [])) if f.skill]
    moved = still.wpe if still else {}
    for basis, f in {f.basis: f for f in reversed(coded)}.items():
        floor = evaluation.reconstruction_floor.get(f.name, {})
        most = {h: 1 - floor[h] / moved[h] for h in floor if moved.get(h)}
        if most:
            line = series_of(f"The most that the {basis} basis allows", most, {}, color_of(f))
            in_weights.append(replace(line, dash=2, marker="none"))
    within = [styled(styles, f, f.skill_in_basis, {}) for f in coded]
    panels = []
    for title, lines in (("Measured in weights", in_weights), ("Measured within the basis", within)):
        if lines:
            x = steps_axis([h for line in lines for h in line.x], log=True)
            y = linear_axis("Skill", [0, *(on_scale(value) for line in lines for value in line.y)])
            panels.append(Panel(title, x, y, tuple(lines), rules=(NOTHING,)))
    caption = "Within the basis, encoded and decoded snapshots stand for the true ones, so that what the basis drops "
    caption += "counts for nobody. A basis made from the whole trial has the future in it: even of a random walk, of "
    caption += "which nothing can be forecast, a line through its codes has skill there."
    return Figure("look-ahead", "Look-ahead", caption + below_note(panels) + look_ahead_note(coded), tuple(panels))


def by_place(evaluation: Evaluation) -> Figure | None:
    rivals = [f for f in evaluation.forecasters if f.skill_by_place and f.name != "persistence"]
    styles = styles_of(evaluation.forecasters)
    places = sorted({place for f in rivals for place in f.skill_by_place})
    panels = []
    for horizon in panel_horizons(curve for f in rivals for curve in f.skill_by_place.values()):
        lines = []
        for forecaster in rivals:
            by_place = {p: c[horizon] for p, c in forecaster.skill_by_place.items() if horizon in c}
            lines.append(styled(styles, forecaster, dict(sorted(by_place.items())), {}))
        lines = [line for line in lines if line.x]
        values = [on_scale(value) for line in lines for value in line.y]
        x = Axis(
            "Place of the origin in its PPO iteration",
            min(places) - 0.3,
            max(places) + 0.3,
            tuple((float(place), str(place)) for place in places),
            categorical=True,
        )
        panels.append(Panel(ahead([horizon]), x, linear_axis("Skill", [0, *values]), tuple(lines), rules=(NOTHING,)))
    if not panels:
        return None
    caption = "The snapshots of one iteration come from updates on one batch of data. From the last place on, the next "
    caption += "step is made on new data, and a forecast across it is the harder one."
    return Figure(
        "skill-by-place",
        "Skill by place in the PPO iteration",
        caption + below_note(panels) + look_ahead_note(rivals),
        tuple(panels),
    )


def by_phase(evaluation: Evaluation) -> Figure | None:
    rivals = [f for f in evaluation.forecasters if f.skill_by_phase and f.name != "persistence"]
    phases = list(dict.fromkeys(phase for f in rivals for phase in f.skill_by_phase))
    panels = []
    for horizon in panel_horizons(curve for f in rivals for curve in f.skill_by_phase.values()):
        groups = []
        for index, phase in enumerate(phases):
            curves = {f.name: f.skill_by_phase[phase] for f in rivals if phase in f.skill_by_phase}
            values = {name: curve.get(horizon) for name, curve in curves.items()}
            marker, color = MARKERS[index % len(MARKERS)], PHASE_COLORS[index % len(PHASE_COLORS)]
            bounds = {f.name: f.skill_by_phase_ci.get(phase, {}).get(horizon) for f in rivals}
            for dots in dots_of(rivals, values, bounds, shift=0.3 * (index - (len(phases) - 1) / 2)):
                groups.append(replace(dots, key=phase, label=phase.capitalize(), marker=marker, color=color))
        panels.append(rows_panel(ahead([horizon]), "Skill", rivals, groups))
    if not panels:
        return None
    caption = "Rising: the trial’s return is still below its ceiling. Ceiling: it has arrived, and says little about "
    caption += "forecasts of return."
    counts = {phase: rivals[0].trials_by_phase.get(phase, rivals[0].trials) for phase in phases}
    for count in dict.fromkeys(counts.values()):
        of = listing([phase for phase in phases if counts[phase] == count])
        caption += interval_note(count, "Bars", f"trials ({of})")
    caption += arrows(panels)
    return Figure("skill-by-phase", "Skill by phase of learning", caption + look_ahead_note(rivals), tuple(panels))


def improved(evaluation: Evaluation) -> Figure | None:
    rivals = [f for f in evaluation.forecasters if f.improved and f.name != "persistence"]
    horizons = panel_horizons(f.improved for f in rivals)
    shown = [f for f in rivals if any(curve.get(h) for h in horizons for curve in (f.improved, f.ahead))]
    panels = []
    for horizon in horizons if shown else []:
        values = {
            "Than doing nothing": [(f.improved.get(horizon), f.improved_ci.get(horizon)) for f in shown],
            "Than the best other baseline": [(f.ahead.get(horizon), f.ahead_ci.get(horizon)) for f in shown],
        }
        groups = []
        for index, (label, found) in enumerate(values.items()):
            shares = {f.name: share for f, (share, _) in zip(shown, found, strict=True)}
            intervals = {f.name: pair for f, (_, pair) in zip(shown, found, strict=True)}
            look = {"key": ("nothing", "best")[index], "marker": MARKERS[index], "color": PHASE_COLORS[index]}
            for dots in dots_of(shown, shares, intervals, shift=0.3 * index - 0.15):
                groups.append(replace(dots, label=label, **look))
        half = Rule("As often better as worse", 0.5)
        panels.append(rows_panel(ahead([horizon]), "Share of test trials", shown, groups, half, (0.0, 1.0)))
    if not panels:
        return None
    caption = "In how many of the test trials the forecast’s error is the smaller one; ties count half."
    caption += interval_note(shown[0].trials, "Bars")
    if len(shown) < len(rivals):
        caption += f" Not shown: {len(rivals) - len(shown)} that are better than neither in any trial."
    return Figure("trials-improved", "Share of trials improved", caption + look_ahead_note(shown), tuple(panels))
