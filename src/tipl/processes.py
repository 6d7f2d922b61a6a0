"""Work in processes of their own, one compute thread each.

In: a function and the arguments of its calls.  Out: what the calls tell while they run; the error of one that failed.

Each process has an executor of its own (`concurrent.futures`, spawned), and two pipes. What it tells goes through one
of them, from a thread that sends the newest news and drops what is older: a parent that does not read stops nobody. A
message is so short that the kernel writes it whole or not at all, so a process that is killed leaves no half of one.
Through the other pipe the parent says stop; that it is closed says that the parent is gone. On Linux the kernel,
besides, kills a process whose parent has ended.
"""

import ast
import atexit
import contextlib
import ctypes
import fcntl
import multiprocessing
import os
import signal
import struct
import sys
import threading
import time
import traceback
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tipl.errors import TiplError

GRACE_SECONDS = 3.0
"""How long a process that was told to stop may take to keep what it has told of."""
_LOOK_SECONDS = 0.1
_TELL_SECONDS = 0.02  # between messages
_SETTLE_SECONDS = 1.0
_PIPE_BYTES = 4096  # PIPE_BUF, up to which a write is whole
_MOST_NUMBERS = 500  # of a message, with which it is below that
_MOST_TEXT = 3000  # bytes of an error, likewise
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
Numbers = tuple[float, ...]


class Parent:
    """The process that started this one, as this one knows it."""

    def __init__(self, orders: Connection, news: Connection) -> None:
        self._orders, self._pipe = orders, news
        self._stop = threading.Event()
        self._working = False
        self._news: Sequence[Sequence[float]] | None = None
        self._change = threading.Condition()

    def tell(self, *rows: Sequence[float]) -> None:
        """Tell how far the work is, in place of what was told before and is not on its way yet."""
        self._working = True
        with self._change:
            self._news = rows
            self._change.notify_all()

    def wants_stop(self) -> bool:
        """Whether this process is to keep what it has done and return."""
        return self._stop.is_set()

    def _send(self) -> None:
        """Send what is told, in messages of whole rows."""
        with contextlib.suppress(OSError):  # the parent is gone
            while True:
                with self._change:
                    self._change.wait_for(lambda: self._news is not None)
                    rows = self._news or ()
                each = _MOST_NUMBERS // max(map(len, rows), default=1)
                for start in range(0, len(rows), each):
                    numbers = [number for row in rows[start : start + each] for number in row]
                    self._pipe.send_bytes(struct.pack(f"{len(numbers)}d", *numbers))
                with self._change:
                    if self._news is rows:
                        self._news = None
                        self._change.notify_all()
                time.sleep(_TELL_SECONDS)

    def _settle(self) -> None:
        """Wait, for a moment, until what was told is on its way."""
        with self._change:
            self._change.wait_for(lambda: self._news is None, _SETTLE_SECONDS)

    def _watch(self) -> None:
        """Heed the parent's order to stop, and its end; see that this process ends in time, or at once where it has
        told of no work yet, which it may be importing and compiling for."""
        with contextlib.suppress(EOFError, OSError):
            self._orders.recv_bytes()
        self._stop.set()
        if self._working:
            time.sleep(GRACE_SECONDS)
        os._exit(1)


_parent: Parent | None = None
_is_task = False


def run_in_processes(
    work: Callable[..., None],
    tasks: Sequence[tuple[Any, ...]],
    count: int,
    names: Sequence[str],
    heard: Callable[[int, Numbers], None] = lambda task, numbers: None,
    ended: Callable[[int], None] = lambda task: None,
) -> None:
    """Call work(parent, *task) for every task, in so many processes at once.

    If a call raises a TiplError, the others go on to their end first. If one raises anything else, or its process is
    killed, the others are told to stop, which they do within GRACE_SECONDS.

    Args:
        work: a module's function; `parent` is the `Parent` of the process that it runs in.
        names: what each task is about, for the line that says whose process was killed.
        heard: is given the index of a task and what it told.
        ended: is given the index of a task whose call has returned.

    Raises:
        TiplError: that of a call, or a process was killed, or this process may not start any.
        RuntimeError: a call raised something else, whose traceback this has.
        KeyboardInterrupt: the processes have stopped.
    """
    _check_may_start()
    left = deque(enumerate(tasks))
    working: dict[Future[tuple[str, str]], tuple[_Process, int]] = {}
    processes: list[_Process] = []
    refusals: list[str] = []

    def begin(process: _Process) -> None:
        index, task = left.popleft()
        working[process.call(work, task)] = process, index

    try:
        with _starting():
            for _ in range(min(count, len(tasks))):
                processes.append(_Process())
                begin(processes[-1])
        while working:
            done, _ = wait(working, _LOOK_SECONDS, FIRST_COMPLETED)
            for process, index in working.values():
                for numbers in process.told():
                    heard(index, numbers)
            for future in done:
                process, index = working.pop(future)
                how, text = process.outcome(future, names[index])
                if how == "bug":
                    raise RuntimeError(text)
                if how == "stopped":
                    time.sleep(2 * _LOOK_SECONDS)  # the same signal may be on its way here
                    raise TiplError(f"the process of {names[index]} was told to stop; the same command goes on.")
                if how == "refused":
                    refusals.append(text)
                else:
                    ended(index)
                if left:
                    begin(process)
    except BaseException:
        for process in processes:
            process.stop()
        try:
            wait(working, GRACE_SECONDS)
        finally:
            for process in processes:  # one that has returned has nothing to do either
                process.kill()
        raise
    finally:
        for process in processes:
            process.close()
    if refusals:
        raise TiplError(" ".join(dict.fromkeys(refusals)))


class _Process:
    """One process, seen from its parent."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        orders, self._orders = context.Pipe(duplex=False)
        self._news, news = context.Pipe(duplex=False)
        if sys.platform == "linux":  # what waits in a pipe is old
            fcntl.fcntl(news.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._theirs = orders, news
        try:
            self._executor = ProcessPoolExecutor(1, context, _begin, (orders, news, os.getpid()))
        except (OSError, ImportError, NotImplementedError) as error:
            raise TiplError(
                f"no process can be started here: {error}. Python's processes need shared memory; mount /dev/shm."
            ) from error
        self._child: Any = None

    def call(self, work: Callable[..., None], task: tuple[Any, ...]) -> "Future[tuple[str, str]]":
        future = self._executor.submit(_call, work, task)
        if self._child is None:
            # Its exit code says how it died, which the executor does not.
            (self._child,) = self._executor._processes.values()  # pyright: ignore[reportAttributeAccessIssue]
            for end in self._theirs:
                end.close()
        return future

    def told(self) -> Iterator[Numbers]:
        """What the process has told since this was asked last."""
        with contextlib.suppress(EOFError, OSError):
            while self._news.poll():
                content = self._news.recv_bytes()
                yield struct.unpack(f"{len(content) // 8}d", content)

    def outcome(self, future: "Future[tuple[str, str]]", name: str) -> tuple[str, str]:
        """How a call that is about `name` ended, and what it said.

        Raises:
            TiplError: its process was killed.
        """
        try:
            return future.result()
        except BrokenProcessPool:
            raise TiplError(
                f"process {self._child.pid}, of {name}, {self._death()}; what was committed stays, and the same "
                "command goes on."
            ) from None

    def _death(self) -> str:
        until = time.monotonic() + GRACE_SECONDS
        while (code := self._child.exitcode) is None and time.monotonic() < until:
            time.sleep(0.01)
        if code is None or code >= 0:
            return f"ended by itself with exit code {code}; what it said stands above"
        number = -code
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        why = ", as happens where memory runs out" if number == signal.SIGKILL else ""
        return f"was killed by {name}{why}"

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._orders.send_bytes(b"stop")

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()

    def close(self) -> None:
        """End the process, which has nothing to do any more."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self._child is not None:
            self._child.join(GRACE_SECONDS)
            self._child.kill()
        self._executor.shutdown()
        for end in (self._orders, self._news, *self._theirs):
            end.close()


def _begin(orders: Connection, news: Connection, parent_pid: int) -> None:
    """The first thing that a process does: it ties its life to its parent's, and leaves Ctrl-C to it."""
    global _parent
    end_with(parent_pid)
    _parent = parent = Parent(orders, news)
    atexit.register(os._exit, 0)  # the last thing: to free torch and the environments piece by piece takes a second
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: parent._stop.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    for beside in (parent._watch, parent._send):
        threading.Thread(target=beside, daemon=True).start()


def end_with(parent_pid: int) -> None:
    """Tie this process's life to its parent's; for pools too, as their initializer."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def _call(work: Callable[..., None], task: tuple[Any, ...]) -> tuple[str, str]:
    assert _parent is not None
    return outcome_of(_parent, work, task)


def outcome_of(parent: Parent, work: Callable[..., None], task: tuple[Any, ...]) -> tuple[str, str]:
    """Call here; how it ended, in few bytes, whatever was raised: the pipe that carries it is shared.

    Returns:
        "done", "stopped", "refused" or "bug", and what the last two said.
    """
    global _is_task
    _is_task = True
    try:
        work(parent, *task)
    except TiplError as error:
        return "refused", _shortened(str(error))
    except BaseException:
        return "bug", _shortened(traceback.format_exc())
    finally:
        parent._settle()
    return ("stopped" if parent.wants_stop() else "done"), ""


def threads_here() -> int:
    """Return how many compute threads this process may use: one a core, and in a task one, beside those of others."""
    return 1 if _is_task else len(os.sched_getaffinity(0))


def _shortened(text: str) -> str:
    """The end of a text, where a traceback says what was wrong."""
    return text.encode(errors="backslashreplace")[-_MOST_TEXT:].decode(errors="ignore")


def _check_may_start() -> None:
    """
    Raises:
        TiplError: this process may not start others.
    """
    current: Any = multiprocessing.current_process()
    if current.daemon:
        raise TiplError(
            "this process is a daemon, as those of multiprocessing.Pool are, and may start no others; call from one of "
            "concurrent.futures.ProcessPoolExecutor."
        )
    if getattr(current, "_inheriting", False):
        raise TiplError(
            'this process is being started itself; put what the script does under if __name__ == "__main__":'
        )


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """What processes started within begin with: one compute thread, no Ctrl-C, and the main module if it is for them.

    BLAS reads the number of threads when it is loaded. A Ctrl-C that comes meanwhile is answered at the end.
    """
    came: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in _STOPS}
        handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    environment = {name: os.environ.get(name) for name in names}
    main, blocked = sys.modules["__main__"], signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        for number in handlers:
            signal.signal(number, lambda number, frame: came.append(number))
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        _start_tracker()
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # which the tracker's start undoes
        os.environ.update(dict.fromkeys(names, "1"))
        if not _is_guarded(main):
            sys.modules["__main__"] = types.ModuleType("__main__")
        yield
    finally:
        sys.modules["__main__"] = main
        for name, value in environment.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in came[:1]:
        handlers[number](number, None)  # pyright: ignore[reportArgumentType]


def _start_tracker() -> None:
    """Start the process that tidies up after an end by force, so that it does so without a line of its own."""
    sys.warnoptions.append("ignore:resource_tracker")
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.pop()


def _is_guarded(main: types.ModuleType) -> bool:
    """Whether a process may import the main module, as spawned ones do for what it defines, such as an environment.

    A script that does all its work at the top would do it again there; and standard input, or a notebook, is no file.
    """
    try:
        body = ast.parse(Path(main.__file__ or "").read_bytes()).body
    except (AttributeError, OSError, SyntaxError, ValueError):
        return False
    tests = [node.test for node in body if isinstance(node, ast.If)]
    return any(isinstance(name, ast.Name) and name.id == "__name__" for test in tests for name in ast.walk(test))
