"""Stops: a kill before the n-th file operation of a verb, and a disk that is full.

In: a verb and where it works.  Out: what came of it: done (the same command goes on to the same), refused, lost,
traceback, hang.
"""

import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from tests.faults import small
from tests.faults.forked import KILLED, Ended, Tally, forked, late

from tipl.errors import TiplError

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree"}
NEEDS = {
    "compact": [small.STORE],
    "fit-svd": [small.WALKS],
    "train": [small.WALKS, small.CODES],
    "evaluate": [small.STORE],
    "forecast": [small.STORE],
    "collect more": [small.LEVEL],
}


def operations(run: Callable[[], Any], folder: Path, stop_at: int | None = None) -> Callable[[], int]:
    """A function that runs a verb, ends the process before its n-th change of a file, and returns how many there were.

    Opening a file to write, renaming, removing and making folders count, where they are below `folder`.
    """
    place = str(folder)

    def call() -> int:
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event == "open":
                changes = isinstance(arguments[2], int) and bool(arguments[2] & _WRITES)
            else:
                changes = event in _CHANGES
            if not changes or isinstance(arguments[0], int):
                return
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if path.startswith(place):
                count += 1
                if count == stop_at:
                    os._exit(KILLED)

        sys.addaudithook(hook)
        run()
        return count

    return call


def kills(folder: Path, count: int, rng: random.Random, tally: Tally) -> None:
    """Kill verbs before file operations of theirs: all of them, or `count` drawn evenly over the verbs, in turns."""
    each = -(-count // len(small.KILLED))
    turns: list[list[tuple[str, int, int, str | None]]] = []
    for name, (output, run) in small.KILLED.items():
        place = begun(folder, name)
        sound = forked(operations(run, place), place)
        assert sound.code == 0, (name, sound.said)
        expected, total = _digest(place, output), sound.value
        places = sorted(rng.sample(range(1, total + 1), min(each, total)))
        turns.append([(name, at, total, expected) for at in places])
    for name, at, total, expected in filter(None, chain.from_iterable(zip_longest(*turns))):
        if tally.had(fault := f"{name} at {at} of {total}"):
            continue
        if late():
            break
        (output, run), place = small.KILLED[name], begun(folder, name)
        ended = forked(operations(run, place, at), place)
        tally.add(fault, _came(ended, place, output, run, expected, KILLED))


def full_disks(folder: Path, count: int, rng: random.Random, tally: Tally) -> None:
    """Let no file become larger than a limit, as a full disk does; then run the same command with room."""
    for number in range(count):
        name = [*small.KILLED][number % len(small.KILLED)]
        limit = int(2 ** rng.uniform(0, 13))
        if tally.had(fault := f"{number} {name} at {limit} bytes a file"):
            continue
        if late():
            break
        (output, run), place = small.KILLED[name], begun(folder, name)
        ended = forked(lambda r=run, m=limit: (_limit(m), r()), place)
        tally.add(fault, _came(ended, place, output, run, None, 2))


def _limit(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def begun(folder: Path, name: str) -> Path:
    """A folder for a verb to work in, with what it needs."""
    place = folder / "work"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for needed in NEEDS.get(name, []):
        shutil.copytree(folder / needed, place / needed)
    return place


def _came(ended: Ended, place: Path, output: str, run: Callable[[], Any], expected: str | None, stopped: int) -> str:
    """What comes of a stop, and of the same command after it."""
    if ended.hung:
        return "hang"
    if ended.code not in (0, stopped) or "Traceback (most" in ended.said:
        return f"traceback ({_last(ended)})"
    if ended.code == 0 and (output == small.EVAL or output == small.MODEL):
        return "done"  # a finished evaluation is not made again

    def go_on() -> str | None:
        try:
            run()
        except TiplError as error:
            if output != small.EVAL or "holds an evaluation already" not in str(error):
                raise
        return expected and _digest_here(place, output)

    again = forked(go_on, place)
    if again.hung:
        return "hang"
    if again.code == 2:
        return f"refused ({_last(again)})"
    if again.code != 0:
        return f"traceback ({_last(again)})"
    return "done" if again.value == expected else "lost"


def _digest(place: Path, output: str) -> str | None:
    return forked(lambda: _digest_here(place, output), place).value


def _digest_here(place: Path, output: str) -> str:
    small.SHAPES.clear()  # parts are what a run is made of, not what it says
    return small.digest_of(output, place / output)


def _last(ended: Ended) -> str:
    lines = ended.said.strip().splitlines()
    return lines[-1][:140] if lines else str(ended.code)
