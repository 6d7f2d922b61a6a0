"""What a store holds, and what of it is damaged: `tipl data info` and `tipl data verify`.

In: a store's path.  Out: JSON.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tipl.checks import AnyPath, checked_arguments
from tipl.errors import TiplError
from tipl.store.arrays import chunk_range, open_array, require_chunk
from tipl.store.files import DAMAGE
from tipl.store.layout import (
    EPISODE_ARRAYS,
    FORMAT_VERSION,
    SNAPSHOT_ARRAYS,
    array_layout,
    check_root,
    read_checkpoint,
    read_record,
    trial_path,
    trial_seeds,
)
from tipl.store.read import Store, Trial
from tipl.store.root import PARTS

_INFO_COMPACT = ("rms_error", "max_error")  # of a snapshot
_INFO_EPISODES = 100  # episodes at the end of a trial whose mean return `tipl data info` shows


@checked_arguments
def data_info(path: AnyPath) -> dict[str, Any]:
    """What a store holds, as JSON: of every trial snapshots, episodes, returns, sizes and versions; and their sums.

    Raises:
        TiplError: there is no readable store.
    """
    store = Store.open(path)
    trials = [_trial_info(store.trial(seed), trial_path(store.path, seed)) for seed in store.seeds]
    raw, disk = (sum(trial[key] for trial in trials) for key in ("raw_bytes", "disk_bytes"))
    return {
        "store": str(store.path),
        "format_version": FORMAT_VERSION,
        "id": store.id,
        "split": {
            part: sorted(seed for seed, own in (store.root.parts or {}).items() if own == part) for part in PARTS
        },
        "settings": (store.root.configuration or {}).get("config"),
        **({} if store.compact_error is None else {"compact_error": store.compact_error}),
        "snapshots": sum(trial["snapshots"] for trial in trials),
        "raw_bytes": raw,
        "disk_bytes": disk,
        "ratio": raw / disk if disk else None,
        "begun_without_commit": sorted(set(trial_seeds(store.path)) - set(store.seeds)),
        "trials": trials,
    }


def _trial_info(trial: Trial, path: Path) -> dict[str, Any]:
    layout = array_layout(trial.spec.size, trial.obs_mean.shape[1])
    row_bytes = {name: np.dtype(dtype).itemsize * math.prod(row) for name, (dtype, row) in layout.items()}
    last_returns = trial.episodes.episode_return[-_INFO_EPISODES:]
    return {
        "seed": trial.seed,
        "env_id": trial.env_id,
        "complete": trial.complete,
        "snapshots": trial.committed,
        "weights": trial.spec.size,
        "episodes": trial.committed_episodes,
        f"mean_return_of_last_{_INFO_EPISODES}": float(last_returns.mean()) if len(last_returns) else None,
        "raw_bytes": trial.committed * sum(row_bytes[name] for name in SNAPSHOT_ARRAYS)
        + trial.committed_episodes * sum(row_bytes[name] for name in EPISODE_ARRAYS),
        "disk_bytes": _disk_bytes(path),
        **{f"{name}_in_mean_steps": trial.compact[name] for name in _INFO_COMPACT if trial.compact},
        "versions": trial.versions,
    }


def _disk_bytes(path: Path) -> int:
    total = 0
    for file in path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a writer's temporary file
            total += file.stat().st_size if file.is_file() else 0
    return total


@checked_arguments
def data_verify(path: AnyPath) -> dict[str, Any]:
    """Read every committed chunk of every array with its checksum, and every checkpoint.

    Returns:
        JSON: `damage` lists all that does not read back (trial, array, chunk, rows [first, last + 1] of the committed
        ones in that chunk, problem). `array` is "record" or "checkpoint" where one of these is damaged; `chunk` and
        `rows` are None where it is not about one chunk. `chunks` and `bytes` say how much was read, `ok` whether
        nothing is damaged.

    Raises:
        TiplError: there is no readable store.
    """
    path = Path(path)
    check_root(path)
    readings = {seed: list(_readings(trial_path(path, seed))) for seed in trial_seeds(path)}
    damage = [
        {"trial": seed, "array": found.array, "chunk": found.chunk, "rows": found.rows, "problem": found.problem}
        for seed, found_of_trial in readings.items()
        for found in found_of_trial
        if found.problem
    ]
    chunks = [found for found_of_trial in readings.values() for found in found_of_trial if found.chunk is not None]
    return {
        "store": str(path),
        "ok": not damage,
        "trials": sum(map(bool, readings.values())),
        "chunks": len(chunks),
        "bytes": sum(found.size for found in chunks),
        "damage": damage,
    }


class _Reading(NamedTuple):
    """What came of reading one chunk, or of something whole that cannot be read."""

    array: str
    problem: str | None
    chunk: int | None = None
    rows: list[int] | None = None
    size: int = 0


def _readings(trial: Path) -> Iterator[_Reading]:
    try:
        record = read_record(trial)
    except TiplError as error:
        yield _Reading("record", str(error))
        return
    if record is None or not record.committed:
        return
    for name in SNAPSHOT_ARRAYS + EPISODE_ARRAYS:
        try:
            array = open_array(trial / name)
            if array.shape[0] < record.rows(name):
                raise ValueError(f"{array.shape[0]} rows, but {record.rows(name)} are committed")
        except DAMAGE as error:
            yield _Reading(name, str(error))
            continue
        for chunk in chunk_range(array, 0, record.rows(name)):
            rows = [chunk * array.chunks[0], min((chunk + 1) * array.chunks[0], record.rows(name))]
            problem, size = None, 0
            try:
                size = require_chunk(trial / name, array.ndim, chunk).stat().st_size
                array[slice(*rows)]
            except DAMAGE as error:
                problem = str(error)
            yield _Reading(name, problem, chunk, rows, size)
    try:
        if not record.complete:
            read_checkpoint(trial, record)
    except DAMAGE as error:
        if read_record(trial) == record:  # otherwise a writer has moved on meanwhile
            yield _Reading("checkpoint", str(error))
