"""A command that is told to stop says so at once and ends within ten seconds, whatever it is doing.

In: Ctrl-C, or what a batch system or a closed terminal sends.  Out: KeyboardInterrupt in the main thread, or the
process ends with exit code 130.

The main thread hears of a signal when it is back in Python, which a long computation can delay. So a thread beside it
is told by a pipe: it says that the signal has come, gives the command GRACE_SECONDS to keep what it has done, and then
ends the process. That loses nothing that was committed: every file appears whole, by a rename.
"""

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

GRACE_SECONDS = 5.0
INTERRUPTED = "tipl: interrupted; what was committed stays readable, the same command goes on (train: with --resume)"
_STOPPING = "tipl: stopping; once more, and it ends at once"
_SAME_SECONDS = 0.5  # signals that come within these are one: a wrapper passes on what the terminal sends to all
_ALIKE = (signal.SIGTERM, signal.SIGHUP)  # taken for a Ctrl-C
_SAID_SECONDS = 0.3
_CURSOR = "\x1b[?25h"  # shown again, which a progress bar has hidden


class Stop:
    """Whether the command has been told to stop."""

    def __init__(self) -> None:
        self.told = False
        self.said = threading.Event()
        """Whether the user has been told so."""
        self._raised = False

    def settle(self) -> None:
        """Wait for that line, which comes from another thread: what is said next should stand below it."""
        self.said.wait(_SAID_SECONDS)

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt, once: the next one would meet a command that is tidying up."""
        self.told = True
        if not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    def ignored(self, what: Any) -> None:
        """Raise it once more, a moment later, if it came where Python ignores it: while an object was taken down."""
        if not isinstance(what.exc_value, KeyboardInterrupt):
            return sys.__unraisablehook__(what)
        self._raised = False
        main = threading.main_thread().ident
        threading.Timer(_SAME_SECONDS / 10, signal.pthread_kill, (main, signal.SIGINT)).start()


@contextlib.contextmanager
def stops_in_time() -> Iterator[Stop]:
    """What runs within is stopped by SIGINT, SIGTERM and SIGHUP alike, in time; those that are ignored stay ignored."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # no other is told of signals
        yield stop
        return
    ours = [number for number in (signal.SIGINT, *_ALIKE) if signal.getsignal(number) is not signal.SIG_IGN]
    pass_on = dict.fromkeys(_ALIKE, _as_ctrl_c) | {signal.SIGINT: stop.interrupt}
    heard, told = os.pipe()
    for end in (heard, told):
        os.set_blocking(end, False)
    handlers = {number: signal.signal(number, pass_on[number]) for number in ours}
    hook, sys.unraisablehook = sys.unraisablehook, stop.ignored
    before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(heard, set(ours), stop), daemon=True).start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(before)
        sys.unraisablehook = hook
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(told)  # which ends the thread


def end(code: int) -> NoReturn:
    """End this process now, after what was left to be done at its exit.

    Python would free torch, numba and the environments piece by piece, for 0.7 seconds of computing: most of the time
    that a command took to stop, seconds on a busy machine.
    """
    for number in (signal.SIGINT, *_ALIKE):  # it has ended, and its exit code stands
        signal.signal(number, signal.SIG_IGN)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _as_ctrl_c(number: int, frame: FrameType | None) -> None:
    handler = signal.getsignal(signal.SIGINT)  # training has one of its own
    if callable(handler):
        handler(signal.SIGINT, frame)
    else:
        raise KeyboardInterrupt


def _watch(heard: int, numbers: set[int], stop: Stop) -> None:
    """Say that a signal has come, and end the process if it is still there GRACE_SECONDS later, or at the next one."""
    first: float | None = None
    while True:
        left = None if first is None else first + GRACE_SECONDS - time.monotonic()
        if left is not None and left <= 0:
            break
        ready, _, _ = select.select([heard], [], [], left)
        if not ready:
            continue
        content = os.read(heard, 512)
        if not content:
            os.close(heard)
            return
        if numbers.isdisjoint(content):
            continue
        if first is None:
            first, stop.told = time.monotonic(), True
            _say(_STOPPING)
            stop.said.set()
        elif time.monotonic() - first > _SAME_SECONDS:
            break
    _say((_CURSOR if sys.stderr.isatty() else "") + INTERRUPTED)
    os._exit(130)


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
