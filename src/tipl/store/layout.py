"""What reading and writing share: the arrays of a trial, its commit record, and where everything lies.

In: the path of a store, a trial's seed.  Out: places, records, the format's version checked.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c

from tipl.errors import TiplError
from tipl.store.files import DAMAGE, replace_file

FORMAT_VERSION = 2

SNAPSHOT_ARRAYS = (
    "weights", "env_step", "iteration", "epoch", "learning_rate", "obs_mean", "obs_var", "obs_count",
)  # fmt: skip
EPISODE_ARRAYS = ("episode_step", "episode_return", "episode_length")


def array_layout(num_weights: int, obs_dim: int) -> dict[str, tuple[str, tuple[int, ...]]]:
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
class Record:
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
    compact: dict[str, Any] | None = None
    """Of a trial of a compact store: how its weights were rounded and what that costs; see compact.py."""

    def attributes(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if (name, value) != ("compact", None)}

    def rows(self, array: str) -> int:
        return self.committed_episodes if array in EPISODE_ARRAYS else self.committed


# Places.


def trial_path(store: Path, seed: int) -> Path:
    return store / "trials" / str(seed)


def trial_seeds(store: Path) -> list[int]:
    trials = store / "trials"
    return sorted(int(entry.name) for entry in trials.iterdir() if entry.name.isdecimal()) if trials.exists() else []


def checkpoint_path(trial: Path, record: Record) -> Path:
    return trial / "resume" / f"{record.commits}.safetensors"


# Records.


def write_group(path: Path, attributes: Mapping[str, Any]) -> None:
    metadata = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    replace_file(path / "zarr.json", json.dumps(metadata, indent=2, allow_nan=False).encode())


def _read_attributes(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((path / "zarr.json").read_bytes())["attributes"])
    except (FileNotFoundError, NotADirectoryError):
        raise
    except DAMAGE as error:
        raise TiplError(
            f"{path / 'zarr.json'} is damaged ({error}); bring it back from a copy or remove {path}."
        ) from error


def read_record(trial: Path) -> Record | None:
    """The commit record of a trial, None where its writer did not come as far as making one."""
    try:
        attributes = _read_attributes(trial)
        names = {field.name for field in dataclasses.fields(Record)} - ({"compact"} - attributes.keys())
        return Record(**{name: attributes[name] for name in names})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except KeyError as error:
        raise TiplError(f"{trial / 'zarr.json'} lacks {error}; bring it back from a copy or remove {trial}.") from error


def check_root(path: Path) -> dict[str, Any]:
    """The attributes of the root of a store.

    Raises:
        TiplError: there is no store of this version.
    """
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
    return attributes


def read_checkpoint(trial: Path, record: Record) -> bytes:
    data = checkpoint_path(trial, record).read_bytes()
    if google_crc32c.value(data) != record.checkpoint_crc32c:
        raise ValueError(f"the checksum of {checkpoint_path(trial, record).name} does not match")
    return data
