"""Forecasters for live runs, by name.

In: a name, or the folder of a causal model.  Out: a `Forecaster` that has seen nothing of the run it will follow.
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from tipl.checks import AnyPath
from tipl.config.presets import ForecasterName, JumpConfig, jumps_of
from tipl.errors import TiplError
from tipl.files import read_json
from tipl.forecasting.baselines import (
    RIDGES,
    Autoregression,
    FixedSum,
    RandomDisplacement,
    difference_features,
    equal_shares,
    line,
    normal_equations,
)
from tipl.forecasting.shipped import PRETRAINED, SHIPPED, model_digest, model_folder
from tipl.forecasting.trained import CausalForecaster, Forecaster
from tipl.models import CONFIG_FILE
from tipl.store import Store

AUTOREGRESSION = PRETRAINED / "autoregression.json"
_OF_NO_HORIZON = ("lookahead", "average")
ANY = "any"
"""In that file, of epoch indices that it has no slopes for."""


def as_name(forecaster: AnyPath) -> str:
    """Return what forecasters are asked for by: a name is a name, and a `Path` that leads somewhere is that place."""
    return str(forecaster.absolute()) if isinstance(forecaster, Path) and forecaster.exists() else str(forecaster)


def jumps_for(forecaster: Forecaster | AnyPath) -> JumpConfig:
    """How to jump with a forecaster, whether it is given by its name, its folder or itself."""
    match forecaster:
        case CausalForecaster():
            return jumps_of("causal")
        case Autoregression():
            return jumps_of("autoregression")
        case Forecaster():
            return JumpConfig()
    return jumps_of(as_name(forecaster))


def with_settings(default: JumpConfig, settings: Mapping[str, Any]) -> JumpConfig:
    """
    Raises:
        TiplError: there is no such setting, or it takes no such value.
    """
    unknown = next((name for name in settings if name not in JumpConfig.__dataclass_fields__), None)
    if unknown is not None:
        known = ", ".join(JumpConfig.__dataclass_fields__)
        raise TiplError(f"There is no such setting of jumps as {unknown}; there are: {known}.")
    return replace(default, **settings)


def check_effect(forecaster: Forecaster | AnyPath, asked: Iterable[str], config: JumpConfig) -> None:
    """
    Args:
        asked: names of the settings that were asked for.

    Raises:
        TiplError: one of them has no effect beside the others or on this forecaster.
    """
    idle: dict[str, str] = {}
    if not config.full_trust:
        idle |= dict.fromkeys(("memory", "silent_below"), "where full_trust is 0: every forecast is believed in full")
    if isinstance(forecaster, str | Path) and as_name(forecaster) in _OF_NO_HORIZON:
        idle["horizon"] = f"on {forecaster}, which goes to the same place whatever the horizon"
    for name in asked:
        if name in idle:
            raise TiplError(f"{name} has no effect {idle[name]}; leave it out.")


def named_forecaster(
    name: str,
    shapes: Sequence[Sequence[int]],
    horizon: int,
    snapshots_per_iteration: int = 1,
    fit: Path | None = None,
    seed: int = 0,
) -> Forecaster:
    """A forecaster for live runs.

    Args:
        name: a `ForecasterName`, or the folder of a causal model, with a separator (`./mine`) where it is called like
            one of these.
        shapes: of the tensors that lie end to end in the weights.
        horizon: iterations ahead that it will be asked for, beside one.
        snapshots_per_iteration: of the run.
        fit: the store whose training trials the autoregression is fitted on, of this environment or another;
            default: the autoregression that comes with the package.
        seed: of the noise.

    Raises:
        TiplError: there is no such forecaster, the autoregression is for other runs, `fit` has no effect on it, or it
            does not see so far ahead.
    """
    if snapshots_per_iteration < 1:
        raise TiplError(f"A run has at least one snapshot an iteration, not {snapshots_per_iteration}.")
    if fit is not None and name != "autoregression":
        raise TiplError(f"--fit is for the autoregression and has no effect on {name}; leave it out.")
    horizons = sorted({snapshots_per_iteration, snapshots_per_iteration * horizon})
    match name:
        case "line":
            return line(snapshots_per_iteration + 1)
        case "lookahead":
            return lookahead(5 * snapshots_per_iteration)
        case "average":
            return average(2 * snapshots_per_iteration)
        case "noise":
            return RandomDisplacement(max(horizons), seed)
        case "autoregression":
            if fit is None:
                return _shipped(snapshots_per_iteration, tuple(horizons))
            return fit_autoregression(fit, snapshots_per_iteration, tuple(horizons))
    if not (model_folder(name) / CONFIG_FILE).exists():
        names = ", ".join(get_args(ForecasterName))
        raise TiplError(f"There is no forecaster {name!r}; give {names} or the folder of a causal model.")
    made = CausalForecaster.from_pretrained(name, shapes)
    if max(horizons) > made.furthest:
        raise TiplError(
            f"{name} forecasts {made.furthest} snapshots ahead, and {horizon} iterations of "
            f"{snapshots_per_iteration} are {max(horizons)}; give --horizon "
            f"{max(1, made.furthest // snapshots_per_iteration)} or less."
        )
    return made


def forecaster_digest(name: str, fit: Path | None = None) -> str | None:
    """Return a digest of what a forecaster was made from, so that one that was fitted or trained again is another; None
    of those that are rules."""
    if name == "autoregression":
        return _store_digest(Store.open(fit)) if fit else hashlib.sha256(AUTOREGRESSION.read_bytes()).hexdigest()[:16]
    folder = model_folder(name)
    return model_digest(folder) if name == SHIPPED or name not in get_args(ForecasterName) else None


def _store_digest(store: Store) -> str:
    """Of its training trials: how far each has come, and its last snapshot."""
    digest = hashlib.sha256()
    for trial in map(store.trial, store.split().train):
        digest.update(f"{trial.seed} {trial.committed} ".encode())
        digest.update(np.ascontiguousarray(trial.weights(trial.committed - 1)).data)
    return digest.hexdigest()[:16]


def fit_autoregression(fit: Path, snapshots_per_iteration: int, horizons: tuple[int, ...]) -> Autoregression:
    """The autoregression of a store's training trials; fitted once for what the store holds.

    Args:
        fit: holds as many snapshots an iteration as the run, or a multiple, of which every so many-th counts.
        snapshots_per_iteration: of the run.
        horizons: in those.

    Raises:
        TiplError: the store holds another number of snapshots an iteration.
    """
    return _fitted(_store_digest(Store.open(fit)), fit, snapshots_per_iteration, horizons)


@functools.lru_cache(maxsize=8)
def _fitted(content: str, fit: Path, snapshots_per_iteration: int, horizons: tuple[int, ...]) -> Autoregression:
    data = Store.open(fit)
    train = [data.trial(seed) for seed in data.split().train]
    held = int(train[0].epoch_index.max()) + 1  # 0: the store knows of no iterations
    stride, left = divmod(held, snapshots_per_iteration) if held else (1, 0)
    if left or not stride:
        raise TiplError(
            f"{fit} holds {held} snapshots an iteration, the run {snapshots_per_iteration}; give a store that holds as "
            "multiple."
        )
    equations = normal_equations(train, difference_features(stride), [stride * h for h in horizons])
    kept = {index // stride: each for index, each in equations.items() if (index + 1) % stride == 0}
    return Autoregression.fit(horizons, kept, RIDGES[1])


@functools.cache
def _shipped(snapshots_per_iteration: int, horizons: tuple[int, ...]) -> Autoregression:
    """The one that comes with the package, which `studies/ship_autoregression.py` has made."""
    found = read_json(AUTOREGRESSION)
    ahead = [h * snapshots_per_iteration for h in found["horizons"]]
    if str(snapshots_per_iteration) not in found["slopes"] or not set(horizons) <= set(ahead):
        raise TiplError(
            f"The autoregression that comes with the package is for {' or '.join(found['slopes'])} snapshots an "
            f"iteration and {', '.join(map(str, found['horizons']))} iterations ahead, this run takes "
            f"{snapshots_per_iteration} and looks {max(horizons) // snapshots_per_iteration} ahead; give a "
            "store to fit another one on, --fit STORE."
        )
    slopes = found["slopes"][str(snapshots_per_iteration)]
    return Autoregression(ahead, {None if at == ANY else int(at): np.array(each) for at, each in slopes.items()})


def lookahead(count: int) -> FixedSum:
    """Halfway back to where the weights were `count` snapshots ago, whatever the horizon (Zhang et al. 2019, Lookahead
    with α = 0.5, arXiv 1907.08610)."""
    return FixedSum("lookahead", "Lookahead, α = 0.5", count + 1, functools.partial(_halfway_back, count=count))


def _halfway_back(back: np.ndarray, h: int, count: int) -> np.ndarray:
    return np.where(back == count, 0.5, 0.0)


def average(count: int) -> FixedSum:
    """The mean of the last `count` snapshots (Polyak & Juditsky 1992), into which training goes on."""
    return FixedSum("average", f"mean of the last {count}", count, equal_shares)
