"""Linear algebra: truncated SVDs by the method of snapshots, in float64, a block of a large float32 matrix at a time.

In: matrices of snapshots W [T, P], Gram matrices [N, N].  Out: singular values, descending, and their directions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse.linalg

EPS = float(np.finfo(np.float64).eps)
_BLOCK = 2**24  # numbers of a float64 block that products are taken of, 128 MB
_LANCZOS_FROM = 1024  # rows of a matrix whose leading directions are not worth a whole decomposition


@dataclass(frozen=True)
class TruncatedSVD:
    codes_TD: np.ndarray
    components_DP: np.ndarray
    singular_values: np.ndarray


def truncated_svd(weights_TP: np.ndarray, mean_P: np.ndarray, dim: int) -> TruncatedSVD:
    """The first D directions of W − mean in float64, and the whole spectrum, from the smaller Gram matrix."""
    count, size = weights_TP.shape
    assert 1 <= dim <= min(count, size), (dim, weights_TP.shape)
    mean_P = mean_P.astype(np.float64)
    if count <= size:
        gram_TT = np.zeros((count, count))
        for _, block in column_blocks(weights_TP, mean_P):
            gram_TT += block @ block.T
        singular_values, codes_TD = decomposed(gram_TT, dim)
        del gram_TT
        components_DP = np.empty((dim, size))
        for columns, block in column_blocks(weights_TP, mean_P):
            components_DP[:, columns] = divided(block.T @ codes_TD, singular_values[:dim]).T
    else:
        singular_values, components_PD = decomposed(covariance(weights_TP, mean_P), dim)
        components_DP = components_PD.T
        codes_TD = np.concatenate([(weights_TP[rows] - mean_P) @ components_PD for rows in row_slices(weights_TP)])
        codes_TD = divided(codes_TD, singular_values[:dim])
    signs_D = signs(codes_TD)
    return TruncatedSVD(codes_TD * signs_D, components_DP * signs_D[:, None], singular_values)


def covariance(weights_TP: np.ndarray, mean_P: np.ndarray) -> np.ndarray:
    """[P, P] (W − mean)ᵀ (W − mean) in float64."""
    covariance_PP = np.zeros((weights_TP.shape[1], weights_TP.shape[1]))
    for rows in row_slices(weights_TP):
        block = weights_TP[rows] - mean_P
        covariance_PP += block.T @ block
    return covariance_PP


def decomposed(gram_NN: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """All singular values [N], descending, and the eigenvectors [N, D] of the first D; overwrites the matrix.

    Most of the time goes into bringing the matrix to tridiagonal form, at the speed of memory; LAPACK's own routes to
    all eigenvalues and some eigenvectors do that twice, or turn all N eigenvectors back.
    """
    count = len(gram_NN)
    if count < 256:  # all of them are quick
        values_N, vectors = np.linalg.eigh(gram_NN)
        vectors_ND = vectors[:, ::-1][:, :dim]
    else:
        names = ("sytrd_lwork", "sytrd", "ormqr")
        sytrd_lwork, sytrd, ormqr = scipy.linalg.get_lapack_funcs(names, dtype=np.float64)
        work = int(sytrd_lwork(count, lower=1)[0])
        # gram_NN is its own transpose, which has the order of axes that LAPACK works in without a copy.
        reflectors, diagonal, beside, tau, _ = sytrd(gram_NN.T, lower=1, lwork=work, overwrite_a=1)
        values_N = np.asarray(scipy.linalg.eigvalsh_tridiagonal(diagonal, beside))
        _, vectors = scipy.linalg.eigh_tridiagonal(diagonal, beside, select="i", select_range=(count - dim, count - 1))
        vectors[1:], _, _ = ormqr("L", "N", reflectors[1:, :-1], tau, vectors[1:], lwork=64 * dim)
        vectors_ND = vectors[:, ::-1]
    singular_values = roots(values_N[::-1])
    return singular_values, np.where(singular_values[:dim] > 0, vectors_ND, 0)


def roots(values_N: np.ndarray) -> np.ndarray:
    """Singular values from descending eigenvalues of a Gram matrix; those that rounding could have made are zeros."""
    return np.sqrt(np.where(values_N > len(values_N) * EPS * values_N[0], values_N, 0))


def leading_eigenpairs(gram_NN: np.ndarray, dim: int, magnitude: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The D largest eigenvalues, descending, and their eigenvectors [N, D].

    Those that rounding could have made (of the matrix, or of numbers as large as `magnitude` that it came from), and
    those beyond N, are zeros. Of a large matrix they are found by Lanczos, to a residual of 1e-9 of the eigenvalue.
    """
    count = len(gram_NN)
    found = min(dim, count)
    values, vectors = _lanczos(gram_NN, found) or scipy.linalg.eigh(
        gram_NN, subset_by_index=(count - found, count - 1), check_finite=False
    )
    values_D, vectors_ND = np.zeros(dim), np.zeros((count, dim))
    values_D[:found], vectors_ND[:, :found] = values[::-1], vectors[:, ::-1]
    is_rounding = values_D <= count * EPS * max(values_D[0], magnitude)
    values_D[is_rounding], vectors_ND[:, is_rounding] = 0, 0
    return values_D, vectors_ND


def _lanczos(gram_NN: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The D largest eigenpairs, ascending; None where the matrix is small, or where Lanczos does not get there."""
    count = len(gram_NN)
    if count < _LANCZOS_FROM or 32 * dim > count or not gram_NN.any():
        return None
    try:
        # From a fixed start, so that the same matrix has the same directions.
        how: Any = {"which": "LA", "tol": 1e-9, "v0": np.ones(count)}  # scipy's stubs take tol for an int
        values, vectors = scipy.sparse.linalg.eigsh(gram_NN, dim, **how)
    except scipy.sparse.linalg.ArpackError:  # not converged, or the start lies in a null space
        return None
    order = np.argsort(values)
    return values[order], vectors[:, order]


def signs(codes_ND: np.ndarray) -> np.ndarray:
    """[D] ±1 that make the first code of each column that is not zero positive; 1 for a column of zeros."""
    size_ND = np.abs(codes_ND)
    first_D = (size_ND > 1e-6 * size_ND.max(axis=0)).argmax(axis=0)
    return np.where(codes_ND[first_D, np.arange(codes_ND.shape[1])] < 0, -1.0, 1.0)


def divided(values_ND: np.ndarray, scale_D: np.ndarray) -> np.ndarray:
    """values / scale, 0 where the scale is 0: a direction that the data has not got."""
    return np.divide(values_ND, scale_D, out=np.zeros_like(values_ND), where=scale_D > 0)


def column_blocks(weights_TP: np.ndarray, mean_P: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """W − mean in float64, a block of columns at a time."""
    count, size = weights_TP.shape
    width = max(1, _BLOCK // count)
    for start in range(0, size, width):
        columns = slice(start, min(start + width, size))
        yield columns, weights_TP[:, columns] - mean_P[columns]


def row_slices(weights_TP: np.ndarray) -> Iterator[slice]:
    """Rows whose float64 copies are one block."""
    height = max(1, _BLOCK // weights_TP.shape[1])
    for start in range(0, len(weights_TP), height):
        yield slice(start, min(start + height, len(weights_TP)))
