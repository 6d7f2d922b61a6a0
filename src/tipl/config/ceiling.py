"""The settings of the ceiling: at which origins of which trials runs are branched, how often, and how far ahead.

In: nothing.  Out: a frozen dataclass that `tipl.ceiling` takes and its flags are made from.
"""

from dataclasses import dataclass
from typing import Annotated

from tipl.checks import Count, Whole, Within, check_settings, require


@dataclass(frozen=True)
class CeilingConfig:
    """How much of the coming weights can be known."""

    horizons: tuple[Count, ...] = (1, 5, 10, 50)
    """Snapshots ahead."""
    futures: Annotated[int, Within(2, 4096)] = 16
    """Branches of each origin. Fewer make the ceiling no higher, but less certain."""
    trials: Count = 5
    """Most trials that are judged, the first of those that may be; from fewer than five there are no intervals."""
    origins: Count = 3
    """Origins a trial: so many evenly over time, and as many over the return gained. All of them stand where an
    iteration ends."""
    iterations: tuple[Count, ...] = ()
    """Branch after exactly these iterations instead."""
    all: bool = False
    """Judge any trial of the store, which no model may have learned from; baselines that take a fit are left out."""
    seed: Whole = 0
    """Seed of the origins, of what the branches draw, and of the bootstrap."""

    def __post_init__(self) -> None:
        check_settings(self)
        require(len(self.horizons) >= 1, "--horizons is empty; give one or more.")
        for name in ("horizons", "iterations"):
            values = getattr(self, name)
            twice = next((value for value in values if values.count(value) > 1), None)
            require(twice is None, f"--{name} has {twice} twice; give it once.")
