"""What writing a store safely takes: locks, folders that are no links, and removing nothing but what is ours.

In: paths.  Out: a lock, a folder that lies where it says, TiplError.
"""

import contextlib
import errno
import fcntl
import gc
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from tipl.errors import TiplError
from tipl.files import PARTIAL
from tipl.remote.objects import Overtaken
from tipl.remote.working import address_of

_OUT_OF_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # what Lustre without -o flock says, and NFS without lockd


class Held(TiplError):
    """Another writer has the trial."""


class Begun(TiplError):
    """The trial was begun before, perhaps a moment ago by another process."""


class Complete(TiplError):
    """The trial is complete, perhaps since a moment."""


def is_folder(path: Path) -> bool:
    """Return whether a folder is there, False where nothing is.

    Raises:
        TiplError: a link or a file is there. The folders above `path` are the caller's to check.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    except OSError as error:
        raise TiplError(f"Cannot read {path}: {error.strerror}; bring the store back from a copy.") from error
    if not stat.S_ISDIR(mode):
        what = "a link, which is not followed" if stat.S_ISLNK(mode) else "no folder"
        raise TiplError(f"{path} is {what}; bring the store back from a copy.")
    return True


def make_folder(path: Path) -> None:
    """Make a folder in one that is known to be no link; one that is there already is taken. Raises as `is_folder`."""
    if not is_folder(path):
        with contextlib.suppress(FileExistsError):
            path.mkdir()


def remove_made(folder: Path, made: str) -> None:
    """Remove a folder of which this program made all that is in it, if it is there.

    Args:
        made: a regular expression of the paths that this program makes in it, without `.partial`.

    Raises:
        TiplError: something else is in it, or a link; then nothing is removed.
    """
    if not is_folder(folder):
        return
    ours = re.compile(f"(?:{made})(?:{re.escape(PARTIAL)})?", re.ASCII)
    walked = [(Path(where), folders, files) for where, folders, files in os.walk(folder, topdown=False)]
    for where, folders, files in walked:
        for name in (*folders, *files):
            path = where / name
            if path.is_symlink() or not ours.fullmatch(path.relative_to(folder).as_posix()):
                raise TiplError(f"{path} was not made by this program and is left alone; move it away.")
    for where, _, files in walked:
        for name in files:
            (where / name).unlink(missing_ok=True)
        try:
            where.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):  # another process looks in, or tidies up as well
                raise


def lock_trial(trial: Path) -> int:
    """Keep all others from writing a trial until the descriptor returned is unlocked or the process ends.

    The lock belongs to the descriptor: another one in this process does not get it, and nobody loses it because the
    file is opened and closed elsewhere, as a backup does.
    """
    descriptor = os.open(trial / "resume" / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not _lock_now(descriptor):
        gc.collect()  # a writer of this process that nobody has any more gives its lock back
        if not _lock_now(descriptor):
            os.close(descriptor)
            raise Held(
                f"{trial} is being written by another process or another writer of this one; wait for it, stop it, "
                "or let go of that writer."
            )
    return descriptor


def _lock_now(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise _told_of_locks(error) from error
    return True


def _told_of_locks(error: OSError) -> OSError | TiplError:
    """An error of flock, in words where the file system has no locks."""
    if error.errno not in _NO_LOCKS:
        return error
    return TiplError(
        f"this file system keeps no locks ({error.strerror}), without which two writers would harm a store; mount it "
        "with them (Lustre: -o flock; NFS: version 4) or give another --out."
    )


def unlock(descriptor: int) -> None:
    """Give a lock back, even if a process that was forked meanwhile has the descriptor too."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


@contextlib.contextmanager
def locked_file(path: Path, content: bytes) -> Iterator[None]:
    """Hold the lock on a file, which is made with this content where it is missing; wait for others who hold it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise _told_of_locks(error) from error
        found = os.fstat(descriptor)
        if found.st_size != len(content):  # new, or its writer was killed
            if found.st_size > len(content) or found.st_nlink != 1 or not stat.S_ISREG(found.st_mode):
                raise TiplError(f"{path} is damaged; bring it back from a copy.")
            os.pwrite(descriptor, content, 0)
            os.fsync(descriptor)
        yield
    finally:
        unlock(descriptor)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong with writing `path` into one line, of a working copy about what it stands for."""
    try:
        yield
    except TiplError as error:
        address = address_of(path)
        if address is None:
            raise
        kind = Held if isinstance(error, Overtaken) else type(error)
        raise kind(str(error).replace(str(path), address)) from error
    except OSError as error:
        advice = "free some room and" if error.errno in _OUT_OF_ROOM else "when that is mended,"
        raise TiplError(
            f"Writing {path} failed: {error.strerror or error}. What was committed stays; {advice} run the same "
            "command again."
        ) from error
