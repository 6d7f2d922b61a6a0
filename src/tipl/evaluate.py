"""How good are forecasts? One protocol for every forecaster: held-out trials, noise floors, intervals by trial.

In: a store; baselines always, models on request.  Out: EVAL/metrics.json (its schema is in ARCHITECTURE.md).

Weights are compared at origins drawn evenly over time, and at origins drawn evenly over the return gained, because a
run that sits at its ceiling says nothing (origins.py); policies are run at some of them (forecast_returns.py). One test
trial's weights are in memory at a time. Shapes: M origins, H horizons, P weights.
"""

import dataclasses
import importlib.metadata
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tipl
from tipl.adapt import adapted
from tipl.baselines import Autoregression, fitted_baselines, persistence
from tipl.errors import TiplError
from tipl.files import write_json
from tipl.forecast import (
    Forecaster,
    Stretched,
    checked_forecast,
    load_forecaster,
    model_folder,
    model_name,
    stores_learned_on,
    usable,
)
from tipl.forecast_returns import measure_returns, why_not_run
from tipl.model import read_training
from tipl.origins import choose_origins, history, join_origins, learning_curve, read_only_weights
from tipl.presets import EvaluateConfig
from tipl.progress import steps_progress
from tipl.representation import Codes, spectra
from tipl.score import Comparison, Origins, weight_scores
from tipl.store import Store, Trial
from tipl.subspace import CodeLine

SCHEMA = 1
METRICS_FILE = "metrics.json"
PARTS_FOLDER = "parts"
_BATCH_BYTES = 64 << 20  # of the forecasts of one forecaster held at once
_LARGE = 1e15  # a number whose square float32 holds


def evaluate(
    store: Path,
    out: Path,
    config: EvaluateConfig = EvaluateConfig(),
    *,
    models: Sequence[Path] = (),
    forecasters: Sequence[Forecaster] = (),
    codes: Path | None = None,
    fit: Path | None = None,
    returns: bool = True,
) -> Path:
    """Judge every baseline, and these models and forecasters, on the test trials of a store.

    Returns that were measured are kept in `out`/parts: the same call goes on after an interruption.

    Args:
        store: the data set.
        out: folder for metrics.json; made if missing.
        models: folders that `train` wrote, or names of models that come with the package.
        forecasters: any others of your own; one without `is_model` counts as a baseline that models have to beat.
        codes: what `fit_svd` wrote for this store, full or pooled: also judge a line through them. With the `full`
            basis it shows what look-ahead alone manufactures. Default: those of the models.
        fit: another store, whose training and validation trials the baselines are fitted on and chosen by; every trial
            of `store` is then judged. Default: `store` itself.
        returns: also run the true and the predicted policies.

    Returns:
        `out`.

    Raises:
        TiplError: the store or a model cannot be used, its policies cannot be run, the horizons do not fit into the
            trials, `fit` holds other policies or trials that would be judged, two forecasters have one name, one
            returns what is no forecast (another shape, fewer horizons, not finite), or `out` holds the metrics of an
            earlier evaluation.
    """
    store, out, began = Path(store), Path(out), time.monotonic()
    for each in forecasters:
        usable(each)
    models = [model_folder(model) for model in models]
    if (out / METRICS_FILE).exists():
        raise TiplError(f"{out} holds an evaluation already; give another --out or remove it.")
    data = Store.open(store)
    source = data if fit is None else Store.open(fit)
    split = source.split()
    _require_alike(data)
    if source is not data:
        _require_apart(data, source, config)
        _require_unlearned(data, models)
    _require_room(data, config)
    chosen = split.train[-len(split.test) :] if config.seen else split.test if source is data else tuple(data.seeds)
    if returns:
        _require_policies(data, chosen)
    training = {model_name(model): read_training(model) for model in models}
    out.mkdir(parents=True, exist_ok=True)
    trials = [data.trial(seed) for seed in chosen]
    asked = [*(load_forecaster(model, data, out) for model in models), *forecasters]
    coded = [each.codes for each in asked if each.codes] if codes is None else [_codes_of(data, codes)]
    if source is not data and any(each.config.basis == "pooled" for each in coded):
        raise TiplError("A pooled basis is fitted on trials of the store, all of which --fit judges; leave one out.")
    lines = {line.name: line for line in map(CodeLine, coded)}  # one a basis
    _require_names([*asked, *lines.values()])  # before the baselines, which take their time
    judged = [*fitted_baselines(source, split, config.horizons, config.seed), *asked, *lines.values()]
    if config.adapt:
        learned = [f for f in judged if f.codes is None and (f.is_model or isinstance(f, Autoregression))]
        corrected = [adapted([f], trials[0]) for f in (persistence(), *learned)]
        judged, asked = [*judged, *corrected], [*asked, *(each for each in corrected if each.is_model)]
    run = [f for f in judged if f in asked or f.name in config.return_forecasters]
    stretched = [Stretched(f, factor) for f in run if f.name != "persistence" for factor in config.stretch]
    judged, run = [*judged, *stretched], [*run, *stretched]
    _require_names(judged, config.return_forecasters)
    origins = join_origins([choose_origins(trial, config) for trial in trials])
    compared = compare_weights(trials, origins, judged, config.horizons)
    rivals = [f.name for f in judged if f.causal and not f.is_model]
    scores = {
        f.name: {"label": f.label, "basis": f.basis, "causal": f.causal, "model": f.is_model}
        | weight_scores(f.name, compared, rivals, origins, config.horizons, trials[0].spec.size, config.seed)
        for f in judged
    }
    floors, within = _in_the_basis(judged, trials, origins, config.horizons)
    for name, values in within.items():
        scores[name]["skill_in_basis"] = values
    metrics: dict[str, Any] = {
        "schema": SCHEMA,
        "store": str(store),
        "command": shlex.join(["tipl", *sys.argv[1:]]) if Path(sys.argv[0]).name == "tipl" else None,
        "env_id": trials[0].env_id,
        "hidden_sizes": trials[0].config.get("hidden_sizes"),
        "num_weights": trials[0].spec.size,
        "fit": None if fit is None else str(fit),
        "train_trials": list(split.train),
        "validation_trials": list(split.validation),
        "test_trials": list(chosen),
        "seen": config.seen,
        "horizons": list(config.horizons),
        "origins": int(origins.by_time.sum()),
        "forecasters": scores,
        "reconstruction_floor": floors or None,
        "learning_curves": {str(trial.seed): learning_curve(trial) for trial in trials},
        "spectrum": spectra(trials[: config.spectrum_trials], config.seed) if config.spectrum_trials else None,
    }
    if returns:
        metrics |= measure_returns(trials, origins, run, config, scores, out / PARTS_FOLDER)
    metrics |= {
        "training": training,
        "config": {"evaluate": dataclasses.asdict(config), "trial": trials[0].config},
        "versions": _versions(trials[0]),
        "seconds": {"evaluate": round(time.monotonic() - began, 1)},
    }
    write_json(out / METRICS_FILE, metrics, seal=True)
    return out


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
    weights = read_only_weights(trial)
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
    weights, basis, coded = read_only_weights(trial), codes.basis(trial.seed), codes.codes(trial.seed)
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


def _require_apart(data: Store, source: Store, config: EvaluateConfig) -> None:
    """Policies of one shape, and no trial that was both fitted on and judged."""
    if config.seen:
        raise TiplError("--seen judges training trials of the store itself; leave out --fit.")
    first, other = data.trial(data.seeds[0]), source.trial(source.seeds[0])
    if first.spec.shapes != other.spec.shapes:
        raise TiplError(
            f"Policies of {source.path} have {other.spec.size} weights, those of {data.path} {first.spec.size}, or in "
            "other layers; fit on a store of the same environment and network."
        )
    _require_alike(source)
    both = [seed for seed in data.seeds if seed in source.seeds]
    same = [seed for seed in both if data.trial(seed).config == source.trial(seed).config]
    if same:
        raise TiplError(
            f"Trial {same[0]} is in {data.path} and in {source.path}; judge trials that nothing was fitted on: collect "
            "some with another --seed."
        )


def _require_unlearned(data: Store, models: Sequence[Path]) -> None:
    """No model that has seen trials of this store; by its name, which is what a model keeps."""
    for model in models:
        if data.path.name in stores_learned_on(model):
            raise TiplError(
                f"{model} learned on trials of {data.path}, all of which --fit judges; leave out --fit to judge the "
                "test trials alone."
            )


def _require_room(data: Store, config: EvaluateConfig) -> None:
    shortest = min(data.trial(seed).committed for seed in data.seeds)
    room = shortest - 2
    if max(config.horizons) > room // 2:
        raise TiplError(
            f"The shortest trial of {data.path} has {shortest} snapshots, too few for a horizon of "
            f"{max(config.horizons)}; give --horizons up to {room // 2}."
        )


def _require_names(forecasters: Sequence[Forecaster], wanted: Sequence[str] = ()) -> None:
    """No score may take another's place, and none that was asked for may be missing."""
    names = [f.name for f in forecasters]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise TiplError(f"Two forecasters are named {twice}; rename one (of a trained model, its folder).")
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise TiplError(f"--return-forecasters has {unknown[0]}, which is none of: {', '.join(names)}.")


def _codes_of(data: Store, path: Path) -> Codes:
    codes = Codes.open(path)
    if codes.context is not None:
        raise TiplError(
            f"{path} is of the {codes.config.basis} basis, in which a snapshot has another code at every origin, so no "
            "line can be drawn through them; fit the full or the pooled basis."
        )
    if codes.store != data.path.resolve():
        raise TiplError(f"{path} is of {codes.store}, not of {data.path}; run `tipl fit-svd` on this store.")
    return codes


def _require_policies(data: Store, seeds: Sequence[int]) -> None:
    for seed in seeds:
        reason = why_not_run(data.trial(seed))
        if reason is not None:
            raise TiplError(
                f"The policies of trial {seed} of {data.path} {reason}, so their returns cannot be measured; pass "
                "--no-returns."
            )


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
