"""What writing safely to a disk takes: files replaced whole, one writer a trial, a full disk told in one line.

In: bytes, paths.  Out: the old file or the new one, a lock, TiplError.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from tipl.errors import TiplError

DAMAGE = (OSError, ValueError, KeyError, TypeError, RuntimeError)  # what zarr and its codecs raise on damaged files
_OUT_OF_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def replace_file(path: Path, *parts: bytes, sync: bool = True) -> None:
    """Write a file so that a crash at any byte leaves the old one or the new one.

    Without `sync` that holds for a program that is killed; for a machine that loses power only where the file system
    itself writes a file out before it replaces another (ext4 and btrfs do).
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.writelines(parts)
            file.flush()
            if sync:
                os.fsync(file.fileno())
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, path)


def lock_trial(trial: Path) -> int:
    """Keep all others from writing a trial until the descriptor returned is unlocked or the process ends.

    The lock belongs to the descriptor: another one in this process does not get it, and nobody loses it because the
    file is opened and closed elsewhere, as a backup does.
    """
    descriptor = os.open(trial / "resume" / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        raise TiplError(
            f"{trial} is being written by another process or another writer of this one; wait for it or stop it."
        ) from None
    return descriptor


def unlock(descriptor: int) -> None:
    """Give a lock back, even if a process that was forked meanwhile has the descriptor too."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


@contextlib.contextmanager
def locked_file(path: Path, content: bytes) -> Iterator[None]:
    """Hold the lock on a file, which is made with this content where it is missing; wait for others who hold it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_size != len(content):  # new, or its writer was killed
            os.pwrite(descriptor, content, 0)
            os.ftruncate(descriptor, len(content))
            os.fsync(descriptor)
        yield
    finally:
        unlock(descriptor)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = "free some room and" if error.errno in _OUT_OF_ROOM else "when that is mended,"
        raise TiplError(
            f"Writing {path} failed: {error.strerror or error}. What was committed stays; {advice} run the same "
            "command again."
        ) from error
