"""One array of a trial: how its rows are cut into chunks, packed, appended, checked and read back.

In: rows.  Out: a zarr array whose chunks are compressed, carry a checksum and are replaced whole.

    ARRAY/zarr.json       the metadata that zarr reads: all of it is known from the trial's record, but how many rows
                          there is room for
    ARRAY/c/<chunk>[/0…]  chunks of `chunk_rows` rows, all columns
    ARRAY/checksums       of every full chunk that was committed 4 bytes, its checksum; only ever appended to

The trial's record holds a checksum of `checksums`, and one of the rows of the last chunk that is not full (class Sums).
So the record says of every chunk what is in it, and stays small. What is in a chunk is unpacked here, by the codecs of
the format alone and never by those that a file names, after its size has been checked.
"""

import json
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from numcodecs import Blosc, blosc  # pyright: ignore[reportAttributeAccessIssue]

from tipl.files import SEAL, Absent, Damaged, file_size, read_file, read_json, replace_file, sealed
from tipl.store.locks import is_folder, make_folder

# After a transpose, so that a weight's values follow each other in time: most of their high bits are the same, and
# bit planes of equal bits are what zstd shortens. Best of benchmarks/codecs.py among what zarr reads by itself.
# Blosc leaves a block as it is unless its number of values is a multiple of 8: chunks have multiples of 8 rows.
CODEC = Blosc("zstd", clevel=1, shuffle=Blosc.BITSHUFFLE, blocksize=1 << 20)

# For float32 multiples of a grid (a compact store), after a transpose: 4-byte integers, their differences in time (the
# first of a chunk from 0), and these moved to the middle of every byte's range. A difference is then told by its lowest
# byte or two, which zstd codes by their frequencies, and no other byte changes with its sign: benchmarks/compact.py.
GRID_CODEC = Blosc("zstd", clevel=1, shuffle=Blosc.SHUFFLE, blocksize=1 << 20)
_MIDDLE = 0x808080
GRID_RANGE = 1 << 28  # most grid steps from 0 to a weight: differences and the middle stay within 4 bytes

MADE = r"zarr\.json|checksums|c|c/\d+(?:/0){0,2}"  # paths in an array's folder
_HEADER = struct.Struct("<BBBBIII")  # of blosc: versions, flags, typesize, bytes unpacked, of a block, packed
_ZSTD = 4 << 5  # blosc's flags, of which the highest three bits name the codec
_LARGE, _MOST_RATIO = 64 << 20, 255  # bytes that a chunk may unpack to beyond so many times its own


class Sums(NamedTuple):
    """What a trial's record says of an array's committed rows."""

    full: int
    """CRC32C of the file `checksums` as far as it tells of chunks that are full."""
    rest: int
    """CRC32C of the rows after these, as they are in memory; 0 without any."""


NO_SUMS = Sums(0, 0)


@dataclass(frozen=True)
class Layout:
    """All of an array but its rows."""

    name: str
    dtype: str
    row: tuple[int, ...]
    """The shape of one row."""
    chunk_rows: int
    grid: float | None
    """A power of two of which all values are multiples, float32; None where they may be any."""
    store: str
    seed: int
    """The id of the store and the trial that it belongs to."""
    filters: bool = False
    """Whether a grid is packed as in compact stores of format version 2: floats, by filters of numcodecs."""

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        return self.chunk_rows, *(max(1, size) for size in self.row)

    @property
    def chunk_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * math.prod((self.chunk_rows, *self.row))

    def chunks(self, start: int, stop: int) -> range:
        """Return the chunks that hold rows start … stop - 1."""
        if start == stop or 0 in self.row:
            return range(0)
        return range(start // self.chunk_rows, (stop - 1) // self.chunk_rows + 1)

    def full_chunks(self, rows: int) -> int:
        return 0 if 0 in self.row else rows // self.chunk_rows

    def chunk_path(self, array: Path, chunk: int) -> Path:
        """Return where zarr's default key encoding has a chunk that spans all columns."""
        return array.joinpath("c", str(chunk), *["0"] * len(self.row))

    def folders(self, array: Path, chunk: int) -> list[Path]:
        """Return the folders that a chunk lies in, the outermost first."""
        return [array.joinpath("c", *[str(chunk), "0"][:depth]) for depth in range(len(self.row) + 1)]

    def metadata(self, rows: int) -> dict[str, Any]:
        """Return zarr's metadata of the array with room for `rows` rows."""
        codec, integers = CODEC if self.grid is None else GRID_CODEC, self.grid is not None and not self.filters
        told = {"grid": self.grid, "offset": _MIDDLE} if integers else {}
        backwards = [*range(len(self.row), -1, -1)]
        packed = {
            "typesize": np.dtype(self.dtype).itemsize, "cname": codec.cname, "clevel": codec.clevel,
            "shuffle": "bitshuffle" if self.grid is None else "shuffle", "blocksize": codec.blocksize,
        }  # fmt: skip
        return {
            "zarr_format": 3,
            "node_type": "array",
            "attributes": {"seal": SEAL, "store": self.store, "seed": self.seed, "array": self.name, **told},
            "shape": [rows, *self.row],
            "data_type": "int32" if integers else self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [*self.chunk_shape]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": "NaN" if self.dtype.startswith("float") and not integers else -1,
            "codecs": [
                *([{"name": "transpose", "configuration": {"order": backwards}}] if self.row else []),
                *(_grid_filters(self.grid) if self.filters and self.grid else []),
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "blosc", "configuration": packed},
                {"name": "crc32c"},
            ],
            "storage_transformers": [],
        }


def create_array(path: Path, layout: Layout, rows: int) -> None:
    """Make an array without rows, with room for some."""
    path.mkdir()
    write_metadata(path, layout, rows)


def write_metadata(path: Path, layout: Layout, rows: int) -> None:
    replace_file(path / "zarr.json", sealed(json.dumps(layout.metadata(rows), indent=2).encode()))


def read_metadata(path: Path, layout: Layout) -> int:
    """Return how many rows an array has room for.

    Raises:
        TiplError: its metadata are damaged, or not those of this layout.
    """
    if not is_folder(path):
        raise Damaged("its folder is missing")
    found = read_json(path / "zarr.json", {"shape": list, "attributes": {"seal": str}}, sealed=True)
    rows = found["shape"][0] if found["shape"] else None
    found["attributes"]["seal"] = SEAL
    if not isinstance(rows, int) or rows < 0 or found != layout.metadata(rows):
        raise Damaged("its zarr.json is not what the trial's record says")
    return rows


# Packing.


def pack(rows: np.ndarray, grid: float | None) -> bytes:
    """Return a chunk as its codecs make it, without the checksum at its end."""
    return CODEC.encode(np.ascontiguousarray(rows.T)) if grid is None else on_grid(rows, grid)


def on_grid(rows: np.ndarray, grid: float) -> bytes:
    """Rows of float32 multiples of a grid as a compact store has them: integers, differences in time, blosc."""
    steps = np.ascontiguousarray(rows.T) * np.float32(1 / grid)
    whole = np.rint(steps).astype("<i4")
    assert (whole == steps).all() and np.abs(whole).max(initial=0) <= GRID_RANGE, f"not on the grid {grid}"
    return GRID_CODEC.encode(np.diff(whole, prepend=np.int32(0)) + np.int32(_MIDDLE))


def unpack(content: bytes, layout: Layout) -> np.ndarray:
    """Return the rows of a chunk, [chunk_rows, …], from what the file holds before its checksum.

    Raises:
        ValueError: it would not unpack to a chunk of this layout.
    """
    size = layout.chunk_bytes
    if len(content) < _HEADER.size:
        raise ValueError("it is cut short")
    _, _, flags, typesize, unpacked, _, packed = _HEADER.unpack_from(content)
    if (unpacked, packed, typesize) != (size, len(content), np.dtype(layout.dtype).itemsize) or flags & 0xE0 != _ZSTD:
        raise ValueError(f"it does not unpack to {size:,} bytes")
    if size > _LARGE and size > _MOST_RATIO * len(content):
        raise ValueError(f"its {len(content):,} bytes would become {size:,}")
    try:
        raw = blosc.decompress(content)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    columns_rows = *reversed(layout.row), layout.chunk_rows
    if layout.grid is None:
        return np.frombuffer(raw, np.dtype(layout.dtype).newbyteorder("<")).reshape(columns_rows).T
    steps = np.frombuffer(raw, "<i4") - np.int32(_MIDDLE)  # with filters from weight to weight too
    whole = np.cumsum(steps if layout.filters else steps.reshape(columns_rows), axis=-1, dtype=np.int32)
    return (whole * layout.grid).astype(np.float32).reshape(columns_rows).T


def _grid_filters(grid: float) -> list[dict[str, Any]]:
    integers = {"scale": 1 / grid, "offset": 0, "dtype": "<f4", "astype": "<i4"}
    middle = {"scale": 1, "offset": -_MIDDLE, "dtype": "<i4", "astype": "<i4"}
    return [
        {"name": "numcodecs.fixedscaleoffset", "configuration": integers},
        {"name": "numcodecs.delta", "configuration": {"dtype": "<i4"}},
        {"name": "numcodecs.fixedscaleoffset", "configuration": middle},
    ]


# Reading.


class Chunk(NamedTuple):
    """One chunk, read."""

    rows: np.ndarray
    """The committed ones."""
    size: int
    """Bytes of its file."""


class ArrayReader:
    """The committed rows of an array, each chunk checked as it is read.

    Everything raises TiplError that says what is wrong with the array, for its caller to say which one it is.
    """

    def __init__(self, path: Path, layout: Layout, rows: int, sums: Sums) -> None:
        self._path, self._layout, self._rows, self._sums = path, layout, rows, sums
        self.room = read_metadata(path, layout)
        if self.room < rows:
            raise Damaged(f"there is room for {self.room} rows, but {rows} are committed")
        if layout.chunks(0, rows) and not is_folder(path / "c"):
            raise Damaged("its chunks are missing")
        self._full = layout.full_chunks(rows)
        self._checksums = self._read_checksums()

    def read(self, start: int, stop: int) -> np.ndarray:
        try:
            out = np.empty((stop - start, *self._layout.row), self._layout.dtype)
        except (MemoryError, ValueError) as error:
            raise Damaged(f"it cannot have {stop - start:,} rows ({error})") from error
        for number in self._layout.chunks(start, stop):
            first, rows = number * self._layout.chunk_rows, self.chunk(number).rows
            low, high = max(start, first), min(stop, first + len(rows))
            out[low - start : high - start] = rows[low - first : high - first]
        return out

    def chunk(self, number: int) -> Chunk:
        """Return the committed rows of a chunk."""
        layout = self._layout
        path = layout.chunk_path(self._path, number)
        try:
            if not all(map(is_folder, layout.folders(self._path, number))):
                raise Absent("it is missing")
            content = read_file(path, layout.chunk_bytes + layout.chunk_bytes // 8 + 1024)
        except Absent as error:
            raise Damaged(f"chunk {number} is missing") from error
        payload = content[:-4]
        checksum = google_crc32c.value(payload)
        if len(content) < 4 or checksum != int.from_bytes(content[-4:], "little"):
            raise Damaged(f"the checksum of chunk {number} does not match")
        if number < self._full and checksum != self._checksums[number]:
            raise Damaged(f"chunk {number} is another than was written there, by the checksum in the record")
        try:
            rows = unpack(payload, layout)[: self._rows - number * layout.chunk_rows]
        except ValueError as error:
            raise Damaged(f"chunk {number} is no chunk of this array: {error}") from error
        if number == self._full and checksum_of(rows) != self._sums.rest:
            raise Damaged(f"chunk {number} is another than was written there, by the checksum in the record")
        return Chunk(rows, len(content))

    def _read_checksums(self) -> np.ndarray:
        path, size = self._path / "checksums", 4 * self._full
        if not self._full:
            return np.empty(0, "<u4")
        room = file_size(path)
        if room < size or (size > 1 << 20 and _entries(self._path / "c", self._full) < self._full):
            raise Damaged("there are fewer chunks than are committed")
        content = read_file(path, 2 * room + (1 << 20))[:size]  # a writer may be appending
        if google_crc32c.value(content) != self._sums.full:
            raise Damaged("the checksum of its file `checksums` does not match")
        return np.frombuffer(content, "<u4")


def checksum_of(rows: np.ndarray) -> int:
    """Return the CRC32C of rows as they are in memory."""
    return google_crc32c.value(np.ascontiguousarray(rows).tobytes())


def _entries(folder: Path, enough: int) -> int:
    """Return how many entries a folder has, or `enough`: a file may be said to be large and be a hole."""
    with os.scandir(folder) as entries:
        return sum(1 for _, _ in zip(range(enough), entries, strict=False))


# Writing.


class ArrayWriter:
    """Appends rows to one array. A chunk is always written whole, so rows that are safe are never at risk.

    Chunks are packed here, as the array's metadata say, because zarr takes several times as long for small ones and
    leaves to the system when a new file reaches the disk.
    """

    def __init__(self, path: Path, layout: Layout, rows: int = 0, sums: Sums = NO_SUMS) -> None:
        """Take up an array after its first `rows` rows; the chunks after them are removed."""
        reader = ArrayReader(path, layout, rows, sums)
        self._path, self._layout, self._room = path, layout, reader.room
        self._fill = math.nan if layout.dtype.startswith("float") else -1
        self._buffer = np.full((layout.chunk_rows, *layout.row), self._fill, layout.dtype)
        self.rows = self._written = rows
        self._told, self._sum, self._untold = layout.full_chunks(rows), sums.full, bytearray()
        begin = rows % layout.chunk_rows
        if begin and self._buffer.size:
            self._buffer[:begin] = reader.chunk(self._told).rows
        if self._told:  # a new file, as the old one may have other names outside of the store
            replace_file(path / "checksums", read_file(path / "checksums", file_size(path / "checksums")), sync=False)
        kept = self._told + (begin > 0)
        for chunk in _chunks_there(path):
            if chunk >= kept:
                layout.chunk_path(path, chunk).unlink(missing_ok=True)

    def append(self, values: np.ndarray) -> None:
        values = np.asarray(values).astype(self._buffer.dtype, casting="same_kind", copy=False)
        assert values.shape[1:] == self._buffer.shape[1:], (self._path, values.shape, self._buffer.shape)
        if self._layout.grid is not None:
            values = values + np.float32(0)  # -0 becomes 0, as it comes back
        while len(values):
            begin = self.rows % len(self._buffer)
            part, values = np.split(values, [len(self._buffer) - begin])
            self._buffer[begin : begin + len(part)] = part
            self.rows += len(part)
            if begin + len(part) == len(self._buffer):
                self._write_chunk()

    def flush(self, exact: bool) -> Sums:
        """Write what is not written yet, and return what the trial's record has to say of it.

        If `exact`, make the array no longer than its rows.
        """
        begin = self.rows % len(self._buffer)
        if self.rows > self._written:
            # A grid has no NaN; the last row again costs nothing after differences in time.
            self._buffer[begin:] = self._fill if self._layout.grid is None else self._buffer[begin - 1]
            self._write_chunk()
        if exact and self.rows != self._room:
            self._make_room(self.rows)
        if self._untold:
            _append(self._path / "checksums", 4 * self._told, bytes(self._untold))
            self._sum = google_crc32c.extend(self._sum, bytes(self._untold))
            self._told, self._untold = self._told + len(self._untold) // 4, bytearray()
        rest = self._buffer[:begin]
        return Sums(self._sum, checksum_of(rest) if rest.size else 0)

    def _write_chunk(self) -> None:
        if self.rows > self._room:
            self._make_room(max(self.rows, 2 * self._room))
        self._written = self.rows
        if not self._buffer.size:
            return
        payload = pack(self._buffer, self._layout.grid)
        checksum = google_crc32c.value(payload).to_bytes(4, "little")
        number = (self.rows - 1) // len(self._buffer)
        path = self._layout.chunk_path(self._path, number)
        for folder in self._layout.folders(self._path, number):
            make_folder(folder)
        replace_file(path, payload, checksum, sync=not path.exists())
        if self.rows % len(self._buffer) == 0:
            self._untold += checksum

    def _make_room(self, rows: int) -> None:
        write_metadata(self._path, self._layout, rows)
        self._room = rows


def _chunks_there(path: Path) -> Iterator[int]:
    if is_folder(path / "c"):
        with os.scandir(path / "c") as entries:
            names = [entry.name for entry in entries if entry.name.isascii() and entry.name.isdecimal()]
        for name in names:
            if not (path / "c" / name).is_symlink():
                yield int(name)


def _append(path: Path, at: int, content: bytes) -> None:
    """Write the end of a file, from byte `at` on, and wait until it is on the disk."""
    if not at:
        replace_file(path, content)
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        done = 0
        while done < len(content):
            done += os.pwrite(descriptor, content[done:], at + done)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
