"""Evidence: whether going to forecast weights raises the return, by batches that had no part in the forecast.

In: a proposal that was taken, or would have been; the next batch.  Out: whether the proposals so far did good.

A path goes where its batches' advantages point, also where these are wrong: what a forecast carries on may be a lasting
error of the critic as well as an improvement. The next batch is made after the proposal, so its noise had no part in
it. By its outcomes it says, to first order, what the proposal does to the return (Kakade & Langford 2002). One batch
says little, the sum over the last twenty proposals more.

Outcomes are advantages with λ = 1: the rewards that came, less the critic's value as a baseline. Where an episode goes
on beyond the rollout, the critic's value of its last observation stands for the rest: the shorter the rollout, the more
of the critic's errors is left in them.

Shapes: P weights.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

_MEMORY = 0.9  # of the gains, from one proposal to the next
_LEAST = 0.0  # standard errors; with −1 more harm went through on Pusher (`LOG.md`, 2026-12-01)


class Judgment(NamedTuple):
    """What the batch in hand says of weights."""

    kl: float
    """Mean KL divergence, in nats, of their policy from the current one."""
    surrogate: float
    """Mean of ratio × (advantage − mean advantage): 0 for the policy that made the batch; the higher the better."""
    change: float = 0.0
    """Mean KL divergence, in nats, of their policy from the one that made the batch."""
    error: float = 0.0
    """Standard error of `surrogate`, as of independent samples."""


Judge = Callable[[np.ndarray], Judgment]


class Evidence:
    """The gains of a run's proposals, the older the lighter, and their variance."""

    def __init__(self) -> None:
        self._gain = self._variance = 0.0
        self._elsewhere: np.ndarray | None = None  # the weights before the jump if it was taken, else those after it
        self._taken = False

    @property
    def errors(self) -> float:
        """The gain in standard errors; 0 before the first."""
        return self._gain / self._variance**0.5 if self._variance > 0 else 0.0

    @property
    def is_against(self) -> bool:
        """Whether the proposals seem to have lowered the return."""
        return self.errors < _LEAST

    def propose(self, weights_P: np.ndarray, displacement_P: np.ndarray, taken: bool) -> None:
        """Remember what to hold the next batch against: a displacement from `weights_P`, taken or not."""
        self._elsewhere, self._taken = (weights_P if taken else weights_P + displacement_P), taken

    def weigh(self, judge: Judge) -> None:
        """Hold the last proposal against the next batch.

        Args:
            judge: by outcomes; its surrogate is 0 for the policy that made the batch.
        """
        elsewhere, self._elsewhere = self._elsewhere, None
        if elsewhere is None:
            return
        found = judge(elsewhere)
        if not (np.isfinite(found.surrogate) and np.isfinite(found.error)):
            return
        self._gain = _MEMORY * self._gain + (-found.surrogate if self._taken else found.surrogate)
        self._variance = _MEMORY**2 * self._variance + found.error**2

    def state(self) -> dict[str, np.ndarray]:
        """All that `errors` will depend on, as arrays, to be given to `restore`."""
        gains = {"gains": np.array([self._gain, self._variance, self._taken])}
        return gains | ({} if self._elsewhere is None else {"elsewhere": self._elsewhere.copy()})

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on where `state` was taken; anew where it is of an earlier version."""
        self._gain, self._variance, taken = map(float, state.get("gains", (0.0, 0.0, 0.0)))
        self._taken, self._elsewhere = bool(taken), np.array(state["elsewhere"]) if "elsewhere" in state else None
