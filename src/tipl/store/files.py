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
    """Keep other processes from writing a trial until the descriptor returned is closed or the process ends."""
    descriptor = os.open(trial / "resume" / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        raise TiplError(f"{trial} is being written by another process; wait for it or stop it.") from None
    return descriptor


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
