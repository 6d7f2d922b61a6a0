"""Fetch what was published: a folder that appears whole, or not at all; `tipl hub pull` and `tipl hub list`.

In: USER/NAME.  Out: a folder, each file of which has the checksum that the listing says.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tipl.checks import AnyPath, checked_arguments
from tipl.errors import TiplError
from tipl.files import PARTIAL, Absent, Damaged, require_no_store_above, told
from tipl.progress import steps_progress
from tipl.remote.hub import hub, resolve, shown
from tipl.remote.listing import LISTING, MOST_BYTES, digest_of, read_listing
from tipl.remote.mirror import cache, headers_for
from tipl.remote.names import Name
from tipl.remote.source import Source

_AT_ONCE = 8


@checked_arguments
def hub_pull(name: str, out: AnyPath | None = None, revision: str | None = None) -> Path:
    """Fetch a store, a model or a policy that was published, and return its folder.

    The folder appears when all of it has come and every checksum agrees. After an interruption the same call goes on.

    Args:
        name: USER/NAME, on the Hugging Face Hub or where TIPL_HUB says; datasets/USER/NAME or models/USER/NAME where
            both are there.
        out: the new folder; default: NAME, here.
        revision: a commit, or on the Hugging Face Hub also a branch or a tag; default: what is shown.

    Raises:
        TiplError: nothing is published under that name, it cannot be fetched, what comes is not what was published, or
            `out` is there already.
    """
    asked = _asked(name, revision)
    out = Path(out) if out is not None else Path(asked.name.rpartition("/")[2])
    if os.path.lexists(out):
        raise TiplError(f"{out} is there already; give another --out, or move it away.")
    require_no_store_above(out)
    _fetch(_source(asked), out, asked.name)
    return out


@checked_arguments
def hub_list(user: str | None = None) -> list[dict[str, str]]:
    """Return what is published, a row a thing: its name, kind, revision and address.

    The kind is "store", or "model" of models and of policies.

    Args:
        user: whose; default: everybody's.

    Raises:
        TiplError: the hub cannot be read.
    """
    if user is not None:
        Name.read(f"{user}/x")
    rows = []
    for kind, name, revision in hub().names(user):
        row = {"name": name, "kind": "store" if kind == "datasets" else "model", "revision": revision}
        rows.append({**row, "address": f"hf://{name}"})
    return rows


def pulled(name: str, revision: str | None = None) -> Path:
    """Return the folder of something published, in the cache; fetched where it is not there yet.

    Raises:
        TiplError: as `hub_pull`.
    """
    asked = _asked(name, revision)
    if asked.folder:
        raise TiplError(f"{name} names a folder of something published; give USER/NAME alone.")
    source = _source(Name(asked.name, asked.kind or "models", asked.revision, ""))
    out = cache() / "hub" / hashlib.sha256(source.address.encode()).hexdigest()[:16] / asked.name.rpartition("/")[2]
    if not out.is_dir():
        _fetch(source, out, asked.name)
    return out


def _asked(name: str, revision: str | None) -> Name:
    asked = Name.read(name if revision is None else f"{name.partition('@')[0]}@{revision}")
    if revision is not None and "@" in name and not name.endswith(f"@{revision}"):
        raise TiplError(f"{name} says another revision than {revision}; give one of the two.")
    return asked


def _source(asked: Name) -> Source:
    kind, revision = resolve(asked)
    address = hub().source(kind, asked.name, revision)
    return Source(address, headers_for(address))


def _fetch(source: Source, out: Path, name: str) -> None:
    with _being_made(out) as partial:
        if partial is None:
            return
        listing = partial / (LISTING + PARTIAL)
        try:
            source.get(LISTING, listing, MOST_BYTES)
        except Absent as error:
            raise TiplError(f"{name} in {shown()} has no {LISTING}; `tipl hub push` did not make it.") from error
        files = read_listing(listing, source.address)
        listing.unlink()
        _require_ours(partial, files)
        waiting = [each for each in files if not _is_whole(partial / each, *files[each])]
        _require_room(partial, sum(files[each][0] for each in waiting))
        with steps_progress(f"pull {name}", len(waiting)) as advance:
            pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="tipl-pull")
            try:
                for _ in pool.map(lambda each: _fetch_file(source, partial, each, *files[each]), waiting):
                    advance(1, "")
            finally:
                pool.shutdown(cancel_futures=True)
        os.rename(partial, out)


@contextmanager
def _being_made(out: Path) -> Iterator[Path | None]:
    """The folder that becomes `out`, kept from other processes; None where another has finished it meanwhile."""
    partial = out.with_name(out.name + PARTIAL)
    with told(out):
        if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
            raise TiplError(f"{partial} is in the way; move it away.")
        partial.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield None if out.exists() else partial
        finally:
            os.close(descriptor)


def _require_ours(partial: Path, files: Mapping[str, object]) -> None:
    """Refuse what an earlier try did not leave: only what is in the listing becomes part of the folder."""
    for where, folders, names in os.walk(partial):
        for name in (*names, *(each for each in folders if Path(where, each).is_symlink())):
            path = Path(where, name)
            if path.is_symlink() or path.relative_to(partial).as_posix().removesuffix(PARTIAL) not in files:
                raise TiplError(f"{path} is not of what is being fetched; move {partial} away.")
            if name.endswith(PARTIAL):
                path.unlink()


def _is_whole(path: Path, size: int, digest: str) -> bool:
    return path.is_file() and path.stat().st_size == size and digest_of(path) == digest


def _require_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise TiplError(f"It has {size:,} bytes more, and {folder} has room for {free:,}; free some space.")


def _fetch_file(source: Source, partial: Path, name: str, size: int, digest: str) -> None:
    path = partial / name
    half = path.with_name(path.name + PARTIAL)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.get(name, half, size)
        if half.stat().st_size != size or digest_of(half) != digest:
            raise Damaged(
                f"{source.address}/{name} is not what was published: its checksum does not match; have it published "
                "again."
            )
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
