"""What a store holds, and what of it is damaged: `tipl data info` and `tipl data verify`.

In: a store's path.  Out: JSON.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tipl.checks import Place, checked_arguments
from tipl.errors import TiplError
from tipl.files import Damaged, read_file
from tipl.remote.mirror import bring, drop, located, mirror_of, original, told_by_address
from tipl.remote.source import Unreachable
from tipl.store.arrays import ArrayReader, Layout, Sums
from tipl.store.layout import (
    EPISODE_ARRAYS,
    SNAPSHOT_ARRAYS,
    TOKENS,
    array_layout,
    checkpoint_path,
    fetch_rows,
    group,
    is_seed,
    read_checkpoint,
    read_record,
    trial_path,
    trial_seeds,
    trials_path,
)
from tipl.store.read import Store
from tipl.store.records import checked_record, fetch_root
from tipl.store.root import PARTS, Root

_INFO_COMPACT = ("rms_error", "max_error")  # of a snapshot
_INFO_ROOT = ("compact_error", "made_of")  # of a compact store
_INFO_EPISODES = 100  # episodes at the end of a trial whose mean return `tipl data info` shows
_MOST_PROBLEMS = 100  # damaged chunks of one array that are listed


@checked_arguments
def data_info(path: Place) -> dict[str, Any]:
    """Return what a store holds, as JSON: each trial's snapshots, episodes, returns, sizes and versions; their sums.

    Args:
        path: the store.

    Raises:
        TiplError: there is no readable store.
    """
    store = Store.open(path)
    incomplete = store.incomplete
    trials = [_trial_info(store, seed) for seed in store.seeds]
    raw = sum(trial["raw_bytes"] for trial in trials)
    disk = None if mirror_of(store.path) else sum(trial["disk_bytes"] for trial in trials)
    return {
        "store": original(store.path),
        "id": store.id,
        "format_version": store.root.format_version,
        **({} if store.compact_error is None else {name: getattr(store.root, name) for name in _INFO_ROOT}),
        "split": {part: sorted(seed for seed, own in store.root.parts.items() if own == part) for part in PARTS},
        "settings": (store.root.configuration or {}).get("config"),
        "snapshots": sum(trial["snapshots"] for trial in trials),
        "raw_bytes": raw,
        "disk_bytes": disk,
        "ratio": raw / disk if disk else None,
        "incomplete": incomplete,
        "missing": store.missing,
        "begun_without_commit": sorted(set(trial_seeds(store.path)) - set(store.seeds)),
        "trials": trials,
    }


def _trial_info(store: Store, seed: int) -> dict[str, Any]:
    trial = store.trial(seed)
    row_bytes = {
        name: np.dtype(dtype).itemsize * math.prod(row)
        for name, (dtype, row) in array_layout(trial.spec.size, trial.obs_dim, trial.num_tokens).items()
    }
    last_returns = trial.episodes.episode_return[-_INFO_EPISODES:]
    return {
        "seed": seed,
        "env_id": trial.env_id,
        "part": store.root.parts[seed],
        "complete": trial.complete,
        "snapshots": trial.committed,
        "weights": trial.spec.size,
        "episodes": trial.committed_episodes,
        f"mean_return_of_last_{_INFO_EPISODES}": float(last_returns.mean()) if len(last_returns) else None,
        **({"iterations": trial.committed_tokens, "tokens": trial.num_tokens} if trial.num_tokens else {}),
        "raw_bytes": trial.committed * sum(row_bytes[name] for name in SNAPSHOT_ARRAYS)
        + trial.committed_episodes * sum(row_bytes[name] for name in EPISODE_ARRAYS)
        + trial.committed_tokens * row_bytes.get(TOKENS, 0),
        "disk_bytes": None if mirror_of(store.path) else _disk_bytes(trial_path(store.path, seed)),
        **{f"{name}_in_mean_steps": trial.compact[name] for name in _INFO_COMPACT if trial.compact},
        "versions": trial.versions,
    }


def _disk_bytes(path: Path) -> int:
    total = 0
    for where, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(FileNotFoundError):  # a writer's temporary file
                total += Path(where, name).lstat().st_size
    return total


@checked_arguments
def data_verify(path: Place) -> dict[str, Any]:
    """Read every committed chunk of every array with its checksums, and every checkpoint.

    Args:
        path: the store.

    Returns:
        JSON: `damage` lists all that is not as it was written (trial, array, chunk, rows [first, last + 1] of the
        committed ones in that chunk, problem). `array` is "record" or "checkpoint" where one of these is damaged, and
        "folder" where something lies that should not; `trial` is None where it is about the store; `chunk` and `rows`
        are None where it is not about one chunk. Of an array with many damaged chunks the first hundred are listed.
        `chunks` and `bytes` say how much was read, `ok` whether nothing is damaged.

    Raises:
        TiplError: there is no readable store.
    """
    path = located(path)
    with told_by_address(path):
        fetch_root(path)
        bring([path / "trials" / "zarr.json"])
        root = Root.read(path)
    readings: dict[int | None, list[_Reading]] = {
        None: [*_readings_of_folders(path)],
        **{seed: [*_readings(path, seed)] for seed in trial_seeds(path)},
    }
    for seed in sorted(set(root.trials) - set(readings)):
        readings[seed] = [_Reading("record", "the store has had this trial, and it was taken away; collect it again")]
    damage = [
        {"trial": seed, "array": found.array, "chunk": found.chunk, "rows": found.rows, "problem": found.problem}
        for seed, found_of_trial in readings.items()
        for found in found_of_trial
        if found.problem
    ]
    chunks = [found for found_of_trial in readings.values() for found in found_of_trial if found.chunk is not None]
    return {
        "store": original(path),
        "ok": not damage,
        "trials": sum(bool(found) for seed, found in readings.items() if seed is not None),
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


def _readings_of_folders(store: Path) -> Iterator[_Reading]:
    """What is wrong with the store's folders themselves."""
    trials = trials_path(store)
    if _damage_of_group(trials):
        yield _Reading("folder", f"{trials / 'zarr.json'} is damaged or missing")
    with os.scandir(trials) as entries:
        for entry in entries:
            if not is_seed(entry.name) and (entry.is_symlink() or entry.is_dir()):
                yield _Reading("folder", f"{entry.path} is no trial of this store; move it away")


def _damage_of_group(path: Path) -> bool:
    """Whether a group without attributes of its own is not as it was written."""
    try:
        return read_file(path / "zarr.json", 1 << 16) != group({})
    except TiplError:
        return True


def _readings(store: Path, seed: int) -> Iterator[_Reading]:
    trial = trial_path(store, seed)
    try:
        record = checked_record(store, Root.read(store), seed)
    except Unreachable:
        raise
    except TiplError as error:
        yield _Reading("record", str(error))
        return
    if record is None:
        return
    for name, layout in record.layouts().items():
        yield from _readings_of_array(trial / name, layout, record.rows(name), record.sums(name))
    bring([checkpoint_path(trial, record), trial / "resume" / "zarr.json"])
    if record.complete and not checkpoint_path(trial, record).exists():
        return
    try:
        if _damage_of_group(trial / "resume"):
            raise Damaged(f"{trial / 'resume'} is damaged or missing")
        read_checkpoint(trial, record)
    except TiplError as error:
        if read_record(trial) == record:  # otherwise a writer has moved on meanwhile
            yield _Reading("checkpoint", str(error))


def _readings_of_array(path: Path, layout: Layout, rows: int, sums: Sums) -> Iterator[_Reading]:
    fetch_rows(path, layout, rows, 0, rows)
    try:
        reader = ArrayReader(path, layout, rows, sums)
    except TiplError as error:
        drop(path)
        yield _Reading(layout.name, str(error))
        return
    problems = 0
    for chunk in layout.chunks(0, rows):
        where = [chunk * layout.chunk_rows, min((chunk + 1) * layout.chunk_rows, rows)]
        problem, size = None, 0
        try:
            size = reader.chunk(chunk).size
        except TiplError as error:
            drop(layout.chunk_path(path, chunk))
            problem = str(error)
            problems += 1
        yield _Reading(layout.name, problem, chunk, where, size)
        if problems == _MOST_PROBLEMS:
            return
