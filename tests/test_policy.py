"""The policy's numbers against torch: layout, first weights, forward passes, and tanh against numpy."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import plain_ppo
import pytest
import torch
from numba import njit

import tipl
from tipl.config.presets import Activation
from tipl.errors import TiplError
from tipl.rl.kernels import FASTMATH, activation_code, forward_batch, forward_one, sampled_action, tanh32
from tipl.rl.policies import action_noise, initial_weights, layer_sizes, network_size, policy_spec
from tipl.store.spec import ParamSpec

Network = tuple[int, tuple[int, ...], int]
NETWORKS: list[Network] = [(4, (8, 8), 1), (17, (64, 64), 6), (3, (5,), 2), (2, (9, 1, 4), 3)]


@njit(fastmath=FASTMATH, error_model="numpy")
def tanh_of_all(x, out):
    for i in range(len(x)):
        out[i] = tanh32(x[i])


def tanh(x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    tanh_of_all(x, out)
    return out


def test_tanh_is_numpys_to_4e_7() -> None:
    x = np.concatenate([np.linspace(-12, 12, 1_000_001), np.geomspace(1e-38, 1e38, 10_001)]).astype(np.float32)
    expected = np.tanh(x.astype(np.float64))
    assert np.abs(tanh(x) - expected).max() < 4e-7
    small = np.abs(x) < 0.1  # where the network begins: there the relative error counts
    np.testing.assert_allclose(tanh(x[small]), expected[small], rtol=4e-7)
    np.testing.assert_array_equal(tanh(-x), -tanh(x))
    assert (np.abs(tanh(x)) <= 1).all()  # 1 − tanh² is its derivative and may not turn negative


@pytest.mark.parametrize("place", range(0, 40, 3))
def test_tanh_of_nan_and_infinity(place: int) -> None:
    """At many places of an array: in the vectorized loop as well as in the rest that it leaves."""
    x = np.linspace(-1, 1, 40).astype(np.float32)
    expected = np.tanh(x)
    for special, value in ((np.nan, np.nan), (np.inf, 1), (-np.inf, -1)):
        x[place], expected[place] = special, value
        np.testing.assert_allclose(tanh(x), expected, rtol=0, atol=4e-7)


@pytest.mark.slow
def test_a_kept_kernel_follows_the_files_whose_code_it_holds(tmp_path: Path) -> None:
    """A kernel of rollout.py calls one of kernels.py; numba alone would keep it after kernels.py has changed."""
    shutil.copytree(Path(tipl.__file__).parent, tmp_path / "tipl", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import numpy as np; from tipl.rl.rollout import critic_values; ones = np.ones((2, 1), np.float32);"
        "print(critic_values(np.ones(4, np.float32), 0, np.array([1, 1, 1]), ones, ones[0])[0])"
    )

    def value() -> float:
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        return float(run.stdout)

    kernels = tmp_path / "tipl" / "rl" / "kernels.py"
    assert value() == pytest.approx(1 + np.tanh(2))
    kernels.write_text(kernels.read_text().replace("return x * p / q", "return x"))
    assert value() == pytest.approx(1 + 2)
    assert list((tmp_path / "tipl" / "rl" / "__pycache__").rglob("*.nbi"))  # and it is kept


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_spec_names_what_cleanrls_agent_holds(network: Network, discrete: bool) -> None:
    """The flat vector, cut up by the spec, is the agent's state dict."""
    spec = policy_spec(*network, discrete=discrete)
    theta = np.random.default_rng(0).standard_normal(spec.size + critic_size(network), np.float32)
    agent = plain_ppo.Agent(*network, theta, discrete=discrete)
    state = {name: tensor.numpy() for name, tensor in agent.state_dict().items() if not name.startswith("critic.")}
    assert set(spec.names) == set(state)
    tensors = spec.unflatten(theta[: spec.size])
    for name, offset, size in zip(spec.names, spec.offsets, spec.sizes, strict=True):
        np.testing.assert_array_equal(tensors[name], state[name])
        np.testing.assert_array_equal(theta[offset : offset + size], state[name].reshape(-1))
    np.testing.assert_array_equal(spec.flatten(state), theta[: spec.size])
    np.testing.assert_array_equal(spec.flatten(tensors), theta[: spec.size])
    other = plain_ppo.Agent(*network, np.zeros_like(theta), discrete=discrete)
    loaded = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
    missing = other.load_state_dict(loaded, strict=False)
    assert not missing.unexpected_keys and all(name.startswith("critic.") for name in missing.missing_keys)
    np.testing.assert_array_equal(other.snapshot()[: spec.size], theta[: spec.size])


def test_number_of_weights_is_the_papers() -> None:
    assert policy_spec(4, (8, 8), 1).size == 122
    assert policy_spec(17, (256, 256), 6).size == 71_948
    assert network_size(layer_sizes(4, (8, 8), 1)) == 121
    assert policy_spec(4, (64, 64), 2, discrete=True).size == 320 + 4160 + 130  # CleanRL's CartPole


def test_spec_by_hand() -> None:
    spec = policy_spec(4, (8,), 2)
    assert spec.names == ("actor_mean.0.weight", "actor_mean.0.bias", "actor_mean.2.weight", "actor_mean.2.bias",
                          "actor_logstd")  # fmt: skip
    assert spec.shapes == ((8, 4), (8,), (2, 8), (2,), (1, 2))
    assert spec.offsets == (0, 32, 40, 56, 58)
    assert spec.size == 60
    categorical = policy_spec(4, (8,), 2, discrete=True)
    assert categorical.names == ("actor.0.weight", "actor.0.bias", "actor.2.weight", "actor.2.bias")
    assert categorical.shapes == ((8, 4), (8,), (2, 8), (2,))


def test_spec_returns_from_json_as_it_was() -> None:
    spec = policy_spec(17, (64, 32), 6)
    assert ParamSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_unflatten_gives_views_and_refuses_other_lengths() -> None:
    spec = policy_spec(4, (8, 8), 1)
    weights = np.zeros(spec.size, np.float32)
    spec.unflatten(weights)["actor_mean.0.bias"][:] = 1
    assert weights.sum() == 8
    with pytest.raises(TiplError, match=r"Weights of shape \(121,\) are no vector of the 122"):
        spec.unflatten(weights[:-1])
    tensors = spec.unflatten(weights)
    with pytest.raises(TiplError, match=r"'actor_logstd' has 2 weights, not 1"):
        spec.flatten(tensors | {"actor_logstd": np.zeros(2)})
    del tensors["actor_mean.0.bias"]
    with pytest.raises(TiplError, match=r"'actor_mean.0.bias' is missing"):
        spec.flatten(tensors)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_first_weights_are_orthogonal_with_cleanrls_gains(network: Network) -> None:
    policy, critic = initial_weights(*network, np.random.default_rng(1))
    assert policy.dtype == critic.dtype == np.float32
    agent = plain_ppo.Agent(*network, np.concatenate([policy, critic]))
    assert not agent.actor_logstd.detach().numpy().any()
    for part, head_gain in ((agent.actor_mean, 0.01), (agent.critic, 1.0)):
        linear = [module for module in part if isinstance(module, torch.nn.Linear)]
        for layer, gain in zip(linear, [2**0.5] * (len(linear) - 1) + [head_gain], strict=True):
            weight = layer.weight.detach().double()
            weight = weight if weight.shape[0] <= weight.shape[1] else weight.T
            expected = gain**2 * torch.eye(len(weight), dtype=torch.float64)
            torch.testing.assert_close(weight @ weight.T, expected, rtol=0, atol=1e-6 * gain**2)
            assert not layer.bias.detach().numpy().any()


def test_first_weights_are_distributed_as_torchs() -> None:
    """Means and deviations of every entry and of the products of two entries, over many draws.

    Without the sign correction of the QR decomposition the entries are not centered.
    """
    draws, shape = 4000, (4, 3)
    rng, generator = np.random.default_rng(2), torch.Generator().manual_seed(2)
    spec = policy_spec(shape[1], (shape[0],), 1)
    ours = np.stack(
        [
            spec.unflatten(initial_weights(shape[1], (shape[0],), 1, rng)[0])["actor_mean.0.weight"].reshape(-1)
            for _ in range(draws)
        ]
    )
    theirs = np.stack(
        [
            torch.nn.init.orthogonal_(torch.empty(shape), 2**0.5, generator).numpy().reshape(-1)
            for _ in range(draws)
        ]
    )  # fmt: skip
    # An entry has mean 0, variance gain²/4 = ½; 5 standard errors of each statistic.
    error = 5 * 0.5**0.5 / draws**0.5
    for sample in (ours, theirs):
        np.testing.assert_allclose(sample.mean(0), 0, atol=error)
    np.testing.assert_allclose(ours.T @ ours / draws, theirs.T @ theirs / draws, atol=error)
    np.testing.assert_allclose((ours**4).mean(0), (theirs**4).mean(0), atol=error)


def test_first_weights_of_a_categorical_policy_are_the_network_of_a_gaussian_one() -> None:
    gaussian = initial_weights(4, (8, 8), 2, np.random.default_rng(3))
    categorical = initial_weights(4, (8, 8), 2, np.random.default_rng(3), discrete=True)
    np.testing.assert_array_equal(categorical[0], gaussian[0][:-2])
    np.testing.assert_array_equal(categorical[1], gaussian[1])


def test_first_weights_follow_the_generator() -> None:
    first, again, other = (initial_weights(4, (8, 8), 1, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(again))
    assert not np.isin(first[0][first[0] != 0], other[0]).any()
    assert not np.isin(first[0][first[0] != 0], first[1]).any()  # actor and critic are drawn apart


@pytest.mark.parametrize("activation", plain_ppo.ACTIVATIONS)
@pytest.mark.parametrize("network", NETWORKS, ids=str)
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_forward_passes_are_torchs(batch: int, network: Network, activation: Activation) -> None:
    obs_dim, hidden_sizes, out_dim = network
    sizes, before = layer_sizes(*network), 11  # the network begins within the vector
    rng = np.random.default_rng(5)
    theta = rng.standard_normal(before + network_size(sizes) + 3, np.float32)
    x = rng.standard_normal((batch, obs_dim), np.float32)
    reference = plain_ppo.network(obs_dim, hidden_sizes, out_dim, activation).double()
    torch.nn.utils.vector_to_parameters(torch.tensor(theta[before:-3]).double(), reference.parameters())
    with torch.no_grad():
        hidden = [reference[: 2 * layer + 2](torch.tensor(x).double()).numpy() for layer in range(len(hidden_sizes))]
        expected = reference(torch.tensor(x).double()).numpy()

    atol = 1e-5 * max(1, np.abs(expected).max())  # nothing holds the values of ReLUs near 1
    acts = np.full(batch * sizes[1:].sum() + 5, np.nan, np.float32)
    out = forward_batch(theta, before, sizes, x, acts, activation_code(activation))
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=atol)
    assert np.shares_memory(out, acts)
    for layer, kept in enumerate([*hidden, expected], start=1):
        start = batch * sizes[1:layer].sum()
        got = acts[start : start + batch * sizes[layer]].reshape(batch, sizes[layer])
        np.testing.assert_allclose(got, kept, rtol=1e-4, atol=atol)
    assert np.isnan(acts[-5:]).all()

    one, scratch = np.empty(out_dim, np.float32), np.empty((2, sizes.max()), np.float32)
    for row in range(batch):
        forward_one(theta, before, sizes, x[row], scratch, one, activation_code(activation))
        np.testing.assert_allclose(one, expected[row], rtol=1e-4, atol=atol)


def test_without_an_activation_networks_are_tanh_networks() -> None:
    rng, sizes = np.random.default_rng(6), layer_sizes(3, (5,), 2)
    theta, x = rng.standard_normal(network_size(sizes), np.float32), rng.standard_normal((4, 3), np.float32)
    outputs = [forward_batch(theta, 0, sizes, x, np.empty(28, np.float32), *code) for code in ((), (0,), (1,), (2,))]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert (outputs[0] != outputs[2]).any() and (outputs[2] != outputs[3]).any()
    assert [activation_code(name) for name in ("tanh", "relu", "elu")] == [0, 1, 2]


@pytest.mark.parametrize("activation", plain_ppo.ACTIVATIONS)
def test_a_nan_passes_every_activation(activation: Activation) -> None:
    sizes, acts = layer_sizes(1, (3,), 1), np.empty(2 * 4, np.float32)
    x = np.array([[np.nan], [1.0]], np.float32)
    out = forward_batch(np.ones(network_size(sizes), np.float32), 0, sizes, x, acts, activation_code(activation))
    assert np.isnan(out[0]) and not np.isnan(out[1])


def test_discrete_actions_are_drawn_from_the_softmax() -> None:
    """Shares of 40,000 draws to 5 standard errors, whatever is added to all logits; without noise the likeliest."""
    logits = np.array([0.3, -1.2, 1.1, 0.0], np.float32)
    expected = torch.softmax(torch.tensor(logits), 0).numpy()
    noise = action_noise(np.random.default_rng(0), (40_000, 4), discrete=True)
    assert noise.dtype == np.float32
    for shift in (0, 100):
        shares = np.bincount([sampled_action(logits + np.float32(shift), g) for g in noise], minlength=4) / len(noise)
        assert (np.abs(shares - expected) < 5 * (expected * (1 - expected) / len(noise)) ** 0.5).all()
    assert sampled_action(logits, np.zeros(4, np.float32)) == 2
    assert sampled_action(np.zeros(4, np.float32), np.zeros(4, np.float32)) == 0


def test_noise_of_continuous_actions_is_standard_normal() -> None:
    noise = action_noise(np.random.default_rng(0), (3, 5, 2), discrete=False)
    np.testing.assert_array_equal(noise.ravel(), np.random.default_rng(0).standard_normal(30, np.float32))


def critic_size(network: Network) -> int:
    return network_size(layer_sizes(network[0], network[1], 1))


_UPDATE = """
import hashlib
import numpy as np
from tipl.rl.policies import layer_sizes, network_size
from tipl.rl.ppo import Learner, Samples, UpdateSettings, update
from tipl.config.presets import PPOConfig

rng = np.random.default_rng(0)
policy, critic = layer_sizes(17, (64, 64), 6), layer_sizes(17, (64, 64), 1)
weights = network_size(policy) + 6
theta, adam_m, adam_v = np.zeros((3, weights + network_size(critic)), np.float32)
theta[:] = 0.1 * rng.standard_normal(len(theta))
obs, actions = rng.standard_normal((256, 17), np.float32), rng.standard_normal((256, 6), np.float32)
old_log_prob, advantages, returns, old_value = rng.standard_normal((4, 256), np.float32)
order = np.stack([rng.permutation(256) for _ in range(2)])
snapshots = np.empty((1, weights), np.float32)
update(Learner(theta, adam_m, adam_v, policy, critic), 0,
       Samples(obs, actions, old_log_prob - 8, advantages, returns, old_value), order, 1e-3,
       UpdateSettings.of(PPOConfig(num_minibatches=4), 2), snapshots)
print(bool(update.stats.cache_hits), hashlib.sha256(theta.tobytes()).hexdigest())
"""


def test_a_kernel_that_was_just_compiled_gives_the_bits_of_one_that_was_loaded(tmp_path: Path) -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", _UPDATE],
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "OPENBLAS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    assert [loaded for loaded, _ in runs] == ["False", "True"]
    assert runs[0][1] == runs[1][1]
