"""The data set on disk: a zarr group of trials that are written in commits and read up to the last one.

In: snapshots, episodes and checkpoints of running trials.  Out: read-only trials, their split, what is damaged.

    STORE/zarr.json                attributes format, format_version
    STORE/trials/<seed>/zarr.json  attributes of a trial (class _Record); it is the commit record
    STORE/trials/<seed>/<array>/   weights [T, P], env_step [T], …: see _layout
    STORE/trials/<seed>/resume/    until the trial is complete: its checkpoint and its writer's lock

All of it reads with zarr alone; rows from `committed` on (`committed_episodes` for episodes) are not data. A commit
writes the chunks, then the checkpoint, then the record, each under another name first and then renamed, so that a
crash at any byte leaves the last record true. Chunks carry a checksum. zarr reads a chunk that is missing as the fill
value (NaN, -1), so this module looks for the file first.

Shapes: T snapshots, P weights, E episodes, obs the size of an observation.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import google_crc32c
import numpy as np
import safetensors.numpy
import zarr
from numcodecs import Blosc
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec, TransposeCodec

from tipl.errors import TiplError
from tipl.policy import ParamSpec

FORMAT_VERSION = 1

# After a transpose, so that a weight's values follow each other in time: most of their high bits are the same, and
# bit planes of equal bits are what zstd shortens. Best of benchmarks/codecs.py among what zarr reads by itself.
# Blosc leaves a block as it is unless its number of values is a multiple of 8: chunks have multiples of 8 rows.
CODEC = Blosc("zstd", clevel=1, shuffle=Blosc.BITSHUFFLE, blocksize=1 << 20)

SNAPSHOT_ARRAYS = (
    "weights", "env_step", "iteration", "epoch", "learning_rate", "obs_mean", "obs_var", "obs_count",
)  # fmt: skip
EPISODE_ARRAYS = ("episode_step", "episode_return", "episode_length")

_WEIGHTS_CHUNK = 16 << 20, 512  # most bytes and most snapshots in a chunk
_OTHER_CHUNK_BYTES = 64 << 10  # every commit rewrites an array's last chunk: small
_INFO_EPISODES = 100  # episodes at the end of a trial whose mean return `tipl data info` shows
_OUT_OF_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DAMAGE = (OSError, ValueError, KeyError, TypeError, RuntimeError)  # what zarr and its codecs raise on damaged files


def _layout(num_weights: int, obs_dim: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every array of a trial: its type and the shape of one row."""
    return {
        "weights": ("float32", (num_weights,)),
        "env_step": ("int64", ()),
        "iteration": ("int32", ()),
        "epoch": ("int32", ()),
        "learning_rate": ("float64", ()),
        "obs_mean": ("float64", (obs_dim,)),
        "obs_var": ("float64", (obs_dim,)),
        "obs_count": ("float64", ()),
        "episode_step": ("int64", ()),
        "episode_return": ("float64", ()),
        "episode_length": ("int32", ()),
    }


@dataclass(frozen=True)
class _Record:
    """The attributes of a trial's group. Replacing them is what commits."""

    format_version: int
    seed: int
    env_id: str
    config: dict[str, Any]
    param_spec: list[dict[str, Any]]
    versions: dict[str, str]
    committed: int
    committed_episodes: int
    complete: bool
    commits: int
    """How many there were; the checkpoint is resume/<commits>.safetensors."""
    checkpoint_crc32c: int

    def rows(self, array: str) -> int:
        return self.committed_episodes if array in EPISODE_ARRAYS else self.committed


@dataclass(frozen=True)
class Split:
    """Seeds of the trials to fit on, to choose by and to judge by."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


class Episodes(NamedTuple):
    """A trial's episodes in the order in which they ended."""

    step: np.ndarray
    """[E] int64, environment steps of the trial when the episode ended."""
    episode_return: np.ndarray
    """[E] float64, undiscounted sum of raw rewards."""
    length: np.ndarray
    """[E] int32, in environment steps."""


def create_store(path: Path | str) -> "Store":
    """A new store at `path`, or the one that is there already.

    Raises:
        TiplError: something else is there, or the disk does not take it.
    """
    path = Path(path)
    with _writing(path):
        if not (path / "zarr.json").exists():
            # A crash between the two lines that follow leaves a temporary file at most.
            if path.exists() and not (path.is_dir() and all(p.name == "zarr.json.partial" for p in path.iterdir())):
                raise TiplError(f"{path} exists and is not a tipl store; choose another path or remove it.")
            path.mkdir(parents=True, exist_ok=True)
            _write_group(path, {"format": "tipl", "format_version": FORMAT_VERSION})
        store = Store.open(path)
        if not (path / "trials" / "zarr.json").exists():
            (path / "trials").mkdir(exist_ok=True)
            _write_group(path / "trials", {})
    return store


class Store:
    """The reading side of a data set: its trials as they were when it was opened."""

    def __init__(self, path: Path, records: Mapping[int, _Record]) -> None:
        self.path = path
        self._records = records

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Read the record of every trial, and nothing else.

        Raises:
            TiplError: there is no store, it is of another version, or a record is damaged.
        """
        path = Path(path)
        _check_root(path)
        records = {seed: _read_record(_trial_path(path, seed)) for seed in _trial_seeds(path)}
        return cls(path, {seed: record for seed, record in records.items() if record and record.committed})

    @property
    def seeds(self) -> list[int]:
        """The trials with at least one committed snapshot, sorted."""
        return sorted(self._records)

    def trial(self, seed: int) -> "Trial":
        """
        Raises:
            TiplError: nothing of that trial is committed.
        """
        if seed not in self._records:
            have = ", ".join(map(str, self.seeds)) or "none yet"
            raise TiplError(f"{self.path} has no trial {seed}; it has: {have}.")
        return Trial(_trial_path(self.path, seed), self._records[seed])

    def split(self) -> Split:
        """By trial, in the order of seeds: the last fifth to test, the eighth (of all) before it to validate.

        At least one trial to test, and of three or more at least one to validate.

        Raises:
            TiplError: there are fewer than two trials.
        """
        seeds = tuple(self.seeds)
        if len(seeds) < 2:
            raise TiplError(f"{self.path} has {len(seeds)} trial(s); a split takes 2 or more: collect more trials.")
        test = len(seeds) - max(1, len(seeds) // 5)
        validation = test - (max(1, len(seeds) // 8) if len(seeds) >= 3 else 0)
        return Split(seeds[:validation], seeds[validation:test], seeds[test:])


class Trial:
    """One trial, read only, up to the snapshots that were committed when the store was opened.

    Every read raises TiplError where a chunk is missing or fails its checksum.
    """

    def __init__(self, path: Path, record: _Record) -> None:
        self._path = path
        self._record = record
        self._arrays: dict[str, zarr.Array] = {}
        self.seed = record.seed
        self.env_id = record.env_id
        self.config = record.config
        self.spec = ParamSpec.from_json(record.param_spec)
        self.versions = record.versions
        self.committed = record.committed
        self.committed_episodes = record.committed_episodes
        self.complete = record.complete

    def weights(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Snapshots start … stop - 1, float32 [n, P]; reads only the chunks that hold them."""
        stop = self.committed if stop is None else stop
        assert 0 <= start <= stop <= self.committed, (start, stop, self.committed)
        return self._read("weights", start, stop)

    @cached_property
    def env_step(self) -> np.ndarray:
        """[T] int64, environment steps before each snapshot."""
        return self._read("env_step")

    @cached_property
    def iteration(self) -> np.ndarray:
        """[T] int32, the iteration that made each snapshot; 0 for the initialization."""
        return self._read("iteration")

    @cached_property
    def epoch(self) -> np.ndarray:
        """[T] int32, update epochs done in that iteration."""
        return self._read("epoch")

    @cached_property
    def learning_rate(self) -> np.ndarray:
        """[T] float64."""
        return self._read("learning_rate")

    @cached_property
    def obs_mean(self) -> np.ndarray:
        """[T, obs] float64, of the normaliser that belongs to each snapshot."""
        return self._read("obs_mean")

    @cached_property
    def obs_var(self) -> np.ndarray:
        """[T, obs] float64."""
        return self._read("obs_var")

    @cached_property
    def obs_count(self) -> np.ndarray:
        """[T] float64."""
        return self._read("obs_count")

    @cached_property
    def episodes(self) -> Episodes:
        return Episodes(*(self._read(name) for name in EPISODE_ARRAYS))

    def _read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        stop = self._record.rows(name) if stop is None else stop
        path = self._path / name
        try:
            if name not in self._arrays:
                self._arrays[name] = zarr.open_array(path, mode="r")
            array = self._arrays[name]
            for chunk in _chunks(array, start, stop):
                _require_chunk(path, array.ndim, chunk)
            return np.asarray(array[start:stop])
        except _DAMAGE as error:
            raise TiplError(f"{path} is damaged ({error}); `tipl data verify` lists what is.") from error


class TrialWriter:
    """Writes one trial, in commits; nothing that was appended is safe before its commit.

    One process writes a trial at a time. After a TiplError a writer is of no more use: go on with `resume`. Leaving
    a `with` block, or `close`, frees the trial for others and commits nothing.
    """

    def __init__(self, path: Path, record: _Record, lock: int) -> None:
        self._path = path
        self._record = record
        self._lock: int | None = lock
        names = SNAPSHOT_ARRAYS + EPISODE_ARRAYS
        self._arrays = {name: _ArrayWriter(path / name, record.rows(name)) for name in names}

    @classmethod
    def create(
        cls,
        store_path: Path | str,
        seed: int,
        *,
        env_id: str,
        config: dict[str, Any],
        spec: ParamSpec,
        versions: dict[str, str],
        obs_dim: int,
        num_snapshots: int | None,
        chunk_snapshots: int | None = None,
    ) -> Self:
        """Begin a trial in an existing store. What an earlier writer left without any commit is removed.

        Args:
            config: everything that made the trial, as JSON.
            num_snapshots: T where it is known; otherwise arrays grow, and shrink to size when the trial is complete.
            chunk_snapshots: snapshots in a chunk of `weights`; by default up to 16 MiB, at most 512.

        Raises:
            TiplError: no store there, the trial has committed snapshots, another process writes it, or a full disk.
        """
        _check_root(Path(store_path))
        path = _trial_path(Path(store_path), seed)
        record = _read_record(path)
        if record and record.committed:
            raise TiplError(f"{path} holds {record.committed} snapshots already; go on with it or remove it.")
        with _writing(path), contextlib.ExitStack() as on_failure:
            (path / "resume").mkdir(parents=True, exist_ok=True)
            lock = _lock(path)
            on_failure.callback(os.close, lock)
            for leftover in path.iterdir():
                if leftover.is_dir() and leftover.name != "resume":
                    shutil.rmtree(leftover)
            _write_group(path / "resume", {})
            if chunk_snapshots is None:
                most_bytes, most_snapshots = _WEIGHTS_CHUNK
                chunk_snapshots = min(most_snapshots, _rows_in(most_bytes, 4 * spec.size))
            for name, (dtype, row) in _layout(spec.size, obs_dim).items():
                chunk = _rows_in(_OTHER_CHUNK_BYTES, 8 * math.prod(row)) if name != "weights" else chunk_snapshots
                rows = (num_snapshots if name in SNAPSHOT_ARRAYS else None) or chunk
                _create_array(path / name, dtype, (rows, *row), min(chunk, 8 * math.ceil(rows / 8)))
            record = _Record(
                format_version=FORMAT_VERSION, seed=seed, env_id=env_id, config=config, param_spec=spec.to_json(),
                versions=versions, committed=0, committed_episodes=0, complete=False, commits=0, checkpoint_crc32c=0,
            )  # fmt: skip
            _write_group(path, vars(record))
            writer = cls(path, record, lock)
            on_failure.pop_all()
            return writer

    @classmethod
    def resume(cls, store_path: Path | str, seed: int) -> tuple[Self, dict[str, np.ndarray]]:
        """Cut a trial back to what was committed and go on writing it.

        Returns:
            The writer and the checkpoint that was committed with the last snapshot.

        Raises:
            TiplError: nothing was committed, the trial is complete, another process writes it, or what is needed to
                go on is damaged.
        """
        _check_root(Path(store_path))
        path = _trial_path(Path(store_path), seed)
        with _writing(path), contextlib.ExitStack() as on_failure:
            record = _read_record(path)
            if record is None or not record.committed:
                raise TiplError(f"{path} has no committed snapshots to go on from; begin that trial anew.")
            if record.complete:
                raise TiplError(f"{path} is complete; there is nothing to go on with.")
            lock = _lock(path)
            on_failure.callback(os.close, lock)
            record = _read_record(path)  # now nobody else commits
            assert record is not None
            try:
                checkpoint = safetensors.numpy.load(_read_checkpoint(path, record))
                writer = cls(path, record, lock)
            except _DAMAGE as error:
                raise TiplError(
                    f"{path} cannot be gone on with ({error}); its {record.committed} snapshots stay readable, or "
                    "remove it and begin that trial anew."
                ) from error
            for leftover in (*path.rglob("*.partial"), *(path / "resume").glob("*.safetensors")):
                if leftover != _checkpoint_path(path, record):
                    leftover.unlink()
            on_failure.pop_all()
            return writer, {name: np.array(value) for name, value in checkpoint.items()}

    @property
    def committed(self) -> int:
        """Snapshots that are safe."""
        return self._record.committed

    @property
    def appended(self) -> int:
        """Snapshots given so far, committed or not."""
        return self._arrays["weights"].rows

    def append(
        self,
        weights_TP: np.ndarray,
        env_step: np.ndarray,
        iteration: np.ndarray,
        epoch: np.ndarray,
        learning_rate: np.ndarray,
        obs_mean: np.ndarray,
        obs_var: np.ndarray,
        obs_count: np.ndarray,
    ) -> None:
        """Add n snapshots: weights [n, P], obs_mean and obs_var [n, obs], the others [n]. Full chunks are written.

        Raises:
            TiplError: the disk is full.
        """
        self._append(SNAPSHOT_ARRAYS,
                     (weights_TP, env_step, iteration, epoch, learning_rate, obs_mean, obs_var, obs_count))  # fmt: skip

    def append_episodes(self, step: np.ndarray, episode_return: np.ndarray, length: np.ndarray) -> None:
        """Add n episodes, [n] each, in the order in which they ended.

        Raises:
            TiplError: the disk is full.
        """
        self._append(EPISODE_ARRAYS, (step, episode_return, length))

    def commit(self, checkpoint: Mapping[str, np.ndarray], complete: bool = False) -> None:
        """Make everything appended so far safe, together with what resuming from here takes.

        Writes the last chunk of every array anew, so it costs some milliseconds, and for large P as much as packing
        one chunk of `weights`: commit every few seconds, not every snapshot.

        Args:
            checkpoint: all that the rest of the trial depends on. A complete trial keeps none.
            complete: the trial has ended; the writer is closed.

        Raises:
            TiplError: the disk is full; the commit before stays.
        """
        assert self._lock is not None, "the writer is closed"
        # safetensors writes an array's memory as it lies and takes it for C order.
        data = safetensors.numpy.save({name: np.asarray(value, order="C") for name, value in checkpoint.items()})
        record = dataclasses.replace(
            self._record, committed=self.appended, committed_episodes=self._arrays["episode_step"].rows,
            complete=complete, commits=self._record.commits + 1, checkpoint_crc32c=google_crc32c.value(data),
        )  # fmt: skip
        with _writing(self._path):
            for array in self._arrays.values():
                array.flush(exact=complete)
            if not complete:
                _replace_file(_checkpoint_path(self._path, record), data)
            _write_group(self._path, vars(record))
            before, self._record = self._record, record
            if complete:
                shutil.rmtree(self._path / "resume")
                self.close()
            else:
                _checkpoint_path(self._path, before).unlink(missing_ok=True)

    def close(self) -> None:
        """Free the trial for other writers."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, names: tuple[str, ...], values: tuple[np.ndarray, ...]) -> None:
        assert self._lock is not None, "the writer is closed"
        assert len({len(value) for value in values}) == 1, [len(value) for value in values]
        with _writing(self._path):
            for name, value in zip(names, values, strict=True):
                self._arrays[name].append(value)


class _ArrayWriter:
    """Appends rows to one array. A chunk is always written whole, so rows that are safe are never at risk.

    Chunks are encoded here, as the array's metadata say, because zarr takes several times as long for small ones and
    leaves to the system when a new file reaches the disk.
    """

    def __init__(self, path: Path, rows: int) -> None:
        """Take up an array after its first `rows` rows; the chunks after them are removed."""
        self._path = path
        self._array = zarr.open_array(path, mode="r+")
        self._chunk_rows = self._array.chunks[0]
        self._buffer = np.full((self._chunk_rows, *self._array.shape[1:]), self._array.fill_value, self._array.dtype)
        self.rows = self._written = rows
        full, begin = divmod(rows, self._chunk_rows)
        if begin and self._buffer.size:
            _require_chunk(path, self._array.ndim, full)
            self._buffer[:begin] = self._array[rows - begin : rows]
        for chunk in range(full + (begin > 0), self._array.cdata_shape[0]):
            self._chunk_path(chunk).unlink(missing_ok=True)

    def append(self, values: np.ndarray) -> None:
        values = np.asarray(values).astype(self._buffer.dtype, casting="same_kind", copy=False)
        assert values.shape[1:] == self._buffer.shape[1:], (self._path, values.shape, self._buffer.shape)
        while len(values):
            begin = self.rows % self._chunk_rows
            part, values = np.split(values, [self._chunk_rows - begin])
            self._buffer[begin : begin + len(part)] = part
            self.rows += len(part)
            if begin + len(part) == self._chunk_rows:
                self._write_chunk()

    def flush(self, exact: bool) -> None:
        """Write the chunk that is not full yet. If `exact`, make the array no longer than its rows."""
        if self.rows > self._written:
            self._buffer[self.rows % self._chunk_rows :] = self._array.fill_value
            self._write_chunk()
        if exact and self.rows != self._array.shape[0]:
            self._array.resize((self.rows, *self._array.shape[1:]))

    def _write_chunk(self) -> None:
        length, *columns = self._array.shape
        if self.rows > length:
            self._array.resize((max(self.rows, 2 * length), *columns))
        if self._buffer.size:
            payload = CODEC.encode(np.ascontiguousarray(self._buffer.T))
            checksum = google_crc32c.value(payload).to_bytes(4, "little")
            path = self._chunk_path((self.rows - 1) // self._chunk_rows)
            new = not path.exists()
            if new:
                path.parent.mkdir(parents=True, exist_ok=True)
            _replace_file(path, payload, checksum, sync=new)
        self._written = self.rows

    def _chunk_path(self, chunk: int) -> Path:
        return _chunk_path(self._path, self._array.ndim, chunk)


def data_info(path: Path | str) -> dict[str, Any]:
    """What a store holds, as JSON: of every trial snapshots, episodes, returns, sizes and versions; and their sums.

    Raises:
        TiplError: there is no readable store.
    """
    store = Store.open(path)
    trials = [_trial_info(store.trial(seed), _trial_path(store.path, seed)) for seed in store.seeds]
    raw, disk = (sum(trial[key] for trial in trials) for key in ("raw_bytes", "disk_bytes"))
    return {
        "store": str(store.path),
        "format_version": FORMAT_VERSION,
        "snapshots": sum(trial["snapshots"] for trial in trials),
        "raw_bytes": raw,
        "disk_bytes": disk,
        "ratio": raw / disk if disk else None,
        "begun_without_commit": sorted(set(_trial_seeds(store.path)) - set(store.seeds)),
        "trials": trials,
    }


def _trial_info(trial: Trial, path: Path) -> dict[str, Any]:
    layout = _layout(trial.spec.size, trial.obs_mean.shape[1])
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
        "versions": trial.versions,
    }


def data_verify(path: Path | str) -> dict[str, Any]:
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
    _check_root(path)
    readings = {seed: list(_readings(_trial_path(path, seed))) for seed in _trial_seeds(path)}
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
        record = _read_record(trial)
    except TiplError as error:
        yield _Reading("record", str(error))
        return
    if record is None or not record.committed:
        return
    for name in SNAPSHOT_ARRAYS + EPISODE_ARRAYS:
        try:
            array = zarr.open_array(trial / name, mode="r")
            if array.shape[0] < record.rows(name):
                raise ValueError(f"{array.shape[0]} rows, but {record.rows(name)} are committed")
        except _DAMAGE as error:
            yield _Reading(name, str(error))
            continue
        for chunk in _chunks(array, 0, record.rows(name)):
            rows = [chunk * array.chunks[0], min((chunk + 1) * array.chunks[0], record.rows(name))]
            problem, size = None, 0
            try:
                size = _require_chunk(trial / name, array.ndim, chunk).stat().st_size
                array[slice(*rows)]
            except _DAMAGE as error:
                problem = str(error)
            yield _Reading(name, problem, chunk, rows, size)
    try:
        if not record.complete:
            _read_checkpoint(trial, record)
    except _DAMAGE as error:
        if _read_record(trial) == record:  # otherwise a writer has moved on meanwhile
            yield _Reading("checkpoint", str(error))


# Places.


def _trial_path(store: Path, seed: int) -> Path:
    return store / "trials" / str(seed)


def _trial_seeds(store: Path) -> list[int]:
    trials = store / "trials"
    return sorted(int(entry.name) for entry in trials.iterdir() if entry.name.isdecimal()) if trials.exists() else []


def _chunk_path(array: Path, ndim: int, chunk: int) -> Path:
    """Where zarr's default key encoding has a chunk that spans all columns."""
    return array.joinpath("c", str(chunk), *["0"] * (ndim - 1))


def _checkpoint_path(trial: Path, record: _Record) -> Path:
    return trial / "resume" / f"{record.commits}.safetensors"


# Records.


def _write_group(path: Path, attributes: Mapping[str, Any]) -> None:
    metadata = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    _replace_file(path / "zarr.json", json.dumps(metadata, indent=2, allow_nan=False).encode())


def _read_attributes(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((path / "zarr.json").read_bytes())["attributes"])
    except (FileNotFoundError, NotADirectoryError):
        raise
    except _DAMAGE as error:
        raise TiplError(
            f"{path / 'zarr.json'} is damaged ({error}); bring it back from a copy or remove {path}."
        ) from error


def _read_record(trial: Path) -> _Record | None:
    """The commit record of a trial, None where its writer did not come as far as making one."""
    try:
        attributes = _read_attributes(trial)
        return _Record(**{field.name: attributes[field.name] for field in dataclasses.fields(_Record)})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except KeyError as error:
        raise TiplError(f"{trial / 'zarr.json'} lacks {error}; bring it back from a copy or remove {trial}.") from error


def _check_root(path: Path) -> None:
    try:
        attributes = _read_attributes(path)
    except (FileNotFoundError, NotADirectoryError):
        what = "is not a tipl store" if path.exists() else "does not exist"
        raise TiplError(f"{path} {what}; make a store with `tipl collect`.") from None
    if attributes.get("format") != "tipl":
        raise TiplError(f"{path} is not a tipl store; make a store with `tipl collect`.")
    if attributes.get("format_version") != FORMAT_VERSION:
        raise TiplError(
            f"{path} has format version {attributes.get('format_version')}, this program reads {FORMAT_VERSION}; "
            "use the version of tipl that wrote it."
        )


def _read_checkpoint(trial: Path, record: _Record) -> bytes:
    data = _checkpoint_path(trial, record).read_bytes()
    if google_crc32c.value(data) != record.checkpoint_crc32c:
        raise ValueError(f"the checksum of {_checkpoint_path(trial, record).name} does not match")
    return data


# Arrays and files.


def _rows_in(most_bytes: int, row_bytes: int) -> int:
    rows = most_bytes // max(1, row_bytes)
    return rows - rows % 8 if rows > 8 else max(1, rows)


def _create_array(path: Path, dtype: str, shape: tuple[int, ...], chunk_rows: int) -> None:
    columns = tuple(max(1, size) for size in shape[1:])
    zarr.create_array(
        path,
        shape=shape,
        chunks=(chunk_rows, *columns),
        dtype=dtype,
        filters=[TransposeCodec(order=(1, 0))] if columns else None,
        compressors=[
            BloscCodec(
                typesize=np.dtype(dtype).itemsize,
                cname=CODEC.cname,
                clevel=CODEC.clevel,
                shuffle=BloscShuffle.from_int(CODEC.shuffle),
                blocksize=CODEC.blocksize,
            ),
            Crc32cCodec(),
        ],
        fill_value=math.nan if dtype.startswith("float") else -1,
    )


def _chunks(array: zarr.Array, start: int, stop: int) -> range:
    """The chunks that hold rows start … stop - 1."""
    if start == stop or 0 in array.shape[1:]:
        return range(0)
    return range(start // array.chunks[0], (stop - 1) // array.chunks[0] + 1)


def _require_chunk(array: Path, ndim: int, chunk: int) -> Path:
    path = _chunk_path(array, ndim, chunk)
    if not path.exists():
        raise FileNotFoundError(f"chunk {chunk} is missing")
    return path


def _disk_bytes(path: Path) -> int:
    total = 0
    for file in path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a writer's temporary file
            total += file.stat().st_size if file.is_file() else 0
    return total


def _replace_file(path: Path, *parts: bytes, sync: bool = True) -> None:
    """Write a file so that a crash at any byte leaves the old one or the new one.

    Without `sync` that holds for a program that is killed; for a machine that loses power only where the file system
    itself writes a file out before it replaces another (ext4 and btrfs do).
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.writelines(parts)
            file.flush()
            if sync:
                os.fsync(file.fileno())
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, path)


def _lock(trial: Path) -> int:
    """Keep other processes from writing a trial until the descriptor returned is closed or the process ends."""
    descriptor = os.open(trial / "resume" / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        raise TiplError(f"{trial} is being written by another process; wait for it or stop it.") from None
    return descriptor


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = "free some room and" if error.errno in _OUT_OF_ROOM else "when that is mended,"
        raise TiplError(
            f"Writing {path} failed: {error.strerror or error}. What was committed stays; {advice} run the same "
            "command again."
        ) from error
