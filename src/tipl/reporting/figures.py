"""Figures of what forecasts are worth, in weights and in return, and the list of all figures.

In: an `Evaluation`.  Out: `Figure`s, or None where it lacks the numbers.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from tipl.reporting.parts import (
    MARKERS,
    NEUTRAL,
    Axis,
    Figure,
    Found,
    Marker,
    Panel,
    Rule,
    Series,
    known,
    linear_axis,
    log_axis,
    rows_panel,
    steps_axis,
    tick,
)
from tipl.reporting.read import Curve, Evaluation, Forecaster, Intervals, Scores
from tipl.reporting.wording import ahead, interval_note, listing, number, score, slug

LOOK_AHEAD_MODEL, CAUSAL_MODEL, BASELINES_FROM = 0, 1, 2
FAMILIES = {"autoregression": 2, "damped-line": 3, "line": 4, "mean": 5, "last-difference": 6, "random": 7}
"""Colors of the baselines that every evaluation has."""
WPE_COLOR, REPW_COLOR = 3, 2
LOWEST_SKILL = -1.0
"""Where the skill axes end. As long a way from the truth as twice persistence's error needs no finer look."""
NOTHING = Rule("Doing nothing", 0.0)


def skill(evaluation: Evaluation) -> Figure | None:
    rivals = evaluation.having("skill")
    lines = _lines(evaluation, rivals, "skill")
    if not lines:
        return None
    x = steps_axis(lines, log=True)
    bounds = [v for line in lines for v in (*line.y, *known(*line.low, *line.high))]
    whole = linear_axis("Skill", [0, *map(on_scale, bounds)])
    panels = [Panel("All forecasters", x, whole, tuple(lines), rules=(NOTHING,))]
    # Where honest skills are small beside the scale, a second panel is drawn for them alone.
    honest = [f for f in rivals if f.causal]
    top = max([0.02, *(v for f in honest for v in (*f["skill"].values(), *(p[1] for p in f.ci("skill").values())))])
    close = linear_axis("Skill", [-0.3 * top, top])
    if whole.high - whole.low > 2.2 * (close.high - close.low):
        panels.append(Panel("The same, near zero", x, close, tuple(lines), rules=(NOTHING,)))
    caption = "Skill is 1 for a perfect forecast and 0 for doing nothing." + interval_note(rivals[0].trials, "Shaded")
    return _figure("skill", "Skill by horizon", caption + below_note(panels[:1]), panels, rivals)


def look_ahead(evaluation: Evaluation) -> Figure | None:
    """What a basis is worth: skill in weights, the most that it allows, and skill within it."""
    coded = evaluation.having("skill_in_basis")
    still, honest = evaluation.get("persistence"), evaluation.get("autoregression")
    in_weights = _lines(evaluation, [*coded, *([honest] if honest else [])], "skill")
    moved = still["wpe"] if still else {}
    for basis, f in {f.basis: f for f in reversed(coded)}.items():
        floor = evaluation.reconstruction_floor.get(f.name, {})
        most = {h: 1 - floor[h] / moved[h] for h in floor if moved.get(h)}
        if most:
            line = series_of(f"The most that the {basis} basis allows", most, {}, color_of(f))
            in_weights.append(replace(line, dash=2, marker="none"))
    within = _lines(evaluation, coded, "skill_in_basis")
    panels = [
        skill_panel(title, steps_axis(lines, log=True), lines)
        for title, lines in (("Measured in weights", in_weights), ("Measured within the basis", within))
        if lines and coded
    ]
    caption = "Within the basis, encoded and decoded snapshots stand for the true ones, so that what the basis drops "
    caption += "counts for nobody. A basis made from the whole trial has the future in it: even of a random walk, of "
    caption += "which nothing can be forecast, a line through its codes has skill there."
    return _figure("look-ahead", "Look-ahead", caption + below_note(panels), panels, coded)


def by_place(evaluation: Evaluation) -> Figure | None:
    rivals = [f for f in evaluation.forecasters if f.skill_by_place and f.name != "persistence"]
    places = sorted({place for f in rivals for place in f.skill_by_place})
    styles, panels = styles_of(evaluation.forecasters), []
    for horizon in panel_horizons(curve for f in rivals for curve in f.skill_by_place.values()):
        found = {f: {p: c[horizon] for p, c in sorted(f.skill_by_place.items()) if horizon in c} for f in rivals}
        lines = [styled(styles, f, curve, {}) for f, curve in found.items() if curve]
        ticks = tuple((float(place), str(place)) for place in places)
        label = "Snapshots of the iteration before the origin"
        x = Axis(label, min(places) - 0.3, max(places) + 0.3, ticks, categorical=True)
        panels.append(skill_panel(ahead([horizon]), x, lines))
    caption = "The snapshots of one iteration come from updates on one batch of data. After the last of them the next "
    caption += "step is made on new data, and a forecast across it is the harder one." + below_note(panels)
    return _figure("skill-by-place", "Skill by snapshot of the PPO iteration", caption, panels, rivals)


def by_phase(evaluation: Evaluation) -> Figure | None:
    rivals = [f for f in evaluation.forecasters if f.by_phase and f.name != "persistence"]
    phases = list(dict.fromkeys(phase for f in rivals for phase in f.by_phase))
    panels = []
    for horizon in panel_horizons(scores["skill"] for f in rivals for scores in f.by_phase.values()):
        groups = {p.capitalize(): [_found(f.by_phase.get(p), "skill", horizon) for f in rivals] for p in phases}
        panels.append(_rows(ahead([horizon]), "Skill", rivals, groups, NOTHING, span=(LOWEST_SKILL, 1.5)))
    caption = "Rising: the trial’s return is still below its ceiling. Ceiling: it has arrived, and says little about "
    caption += "forecasts of return."
    counts = {p: rivals[0].by_phase[p].trials for p in phases if p in rivals[0].by_phase}
    for count in dict.fromkeys(counts.values()):
        of = listing([phase for phase in counts if counts[phase] == count])
        caption += interval_note(count, "Bars", f"trials ({of})")
    return _figure("skill-by-phase", "Skill by phase of learning", caption + arrows(panels), panels, rivals)


def improved(evaluation: Evaluation) -> Figure | None:
    rivals = evaluation.having("trials_improved")
    horizons = panel_horizons(f["trials_improved"] for f in rivals)
    kinds = {"Than doing nothing": "trials_improved", "Than the best other baseline": "trials_ahead_of_best"}
    shown = [f for f in rivals if any(f[key].get(h) for h in horizons for key in kinds.values())]
    half, panels = Rule("As often better as worse", 0.5), []
    for horizon in horizons if shown else []:
        groups = {label: [_found(f, key, horizon) for f in shown] for label, key in kinds.items()}
        panels.append(_rows(ahead([horizon]), "Share of test trials", shown, groups, half, ends=(0, 1), span=(0, 1)))
    caption = "In how many of the test trials the forecast’s error is the smaller one; ties count half."
    caption += interval_note(shown[0].trials, "Bars") if shown else ""
    if len(shown) < len(rivals):
        caption += f" Not shown: {len(rivals) - len(shown)} that are better than neither in any trial."
    return _figure("trials-improved", "Share of trials improved", caption, panels, shown)


def return_gained(evaluation: Evaluation) -> Figure | None:
    """What forecasts add to the origin's return, beside what training added."""
    rivals = evaluation.having("gain")
    styles, panels = styles_of(evaluation.forecasters), []
    for phase, title, scores in (
        ("all", "All origins", {f: f for f in rivals}),
        ("rising", "While the return rises", {f: s for f in rivals if (s := f.returns_by_phase.get("rising"))}),
    ):
        first, true = next(iter(scores.values()), None), evaluation.true_weights.get(phase)
        lines = [styled(styles, f, found["gain"], found.ci("gain")) for f, found in scores.items()]
        for label, found, key, dash in (
            ("Training itself", first, "true_gain", 1),
            ("True weights, origin’s normalizer", true, "gain", 2),
        ):
            if found and rivals:
                lines.insert(0, replace(series_of(label, found[key], found.ci(key), NEUTRAL), dash=dash))
        lines = [line for line in lines if line.x]
        if lines:
            bounds = [v for line in lines for v in (*line.y, *known(*line.low, *line.high))]
            y = linear_axis("Return minus the origin’s", [0, *bounds])
            panels.append(Panel(title, steps_axis(lines), y, tuple(lines), rules=(NOTHING,)))
    caption = "Mean return of the predicted policies less that of their origins, on common episodes."
    caption += interval_note(rivals[0].trials, "Shaded") if rivals else ""
    if evaluation.true_weights:
        caption += " Forecasts run under the observation normalizer of their origin; so do the true weights, dotted."
    return _figure("return-gained", "Return gained", caption, panels, rivals)


def gain_recovered(evaluation: Evaluation) -> Figure | None:
    rivals = evaluation.having("gain_recovered")
    phases = list(dict.fromkeys(phase for f in rivals for phase in f.returns_by_phase))
    panels = []
    for horizon in panel_horizons(f["gain_recovered"] for f in rivals):
        groups = {"All origins": [_found(f, "gain_recovered", horizon) for f in rivals]}
        for phase in phases:
            groups[phase.capitalize()] = [
                _found(f.returns_by_phase.get(phase), "gain_recovered", horizon) for f in rivals
            ]
        panels.append(_rows(ahead([horizon]), "Gain recovered", rivals, groups, NOTHING, span=(LOWEST_SKILL, 1.5)))
    caption = "Share of the return which training added after the origin that the predicted policy already has: 1 is "
    caption += "all of it. Not shown where the interval of what training added is not above 0."
    caption += interval_note(rivals[0].trials, "Bars") if rivals else ""
    return _figure("gain-recovered", "Gain recovered", caption + arrows(panels), panels, rivals)


def return_errors(evaluation: Evaluation) -> Figure | None:
    """How the return errors of single origins are distributed: their quantiles, for each forecaster."""
    rivals = [f for f in evaluation.forecasters if f.scatter]
    styles, panels = styles_of(evaluation.forecasters), []
    for horizon in panel_horizons({row[0]: 0.0 for row in f.scatter} for f in rivals):
        errors = {f: sorted(abs(true - made) for h, true, made, _ in f.scatter if h == horizon) for f in rivals}
        drawn = [value for found in errors.values() for value in found if value > 0]
        if not drawn:
            continue
        least = max(min(drawn), max(drawn) / 1e4)  # the smallest that is drawn as it is
        lines = []
        for f, found in errors.items():
            quantiles = {(i + 0.5) / len(found): max(value, least) for i, value in enumerate(found)}
            lines.append(replace(styled(styles, f, quantiles, {}), marker="none"))
        floor = evaluation.noise_floor.get(horizon, 0.0)
        rules = (Rule("Noise floor of REPW, a mean", floor),) if floor > least else ()
        shares = tuple((share, f"{share:.0%}") for share in (0.0, 0.25, 0.5, 0.75, 1.0))
        x = Axis("Share of origins", 0.0, 1.0, shares)
        panels.append(Panel(ahead([horizon]), x, log_axis("|ΔJ| at most", [least, *drawn]), tuple(lines), rules=rules))
    caption = "Of how many origins the return of the forecast policy is wrong by at most so much. REPW is the mean of "
    caption += "these errors, which a few origins at the right end can make almost alone; the middle is their median. "
    caption += "The smallest errors are drawn at the lower edge."
    return _figure("return-errors", "Return errors of single origins", caption, panels, rivals)


VARIANTS = {
    "mean_actions": "Mean actions",
    "oracle_normalizer": "Mean actions, oracle normalizer",
    "sampled_actions": "Sampled actions",
}


def variants(evaluation: Evaluation) -> Figure | None:
    """REPW and return gained where policies are run in other ways."""
    rivals = [f for f in evaluation.forecasters if f.variants]
    horizons = sorted({h for f in rivals for scores in f.variants.values() for h in scores["repw"]})
    if not horizons:
        return None
    last, names = horizons[-1], list(dict.fromkeys(name for f in rivals for name in f.variants))
    panels = []
    for title, key, rule in (("REPW", "repw", None), ("Return minus the origin’s", "gain", NOTHING)):
        groups = {VARIANTS["mean_actions"]: [_found(f, key, last) for f in rivals]}
        groups |= {VARIANTS.get(n, n): [_found(f.variants.get(n), key, last) for f in rivals] for n in names}
        if any(value is not None for found in groups.values() for value, _ in found):
            panels.append(_rows(title, title, rivals, groups, rule))
    caption = f"{ahead([last]).capitalize()}. A forecast is run under its origin’s observation normalizer; the "
    caption += "oracle’s is the true policy’s. Under that even persistence moves: what it gains there, the normalizer "
    caption += f"alone gains.{interval_note(rivals[0].trials, 'Bars')}"
    floors = {"mean_actions": evaluation.noise_floor.get(last), **evaluation.variant_floors, "oracle_normalizer": None}
    said = [f"{number(f)} ({VARIANTS.get(name, name).lower()})" for name, f in floors.items() if f is not None]
    if said:
        caption += f" Noise floor of REPW: {listing(said)}."
    return _figure("variants", "Other ways to run the policies", caption, panels, rivals)


def figure_2(evaluation: Evaluation, model: Forecaster) -> Figure | None:
    """The paper's Figure 2 (arXiv 2503.04074): WPE and REPW by forward step, and true against predicted returns."""
    panels = [panel for panel in (_errors(evaluation, model), _returns(model)) if panel]
    caption = f"Predictions by {model.full_label}. "
    if len(panels) == 2:
        caption += "First: error of the weights (WPE, left axis) and of the return (REPW, right axis). Second: one "
        caption += "point a forecast. "
    caption += "Persistence, which does nothing, stands beside it: a point on the diagonal or a level REPW proves "
    caption += "nothing that persistence shows as well."
    if typical := model["repw_median"]:
        at = max(typical)
        caption += f" Median of the return errors {ahead([at])}: {number(typical[at])}; their mean, REPW: "
        caption += f"{number(model['repw'][at])}, of which the worst origin makes "
        caption += f"{model['repw_largest_share'].get(at, 0.0):.0%}."
    if model["repw"]:
        caption += interval_note(model.trials, "Shaded")
    r2, better = model["change_r2"], model["better_than_origin"]
    last = max({*r2, *better}, default=None)
    if last in r2:
        caption += f" R² of the change in return {ahead([last])}: {score(r2[last])}."
    if last in better:
        caption += f" Predicted policies better than the origin’s {ahead([last])}: {better[last]:.0%}."
    return _figure(f"figure-2-{slug(model.name)}", f"The paper’s Figure 2: {model.full_label}", caption, panels)


def _errors(evaluation: Evaluation, model: Forecaster) -> Panel | None:
    horizons = evaluation.return_horizons or tuple(h for h in evaluation.horizons if h <= 10)
    persistence = evaluation.get("persistence")
    if not model["wpe"] and not model["repw"]:
        return None
    series = []
    floors = {"wpe": evaluation.reconstruction_floor.get(model.name, {}), "repw": evaluation.noise_floor}
    for key, color, marker, floor in (
        ("wpe", WPE_COLOR, "circle", "Reconstruction floor"),
        ("repw", REPW_COLOR, "square", "Noise floor of REPW"),
    ):
        is_repw = key == "repw"
        for f in (model, *([persistence] if persistence else [])):
            shown = {h: value for h, value in f[key].items() if h in horizons}
            line = series_of(f"{key.upper()}, {f.full_label}", shown, f.ci(key), color)
            look = {"marker": marker, "filled": f.is_model, "dash": 0 if f.is_model else 1}
            series.append(replace(line, right=is_repw, **look))
        shown = {h: value for h, value in floors[key].items() if is_repw or h in horizons}
        line = series_of(floor, shown, evaluation.noise_floor_ci if is_repw else {}, color)
        series.append(replace(line, dash=2, marker="none" if len(line.x) != 1 else "diamond", right=is_repw))
    series = [line for line in series if line.x]
    if not series:
        return None
    left = [value for line in series if not line.right for value in line.y]
    right = [v for line in series if line.right for v in (*line.y, *known(*line.high))]
    return Panel(
        "Error by forward step",
        steps_axis(
            series, log=max(h for line in series for h in line.x) > 10
        ),  # linear as the paper's, if there is room
        linear_axis("WPE", [0, *left]),
        tuple(series),
        right=linear_axis("REPW", [0, *right]) if right else None,
    )


def _returns(model: Forecaster) -> Panel | None:
    if not model.scatter:
        return None
    horizons, true, made, still = zip(*model.scatter, strict=True)
    notes = tuple(ahead([horizon]) for horizon in horizons)
    values = (*true, *made, *still)
    margin = 0.04 * (max(values) - min(values))
    axis = linear_axis("Return of the true policy", [min(values) - margin, max(values) + margin], is_tight=True)
    look = {"line": False, "notes": notes}
    points = Series("origin", "Persistence", NEUTRAL, true, still, filled=False, marker="square", **look)
    ours = Series("model", model.full_label, color_of(model), true, made, **look)
    y = replace(axis, label="Return of the predicted policy")
    return Panel("Return, predicted against true", axis, y, (points, ours), diagonal=True)


# How forecasters look in every figure, how far down their skills are drawn, and what captions owe to them


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


def series_of(label: str, curve: Mapping, intervals: Intervals, color: int) -> Series:
    pairs = [intervals.get(x) for x in curve]
    low, high = (tuple(pair[side] if pair else None for pair in pairs) for side in (0, 1))
    return Series(label, label, color, tuple(map(float, curve)), tuple(curve.values()), low, high)


def styled(
    styles: Mapping[str, tuple[int, int, Marker]], f: Forecaster, curve: Mapping, intervals: Intervals
) -> Series:
    color, dash, marker = styles[f.name]
    line = series_of(f.full_label, curve, intervals, color)
    return replace(line, key=f.name, dash=dash, marker=marker, filled=f.causal)


def _lines(evaluation: Evaluation, forecasters: Sequence[Forecaster], key: str) -> list[Series]:
    styles = styles_of(evaluation.forecasters)
    return [styled(styles, f, f[key], f.ci(key)) for f in forecasters if f[key]]


def skill_panel(title: str, x: Axis, lines: Sequence[Series]) -> Panel:
    y = linear_axis("Skill", [0, *(on_scale(value) for line in lines for value in line.y)])
    return Panel(title, x, y, tuple(lines), rules=(NOTHING,))


def _rows(title: str, label: str, rivals: Sequence[Forecaster], groups: Mapping, rule: Rule | None, **scale) -> Panel:
    """Look-ahead is hollow."""
    hollow = [row for row, f in enumerate(rivals) if not f.causal]
    return rows_panel(title, label, [f.full_label for f in rivals], groups, rule, hollow=hollow, **scale)


def _found(scores: Scores | None, key: str, horizon: int) -> Found:
    return (scores[key].get(horizon), scores.ci(key).get(horizon)) if scores else (None, None)


def _figure(
    name: str, title: str, caption: str, panels: Sequence[Panel], shown: Iterable[Forecaster] = ()
) -> Figure | None:
    """The figure, if it has a panel; its caption says which of the forecasters see the future."""
    seers = [forecaster.full_label for forecaster in shown if not forecaster.causal]
    note = f" Hollow, and no forecast: {listing(seers)}." if seers else ""
    return Figure(name, title, caption + note, tuple(panels)) if panels else None


def on_scale(skill: float) -> float:
    return min(1.0, max(LOWEST_SKILL, skill))


def below_note(panels: Iterable[Panel]) -> str:
    below = any(value < LOWEST_SKILL for panel in panels for line in panel.series for value in line.y)
    return f" What is below {tick(LOWEST_SKILL)} is off the scale." if below else ""


def panel_horizons(curves: Iterable[Curve]) -> list[int]:
    """At most two horizons to show side by side: the first and the tenth, or the last where there is no tenth."""
    there = sorted({horizon for curve in curves for horizon in curve})
    return list(dict.fromkeys((there[0], 10 if 10 in there else there[-1]))) if there else []


def arrows(panels: Iterable[Panel]) -> str:
    beyond = any(not p.x.low <= value <= p.x.high for p in panels for series in p.series for value in series.x)
    return " Arrows: beyond the scale." if beyond else ""
