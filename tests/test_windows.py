"""Windows of snapshots as inner products, and the causal model on them: against naive loops, and what must not matter.

In: random paths of two tensors.  Out: failures that name the product, the symmetry or the file.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from tipl.cli import parser
from tipl.collection.random_walk import random_walk
from tipl.config.presets import CausalTrainConfig, EvaluateConfig, ForecasterName
from tipl.errors import TiplError
from tipl.evaluation.evaluate import evaluate
from tipl.forecasting.autoregression import solve_ridge
from tipl.forecasting.forecast import forecast
from tipl.forecasting.named import forecaster_digest, load_forecaster
from tipl.forecasting.online import online_corrected
from tipl.forecasting.shipped import SHIPPED, SHIPPED_NAMES, model_digest, model_folder
from tipl.forecasting.trained import CausalForecaster, codes_for
from tipl.models import CausalTIPL, load
from tipl.models.causal import EPOCH_INDICES, CausalConfig, Features, described, features
from tipl.representation.packed import WindowFile, WindowFiles, write_windows
from tipl.representation.windows import (
    EDGES,
    HORIZONS,
    SINGLE,
    TOKENS,
    WINDOW,
    TrainingWindows,
    noisy,
    training_windows,
    windows_of,
)
from tipl.rl.returns import Policies, policy_returns
from tipl.store import History, Store, TrialWriter, create_store
from tipl.store.spec import ParamSpec
from tipl.training import CHECKPOINT_FILE, CURVE_FILE, Displacements, displacement, fit_causal, train

SHAPES = ((3, 2), (3,))
SIZES = (6, 3)
SMALL = CausalTrainConfig(num_layers=1, num_heads=2, width=8, steps=6, batch_size=16, validate_every=3, windows=60)


def path_of(length: int, seed: int, size: int = sum(SIZES)) -> np.ndarray:
    """A random walk with momentum, float32 [T, P]: its steps can be forecast in part."""
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((length, size))
    for t in range(1, length):
        steps[t] += 0.7 * steps[t - 1]
    return np.cumsum(steps, axis=0).astype(np.float32)


def write_store(path: Path, trials: int, length: int, sizes: tuple[int, ...] = SIZES) -> Path:
    """Paths of two tensors in iterations of 5 snapshots."""
    create_store(path)
    for seed in range(1, trials + 1):
        spec = ParamSpec(("a", "b"), SHAPES if sizes == SIZES else tuple((size,) for size in sizes))
        writer = TrialWriter.create(
            path, seed, env_id="none", config={}, spec=spec, versions={}, obs_dim=1, num_snapshots=length
        )
        number, ones = np.arange(length), np.ones((length, 1))
        iteration = np.maximum(number - 1, 0) // 5 + (number > 0)
        writer.append(
            path_of(length, seed, sum(sizes)), number, iteration, number % 5, ones[:, 0], 0 * ones, ones, 0 * number
        )
        writer.commit({}, complete=True)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("windows") / "store", 4, 330)


def made_windows(store: Path, seed: int, origins: int = 40) -> TrainingWindows:
    trial = Store.open(store).trial(seed)
    return training_windows(trial, origins, np.random.default_rng(0))


@pytest.fixture(scope="module")
def model() -> CausalTIPL:
    """Untrained but not linear: every head drawn at random."""
    torch.manual_seed(0)
    drawn = CausalTIPL()
    with torch.no_grad():
        for weights in (drawn.linear, *drawn.to_coefficients.parameters(), *drawn.to_gate.parameters()):
            weights.normal_(std=0.05)
    return drawn.eval()


def joined(parts: Sequence[TrainingWindows]) -> TrainingWindows:
    """The windows of several trials, one after another."""
    names = [field.name for field in dataclasses.fields(TrainingWindows)]
    return TrainingWindows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def history_of(weights: np.ndarray, origin: int) -> History:
    return History(1, origin, weights[max(0, origin + 1 - WINDOW) : origin + 1], origin % 5)


# Inner products


def test_training_windows_are_the_inner_products_of_a_naive_loop(store: Path):
    made, weights = made_windows(store, 2), Store.open(store).trial(2).weights().astype(np.float64)
    origins = np.unique(made.origin)
    assert len(made) == 3 * len(origins) and 30 < len(origins) < 50 and origins.max() > WINDOW  # short and full windows
    groups = [slice(0, 6), slice(6, 9), slice(0, 9)]
    displaced = {h: np.square(weights[origins + h] - weights[origins]).sum(axis=1) for h in HORIZONS}
    mean = np.array([np.average(displaced[h], weights=1 / made.often[made.is_whole]) for h in HORIZONS])
    for b in range(len(made)):
        t, columns = int(made.origin[b]), groups[b // len(origins)]
        at = [weights[max(t - e, 0), columns] for e in EDGES]
        tokens = np.array([newer - older for newer, older in pairwise(at)])
        squares = [float(token @ token) for token in tokens[:SINGLE] if token.any()]
        unit = np.mean(squares)
        came = np.array([weights[t + h, columns] - weights[t, columns] for h in HORIZONS])
        np.testing.assert_allclose(made.unit[b], unit, rtol=1e-6)
        np.testing.assert_allclose(made.own[b], tokens @ tokens.T / unit, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(made.toward[b], tokens @ came.T / unit, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(made.moved[b], np.square(came).sum(axis=1) / unit, rtol=1e-5)
        np.testing.assert_allclose(made.weight[b], unit / mean, rtol=1e-5)
        assert made.is_whole[b] == (columns == groups[2]) and made.size[b] == columns.stop - columns.start
        assert made.epoch_index[b] == (t - 1) % 5


def test_training_windows_are_drawn_where_the_run_moves_and_stand_for_all_origins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of a run that moves ten times as far in its first quarter."""
    trial, weights = Store.open(write_store(tmp_path / "store", 1, 900)).trial(1), path_of(900, 1)
    weights[200:] = weights[200] + (weights[200:] - weights[200]) / 10
    monkeypatch.setattr(type(trial), "weights", lambda self, first=0, last=None: weights[first:last])
    last = 900 - 1 - HORIZONS[-1]
    draws = [training_windows(trial, 60, np.random.default_rng(seed)) for seed in range(40)]
    of_whole = joined(draws).is_whole
    origin, often = joined(draws).origin[of_whole], joined(draws).often[of_whole]
    assert len(origin) / 40 == pytest.approx(60, rel=0.05)
    assert all(np.mean(1 / made.often) == pytest.approx(1, rel=1e-5) for made in draws)
    assert np.mean(origin < 200) > 0.55  # evenly drawn: 0.25
    assert np.mean((origin < 200) / often) == pytest.approx(199 / last, rel=0.1)
    for h in (1, 10, 100):
        moved = np.square(weights[1 + h : 1 + h + last].astype(np.float64) - weights[1 : 1 + last]).sum(axis=1)
        assert np.mean(moved[origin - 1] / often) == pytest.approx(moved.mean(), rel=0.05)
    every = training_windows(trial, 10_000, np.random.default_rng(0))
    assert np.array_equal(every.origin, np.tile(np.arange(1, last + 1), 3)) and np.all(every.often == 1)


def test_the_window_of_a_history_is_that_of_the_lesson(store: Path):
    made, weights = made_windows(store, 3), Store.open(store).trial(3).weights()
    count = len(made) // 3
    for row in (0, 7, count - 1):
        t = int(made.origin[row])
        history = History(3, t, weights[max(0, t + 1 - WINDOW) : t + 1], int(made.epoch_index[row]))
        tokens, windows = windows_of(history.last(WINDOW), SIZES, history.epoch_index, t)
        assert tokens.shape == (TOKENS, 9) and len(windows) == 2
        for group in range(2):
            for field in dataclasses.fields(windows):
                lesson = getattr(made, field.name)[row + group * count]
                np.testing.assert_allclose(getattr(windows, field.name)[group], lesson, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("time", [0.0, 10.0], ids=["white", "colored"])
def test_noisy_windows_are_those_of_a_path_with_noise(time: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Many weights, so that noise has next to no product with anything but itself; steps are stationary, and origins
    drawn as if they moved alike, the same of both."""
    monkeypatch.setattr("tipl.representation.windows._movement", lambda trial, last: np.ones(last))
    name = "WHITE" if time == 0 else "COLORED"
    monkeypatch.setattr(f"tipl.representation.windows.{name}", (1.5, 1.5))
    monkeypatch.setattr("tipl.representation.windows.TIMES", (0.0, time))
    monkeypatch.setattr("tipl.representation.windows._WHITE", float(time == 0))
    sizes, length, rng = (9000, 4000), 330, np.random.default_rng(5)
    store = write_store(tmp_path / "store", 1, length, sizes)
    plain = made_windows(store, 1)
    made = noisy(plain, np.random.default_rng(0))
    weights = Store.open(store).trial(1).weights()
    step = np.diff(weights, axis=0).std()
    noise, kept = rng.standard_normal((length - 1, sum(sizes)), np.float32), math.exp(-1 / time) if time else 0.0
    for t in range(1, length - 1):
        noise[t] = kept * noise[t - 1] + math.sqrt(1 - kept**2) * noise[t]
    weights[1:] += np.cumsum(math.sqrt(1.5) * step * noise, axis=0)
    group = Store.open(store).trial(1)
    monkeypatch.setattr(type(group), "weights", lambda self, first=0, last=None: weights[first:last])
    expected = training_windows(group, 40, np.random.default_rng(0))
    late = expected.origin > 5  # at first the mean square of few steps is not yet that of all
    assert np.array_equal(expected.origin, made.origin)
    lengths = {
        name: np.sqrt(np.maximum(np.diagonal(getattr(expected, name)[late], axis1=1, axis2=2), 1))
        for name in ("own", "whole")
    }
    lengths["toward"] = np.sqrt(expected.moved[late])
    for name, columns in lengths.items():
        scale = lengths["whole" if name == "whole" else "own"][:, :, None] * columns[:, None, :]
        found, wanted, without = (getattr(each, name)[late] / scale for each in (made, expected, plain))
        assert np.abs(without - wanted).max() > 0.3, name
        np.testing.assert_allclose(found, wanted, atol=0.1, err_msg=name)
    np.testing.assert_allclose(made.weight[late], expected.weight[late], rtol=0.1)
    np.testing.assert_allclose(made.moved[late], expected.moved[late], rtol=0.1)


def test_noise_leaves_a_tensor_that_stands_still_without_weight(store: Path):
    windows = made_windows(store, 1)
    still = np.arange(len(windows)) % 3 == 0
    zero = {"unit": 0.0, "share": 0.0, "weight": np.float32(0)}
    mask = {name: still.reshape(-1, *[1] * (getattr(windows, name).ndim - 1)) for name in zero}
    windows = dataclasses.replace(
        windows, **{name: np.where(mask[name], value, getattr(windows, name)) for name, value in zero.items()}
    )
    made = noisy(windows, np.random.default_rng(0))
    assert (made.weight[still] == 0).all() and (made.weight[~still] > 0).all()
    assert all(np.isfinite(getattr(made, name)).all() for name in ("own", "toward", "moved", "weight"))


def test_a_live_run_is_forecast_as_its_history_and_goes_on_to_the_bit(model: CausalTIPL):
    forecaster, path = CausalForecaster(model, [(80, 50), (200,)]), path_of(321, 6, 4200)
    run, restored = forecaster.follow(1, path[0]), forecaster.follow(1, path[0])
    for origin in range(5, 321, 5):
        run.extend(path[origin - 4 : origin + 1])
        if origin > 100:
            restored.extend(path[origin - 4 : origin + 1])
        made = run.forecast(4, (5, 60))
        expected = forecaster.forecast([dataclasses.replace(history_of(path, origin), epoch_index=4)], (5, 60))
        np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-4)
        if origin == 100:
            restored.restore(run.state())
        if origin >= 100:
            assert np.array_equal(restored.forecast(4, (5, 60)), made)


def test_a_trial_too_short_to_learn_from_is_refused(small_store: Path):
    trial = Store.open(small_store).trial(1)
    with pytest.raises(TiplError, match=r"81 snapshots.*at least 102"):
        training_windows(trial, 5, np.random.default_rng(0))


# The model


@pytest.mark.parametrize("scale", [1e-3, 40.0])
def test_scaling_the_weights_scales_the_forecast(model: CausalTIPL, scale: float):
    weights, forecaster = path_of(260, 1), CausalForecaster(model, SHAPES)
    made, error = forecaster.forecast_with_error([history_of(weights, 250)], HORIZONS)
    scaled, scaled_error = forecaster.forecast_with_error([history_of(weights * np.float32(scale), 250)], HORIZONS)
    assert np.abs(made - weights[250]).max() > 0.1
    np.testing.assert_allclose(scaled / scale, made, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(scaled_error / scale, error, rtol=1e-4)


def test_permuting_and_flipping_hidden_units_does_so_to_the_forecast(model: CausalTIPL):
    """Of a network 4-5-2 with tanh: neither changes what it computes, nor may change what is forecast of it."""
    spec = ParamSpec(("in", "bias", "out"), ((5, 4), (5,), (2, 5)))
    weights, forecaster = path_of(260, 6, spec.size), CausalForecaster(model, spec.shapes)
    order, sign = np.array([3, 0, 4, 1, 2]), np.array([1, -1, -1, 1, -1], np.float32)

    def other(flat: np.ndarray) -> np.ndarray:
        at = spec.unflatten(flat)
        turned = {"in": at["in"][order] * sign[:, None], "bias": at["bias"][order] * sign}
        return spec.flatten({**turned, "out": at["out"][:, order] * sign})

    made = forecaster.forecast([history_of(weights, 240)], HORIZONS)[0]
    turned = forecaster.forecast([history_of(np.stack([other(row) for row in weights]), 240)], HORIZONS)[0]
    without = CausalForecaster(model, [(spec.size,)]).forecast([history_of(weights, 240)], HORIZONS)[0]
    assert np.abs(made - without).max() > 0.1  # it matters which weights make a tensor
    np.testing.assert_allclose(turned, np.stack([other(row) for row in made]), rtol=1e-3, atol=2e-3)


def test_turning_the_weights_of_a_tensor_turns_the_forecast(model: CausalTIPL):
    weights, forecaster = path_of(260, 2), CausalForecaster(model, SHAPES)
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))
    turned = weights.copy()
    turned[:, :6] = weights[:, :6] @ turn
    turned[:, 6:] = -weights[:, [7, 8, 6]]
    made = forecaster.forecast([history_of(weights, 240)], HORIZONS)[0]
    other = forecaster.forecast([history_of(turned, 240)], HORIZONS)[0]
    np.testing.assert_allclose(other[:, :6], made[:, :6] @ turn, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(other[:, 6:], -made[:, [7, 8, 6]], rtol=1e-3, atol=2e-3)


def test_weights_that_never_move_change_the_forecast_by_the_tensors_size_alone(model: CausalTIPL):
    """968 constants at the end of a tensor leave every inner product as it is; the logarithm of the tensor's size is an
    input of its own, so the forecast of the others is another one. Told the old size, the model says the same."""
    weights, more = path_of(260, 7), 968
    longer = np.concatenate([weights, np.full((len(weights), more), 3.0, np.float32)], axis=1)
    history, other = history_of(weights, 240), history_of(longer, 240)
    sizes = (SIZES[0], SIZES[1] + more)
    _, seen = windows_of(history.last(WINDOW), SIZES, history.epoch_index, 240)
    _, appended = windows_of(other.last(WINDOW), sizes, other.epoch_index, 240)
    for name in ("own", "whole", "unit", "share", "epoch_index", "origin"):
        np.testing.assert_array_equal(getattr(appended, name), getattr(seen, name))
    assert appended.size.tolist() == list(sizes) and seen.size.tolist() == list(SIZES)
    for made, expected in zip(features(dataclasses.replace(appended, size=seen.size)), features(seen), strict=True):
        torch.testing.assert_close(made, expected, rtol=0, atol=0)
    shapes = (*SHAPES[:1], (sizes[1],))
    before = CausalForecaster(model, SHAPES).forecast([history], HORIZONS)[0]
    after = CausalForecaster(model, shapes).forecast([other], HORIZONS)[0]
    np.testing.assert_array_equal(after[:, : SIZES[0]], before[:, : SIZES[0]])  # the other tensor's is untouched
    assert np.abs(after[:, SIZES[0] : sum(SIZES)] - before[:, SIZES[0] :]).max() > 0.05
    np.testing.assert_array_equal(after[:, sum(SIZES) :], longer[240, sum(SIZES) :] + np.zeros((len(HORIZONS), more)))


def test_the_forecast_is_the_sum_of_differences_that_the_coefficients_say(model: CausalTIPL):
    weights = path_of(260, 3)
    history = history_of(weights, 255)
    _, windows = windows_of(history.last(WINDOW), SIZES, history.epoch_index, 255)
    a_GHJ = model(features(windows)).coefficients_BHJ.detach().numpy()
    expected = np.repeat(weights[255][None].astype(np.float64), len(HORIZONS), axis=0)
    for j in range(TOKENS):
        token = weights[255 - EDGES[j]].astype(np.float64) - weights[255 - EDGES[j + 1]]
        expected[:, :6] += a_GHJ[0, :, j, None] * token[:6]
        expected[:, 6:] += a_GHJ[1, :, j, None] * token[6:]
    np.testing.assert_allclose(CausalForecaster(model, SHAPES).forecast([history], HORIZONS)[0], expected, atol=1e-4)


def test_horizons_between_are_interpolated_and_later_ones_held(model: CausalTIPL):
    weights = path_of(260, 4)
    made = CausalForecaster(model, [(9,)]).forecast([history_of(weights, 230)], (10, 15, 20, 100, 250))[0]
    np.testing.assert_allclose(made[1], (made[0] + made[2]) / 2, atol=1e-4)
    np.testing.assert_allclose(made[3], made[4], rtol=1e-6)


def test_a_run_that_stands_still_is_forecast_to_stand_still(model: CausalTIPL):
    still = np.ones((30, 9), np.float32)
    made, error = CausalForecaster(model, SHAPES).forecast_with_error([history_of(still, 29)], (1, 50))
    assert np.array_equal(made[0], still[:2]) and np.isnan(error).all()  # of what comes nothing is known


# What it learns


def test_the_error_of_the_task_is_the_error_of_the_weights(store: Path, model: CausalTIPL):
    """The quadratic form in inner products against forecasts and what came: the skill that `evaluate` would find."""
    made = made_windows(store, 4)
    task = Displacements([made], [made], SMALL)
    task.model = model
    weights = Store.open(store).trial(4).weights()
    forecaster = CausalForecaster(model, SHAPES)
    error, moved, count = np.zeros(len(HORIZONS)), np.zeros(len(HORIZONS)), len(made) // 3
    for t, epoch_index, often in zip(made.origin[:count], made.epoch_index[:count], made.often[:count], strict=True):
        history = History(4, int(t), weights[max(0, t + 1 - WINDOW) : t + 1], int(epoch_index))
        came = weights[t + np.array(HORIZONS)]
        error += np.square(came - forecaster.forecast([history], HORIZONS)[0]).sum(axis=1) / often
        moved += np.square(came - weights[t]).sum(axis=1) / often
    skill = task.validate().skill
    assert set(skill) == {1, 2, 5, 10, 20, 50, 100}
    for h, value in skill.items():
        assert value == pytest.approx(1 - error[HORIZONS.index(h)] / moved[HORIZONS.index(h)], abs=1e-4)


def test_two_threads_add_up_a_gradient_in_one_order():
    """What autograd makes of indexing adds up as the threads come. Checked at sizes where both have work."""
    torch.manual_seed(0)
    model, count, before = CausalTIPL(CausalConfig(1, 1, 16)), 4096, torch.get_num_threads()
    own = torch.randn(count, 40, 60).square()
    seen = Features(
        described(own @ own.mT, own @ own.mT), torch.zeros(count, model.embed_fact.in_features),
        torch.randint(0, EPOCH_INDICES, (count,)),
    )  # fmt: skip
    toward = torch.randn(count, 13, 40)
    torch.set_num_threads(2)
    try:
        found = []
        for _ in range(5):
            model.zero_grad()
            (model(seen).coefficients_BHJ * toward).sum().backward()
            found.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    # The gates are 1 before training, so the gradient is a sum over the windows of each epoch index.
    sums = torch.zeros(EPOCH_INDICES, 13, 40, dtype=torch.float64)
    for index, row in zip(seen.epoch_index_B, toward, strict=True):
        sums[index] += row
    assert model.linear.grad is not None
    torch.testing.assert_close(model.linear.grad.double(), sums, rtol=1e-4, atol=1e-4)


def test_before_training_it_is_a_ridge_regression_of_displacements_on_differences(store: Path):
    """Of explicit weights, every weight of every tensor and of the whole a sample, apart for each epoch index."""
    trial = Store.open(store).trial(1)
    made = made_windows(store, 1)
    linear = Displacements([made], [made], SMALL).model.linear.detach().numpy()
    weights, epoch_index, count = trial.weights().astype(np.float64), 2, len(made) // 3
    gram, target = np.zeros((TOKENS, TOKENS)), np.zeros((TOKENS, len(HORIZONS)))
    for b in np.flatnonzero(made.epoch_index == epoch_index):
        t, columns = int(made.origin[b]), [slice(0, 6), slice(6, 9), slice(0, 9)][b // count]
        at = weights[np.maximum(t - np.array(EDGES), 0), columns]
        x, y = at[:-1] - at[1:], weights[t + np.array(HORIZONS), columns] - weights[t, columns]
        share = made.weight[b].mean() / made.often[b] / made.unit[b]
        gram, target = gram + share * x @ x.T, target + share * x @ y.T
    np.testing.assert_allclose(linear[epoch_index], solve_ridge(gram, target, 1e-3).T, rtol=1e-3, atol=1e-3)
    assert linear.shape[0] == EPOCH_INDICES and np.array_equal(linear[7], linear[8])  # indices never seen


def test_it_learns_what_can_be_known_and_is_silent_where_nothing_can(tmp_path: Path):
    """On walks with a drift it comes near the best possible skill; on walks without, near 0."""
    found = {}
    for drift in (0.0, 0.5):
        walks = random_walk(tmp_path / f"walk-{drift}", trials=8, snapshots=400, dim=300, drift=drift)
        parts = [made_windows(walks, seed) for seed in range(1, 9)]
        config = dataclasses.replace(SMALL, steps=60, validate_every=60)
        fit_causal([joined(parts[:6])], [joined(parts[6:])], config, tmp_path / str(drift), progress=False)
        found[drift] = json.loads((tmp_path / str(drift) / "training.json").read_text())["curve"][-1]["skill"]
    assert abs(found[0.0]["10"]) < 0.06
    assert 0.5 < found[0.5]["10"] < 10 * 0.25 / (1 + 10 * 0.25)  # the part of the displacement that is drift


def test_stopped_and_resumed_is_never_stopped_to_the_bit(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = train([store], tmp_path / "whole", SMALL)
    calls, loss = [], Displacements.loss

    def loss_until_interrupted(self: Displacements, index_B: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return loss(self, index_B)

    monkeypatch.setattr(Displacements, "loss", loss_until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        train([store], tmp_path / "parts", SMALL)
    train([store], tmp_path / "parts", SMALL, resume=True)
    for name in (CHECKPOINT_FILE, "model.safetensors"):
        one, other = (safetensors.torch.load_file(folder / name) for folder in (whole, tmp_path / "parts"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_chosen_on_stores_of_others_it_learns_from_all_but_the_test_trials(store: Path, tmp_path: Path):
    other = write_store(tmp_path / "other", 2, 160)
    out = train([store], tmp_path / "model", SMALL, validation=[other])
    home, away = json.loads((out / CURVE_FILE).read_text())["codes"]["trials"]["stores"]
    split = Store.open(store).split()
    assert (home["train"], home["validation"]) == ([*split.train, *split.validation], [])
    assert (away["train"], away["validation"]) == ([], Store.open(other).seeds)
    with pytest.raises(TiplError, match="again, or a copy of it"):
        train([store], tmp_path / "same", SMALL, validation=[store])
    create_store(empty := tmp_path / "empty")
    with pytest.raises(TiplError, match="empty holds no trial to choose the model by"):
        train([store], tmp_path / "none", SMALL, validation=[empty])
    assert not (tmp_path / "none").exists()
    with pytest.raises(TiplError, match="--validation is for --model causal"):
        train(store, tmp_path / "paper", validation=other)


def test_what_it_cannot_learn_from_is_refused(store: Path, small_store: Path, tmp_path: Path):
    with pytest.raises(TiplError, match="--model paper learns from one store"):
        train([store, store], tmp_path / "a")
    with pytest.raises(TiplError, match="--codes has no effect on the causal model"):
        train([store], tmp_path / "b", SMALL, codes=tmp_path)
    with pytest.raises(TiplError, match=r"81 snapshots.*at least 102"):
        train([store, small_store], tmp_path / "c", SMALL)


# Use


def test_a_trained_model_is_judged_like_any_forecaster(tmp_path: Path):
    store = write_store(tmp_path / "store", 4, 330, (100, 60))
    folder = train([store], tmp_path / "causal", dataclasses.replace(SMALL, steps=20, validate_every=20))
    data = Store.open(store)
    assert codes_for(folder, data, tmp_path) is None
    loaded = load_forecaster(folder, data.trial(1).spec.shapes)
    assert isinstance(loaded, CausalForecaster) and loaded.name == "causal"
    config = EvaluateConfig(horizons=(1, 10), return_horizons=(1,), origins=6, spectrum_trials=0)
    out = evaluate(store, tmp_path / "eval", config, models=[folder], returns=False)
    judged = json.loads((out / "metrics.json").read_text())["forecasters"]["causal"]
    assert judged["causal"] is True and judged["model"] is True and judged["basis"] is None
    assert judged["skill"]["1"] > 0.2  # momentum is there to be seen
    with pytest.raises(TiplError, match="kind 'causal'; over codes"):
        load(folder)


def test_the_shipped_model_is_small_and_forecasts_a_policy_that_it_never_saw(small_store: Path, tmp_path: Path):
    assert (SHIPPED, SHIPPED_NAMES) == (parser.SHIPPED, parser.SHIPPED_NAMES)
    names = get_args(ForecasterName)
    for name in SHIPPED_NAMES:
        assert sum(file.stat().st_size for file in model_folder(name).iterdir()) <= 5_000_000
        assert isinstance(load_forecaster(name, [(3,)]), CausalForecaster)
        assert name in names and forecaster_digest(name) == model_digest(model_folder(name))  # for live runs, no rule
    out = tmp_path / "policy.safetensors"
    made = forecast(small_store, 2, 40, 10, out, episodes=3)
    trial = Store.open(small_store).trial(2)
    forecaster = CausalForecaster.from_pretrained(shapes=trial.spec.shapes)
    assert isinstance(load_forecaster("causal", trial.spec.shapes), CausalForecaster)
    history = History(2, 40, trial.weights(0, 41), int(trial.epoch_index[40]))
    expected = forecaster.forecast([history], [10])[0, 0]
    tensors = safetensors.numpy.load_file(out)
    assert np.array_equal(trial.spec.flatten(tensors), expected)
    assert np.array_equal(tensors["obs_mean"], trial.obs_mean[40])
    policies = Policies(expected[None], trial.obs_mean[[40]], trial.obs_var[[40]])
    assert made.predicted_return == policy_returns(policies, trial.env_id, [8, 8], 3).mean()
    now, came = trial.weights(40, 41)[0], trial.weights(50, 51)[0]
    assert made.skill == pytest.approx(1 - np.square(came - expected).sum() / np.square(came - now).sum(), rel=1e-4)
    assert made.expected_error is not None and made.expected_error > 0
    forecast(small_store, 2, 40, 10, out, stretch=3.0, episodes=0)
    stretched = trial.spec.flatten(safetensors.numpy.load_file(out))
    np.testing.assert_allclose(stretched - now, 3 * (expected - now), rtol=1e-4, atol=1e-6)
    forecast(small_store, 2, 40, 10, out, adapt=True, episodes=0)
    corrected = trial.spec.flatten(safetensors.numpy.load_file(out))
    assert np.array_equal(corrected, online_corrected([forecaster], trial).forecast([history], [10])[0, 0])
    assert not np.array_equal(corrected, expected)
    last = forecast(small_store, 2, 80, 10, out, episodes=0)
    assert last.skill is None and last.true_return is None and last.predicted_return is None


@pytest.mark.parametrize(
    "change, says",
    [({"trial": 99}, "has no trial 99"), ({"origin": 81}, "snapshots 0 to 80"), ({"horizon": 0}, "`horizon` is 0"),
     ({"episodes": -1}, "`episodes` is -1"), ({"stretch": 0.0}, "`stretch` is 0.0"),
     ({"model": "nowhere"}, "There is no model in nowhere")],
)  # fmt: skip
def test_what_cannot_be_forecast_is_one_clear_line(change: dict, says: str, small_store: Path, tmp_path: Path):
    asked: dict[str, Any] = {"trial": 1, "origin": 5, "horizon": 1, "episodes": 0} | change
    with pytest.raises(TiplError, match=says):
        forecast(small_store, out=tmp_path / "p.safetensors", **asked)
    assert not (tmp_path / "p.safetensors").exists()


# Windows in files


def test_windows_in_files_are_those_in_memory_and_train_the_same_model(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TIPL_CACHE", str(tmp_path / "cache"))
    made = made_windows(store, 2)
    write_windows(tmp_path / "windows.safetensors", made, 3)
    files = WindowFiles([WindowFile(tmp_path / "windows.safetensors")] * 2)
    index = np.random.default_rng(0).permutation(2 * len(made))
    read, both = files.read(index), joined([made, made])
    for field in dataclasses.fields(TrainingWindows):
        wanted = getattr(both, field.name)[index]
        if field.name in ("own", "whole"):  # of which one triangle is kept
            wanted = np.tril(wanted) + np.tril(wanted, -1).transpose(0, 2, 1)
        np.testing.assert_allclose(getattr(read, field.name), wanted, rtol=1e-6, err_msg=field.name)
    config = dataclasses.replace(SMALL, noise=0.5)
    train(store, tmp_path / "held", config)
    kept = sorted((tmp_path / "cache" / "windows").iterdir())
    written = {path: path.stat().st_mtime_ns for path in kept}
    monkeypatch.setitem(displacement._HELD, "cpu", 0)
    train(store, tmp_path / "streamed", config)
    assert weights_of(tmp_path / "held") == weights_of(tmp_path / "streamed")
    assert {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "cache" / "windows").iterdir())} == written
    damaged = bytearray(kept[0].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    kept[0].write_bytes(damaged)
    train(store, tmp_path / "again", config)
    assert weights_of(tmp_path / "again") == weights_of(tmp_path / "streamed")
    assert WindowFile(kept[0]) and len([*(tmp_path / "cache" / "windows").glob("*.damaged")]) == 1


def test_batches_of_streamed_windows_are_shuffled_over_all_trials(store: Path, tmp_path: Path):
    """Of a batch of many draws every trial has its chance, and neighbours come from different trials."""
    paths = []
    for seed in (1, 2, 3, 4):
        paths.append(tmp_path / f"{seed}.safetensors")
        write_windows(paths[-1], made_windows(store, seed), 3)
    files = WindowFiles([WindowFile(path) for path in paths])
    task = Displacements([files], [files], dataclasses.replace(SMALL, batch_size=20_000))
    drawn = task.draw(torch.Generator().manual_seed(0)).numpy()
    trial = np.searchsorted(np.cumsum([WindowFile(path).count for path in paths]), drawn, side="right")
    chance = [task.train[0].chance_B[np.arange(len(files))[trial_of(files, paths) == k]].sum() for k in range(4)]
    np.testing.assert_allclose(np.bincount(trial) / len(trial), chance, atol=0.01)
    same = np.mean(trial[1:] == trial[:-1])
    assert same == pytest.approx(np.square(chance).sum(), abs=0.02)


def trial_of(files: WindowFiles, paths: list[Path]) -> np.ndarray:
    return np.repeat(np.arange(len(paths)), [WindowFile(path).count for path in paths])


def weights_of(folder: Path) -> bytes:
    return (folder / "last" / "model.safetensors").read_bytes()
