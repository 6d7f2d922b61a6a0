"""What a forecaster is shown of one run: its snapshots up to an origin, and the origin's index in its iteration.

In: snapshots as an array, or the iterations of a trial.  Out: a `History`; epoch indices; what a run is known by.

Shapes: n snapshots, T snapshots of a whole trial, P weights.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from tipl.checks import Count, checked
from tipl.errors import TiplError

BEGINNING = 16
"""Snapshots among which `beginning_of` looks for the first that has moved."""


@dataclass(frozen=True)
class History:
    """The snapshots of one run up to the origin t. `Trial.history` makes it of a stored run.

    weights: [n, P], oldest first, the last is φ_t.
    epoch_index: how many snapshots of the same PPO iteration come before φ_t; -1 where the run has no iterations.
    snapshots_per_iteration: where that is known. Without it a forecaster that knows iterations of one length holds
        `epoch_index` against the origin: of 5 an iteration, φ_299 is the fourth, index 3.
    tokens: other vectors [J, weights] known at the origin, in a live run that makes them (`tipl.rl.context`).

    Raises:
        TiplError: there are no such weights, or no snapshot can have this index.
    """

    trial: int
    origin: int
    weights: np.ndarray
    epoch_index: int
    snapshots_per_iteration: int | None = None
    tokens: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("trial", "origin", "epoch_index"):
            object.__setattr__(self, name, checked(f"`{name}`", getattr(self, name), int))
        count = checked("`snapshots_per_iteration`", self.snapshots_per_iteration, Count | None)
        object.__setattr__(self, "snapshots_per_iteration", count)
        weights = np.asarray(self.weights)
        if weights.ndim != 2 or not weights.size or weights.dtype.kind not in "fiu":
            raise TiplError(
                f"A history holds real weights [snapshots, weights], not {weights.dtype} of the shape "
                f"{list(weights.shape)}; give the snapshots up to the origin, one a row."
            )
        if weights.dtype.kind != "f":
            weights = weights.astype(np.float32)
        object.__setattr__(self, "weights", weights)
        if self.origin < 0:
            raise TiplError(f"The origin is {self.origin}; give the number of the last snapshot, from 0.")
        most = self.origin if count is None else count - 1
        if self.origin and not -1 <= self.epoch_index <= most:
            known = "" if count is None else f", which has {count}"
            raise TiplError(
                f"Snapshot {self.origin} cannot have {self.epoch_index} others of its iteration before it{known}; give "
                "their number, or -1 where it is not known (trial.history(origin) knows)."
            )

    def last(self, count: int) -> np.ndarray:
        """Return the last `count` snapshots [count, P]; φ_0 again where there are fewer."""
        missing = count - len(self.weights)
        if missing <= 0:
            return self.weights[-count:]
        return np.concatenate([np.repeat(self.weights[:1], missing, axis=0), self.weights])


def epoch_indices(iteration_T: np.ndarray) -> np.ndarray:
    """Return [T]: how many snapshots of the same iteration come before each one; φ_0 stands where an iteration ends.

    -1 everywhere where the trial has no iterations (all its snapshots bear one number).
    """
    starts = np.flatnonzero(np.r_[True, np.diff(iteration_T) != 0])
    if len(starts) == 1:
        return np.full(len(iteration_T), -1)
    index_T = np.arange(len(iteration_T)) - np.repeat(starts, np.diff(np.r_[starts, len(iteration_T)]))
    index_T[0] = index_T.max()
    return index_T


def beginning_of(weights_TP: np.ndarray) -> str | None:
    """Return what a run is known by wherever it is made again: a digest of φ_0 and of the first snapshot that is
    another; None where none of the first is.

    Args:
        weights_TP: the run's first snapshots.
    """
    first_P = weights_TP[0]
    moved_P = next((each for each in weights_TP[1:BEGINNING] if not np.array_equal(each, first_P)), None)
    if moved_P is None:
        return None
    return hashlib.blake2b(np.stack([first_P, moved_P]).astype("<f4").tobytes(), digest_size=8).hexdigest()


class Seen:
    """The snapshots of one run by their digests, so that no other run is taken for it: of a run's number and its φ_0
    there may be several."""

    def __init__(self) -> None:
        self._digests: list[bytes] = []

    def __len__(self) -> int:
        return len(self._digests)

    def is_of(self, weights_TP: np.ndarray) -> bool:
        """Whether a run [T, P] from φ_0 on is this one, as far as both go: its first snapshot, the last that both
        know, and those 1, 2, 4, … before that."""
        both = min(len(self), len(weights_TP))
        looked_at: set[int] = {0, *(both - 2**k for k in range(both.bit_length()))} if both else set()
        return all(_digest(weights_TP[at]) == self._digests[at] for at in looked_at)

    def extend(self, weights_TP: np.ndarray) -> None:
        """The run has come to the last of these."""
        self._digests += map(_digest, weights_TP[len(self) :])


def _digest(weights_P: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(weights_P).data, digest_size=8).digest()
