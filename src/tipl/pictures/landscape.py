"""The numbers of the picture of a path: a plane through weight space, returns on it, the path and forecasts there.

In: a trial, origins, a model.  Out: coordinates and returns, nothing drawn.

The plane goes through φ_t, t the first origin. Its axes are orthonormal, so lengths in it are lengths in weight space.
Shapes: S snapshots of the path, O origins, H horizons, G grid points a side, P weights; 2 coordinates.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from tipl.errors import TiplError
from tipl.parts import ENDING, keep_part, kept_part
from tipl.rl.envs import engine_versions
from tipl.rl.returns import Policies, policy_returns
from tipl.store import Trial
from tipl.store.policy import OBS_CLIP

Plane = Literal["path", "forecast"]
_MARGIN = 0.18  # of what is drawn, around it
_LEAST = 1e-9  # of a direction's length, relative to the first, below which there is none


class Earned(NamedTuple):
    """Mean returns of policies, and the standard errors of these means over episodes."""

    mean: np.ndarray
    error: np.ndarray


@dataclass(frozen=True)
class Landscape:
    snapshots_S: np.ndarray
    path_S2: np.ndarray
    """Of every snapshot that is drawn, projected on the plane."""
    off_S: np.ndarray
    """How far each lies off the plane."""
    forecasts_OH2: np.ndarray
    forecasts_off_OH: np.ndarray
    share_2: np.ndarray
    """Of the squared distances from φ_t of what is drawn, along each axis."""
    grid_G2: np.ndarray
    """Coordinates of the grid's columns and rows."""
    height_GG: np.ndarray
    """Mean return of the policy at row i, column j."""
    height_error: float
    """The median standard error of a height."""
    path_S: Earned
    """Of the snapshots themselves, not of their projections."""
    forecasts_OH: Earned


def landscape(
    trial: Trial, origins: Sequence[int], horizons: Sequence[int], forecasts_OHP: np.ndarray, past: int,
    plane: Plane, grid: int, episodes: int, seed: int, parts: Path,
    advance: Callable[[int, str], None] = lambda steps, note: None,
) -> Landscape:  # fmt: skip
    """Project what is drawn on a plane and measure returns; all policies run under the normalizer of φ_t.

    Args:
        past: how many snapshots before the first origin are drawn.
        plane: that of the path's two leading directions from φ_t, or of the true and the forecast displacement.
        parts: the folder of what was run so before.
        advance: told how many episodes have ended, of `episodes_of(…)`.

    Raises:
        TiplError: nothing moves, or the trial ends at the origin where the true displacement is asked for.
    """
    t = origins[0]
    first, last = max(0, t - past), min(trial.committed - 1, origins[-1] + horizons[-1])
    path_SP = trial.weights(first, last + 1).astype(np.float64)
    now_P = path_SP[t - first]
    moved_SP, forecast_OHP = path_SP - now_P, forecasts_OHP - now_P
    if plane == "path":
        axes_2P = _leading(moved_SP)
    else:
        if t + horizons[-1] >= trial.committed:
            raise TiplError(
                f"Trial {trial.seed} ends before snapshot {t + horizons[-1]}, so there is no true displacement; give "
                "an earlier --origin, a smaller --horizon, or --plane path."
            )
        axes_2P = _spanned(moved_SP[t + horizons[-1] - first], forecast_OHP[0, -1])
    path_S2, forecasts_OH2 = moved_SP @ axes_2P.T, forecast_OHP @ axes_2P.T
    all_M2 = np.concatenate([path_S2, forecasts_OH2.reshape(-1, 2)])
    low, high = all_M2.min(axis=0), all_M2.max(axis=0)
    half = (0.5 + _MARGIN) * float((high - low).max())  # the same for both axes: a length is a length
    grid_G2 = np.linspace((low + high) / 2 - half, (low + high) / 2 + half, grid)

    def earned(weights_MP: np.ndarray) -> Earned:
        return _earned(trial, t, weights_MP, episodes, seed, parts, advance)

    rows = [
        earned(now_P + np.stack([grid_G2[:, 0], np.full(grid, y)], axis=1) @ axes_2P) for y in grid_G2[:, 1]
    ]  # a row of the grid at a time: P may be large
    squared = np.square(moved_SP).sum()
    along, true = earned(forecasts_OHP.reshape(-1, len(now_P))), earned(path_SP)
    shape = forecasts_OH2.shape[:2]
    return Landscape(
        np.arange(first, last + 1), path_S2, _off(moved_SP, path_S2), forecasts_OH2, _off(forecast_OHP, forecasts_OH2),
        np.square(path_S2).sum(axis=0) / squared, grid_G2, np.stack([row.mean for row in rows]),
        float(np.median([row.error for row in rows])), true,
        Earned(along.mean.reshape(shape), along.error.reshape(shape)),
    )  # fmt: skip


def episodes_of(
    trial: Trial, origins: Sequence[int], horizons: Sequence[int], past: int, grid: int, episodes: int
) -> int:
    """How many episodes `landscape` runs."""
    first, last = max(0, origins[0] - past), min(trial.committed - 1, origins[-1] + horizons[-1])
    return episodes * (grid**2 + last + 1 - first + len(origins) * len(horizons))


def _leading(moved_SP: np.ndarray) -> np.ndarray:
    """[2, P], the two leading right singular vectors, by the small Gram matrix; signed so that the path's end is at
    positive coordinates.

    Raises:
        TiplError: the path is a point or a line.
    """
    values, vectors = np.linalg.eigh(moved_SP @ moved_SP.T)
    if values[-2] <= _LEAST**2 * values[-1] or values[-1] <= 0:
        raise TiplError("The path moves in less than two directions here, so it spans no plane; draw more snapshots.")
    axes_2P = (vectors[:, [-1, -2]] / np.sqrt(values[[-1, -2]])).T @ moved_SP
    end = moved_SP[-1] if moved_SP[-1].any() else moved_SP[0]
    return axes_2P * np.where(axes_2P @ end < 0, -1, 1)[:, None]


def _spanned(true_P: np.ndarray, forecast_P: np.ndarray) -> np.ndarray:
    """[2, P]: along the true displacement; and what is perpendicular to it in the forecast's.

    Raises:
        TiplError: one of them is zero, or both point the same way.
    """
    length = np.linalg.norm(true_P)
    x_P = true_P / max(length, 1e-300)
    rest_P = forecast_P - (forecast_P @ x_P) * x_P
    width = np.linalg.norm(rest_P)
    if not length or width <= _LEAST * length:
        raise TiplError("The forecast and the true displacement span no plane; give --plane path.")
    return np.stack([x_P, rest_P / width])


def _off(moved: np.ndarray, projected: np.ndarray) -> np.ndarray:
    """The distance from the plane."""
    return np.sqrt(np.maximum(0, np.square(moved).sum(axis=-1) - np.square(projected).sum(axis=-1)))


def _earned(
    trial: Trial, t: int, weights_MP: np.ndarray, episodes: int, seed: int, parts: Path,
    advance: Callable[[int, str], None],
) -> Earned:  # fmt: skip
    """Read from `parts` where these very policies were run so before, else run and written there."""
    config = trial.config
    mean, var = (np.repeat(each[t : t + 1], len(weights_MP), axis=0) for each in (trial.obs_mean, trial.obs_var))
    policies = Policies(weights_MP, mean, var)
    how = {
        "hidden_sizes": list(config["hidden_sizes"]), "episodes": episodes, "seed": seed, "backend": config["backend"],
        "activation": config.get("activation", "tanh"), "obs_clip": config.get("obs_clip", OBS_CLIP),
    }  # fmt: skip
    made_by = {**how, "env_id": trial.env_id.facts, "engine": engine_versions(config["backend"])}
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode())
    for array in (policies.weights, policies.obs_mean, policies.obs_var):
        digest.update(array.data)
    part = parts / f"{digest.hexdigest()[:24]}{ENDING}"
    kept = kept_part(part, {"returns": (len(policies), episodes)})
    if kept is not None:
        advance(len(policies) * episodes, "")
    else:
        kept = {"returns": policy_returns(policies, trial.env_id, advance=advance, **how)}
        keep_part(part, kept)
    found = kept["returns"]
    spread = found.std(axis=1, ddof=1) if episodes > 1 else np.zeros(len(found))
    return Earned(found.mean(axis=1), spread / math.sqrt(episodes))


def below(number: int) -> str:
    """A number as a subscript."""
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
