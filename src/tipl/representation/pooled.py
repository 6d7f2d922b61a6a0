"""The pooled basis, out of core: one SVD of all training trials, with one trial in memory at a time.

In: the training trials of a store.  Out: components [D, P] and singular values.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import scipy.linalg

from tipl.config.presets import SVDConfig
from tipl.representation.basis import Basis
from tipl.representation.grams import read_weights
from tipl.representation.linear_algebra import covariance, decomposed, divided, signs, truncated_svd
from tipl.store import Store
from tipl.store.spec import ParamSpec

_COVARIANCE_SIZE = 8192  # the largest P whose P×P matrix is held for the pooled basis, 0.5 GB
_MERGE_RANK = 256  # directions that the pooled basis keeps between trials beyond that P, or 4 d if more


def fit_pooled(store: Store, config: SVDConfig) -> dict[str, np.ndarray]:
    """The stacked training trials' `components`, `singular_values` and `dropped_energy`."""
    seeds = store.split().train
    fits = [  # by tensor every trial is read for each of them: what is held at once decides, not the disk
        _fit(store, seeds, columns, config) for columns in basis_columns(store.trial(seeds[0]).spec, config)
    ]
    components_DP = np.asarray(scipy.linalg.block_diag(*(components for components, _, _ in fits)))
    singular_values, dropped = fits[0][1], max(share for _, _, share in fits)
    if config.by_tensor:
        singular_values = np.concatenate([values[: len(components)] for components, values, _ in fits])
    first_TP = read_weights(store.trial(seeds[0]))
    codes_TD = pooled_basis(first_TP, components_DP, singular_values, config).encode(first_TP)
    components_DP = (components_DP * signs(codes_TD)[:, None]).astype(np.float32)
    return {"components": components_DP, "singular_values": singular_values, "dropped_energy": np.array(dropped)}


def basis_columns(spec: ParamSpec, config: SVDConfig) -> list[slice]:
    """The weights that have a basis of their own: all of them, or each tensor's."""
    if not config.by_tensor:
        return [slice(0, spec.size)]
    return [slice(offset, offset + size) for offset, size in zip(spec.offsets, spec.sizes, strict=True)]


def _fit(store: Store, seeds: Sequence[int], columns: slice, config: SVDConfig) -> tuple[np.ndarray, np.ndarray, float]:
    """Components [D, columns], singular values, and the share of the energy that was cut between trials."""
    size = columns.stop - columns.start
    fit = _pooled_covariance if size <= _COVARIANCE_SIZE else _pooled_merge
    matrices = (_centered(read_weights(store.trial(seed))[:, columns], config) for seed in seeds)
    return fit(matrices, size, min(config.dim, size))


def _pooled_covariance(matrices: Iterable[np.ndarray], size: int, dim: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Exact, from the P×P matrix Σ WᵀW."""
    covariance_PP = np.zeros((size, size))
    for weights_TP in matrices:
        covariance_PP += covariance(weights_TP, np.zeros(size))
    singular_values, components_PD = decomposed(covariance_PP, dim)
    return components_PD.T, singular_values, 0.0


def _pooled_merge(matrices: Iterable[np.ndarray], size: int, dim: int) -> tuple[np.ndarray, np.ndarray, float]:
    """S V of each trial, cut to R rows, joined one after the other and cut again (Levy and Lindenbaum 2000).

    Exact where the stacked trials have no more than R directions. Otherwise each σ² is too small by no more than the
    energy that was cut, whose share of the whole is the third value.
    """
    rank = max(_MERGE_RANK, 4 * dim)
    joined_RP = np.zeros((0, size), np.float32)
    whole = 0.0
    singular_values = np.zeros(0)
    for weights_TP in matrices:
        own_RP, own_values = _cut(weights_TP, rank)
        whole += float(np.square(own_values).sum())
        joined_RP, singular_values = _cut(np.concatenate([joined_RP, own_RP]), rank)
    kept = singular_values[:rank]
    dropped = max(0.0, 1 - float(np.square(kept).sum()) / whole) if whole > 0 else 0.0
    return divided(joined_RP[:dim].T.astype(np.float64), kept[:dim]).T, kept, dropped


def _cut(weights_TP: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `rank` rows of S V, float32, and the whole spectrum."""
    rank = min(rank, *weights_TP.shape)
    svd = truncated_svd(weights_TP, np.zeros(weights_TP.shape[1]), rank)
    return (svd.singular_values[:rank, None] * svd.components_DP).astype(np.float32), svd.singular_values


def pooled_basis(
    weights_TP: np.ndarray, components_DP: np.ndarray, singular_values: np.ndarray, config: SVDConfig
) -> Basis:
    mean_P = weights_TP[0] if config.centered else np.zeros_like(weights_TP[0])
    return Basis(mean_P, components_DP, singular_values[: len(components_DP)], singular_values, look_ahead=False)


def _centered(weights_TP: np.ndarray, config: SVDConfig) -> np.ndarray:
    """In place: a trial may take a gigabyte."""
    if config.centered:
        weights_TP -= weights_TP[0].copy()
    return weights_TP
