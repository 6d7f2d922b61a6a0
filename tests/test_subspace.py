"""Low-rank baselines against their definitions in numpy, and DMD against PyDMD.

In: made-up paths.  Out: failures.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydmd
import pytest

from tipl.config.presets import SVDConfig
from tipl.forecasting.forecaster import Forecaster
from tipl.forecasting.subspace import DMD, CodeLine, PathProducts, PrefixLine, slope
from tipl.representation import Codes, fit_svd
from tipl.store import History, Store

HORIZONS = (1, 3, 8)


def path(snapshots: int, weights: int = 9) -> np.ndarray:
    return np.cumsum(np.random.default_rng(2).normal(size=(snapshots, weights)), axis=0).astype(np.float32)


def forecast(forecaster: Forecaster, weights: np.ndarray) -> np.ndarray:
    first = 0 if forecaster.context is None else max(0, len(weights) - forecaster.context)
    return forecaster.forecast([History(1, len(weights) - 1, weights[first:], 0)], HORIZONS)[0]


def test_slope_is_numpys_polyfit():
    w = path(12)
    for count in (2, 5, 12, 40):
        n = min(count, 12)
        expected = np.polyfit(np.arange(n), w[-n:].astype(np.float64), 1)[0]
        np.testing.assert_allclose(slope(12, count) @ w, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(slope(1, 5), [0])


def test_prefix_line_projects_the_slope_to_the_leading_directions():
    w = path(40)
    forecaster = PrefixLine(rank=3, count=10)
    for stop in (20, 33, 40):  # its inner products grow with the origin
        seen = w[:stop].astype(np.float64)
        v = np.linalg.svd(seen - seen[0], full_matrices=False)[2][:3]
        step = np.polyfit(np.arange(10), seen[-10:], 1)[0] @ v.T @ v
        expected = seen[-1] + np.multiply.outer(HORIZONS, step)
        np.testing.assert_allclose(forecast(forecaster, w[:stop]), expected, rtol=1e-3, atol=1e-3)


def test_prefix_lines_of_several_origins_and_trials_are_those_of_each_alone():
    paths = {1: path(60), 2: path(50)[::-1].copy()}
    shared = PathProducts()
    lines = [PrefixLine(2, 5, shared), PrefixLine(4, 10, shared)]
    asked = [(2, 30), (1, 20), (1, 50), (2, 10), (1, 3)]
    histories = [History(trial, t, paths[trial][: t + 1], 0) for trial, t in asked]
    for line in (*lines, *lines):  # the second time with inner products that are there already
        together = line.forecast(histories, HORIZONS)
        for history, made in zip(histories, together, strict=True):
            alone = PrefixLine(line._rank, line._count).forecast([history], HORIZONS)[0]
            np.testing.assert_allclose(made, alone, rtol=1e-4, atol=1e-4)


def test_dmd_that_grows_beyond_float32_stands_still():
    w = (10.0 ** np.arange(0, 30, 3))[:, None] * np.array([[1.0, -2.0, 0.5]])
    made = DMD(1, 9).forecast([History(1, 9, w.astype(np.float32), 0)], (1, 2, 50, 200))[0]
    np.testing.assert_allclose(made[:2], w[-1] * np.array([[1e3], [1e6]]), rtol=1e-3)
    np.testing.assert_array_equal(made[2:], np.tile(w[-1].astype(np.float32), (2, 1)))


def test_dmd_continues_a_linear_system():
    # Two decaying rotations seen through 30 weights: four modes.
    angle = np.array([0.3, 0.8])
    t = np.arange(40)[:, None]
    modes = np.concatenate([0.97**t * np.cos(t * angle), 0.97**t * np.sin(t * angle)], axis=1)
    w = modes @ np.random.default_rng(0).normal(size=(4, 30))
    made = forecast(DMD(rank=4, count=25), w[:32].astype(np.float64))
    np.testing.assert_allclose(made, w[31 + np.array(HORIZONS)], atol=1e-3)


@pytest.mark.parametrize("rank", [1, 3])
def test_dmd_is_the_operator_of_the_definition(rank: int):
    w = path(12).astype(np.float64)
    x, y = w[:-1].T, w[1:].T
    u, s, vt = (
        part[..., :rank] if i < 2 else part[:rank] for i, part in enumerate(np.linalg.svd(x, full_matrices=False))
    )
    operator = y @ vt.T @ np.diag(1 / s) @ u.T
    expected = [np.linalg.matrix_power(operator, h) @ w[-1] for h in HORIZONS]
    np.testing.assert_allclose(forecast(DMD(rank, 11), w), expected, rtol=1e-4)


def fit_pydmd(window: np.ndarray, rank: int, exact: bool, opt: Any = False) -> pydmd.DMD:
    with warnings.catch_warnings():  # a window of weights is ill-conditioned, which is what the rank is for
        warnings.filterwarnings("ignore", "Input data condition number", UserWarning)
        return pydmd.DMD(svd_rank=rank, exact=exact, opt=opt).fit(window.T)


def pydmds_forecast(fitted: pydmd.DMD, last: int) -> np.ndarray:
    fitted.dmd_time["tend"] = last + max(HORIZONS)
    return np.real(fitted.reconstructed_data.T[last + np.array(HORIZONS)])


@pytest.fixture(scope="module")
def windows(small_store: Path) -> list[np.ndarray]:
    """Snapshots of a real trial, 11 and 31 of them, in float64."""
    weights = Store.open(small_store).trial(2).weights().astype(np.float64)
    return [weights[20:31], weights[40:71]]


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_dmd_has_pydmds_exact_modes_and_eigenvalues_and_the_amplitudes_of_its_projected_modes(
    windows: list[np.ndarray], rank: int
):
    """φ̃_{t+h} = Φ Λ^{h−1} b: PyDMD's exact modes Φ are Y V Σ⁻¹ W, of the snapshot after, hence h − 1.

    b = W⁻¹ Uᵀ φ_t is what our operator A = Y V Σ⁻¹ Uᵀ does to the last snapshot. PyDMD takes the same b with
    `exact=False`; with `exact=True` it fits the exact modes to a snapshot by least squares, which is no power of A.
    """
    for window in windows:
        exact, projected = fit_pydmd(window, rank, exact=True), fit_pydmd(window, rank, exact=False, opt=-1)
        np.testing.assert_array_equal(exact.eigs, projected.eigs)
        powers = exact.eigs ** (np.array(HORIZONS)[:, None] - 1)
        expected = np.real((powers * projected.amplitudes) @ np.transpose(np.asarray(exact.modes)))
        moved = window[-1] - window[-2]
        assert np.abs(expected[0] - window[-1]).max() > 1e-3 * np.abs(moved).max(), "not persistence"
        made = DMD(rank, len(window) - 1)._one(History(2, 0, window, 0), HORIZONS)
        np.testing.assert_allclose(made, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_dmd_seen_in_the_leading_directions_is_pydmds_forecast(windows: list[np.ndarray], rank: int):
    """With projected modes PyDMD forecasts U_r U_rᵀ A^h φ_t: our forecast, seen in the directions of the window."""
    for window in windows:
        last = len(window) - 1
        theirs = pydmds_forecast(fit_pydmd(window, rank, exact=False, opt=-1), last)
        u = np.linalg.svd(window[:-1].T, full_matrices=False)[0][:, :rank]
        made = DMD(rank, last)._one(History(2, 0, window, 0), HORIZONS)
        np.testing.assert_allclose(made @ u @ u.T, theirs, rtol=1e-7, atol=1e-8)


def test_dmd_of_a_linear_system_is_pydmds_forecast_with_either_modes_from_either_end():
    angle, t = np.array([0.3, 0.8]), np.arange(26)[:, None]
    modes = np.concatenate([0.97**t * np.cos(t * angle), 0.97**t * np.sin(t * angle)], axis=1)
    window = modes @ np.random.default_rng(0).normal(size=(4, 30))
    made = DMD(4, 25)._one(History(1, 25, window, 0), HORIZONS)
    for exact in (False, True):
        for opt in (False, -1):  # the amplitudes are those of the first or of the last snapshot
            theirs = pydmds_forecast(fit_pydmd(window, 4, exact, opt), 25)
            np.testing.assert_allclose(made, theirs, rtol=1e-6, atol=1e-8)


def test_dmd_of_a_run_that_stands_still_is_persistence():
    w = np.ones((6, 4), np.float32)
    np.testing.assert_array_equal(forecast(DMD(2, 5), w), np.ones((3, 4)))
    np.testing.assert_array_equal(forecast(DMD(2, 5), w[:1]), np.ones((3, 4)))


def test_a_line_through_all_codes_is_the_line_through_the_weights(small_store: Path, tmp_path: Path):
    # At full rank the codes are the weights in other coordinates.
    codes = Codes.open(fit_svd(small_store, tmp_path / "codes", SVDConfig(dim=81)))
    line = CodeLine(codes, 6)
    assert not line.causal and line.name == "line-6-full" and "sees the future" in line.label
    w = Store.open(small_store).trial(3).weights().astype(np.float64)
    made = line.forecast([History(3, 30, w[:31].astype(np.float32), 0)], HORIZONS)[0]
    line_slope, start = np.polyfit(np.arange(6), w[25:31], 1)
    expected = np.stack([start + line_slope * (5 + h) for h in HORIZONS])
    np.testing.assert_allclose(made, expected, atol=2e-4)
