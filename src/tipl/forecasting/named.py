"""The one loader of forecasters: by name, or from a trained model's folder.

In: a name, or the folder of a model.  Out: a `Forecaster` that has seen nothing of the run that it will follow.
"""

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from tipl.checks import Count, Place, Whole, checked_arguments, is_address
from tipl.config.presets import ForecasterName
from tipl.errors import TiplError
from tipl.forecasting.autoregression import AUTOREGRESSION, fit_autoregression, shipped_autoregression, store_digest
from tipl.forecasting.baselines import FixedSum, RandomDisplacement, equal_shares, line
from tipl.forecasting.context import COEFFICIENTS, CONTEXT, ContextSum, context_model, fitted_beginnings
from tipl.forecasting.forecaster import Forecaster
from tipl.forecasting.learned import learned_by
from tipl.forecasting.shipped import SHIPPED, SHIPPED_NAMES, model_digest, model_folder, model_name
from tipl.forecasting.trained import CausalForecaster, ModelForecaster
from tipl.models import CONFIG_FILE, CausalTIPL, load, read_record
from tipl.remote.mirror import located
from tipl.representation import Codes
from tipl.store import Store


def as_name(forecaster: Place) -> str:
    """Return what forecasters are asked for by: a name is a name, and a path object that leads somewhere that place."""
    if is_address(forecaster):
        return str(model_folder(forecaster))
    path = Path(forecaster) if isinstance(forecaster, os.PathLike) else None
    return str(forecaster if path is None else path.absolute() if path.exists() else path)


@checked_arguments
def load_forecaster(
    forecaster: Place = SHIPPED,
    shapes: Sequence[Sequence[Whole]] | None = None,
    horizon: Count | None = None,
    snapshots_per_iteration: Count = 1,
    fit: Place | None = None,
    *,
    codes: Codes | None = None,
    seed: Whole = 0,
) -> Forecaster:
    """Return a forecaster by its name, or that of a trained model.

    Args:
        forecaster: `causal` or `zoo`, models that come with the package; a folder that `train` wrote, with a separator
            (`./causal`) where it is called like a name; or, for a live run, any other `ForecasterName`.
        shapes: of the tensors that lie end to end in the weights (`trial.spec.shapes`), which a causal model tells
            apart and cannot do without; [(P,)] for weights that are one vector.
        horizon: iterations ahead that a live run will ask for, beside one. Default: for no live run, which then knows
            models alone.
        snapshots_per_iteration: of the live run.
        fit: the store whose training trials the autoregression is fitted on, of this environment or another;
            default: the autoregression that comes with the package.
        codes: what a model over codes forecasts in: `Codes.open` of what `tipl fit-svd` wrote.
        seed: of the noise.

    Raises:
        TiplError: there is no such forecaster, it cannot be used, it lacks `shapes` or `codes`, it does not see so far
            ahead, or an argument has no effect on it.
    """
    forecaster = model_folder(forecaster) if is_address(forecaster) else forecaster
    name = as_name(forecaster)
    if fit is not None and name != "autoregression":
        raise TiplError(f"--fit is for the autoregression and has no effect on {name}; leave it out.")
    if horizon is not None:
        rule = _rule(name, horizon, snapshots_per_iteration, fit, seed, shapes)
        if rule is not None:
            return rule
        if not (model_folder(forecaster) / CONFIG_FILE).exists():
            names = ", ".join(get_args(ForecasterName))
            raise TiplError(f"There is no forecaster {name!r}; give {names} or the folder of a causal model.")
    made = _trained(model_folder(forecaster), shapes, codes)
    furthest = snapshots_per_iteration * (horizon or 0)
    if isinstance(made, CausalForecaster) and furthest > made.furthest:
        raise TiplError(
            f"{name} forecasts {made.furthest} snapshots ahead, and {horizon} iterations of {snapshots_per_iteration} "
            f"are {furthest}; give --horizon {max(1, made.furthest // snapshots_per_iteration)} or less."
        )
    return made


def _rule(
    name: str, horizon: int, count: int, fit: Place | None, seed: int, shapes: Sequence[Sequence[int]] | None
) -> Forecaster | None:
    """The forecaster of this name that is no trained model, of `count` snapshots an iteration; None: there is none."""
    horizons = tuple(sorted({count, count * horizon}))
    match name:
        case "line":
            return line(count + 1)
        case "lookahead":
            return lookahead(5 * count)
        case "average":
            return average(2 * count)
        case "noise":
            return RandomDisplacement(max(horizons), seed)
        case "autoregression":
            if fit is None:
                return shipped_autoregression(count, horizons)
            return fit_autoregression(located(fit), count, horizons)
        case "context":
            return ContextSum(shapes, count)
        case _:
            return None


def _trained(folder: Path, shapes: Sequence[Sequence[int]] | None, codes: Codes | None) -> Forecaster:
    if read_record(folder).kind == CausalTIPL.kind:
        if codes is not None:
            raise TiplError(f"{folder} holds a causal model, which sees weights; leave `codes` out.")
        return CausalForecaster.from_pretrained(folder, shapes)
    model = load(folder)
    if codes is None:
        raise TiplError(f"{folder} holds a model over codes; give `codes` too, which `tipl fit-svd` makes of a store.")
    if codes.config.dim != model.config.dim and not codes.config.by_tensor:
        raise TiplError(f"{folder} takes codes of {model.config.dim} numbers, not {codes.config.dim}; give others.")
    return ModelForecaster(model, codes, name=model_name(folder))


def forecaster_digest(name: str, fit: Path | None = None) -> str | None:
    """Return a digest of what a forecaster was made from, so that one that was fitted or trained again is another; None
    of those that are rules."""
    if name == "autoregression":
        return store_digest(Store.open(fit)) if fit else hashlib.sha256(AUTOREGRESSION.read_bytes()).hexdigest()[:16]
    if name == CONTEXT:
        below = model_digest(model_folder(context_model()))
        return hashlib.sha256(COEFFICIENTS.read_bytes() + below.encode()).hexdigest()[:16]
    folder = model_folder(name)
    return model_digest(folder) if name in SHIPPED_NAMES or name not in get_args(ForecasterName) else None


def beginnings(forecaster: str | None, fit: Path | None = None) -> frozenset[str]:
    """Return how the runs begin that a forecaster has learned from, as far as that is known (`beginning_of`)."""
    if fit is not None:
        data = Store.open(fit)
        return frozenset(found for seed in data.split().train if (found := data.trial(seed).beginning))
    if forecaster == CONTEXT:
        return beginnings(context_model()) | fitted_beginnings()
    if forecaster is None or (forecaster not in SHIPPED_NAMES and forecaster in get_args(ForecasterName)):
        return frozenset()
    learned = learned_by(model_folder(forecaster)) or ()
    return frozenset(each for part in learned for each in part.beginnings)


def lookahead(count: int) -> FixedSum:
    """Halfway back to where the weights were `count` snapshots ago, whatever the horizon (Zhang et al. 2019, Lookahead
    with α = 0.5, arXiv 1907.08610)."""
    return FixedSum("lookahead", "Lookahead, α = 0.5", count + 1, functools.partial(_halfway_back, count=count))


def _halfway_back(back: np.ndarray, h: int, count: int) -> np.ndarray:
    return np.where(back == count, 0.5, 0.0)


def average(count: int) -> FixedSum:
    """The mean of the last `count` snapshots (Polyak & Juditsky 1992), into which training goes on."""
    return FixedSum("average", f"mean of the last {count}", count, equal_shares)
