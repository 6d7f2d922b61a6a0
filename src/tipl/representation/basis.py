"""One basis for a whole trial: full and pooled.

In: the weights [T, P] of a trial.  Out: its codes [T, D], and the way back to weights.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg

from tipl.representation.linear_algebra import divided, row_slices, truncated_svd


@dataclass(frozen=True)
class Basis:
    """A truncated SVD that snapshots can be encoded in: code = (φ − mean) Vᵀ / S, φ ≈ mean + code · S V."""

    mean_P: np.ndarray
    """Subtracted first: the trial's φ_0 if centered, else zeros."""
    components_DP: np.ndarray
    """V: orthonormal rows; a row of zeros where the data has no further direction. By tensor, a row is zero outside."""
    scale_D: np.ndarray
    """S: the d largest singular values."""
    singular_values: np.ndarray
    """The whole spectrum of the matrix that the basis was fitted to, descending; by tensor S again."""
    look_ahead: bool
    """The basis has seen what comes after the snapshots of this trial."""

    def encode(self, weights_TP: np.ndarray) -> np.ndarray:
        """Turn snapshots weights_TP into float32 codes [T, D]."""
        return np.concatenate([code for _, code in self._encoded(weights_TP)]).astype(np.float32)

    def decode(self, codes_TD: np.ndarray) -> np.ndarray:
        """Turn codes_TD into float32 snapshots [T, P]."""
        weights_TP = np.empty((len(codes_TD), len(self.mean_P)), np.float32)
        for rows in row_slices(weights_TP):
            weights_TP[rows] = self.mean_P + np.asarray(codes_TD[rows], np.float64) @ self._scaled_DP
        return weights_TP

    def floor(self, weights_TP: np.ndarray) -> float:
        """Return the mean over T and P of (φ − decode(encode(φ)))², φ = weights_TP: no forecast does better."""
        squares = 0.0
        for rows, codes in self._encoded(weights_TP):
            squares += float(np.square(weights_TP[rows] - self.mean_P - codes @ self._scaled_DP).sum())
        return squares / weights_TP.size

    def _encoded(self, weights_TP: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        components_PD = self.components_DP.T.astype(np.float64)
        for rows in row_slices(weights_TP):
            yield rows, divided((weights_TP[rows] - self.mean_P.astype(np.float64)) @ components_PD, self.scale_D)

    @cached_property
    def _scaled_DP(self) -> np.ndarray:
        return self.scale_D[:, None] * self.components_DP.astype(np.float64)


def joined_bases(bases: Sequence[Basis]) -> Basis:
    """One basis of the bases of tensors that lie end to end; a code is theirs end to end."""
    scale_D = np.concatenate([basis.scale_D for basis in bases])
    return Basis(
        mean_P=np.concatenate([basis.mean_P for basis in bases]),
        components_DP=np.asarray(scipy.linalg.block_diag(*(basis.components_DP for basis in bases))),
        scale_D=scale_D,
        singular_values=scale_D,
        look_ahead=bases[0].look_ahead,
    )


def trial_basis(weights_TP: np.ndarray, dim: int, *, centered: bool = False) -> tuple[np.ndarray, Basis]:
    """The `full` basis of one trial, which sees its future: float32 codes U [T, D] and the basis."""
    mean_P = weights_TP[0].copy() if centered else np.zeros_like(weights_TP[0])
    svd = truncated_svd(weights_TP, mean_P, dim)
    components_DP = svd.components_DP.astype(np.float32)
    basis = Basis(mean_P, components_DP, svd.singular_values[:dim], svd.singular_values, look_ahead=True)
    return svd.codes_TD.astype(np.float32), basis
