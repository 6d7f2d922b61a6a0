"""Stable-Baselines3 and sb3-contrib: callbacks that record agents, and accelerate them (extra `sb3`).

In: a model that learns.  Out: one trial of a store, with the episodes that Monitor saw and VecNormalize's statistics;
or the model's actor moved to forecast weights: of PPO and A2C by their batches, else after so many optimizer steps.

    model.learn(1_000_000, callback=SB3Recorder("store", every=64))
    model.learn(1_000_000, callback=SB3Accelerator("line"))

What PPO, A2C and TRPO record goes through all of `evaluate` with MlpPolicy or MultiInputPolicy on observations that
are no images, continuous or discrete actions, and Tanh, ReLU or ELU: the network is held against the policy's own
distribution once, and the environment, with its arguments, time limit and wrappers, against what can be made again of
it. The others (SAC, TD3, DQN, TQC, QRDQN, CrossQ, ARS, MaskablePPO, RecurrentPPO) are other networks, whose weights
alone are judged (`--no-returns`); DQN's and QRDQN's are of Q-values. TRPO and ARS are recorded by the rollout.
"""

import inspect
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal

from tipl.acceleration.accelerator import Accelerator, Batch
from tipl.acceleration.jumping import JumpingOptimizer
from tipl.checks import AnyPath, Count, Place, checked
from tipl.collection.record import Normalizer, WeightRecorder
from tipl.config.env_spec import EnvId
from tipl.config.jumps import JumpConfig
from tipl.errors import TiplError
from tipl.forecasting.forecaster import Forecaster
from tipl.rl.env_described import copies_described
from tipl.store.policy import VAR_EPSILON

try:
    from gymnasium import spaces
    from stable_baselines3 import A2C, PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.distributions import TanhBijector
    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.vec_env import (
        VecCheckNan,
        VecFrameStack,
        VecMonitor,
        VecNormalize,
        VecVideoRecorder,
    )
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper

    from tipl.integrations.sb3_actors import WITHOUT_STEPS, acting_parameters, actor_of, kind_of
except ImportError as error:
    raise TiplError(f"tipl.integrations.sb3 takes Stable-Baselines3 ({error}): pip install 'tipl[sb3]'.") from error

_PERIOD = 100  # optimizer steps between two proposals of a jump
_SQUASH_EPSILON = 1e-6  # in Stable-Baselines3's TanhBijector
_NO_SETTINGS = ("verbose", "tensorboard_log", "stats_window_size")  # arguments of an algorithm that change no run


class SB3Recorder(BaseCallback):
    """Records one call of `learn`, or several. A run that was killed goes on by running the same seeded script again.

    By default the end of `learn` completes the trial. With `complete=False` the next call of `learn` with this recorder
    goes on with it, and `callback.recorder.close()` completes it. A trial whose `learn` was interrupted is left as it
    is, incomplete; what the model learns afterwards is not recorded into it.

    The iteration of a snapshot is the number of the rollout, from 1, after which it was made.

    Attributes:
        recorder: the WeightRecorder, from the beginning of the training on.
    """

    def __init__(
        self,
        store: AnyPath,
        seed: int | None = None,
        *,
        every: int,
        unit: Literal["gradient step", "rollout"] = "gradient step",
        env_id: str | None = None,
        config: Mapping[str, Any] | None = None,
        complete: bool = True,
    ) -> None:
        """
        Args:
            store: the data set's folder; made if missing.
            seed: of the trial; default: the model's.
            every: how many units between two snapshots.
            unit: a step of the optimizer that trains the actor (PPO makes many a rollout), or a rollout.
            env_id: default: what the environments' spec says.
            config: what else made the run, as JSON; the algorithm and its settings are taken from the model.
            complete: whether the end of `learn` completes the trial.

        Raises:
            TiplError: `every` or `unit` is no such thing.
        """
        super().__init__()
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise TiplError(f"every is {every!r}; give a whole number of 1 or more.")
        if unit not in ("gradient step", "rollout"):
            raise TiplError(f"unit is {unit!r}; give 'gradient step' or 'rollout'.")
        self._store, self._seed, self._every, self._unit = store, seed, every, unit
        self._env_id, self._config = env_id, dict(config or {})
        self._rollouts = self._seen = 0
        self._complete = complete

    def _on_training_start(self) -> None:
        model: Any = self.model
        seed = model.seed if self._seed is None else self._seed
        if seed is None:
            raise TiplError("A trial has a seed; give one to the model or to SB3Recorder.")
        if hasattr(self, "recorder"):
            if self.recorder.closed or self._recorded is not model:
                raise TiplError(
                    "This SB3Recorder has recorded its trial already. Give this call of `learn` a new SB3Recorder with "
                    "another seed; or let the first one have complete=False, and the trial goes on."
                )
            self.recorder._goes_on = _learning()
            return
        self._recorded = model
        env_id = _environment(self.training_env, self._env_id)
        if self._unit == "gradient step" and kind_of(model) in WITHOUT_STEPS:
            raise TiplError(f"{kind_of(model)} moves its actor by no optimizer steps; give unit='rollout'.")
        policy, optimizer = actor_of(model)
        normalizer, obs_clip = _normalizer(model.get_vec_normalize_env(), self.training_env)
        self._rollouts = self._seen = 0
        self.recorder = WeightRecorder(
            self._store, seed, policy, optimizer, every=self._every if self._unit == "gradient step" else None,
            env_id=env_id, normalizer=normalizer, obs_clip=obs_clip, config=_settings(model) | self._config,
        )  # fmt: skip
        self.recorder._goes_on = _learning()
        self.recorder.env_step = lambda: model.num_timesteps
        self.recorder.iteration = lambda: self._rollouts

    def _on_rollout_start(self) -> None:
        self._after_rollout()
        self._rollouts += 1

    def _on_step(self) -> bool:
        for info in self.locals.get("infos", ()):  # ARS tells none
            if "episode" in info:  # Monitor's
                self.recorder.episode(self.num_timesteps, info["episode"]["r"], info["episode"]["l"])
        return True

    def _on_training_end(self) -> None:
        self._after_rollout()
        if self._complete:
            self.recorder.close()
        else:
            self.recorder.save()

    def _after_rollout(self) -> None:
        due = self._rollouts > self._seen and self._rollouts % self._every == 0
        if self._unit == "rollout" and due:  # not again where the next call of `learn` begins
            self.recorder.snapshot()
        self._seen = self._rollouts


class SB3Accelerator(BaseCallback):
    """Jumps to forecast weights, where the guard allows it: in PPO and A2C between an update and the next rollout; in
    algorithms that learn from a replay buffer (SAC, TD3, DDPG, TQC; DQN, QRDQN) after `period` steps of an optimizer.

    Attributes:
        accelerator: of PPO and A2C the Accelerator, from the beginning of the training on.
        optimizers: of the others the JumpingOptimizers: the actor's, and the critic's with `JumpConfig(critic=True)`.
        counts: how many proposals ended in each of `tipl.acceleration.jump.KINDS`.
    """

    def __init__(
        self,
        forecaster: Forecaster | Place = "line",
        *,
        jump: JumpConfig | None = None,
        fit: Place | None = None,
        period: int | None = None,
    ) -> None:
        """
        Args:
            forecaster, jump, fit: as `Accelerator` takes them; `fit` is for PPO and A2C alone.
            period: optimizer steps between two proposals, of algorithms with a replay buffer alone. Default: 100.
        """
        super().__init__()
        self._forecaster, self._jump, self._fit = forecaster, jump, fit
        self._period = checked("`period`", period, Count | None)
        self.optimizers: list[JumpingOptimizer] = []
        self._wrapped: list[Any] = []  # what has them

    @property
    def counts(self) -> Counter[str]:
        """Over all optimizers."""
        own = [self.accelerator.counts] if hasattr(self, "accelerator") else [each.counts for each in self.optimizers]
        return sum(own, Counter())

    def _on_training_start(self) -> None:
        model: Any = self.model
        if isinstance(model, OffPolicyAlgorithm):
            return self._wrap(model)
        if not isinstance(model, (PPO, A2C)):
            raise TiplError(
                f"SB3Accelerator accelerates PPO, A2C and what has a replay buffer, not {type(model).__name__}."
            )
        if self._period is not None:
            raise TiplError(
                f"period has no effect on {type(model).__name__}, which jumps between update and rollout; leave it out."
            )
        policy = model.policy
        assert isinstance(policy, ActorCriticPolicy)
        named = acting_parameters(policy)

        def distribution(observations: Tensor) -> torch.distributions.Distribution:
            whole = policy.get_distribution(observations)
            made = whole.distribution
            if not isinstance(made, torch.distributions.Distribution):
                raise TiplError("SB3Accelerator takes continuous or discrete actions, not several discrete ones.")
            if getattr(whole, "bijector", None) is not None and isinstance(made, Normal):
                return _SquashedNormal(made.loc, made.scale, validate_args=False)
            return made

        acting = {id(parameter) for _, parameter in named}
        critic = [(name, each) for name, each in policy.named_parameters() if id(each) not in acting]
        self.accelerator = Accelerator(
            named, self._forecaster, distribution=distribution, jump=self._jump, fit=self._fit,
            critic=critic, optimizer=policy.optimizer,
        )  # fmt: skip
        self._batch: Batch | None = None
        self._returns: list[float] = []

    def _wrap(self, model: Any) -> None:
        """Put an optimizer that jumps in the place of the actor's, and of the critic's where it may jump."""
        if self._fit is not None:
            raise TiplError(f"fit has no effect on {type(model).__name__}; leave it out.")
        has_actor = getattr(model, "actor", None) is not None
        critic = self._jump is not None and self._jump.critic
        if critic and not has_actor:
            raise TiplError(f"critic has no effect on {type(model).__name__}, which is all critic; leave it as it is.")
        if self._jump is not None and self._jump.surrogate:
            raise TiplError(
                f"surrogate has no effect on {type(model).__name__}, whose loss is not told; give "
                "JumpConfig(surrogate=False)."
            )
        jump = self._jump and replace(self._jump, critic=False)
        self._wrapped = [model.actor, *([model.critic] if critic else [])] if has_actor else [model.policy]
        own = [part.optimizer for part in self._wrapped]
        if [each.optimizer for each in self.optimizers] != own:  # a second learn goes on with those of the first
            self.optimizers = [
                JumpingOptimizer(each, self._forecaster, jump=jump, period=self._period or _PERIOD) for each in own
            ]
        for part, optimizer in zip(self._wrapped, self.optimizers, strict=True):
            part.optimizer = optimizer

    def _on_training_end(self) -> None:
        """Leave the model with its own optimizers, as it is saved."""
        for part, optimizer in zip(self._wrapped, self.optimizers, strict=True):
            part.optimizer = optimizer.optimizer

    def _on_step(self) -> bool:
        if not self._wrapped:
            self._returns += [float(info["episode"]["r"]) for info in self.locals["infos"] if "episode" in info]
        return True

    def _on_rollout_end(self) -> None:
        if self._wrapped:
            return
        model: Any = self.model
        buffer = model.rollout_buffer
        if isinstance(buffer.observations, dict):
            raise TiplError("SB3Accelerator takes flat observations or images, not dictionaries.")

        def samples(array: Any) -> Tensor:
            """[S, E, …] to [S·E, …], a copy: the update shuffles the buffer's own."""
            return torch.as_tensor(array.reshape(-1, *array.shape[2:]).copy(), device=model.device)

        actions = samples(buffer.actions)
        if isinstance(model.action_space, spaces.Discrete):
            actions = actions.reshape(len(actions))
        else:
            actions = actions.reshape(len(actions), -1).float()  # several switches are whole numbers in the buffer
        self._batch = Batch(
            samples(buffer.observations), actions, samples(buffer.log_probs), samples(buffer.advantages), self._returns,
            self._advantages(model, model.gae_lambda) if self.accelerator.looks_back else None,
            self._advantages(model, 1.0)() if self.accelerator.weighs_outcomes else None,
        )  # fmt: skip
        self._returns = []

    def _advantages(self, model: Any, gae_lambda: float) -> Callable[[], Tensor]:
        """Advantages of the rollout that has just ended, by the critic of the moment that it is called at."""
        buffer, policy = model.rollout_buffer, model.policy
        observations = torch.as_tensor(buffer.observations.copy(), device=model.device)  # [T, E, …]
        rewards, starts = (np.array(each.T, order="C") for each in (buffer.rewards, buffer.episode_starts))  # [E, T]
        last, ended = policy.obs_to_tensor(self.locals["new_obs"])[0], np.asarray(self.locals["dones"], np.float32)

        @torch.no_grad()
        def advantages_now() -> Tensor:
            from tipl.rl.ppo import advantages_and_returns  # brings numba

            flat = observations.reshape(-1, *observations.shape[2:])
            values = policy.predict_values(flat).reshape(observations.shape[:2]).T.contiguous().cpu().numpy()
            following = policy.predict_values(last).reshape(-1).cpu().numpy()
            advantages, unused = np.empty_like(rewards), np.empty_like(rewards[0])
            for e in range(len(rewards)):
                advantages_and_returns(rewards[e], values[e], starts[e], following[e], ended[e], model.gamma,
                                       gae_lambda, advantages[e], unused)  # fmt: skip
            return torch.from_numpy(advantages.T.reshape(-1))

        return advantages_now

    def _on_rollout_start(self) -> None:
        if not self._wrapped and self._batch is not None:  # the update on it has just ended
            self.accelerator.step(self._batch)


def _learning() -> Callable[[], bool]:
    """Tells, from now on, whether the call of `learn` that is running here still is, in whichever thread."""
    frame: Any = sys._getframe()
    while frame is not None and frame.f_code.co_name != "learn":
        frame = frame.f_back
    if frame is None:
        return lambda: True

    def is_running() -> bool:
        for each in sys._current_frames().values():
            while each is not None and each is not frame:
                each = each.f_back
            if each is frame:
                return True
        return False

    return is_running


class _SquashedNormal(Normal):
    """The law of a = tanh(u), u normal: its divergences are those of u, its log-probabilities those of a."""

    def log_prob(self, value: Tensor) -> Tensor:
        inverse = TanhBijector.inverse(value)
        return super().log_prob(inverse) - torch.log(1 - torch.tanh(inverse) ** 2 + _SQUASH_EPSILON)


def _normalizer(env: VecNormalize | None, whole: Any) -> tuple[Normalizer | None, float | None]:
    """VecNormalize's statistics in the order of the flattened observations, and its clip, if it normalizes them all."""
    if env is None or not env.norm_obs:
        return None, None
    space = env.observation_space
    names = [*space.spaces] if isinstance(space, spaces.Dict) else None
    if names is not None and {*names} != {*env.obs_rms}:  # pyright: ignore[reportGeneralTypeIssues]
        return None, None

    def statistics() -> tuple[Any, Any, Any]:
        moments: Any = [env.obs_rms] if names is None else [env.obs_rms[name] for name in names]  # pyright: ignore[reportIndexIssue]
        mean = np.concatenate([each.mean.reshape(-1) for each in moments])
        var = np.concatenate([each.var.reshape(-1) for each in moments])
        frames = 1 if names else math.prod(whole.observation_space.shape) // len(mean)  # of VecFrameStack above it
        return np.tile(mean, frames), np.tile(var, frames) + (env.epsilon - VAR_EPSILON), moments[0].count

    return statistics, env.clip_obs if math.isfinite(env.clip_obs) else None


def _environment(env: Any, env_id: str | None) -> EnvId:
    """What the copies of a vector environment of Stable-Baselines3 are, seen through its wrappers."""
    frames, odd = 1, None
    partly = False  # whether the frames that are stacked are normalized ones
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecFrameStack):
            frames *= env.stacked_obs.n_stack
        elif isinstance(env, VecNormalize) and env.norm_obs:
            keys = env.observation_space.spaces if isinstance(env.observation_space, spaces.Dict) else env.obs_rms
            if frames > 1 or (isinstance(env.obs_rms, dict) and {*keys} != {*env.obs_rms}):  # pyright: ignore[reportGeneralTypeIssues]
                partly = True
        elif not isinstance(env, (VecNormalize, VecMonitor, VecCheckNan, VecVideoRecorder)):
            odd = odd or type(env).__name__
        env = env.venv
    facts = copies_described(getattr(env, "envs", None), env.get_attr, env_id)
    if isinstance(env.action_space, spaces.Discrete) and int(env.action_space.start):
        facts["first_action"] = 0  # Stable-Baselines3 hands the environment what its policy has drawn
    if frames > 1:
        facts["frames"] = frames
        shape = env.observation_space.shape
        odd = odd or (None if shape is not None and len(shape) == 1 else "VecFrameStack")
    if odd or partly:
        facts["not_run"] = f"its environments are behind {odd or 'a VecNormalize of some observations'}"
    name = env_id or facts.get("id")
    if name is None:
        raise TiplError("The environment does not say its id; give SB3Recorder env_id.")
    return EnvId(name, facts)


def _settings(model: Any) -> dict[str, Any]:
    """The algorithm, and those of its arguments that are numbers or words."""
    names = [name for name in inspect.signature(type(model)).parameters if name not in _NO_SETTINGS]
    values = {name: getattr(model, name, None) for name in names}
    return {"algorithm": type(model).__name__} | {
        name: value if not isinstance(value, float) or math.isfinite(value) else str(value)
        for name, value in values.items()
        if isinstance(value, (bool, int, float, str))
    }
