"""What the figures show, once for both places that draw them: the page (page.js) and paper (paper.py).

In: an `Evaluation`.  Out: `Figure`s, plain data with every limit, tick and label already chosen.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from tipl.report.curves import (
    directions_by_tensor,
    directions_over_learning,
    learning_curves,
    spectra,
    training_curve,
)
from tipl.report.figure import (
    MARKERS,
    NEUTRAL,
    Axis,
    Figure,
    Marker,
    Panel,
    Rule,
    Series,
    linear_axis,
    steps_axis,
)
from tipl.report.looks import LOWEST_SKILL, below_note, color_of, look_ahead_note, on_scale, row_name, styles_of
from tipl.report.read import Curve, Evaluation, Forecaster, Intervals
from tipl.report.wording import ahead, listing, number, score, slug

WPE_COLOR, REPW_COLOR = 3, 2
DOT_COLOR, PHASE_COLORS = 0, (0, 4, 2, 6)
NOTHING = Rule("Doing nothing", 0.0)


def figures(evaluation: Evaluation) -> tuple[list[Figure], list[str]]:
    """All figures that the evaluation has the numbers for, and the titles of those left out."""
    makers: list[tuple[str, Callable[[Evaluation], Figure | None]]] = [
        ("Skill by horizon", _skill),
        ("Skill by place in the PPO iteration", _by_place),
        ("Skill by phase of learning", _by_phase),
        ("Look-ahead", _look_ahead),
        ("Share of trials improved", _improved),
        ("Return gained", _gained),
        ("Gain recovered", _gain),
        ("Other ways to run the policies", _variants),
        ("Energy spectra", spectra),
        ("Directions over learning: displacements", partial(directions_over_learning, of="displacements")),
        ("Directions over learning: weights", partial(directions_over_learning, of="weights")),
        ("Directions by tensor", directions_by_tensor),
        ("Training curve", training_curve),
        ("Learning curves", learning_curves),
    ]
    drawn = [figure for model in evaluation.models if (figure := _figure_2(evaluation, model))]
    left_out = [] if drawn else ["the paper’s Figure 2"]
    if not any(forecaster.returns.repw for forecaster in evaluation.forecasters):
        left_out.append("returns of predicted policies")
    for title, make in makers:
        figure = make(evaluation)
        if figure:
            drawn.append(figure)
        else:
            left_out.append(title[0].lower() + title[1:])
    return drawn, left_out


# The paper's figure


def _figure_2(evaluation: Evaluation, model: Forecaster) -> Figure | None:
    """The paper's Figure 2 (arXiv 2503.04074): WPE and REPW by forward step, and true against predicted returns."""
    panels = [panel for panel in (_errors(evaluation, model), _returns(model)) if panel]
    if not panels:
        return None
    caption = f"Predictions by {model.full_label}. "
    if len(panels) == 2:
        caption += "Left: error of the weights (WPE, left axis) and of the return (REPW, right axis). Right: one "
        caption += "point a forecast. "
    caption += "Persistence, which does nothing, stands beside it: a point on the diagonal or a level REPW proves "
    caption += "nothing that persistence shows as well."
    last = max(set(model.returns.change_r2) | set(model.returns.better_than_origin), default=None)
    if last in model.returns.change_r2:
        caption += f" R² of the change in return {ahead([last])}: {score(model.returns.change_r2[last])}."
    if last in model.returns.better_than_origin:
        share = model.returns.better_than_origin[last]
        caption += f" Predicted policies better than the origin’s {ahead([last])}: {share:.0%}."
    return Figure(f"figure-2-{slug(model.name)}", f"The paper’s Figure 2: {model.full_label}", caption, tuple(panels))


def _errors(evaluation: Evaluation, model: Forecaster) -> Panel | None:
    horizons = evaluation.return_horizons or tuple(h for h in evaluation.horizons if h <= 10)
    persistence = evaluation.get("persistence")
    shown = [model, persistence] if persistence else [model]
    if not model.wpe and not model.returns.repw:
        return None
    series = [_error_line("WPE", forecaster, forecaster.wpe, {}, horizons) for forecaster in shown]
    floor = {h: value for h, value in evaluation.reconstruction_floor.get(model.name, {}).items() if h in horizons}
    if floor:
        line = _series("Reconstruction floor", floor, {}, WPE_COLOR)
        series.append(replace(line, dash=2, marker="none"))
    series += [_error_line("REPW", f, f.returns.repw, f.returns.repw_ci, horizons) for f in shown]
    series = [line for line in series if line.x]
    if evaluation.noise_floor:
        line = _series("Noise floor of REPW", evaluation.noise_floor, evaluation.noise_floor_ci, REPW_COLOR)
        series.append(replace(line, dash=2, marker="none" if len(line.x) > 1 else "diamond", right=True))
    left = [value for line in series if not line.right for value in line.y]
    right = [v for line in series if line.right for v in (*line.y, *filter(None, line.high))]
    steps = [h for line in series for h in line.x]
    return Panel(
        "Error by forward step",
        steps_axis(steps, log=max(steps) > 10),  # linear as the paper's, where there is room
        linear_axis("WPE", [0, *left]),
        tuple(series),
        right=linear_axis("REPW", [0, *right]) if right else None,
    )


def _error_line(
    measure: str, forecaster: Forecaster, curve: Curve, intervals: Intervals, horizons: Sequence[int]
) -> Series:
    is_repw = measure == "REPW"
    shown = {h: value for h, value in curve.items() if h in horizons}
    line = _series(f"{measure}, {forecaster.full_label}", shown, intervals, REPW_COLOR if is_repw else WPE_COLOR)
    marker, dash = "square" if is_repw else "circle", 0 if forecaster.is_model else 1
    return replace(line, right=is_repw, marker=marker, filled=forecaster.is_model, dash=dash)


def _returns(model: Forecaster) -> Panel | None:
    scatter = model.scatter
    if scatter is None:
        return None
    notes = tuple(ahead([horizon]) for horizon in scatter.horizon)
    values = (*scatter.true, *scatter.predicted, *scatter.origin)
    margin = 0.04 * (max(values) - min(values))
    axis = linear_axis("Return of the true policy", [min(values) - margin, max(values) + margin], is_tight=True)
    points = Series("origin", "Persistence", NEUTRAL, scatter.true, scatter.origin, line=False, filled=False)
    ours = Series("model", model.full_label, color_of(model), scatter.true, scatter.predicted, line=False)
    return Panel(
        "Return, predicted against true",
        axis,
        replace(axis, label="Return of the predicted policy"),
        (replace(points, marker="square", notes=notes), replace(ours, notes=notes)),
        diagonal=True,
    )


# Skill


def _skill(evaluation: Evaluation) -> Figure | None:
    rivals = [f for f in evaluation.forecasters if f.skill and f.name != "persistence"]
    styles = styles_of(evaluation.forecasters)
    lines = [_styled(styles, f, f.skill, f.skill_ci) for f in rivals]
    if not lines:
        return None
    x = steps_axis([h for line in lines for h in line.x], log=True)
    nothing = Rule("Doing nothing", 0.0)
    bounds = [v for line in lines for v in (*line.y, *_known(line.low), *_known(line.high))]
    whole = linear_axis("Skill", [0, *map(on_scale, bounds)])
    panels = [Panel("All forecasters", x, whole, tuple(lines), rules=(nothing,))]
    # Where honest skills are small beside the scale, a second panel is drawn for them alone.
    top = max(
        [0.02, *(v for f in rivals if f.causal for v in (*f.skill.values(), *(p[1] for p in f.skill_ci.values())))]
    )
    close = linear_axis("Skill", [-0.3 * top, top])
    if whole.high - whole.low > 2.2 * (close.high - close.low):
        panels.append(Panel("The same, near zero", x, close, tuple(lines), rules=(nothing,)))
    caption = "Skill is 1 for a perfect forecast and 0 for doing nothing."
    if any(f.skill_ci for f in rivals):
        caption += " Shaded: 95% intervals by trial."
    return Figure(
        "skill", "Skill by horizon", caption + below_note(panels[:1]) + look_ahead_note(rivals), tuple(panels)
    )


def _look_ahead(evaluation: Evaluation) -> Figure | None:
    """What a basis is worth: skill in weights, the most that it allows, and skill within it."""
    coded = [f for f in evaluation.forecasters if f.skill_in_basis]
    if not coded:
        return None
    styles, still = styles_of(evaluation.forecasters), evaluation.get("persistence")
    honest = evaluation.get("autoregression")
    in_weights = [_styled(styles, f, f.skill, f.skill_ci) for f in (*coded, *([honest] if honest else [])) if f.skill]
    moved = still.wpe if still else {}
    for basis, f in {f.basis: f for f in reversed(coded)}.items():
        floor = evaluation.reconstruction_floor.get(f.name, {})
        most = {h: 1 - floor[h] / moved[h] for h in floor if moved.get(h)}
        if most:
            line = _series(f"The most that the {basis} basis allows", most, {}, color_of(f))
            in_weights.append(replace(line, dash=2, marker="none"))
    within = [_styled(styles, f, f.skill_in_basis, {}) for f in coded]
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


def _by_place(evaluation: Evaluation) -> Figure | None:
    rivals = [f for f in evaluation.forecasters if f.skill_by_place and f.name != "persistence"]
    styles = styles_of(evaluation.forecasters)
    places = sorted({place for f in rivals for place in f.skill_by_place})
    panels = []
    for horizon in _panel_horizons(curve for f in rivals for curve in f.skill_by_place.values()):
        lines = []
        for forecaster in rivals:
            by_place = {p: c[horizon] for p, c in forecaster.skill_by_place.items() if horizon in c}
            lines.append(_styled(styles, forecaster, dict(sorted(by_place.items())), {}))
        lines = [line for line in lines if line.x]
        values = [on_scale(value) for line in lines for value in line.y]
        x = Axis(
            "Place of the origin in its PPO iteration",
            min(places) - 0.3,
            max(places) + 0.3,
            tuple((float(place), str(place)) for place in places),
            categorical=True,
        )
        rule = Rule("Doing nothing", 0.0)
        panels.append(Panel(ahead([horizon]), x, linear_axis("Skill", [0, *values]), tuple(lines), rules=(rule,)))
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


def _by_phase(evaluation: Evaluation) -> Figure | None:
    rivals = [f for f in evaluation.forecasters if f.skill_by_phase and f.name != "persistence"]
    phases = list(dict.fromkeys(phase for f in rivals for phase in f.skill_by_phase))
    panels = []
    for horizon in _panel_horizons(curve for f in rivals for curve in f.skill_by_phase.values()):
        groups = []
        for index, phase in enumerate(phases):
            curves = {f.name: f.skill_by_phase[phase] for f in rivals if phase in f.skill_by_phase}
            values = {name: curve.get(horizon) for name, curve in curves.items()}
            marker, color = MARKERS[index % len(MARKERS)], PHASE_COLORS[index % len(PHASE_COLORS)]
            bounds = {f.name: f.skill_by_phase_ci.get(phase, {}).get(horizon) for f in rivals}
            for dots in _dots(rivals, values, bounds, shift=0.3 * (index - (len(phases) - 1) / 2)):
                groups.append(replace(dots, key=phase, label=phase.capitalize(), marker=marker, color=color))
        panels.append(_rows(ahead([horizon]), "Skill", rivals, groups))
    if not panels:
        return None
    caption = "Rising: the trial’s return is still below its ceiling. Ceiling: it has arrived, and says little about "
    caption += "forecasts of return."
    if any(f.skill_by_phase_ci for f in rivals):
        caption += " Bars: 95% intervals by trial."
    caption += _arrows(panels)
    return Figure("skill-by-phase", "Skill by phase of learning", caption + look_ahead_note(rivals), tuple(panels))


def _improved(evaluation: Evaluation) -> Figure | None:
    rivals = [f for f in evaluation.forecasters if f.improved and f.name != "persistence"]
    horizons = _panel_horizons(f.improved for f in rivals)
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
            for dots in _dots(shown, shares, intervals, shift=0.3 * index - 0.15):
                groups.append(replace(dots, label=label, **look))
        half = Rule("As often better as worse", 0.5)
        panels.append(_rows(ahead([horizon]), "Share of test trials", shown, groups, half, (0.0, 1.0)))
    if not panels:
        return None
    caption = "In how many of the test trials the forecast’s error is the smaller one; ties count half. Bars: 95% "
    caption += "intervals by trial."
    if len(shown) < len(rivals):
        caption += f" Not shown: {len(rivals) - len(shown)} that are better than neither in any trial."
    return Figure("trials-improved", "Share of trials improved", caption + look_ahead_note(shown), tuple(panels))


def _gained(evaluation: Evaluation) -> Figure | None:
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
            lines.append(replace(_series("Training itself", first.true_gain, first.true_gain_ci, NEUTRAL), dash=1))
        if true := evaluation.true_weights.get(phase):
            lines.append(
                replace(_series("True weights, origin’s normalizer", true.gain, true.gain_ci, NEUTRAL), dash=2)
            )
        lines += [_styled(styles, f, scores[f.name].gain, scores[f.name].gain_ci) for f in rivals if f.name in scores]
        lines = [line for line in lines if line.x]
        if not lines:
            continue
        x = steps_axis([h for line in lines for h in line.x], log=False)
        bounds = [v for line in lines for v in (*line.y, *_known(line.low), *_known(line.high))]
        y = linear_axis("Return minus the origin’s", [0, *bounds])
        panels.append(Panel(title, x, y, tuple(lines), rules=(Rule("Doing nothing", 0.0),)))
    if not panels:
        return None
    caption = "Mean return of the predicted policies less that of their origins, on common episodes. Shaded: 95% "
    caption += "intervals by trial."
    if evaluation.true_weights:
        caption += " Forecasts run under the observation normalizer of their origin; so do the true weights, dotted."
    return Figure("return-gained", "Return gained", caption + look_ahead_note(rivals), tuple(panels))


def _gain(evaluation: Evaluation) -> Figure | None:
    rivals = [f for f in evaluation.forecasters if f.returns.gain_recovered and f.name != "persistence"]
    phases = ["all", *dict.fromkeys(phase for f in rivals for phase in f.returns_by_phase)]
    panels = []
    for horizon in _panel_horizons(f.returns.gain_recovered for f in rivals):
        groups = []
        for phase in phases:
            scores = {f.name: f.returns if phase == "all" else f.returns_by_phase.get(phase) for f in rivals}
            values = {name: found.gain_recovered.get(horizon) for name, found in scores.items() if found}
            intervals = {name: found.gain_recovered_ci.get(horizon) for name, found in scores.items() if found}
            index = phases.index(phase)
            shift = 0.3 * (index - (len(phases) - 1) / 2)
            for dots in _dots(rivals, values, intervals, shift=shift):
                label = "All origins" if phase == "all" else phase.capitalize()
                look = {"marker": MARKERS[index % len(MARKERS)], "color": PHASE_COLORS[index % len(PHASE_COLORS)]}
                groups.append(replace(dots, key=phase, label=label, **look))
        if groups:
            panels.append(_rows(ahead([horizon]), "Gain recovered", rivals, groups))
    if not panels:
        return None
    caption = "Share of the return which training added after the origin that the predicted policy already has: 1 is "
    caption += "all of it. Not shown where training added nothing beyond doubt."
    if any(f.returns.gain_recovered_ci for f in rivals):
        caption += " Bars: 95% intervals by trial."
    caption += _arrows(panels)
    return Figure("gain-recovered", "Gain recovered", caption + look_ahead_note(rivals), tuple(panels))


VARIANTS = {
    "mean_actions": "Mean actions",
    "oracle_normalizer": "Mean actions, oracle normalizer",
    "sampled_actions": "Sampled actions",
}


def _variants(evaluation: Evaluation) -> Figure | None:
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
            for dots in _dots(rivals, values, intervals, shift=0.28 * (index - (len(names) - 1) / 2)):
                groups.append(replace(dots, key=name, label=VARIANTS.get(name, name), **look))
        if groups:
            drawn = [v for group in groups for v in (*group.x, *_known(group.low), *_known(group.high))]
            panels.append(_rows(title, title, rivals, groups, None, (min(drawn), max(drawn))))
    caption = f"{ahead(horizons[-1:]).capitalize()}. A forecast is run under its origin’s observation normalizer; the "
    caption += "oracle’s is the true policy’s. Under that even persistence moves: what it gains there, the normalizer "
    caption += "alone gains. Bars: 95% intervals by trial."
    floors = {"mean_actions": evaluation.noise_floor.get(horizons[-1])}
    floors |= {name: floor for name, (floor, _) in evaluation.variant_floors.items() if name != "oracle_normalizer"}
    said = [
        f"{number(floor)} ({VARIANTS.get(name, name).lower()})" for name, floor in floors.items() if floor is not None
    ]
    if said:
        caption += f" Noise floor of REPW: {listing(said)}."
    return Figure("variants", "Other ways to run the policies", caption + look_ahead_note(rivals), tuple(panels))


# Parts


def _series(label: str, curve: Mapping[int, float], intervals: Intervals, color: int) -> Series:
    pairs = [intervals.get(x) for x in curve]
    low, high = (tuple(pair[side] if pair else None for pair in pairs) for side in (0, 1))
    return Series(label, label, color, tuple(map(float, curve)), tuple(curve.values()), low, high)


def _styled(styles: dict[str, tuple[int, int, Marker]], f: Forecaster, curve: Curve, intervals: Intervals) -> Series:
    color, dash, marker = styles[f.name]
    line = _series(f.full_label, curve, intervals, color)
    return replace(line, key=f.name, dash=dash, marker=marker, filled=f.causal)


def _dots(
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


def _rows(
    title: str,
    label: str,
    forecasters: Sequence[Forecaster],
    groups: Sequence[Series],
    rule: Rule | None = NOTHING,
    span: tuple[float, float] = (LOWEST_SKILL, 1.5),
) -> Panel:
    """A panel with a row for each forecaster; its axis shows what lies in `span`."""
    values = [v for group in groups for v in (*group.x, *_known(group.low), *_known(group.high))]
    y = Axis(
        "",
        -0.6,
        len(forecasters) - 0.4,
        tuple((float(i), row_name(f)) for i, f in enumerate(forecasters)),
        categorical=True,
    )
    x = linear_axis(label, [0, *(min(span[1], max(span[0], value)) for value in values)])
    return Panel(title, x, y, tuple(groups), rules=(rule,) if rule else ())


def _panel_horizons(curves: Iterable[Curve]) -> list[int]:
    """At most two horizons to show side by side: the first and the tenth, or the last where there is no tenth."""
    known = sorted({horizon for curve in curves for horizon in curve})
    return list(dict.fromkeys((known[0], 10 if 10 in known else known[-1]))) if known else []


def _arrows(panels: Iterable[Panel]) -> str:
    beyond = any(not p.x.low <= value <= p.x.high for p in panels for series in p.series for value in series.x)
    return " Arrows: beyond the scale." if beyond else ""


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
