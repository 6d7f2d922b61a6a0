"""The callback on real, tiny runs of Stable-Baselines3, against its own parameters and its own evaluation.

In: PPO, A2C, SAC and TD3 on Pendulum-v1 and InvertedPendulum-v4.  Out: failures.
"""

import importlib
import json
import sys
from copy import deepcopy
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import toy_envs  # noqa: F401 - registers
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize
from test_record import assert_same
from torch import nn

from tipl.acceleration.accelerator import Accelerator, _flat
from tipl.config.jumps import JumpConfig
from tipl.config.presets import EvaluateConfig
from tipl.errors import TiplError
from tipl.evaluation.evaluate import evaluate
from tipl.integrations.sb3 import SB3Accelerator, SB3Recorder
from tipl.rl.policies import policy_spec
from tipl.rl.returns import Policies, episode_seeds, policy_returns, why_not_run
from tipl.store import Store, Trial, data_verify

pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")

SHORT: dict[str, Any] = {"n_steps": 64, "batch_size": 16, "n_epochs": 2, "device": "cpu"}  # 8 optimizer steps a rollout
REPLAY: dict[str, Any] = {
    "learning_starts": 10, "buffer_size": 100, "batch_size": 8, "device": "cpu", "policy_kwargs": {"net_arch": [8, 8]},
}  # fmt: skip


def ppo_parameters(model: Any) -> list[nn.Parameter]:
    policy = model.policy
    return [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters(), policy.log_std]


def ppo_actor(policy: Any) -> np.ndarray:
    """SB3's actor as one vector: layer after layer, then the log-std."""
    parts = [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters(), policy.log_std]
    return nn.utils.parameters_to_vector(parts).detach().numpy().copy()


FREE = JumpConfig(horizon=1, full_trust=0.0, surrogate=False)  # jumps all the way, every time, where no policy is known


class Watch(BaseCallback):
    """Copies the actor, and the statistics of VecNormalize, when a rollout begins and when the training ends."""

    def __init__(self, take: Any) -> None:
        super().__init__()
        self.take, self.weights, self.means, self.steps = take, [], [], []

    def _on_rollout_start(self) -> None:
        self.weights.append(self.take(self.model.policy))
        self.steps.append(self.num_timesteps)

    def _on_rollout_end(self) -> None:
        normalizer = self.model.get_vec_normalize_env()
        moments: Any = None if normalizer is None else normalizer.obs_rms
        self.means.append(None if moments is None else moments.mean.copy())

    def _on_training_end(self) -> None:
        self._on_rollout_start()

    def _on_step(self) -> bool:
        return True


def evaluated_by_sb3(model: Any, trial: Trial, snapshot: int, seeds: np.ndarray) -> list[float]:
    """Returns of a recorded policy, loaded into the model, as SB3 itself measures them."""
    with torch.no_grad():
        vector = torch.from_numpy(trial.weights(snapshot, snapshot + 1)[0])
        policy = model.policy
        nn.utils.vector_to_parameters(
            vector, [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters(), policy.log_std]
        )
    env: Any = make_vec_env(trial.env_id)
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None:
        env = VecNormalize(
            env, training=False, norm_reward=False, clip_obs=normalizer.clip_obs, epsilon=normalizer.epsilon
        )
        # The store's variance is one to which 1e-8 is added.
        var = trial.obs_var[snapshot] + 1e-8 - normalizer.epsilon
        env.obs_rms.mean, env.obs_rms.var = trial.obs_mean[snapshot], var
    returns = []
    for seed in seeds.tolist():
        env.seed(seed)
        returns.append(evaluate_policy(model, env, n_eval_episodes=1, deterministic=True)[0])
    return returns


@pytest.mark.parametrize(
    "env_id, normalized, algorithm",
    [
        ("InvertedPendulum-v4", {}, PPO),
        ("Pendulum-v1", {"clip_obs": 0.5, "epsilon": 0.1}, PPO),
        ("Pendulum-v1", None, PPO),
        ("Pendulum-v1", {}, A2C),
    ],
)
def test_actors_of_ppo_and_a2c(tmp_path: Path, env_id: str, normalized: dict | None, algorithm: Any):
    env: Any = make_vec_env(env_id, n_envs=2, seed=4)
    if normalized is not None:
        env = VecNormalize(env, **normalized)
    settings: dict[str, Any] = SHORT | {"batch_size": 32} if algorithm is PPO else {"n_steps": 64, "device": "cpu"}
    model = algorithm("MlpPolicy", env, seed=4, learning_rate=lambda left: 1e-2 * left, **settings)
    watch, an_update = Watch(ppo_actor), 8 if algorithm is PPO else 1
    recorders = [
        SB3Recorder(tmp_path / "steps", every=an_update),
        SB3Recorder(tmp_path / "rollouts", every=2, unit="rollout", config={"note": "tiny"}),
    ]
    model.learn(8 * 128, callback=CallbackList([watch, *recorders]))

    trial, coarse = Store.open(tmp_path / "steps").trial(4), Store.open(tmp_path / "rollouts").trial(4)
    assert data_verify(tmp_path / "steps")["ok"] and trial.complete and coarse.complete
    np.testing.assert_array_equal(trial.weights(), np.stack(watch.weights))
    np.testing.assert_array_equal(coarse.weights(), np.stack(watch.weights[::2]))
    np.testing.assert_array_equal(trial.iteration, np.arange(9))
    np.testing.assert_array_equal(trial.env_step, watch.steps)
    np.testing.assert_array_equal(trial.env_step, 128 * trial.iteration)
    np.testing.assert_array_equal(coarse.env_step, trial.env_step[::2])
    np.testing.assert_allclose(trial.learning_rate, [1e-2, *(1e-2 * (1 - np.arange(1, 9) / 8))], atol=1e-12)
    if normalized is None:
        assert not trial.obs_mean.any() and (trial.obs_var == 1).all() and trial.config["obs_clip"] is None
    else:
        np.testing.assert_array_equal(trial.obs_mean[1:], np.stack(watch.means))
        assert trial.config["obs_clip"] == normalized.get("clip_obs", 10.0)
    for found, attribute in (
        (trial.episodes.episode_return, "episode_returns"),
        (trial.episodes.length, "episode_lengths"),
    ):
        monitored = [*chain.from_iterable(env.get_attr(attribute))]
        assert len(monitored) >= 4
        np.testing.assert_allclose(sorted(found), sorted(monitored), atol=1e-6)  # Monitor tells six digits
    assert trial.env_id == env_id and trial.spec == policy_spec(env.observation_space.shape[0], (64, 64), 1)
    assert coarse.config["run"]["algorithm"] == algorithm.__name__ and coarse.config["run"]["note"] == "tiny"
    assert coarse.config["run"]["n_steps"] == 64 and "stable_baselines3" in trial.versions

    seeds = episode_seeds(7, 3)
    for snapshot in (0, 5, 8):
        rows = slice(snapshot, snapshot + 1)
        policy = Policies(trial.weights(rows.start, rows.stop), trial.obs_mean[rows], trial.obs_var[rows])
        found = policy_returns(
            policy, env_id, trial.config["hidden_sizes"], 3, seed=7, backend="gymnasium",
            obs_clip=trial.config["obs_clip"],
        )  # fmt: skip
        np.testing.assert_allclose(found[0], evaluated_by_sb3(model, trial, snapshot, seeds), rtol=1e-4)


def predicted_returns(model: Any, env_id: str, seeds: np.ndarray) -> list[float]:
    """Of SB3's own deterministic policy, in Gymnasium's environment."""
    env, returns = gym.make(env_id), []
    for seed in seeds.tolist():
        (obs, _), total, over = env.reset(seed=seed), 0.0, False
        while not over:
            action, _ = model.predict(obs, deterministic=True)
            obs, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return returns


@pytest.mark.parametrize(
    "env_id, algorithm, activation_fn, activation",
    [
        ("CartPole-v1", PPO, nn.Tanh, "tanh"),
        ("CartPole-v1", A2C, nn.ReLU, "relu"),
        ("Pendulum-v1", PPO, nn.ReLU, "relu"),
        ("Pendulum-v1", A2C, nn.ELU, "elu"),
    ],
)
def test_categorical_and_other_actors_earn_what_sb3_says(
    tmp_path: Path, env_id: str, algorithm: Any, activation_fn: Any, activation: str
):
    kwargs = {"net_arch": [8, 6], "activation_fn": activation_fn}
    settings: dict[str, Any] = SHORT if algorithm is PPO else {"n_steps": 64, "device": "cpu"}
    model = algorithm("MlpPolicy", env_id, seed=4, learning_rate=1e-2, policy_kwargs=kwargs, **settings)
    model.learn(256, callback=SB3Recorder(tmp_path / "store", every=1, unit="rollout"))
    trial, discrete = Store.open(tmp_path / "store").trial(4), env_id == "CartPole-v1"
    obs_dim, outputs = (4, 2) if discrete else (3, 1)
    assert data_verify(tmp_path / "store")["ok"] and trial.complete and trial.committed == 5
    assert trial.spec == policy_spec(obs_dim, (8, 6), outputs, discrete=discrete)
    assert trial.config["activation"] == activation and trial.config["obs_clip"] is None
    last = Policies(trial.weights()[-1:], trial.obs_mean[-1:], trial.obs_var[-1:])
    found = policy_returns(
        last, env_id, trial.config["hidden_sizes"], 4, seed=7, activation=trial.config["activation"],
        backend=trial.config["backend"], obs_clip=trial.config["obs_clip"],
    )  # fmt: skip
    expected = predicted_returns(model, env_id, episode_seeds(7, 4))
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)
    assert len(set(expected)) > 1


def test_a_recorded_categorical_run_goes_through_evaluate(tmp_path: Path):
    for seed in (1, 2, 3):
        model = PPO("MlpPolicy", "CartPole-v1", seed=seed, policy_kwargs={"net_arch": [8]}, **SHORT)
        model.learn(320, callback=SB3Recorder(tmp_path / "store", every=2))
    config = EvaluateConfig(horizons=(1, 2), return_horizons=(1,), origins=4, return_origins=2, episodes=2)
    out = evaluate(tmp_path / "store", tmp_path / "eval", config)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["hidden_sizes"] == [8] and metrics["forecasters"]["persistence"]["repw"]["1"] is not None


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_actors_of_sac_and_td3(tmp_path: Path, algorithm: Any):
    passed: dict[int, list[np.ndarray]] = {}
    for seed in (0, 1):
        model = algorithm("MlpPolicy", "Pendulum-v1", seed=seed, **deepcopy(REPLAY))
        watch = Watch(lambda policy: nn.utils.parameters_to_vector(policy.actor.parameters()).detach().numpy().copy())
        model.learn(70, callback=CallbackList([watch, SB3Recorder(tmp_path / "store", every=1)]))
        passed[seed] = watch.weights
        assert list(dict(model.actor.named_parameters())) == [*Store.open(tmp_path / "store").trial(seed).spec.names]
    store = Store.open(tmp_path / "store")
    trial = store.trial(1)
    assert data_verify(store.path)["ok"] and trial.committed == (61 if algorithm is SAC else 31)
    changed = [0, *(1 + np.flatnonzero([(a != b).any() for a, b in zip(passed[1], passed[1][1:], strict=False)]))]
    np.testing.assert_array_equal(trial.weights(), np.stack(passed[1])[changed])
    np.testing.assert_array_equal(trial.iteration, changed)
    np.testing.assert_array_equal(trial.env_step, changed)

    config = EvaluateConfig(horizons=(1, 5), return_horizons=(1,), origins=4)
    with pytest.raises(TiplError, match=r"none that can be run .* pass --no-returns"):
        evaluate(store.path, tmp_path / "eval", config)
    evaluate(store.path, tmp_path / "eval", config, returns=False)


def test_other_actors_are_stored_under_their_own_names(tmp_path: Path):
    def names(**settings: Any) -> tuple[str, ...]:
        store = tmp_path / str(len(list(tmp_path.iterdir())))
        model = A2C("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", **settings)
        model.learn(5, callback=SB3Recorder(store, every=1))
        trial = Store.open(store).trial(0)
        assert trial.config["hidden_sizes"] is None and trial.spec.size == trial.weights().shape[1]
        return trial.spec.names

    layers = ("actor_mean.0.weight", "actor_mean.0.bias", "actor_mean.2.weight", "actor_mean.2.bias")
    assert names(policy_kwargs={"net_arch": [8], "activation_fn": nn.GELU}) == ("actor_logstd", *layers)
    policy_net = ("mlp_extractor.policy_net.0.weight", "mlp_extractor.policy_net.0.bias")
    expected = ("log_std", *policy_net, "action_net.weight", "action_net.bias")
    assert names(use_sde=True, policy_kwargs={"net_arch": [8]}) == expected


class Stop(BaseCallback):
    def _on_step(self) -> bool:
        if self.num_timesteps == 200:
            raise KeyboardInterrupt
        return True


def test_a_seeded_script_that_was_stopped_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tipl.collection.record.COMMIT_SECONDS", 0.0)

    def learn(store: Path, *also: BaseCallback) -> Trial:
        model = PPO("MlpPolicy", VecNormalize(make_vec_env("InvertedPendulum-v4", seed=1)), seed=1, **SHORT)
        model.learn(320, callback=CallbackList([SB3Recorder(store, every=3), *also]))
        return Store.open(store).trial(1)

    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "stopped", Stop())
    assert Store.open(tmp_path / "stopped").trial(1).committed == 9  # three rollouts of 8 optimizer steps
    assert_same(learn(tmp_path / "stopped"), learn(tmp_path / "whole"))


def test_what_cannot_be_recorded_is_said(tmp_path: Path):
    class Nameless(gym.Wrapper):
        spec = None  # pyright: ignore[reportAssignmentType]

    def refused(message: str, model: Any, every: int = 1) -> None:
        with pytest.raises(TiplError, match=message):
            model.learn(1, callback=SB3Recorder(tmp_path / "store", every=every))
        assert not (tmp_path / "store").exists()

    refused("every is 0", A2C("MlpPolicy", "Pendulum-v1", seed=0, device="cpu"), every=0)
    refused("A trial has a seed", A2C("MlpPolicy", "Pendulum-v1", device="cpu"))
    nameless = DummyVecEnv([lambda: Nameless(gym.make("Pendulum-v1"))])
    refused("does not say its id; give SB3Recorder env_id", A2C("MlpPolicy", nameless, seed=0, device="cpu"))
    model = A2C("MlpPolicy", nameless, device="cpu")
    model.learn(5, callback=SB3Recorder(tmp_path / "store", 3, every=1, env_id="Pendulum-v1"))
    assert Store.open(tmp_path / "store").trial(3).env_id == "Pendulum-v1"


@pytest.mark.parametrize("algorithm", [PPO, A2C])
@pytest.mark.parametrize("env_id", ["InvertedPendulum-v4", "CartPole-v1"])
def test_an_accelerator_moves_the_actor_between_update_and_rollout(env_id: str, algorithm: Any):
    watch = Watch(lambda policy: nn.utils.parameters_to_vector(policy.parameters()).detach().numpy().copy())
    accelerate = SB3Accelerator("line", jump=JumpConfig(full_trust=0.0, max_kl=1e9, surrogate=False, fall=0.0))
    before, after = deepcopy(watch), watch
    settings: dict[str, Any] = SHORT if algorithm is PPO else {"n_steps": 64, "device": "cpu"}
    model = algorithm("MlpPolicy", VecNormalize(make_vec_env(env_id, seed=1)), seed=1, **settings)
    model.learn(320, callback=CallbackList([before, accelerate, after]))
    named = [(name, p.numel()) for name, p in model.policy.named_parameters()]
    acts = np.concatenate([np.full(size, "value" not in name and "log_std" not in name) for name, size in named])
    assert accelerate.accelerator.counts == {"accepted": 4}
    for at in range(1, 5):  # the first rollout has no update before it
        moved = after.weights[at] - before.weights[at]
        came = before.weights[at] - after.weights[at - 1]
        assert not moved[~acts].any()
        np.testing.assert_allclose(moved[acts], 4 * came[acts], rtol=1e-2, atol=2e-6)


class Returns(BaseCallback):
    """Advantages with λ = 1 of every rollout, by the buffer itself, beside a Batch's outcomes."""

    def __init__(self, accelerator: SB3Accelerator) -> None:
        super().__init__()
        self.accelerator, self.pairs = accelerator, []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        model: Any = self.model
        buffer = deepcopy(model.rollout_buffer)
        buffer.gae_lambda = 1.0
        with torch.no_grad():
            last = model.policy.predict_values(torch.as_tensor(self.locals["new_obs"]))
        buffer.compute_returns_and_advantage(last, self.locals["dones"])
        assert self.accelerator._batch is not None and self.accelerator._batch.outcomes is not None
        self.pairs.append((self.accelerator._batch.outcomes.reshape(buffer.rewards.shape), buffer.advantages))


def test_an_accelerator_takes_outer_steps_critic_and_gradients_from_the_model() -> None:
    """What PPO's policy and critic went through in an update, times σ; A2C's optimizer has no moments of Adam."""
    watch = Watch(lambda policy: nn.utils.parameters_to_vector(policy.parameters()).detach().numpy().copy())
    before, after = deepcopy(watch), watch
    jump = JumpConfig(full_trust=0.0, max_kl=1e-30, evidence=True, critic=True)
    accelerate = SB3Accelerator("outer:sigma=1.5+context", jump=jump)
    model = PPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=2, seed=1), seed=1, **SHORT)
    outcomes = Returns(accelerate)
    model.learn(640, callback=CallbackList([before, accelerate, after, outcomes]))
    assert accelerate.counts == {"rejected": 4}
    for found, expected in outcomes.pairs:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    for at in range(1, 5):
        came = before.weights[at] - after.weights[at - 1]
        np.testing.assert_allclose(after.weights[at] - before.weights[at], 0.5 * came, rtol=1e-2, atol=1e-6)
    buffer, batch = model.rollout_buffer, accelerate._batch
    assert batch is not None and batch.renewed is not None and model._last_episode_starts is not None
    with torch.no_grad():
        found = batch.renewed().reshape(buffer.rewards.shape)
        values = model.policy.predict_values(batch.observations)
        last = model.policy.predict_values(torch.as_tensor(model._last_obs))
    buffer.values = values.reshape(buffer.rewards.shape).numpy()
    buffer.advantages = np.zeros_like(buffer.rewards)
    buffer.compute_returns_and_advantage(last.flatten(), model._last_episode_starts)
    np.testing.assert_allclose(found, buffer.advantages, rtol=1e-4, atol=1e-5)
    other = A2C("MlpPolicy", "CartPole-v1", seed=1, device="cpu")
    with pytest.raises(TiplError, match="Adam's moments, and there is RMSprop"):
        other.learn(10, callback=SB3Accelerator("context"))


@pytest.mark.parametrize("critic", [False, True])
@pytest.mark.parametrize("algorithm", [SAC, TD3, DQN])
def test_an_accelerator_of_a_replay_buffer_jumps_after_so_many_optimizer_steps(algorithm: Any, critic: bool):
    """Up to the first jump the run is the plain one to the bit; then it is not, and only what may jump has jumped."""
    if algorithm is DQN and critic:
        return
    env_id = "CartPole-v1" if algorithm is DQN else "Pendulum-v1"
    settings = {"seed": 1, "device": "cpu", "learning_starts": 20, "train_freq": 1, "policy_kwargs": {"net_arch": [8]}}
    if algorithm is TD3:
        settings["policy_delay"] = 1

    def run(*callbacks: BaseCallback) -> tuple[Any, np.ndarray]:
        watch = Watch(lambda policy: nn.utils.parameters_to_vector(policy.parameters()).detach().numpy().copy())
        model = algorithm("MlpPolicy", env_id, **settings).learn(100, callback=CallbackList([*callbacks, watch]))
        return model, np.array(watch.weights)

    accelerate = SB3Accelerator("line", jump=replace(FREE, critic=critic), period=20)
    model, accelerated = run(accelerate)
    plain = run()[1]
    assert sum(accelerate.counts.values()) == (2 if critic else 1) * 80 // 20
    assert accelerate.counts["accepted"] == sum(accelerate.counts.values())
    differ = np.flatnonzero((accelerated != plain).any(axis=1))
    first = 20 + 20  # a row a step of the environment, of which the first 20 come without an update
    np.testing.assert_array_equal(differ, np.arange(first, len(plain)))
    names = np.concatenate([np.full(p.numel(), name) for name, p in model.policy.named_parameters()])
    jumped = set(names[accelerated[first] != plain[first]])
    parts = {part for name in jumped if not (part := name.partition(".")[0]).endswith("_target")}
    assert parts == ({"q_net"} if algorithm is DQN else {"actor", "critic"} if critic else {"actor"})
    inner = model.policy.optimizer if algorithm is DQN else model.actor.optimizer
    assert type(inner) is torch.optim.Adam


def test_an_accelerator_of_another_algorithm_is_refused():
    refusals: list[tuple[str, Any, SB3Accelerator]] = [
        ("period has no effect on PPO", PPO, SB3Accelerator(period=10)),
        ("fit has no effect on SAC", SAC, SB3Accelerator(fit="anywhere")),
        ("critic has no effect on DQN", DQN, SB3Accelerator(jump=replace(FREE, critic=True))),
        ("surrogate has no effect on SAC", SAC, SB3Accelerator(jump=JumpConfig(horizon=1))),
        ("period is 7 and snapshots_per_iteration 5", SAC, SB3Accelerator(period=7)),
        ("max_kl has no effect", SAC, SB3Accelerator(jump=replace(FREE, max_kl=0.5))),
    ]
    for said, algorithm, callback in refusals:
        env_id = "CartPole-v1" if algorithm is DQN else "Pendulum-v1"
        with pytest.raises(TiplError, match=said):
            algorithm("MlpPolicy", env_id, seed=0, device="cpu").learn(5, callback=callback)
    with pytest.raises(TiplError, match="period"):
        SB3Accelerator(period=0)


def test_without_stable_baselines3_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    monkeypatch.delitem(sys.modules, "tipl.integrations.sb3")
    with pytest.raises(TiplError, match=r"pip install 'tipl\[sb3\]'"):
        importlib.import_module("tipl.integrations.sb3")


def recorded(store: Path, env: Any, policy: Any = "MlpPolicy", *, algorithm: Any = PPO, **settings: Any) -> Trial:
    """A trial of one rollout; the model that made it trains no further."""
    model = algorithm(policy, env, seed=1, device="cpu", **{"n_steps": 64, "learning_rate": 1e-2, **settings})
    model.learn(64, callback=SB3Recorder(store, every=1, unit="rollout"))
    return Store.open(store).trial(1)


def assert_earns_what_sb3_says(trial: Trial, store_env: Any, policy: Any = "MlpPolicy", **settings: Any) -> None:
    """The last snapshot, loaded into a policy of Stable-Baselines3 in the environment of training, by hand."""
    model: Any = PPO(policy, store_env, seed=1, device="cpu", **settings)
    with torch.no_grad():
        actor = [*model.policy.mlp_extractor.policy_net.parameters(), *model.policy.action_net.parameters()]
        log_std = [] if isinstance(model.action_space, spaces.Discrete) else [model.policy.log_std]
        nn.utils.vector_to_parameters(torch.from_numpy(trial.weights()[-1]), [*actor, *log_std])
    env, expected = model.env, []
    for seed in episode_seeds(0, 2).tolist():
        env.seed(seed)
        obs, total, over = env.reset(), 0.0, np.array([False])
        while not over.any():
            obs, reward, over, _ = env.step(model.predict(obs, deterministic=True)[0])
            total += float(reward[0])
        expected.append(total)
    assert why_not_run(trial) is None
    policies = Policies(trial.weights()[-1:], trial.obs_mean[-1:], trial.obs_var[-1:])
    found = policy_returns(
        policies, trial.env_id, trial.config["hidden_sizes"], 2, obs_clip=trial.config["obs_clip"],
        activation=trial.config["activation"],
    )  # fmt: skip
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)
    assert len(set(expected)) == 2


def rescaled() -> gym.Env:
    return gym.wrappers.RescaleAction(gym.make("Pendulum-v1"), np.float32(-1), np.float32(1))


def named_parts() -> gym.Env:
    return gym.make("toy/Parts-v0")


@pytest.mark.parametrize(
    "env, policy, settings",
    [
        (lambda: gym.make("Pendulum-v1", g=1.62, max_episode_steps=50), "MlpPolicy", {}),
        (rescaled, "MlpPolicy", {"policy_kwargs": {"activation_fn": nn.ELU, "net_arch": {"pi": [7], "vf": [5]}}}),
        (lambda: VecFrameStack(DummyVecEnv([rescaled]), 3), "MlpPolicy", {}),
        (lambda: VecMonitor(DummyVecEnv([lambda: gym.make("toy/Draws-v0", scale=2.0)])), "MlpPolicy", {}),
        (lambda: gym.make("FrozenLake-v1", is_slippery=True, map_name="8x8"), "MlpPolicy", {}),
    ],
)
def test_policies_are_run_in_the_environment_that_they_were_trained_in(
    tmp_path: Path, env: Any, policy: str, settings: dict
):
    trial = recorded(tmp_path / "s", env(), policy, **settings)
    if trial.env_id == "FrozenLake-v1":  # hardly ever reaches its goal
        assert why_not_run(trial) is None and trial.obs_mean.shape[1] == 64
    else:
        assert_earns_what_sb3_says(trial, env(), policy, **settings)


def test_actions_count_from_where_the_training_has_them(tmp_path: Path):
    """Stable-Baselines3 hands over 0, 1 or 2 where the space begins at 5."""
    trial = recorded(tmp_path, gym.make("toy/Five-v0"))
    assert trial.env_id.spec["first_action"] == 0 and why_not_run(trial) is None
    weights = np.zeros_like(trial.weights()[:1])
    weights[0, -1] = 1.0  # the last bias: always the third action
    policies = Policies(weights, trial.obs_mean[:1], trial.obs_var[:1])
    assert policy_returns(policies, trial.env_id, [64, 64], 1, obs_clip=None)[0, 0] == 2 * sum(range(1, 11))


def test_a_dict_of_observations_is_run_as_one_flat_one(tmp_path: Path):
    trial = recorded(tmp_path / "s", named_parts(), "MultiInputPolicy")
    assert trial.config["hidden_sizes"] == [64, 64] and why_not_run(trial) is None
    assert trial.obs_mean.shape[1] == 8
    both = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]), clip_obs=float("inf"))
    assert recorded(tmp_path / "t", both, max_grad_norm=float("inf")).config["obs_clip"] is None


def test_environments_in_other_processes(tmp_path: Path):
    env = SubprocVecEnv([lambda: gym.make("Pendulum-v1", g=3.0)] * 2, start_method="fork")
    trial = recorded(tmp_path / "s", env)
    env.close()
    assert trial.env_id.spec["kwargs"] == {"g": 3.0} and why_not_run(trial) is None


class Squashed(ActorCriticPolicy):
    def _get_action_dist_from_latent(self, latent_pi: torch.Tensor) -> Any:
        return self.action_dist.proba_distribution(torch.tanh(self.action_net(latent_pi)), self.log_std)


def test_a_policy_that_computes_something_else_is_not_taken_for_its_parameters(tmp_path: Path):
    trial = recorded(tmp_path / "s", gym.make("Pendulum-v1"), Squashed)
    assert trial.config["hidden_sizes"] is None and "log_std" in trial.spec.names
    odd = [
        DummyVecEnv([lambda: gym.wrappers.TransformObservation(gym.make("Pendulum-v1"), lambda o: -o, None)]),
        VecFrameStack(VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")])), 2),
        DummyVecEnv([lambda: gym.make("Pendulum-v1"), lambda: gym.make("Pendulum-v1", g=2.0)]),
    ]
    for at, env in enumerate(odd):
        reason = why_not_run(recorded(tmp_path / str(at), env))
        assert reason is not None and reason.startswith("cannot be run: its environment"), reason


def test_hooks_end_with_the_call_that_they_were_made_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tipl.collection.record.COMMIT_SECONDS", 0.0)
    model = PPO("MlpPolicy", "InvertedPendulum-v4", seed=1, **SHORT)
    recorder = SB3Recorder(tmp_path, every=1)
    with pytest.raises(KeyboardInterrupt):
        model.learn(640, callback=CallbackList([recorder, Stop()]))
    before = Store.open(tmp_path).trial(1).committed
    model.learn(320)
    trial = Store.open(tmp_path).trial(1)
    assert trial.committed == before > 1 and not trial.complete
    with pytest.raises(TiplError, match="has recorded its trial already"):
        model.learn(64, callback=recorder)


def test_several_calls_of_learn_are_one_trial_where_that_is_asked(tmp_path: Path):
    def model() -> PPO:
        return PPO("MlpPolicy", "InvertedPendulum-v4", seed=1, **SHORT)

    parts, callback = model(), SB3Recorder(tmp_path / "parts", every=1, unit="rollout", complete=False)
    for _ in range(2):
        parts.learn(128, callback=callback, reset_num_timesteps=False)
        assert not Store.open(tmp_path / "parts").trial(1).complete
    callback.recorder.close()
    trial = Store.open(tmp_path / "parts").trial(1)
    assert trial.complete and trial.env_step.tolist() == [0, 64, 128, 192, 256]
    now = nn.utils.parameters_to_vector(ppo_parameters(parts)).detach().numpy()
    np.testing.assert_array_equal(trial.weights()[-1], now)
    again, closed = model(), SB3Recorder(tmp_path / "one", every=1)
    again.learn(64, callback=closed)
    with pytest.raises(TiplError, match="let the first one have complete=False"):
        again.learn(64, callback=closed)


def test_dqn_is_recorded_by_its_q_network(tmp_path: Path):
    model = DQN("MlpPolicy", "CartPole-v1", seed=3, device="cpu", learning_starts=10, train_freq=1)
    model.learn(40, callback=SB3Recorder(tmp_path, every=10))
    trial = Store.open(tmp_path).trial(3)
    now = nn.utils.parameters_to_vector(model.q_net.parameters()).detach().numpy()
    assert (trial.config["hidden_sizes"] is None and trial.committed == 3) or trial.committed == 4
    assert trial.spec.size == now.size and (trial.weights()[0] != trial.weights()[-1]).any()


@pytest.mark.parametrize(
    "env, settings",
    [
        ("Pendulum-v1", {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
        ("Pendulum-v1", {"use_sde": True}),
        ("toy/Switches-v0", {}),
    ],
)
def test_an_unchanged_policy_is_judged_unchanged(env: str, settings: dict, monkeypatch: pytest.MonkeyPatch):
    """At learning rate 0 the policy is the one that made the batch: no divergence, no gain."""
    judged, judge_of = [], Accelerator._judge

    def spy(self: Any, batch: Any) -> Any:
        judge = judge_of(self, batch)
        judged.append(judge(_flat(self._parameters)))
        return judge

    monkeypatch.setattr(Accelerator, "_judge", spy)
    model = PPO("MlpPolicy", env, seed=1, n_steps=64, learning_rate=0.0, device="cpu", **settings)
    model.learn(128, callback=SB3Accelerator("line"))
    assert judged and abs(judged[-1].change) < 1e-4 and abs(judged[-1].surrogate) < 1e-3
