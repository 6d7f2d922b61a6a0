"""What the causal model learns from, made once: windows of many trials, in parallel, kept in files.

In: stores, their trials, how many origins.  Out: `WindowFiles`.

A file's name is a digest of all that makes it: the seal of the trial's record, the number of origins, the seed. Other
trainings on the same trials read the same files. They lie in TIPL_CACHE/windows and may be removed when no training
runs; what is missing or damaged is made again.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tipl.config.presets import TrainConfig
from tipl.files import Absent, Damaged, set_aside
from tipl.parts import claimed
from tipl.processes import Parent, run_in_processes
from tipl.progress import console, steps_progress
from tipl.remote.mirror import cache
from tipl.representation.packed import WindowFile, WindowFiles, write_windows
from tipl.representation.windows import EDGES, HORIZONS, noisy, training_windows
from tipl.store import Store
from tipl.training.devices import Worker

_VERSION = 3  # of what makes windows, and their noise
_IN_PROCESSES = 64 << 20  # bytes of weights from which windows are made in processes of their own


class _Asked(NamedTuple):
    """Windows of one trial."""

    store: Path
    trial: int
    origins: int
    seed: int
    noise: bool
    tokens: bool
    """With the trial's context tokens."""
    seal: str
    """Of the trial's record, which knows all of its bytes."""
    bytes: int

    @property
    def path(self) -> Path:
        made_by = [_VERSION, EDGES, HORIZONS, self.seal, self.trial, self.origins, self.seed, self.noise, self.tokens]
        digest = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:24]
        return cache() / "windows" / f"{digest}.safetensors"


def lessons(
    splits: Mapping[Path, Sequence[int]], origins: int, config: TrainConfig, worker: Worker, noise: bool = False
) -> list[WindowFiles]:
    """Return the windows of these trials of each store, made where they are not kept.

    Args:
        splits: by store, its trials.
        origins: of each store, about, in all.
        noise: also make the same windows with noise added.

    Raises:
        TiplError: a trial is too short, holds weights that are not finite, or has no context tokens and they are asked
            for; or the cache cannot be written.
    """
    plain = {store: _asked(store, trials, origins, config) for store, trials in splits.items()}
    kinds = [plain]
    if noise:
        kinds.append({store: [each._replace(noise=True) for each in asked] for store, asked in plain.items()})
    files: dict[Path, WindowFile] = {}
    every = [each for kind in kinds for asked in kind.values() for each in asked]
    if worker.is_first_here:
        _make([each for each in every if not _opened(each, files)])
    worker.wait()
    for each in every:
        if not _opened(each, files):
            raise Damaged(f"{each.path} went away or was damaged meanwhile; run the same command again.")
    found = [[WindowFiles([files[each.path] for each in kind[store]]) for store in splits] for kind in kinds]
    for clean, with_noise in zip(found[0], found[-1], strict=True):
        clean.noisy = with_noise if noise else None
    return found[0]


def _asked(store: Path, trials: Sequence[int], origins: int, config: TrainConfig) -> list[_Asked]:
    data, each = Store.open(store), -(-origins // len(trials))
    found = []
    for number in trials:
        trial = data.trial(number)
        size = 4 * trial.committed * trial.spec.size
        seal = data.records[number].seal
        found.append(_Asked(store, number, each, config.seed, False, config.tokens, seal, size))
    return found


def _opened(asked: _Asked, files: dict[Path, WindowFile]) -> bool:
    """Whether the windows are there, which are then among the files; damaged ones are set aside, with a line."""
    if asked.path in files:
        return True
    try:
        files[asked.path] = WindowFile(asked.path)
    except Absent:
        return False
    except Damaged as error:
        console.print(f"train: {error} The damaged one is {set_aside(asked.path)} now.")
        return False
    return True


def _make(missing: Sequence[_Asked]) -> None:
    if not missing:
        return
    cores = len(os.sched_getaffinity(0))
    count = min(cores, len(missing)) if sum(each.bytes for each in missing) > _IN_PROCESSES else 0
    names = [f"trial {each.trial} of {each.store.name}" for each in missing]
    with steps_progress("train: windows of trials", len(missing)) as advance:
        if count > 1:
            longest = sorted(range(len(missing)), key=lambda number: -missing[number].bytes)
            tasks, names = [(missing[number],) for number in longest], [names[number] for number in longest]
            run_in_processes(_make_one, tasks, count, names, ended=lambda task: advance(1, names[task]))
        else:
            for each, name in zip(missing, names, strict=True):
                _make_one(None, each)
                advance(1, name)


def _make_one(parent: Parent | None, asked: _Asked) -> None:
    with claimed(asked.path, math.inf):  # another training may be making them
        if not asked.path.exists():
            _write(asked)


def _write(asked: _Asked) -> None:
    trial = Store.open(asked.store).trial(asked.trial)
    windows = training_windows(trial, asked.origins, np.random.default_rng([asked.seed, asked.trial]), asked.tokens)
    if asked.noise:
        windows = noisy(windows, np.random.default_rng([asked.seed, asked.trial, 1]))
    write_windows(asked.path, windows, len(trial.spec.sizes) + 1)
