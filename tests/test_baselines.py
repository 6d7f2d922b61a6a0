"""Baselines equal their textbook forms, and see nothing later than the origin.

In: small stores and made-up windows.  Out: failures.
"""

from pathlib import Path

import numpy as np
import pytest

from tipl.config.presets import EvaluateConfig
from tipl.evaluation.origins import choose_origins, history
from tipl.forecasting import autoregression, baselines
from tipl.forecasting.autoregression import Autoregression, difference_features, normal_equations
from tipl.forecasting.baselines import (
    Source,
    TrainMean,
    damped_line,
    fitted_baselines,
    last_difference,
    line,
    mean_of_last,
    persistence,
)
from tipl.forecasting.forecaster import Forecaster, checked_forecast
from tipl.store import History, Store, TrialWriter, create_store
from tipl.store.spec import ParamSpec

HORIZONS = (1, 2, 7)


def window(snapshots: int, weights: int = 5) -> np.ndarray:
    return np.random.default_rng(4).normal(size=(snapshots, weights)).astype(np.float32)


def forecast(forecaster: Forecaster, weights: np.ndarray, epoch_index: int = 0) -> np.ndarray:
    return forecaster.forecast([History(1, len(weights) - 1, weights, epoch_index)], HORIZONS)[0]


def test_persistence_mean_and_last_difference():
    w = window(12)
    np.testing.assert_array_equal(forecast(persistence(), w), np.tile(w[-1], (3, 1)))
    np.testing.assert_allclose(forecast(mean_of_last(5), w), np.tile(w[-5:].mean(0), (3, 1)), rtol=1e-5, atol=1e-6)
    expected = np.stack([w[-1] + h * (w[-1] - w[-2]) for h in HORIZONS])
    np.testing.assert_allclose(forecast(last_difference(), w), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [2, 5, 12])
def test_a_line_is_numpys_polyfit(count: int):
    w = window(12)
    slope, intercept = np.polyfit(np.arange(count), w[-count:].astype(np.float64), 1)
    expected = np.stack([intercept + slope * (count - 1 + h) for h in HORIZONS])
    np.testing.assert_allclose(forecast(line(count), w), expected, rtol=1e-4, atol=1e-5)


def test_a_damped_line_takes_ever_shorter_steps():
    w = window(12)
    slope = np.polyfit(np.arange(5), w[-5:].astype(np.float64), 1)[0]
    expected = []
    for h in HORIZONS:
        now, step = w[-1].astype(np.float64), slope.copy()
        for _ in range(h):
            step = step * 0.8
            now = now + step
        expected.append(now)
    np.testing.assert_allclose(forecast(damped_line(5, 0.8), w), expected, rtol=1e-4, atol=1e-5)


def test_before_the_first_snapshot_the_run_stood_still():
    w = window(3)
    padded = np.concatenate([np.tile(w[0], (7, 1)), w])
    np.testing.assert_allclose(forecast(line(10), w), forecast(line(10), padded), rtol=1e-5, atol=1e-6)


def naive_design(
    trials: list[np.ndarray], epoch_indices: list[np.ndarray], epoch_index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Every (origin, weight) of that epoch index as a row: the features one by one, and the displacements."""
    rows, targets = [], []
    for w, where in zip(trials, epoch_indices, strict=True):

        def at(t: int, w: np.ndarray = w) -> np.ndarray:
            return w[max(t, 0)].astype(np.float64)

        for t in range(len(w) - max(HORIZONS)):
            if where[t] == epoch_index:
                x = [at(t - k) - at(t - k - 1) for k in range(autoregression.DIFFERENCES)]
                x += [at(t) - at(t - k) for k in autoregression.LONGER]
                rows.append(np.stack(x, axis=1))
                targets.append(np.stack([at(t + h) - at(t) for h in HORIZONS], axis=1))
    return np.concatenate(rows), np.concatenate(targets)


def test_the_autoregression_is_ridge_regression_on_every_origin_and_weight(small_store: Path):
    store = Store.open(small_store)
    trials = [store.trial(seed) for seed in (1, 2, 3)]
    equations = normal_equations(trials, difference_features(), HORIZONS)
    epoch_indices = [trial.epoch_index for trial in trials]
    np.testing.assert_array_equal(epoch_indices[0][:12], [4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0])
    ridge = 1e-3
    fitted = Autoregression.fit(HORIZONS, equations, ridge)
    w = trials[0].weights(0, 60)
    for epoch_index in range(5):
        x, y = naive_design([trial.weights() for trial in trials], epoch_indices, epoch_index)
        # Ridge regression as least squares with added rows, which forms no normal equations.
        penalty = np.sqrt(ridge * (x**2).sum() / x.shape[1])
        beta = np.linalg.lstsq(
            np.concatenate([x, penalty * np.eye(x.shape[1])]),
            np.concatenate([y, np.zeros((x.shape[1], len(HORIZONS)))]),
        )[0]
        features = np.zeros((x.shape[1], w.shape[1]))
        for k in range(autoregression.DIFFERENCES):
            features[k] = w[59 - k] - w[max(58 - k, 0)]
        for row, k in enumerate(autoregression.LONGER, autoregression.DIFFERENCES):
            features[row] = w[59] - w[max(59 - k, 0)]
        expected = beta.T @ features
        found = forecast(fitted, w, epoch_index) - w[-1]
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_settings_are_chosen_by_the_error_that_they_make(small_store: Path):
    store = Store.open(small_store)
    trials = [store.trial(5)]
    candidates = [damped_line(count, damping) for count in (2, 5, 20) for damping in (0.5, 0.9)]

    def skill(candidate: Forecaster) -> float:
        error, moved = np.zeros(len(HORIZONS)), np.zeros(len(HORIZONS))
        w = trials[0].weights()
        for t in range(len(w) - max(HORIZONS)):
            made = candidate.forecast([History(5, t, w[: t + 1], 0)], HORIZONS)[0]
            true = w[t + np.array(HORIZONS)]
            error, moved = error + ((true - made) ** 2).sum(1), moved + ((true - w[t]) ** 2).sum(1)
        return float((1 - error / moved).mean())

    best = max(candidates, key=skill)
    skills = baselines.skills([candidates], trials, HORIZONS)
    assert baselines._best([candidates], [skills]) == [best]
    np.testing.assert_allclose(skills, [skill(candidate) for candidate in candidates], rtol=1e-6)


def test_several_stores_count_alike_however_long_their_steps(small_store: Path, tmp_path: Path):
    """A policy of other shapes and a hundred times the scale turns the slopes as much as the first store does."""
    small = source(Store.open(small_store))
    rng, path = np.random.default_rng(0), tmp_path / "large"
    create_store(path)
    for seed in range(3):
        walk = 100 * rng.normal(size=(81, 3)).cumsum(axis=0).cumsum(axis=0).astype(np.float32)
        writer = TrialWriter.create(
            path, seed, env_id="made-up", config={}, spec=ParamSpec(("w",), ((3,),)), versions={}, obs_dim=1,
            num_snapshots=81,
        )  # fmt: skip
        writer.append(walk, np.arange(81), np.zeros(81, int), np.zeros(81, int), np.ones(81), np.zeros((81, 1)),
                      np.ones((81, 1)), np.zeros(81))  # fmt: skip
        writer.commit({}, complete=True)
    large = source(Store.open(path))
    parts = [normal_equations(each.train, difference_features(), HORIZONS) for each in (small, large)]
    joined = autoregression.joined_equations(parts)
    for part in parts:  # each alone, in units of its own
        size = sum(np.trace(gram) for gram, _ in part.values())
        assert sum(np.trace(gram) / size for gram, _ in part.values()) == pytest.approx(1)
    assert sum(np.trace(gram) for gram, _ in joined.values()) == pytest.approx(2)
    shapes = small.train[0].spec.shapes
    names = [f.name for f in fitted_baselines([small, large], shapes, HORIZONS, 0)]
    assert names == [f.name for f in fitted_baselines([small], shapes, HORIZONS, 0)]
    assert set(names) - {f.name for f in fitted_baselines([large], shapes, HORIZONS, 0)} == {"train-mean"}
    unfitted = [f.name for f in fitted_baselines([], shapes, HORIZONS, 0)]
    assert set(unfitted) == set(names) - set(baselines.FITTED)


def source(store: Store) -> Source:
    split = store.split()
    return Source(store, *(tuple(store.trial(seed) for seed in part) for part in (split.train, split.validation)))


@pytest.mark.parametrize("block_bytes", [1, 10**4, 10**9])
def test_the_training_mean_is_the_mean_whatever_the_blocks(
    small_store: Path, block_bytes: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(baselines, "_BLOCK_BYTES", block_bytes)
    trials = [Store.open(small_store).trial(seed) for seed in (1, 2, 3)]
    mean = np.mean([trial.weights().astype(np.float64) for trial in trials], axis=0)
    w = window(41, mean.shape[1])
    made = TrainMean(trials).forecast([History(9, 40, w, 0), History(9, 79, w, 0)], (1, 40))
    np.testing.assert_allclose(made[0], w[-1] + mean[[41, 80]] - mean[40], atol=1e-5)
    np.testing.assert_allclose(made[1], w[-1] + mean[[80, 80]] - mean[79], atol=1e-5)  # the last stands for later


def test_nothing_later_than_the_origin_is_seen(small_store: Path):
    store = Store.open(small_store)
    config = EvaluateConfig(horizons=(1, 5, 20), return_horizons=(1,), origins=10)
    forecasters = fitted_baselines([source(store)], store.trial(6).spec.shapes, config.horizons, seed=0)
    assert forecasters[0].name == "persistence" and len({f.name for f in forecasters}) == len(forecasters)
    trial = store.trial(6)
    origins = choose_origins(trial, config)
    for m, t in enumerate(origins.snapshot):
        whole, poisoned = trial.weights(), trial.weights()
        poisoned[t + 1 :] = np.nan
        for forecaster in forecasters:
            assert forecaster.causal
            seen = [history(trial, w, origins, m, forecaster) for w in (whole, poisoned)]
            made = [checked_forecast(forecaster, [h], config.horizons) for h in seen]
            np.testing.assert_array_equal(made[0], made[1])
