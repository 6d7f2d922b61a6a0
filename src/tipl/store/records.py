"""The records of a store's trials: each held against the root; of a store that lies elsewhere, fetched first.

In: a store's path.  Out: its root and records, or what is wrong with one; the record that a writer goes on from.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tipl.errors import TiplError
from tipl.files import Absent, Damaged
from tipl.remote.mirror import drop, mirror_of, original, refresh, told_by_address
from tipl.store.layout import EVERY_ARRAY, MOST_BYTES, Record, read_record, trial_path, trial_seeds
from tipl.store.locks import Begun, Complete, is_folder
from tipl.store.root import Root, has_grown, require_same


def root_and_records(store: Path) -> tuple[Root, Mapping[int, Record]]:
    """Return a store's root, and by seed the records of its trials with a commit.

    Raises:
        TiplError: there is no store, it cannot be reached, or a record is damaged, another trial's, or lost.
    """
    fetch_root(store)
    root = Root.read(store)
    if mirror_of(store):
        return root, _RecordsElsewhere(store, root)
    records = {seed: checked_record(store, root, seed) for seed in trial_seeds(store)}
    return root, {seed: record for seed, record in records.items() if record}


class _RecordsElsewhere(Mapping[int, Record]):
    """The records of a store that lies elsewhere, each fetched when it is first asked for.

    Those of complete trials are known by their seals, which the root holds, so it does not matter when; the others are
    read now.
    """

    def __init__(self, store: Path, root: Root) -> None:
        self._store, self._root = store, root
        self._known: dict[int, Record] = {}
        for seed in root.trials:
            if root.trials[seed] is None:
                self[seed]

    def __getitem__(self, seed: int) -> Record:
        if seed not in self._known:
            if seed not in self._root.trials:
                raise KeyError(seed)
            with told_by_address(self._store):
                record = checked_record(self._store, self._root, seed)
            assert record, "the root lists it"
            self._known[seed] = record
        return self._known[seed]

    def __iter__(self) -> Iterator[int]:
        return iter(self._root.trials)

    def __len__(self) -> int:
        return len(self._root.trials)


def fetch_root(store: Path) -> None:
    """Of a store that lies elsewhere, fetch its root as it is now, and make a folder for each of its trials.

    Raises:
        TiplError: there is none, or it cannot be reached.
    """
    if mirror_of(store) is None:
        return
    try:
        refresh(store / "zarr.json", MOST_BYTES)
    except Absent:
        raise TiplError(f"{original(store)} is not a tipl store: it has no zarr.json; look at the address.") from None
    (store / "trials").mkdir(exist_ok=True)
    for seed in Root.read(store).trials:
        trial_path(store, seed).mkdir(parents=True, exist_ok=True)


def _fetch_record(store: Path, root: Root, seed: int) -> None:
    """Of a store that lies elsewhere, fetch a trial's record, unless the root says that the one here is the same. What
    else was fetched of another is of no use."""
    path = trial_path(store, seed)
    if mirror_of(store) is None:
        return
    try:
        here = read_record(path)
        if here and here.seal == root.trials.get(seed):
            return
    except TiplError:
        drop(path / "zarr.json")
    if refresh(path / "zarr.json", MOST_BYTES):
        for name in (*EVERY_ARRAY, "resume"):
            drop(path / name)


def checked_record(store: Path, root: Root, seed: int) -> Record | None:
    """Return the record of a trial of this store, None where it has no commit.

    Raises:
        TiplError: it is damaged, another trial's, or lost.
    """
    _fetch_record(store, root, seed)
    path = trial_path(store, seed)
    record, listed = read_record(path), seed in root.trials
    if record is None or not record.committed:
        if listed and is_folder(path):
            raise Damaged(f"{path} has lost its record, zarr.json; bring it back from a copy, or remove {path}.")
        return None
    if (record.store, record.seed) != (root.id, seed):
        what = f"trial {record.seed} of " + ("this store" if record.store == root.id else "another store")
        raise Damaged(f"{path} holds {what}; bring the right one back from a copy, or remove {path}.")
    if seed not in root.parts or root.configuration is None:
        raise Damaged(f"{store / 'zarr.json'} does not know of trial {seed}; bring it back from a copy.")
    if root.trials.get(seed) not in (None, record.seal):
        raise Damaged(f"{path} is not as it was completed; bring it back from a copy, or remove {path}.")
    if record.configuration != root.configuration and not has_grown(record.configuration, root.configuration):
        require_same(store, root.configuration, record.configuration)
    return record


def record_left(store: Path, seed: int) -> tuple[Record, dict[str, Any]]:
    """Return the record of a trial that is to be gone on with, and the config that it goes on with.

    Raises:
        Complete: it has come to its end and was given no more steps.
        TiplError: nothing of it is committed, or it is damaged.
    """
    trial, root = trial_path(store, seed), Root.read(store)
    record = checked_record(store, root, seed)
    if record is None:
        raise TiplError(f"{trial} has no committed snapshots to go on from; begin that trial anew.")
    shared = root.configuration or record.configuration
    if record.complete and not has_grown(record.configuration, shared):
        raise Complete(f"{trial} is complete; there is nothing to go on with.")
    return record, shared["config"]


def require_no_commits(store: Path, seed: int) -> None:
    """Raises Begun where a trial has committed snapshots."""
    record = checked_record(store, Root.read(store), seed)
    if record:
        raise Begun(
            f"{trial_path(store, seed)} holds {record.committed} snapshots already; go on with it or remove it."
        )
