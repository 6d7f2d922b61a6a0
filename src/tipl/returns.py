"""Returns of many policies at once, on every core.

In: flat policies with their frozen observation normalizers.  Out: the raw return of each episode of each policy.

Episode e of every policy begins in the state that seed e gives and, where actions are sampled, draws the noise that
seed e gives: policies are compared on common random numbers, and a result depends on nothing that ran beside it.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from tipl.checks import Count, Positive, Whole, checked_arguments
from tipl.envs import VectorEnv, make_env
from tipl.policy import (
    FASTMATH,
    OBS_CLIP,
    TANH,
    VAR_EPSILON,
    action_noise,
    activation_code,
    forward_one,
    kernel,
    layer_sizes,
    network_size,
    sampled_action,
)
from tipl.presets import Activation, Backend

_SLOTS = 64  # most episodes that one thread steps together: of more, the simulator's state leaves the cache
_NOISE_STEPS = 64  # steps whose noise is drawn at once


@dataclass(frozen=True)
class Policies:
    """M policies of one shape, each with the normalizer that it is run with.

    weights: [M, P] float32; obs_mean, obs_var: [M, O] float64.
    """

    weights: np.ndarray
    obs_mean: np.ndarray
    obs_var: np.ndarray

    def __post_init__(self) -> None:
        assert len(self.weights) == len(self.obs_mean) == len(self.obs_var)

    def __len__(self) -> int:
        return len(self.weights)


@checked_arguments
def policy_returns(
    policies: Policies,
    env_id: str,
    hidden_sizes: Sequence[Count],
    episodes: Count,
    *,
    seed: Whole = 0,
    sampled: bool = False,
    activation: Activation = "tanh",
    backend: Backend = "auto",
    obs_clip: Positive | None = OBS_CLIP,
    threads: Count | None = None,
    advance: Callable[[int, str], None] = lambda steps, note: None,
) -> np.ndarray:
    """Run every policy for `episodes` whole episodes.

    Args:
        sampled: draw actions from the policy; otherwise take its mean action, of discrete ones the most likely.
        activation: of the hidden layers.
        obs_clip: normalized observations are held within ± this; None: as they are.
        threads: default: one a core that this process may use.
        advance: told how many episodes have ended.
    Returns:
        [M, episodes] float64, undiscounted raw returns.
    """
    seeds = episode_seeds(seed, episodes)
    threads = threads or len(os.sched_getaffinity(0))
    returns = np.empty((len(policies), episodes))
    # Blocks of equal size, as many for every thread, so that no thread waits for the last one.
    count = threads * max(1, math.ceil(returns.size / (threads * _SLOTS)))
    blocks = [block for block in np.array_split(np.arange(returns.size), count) if len(block)]

    def run(block: np.ndarray) -> None:
        policy, episode = np.divmod(block, episodes)
        returns[policy, episode] = _run_episodes(
            policies, policy, seeds[episode], env_id, hidden_sizes, sampled, activation, backend, obs_clip
        )
        advance(len(block), "")

    pool = ThreadPoolExecutor(threads)
    try:
        for _ in pool.map(run, blocks):
            pass
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C: what runs is waited for, what waits is not begun
    return returns


def episode_seeds(seed: int, episodes: int) -> np.ndarray:
    """The environment's seed in each episode, [episodes], of the 31 bits that engines take; a longer list begins with
    the shorter one."""
    return np.random.SeedSequence(seed).generate_state(episodes) >> 1


def _run_episodes(
    policies: Policies,
    policy: np.ndarray,
    seeds: np.ndarray,
    env_id: str,
    hidden_sizes: Sequence[int],
    sampled: bool,
    activation: Activation,
    backend: Backend,
    obs_clip: float | None,
) -> np.ndarray:
    """One episode of policy[j] from seed[j], for each j."""
    env = make_env(env_id, seeds.tolist(), backend)
    sizes = layer_sizes(env.obs_dim, hidden_sizes, env.policy_outputs)
    log_stds = 0 if env.discrete else env.action_dim
    assert policies.weights.shape[1] == network_size(sizes) + log_stds, "the policies are not for this environment"
    actions = np.empty((len(policy), env.action_dim))
    silence = np.zeros((len(policy), env.policy_outputs), np.float32)
    noise_of_steps = _noise(seeds, env) if sampled else itertools.repeat(silence)
    total = np.zeros(len(policy))
    running = np.arange(len(policy))
    obs = env.reset(running)
    clip = np.inf if obs_clip is None else obs_clip
    while len(running):
        noise = next(noise_of_steps)[running]
        act_frozen(policies.weights, policy[running], obs, policies.obs_mean, policies.obs_var, sizes, noise, actions,
                   clip, activation_code(activation))  # fmt: skip
        obs, reward, terminated, truncated = env.step(actions[: len(running)], running)
        total[running] += reward
        going = ~(terminated | truncated)
        if not going.all():
            running, obs = running[going], obs[going]
    return total


def _noise(seeds: np.ndarray, env: VectorEnv) -> Iterator[np.ndarray]:
    """The noise of actions [len(seeds), F] for one step after another; equal seeds have equal ones."""
    shape = _NOISE_STEPS, env.policy_outputs
    distinct, which = np.unique(seeds, return_inverse=True)
    rngs = [np.random.default_rng([int(seed), 1]) for seed in distinct]
    while True:
        drawn = np.stack([action_noise(rng, shape, discrete=env.discrete) for rng in rngs], axis=1)
        yield from (noise[which] for noise in drawn)


@kernel(fastmath=FASTMATH)
def act_frozen(weights, policy, obs, obs_mean, obs_var, sizes, noise, actions, clip=OBS_CLIP, activation=TANH):
    """Actions of policy[j] on raw observation obs[j] under its frozen normalizer: μ(s) + σ · noise, or, of discrete
    ones, argmax(z(s) + noise) of logits z.

    Args:
        weights: [M, P]; obs_mean, obs_var: [M, O]; policy: [n]; obs: [n, O] raw; sizes: [layers + 1].
        noise: [≥ n, F] from `action_noise`, F outputs of the network; zeros for the mean or the most likely action.
        actions: [≥ n, A] float64, overwritten; A is F, or 1 for discrete actions.
        clip: normalized observations are held within ± this.
        activation: as `activation_code` has it.
    """
    num_weights = weights.shape[1]
    x = np.empty(obs.shape[1], np.float32)
    scratch = np.empty((2, sizes.max()), np.float32)
    head = np.empty(sizes[-1], np.float32)
    head_end = 0
    for layer in range(len(sizes) - 1):
        head_end += sizes[layer + 1] * (sizes[layer] + 1)
    for j in range(len(policy)):
        m = policy[j]
        for k in range(obs.shape[1]):
            z = (obs[j, k] - obs_mean[m, k]) / np.sqrt(obs_var[m, k] + VAR_EPSILON)
            x[k] = min(max(z, -clip), clip)
        forward_one(weights[m], 0, sizes, x, scratch, head, activation)
        if head_end == num_weights:  # categorical
            actions[j, 0] = sampled_action(head, noise[j])
        else:
            for k in range(len(head)):
                actions[j, k] = head[k] + np.exp(weights[m, head_end + k]) * noise[j, k]
