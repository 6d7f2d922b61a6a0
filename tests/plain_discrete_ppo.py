"""One trial of PPO with discrete actions, as CleanRL's `ppo` writes it: torch, autograd, Gymnasium's own vector.

In: settings and a seed.  Out: the numbers that the tests of the batch hold the package's kernels against.

The vector resets in the same step, as Gymnasium 0.29's did. Random numbers are drawn as `TrialBatch` says.
"""

from dataclasses import dataclass

import gymnasium
import numpy as np
import plain_ppo
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics
from torch.distributions import Categorical

from tipl.config.presets import CollectConfig
from tipl.rl.policies import initial_weights


@dataclass
class Trial:
    """A trial after some iterations: what the last one left, [E, S, ...], and all episodes and snapshots."""

    theta: np.ndarray
    obs: np.ndarray
    actions: np.ndarray
    log_probs: np.ndarray
    rewards: np.ndarray
    dones: np.ndarray
    snapshots: list[np.ndarray]
    episodes: list[tuple[int, float, int]]


def run_trial(config: CollectConfig, seed: int, environment_seeds: list[int], iterations: int) -> Trial:
    """At least 1 iteration."""
    ppo = config.ppo
    shape = ppo.num_steps, ppo.num_envs
    envs = SyncVectorEnv(
        [lambda: RecordEpisodeStatistics(gymnasium.make(config.env_id)) for _ in environment_seeds],
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    assert obs_space.shape is not None and isinstance(action_space, gymnasium.spaces.Discrete)
    sizes = obs_space.shape[0], config.hidden_sizes, int(action_space.n)
    theta = np.concatenate(initial_weights(*sizes, np.random.default_rng([seed, 0]), discrete=True))
    agent = plain_ppo.Agent(*sizes, theta, discrete=True, activation=config.activation)
    optimizer = plain_ppo.make_optimizer(agent, ppo)
    global_step = 0
    episodes: list[tuple[int, float, int]] = []
    snapshots: list[np.ndarray] = []
    next_obs = torch.tensor(envs.reset(seed=list(environment_seeds))[0])
    next_done = torch.zeros(ppo.num_envs)
    for iteration in range(1, iterations + 1):
        rng = np.random.default_rng([seed, 1, iteration])
        gumbel = torch.tensor(rng.gumbel(size=(ppo.num_envs, ppo.num_steps, sizes[2])).astype(np.float32))
        obs = torch.zeros((*shape, sizes[0]))
        actions, log_probs, rewards, dones, values = (torch.zeros(shape) for _ in range(5))
        for step in range(ppo.num_steps):
            global_step += ppo.num_envs
            obs[step], dones[step] = next_obs, next_done
            with torch.no_grad():
                logits = agent.actor(next_obs)
                action = (logits + gumbel[:, step]).argmax(1)
                log_probs[step] = Categorical(logits=logits).log_prob(action)
                values[step] = agent.critic(next_obs).flatten()
            actions[step] = action
            found, reward, terminated, truncated, info = envs.step(action.numpy())
            next_obs, rewards[step] = torch.tensor(found), torch.tensor(reward)
            next_done = torch.tensor(np.logical_or(terminated, truncated), dtype=torch.float32)
            for e in np.flatnonzero(info.get("_final_info", [])):
                ended = info["final_info"]["episode"]
                episodes.append((global_step, float(ended["r"][e]), int(ended["l"][e])))
        with torch.no_grad():
            next_value = agent.critic(next_obs).flatten()
        advantages = torch.zeros(shape)
        last = torch.zeros(ppo.num_envs)
        for t in reversed(range(ppo.num_steps)):
            nonterminal = 1 - (next_done if t == ppo.num_steps - 1 else dones[t + 1])
            following = next_value if t == ppo.num_steps - 1 else values[t + 1]
            delta = rewards[t] + ppo.gamma * following * nonterminal - values[t]
            advantages[t] = last = delta + ppo.gamma * ppo.gae_lambda * nonterminal * last
        # Samples stand one copy after another; CleanRL has them one step after another, and shuffles them.
        rollout = {
            name: tensor.transpose(0, 1).flatten(0, 1).numpy()
            for name, tensor in (
                ("obs", obs),
                ("actions", actions[..., None]),
                ("log_probs", log_probs),
                ("advantages", advantages),
                ("returns", advantages + values),
                ("values", values),
            )
        }
        order = rng.permuted(np.tile(np.arange(ppo.num_envs * ppo.num_steps), (ppo.update_epochs, 1)), axis=1)
        fraction = 1 - (iteration - 1) / config.num_iterations if ppo.anneal_lr else 1.0
        log = plain_ppo.update(agent, optimizer, ppo.learning_rate * fraction, rollout, order, ppo)
        snapshots += log.snapshots[config.snapshot_every_epochs - 1 :: config.snapshot_every_epochs]
    left = [tensor.transpose(0, 1).numpy() for tensor in (obs, actions, log_probs, rewards, dones)]
    return Trial(agent.theta(), left[0], left[1], left[2], left[3], left[4], snapshots, episodes)
