"""A batch of PPO trials that go through their iterations together.

In: vector environment, seeds, config.  Out: an iteration at a time: snapshots, normalizers, finished episodes.

Every trial is its own CleanRL run with one environment or several copies of it: the wrappers' order (clip the action;
normalize and clip the observation; normalize and clip the reward, where `PPOConfig.normalize` says so), reset in the
same step, GAE, the epochs. What a trial draws depends on its seed and the iteration's number alone, so it is the same
in any batch, and a run goes on from `state` exactly.

Shapes: N trials, E copies of the environment in each, C = N·E copies in all (those of a trial side by side), S steps of
an iteration, O observation, A action (1 if discrete), F outputs of the policy's network, P weights.
"""

import functools
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tipl.config.env_spec import env_id_in
from tipl.config.presets import CollectConfig, DiscretePPOConfig
from tipl.errors import TiplError
from tipl.rl.envs import make_env
from tipl.rl.kernels import activation_code
from tipl.rl.policies import action_noise, initial_weights, layer_sizes, policy_spec
from tipl.rl.ppo import (
    Learner,
    Samples,
    UpdateSettings,
    advantages_and_returns,
    update,
)
from tipl.rl.rollout import act, critic_values, normalize_obs, normalize_reward
from tipl.rl.vector_env import VectorEnv
from tipl.store.policy import OBS_CLIP, VAR_EPSILON

_FIRST_COUNT = 1e-4  # the weight of Gymnasium's initial moments (mean 0, variance 1)
_INIT, _ITERATION, _COPIES = 0, 1, 2  # random streams of a trial
# What `state` saves of each trial and of each copy of its environment, besides the replay of the environment.
_SAVED = "theta", "adam_m", "adam_v", "obs_mean", "obs_var", "obs_count", "return_moments"
_SAVED_OF_COPIES = "discounted", "next_obs", "next_done", "episode_return", "episode_length", "resets"


@dataclass(frozen=True)
class Iteration:
    """What one iteration of a batch of N trials leaves behind."""

    number: int
    """Counts from 1."""
    learning_rate: float
    snapshots: np.ndarray
    """[N, n, P] float32, in order of epochs; [N, n, snapshot_size] of a batch that was told to keep more."""
    episodes: list[np.ndarray]
    """For each trial [E, 3] float64: env step at which the episode ended, its raw return, its length."""


@functools.cache
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("numpy", "numba", "scipy")}


class NotFinite(TiplError):
    """An environment gave what is no number; `trials` says what, by the trial's place in the batch."""

    def __init__(self, trials: dict[int, str]) -> None:
        super().__init__(f"{'; '.join(trials.values())}; mend the environment. What was committed before stays.")
        self.trials = trials


class Abandoned(Exception):
    """An iteration was given up in its middle; its batch is of no more use."""


class TrialBatch:
    """N trials and all that their next iteration depends on.

    Arrays begin with the trial axis [N], or with that of the copies [C], which is the same where a trial has one.
    """

    def __init__(
        self, config: CollectConfig, seeds: Sequence[int], env: VectorEnv | None = None, threads: int = 1
    ) -> None:
        """
        Args:
            env: the copies of all trials; made from the config if not given.
            threads: that step them, where the backend has threads.

        Raises:
            TiplError: the environment cannot be made, or its actions are discrete and the settings are not for them.
        """
        ppo = config.ppo
        self.config = config
        self.seeds = list(seeds)
        copy_seeds = [each for seed in self.seeds for each in environment_seeds(seed, ppo.num_envs)]
        self.env = make_env(env_id_in(config), copy_seeds, config.backend, threads) if env is None else env
        if self.env.discrete and not isinstance(ppo, DiscretePPOConfig):
            raise TiplError(
                f"{config.env_id} has discrete actions and these settings are for continuous ones; give a "
                "DiscreteCollectConfig, or DiscretePPOConfig as ppo."
            )
        trials, copies = len(self.seeds), len(copy_seeds)
        obs_dim, action_dim, outputs = self.env.obs_dim, self.env.action_dim, self.env.policy_outputs
        self.spec = policy_spec(obs_dim, config.hidden_sizes, outputs, discrete=self.env.discrete)
        self.policy_sizes = layer_sizes(obs_dim, config.hidden_sizes, outputs)
        self.critic_sizes = layer_sizes(obs_dim, config.hidden_sizes, 1)
        self.activation = activation_code(config.activation)

        self.abandon: Callable[[], bool] = lambda: False
        """Asked within an iteration, which can take long; once true, `iterate` raises Abandoned."""
        self.snapshot_size = self.spec.size
        """P, or P and the critic's weights, if these are to be in snapshots too."""
        self.iteration = 0
        self.theta = np.stack([self._initial_theta(seed) for seed in self.seeds])
        self.adam_m, self.adam_v = np.zeros_like(self.theta), np.zeros_like(self.theta)
        if ppo.normalize:
            self.obs_mean, self.obs_var = np.zeros((trials, obs_dim)), np.ones((trials, obs_dim))
            self.obs_count = np.full(trials, _FIRST_COUNT)
        else:  # (obs − mean) / √(var + VAR_EPSILON) is obs, to the bit
            self.obs_mean, self.obs_var = np.zeros((trials, obs_dim)), np.full((trials, obs_dim), 1 - VAR_EPSILON)
            self.obs_count = np.zeros(trials)
        self.return_moments = np.tile([0.0, 1.0, _FIRST_COUNT], (trials, 1))  # mean, variance, count
        self.discounted = np.zeros(copies)  # the discounted return that scales rewards
        self.next_obs = np.zeros((copies, obs_dim), np.float32)
        self.next_done = np.zeros(copies, np.float32)
        self.episode_return, self.episode_length = np.zeros(copies), np.zeros(copies, np.int64)
        self.resets = np.zeros(copies, np.int64)
        # Of each copy the actions of the episodes that it takes to bring it back: the last one, or all of them.
        self.actions_since_reset = [np.empty((0, action_dim), np.float32) for _ in range(copies)]
        self.earlier_lengths: list[list[int]] = [[] for _ in range(copies)]
        self.random: list[Any] = [None] * copies  # what the environment drew from when the last episode began

        self.obs = np.empty((copies, ppo.num_steps, obs_dim), np.float32)
        self.actions = np.empty((copies, ppo.num_steps, action_dim), np.float32)
        self.log_probs, self.rewards, self.dones, self.advantages = (
            np.empty((copies, ppo.num_steps), np.float32) for _ in range(4)
        )
        self._all = np.arange(copies)

    @property
    def policies(self) -> np.ndarray:
        """The policies' weights as they are now, [N, P]; a view."""
        return self.theta[:, : self.spec.size]

    @property
    def versions(self) -> dict[str, str]:
        """Of the libraries that compute here."""
        return _versions()

    def iterate(self) -> Iteration:
        """Roll out an iteration's steps of every trial, then update every trial."""
        config, ppo = self.config, self.config.ppo
        assert self.iteration < config.num_iterations, "the trials are at their end"
        self.iteration += 1
        fraction = 1 - (self.iteration - 1) / config.num_iterations if ppo.anneal_lr else 1.0
        rngs = [np.random.default_rng([seed, _ITERATION, self.iteration]) for seed in self.seeds]
        shape = (ppo.num_envs, ppo.num_steps, self.env.policy_outputs)
        noise = np.concatenate([action_noise(rng, shape, discrete=self.env.discrete) for rng in rngs])
        episodes = self._rollout(noise)
        snapshots = np.empty((len(self.seeds), config.snapshots_per_iteration, self.snapshot_size), np.float32)
        order = np.tile(np.arange(ppo.batch_size), (ppo.update_epochs, 1))
        self._update([rng.permuted(order, axis=1) for rng in rngs], ppo.learning_rate * fraction, snapshots)
        return Iteration(self.iteration, ppo.learning_rate * fraction, snapshots, episodes)

    def state(self, trial: int) -> dict[str, np.ndarray]:
        """All that a trial's future depends on, as arrays, to be given to `restore`.

        Arrays of the copies are [E, ...]; their actions since the last reset stand one copy after another, of which
        `episode_length` says the lengths, those of earlier episodes that are kept `earlier_lengths`, of which each copy
        has `earlier_episodes`. `random` is JSON.
        """
        copies = self.copies(trial)
        saved = {name: np.array(getattr(self, name)[trial]) for name in _SAVED}
        saved |= {name: np.array(getattr(self, name)[copies]) for name in _SAVED_OF_COPIES}
        earlier = self.earlier_lengths[copies]
        return {
            **saved,
            "actions_since_reset": np.concatenate(self.actions_since_reset[copies]),
            "earlier_episodes": np.array([len(lengths) for lengths in earlier], np.int64),
            "earlier_lengths": np.array([length for lengths in earlier for length in lengths], np.int64),
            "random": np.frombuffer(json.dumps(self.random[copies]).encode(), np.uint8),
            "iteration": np.array(self.iteration),
        }

    def restore(self, states: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Put a fresh batch where `state` left its trials; all of them have done the same number of iterations.

        Raises:
            TiplError: the environment does not come back to where it was.
        """
        assert len(states) == len(self.seeds) and self.iteration == 0
        assert len({int(state["iteration"]) for state in states}) == 1
        self.iteration = int(states[0]["iteration"])
        for trial, state in enumerate(states):
            copies = self.copies(trial)
            for name in _SAVED:
                getattr(self, name)[trial] = state[name]
            for name in _SAVED_OF_COPIES:
                getattr(self, name)[copies] = state[name]
            counts = np.cumsum(state["earlier_episodes"])[:-1]
            earlier = np.split(state["earlier_lengths"], counts)
            self.earlier_lengths[copies] = [list(map(int, each)) for each in earlier]
            lengths = [sum(each) for each in self.earlier_lengths[copies]] + self.episode_length[copies]
            actions = np.split(np.array(state["actions_since_reset"]), np.cumsum(lengths)[:-1])
            self.actions_since_reset[copies] = actions
            self.random[copies] = json.loads(np.asarray(state["random"], np.uint8).tobytes())
        self._bring_environments_back()

    def _bring_environments_back(self) -> None:
        episodes = [
            np.split(actions, np.cumsum(lengths)) if resets else []
            for actions, lengths, resets in zip(
                self.actions_since_reset, self.earlier_lengths, self.resets.tolist(), strict=True
            )
        ]
        last = self.env.replay(self.resets.tolist(), episodes, self.random)
        begun = np.flatnonzero(self.resets)
        seen = last[begun]
        if self.config.ppo.normalize:
            trial = begun // self.config.ppo.num_envs
            deviation = np.sqrt(self.obs_var[trial] + VAR_EPSILON)
            seen = np.clip((seen - self.obs_mean[trial]) / deviation, -OBS_CLIP, OBS_CLIP)
        same = np.isclose(seen, self.next_obs[begun], rtol=1e-5, atol=1e-6).all(axis=1)
        same &= np.isclose(self.env.earned[begun], self.episode_return[begun], rtol=1e-5, atol=1e-5)
        if not same.all():
            seed = self.seeds[begun[~same][0] // self.config.ppo.num_envs]
            raise TiplError(
                f"Trial {seed} cannot go on to the same bits: its actions do not bring {self.config.env_id} back to "
                "where it was (it draws random numbers of its own, or its library is another version). Remove the "
                "trial's folder to begin it anew."
            )

    def copies(self, trial: int) -> slice:
        """The places of a trial's copies of the environment."""
        count = self.config.ppo.num_envs
        return slice(trial * count, (trial + 1) * count)

    def _check_abandoned(self) -> None:
        if self.abandon():
            raise Abandoned

    def _initial_theta(self, seed: int) -> np.ndarray:
        rng = np.random.default_rng([seed, _INIT])
        networks = self.env.obs_dim, self.config.hidden_sizes, self.env.policy_outputs
        return np.concatenate(initial_weights(*networks, rng, discrete=self.env.discrete))

    def _rollout(self, noise: np.ndarray) -> list[np.ndarray]:
        """Fill the rollout buffers, given the noise of the actions [C, S, F]; the episodes that ended."""
        if not self.resets.any():
            self._reset(self._all)
        ppo, trials = self.config.ppo, len(self.seeds)
        first_step = (self.iteration - 1) * ppo.num_steps
        episodes: list[list[tuple[float, float, float]]] = [[] for _ in range(trials)]
        begun = np.zeros(len(self._all), np.int64)  # the step of this rollout at which the current episode began
        env_actions = np.empty((len(self._all), self.env.action_dim))
        for step in range(ppo.num_steps):
            self._check_abandoned()
            self._act(noise, step, env_actions)
            obs, reward, terminated, truncated = self.env.step(env_actions)
            self._observe(obs, self._all)
            if ppo.normalize:
                normalize_reward(reward, terminated, ppo.gamma, self.discounted, self.return_moments,
                                 self.rewards[:, step])  # fmt: skip
            else:
                self.rewards[:, step] = reward
            self.episode_return += reward
            self.episode_length += 1
            done = terminated | truncated
            self.next_done[:] = done
            if done.any():
                ids = np.flatnonzero(done)
                env_step = (first_step + step + 1) * ppo.num_envs
                for i in ids:
                    row = env_step, self.episode_return[i], self.episode_length[i]
                    episodes[i // ppo.num_envs].append(row)
                begun[ids] = step + 1
                self._reset(ids)
        self._require_finite()
        for copy, start in enumerate(begun):
            from_step = 0 if self.env.draws_in_steps else start
            before = self.actions_since_reset[copy][: 0 if from_step else None]
            self.actions_since_reset[copy] = np.concatenate([before, self.actions[copy, from_step:]])
        return [np.array(rows, np.float64).reshape(-1, 3) for rows in episodes]

    def _require_finite(self) -> None:
        """Stop where the environment gave what is no number: nothing that is learned from it would be.

        Raises:
            NotFinite: it did, in this rollout.
        """
        bad = np.zeros(len(self.seeds), np.bool_)
        for array in (self.obs, self.next_obs, self.rewards, self.obs_mean, self.obs_var, self.return_moments):
            bad |= ~np.isfinite(array.reshape(len(self.seeds), -1)).all(axis=1)
        if bad.any():
            raise NotFinite({trial: self._first_not_finite(trial) for trial in np.flatnonzero(bad).tolist()})

    def _first_not_finite(self, trial: int) -> str:
        """What was no number first in a trial's rollout, and at which environment step."""
        ppo, mine = self.config.ppo, self.copies(trial)
        seen = np.concatenate([self.obs[mine], self.next_obs[mine, None]], axis=1)  # before each step, and at the end
        bad_obs = np.logical_not(np.isfinite(seen).all(axis=(0, 2)))
        bad_reward = np.r_[False, ~np.isfinite(self.rewards[mine]).all(axis=0)]  # with the observation that follows it
        bad = bad_obs | bad_reward
        at = int(bad.argmax()) if bad.any() else ppo.num_steps
        what = "a reward" if bad_reward[at] and not bad_obs[at] else "an observation"
        env_step = (self.iteration - 1) * ppo.batch_size + at * ppo.num_envs
        return (
            f"{self.config.env_id} gave {what} that is not finite to trial {self.seeds[trial]} at environment step "
            f"{env_step:,}, in iteration {self.iteration}"
        )

    def _reset(self, ids: np.ndarray) -> None:
        if self.env.draws_in_steps:
            for i in ids[self.resets[ids] > 0]:
                self.earlier_lengths[i].append(int(self.episode_length[i]))
        for i, state in zip(ids, self.env.random_state(ids), strict=True):
            self.random[i] = state
        self.resets[ids] += 1
        self.episode_return[ids] = 0
        self.episode_length[ids] = 0
        self._observe(self.env.reset(ids), ids)

    def _observe(self, obs: np.ndarray, ids: np.ndarray) -> None:
        """Make raw observations [n, O] of the copies `ids` what their policies see next."""
        if self.config.ppo.normalize:
            normalize_obs(obs, ids, self.obs_mean, self.obs_var, self.obs_count, self.next_obs)
        else:
            self.next_obs[ids] = obs

    def _act(self, noise: np.ndarray, step: int, env_actions: np.ndarray) -> None:
        """Every copy's action, given the noise [C, S, F], to `env_actions` [C, A]; the step goes to the buffers."""
        act(self.theta, self.spec.size, self.policy_sizes, self.next_obs, self.next_done, noise, step, self.obs,
            self.dones, self.actions, self.log_probs, env_actions, self.activation)  # fmt: skip

    def _update(self, orders: Sequence[np.ndarray], learning_rate: float, snapshots: np.ndarray) -> None:
        """The update of every trial on its rollout.

        Args:
            orders: for each trial the samples' order in every epoch, [epochs, E·S].
            snapshots: [N, n, P], overwritten.
        """
        for trial, order in enumerate(orders):
            self._check_abandoned()
            self._update_trial(trial, order, learning_rate, snapshots[trial])

    def _estimate(self, copy: int, values: np.ndarray, returns: np.ndarray) -> None:
        """From a copy's values [S + 1], of its rollout and of what it sees next, its advantages and returns [S]."""
        ppo = self.config.ppo
        advantages_and_returns(self.rewards[copy], values[:-1], self.dones[copy], values[-1], self.next_done[copy],
                               ppo.gamma, ppo.gae_lambda, self.advantages[copy], returns)  # fmt: skip

    def _update_trial(self, trial: int, order: np.ndarray, learning_rate: float, snapshots: np.ndarray) -> None:
        self._learn(trial, self._seen(trial), order, learning_rate, snapshots)

    def _seen(self, trial: int) -> Samples:
        """A trial's rollout, the steps of one copy after another, judged by its critic; views where there can be."""
        ppo, mine, theta = self.config.ppo, self.copies(trial), self.theta[trial]
        values, returns = np.empty((2, ppo.num_envs, ppo.num_steps), np.float32)
        for row, copy in enumerate(self._all[mine].tolist()):
            seen = critic_values(theta, self.spec.size, self.critic_sizes, self.obs[copy], self.next_obs[copy],
                                 self.activation)  # fmt: skip
            values[row] = seen[:-1]
            self._estimate(copy, seen, returns[row])
        rollout = self.obs[mine], self.actions[mine], self.log_probs[mine], self.advantages[mine], returns, values
        return Samples(*(array.reshape(ppo.batch_size, *array.shape[2:]) for array in rollout))

    def _learn(
        self, trial: int, samples: Samples, order: np.ndarray, learning_rate: float, snapshots: np.ndarray,
        *bounds: np.ndarray,
    ) -> None:  # fmt: skip
        """The update of a trial on samples; what else `update` takes may follow."""
        ppo = self.config.ppo
        settings = UpdateSettings.of(ppo, self.config.snapshot_every_epochs, self.activation)
        update(self._learner(trial), self._steps_before, samples, order, learning_rate, settings, snapshots, *bounds)

    def _learner(self, trial: int) -> Learner:
        moments = self.adam_m[trial], self.adam_v[trial]
        return Learner(self.theta[trial], *moments, self.policy_sizes, self.critic_sizes)

    @property
    def _steps_before(self) -> int:
        """Optimizer steps of a trial before this iteration."""
        return (self.iteration - 1) * self.config.ppo.update_epochs * self.config.ppo.num_minibatches


def environment_seeds(seed: int, num_envs: int) -> list[int]:
    """The seeds of a trial's copies of its environment, [E]: its own and, so that no two trials share one, drawn ones.

    CleanRL counts up from its seed, where the next trial begins.
    """
    drawn = np.random.SeedSequence([seed, _COPIES]).generate_state(num_envs - 1) >> 1  # of the 31 bits engines take
    return [seed, *drawn.tolist()]
