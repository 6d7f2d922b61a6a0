"""The paper's Figure 2 (arXiv 2503.04074), with persistence beside the model.

In: an `Evaluation` and one of its models.  Out: a `Figure`.
"""

from collections.abc import Sequence
from dataclasses import replace

from tipl.reporting.figure import NEUTRAL, Figure, Panel, Series, linear_axis, steps_axis
from tipl.reporting.looks import color_of, series_of
from tipl.reporting.read import Evaluation, Forecaster
from tipl.reporting.values import Curve, Intervals
from tipl.reporting.wording import ahead, interval_note, number, score, slug

WPE_COLOR, REPW_COLOR = 3, 2


def figure_2(evaluation: Evaluation, model: Forecaster) -> Figure | None:
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
    typical = model.returns.repw_median
    if typical:
        at = max(typical)
        caption += f" Median of the return errors {ahead([at])}: {number(typical[at])}; their mean, REPW: "
        caption += f"{number(model.returns.repw[at])}, of which the worst origin makes "
        caption += f"{model.returns.repw_largest_share.get(at, 0.0):.0%}."
    if model.returns.repw:
        caption += interval_note(model.returns.trials, "Shaded")
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
        line = series_of("Reconstruction floor", floor, {}, WPE_COLOR)
        series.append(replace(line, dash=2, marker="none"))
    series += [_error_line("REPW", f, f.returns.repw, f.returns.repw_ci, horizons) for f in shown]
    series = [line for line in series if line.x]
    if evaluation.noise_floor:
        line = series_of("Noise floor of REPW", evaluation.noise_floor, evaluation.noise_floor_ci, REPW_COLOR)
        series.append(replace(line, dash=2, marker="none" if len(line.x) > 1 else "diamond", right=True))
    left = [value for line in series if not line.right for value in line.y]
    right = [v for line in series if line.right for v in (*line.y, *filter(None, line.high))]
    steps = [h for line in series for h in line.x]
    if not steps:
        return None
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
    line = series_of(f"{measure}, {forecaster.full_label}", shown, intervals, REPW_COLOR if is_repw else WPE_COLOR)
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
