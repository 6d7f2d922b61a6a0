"""How good are forecasts? One protocol for every forecaster: held-out trials, noise floors, intervals by trial.

In: a store; baselines always, models on request.  Out: EVAL/metrics.json (its schema is in ARCHITECTURE.md).

Weights are compared at origins drawn evenly over time, and at origins drawn evenly over the return gained, because a
run that sits at its ceiling says nothing. Policies are run on common episodes; a forecast has the observation
normalizer of its origin, the true policy its own. Shapes: M origins, H horizons, P weights.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tipl
from tipl.baselines import fitted_baselines
from tipl.errors import TiplError
from tipl.forecast import Forecaster, History, load_tipl, places_in_iteration
from tipl.policy import OBS_CLIP
from tipl.presets import EvaluateConfig
from tipl.progress import steps_progress
from tipl.representation import Codes
from tipl.returns import Policies, policy_returns
from tipl.score import Comparison, Origins, Returns, mean_by_trial, return_scores, weight_scores
from tipl.store import Store, Trial
from tipl.subspace import CodeLine
from tipl.train import CURVE_FILE

SCHEMA = 1
METRICS_FILE = "metrics.json"
RISING = 0.95  # of the return gained; an origin below it is in the rising phase
_SMOOTHED = 20  # episodes in a point of a learning curve
_CURVE_POINTS = 200
_BATCH_BYTES = 256 << 20  # of forecasts held at once


def evaluate(
    store: Path,
    out: Path,
    config: EvaluateConfig = EvaluateConfig(),
    *,
    models: Sequence[Path] = (),
    codes: Path | None = None,
    returns: bool = True,
) -> Path:
    """Judge every baseline, and these models, on the test trials of a store.

    Args:
        store: the data set.
        out: folder for metrics.json; made if missing.
        models: folders that `train` wrote.
        codes: what `fit_svd` wrote for this store, full or pooled: also judge a line through them. With the `full`
            basis it shows what look-ahead alone manufactures. Default: those of the models.
        returns: also run the true and the predicted policies.

    Returns:
        `out`.

    Raises:
        TiplError: the store or a model cannot be used, its policies cannot be run, the horizons do not fit into the
            trials, or `out` holds the metrics of an earlier evaluation.
    """
    store, out, began = Path(store), Path(out), time.monotonic()
    if (out / METRICS_FILE).exists():
        raise TiplError(f"{out} holds an evaluation already; give another --out or remove it.")
    data = Store.open(store)
    split = data.split()
    _require_room(data, config)
    if returns:
        _require_policies(data, split.test)
    out.mkdir(parents=True, exist_ok=True)
    trials = [data.trial(seed) for seed in split.test]
    forecasters = fitted_baselines(data, split, config.horizons, config.seed)
    learned = [load_tipl(model, data, out) for model in models]
    forecasters += learned
    coded = {model.basis: model.codes for model in learned} if codes is None else {None: Codes.open(codes)}
    forecasters += [CodeLine(each) for each in coded.values() if each is not None]
    origins = join_origins([choose_origins(trial, config) for trial in trials])
    compared = compare_weights(trials, origins, forecasters, config.horizons)
    rivals = [f.name for f in forecasters if f.causal and not f.is_model]
    scores = {
        f.name: {"label": f.label, "basis": f.basis, "causal": f.causal, "model": f.is_model}
        | weight_scores(f.name, compared, rivals, origins, config.horizons, trials[0].spec.size, config.seed)
        for f in forecasters
    }
    floors, within = _in_the_basis(forecasters, trials, origins, config.horizons)
    for name, values in within.items():
        scores[name]["skill_in_basis"] = values
    metrics: dict[str, Any] = {
        "schema": SCHEMA,
        "store": str(store),
        "command": shlex.join(["tipl", *sys.argv[1:]]) if Path(sys.argv[0]).name == "tipl" else None,
        "env_id": trials[0].env_id,
        "hidden_sizes": trials[0].config.get("hidden_sizes"),
        "num_weights": trials[0].spec.size,
        "train_trials": list(split.train),
        "validation_trials": list(split.validation),
        "test_trials": list(split.test),
        "horizons": list(config.horizons),
        "origins": int(origins.by_time.sum()),
        "forecasters": scores,
        "reconstruction_floor": floors or None,
        "learning_curves": {str(trial.seed): _learning_curve(trial) for trial in trials},
    }
    if returns:
        metrics |= _measure_returns(trials, origins, forecasters, config, scores)
    metrics |= {
        "training": {Path(model).name: json.loads((Path(model) / CURVE_FILE).read_text()) for model in models},
        "config": {"evaluate": dataclasses.asdict(config), "trial": trials[0].config},
        "versions": _versions(trials[0]),
        "seconds": {"evaluate": round(time.monotonic() - began, 1)},
    }
    partial = out / f"{METRICS_FILE}.partial"
    partial.write_text(json.dumps(metrics, indent=1, allow_nan=False))
    os.replace(partial, out / METRICS_FILE)
    return out


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
        place=places_in_iteration(trial)[snapshot],
        by_time=np.isin(snapshot, by_time),
        rising=progress[snapshot] < RISING,
        known=np.full(len(snapshot), known),
    )


def join_origins(parts: Sequence[Origins]) -> Origins:
    """The origins of several trials, one after another."""
    names = [field.name for field in dataclasses.fields(Origins)]
    return Origins(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def return_progress(trial: Trial) -> np.ndarray:
    """[T] from 0 to 1: the share of the trial's gain in training return reached by each snapshot, never falling.

    Zeros where nothing is gained, or no episode has ended.
    """
    step, episode_return, _ = trial.episodes
    if not len(step):
        return np.zeros(trial.committed)
    smooth = _smoothed(episode_return)
    seen = np.searchsorted(step, np.asarray(trial.env_step), side="right")  # episodes ended before each snapshot
    best = np.maximum.accumulate(smooth[np.maximum(seen - 1, 0)])
    gain = best[-1] - best[0]
    return (best - best[0]) / gain if gain > 0 else np.zeros(trial.committed)


def compare_weights(
    trials: Sequence[Trial], origins: Origins, forecasters: Sequence[Forecaster], horizons: Sequence[int]
) -> dict[str, Comparison]:
    """Every forecaster at every origin against what came; a trial's weights are in memory one trial at a time.

    Raises:
        TiplError: a forecaster returns another shape, or weights that are not finite.
    """
    rows: dict[str, list[tuple[np.ndarray, ...]]] = {f.name: [] for f in forecasters}
    ahead = np.array(horizons)
    with steps_progress("evaluate: weights", len(origins.trial) * len(forecasters)) as advance:
        for trial in trials:
            weights = trial.weights()
            weights.flags.writeable = False
            batch = max(1, _BATCH_BYTES // (weights.shape[1] * len(horizons) * weights.itemsize))
            mine = np.flatnonzero(origins.trial == trial.seed)
            for start in range(0, len(mine), batch):
                chosen = mine[start : start + batch]
                now = weights[origins.snapshot[chosen]][:, None]
                true = weights[origins.snapshot[chosen][:, None] + ahead] - now
                moved = _total(true, true)
                for forecaster in forecasters:
                    histories = [history(weights, origins, m, forecaster) for m in chosen]
                    made = checked_forecast(forecaster, histories, horizons) - now
                    error = true - made
                    rows[forecaster.name].append((_total(error, error), _total(made, true), _total(made, made), moved))
                    advance(len(chosen), forecaster.name)
    return {name: Comparison(*map(np.concatenate, zip(*parts, strict=True))) for name, parts in rows.items()}


def history(weights: np.ndarray, origins: Origins, m: int, forecaster: Forecaster) -> History:
    """What the forecaster may see at origin m of a trial with these weights [T, P]: nothing later."""
    t = int(origins.snapshot[m])
    first = 0 if forecaster.context is None else max(0, t + 1 - forecaster.context)
    return History(int(origins.trial[m]), t, weights[first : t + 1], int(origins.place[m]))


def checked_forecast(forecaster: Forecaster, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
    """The forecast [B, H, P].

    Raises:
        TiplError: it has another shape, or is not finite.
    """
    made = forecaster.forecast(histories, horizons)
    wanted = (len(histories), len(horizons), histories[0].weights.shape[1])
    if made.shape != wanted:
        raise TiplError(f"Forecaster {forecaster.name} returned the shape {made.shape}, not {wanted}; mend it.")
    if not np.isfinite(made).all():
        raise TiplError(f"Forecaster {forecaster.name} returned weights that are NaN or infinite; mend or drop it.")
    return made


def _measure_returns(
    trials: Sequence[Trial],
    origins: Origins,
    forecasters: Sequence[Forecaster],
    config: EvaluateConfig,
    scores: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """Run the policies of some of the origins; adds to every measured forecaster's scores.

    Returns:
        The noise floor, and what it was measured on.
    """
    horizons = config.return_horizons
    measured = [f for f in forecasters if f.is_model or f.name in config.return_forecasters]
    chosen = _some_origins(origins, config.return_origins)
    runs: list[_TrialReturns] = []
    # The origin, every true policy, every prediction; and the last horizon's true policies on other episodes.
    policies_an_origin = 1 + len(horizons) * (1 + sum(f.name != "persistence" for f in measured)) + 1
    total = len(chosen.trial) * policies_an_origin * config.episodes
    with steps_progress("evaluate: episodes", total) as advance:
        for trial in trials:
            runs.append(_trial_returns(trial, chosen, measured, config, advance))
    origin, true = np.concatenate([run.origin for run in runs]), np.concatenate([run.true for run in runs])
    again = np.concatenate([run.again for run in runs])
    for forecaster in measured:
        predicted = np.concatenate([run.predicted[forecaster.name] for run in runs])
        scores[forecaster.name].update(return_scores(Returns(origin, true, predicted), chosen, horizons, config.seed))
    floor = mean_by_trial(np.abs(true[:, -1] - again)[:, None], chosen.trial, config.seed)[0]
    return {
        "return_horizons": list(horizons),
        "return_origins": len(chosen.trial),
        "episodes": config.episodes,
        "noise_floor": floor.value,
        "noise_floor_ci": None if floor.low is None else [floor.low, floor.high],
    }


class _TrialReturns(NamedTuple):
    """Mean returns of one trial's policies on common episodes."""

    origin: np.ndarray
    """[M]"""
    true: np.ndarray
    """[M, H]"""
    predicted: dict[str, np.ndarray]
    """By forecaster, [M, H]."""
    again: np.ndarray
    """[M], of the true policies at the last horizon on other episodes."""


def _trial_returns(
    trial: Trial, origins: Origins, forecasters: Sequence[Forecaster], config: EvaluateConfig, advance: Any
) -> _TrialReturns:
    horizons = config.return_horizons
    weights = trial.weights()
    mine = np.flatnonzero(origins.trial == trial.seed)
    at = origins.snapshot[mine]
    future = at[:, None] + np.array(horizons)

    def run(phi: np.ndarray, snapshot: np.ndarray, seed: int) -> np.ndarray:
        """phi [..., P] under the normalizers of `snapshot`, of the same leading shape."""
        which = snapshot.reshape(-1)
        policies = Policies(phi.reshape(len(which), -1), trial.obs_mean[which], trial.obs_var[which])
        episodes = policy_returns(
            policies, trial.env_id, trial.config["hidden_sizes"], config.episodes, seed=seed,
            activation=trial.config.get("activation", "tanh"), backend=trial.config["backend"],
            obs_clip=trial.config.get("obs_clip", OBS_CLIP), advance=advance,
        )  # fmt: skip
        return episodes.mean(axis=1).reshape(snapshot.shape)

    origin = run(weights[at], at, config.seed)
    true = run(weights[future], future, config.seed)
    again = run(weights[future[:, -1]], future[:, -1], config.seed + 1)
    predicted = {}
    for forecaster in forecasters:
        if forecaster.name == "persistence":
            predicted[forecaster.name] = np.repeat(origin[:, None], len(horizons), axis=1)
        else:
            histories = [history(weights, origins, int(m), forecaster) for m in mine]
            made = checked_forecast(forecaster, histories, horizons)
            predicted[forecaster.name] = run(made, np.repeat(at[:, None], len(horizons), axis=1), config.seed)
    return _TrialReturns(origin, true, predicted, again)


def _some_origins(origins: Origins, count: int) -> Origins:
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


def _in_the_basis(
    forecasters: Sequence[Forecaster], trials: Sequence[Trial], origins: Origins, horizons: Sequence[int]
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float | None]]]:
    """What a basis does to its forecasters, by name and horizon, over the origins drawn by time.

    Returns:
        The reconstruction floor: WPE of the true φ_{t+h} encoded and decoded, which no forecast in the basis can beat.
        The skill within the basis: as the skill, but everything is measured between encoded and decoded snapshots, so
        that what the basis drops counts for nobody. With a basis that has seen the future, look-ahead shows here.
    """
    ahead = np.array(horizons)
    floors: dict[str, dict[str, float]] = {}
    skills: dict[str, dict[str, float | None]] = {}
    for forecaster in forecasters:
        if forecaster.codes is None:
            continue
        dropped, error, moved = (np.zeros(len(horizons)) for _ in range(3))
        for trial in trials:
            weights = trial.weights()
            shown = forecaster.codes.basis(trial.seed).decode(forecaster.codes.codes(trial.seed))
            chosen = np.flatnonzero((origins.trial == trial.seed) & origins.by_time).tolist()
            forecasts = checked_forecast(
                forecaster, [history(weights, origins, m, forecaster) for m in chosen], horizons
            )
            for m, made in zip(chosen, forecasts, strict=True):
                future = origins.snapshot[m] + ahead
                dropped += ((weights[future] - shown[future]) ** 2).mean(axis=1, dtype=np.float64)
                error += ((made - shown[future]) ** 2).sum(axis=1, dtype=np.float64)
                moved += ((shown[origins.snapshot[m]] - shown[future]) ** 2).sum(axis=1, dtype=np.float64)
        count = origins.by_time.sum()
        floors[forecaster.name] = {str(h): float(value) for h, value in zip(horizons, dropped / count, strict=True)}
        skills[forecaster.name] = {
            str(h): float(1 - e / m) if m > 0 else None for h, e, m in zip(horizons, error, moved, strict=True)
        }
    return floors, skills


def _require_room(data: Store, config: EvaluateConfig) -> None:
    shortest = min(data.trial(seed).committed for seed in data.seeds)
    room = shortest - 2
    if max(config.horizons) > room // 2:
        raise TiplError(
            f"The shortest trial of {data.path} has {shortest} snapshots, too few for a horizon of "
            f"{max(config.horizons)}; give --horizons up to {room // 2}."
        )


def _require_policies(data: Store, seeds: Sequence[int]) -> None:
    """Collected policies can be run; recorded ones (record.py) only if they are tanh networks with a log-std."""
    for seed in seeds:
        if data.trial(seed).config.get("hidden_sizes") is None:
            raise TiplError(
                f"The policies of trial {seed} of {data.path} are not tanh networks with a log-std of their own, so "
                "their returns cannot be measured; pass --no-returns."
            )


def _learning_curve(trial: Trial) -> dict[str, list[float]]:
    step, episode_return, _ = trial.episodes
    if not len(step):
        return {"env_step": [], "return": []}
    at = np.unique(np.linspace(0, len(step) - 1, _CURVE_POINTS).astype(int))
    return {"env_step": step[at].tolist(), "return": _smoothed(episode_return)[at].round(3).tolist()}


def _smoothed(values: np.ndarray) -> np.ndarray:
    """The mean of the last 20 values up to each; of fewer at the beginning."""
    sums = np.cumsum(np.r_[0.0, values])
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(end - _SMOOTHED, 0)
    return (sums[end] - sums[begin]) / (end - begin)


def _total(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Inner products [B, H] of [B, H, P], summed pairwise by numpy in blocks, so float32 suffices up to 1e-6."""
    return (a * b).sum(axis=2, dtype=np.float64)


def _versions(trial: Trial) -> dict[str, str]:
    own = {name: importlib.metadata.version(name) for name in ("numpy", "torch", "zarr")}
    collected = {f"{name} (collected with)": version for name, version in trial.versions.items()}
    return {"tipl": tipl.__version__, "python": platform.python_version(), **own, **collected}
