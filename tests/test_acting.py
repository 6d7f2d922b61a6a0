"""A policy in hand acts as the kernels that run policies do, in numpy and in torch.

In: stored trials, forecast files, networks drawn here.  Out: failures where an action is another.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tipl
from tipl import Policies, Policy, Store, TiplError
from tipl.forecasting.forecast import forecast
from tipl.rl import returns
from tipl.rl.kernels import activation_code, forward_one
from tipl.rl.policies import initial_weights, layer_sizes, policy_spec
from tipl.rl.returns import act_frozen, policy_returns
from tipl.store.policy import VAR_EPSILON, policy_of


def drawn(activation: str, *, discrete: bool, clip: float | None = 10.0) -> tuple[Policy, np.ndarray, np.ndarray]:
    """A policy of 3 observations, two hidden layers and 2 outputs; its flat weights; 50 raw observations."""
    rng = np.random.default_rng(3)
    weights, _ = initial_weights(3, (6, 5), 2, rng, discrete=discrete)
    weights += 0.5 * rng.standard_normal(weights.shape, np.float32)
    tensors = policy_spec(3, (6, 5), 2, discrete=discrete).unflatten(weights)
    config = {"hidden_sizes": [6, 5], "activation": activation, "obs_clip": clip}
    mean, var = rng.standard_normal(3), rng.uniform(0.1, 4, 3)
    observations = rng.standard_normal((50, 3)) * (1, 3, 100)  # the last one is clipped
    return policy_of(config, tensors, mean, var, "it"), weights, observations


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu"])
@pytest.mark.parametrize("clip", [10.0, None])
def test_means_are_those_of_the_kernel_and_of_torch(activation: Any, clip: float | None) -> None:
    policy, weights, observations = drawn(activation, discrete=False, clip=clip)
    sizes, out = layer_sizes(3, (6, 5), 2), np.empty(2, np.float32)
    expected = []
    for raw in observations:
        z = (raw - policy.obs_mean) / np.sqrt(policy.obs_var + VAR_EPSILON)
        x = (z if clip is None else np.clip(z, -clip, clip)).astype(np.float32)
        forward_one(weights, 0, sizes, x, np.empty((2, 6), np.float32), out, activation_code(activation))
        expected.append(out.copy())
    found = policy(observations)
    assert found.dtype == np.float32 and found.shape == (50, 2)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(policy(observations[7]), expected[7], rtol=2e-5, atol=2e-5)
    module = policy.to_torch()
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(observations)), found, rtol=2e-5, atol=2e-5)
    assert {name for name, _ in module.named_parameters()} == {*policy.tensors}


def test_discrete_actions_are_those_of_the_kernel_and_of_torch() -> None:
    policy, weights, observations = drawn("tanh", discrete=True)
    expected = np.empty((50, 1))
    act_frozen(weights[None], np.zeros(50, int), observations, policy.obs_mean[None], policy.obs_var[None],
               layer_sizes(3, (6, 5), 2), np.zeros((50, 2), np.float32), expected)  # fmt: skip
    found = policy(observations)
    assert found.dtype == np.int64 and set(found) == {0, 1}
    np.testing.assert_array_equal(found, expected[:, 0])
    np.testing.assert_array_equal(policy.to_torch()(torch.from_numpy(observations)), found)


def test_by_hand() -> None:
    """One unit: z = (5 − 1) / 2 = 2, h = tanh(0.5 · 2 − 1) = 0, μ = 3 · 0 + 7; and z = 0, h = tanh(−1)."""
    parts = {"w": [[0.5]], "b": [-1], "v": [[3]], "c": [7], "log_std": [[0]]}
    tensors = {name: np.array(each, np.float32) for name, each in parts.items()}
    policy = Policy(tensors, np.array([1.0]), np.array([4.0]))
    np.testing.assert_allclose(policy([[5.0]]), [[7.0]], atol=1e-6)
    np.testing.assert_allclose(policy([[1.0]]), [[7 + 3 * np.tanh(-1.0)]], rtol=1e-6)


def test_drawn_actions_scatter_as_the_policy_says() -> None:
    policy, _, observations = drawn("tanh", discrete=False)
    same = np.repeat(observations[:1], 20_000, axis=0)
    deviation = policy(same, np.random.default_rng(0)) - policy(same)
    assert policy.log_std is not None
    np.testing.assert_allclose(deviation.std(axis=0), np.exp(policy.log_std), rtol=0.03)
    np.testing.assert_allclose(deviation.mean(axis=0), 0, atol=0.05)
    policy, _, observations = drawn("tanh", discrete=True)
    same = np.repeat(observations[:1], 20_000, axis=0)
    module: Any = policy.to_torch()
    logits = module.heads(torch.from_numpy(observations[:1]))[0].detach()
    share = policy(same, np.random.default_rng(0)).mean()
    assert share == pytest.approx(float(torch.softmax(logits, 0)[1]), abs=0.02)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, np.ndarray]]:
    """(observations, actions) of the steps that policies are run for."""
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    real = returns.act_frozen

    def watched(weights: Any, policy: Any, obs: np.ndarray, *rest: Any) -> None:
        real(weights, policy, obs, *rest)
        steps.append((obs.copy(), rest[4][: len(policy)].copy()))

    monkeypatch.setattr(returns, "act_frozen", watched)
    return steps


def test_a_stored_policy_acts_as_where_its_return_is_measured(
    small_store: Path, taken: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    trial = Store.open(small_store).trial(2)
    one = Policies(trial.weights(40, 41), trial.obs_mean[40:41], trial.obs_var[40:41])
    policy_returns(one, trial.env_id, trial.config["hidden_sizes"], 3, threads=1)
    policy = trial.policy(40)
    assert len(taken) > 5
    for observations, actions in taken:
        np.testing.assert_allclose(policy(observations), actions, rtol=1e-5, atol=1e-5)


def test_a_forecast_file_opens_as_the_policy_that_was_run(
    small_store: Path, tmp_path: Path, taken: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    out = tmp_path / "policy.safetensors"
    forecast(small_store, 2, 40, 10, out, episodes=1)
    policy, stored = tipl.load_policy(str(out)), Store.open(small_store).trial(2).policy(40)
    assert list(policy.tensors) == list(stored.tensors)
    np.testing.assert_array_equal(policy.obs_mean, stored.obs_mean)
    acted = [np.abs(actions - policy(observations)).max(axis=1) < 1e-5 for observations, actions in taken]
    assert any(each.any() for each in acted)  # of the three policies that were run this is one
    content = bytearray(out.read_bytes())
    content[-1] ^= 1
    out.write_bytes(content)
    with pytest.raises(TiplError, match="write it again with `tipl forecast`"):
        tipl.load_policy(out)


def test_what_cannot_act_is_told(small_store: Path, tmp_path: Path) -> None:
    trial = Store.open(small_store).trial(1)
    policy = trial.policy(0)
    for observations, says in (
        (np.zeros((2, 3)), r"shape \[2, 3\], and this policy takes 4 numbers"),
        (np.zeros((1, 2, 4)), r"shape \[1, 2, 4\]"),
        ("left", "no array of numbers"),
        ([[np.nan, 0, 0, 0]], "not finite"),
    ):
        with pytest.raises(TiplError, match=says):
            policy(observations)
    with pytest.raises(TiplError, match="`rng` is 0; give a Generator"):
        policy(np.zeros((2, 4)), 0)  # pyright: ignore[reportArgumentType]
    for t in (-1, 81):
        with pytest.raises(TiplError, match="snapshots 0 to 80"):
            trial.policy(t)
    with pytest.raises(TiplError, match="network of it is not known"):
        policy_of({"hidden_sizes": None}, policy.tensors, policy.obs_mean, policy.obs_var, "it")
    with pytest.raises(TiplError, match="no network from these observations"):
        Policy(policy.tensors, np.zeros(5), np.ones(5))
    with pytest.raises(TiplError, match=r"forecast|no such|There is no"):
        tipl.load_policy(tmp_path / "nothing.safetensors")
