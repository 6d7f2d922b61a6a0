"""Branches: a stored trial made again up to some iterations, and other futures from there.

In: a trial that `collect` made.  Out: where its run stands after an iteration, to the bit; snapshots that come then.

A trial is made by its seed and settings alone, so any of its iterations can be come to again, whether its checkpoint is
there or not. A branch goes on from that very state: weights, optimizer, normalizers, the episode that is going on. What
it draws from then on is its own: actions, the order of samples, and the episodes that begin later. What the environment
draws in the steps of the episode that is going on is the run's, where steps draw at all.

Shapes: R futures, n snapshots an iteration, P weights.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tipl.config.presets import CollectConfig, DiscreteCollectConfig, DiscretePPOConfig, PPOConfig
from tipl.errors import TiplError
from tipl.rl.envs import make_env
from tipl.rl.trial_batch import TrialBatch, environment_seeds
from tipl.rl.vector_env import VectorEnv
from tipl.store import Trial

State = Mapping[str, np.ndarray]
Abandon = Callable[[], bool]


def settings_of(trial: Trial) -> CollectConfig:
    """Return the settings that a stored trial was made with.

    Raises:
        TiplError: it was not collected, or its record names settings that there are none of here.
    """
    config = trial.config
    if not isinstance(config.get("ppo"), dict) or "total_steps" not in config:
        raise TiplError(f"Trial {trial.seed} was not made by `tipl collect`, so it cannot be made again; collect one.")
    own = {field.name for field in dataclasses.fields(CollectConfig)} - {"trials", "seed", "ppo"}
    discrete = trial.spec.names[-1] != "actor_logstd"
    try:
        ppo = (DiscretePPOConfig if discrete else PPOConfig)(**config["ppo"])
        kind = DiscreteCollectConfig if discrete else CollectConfig
        return kind(**{name: config[name] for name in own if name in config}, trials=1, seed=trial.seed, ppo=ppo)
    except TypeError as error:
        raise TiplError(f"The record of trial {trial.seed} has settings that are none here ({error}).") from error


def made_again(trial: Trial, iterations: Sequence[int], abandon: Abandon = lambda: False) -> Iterator[State]:
    """Yield where the trial's run stands after each of these iterations, which rise.

    Args:
        abandon: asked within every iteration; once true, Abandoned is raised.

    Raises:
        TiplError: the run does not come to the stored snapshots, as on another processor or with other libraries.
    """
    config = settings_of(trial)
    batch = TrialBatch(config, [trial.seed], _env(trial.env_id, config, [trial.seed]))
    batch.abandon = abandon
    rounding = trial.compact or {}  # of a compact store's weights, for which the record has its largest error
    most = 1.001 * (rounding.get("max_error") or 0.0) * (rounding.get("mean_step") or 0.0)
    for iteration in iterations:
        while batch.iteration < iteration:
            batch.iterate()
        t = iteration * config.snapshots_per_iteration
        apart = float(np.linalg.norm(batch.policies[0] - trial.weights(t, t + 1)[0]))
        if not apart <= most:
            raise TiplError(
                f"Trial {trial.seed} does not come to its own snapshot {t} again (but {apart:.2g} away): it "
                "was made on another processor or with other libraries; judge it there, or collect it here."
            )
        yield batch.state(0)


def branches(
    trial: Trial, state: State, seeds: Sequence[int] | None, abandon: Abandon = lambda: False
) -> Iterator[np.ndarray]:
    """Yield the snapshots [R, n, P] of one iteration after another of R futures from a state of the trial's run.

    Args:
        seeds: what each future draws from, R of them, of 31 bits; None: one future that draws what the run drew.
    """
    batch = branched(settings_of(trial), trial.env_id, trial.seed, state, seeds)
    batch.abandon = abandon
    while batch.iteration < batch.config.num_iterations:
        yield batch.iterate().snapshots


def branched(
    config: CollectConfig, env_id: str, seed: int, state: State, seeds: Sequence[int] | None,
    kind: Callable[[CollectConfig, Sequence[int], VectorEnv], TrialBatch] = TrialBatch,
) -> TrialBatch:  # fmt: skip
    """Return R futures of the run of `seed` at a state of it, as trials of one batch, which `kind` makes; `seeds` as in
    `branches`."""
    count = 1 if seeds is None else len(seeds)
    env = _env(env_id, config, [seed] * count)
    if seeds is not None:
        env = _LaterEpisodes(env, _env(env_id, config, seeds))
    batch = kind(config, [seed] * count, env)
    batch.restore([state] * count)
    batch.seeds = list(seeds or batch.seeds)
    return batch


def branch_seeds(seed: int, trial: int, iteration: int, count: int) -> list[int]:
    """Return seeds [count] of 31 bits for the futures of one origin; a longer list begins with the shorter one."""
    return (np.random.SeedSequence([seed, trial, iteration]).generate_state(count) >> 1).tolist()


def _env(env_id: str, config: CollectConfig, seeds: Sequence[int]) -> VectorEnv:
    """The copies of an environment in a batch of these seeds."""
    copies = [each for seed in seeds for each in environment_seeds(seed, config.ppo.num_envs)]
    return make_env(env_id, copies, config.backend)


class _LaterEpisodes(VectorEnv):
    """Copies of an environment that end the episode that is going on, and have all later ones from other seeds."""

    def __init__(self, now: VectorEnv, later: VectorEnv) -> None:
        self._now, self._later = now, later
        self._gone_on = np.zeros(now.num_envs, np.bool_)
        self.num_envs, self.obs_dim, self.num_actions = now.num_envs, now.obs_dim, now.num_actions
        self.action_low, self.action_high = now.action_low, now.action_high

    def reset(self, ids: np.ndarray) -> np.ndarray:
        self._gone_on[ids] = True
        return self._later.reset(ids)

    def step(
        self, actions: np.ndarray, ids: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        which = np.arange(self.num_envs) if ids is None else np.asarray(ids)
        later = self._gone_on[which]
        if later.all() or not later.any():
            return (self._later if later.all() else self._now).step(actions, which)
        parts = [
            (mask, env.step(actions[mask], which[mask])) for mask, env in ((later, self._later), (~later, self._now))
        ]
        whole = [np.empty((len(which), *each.shape[1:]), each.dtype) for each in parts[0][1]]
        for mask, found in parts:
            for into, values in zip(whole, found, strict=True):
                into[mask] = values
        return whole[0], whole[1], whole[2], whole[3]

    def replay(self, resets: Sequence[int], episodes: Sequence[Sequence[np.ndarray]], random: Any = None) -> np.ndarray:
        last = self._now.replay(resets, episodes, random)
        self.earned = self._now.earned
        return last
