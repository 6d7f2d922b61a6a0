"""Work that the package gives to processes, done in this one: to start a process costs two seconds of a processor.

In: nothing.  Out: a context in which no process is started. That processes make the same is held by `test_collect.py`
(several workers, a killed one), `test_processes.py` and `test_cli.py`.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from tipl.errors import TiplError
from tipl.evaluation import futures
from tipl.executors import run


class Caller:
    """The parent of a task: it hears what it is told, and never says stop."""

    def __init__(self, hear: Callable[[tuple[float, ...]], None]) -> None:
        self._hear = hear

    def tell(self, *rows: Sequence[float]) -> None:
        self._hear(tuple(number for row in rows for number in row))

    def wants_stop(self) -> bool:
        return False


def run_here(
    work: Callable[..., None],
    tasks: Sequence[tuple[Any, ...]],
    count: int,
    names: Sequence[str],
    heard: Callable[[int, tuple[float, ...]], None] = lambda task, numbers: None,
    ended: Callable[[int], None] = lambda task: None,
) -> None:
    """As `tipl.processes.run_in_processes`, one task after the other."""
    refusals = []
    for index, task in enumerate(tasks):
        try:
            work(Caller(lambda numbers, index=index: heard(index, numbers)), *task)
        except TiplError as error:
            refusals.append(str(error))
        else:
            ended(index)
    if refusals:
        raise TiplError(" ".join(dict.fromkeys(refusals)))


@contextmanager
def in_this_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for user in (run, futures, sys.modules.get("tipl.training.lessons")):  # the last takes torch
            if user is not None:
                patch.setattr(user, "run_in_processes", run_here)
        yield
