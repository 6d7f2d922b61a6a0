"""Which run is which: a run's snapshots remembered by their digests.

In: the snapshots of runs, from φ_0 on.  Out: whether two runs are one, as far as both go.
"""

import hashlib

import numpy as np


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
        looked_at = {0, *(both - 2**k for k in range(both.bit_length()))} if both else set()
        return all(_digest(weights_TP[at]) == self._digests[at] for at in looked_at)

    def extend(self, weights_TP: np.ndarray) -> None:
        """The run has come to the last of these."""
        self._digests += map(_digest, weights_TP[len(self) :])


def _digest(weights_P: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(weights_P).data, digest_size=8).digest()
