"""Inner products of snapshots, and their spectra: the geometry of a trial without P.

In: the weights [T, P] of a trial, whole or as they come.  Out: Gram matrices, singular values.

Shapes: T snapshots, P weights, K context, S snapshots of a span, N any number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from tipl.errors import TiplError
from tipl.representation.linear_algebra import column_blocks, roots
from tipl.store import Trial

ENERGY_SHARES = (0.9, 0.95, 0.99, 0.999)


@dataclass(frozen=True)
class Gram:
    """Every inner product of a trial's snapshots: its whole geometry, without P.

    The entries of row i and column j depend on snapshots 0, i and j alone, so that the leading block up to an origin
    has not seen what comes later.
    """

    displacement_TT: np.ndarray
    """⟨φ_i − φ_0, φ_j − φ_0⟩, float64."""
    initial_T: np.ndarray
    """⟨φ_i, φ_0⟩, float64: what leads back from displacements to weights."""

    @classmethod
    def of(cls, weights_TP: np.ndarray) -> "Gram":
        """Return the Gram matrix of snapshots weights_TP, in float64.

        Over blocks of columns: one float64 block and two T×T matrices beyond the weights.
        """
        count = len(weights_TP)
        displacement_TT, initial_T = np.zeros((count, count)), np.zeros(count)
        initial_P = weights_TP[0].astype(np.float64)
        for columns, block in column_blocks(weights_TP, initial_P):
            displacement_TT += block @ block.T  # numpy sees the symmetry and does half the work (BLAS syrk)
            initial_T += block @ initial_P[columns]
        return cls(displacement_TT, initial_T + initial_P @ initial_P)

    def __add__(self, other: "Gram") -> "Gram":
        """Of the same snapshots with the other's weights beside these."""
        return Gram(self.displacement_TT + other.displacement_TT, self.initial_T + other.initial_T)

    def inner(self, rows: Any, columns: Any, anchor: int | None) -> np.ndarray:
        """Return ⟨φ_i − φ_a, φ_j − φ_a⟩ [I, J] for slices or index arrays i, `rows`, and j, `columns`.

        Where the `anchor` a is None: ⟨φ_i, φ_j⟩.
        """
        index = np.arange(len(self.initial_T))
        rows, columns = index[rows], index[columns]
        gram_NN = self.displacement_TT[np.ix_(rows, columns)]
        if anchor is None:
            return gram_NN + self.initial_T[rows, None] + self.initial_T[columns] - self.initial_T[0]
        return (
            gram_NN
            - self.displacement_TT[rows, anchor][:, None]
            - self.displacement_TT[anchor, columns]
            + self.displacement_TT[anchor, anchor]
        )


def gram(trial: Trial) -> Gram:
    """All inner products of a trial. Every chunk is read once; the trial is held in memory as float32."""
    return Gram.of(read_weights(trial))


def spectrum(gram_NN: np.ndarray) -> np.ndarray:
    """[N] singular values of the rows whose inner products these are, descending; rounding counts as zero."""
    return roots(scipy.linalg.eigvalsh(gram_NN, check_finite=False)[::-1])


def directions(singular_values: np.ndarray, shares: Sequence[float] = ENERGY_SHARES) -> list[int]:
    """How many directions hold at least each share of the energy Σ σ²; 0 where there is no energy at all."""
    energy = np.cumsum(np.square(singular_values, dtype=np.float64))
    if energy[-1] == 0:
        return [0] * len(shares)
    return [int(np.searchsorted(energy, share * energy[-1])) + 1 for share in shares]


def read_weights(trial: Trial) -> np.ndarray:
    """The committed weights of a trial, float32 [T, P]."""
    weights_TP = trial.weights(0, trial.committed)
    finite_T = np.isfinite(weights_TP.sum(axis=1, dtype=np.float64))
    if not finite_T.all():
        raise TiplError(
            f"Trial {trial.seed} holds weights that are not finite from snapshot {int(finite_T.argmin())} on: "
            "the run diverged; leave it out of the store."
        )
    return weights_TP
