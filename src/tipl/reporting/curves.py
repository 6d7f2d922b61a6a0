"""Figures of what was forecast and of how the models learned: spectra, training curves, learning curves.

In: an `Evaluation`.  Out: `Figure`s, or None where the evaluation lacks the numbers.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tipl.reporting.figure import (
    MARKERS,
    NEUTRAL,
    Axis,
    Figure,
    Marker,
    Panel,
    Rule,
    Series,
    linear_axis,
    log_axis,
    tick,
)
from tipl.reporting.looks import below_note, color_of, on_scale
from tipl.reporting.read import Evaluation
from tipl.reporting.values import Curve
from tipl.reporting.wording import ahead, power

TRIAL_COLOR, TEST_COLOR, MEAN_COLOR = NEUTRAL, 4, 3
BINS = 120
"""Points of a learning curve at most; more of them cannot be told apart on a page."""


SOURCES = {
    "trials": ("Trials", 0, 0),
    "walk": ("Random walk, constant steps", 1, 1),
    "annealed-walk": ("Random walk, steps annealed to 0", 2, 2),
}
"""Label, color and dash of what a spectrum is of."""
MATRICES = {"displacements": "Displacements from φ₀", "weights": "Weights as they are, as in the paper"}


def spectra(evaluation: Evaluation) -> Figure | None:
    panels = []
    for of in dict.fromkeys(spectrum.of for spectrum in evaluation.spectra.values()):
        lines = []
        for spectrum in evaluation.spectra.values():
            kept = [(n, 1 - share) for n, share in zip(*spectrum.energy, strict=True) if 1 - share > 1e-9]
            if spectrum.of == of and kept:
                lines.append(_of_source(spectrum.source, dict(kept), "none"))
        if lines:
            panels.append(_energy_panel(MATRICES.get(of, of), lines))
    if not panels:
        return None
    caption = "Share of the energy of a run’s snapshots outside its first directions. " + _directions(evaluation)
    return Figure("spectra", "Energy spectra", caption.strip(), tuple(panels))


def _energy_panel(title: str, lines: Sequence[Series]) -> Panel:
    lowest = min(-1, max(-6, math.floor(math.log10(min(value for line in lines for value in line.y)))))
    y = Axis(
        "Energy left",
        10.0**lowest,
        1.0,
        tuple((10.0**e, f"10{power(e)}" if e else "1") for e in range(lowest, 1)),
        log=True,
    )
    return Panel(title, _count_axis("Number of directions", [v for line in lines for v in line.x]), y, tuple(lines))


def _count_axis(label: str, counts: Sequence[float]) -> Axis:
    """Logarithmic, from 1."""
    largest = max(counts)
    exponents = range(math.ceil(math.log10(max(largest, 2))) + 1)
    ticks = tuple((m * 10.0**e, tick(m * 10.0**e)) for e in exponents for m in (1, 2, 5) if m * 10.0**e <= largest)
    return Axis(label, 1.0, max(1.15 * largest, 2.0), ticks, log=True)


def _of_source(source: str, curve: Mapping[float, float], marker: Marker) -> Series:
    label, color, dash = SOURCES.get(source, (source, NEUTRAL, 0))
    return replace(Series(source, label, color, tuple(curve), tuple(curve.values())), dash=dash, marker=marker)


def _directions(evaluation: Evaluation) -> str:
    """How many directions hold 90, 95, 99 and 99.9% of the energy."""
    said: dict[str, list[str]] = {}
    for spectrum in evaluation.spectra.values():
        counts = [max(at.items())[1][0] for at in spectrum.over_learning.values() if at]
        if counts:
            label = SOURCES.get(spectrum.source, (spectrum.source,))[0].lower()
            said.setdefault(spectrum.of, []).append(f"{label} {', '.join(f'{count:.3g}' for count in counts)}")
    if not said:
        return ""
    return "Directions that hold 90, 95, 99 and 99.9% of it. " + " ".join(
        f"{of.capitalize()}: {'; '.join(parts)}." for of, parts in said.items()
    )


def directions_over_learning(evaluation: Evaluation, of: str) -> Figure | None:
    """How many directions hold each share of the energy of the run so far, of one of MATRICES."""
    shown = [spectrum for spectrum in evaluation.spectra.values() if spectrum.of == of]
    y, panels = _shared_axis(spectrum.over_learning for spectrum in shown), []
    for share in _shares(spectrum.over_learning for spectrum in shown):
        lines = []
        for turn, spectrum in enumerate(shown):
            counts = spectrum.over_learning.get(share) or {}
            if len(counts) >= 2:
                mean, low, high = (tuple(count[i] for count in counts.values()) for i in range(3))
                line = _of_source(spectrum.source, dict(zip(counts, mean, strict=True)), MARKERS[turn % len(MARKERS)])
                lines.append(replace(line, low=low, high=high) if low != high else line)
        if lines:
            x = linear_axis("Snapshots of the run so far", [0, *(v for line in lines for v in line.x)], is_tight=True)
            panels.append(Panel(_share_title(share), x, y, tuple(lines)))
    if not panels:
        return None
    caption = f"{MATRICES.get(of, of)}: how many directions hold so much of the energy of the snapshots up to then. "
    caption += "Shaded: from the least to the most of the trials."
    name = "directions-over-learning" + ("" if of == "displacements" else f"-{of}")
    return Figure(name, f"Directions over learning: {of}", caption, tuple(panels))


def directions_by_tensor(evaluation: Evaluation) -> Figure | None:
    """How many directions hold each share of the energy of each tensor's displacements."""
    shown = [spectrum for spectrum in evaluation.spectra.values() if spectrum.by_tensor]
    x_axis, panels = _shared_axis(spectrum.by_tensor for spectrum in shown), []
    for share in _shares(spectrum.by_tensor for spectrum in shown):
        tensors = list(dict.fromkeys(name for spectrum in shown for name in spectrum.by_tensor.get(share, {})))
        if len(tensors) < 2:
            continue
        dots = []
        for turn, spectrum in enumerate(shown):
            label, color, _ = SOURCES.get(spectrum.source, (spectrum.source, NEUTRAL, 0))
            rows = [(i + 0.22 * (turn - 1), spectrum.by_tensor[share][name]) for i, name in enumerate(tensors)]
            x, low, high = (tuple(count[i] for _, count in rows) for i in range(3))
            series = Series(spectrum.source, label, color, x, tuple(row for row, _ in rows), low, high, line=False)
            dots.append(replace(series, marker=MARKERS[turn % 3]))
        y = Axis("", -0.6, len(tensors) - 0.4, tuple((float(i), n) for i, n in enumerate(tensors)), categorical=True)
        panels.append(Panel(_share_title(share), x_axis, y, tuple(dots)))
    if not panels:
        return None
    caption = (
        "Of each tensor’s displacements from φ₀ over the whole run, beside walks with as many weights. Bars: from "
    )
    caption += "the least to the most of the trials."
    return Figure("directions-by-tensor", "Directions by tensor", caption, tuple(panels))


Counted = Iterable[Mapping[str, Mapping[Any, tuple[float, float, float]]]]


def _shares(counted: Counted) -> list[str]:
    return list(dict.fromkeys(share for by_share in counted for share in by_share))


def _shared_axis(counted: Counted) -> Axis:
    """One for the panels of all shares, so that they can be compared."""
    most = [high for by_share in counted for counts in by_share.values() for _, _, high in counts.values()]
    return _count_axis("Number of directions", most or [1])


def _share_title(share: str) -> str:
    return f"{100 * float(share):.4g}% of the energy"


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
