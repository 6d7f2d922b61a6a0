"""Returns of many policies at once, on every core.

In: flat policies with their frozen observation normalizers.  Out: the raw return of each episode of each policy.

Episode e of every policy begins in the state that seed e gives and, where actions are sampled, draws the noise that
seed e gives: policies are compared on common random numbers, and a result depends on nothing that ran beside it.
"""

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from tipl.checks import Count, Positive, Whole, checked, checked_arguments
from tipl.config.env_spec import EnvId
from tipl.config.presets import Activation, Backend
from tipl.errors import TiplError
from tipl.processes import threads_here
from tipl.rl.env_described import why_other
from tipl.rl.envs import make_env
from tipl.rl.kernels import FASTMATH, TANH, activation_code, forward_one, kernel, sampled_action
from tipl.rl.policies import action_noise, layer_sizes, network_size, policy_spec
from tipl.rl.vector_env import VectorEnv
from tipl.store import Trial
from tipl.store.policy import OBS_CLIP, VAR_EPSILON

_SLOTS = 64  # most episodes that one thread steps together: of more, the simulator's state leaves the cache
MAX_EPISODE_STEPS = 100_000
_NOISE_STEPS = 64  # steps whose noise is drawn at once


@dataclass(frozen=True)
class Policies:
    """M policies of one shape, each with the normalizer that it is run with.

    weights: [M, P] float32; obs_mean, obs_var: [M, O] float64. All that is numbers is taken, and made these types.

    Raises:
        TiplError: they are of other shapes, or not finite.
    """

    weights: np.ndarray
    obs_mean: np.ndarray
    obs_var: np.ndarray

    def __post_init__(self) -> None:
        for name, kind in (("weights", np.float32), ("obs_mean", np.float64), ("obs_var", np.float64)):
            object.__setattr__(self, name, _numbers(name, getattr(self, name), kind))
        if not len(self.weights) == len(self.obs_mean) == len(self.obs_var):
            raise TiplError(
                f"There are {len(self.weights)} weights of policies, {len(self.obs_mean)} means and "
                f"{len(self.obs_var)} variances; give as many of each."
            )
        if self.obs_mean.shape != self.obs_var.shape:
            raise TiplError(
                f"Normalizers have {self.obs_mean.shape[1]} means and {self.obs_var.shape[1]} variances; give as many."
            )
        if (self.obs_var < 0).any():
            raise TiplError("A normalizer has a variance below 0; give variances.")

    def __len__(self) -> int:
        return len(self.weights)


def _numbers(name: str, values: object, kind: type[np.floating]) -> np.ndarray:
    """[M, ...] of this type, rows of finite numbers."""
    try:
        with np.errstate(over="ignore"):
            array: np.ndarray = np.ascontiguousarray(np.asarray(values), dtype=kind)
    except (TypeError, ValueError, OverflowError) as error:
        raise TiplError(f"{name} of policies are no array of numbers ({error}).") from error
    if array.ndim != 2:
        raise TiplError(f"{name} of policies have the shape {array.shape}; give one row a policy, [M, ...].")
    if not np.isfinite(array).all():
        policy = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise TiplError(f"{name} of policy {policy} are not finite; leave it out.")
    return array


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
    """Return what every policy earns in `episodes` whole episodes.

    Args:
        policies: M of them, with their normalizers.
        env_id: an id, or a trial's `env_id`, which knows what else made its environment.
        hidden_sizes: units of each hidden layer.
        episodes, seed: how many of each policy, and what they are drawn from: all policies meet the same ones.
        sampled: draw actions from the policy; otherwise take its mean action, of discrete ones the most likely.
        activation: of the hidden layers.
        backend: that steps the environment.
        obs_clip: normalized observations are held within ± this; None: as they are.
        threads: default: one a core that this process may use; one in a process that `evaluate_many` has started.
        advance: told how many episodes have ended.

    Returns:
        [M, episodes] float64, undiscounted raw returns.

    Raises:
        TiplError: the policies are not for this environment, an argument is out of its range, an episode does not end,
            or the environment gives what is not finite.
    """
    env_id = EnvId.of(env_id)
    _require_fit(policies, make_env(env_id, [0], backend), env_id, hidden_sizes)
    seeds = episode_seeds(seed, episodes)
    threads = threads or threads_here()
    returns = np.empty((len(policies), episodes))
    # Blocks of equal size, as many for every thread, each with its share of every policy: what neighbours learn lasts
    # alike, and no thread is to have all the long episodes.
    count = threads * max(1, math.ceil(returns.size / (threads * _SLOTS)))
    blocks = [np.arange(first, returns.size, count) for first in range(min(count, returns.size))]

    def run(block: np.ndarray) -> None:
        policy, episode = np.divmod(block, episodes)
        returns[policy, episode] = _run_episodes(
            policies, policy, seeds[episode], env_id, hidden_sizes, sampled, activation, backend, obs_clip, over
        )
        advance(len(block), "")

    over = threading.Event()
    pool = ThreadPoolExecutor(threads)
    try:
        for _ in pool.map(run, blocks):
            pass
    finally:
        over.set()  # after Ctrl-C, or an error in one: what runs is left, what waits is not begun
        pool.shutdown(cancel_futures=True)
    return returns


def episode_seeds(seed: int, episodes: int) -> np.ndarray:
    """The environment's seed in each episode, [episodes], of the 31 bits that engines take; a longer list begins with
    the shorter one."""
    return np.random.SeedSequence(seed).generate_state(episodes) >> 1


def _run_episodes(
    policies: Policies,
    policy: np.ndarray,
    seeds: np.ndarray,
    env_id: EnvId,
    hidden_sizes: Sequence[int],
    sampled: bool,
    activation: Activation,
    backend: Backend,
    obs_clip: float | None,
    over: threading.Event,
) -> np.ndarray:
    """One episode of policy[j] from seed[j], for each j; of no use once it is `over` for another reason."""
    env = make_env(env_id, seeds.tolist(), backend)
    sizes = layer_sizes(env.obs_dim, hidden_sizes, env.policy_outputs)
    actions = np.empty((len(policy), env.action_dim))
    silence = np.zeros((len(policy), env.policy_outputs), np.float32)
    noise_of_steps = _noise(seeds, env) if sampled else itertools.repeat(silence)
    total = np.zeros(len(policy))
    running = np.arange(len(policy))
    obs = env.reset(running)
    clip = np.inf if obs_clip is None else obs_clip
    for steps in itertools.count(1):
        if not len(running) or over.is_set():
            break
        if steps > MAX_EPISODE_STEPS:
            raise TiplError(
                f"An episode of {env_id} has not ended after {MAX_EPISODE_STEPS:,} steps; give the environment a time "
                "limit (--env-kwargs max_episode_steps=N where it is collected, gymnasium.make's where it is "
                "recorded), or measure no returns."
            )
        if not np.isfinite(obs).all():
            raise TiplError(f"{env_id} gave an observation that is not finite; mend the environment.")
        noise = next(noise_of_steps)[running]
        act_frozen(policies.weights, policy[running], obs, policies.obs_mean, policies.obs_var, sizes, noise, actions,
                   clip, activation_code(activation))  # fmt: skip
        obs, reward, terminated, truncated = env.step(actions[: len(running)], running)
        total[running] += reward
        going = ~(terminated | truncated)
        if not going.all():
            running, obs = running[going], obs[going]
    if not np.isfinite(total).all():
        raise TiplError(f"{env_id} gave rewards whose sum is not finite; mend the environment.")
    return total


def _require_fit(policies: Policies, env: VectorEnv, env_id: str, hidden_sizes: Sequence[int]) -> None:
    """What the kernels presume of their arrays."""
    wanted = network_size(layer_sizes(env.obs_dim, hidden_sizes, env.policy_outputs))
    wanted += 0 if env.discrete else env.action_dim
    if policies.weights.shape[1] != wanted:
        raise TiplError(
            f"The policies have {policies.weights.shape[1]} weights, and {env_id} takes {wanted} with hidden layers of "
            f"{list(hidden_sizes)}; give the environment and layers that they are for."
        )
    if policies.obs_mean.shape[1] != env.obs_dim:
        raise TiplError(
            f"The normalizers have {policies.obs_mean.shape[1]} means, and {env_id} gives {env.obs_dim} observations; "
            "give normalizers of these."
        )


def _noise(seeds: np.ndarray, env: VectorEnv) -> Iterator[np.ndarray]:
    """The noise of actions [len(seeds), F] for one step after another; equal seeds have equal ones."""
    shape = _NOISE_STEPS, env.policy_outputs
    distinct, which = np.unique(seeds, return_inverse=True)
    rngs = [np.random.default_rng([int(seed), 1]) for seed in distinct]
    while True:
        drawn = np.stack([action_noise(rng, shape, discrete=env.discrete) for rng in rngs], axis=1)
        yield from (noise[which] for noise in drawn)


@kernel(fastmath=FASTMATH)
def act_frozen(
    weights: np.ndarray, policy: np.ndarray, obs: np.ndarray, obs_mean: np.ndarray, obs_var: np.ndarray,
    sizes: np.ndarray, noise: np.ndarray, actions: np.ndarray, clip: float = OBS_CLIP, activation: int = TANH,
) -> None:  # fmt: skip
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


def why_not_run(trial: Trial) -> str | None:
    """Why a trial's policies cannot be run, as the end of a sentence about them; None: they can.

    Collected ones can; recorded ones if record.py knew their network and what makes their environment, and both fit.
    """
    try:
        layers, backend = checked("", trial.config.get("hidden_sizes"), Sequence[Count]), trial.config["backend"]
    except (TiplError, KeyError):
        return "are none that can be run (Linear and Tanh, ReLU or ELU in turn, to logits or to means with a log-std)"
    if trial.env_id.spec.get("not_run"):
        return f"cannot be run: {trial.env_id.spec['not_run']}"
    try:
        env = make_env(trial.env_id, [0], backend)
        other = why_other(trial.env_id)
    except TiplError as error:
        return f"cannot be run here: {str(error).rstrip('.')}"
    spec = policy_spec(env.obs_dim, layers, env.policy_outputs, discrete=env.discrete)
    if spec.size != trial.spec.size:
        return f"have {trial.spec.size} weights, and {trial.env_id} takes {spec.size} with these layers"
    if trial.obs_mean.shape[1] != env.obs_dim:
        return f"have normalizers of {trial.obs_mean.shape[1]} numbers, and {trial.env_id} gives {env.obs_dim}"
    return other
