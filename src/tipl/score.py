"""From single forecasts to the numbers of metrics.json.

In: errors, displacements and returns of every forecast, with the trial and place of its origin.  Out: scores with
intervals by trial. Pure functions of arrays.

Shapes: M origins of all test trials, N trials, H horizons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tipl.stats import Interval, bootstrap_interval, paired_difference, skill

Scores = dict[str, Any]


@dataclass(frozen=True)
class Origins:
    """Where forecasts begin; all [M].

    trial: seed; snapshot: t; place: in the PPO iteration, or -1.
    by_time: drawn evenly over time (otherwise over the return gained).
    rising: less than 95% of the trial's gain in return is reached; known: whether it gains any.
    """

    trial: np.ndarray
    snapshot: np.ndarray
    place: np.ndarray
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
    skills = bootstrap_interval(skill, error, moved, rng=np.random.default_rng(seed))
    dot, length = own.dot[timed].sum(0), own.length[timed].sum(0)
    total = own.moved[timed].sum(0)
    places = {str(p): timed & (origins.place == p) for p in np.unique(origins.place[timed]).tolist() if p >= 0}
    return {
        "wpe": _row(horizons, own.error[timed].mean(0) / num_weights),
        "skill": _row(horizons, [interval.value for interval in skills]),
        "skill_ci": _row(horizons, map(_bounds, skills)),
        "skill_minus_best_baseline_ci": _row(horizons, _leads(name, compared, rivals, origins, seed)),
        "cosine": _row(horizons, _ratio(dot, np.sqrt(length * total))),
        "length_ratio": _row(horizons, np.sqrt(_ratio(length, total))),
        "skill_by_place": {place: _row(horizons, _skill(own, mask)) for place, mask in places.items()},
        "skill_by_phase": {phase: _row(horizons, _skill(own, mask)) for phase, mask in origins.phases().items()},
    }


@dataclass(frozen=True)
class Returns:
    """Mean returns of policies on the same episodes: of the origins [M], the true and the predicted ones [M, H]."""

    origin: np.ndarray
    true: np.ndarray
    predicted: np.ndarray


def return_scores(returns: Returns, origins: Origins, horizons: Sequence[int], seed: int) -> Scores:
    """REPW, gain recovered, R² of the change and the share of improvements of one forecaster."""
    gap = np.abs(returns.true - returns.predicted)
    return {
        "repw": _row(horizons, gap.mean(0)),
        "repw_ci": _row(horizons, map(_bounds, mean_by_trial(gap, origins.trial, seed))),
        **gain_scores(returns, origins, np.ones(len(gap), np.bool_), horizons, seed),
        "by_phase": {
            phase: {
                "repw": _row(horizons, gap[mask].mean(0)),
                **gain_scores(returns, origins, mask, horizons, seed),
            }
            for phase, mask in origins.phases().items()
        },
        "scatter": {
            "horizon": np.broadcast_to(np.array(horizons), gap.shape).reshape(-1).tolist(),
            "true": returns.true.reshape(-1).tolist(),
            "predicted": returns.predicted.reshape(-1).tolist(),
            "origin": np.broadcast_to(returns.origin[:, None], gap.shape).reshape(-1).tolist(),
        },
    }


def gain_scores(returns: Returns, origins: Origins, mask: np.ndarray, horizons: Sequence[int], seed: int) -> Scores:
    """How much of the return to come the forecasts have, over the origins in `mask`.

    Gain recovered is (mean J(φ̃) − mean J(φ_t)) / (mean J(φ_{t+h}) − mean J(φ_t)): None unless the interval of its
    denominator lies above zero, for there is nothing to recover otherwise. R² is of the change in return from φ_t.
    """
    now = returns.origin[mask][:, None]
    change, forecast = returns.true[mask] - now, returns.predicted[mask] - now
    groups = origins.trial[mask]
    to_gain = mean_by_trial(change, groups, seed)
    gained = bootstrap_interval(
        _ratio_of_sums,
        by_trial(forecast, groups),
        by_trial(change, groups),
        rng=np.random.default_rng(seed),
    )
    real = [interval.low is not None and interval.low > 0 for interval in to_gain]
    spread = ((change - change.mean(0)) ** 2).sum(0)
    return {
        "true_gain": _row(horizons, change.mean(0)),
        "gain_recovered": _row(horizons, [g.value if ok else None for g, ok in zip(gained, real, strict=True)]),
        "gain_recovered_ci": _row(horizons, [_bounds(g) if ok else None for g, ok in zip(gained, real, strict=True)]),
        "change_r2": _row(horizons, 1 - _ratio(((change - forecast) ** 2).sum(0), spread)),
        "better_than_origin": _row(horizons, ((forecast > 0) + 0.5 * (forecast == 0)).mean(0)),
    }


def mean_by_trial(values: np.ndarray, trial: np.ndarray, seed: int) -> list[Interval]:
    """Mean over origins of values [M, H] with its interval by trial."""
    sums, counts = by_trial(values, trial), by_trial(np.ones_like(values), trial)
    return bootstrap_interval(_ratio_of_sums, sums, counts, rng=np.random.default_rng(seed))


def by_trial(values: np.ndarray, trial: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Sums [N, H] over each trial's origins in `mask` (default: all), in the order of seeds."""
    if mask is not None:
        values, trial = values[mask], trial[mask]
    return np.stack([values[trial == seed].sum(0) for seed in np.unique(trial)])


def _leads(
    name: str, compared: Mapping[str, Comparison], rivals: Sequence[str], origins: Origins, seed: int
) -> list[tuple[float, float] | None]:
    """Interval of the skill minus that of the best other rival, the best at each horizon, paired by trial."""
    others = [rival for rival in rivals if rival != name]
    if not others:
        return [None] * compared[name].error.shape[1]
    sums = {n: by_trial(compared[n].error, origins.trial, origins.by_time) for n in (name, *others)}
    moved = by_trial(compared[name].moved, origins.trial, origins.by_time)
    best = np.stack([sums[other].sum(0) for other in others]).argmin(0)
    leads = []
    for column, rival in enumerate(best):
        mine, theirs, scale = sums[name][:, column], sums[others[rival]][:, column], moved[:, column]
        rng = np.random.default_rng(seed)
        leads.append(_bounds(paired_difference(skill, (mine, scale), (theirs, scale), rng=rng)[0]))
    return leads


def _skill(compared: Comparison, mask: np.ndarray) -> np.ndarray:
    return 1 - _ratio(compared.error[mask].sum(0), compared.moved[mask].sum(0))


def _ratio_of_sums(above: np.ndarray, below: np.ndarray, axis: int) -> np.ndarray:
    return above.sum(axis) / below.sum(axis)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where below is 0: `_row` makes None of it."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0)


def _row(horizons: Sequence[int], values: Any) -> dict[str, Any]:
    """A value a horizon, as JSON; None where it is not defined."""
    return {str(h): _plain(value) for h, value in zip(horizons, values, strict=True)}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, list | tuple):
        return value
    return float(value) if np.isfinite(value) else None


def _bounds(interval: Interval) -> tuple[float, float] | None:
    return None if interval.low is None or interval.high is None else (interval.low, interval.high)
