"""Figures of what was forecast and of how the models learned: spectra, training curves, learning curves.

In: an `Evaluation`.  Out: `Figure`s, or None where the evaluation lacks the numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tipl.report.figure import NEUTRAL, Axis, Figure, Panel, Rule, Series, linear_axis, log_axis, tick
from tipl.report.looks import below_note, color_of, on_scale
from tipl.report.read import Curve, Evaluation
from tipl.report.wording import ahead, listing, power

TRIAL_COLOR, TEST_COLOR, MEAN_COLOR = NEUTRAL, 4, 3
BINS = 120
"""Points of a learning curve at most; more of them cannot be told apart on a page."""


def spectra(evaluation: Evaluation) -> Figure | None:
    lines = []
    for index, (name, (directions, energy)) in enumerate(evaluation.spectra.items()):
        x, y = tuple(directions), tuple(1 - share for share in energy)
        kept = [i for i, rest in enumerate(y) if rest > 1e-9]
        line = Series(name, name, index % NEUTRAL, tuple(x[i] for i in kept), tuple(y[i] for i in kept))
        lines.append(replace(line, dash=index % 3, marker="none"))
    lines = [line for line in lines if line.x]
    if not lines:
        return None
    lowest = min(-1, math.floor(math.log10(min(value for line in lines for value in line.y))))
    y = Axis(
        "Energy left",
        10.0**lowest,
        1.0,
        tuple((10.0**e, f"10{power(e)}" if e else "1") for e in range(lowest, 1)),
        log=True,
    )
    largest = max(value for line in lines for value in line.x)
    exponents = range(math.ceil(math.log10(max(largest, 2))) + 1)
    ticks = tuple((m * 10.0**e, tick(m * 10.0**e)) for e in exponents for m in (1, 2, 5) if m * 10.0**e <= largest)
    x = Axis("Number of directions", 1.0, max(largest, 2.0), ticks, log=True)
    caption = "Share of the energy of a trial’s snapshots outside its first directions. " + _directions(evaluation)
    return Figure("spectra", "Energy spectra", caption.strip(), (Panel("", x, y, tuple(lines)),))


def _directions(evaluation: Evaluation) -> str:
    """How many directions hold 90, 95, 99 and 99.9% of the energy."""
    said = []
    for name, (directions, energy) in evaluation.spectra.items():
        counts = [
            next((d for d, e in zip(directions, energy, strict=True) if e >= s), None) for s in (0.9, 0.95, 0.99, 0.999)
        ]
        if None not in counts:
            said.append(f"{name}: {listing([f'{count:g}' for count in counts if count is not None])}")
    return f"Directions that hold 90, 95, 99 and 99.9% of it: {'; '.join(said)}." if said else ""


def training_curve(evaluation: Evaluation) -> Figure | None:
    losses, skills = [], []
    for name, rows in evaluation.training.items():
        forecaster = evaluation.get(name)
        label, color = (forecaster.full_label, color_of(forecaster)) if forecaster else (name, NEUTRAL)
        losses.append(_trained(f"{label}, validation loss", {row.step: row.validation_loss for row in rows}, color, 0))
        losses.append(_trained(f"{label}, training loss", {row.step: row.train_loss for row in rows}, color, 1))
        for turn, h in enumerate(sorted({h for row in rows for h in row.skill})):
            points = {row.step: row.skill.get(h) for row in rows}
            skills.append(_trained(f"{label}, {ahead([h])}", points, color, turn % 4))
    loss, skill = _losses(losses), _validation_skills(skills)
    if not loss and not skill:
        return None
    caption = "Measured during training, on training and on validation trials, never on test trials."
    caption += below_note([skill] if skill else [])
    return Figure("training", "Training curve", caption, tuple(panel for panel in (loss, skill) if panel))


def _trained(label: str, points: Mapping[float, float | None], color: int, dash: int) -> Series:
    known = {step: value for step, value in points.items() if value is not None}
    return replace(Series(label, label, color, tuple(known), tuple(known.values())), dash=dash, marker="none")


def _losses(lines: Sequence[Series]) -> Panel | None:
    lines = [line for line in lines if line.x]
    if not lines:
        return None
    values = [value for line in lines for value in line.y]
    y = linear_axis("Loss", values) if min(values) <= 0 else log_axis("Loss", values)
    return Panel("Loss", _optimizer_steps(lines), y, tuple(lines))


def _validation_skills(lines: Sequence[Series]) -> Panel | None:
    lines = [line for line in lines if line.x]
    if not lines:
        return None
    values = [on_scale(value) for line in lines for value in line.y]
    rule = Rule("Doing nothing", 0.0)
    return Panel(
        "Validation skill", _optimizer_steps(lines), linear_axis("Skill", [0, *values]), tuple(lines), rules=(rule,)
    )


def _optimizer_steps(lines: Sequence[Series]) -> Axis:
    return linear_axis("Optimizer step", [0, *(step for line in lines for step in line.x)], is_tight=True)


def learning_curves(evaluation: Evaluation) -> Figure | None:
    curves = {seed: curve for seed, curve in evaluation.learning_curves.items() if curve[0]}
    if not curves:
        return None
    last = max(max(steps) for steps, _ in curves.values())
    binned = {seed: _binned(*curve, last) for seed, curve in curves.items()}
    tests = {str(seed) for seed in evaluation.test_trials}
    series = []
    for seed, curve in sorted(binned.items(), key=lambda item: item[0] in tests):
        is_test = seed in tests
        key, label, color = ("test", "Test trials", TEST_COLOR) if is_test else ("other", "Other trials", TRIAL_COLOR)
        line = Series(key, label, color, tuple(curve), tuple(curve.values()))
        series.append(replace(line, marker="none", faint=True, notes=(f"trial {seed}",)))
    if len(series) > 1:
        mean = _mean_curve(list(binned.values()))
        series.append(replace(Series("mean", "Mean", MEAN_COLOR, tuple(mean), tuple(mean.values())), marker="none"))
    x = linear_axis("Environment step", [0, last], is_tight=True)
    y = linear_axis("Return while training", [value for line in series for value in line.y])
    return Figure(
        "learning-curves",
        "Learning curves",
        "Episode returns while training, smoothed.",
        (Panel("", x, y, tuple(series)),),
    )


def _binned(steps: Sequence[float], returns: Sequence[float], last: float) -> Curve:
    """Mean return by span of environment steps, at the middle of the span."""
    spans: dict[int, list[float]] = {}
    for step, value in zip(steps, returns, strict=True):
        spans.setdefault(min(BINS - 1, int(step / last * BINS)) if last else 0, []).append(value)
    return {round((span + 0.5) * last / BINS): _mean(values) for span, values in sorted(spans.items())}


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over trials at every step at which one has a value, between the values where others have none there."""
    steps = sorted({step for curve in curves for step in curve})
    inside = [
        np.interp(steps, list(curve), list(curve.values()), left=np.nan, right=np.nan) for curve in curves if curve
    ]
    return dict(zip(steps, np.nanmean(inside, axis=0).tolist(), strict=True))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
