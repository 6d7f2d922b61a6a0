"""A stack of PPO trials that go through their iterations together.

In: vector environment, seeds, config.  Out: an iteration at a time: snapshots, normalizers, finished episodes.

Every trial is its own CleanRL run with one environment: the wrappers' order (clip the action; normalize and clip the
observation; normalize and clip the reward), reset in the same step, GAE, ten epochs. What a trial draws depends on its
seed and the iteration's number alone, so it is the same in any stack, and a run goes on from `state` exactly.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tipl.envs import VectorEnv, make_env
from tipl.policy import (
    FASTMATH,
    OBS_CLIP,
    VAR_EPSILON,
    forward_batch,
    forward_one,
    initial_weights,
    kernel,
    layer_sizes,
    policy_spec,
)
from tipl.ppo import advantages_and_returns, gaussian_log_prob, kernel_settings, update
from tipl.presets import CollectConfig

_REWARD_CLIP = 10.0  # in CleanRL's TransformReward
_FIRST_COUNT = 1e-4  # the weight of Gymnasium's initial moments (mean 0, variance 1)
_INIT, _ITERATION = 0, 1  # random streams of a trial
# What `state` saves of each trial, besides the replay of its environment.
_SAVED = (
    "theta", "adam_m", "adam_v", "obs_mean", "obs_var", "obs_count", "return_moments", "discounted", "next_obs",
    "next_done", "episode_return", "episode_length", "resets",
)  # fmt: skip


@dataclass(frozen=True)
class Iteration:
    """What one iteration of a stack of N trials leaves behind."""

    number: int
    """Counts from 1."""
    learning_rate: float
    snapshots: np.ndarray
    """[N, n, P] float32, in order of epochs."""
    episodes: list[np.ndarray]
    """For each trial [E, 3] float64: env step at which the episode ended, its raw return, its length."""


class Stack:
    """N trials and all that their next iteration depends on. Arrays begin with the trial axis."""

    def __init__(self, config: CollectConfig, seeds: Sequence[int], env: VectorEnv | None = None) -> None:
        self.config = config
        self.seeds = list(seeds)
        self.env = make_env(config.env_id, self.seeds, config.backend) if env is None else env
        trials, obs_dim, action_dim = len(self.seeds), self.env.obs_dim, self.env.action_dim
        steps = config.ppo.num_steps
        self.spec = policy_spec(obs_dim, config.hidden_sizes, action_dim)
        self.policy_sizes = layer_sizes(obs_dim, config.hidden_sizes, action_dim)
        self.critic_sizes = layer_sizes(obs_dim, config.hidden_sizes, 1)

        self.iteration = 0
        self.theta = np.stack([self._initial_theta(seed) for seed in self.seeds])
        self.adam_m, self.adam_v = np.zeros_like(self.theta), np.zeros_like(self.theta)
        self.obs_mean, self.obs_var = np.zeros((trials, obs_dim)), np.ones((trials, obs_dim))
        self.obs_count = np.full(trials, _FIRST_COUNT)
        self.return_moments = np.tile([0.0, 1.0, _FIRST_COUNT], (trials, 1))  # mean, variance, count
        self.discounted = np.zeros(trials)  # the discounted return that scales rewards
        self.next_obs = np.zeros((trials, obs_dim), np.float32)
        self.next_done = np.zeros(trials, np.float32)
        self.episode_return, self.episode_length = np.zeros(trials), np.zeros(trials, np.int64)
        self.resets = np.zeros(trials, np.int64)
        self.actions_since_reset = [np.empty((0, action_dim), np.float32) for _ in self.seeds]

        self.obs = np.empty((trials, steps, obs_dim), np.float32)
        self.actions = np.empty((trials, steps, action_dim), np.float32)
        self.log_probs, self.rewards, self.dones = (np.empty((trials, steps), np.float32) for _ in range(3))

    @property
    def policies(self) -> np.ndarray:
        """The policies' weights as they are now, [N, P]; a view."""
        return self.theta[:, : self.spec.size]

    def iterate(self) -> Iteration:
        """Roll out 2,048 steps of every trial, then update every trial."""
        config, ppo = self.config, self.config.ppo
        assert self.iteration < config.num_iterations, "the trials are at their end"
        self.iteration += 1
        fraction = 1 - (self.iteration - 1) / config.num_iterations if ppo.anneal_lr else 1.0
        rngs = [np.random.default_rng([seed, _ITERATION, self.iteration]) for seed in self.seeds]
        shape = (ppo.num_steps, self.env.action_dim)
        noise = np.stack([rng.standard_normal(shape, np.float32) for rng in rngs])
        episodes = self._rollout(noise)
        snapshots = np.empty((len(self.seeds), config.snapshots_per_iteration, self.spec.size), np.float32)
        order = np.tile(np.arange(ppo.num_steps), (ppo.update_epochs, 1))
        for trial, rng in enumerate(rngs):
            self._update(trial, rng.permuted(order, axis=1), ppo.learning_rate * fraction, snapshots[trial])
        return Iteration(self.iteration, ppo.learning_rate * fraction, snapshots, episodes)

    def state(self, trial: int) -> dict[str, np.ndarray]:
        """All that a trial's future depends on, as arrays, to be given to `restore`."""
        saved = {name: np.array(getattr(self, name)[trial]) for name in _SAVED}
        return {**saved, "actions_since_reset": self.actions_since_reset[trial], "iteration": np.array(self.iteration)}

    def restore(self, states: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Put a fresh stack where `state` left its trials; all of them have done the same number of iterations."""
        assert len(states) == len(self.seeds) and self.iteration == 0
        assert len({int(state["iteration"]) for state in states}) == 1
        self.iteration = int(states[0]["iteration"])
        for trial, state in enumerate(states):
            for name in _SAVED:
                getattr(self, name)[trial] = state[name]
        self.actions_since_reset = [np.array(state["actions_since_reset"]) for state in states]
        self.env.replay(self.resets.tolist(), self.actions_since_reset)

    def _initial_theta(self, seed: int) -> np.ndarray:
        rng = np.random.default_rng([seed, _INIT])
        return np.concatenate(initial_weights(self.env.obs_dim, self.config.hidden_sizes, self.env.action_dim, rng))

    def _rollout(self, noise: np.ndarray) -> list[np.ndarray]:
        """Fill the rollout buffers; the episodes that ended."""
        if not self.resets.any():
            self._reset(np.arange(len(self.seeds)))
        gamma = self.config.ppo.gamma
        first_step = (self.iteration - 1) * self.config.ppo.num_steps
        episodes: list[list[tuple[float, float, float]]] = [[] for _ in self.seeds]
        begun = np.zeros(len(self.seeds), np.int64)  # the step of this rollout at which the current episode began
        env_actions = np.empty((len(self.seeds), self.env.action_dim))
        for step in range(self.config.ppo.num_steps):
            act(self.theta, self.policy_sizes, self.next_obs, self.next_done, noise, step, self.obs, self.dones,
                self.actions, self.log_probs, env_actions)  # fmt: skip
            obs, reward, terminated, truncated = self.env.step(env_actions)
            normalize_obs(obs, self._all, self.obs_mean, self.obs_var, self.obs_count, self.next_obs)
            normalize_reward(reward, terminated, gamma, self.discounted, self.return_moments, self.rewards[:, step])
            self.episode_return += reward
            self.episode_length += 1
            done = terminated | truncated
            self.next_done[:] = done
            if done.any():
                ids = np.flatnonzero(done)
                for i in ids:
                    episodes[i].append((first_step + step + 1, self.episode_return[i], self.episode_length[i]))
                begun[ids] = step + 1
                self._reset(ids)
        for trial, start in enumerate(begun):
            before = self.actions_since_reset[trial][: 0 if start else None]
            self.actions_since_reset[trial] = np.concatenate([before, self.actions[trial, start:]])
        return [np.array(rows, np.float64).reshape(-1, 3) for rows in episodes]

    @property
    def _all(self) -> np.ndarray:
        return np.arange(len(self.seeds))

    def _reset(self, ids: np.ndarray) -> None:
        self.resets[ids] += 1
        self.episode_return[ids] = 0
        self.episode_length[ids] = 0
        normalize_obs(self.env.reset(ids), ids, self.obs_mean, self.obs_var, self.obs_count, self.next_obs)

    def _update(self, trial: int, order: np.ndarray, learning_rate: float, snapshots: np.ndarray) -> None:
        ppo = self.config.ppo
        theta = self.theta[trial]
        values = critic_values(theta, self.spec.size, self.critic_sizes, self.obs[trial], self.next_obs[trial])
        advantages, returns = np.empty((2, ppo.num_steps), np.float32)
        advantages_and_returns(self.rewards[trial], values[:-1], self.dones[trial], values[-1], self.next_done[trial],
                               ppo.gamma, ppo.gae_lambda, advantages, returns)  # fmt: skip
        steps_before = (self.iteration - 1) * ppo.update_epochs * ppo.num_minibatches
        update(theta, self.adam_m[trial], self.adam_v[trial], steps_before, self.policy_sizes, self.critic_sizes,
               self.obs[trial], self.actions[trial], self.log_probs[trial], advantages, returns, values[:-1], order,
               learning_rate, kernel_settings(ppo), self.config.snapshot_every_epochs, snapshots)  # fmt: skip


@kernel(fastmath=FASTMATH)
def act(theta, sizes, next_obs, next_done, noise, step, obs, dones, actions, log_probs, env_actions):
    """Sample every trial's action, a = μ(s) + σ ε, and store the step.

    Args:
        theta: [N, ≥ P]; sizes: [layers + 1]; next_obs: [N, O]; next_done: [N]; noise: [N, S, A] standard normal.
        obs [N, S, O], dones [N, S], actions [N, S, A], log_probs [N, S]: written at `step`.
        env_actions: [N, A] float64, overwritten.
    """
    trials, action_dim = env_actions.shape
    scratch = np.empty((2, sizes.max()), np.float32)
    mean = np.empty(action_dim, np.float32)
    num_weights = action_dim
    for layer in range(len(sizes) - 1):
        num_weights += sizes[layer + 1] * (sizes[layer] + 1)
    for n in range(trials):
        forward_one(theta[n], 0, sizes, next_obs[n], scratch, mean)
        log_std = theta[n, num_weights - action_dim : num_weights]
        for k in range(action_dim):
            action = mean[k] + np.exp(log_std[k]) * noise[n, step, k]
            actions[n, step, k] = action
            env_actions[n, k] = action
        obs[n, step] = next_obs[n]
        dones[n, step] = next_done[n]
        log_probs[n, step] = gaussian_log_prob(actions[n, step], mean, log_std)


@kernel()
def normalize_obs(raw, ids, mean, var, count, out):
    """Take raw observations [n, O] of trials `ids` into their running moments, then normalize and clip them.

    Gymnasium's RunningMeanStd with batches of one:
        δ = x − μ,  μ += δ/(c+1),  v = (v c + δ² c/(c+1))/(c+1),  c += 1,  out = clip((x − μ)/√(v + 1e-8), ±10)
    """
    for row in range(len(ids)):
        n = ids[row]
        total = count[n] + 1
        for k in range(raw.shape[1]):
            delta = raw[row, k] - mean[n, k]
            mean[n, k] += delta / total
            var[n, k] = (var[n, k] * count[n] + delta * delta * count[n] / total) / total
            z = (raw[row, k] - mean[n, k]) / math.sqrt(var[n, k] + VAR_EPSILON)
            out[n, k] = min(max(z, -OBS_CLIP), OBS_CLIP)
        count[n] = total


@kernel()
def normalize_reward(reward, terminated, gamma, discounted, moments, out):
    """Divide rewards [N] by the running deviation of the discounted return, and clip, as Gymnasium 0.29 has it:

    R = R γ (1 − terminated) + r, which forgets at the terminal step itself and does not at a truncation.
    """
    for n in range(len(reward)):
        discounted[n] = discounted[n] * gamma * (1 - terminated[n]) + reward[n]
        mean, var, count = moments[n]
        total = count + 1
        delta = discounted[n] - mean
        var = (var * count + delta * delta * count / total) / total
        moments[n, 0] = mean + delta / total
        moments[n, 1] = var
        moments[n, 2] = total
        out[n] = min(max(reward[n] / math.sqrt(var + VAR_EPSILON), -_REWARD_CLIP), _REWARD_CLIP)


@kernel()
def critic_values(theta, offset, sizes, obs, last_obs):
    """The critic's value of obs [S, O] and of last_obs [O], [S + 1].

    CleanRL asks the critic at every step; its weights rest during a rollout, so one pass at the end is the same.
    """
    steps = len(obs)
    block = 256  # rows at once, to stay in the cache
    acts = np.empty(block * sizes[1:].sum(), np.float32)
    values = np.empty(steps + 1, np.float32)
    for start in range(0, steps, block):
        stop = min(start + block, steps)
        values[start:stop] = forward_batch(theta, offset, sizes, obs[start:stop], acts)[:, 0]
    values[steps] = forward_batch(theta, offset, sizes, last_obs.reshape(1, -1), acts)[0, 0]
    return values
