"""Where work runs, and which part of it: settings that change no result.

In: what the user asks for.  Out: `Execution`, and which of several tasks are this call's.
"""

import heapq
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tipl.checks import check_settings, require

ExecutorName = Literal["local", "ray"]
_MOST_SHARDS = 100_000


@dataclass(frozen=True)
class Execution:
    """Where work runs, and which part of it. Results are the same to the bit wherever they are made, on processors and
    with libraries of one kind."""

    executor: ExecutorName = "local"
    """local: processes on this machine. ray: the nodes of a Ray cluster, which share this file system."""
    ray_address: str = "auto"
    """HOST:PORT of the Ray cluster; auto: the one that this machine belongs to."""
    shard: str = "1/1"
    """I/N: do the I-th of N parts of the work and leave the others to other calls of the same command."""

    def __post_init__(self) -> None:
        check_settings(self)
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", self.shard)
        advice = f"--shard is {self.shard[:60]!r}; give I/N with 1 ≤ I ≤ N ≤ {_MOST_SHARDS}, such as 1/64."
        require(found is not None and 1 <= int(found[1]) <= int(found[2]) <= _MOST_SHARDS, advice)
        require(
            self.ray_address == "auto" or self.executor == "ray",
            "--ray-address has no effect on --executor local; leave it out, or give --executor ray.",
        )

    @property
    def part(self) -> int:
        """Of which shard this call is, from 0."""
        return int(self.shard.partition("/")[0]) - 1

    @property
    def parts(self) -> int:
        """Into how many shards the work is dealt."""
        return int(self.shard.partition("/")[2])

    def mine(self, sizes: Sequence[float]) -> list[int]:
        """Which tasks of these sizes are this shard's, in order: the same in every call of the same tasks."""
        return dealt(sizes, self.parts)[self.part]


LOCAL = Execution()


def dealt(sizes: Sequence[float], count: int) -> list[list[int]]:
    """Deal tasks of these sizes into so many shares: the largest first, each to the share that has least so far.

    No two shares differ by more than the size of one task. Equal tasks are dealt in turn. Nothing is random.
    """
    shares = [list[int]() for _ in range(count)]
    loads = [(0.0, share) for share in range(count)]
    for task in sorted(range(len(sizes)), key=lambda task: (-sizes[task], task)):
        load, least = loads[0]
        shares[least].append(task)
        heapq.heapreplace(loads, (load + sizes[task], least))
    return [sorted(share) for share in shares]
