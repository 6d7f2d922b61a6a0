"""Data sets in which what can be forecast is known: random walks, with and without drift.

In: sizes, a drift, a seed.  Out: a store like any other, whose "weights" only walk.

    φ_{t+1} = φ_t + s_t (D u + ε_t),    ε_t ~ N(0, I/P),  |u| = 1 drawn anew for each trial,  s_t = 1 or annealed

A step's noise has length 1, so D is the drift in units of it. Without drift nothing can be forecast: no causal
forecaster has a skill above 0. With drift, x = φ_t − φ_{t−k} is all that the last k steps tell of u, and the best
forecast from them has at horizon h (constant steps) the skill of `best_skill`.
"""

from pathlib import Path
from typing import Any

import numpy as np

import tipl
from tipl.checks import AnyPath, Count, NotNegative, Whole, checked_arguments
from tipl.progress import console, steps_progress
from tipl.store import TrialWriter, create_store, plan_trials
from tipl.store.spec import ParamSpec

ENV_ID = "random-walk"
_BLOCK = 256  # snapshots drawn at once


@checked_arguments
def random_walk(
    out: AnyPath,
    *,
    trials: Count = 50,
    snapshots: Count = 1951,
    dim: Count = 122,
    drift: NotNegative = 0.0,
    seed: Whole = 1,
    anneal: bool = False,
) -> Path:
    """Write a store of random walks; those that it holds already are kept.

    Args:
        out: the store's folder; made if missing.
        trials, snapshots, dim: N, T and P.
        drift: D, the length of the drift over that of a step's noise.
        seed: of the first trial; the others count up from it.
        anneal: let the steps shrink linearly to 0, as PPO's learning rate does.

    Raises:
        TiplError: a size is not positive, or `out` holds other trials than such walks.
    """
    config: dict[str, Any] = {"kind": ENV_ID, "snapshots": snapshots, "dim": dim, "drift": drift, "anneal": anneal}
    spec = ParamSpec(("walk",), ((dim,),))
    out = Path(out)
    there = set(create_store(out).seeds)
    plan_trials(out, range(seed, seed + trials), env_id=ENV_ID, config=config, spec=spec)
    waiting = [number for number in range(seed, seed + trials) if number not in there]
    if len(waiting) < trials:
        console.print(f"random-walk: {trials - len(waiting)} of {trials} trials are already there.")
    with steps_progress("random-walk", len(waiting) * snapshots) as advance:
        for number in waiting:
            writer = TrialWriter.create(
                out, number, env_id=ENV_ID, config=config, spec=spec,
                versions={"tipl": tipl.__version__, "numpy": np.__version__}, obs_dim=1, num_snapshots=snapshots,
            )  # fmt: skip
            with writer:
                for start, weights in _walk(snapshots, dim, drift, number, anneal):
                    count = len(weights)
                    zeros = np.zeros(count, np.int64)
                    writer.append(weights, start + np.arange(count), zeros, zeros, np.ones(count), np.zeros((count, 1)),
                                  np.ones((count, 1)), np.zeros(count))  # fmt: skip
                    advance(count, "")
                writer.commit({}, complete=True)
    return out


def best_skill(horizon: int, seen: int, drift: float) -> float:
    """The highest skill that any forecast from the last `seen` = k steps can have: kD²/(1 + kD²) · hD²/(1 + hD²).

    With x = kDu + Σε and y = hDu + Σε', the best b in y ≈ b x leaves 1 − (E x·y)²/(E x² E y²) of the error.
    """
    return seen * drift**2 / (1 + seen * drift**2) * horizon * drift**2 / (1 + horizon * drift**2)


def walk_coordinates(lengths: np.ndarray, dim: int, start: float, rng: np.random.Generator) -> np.ndarray:
    """A driftless walk in R^P as float64 [T, min(T, P)]: its snapshots in an orthonormal basis of their own.

    φ_0 has the length `start`, step t is lengths[t] · N(0, I/P). Along the directions of earlier snapshots a step's
    coordinates are N(0, 1/P), along the one direction that it adds they are χ/√P with as many degrees of freedom as
    directions are left (Bartlett 1933): inner products have the very distribution that they have in R^P, and P is
    never drawn.
    """
    count = len(lengths) + 1
    path = np.zeros((count, min(count, dim)))
    path[0, 0] = start
    for i, length in enumerate(lengths, 1):
        path[i, : min(i, dim)] = rng.standard_normal(min(i, dim))
        if i < dim:
            path[i, i] = np.sqrt(rng.chisquare(dim - i))
        path[i] *= length / np.sqrt(dim)
        path[i] += path[i - 1]
    return path


def _walk(snapshots: int, dim: int, drift: float, seed: int, anneal: bool):
    """Blocks of one walk from a random start: (number of the first snapshot, float32 [n, P])."""
    rng = np.random.default_rng(seed)
    now = rng.standard_normal(dim) / np.sqrt(dim)
    direction = rng.standard_normal(dim)
    direction *= drift / np.linalg.norm(direction)
    scale = np.linspace(1, 0, snapshots, endpoint=False) if anneal else np.ones(snapshots)
    for start in range(0, snapshots, _BLOCK):
        size = min(_BLOCK, snapshots - start)
        steps = (rng.standard_normal((size, dim)) / np.sqrt(dim) + direction) * scale[start : start + size, None]
        if start == 0:
            steps[0] = 0
        path = now + np.cumsum(steps, axis=0)
        now = path[-1]
        yield start, path.astype(np.float32)
