"""How good are forecasts? One protocol for every forecaster: held-out trials, noise floors, intervals by trial.

In: a store; baselines always, models on request.  Out: EVAL/metrics.json (its schema is in ARCHITECTURE.md).

Weights are compared at origins drawn evenly over time, and at origins drawn evenly over the return gained, because a
run that sits at its ceiling says nothing. Policies are run on common episodes with their mean actions; a forecast has
the observation normalizer of its origin, the true policy its own. Two variants say, at the last return horizon, what
hangs on that: the true policy's normalizer for the forecast as well (an oracle), and sampled actions. One test trial's
weights are in memory at a time. Shapes: M origins, H horizons, P weights.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tipl
from tipl.baselines import fitted_baselines
from tipl.errors import TiplError
from tipl.forecast import Forecaster, History, load_forecaster, model_folder
from tipl.policy import OBS_CLIP
from tipl.presets import EvaluateConfig
from tipl.progress import steps_progress
from tipl.representation import Codes, read_weights, spectra
from tipl.returns import Policies, policy_returns
from tipl.score import Comparison, Origins, Returns, gap_scores, mean_by_trial, return_scores, weight_scores
from tipl.store import Store, Trial
from tipl.subspace import CodeLine
from tipl.train import CURVE_FILE
from tipl.windows import places_in_iteration

SCHEMA = 1
METRICS_FILE = "metrics.json"
RISING = 0.95  # of the return gained; an origin below it is in the rising phase
_SMOOTHED = 20  # episodes in a point of a learning curve
_CURVE_POINTS = 200
_BATCH_BYTES = 64 << 20  # of the forecasts of one forecaster held at once
_LARGE = 1e15  # a number whose square float32 holds


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
        models: folders that `train` wrote, or names of models that come with the package.
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
    models = [model_folder(model) for model in models]
    if (out / METRICS_FILE).exists():
        raise TiplError(f"{out} holds an evaluation already; give another --out or remove it.")
    data = Store.open(store)
    split = data.split()
    _require_alike(data)
    _require_room(data, config)
    if returns:
        _require_policies(data, split.test)
    out.mkdir(parents=True, exist_ok=True)
    trials = [data.trial(seed) for seed in split.test]
    forecasters = fitted_baselines(data, split, config.horizons, config.seed)
    learned = [load_forecaster(model, data, out) for model in models]
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
        "spectrum": spectra(trials[: config.spectrum_trials], config.seed) if config.spectrum_trials else None,
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
    with steps_progress("evaluate: weights", len(origins.trial) * len(forecasters)) as advance:
        for trial in trials:
            _compare_trial(trial, origins, forecasters, np.array(horizons), rows, advance)
    return {name: Comparison(*map(np.concatenate, zip(*parts, strict=True))) for name, parts in rows.items()}


def _compare_trial(
    trial: Trial, origins: Origins, forecasters: Sequence[Forecaster], horizons: np.ndarray,
    rows: Mapping[str, list[tuple[np.ndarray, ...]]], advance: Callable[[int, str], None],
) -> None:  # fmt: skip
    """Add one trial's origins to every forecaster's rows; its weights are gone when this returns."""
    weights = _read_only(trial)
    mine = np.flatnonzero(origins.trial == trial.seed)
    for chosen in np.array_split(mine, -(-len(mine) // _batch(weights, horizons))):
        now = weights[origins.snapshot[chosen]][:, None]
        true = weights[origins.snapshot[chosen][:, None] + horizons] - now
        moved = _total(true, true)
        for forecaster in forecasters:
            histories = [history(weights, origins, m, forecaster) for m in chosen]
            made = checked_forecast(forecaster, histories, horizons.tolist()) - now
            dot, length = _total(made, true), _total(made, made)
            error = np.subtract(true, made, out=made)
            rows[forecaster.name].append((_total(error, error), dot, length, moved))
            advance(len(chosen), forecaster.name)


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
    if not isinstance(made, np.ndarray):
        raise TiplError(f"Forecaster {forecaster.name} returned {type(made).__name__}, not a numpy array; mend it.")
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
        The noise floors, and what they were measured on.
    """
    measured = [f for f in forecasters if f.is_model or f.name in config.return_forecasters]
    chosen = _some_origins(origins, config.return_origins)
    total = len(chosen.trial) * _policies_an_origin(config, [f.name for f in measured]) * config.episodes
    with steps_progress("evaluate: episodes", total) as advance:
        runs = [_trial_returns(trial, chosen, measured, config, advance) for trial in trials]
    for forecaster in measured:
        own = _joined([run["mean_actions"] for run in runs], forecaster.name)
        scores[forecaster.name].update(return_scores(own, chosen, config.return_horizons, config.seed))
        scores[forecaster.name]["variants"] = {
            variant: gap_scores(
                _joined([run[variant] for run in runs], forecaster.name), chosen, np.ones(len(chosen.trial), np.bool_),
                config.return_horizons[-1:], config.seed,
            )
            for variant in runs[0] if variant != "mean_actions"
        }  # fmt: skip
    floors = {
        variant: mean_by_trial(
            np.concatenate([np.abs(run[variant].true[:, -1:] - run[variant].again[:, None]) for run in runs]),
            chosen.trial,
            config.seed,
        )[0]
        for variant in runs[0]
    }
    said = {
        variant: {
            "noise_floor": floor.value,
            "noise_floor_ci": None if floor.low is None else [floor.low, floor.high],
        }
        for variant, floor in floors.items()
    }
    return {
        "return_horizons": list(config.return_horizons),
        "return_origins": len(chosen.trial),
        "episodes": config.episodes,
        **said.pop("mean_actions"),
        "variants": said,
    }


class _Runs(NamedTuple):
    """Mean returns of one trial's policies on common episodes."""

    origin: np.ndarray
    """[M]"""
    true: np.ndarray
    """[M, H]"""
    predicted: dict[str, np.ndarray]
    """By forecaster, [M, H]."""
    again: np.ndarray
    """[M], of the true policies at the last horizon on other episodes."""


def _joined(runs: Sequence[_Runs], name: str) -> Returns:
    return Returns(
        np.concatenate([run.origin for run in runs]),
        np.concatenate([run.true for run in runs]),
        np.concatenate([run.predicted[name] for run in runs]),
    )


def _trial_returns(
    trial: Trial,
    origins: Origins,
    forecasters: Sequence[Forecaster],
    config: EvaluateConfig,
    advance: Callable[[int, str], None],
) -> dict[str, _Runs]:
    """By variant; `mean_actions`, under the origin's normalizer, is the protocol itself and has every horizon."""
    weights = _read_only(trial)
    mine = np.flatnonzero(origins.trial == trial.seed)
    at = origins.snapshot[mine]
    here = np.repeat(at[:, None], len(config.return_horizons), axis=1)
    future = at[:, None] + np.array(config.return_horizons)
    last = future[:, -1:]

    def run(phi: np.ndarray, snapshot: np.ndarray, *, seed: int = config.seed, sampled: bool = False) -> np.ndarray:
        """phi [..., P] under the normalizers of `snapshot`, of the same leading shape."""
        which = snapshot.reshape(-1)
        policies = Policies(phi.reshape(len(which), -1), trial.obs_mean[which], trial.obs_var[which])
        episodes = policy_returns(
            policies, trial.env_id, trial.config["hidden_sizes"], config.episodes, seed=seed, sampled=sampled,
            activation=trial.config.get("activation", "tanh"), backend=trial.config["backend"],
            obs_clip=trial.config.get("obs_clip", OBS_CLIP), advance=advance,
        )  # fmt: skip
        if not np.isfinite(episodes).all():
            raise TiplError(
                f"A policy of trial {trial.seed}, true or predicted, has a return that is not finite in "
                f"{trial.env_id}; leave the trial or the forecaster out."
            )
        return episodes.mean(axis=1).reshape(snapshot.shape)

    origin, true = run(weights[at], at), run(weights[future], future)
    mean = _Runs(origin, true, {}, run(weights[last], last, seed=config.seed + 1)[:, 0])
    oracle = _Runs(origin, true[:, -1:], {}, mean.again)
    if config.sampled_actions:
        origin, true = run(weights[at], at, sampled=True), run(weights[last], last, sampled=True)
        sampled = _Runs(origin, true, {}, run(weights[last], last, seed=config.seed + 1, sampled=True)[:, 0])
    else:
        sampled = None
    for forecaster in forecasters:
        name, stands = forecaster.name, forecaster.name == "persistence"  # whose policies have been run
        made = checked_forecast(
            forecaster, [history(weights, origins, int(m), forecaster) for m in mine], config.return_horizons
        )
        mean.predicted[name] = np.broadcast_to(mean.origin[:, None], here.shape) if stands else run(made, here)
        if config.oracle_normalizer:
            oracle.predicted[name] = run(made[:, -1:], last)
        if sampled:
            sampled.predicted[name] = (
                sampled.origin[:, None] if stands else run(made[:, -1:], at[:, None], sampled=True)
            )
    return (
        {"mean_actions": mean}
        | ({"oracle_normalizer": oracle} if config.oracle_normalizer else {})
        | ({"sampled_actions": sampled} if sampled else {})
    )


def _policies_an_origin(config: EvaluateConfig, names: Sequence[str]) -> int:
    """How many policies are run for one origin and these forecasters."""
    others = sum(name != "persistence" for name in names)
    count = 1 + len(config.return_horizons) * (1 + others) + 1  # the origin, true, predicted; true on other episodes
    return count + config.oracle_normalizer * len(names) + config.sampled_actions * (3 + others)


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
    floors: dict[str, dict[str, float]] = {}
    skills: dict[str, dict[str, float | None]] = {}
    for forecaster in forecasters:
        if forecaster.codes is None:
            continue
        sums = np.zeros((3, len(horizons)))
        for trial in trials:
            sums += _sums_in_the_basis(forecaster, forecaster.codes, trial, origins, np.array(horizons))
        dropped, error, moved = sums
        count = origins.by_time.sum()
        floors[forecaster.name] = {str(h): float(value) for h, value in zip(horizons, dropped / count, strict=True)}
        skills[forecaster.name] = {
            str(h): float(1 - e / m) if m > 0 else None for h, e, m in zip(horizons, error, moved, strict=True)
        }
    return floors, skills


def _sums_in_the_basis(
    forecaster: Forecaster, codes: Codes, trial: Trial, origins: Origins, horizons: np.ndarray
) -> np.ndarray:
    """[3, H] over one trial's origins: mean squares of what the basis drops of φ_{t+h}; squared errors, and squared
    displacements, between encoded and decoded snapshots."""
    weights, basis, coded = _read_only(trial), codes.basis(trial.seed), codes.codes(trial.seed)
    sums = np.zeros((3, len(horizons)))
    mine = np.flatnonzero((origins.trial == trial.seed) & origins.by_time)
    for chosen in np.array_split(mine, -(-len(mine) // _batch(weights, horizons))):
        histories = [history(weights, origins, m, forecaster) for m in chosen]
        forecasts = checked_forecast(forecaster, histories, horizons.tolist())
        for m, made in zip(chosen, forecasts, strict=True):
            future = origins.snapshot[m] + horizons
            shown = basis.decode(coded[[origins.snapshot[m], *future]])
            sums[0] += ((weights[future] - shown[1:]) ** 2).mean(axis=1, dtype=np.float64)
            sums[1] += ((made - shown[1:]) ** 2).sum(axis=1, dtype=np.float64)
            sums[2] += ((shown[0] - shown[1:]) ** 2).sum(axis=1, dtype=np.float64)
    return sums


def _batch(weights: np.ndarray, horizons: np.ndarray) -> int:
    """Origins whose forecasts are held at once."""
    return max(1, _BATCH_BYTES // (weights.shape[1] * len(horizons) * weights.itemsize))


def _read_only(trial: Trial) -> np.ndarray:
    """The trial's weights [T, P], which no forecaster can change.

    Raises:
        TiplError: they are not finite.
    """
    weights = read_weights(trial)
    weights.flags.writeable = False
    return weights


def _require_alike(data: Store) -> None:
    """One environment and one policy a store: nothing here can be averaged over two."""
    trials = [data.trial(seed) for seed in data.seeds]
    for what, found in (
        ("environment", {trial.env_id for trial in trials}),
        ("number of weights", {trial.spec.size for trial in trials}),
    ):
        if len(found) > 1:
            raise TiplError(
                f"The trials of {data.path} differ in their {what} ({', '.join(map(str, sorted(found)))}); "
                "give each its own store."
            )


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
    """Inner products [B, H] of [B, H, P], summed pairwise by numpy in blocks, so float32 suffices up to 1e-6.

    A forecast may be finite and yet so far off that its square is not: then in float64.
    """
    if max(np.abs(a).max(), np.abs(b).max()) > _LARGE:
        a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=2, dtype=np.float64)


def _versions(trial: Trial) -> dict[str, str]:
    own = {name: importlib.metadata.version(name) for name in ("numpy", "torch", "zarr")}
    collected = {f"{name} (collected with)": version for name, version in trial.versions.items()}
    return {"tipl": tipl.__version__, "python": platform.python_version(), **own, **collected}
