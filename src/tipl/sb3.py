"""Stable-Baselines3: callbacks that record PPO, A2C, SAC and TD3, and that accelerate PPO (`pip install 'tipl[sb3]'`).

In: a model that learns.  Out: one trial of a store, with the episodes that Monitor saw and VecNormalize's statistics;
or the model's actor moved to forecast weights.

    model.learn(1_000_000, callback=SB3Recorder("store", every=64))
    model.learn(1_000_000, callback=SB3Accelerator("line"))

What PPO and A2C record goes through all of `evaluate` with MlpPolicy on flat observations, continuous or discrete
actions, and Tanh, ReLU or ELU. SAC's and TD3's actors are other networks, whose weights alone are judged
(`--no-returns`).
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tipl.accelerator import Accelerator, Batch
from tipl.errors import TiplError
from tipl.forecast import Forecaster
from tipl.policy import VAR_EPSILON
from tipl.record import Normalizer, WeightRecorder

try:
    from gymnasium import spaces
    from stable_baselines3 import A2C, PPO, SAC, TD3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
    from stable_baselines3.common.vec_env import VecNormalize
except ImportError as error:
    raise TiplError(f"tipl.sb3 takes Stable-Baselines3 ({error}): pip install 'tipl[sb3]'.") from error

_CRITIC = ("value_net", "mlp_extractor.value_net", "vf_features_extractor")
_NO_SETTINGS = ("verbose", "tensorboard_log", "stats_window_size")  # arguments of an algorithm that change no run


class SB3Recorder(BaseCallback):
    """Records one call of `learn`. A run that was killed goes on by running the same seeded script again.

    The iteration of a snapshot is the number of the rollout, from 1, after which it was made.

    Attributes:
        recorder: the WeightRecorder, from the beginning of the training on.
    """

    def __init__(
        self,
        store: Path | str,
        seed: int | None = None,
        *,
        every: int,
        unit: Literal["gradient step", "rollout"] = "gradient step",
        env_id: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            store: the data set's folder; made if missing.
            seed: of the trial; default: the model's.
            every: how many units between two snapshots.
            unit: a step of the optimizer that trains the actor (PPO makes many a rollout), or a rollout.
            env_id: default: what the environments' spec says.
            config: what else made the run, as JSON; the algorithm and its settings are taken from the model.
        """
        super().__init__()
        if every < 1:
            raise TiplError(f"every is {every}; give 1 or more.")
        self._store, self._seed, self._every, self._unit = store, seed, every, unit
        self._env_id, self._config = env_id, dict(config or {})
        self._rollouts = 0

    def _on_training_start(self) -> None:
        model: Any = self.model
        seed = model.seed if self._seed is None else self._seed
        if seed is None:
            raise TiplError("A trial has a seed; give one to the model or to SB3Recorder.")
        env_id = self._env_id or _env_id(self.training_env)
        policy, optimizer = _actor(model)
        normalizer, obs_clip = _normalizer(model.get_vec_normalize_env())
        self._rollouts = 0
        self.recorder = WeightRecorder(
            self._store, seed, policy, optimizer, every=self._every if self._unit == "gradient step" else None,
            env_id=env_id, normalizer=normalizer, obs_clip=obs_clip, config=_settings(model) | self._config,
        )  # fmt: skip
        self.recorder.env_step = lambda: model.num_timesteps
        self.recorder.iteration = lambda: self._rollouts

    def _on_rollout_start(self) -> None:
        self._after_rollout()
        self._rollouts += 1

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:  # Monitor's
                self.recorder.episode(self.num_timesteps, info["episode"]["r"], info["episode"]["l"])
        return True

    def _on_training_end(self) -> None:
        self._after_rollout()
        self.recorder.close()

    def _after_rollout(self) -> None:
        if self._unit == "rollout" and self._rollouts and self._rollouts % self._every == 0:
            self.recorder.snapshot()


class SB3Accelerator(BaseCallback):
    """Jumps to forecast weights between PPO's update and its next rollout, where the guard allows it.

    Attributes:
        accelerator: the Accelerator, from the beginning of the training on; `accelerator.counts` says what it did.
    """

    def __init__(self, forecaster: Forecaster | str | Path = "line", **settings: Any) -> None:
        """
        Args:
            forecaster, settings: as `Accelerator` takes them.
        """
        super().__init__()
        self._forecaster, self._settings_of_jumps = forecaster, settings

    def _on_training_start(self) -> None:
        model: Any = self.model
        if not isinstance(model, PPO):
            raise TiplError(f"SB3Accelerator accelerates PPO, not {type(model).__name__}.")
        policy = model.policy
        assert isinstance(policy, ActorCriticPolicy)
        named = [(name, p) for name, p in policy.named_parameters() if not name.startswith(_CRITIC)]

        def distribution(observations: Tensor) -> torch.distributions.Distribution:
            made = policy.get_distribution(observations).distribution
            if not isinstance(made, torch.distributions.Distribution):
                raise TiplError("SB3Accelerator takes continuous or discrete actions, not several discrete ones.")
            return made

        self.accelerator = Accelerator(named, self._forecaster, distribution=distribution, **self._settings_of_jumps)
        self._batch: Batch | None = None
        self._returns: list[float] = []

    def _on_step(self) -> bool:
        self._returns += [float(info["episode"]["r"]) for info in self.locals["infos"] if "episode" in info]
        return True

    def _on_rollout_end(self) -> None:
        model: Any = self.model
        buffer = model.rollout_buffer
        if isinstance(buffer.observations, dict):
            raise TiplError("SB3Accelerator takes flat observations or images, not dictionaries.")

        def samples(array: Any) -> Tensor:
            """[S, E, …] to [S·E, …], a copy: the update shuffles the buffer's own."""
            return torch.as_tensor(array.reshape(-1, *array.shape[2:]).copy(), device=model.device)

        actions = samples(buffer.actions)
        if not isinstance(model.action_space, spaces.Box):
            actions = actions.reshape(len(actions), -1).squeeze(1)
        self._batch = Batch(
            samples(buffer.observations), actions, samples(buffer.log_probs), samples(buffer.advantages), self._returns
        )
        self._returns = []

    def _on_rollout_start(self) -> None:
        if self._batch is not None:  # the update on it has just ended
            self.accelerator.step(self._batch)


def _actor(model: Any) -> tuple[nn.Module | Sequence[tuple[str, Tensor]], Any]:
    """What of a model acts, and the optimizer that trains it."""
    if isinstance(model, (SAC, TD3)):
        return list(model.actor.named_parameters()), model.actor.optimizer
    if not isinstance(model, (PPO, A2C)):
        raise TiplError(f"SB3Recorder records PPO, A2C, SAC and TD3, not {type(model).__name__}.")
    policy = model.policy
    assert isinstance(policy, ActorCriticPolicy)
    if (
        type(policy.action_dist) in (DiagGaussianDistribution, CategoricalDistribution)
        and type(policy.pi_features_extractor) is FlattenExtractor
        and type(policy.mlp_extractor) is MlpExtractor
    ):
        actor = nn.Module()  # the same parameters under CleanRL's names
        network = nn.Sequential(*policy.mlp_extractor.policy_net, policy.action_net)
        if type(policy.action_dist) is CategoricalDistribution:
            actor.actor = network
        else:
            actor.actor_mean, actor.actor_logstd = network, policy.log_std
        return actor, policy.optimizer
    named = [(name, p) for name, p in policy.named_parameters() if not name.startswith(_CRITIC)]
    return named, policy.optimizer


def _normalizer(env: VecNormalize | None) -> tuple[Normalizer | None, float]:
    """VecNormalize's statistics and clip, if it normalizes flat observations."""
    if env is None or not env.norm_obs or isinstance(env.obs_rms, dict):
        return None, math.inf

    def statistics() -> tuple[Any, Any, Any]:
        moments: Any = env.obs_rms
        return moments.mean, moments.var + (env.epsilon - VAR_EPSILON), moments.count

    return statistics, env.clip_obs


def _env_id(env: Any) -> str:
    spec = env.get_attr("spec")[0]
    if spec is None:
        raise TiplError("The environment does not say its id; give SB3Recorder env_id.")
    return spec.id


def _settings(model: Any) -> dict[str, Any]:
    """The algorithm, and those of its arguments that are numbers or words."""
    names = [name for name in inspect.signature(type(model)).parameters if name not in _NO_SETTINGS]
    values = {name: getattr(model, name, None) for name in names}
    return {"algorithm": type(model).__name__} | {
        name: value for name, value in values.items() if isinstance(value, (bool, int, float, str))
    }
