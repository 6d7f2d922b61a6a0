"""A basis for each origin: window and prefix.

In: a trial's Gram matrix.  Out: for an origin the codes of the snapshots that it has seen, and the way back to weights.

Shapes: T snapshots, P weights, K context, D code, S snapshots of a span, N any number, B leading directions.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tipl.representation.grams import Gram
from tipl.representation.linear_algebra import EPS, divided, leading_eigenpairs, signs

_RESIDUAL = 1e-7  # of an eigenvalue: a prefix direction is converged
_MOST_EXPANSIONS = 24  # of the space in which prefix directions are sought, before they are computed anew


@dataclass(frozen=True)
class OriginBasis:
    """A basis that has seen snapshots `first` … `origin`, held as sums of them, so that P never enters.

    A forecast in the span of what was seen is `codes @ coefficients_DS`: weights over the S snapshots, added to φ_a
    (a = `anchor`), which costs O(S P) once it is to be a policy.
    """

    first: int
    origin: int
    anchor: int | None
    """The snapshot that displacements are taken from: the origin (window), 0 (prefix), none (prefix, uncentered)."""
    codes_SD: np.ndarray
    """U: the code of each snapshot seen, oldest first. Invariant to scaling and rotation of weight space."""
    scale_D: np.ndarray
    """S: singular values, in the units of the weights; code · S are the coordinates in orthonormal directions."""

    @property
    def coefficients_DS(self) -> np.ndarray:
        """S V as weighted sums of the snapshots: row i is Σ_s coefficients[i, s] φ_s, and sums to 0 if anchored."""
        coefficients_DS = self.codes_SD.T.copy()
        if self.anchor is not None:
            coefficients_DS[:, self.anchor - self.first] -= coefficients_DS.sum(axis=1)
        return coefficients_DS

    def decode(self, codes_ND: np.ndarray, snapshots_SP: np.ndarray) -> np.ndarray:
        """Turn codes_ND into float64 weights [N, P], given the snapshots `first` … `origin`, snapshots_SP."""
        weights_NP = codes_ND @ (self.coefficients_DS @ snapshots_SP)
        return weights_NP if self.anchor is None else weights_NP + snapshots_SP[self.anchor - self.first]

    def encode(self, weights_NP: np.ndarray, snapshots_SP: np.ndarray) -> np.ndarray:
        """Turn any weights_NP into codes [N, D], given the snapshots `first` … `origin`, snapshots_SP."""
        anchor_P = 0.0 if self.anchor is None else snapshots_SP[self.anchor - self.first].astype(np.float64)
        scaled_DP = self.coefficients_DS @ snapshots_SP
        return divided((weights_NP - anchor_P) @ scaled_DP.T, np.square(self.scale_D))

    def project(self, gram: Gram, snapshots: Any) -> np.ndarray:
        """Return the codes [N, D] of snapshots of the same trial, any t, from inner products alone, its `gram`."""
        inner_SN = gram.inner(slice(self.first, self.origin + 1), snapshots, self.anchor)
        return divided(inner_SN.T @ self.codes_SD, np.square(self.scale_D))

    def floor(self, gram: Gram, snapshots: Any, size: int) -> np.ndarray:
        """Return the mean squared error [N] over the `size` = P weights of these snapshots, encoded and decoded.

        gram: of their trial.
        """
        square_N = np.diagonal(gram.inner(snapshots, snapshots, self.anchor))
        kept_N = np.square(self.project(gram, snapshots) * self.scale_D).sum(axis=1)
        return np.maximum(square_N - kept_N, 0) / size


def window_basis(gram: Gram, origin: int, context: int, dim: int) -> OriginBasis:
    """SVD of the last K displacements φ_{t−K} − φ_t … φ_{t−1} − φ_t; of as many as there are where t < K.

    Args:
        gram: of the trial; read up to `origin` only.
        origin: t, the row of `gram` that the window ends with.
        context: K.
        dim: D; directions that the window has not got are zeros.
    """
    first = max(0, origin - context)
    rows = slice(first, origin + 1)
    seen_SS = gram.inner(rows, rows, origin)
    # Differences of large inner products: what is smaller than their rounding is no direction.
    magnitude = max(gram.displacement_TT[first, first], gram.displacement_TT[origin, origin])
    values_D, codes_SD = leading_eigenpairs(seen_SS, dim, magnitude)
    return OriginBasis(first, origin, origin, codes_SD * signs(codes_SD), np.sqrt(values_D))


def prefix_bases(gram: Gram, origins: Iterable[int], dim: int, *, centered: bool = True) -> Iterator[OriginBasis]:
    """The prefix basis of each of ascending origins, each found from the one before it.

    A later snapshot turns the leading directions a little and mostly in one direction, so that a few products of the
    Gram matrix with one vector bring the residuals down to 1e-7 of their eigenvalues: O(T²) an origin instead of the
    O(T³) of a new decomposition.
    """
    anchor = 0 if centered else None
    inner_TT = gram.displacement_TT if centered else gram.inner(slice(None), slice(None), None)
    width = dim + 8  # some more than needed converge faster
    leading: _Leading | None = None
    for origin in origins:
        seen_SS = inner_TT[: origin + 1, : origin + 1]
        if leading is not None:
            new = len(seen_SS) - len(leading.vectors_NB)
            assert new >= 0, "origins must ascend"
            # A small matrix is quick to decompose anew, many snapshots at once turn the directions too far.
            few = max(width, len(seen_SS) // 32)
            leading = _grown(seen_SS, leading, dim) if new <= few and len(seen_SS) >= 4 * width else None
        if leading is None:
            values_B, vectors_SB = leading_eigenpairs(seen_SS, width)
            leading = _Leading(values_B, vectors_SB, seen_SS @ vectors_SB)
        is_rounding = leading.values_B[:dim] <= len(seen_SS) * EPS * leading.values_B[0]
        codes_SD = np.where(is_rounding, 0, leading.vectors_NB[:, :dim])
        scale_D = np.sqrt(np.where(is_rounding, 0, leading.values_B[:dim]))
        yield OriginBasis(0, origin, anchor, codes_SD * signs(codes_SD), scale_D)


@dataclass(frozen=True)
class _Leading:
    """The B leading eigenpairs of a Gram matrix and what it makes of them."""

    values_B: np.ndarray
    vectors_NB: np.ndarray
    image_NB: np.ndarray
    """Gram matrix times vectors, which makes residuals cheap."""


def _grown(gram_NN: np.ndarray, before: _Leading, dim: int) -> _Leading | None:
    """The leading eigenpairs, the first D of them converged, from those of the leading S×S block of the matrix.

    Rayleigh-Ritz in the span of the old eigenvectors and the unit vectors of the N − S new rows, whose images under the
    matrix are known, and then also of the directions in which residuals are left. A new row turns all eigenvectors out
    of that span in one direction, so these are few. None where it does not converge.
    """
    count, (old, width) = len(gram_NN), before.vectors_NB.shape
    new = count - old
    space = np.zeros((count, width + new))
    space[:old, :width] = before.vectors_NB
    space[old:, width:] = np.eye(new)
    image = np.concatenate([np.empty((count, width)), gram_NN[:, old:]], axis=1)
    image[:old, :width] = before.image_NB
    image[old:, :width] = gram_NN[old:, :old] @ before.vectors_NB
    for _ in range(_MOST_EXPANSIONS):
        values, rotation = np.linalg.eigh(space.T @ image)
        values_B, rotation = values[::-1][:width], rotation[:, ::-1][:, :width]
        vectors_NB, image_NB = space @ rotation, image @ rotation
        rounding = max(count * EPS * values_B[0], np.finfo(np.float64).tiny)  # no 0 / 0 where nothing ever moved
        allowed_D = np.maximum(_RESIDUAL * values_B[:dim], rounding)
        excess_ND = (image_NB[:, :dim] - vectors_NB[:, :dim] * values_B[:dim]) / allowed_D
        if (np.linalg.norm(excess_ND, axis=0) <= 1).all():
            return _Leading(values_B, vectors_NB, image_NB)
        left, sizes, _ = np.linalg.svd(excess_ND, full_matrices=False)
        added = left[:, sizes > 0.1]
        added, _ = np.linalg.qr(added - space @ (space.T @ added))
        space, image = np.concatenate([space, added], axis=1), np.concatenate([image, gram_NN @ added], axis=1)
    return None
