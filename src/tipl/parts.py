"""Parts of long work that are done, each a sealed file, from which the same command goes on.

In: arrays, under a name that says what made them.  Out: the same; a damaged part is named, set aside, and not there.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from tipl.bundle import read_bundle, write_bundle
from tipl.files import Absent, Damaged, set_aside, told
from tipl.progress import console

ENDING = ".safetensors"
_LOOK_SECONDS = 1.0


def keep_part(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a part in one step.

    Args:
        path: named by what made the arrays, so that another part's content under this name is noticed.

    Raises:
        TiplError: the place cannot be written, or the disk is full.
    """
    whole = {name: np.asarray(values, order="C") for name, values in arrays.items()}
    write_bundle(path, whole, {"of": path.name}, safetensors.numpy)


@contextlib.contextmanager
def claimed(path: Path, patience: float = 0.0, gives_up: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Yield whether a part is this process's to make; until the end no other may. Ask once more whether it is kept.

    Args:
        patience: seconds to wait for another process that makes it: on a lost node, one that is dying.
        gives_up: asked again and again meanwhile.

    Raises:
        TiplError: the place cannot be written.
    """
    lock, until = path.with_suffix(".lock"), time.monotonic() + patience
    while (descriptor := _locked(lock)) is None and time.monotonic() < until and not gives_up():
        time.sleep(_LOOK_SECONDS)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        os.close(descriptor)


def _locked(lock: Path) -> int | None:
    """The descriptor of a lock that this process has now; None where another has it.

    Raises:
        TiplError: the place cannot be written.
    """
    with told(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = os.path.samestat(os.fstat(descriptor), os.stat(lock))  # whoever had it has removed it else
    except OSError as error:  # on a file system without locks nobody can be kept away
        ours = error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
    if ours:
        return descriptor
    os.close(descriptor)
    return None


def kept_part(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray] | None:
    """Return the arrays of a part, or None where it is not there; a damaged one is set aside, with a line.

    Args:
        shapes: of the arrays that it has to hold.

    Raises:
        TiplError: it is no regular file, or cannot be read.
    """
    try:
        arrays, facts = read_bundle(path, {"of": str}, safetensors.numpy, "it is made again")
        if facts["of"] != path.name or {name: values.shape for name, values in arrays.items()} != dict(shapes):
            raise Damaged(f"{path} is another part's file; it is made again.")
    except Absent:
        return None
    except Damaged as error:
        console.print(f"{error} The damaged one is {set_aside(path)} now.")
        return None
    return {name: np.array(values) for name, values in arrays.items()}
