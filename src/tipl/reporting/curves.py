"""Figures of what was forecast and of how the models learned: spectra, training curves, learning curves.

In: an `Evaluation`.  Out: `Figure`s, or None where the evaluation lacks the numbers.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tipl.reporting.figures import below_note, color_of, skill_panel
from tipl.reporting.parts import MARKERS, NEUTRAL, Axis, Figure, Panel, Series, linear_axis, log_axis, rows_panel, tick
from tipl.reporting.read import Counts, Curve, Evaluation, Spectrum
from tipl.reporting.wording import power

TEST_COLOR, MEAN_COLOR = 4, 3
BINS = 120
"""Points of a learning curve at most; more of them cannot be told apart on a page."""
SOURCES = {
    "trials": "Trials",
    "walk": "Random walk, constant steps",
    "annealed-walk": "Random walk, steps annealed to 0",
}
"""What a spectrum is of."""
MATRICES = {"displacements": "Displacements from φ₀", "weights": "Weights as they are, as in the paper"}


def spectra(evaluation: Evaluation) -> Figure | None:
    panels = []
    for of in dict.fromkeys(spectrum.of for spectrum in evaluation.spectra):
        lines = []
        for spectrum in evaluation.spectra:
            kept = {n: 1 - share for n, share in zip(*spectrum.energy, strict=True) if 1 - share > 1e-9}
            if spectrum.of == of and kept:
                lines.append(replace(_of_source(spectrum, kept), marker="none"))
        if lines:
            least = min(value for line in lines for value in line.y)
            lowest = min(-1, max(-6, math.floor(math.log10(least))))
            ticks = tuple((10.0**e, f"10{power(e)}" if e else "1") for e in range(lowest, 1))
            x = _count_axis([v for line in lines for v in line.x])
            y = Axis("Energy left", 10.0**lowest, 1.0, ticks, log=True)
            panels.append(Panel(MATRICES.get(of, of), x, y, tuple(lines)))
    caption = "Share of the energy of a run’s snapshots outside its first directions. " + _directions(evaluation)
    return Figure("spectra", "Energy spectra", caption.strip(), tuple(panels)) if panels else None


def _count_axis(counts: Sequence[float]) -> Axis:
    """Logarithmic, from 1."""
    largest = max(counts)
    exponents = range(math.ceil(math.log10(max(largest, 2))) + 1)
    ticks = tuple((m * 10.0**e, tick(m * 10.0**e)) for e in exponents for m in (1, 2, 5) if m * 10.0**e <= largest)
    return Axis("Number of directions", 1.0, max(1.15 * largest, 2.0), ticks, log=True)


def _of_source(spectrum: Spectrum, curve: Mapping[float, float]) -> Series:
    source = spectrum.source
    turn = list(SOURCES).index(source) if source in SOURCES else NEUTRAL
    line = Series(source, SOURCES.get(source, source), turn, tuple(curve), tuple(curve.values()))
    return replace(line, dash=turn % 4, marker=MARKERS[turn % 4])


def _directions(evaluation: Evaluation) -> str:
    """How many directions hold 90, 95, 99 and 99.9% of the energy."""
    said: dict[str, list[str]] = {}
    for spectrum in evaluation.spectra:
        counts = [max(at.items())[1][0] for at in spectrum.over_learning.values() if at]
        if counts:
            label = SOURCES.get(spectrum.source, spectrum.source).lower()
            said.setdefault(spectrum.of, []).append(f"{label} {', '.join(f'{count:.3g}' for count in counts)}")
    if not said:
        return ""
    return "Directions that hold 90, 95, 99 and 99.9% of it. " + " ".join(
        f"{of.capitalize()}: {'; '.join(parts)}." for of, parts in said.items()
    )


def directions_over_learning(evaluation: Evaluation, of: str) -> Figure | None:
    """How many directions hold each share of the energy of the run so far, of one of MATRICES."""
    shown = [spectrum for spectrum in evaluation.spectra if spectrum.of == of]
    y, panels = _shared_axis(spectrum.over_learning for spectrum in shown), []
    for share in _shares(spectrum.over_learning for spectrum in shown):
        lines = []
        for spectrum in shown:
            counts = spectrum.over_learning.get(share) or {}
            if len(counts) >= 2:
                mean, low, high = zip(*counts.values(), strict=True)
                line = _of_source(spectrum, dict(zip(counts, mean, strict=True)))
                lines.append(replace(line, low=low, high=high) if low != high else line)
        if lines:
            x = linear_axis("Snapshots of the run so far", [0, *(v for line in lines for v in line.x)], is_tight=True)
            panels.append(Panel(_share_title(share), x, y, tuple(lines)))
    caption = f"{MATRICES.get(of, of)}: how many directions hold so much of the energy of the snapshots up to then. "
    caption += "Shaded: from the least to the most of the trials."
    name = "directions-over-learning" + ("" if of == "displacements" else f"-{of}")
    return Figure(name, f"Directions over learning: {of}", caption, tuple(panels)) if panels else None


def directions_by_tensor(evaluation: Evaluation) -> Figure | None:
    """How many directions hold each share of the energy of each tensor's displacements."""
    shown = [spectrum for spectrum in evaluation.spectra if spectrum.by_tensor]
    x, panels = _shared_axis(spectrum.by_tensor for spectrum in shown), []
    for share in _shares(spectrum.by_tensor for spectrum in shown):
        tensors = list(dict.fromkeys(name for spectrum in shown for name in spectrum.by_tensor.get(share, {})))
        if len(tensors) >= 2:
            groups = {SOURCES.get(s.source, s.source): [_of_tensor(s, share, t) for t in tensors] for s in shown}
            panels.append(replace(rows_panel(_share_title(share), "", tensors, groups), x=x))
    caption = "Of each tensor’s displacements from φ₀ over the whole run, beside walks with as many weights. Bars: "
    caption += "from the least to the most of the trials."
    return Figure("directions-by-tensor", "Directions by tensor", caption, tuple(panels)) if panels else None


def _of_tensor(spectrum: Spectrum, share: str, tensor: str) -> tuple[float | None, tuple[float, float] | None]:
    counts = spectrum.by_tensor.get(share, {}).get(tensor)
    return (counts[0], (counts[1], counts[2])) if counts else (None, None)


_Counted = Iterable[Mapping[str, Mapping[Any, Counts]]]


def _shares(counted: _Counted) -> list[str]:
    return list(dict.fromkeys(share for by_share in counted for share in by_share))


def _shared_axis(counted: _Counted) -> Axis:
    """One for the panels of all shares, so that they can be compared."""
    return _count_axis([n[2] for by_share in counted for counts in by_share.values() for n in counts.values()] or [1])


def _share_title(share: str) -> str:
    return f"{100 * float(share):.4g}% of the energy"


def training_curve(evaluation: Evaluation) -> Figure | None:
    losses, skills = [], []
    for name, measured in evaluation.training.items():
        forecaster = evaluation.get(name)
        label, color = (forecaster.full_label, color_of(forecaster)) if forecaster else (name, NEUTRAL)
        for turn, (what, points) in enumerate(measured.items()):
            into, what = (losses if what.endswith("loss") else skills), f"{label}, {what}"
            line = Series(what, what, color, tuple(points), tuple(points.values()), dash=turn % 4, marker="none")
            into.append(line)
    panels = []
    if losses:
        values = [value for line in losses for value in line.y]
        y = linear_axis("Loss", values) if min(values) <= 0 else log_axis("Loss", values)
        panels.append(Panel("Loss", _optimizer_steps(losses), y, tuple(losses)))
    if skills:
        panels.append(skill_panel("Validation skill", _optimizer_steps(skills), skills))
    caption = "Measured during training, on training and on validation trials, never on test trials."
    caption += below_note(panels[-1:] if skills else [])
    return Figure("training", "Training curve", caption, tuple(panels)) if panels else None


def _optimizer_steps(lines: Sequence[Series]) -> Axis:
    return linear_axis("Optimizer step", [0, *(step for line in lines for step in line.x)], is_tight=True)


def learning_curves(evaluation: Evaluation) -> Figure | None:
    panel = returns_panel("", evaluation.learning_curves, map(str, evaluation.test_trials))
    caption = "Episode returns while training, smoothed."
    return Figure("learning-curves", "Learning curves", caption, (panel,)) if panel else None


def returns_panel(
    title: str, all_curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], test_trials: Iterable[str]
) -> Panel | None:
    """The returns of each trial's episodes and, of several trials, their mean; None where no episode has ended.

    Args:
        all_curves: trial → the environment steps at which its episodes ended, and their returns.
    """
    curves = {seed: curve for seed, curve in all_curves.items() if len(curve[0])}
    if not curves:
        return None
    last = max(max(steps) for steps, _ in curves.values())
    binned = {seed: _binned(*curve, last) for seed, curve in curves.items()}
    tests = set(test_trials)
    series = []
    for seed, curve in sorted(binned.items(), key=lambda item: item[0] in tests):
        look = ("test", "Test trials", TEST_COLOR) if seed in tests else ("other", "Other trials", NEUTRAL)
        series.append(Series(*look, tuple(curve), tuple(curve.values()), marker="none", faint=True))
    if len(series) > 1:
        mean = _mean_curve(list(binned.values()))
        series.append(Series("mean", "Mean", MEAN_COLOR, tuple(mean), tuple(mean.values()), marker="none"))
    x = linear_axis("Environment step", [0, last], is_tight=True)
    y = linear_axis("Return while training", [value for line in series for value in line.y])
    return Panel(title, x, y, tuple(series))


def _binned(steps: Sequence[float], returns: Sequence[float], last: float) -> Curve:
    """Mean return by span of environment steps, at the middle of the span."""
    spans: dict[int, list[float]] = {}
    for step, value in zip(steps, returns, strict=True):
        spans.setdefault(min(BINS - 1, int(step / last * BINS)) if last else 0, []).append(value)
    return {round((span + 0.5) * last / BINS): sum(found) / len(found) for span, found in sorted(spans.items())}


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over trials at every step at which one has a value, between the values where others have none there."""
    steps = sorted({step for curve in curves for step in curve})
    inside = [
        np.interp(steps, list(curve), list(curve.values()), left=np.nan, right=np.nan) for curve in curves if curve
    ]
    return dict(zip(steps, np.nanmean(inside, axis=0).tolist(), strict=True))
