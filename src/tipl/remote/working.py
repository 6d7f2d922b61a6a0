"""A store in an object store that is being written: a working copy here, whose commits are put there.

In: an address s3://…; a trial's folder in the copy.  Out: the same files, as objects of the same names.

    TIPL_CACHE/collecting/<digest of the address>/address.json     which address it is (sealed)
    TIPL_CACHE/collecting/<digest of the address>/<NAME>/…         the store, as far as its writers here need it

What counts is there. A writer brings what it goes on from, and writes as in any folder; a commit is whole once its
record is put, which is last. Whoever takes a trial up puts its record anew, under a name of its own: from then on every
put of the record by another writer fails. Of all else, what another may still put is never less than what is committed.
"""

import contextlib
import functools
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tipl.checks import is_address
from tipl.errors import TiplError
from tipl.files import read_json, replace_file, told, write_file, write_json
from tipl.remote.mirror import cache
from tipl.remote.objects import Objects, Overtaken

_AT_ONCE = 8
_TRIES = 4
_ADDRESS = re.compile(r"s3://[^/\s?#]+(?:/[^/\s?#]+)+/?")
_CHUNK = re.compile(r"(\w+)/c/([0-9]+)(?:/0)*")
_NOT_SENT = re.compile(r"zarr\.json|resume/lock|.*\.partial")


def working_copy(place: Any) -> Path:
    """Return the folder of a store that is written: of an address its working copy, of a path the path itself.

    Raises:
        TiplError: nothing can be written to such an address, or the cache cannot be written.
    """
    if not is_address(place):
        return Path(place)
    if not _ADDRESS.fullmatch(place) or ".." in place:
        raise TiplError(f"{place[:60]} is no place to collect to; give a path, or s3://BUCKET/NAME.")
    address = place.rstrip("/")
    above = cache() / "collecting" / hashlib.sha256(address.encode()).hexdigest()[:16]
    if not (above / "address.json").exists():
        write_json(above / "address.json", {"address": address}, seal=True)
    folder = above / address.rpartition("/")[2]
    with told(folder):
        folder.mkdir(exist_ok=True)
    return folder


def address_of(path: Path) -> str | None:
    """Return the address that a path in a working copy stands for, None of any other path."""
    path, above = Path(os.path.abspath(path)), cache() / "collecting"
    if not path.is_relative_to(above) or len(path.relative_to(above).parts) < 2:
        return None
    digest, _, *below = path.relative_to(above).parts
    return "/".join((_address(above / digest), *below))


@functools.lru_cache(maxsize=256)
def _address(above: Path) -> str:
    advice = f"remove {above}"
    return read_json(above / "address.json", {"seal": str, "address": str}, sealed=True, advice=advice)["address"]


def replaced_there(file: Path, change: Callable[[], bool], always: Path, content: bytes) -> None:
    """Change a small file that many writers change, there as here: again, where another was quicker.

    Args:
        file: in the working copy; what is there is brought first. In any other folder `change` is all that is done.
        change: writes the file anew, or returns False where nothing is to be changed.
        always: a file of the copy that never changes, and its `content`, by which it is tried whether the server
            heeds conditions.
    """
    address = address_of(file.parent)
    if address is None:
        change()
        return
    objects = Objects(address)
    _try_conditions(address, always.relative_to(file.parent).as_posix(), content)
    while True:
        _bring(objects, file.name, file)
        if not change():
            return
        with contextlib.suppress(Overtaken):
            objects.put(file.name, file.read_bytes())
            return


@functools.cache
def _try_conditions(address: str, name: str, content: bytes) -> None:
    Objects(address).require_conditions(name, content)


def bring_root(file: Path) -> None:
    """Bring a file of a working copy as it is there now; what is in none stays."""
    address = address_of(file.parent)
    if address is not None:
        _bring(Objects(address), file.name, file)


def is_there(place: Path | str) -> bool:
    """Return whether something is at a path, or a store at an address."""
    if isinstance(place, Path):
        return place.exists()
    root = working_copy(place) / "zarr.json"
    bring_root(root)
    return root.exists()


def _bring(objects: Objects, name: str, file: Path) -> None:
    content = objects.get(name)
    if content is None:
        file.unlink(missing_ok=True)
    elif not file.exists() or file.read_bytes() != content:
        write_file(file, content)


class TrialThere:
    """A trial in an object store, as one writer knows it, and its folder in the working copy."""

    def __init__(self, trial: Path, address: str) -> None:
        self._trial, self._objects = trial, Objects(address)
        self._sent: dict[str, tuple[int, int]] = {}
        self.lost = False
        """Whether another writer goes on with the trial."""
        self.writer = secrets.token_hex(8)
        """What this writer is called in the record."""

    @classmethod
    def of(cls, trial: Path) -> "TrialThere | None":
        """Return the trial that a folder stands for, None of a folder that stands for none."""
        address = address_of(trial)
        return None if address is None else cls(trial, address)

    @property
    def age(self) -> float:
        """Seconds since the record was put that was brought."""
        return self._objects.age

    def bring_record(self) -> None:
        """Empty the folder, of which the caller has the lock, but for the record as it is there."""
        self.empty()
        for each in (self._trial / "resume").iterdir():
            if each.name != "lock":
                each.unlink()
        _bring(self._objects, "zarr.json", self._trial / "zarr.json")

    def empty(self) -> None:
        """Remove the arrays here."""
        for each in self._trial.iterdir():
            if each.is_dir() and each.name != "resume":
                shutil.rmtree(each)

    def bring(self, names: Iterable[str]) -> None:
        """Bring files; one that is not there stays missing."""

        def one(name: str) -> None:
            file = self._trial / name
            file.parent.mkdir(parents=True, exist_ok=True)
            content = self._objects.get(name)
            if content is not None:
                replace_file(file, content, sync=False)
                self._sent[name] = _state(file)

        _all(one, names)

    def put_record(self, content: bytes | None = None) -> None:
        """Put a record, by default that of the folder, in place of the one that this writer saw.

        Raises:
            Overtaken: there is another by now, whose writer goes on with the trial.
        """
        assert not self.lost, "what was seen last is the other's"
        try:
            self._objects.put("zarr.json", content or (self._trial / "zarr.json").read_bytes())
        except Overtaken as error:
            self.lost = True
            raise self._overtaken() from error

    def send(self) -> None:
        """Put what has changed in the folder, and then its record. Chunks that will not change are removed here.

        Raises:
            Overtaken: another writer goes on with the trial.
        """
        changed = {
            name: state
            for name, state in self._files()
            if self._sent.get(name) != state and not _NOT_SENT.fullmatch(name)
        }
        _all(self._put, changed)
        self._sent |= changed
        self.put_record()
        last: dict[str, int] = {}
        chunks = [(found[1], int(found[2]), name) for name in changed if (found := _CHUNK.fullmatch(name))]
        for array, number, _ in chunks:
            last[array] = max(number, last.get(array, 0))
        for array, number, name in chunks:
            if number < last[array]:
                (self._trial / name).unlink()

    def forget(self, names: Iterable[str]) -> None:
        """Remove objects that the record does not speak of any more; what a writer that was stopped has left, stays."""
        self._objects.delete(name for name in [*names] if self._sent.pop(name, None))

    def _put(self, name: str) -> None:
        content = (self._trial / name).read_bytes()
        for _ in range(_TRIES):
            try:
                return self._objects.put(name, content)
            except Overtaken:  # by one who has lost the trial since, or who has it now, which the record tells
                self._require_mine()
        self._objects.put(name, content)

    def _require_mine(self) -> None:
        record = Objects(self._objects.address).get("zarr.json")
        if record is None or self.writer.encode() not in record:
            self.lost = True
            raise self._overtaken()

    def _overtaken(self) -> Overtaken:
        return Overtaken(f"{self._objects.address} is being written by another process by now, which goes on with it.")

    def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for where, _, names in os.walk(self._trial):
            for name in names:
                file = Path(where, name)
                yield file.relative_to(self._trial).as_posix(), _state(file)


def _state(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size


def _all(one: Callable[[str], None], names: Iterable[str]) -> None:
    pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="tipl-objects")
    try:
        for _ in pool.map(one, names):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
