"""Rivals of jumps against loops that are as plain as they can be, and jumps of more than the actor.

In: a few short iterations of tiny networks.  Out: failures.
"""

import dataclasses
from pathlib import Path

import numpy as np
import plain_ppo
import pytest
import safetensors.numpy
import torch
from torch.distributions import kl_divergence

from tipl.acceleration.arms import Arm, jumpers_of, run_part
from tipl.acceleration.compare import accelerate
from tipl.acceleration.judging import batch_judge
from tipl.acceleration.jump import KINDS
from tipl.acceleration.rivals import AdaptiveBatch, batch_of
from tipl.config.jumps import JumpConfig
from tipl.config.presets import CollectConfig, DiscreteCollectConfig, DiscretePPOConfig, PPOConfig
from tipl.config.rivals import Adaptive, Outer, Reuse, TrimAndBoost, parts_of_arm
from tipl.errors import TiplError
from tipl.rl.policies import action_noise, network_size
from tipl.rl.trial_batch import TrialBatch

CONFIG = CollectConfig(
    total_steps=256 * 8, ppo=PPOConfig(num_steps=256, num_minibatches=4, update_epochs=2, learning_rate=3e-3)
)
DISCRETE = DiscreteCollectConfig(
    total_steps=256 * 8, hidden_sizes=(8, 8),
    ppo=DiscretePPOConfig(
        num_envs=2, num_steps=128, num_minibatches=4, update_epochs=2, learning_rate=6e-3, clip_coef=0.05
    ),
)  # fmt: skip
KINDS_OF_ACTIONS = pytest.mark.parametrize("config", [CONFIG, DISCRETE], ids=["normal", "categorical"])
SEEDS = [3, 8]
FREE = JumpConfig(full_trust=0.0, max_kl=1e9, surrogate=False, fall=0.0)


@pytest.mark.parametrize("rival", [Outer(sigma=1.0), Reuse(batches=1)], ids=str)
def test_the_least_of_a_rival_is_plain_ppo_to_the_bit(rival: Outer | Reuse) -> None:
    plain, other = TrialBatch(CONFIG, SEEDS), batch_of(CONFIG, SEEDS, rival)
    for _ in range(3):
        one, two = plain.iterate(), other.iterate()
        np.testing.assert_array_equal(one.snapshots, two.snapshots)
        np.testing.assert_array_equal(plain.theta, other.theta)


@pytest.mark.parametrize("rival", [Outer(2.0), Outer(0.5, actor=True), Outer(1.5, momentum=0.4)], ids=str)
def test_outer_ppo_by_hand(rival: Outer) -> None:
    """Nesterov's momentum in its first form: a look ahead along the velocity after it has taken in the gradient."""
    plain, outer = TrialBatch(CONFIG, SEEDS), batch_of(CONFIG, SEEDS, rival)
    velocity = np.zeros(plain.theta.shape)
    network = network_size(plain.policy_sizes)
    for _ in range(3):
        before = plain.theta.astype(np.float64)
        plain.iterate()
        after = plain.theta.astype(np.float64)
        velocity = rival.momentum * velocity + (after - before)
        moved = before + rival.sigma * (after - before + rival.momentum * velocity)
        plain.theta[:] = np.concatenate([moved[:, :network], (after if rival.actor else moved)[:, network:]], axis=1)
        snapshots = outer.iterate().snapshots
        np.testing.assert_allclose(outer.theta, plain.theta, rtol=0, atol=2e-5)
        np.testing.assert_array_equal(snapshots[:, -1], outer.policies)
    assert np.abs(plain.theta - TrialBatch(CONFIG, SEEDS).theta).max() > 1e-2


def orders(config: CollectConfig, seed: int, iteration: int, outputs: int) -> np.ndarray:
    """[epochs, S], as `TrialBatch` says that a trial draws them."""
    ppo, rng = config.ppo, np.random.default_rng([seed, 1, iteration])
    action_noise(rng, (ppo.num_envs, ppo.num_steps, outputs), discrete=isinstance(ppo, DiscretePPOConfig))
    return rng.permuted(np.tile(np.arange(ppo.batch_size), (ppo.update_epochs, 1)), axis=1)


def agent_of(batch: TrialBatch, theta: np.ndarray) -> plain_ppo.Agent:
    env = batch.env
    return plain_ppo.Agent(env.obs_dim, (8, 8), env.policy_outputs, theta, discrete=env.discrete)


def law_of(agent: plain_ppo.Agent, obs: torch.Tensor):
    return torch.distributions.Categorical(logits=agent.actor(obs)) if agent.discrete else agent.action_law(obs)


def rollout_of(batch: TrialBatch, agent: plain_ppo.Agent) -> dict[str, np.ndarray]:
    """What the first trial's update was given, of the agent from before it."""
    mine, samples = batch.copies(0), batch.config.ppo.batch_size
    found = {name: getattr(batch, name)[mine] for name in ("obs", "actions", "log_probs", "advantages")}
    found = {name: array.reshape(samples, *array.shape[2:]).copy() for name, array in found.items()}
    with torch.no_grad():
        found["values"] = agent.critic(torch.tensor(found["obs"]))[:, 0].numpy()
    return found | {"returns": found["advantages"] + found["values"]}


@KINDS_OF_ACTIONS
def test_the_adaptive_rate_by_hand(config: CollectConfig) -> None:
    target, rate, rates = 2e-4 if config is DISCRETE else 2e-3, config.ppo.learning_rate, []
    batch = AdaptiveBatch(Adaptive(target), config, SEEDS)
    agent = agent_of(batch, batch.theta[0])
    optimizer = plain_ppo.make_optimizer(agent, config.ppo)
    one = dataclasses.replace(config.ppo, num_minibatches=1)
    for iteration in (1, 2):
        snapshots = batch.iterate().snapshots
        np.testing.assert_array_equal(snapshots[:, -1], batch.policies)
        rollout, old = rollout_of(batch, agent), agent_of(batch, agent.theta())
        for epoch in orders(config, SEEDS[0], iteration, batch.env.policy_outputs):
            for picked in np.split(epoch, config.ppo.num_minibatches):
                with torch.no_grad():
                    obs = torch.tensor(rollout["obs"][picked])
                    kl = kl_divergence(law_of(old, obs), law_of(agent, obs)).reshape(len(picked), -1).sum(1).mean()
                if kl > 2 * target:
                    rate = max(rate / 1.5, 1e-5)
                elif kl < target / 2:
                    rate = min(rate * 1.5, 1e-2)
                rates.append(rate)
                plain_ppo.update(agent, optimizer, rate, rollout, picked[None], one)
        assert batch.rates[0] == pytest.approx(rate)
        np.testing.assert_allclose(batch.theta[0], agent.theta(), rtol=0, atol=1e-5)
    steps = np.diff(np.log(rates))
    assert (steps > 0.1).any() and (steps < -0.1).any() and (steps == 0).any()


def vtraced(rewards, values, dones, ratios, gamma, decay) -> np.ndarray:
    """A_t = Σ_l (γλ)^l (Π_{j=1..l} min(1, r_{t+j})) δ_{t+l} up to the episode's end, one copy; `values` [S + 1]."""
    found = np.zeros(len(rewards))
    for t in range(len(rewards)):
        weight = 1.0
        for s in range(t, len(rewards)):
            found[t] += weight * (rewards[s] + gamma * values[s + 1] * (1 - dones[s + 1]) - values[s])
            if dones[s + 1] or s + 1 == len(rewards):
                break
            weight *= decay * min(1.0, ratios[s + 1])
    return found


@KINDS_OF_ACTIONS
def test_generalized_ppo_by_hand(config: CollectConfig) -> None:
    """The second iteration, on the batches of both; the first is plain."""
    ppo, batch, plain = config.ppo, batch_of(config, SEEDS, Reuse(2)), TrialBatch(config, SEEDS)
    for each in (batch, plain):
        each.iterate()
    np.testing.assert_array_equal(batch.theta, plain.theta)
    agent, mine = agent_of(batch, batch.theta[0]), batch.copies(0)
    names = "obs", "actions", "log_probs", "rewards", "dones", "next_obs", "next_done"
    past = {name: getattr(batch, name)[mine].copy() for name in names}
    optimizer = plain_ppo.make_optimizer(agent, ppo)
    state = zip(agent.ordered(), np.cumsum([p.numel() for p in agent.ordered()]), strict=True)
    for parameter, end in state:
        own = slice(end - parameter.numel(), end)
        moments = (torch.tensor(each[0, own]).reshape(parameter.shape) for each in (batch.adam_m, batch.adam_v))
        steps = torch.tensor(float(ppo.update_epochs * ppo.num_minibatches))
        optimizer.state[parameter] = {"step": steps, **dict(zip(("exp_avg", "exp_avg_sq"), moments, strict=True))}
    batch.iterate()

    parts = [rollout_of(batch, agent)]
    samples = ppo.batch_size
    with torch.no_grad():
        obs, actions = (torch.tensor(past[name].reshape(samples, -1)) for name in ("obs", "actions"))
        now = agent.log_prob_and_entropy(obs, actions)[0].numpy()
        values = agent.critic(obs)[:, 0].numpy().reshape(ppo.num_envs, -1)
        last = agent.critic(torch.tensor(past["next_obs"]))[:, 0].numpy()
    ratios = np.exp(now.reshape(ppo.num_envs, -1) - past["log_probs"])
    advantages = np.stack([
        vtraced(past["rewards"][e], [*values[e], last[e]], [*past["dones"][e], past["next_done"][e]], ratios[e],
                ppo.gamma, ppo.gamma * ppo.gae_lambda)
        for e in range(ppo.num_envs)
    ])  # fmt: skip
    returns = values + np.minimum(1, ratios) * advantages
    parts.append({
        "obs": obs.numpy(), "actions": actions.numpy(), "log_probs": past["log_probs"].reshape(-1),
        "advantages": advantages.reshape(-1), "values": values.reshape(-1), "returns": returns.reshape(-1),
    })  # fmt: skip
    data = {name: torch.tensor(np.concatenate([part[name] for part in parts]).astype(np.float32)) for name in parts[0]}
    center = torch.tensor(np.concatenate([np.ones(samples), ratios.reshape(-1)]).astype(np.float32))
    radius = ppo.clip_coef * 2 / 3  # ε / E[i + 1] over i = 0, 1
    rng = np.random.default_rng([SEEDS[0], 3, 2])
    order = rng.permuted(np.tile(np.arange(2 * samples), (ppo.update_epochs, 1)), axis=1)
    optimizer.param_groups[0]["lr"] = ppo.learning_rate * (1 - 1 / config.num_iterations)
    outside = 0
    for picked in order.reshape(-1, 2 * samples // ppo.num_minibatches):
        one = {name: array[picked] for name, array in data.items()}
        log_prob, entropy = agent.log_prob_and_entropy(one["obs"], one["actions"])
        ratio, adv = (log_prob - one["log_probs"]).exp(), one["advantages"]
        adv = (adv - adv.mean()) / (adv.std() + 1e-8)
        clipped = torch.clamp(ratio, center[picked] - radius, center[picked] + radius)
        outside += int((clipped != ratio).sum())
        value = agent.critic(one["obs"])[:, 0]
        held = one["values"] + (value - one["values"]).clamp(-ppo.clip_coef, ppo.clip_coef)
        errors = torch.max((value - one["returns"]) ** 2, (held - one["returns"]) ** 2)
        optimizer.zero_grad()
        gain = torch.min(adv * ratio, adv * clipped).mean() + ppo.ent_coef * entropy.mean()
        (ppo.vf_coef * 0.5 * errors.mean() - gain).backward()
        torch.nn.utils.clip_grad_norm_(agent.parameters(), ppo.max_grad_norm)
        optimizer.step()
    assert outside and np.abs(ratios - 1).max() > 0.05
    np.testing.assert_allclose(batch.theta[0], agent.theta(), rtol=0, atol=2e-5)


def test_trimming_and_boosting_by_hand() -> None:
    rival = TrimAndBoost(every=2, window=3, major=2, boost=0.5)
    plain, trimmed = TrialBatch(CONFIG, SEEDS), batch_of(CONFIG, SEEDS, rival)
    path = [plain.policies[0].astype(np.float64)]
    for iteration in range(1, 5):
        plain.iterate()
        path.append(plain.policies[0].astype(np.float64))
        if iteration % 2 == 0:
            seen = np.array(path[-4:])
            _, directions = np.linalg.eigh(seen.T @ seen)  # rising
            moved = path[-1] - path[-3]
            kept = sum(direction * (direction @ moved) for direction in directions.T[-2:])
            assert (
                0.1 < np.linalg.norm(kept) / np.linalg.norm(moved) < 0.999
            )  # what is trimmed is far more than the tolerance
            path[-1] = path[-3] + 1.5 * kept
            plain.policies[0] = path[-1]
        trimmed.iterate()
        np.testing.assert_allclose(trimmed.policies[0], path[-1], rtol=0, atol=1e-4)


def test_jumps_stand_on_a_rival(tmp_path: Path) -> None:
    """On the least of one they are those of plain PPO; a rival alone makes none."""
    for name in ("line", "outer:sigma=1+line", "outer:sigma=1", "outer:sigma=2+line"):
        run_part(Arm(CONFIG, name, FREE), tmp_path / name, SEEDS)
    line, same, alone, other = (
        safetensors.numpy.load_file(tmp_path / name)
        for name in ("line", "outer:sigma=1+line", "outer:sigma=1", "outer:sigma=2+line")
    )
    for name in ("returns", "kinds", "kl", "trust"):
        np.testing.assert_array_equal(line[name], same[name])
    assert (line["kinds"] == KINDS.index("accepted")).any() and not alone["kinds"].any()
    assert not np.array_equal(other["kl"], line["kl"])
    digests = {Arm(CONFIG, name, FREE).digest() for name in (None, "line", "outer", "outer+line", "outer:sigma=2+line")}
    assert len(digests) == 5


@KINDS_OF_ACTIONS
def test_critic_and_log_std_jump_as_the_actor_does(config: CollectConfig) -> None:
    """A line goes as far ahead in every weight, in units of what it did in the last iteration."""
    discrete = isinstance(config, DiscreteCollectConfig)
    arm = Arm(config, "line", dataclasses.replace(FREE, horizon=3, critic=True, log_std=not discrete))
    batch, plain = arm.batch(SEEDS), TrialBatch(config, SEEDS)
    jumper, before = jumpers_of(arm, batch)[0], batch.theta[0].copy()
    result = batch.iterate()
    np.testing.assert_array_equal(result.snapshots[:, :, : batch.spec.size], plain.iterate().snapshots)
    np.testing.assert_array_equal(result.snapshots[0, -1], batch.theta[0])
    jump = jumper.step(result.snapshots[0], batch_judge(batch, 0))
    assert jump.kind == "accepted" and jump.displacement is not None
    np.testing.assert_allclose(jump.displacement, 3 * (batch.theta[0] - before), rtol=1e-3, atol=1e-5)
    assert np.abs(jump.displacement[batch.spec.size :]).max() > 1e-2


def test_a_log_std_that_is_not_there_does_not_jump(tmp_path: Path) -> None:
    with pytest.raises(TiplError, match="--log-std has no effect"):
        run_part(Arm(DISCRETE, "line", JumpConfig(log_std=True)), tmp_path / "part", SEEDS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("outer:sigma=0", "outer:sigma is 0"),
        ("outer:sigma", "outer:sigma is ''"),
        ("outer:", "takes actor, momentum, sigma"),
        ("reuse:sigma=2", "reuse takes batches"),
        ("reuse:batches=1.5", "reuse:batches is 1.5"),
        ("outer:sigma=2,sigma=3", "each once"),
        ("pptb-like:every=30", "every is 30"),
        ("adaptive+", "no forecaster"),
        ("outer+nothing", "no forecaster 'nothing'"),
    ],
)
def test_bad_rivals_are_refused_in_a_line(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(TiplError, match=words):
        accelerate(CONFIG, tmp_path / "out", text)
    assert not (tmp_path / "out").exists()


def test_a_rival_takes_no_settings_of_jumps(tmp_path: Path) -> None:
    with pytest.raises(TiplError, match="no effect on reuse"):
        accelerate(CONFIG, tmp_path / "out", "reuse", JumpConfig(horizon=2))


def test_arms_by_name() -> None:
    assert parts_of_arm("causal") == (None, "causal")
    assert parts_of_arm("./outer") == (None, "./outer")
    assert parts_of_arm("outer:sigma=2,momentum=0.5,actor=true") == (Outer(2.0, 0.5, True), None)
    assert parts_of_arm("reuse:batches=4+./my+model") == (Reuse(4), "./my+model")
