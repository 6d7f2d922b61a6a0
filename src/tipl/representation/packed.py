"""Training windows in files: a third of their bytes, read a few at a time, whatever their number.

In: the windows of a trial.  Out: a sealed file; of several files the windows that are asked for.

A window is a record of float32: the triangle of its group's inner products, its products with what came, and a few
numbers. The products of the whole policy are not repeated in it: they are another record, of the same origin. Files are
mapped, not read: what was looked at is let go at once, so that memory is a batch's.

Shapes: B windows, J tokens, H horizons, G groups, R numbers of a record.
"""

import hashlib
import mmap
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy

from tipl.bundle import read_bundle, write_bundle
from tipl.files import Damaged, parse_json
from tipl.representation.windows import HORIZONS, TOKENS, TrainingWindows
from tipl.shapes import Whole

_NUMBERS = "unit", "share", "size", "epoch_index", "origin", "often"
BLOCK = 2048
"""Windows that are read at once where all are."""


class _Record(NamedTuple):
    """Where a window's numbers stand in its record."""

    row: np.ndarray
    """[J (J + 1) / 2] of the products that are kept; so the next."""
    column: np.ndarray
    place: np.ndarray
    """[J, J] of each product among those."""
    ends: np.ndarray
    """Of its parts; the last is R."""

    @property
    def own(self) -> int:
        return len(self.row)

    @property
    def size(self) -> int:
        """R, float32 numbers."""
        return int(self.ends[-1])


@cache
def _record(tokens: int) -> _Record:
    row, column = np.tril_indices(tokens)
    place = np.zeros((tokens, tokens), np.int64)
    place[row, column] = place[column, row] = np.arange(len(row))
    horizons = len(HORIZONS)
    return _Record(row, column, place, np.cumsum([len(row), tokens * horizons, horizons, horizons, len(_NUMBERS)]))


def write_windows(path: Path, windows: TrainingWindows, groups: int) -> None:
    """Write a trial's windows, which `training_windows` made, in one step.

    Args:
        path: named by what makes them.
        groups: G, of which each origin has a window; the whole policy's stand last.
    """
    record = _record(windows.tokens)
    records = np.empty((len(windows), record.size), np.float32)
    numbers = np.stack([getattr(windows, name) for name in _NUMBERS], axis=1)
    flat = windows.toward.reshape(len(windows), -1)
    parts = windows.own[:, record.row, record.column], flat, windows.moved, windows.weight, numbers
    for part, end in zip(parts, record.ends, strict=True):
        records[:, end - part.shape[1] : end] = part
    weight = windows.weight / windows.often[:, None]
    came = (weight * windows.moved).mean(axis=1, dtype=np.float64)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"of": path.name, "groups": groups, "tokens": windows.tokens}
    write_bundle(path, {"records": records, "came": came}, facts, safetensors.numpy)


class WindowFile:
    """The windows of one trial, mapped."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            Absent, Damaged: there is no such file, or it is not what was written.
        """
        shape = {"of": str, "groups": Whole(1), "tokens": Whole(TOKENS, 2 * TOKENS)}
        arrays, facts = read_bundle(path, shape, safetensors.numpy, "it is made again")
        records, self.came = arrays["records"], np.array(arrays["came"])
        self.count, self.groups, self.tokens = len(records), facts["groups"], facts["tokens"]
        self._record = _record(self.tokens)
        right = records.dtype == np.float32 and records.shape == (len(self.came), self._record.size)
        if facts["of"] != path.name or not right or self.count % self.groups:
            raise Damaged(f"{path} is another file; it is made again.")
        self.digest = hashlib.sha256(records.data).digest()
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            begin = 8 + size + parse_json(file.read(size), str(path))["records"]["data_offsets"][0]
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._records = np.frombuffer(self._map, np.float32, records.size, begin).reshape(records.shape)

    def rows(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The records [n, R], and the triangles of the whole policy at their origins [n, J (J + 1) / 2]."""
        origins = self.count // self.groups
        found = self._records[index], self._records[self.count - origins + index % origins, : self._record.own]
        self._map.madvise(mmap.MADV_DONTNEED)  # out of this process's memory; the system keeps what it has room for
        return found

    @property
    def is_whole(self) -> np.ndarray:
        return np.arange(self.count) >= self.count - self.count // self.groups


class WindowFiles:
    """The windows of a store's trials, one after another."""

    def __init__(self, files: Sequence[WindowFile], noisy: "WindowFiles | None" = None) -> None:
        """`noisy`: the same with noise added."""
        self._files, self.tokens = files, files[0].tokens
        """J, the same in all."""
        self._ends = np.cumsum([file.count for file in self._files])
        self.noisy = noisy
        self.came = np.concatenate([file.came for file in self._files])
        """[B] of each window the mean of its squared displacements, in its trial's."""
        self.is_whole = np.concatenate([file.is_whole for file in self._files])
        self.digest = hashlib.sha256(b"".join(file.digest for file in self._files)).digest()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, index: np.ndarray) -> TrainingWindows:
        """The windows of these numbers, in this order."""
        record = _record(self.tokens)
        records, whole = (np.empty((len(index), each), np.float32) for each in (record.size, record.own))
        which = np.searchsorted(self._ends, index, side="right")
        for file in np.unique(which):
            mine = which == file
            first = self._ends[file] - self._files[file].count
            records[mine], whole[mine] = self._files[file].rows(index[mine] - first)
        own, toward, moved, weight, numbers = np.split(records, record.ends[:-1], axis=1)
        each = dict(zip(_NUMBERS, numbers.T, strict=True))
        return TrainingWindows(
            own=own[:, record.place], whole=whole[:, record.place],
            toward=toward.reshape(-1, self.tokens, len(HORIZONS)),
            moved=moved, weight=weight, is_whole=self.is_whole[index], often=each["often"],
            unit=each["unit"].astype(np.float64), share=each["share"].astype(np.float64),
            **{name: each[name].astype(np.int64) for name in ("size", "epoch_index", "origin")},
        )  # fmt: skip

    def blocks(self) -> Iterator[TrainingWindows]:
        """All windows, some at a time."""
        for start in range(0, len(self), BLOCK):
            yield self.read(np.arange(start, min(start + BLOCK, len(self))))
