"""One interface to where tasks run.

In: `Execution`.  Out: an `Executor`: how many tasks it runs at once, and a way to run them.

A task is a function of a module and its arguments. It is idempotent: run again, it goes on from what it has committed,
so it does no harm if it runs twice. It is given a `Parent`, which it tells how far it is and asks whether to stop.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from tipl.config.execution import Execution
from tipl.processes import Numbers, run_in_processes

PATIENCE_SECONDS = 60.0
"""How long a task on a cluster waits for another that holds its work: one that is dying on a lost node."""


class Executor(Protocol):
    """Where tasks run."""

    @property
    def slots(self) -> int:
        """Tasks that run at once."""
        ...

    @property
    def where(self) -> str:
        """In words, for so many tasks at once: `in {} processes`."""
        ...

    def run(
        self,
        work: Callable[..., None],
        tasks: Sequence[tuple[Any, ...]],
        names: Sequence[str],
        heard: Callable[[int, Numbers], None] = lambda task, numbers: None,
        ended: Callable[[int], None] = lambda task: None,
    ) -> None:
        """Call work(parent, *task) for every task, those that stand first before the others; see `run_in_processes`."""
        ...


class _Here:
    """Processes of this machine."""

    where = "in {} processes"

    def __init__(self, slots: int) -> None:
        self.slots = slots

    def run(self, work: Callable[..., None], tasks: Sequence[tuple[Any, ...]], *args: Any, **kwargs: Any) -> None:
        run_in_processes(work, tasks, self.slots, *args, **kwargs)


@contextlib.contextmanager
def executor(execution: Execution, workers: int | None = None) -> Iterator[Executor]:
    """Yield where this call's tasks run.

    Args:
        workers: tasks at once, at most; default: one a core.

    Raises:
        TiplError: there is no such cluster, or Ray is not installed.
    """
    if execution.executor == "local":
        yield _Here(workers or len(os.sched_getaffinity(0)))
        return
    from tipl.executors.on_ray import cluster

    with cluster(execution.ray_address, workers) as found:
        yield found
