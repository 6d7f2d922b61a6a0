"""One array of a trial: how its rows are cut into chunks, packed and appended.

In: rows.  Out: a zarr array whose chunks are compressed, carry a checksum and are replaced whole.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
import zarr
from numcodecs import Blosc
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec, TransposeCodec

from tipl.store.files import replace_file

# After a transpose, so that a weight's values follow each other in time: most of their high bits are the same, and
# bit planes of equal bits are what zstd shortens. Best of benchmarks/codecs.py among what zarr reads by itself.
# Blosc leaves a block as it is unless its number of values is a multiple of 8: chunks have multiples of 8 rows.
CODEC = Blosc("zstd", clevel=1, shuffle=Blosc.BITSHUFFLE, blocksize=1 << 20)


# For float32 multiples of a grid (a compact store), after a transpose: 4-byte integers, their differences in time, and
# these moved to the middle of every byte's range. A difference is then told by its lowest byte or two, which zstd codes
# by their frequencies, and no other byte changes with its sign. Compared with others in benchmarks/compact.py.
GRID_CODEC = Blosc("zstd", clevel=1, shuffle=Blosc.SHUFFLE, blocksize=1 << 20)
_MIDDLE = 0x808080
GRID_RANGE = 1 << 28  # most grid steps from 0 to a weight: differences and the middle stay within 4 bytes


def create_array(path: Path, dtype: str, shape: tuple[int, ...], chunk_rows: int, grid: float | None = None) -> None:
    """An empty array, [rows] or [rows, columns]; with a `grid`, a power of two, float32 multiples of that alone."""
    columns = tuple(max(1, size) for size in shape[1:])
    codec = CODEC if grid is None else GRID_CODEC
    filters: list[Any] = [TransposeCodec(order=(1, 0))] if columns else []
    with _without_warning():
        zarr.create_array(
            path,
            shape=shape,
            chunks=(chunk_rows, *columns),
            dtype=dtype,
            filters=filters + ([] if grid is None else _grid_filters(grid)),
            compressors=[
                BloscCodec(
                    typesize=np.dtype(dtype).itemsize,
                    cname=codec.cname,
                    clevel=codec.clevel,
                    shuffle=BloscShuffle.from_int(codec.shuffle),
                    blocksize=codec.blocksize,
                ),
                Crc32cCodec(),
            ],
            fill_value=math.nan if dtype.startswith("float") else -1,
        )


def open_array(path: Path, mode: Literal["r", "r+"] = "r") -> zarr.Array:
    with _without_warning():
        return zarr.open_array(path, mode=mode)


def on_grid(rows: np.ndarray, grid: float) -> bytes:
    """Rows of float32 multiples of a grid as the filters and blosc make them, which zarr takes back by itself."""
    steps = np.ascontiguousarray(rows.T) * np.float32(1 / grid)
    whole = np.rint(steps).astype("<i4")
    assert (whole == steps).all() and np.abs(whole).max(initial=0) <= GRID_RANGE, f"not on the grid {grid}"
    return GRID_CODEC.encode(np.diff(whole.ravel(), prepend=np.int32(0)) + np.int32(_MIDDLE))


def _grid_filters(grid: float) -> list[dict[str, Any]]:
    integers = {"scale": 1 / grid, "offset": 0, "dtype": "<f4", "astype": "<i4"}
    middle = {"scale": 1, "offset": -_MIDDLE, "dtype": "<i4", "astype": "<i4"}
    return [
        {"name": "numcodecs.fixedscaleoffset", "configuration": integers},
        {"name": "numcodecs.delta", "configuration": {"dtype": "<i4"}},
        {"name": "numcodecs.fixedscaleoffset", "configuration": middle},
    ]


def _grid_of(array: zarr.Array) -> float | None:
    """The grid of an array's values, None where they may be any."""
    filters: tuple[Any, ...] = array.filters
    for codec in (codec.to_dict() for codec in filters):
        if codec["name"] == "numcodecs.fixedscaleoffset":
            return 1 / codec["configuration"]["scale"]
    return None


@contextlib.contextmanager
def _without_warning() -> Iterator[None]:
    """zarr warns of filters that are not of the specification of zarr 3; it has those of a compact store itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Numcodecs codecs are not in the Zarr version 3 specification")
        yield


def rows_in(most_bytes: int, row_bytes: int) -> int:
    rows = most_bytes // max(1, row_bytes)
    return rows - rows % 8 if rows > 8 else max(1, rows)


def chunk_range(array: zarr.Array, start: int, stop: int) -> range:
    """The chunks that hold rows start … stop - 1."""
    if start == stop or 0 in array.shape[1:]:
        return range(0)
    return range(start // array.chunks[0], (stop - 1) // array.chunks[0] + 1)


def require_chunk(array: Path, ndim: int, chunk: int) -> Path:
    path = _chunk_path(array, ndim, chunk)
    if not path.exists():
        raise FileNotFoundError(f"chunk {chunk} is missing")
    return path


def _chunk_path(array: Path, ndim: int, chunk: int) -> Path:
    """Where zarr's default key encoding has a chunk that spans all columns."""
    return array.joinpath("c", str(chunk), *["0"] * (ndim - 1))


class ArrayWriter:
    """Appends rows to one array. A chunk is always written whole, so rows that are safe are never at risk.

    Chunks are encoded here, as the array's metadata say, because zarr takes several times as long for small ones and
    leaves to the system when a new file reaches the disk.
    """

    def __init__(self, path: Path, rows: int) -> None:
        """Take up an array after its first `rows` rows; the chunks after them are removed."""
        self._path = path
        self._array = open_array(path, mode="r+")
        self._grid = _grid_of(self._array)
        self._chunk_rows = self._array.chunks[0]
        self._buffer = np.full((self._chunk_rows, *self._array.shape[1:]), self._array.fill_value, self._array.dtype)
        self.rows = self._written = rows
        full, begin = divmod(rows, self._chunk_rows)
        if begin and self._buffer.size:
            require_chunk(path, self._array.ndim, full)
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
            begin = self.rows % self._chunk_rows
            # A grid has no NaN; the last row again costs nothing after differences in time.
            self._buffer[begin:] = self._array.fill_value if self._grid is None else self._buffer[begin - 1]
            self._write_chunk()
        if exact and self.rows != self._array.shape[0]:
            self._array.resize((self.rows, *self._array.shape[1:]))

    def _write_chunk(self) -> None:
        length, *columns = self._array.shape
        if self.rows > length:
            self._array.resize((max(self.rows, 2 * length), *columns))
        if self._buffer.size:
            if self._grid is None:
                payload = CODEC.encode(np.ascontiguousarray(self._buffer.T))
            else:
                payload = on_grid(self._buffer, self._grid)
            checksum = google_crc32c.value(payload).to_bytes(4, "little")
            path = self._chunk_path((self.rows - 1) // self._chunk_rows)
            new = not path.exists()
            if new:
                path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, payload, checksum, sync=new)
        self._written = self.rows

    def _chunk_path(self, chunk: int) -> Path:
        return _chunk_path(self._path, self._array.ndim, chunk)
