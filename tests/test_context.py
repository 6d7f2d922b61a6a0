"""Context tokens against autograd, sums of them against their formula.

In: small trials whose memory is looked at with later weights.  Out: failures.
"""

import functools
from pathlib import Path

import numpy as np
import plain_ppo
import pytest
import safetensors.numpy
import torch
from torch.distributions import Categorical, Normal

from tipl import Accelerator, Batch, JumpingOptimizer
from tipl.acceleration.arms import Arm, run_part
from tipl.acceleration.jump import KINDS
from tipl.acceleration.tokens import BatchMemory
from tipl.config.jumps import JumpConfig
from tipl.config.presets import CollectConfig, DiscreteCollectConfig, DiscretePPOConfig, PPOConfig
from tipl.errors import TiplError
from tipl.forecasting.context import CONTEXT, ContextSum
from tipl.forecasting.named import load_forecaster
from tipl.rl.context import LARGEST, TOKENS, Memory, Rollout, surrogate_gradient
from tipl.rl.trial_batch import TrialBatch
from tipl.store import History

CONFIGS = {
    "continuous": CollectConfig(
        env_id="Pendulum-v1", total_steps=4 * 600 * 8, hidden_sizes=(8, 8),
        ppo=PPOConfig(num_envs=4, num_steps=600, num_minibatches=4, update_epochs=2, learning_rate=0.05),
    ),
    "discrete": DiscreteCollectConfig(
        total_steps=300 * 8, hidden_sizes=(8, 8), activation="relu",
        ppo=DiscretePPOConfig(num_envs=3, num_steps=100, learning_rate=0.05, norm_adv=False),
    ),
}  # fmt: skip


def advantages_of(rollout: Rollout, values: np.ndarray, ppo: PPOConfig) -> np.ndarray:
    """[E, S] by the definition, of values [E, S + 1]."""
    found, last = np.zeros_like(rollout.rewards, np.float64), 0.0
    ends = np.concatenate([rollout.dones, rollout.last_done[:, None]], axis=1)
    for t in reversed(range(found.shape[1])):
        goes_on = 1 - ends[:, t + 1]
        delta = rollout.rewards[:, t] + ppo.gamma * goes_on * values[:, t + 1] - values[:, t]
        found[:, t] = last = delta + ppo.gamma * ppo.gae_lambda * goes_on * last
    return found


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_gradient_on_an_old_rollout_is_autograds(config: CollectConfig) -> None:
    """Of a part of the first rollout, an update later; some ratios are beyond 3."""
    batch = TrialBatch(config, [1, 2])
    batch.iterate()
    rollout = Rollout.of(batch, 1, 25, 98)
    np.testing.assert_array_equal(rollout.last_obs, batch.obs[batch.copies(1), 98])
    rollout = rollout._replace(log_probs=rollout.log_probs - np.linspace(0, 2, 73, dtype=np.float32))
    batch.iterate()
    discrete, ppo = isinstance(config, DiscreteCollectConfig), config.ppo
    sizes, theta = batch.policy_sizes.tolist(), batch.theta[1]
    agent = plain_ppo.Agent(
        sizes[0], tuple(sizes[1:-1]), sizes[-1], theta, discrete=discrete, activation=config.activation
    )
    seen = np.concatenate([rollout.obs, rollout.last_obs[:, None]], axis=1)
    values = agent.critic(torch.tensor(seen))[..., 0].detach().numpy()
    advantages = torch.tensor(advantages_of(rollout, values, ppo), dtype=torch.float32).reshape(-1)
    if ppo.norm_adv:
        advantages = (advantages - advantages.mean()) / advantages.std(correction=0)
    flat = (torch.tensor(each.reshape(len(advantages), -1)) for each in (rollout.obs, rollout.actions))
    log_probs, entropy = agent.log_prob_and_entropy(*flat)
    ratio = (log_probs - torch.tensor(rollout.log_probs.reshape(-1))).exp()
    assert 0 < (ratio > 3).float().mean() < 0.5
    held = torch.exp(log_probs - log_probs.detach()) * ratio.detach().clamp(max=np.exp(LARGEST).item())
    (-(advantages * held).mean() - ppo.ent_coef * entropy.mean()).backward()
    expected = np.concatenate([p.grad.reshape(-1).numpy() for p in agent.policy() if p.grad is not None])
    found = surrogate_gradient(batch, 1, rollout)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_a_token_is_an_iteration_of_adam_along_the_mean_gradient_of_its_span() -> None:
    config = CONFIGS["continuous"]
    batch, memory, kept = TrialBatch(config, [3]), Memory(), []
    for start in (128, 256, 384):  # of 4 copies 128 steps are remembered, others each time
        batch.iterate()
        memory.add(batch, 0)
        kept.insert(0, Rollout.of(batch, 0, start, start + 128))
    gradients = [surrogate_gradient(batch, 0, each) for each in kept]
    step = 0.05 * (1 - 3 / 8) * 8 / (np.sqrt(batch.adam_v[0, : batch.spec.size] / (1 - 0.999**24)) + 1e-5)
    tokens = memory.tokens(batch, 0)
    assert tokens.shape == (TOKENS, batch.spec.size)
    np.testing.assert_allclose(tokens[0], -step * gradients[0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(tokens[1], -step * (gradients[1] + gradients[2]) / 2, rtol=1e-4, atol=1e-7)
    assert not tokens[2:-1].any()
    moment = batch.adam_m[0, : batch.spec.size] / (1 - 0.9**24)
    np.testing.assert_allclose(tokens[-1], -step * moment, rtol=1e-4, atol=1e-7)


def test_a_sum_of_tokens_is_the_causal_models_displacement_and_theirs() -> None:
    fitted = {"model": "causal", "horizons": [1, 10], "coefficients": [[0.5, 1.0, 0.0], [2.0, 4.0, -1.0]]}
    shapes = [(2, 3), (2,), (1, 2)]
    forecaster = ContextSum(shapes, 5, fitted)
    found = forecaster.coefficients([1, 5, 50, 100])
    np.testing.assert_allclose(found, [*2 * [[0.5, 1, 0]], *2 * [[2, 4, -1]]])
    rng = np.random.default_rng(0)
    path = np.cumsum(rng.standard_normal((31, 10)).astype(np.float32) + 1, axis=0)
    tokens = rng.standard_normal((2, 10)).astype(np.float32)
    made = forecaster.forecast([History(0, 30, path, 4, 5, tokens)], [50])[0, 0] - path[-1]
    causal = load_forecaster("causal", shapes).forecast([History(0, 30, path, 4, 5)], [50])[0, 0] - path[-1]
    expected = np.r_[(2 * causal + 4 * tokens[0] - tokens[1])[:8], causal[8:]]  # the last are log standard deviations
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(TiplError, match="takes 2 context tokens"):
        forecaster.forecast([History(0, 30, path, 4, 5)], [50])


def test_an_optimizer_that_knows_no_batches_is_told_before_its_first_step() -> None:
    with pytest.raises(TiplError, match="an optimizer knows none"):
        JumpingOptimizer(torch.optim.Adam(torch.nn.Linear(3, 2).parameters()), CONTEXT)


def test_tokens_of_a_torch_loop_are_those_of_our_own() -> None:
    """The same rollouts, weights, moments and steps of Adam; advantages are renewed by the critic of now."""
    ppo = PPOConfig(num_envs=4, num_steps=100, num_minibatches=4, update_epochs=2, learning_rate=0.05, anneal_lr=False)
    config = CollectConfig(env_id="Pendulum-v1", total_steps=400 * 8, hidden_sizes=(8, 8), ppo=ppo)
    batch, ours = TrialBatch(config, [3]), Memory()
    rollouts: list[Rollout] = []
    for _ in range(7):
        batch.iterate()
        ours.add(batch, 0)
        rollouts.append(Rollout.of(batch, 0))
    sizes, size = batch.policy_sizes.tolist(), batch.spec.size
    agent = plain_ppo.Agent(sizes[0], tuple(sizes[1:-1]), sizes[-1], batch.theta[0])
    adam = torch.optim.Adam(agent.parameters(), lr=0.05, eps=ppo.adam_eps)
    named = [(f"{number}", each) for number, each in enumerate(agent.policy())]
    theirs = BatchMemory(named, agent, agent.action_law, adam)
    for _ in range(8):  # as many steps as an iteration's
        agent.zero_grad()
        torch.stack([p.square().sum() for p in agent.parameters()]).sum().backward()
        adam.step()
    torch.nn.utils.vector_to_parameters(torch.tensor(batch.theta[0]), agent.ordered())
    start = 0
    for each in agent.policy():
        stop = start + each.numel()
        state, moments = adam.state[each], (batch.adam_m[0], batch.adam_v[0])
        for key, moment in zip(("exp_avg", "exp_avg_sq"), moments, strict=True):
            state[key].copy_(torch.tensor(moment[start:stop]).view_as(each))
        start = stop
    for rollout in rollouts:
        seen = np.concatenate([rollout.obs, rollout.last_obs[:, None]], axis=1)
        values = agent.critic(torch.tensor(seen))[..., 0].detach().numpy()
        advantages = torch.tensor(advantages_of(rollout, values, ppo), dtype=torch.float32)
        obs, actions, log_probs = (
            torch.tensor(each).reshape(400, -1) for each in (rollout.obs, rollout.actions, rollout.log_probs)
        )
        theirs.add(Batch(obs, actions, log_probs, torch.randn(400), (), functools.partial(torch.clone, advantages)))
    for each in agent.policy():
        adam.state[each]["step"].fill_(7 * 8)
    theirs._steps_each = 8
    expected, found = ours.tokens(batch, 0), theirs.tokens()
    assert found.shape == (TOKENS, size) and expected[:3].any(axis=1).all() and not found[3].any()
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=2e-3, atol=1e-4 * max(np.abs(other).max(), 1e-9))


def test_log_standard_deviations_of_stable_baselines_are_left_to_the_model() -> None:
    """They are a vector there and come first."""
    network, log_std = torch.nn.Linear(3, 2), torch.nn.Parameter(torch.zeros(2))
    named = [("log_std", log_std), ("action_net.weight", network.weight), ("action_net.bias", network.bias)]
    adam = torch.optim.Adam([each for _, each in named], lr=0.1)

    def distribution(obs: torch.Tensor) -> Normal:
        return Normal(network(obs), log_std.exp())

    accelerator = Accelerator(named, CONTEXT, distribution=distribution, optimizer=adam)
    rng, path = np.random.default_rng(0), np.zeros((21, 10), np.float32)
    path[1:] = np.cumsum(rng.standard_normal((20, 10)) + 1, axis=0)
    tokens = rng.standard_normal((TOKENS, 10)).astype(np.float32)
    forecaster = accelerator._jumper.forecaster
    made, without = (
        forecaster.forecast([History(0, 20, path, 0, 1, each)], [10])[0, 0] for each in (tokens, 0 * tokens)
    )
    zoo = load_forecaster("zoo", [(1, 2), (2, 3), (2,)]).forecast([History(0, 20, path, 0, 1)], [10])[0, 0]
    np.testing.assert_allclose(made[:2], zoo[:2], rtol=1e-5)
    assert (made != without)[2:].all()


def test_of_a_long_batch_samples_from_all_of_it_are_kept_others_each_time() -> None:
    policy = torch.nn.Linear(1, 2)
    named = list(policy.named_parameters())
    memory = BatchMemory(
        named, policy, lambda obs: Categorical(logits=policy(obs)), torch.optim.Adam([*policy.parameters()])
    )
    numbers = torch.arange(1200.0)
    for _ in range(2):
        memory.add(Batch(numbers[:, None], torch.zeros(1200), torch.zeros(1200), numbers))
    first, second = (each["advantages"] for each in memory.state()["batches"])
    normal = (numbers - numbers.mean()) / numbers.std(correction=0)
    np.testing.assert_allclose(np.stack([first, second]), np.stack([normal[1::3], normal[::3]]), rtol=1e-5)
    newest, before = (each["observations"][:, 0] for each in memory.state()["batches"])
    np.testing.assert_array_equal(before, np.arange(0, 1200, 3))
    np.testing.assert_array_equal(newest, np.arange(1, 1200, 3))
    for wrong in (torch.zeros(3), torch.full((1200,), torch.nan)):
        memory.add(Batch(numbers[:, None], torch.zeros(1200), torch.zeros(1200), numbers, (), lambda it=wrong: it))
        with pytest.raises(TiplError, match="gave no 1200 finite advantages"):
            memory.tokens()


def test_a_live_run_makes_the_tokens_that_its_forecaster_takes(tmp_path: Path) -> None:
    config = CollectConfig(trials=1, total_steps=4 * 256, ppo=PPOConfig(num_steps=256, num_minibatches=4))
    run_part(Arm(config, CONTEXT, JumpConfig(full_trust=0.0)), tmp_path / "part", [1])
    kinds = safetensors.numpy.load_file(tmp_path / "part")["kinds"][0]
    assert set(kinds) <= {KINDS.index(kind) for kind in ("accepted", "shrunk", "rejected", "taken back")}
