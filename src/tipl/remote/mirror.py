"""A store elsewhere as a folder here: its files are fetched when they are first read, and kept.

In: an address; paths in its folder.  Out: that folder, and in it the files that were asked for.

    TIPL_CACHE/elsewhere/<digest of the address>/mirror.json     which address it is (sealed)
    TIPL_CACHE/elsewhere/<digest of the address>/<NAME>/…        the folder, as far as it was fetched

The folder is read by the same code as any other. That code knows what has to be there: the root has the seals of the
trials' records, and a record the checksums of every chunk. So a file that came is believed only as far as one that was
copied by hand. What does not pass is forgotten here (`drop`), so that the next try fetches it again.

A file appears by one rename, so any number of processes may share a cache. The state is on the disk alone: a child
process that is given the folder goes on fetching.
"""

import contextlib
import functools
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tipl.checks import is_address
from tipl.errors import TiplError
from tipl.files import Absent, read_json, told, write_json
from tipl.remote.source import Source

MOST_BYTES = 1 << 31
"""The most that one file of a store may have that is fetched, whatever its record says."""
_AT_ONCE = 8
_FACTS = {"address": str, "source": str, "pinned": bool}
_STALE = 86_400  # seconds after which a partial file's process is over


class Mirror(NamedTuple):
    """A folder here and what it stands for."""

    folder: Path
    address: str
    """As the user gave it, for messages."""
    source: str
    """Where its files are."""
    pinned: bool
    """Whether nothing there ever changes."""


def cache() -> Path:
    """Return the folder of all that was fetched: TIPL_CACHE, by default ~/.cache/tipl."""
    return _real(os.environ.get("TIPL_CACHE") or os.environ.get("XDG_CACHE_HOME", "~/.cache") + "/tipl")


@functools.lru_cache(maxsize=16)
def _real(folder: str) -> Path:
    return Path(os.path.realpath(os.path.expanduser(folder)))


def mirror(address: str, source: str, pinned: bool) -> Path:
    """Return the folder that stands for what lies at `source`; nothing is fetched yet.

    Raises:
        TiplError: it is no address that files can be fetched from, or the cache cannot be written.
    """
    Source(source)
    name = re.sub(r"[^\w.-]", "_", address.rstrip("/").rpartition("/")[2].partition("@")[0], flags=re.ASCII)
    place = cache() / "elsewhere" / hashlib.sha256(f"{address} {source}".encode()).hexdigest()[:16]
    folder = place / (name[:100] if name.strip(".") else "store")
    if not (place / "mirror.json").exists():
        write_json(place / "mirror.json", {"address": address, "source": source, "pinned": pinned}, seal=True)
    with told(folder):
        folder.mkdir(exist_ok=True)
        (place / "partial").mkdir(exist_ok=True)
        for left in (place / "partial").iterdir():
            if time.time() - left.lstat().st_mtime > _STALE:
                left.unlink(missing_ok=True)
    return folder


def mirror_of(path: Path) -> Mirror | None:
    """Return the mirror that a path is in, or None."""
    path = Path(os.path.abspath(path))
    above = cache() / "elsewhere"
    if not path.is_relative_to(above):
        return None
    parts = path.relative_to(above).parts
    return _known(above / parts[0], parts[1]) if len(parts) > 1 else None


@functools.lru_cache(maxsize=256)
def _known(place: Path, name: str) -> Mirror:
    facts = read_json(place / "mirror.json", {"seal": str, **_FACTS}, sealed=True, advice=f"remove {place}")
    return Mirror(place / name, facts["address"], facts["source"], facts["pinned"])


def original(path: Path) -> str:
    """Return what a path stands for: its address, or of any other path itself."""
    found = mirror_of(path)
    key = "" if found is None else Path(os.path.abspath(path)).relative_to(found.folder).as_posix()
    return str(path) if found is None else found.address if key == "." else f"{found.address}/{key}"


@contextlib.contextmanager
def told_by_address(path: Path) -> Iterator[None]:
    """Make what goes wrong with a mirror a line about what it stands for."""
    try:
        yield
    except TiplError as error:
        found = mirror_of(path)
        if found is None:
            raise
        raise type(error)(str(error).replace(str(found.folder), found.address)) from error


def bring(files: Iterable[Path], most: int = MOST_BYTES) -> None:
    """Fetch those of these files that are not here yet. One that is not there either stays missing.

    What is in no mirror is left as it is.

    Args:
        files: all in the same folder or store.
        most: bytes that each of them may have.

    Raises:
        TiplError: the place cannot be reached, or a file is larger.
    """
    files = list(files)
    found = mirror_of(files[0]) if files else None
    missing = [file for file in files if not os.path.lexists(file)] if found else []
    if not found or not missing:
        return
    source, most = _source(found), min(most, MOST_BYTES)
    if len(missing) == 1:
        _fetch(found, source, missing[0], most)
        return
    pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="tipl-fetch")
    try:
        for _ in pool.map(lambda file: _fetch(found, source, file, most), missing):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def refresh(file: Path, most: int = MOST_BYTES) -> bool:
    """Fetch a file as it is there now, and return whether it is another than was here; of what never changes, once.

    Raises:
        Absent: it is not there.
        TiplError: the place cannot be reached, or the file is larger.
    """
    found = mirror_of(file)
    assert found, f"{file} is in no mirror"
    if found.pinned and file.exists():
        return False
    return _fetch(found, _source(found), file, min(most, MOST_BYTES), again=True)


def drop(path: Path) -> None:
    """Forget a file or folder of a mirror, which does not pass or is out of date; what is in no mirror stays."""
    if mirror_of(path) is None:
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _fetch(found: Mirror, source: Source, file: Path, most: int, again: bool = False) -> bool:
    """Put a file in its place and return whether it is another than was there. Where `again`, Absent is raised."""
    partial = found.folder.parent / "partial" / f"{secrets.token_hex(8)}.partial"
    with told(file):
        partial.parent.mkdir(exist_ok=True)
        try:
            source.get(Path(os.path.abspath(file)).relative_to(found.folder).as_posix(), partial, most)
            if again and file.is_file() and file.read_bytes() == partial.read_bytes():
                return False
            file.parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial, file)
            return True
        except Absent:
            if again:
                file.unlink(missing_ok=True)
                raise
            return False
        finally:
            partial.unlink(missing_ok=True)


def _source(found: Mirror) -> Source:
    return Source(found.source, headers_for(found.source))


def headers_for(source: str) -> dict[str, str]:
    """Return what the Hub's own client would send: only to the Hub."""
    from tipl.remote.hugging_face import endpoint, headers

    return headers() if source.startswith(f"{endpoint()}/") else {}


def located(place: Any) -> Path:
    """Return the folder of what is read: of an address its mirror, of a path the path itself.

    hf://USER/NAME[@REVISION][/FOLDER] is what was published under that name (`hub.py`), a data set.

    Raises:
        TiplError: nothing can be read from such an address.
    """
    if not is_address(place):
        return Path(place)
    scheme = place.partition("://")[0].lower()
    if scheme == "file":
        return Path(place[len("file://") :])
    if scheme == "hf":
        from tipl.remote.hub import found_at

        address, source = found_at(place)
        return Path(source[len("file://") :]) if source.startswith("file://") else mirror(address, source, pinned=True)
    if scheme not in ("s3", "gs", "http", "https", "memory"):
        raise TiplError(
            f"{place[:60]} is no address that can be read; give a path, s3://, hf://, https:// or memory://."
        )
    return mirror(place.rstrip("/"), place.rstrip("/"), pinned=False)
