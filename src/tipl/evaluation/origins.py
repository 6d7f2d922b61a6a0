"""Where forecasts begin, and what may be seen there.

In: trials, EvaluateConfig.  Out: origins, evenly over time and over the return gained; histories that end at them.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tipl.config.presets import EvaluateConfig
from tipl.errors import TiplError
from tipl.evaluation.scores import Origins
from tipl.forecasting.forecaster import Forecaster
from tipl.progress import console
from tipl.representation import read_weights
from tipl.store import History, Trial

RISING = 0.95  # of the return gained; an origin below it is in the rising phase
_SMOOTHED = 20  # episodes in a point of a learning curve
_CURVE_POINTS = 200


def fitted_horizons(config: EvaluateConfig, shortest: tuple[int, Path], returns: bool) -> EvaluateConfig:
    """The settings with horizons for which every trial has room: at most half of the shortest.

    Defaults are shortened, with a line; what was asked for is not.

    Args:
        shortest: the snapshots of the shortest trial, and its store.
        returns: whether policies are run, so that the return horizons have to be among the horizons.

    Raises:
        TiplError: a horizon that was asked for does not fit, or none does.
    """
    count, store = shortest
    room = (count - 2) // 2
    horizons, return_horizons = config.horizons, config.return_horizons
    if horizons == EvaluateConfig.horizons and room >= 1:
        horizons = tuple(h for h in horizons if h <= room)
    if max(horizons) > room:
        advice = f"give --horizons up to {room}" if room >= 1 else "a horizon takes 4 snapshots at least"
        raise TiplError(
            f"The shortest trial of {store} has {count} snapshots, too few for a horizon of {max(horizons)}; {advice}."
        )
    if horizons != config.horizons:
        console.print(f"evaluate: the shortest trial of {store} has {count} snapshots: horizons up to {max(horizons)}.")
    if return_horizons == EvaluateConfig.return_horizons:
        return_horizons = tuple(h for h in return_horizons if h in horizons) or horizons
    unknown = sorted(set(return_horizons) - set(horizons))
    if returns and unknown:
        raise TiplError(
            f"--return-horizons has {', '.join(map(str, unknown))}, which --horizons has not; add it there."
        )
    return dataclasses.replace(config, horizons=horizons, return_horizons=return_horizons)


def choose_origins(trial: Trial, config: EvaluateConfig) -> Origins:
    """`config.origins` evenly over time (one at random in each of equal parts), and up to as many evenly over the
    return gained; at each, every horizon lies within the trial."""
    rng = np.random.default_rng([config.seed, trial.seed])
    last = trial.committed - 1 - max(config.horizons)
    edges = np.linspace(1, last + 1, config.origins + 1)
    by_time = np.unique(rng.uniform(edges[:-1], edges[1:]).astype(np.int64))
    progress = return_progress(trial)
    levels = np.linspace(0, progress[last], config.origins + 2)[1:-1]
    by_gain = np.setdiff1d(np.clip(np.searchsorted(progress, levels), 1, last), by_time)
    known = progress[-1] > 0
    snapshot = np.sort(np.concatenate([by_time, by_gain if known else by_gain[:0]]))
    return Origins(
        trial=np.full(len(snapshot), trial.seed),
        snapshot=snapshot,
        epoch_index=trial.epoch_index[snapshot],
        by_time=np.isin(snapshot, by_time),
        rising=progress[snapshot] < RISING,
        known=np.full(len(snapshot), known),
    )


def join_origins(parts: Sequence[Origins]) -> Origins:
    """The origins of several trials, one after another."""
    names = [field.name for field in dataclasses.fields(Origins)]
    return Origins(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def some_origins(origins: Origins, count: int) -> Origins:
    """`count` origins of each trial: half of those by time, half of those by return gained, evenly picked."""
    picked: list[int] = []
    for seed in np.unique(origins.trial):
        left = count
        for by_time, share in ((False, count // 2), (True, count)):
            of_kind = np.flatnonzero((origins.trial == seed) & (origins.by_time == by_time))
            take = min(len(of_kind), share if not by_time else left)
            picked += of_kind[np.linspace(0, len(of_kind) - 1, take).astype(int)].tolist()
            left -= take
    names = [field.name for field in dataclasses.fields(Origins)]
    return Origins(**{name: getattr(origins, name)[sorted(picked)] for name in names})


def history(trial: Trial, weights: np.ndarray, origins: Origins, m: int, forecaster: Forecaster) -> History:
    """What the forecaster may see at origin m of a trial with these weights [T, P]: nothing later."""
    t = int(origins.snapshot[m])
    tokens = trial.tokens_at(t) if forecaster.takes_tokens else None
    first = 0 if forecaster.context is None else max(0, t + 1 - forecaster.context)
    longest = int(origins.epoch_index[origins.trial == origins.trial[m]].max()) + 1  # that is known of here
    index = int(origins.epoch_index[m])
    return History(int(origins.trial[m]), t, weights[first : t + 1], index, longest or None, tokens)


def read_only_weights(trial: Trial) -> np.ndarray:
    """The trial's weights [T, P], which no forecaster can change.

    Raises:
        TiplError: they are not finite.
    """
    weights = read_weights(trial)
    weights.flags.writeable = False
    return weights


def return_progress(trial: Trial) -> np.ndarray:
    """[T] from 0 to 1: the share of the trial's gain in training return reached by each snapshot, never falling.

    Zeros where nothing is gained, or no episode has ended.
    """
    step, episode_return, _ = trial.episodes
    if not len(step):
        return np.zeros(trial.committed)
    smooth = smoothed(episode_return)
    seen = np.searchsorted(step, np.asarray(trial.env_step), side="right")  # episodes ended before each snapshot
    best = np.maximum.accumulate(smooth[np.maximum(seen - 1, 0)])
    gain = best[-1] - best[0]
    return (best - best[0]) / gain if gain > 0 else np.zeros(trial.committed)


def learning_curve(trial: Trial) -> dict[str, list[float]]:
    step, episode_return, _ = trial.episodes
    if not len(step):
        return {"env_step": [], "return": []}
    at = np.unique(np.linspace(0, len(step) - 1, _CURVE_POINTS).astype(int))
    return {"env_step": step[at].tolist(), "return": smoothed(episode_return)[at].round(3).tolist()}


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean of the last 20 values up to each; of fewer at the beginning."""
    sums = np.cumsum(np.r_[0.0, values])
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(end - _SMOOTHED, 0)
    return (sums[end] - sums[begin]) / (end - begin)
