"""PPO's kernels against autograd, torch's Adam and GAE's definition."""

import dataclasses
from typing import Any

import numpy as np
import plain_ppo
import pytest
import torch

from tipl.config.presets import Activation, PPOConfig
from tipl.rl.kernels import activation_code, forward_batch
from tipl.rl.policies import initial_weights, layer_sizes, network_size
from tipl.rl.ppo import (
    Learner,
    Samples,
    UpdateSettings,
    adam_step,
    advantages_and_returns,
    backward_batch,
    categorical_log_probs,
    gaussian_log_prob,
    loss_gradients,
    update,
)

SAMPLES, EPOCHS, MINIBATCHES = 256, 4, 4
TOLERANCE = 1e-6  # of weights of the size of 1 that move by 5e-3; measured: 2e-7
SETTINGS: dict[str, dict[str, Any]] = {
    "cleanrl": {},
    "no gradient clip": {"max_grad_norm": 1e3},
    "tight gradient clip": {"max_grad_norm": 0.01},
    "raw advantages": {"norm_adv": False},
    "free value": {"clip_vloss": False},
    "entropy and value weights": {"ent_coef": 0.03, "vf_coef": 0.7},
    "wide clip": {"clip_coef": 0.4},
}
Network = tuple[int, tuple[int, ...], int]
NETWORKS: dict[str, Network] = {"4-8-8-1": (4, (8, 8), 1), "17-64-64-6": (17, (64, 64), 6)}
KINDS: dict[str, dict[str, Any]] = {  # of policies
    "tanh": {},
    "relu": {"activation": "relu"},
    "elu": {"activation": "elu"},
    "discrete": {"discrete": True},
    "discrete, relu": {"discrete": True, "activation": "relu"},
}


class Case:
    """A trial in the midst of its training and a rollout of it; ratios and values lie on both sides of the clip."""

    def __init__(self, network: Network, *, discrete: bool = False, activation: Activation = "tanh") -> None:
        obs_dim, hidden_sizes, action_dim = network
        action_dim += discrete  # an action is a choice of at least two
        rng = np.random.default_rng(0)
        policy, critic = initial_weights(obs_dim, hidden_sizes, action_dim, rng, discrete=discrete)
        if not discrete:
            policy[-action_dim:] = rng.uniform(-0.5, 0.2, action_dim)
        self.theta = np.concatenate([policy, critic])
        self.theta += 0.05 * rng.standard_normal(len(self.theta), np.float32)
        self.num_weights = len(policy)
        self.sizes = layer_sizes(obs_dim, hidden_sizes, action_dim), layer_sizes(obs_dim, hidden_sizes, 1)
        obs = rng.standard_normal((SAMPLES, obs_dim), np.float32)
        agent = self.agent = plain_ppo.Agent(
            obs_dim, hidden_sizes, action_dim, self.theta, discrete=discrete, activation=activation
        )
        self.activation = activation_code(activation)
        with torch.no_grad():
            if discrete:
                actions = torch.tensor(rng.integers(0, action_dim, (SAMPLES, 1)).astype(np.float32))
            else:
                law = agent.action_law(torch.tensor(obs))
                actions = law.mean + law.stddev * torch.tensor(rng.standard_normal((SAMPLES, action_dim), np.float32))
            log_probs = agent.log_prob_and_entropy(torch.tensor(obs), actions)[0].numpy()
            values = agent.critic(torch.tensor(obs))[:, 0].numpy()
        values = values + 0.3 * rng.standard_normal(SAMPLES, np.float32)
        returns = values + 0.3 * rng.standard_normal(SAMPLES, np.float32)
        # Adam forgets the scale of all gradients together: the gradient clip is only felt where their norms differ.
        returns[::100] += 60
        advantages = 0.3 + 2 * rng.standard_normal(SAMPLES, np.float32)
        self.rollout = {
            "obs": obs,
            "actions": actions.numpy(),
            "log_probs": log_probs + 0.3 * rng.standard_normal(SAMPLES, np.float32),
            "advantages": advantages,
            "returns": returns,
            "values": values,
        }
        self.order = rng.permuted(np.tile(np.arange(SAMPLES), (EPOCHS, 1)), axis=1)
        self.adam_m, self.adam_v = np.zeros_like(self.theta), np.zeros_like(self.theta)
        self.adam_steps = 0

    def update(self, ppo: PPOConfig, learning_rate: float, order: np.ndarray, snapshot_every_epochs: int) -> np.ndarray:
        """The kernel; the snapshots."""
        snapshots = np.full((len(order) // snapshot_every_epochs, self.num_weights), np.nan, np.float32)
        update(
            Learner(self.theta, self.adam_m, self.adam_v, *self.sizes),
            self.adam_steps,
            Samples(*self.rollout.values()),
            order,
            learning_rate,
            UpdateSettings.of(ppo, snapshot_every_epochs, self.activation),
            snapshots,
        )
        self.adam_steps += len(order) * ppo.num_minibatches
        return snapshots


def settings(**changes) -> PPOConfig:
    return PPOConfig(num_steps=SAMPLES, num_minibatches=MINIBATCHES, update_epochs=EPOCHS, **changes)


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_two_updates_equal_a_plain_torch_ppo(kind: dict[str, Any], network: Network, changes: dict[str, Any]) -> None:
    """The second update begins with the moments and the step count of the first, at another learning rate."""
    ppo, case = settings(**changes), Case(network, **kind)
    optimizer = plain_ppo.make_optimizer(case.agent, ppo)
    start = case.theta.copy()
    for learning_rate in (3e-4, 2e-4):
        log = plain_ppo.update(case.agent, optimizer, learning_rate, case.rollout, case.order, ppo)
        snapshots = case.update(ppo, learning_rate, case.order, 2)
        np.testing.assert_allclose(snapshots, log.snapshots[1::2], rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(case.theta, case.agent.theta(), rtol=0, atol=TOLERANCE)
        for share in (log.ratio_clipped, log.value_clipped):
            assert min(share) > 0.05 and max(share) < 0.95
        if ppo.max_grad_norm == 1e3:
            assert max(log.gradient_norms) < ppo.max_grad_norm
        if ppo.max_grad_norm == 0.01:
            assert min(log.gradient_norms) > ppo.max_grad_norm
    assert np.abs(case.theta - start).max() > 1e-3  # it has moved


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
def test_every_setting_of_the_comparison_matters(discrete: bool) -> None:
    """Otherwise the comparison would also pass with a kernel that ignores its settings."""
    results = []
    for changes in SETTINGS.values():
        case = Case(NETWORKS["4-8-8-1"], discrete=discrete)
        case.update(settings(**changes), 3e-4, case.order, 2)
        results.append(case.theta)
    for i, theta in enumerate(results):
        for other in results[:i]:
            assert np.abs(theta - other).max() > 50 * TOLERANCE


@pytest.mark.parametrize("snapshot_every_epochs", [1, 2, 4])
def test_snapshots_are_the_weights_after_those_epochs(snapshot_every_epochs: int) -> None:
    ppo, whole = settings(), Case(NETWORKS["4-8-8-1"])
    snapshots = whole.update(ppo, 3e-4, whole.order, snapshot_every_epochs)
    assert len(snapshots) == EPOCHS // snapshot_every_epochs
    for row, snapshot in enumerate(snapshots):
        part = Case(NETWORKS["4-8-8-1"])
        part.update(ppo, 3e-4, part.order[: (row + 1) * snapshot_every_epochs], 1)
        np.testing.assert_array_equal(snapshot, part.theta[: part.num_weights])


@pytest.mark.parametrize("next_done", [0.0, 1.0])
def test_advantages_are_the_sums_of_their_definition(next_done: float) -> None:
    rng = np.random.default_rng(1)
    rewards, values, next_value = rng.standard_normal(60), rng.standard_normal(60), rng.standard_normal()
    dones = (rng.random(60) < 0.1).astype(np.float32)
    dones[[0, 20, 21]] = 1  # at the very beginning, and an episode of one step
    advantages, returns = np.empty((2, 60), np.float32)
    advantages_and_returns(
        rewards.astype(np.float32), values.astype(np.float32), dones, np.float32(next_value), np.float32(next_done),
        0.97, 0.9, advantages, returns,
    )  # fmt: skip
    expected = plain_ppo.advantages_by_definition(
        rewards, np.array([*values, next_value]), np.array([*dones, next_done]), 0.97, 0.9
    )
    np.testing.assert_allclose(advantages, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(returns, expected + values, rtol=1e-5, atol=1e-5)


def test_advantages_by_hand() -> None:
    """γ = λ = ½; step 2 begins an episode, so that step 1 sees nothing of it."""
    rewards, values = np.array([1, 2, 3], np.float32), np.array([4, 8, 16], np.float32)
    advantages, returns = np.empty((2, 3), np.float32)
    dones = np.array([0, 0, 1], np.float32)
    advantages_and_returns(rewards, values, dones, np.float32(32), np.float32(0), 0.5, 0.5, advantages, returns)
    # δ = 1 + ½·8 − 4, 2 + 0 − 8, 3 + ½·32 − 16
    assert advantages.tolist() == [1 - 6 / 4, -6, 3]
    assert returns.tolist() == [3.5, 2, 19]


def test_log_prob_is_torchs() -> None:
    action, mean, log_std = np.random.default_rng(2).standard_normal((3, 6)).astype(np.float32)
    law = torch.distributions.Normal(torch.tensor(mean), torch.tensor(log_std).exp())
    expected = law.log_prob(torch.tensor(action)).sum().item()
    assert gaussian_log_prob(action, mean, log_std) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_log_probs_and_entropy_of_discrete_actions_are_torchs(count: int) -> None:
    logits = np.random.default_rng(2).standard_normal(count).astype(np.float32)
    for scale in (1, 50):  # 50: all but sure of one action
        law = torch.distributions.Categorical(logits=torch.tensor(scale * logits, dtype=torch.float64))
        log_probs = np.empty(count, np.float32)
        entropy = categorical_log_probs((scale * logits).astype(np.float32), log_probs)
        np.testing.assert_allclose(log_probs, law.log_prob(torch.arange(count)), rtol=1e-6, atol=1e-6)
        assert entropy == pytest.approx(law.entropy().item(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_gradients_of_logits_are_autograds(changes: dict[str, Any]) -> None:
    """The value's gradient does not know what the actions are; the test after this one has it."""
    ppo, batch, count = settings(**changes), 64, 3
    rng = np.random.default_rng(3)
    logits, actions = rng.standard_normal((batch, count), np.float32), rng.integers(0, count, batch)
    advantages = rng.standard_normal(batch, np.float32)
    leaf = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    law = torch.distributions.Categorical(logits=leaf)
    log_prob = law.log_prob(torch.tensor(actions))
    shift = 0.3 * rng.standard_normal(batch)
    shift[:8] = 0
    old_log_prob = (log_prob.detach().numpy() + shift).astype(np.float32)
    ratio = torch.exp(log_prob - torch.tensor(old_log_prob))
    gain = torch.tensor(advantages, dtype=torch.float64)
    if ppo.norm_adv:
        gain = (gain - gain.mean()) / (gain.std() + 1e-8)
    clipped = ratio.clamp(1 - ppo.clip_coef, 1 + ppo.clip_coef)
    loss = torch.max(-gain * ratio, -gain * clipped).mean() - ppo.ent_coef * law.entropy().mean()
    (expected,) = torch.autograd.grad(loss, leaf)

    found, zeros, nothing = np.empty_like(logits), np.zeros(batch, np.float32), np.empty(0, np.float32)
    loss_gradients(logits, nothing, zeros, actions[:, None].astype(np.float32), old_log_prob, advantages, zeros, zeros,
                   UpdateSettings.of(ppo), found, zeros.copy(), nothing)  # fmt: skip
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-7)
    assert not ((found == 0).all(1).sum() in (0, batch) and ppo.ent_coef == 0)  # some are beyond the clip, some not


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("action_dim", [1, 6])
def test_loss_gradients_are_autograds(action_dim: int, changes: dict[str, Any]) -> None:
    ppo, batch = settings(**changes), 64
    rng = np.random.default_rng(3)
    mean, actions = rng.standard_normal((2, batch, action_dim), np.float32)
    log_std = rng.uniform(-0.5, 0.5, action_dim).astype(np.float32)
    value, old_value, returns, advantages = rng.standard_normal((4, batch), np.float32)
    old_value = (value + 0.3 * old_value).astype(np.float32)
    leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (mean, log_std, value)]
    mean_t, log_std_t, value_t = leaves
    law = torch.distributions.Normal(mean_t, log_std_t.exp().expand_as(mean_t))
    log_prob = law.log_prob(torch.tensor(actions)).sum(1)
    shift = 0.3 * rng.standard_normal(batch)
    shift[:8] = 0  # as in the first minibatch of an update: the ratio is 1
    old_log_prob = (log_prob.detach().numpy() + shift).astype(np.float32)

    ratio = torch.exp(log_prob - torch.tensor(old_log_prob))
    gain = torch.tensor(advantages, dtype=torch.float64)
    if ppo.norm_adv:
        gain = (gain - gain.mean()) / (gain.std() + 1e-8)
    low, high = 1 - ppo.clip_coef, 1 + ppo.clip_coef
    loss = torch.max(-gain * ratio, -gain * ratio.clamp(low, high)).mean() - ppo.ent_coef * law.entropy().sum(1).mean()
    errors = (value_t - torch.tensor(returns)) ** 2
    if ppo.clip_vloss:
        near = torch.tensor(old_value) + (value_t - torch.tensor(old_value)).clamp(-ppo.clip_coef, ppo.clip_coef)
        errors = torch.max(errors, (near - torch.tensor(returns)) ** 2)
    expected = torch.autograd.grad(loss + ppo.vf_coef * 0.5 * errors.mean(), leaves)

    d_mean, d_value, d_log_std = np.empty_like(mean), np.empty_like(value), np.empty_like(log_std)
    loss_gradients(mean, log_std, value, actions, old_log_prob, advantages, returns, old_value, UpdateSettings.of(ppo),
                   d_mean, d_value, d_log_std)  # fmt: skip
    for kernel, autograd in zip((d_mean, d_log_std, d_value), expected, strict=True):
        np.testing.assert_allclose(kernel, autograd.numpy(), rtol=1e-4, atol=1e-6)
    assert 0 < np.count_nonzero(d_mean[:, 0] == 0) < batch  # some samples are beyond the clip, some are not


@pytest.mark.parametrize("activation", plain_ppo.ACTIVATIONS)
@pytest.mark.parametrize("hidden_sizes", [(7,), (8, 8), (5, 9, 6)], ids=str)
def test_backward_is_autograds(hidden_sizes: tuple[int, ...], activation: Activation) -> None:
    rng = np.random.default_rng(4)
    sizes, batch, before = layer_sizes(4, hidden_sizes, 3), 16, 10  # the network begins within the vector
    theta = rng.standard_normal(before + network_size(sizes) + 5, np.float32)
    x, delta_out = rng.standard_normal((batch, 4), np.float32), rng.standard_normal((batch, 3), np.float32)
    acts = np.empty(batch * sizes[1:].sum(), np.float32)
    grad = np.full_like(theta, 99)
    code = activation_code(activation)
    forward_batch(theta, before, sizes, x, acts, code)
    backward_batch(theta, before, sizes, x, acts, delta_out, np.empty_like(acts), grad, code)

    network = plain_ppo.network(4, hidden_sizes, 3, activation)
    torch.nn.utils.vector_to_parameters(torch.tensor(theta[before:-5]), network.parameters())
    (network(torch.tensor(x)) * torch.tensor(delta_out)).sum().backward()
    expected = np.concatenate([parameter.grad.numpy().reshape(-1) for parameter in network.parameters()])  # pyright: ignore[reportOptionalMemberAccess]
    np.testing.assert_allclose(grad[before:-5], expected, rtol=1e-4, atol=1e-5)
    assert (grad[:before] == 99).all() and (grad[-5:] == 99).all()


@pytest.mark.parametrize("max_grad_norm", [0.5, 1e3], ids=["clipped", "free"])
def test_adam_is_torchs(max_grad_norm: float) -> None:
    """From the first step on: the corrections of the moments are largest there. Gradients over many magnitudes."""
    rng = np.random.default_rng(5)
    theta = rng.standard_normal(50, np.float32)
    parameter = torch.nn.Parameter(torch.tensor(theta))
    optimizer = torch.optim.Adam([parameter], lr=1e-2, eps=1e-5, foreach=False)
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for step in range(1, 31):
        grad = (rng.standard_normal(50) * 10 ** rng.uniform(-7, 0, 50)).astype(np.float32)
        rate = 1e-2 / step
        parameter.grad = torch.tensor(grad)
        torch.nn.utils.clip_grad_norm_([parameter], max_grad_norm)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        adam_step(theta, grad, m, v, step, rate, 1e-5, max_grad_norm)
        np.testing.assert_allclose(theta, parameter.detach().numpy(), rtol=0, atol=1e-6)
    state = optimizer.state[parameter]
    np.testing.assert_allclose(m, state["exp_avg"].numpy(), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(v, state["exp_avg_sq"].numpy(), rtol=1e-5, atol=1e-12)


def test_adam_without_gradient_rests() -> None:
    theta = np.ones(4, np.float32)
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    adam_step(theta, np.zeros_like(theta), m, v, 1, 1e-2, 1e-5, 0.5)
    assert theta.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_nan_reaches_the_weights(kind: dict[str, Any]) -> None:
    """A run that has broken must look broken: nothing on the way may turn a NaN into a number."""
    case = Case(NETWORKS["4-8-8-1"], **kind)
    case.rollout["obs"][7] = np.nan
    case.update(dataclasses.replace(settings(), update_epochs=1), 3e-4, case.order[:1], 1)
    assert np.isnan(case.theta[: case.num_weights]).any()
    assert np.isnan(case.theta[case.num_weights :]).any()
