"""The ceiling: how much of the coming weights anybody could know, and how much of that a forecast knows.

In: a store that `collect` made; models on request.  Out: CEILING/metrics.json.

A run is branched at an origin t: from one exact state, R futures with other noise. Their displacements are
D_r = φ_{t+h} − φ_t. Given the state they are drawn alike and apart: D_r = μ + ε_r, with E ε_r = 0 and E|ε_r|² = σ².
No forecast that is made at t knows ε, so the best one is μ, whose error is σ². Its skill, over origins together as
everywhere, is the ceiling

    c = 1 − Σ σ² / Σ E|D|² = Σ |μ|² / Σ (|μ|² + σ²).

Their mean M = Σ_r D_r / R is not μ: E|M|² = |μ|² + σ²/R, so R branches alone make a ceiling of 1/R out of pure noise.
Without bias are
    s² = Σ_r |D_r − M|² / (R − 1)        for σ²,
    m² = Σ_r |D_r|² / R                  for E|D|²,
    u² = m² − s² = |M|² − s²/R           for |μ|² (the mean of D_r · D_q over all pairs of two futures; it may be < 0).

A forecast f of the displacement has over all futures, not over the one that came, the error E|D − f|² =
E|D|² − 2 f·μ + |f|². So, with E f·M = f·μ (f has not seen the branches),

    skill  = Σ (2 f·M − |f|²) / Σ m²,
    share  = Σ (2 f·M − |f|²) / Σ u²      of the ceiling: 1 for μ, 0 for doing nothing,
    cosine = Σ f·M / √(Σ |f|² Σ u²)       with the mean future: how good the direction is, whatever the length.

A forecast that is scaled by the best single factor has the share cosine²; what is below that is a wrong length.

Shapes: R futures, H horizons, P weights, N trials; arrays of origins are [M, H].
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tipl.checks import AnyPath, Count, Place, checked_arguments
from tipl.collection.branches import settings_of
from tipl.config.ceiling import CeilingConfig
from tipl.config.env_spec import import_named
from tipl.config.presets import EvaluateConfig
from tipl.errors import TiplError
from tipl.evaluation.apart import Plan, plan
from tipl.evaluation.evaluate import (
    METRICS_FILE,
    PARTS_FOLDER,
    distinct_folders,
    require_names,
    require_out,
    versions_of,
)
from tipl.evaluation.futures import Futures, branched, chosen_iterations, dots
from tipl.evaluation.scores import by_trial
from tipl.evaluation.statistics import BELOW_ONE, PLAIN, Interval, Scale, bootstrap_interval, skill
from tipl.files import told, write_json
from tipl.forecasting.baselines import fitted_baselines
from tipl.forecasting.forecaster import Forecaster, checked_forecast, usable
from tipl.forecasting.named import load_forecaster
from tipl.forecasting.shipped import model_name
from tipl.progress import steps_progress
from tipl.remote.mirror import located
from tipl.store import Store, Trial

SCHEMA, KIND = 1, "ceiling"


@checked_arguments
def ceiling(
    store: Place,
    out: AnyPath,
    config: CeilingConfig = CeilingConfig(),
    *,
    models: Sequence[Place] = (),
    forecasters: Sequence[Forecaster] = (),
    fit: Place | Sequence[Place] | None = None,
    workers: Count | None = None,
    trust: bool = False,
) -> Path:
    """Branch the runs of a store, and say how much of what comes can be known and how much of that forecasts know.

    Each judged trial is made again from its seed, up to its last origin, and has to come to its stored snapshots. The
    branches of an origin are kept in `out`/parts: the same call goes on after an interruption.

    Args:
        store, out: the data set, and the folder for metrics.json, made if missing.
        config: at which origins, how often and how far ahead.
        models: folders of causal models that `train` wrote, or names of models that come with the package.
        forecasters: any others of your own.
        fit: other stores, whose training and validation trials the baselines are fitted on and chosen by; any trial of
            `store` may then be judged. Default: `store` itself.
        workers: processes; default: one a core, at most one a trial.
        trust: import the modules that the store names for its environments, which runs their code.

    Returns:
        `out`.

    Raises:
        TiplError: the store or a model cannot be used, its trials were not made by `collect` or not on such a machine,
            the horizons do not fit, something that would be judged was learned from, or `out` holds something.
    """
    store, out, began = located(store), Path(out), time.monotonic()
    for each in forecasters:
        usable(each)
    folders = distinct_folders(models)
    sources = [located(each) for each in ([] if fit is None else [fit] if isinstance(fit, str | os.PathLike) else fit)]
    require_out(out, [store, *folders, *sources])
    data = Store.open(store)
    if trust:
        import_named(data.trial(seed).env_id for seed in data.seeds)
    chosen = plan(data, EvaluateConfig(horizons=config.horizons, all=config.all, seed=config.seed), folders, sources)
    trials = chosen.trials[: config.trials]
    wanted = {trial.seed: chosen_iterations(trial, config) for trial in trials}
    judged = _judged(chosen, trials[0], config, folders, forecasters)
    new = not out.exists()
    with told(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        futures = branched(store, trials, wanted, config, out / PARTS_FOLDER, workers, trust)
    except TiplError:
        with contextlib.suppress(OSError):
            if new:
                out.rmdir()  # where nothing was kept
        raise
    phases = {"rising": futures.rising & futures.known, "arrived": ~futures.rising & futures.known}
    metrics: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": KIND,
        "store": str(data.path),
        "store_id": data.id,
        "env_id": trials[0].env_id,
        "hidden_sizes": trials[0].config.get("hidden_sizes"),
        "num_weights": trials[0].spec.size,
        "judged": chosen.kind,
        "test_trials": [trial.seed for trial in trials],
        "learned_from": chosen.facts()["learned_from"],
        "horizons": list(config.horizons),
        "futures": config.futures,
        **ceiling_scores(futures, futures.by_time, config),
        "by_phase": {name: ceiling_scores(futures, mask, config) for name, mask in phases.items() if mask.any()},
        "forecasters": _scores(judged, trials, futures, phases, config),
        "origins": _by_origin(futures, config.horizons),
        "config": {"ceiling": dataclasses.asdict(config), "trial": trials[0].config},
        "versions": versions_of(trials[0]),
        "seconds": {"ceiling": round(time.monotonic() - began, 1)},
    }
    write_json(out / METRICS_FILE, metrics, seal=True)
    return out


def _judged(
    chosen: Plan, trial: Trial, config: CeilingConfig, folders: Sequence[Path], own: Sequence[Forecaster]
) -> list[Forecaster]:
    """Models, the user's own forecasters, and every baseline but doing nothing, whose share is 0.

    Raises:
        TiplError: two have one name, or a model forecasts no weights.
    """
    models = []
    for folder in folders:
        models.append(load_forecaster(folder, trial.spec.shapes))
        models[-1].name = model_name(folder)
    require_names([*models, *own])
    baselines = fitted_baselines(chosen.sources, trial.spec.shapes, config.horizons, config.seed)
    judged = [*models, *own, *(each for each in baselines if each.name not in ("persistence", "random"))]
    require_names(judged)
    return judged


def ceiling_scores(futures: Futures, mask: np.ndarray, config: CeilingConfig) -> dict[str, Any]:
    """Return the ceiling c by horizon, with its interval, over the origins in `mask` [M]."""
    spread, moved = (by_trial(values, futures.trial, mask) for values in (futures.spread, futures.moved))
    found = _interval(skill, spread, moved, scale=BELOW_ONE, seed=config.seed)
    return {"ceiling_origins": int(mask.sum()), **_rows("ceiling", config.horizons, found)}


def _scores(
    judged: Sequence[Forecaster], trials: Sequence[Trial], futures: Futures, phases: Mapping[str, np.ndarray],
    config: CeilingConfig,
) -> dict[str, Any]:  # fmt: skip
    """By forecaster its skill over all futures, its share of the ceiling and its cosine with the mean future."""
    of = {trial.seed: trial for trial in trials}
    scores: dict[str, Any] = {}
    with steps_progress("ceiling: forecasts", len(judged) * len(futures.trial)) as advance:
        for forecaster in judged:
            rows = []
            for seed, iteration, mean in zip(futures.trial, futures.iteration, futures.mean, strict=True):
                trial = of[int(seed)]
                t = int(iteration) * settings_of(trial).snapshots_per_iteration
                history = trial.history(t, forecaster.context)
                made = checked_forecast(forecaster, [history], config.horizons)[0] - history.weights[-1]
                rows.append([dots(made, mean), dots(made, made)])
                advance(1, forecaster.name)
            dot, length = np.moveaxis(np.array(rows), 1, 0)
            scores[forecaster.name] = {
                "label": forecaster.label,
                "model": forecaster.is_model,
                "causal": forecaster.causal,
                **forecast_scores(dot, length, futures, futures.by_time, config),
                "by_phase": {
                    name: forecast_scores(dot, length, futures, mask, config)
                    for name, mask in phases.items()
                    if mask.any()
                },
            }
    return scores


def forecast_scores(
    dot: np.ndarray, length: np.ndarray, futures: Futures, mask: np.ndarray, config: CeilingConfig
) -> dict[str, Any]:
    """Return skill, share and cosine by horizon, with intervals, over the origins in `mask` [M].

    Args:
        dot, length: [M, H], f·M and |f|² of each forecast.
    """
    known = futures.moved - futures.spread  # u²
    sums = [by_trial(values, futures.trial, mask) for values in (2 * dot - length, futures.moved, known, dot, length)]
    gained, moved, known, dot, length = sums
    how = {
        "skill": (_ratio, (gained, moved)),
        "share": (_ratio_where_known, (gained, known)),
        "cosine": (_cosine, (dot, length, known)),
    }
    return {
        key: value
        for name, (statistic, samples) in how.items()
        for key, value in _rows(name, config.horizons, _interval(statistic, *samples, seed=config.seed)).items()
    }


def _ratio(above: np.ndarray, below: np.ndarray, axis: int) -> np.ndarray:
    return above.sum(axis) / below.sum(axis)


def _ratio_where_known(above: np.ndarray, known: np.ndarray, axis: int) -> np.ndarray:
    """A share of what can be known; NaN where that is nothing."""
    below = known.sum(axis)
    return np.where(below > 0, above.sum(axis) / below, np.nan)


def _cosine(dot: np.ndarray, length: np.ndarray, known: np.ndarray, axis: int) -> np.ndarray:
    return dot.sum(axis) / np.sqrt(length.sum(axis) * known.sum(axis))


def _interval(statistic: Any, *samples: np.ndarray, seed: int, scale: Scale = PLAIN) -> list[Interval]:
    return bootstrap_interval(statistic, *samples, rng=np.random.default_rng(seed), scale=scale)


def _rows(name: str, horizons: Sequence[int], found: Sequence[Interval]) -> dict[str, Any]:
    bounds = [None if each.low is None or each.high is None else (each.low, each.high) for each in found]
    return {
        name: {str(h): each.value for h, each in zip(horizons, found, strict=True)},
        f"{name}_ci": {str(h): pair for h, pair in zip(horizons, bounds, strict=True)},
    }


def _by_origin(futures: Futures, horizons: Sequence[int]) -> list[dict[str, Any]]:
    """Each origin with its own ceiling, which is noisy: of single origins it may be below 0."""
    return [
        {
            "trial": int(futures.trial[m]),
            "iteration": int(futures.iteration[m]),
            "by_time": bool(futures.by_time[m]),
            "rising": bool(futures.rising[m]),
            "ceiling": {
                str(h): float(1 - futures.spread[m, i] / futures.moved[m, i]) if futures.moved[m, i] > 0 else None
                for i, h in enumerate(horizons)
            },
        }
        for m in range(len(futures.trial))
    ]
