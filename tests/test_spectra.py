"""Spectra of runs and of the walks beside them, against numpy's SVD and closed forms.

In: made-up stores.  Out: failures.
"""

from pathlib import Path

import numpy as np
import pytest

from tipl.collection.random_walk import walk_coordinates
from tipl.evaluation.spectra import spectra
from tipl.representation import ENERGY_SHARES
from tipl.store import Store, Trial, TrialWriter, create_store
from tipl.store.spec import ParamSpec

SPEC = ParamSpec(("first", "second"), ((5, 4), (10,)))


def trials_of(path: Path, paths: dict[int, np.ndarray], spec: ParamSpec = SPEC) -> list[Trial]:
    create_store(path)
    for seed, weights in paths.items():
        count = len(weights)
        writer = TrialWriter.create(
            path, seed, env_id="made-up", config={}, spec=spec, versions={}, obs_dim=1, num_snapshots=count
        )
        zeros, ones = np.zeros(count, np.int64), np.ones((count, 1))
        writer.append(weights, np.arange(count), zeros, zeros, np.ones(count), 0 * ones, ones, np.zeros(count))
        writer.commit({}, complete=True)
    store = Store.open(path)
    return [store.trial(seed) for seed in paths]


def walk(count: int, size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((count, size)) * np.linspace(0.3, 0.1, count)[:, None]
    steps[0] = 3 * rng.standard_normal(size)
    return steps.cumsum(axis=0).astype(np.float32)


def needed(matrix: np.ndarray) -> list[int]:
    """By a loop over numpy's singular values."""
    energy = np.linalg.svd(matrix.astype(np.float64), compute_uv=False) ** 2
    return [next(k for k in range(1, len(energy) + 1) if energy[:k].sum() >= s * energy.sum()) for s in ENERGY_SHARES]


@pytest.mark.parametrize("count", [24, 80])  # fewer and more snapshots than weights
def test_counts_are_those_of_numpys_svd(tmp_path: Path, count: int):
    paths = {seed: walk(count, 30, seed) for seed in (3, 4)}
    found = spectra(trials_of(tmp_path / "store", paths), seed=0)
    assert list(found)[:3] == ["displacements", "displacements-walk", "displacements-annealed-walk"]
    for of, first in (("displacements", 1), ("weights", 0)):
        entry = found[of]
        assert (entry["of"], entry["source"], entry["trials"]) == (of, "trials", [3, 4])
        rows = {seed: path.astype(np.float64) - first * path[0].astype(np.float64) for seed, path in paths.items()}
        expected = np.array([needed(row) for row in rows.values()])
        assert entry["needed"] == {str(s): expected[:, i].tolist() for i, s in enumerate(ENERGY_SHARES)}
        for point in entry["over_learning"]:
            length = round(count * point["share_of_run"])
            assert point["snapshots"] == [length, length]
            expected = np.array([needed(row[:length]) for row in rows.values()])
            assert point["needed"] == {str(s): expected[:, i].tolist() for i, s in enumerate(ENERGY_SHARES)}
        energy = [np.linalg.svd(row, compute_uv=False) ** 2 for row in rows.values()]
        shares = np.mean([e.cumsum() / e.sum() for e in energy], axis=0)
        np.testing.assert_allclose(entry["energy"], shares[np.array(entry["directions"]) - 1], rtol=1e-9)
    by_tensor = found["displacements"]["by_tensor"]
    assert {name: each["size"] for name, each in by_tensor.items()} == {"first": 20, "second": 10}
    for name, columns in (("first", slice(20)), ("second", slice(20, 30))):
        expected = np.array([needed(p[:, columns].astype(np.float64) - p[0, columns]) for p in paths.values()])
        assert by_tensor[name]["needed"]["0.99"] == expected[:, 2].tolist()


def test_the_walks_have_the_trials_size_and_start(tmp_path: Path):
    # Beside a long way to φ_0 the first direction of the weights is all there is; without one it is as displacements.
    far = walk(60, 30, 1)
    far[:] += 1000
    near = walk(60, 30, 1)
    near -= near[0]
    found = [spectra(trials_of(tmp_path / name, {1: p}), seed=0) for name, p in (("far", far), ("near", near))]
    for source in ("walk", "annealed-walk"):
        assert found[0][f"weights-{source}"]["needed"]["0.999"] == [1]
        assert found[1][f"weights-{source}"]["needed"] == found[1][f"displacements-{source}"]["needed"]
        assert found[1][f"weights-{source}"]["directions"][-1] <= 30


def test_a_long_walk_in_many_dimensions_has_the_energies_of_brownian_motion():
    # Karhunen-Loève from a fixed start: the k-th direction holds 1/(k − ½)² of Σ = π²/2.
    path = walk_coordinates(np.ones(1500), 10**7, 0.0, np.random.default_rng(0))
    energy = np.linalg.eigvalsh(path @ path.T)[::-1]
    expected = 2 / (np.pi * (np.arange(1, 11) - 0.5)) ** 2
    np.testing.assert_allclose(energy[:10] / energy.sum(), expected, rtol=0.01)


@pytest.mark.parametrize("dim", [4, 40])
def test_a_walks_inner_products_are_distributed_as_in_all_its_dimensions(dim: int):
    """Against walks drawn number by number: mean and spread of every inner product, of 3,000 walks each."""
    rng, lengths, start = np.random.default_rng(0), np.linspace(1, 0.3, 9), 2.0

    def drawn() -> np.ndarray:
        rows = rng.standard_normal((10, dim)) / np.sqrt(dim) * np.r_[1.0, lengths][:, None]
        rows[0] = 0
        rows[0, 0] = start  # any direction will do
        return rows.cumsum(axis=0)

    direct = np.array([path @ path.T for path in (drawn() for _ in range(3000))])
    ours = np.array([p @ p.T for p in (walk_coordinates(lengths, dim, start, rng) for _ in range(3000))])
    error = np.sqrt((direct.var(0) + ours.var(0)) / 3000) + 1e-12
    assert (np.abs(direct.mean(0) - ours.mean(0)) < 4.5 * error).all()
    spread = direct.std(0) > 0
    np.testing.assert_allclose(ours.std(0)[spread], direct.std(0)[spread], rtol=0.12)
    assert walk_coordinates(lengths, dim, start, rng).shape == (10, min(10, dim))


def test_a_run_that_never_moves_has_no_directions(tmp_path: Path):
    found = spectra(trials_of(tmp_path / "still", {1: np.ones((20, 30), np.float32)}), seed=0)
    assert found["displacements"]["needed"] == {str(s): [0] for s in ENERGY_SHARES}
    assert found["weights"]["needed"]["0.999"] == [1]
    for entry in found.values():
        assert np.isfinite(entry["energy"]).all()
