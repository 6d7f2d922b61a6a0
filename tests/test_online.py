"""Forecasts corrected in the run, beside a plain least-squares fit of the same regressors.

In: paths drawn here.  Out: failures where the recursion, its memory or its invariances are off.
"""

import numpy as np
import pytest

from tipl.forecasting.baselines import damped_line, line, persistence
from tipl.forecasting.forecaster import Forecaster
from tipl.forecasting.online import FORGETTING, LAG_RIDGE, LAGS, RIDGE, OnlineCorrected
from tipl.store import History

HORIZONS = (1, 4, 10)


def path(snapshots: int = 120, weights: int = 12, seed: int = 0) -> np.ndarray:
    """Steps that are like the ones before, and noise."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(snapshots, weights))
    for t in range(1, snapshots):
        steps[t] += 0.8 * steps[t - 1]
    return np.cumsum(steps, axis=0).astype(np.float32)


def ask(forecaster: Forecaster, weights: np.ndarray, t: int, epoch_index: int = -1) -> np.ndarray:
    return forecaster.forecast([History(7, t, weights[: t + 1], epoch_index)], HORIZONS)[0]


def regressors(forecasters: list[Forecaster], weights: np.ndarray, s: int, i: int) -> np.ndarray:
    """[P, M] at snapshot s for horizon i, one by one."""
    columns = [ask(forecaster, weights, s)[i] - weights[s] for forecaster in forecasters]
    columns += [(weights[s] - weights[max(s - k, 0)]) / np.sqrt(k) for k in LAGS]
    return np.stack(columns, axis=1).astype(np.float64)


@pytest.mark.parametrize("base", [[line(5)], [persistence()], [line(5), damped_line(20, 0.9)]], ids=len)
@pytest.mark.parametrize("t", [30, 119])
def test_it_is_weighted_ridge_regression_on_the_run_so_far(base: list[Forecaster], t: int):
    weights = path()
    made = ask(OnlineCorrected(base), weights, t)
    for i, h in enumerate(HORIZONS):
        rows, came, total = [], [], 0.0
        for s in range(t - h + 1):
            true = (weights[s + h] - weights[s]).astype(np.float64)
            step = (weights[s] - weights[max(s - 1, 0)]).astype(np.float64)
            weight = FORGETTING ** (t - h - s)
            scale = np.sqrt(weight / (true @ true + h * step @ step))
            rows.append(scale * regressors(base, weights, s, i))
            came.append(scale * true)
            total += weight
        design, prior = np.concatenate(rows), np.r_[np.full(len(base), 1 / len(base)), np.zeros(len(LAGS))]
        belief = np.sqrt(h) * np.r_[np.full(len(base), RIDGE), np.full(len(LAGS), LAG_RIDGE)]
        ridge = np.sqrt(belief * np.square(design).sum(axis=0) / total)
        ridge[ridge == 0] = 1
        stacked = np.concatenate([design, np.diag(ridge)])
        a = np.linalg.lstsq(stacked, np.concatenate([*came, ridge * prior]), rcond=None)[0]
        wanted = weights[t] + regressors(base, weights, t, i) @ a
        np.testing.assert_allclose(made[i], wanted, rtol=1e-4, atol=1e-3)


def test_before_any_future_is_known_it_is_the_forecaster():
    weights = path()
    base = damped_line(5, 0.9)
    for t, known in ((0, 0), (3, 1), (9, 2)):  # at t = 3 the first horizon alone has seen what came
        np.testing.assert_allclose(
            ask(OnlineCorrected([base]), weights, t)[known:], ask(base, weights, t)[known:], rtol=1e-5
        )


def test_a_run_that_goes_straight_teaches_it_to_go_on():
    weights = np.outer(np.arange(2500), np.linspace(-1, 2, 6)).astype(np.float32)
    made = ask(OnlineCorrected([persistence()]), weights, 2499)
    true = np.stack([weights[-1] * (2499 + h) / 2499 for h in HORIZONS])
    error = np.linalg.norm(made - true, axis=1) / np.linalg.norm(true - weights[-1], axis=1)
    # Of eight regressors alike, each with a ridge of LAG_RIDGE √h beside what the forgetting leaves of the past.
    past = 1 / (1 - FORGETTING)
    shrunk = LAG_RIDGE * np.sqrt(HORIZONS) / (len(LAGS) * past + LAG_RIDGE * np.sqrt(HORIZONS))
    np.testing.assert_allclose(error, shrunk, rtol=0.02)


def test_on_noise_it_is_silent():
    rng = np.random.default_rng(3)
    weights = np.cumsum(rng.normal(size=(600, 200)), axis=0).astype(np.float32)
    displacement = ask(OnlineCorrected([line(5)]), weights, 599) - weights[-1]
    plain = ask(line(5), weights, 599) - weights[-1]
    assert np.linalg.norm(displacement[0]) < 0.2 * np.linalg.norm(plain[0])


def test_scales_and_orders_of_the_weights_do_not_matter():
    weights = path()
    made, order = ask(OnlineCorrected([line(5)]), weights, 100), np.random.default_rng(1).permutation(weights.shape[1])
    np.testing.assert_allclose(ask(OnlineCorrected([line(5)]), 1000 * weights, 100), 1000 * made, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(
        ask(OnlineCorrected([line(5)]), weights[:, order], 100), made[:, order], rtol=1e-4, atol=1e-3
    )


def test_the_order_of_the_questions_does_not_matter():
    weights, other = path(), path(seed=1)
    once = OnlineCorrected([line(5)])
    late, early = ask(once, weights, 100), ask(once, weights, 40)
    np.testing.assert_array_equal(early, ask(OnlineCorrected([line(5)]), weights, 40))
    np.testing.assert_array_equal(late, ask(OnlineCorrected([line(5)]), weights, 100))
    np.testing.assert_array_equal(
        ask(once, other, 60), ask(OnlineCorrected([line(5)]), other, 60)
    )  # another run, same trial
    np.testing.assert_array_equal(late, ask(once, weights, 100))


def test_earlier_origins_have_their_own_places():
    class Places(Forecaster):
        name, label, context = "epoch_indices", "epoch_indices", 1

        def __init__(self) -> None:
            self.seen: dict[int, int] = {}

        def forecast(self, histories, horizons):
            self.seen |= {history.origin: history.epoch_index for history in histories}
            return np.repeat(histories[0].weights[None, -1:], len(horizons), axis=1)

    base = Places()
    # φ_1, φ_6, φ_11 are the first of an iteration.
    ask(OnlineCorrected([base], snapshots_per_iteration=5), path(30), 12, epoch_index=1)
    assert base.seen == {s: (s - 1) % 5 for s in range(13)}
