"""A collection: many stores in one folder, and a manifest that says what is in them without opening one.

In: a folder of stores.  Out: COLLECTION/manifest.jsonl, sealed; a `Collection` that reads it.

The manifest's first line says what it is, has each settings of trials once, and holds the seal of the whole file. Each
line after it is a trial: see docs/format.md. Its `checksum` is the seal of the trial's record, from which every byte of
the trial follows.
"""

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Self

from tipl.catalog.card import algorithm_of, read_card
from tipl.checks import AnyPath, Place, checked, checked_arguments
from tipl.errors import TiplError
from tipl.files import SEAL, Absent, Damaged, check_seal, parse_json, read_file, require, sealed, to_json, write_file
from tipl.progress import steps_progress
from tipl.remote.mirror import located, mirror_of, original, refresh, told_by_address
from tipl.shapes import Each, Maybe, OneOf, Whole
from tipl.store import Store, data_info

MANIFEST = "manifest.jsonl"
DEPTH = 4
"""How many folders deep stores are looked for."""
_MOST_BYTES = 1 << 30
_ADVICE = "write it anew with `tipl data index`"
_HEAD = {"format": OneOf("tipl collection"), "version": OneOf(1), "id": str, "trials": Whole(), "seal": str,
         "configs": Each(dict)}  # fmt: skip
_ROW = {
    "store": str, "name": str, "id": str, "environment": str, "algorithm": (None, str), "config": str,
    "seed": Whole(), "part": str, "weights": Whole(), "snapshots": Whole(), "episodes": Whole(), "complete": bool,
    "bytes": Whole(), "returns": (None, {"first": float, "last": float}), "address": str, "checksum": str,
    "compact_error": Maybe(float),
}  # fmt: skip
_RECENT = 100  # episodes of which returns are means
_HIDDEN = "."


class Collection:
    """Many stores in one folder, as its manifest has them; no store is opened before it is asked for.

    Attributes:
        path: the folder.
        id: random, made with the manifest and kept when it is written anew.
        rows: a mapping for each trial, in the order of stores and seeds: see docs/format.md.
    """

    def __init__(self, path: Path, id: str, rows: list[dict[str, Any]]) -> None:
        self.path, self.id, self.rows = path, id, rows

    @classmethod
    def open(cls, path: Place) -> Self:
        """Read the manifest of a collection, of a folder or an address.

        Raises:
            TiplError: there is none (`tipl data index` writes one), or it is damaged.
        """
        path = located(checked("The collection", path, Place))
        with told_by_address(path):
            if not has_manifest(path):
                raise TiplError(
                    f"{path} has no {MANIFEST}, so it is no collection; `tipl data index` makes one of a folder of "
                    "stores."
                )
            return cls(path, *cls._read(path / MANIFEST))

    @classmethod
    def _read(cls, file: Path) -> tuple[str, list[dict[str, Any]]]:
        """The id and the rows of a manifest."""
        content = read_file(file, _MOST_BYTES, _ADVICE)
        check_seal(file, content, _ADVICE)
        lines = parse_json(b"[" + b",".join(content.splitlines()) + b"]", str(file), _ADVICE)
        head = require(lines[0] if lines else None, _HEAD, str(file), _ADVICE)
        rows = require(lines[1:], [_ROW], str(file), _ADVICE)
        for row in rows:
            place = PurePosixPath(row["store"])
            if place.is_absolute() or ".." in place.parts or row["address"] != f"{row['store']}/trials/{row['seed']}":
                raise Damaged(f"{file} has a store at {row['store']}, outside of its folder; {_ADVICE}.")
        unknown = {row["config"] for row in rows} - set(head["configs"])
        if unknown or head["trials"] != len(rows) or len({row["address"] for row in rows}) < len(rows):
            raise Damaged(f"{file} contradicts itself; {_ADVICE}.")
        return head["id"], [row | {"config": head["configs"][row["config"]]} for row in rows]

    @property
    def stores(self) -> list[str]:
        """The folders of the stores, from the collection's, sorted."""
        return sorted({row["store"] for row in self.rows})

    def store(self, name: str) -> Store:
        """Open one of `stores`, and hold it against the manifest.

        Raises:
            TiplError: there is no such store, or its trials are others than when the manifest was written.
        """
        expected = {row["seed"]: row["checksum"] for row in self.rows if row["store"] == checked("`name`", name, str)}
        if not expected:
            place = original(self.path)
            raise TiplError(f"{place} has no store {name}; `tipl data list {place}` names those that it has.")
        store = Store.open(self.path / name)
        if {seed: store.records[seed].seal for seed in store.seeds} != expected:
            raise TiplError(f"{original(store.path)} is not as {original(self.path / MANIFEST)} says; {_ADVICE}.")
        return store

    def summaries(self) -> list[dict[str, Any]]:
        """Return a row for each store, as `tipl.data_list` does."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            found.setdefault(row["store"], []).append(row)
        return [summary(original(self.path / name), rows) for name, rows in found.items()]


def has_manifest(path: Path) -> bool:
    """Whether a folder is a collection; of one that is elsewhere, whether it is one now."""
    if mirror_of(path):
        try:
            refresh(path / MANIFEST, _MOST_BYTES)
        except Absent:
            return False
    return (path / MANIFEST).exists()


def summary(address: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A store's row of the rows of its trials."""
    last = [row["returns"]["last"] for row in rows if row["returns"]]
    return {
        **{key: rows[0][key] for key in ("name", "environment", "algorithm")},
        "trials": len(rows),
        "snapshots": sum(row["snapshots"] for row in rows),
        "weights": rows[0]["weights"],
        "bytes": None if any(row["bytes"] is None for row in rows) else sum(row["bytes"] for row in rows),
        "return": sum(last) / len(last) if last else None,
        "address": address,
    }


@checked_arguments
def data_index(folder: AnyPath) -> Path:
    """Write the manifest of all stores in a folder, so that they are one collection.

    Args:
        folder: what the stores lie in, up to four folders deep.

    Returns:
        FOLDER/manifest.jsonl.

    Raises:
        TiplError: there is no store in it, it is a store itself, or a store cannot be read.
    """
    path = Path(folder)
    if is_store(path):
        raise TiplError(f"{path} is a store; give the folder that it lies in.")
    names = store_names(path)
    if not names:
        raise TiplError(f"There is no store in {path}; give a folder that stores lie in.")
    try:
        id = Collection.open(path).id
    except TiplError:
        id = secrets.token_hex(16)
    rows = []
    with steps_progress("index", len(names)) as advance:
        for name in names:
            rows += trial_rows(Store.open(path / name), name)
            advance(1, name)
    write_file(path / MANIFEST, manifest(id, rows))
    return path / MANIFEST


def manifest(id: str, rows: Sequence[dict[str, Any]]) -> bytes:
    """Return the content of a manifest of these rows, whose `config` is a mapping."""
    configs = {to_json(row["config"], MANIFEST, indent=None): row["config"] for row in rows}
    names = {text: f"{number}" for number, text in enumerate(configs)}
    head = {"format": "tipl collection", "version": 1, "id": id, "trials": len(rows), "seal": SEAL,
            "configs": {names[text]: config for text, config in configs.items()}}  # fmt: skip
    lines = [head, *({**row, "config": names[to_json(row["config"], MANIFEST, indent=None)]} for row in rows)]
    return sealed("".join(to_json(line, MANIFEST, indent=None) + "\n" for line in lines).encode())


def trial_rows(store: Store, name: str) -> list[dict[str, Any]]:
    """The manifest's rows of a store's trials."""
    called = read_card(store.path).get("name") or store.name
    return [
        {
            "store": name,
            "name": called,
            "id": store.id,
            "environment": str(trial.env_id),
            "algorithm": algorithm_of(trial.config),
            "config": trial.config,
            "seed": seed,
            "part": store.root.parts[seed],
            "weights": trial.spec.size,
            "snapshots": trial.committed,
            "episodes": trial.committed_episodes,
            "complete": store.is_complete(seed),
            "bytes": each["disk_bytes"],
            "returns": _returns(trial),
            "address": f"{name}/trials/{seed}",
            "checksum": store.records[seed].seal,
            **({} if store.compact_error is None else {"compact_error": store.compact_error}),
        }
        for each in data_info(store.path)["trials"]
        for seed, trial in [(each["seed"], store.trial(each["seed"]))]
    ]


def _returns(trial: Any) -> Mapping[str, float] | None:
    returns = trial.episodes.episode_return
    return {
        "first": float(returns[:_RECENT].mean()), "last": float(returns[-_RECENT:].mean())
    } if len(returns) else None  # fmt: skip


def store_names(folder: Path, depth: int = DEPTH) -> list[str]:
    """The stores below a folder, from it, sorted. Links are not followed, nor folders whose names begin with a dot.

    Raises:
        TiplError: there is no such folder.
    """
    if not folder.is_dir():
        raise TiplError(f"There is no folder {folder}; give a store, or a folder that stores lie in.")
    return sorted(_below(folder, depth))


def _below(folder: Path, depth: int) -> Iterator[str]:
    if not os.access(folder, os.R_OK | os.X_OK):
        return
    with os.scandir(folder) as entries:
        inner = [each for each in entries if each.is_dir(follow_symlinks=False) and not each.name.startswith(_HIDDEN)]
    for entry in inner:
        if is_store(Path(entry.path)):
            yield entry.name
        elif depth > 1:
            yield from (f"{entry.name}/{name}" for name in _below(Path(entry.path), depth - 1))


def is_store(folder: Path) -> bool:
    """Whether a folder looks like a store; opening it says whether it is one."""
    return (folder / "zarr.json").is_file() and (folder / "trials").is_dir()
