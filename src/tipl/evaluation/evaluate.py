"""How good are forecasts? One protocol for every forecaster: held-out trials, noise floors, intervals by trial.

In: a store; baselines always, models on request.  Out: EVAL/metrics.json (its schema is in ARCHITECTURE.md).

Weights are compared at origins drawn evenly over time, and at origins drawn evenly over the return gained, because a
run that sits at its ceiling says nothing (origins.py); policies are run at some of them (forecast_returns.py). One test
trial's weights are in memory at a time. Shapes: M origins, H horizons, P weights.
"""

import dataclasses
import importlib.metadata
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tipl
from tipl.checks import AnyPath, Place, checked_arguments, require
from tipl.config.env_spec import import_named
from tipl.config.execution import LOCAL, Execution
from tipl.config.presets import EvaluateConfig
from tipl.errors import TiplError
from tipl.evaluation.apart import Plan, plan
from tipl.evaluation.forecast_returns import measure_returns, run_share
from tipl.evaluation.origins import choose_origins, fitted_horizons, join_origins, learning_curve
from tipl.evaluation.scores import Comparison, Origins, weight_scores
from tipl.evaluation.spectra import spectra
from tipl.evaluation.weight_errors import compare_weights, errors_in_the_basis
from tipl.files import Absent, require_no_store_above, told, write_json
from tipl.forecasting.autoregression import Autoregression
from tipl.forecasting.baselines import FITTED, fitted_baselines, persistence
from tipl.forecasting.forecaster import Forecaster, usable
from tipl.forecasting.named import load_forecaster
from tipl.forecasting.online import online_corrected
from tipl.forecasting.shipped import model_folder, model_name
from tipl.forecasting.subspace import CodeLine
from tipl.forecasting.trained import Stretched, codes_for
from tipl.models import read_training
from tipl.progress import console
from tipl.remote.mirror import located
from tipl.representation import Codes
from tipl.rl.returns import why_not_run
from tipl.store import Store, Trial

SCHEMA = 1
METRICS_FILE = "metrics.json"
PARTS_FOLDER = "parts"


@checked_arguments
def evaluate(
    store: Place,
    out: AnyPath,
    config: EvaluateConfig = EvaluateConfig(),
    *,
    models: Sequence[Place] = (),
    forecasters: Sequence[Forecaster] = (),
    codes: AnyPath | None = None,
    fit: Place | Sequence[Place] | None = None,
    returns: bool = True,
    trust: bool = False,
    execution: Execution = LOCAL,
) -> Path:
    """Judge every baseline, and these models and forecasters, on the test trials of a store.

    What takes long is kept in `out`/parts: the same call goes on after an interruption.

    Args:
        store, out: the data set, and the folder for metrics.json, made if missing.
        config: at which origins and horizons, and what is run.
        models: folders that `train` wrote, or names of models that come with the package.
        forecasters: any others of your own; one without `is_model` counts as a baseline that models have to beat.
        codes: what `fit_svd` wrote for this store, full or pooled: also judge a line through them. With the `full`
            basis it shows what look-ahead alone manufactures. Default: those of the models.
        fit: other stores, whose training and validation trials the baselines are fitted on and chosen by, of any
            policies; every trial of `store` is then judged. Default: `store` itself.
        returns: also run the true and the predicted policies.
        trust: import the modules that the store names for its environments, which runs their code.
        execution: where the policies are run (for Ray they lie in `out`/parts), and which of them by this call.

    Returns:
        `out`, without a metrics.json while other shards have policies to run.

    Raises:
        TiplError: the store or a model cannot be used, the horizons do not fit into the trials, something that would be
            judged was learned from, a forecaster has another's name or returns no forecast (another shape, not finite),
            or `out` holds something.
    """
    store, out, began = located(store), Path(out), time.monotonic()
    _check_execution(execution, returns)
    for each in forecasters:
        usable(each)
    folders = distinct_folders(models)
    sources = [located(each) for each in ([] if fit is None else [fit] if isinstance(fit, str | os.PathLike) else fit)]
    require_out(out, [store, *folders, *sources, *([] if codes is None else [Path(codes)])])
    data = _opened(store, trust)
    chosen = plan(data, config, folders, sources)
    config = fitted_horizons(config, _shortest(chosen), returns)
    if returns:
        _require_policies(data, chosen.seeds)
    _say_what_is_judged(chosen)
    with told(out):
        out.mkdir(parents=True, exist_ok=True)
    models_loaded = _loaded(folders, data, out)
    judged, run = _judged(chosen, config, [*models_loaded.values(), *forecasters], codes)
    trials = chosen.trials
    origins = join_origins([choose_origins(trial, config) for trial in trials])
    if returns and not run_share(trials, origins, run, config, out / PARTS_FOLDER, execution, trust):
        return out
    compared = compare_weights(trials, origins, judged, config.horizons, out / PARTS_FOLDER)
    scores, floors = _scores(judged, compared, origins, config, trials)
    metrics: dict[str, Any] = {
        **_of_what(chosen, sources),
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
        "training": {name: curve for name in models_loaded if (curve := _training(models_loaded, name, folders))},
        "config": {"evaluate": dataclasses.asdict(config), "trial": trials[0].config},
        "versions": versions_of(trials[0]),
        "seconds": {"evaluate": round(time.monotonic() - began, 1)},
    }
    write_json(out / METRICS_FILE, metrics, seal=True)
    return out


def _check_execution(execution: Execution, returns: bool) -> None:
    """
    Raises:
        TiplError: it can have no effect on one store.
    """
    require(
        returns or execution == LOCAL,
        "Shards and Ray share the policies of one store, and none is to be run; leave out --no-returns, or --shard and "
        "--executor.",
    )
    require(
        execution.executor == "local" or execution.parts == 1,
        "--shard and --executor ray both divide one store's policies; leave one out.",
    )


def _opened(store: Path, trust: bool) -> Store:
    data = Store.open(store)
    if trust:
        import_named(data.trial(seed).env_id for seed in data.seeds)
    return data


def _judged(
    chosen: Plan, config: EvaluateConfig, asked: list[Forecaster], codes: AnyPath | None
) -> tuple[list[Forecaster], list[Forecaster]]:
    """All forecasters that are judged, and those of them whose policies are run.

    Raises:
        TiplError: two have one name, one that is to be run is missing, or the codes cannot be used.
    """
    coded = [each.codes for each in asked if each.codes] if codes is None else [_codes_of(chosen.data, Path(codes))]
    if chosen.kind == "all" and any(each.config.basis == "pooled" for each in coded):
        raise TiplError("A pooled basis is fitted on trials of the store, all of which are judged; leave one out.")
    lines = {line.name: line for line in map(CodeLine, coded)}  # one a basis
    require_names([*asked, *lines.values()])  # before the baselines, which take their time
    baselines = fitted_baselines(chosen.sources, chosen.trials[0].spec.shapes, config.horizons, config.seed)
    judged = [*baselines, *asked, *lines.values()]
    if config.adapt:
        learned = [f for f in judged if f.codes is None and (f.is_model or isinstance(f, Autoregression))]
        corrected = [online_corrected([f], chosen.trials[0]) for f in (persistence(), *learned)]
        judged, asked = [*judged, *corrected], [*asked, *(each for each in corrected if each.is_model)]
    left_out = () if chosen.sources else FITTED
    wanted = [name for name in config.return_forecasters if name not in left_out]
    run = [f for f in judged if f in asked or f.name in wanted]
    stretched = [Stretched(f, factor) for f in run if f.name != "persistence" for factor in config.stretch]
    judged, run = [*judged, *stretched], [*run, *stretched]
    require_names(judged, wanted)
    return judged, run


def _loaded(folders: Sequence[Path], data: Store, out: Path) -> dict[str, Forecaster]:
    """The trained models by the names that they are judged by; folders of one name are told apart by those above.

    Raises:
        TiplError: a model cannot be used, or two cannot be told apart.
    """
    names = [model_name(folder) for folder in folders]
    made: dict[str, Forecaster] = {}
    for folder, name in zip(folders, names, strict=True):
        alone = names.count(name) == 1
        own = name if alone else f"{folder.resolve().parent.name}-{name}"
        codes = codes_for(folder, data, out if alone else out / own)
        forecaster = load_forecaster(folder, data.trial(data.seeds[0]).spec.shapes, codes=codes)
        forecaster.name = own
        if own in made:
            raise TiplError(f"Two models are named {own}; rename the folder of one.")
        made[own] = forecaster
    return made


def _resolved(paths: Sequence[Path]) -> list[Path]:
    return [path.resolve() for path in paths]


def _training(models: Mapping[str, Forecaster], name: str, folders: Sequence[Path]) -> Any:
    """What the model's training has left of itself; None of one that was saved without it."""
    try:
        return read_training(folders[[*models].index(name)])
    except Absent:
        return None


def _shortest(chosen: Plan) -> tuple[int, Path]:
    """The fewest snapshots of a trial that is judged or learned from, and the store that has it."""
    return min(
        [(trial.committed, chosen.data.path) for trial in chosen.trials]
        + [
            (trial.committed, source.store.path)
            for source in chosen.sources
            for trial in (*source.train, *source.judges)
        ]
    )


def _say_what_is_judged(chosen: Plan) -> None:
    """What is not to be seen from the command: which trials, what was left out, what is not known."""
    if chosen.data.incomplete:
        some = ", ".join(map(str, chosen.data.incomplete))
        console.print(
            f"evaluate: of {chosen.data.path} the trials {some} are not complete; they are taken as they are."
        )
    for name, learned in chosen.models.items():
        if learned is None:
            console.print(
                f"evaluate: {name} does not say what it has learned from, so nothing here knows that it has not seen "
                "these trials."
            )
    if not chosen.sources:
        console.print("evaluate: baselines that need a fit are left out; --fit STORE fits them on other trials.")
    shapes = tuple(map(tuple, chosen.trials[0].spec.shapes))
    if chosen.sources and all(tuple(map(tuple, s.train[0].spec.shapes)) != shapes for s in chosen.sources):
        console.print("evaluate: the mean of the training trials is left out; no store of --fit has these policies.")


def _scores(
    judged: Sequence[Forecaster],
    compared: Mapping[str, Comparison],
    origins: Origins,
    config: EvaluateConfig,
    trials: Sequence[Trial],
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """By forecaster what it is, and its errors in weights; and by basis how well it holds the weights at all."""
    rivals, size = [f.name for f in judged if f.causal and not f.is_model], trials[0].spec.size
    scores = {
        f.name: {"label": f.label, "basis": f.basis, "causal": f.causal, "model": f.is_model}
        | weight_scores(f.name, compared, rivals, origins, config.horizons, size, config.seed)
        for f in judged
    }
    floors, within = errors_in_the_basis(judged, trials, origins, config.horizons)
    for name, values in within.items():
        scores[name]["skill_in_basis"] = values
    return scores, floors


def _of_what(chosen: Plan, sources: Sequence[Path]) -> dict[str, Any]:
    """For metrics.json: which trials of which store are judged, and what baselines were fitted on."""
    trial = chosen.trials[0]
    return {
        "schema": SCHEMA,
        "store": str(chosen.data.path),
        "command": shlex.join(["tipl", *sys.argv[1:]]) if Path(sys.argv[0]).name == "tipl" else None,
        "env_id": trial.env_id,
        "hidden_sizes": trial.config.get("hidden_sizes"),
        "num_weights": trial.spec.size,
        "fit": ", ".join(map(str, sources)) or None,
        "train_trials": [trial.seed for source in chosen.sources for trial in source.train],
        "validation_trials": [trial.seed for source in chosen.sources for trial in source.judges],
        "test_trials": list(chosen.seeds),
        "seen": chosen.kind == "training",
        **chosen.facts(),
    }


def distinct_folders(models: Sequence[Place]) -> list[Path]:
    """
    Raises:
        TiplError: a model is given twice.
    """
    folders = [model_folder(model) for model in models]
    resolved = [folder.resolve() for folder in folders]
    for i, folder in enumerate(folders):
        if resolved[i] in resolved[:i]:
            raise TiplError(f"The model {folder} is given twice; leave one out.")
    return folders


def require_out(out: Path, inputs: Sequence[Path]) -> None:
    """
    Raises:
        TiplError: `out` holds an evaluation, or is, or lies in, something that is read.
    """
    if (out / METRICS_FILE).exists():
        raise TiplError(f"{out} holds an evaluation already; give another --out or remove it.")
    if out.exists() and not out.is_dir():
        raise TiplError(f"{out} is a file; give --out a folder.")
    require_no_store_above(out)
    for path in _resolved(inputs):
        if out.resolve().is_relative_to(path):
            raise TiplError(f"--out {out} is in {path}, which is read; give a folder outside of it.")


def require_names(forecasters: Sequence[Forecaster], wanted: Sequence[str] = ()) -> None:
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


def versions_of(trial: Trial) -> dict[str, str]:
    own = {name: importlib.metadata.version(name) for name in ("numpy", "torch", "zarr")}
    collected = {f"{name} (collected with)": version for name, version in trial.versions.items()}
    return {"tipl": tipl.__version__, "python": platform.python_version(), **own, **collected}
