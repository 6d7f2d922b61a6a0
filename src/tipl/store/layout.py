"""What reading and writing share: the arrays of a trial, its commit record, and where everything lies.

In: the path of a store, a trial's seed.  Out: places, records, the format's version checked.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c

from tipl.errors import TiplError
from tipl.files import (
    PARTIAL,
    SEAL,
    Absent,
    Damaged,
    check_seal,
    parse_json,
    read_file,
    replace_file,
    require,
    seal_of,
    sealed,
)
from tipl.remote.mirror import bring, mirror_of, original
from tipl.shapes import Each, Maybe, Number, OneOf, Whole
from tipl.store.arrays import MADE, Layout, Sums
from tipl.store.locks import is_folder
from tipl.store.spec import ParamSpec

FORMAT_VERSION = 2
COMPACT_VERSION = 3
"""Of compact stores. Those of version 2 have filters that are not in zarr's specification; they are only read."""
CONTEXT_VERSION = 4
"""Of trials that hold context tokens; the root of their store has FORMAT_VERSION."""

SNAPSHOT_ARRAYS = (
    "weights", "env_step", "iteration", "epoch", "learning_rate", "obs_mean", "obs_var", "obs_count",
)  # fmt: skip
EPISODE_ARRAYS = ("episode_step", "episode_return", "episode_length")
TOKENS = "tokens"
"""The array of context tokens, one row an iteration, which a trial may have."""
ARRAYS = SNAPSHOT_ARRAYS + EPISODE_ARRAYS
EVERY_ARRAY = (*ARRAYS, TOKENS)

MOST_SEED = 2**63 - 1
MOST_BYTES = 16 << 20  # of a record, or of a root
_MOST_CHECKPOINT = 1 << 36
_WEIGHTS_CHUNK = 5 << 20, 512  # most bytes and most rows in a chunk of weights, or of tokens
_OTHER_CHUNK_BYTES = 64 << 10  # every commit rewrites an array's last chunk: small
_MOST_CHUNKS = 1 << 18  # of an array that is fetched in parts: of more, a reader counts the files
_COPY = "bring it back from a copy"


def array_layout(num_weights: int, obs_dim: int, num_tokens: int = 0) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every array of a trial: its type and the shape of one row. `num_tokens`: J, 0 of a trial without tokens."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {
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
    return found | ({TOKENS: ("float32", (num_tokens, num_weights))} if num_tokens else {})


def array_sizes(
    layout: Mapping[str, tuple[str, tuple[int, ...]]], num_snapshots: int | None, chunk_snapshots: int | None
) -> tuple[dict[str, int], dict[str, int]]:
    """Return by array how many rows there is room for at first, and the rows of a chunk; see `TrialWriter.create`."""
    room, chunk_rows = dict[str, int](), dict[str, int]()
    for name, (_, row) in layout.items():
        if name in ("weights", TOKENS):
            most_bytes, most_rows = _WEIGHTS_CHUNK
            given = chunk_snapshots if name == "weights" else None
            chunk = min(most_rows, _rows_in(most_bytes, 4 * math.prod(row))) if given is None else given
        else:
            chunk = _rows_in(_OTHER_CHUNK_BYTES, 8 * math.prod(row))
        room[name] = (None if name in EPISODE_ARRAYS else num_snapshots) or chunk
        chunk_rows[name] = min(chunk, 8 * math.ceil(room[name] / 8))
    return room, chunk_rows


def _rows_in(most_bytes: int, row_bytes: int) -> int:
    rows = most_bytes // max(1, row_bytes)
    return rows - rows % 8 if rows > 8 else max(1, rows)


_PARAMETERS = [{"name": str, "shape": [Whole(0, 2**40)], "offset": Whole()}]
_CONFIG = {
    "hidden_sizes": Maybe((None, [Whole(1, 2**24)])),
    "activation": Maybe((None, str)),
    "backend": Maybe(str),
    "obs_clip": Maybe((None, Number(0))),
    "ppo": Maybe(dict),
    "run": Maybe(dict),
}  # what other modules read there; anything else may be there too
CONFIGURATION = {"env_id": str, "config": _CONFIG, "param_spec": _PARAMETERS}
_CHECKSUM = Whole(0, 2**32 - 1)
_RECORD = {
    "format_version": Whole(),
    "store": str,
    "seed": Whole(0, MOST_SEED),
    **CONFIGURATION,
    "versions": Each(str),
    "obs_dim": Whole(0, 2**32),
    "chunk_rows": {name: Whole(1, 2**32) for name in ARRAYS} | {TOKENS: Maybe(Whole(1, 2**32))},
    "grid": (None, Number(2.0**-149, 2.0**127)),
    "committed": Whole(),
    "committed_episodes": Whole(),
    "complete": bool,
    "commits": Whole(),
    "checkpoint_crc32c": _CHECKSUM,
    "checksums": {name: [_CHECKSUM] for name in ARRAYS} | {TOKENS: Maybe([_CHECKSUM])},
    "compact": Maybe({"rms_error": (None, float), "max_error": (None, float)}),
    "writer": Maybe(str),
    "context": Maybe({"tokens": Whole(1, 2**16), "rows": Whole()}),
}


@dataclass(frozen=True)
class Record:
    """The attributes of a trial's group. Replacing them is what commits.

    They are the trial's manifest too: what every other file of the trial has to hold follows from them.
    """

    format_version: int
    store: str
    """The id of the store that the trial belongs to."""
    seed: int
    env_id: str
    config: dict[str, Any]
    param_spec: list[dict[str, Any]]
    versions: dict[str, str]
    obs_dim: int
    chunk_rows: dict[str, int]
    """By array, rows in a chunk."""
    grid: float | None
    """Of the weights of a compact store, all of them multiples of this power of two."""
    committed: int
    committed_episodes: int
    complete: bool
    commits: int
    """How many there were; the checkpoint is resume/<commits>.safetensors."""
    checkpoint_crc32c: int
    checksums: dict[str, list[int]]
    """By array, see arrays.Sums."""
    compact: dict[str, Any] | None = None
    """Of a trial of a compact store: how its weights were rounded and what that costs; see catalog/compact.py."""
    writer: str | None = None
    """In an object store, what the process is called that goes on with the trial; None: nobody does."""
    context: dict[str, int] | None = None
    """Of a trial with context tokens: `tokens`, how many an iteration has, and `rows`, those that are committed."""
    seal: str = ""
    """What tells this record from any other; not one of the attributes that are given."""

    def attributes(self) -> dict[str, Any]:
        left_out = {"seal", *(name for name in ("compact", "writer", "context") if getattr(self, name) is None)}
        return {name: value for name, value in vars(self).items() if name not in left_out}

    @property
    def num_tokens(self) -> int:
        """J, 0 of a trial without tokens."""
        return self.context["tokens"] if self.context else 0

    @property
    def update_epochs(self) -> int | None:
        """How many epochs an iteration of PPO has, where the trial's settings say it."""
        found = self.config.get("ppo", {}).get("update_epochs")
        return found if type(found) is int and found > 0 else None

    def rows(self, array: str) -> int:
        if array == TOKENS:
            return self.context["rows"] if self.context else 0
        return self.committed_episodes if array in EPISODE_ARRAYS else self.committed

    def sums(self, array: str) -> Sums:
        return Sums(*self.checksums[array])

    @property
    def configuration(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in CONFIGURATION}

    def layouts(self) -> dict[str, Layout]:
        spec = ParamSpec.from_json(self.param_spec)
        filters = self.grid is not None and self.format_version < COMPACT_VERSION
        return {
            name: Layout(
                name, dtype, row, self.chunk_rows[name], self.grid if name == "weights" else None, self.store,
                self.seed, filters=filters and name == "weights",
            )
            for name, (dtype, row) in array_layout(spec.size, self.obs_dim, self.num_tokens).items()
        }  # fmt: skip


# Places.


def trials_path(store: Path) -> Path:
    """Return the folder of all trials, which is no link."""
    if not is_folder(store / "trials"):
        raise Damaged(f"{store / 'trials'} is missing; {_COPY}.")
    return store / "trials"


def trial_path(store: Path, seed: int) -> Path:
    return store / "trials" / str(seed)


def is_seed(name: str) -> bool:
    """Whether this program gives a trial's folder such a name."""
    return re.fullmatch("0|[1-9][0-9]{0,18}", name) is not None and int(name) <= MOST_SEED


def trial_seeds(store: Path) -> list[int]:
    with os.scandir(trials_path(store)) as entries:
        return sorted(int(entry.name) for entry in entries if is_seed(entry.name))


def checkpoint_path(trial: Path, record: Record) -> Path:
    return trial / "resume" / f"{record.commits}.safetensors"


def keeps_nothing(trial: Path, record: Record) -> bool:
    """Whether a trial is complete and may not grow: nothing to go on from is left."""
    return record.complete and not checkpoint_path(trial, record).exists()


# Records.


def group(attributes: Mapping[str, Any]) -> bytes:
    """Return zarr's metadata of a group, sealed."""
    metadata = {"zarr_format": 3, "node_type": "group", "attributes": {"seal": SEAL, **attributes}}
    return sealed(json.dumps(metadata, indent=2, allow_nan=False).encode())


def write_group(path: Path, attributes: Mapping[str, Any]) -> str:
    """Write the metadata of a group and return their seal."""
    content = group(attributes)
    replace_file(path / "zarr.json", content)
    return seal_of(content)


def read_group(path: Path, shape: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a group, the seal among them.

    Raises:
        Absent: there is no such file.
        TiplError: it is damaged, of another version, or something else.
    """
    file = path / "zarr.json"
    content = read_file(file, MOST_BYTES)
    found = require(parse_json(content, str(file)), {"attributes": dict}, str(file))
    if "format" in shape and found["attributes"].get("format") != "tipl":
        raise TiplError(f"{path} is not a tipl store; make a store with `tipl collect`.")
    version = found["attributes"].get("format_version", FORMAT_VERSION)
    if version not in (FORMAT_VERSION, COMPACT_VERSION, CONTEXT_VERSION):
        raise TiplError(
            f"{path} has format version {version}, this program reads {FORMAT_VERSION} to {CONTEXT_VERSION}; "
            "use the version of tipl that wrote it."
        )
    check_seal(file, content)
    whole = {"zarr_format": OneOf(3), "node_type": OneOf("group"), "attributes": {"seal": str, **shape}}
    require(found, whole, str(file))
    if set(found) != set(whole):
        raise Damaged(f"{file} says more than this program writes: {', '.join(set(found) - set(whole))}; {_COPY}.")
    return found["attributes"]


def read_record(trial: Path) -> Record | None:
    """Return the commit record of a trial, None where its writer did not come as far as making one.

    Raises:
        TiplError: it is damaged, or something else is in its place.
    """
    if not is_folder(trial):
        return None
    try:
        attributes = read_group(trial, _RECORD)
    except Absent:
        return None
    names = {field.name for field in dataclasses.fields(Record)}
    if attributes.keys() - names:
        raise Damaged(f"{trial / 'zarr.json'} says more than this program writes; {_COPY}.")
    record = Record(**attributes)
    spec = ParamSpec.from_json(record.param_spec)
    named = {*ARRAYS, TOKENS} if record.context else {*ARRAYS}
    if record.context:
        versions = (CONTEXT_VERSION,)
    else:
        versions = (FORMAT_VERSION,) if record.grid is None else (FORMAT_VERSION, COMPACT_VERSION)
    wrong = [
        "param_spec" if spec.to_json() != record.param_spec or len(set(spec.names)) < len(spec.names) else "",
        "checksums" if any(len(sums) != len(Sums._fields) for sums in record.checksums.values()) else "",
        "grid" if record.grid is not None and math.frexp(record.grid)[0] != 0.5 else "",
        "format_version" if record.format_version not in versions else "",
        "context" if record.context and (record.grid is not None or not record.update_epochs) else "",
        "arrays" if any(each.keys() ^ named for each in (record.chunk_rows, record.checksums)) else "",
    ]
    if any(wrong):
        raise Damaged(f"{trial / 'zarr.json'}: its {' and '.join(filter(None, wrong))} cannot be; {_COPY}.")
    return record


def fetch_rows(array: Path, layout: Layout, rows: int, start: int, stop: int) -> None:
    """Of an array that lies elsewhere, fetch what it takes to read rows start … stop - 1 of `rows`.

    Raises:
        TiplError: it cannot be reached, has too many chunks, or a file that is larger than it can be.
    """
    if mirror_of(array) is None:
        return
    full = layout.full_chunks(rows)
    if full > _MOST_CHUNKS:
        raise TiplError(
            f"{original(array)} has {full:,} chunks, too many to fetch one by one; copy the whole store here."
        )
    bring([array / "zarr.json", *([array / "checksums"] if full else [])], 8 * full + (1 << 20))
    (array / "c").mkdir(parents=True, exist_ok=True)
    bring((layout.chunk_path(array, number) for number in layout.chunks(start, stop)), 2 * layout.chunk_bytes + 1024)


MADE_TO_RESUME = r"zarr\.json|lock|[0-9]+\.safetensors"
MADE_STORE = (
    r"zarr\.json|README\.md|trials|trials/zarr\.json|trials/\d+(?:/(?:zarr\.json|"
    rf"resume(?:/(?:{MADE_TO_RESUME}))?|(?:{'|'.join(EVERY_ARRAY)})(?:/(?:{MADE}))?))?"
)
"""Paths in a store's folder that this program makes."""


def leftovers(trial: Path, record: Record) -> Iterator[Path]:
    """What a writer that was killed has left: checkpoints that no record speaks of, and files half written."""
    made = re.compile(rf"(?:resume/)?(?:{MADE_TO_RESUME})|(?:{'|'.join(EVERY_ARRAY)})/(?:{MADE})", re.ASCII)
    for where, _, files in os.walk(trial):
        for name in files:
            path = Path(where, name)
            half = name.endswith(PARTIAL) and made.fullmatch(path.relative_to(trial).as_posix().removesuffix(PARTIAL))
            checkpoint = Path(where) == trial / "resume" and re.fullmatch(r"[0-9]+\.safetensors", name)
            if half or (checkpoint and path != checkpoint_path(trial, record)):
                yield path


def to_resume(record: Record) -> Iterator[str]:
    """The files of a trial that a writer goes on from, by their names in its folder: no full chunks."""
    yield from ("resume/zarr.json", f"resume/{record.commits}.safetensors")
    for name, layout in record.layouts().items():
        rows = record.rows(name)
        full = layout.full_chunks(rows)
        yield f"{name}/zarr.json"
        if full:
            yield f"{name}/checksums"
        for chunk in layout.chunks(full * layout.chunk_rows, rows):
            yield layout.chunk_path(Path(name), chunk).as_posix()


def checksum_of(content: bytes) -> int:
    """Return the CRC32C of a checkpoint."""
    return google_crc32c.value(content)


def read_checkpoint(trial: Path, record: Record) -> bytes:
    """Return the checkpoint that was committed with a record.

    Raises:
        TiplError: it is missing or damaged.
    """
    path = checkpoint_path(trial, record)
    bring([path])
    if not is_folder(trial / "resume"):
        raise Absent(f"There is no {path}; {_COPY}.")
    data = read_file(path, _MOST_CHECKPOINT)
    if checksum_of(data) != record.checkpoint_crc32c:
        raise Damaged(f"The checksum of {path} does not match; {_COPY}.")
    return data
