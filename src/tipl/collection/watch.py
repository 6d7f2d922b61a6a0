"""What is told of trials while they run: how far they are, how fast they go, what they earn.

In: steps and episodes of running trials.  Out: cells on the terminal, points of curves.
"""

import time
from collections.abc import Callable, Mapping

import numpy as np
from rich.columns import Columns

from tipl.progress import console

_RECENT = 10  # episodes that make a trial's "return so far"


class Watch:
    """What is known of every running trial: how far it is, how fast it goes, what it earns."""

    def __init__(self, totals: Mapping[str, int], begun: Mapping[str, int]) -> None:
        """Trials, by what they are called, of `totals[name]` steps, that stand at `begun[name]`."""
        self._totals = totals
        self.left = sum(total - begun[name] for name, total in totals.items())
        self._steps = dict(begun)
        self._recent: dict[str, float] = {}
        self._first: dict[str, tuple[int, float]] = {}  # the steps that were done when a trial was first heard of, when

    def take(self, name: str, steps: int, recent: float) -> int:
        """A trial has done so many steps and earns so much (NaN: no episode has ended); how many steps are new."""
        new, self._steps[name] = steps - self._steps[name], steps
        self._first.setdefault(name, (steps, time.monotonic()))
        if not np.isnan(recent):
            self._recent[name] = recent
        return new

    def mean_return(self) -> str:
        return f"return {np.mean(list(self._recent.values())):.0f}" if self._recent else ""

    def trials(self) -> Columns:
        """A cell a trial: its name, its share of the steps, steps a second, return so far; as many as there is room,
        those that run before those that wait or are done."""
        cells = {True: list[str](), False: list[str]()}
        for name, steps in self._steps.items():
            recent = f"{self._recent[name]:.0f}" if name in self._recent else "–"
            begun, since = self._first.get(name, (steps, 0.0))
            pace = (steps - begun) / max(time.monotonic() - since, 1e-9)
            runs = name in self._first and steps < self._totals[name]
            done = "done" if steps >= self._totals[name] else f"{steps / self._totals[name]:.0%} {pace:,.0f}/s"
            cells[runs].append(f"{name}: {done}, return {recent}")
        shown = [*cells[True], *cells[False]]
        a_row = max(1, console.width // (2 + max(map(len, shown))))
        return Columns(shown[: a_row * max(1, console.height - 3)], equal=True, padding=(0, 2))


class Curves:
    """One trial as it runs: its curves, and what it earns."""

    def __init__(self, begun: int, write: Callable[[str, float, int], None]) -> None:
        self._begun, self._write = begun, write
        self._since = time.monotonic()
        self._recent: list[float] = []

    def take(self, steps: int, learning_rate: float, episodes: np.ndarray) -> float:
        """The trial has done so many steps, and in the last iteration these episodes [E, 3] ended (step, return,
        length); returns its mean return over the last episodes, NaN before there is any."""
        for step, episode_return, length in episodes.tolist():
            self._write("charts/episodic_return", episode_return, int(step))
            self._write("charts/episodic_length", length, int(step))
        self._write("charts/learning_rate", learning_rate, steps)
        self._write("charts/SPS", (steps - self._begun) / max(time.monotonic() - self._since, 1e-9), steps)
        self._recent = [*self._recent, *episodes[:, 1].tolist()][-_RECENT:]
        return float(np.mean(self._recent)) if self._recent else np.nan
