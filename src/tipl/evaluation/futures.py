"""Branches of the runs of a store, kept by origin: what each says of the futures from there.

In: trials, the iterations after which they are branched.  Out: `Futures`: mean displacements and two mean squares.

A process makes one trial again (collection/branches.py) and branches it where its parts are missing. All futures of an
origin are one batch. Shapes: M origins, R futures, H horizons, P weights.
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tipl.collection.branches import State, branch_seeds, branches, made_again, settings_of
from tipl.config.ceiling import CeilingConfig
from tipl.config.env_spec import import_named
from tipl.config.presets import EvaluateConfig
from tipl.errors import TiplError
from tipl.evaluation.origins import RISING, choose_origins, return_progress
from tipl.parts import ENDING, keep_part, kept_part
from tipl.processes import Numbers, Parent, run_in_processes
from tipl.progress import console, steps_progress
from tipl.rl.trial_batch import Abandoned
from tipl.store import Store, Trial


@dataclass(frozen=True)
class Futures:
    """What the branches of all origins say; ceiling.py has the letters.

    trial, iteration [M]: where an origin stands; by_time, rising, known [M]: as `Origins` has them.
    mean [M, H, P]: M, float32. moved, spread [M, H]: m² and s².
    """

    trial: np.ndarray
    iteration: np.ndarray
    by_time: np.ndarray
    rising: np.ndarray
    known: np.ndarray
    mean: Sequence[np.ndarray]
    moved: np.ndarray
    spread: np.ndarray


def chosen_iterations(trial: Trial, config: CeilingConfig) -> dict[int, bool]:
    """Return by iteration, rising, whether it was drawn by time (or asked for), or else by return gained.

    Raises:
        TiplError: the trial is too short, or has no iterations.
    """
    settings = settings_of(trial)
    each, last = settings.snapshots_per_iteration, (trial.committed - 1 - max(config.horizons))
    room = min(last // settings.snapshots_per_iteration, settings.num_iterations - 1)
    if room < 1 or max(config.iterations, default=0) > room:
        raise TiplError(
            f"Trial {trial.seed} has {trial.committed} snapshots, {each} an iteration: too few for an origin "
            f"{f'after iteration {max(config.iterations)} ' if config.iterations else ''}and a horizon of "
            f"{max(config.horizons)}; give {f'--iterations up to {room}, or ' if room > 0 else ''}shorter --horizons."
        )
    if config.iterations:
        return dict.fromkeys(sorted(config.iterations), True)
    drawn = choose_origins(trial, EvaluateConfig(horizons=config.horizons, origins=config.origins, seed=config.seed))
    found: dict[int, bool] = {}
    for t, by_time in zip(drawn.snapshot.tolist(), drawn.by_time.tolist(), strict=True):
        iteration = min(max(1, round(t / each)), room)
        found[iteration] = by_time or found.get(iteration, False)
    return dict(sorted(found.items()))


def branched(
    store: Path, trials: Sequence[Trial], wanted: Mapping[int, Mapping[int, bool]], config: CeilingConfig, parts: Path,
    workers: int | None, trust: bool,
) -> Futures:  # fmt: skip
    """Return the futures of these iterations (`chosen_iterations`) of each trial; what is not kept is branched."""
    _branch(store, trials, wanted, config, parts, workers, trust)
    return _futures(trials, wanted, config, parts)


def dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the inner products [H] of [H, P] each."""
    return np.einsum("hp,hp->h", a, b, dtype=np.float64)


def _branch(
    store: Path, trials: Sequence[Trial], wanted: Mapping[int, Mapping[int, bool]], config: CeilingConfig, parts: Path,
    workers: int | None, trust: bool,
) -> None:  # fmt: skip
    """Make the parts that are not there, a trial a process."""
    tasks = []
    for trial in trials:
        left = [k for k in wanted[trial.seed] if _kept(parts, trial, k, config) is None]
        if left:
            tasks.append((store, trial.seed, left, config, parts, trust))
    if not tasks:
        return
    branched, remade, names = [], [], []
    for _, seed, left, *_ in tasks:
        settings = settings_of(next(trial for trial in trials if trial.seed == seed))
        remade.append(max(left))
        branched.append(len(left) * config.futures * -(-max(config.horizons) // settings.snapshots_per_iteration))
        names.append(f"trial {seed}")
    console.print(
        f"ceiling: {sum(len(task[2]) for task in tasks)} origins × {config.futures} futures in {len(tasks)} trials, "
        f"{sum(branched) + sum(remade):,} iterations in all"
    )
    count = min(workers or _cores(), len(tasks))
    done = [0.0] * len(tasks)
    with steps_progress("ceiling: iterations", sum(branched) + sum(remade)) as advance:

        def heard(task: int, numbers: Numbers) -> None:
            advance(int(numbers[0] - done[task]), names[task])
            done[task] = numbers[0]

        run_in_processes(_branch_trial, tasks, count, names, heard)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _branch_trial(
    parent: Parent, store: Path, seed: int, iterations: Sequence[int], config: CeilingConfig, parts: Path, trust: bool
) -> None:
    """Make one trial again and branch it, in a process of its own."""
    trial, done, at = Store.open(store).trial(seed), 0, 0
    if trust:
        import_named([trial.env_id])
    try:
        for iteration, state in zip(iterations, made_again(trial, iterations, parent.wants_stop), strict=True):
            done, at = done + iteration - at, iteration
            parent.tell((done,))
            drawn = []
            for moved in _displacements(trial, state, config, parent.wants_stop):
                done += config.futures
                parent.tell((done,))
                drawn.append(moved)
            keep_part(_part(parts, trial, iteration, config), summary(np.concatenate(drawn, axis=1)))
    except Abandoned:
        return


def _displacements(trial: Trial, state: State, config: CeilingConfig, stop: Callable[[], bool]) -> Iterator[np.ndarray]:
    """Yield, an iteration of the branches at a time, the displacements [R, n, P] at those horizons that it holds."""
    iteration, past = int(state["iteration"]), 0
    now = np.asarray(state["theta"])[: trial.spec.size]
    seeds = branch_seeds(config.seed, trial.seed, iteration, config.futures)
    for snapshots in branches(trial, state, seeds, stop):
        steps = past + 1 + np.arange(snapshots.shape[1])
        yield snapshots[:, np.isin(steps, config.horizons)] - now
        past += snapshots.shape[1]
        if past >= max(config.horizons):
            return


def summary(moved: np.ndarray) -> dict[str, np.ndarray]:
    """Return M [H, P], m² and s² [H] of displacements [R, H, P], in the order of rising horizons."""
    count = len(moved)
    mean = moved.mean(axis=0, dtype=np.float64)
    square = sum(dots(each, each) for each in moved) / count
    spread = sum(dots(each - mean, each - mean) for each in moved) / (count - 1)
    return {"mean": mean.astype(np.float32), "moved": np.asarray(square), "spread": np.asarray(spread)}


def _part(parts: Path, trial: Trial, iteration: int, config: CeilingConfig) -> Path:
    """Named by all that makes a part: the snapshot, the trial's settings, the branches and what computes them."""
    t = iteration * settings_of(trial).snapshots_per_iteration
    facts = {
        "trial": [trial.seed, str(trial.env_id), trial.config],
        "branches": [iteration, sorted(config.horizons), config.futures, config.seed],
        "versions": {name: importlib.metadata.version(name) for name in ("tipl", "numpy", "envpool", "gymnasium")},
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    digest.update(trial.weights(t, t + 1).tobytes())
    return parts / f"{digest.hexdigest()[:24]}{ENDING}"


def _kept(parts: Path, trial: Trial, iteration: int, config: CeilingConfig) -> dict[str, np.ndarray] | None:
    count = len(config.horizons)
    shapes = {"mean": (count, trial.spec.size), "moved": (count,), "spread": (count,)}
    return kept_part(_part(parts, trial, iteration, config), shapes)


def _futures(
    trials: Sequence[Trial], wanted: Mapping[int, Mapping[int, bool]], config: CeilingConfig, parts: Path
) -> Futures:
    """All parts, whose horizons rise, in the order of the settings' horizons."""
    order = np.argsort(np.argsort(config.horizons))
    rows: list[tuple[Any, ...]] = []
    for trial in trials:
        progress, each = return_progress(trial), settings_of(trial).snapshots_per_iteration
        for iteration, by_time in wanted[trial.seed].items():
            part = _kept(parts, trial, iteration, config)
            if part is None:
                raise TiplError(f"A part of {parts} is gone since it was made; the same command makes it again.")
            own = (part[name][order] for name in ("mean", "moved", "spread"))
            phase = progress[iteration * each] < RISING, progress[-1] > 0
            rows.append((trial.seed, iteration, by_time, *phase, *own))
    seeds, iterations, by_time, rising, known, mean, moved, spread = zip(*rows, strict=True)
    return Futures(
        np.array(seeds), np.array(iterations), np.array(by_time), np.array(rising), np.array(known), mean,
        np.array(moved), np.array(spread),
    )  # fmt: skip
