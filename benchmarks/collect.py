"""How fast `tipl collect` is: against its environment alone, against a plain PPO loop, and where its time goes.

In: an experiment, seconds a part.  Out: a table; JSON.

    python benchmarks/collect.py --experiment inverted-pendulum --out collect.json

As many processes as `collect` would start, all at the same part at the same time, part after part, several rounds. A
ratio is taken within a round, because a machine drifts, and the median over rounds counts. All parts are at the stage
of learning at which a run spends most of its time: first every process warms its stack up (`--iterations`), until the
episodes of InvertedPendulum are long. The parts:

collect      the loop of a process of `collect` with its share of the preset's 50 trials, snapshots written to a store
             in a temporary folder. Commits count as often as `collect` makes them, however short the part is.
environment  EnvPool alone: the very steps and resets of the part before, replayed from the actions that the stack
             took, in environments of the same seeds; through `tipl.rl.envs`, which is faster than EnvPool's own `step`.
reference    one trial in one Gymnasium environment, written as CleanRL's `ppo_continuous_action` is (without its logs),
             begun with the weights and normalizers of a warm trial.
products     the matrix products of the stack's iterations alone, in their shapes, by the same BLAS; and the rate of
             large products, the better one of NumPy and torch.
profile      after the rounds, an iteration with a clock in every part of it.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import wrappers
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numba import njit
from torch import nn
from torch.distributions import Normal

import tipl.collection.collect
import tipl.rl.trial_batch
from tipl.config.env_spec import quiet_making, quiet_mujoco
from tipl.config.experiments import experiment
from tipl.config.presets import CollectConfig
from tipl.rl.envs import chosen_backend, engine_versions, make_env
from tipl.rl.kernels import forward_batch
from tipl.rl.ppo import adam_step, backward_batch, kernel_settings, loss_gradients
from tipl.rl.trial_batch import Iteration, TrialBatch
from tipl.store import TrialWriter, create_store

ITERATIONS = {"inverted-pendulum": 30, "half-cheetah": 3}  # before anything is timed
SECONDS = {"inverted-pendulum": 10.0, "half-cheetah": 35.0}  # three rounds of HalfCheetah fill a chunk of the store
# Shares of the environment-only rate, multiples of the reference, and an iteration's time in units of
# (environment-only time + products at the rate of large ones).
LEAST = {
    "inverted-pendulum": {"of environment": 0.60, "times reference": 26.0},
    "half-cheetah": {"times reference": 3.0},
}
MOST = {"inverted-pendulum": {"writes": 0.05}, "half-cheetah": {"writes": 0.05, "times bound": 2.0}}

CLOCKS = {"rate": "", "rate_cpu": " by CPU"}  # the wall's and the processor's, and what the latter's ratios are called
PARTS = "collect", "environment", "reference", "products"
Taken = list[tuple[np.ndarray, np.ndarray]]  # of each iteration, actions [S, N, A] and which copies were done [S, N]


class Clock:
    """Time since it was made: by the wall, and of all threads of this process."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    @property
    def times(self) -> np.ndarray:
        """[wall, CPU] in seconds."""
        return np.array([time.perf_counter() - self._wall, time.process_time() - self._cpu])


class Timers(dict[str, np.ndarray]):
    """Sums of [wall, CPU] seconds by name, and how often each was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __missing__(self, name: str) -> np.ndarray:
        self[name] = np.zeros(2)
        return self[name]

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            clock = Clock()
            result = function(*args, **kwargs)
            self[name] += clock.times
            self.calls[name] += 1
            return result

        return call


# collect, environment


class Collecting:
    """A process's share of the trials, which goes on and stops as asked."""

    def __init__(self, config: CollectConfig, seeds: Sequence[int], folder: Path) -> None:
        self.stack = TrialBatch(config, seeds)
        self.timers = Timers()
        self._writers: list[TrialWriter] = []
        for seed in seeds:
            writer, _ = tipl.collection.collect._begin_trial(config, folder, seed)
            for name in ("append", "append_episodes", "commit"):
                setattr(writer, name, self.timers.timed(name, getattr(writer, name)))
            self._writers.append(writer)

    def run(self, seconds: float) -> tuple[dict[str, Any], Taken]:
        """Whole iterations until `seconds` have gone; then the writers commit, as they do when `collect` is stopped."""
        taken: Taken = []
        lengths: list[float] = []
        asked_at, stop = -1, False

        def stopped() -> bool:  # asked twice an iteration, and both times the answer is the same
            nonlocal asked_at, stop
            if asked_at != self.stack.iteration:
                asked_at, stop = self.stack.iteration, bool(clock.times[0] > seconds)
            return stop

        def on_iteration(_: object, iteration: Iteration) -> None:
            done = np.concatenate([self.stack.dones[:, 1:], self.stack.next_done[:, None]], axis=1)
            taken.append((self.stack.actions.swapaxes(0, 1).copy(), done.T.astype(np.bool_)))
            lengths.extend(length for rows in iteration.episodes for length in rows[:, 2])

        self.timers.clear()
        self.timers.calls.clear()
        clock = Clock()
        group = [(seed, writer, {}) for seed, writer in zip(self.stack.seeds, self._writers, strict=True)]
        tipl.collection.collect._run_group(self.stack, group, on_iteration, stopped)
        times = clock.times
        commit = self.timers["commit"] / (self.timers.calls["commit"] / len(self._writers))  # of all trials, once
        between = times - self.timers["commit"]
        pause = tipl.collection.collect.COMMIT_SECONDS
        return {
            "steps": sum(done.size for _, done in taken),
            "times": between * (pause + commit[0]) / pause,  # with commits as far apart as in a long run
            "append seconds": self.timers["append"][0] + self.timers["append_episodes"][0],
            "commit share": commit[0] / (pause + commit[0]),
            "iterations": len(taken),
            "episode length": float(np.mean(lengths)) if lengths else None,
        }, taken


class Environment:
    """The environment of a stack without the stack."""

    def __init__(self, stack: TrialBatch) -> None:
        self._env = make_env(stack.config.env_id, stack.seeds, stack.config.backend)
        self._env.replay(stack.resets.tolist(), [[actions] for actions in stack.actions_since_reset])

    def run(self, taken: Taken) -> dict[str, Any]:
        expected = np.concatenate([done for _, done in taken])
        found = np.empty_like(expected)
        clock = Clock()
        for step, actions in enumerate(chain.from_iterable(actions for actions, _ in taken)):
            _, _, terminated, truncated = self._env.step(actions)
            done = np.logical_or(terminated, truncated, out=found[step])
            if done.any():
                self._env.reset(np.flatnonzero(done))
        times = clock.times
        assert (found == expected).all(), "the environments went another way than the stack's"
        return {"steps": found.size, "times": times}


# reference


class Agent(nn.Module):
    """The actor and the critic of CleanRL's `ppo_continuous_action`, with hidden layers of any width."""

    def __init__(self, obs_dim: int, hidden_sizes: Sequence[int], action_dim: int) -> None:
        super().__init__()
        self.critic = tanh_network([obs_dim, *hidden_sizes, 1])
        self.actor_mean = tanh_network([obs_dim, *hidden_sizes, action_dim])
        self.actor_logstd = nn.Parameter(torch.zeros(1, action_dim))

    def load(self, theta: np.ndarray) -> None:
        """Weights in a stack's order: mean network, log-std, critic."""
        ordered = [*self.actor_mean.parameters(), self.actor_logstd, *self.critic.parameters()]
        nn.utils.vector_to_parameters(torch.tensor(theta), ordered)

    def forward(
        self, obs: torch.Tensor, action: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Action (drawn if not given), its log-probability, the entropy, the value."""
        mean = self.actor_mean(obs)
        law = Normal(mean, torch.exp(self.actor_logstd.expand_as(mean)))
        if action is None:
            action = law.sample()
        return action, law.log_prob(action).sum(1), law.entropy().sum(1), self.critic(obs)


def tanh_network(sizes: Sequence[int]) -> nn.Sequential:
    layers = [layer for fan_in, fan_out in pairwise(sizes) for layer in (nn.Linear(fan_in, fan_out), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def wrapped_env(env_id: str, gamma: float) -> gymnasium.Env:
    """One environment in CleanRL's wrappers, in its order."""
    with quiet_making(), quiet_mujoco():
        env = wrappers.FlattenObservation(gymnasium.make(env_id))
    env = wrappers.RecordEpisodeStatistics(env)
    env = wrappers.ClipAction(env)
    env = wrappers.NormalizeObservation(env)
    env = wrappers.TransformObservation(env, lambda obs: np.clip(obs, -10, 10), env.observation_space)
    env = wrappers.NormalizeReward(env, gamma=gamma)
    return wrappers.TransformReward(env, lambda reward: np.clip(float(reward), -10, 10))


class Reference:
    """One trial of PPO as it is commonly written: a Gymnasium environment, torch modules, autograd, torch's Adam."""

    def __init__(self, stack: TrialBatch) -> None:
        """Begins with the weights and the normalizers of the stack's first trial."""
        torch.set_num_threads(1)
        config, self.ppo = stack.config, stack.config.ppo
        self.iterations, self.iteration = config.num_iterations, stack.iteration
        env = wrapped_env(config.env_id, self.ppo.gamma)
        self._warm(env, stack)
        self.envs = SyncVectorEnv([lambda: env], autoreset_mode=AutoresetMode.SAME_STEP)
        self.agent = Agent(stack.env.obs_dim, config.hidden_sizes, stack.env.action_dim)
        self.agent.load(stack.theta[0])
        self.optimizer = torch.optim.Adam(self.agent.parameters(), lr=self.ppo.learning_rate, eps=self.ppo.adam_eps)
        steps = self.ppo.num_steps
        self.obs = torch.zeros((steps, 1, stack.env.obs_dim))
        self.actions = torch.zeros((steps, 1, stack.env.action_dim))
        self.log_probs, self.rewards, self.dones, self.values = (torch.zeros((steps, 1)) for _ in range(4))
        self.next_obs = torch.Tensor(self.envs.reset(seed=stack.seeds[0])[0])
        self.next_done = torch.zeros(1)

    def run(self, seconds: float) -> dict[str, Any]:
        """Whole iterations until `seconds` have gone."""
        clock = Clock()
        iterations = 0
        while clock.times[0] < seconds:
            self._iterate()
            iterations += 1
        return {"steps": iterations * self.ppo.num_steps, "times": clock.times}

    @staticmethod
    def _warm(env: gymnasium.Env, stack: TrialBatch) -> None:
        mean, var, count = stack.return_moments[0]
        while env is not env.unwrapped:
            if isinstance(env, wrappers.NormalizeObservation):
                moments = stack.obs_mean[0].copy(), stack.obs_var[0].copy(), float(stack.obs_count[0])
                env.obs_rms.mean, env.obs_rms.var, env.obs_rms.count = moments
            elif isinstance(env, wrappers.NormalizeReward):
                env.return_rms.mean, env.return_rms.var, env.return_rms.count = mean, var, count
            assert isinstance(env, gymnasium.Wrapper)
            env = env.env

    def _iterate(self) -> None:
        ppo = self.ppo
        self.iteration += 1
        if ppo.anneal_lr:
            self.optimizer.param_groups[0]["lr"] = ppo.learning_rate * (1 - (self.iteration - 1) / self.iterations)
        for step in range(ppo.num_steps):
            self.obs[step], self.dones[step] = self.next_obs, self.next_done
            with torch.no_grad():
                action, log_prob, _, value = self.agent(self.next_obs)
            self.actions[step], self.log_probs[step], self.values[step] = action, log_prob, value.flatten()
            next_obs, reward, terminated, truncated, _ = self.envs.step(action.numpy())
            self.rewards[step] = torch.tensor(reward)
            self.next_obs, self.next_done = torch.Tensor(next_obs), torch.Tensor(terminated | truncated)
        advantages, returns = self._advantages()
        batch = (self.obs[:, 0], self.actions[:, 0], self.log_probs[:, 0], advantages[:, 0], returns[:, 0],
                 self.values[:, 0])  # fmt: skip
        order = np.arange(ppo.num_steps)
        size = ppo.num_steps // ppo.num_minibatches
        for _ in range(ppo.update_epochs):
            np.random.shuffle(order)  # noqa: NPY002 - as CleanRL does it
            for start in range(0, ppo.num_steps, size):
                picked = order[start : start + size]
                loss = self._loss(*(tensor[picked] for tensor in batch))
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.agent.parameters(), ppo.max_grad_norm)
                self.optimizer.step()

    @torch.no_grad()
    def _advantages(self) -> tuple[torch.Tensor, torch.Tensor]:
        ppo = self.ppo
        advantages = torch.zeros_like(self.rewards)
        last = torch.zeros(1)
        goes_on, value = 1 - self.next_done, self.agent.critic(self.next_obs).reshape(1)
        for step in reversed(range(ppo.num_steps)):
            delta = self.rewards[step] + ppo.gamma * value * goes_on - self.values[step]
            advantages[step] = last = delta + ppo.gamma * ppo.gae_lambda * goes_on * last
            goes_on, value = 1 - self.dones[step], self.values[step]
        return advantages, advantages + self.values

    def _loss(
        self,
        obs: torch.Tensor,
        actions: torch.Tensor,
        old_log_prob: torch.Tensor,
        advantages: torch.Tensor,
        returns: torch.Tensor,
        old_value: torch.Tensor,
    ) -> torch.Tensor:
        ppo = self.ppo
        _, log_prob, entropy, value = self.agent(obs, actions)
        ratio = (log_prob - old_log_prob).exp()
        if ppo.norm_adv:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        clipped_ratio = torch.clamp(ratio, 1 - ppo.clip_coef, 1 + ppo.clip_coef)
        policy_loss = torch.max(-advantages * ratio, -advantages * clipped_ratio).mean()
        value = value.flatten()
        errors = (value - returns) ** 2
        if ppo.clip_vloss:
            clipped_value = old_value + torch.clamp(value - old_value, -ppo.clip_coef, ppo.clip_coef)
            errors = torch.max(errors, (clipped_value - returns) ** 2)
        return policy_loss - ppo.ent_coef * entropy.mean() + ppo.vf_coef * 0.5 * errors.mean()


# products


def product_flops(policy_sizes: Sequence[int], critic_sizes: Sequence[int], config: CollectConfig) -> float:
    """Floating-point operations of the matrix products of one trial's iteration.

    Forward: the policy at every step, the critic at every step and once more, both at every sample of every epoch.
    Backward: as many for the weights, and for the inputs of all layers but the first.
    """
    steps, epochs = config.ppo.num_steps, config.ppo.update_epochs
    policy, critic = ([2 * a * b for a, b in pairwise(sizes)] for sizes in (policy_sizes, critic_sizes))
    update = sum(2 * sum(layers) + sum(layers[1:]) for layers in (policy, critic))
    return float(steps * sum(policy) + (steps + 1) * sum(critic) + epochs * steps * update)


@njit(cache=True)
def iteration_products(theta, num_weights, policy_sizes, critic_sizes, obs, batch, epochs, acts, delta, grad):
    """The products of one trial's iteration, through the same calls as in the package and nothing between them.

    Args:
        theta, grad: [weights]; obs: [S, O]; acts: [≥ S · widest layer]; delta: as long as acts.
    """
    steps = len(obs)
    for s in range(steps):
        forward_products(theta, 0, policy_sizes, obs[s : s + 1], acts)
    forward_products(theta, num_weights, critic_sizes, obs, acts)
    for _ in range(epochs):
        for start in range(0, steps, batch):
            x = obs[start : start + batch]
            for network in range(2):
                offset = 0 if network == 0 else num_weights
                sizes = policy_sizes if network == 0 else critic_sizes
                forward_products(theta, offset, sizes, x, acts)
                for layer in range(len(sizes) - 1):
                    fan_in, fan_out = sizes[layer], sizes[layer + 1]
                    error = delta[: batch * fan_out].reshape(batch, fan_out)
                    source = x if layer == 0 else acts[: batch * fan_in].reshape(batch, fan_in)
                    np.dot(error.T, source, grad[offset : offset + fan_out * fan_in].reshape(fan_out, fan_in))
                    if layer > 0:
                        weight = theta[offset : offset + fan_out * fan_in].reshape(fan_out, fan_in)
                        np.dot(error, weight, acts[: batch * fan_in].reshape(batch, fan_in))
                    offset += fan_out * (fan_in + 1)


@njit(cache=True)
def forward_products(theta, offset, sizes, x, acts):
    batch = len(x)
    half = len(acts) // 2
    source = x
    for layer in range(len(sizes) - 1):
        fan_in, fan_out = sizes[layer], sizes[layer + 1]
        begin = half * (layer % 2)
        target = acts[begin : begin + batch * fan_out].reshape(batch, fan_out)
        np.dot(source, theta[offset : offset + fan_out * fan_in].reshape(fan_out, fan_in).T, target)
        source = target
        offset += fan_out * (fan_in + 1)


class Products:
    """The matrix products of a stack's iterations, and how fast this core multiplies large matrices."""

    def __init__(self, stack: TrialBatch) -> None:
        self._stack = stack
        policy_sizes, critic_sizes = stack.policy_sizes.tolist(), stack.critic_sizes.tolist()
        self.flops = product_flops(policy_sizes, critic_sizes, stack.config)  # of one trial's iteration
        widest = max(policy_sizes + critic_sizes)
        self._acts, self._delta = np.zeros((2, 2 * stack.obs.shape[1] * widest), np.float32)
        self._grad = np.empty_like(stack.theta[0])

    def run(self, seconds: float) -> dict[str, Any]:
        ppo = self._stack.config.ppo
        batch = ppo.num_steps // ppo.num_minibatches
        trials = 0
        clock = Clock()
        while trials == 0 or clock.times[0] < 0.8 * seconds:
            trial = trials % len(self._stack.seeds)
            iteration_products(
                self._stack.theta[trial], self._stack.spec.size, self._stack.policy_sizes, self._stack.critic_sizes,
                self._stack.obs[trial], batch, ppo.update_epochs, self._acts, self._delta, self._grad,
            )  # fmt: skip
            trials += 1
        times = clock.times
        return {
            "steps": trials * ppo.num_steps,
            "times": times,
            "gflops": trials * self.flops / times[0] / 1e9,
            "gflops of large": max(large_rate(kind, 0.1 * seconds) for kind in (np.ones, torch.ones)),
        }


def large_rate(ones: Callable[..., Any], seconds: float) -> float:
    """GFLOP/s of float32 products of 1024 × 1024 matrices, the fastest one of many."""
    size = 1024
    a, b = (ones((size, size), dtype=np.float32 if ones is np.ones else torch.float32) for _ in range(2))
    fastest = float("inf")
    begun = Clock()
    while fastest == float("inf") or begun.times[0] < seconds:
        clock = Clock()
        _ = a @ b
        fastest = min(fastest, clock.times[0])
    return 2 * size**3 / fastest / 1e9


# profile


def profile(collecting: Collecting) -> dict[str, float]:
    """Seconds of an iteration and of its parts, without the store.

    The parts of the update are timed by themselves, once the iteration is over, as often as it has them.
    """
    stack, timers = collecting.stack, Timers()
    kernels = ("act", "normalize_obs", "normalize_reward", "critic_values", "advantages_and_returns", "update")
    real = {name: getattr(tipl.rl.trial_batch, name) for name in kernels}
    step, reset = stack.env.step, stack.env.reset
    for name, function in real.items():
        setattr(tipl.rl.trial_batch, name, timers.timed(name, function))
    stack.env.step = timers.timed("env.step", step)  # pyright: ignore[reportAttributeAccessIssue]
    stack.env.reset = timers.timed("env.reset", reset)  # pyright: ignore[reportAttributeAccessIssue]
    clock = Clock()
    stack.iterate()
    whole = clock.times[0]
    for name, function in real.items():
        setattr(tipl.rl.trial_batch, name, function)
    stack.env.step, stack.env.reset = step, reset
    seconds = {name: float(times[0]) for name, times in timers.items()}
    seconds["noise, orders, Python of the rollout"] = whole - sum(seconds.values())
    return {"iteration": float(whole), **seconds, **update_parts(stack)}


def update_parts(stack: TrialBatch) -> dict[str, float]:
    """Seconds that the parts of all trials' updates take when each is run by itself."""
    ppo = stack.config.ppo
    batch, updates = ppo.num_steps // ppo.num_minibatches, ppo.update_epochs * ppo.num_minibatches
    trials, num_weights, action_dim = len(stack.seeds), stack.spec.size, stack.env.action_dim
    networks = (0, stack.policy_sizes), (num_weights, stack.critic_sizes)
    acts, delta = np.zeros((2, batch * max(int(sizes[1:].sum()) for _, sizes in networks)), np.float32)
    theta = stack.theta.copy()
    grad = np.full_like(theta[0], 1e-3)
    errors = [np.zeros((batch, int(sizes[-1])), np.float32) for _, sizes in networks]
    column = np.zeros((5, batch), np.float32)
    log_std = np.zeros(action_dim, np.float32)
    moments = np.zeros((2, *theta.shape), np.float32)
    x = np.ascontiguousarray(stack.obs[0, :batch])
    a = np.ascontiguousarray(stack.actions[0, :batch])
    order = np.random.default_rng(0).integers(0, ppo.num_steps, batch)

    def forward(n: int) -> None:
        for offset, sizes in networks:
            forward_batch(theta[n], offset, sizes, x, acts)

    def backward(n: int) -> None:
        for (offset, sizes), error in zip(networks, errors, strict=True):
            backward_batch(theta[n], offset, sizes, x, acts, error, delta, grad)

    def loss(n: int) -> None:
        loss_gradients(errors[0], log_std, errors[1][:, 0], a, *column[:4], kernel_settings(ppo), errors[0].copy(),
                       column[4], log_std.copy())  # fmt: skip

    def adam(n: int) -> None:
        adam_step(theta[n], grad, moments[0, n], moments[1, n], 1, 1e-12, ppo.adam_eps, ppo.max_grad_norm)

    def gather(n: int) -> None:
        _ = stack.obs[n][order], stack.actions[n][order]

    seconds = {}
    for name, part in {"forward": forward, "backward": backward, "loss": loss, "Adam": adam, "gather": gather}.items():
        part(0)  # compile
        clock = Clock()
        for n in range(trials):
            for _ in range(updates):
                part(n)
        seconds[f"update alone: {name}"] = float(clock.times[0])
    return seconds


# A process, and all of them.

_barrier: Any = None


def _take_barrier(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def measure(
    config: CollectConfig, seeds: Sequence[int], folder: Path, iterations: int, seconds: float, rounds: int
) -> dict[str, Any]:
    """All that one process measures. It waits for the others before every part."""
    try:
        collecting = Collecting(config, seeds, folder)
        for _ in range(iterations):
            collecting.stack.iterate()
        environment, reference = Environment(collecting.stack), Reference(collecting.stack)
        products = Products(collecting.stack)
        products.run(0)  # compile
        parts: list[dict[str, Any]] = []
        for _ in range(rounds):
            _barrier.wait()
            result, taken = collecting.run(seconds)
            part: dict[str, Any] = {"collect": result}
            _barrier.wait()
            part["environment"] = environment.run(taken)
            _barrier.wait()
            part["reference"] = reference.run(min(seconds, 10))
            _barrier.wait()
            part["products"] = products.run(min(seconds, 10) / 2)
            parts.append(part)
        _barrier.wait()
        return {"rounds": parts, "flops": products.flops, "profile": profile(collecting)}
    except BaseException:
        _barrier.abort()  # the others need not wait
        raise


def summed(parts: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Rates of the same part of all processes, in steps a second and a second of CPU, together."""
    return {
        "rate": sum(part["steps"] / part["times"][0] for part in parts),
        "rate_cpu": sum(part["steps"] / part["times"][1] for part in parts),
    }


def ratios_of_round(parts: Sequence[dict[str, Any]], flops: float, num_steps: int) -> dict[str, Any]:
    """What one round says, from all processes' parts."""
    rates = {name: summed([part[name] for part in parts]) for name in PARTS}
    found: dict[str, Any] = {"rates": rates}
    large = sum(part["products"]["gflops of large"] for part in parts)
    found["gflops a core"] = sum(part["products"]["gflops"] for part in parts) / len(parts)
    found["gflops a core of large"] = large / len(parts)
    for clock, suffix in CLOCKS.items():
        collect, alone, reference, products = (rate[clock] for rate in rates.values())
        found["of environment" + suffix] = collect / alone
        found["times reference" + suffix] = collect / reference
        at_large_rate = num_steps / flops * large * 1e9  # steps a second, if there were nothing but products
        found["times bound" + suffix] = (1 / collect) / (1 / alone + 1 / at_large_rate)
        found["times bound in these shapes" + suffix] = (1 / collect) / (1 / alone + 1 / products)
    return found


def write_share(parts: Sequence[dict[str, Any]]) -> float:
    """Of collection's time, over all rounds, because a chunk of a large policy fills in a dozen iterations."""
    appends = sum(part["append seconds"] for part in parts) / sum(part["times"][0] for part in parts)
    return appends + statistics.mean(part["commit share"] for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", choices=list(LEAST), default="inverted-pendulum")
    parser.add_argument("--seconds", type=float, help="at least, for a part; whole iterations are run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, help="before anything is timed")
    parser.add_argument("--trials", type=int, help="of all processes; default: as the preset has it")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="a JSON file")
    args = parser.parse_args()
    config = experiment(args.experiment, "paper").collect
    iterations = ITERATIONS[args.experiment] if args.iterations is None else args.iterations
    args.seconds = args.seconds or SECONDS[args.experiment]
    seeds = list(range(config.seed, config.seed + (args.trials or config.trials)))
    shares = [seeds[i :: args.workers] for i in range(args.workers)]
    load = os.getloadavg()[0]

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"  # for the processes to come, as `collect` has it
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(args.workers, context, _take_barrier, (context.Barrier(args.workers),)) as pool,
    ):
        create_store(Path(folder))
        futures = [
            pool.submit(measure, config, share, Path(folder), iterations, args.seconds, args.rounds) for share in shares
        ]
        processes = [future.result() for future in futures]

    by_round = [[process["rounds"][i] for process in processes] for i in range(args.rounds)]
    rounds = [ratios_of_round(parts, processes[0]["flops"], config.ppo.num_steps) for parts in by_round]
    median = {name: statistics.median(found[name] for found in rounds) for name in rounds[0] if name != "rates"}
    median["writes"] = write_share([part["collect"] for parts in by_round for part in parts])
    rates = {
        name: {clock: statistics.median(found["rates"][name][clock] for found in rounds) for clock in CLOCKS}
        for name in PARTS
    }
    profiles = [process["profile"] for process in processes]
    profile_mean = {name: statistics.mean(found[name] for found in profiles) for name in profiles[0]}
    lengths = [part["collect"]["episode length"] for parts in by_round for part in parts]
    length = statistics.mean(length for length in lengths if length)

    print(f"{args.experiment}: {len(seeds)} trials in {args.workers} processes, from iteration {iterations + 1} on")
    print(f"(episodes of {length:.0f} steps); medians of {args.rounds} rounds; load before and after: "
          f"{load:.1f}, {os.getloadavg()[0]:.1f}")  # fmt: skip
    print_table(rates, median, args.experiment)
    print_profile(profile_mean, len(shares[0]))
    if args.out:
        result = {
            "command": ["python", *sys.argv],
            "versions": {
                **engine_versions(chosen_backend(config.env_id, config.backend)),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
            "settings": {name: value for name, value in vars(args).items() if name != "out"},
            "load": [load, os.getloadavg()[0]],
            "episode_length": length,
            "bars": {"least": LEAST[args.experiment], "most": MOST[args.experiment]},
            "median": median,
            "rates": rates,
            "profile": profile_mean,
            "rounds": rounds,
            "processes": [process["rounds"] for process in processes],
        }
        args.out.write_text(json.dumps(result, indent=2, default=np.ndarray.tolist) + "\n")


def print_table(rates: dict[str, dict[str, float]], median: dict[str, float], experiment_name: str) -> None:
    print(f"{'':32s}{'steps/s':>12s}{'a CPU s':>12s}")
    for name, rate in rates.items():
        print(f"{name:32s}{rate['rate']:12,.0f}{rate['rate_cpu']:12,.0f}")
    print(f"products of these shapes: {median['gflops a core']:.0f} GFLOP/s a core; large ones: "
          f"{median['gflops a core of large']:.0f}")  # fmt: skip
    print(f"{'':32s}{'ratio':>12s}{'by CPU':>12s}{'bar':>8s}")
    for name in ("of environment", "times reference", "times bound", "times bound in these shapes", "writes"):
        value, cpu = median[name], median.get(name + " by CPU")
        verdict = ""
        for bars, sign in ((LEAST, "≥"), (MOST, "≤")):
            if bar := bars[experiment_name].get(name):
                met = value >= bar if sign == "≥" else value <= bar
                verdict = f"{sign} {bar:4.3g} {'met' if met else 'MISSED'}"
        print(f"{name:32s}{value:12.3f}{'' if cpu is None else format(cpu, '.3f'):>12s}  {verdict}")


def print_profile(seconds: dict[str, float], trials: int) -> None:
    print(f"an iteration of {trials} trials, {seconds['iteration']:.2f} s, without the store:")
    for name, part in seconds.items():
        if name != "iteration":
            print(f"  {name:38s}{part:8.3f} s{part / seconds['iteration']:8.1%}")


if __name__ == "__main__":
    main()
