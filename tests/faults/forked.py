"""Run a function in a fork of this process, whose imports and compiled kernels it so has at once.

In: a function, a time limit.  Out: how it ended, what it printed, what it returned, how much memory it took.
"""

import contextlib
import dataclasses
import json
import math
import os
import pickle
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

SECONDS = 400.0
OF_PROCESSOR = 40  # seconds, after which a case hangs whatever else the machine does
ROOM = 3 << 30  # of address space that a case may take beside what is there already


until = math.inf
"""When no more faults are begun, by time.monotonic()."""


def late() -> bool:
    return time.monotonic() > until


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a case ended."""

    code: int
    said: str
    value: Any
    seconds: float
    grown: int
    """Most bytes that it had resident, beside what it began with."""

    @property
    def hung(self) -> bool:
        return self.code == -signal.SIGKILL

    @property
    def failed(self) -> bool:
        """Whether it ended in another way than the program's own: done, refused, or killed on purpose."""
        return self.code not in (0, 2, KILLED) or "Traceback (most recent call last)" in self.said


class Tally:
    """What came of faults, on the terminal where it is bad, and in a log from which the same command goes on."""

    def __init__(self, kind: str, good: Collection[str], log: Path | None) -> None:
        self._kind, self._good, self._log = kind, good, log
        self.counts: Counter[str] = Counter()
        lines = log.read_text().splitlines() if log and log.exists() else []
        self._known = {fault: came for kind, fault, came in map(json.loads, lines) if kind == self._kind}

    def had(self, fault: str) -> bool:
        """Whether the log knows what comes of a fault, which is then counted."""
        if fault in self._known:
            self.counts[self._known[fault]] += 1
        return fault in self._known

    def add(self, fault: str, came: str, more: str = "") -> None:
        self.counts[came] += 1
        if came not in self._good:
            print(f"  {self._kind}: {fault} {more}: {came}", file=sys.stderr, flush=True)
        if self._log:
            with self._log.open("a") as file:
                file.write(json.dumps([self._kind, fault, came]) + "\n")

    @property
    def bad(self) -> int:
        return sum(number for came, number in self.counts.items() if came not in self._good)


KILLED = 9
"""The exit code of a process that a kill ended (kills.py)."""


def forked(do: Callable[[], Any], folder: os.PathLike[str], seconds: float = SECONDS) -> Ended:
    """Call `do` in a fork that works in `folder`. A TiplError ends it with 2, another exception with 1."""
    began = time.monotonic()
    (said, saying), (value, returning) = os.pipe(), os.pipe()  # no files: a case may forbid itself to write any
    before = resident()
    process = os.fork()
    if process == 0:
        _be_child(do, folder, saying, returning)
    os.close(saying)
    os.close(returning)
    heard = {said: b"", value: b""}
    status, usage = _wait(process, began + seconds, heard)
    code = os.waitstatus_to_exitcode(status)
    returned = pickle.loads(heard[value]) if code == 0 and heard[value] else None  # which this program wrote itself
    text = heard[said].decode(errors="replace")
    return Ended(code, text, returned, time.monotonic() - began, usage.ru_maxrss * 1024 - before)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _be_child(do: Callable[[], Any], folder: os.PathLike[str], said: int, value: int) -> None:
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        sys.stdout.flush()
        os.dup2(said, 1)
        os.dup2(said, 2)
        soft = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CPU, (OF_PROCESSOR, OF_PROCESSOR))  # the kernel ends it by SIGKILL
        from tipl.cli.main import exit_code

        found: list[Any] = []
        code = exit_code(lambda: found.append(do()))
        if found:
            os.write(value, pickle.dumps(found[0]))
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(process: int, until: float, heard: dict[int, bytes]) -> tuple[int, resource.struct_rusage]:
    """Hear what a child says until it ends, or has had its time."""
    for pipe in heard:
        os.set_blocking(pipe, False)
    while True:
        done, status, usage = os.wait4(process, os.WNOHANG)
        if not done and time.monotonic() > until:
            os.killpg(process, signal.SIGKILL)
            done, status, usage = os.wait4(process, 0)
        for pipe in heard:
            with contextlib.suppress(BlockingIOError):
                while content := os.read(pipe, 1 << 16):
                    heard[pipe] += content
            if done:
                os.close(pipe)
        if done:
            return status, usage
        time.sleep(0.002)
