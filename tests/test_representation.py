"""Bases against numpy's SVD of the very matrices that they stand for, and CODES through the store and back.

In: small made-up walks.  Out: equality up to sign, causality, and one clear line for every misuse.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tipl.config.presets import BasisName, SVDConfig
from tipl.errors import TiplError
from tipl.files import SEAL, write_json
from tipl.representation import (
    Codes,
    Gram,
    OriginBasis,
    directions,
    fit,
    fit_svd,
    gram,
    linear_algebra,
    origins,
    pooled,
    prefix_bases,
    spectrum,
    trial_basis,
    window_basis,
)
from tipl.store import Store, TrialWriter, create_store, plan_trials
from tipl.store.spec import ParamSpec

SHAPES = [(30, 50), (50, 30), (30, 30), (260, 300), (300, 260)]  # from 256 on by another route


def walk(count: int, size: int, seed: int = 0) -> np.ndarray:
    """An initialization and steps that shrink, float32 [T, P]."""
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((count, size)) * np.linspace(0.2, 0.02, count)[:, None]
    steps[0] = rng.standard_normal(size)
    return np.cumsum(steps, axis=0).astype(np.float32)


def reference_svd(matrix: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """numpy's U [T, D], S [D], V [D, P] with the module's signs, by a loop."""
    u, s, v = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    for i in range(dim):
        first = next(value for value in u[:, i] if abs(value) > 1e-6 * abs(u[:, i]).max())
        if first < 0:
            u[:, i], v[i] = -u[:, i], -v[i]
    return u[:, :dim], s[:dim], v[:dim]


def write_store(path: Path, trials: Mapping[int, np.ndarray], spec: ParamSpec | None = None) -> Path:
    """All trials are planned together, so that the first ones are those to train on."""
    create_store(path)
    size = next(iter(trials.values())).shape[1]
    spec = spec or ParamSpec(("all",), ((size,),))
    plan_trials(path, trials, env_id="InvertedPendulum-v4", config={}, spec=spec)
    for seed, weights_TP in trials.items():
        count = len(weights_TP)
        zeros_T = np.zeros(count, np.int64)
        with TrialWriter.create(
            path,
            seed,
            env_id="InvertedPendulum-v4",
            config={},
            spec=spec,
            versions={},
            obs_dim=1,
            num_snapshots=count,
            chunk_snapshots=7,
        ) as writer:
            observed = zeros_T[:, None].astype(np.float64)
            counted = zeros_T.astype(np.int32)
            writer.append(
                weights_TP, zeros_T, counted, counted, zeros_T.astype(np.float64), observed, observed, observed[:, 0]
            )
            writer.commit({}, complete=True)
    return path


def prefix_basis(gram: Gram, origin: int, dim: int, *, centered: bool = True) -> OriginBasis:
    """Of one origin alone."""
    return next(prefix_bases(gram, [origin], dim, centered=centered))


def dropped_energy(codes: Codes) -> float:
    return float(codes._pooled()["dropped_energy"])


@pytest.fixture
def walks() -> dict[int, np.ndarray]:
    return {seed: walk(25, 12, seed) for seed in range(1, 6)}


@pytest.fixture
def store(tmp_path: Path, walks: dict[int, np.ndarray]) -> Path:
    return write_store(tmp_path / "store", walks)


# Full


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("centered", [False, True])
def test_full_is_numpys_svd_with_signs(shape: tuple[int, int], centered: bool) -> None:
    weights_TP = walk(*shape)
    matrix = weights_TP.astype(np.float64) - (weights_TP[0] if centered else 0)
    u, s, v = reference_svd(matrix, 6)
    codes_TD, basis = trial_basis(weights_TP, 6, centered=centered)
    assert codes_TD.dtype == np.float32
    np.testing.assert_allclose(codes_TD, u, atol=1e-6)
    np.testing.assert_allclose(basis.scale_D, s, rtol=1e-9)
    np.testing.assert_allclose(basis.components_DP, v, atol=1e-6)
    np.testing.assert_allclose(
        basis.singular_values, np.linalg.svd(matrix, compute_uv=False), rtol=1e-7, atol=1e-6 * s[0]
    )
    np.testing.assert_allclose(basis.encode(weights_TP), u, atol=1e-6)
    assert basis.look_ahead
    first = (np.abs(codes_TD) > 1e-5).argmax(axis=0)
    assert (codes_TD[first, range(6)] > 0).all() and (first == int(centered)).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("dim", [1, 5, 29])
def test_the_floor_is_the_energy_of_the_dropped_singular_values(
    shape: tuple[int, int], centered: bool, dim: int
) -> None:
    weights_TP = walk(*shape)
    matrix = weights_TP.astype(np.float64) - (weights_TP[0] if centered else 0)
    dropped = np.square(np.linalg.svd(matrix, compute_uv=False)[dim:]).sum() / matrix.size
    codes_TD, basis = trial_basis(weights_TP, dim, centered=centered)
    assert basis.floor(weights_TP) == pytest.approx(dropped, rel=1e-4, abs=1e-12)
    decoded = basis.decode(codes_TD)
    assert decoded.dtype == np.float32
    assert np.square(weights_TP.astype(np.float64) - decoded).mean() == pytest.approx(dropped, rel=1e-3, abs=1e-12)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for shape in SHAPES:
        weights_TP = walk(*shape)
        codes_TD, basis = trial_basis(weights_TP, 5)
        floor = basis.floor(weights_TP)
        monkeypatch.setattr(linear_algebra, "_BLOCK", 7 * 30)
        small_TD, small = trial_basis(weights_TP, 5)
        np.testing.assert_allclose(small_TD, codes_TD, atol=1e-6)
        np.testing.assert_allclose(small.components_DP, basis.components_DP, atol=1e-6)
        np.testing.assert_allclose(small.decode(small_TD), basis.decode(codes_TD), atol=1e-6)
        assert small.floor(weights_TP) == pytest.approx(floor, rel=1e-9)
        monkeypatch.undo()


def test_a_direction_that_the_data_has_not_got_is_zero() -> None:
    rng = np.random.default_rng(3)
    weights_TP = (rng.standard_normal((20, 2)) @ rng.standard_normal((2, 40))).astype(np.float32)
    for matrix in (weights_TP, weights_TP.T.copy()):
        doubled = np.concatenate([matrix, matrix], axis=1)  # rank 2 but for rounding to float32
        codes_TD, basis = trial_basis(doubled, 6)
        rank = int((basis.scale_D > 1e-5 * basis.scale_D[0]).sum())
        assert rank == 2
        assert np.isfinite(codes_TD).all() and np.isfinite(basis.encode(doubled)).all()
    codes_TD, basis = trial_basis(np.zeros((5, 9), np.float32), 3)
    assert not codes_TD.any() and not basis.encode(np.ones((5, 9), np.float32)).any()
    assert directions(basis.singular_values) == [0, 0, 0, 0]


# Gram matrices and spectra


def test_gram_is_every_inner_product(store: Path, walks: dict[int, np.ndarray]) -> None:
    weights_TP = walks[2].astype(np.float64)
    whole = gram(Store.open(store).trial(2))
    for i in range(0, 25, 4):
        for j in range(0, 25, 3):
            assert whole.displacement_TT[i, j] == pytest.approx(
                sum((weights_TP[i] - weights_TP[0]) * (weights_TP[j] - weights_TP[0])), abs=1e-12
            )
    np.testing.assert_allclose(whole.inner(slice(None), slice(None), None), weights_TP @ weights_TP.T, rtol=1e-12)
    from_7 = weights_TP - weights_TP[7]
    np.testing.assert_allclose(whole.inner(slice(3, 9), [1, 20], 7), from_7[3:9] @ from_7[[1, 20]].T, atol=1e-12)


def test_spectrum_of_a_leading_block_is_that_of_the_run_so_far() -> None:
    weights_TP = walk(30, 50)
    s = np.linalg.svd((weights_TP[:13] - weights_TP[0]).astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(spectrum(Gram.of(weights_TP).displacement_TT[:13, :13]), s, atol=1e-6)


def test_directions_by_hand() -> None:
    # Energies 81, 16, 2.25, 0.64, 0.1089, 0.0011 of 100: cumulative 81, 97, 99.25, 99.89, 99.9989, 100.
    assert directions(np.sqrt([81, 16, 2.25, 0.64, 0.1089, 0.0011])) == [2, 2, 3, 5]
    assert directions(np.ones(10), shares=[0.05, 0.1, 0.55]) == [1, 1, 6]


# Window and prefix


def direct_window(weights_TP: np.ndarray, origin: int, context: int) -> np.ndarray:
    return weights_TP[max(0, origin - context) : origin + 1].astype(np.float64) - weights_TP[origin]


@pytest.mark.parametrize("size", [50, 4])
@pytest.mark.parametrize("origin", [29, 8, 3, 1])
def test_window_is_the_svd_of_the_displacements(size: int, origin: int) -> None:
    """Also where there are fewer snapshots than K, and fewer weights than K."""
    weights_TP, context, dim = walk(30, size), 8, 6
    basis = window_basis(Gram.of(weights_TP), origin, context, dim)
    rank = min(dim, size, origin)
    u, s, v = reference_svd(direct_window(weights_TP, origin, context), rank)
    assert (basis.first, basis.origin, basis.anchor) == (max(0, origin - 8), origin, origin)
    np.testing.assert_allclose(basis.codes_SD[:, :rank], u, atol=1e-6)
    np.testing.assert_allclose(basis.scale_D[:rank], s, rtol=1e-6)
    np.testing.assert_allclose(
        basis.coefficients_DS[:rank] @ weights_TP[basis.first : origin + 1], s[:, None] * v, atol=1e-6
    )
    np.testing.assert_allclose(basis.coefficients_DS.sum(axis=1), 0, atol=1e-12)
    assert not basis.codes_SD[:, rank:].any() and not basis.scale_D[rank:].any()


def test_window_at_the_first_snapshot_is_zeros() -> None:
    basis = window_basis(Gram.of(walk(5, 9)), 0, 4, 3)
    np.testing.assert_array_equal(basis.codes_SD, np.zeros((1, 3)))
    assert not basis.scale_D.any() and not basis.coefficients_DS.any()


@pytest.mark.parametrize("size", [50, 4])
@pytest.mark.parametrize("origin", [29, 5, 1, 0])
@pytest.mark.parametrize("centered", [False, True])
def test_prefix_is_the_svd_of_what_was(size: int, origin: int, centered: bool) -> None:
    weights_TP, dim = walk(30, size), 6
    seen = weights_TP[: origin + 1].astype(np.float64) - (weights_TP[0] if centered else 0)
    basis = prefix_basis(Gram.of(weights_TP), origin, dim, centered=centered)
    rank = min(dim, size, origin + (not centered))
    u, s, v = reference_svd(seen, rank)
    np.testing.assert_allclose(basis.codes_SD[:, :rank], u, atol=1e-6)
    np.testing.assert_allclose(basis.scale_D[:rank], s, rtol=1e-6)
    np.testing.assert_allclose(basis.coefficients_DS[:rank] @ weights_TP[: origin + 1], s[:, None] * v, atol=1e-5)
    assert not basis.codes_SD[:, rank:].any()


@pytest.mark.parametrize("size", [400, 20, 3])  # fewer weights than directions asked for as well
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("stride", [1, 7, 40])
def test_prefix_moved_on_equals_prefix_anew(
    size: int, centered: bool, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Gram.of(walk(200, size))
    decompositions = []
    leading = origins.leading_eigenpairs
    monkeypatch.setattr(
        origins, "leading_eigenpairs", lambda *args: (decompositions.append(len(args[0])), leading(*args))[1]
    )
    moved = list(prefix_bases(whole, range(0, 200, stride), 5, centered=centered))
    # Beyond 4 (D + 8) snapshots nothing is decomposed anew, unless the origins lie further apart than D + 8.
    assert max(decompositions) < (200 if stride == 40 else 52)
    for basis in moved[:: max(1, 20 // stride)]:
        anew = prefix_basis(whole, basis.origin, 5, centered=centered)
        np.testing.assert_allclose(basis.scale_D, anew.scale_D, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(basis.codes_SD, anew.codes_SD, atol=1e-6)


@pytest.mark.parametrize("size", [2000, 30, 3])
def test_directions_of_a_large_matrix_are_those_of_a_whole_decomposition(size: int) -> None:
    weights_TP = walk(1100, size).astype(np.float64)
    gram_TT = (weights_TP - weights_TP[0]) @ (weights_TP - weights_TP[0]).T
    values, vectors = linear_algebra.leading_eigenpairs(gram_TT, 8)
    expected = np.linalg.eigvalsh(gram_TT)[::-1][:8]
    rank = min(8, size)
    np.testing.assert_allclose(values[:rank], expected[:rank], rtol=1e-9)
    assert not values[rank:].any() and not vectors[:, rank:].any()
    residual = gram_TT @ vectors[:, :rank] - vectors[:, :rank] * values[:rank]
    assert (np.linalg.norm(residual, axis=0) <= 1e-7 * values[:rank]).all()
    np.testing.assert_allclose(vectors[:, :rank].T @ vectors[:, :rank], np.eye(rank), atol=1e-8)
    again, _ = linear_algebra.leading_eigenpairs(np.zeros((1100, 1100)), 8)
    assert not again.any()


def test_prefix_of_a_run_that_never_moves_is_zeros() -> None:
    still = Gram.of(np.ones((80, 6), np.float32))
    for basis in prefix_bases(still, range(80), 3):
        assert not basis.codes_SD.any() and not basis.scale_D.any()


def test_codes_of_an_origin_ignore_scale_and_rotation_of_weight_space() -> None:
    weights_TP = walk(30, 50).astype(np.float64)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((50, 50)))
    for turned, scale in ((weights_TP * 1e-3, 1e-3), (weights_TP * 1e4, 1e4), (weights_TP @ rotation, 1)):
        for before, after in (
            (window_basis(Gram.of(weights_TP), 20, 8, 8), window_basis(Gram.of(turned), 20, 8, 8)),
            (prefix_basis(Gram.of(weights_TP), 20, 8), prefix_basis(Gram.of(turned), 20, 8)),
        ):
            np.testing.assert_allclose(after.codes_SD, before.codes_SD, atol=1e-9)
            np.testing.assert_allclose(after.coefficients_DS, before.coefficients_DS, atol=1e-9)
            np.testing.assert_allclose(after.scale_D, before.scale_D * scale, rtol=1e-9)


@pytest.mark.parametrize("centered", [False, True])
def test_nothing_after_the_origin_is_seen(centered: bool) -> None:
    weights_TP, origin = walk(120, 150), 90
    poisoned_TP = weights_TP.copy()
    poisoned_TP[origin + 1 :] = np.nan
    clean, poisoned = Gram.of(weights_TP), Gram.of(poisoned_TP)
    assert np.isnan(poisoned.displacement_TT[-1]).all()

    def bases(gram: Gram) -> list[OriginBasis]:
        return [
            window_basis(gram, origin, 10, 5),
            prefix_basis(gram, origin, 5, centered=centered),
            *prefix_bases(gram, range(origin + 1), 5, centered=centered),
        ]

    for ours, theirs in zip(bases(poisoned), bases(clean), strict=True):
        np.testing.assert_array_equal(ours.codes_SD, theirs.codes_SD)
        np.testing.assert_array_equal(ours.scale_D, theirs.scale_D)
        np.testing.assert_array_equal(ours.coefficients_DS, theirs.coefficients_DS)


@pytest.mark.parametrize("kind", ["window", "prefix", "prefix uncentered"])
def test_an_origins_basis_encodes_and_decodes_with_and_without_weights(kind: str) -> None:
    weights_TP = walk(40, 60).astype(np.float64)
    whole, later = Gram.of(weights_TP), [5, 26, 33]
    if kind == "window":
        basis = window_basis(whole, 25, 10, 4)
    else:
        basis = prefix_basis(whole, 25, 4, centered=kind == "prefix")
    seen_SP = weights_TP[basis.first : 26]
    anchor_P = weights_TP[basis.anchor] if basis.anchor is not None else np.zeros(60)
    _, _, v = reference_svd(seen_SP - anchor_P, 4)

    expected = anchor_P + (weights_TP[later] - anchor_P) @ v.T @ v  # orthogonal projection
    codes_ND = basis.encode(weights_TP[later], seen_SP)
    np.testing.assert_allclose(basis.decode(codes_ND, seen_SP), expected, atol=1e-9)
    np.testing.assert_allclose(basis.project(whole, later), codes_ND, atol=1e-9)
    np.testing.assert_allclose(
        basis.floor(whole, later, 60), np.square(weights_TP[later] - expected).mean(axis=1), rtol=1e-6
    )
    np.testing.assert_allclose(basis.encode(seen_SP, seen_SP), basis.codes_SD, atol=1e-9)


# CODES


@pytest.mark.parametrize("centered", [False, True])
def test_full_codes_through_the_file(
    store: Path, tmp_path: Path, walks: dict[int, np.ndarray], centered: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    config = SVDConfig(basis="full", dim=4, centered=centered)
    out = fit_svd(store, tmp_path / "codes", config)
    assert out == tmp_path / "codes"
    assert "look-ahead" in capsys.readouterr().err
    codes = Codes.open(out)
    assert (codes.config, codes.seeds, codes.look_ahead, codes.context) == (config, [1, 2, 3, 4, 5], True, None)
    assert codes.store == store.resolve()
    for seed, weights_TP in walks.items():
        expected_TD, expected = trial_basis(weights_TP, 4, centered=centered)
        basis = codes.basis(seed)
        np.testing.assert_array_equal(codes.codes(seed), expected_TD)
        for field in dataclasses.fields(basis):
            np.testing.assert_array_equal(getattr(basis, field.name), getattr(expected, field.name))
        np.testing.assert_array_equal(basis.decode(codes.codes(seed)), expected.decode(expected_TD))


def stacked(walks: dict[int, np.ndarray], seeds: tuple[int, ...], centered: bool) -> np.ndarray:
    parts = [walks[seed].astype(np.float64) - (walks[seed][0] if centered else 0) for seed in seeds]
    return np.concatenate(parts)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("covariance_size", [8192, 0])
def test_pooled_is_the_svd_of_the_stacked_training_trials(
    store: Path,
    tmp_path: Path,
    walks: dict[int, np.ndarray],
    centered: bool,
    covariance_size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pooled, "_COVARIANCE_SIZE", covariance_size)
    train = Store.open(store).split().train
    assert train == (1, 2, 3)
    u, s, v = reference_svd(stacked(walks, train, centered), 4)
    codes = Codes.open(fit_svd(store, tmp_path / "codes", SVDConfig(basis="pooled", dim=4, centered=centered)))
    assert not codes.look_ahead
    assert dropped_energy(codes) == pytest.approx(0, abs=1e-7)  # float32 rounding between trials
    whole = np.linalg.svd(stacked(walks, train, centered), compute_uv=False)
    np.testing.assert_allclose(codes.singular_values(5), whole, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate([codes.codes(seed) for seed in train]), u, atol=1e-5)
    for seed in walks:  # the trials that were not fitted to as well
        basis = codes.basis(seed)
        np.testing.assert_allclose(basis.components_DP, v, atol=1e-5)
        own = walks[seed].astype(np.float64) - (walks[seed][0] if centered else 0)
        np.testing.assert_allclose(codes.codes(seed), own @ v.T / s, atol=1e-5)
        assert basis.floor(walks[seed]) == pytest.approx(np.square(own - own @ v.T @ v).mean(), rel=1e-4)


def test_pooled_merge_loses_no_more_than_it_says(
    tmp_path: Path, walks: dict[int, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    walks = {seed: walk(40, 60, seed) for seed in range(1, 6)}
    store = write_store(tmp_path / "store", walks)
    monkeypatch.setattr(pooled, "_COVARIANCE_SIZE", 0)
    monkeypatch.setattr(pooled, "_MERGE_RANK", 12)
    codes = Codes.open(fit_svd(store, tmp_path / "codes", SVDConfig(basis="pooled", dim=3, centered=True)))
    energy = np.square(np.linalg.svd(stacked(walks, (1, 2, 3), True), compute_uv=False))
    found = np.square(codes.singular_values(1))
    assert len(found) == 12
    assert 0.001 < dropped_energy(codes) < 0.2
    assert dropped_energy(codes) == pytest.approx(1 - found.sum() / energy.sum(), rel=1e-6)
    assert (found <= energy[:12] * (1 + 1e-6)).all()
    assert (energy[:12] - found <= dropped_energy(codes) * energy.sum()).all()


@pytest.mark.parametrize("basis", ["window", "prefix"])
def test_codes_of_every_origin_through_the_file(
    store: Path, tmp_path: Path, walks: dict[int, np.ndarray], basis: str
) -> None:
    config = SVDConfig(basis="window" if basis == "window" else "prefix", dim=4, centered=True, window=6)
    codes = Codes.open(fit_svd(store, tmp_path / "codes", config))
    assert codes.context == 6 and not codes.look_ahead
    weights_TP = walks[3]
    ours_TKD = codes.codes(3)
    assert ours_TKD.shape == (25, 6, 4) and ours_TKD.dtype == np.float32
    np.testing.assert_array_equal(ours_TKD[0], np.zeros((6, 4)))
    for origin in range(1, 25):
        if basis == "window":
            u, s, _ = reference_svd(direct_window(weights_TP, origin, 6)[:-1], min(4, origin))
        else:
            u, s, _ = reference_svd((weights_TP[: origin + 1] - weights_TP[0]).astype(np.float64), min(4, origin))
        expected_KD = np.zeros((6, 4))
        expected_KD[-len(u) :, : u.shape[1]] = u[-6:]
        np.testing.assert_allclose(ours_TKD[origin], expected_KD, atol=2e-5)
        np.testing.assert_allclose(codes.singular_values(3)[origin, : len(s)], s, rtol=1e-5)
    stored, direct = codes.gram(3), Gram.of(weights_TP)
    np.testing.assert_array_equal(stored.displacement_TT, direct.displacement_TT)
    np.testing.assert_array_equal(stored.initial_T, direct.initial_T)


TENSORS = ParamSpec(("large", "one", "small"), ((4, 5), (1,), (3,)))


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("kind", ["full", "pooled"])
def test_by_tensor_is_each_tensors_own_basis_end_to_end(tmp_path: Path, kind: BasisName, centered: bool) -> None:
    walks = {seed: walk(25, 24, seed) for seed in range(1, 6)}
    config = SVDConfig(kind, dim=4, centered=centered, window=6 if kind in ("window", "prefix") else SVDConfig.window)
    whole = write_store(tmp_path / "store", walks, TENSORS)
    codes = Codes.open(fit_svd(whole, tmp_path / "codes", dataclasses.replace(config, by_tensor=True)))
    assert codes.tensors == ["large", "one", "small"] and codes.name == f"{kind} by tensor"
    assert codes.codes(5).shape[-1] == 4 + 1 + 3
    first, parts = 0, []
    for name, offset, size in zip(TENSORS.names, TENSORS.offsets, TENSORS.sizes, strict=True):
        own = {seed: weights[:, offset : offset + size] for seed, weights in walks.items()}
        alone = write_store(tmp_path / name, own)
        dim = min(4, size)
        expected = Codes.open(fit_svd(alone, tmp_path / f"{name}.codes", dataclasses.replace(config, dim=dim)))
        directions = slice(first, first + dim)
        np.testing.assert_array_equal(codes.codes(5)[..., directions], expected.codes(5))
        np.testing.assert_array_equal(codes.singular_values(5)[directions], expected.singular_values(5)[:dim])
        parts.append(expected.basis(5).decode(expected.codes(5)))
        first += dim
    basis = codes.basis(5)
    np.testing.assert_allclose(basis.decode(codes.codes(5)), np.concatenate(parts, axis=1), atol=1e-6)
    assert basis.floor(walks[5]) == pytest.approx(np.square(np.concatenate(parts, axis=1) - walks[5]).mean(), rel=1e-3)
    np.testing.assert_allclose(basis.encode(walks[5]), codes.codes(5), atol=1e-5)


def test_origin_bases_are_not_made_by_tensor() -> None:
    for basis in ("window", "prefix"):
        with pytest.raises(TiplError, match=f"no effect on the basis {basis}"):
            SVDConfig(basis, by_tensor=True)


@pytest.mark.parametrize("basis", ["window", "prefix"])
def test_a_longer_run_has_the_same_causal_codes(tmp_path: Path, walks: dict[int, np.ndarray], basis: str) -> None:
    config = SVDConfig(basis="window" if basis == "window" else "prefix", dim=3, window=5)
    found = []
    for stop in (15, 25):
        part = write_store(tmp_path / f"store-{stop}", {1: walks[1][:stop]})
        found.append(Codes.open(fit_svd(part, tmp_path / f"codes-{stop}", config)).codes(1))
    np.testing.assert_allclose(found[1][:15], found[0], atol=1e-6)


def test_finished_codes_are_kept_and_others_refused(
    store: Path, tmp_path: Path, walks: dict[int, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    out = fit_svd(store, tmp_path / "codes", SVDConfig(dim=3))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    assert fit_svd(store, out, SVDConfig(dim=3)) == out
    assert "already complete" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(TiplError, match="exists and is not CODES of this store"):
        fit_svd(store, out, SVDConfig(dim=4))
    other = write_store(tmp_path / "other", {seed: weights_TP + 1 for seed, weights_TP in walks.items()})
    with pytest.raises(TiplError, match="exists and is not CODES of this store"):
        fit_svd(other, out, SVDConfig(dim=3))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").touch()
    with pytest.raises(TiplError, match="exists and is not a CODES folder"):
        fit_svd(store, tmp_path / "folder", SVDConfig(dim=3))


@pytest.mark.parametrize("basis", ["full", "pooled"])
def test_an_interrupted_fit_is_refused_by_readers_and_gone_on_with(
    store: Path, tmp_path: Path, basis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SVDConfig(basis="full" if basis == "full" else "pooled", dim=3)
    expected = Codes.open(fit_svd(store, tmp_path / "whole", config))
    out, represented = tmp_path / "codes", fit._represented
    done: list[int] = []

    def interrupted(trial, *rest):
        if trial.seed == 3:
            raise KeyboardInterrupt
        return represented(trial, *rest)

    monkeypatch.setattr(fit, "_represented", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_svd(store, out, config)
    with pytest.raises(TiplError, match="unfinished"):
        Codes.open(out)

    def noted(trial, *rest):
        done.append(trial.seed)
        return represented(trial, *rest)

    monkeypatch.setattr(fit, "_represented", noted)
    codes = Codes.open(fit_svd(store, out, config))
    assert done == [3, 4, 5]
    for seed in codes.seeds:
        np.testing.assert_array_equal(codes.codes(seed), expected.codes(seed))
        np.testing.assert_array_equal(codes.basis(seed).components_DP, expected.basis(seed).components_DP)


def test_codes_move_with_their_store(store: Path, tmp_path: Path) -> None:
    fit_svd(store, tmp_path / "codes", SVDConfig(dim=3))
    (tmp_path / "moved").mkdir()
    for name in ("store", "codes"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert Codes.open(tmp_path / "moved" / "codes").store == (tmp_path / "moved" / "store").resolve()


def test_what_is_no_codes_is_refused(store: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", store):
        with pytest.raises(TiplError, match="not a CODES folder"):
            Codes.open(path)
    out = fit_svd(store, tmp_path / "codes", SVDConfig(dim=3))
    with pytest.raises(TiplError, match="no codes of trial 9; it has 1 to 5"):
        Codes.open(out).codes(9)
    facts = json.loads((out / "codes.json").read_text())
    for name, value, match in (
        ("version", 99, "version 99"),
        ("format", "zip", "`format` is 'zip'"),
        ("context", 0, "`context` is 0"),
        ("config", {"rank": 3}, "settings that are unknown here"),
        ("trials", {"../x": facts["trials"]["1"]}, "trials that are none"),
    ):
        write_json(out / "codes.json", {**facts, name: value, "seal": SEAL}, seal=True)
        with pytest.raises(TiplError, match=match):
            Codes.open(out)
    (out / "codes.json").write_text("{")
    with pytest.raises(TiplError, match="damaged or no JSON"):
        Codes.open(out)


@pytest.mark.parametrize("config", [SVDConfig(dim=3), SVDConfig(basis="pooled", dim=3)], ids=["full", "pooled"])
def test_damaged_codes_are_named_set_aside_and_made_again(
    store: Path, tmp_path: Path, config: SVDConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    out = fit_svd(store, tmp_path / "codes", config)
    other = fit_svd(store, tmp_path / "other", dataclasses.replace(config, dim=2))
    for file in sorted(out.rglob("*.safetensors")):
        whole = file.read_bytes()
        neighbor = file.with_name("2.safetensors" if file.name == "1.safetensors" else "1.safetensors")
        swapped = [(other / file.relative_to(out)).read_bytes(), neighbor.read_bytes() if neighbor.exists() else b""]
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 16
        for damaged in (bytes(flipped), whole[:-1], *swapped):
            file.write_bytes(damaged)
            with pytest.raises(TiplError, match=f"{file.name}.*run the same tipl fit-svd again"):
                for seed in Codes.open(out).seeds:
                    Codes.open(out).basis(seed)
            capsys.readouterr()
            fit_svd(store, out, config)
            assert f"{file.name}.damaged" in capsys.readouterr().err
            assert file.read_bytes() == whole
            (aside,) = file.parent.glob("*.damaged")
            assert aside.read_bytes() == damaged
            aside.unlink()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SVDConfig(dim=13), "--dim is 13, more than the 12 weights; give at most 12"),
        (SVDConfig(basis="window", dim=6, window=5), "--dim is 6, more than the 5 displacements of a window"),
    ],
)
def test_settings_that_the_trials_do_not_allow(store: Path, tmp_path: Path, config: SVDConfig, message: str) -> None:
    with pytest.raises(TiplError, match=message):
        fit_svd(store, tmp_path / "codes", config)
    assert not (tmp_path / "codes").exists()


def test_stores_that_cannot_be_represented(tmp_path: Path) -> None:
    out = tmp_path / "codes"
    with pytest.raises(TiplError, match="does not exist"):
        fit_svd(tmp_path / "nothing", out)
    with pytest.raises(TiplError, match="holds no trial"):
        fit_svd(create_store(tmp_path / "empty").path, out)
    short = write_store(tmp_path / "short", {1: walk(4, 12), 2: walk(9, 12)})
    with pytest.raises(TiplError, match="--dim is 5, more than the 4 snapshots of trial 1"):
        fit_svd(short, out, SVDConfig(dim=5))
    with pytest.raises(TiplError, match="2 training trials or more"):
        fit_svd(short, out, SVDConfig(basis="pooled", dim=3))
    assert not out.exists()
    weights_TP = walk(9, 12)
    weights_TP[6, 2] = np.nan
    diverged = write_store(tmp_path / "diverged", {4: weights_TP})
    with pytest.raises(TiplError, match=r"Trial 4 .* not finite from snapshot 6"):
        fit_svd(diverged, tmp_path / "diverged-codes", SVDConfig(dim=3))


def test_trials_of_unequal_length_are_fine(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", {1: walk(9, 12), 2: walk(14, 12)})
    codes = Codes.open(fit_svd(store, tmp_path / "codes", SVDConfig(dim=3)))
    assert [codes.codes(seed).shape for seed in codes.seeds] == [(9, 3), (14, 3)]
