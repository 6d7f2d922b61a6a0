"""A hub that is a folder, on this machine or in an object store: no account, no server.

In: files and a name; a name.  Out: revisions, of which one is shown.

    HUB/{datasets,models}/USER/NAME/<revision>/NAME/…    all files, tipl.json the last: a store or model as any other
    HUB/{datasets,models}/USER/NAME/main                 the revision that is shown; written last of all, in one step

A revision is named by the digest of its tipl.json, which has the checksum of each file. So a push that was cut off goes
on: what is there under a revision, in its full size, is what belongs there.
"""

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tipl.errors import TiplError
from tipl.files import read_file, write_file
from tipl.remote.listing import LISTING
from tipl.remote.names import Kind

MOST_BYTES = 1 << 38
_SHOWN = "main"
_REVISION = re.compile("[0-9a-f]{40}")
_AT_ONCE = 8


class Shelf:
    """A folder of published things at an address: file:///…, s3://…, memory://…"""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._local = Path(self.address[len("file://") :]) if address.startswith("file://") else None

    def source(self, kind: Kind, name: str, revision: str) -> str:
        """Return where the files of a revision lie."""
        return f"{self.address}/{_below(kind, name, revision)}"

    def resolve(self, kind: Kind, name: str, revision: str | None) -> str | None:
        """Return the revision that is shown, or this one; None where nothing of that name was published.

        Raises:
            TiplError: there is no such revision, or the place cannot be read.
        """
        shown = self._read(f"{kind}/{name}/{_SHOWN}")
        if shown is None or revision in (None, _SHOWN):
            return shown
        if _REVISION.fullmatch(revision or "") and self._sizes(_below(kind, name, revision or "")).get(LISTING):
            return revision
        raise TiplError(f"{name} has no revision {revision} in {self.address}; leave it out, or give 40 digits of one.")

    def push(self, kind: Kind, name: str, files: Mapping[str, Path | bytes], private: bool) -> str:
        """Put files there, then the name that shows them; return the revision.

        Raises:
            TiplError: the place cannot be written.
        """
        if private:
            raise TiplError(f"{self.address} shows everything that its folder's readers may see; leave --private out.")
        listing = files[LISTING]
        assert isinstance(listing, bytes)
        revision = hashlib.sha256(listing).hexdigest()[:40]
        below = _below(kind, name, revision)
        there = self._sizes(below)
        waiting = [
            (each, content)
            for each, content in files.items()
            if each != LISTING
            and there.get(each) != (len(content) if isinstance(content, bytes) else content.stat().st_size)
        ]
        pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="tipl-push")
        try:
            for _ in pool.map(lambda item: self._put(f"{below}/{item[0]}", item[1]), waiting):
                pass
        finally:
            pool.shutdown(cancel_futures=True)
        self._put(f"{below}/{LISTING}", listing)
        self._put(f"{kind}/{name}/{_SHOWN}", revision.encode())
        return revision

    def names(self, user: str | None) -> list[tuple[Kind, str, str]]:
        """Return kind, name and revision of everything that is shown, or of one user's.

        Raises:
            TiplError: the place cannot be read.
        """
        made: list[tuple[Kind, str, str]] = []
        kinds: tuple[Kind, ...] = ("datasets", "models")
        for kind in kinds:
            with self._spoken() as files:
                files.invalidate_cache()
                found = files.glob(f"{self._url(kind)}/{user or '*'}/*/{_SHOWN}")
            for each in sorted(found):
                name = "/".join(each.split("/")[-3:-1])
                revision = self._read(f"{kind}/{name}/{_SHOWN}")
                if revision:
                    made.append((kind, name, revision))
        return made

    def _read(self, name: str) -> str | None:
        """The revision that a file names; None without one."""
        try:
            with self._spoken() as files:
                found = files.cat_file(self._url(name), start=0, end=100).decode("ascii", "replace").strip()
        except FileNotFoundError:
            return None
        if not _REVISION.fullmatch(found):
            raise TiplError(f"{self.address}/{name} is damaged: it names no revision; publish it again.")
        return found

    def _sizes(self, name: str) -> dict[str, int]:
        with self._spoken() as files:
            files.invalidate_cache()
            found = files.find(self._url(name), detail=True)
        return {path.rpartition(f"{name}/")[2]: facts["size"] for path, facts in found.items()}

    def _put(self, name: str, content: Path | bytes) -> None:
        if self._local:
            data = content if isinstance(content, bytes) else read_file(content, MOST_BYTES)
            write_file(self._local / name, data)
            return
        with self._spoken() as files:
            if isinstance(content, bytes):
                files.pipe_file(self._url(name), content)
            else:
                files.put_file(str(content), self._url(name))

    def _url(self, name: str) -> str:
        return str(self._local / name) if self._local else f"{self.address}/{name}"

    def _spoken(self) -> Any:
        return spoken(self.address)


def _below(kind: Kind, name: str, revision: str) -> str:
    """Where a revision lies; its folder has the name that it was published under, which a store is called by."""
    return f"{kind}/{name}/{revision}/{name.rpartition('/')[2]}"


class spoken:
    """The files of an address, through fsspec; whatever it raises becomes one line, but FileNotFoundError."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __enter__(self) -> Any:
        try:
            import fsspec

            return fsspec.filesystem(self._address.partition("://")[0])
        except ImportError as error:
            raise TiplError(f"{self._address} takes a library that is missing; pip install 'tipl[remote]'.") from error

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, FileNotFoundError | TiplError):
            credentials = "; look at its credentials" if isinstance(error, PermissionError) else ""
            why = str(error)[:200] or type(error).__name__
            raise TiplError(f"{self._address} cannot be used: {why}{credentials}; then run it again.") from error
