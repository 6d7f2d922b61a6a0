"""Temporal SVD: snapshots as short codes, in four bases, and what each of them leaves out.

In: the weights [T, P] of a store's trials.  Out: CODES (a zarr group), Bases, Gram matrices and their spectra.

In every basis the displacements or weights W that it is made from are W = U S Vᵀ, a code is a row of U's first d
columns, and code · S Vᵀ gives the weights back. They differ in the W they have seen:

    full     all of a trial, as the paper has it. LOOK-AHEAD: every code depends on the future of its snapshot.
    pooled   all of the training trials, stacked; causal for every other trial.
    prefix   φ_0 … φ_t, anew at every origin t; causal.
    window   φ_{t−K} − φ_t … φ_{t−1} − φ_t, anew at every origin t; causal.

`centered` subtracts a trial's own φ_0 in the first three. U is found by the method of snapshots (Sirovich 1987): the
eigenvectors of the T×T Gram matrix W Wᵀ, or of Wᵀ W where P < T, in float64. Squaring costs accuracy: singular values
below √(n · 2e-16) of the largest (1e-6 of it for n = 4,881) cannot be told from rounding and count as zero, code
included. Float32 snapshots hold no more: their own rounding is 6e-8 of a weight.

The sign of a direction is free; here the first snapshot whose code is not zero has a positive one (more than 1e-6 of
the column's largest). Shapes: T snapshots, P weights, D code, K context, S snapshots of a span, N any number.
"""

import contextlib
import dataclasses
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import zarr

from tipl.errors import TiplError
from tipl.presets import SVDConfig
from tipl.progress import console, steps_progress
from tipl.store import Store, Trial

FORMAT = "tipl-codes"
VERSION = 1
ENERGY_SHARES = (0.9, 0.95, 0.99, 0.999)

_EPS = float(np.finfo(np.float64).eps)
_BLOCK = 2**24  # numbers of a float64 block that products are taken of, 128 MB
_COVARIANCE_SIZE = 8192  # the largest P whose P×P matrix is held for the pooled basis, 0.5 GB
_MERGE_RANK = 256  # directions that the pooled basis keeps between trials beyond that P, or 4 d if more

_RESIDUAL = 1e-7  # of an eigenvalue: a prefix direction is converged
_MOST_EXPANSIONS = 24  # of the space in which prefix directions are sought, before they are computed anew


# Inner products and spectra


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
        """In float64, over blocks of columns: one float64 block and two T×T matrices beyond the weights."""
        count = len(weights_TP)
        displacement_TT, initial_T = np.zeros((count, count)), np.zeros(count)
        initial_P = weights_TP[0].astype(np.float64)
        for columns, block in _column_blocks(weights_TP, initial_P):
            displacement_TT += block @ block.T  # numpy sees the symmetry and does half the work (BLAS syrk)
            initial_T += block @ initial_P[columns]
        return cls(displacement_TT, initial_T + initial_P @ initial_P)

    def inner(self, rows: Any, columns: Any, anchor: int | None) -> np.ndarray:
        """⟨φ_i − φ_a, φ_j − φ_a⟩ for slices or index arrays i and j; ⟨φ_i, φ_j⟩ where `anchor` is None."""
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
    return Gram.of(_read(trial))


def layer_grams(trial: Trial) -> Iterator[tuple[str, Gram]]:
    """The Gram of each tensor of the policy apart, by name, one after the other; they sum to the whole one.

    Each takes the place of a trial's Gram in the functions below, for spectra, windows and prefixes of one layer.
    """
    weights_TP = _read(trial)
    for name, offset, size in zip(trial.spec.names, trial.spec.offsets, trial.spec.sizes, strict=True):
        yield name, Gram.of(weights_TP[:, offset : offset + size])


def spectrum(gram_NN: np.ndarray) -> np.ndarray:
    """[N] singular values of the rows whose inner products these are, descending; rounding counts as zero."""
    return _roots(scipy.linalg.eigvalsh(gram_NN, check_finite=False)[::-1])


def directions(singular_values: np.ndarray, shares: Sequence[float] = ENERGY_SHARES) -> list[int]:
    """How many directions hold at least each share of the energy Σ σ²; 0 where there is no energy at all."""
    energy = np.cumsum(np.square(singular_values, dtype=np.float64))
    if energy[-1] == 0:
        return [0] * len(shares)
    return [int(np.searchsorted(energy, share * energy[-1])) + 1 for share in shares]


# One basis for a whole trial: full and pooled


@dataclass(frozen=True)
class Basis:
    """A truncated SVD that snapshots can be encoded in: code = (φ − mean) Vᵀ / S, φ ≈ mean + code · S V."""

    mean_P: np.ndarray
    """Subtracted first: the trial's φ_0 if centered, else zeros."""
    components_DP: np.ndarray
    """V: orthonormal rows; a row of zeros where the data has no further direction."""
    scale_D: np.ndarray
    """S: the d largest singular values."""
    singular_values: np.ndarray
    """The whole spectrum of the matrix that the basis was fitted to, descending."""
    look_ahead: bool
    """The basis has seen what comes after the snapshots of this trial."""

    def encode(self, weights_TP: np.ndarray) -> np.ndarray:
        """Snapshots [T, P] to float32 codes [T, D]."""
        return np.concatenate([code for _, code in self._encoded(weights_TP)]).astype(np.float32)

    def decode(self, codes_TD: np.ndarray) -> np.ndarray:
        """Codes [T, D] to float32 snapshots [T, P]."""
        weights_TP = np.empty((len(codes_TD), len(self.mean_P)), np.float32)
        for rows in _row_slices(weights_TP):
            weights_TP[rows] = self.mean_P + np.asarray(codes_TD[rows], np.float64) @ self._scaled_DP
        return weights_TP

    def floor(self, weights_TP: np.ndarray) -> float:
        """Mean over T and P of (φ − decode(encode(φ)))²: no forecast of these snapshots in the basis does better."""
        squares = 0.0
        for rows, codes in self._encoded(weights_TP):
            squares += float(np.square(weights_TP[rows] - self.mean_P - codes @ self._scaled_DP).sum())
        return squares / weights_TP.size

    def _encoded(self, weights_TP: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        components_PD = self.components_DP.T.astype(np.float64)
        for rows in _row_slices(weights_TP):
            yield rows, _divided((weights_TP[rows] - self.mean_P.astype(np.float64)) @ components_PD, self.scale_D)

    @cached_property
    def _scaled_DP(self) -> np.ndarray:
        return self.scale_D[:, None] * self.components_DP.astype(np.float64)


def trial_basis(weights_TP: np.ndarray, dim: int, *, centered: bool = False) -> tuple[np.ndarray, Basis]:
    """The `full` basis of one trial, which sees its future: float32 codes U [T, D] and the basis."""
    mean_P = weights_TP[0].copy() if centered else np.zeros_like(weights_TP[0])
    svd = _svd(weights_TP, mean_P, dim)
    components_DP = svd.components_DP.astype(np.float32)
    basis = Basis(mean_P, components_DP, svd.singular_values[:dim], svd.singular_values, look_ahead=True)
    return svd.codes_TD.astype(np.float32), basis


# A basis for each origin: window and prefix


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
        """Codes [N, D] to float64 weights [N, P], given the snapshots `first` … `origin`."""
        weights_NP = codes_ND @ (self.coefficients_DS @ snapshots_SP)
        return weights_NP if self.anchor is None else weights_NP + snapshots_SP[self.anchor - self.first]

    def encode(self, weights_NP: np.ndarray, snapshots_SP: np.ndarray) -> np.ndarray:
        """Any weights [N, P] to codes [N, D], given the snapshots `first` … `origin`."""
        anchor_P = 0.0 if self.anchor is None else snapshots_SP[self.anchor - self.first].astype(np.float64)
        scaled_DP = self.coefficients_DS @ snapshots_SP
        return _divided((weights_NP - anchor_P) @ scaled_DP.T, np.square(self.scale_D))

    def project(self, gram: Gram, snapshots: Any) -> np.ndarray:
        """The codes [N, D] of snapshots of the same trial, any t, from inner products alone."""
        inner_SN = gram.inner(slice(self.first, self.origin + 1), snapshots, self.anchor)
        return _divided(inner_SN.T @ self.codes_SD, np.square(self.scale_D))

    def floor(self, gram: Gram, snapshots: Any, size: int) -> np.ndarray:
        """[N] mean squared error over the `size` = P weights of these snapshots, encoded and decoded."""
        square_N = np.diagonal(gram.inner(snapshots, snapshots, self.anchor))
        kept_N = np.square(self.project(gram, snapshots) * self.scale_D).sum(axis=1)
        return np.maximum(square_N - kept_N, 0) / size


def window_basis(gram: Gram, origin: int, context: int, dim: int) -> OriginBasis:
    """SVD of the last K displacements φ_{t−K} − φ_t … φ_{t−1} − φ_t; of as many as there are where t < K.

    Args:
        gram: of the trial, or of no more than its last K + 1 snapshots (`WindowGram`); read up to `origin` only.
        origin: t, the row of `gram` that the window ends with.
        context: K.
        dim: D; directions that the window has not got are zeros.
    """
    first = max(0, origin - context)
    rows = slice(first, origin + 1)
    seen_SS = gram.inner(rows, rows, origin)
    # Differences of large inner products: what is smaller than their rounding is no direction.
    magnitude = max(gram.displacement_TT[first, first], gram.displacement_TT[origin, origin])
    values_D, codes_SD = _leading(seen_SS, dim, magnitude)
    return OriginBasis(first, origin, origin, codes_SD * _signs(codes_SD), np.sqrt(values_D))


def prefix_basis(gram: Gram, origin: int, dim: int, *, centered: bool = True) -> OriginBasis:
    """SVD of φ_0 … φ_t, or of their displacements from φ_0, for one origin."""
    return next(prefix_bases(gram, [origin], dim, centered=centered))


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
            leading = _grown(seen_SS, leading, dim) if new <= width and len(seen_SS) >= 4 * width else None
        if leading is None:
            values_B, vectors_SB = _leading(seen_SS, width)
            leading = _Leading(values_B, vectors_SB, seen_SS @ vectors_SB)
        is_rounding = leading.values_B[:dim] <= len(seen_SS) * _EPS * leading.values_B[0]
        codes_SD = np.where(is_rounding, 0, leading.vectors_NB[:, :dim])
        scale_D = np.sqrt(np.where(is_rounding, 0, leading.values_B[:dim]))
        yield OriginBasis(0, origin, anchor, codes_SD * _signs(codes_SD), scale_D)


class WindowGram:
    """The Gram of the last K + 1 snapshots of a live run, updated in O(K P) when a snapshot comes.

    `gram` takes the place of a trial's: `window_basis(window.gram, len(window) - 1, context, dim)`.
    """

    def __init__(self, context: int, size: int) -> None:
        """For windows of `context` = K displacements of `size` = P weights."""
        # A ring of displacements from the first snapshot of all, which are smaller than weights and round less.
        self._rows_SP = np.zeros((context + 1, size))
        self._inner_SS = np.zeros((context + 1, context + 1))
        self._with_start_S = np.zeros(context + 1)
        self._start_P: np.ndarray | None = None
        self._count = 0

    def __len__(self) -> int:
        """Snapshots held, at most K + 1."""
        return min(self._count, len(self._rows_SP))

    def push(self, weights_P: np.ndarray) -> None:
        """Take in the next snapshot and, when full, drop the oldest."""
        if self._start_P is None:
            self._start_P = weights_P.astype(np.float64)
        place = self._count % len(self._rows_SP)
        self._rows_SP[place] = weights_P - self._start_P
        self._inner_SS[place] = self._inner_SS[:, place] = self._rows_SP @ self._rows_SP[place]
        self._with_start_S[place] = self._rows_SP[place] @ self._start_P
        self._count += 1

    @property
    def gram(self) -> Gram:
        """Of the snapshots held, oldest first: its snapshot 0 is the oldest."""
        assert self._start_P is not None, "no snapshot yet"
        order = np.arange(self._count - len(self), self._count) % len(self._rows_SP)
        inner_SS, with_start_S = self._inner_SS[np.ix_(order, order)], self._with_start_S[order]
        initial_S = inner_SS[0] + with_start_S + with_start_S[0] + self._start_P @ self._start_P
        return Gram(inner_SS - inner_SS[0] - inner_SS[:, :1] + inner_SS[0, 0], initial_S)


# The verb, and what it leaves on disk


def fit_svd(store: Path, out: Path, config: SVDConfig = SVDConfig(), *, progress: bool = True) -> Path:
    """Fit a basis to the trials of a store and write the codes of all of them to the zarr group `out`.

    A finished `out` of the same data and settings is kept, an unfinished one is gone on with, trial by trial.

    Args:
        store: the data set.
        out: where CODES go.
        config: which basis, its size d, and whether φ_0 is subtracted.
        progress: show a bar.

    Returns:
        `out`.

    Raises:
        TiplError: the store cannot be read, its trials cannot be represented as asked, or `out` is something else.
    """
    store, out = Path(store), Path(out)
    trials = _representable_trials(store, config)
    identity = {
        "format": FORMAT,
        "version": VERSION,
        "config": dataclasses.asdict(config),
        "context": config.window if config.basis in ("window", "prefix") else None,
        "store": os.path.relpath(store.resolve(), out.resolve().parent),
        "trials": {str(seed): [trial.committed, _fingerprint(trial)] for seed, trial in trials.items()},
    }
    if out.exists():
        found = _attributes(out)
        if found is None or any(found.get(key) != value for key, value in identity.items()):
            raise TiplError(
                f"{out} exists and is not CODES of this store and these settings; remove it or choose another --out."
            )
        if found["finished"]:
            console.print(f"fit-svd: {out} is already complete.")
            return out
    group = zarr.open_group(out, mode="a", zarr_format=3)
    group.attrs.update({**identity, "finished": False})

    if config.basis == "full":
        console.print("fit-svd: basis full (look-ahead: the codes of a trial have seen the trial's future)")
    with steps_progress("fit-svd", len(trials)) if progress else contextlib.nullcontext(lambda *_: None) as advance:
        pooled = _pooled(Store.open(store), group, config) if config.basis == "pooled" else None
        for seed, trial in trials.items():
            place = group.require_group(f"trials/{seed}")
            if "complete" not in place.attrs:
                _write(place, _represented(trial, config, pooled))
            advance(1, "")
    group.attrs["finished"] = True
    return out


class Codes:
    """What `fit_svd` wrote, read trial by trial."""

    def __init__(self, group: zarr.Group, path: Path) -> None:
        """Use `Codes.open`."""
        self._group = group
        attributes: dict[str, Any] = dict(group.attrs)
        self.config = SVDConfig(**attributes["config"])
        self.context: int | None = attributes["context"]
        """K of a basis that is made anew at every origin; None for the others."""
        self.store = (path.resolve().parent / attributes["store"]).resolve()
        self.seeds = [int(seed) for seed in attributes["trials"]]
        self.look_ahead = self.config.basis == "full"
        """The codes of a snapshot depend on what came after it."""

    @classmethod
    def open(cls, path: Path) -> "Codes":
        """Raises TiplError where `path` is no CODES, of another version, or unfinished."""
        path = Path(path)
        attributes = _attributes(path)
        if attributes is None:
            raise TiplError(f"{path} is not a CODES folder; make one with tipl fit-svd.")
        if attributes.get("version") != VERSION:
            version = attributes.get("version")
            raise TiplError(f"{path} holds codes of version {version}, this is version {VERSION}; fit them again.")
        if not attributes.get("finished"):
            raise TiplError(f"{path} is unfinished; run the same tipl fit-svd again, it goes on.")
        return cls(zarr.open_group(path, mode="r"), path)

    def codes(self, seed: int) -> np.ndarray:
        """The float32 codes of a trial.

        Returns:
            full, pooled: [T, D], a code a snapshot.
            window: [T, K, D], at each origin t the codes of φ_{t−K} − φ_t … φ_{t−1} − φ_t.
            prefix: [T, K, D], at each origin t the codes of φ_{t−K+1} … φ_t.
            What lies before snapshot 0 is zeros, as are directions that the origin has not got.
        """
        return self._array(seed, "codes")

    def basis(self, seed: int) -> Basis:
        """The basis of a trial, full or pooled; window and prefix have one for each origin, made from `gram(seed)`."""
        assert self.context is None, f"{self.config.basis} has a basis for each origin"
        pooled = self.config.basis == "pooled"
        components_DP = _stored(self._group, "pooled/components") if pooled else self._array(seed, "components")
        values = self.singular_values(seed)
        mean_P = self._array(seed, "mean") if self.config.centered else np.zeros(components_DP.shape[1], np.float32)
        return Basis(mean_P, components_DP, values[: len(components_DP)], values, self.look_ahead)

    def gram(self, seed: int) -> Gram:
        """The Gram matrix of a trial, for `window_basis` and `prefix_bases`; window and prefix only."""
        assert self.context is not None, f"{self.config.basis} has one basis for a trial and keeps no Gram matrix"
        lower_TT = self._array(seed, "gram")
        return Gram(lower_TT + np.tril(lower_TT, -1).T, self._array(seed, "initial"))

    def singular_values(self, seed: int) -> np.ndarray:
        """Float64 spectrum.

        Returns:
            full: [min(T, P)], of the trial. pooled: of the stacked training trials, as many as were kept.
            window, prefix: [T, D], the largest at each origin.
        """
        if self.config.basis == "pooled":
            self._trial(seed)
            return _stored(self._group, "pooled/singular_values")
        return self._array(seed, "singular_values")

    @property
    def dropped_energy(self) -> float:
        """The share of Σ σ² that a pooled basis let go between trials; 0 is exact (always where P ≤ 8,192)."""
        assert self.config.basis == "pooled"
        return float(self._group["pooled"].attrs["dropped_energy"])  # type: ignore[arg-type]

    def _trial(self, seed: int) -> str:
        if seed not in self.seeds:
            raise TiplError(f"{self.store} has no codes of trial {seed}; it has {self.seeds[0]} to {self.seeds[-1]}.")
        return f"trials/{seed}"

    def _array(self, seed: int, name: str) -> np.ndarray:
        return _stored(self._group, f"{self._trial(seed)}/{name}")


def _representable_trials(path: Path, config: SVDConfig) -> dict[int, Trial]:
    store = Store.open(path)
    trials = {seed: store.trial(seed) for seed in store.seeds}
    if not trials:
        raise TiplError(f"{path} holds no trial; collect some first.")
    if len({trial.spec.size for trial in trials.values()}) > 1:
        raise TiplError(f"The trials of {path} differ in their number of weights; give each network its own store.")
    if config.basis == "pooled" and len(train := store.split().train) < 2:
        raise TiplError(f"A pooled basis needs 2 training trials or more, {path} has {len(train)}; collect more.")
    for seed, trial in trials.items():
        limits = {"weights": trial.spec.size}
        if config.basis == "window":
            limits["displacements of a window"] = config.window
        else:
            limits[f"snapshots of trial {seed}"] = trial.committed
        for name, limit in limits.items():
            if config.dim > limit:
                raise TiplError(f"--dim is {config.dim}, more than the {limit} {name}; give at most {limit}.")
    return trials


def _represented(
    trial: Trial, config: SVDConfig, pooled: tuple[np.ndarray, np.ndarray] | None
) -> dict[str, np.ndarray]:
    """The arrays that are written for a trial."""
    weights_TP = _read(trial)
    if config.basis in ("window", "prefix"):
        return _origin_codes(Gram.of(weights_TP), config)
    if pooled is None:
        codes_TD, basis = trial_basis(weights_TP, config.dim, centered=config.centered)
        arrays = {"codes": codes_TD, "components": basis.components_DP, "singular_values": basis.singular_values}
    else:
        arrays = {"codes": _pooled_basis(weights_TP, *pooled, config).encode(weights_TP)}
    return {**arrays, "mean": weights_TP[0]} if config.centered else arrays


def _origin_codes(gram: Gram, config: SVDConfig) -> dict[str, np.ndarray]:
    count = len(gram.initial_T)
    codes_TKD = np.zeros((count, config.window, config.dim), np.float32)
    singular_values_TD = np.zeros((count, config.dim))
    if config.basis == "window":
        bases = (window_basis(gram, origin, config.window, config.dim) for origin in range(count))
    else:
        bases = prefix_bases(gram, range(count), config.dim, centered=config.centered)
    for origin, basis in enumerate(bases):
        # The last snapshot of a window is its origin, which is zero by construction.
        recent = (basis.codes_SD[:-1] if config.basis == "window" else basis.codes_SD)[-config.window :]
        codes_TKD[origin, config.window - len(recent) :] = recent
        singular_values_TD[origin] = basis.scale_D
    return {
        "codes": codes_TKD,
        "singular_values": singular_values_TD,
        "gram": np.tril(gram.displacement_TT),  # symmetric: the zeros above the diagonal take no room on disk
        "initial": gram.initial_T,
    }


# The pooled basis, out of core: one trial in memory at a time


def _pooled(store: Store, group: zarr.Group, config: SVDConfig) -> tuple[np.ndarray, np.ndarray]:
    """Components and singular values of the stacked training trials, fitted and written, or read where they are."""
    place = group.require_group("pooled")
    if "complete" not in place.attrs:
        seeds = store.split().train
        size = store.trial(seeds[0]).spec.size
        fit = _pooled_covariance if size <= _COVARIANCE_SIZE else _pooled_merge
        matrices = (_centered(_read(store.trial(seed)), config) for seed in seeds)
        components_DP, singular_values, dropped = fit(matrices, size, config.dim)
        first_TP = _read(store.trial(seeds[0]))
        codes_TD = _pooled_basis(first_TP, components_DP, singular_values, config).encode(first_TP)
        components_DP = (components_DP * _signs(codes_TD)[:, None]).astype(np.float32)
        place.attrs["dropped_energy"] = dropped
        _write(place, {"components": components_DP, "singular_values": singular_values})
    return _stored(place, "components"), _stored(place, "singular_values")


def _pooled_covariance(matrices: Iterable[np.ndarray], size: int, dim: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Exact, from the P×P matrix Σ WᵀW."""
    covariance_PP = np.zeros((size, size))
    for weights_TP in matrices:
        covariance_PP += _covariance(weights_TP, np.zeros(size))
    singular_values, components_PD = _decomposed(covariance_PP, dim)
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
    return _divided(joined_RP[:dim].T.astype(np.float64), kept[:dim]).T, kept, dropped


def _cut(weights_TP: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `rank` rows of S V, float32, and the whole spectrum."""
    rank = min(rank, *weights_TP.shape)
    svd = _svd(weights_TP, np.zeros(weights_TP.shape[1]), rank)
    return (svd.singular_values[:rank, None] * svd.components_DP).astype(np.float32), svd.singular_values


def _pooled_basis(
    weights_TP: np.ndarray, components_DP: np.ndarray, singular_values: np.ndarray, config: SVDConfig
) -> Basis:
    mean_P = weights_TP[0] if config.centered else np.zeros_like(weights_TP[0])
    return Basis(mean_P, components_DP, singular_values[: config.dim], singular_values, look_ahead=False)


def _centered(weights_TP: np.ndarray, config: SVDConfig) -> np.ndarray:
    """In place: a trial may take a gigabyte."""
    if config.centered:
        weights_TP -= weights_TP[0].copy()
    return weights_TP


# Linear algebra


@dataclass(frozen=True)
class _SVD:
    codes_TD: np.ndarray
    components_DP: np.ndarray
    singular_values: np.ndarray


def _svd(weights_TP: np.ndarray, mean_P: np.ndarray, dim: int) -> _SVD:
    """The first D directions of W − mean in float64, and the whole spectrum, from the smaller Gram matrix."""
    count, size = weights_TP.shape
    assert 1 <= dim <= min(count, size), (dim, weights_TP.shape)
    mean_P = mean_P.astype(np.float64)
    if count <= size:
        gram_TT = np.zeros((count, count))
        for _, block in _column_blocks(weights_TP, mean_P):
            gram_TT += block @ block.T
        singular_values, codes_TD = _decomposed(gram_TT, dim)
        del gram_TT
        components_DP = np.empty((dim, size))
        for columns, block in _column_blocks(weights_TP, mean_P):
            components_DP[:, columns] = _divided(block.T @ codes_TD, singular_values[:dim]).T
    else:
        singular_values, components_PD = _decomposed(_covariance(weights_TP, mean_P), dim)
        components_DP = components_PD.T
        codes_TD = np.concatenate([(weights_TP[rows] - mean_P) @ components_PD for rows in _row_slices(weights_TP)])
        codes_TD = _divided(codes_TD, singular_values[:dim])
    signs_D = _signs(codes_TD)
    return _SVD(codes_TD * signs_D, components_DP * signs_D[:, None], singular_values)


def _covariance(weights_TP: np.ndarray, mean_P: np.ndarray) -> np.ndarray:
    """[P, P] (W − mean)ᵀ (W − mean) in float64."""
    covariance_PP = np.zeros((weights_TP.shape[1], weights_TP.shape[1]))
    for rows in _row_slices(weights_TP):
        block = weights_TP[rows] - mean_P
        covariance_PP += block.T @ block
    return covariance_PP


def _decomposed(gram_NN: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
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
    singular_values = _roots(values_N[::-1])
    return singular_values, np.where(singular_values[:dim] > 0, vectors_ND, 0)


def _roots(values_N: np.ndarray) -> np.ndarray:
    """Singular values from descending eigenvalues of a Gram matrix; those that rounding could have made are zeros."""
    return np.sqrt(np.where(values_N > len(values_N) * _EPS * values_N[0], values_N, 0))


def _leading(gram_NN: np.ndarray, dim: int, magnitude: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The D largest eigenvalues, descending, and their eigenvectors [N, D].

    Those that rounding could have made (of the matrix, or of numbers as large as `magnitude` that it came from), and
    those beyond N, are zeros.
    """
    count = len(gram_NN)
    found = min(dim, count)
    values, vectors = scipy.linalg.eigh(gram_NN, subset_by_index=(count - found, count - 1), check_finite=False)
    values_D, vectors_ND = np.zeros(dim), np.zeros((count, dim))
    values_D[:found], vectors_ND[:, :found] = values[::-1], vectors[:, ::-1]
    is_rounding = values_D <= count * _EPS * max(values_D[0], magnitude)
    values_D[is_rounding], vectors_ND[:, is_rounding] = 0, 0
    return values_D, vectors_ND


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
        rounding = max(count * _EPS * values_B[0], np.finfo(np.float64).tiny)  # no 0 / 0 where nothing ever moved
        allowed_D = np.maximum(_RESIDUAL * values_B[:dim], rounding)
        excess_ND = (image_NB[:, :dim] - vectors_NB[:, :dim] * values_B[:dim]) / allowed_D
        if (np.linalg.norm(excess_ND, axis=0) <= 1).all():
            return _Leading(values_B, vectors_NB, image_NB)
        left, sizes, _ = np.linalg.svd(excess_ND, full_matrices=False)
        added = left[:, sizes > 0.1]
        added, _ = np.linalg.qr(added - space @ (space.T @ added))
        space, image = np.concatenate([space, added], axis=1), np.concatenate([image, gram_NN @ added], axis=1)
    return None


def _signs(codes_ND: np.ndarray) -> np.ndarray:
    """[D] ±1 that make the first code of each column that is not zero positive; 1 for a column of zeros."""
    size_ND = np.abs(codes_ND)
    first_D = (size_ND > 1e-6 * size_ND.max(axis=0)).argmax(axis=0)
    return np.where(codes_ND[first_D, np.arange(codes_ND.shape[1])] < 0, -1.0, 1.0)


def _divided(values_ND: np.ndarray, scale_D: np.ndarray) -> np.ndarray:
    """values / scale, 0 where the scale is 0: a direction that the data has not got."""
    return np.divide(values_ND, scale_D, out=np.zeros_like(values_ND), where=scale_D > 0)


def _column_blocks(weights_TP: np.ndarray, mean_P: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """W − mean in float64, a block of columns at a time."""
    count, size = weights_TP.shape
    width = max(1, _BLOCK // count)
    for start in range(0, size, width):
        columns = slice(start, min(start + width, size))
        yield columns, weights_TP[:, columns] - mean_P[columns]


def _row_slices(weights_TP: np.ndarray) -> Iterator[slice]:
    """Rows whose float64 copies are one block."""
    height = max(1, _BLOCK // weights_TP.shape[1])
    for start in range(0, len(weights_TP), height):
        yield slice(start, min(start + height, len(weights_TP)))


# Reading and writing


def _read(trial: Trial) -> np.ndarray:
    """The committed weights of a trial, float32 [T, P]."""
    weights_TP = trial.weights(0, trial.committed)
    finite_T = np.isfinite(weights_TP.sum(axis=1, dtype=np.float64))
    if not finite_T.all():
        raise TiplError(
            f"Trial {trial.seed} holds weights that are not finite from snapshot {int(finite_T.argmin())} on: "
            "the run diverged; leave it out of the store."
        )
    return weights_TP


def _fingerprint(trial: Trial) -> int:
    """Tells one trial of T snapshots from another: a checksum of its last snapshot."""
    return zlib.crc32(trial.weights(trial.committed - 1, trial.committed).tobytes())


def _write(place: zarr.Group, arrays: dict[str, np.ndarray]) -> None:
    """Payload first, then the mark that it is complete."""
    for name, values in arrays.items():
        place.create_array(name, data=values, overwrite=True)
    place.attrs["complete"] = True


def _stored(group: zarr.Group, name: str) -> np.ndarray:
    array = group[name]
    assert isinstance(array, zarr.Array)
    return np.asarray(array[:])


def _attributes(path: Path) -> dict[str, Any] | None:
    """The attributes of a CODES group of any version; None where there is none."""
    try:
        attributes = dict(zarr.open_group(path, mode="r", zarr_format=3).attrs)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    return attributes if attributes.get("format") == FORMAT else None
