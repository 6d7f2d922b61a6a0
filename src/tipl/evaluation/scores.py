"""From single forecasts to the numbers of metrics.json.

In: errors, displacements and returns of every forecast, with the trial and place of its origin.  Out: scores with
intervals by trial. Pure functions of arrays.

Shapes: M origins of all test trials, N trials, H horizons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tipl.evaluation.statistics import (
    BELOW_ONE,
    PLAIN,
    POSITIVE,
    Interval,
    Scale,
    bootstrap_interval,
    holm,
    iqm,
    p_value,
    paired_difference,
    paired_improvement,
    skill,
)

Scores = dict[str, Any]


@dataclass(frozen=True)
class Origins:
    """Where forecasts begin; all [M].

    trial: seed; snapshot: t; epoch_index: in its PPO iteration, or -1.
    by_time: drawn evenly over time (otherwise over the return gained).
    rising: less than 95% of the trial's gain in return is reached; known: whether it gains any.
    """

    trial: np.ndarray
    snapshot: np.ndarray
    epoch_index: np.ndarray
    by_time: np.ndarray
    rising: np.ndarray
    known: np.ndarray

    def phases(self) -> dict[str, np.ndarray]:
        """Masks [M] of the phases of learning that have an origin."""
        masks = {"rising": self.rising & self.known, "ceiling": ~self.rising & self.known}
        return {name: mask for name, mask in masks.items() if mask.any()}


@dataclass(frozen=True)
class Comparison:
    """Forecast against true displacement from φ_t, as sums over weights, so that ratios of sums can be formed; [M, H].

    error: |φ_{t+h} − φ̃_{t+h}|²; dot: (φ̃_{t+h} − φ_t) · (φ_{t+h} − φ_t); length: |φ̃_{t+h} − φ_t|²;
    moved: |φ_{t+h} − φ_t|², which is persistence's error.
    """

    error: np.ndarray
    dot: np.ndarray
    length: np.ndarray
    moved: np.ndarray


def weight_scores(
    name: str, compared: Mapping[str, Comparison], rivals: Sequence[str], origins: Origins, horizons: Sequence[int],
    num_weights: int, seed: int,
) -> Scores:  # fmt: skip
    """WPE, skill, direction and length of one forecaster, over the origins drawn by time; also by place and phase.

    Args:
        rivals: the causal baselines; the forecaster is compared with the best of the others at each horizon.
    """
    own, timed = compared[name], origins.by_time
    error, moved = (by_trial(values, origins.trial, timed) for values in (own.error, own.moved))
    dot, length = own.dot[timed].sum(0), own.length[timed].sum(0)
    total = own.moved[timed].sum(0)
    skills = _skills(own, origins, timed, seed)
    known = [i for i in np.unique(origins.epoch_index[timed]).tolist() if i >= 0]
    places = {str(i): timed & (origins.epoch_index == i) for i in known}
    by_place = {place: _skills(own, origins, mask, seed) for place, mask in places.items()}
    phases = origins.phases()
    by_phase = {phase: _skills(own, origins, mask, seed) for phase, mask in phases.items()}
    return {
        "trials": len(error),
        "wpe": _row(horizons, own.error[timed].mean(0) / num_weights),
        **_with_interval("skill", horizons, skills),
        "skill_holm": _row(horizons, _holm(skills)),
        **_with_interval("skill_iqm", horizons, bootstrap_interval(_iqm_of_skills, error, moved, rng=_rng(seed))),
        **_with_interval(
            "trials_improved", horizons, bootstrap_interval(paired_improvement, moved, error, rng=_rng(seed))
        ),
        **_against_the_best(name, compared, rivals, origins, horizons, seed),
        "cosine": _row(horizons, _ratio(dot, np.sqrt(length * total))),
        "length_ratio": _row(horizons, np.sqrt(_ratio(length, total))),
        "skill_by_place": {place: _row(horizons, map(_value, found)) for place, found in by_place.items()},
        "skill_by_place_trials": {place: _count(origins, mask) for place, mask in places.items()},
        "skill_by_place_ci": {place: _row(horizons, map(_bounds, found)) for place, found in by_place.items()},
        "skill_by_phase": {phase: _row(horizons, map(_value, found)) for phase, found in by_phase.items()},
        "skill_by_phase_ci": {phase: _row(horizons, map(_bounds, found)) for phase, found in by_phase.items()},
        "skill_by_phase_trials": {phase: _count(origins, mask) for phase, mask in phases.items()},
        "by_trial": {
            "trial": np.unique(origins.trial[timed]).tolist(),
            "error": error.tolist(),
            "moved": moved.tolist(),
        },
    }


@dataclass(frozen=True)
class Returns:
    """Mean returns of policies on the same episodes: of the origins [M], the true and the predicted ones [M, H]."""

    origin: np.ndarray
    true: np.ndarray
    predicted: np.ndarray


def return_scores(returns: Returns, origins: Origins, horizons: Sequence[int], seed: int) -> Scores:
    """REPW, the return gained and the share of improvements of one forecaster; also by phase."""
    gap = np.abs(returns.true - returns.predicted)
    return {
        **gap_scores(returns, origins, np.ones(len(gap), np.bool_), horizons, seed),
        "by_phase": {
            phase: gap_scores(returns, origins, mask, horizons, seed) for phase, mask in origins.phases().items()
        },
        "scatter": {
            "horizon": np.broadcast_to(np.array(horizons), gap.shape).reshape(-1).tolist(),
            "true": returns.true.reshape(-1).tolist(),
            "predicted": returns.predicted.reshape(-1).tolist(),
            "origin": np.broadcast_to(returns.origin[:, None], gap.shape).reshape(-1).tolist(),
            "trial": np.broadcast_to(origins.trial[:, None], gap.shape).reshape(-1).tolist(),
        },
    }


def gap_scores(returns: Returns, origins: Origins, mask: np.ndarray, horizons: Sequence[int], seed: int) -> Scores:
    """The scores of returns over the origins in `mask`.

    Gain recovered is (mean J(φ̃) − mean J(φ_t)) / (mean J(φ_{t+h}) − mean J(φ_t)): None unless the interval of its
    denominator lies above zero, for there is nothing to recover otherwise. R² is of the change in return from φ_t; None
    where that is the same everywhere. Persistence's REPW is |J(φ_{t+h}) − J(φ_t)|, paired with the forecast's by trial.
    A few origins can make most of a mean, so the median and the IQM of single origins stand beside REPW, and the share
    that the worst one has in it.
    """
    now, groups = returns.origin[mask][:, None], origins.trial[mask]
    change, forecast = returns.true[mask] - now, returns.predicted[mask] - now
    repw, stood = np.abs(change - forecast), np.abs(change)
    to_gain = mean_by_trial(change, groups, seed)
    real = [interval.low is not None and interval.low > 0 for interval in to_gain]
    recovered = bootstrap_interval(_ratio_of_sums, by_trial(forecast, groups), by_trial(change, groups), rng=_rng(seed))
    better = (forecast > 0) + 0.5 * (forecast == 0)
    sums = (by_trial(part, groups) for part in ((change - forecast) ** 2, change**2, change, np.ones_like(change)))
    return {
        "trials": len(np.unique(groups)),
        **_with_interval("repw", horizons, mean_by_trial(repw, groups, seed, POSITIVE)),
        "repw_median": _row(horizons, np.median(repw, axis=0)),
        "repw_iqm": _row(horizons, iqm(repw, axis=0)),
        "repw_largest_share": _row(horizons, _ratio(repw.max(axis=0), repw.sum(axis=0))),
        **_with_interval("repw_minus_persistence", horizons, mean_by_trial(repw - stood, groups, seed)),
        **_with_interval("true_gain", horizons, to_gain),
        **_with_interval("gain", horizons, mean_by_trial(forecast, groups, seed)),
        **_with_interval(
            "gain_recovered", horizons, [r if ok else _NONE for r, ok in zip(recovered, real, strict=True)]
        ),
        **_with_interval("change_r2", horizons, bootstrap_interval(_r2, *sums, rng=_rng(seed), scale=BELOW_ONE)),
        **_with_interval("better_than_origin", horizons, mean_by_trial(better, groups, seed)),
    }


def floor_scores(true: np.ndarray, again: np.ndarray, origins: Origins, horizons: Sequence[int], seed: int) -> Scores:
    """The noise floor of REPW: mean |difference| of the true policies' returns [M, H] and those on other episodes, at
    every horizon and, for short, at the last."""
    found = mean_by_trial(np.abs(true - again), origins.trial, seed, POSITIVE)
    last = {"noise_floor": _plain(_value(found[-1])), "noise_floor_ci": _plain(_bounds(found[-1]))}
    count = {"noise_floor_trials": len(np.unique(origins.trial))}
    return last | count | _with_interval("noise_floor_by_horizon", horizons, found)


def mean_by_trial(values: np.ndarray, trial: np.ndarray, seed: int, scale: Scale = PLAIN) -> list[Interval]:
    """Mean over origins of values [M, H] with its interval by trial, found on `scale`."""
    sums, counts = by_trial(values, trial), by_trial(np.ones_like(values), trial)
    return bootstrap_interval(_ratio_of_sums, sums, counts, rng=_rng(seed), scale=scale)


def by_trial(values: np.ndarray, trial: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Sums [N, H] over each trial's origins in `mask` (default: all), in the order of seeds."""
    if mask is not None:
        values, trial = values[mask], trial[mask]
    return np.stack([values[trial == seed].sum(0) for seed in np.unique(trial)])


def _against_the_best(
    name: str, compared: Mapping[str, Comparison], rivals: Sequence[str], origins: Origins, horizons: Sequence[int],
    seed: int,
) -> Scores:  # fmt: skip
    """The skill minus that of the best other rival, the best at each horizon, and the share of trials on which the
    error is smaller than that rival's; paired by trial."""
    others = [rival for rival in rivals if rival != name]
    if not others:
        nothing = dict.fromkeys(map(str, horizons))
        keys = ("skill_minus_best_baseline", "trials_ahead_of_best")
        more = ("best_baseline", "skill_minus_best_baseline_holm", *(f"{key}_ci" for key in keys))
        return dict.fromkeys((*keys, *more), nothing)
    sums = {n: by_trial(compared[n].error, origins.trial, origins.by_time) for n in (name, *others)}
    moved = by_trial(compared[name].moved, origins.trial, origins.by_time)
    best = [others[i] for i in np.stack([sums[other].sum(0) for other in others]).argmin(0)]
    leads, ahead = [], []
    for column, rival in enumerate(best):
        mine, theirs, scale = sums[name][:, column], sums[rival][:, column], moved[:, column]
        leads += paired_difference(skill, (mine, scale), (theirs, scale), rng=_rng(seed))
        ahead += bootstrap_interval(paired_improvement, theirs, mine, rng=_rng(seed))
    return {
        "best_baseline": _row(horizons, best),
        **_with_interval("skill_minus_best_baseline", horizons, leads),
        "skill_minus_best_baseline_holm": _row(horizons, _holm(leads)),
        **_with_interval("trials_ahead_of_best", horizons, ahead),
    }


def _skills(compared: Comparison, origins: Origins, mask: np.ndarray, seed: int) -> list[Interval]:
    error, moved = (by_trial(values, origins.trial, mask) for values in (compared.error, compared.moved))
    return bootstrap_interval(skill, error, moved, rng=_rng(seed), scale=BELOW_ONE)


def _count(origins: Origins, mask: np.ndarray) -> int:
    return len(np.unique(origins.trial[mask]))


def _holm(found: Sequence[Interval]) -> list[float | None]:
    """p-values of zero that hold at all horizons at once; None where one has no interval."""
    single = [p_value(interval, 0.0) for interval in found]
    adjusted = iter(holm([p for p in single if p is not None]))
    return [None if p is None else next(adjusted) for p in single]


def _iqm_of_skills(error: np.ndarray, moved: np.ndarray, axis: int) -> np.ndarray:
    """IQM over trials of each trial's own skill; NaN where one of them has not moved."""
    found = iqm(1 - error / moved, axis)
    return np.where((moved > 0).all(axis), found, np.nan)


def _r2(miss: np.ndarray, square: np.ndarray, change: np.ndarray, count: np.ndarray, axis: int) -> np.ndarray:
    """1 − Σ(y − ỹ)² / Σ(y − ȳ)², from sums by trial; NaN where the y differ by no more than rounding."""
    square = square.sum(axis)
    spread = square - change.sum(axis) ** 2 / count.sum(axis)
    return np.where(spread > 1e-12 * square, 1 - miss.sum(axis) / spread, np.nan)


def _ratio_of_sums(above: np.ndarray, below: np.ndarray, axis: int) -> np.ndarray:
    return above.sum(axis) / below.sum(axis)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where below is 0: `_row` makes None of it."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0)


_NONE = Interval(None, None, None, 0)


def _rng(seed: int) -> np.random.Generator:
    """The same resamples for every score, so that differences between scores are paired too."""
    return np.random.default_rng(seed)


def _with_interval(name: str, horizons: Sequence[int], found: Sequence[Interval]) -> Scores:
    return {name: _row(horizons, map(_value, found)), f"{name}_ci": _row(horizons, map(_bounds, found))}


def _row(horizons: Sequence[int], values: Any) -> dict[str, Any]:
    """A value a horizon, as JSON; None where it is not defined."""
    return {str(h): _plain(value) for h, value in zip(horizons, values, strict=True)}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, list | tuple | str):
        return value
    return float(value) if np.isfinite(value) else None


def _value(interval: Interval) -> float | None:
    return interval.value


def _bounds(interval: Interval) -> tuple[float, float] | None:
    return None if interval.low is None or interval.high is None else (interval.low, interval.high)
