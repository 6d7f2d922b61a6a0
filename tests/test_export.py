"""Policies in other libraries' hands act and earn as they do here.

In: a small store, tiny runs of Stable-Baselines3.  Out: failures.
"""

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from tipl import Policy, Store, TiplError, export, load_policy
from tipl.collection.random_walk import random_walk
from tipl.forecasting.forecast import forecast
from tipl.integrations.sb3 import SB3Recorder
from tipl.rl.returns import Policies, policy_returns

pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")


def policy_of_shape(
    activation: Any, clip: float | None, discrete: bool, sizes: tuple[int, ...] = (5, 7, 6, 3)
) -> Policy:
    rng = np.random.default_rng(4)
    tensors: dict[str, np.ndarray] = {}
    for n, (into, out) in enumerate(pairwise(sizes)):
        tensors |= {f"{n}.weight": rng.normal(size=(out, into)), f"{n}.bias": rng.normal(size=out)}
    if not discrete:
        tensors["log_std"] = rng.normal(size=(1, sizes[-1]))
    tensors = {name: each.astype(np.float32) for name, each in tensors.items()}
    return Policy(tensors, rng.normal(size=sizes[0]), rng.uniform(0.1, 3, sizes[0]), activation, clip)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize(("activation", "clip"), [("tanh", 1.0), ("relu", None), ("elu", 10.0)])
def test_onnx_acts_as_the_policy(tmp_path: Path, activation: Any, clip: float | None, discrete: bool):
    """Against numpy and torch, on observations that are clipped and on others, one and many at once."""
    runtime = pytest.importorskip("onnxruntime")
    policy = policy_of_shape(activation, clip, discrete)
    session = runtime.InferenceSession(export(policy, tmp_path / "p.onnx"), providers=["CPUExecutionProvider"])
    observations = (3 * np.random.default_rng(2).normal(size=(500, 5))).astype(np.float32)
    (actions,) = session.run(["actions"], {"observations": observations})
    (one,) = session.run(None, {"observations": observations[:1]})
    expected = policy(observations)
    assert actions.shape == expected.shape and actions.dtype == expected.dtype and len(one) == 1
    np.testing.assert_allclose(actions, expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(
        actions, policy.to_torch()(torch.from_numpy(observations)).detach(), rtol=2e-5, atol=2e-5
    )
    if discrete:
        assert len({*actions.tolist()}) > 1


def sb3_returns(model: Any, env: Any, seeds: np.ndarray) -> list[Any]:
    found = []
    for seed in seeds.tolist():
        env.seed(seed)
        found.append(evaluate_policy(model, env, n_eval_episodes=1, deterministic=True)[0])
    return found


@pytest.mark.parametrize(
    ("env_id", "normalized"),
    [("InvertedPendulum-v4", {"clip_obs": 2.0, "epsilon": 1e-3}), ("Pendulum-v1", None), ("CartPole-v1", {})],
)
def test_a_ppo_recorded_exported_and_loaded_again_earns_the_same(tmp_path: Path, env_id: str, normalized: Any):
    env: Any = make_vec_env(env_id, n_envs=2, seed=1)
    if normalized is not None:
        env = VecNormalize(env, **normalized)
    kwargs = {"net_arch": [8, 8], "activation_fn": torch.nn.ReLU}
    model = PPO(
        "MlpPolicy", env, n_steps=64, batch_size=64, seed=1, learning_rate=3e-3, policy_kwargs=kwargs, device="cpu"
    )
    model.learn(3 * 128, callback=SB3Recorder(tmp_path / "store", every=10))
    trial = Store.open(tmp_path / "store").trial(1)
    out = export(tmp_path / "store", tmp_path / "again.zip")
    beside = tmp_path / "again.vecnormalize.pkl"
    again = PPO.load(out)
    seeds = np.arange(50, 53)
    here, there = make_vec_env(env_id), make_vec_env(env_id)
    if normalized is None:
        assert not beside.exists()
    else:
        # The last snapshot has the normalizer of the last rollout, and after that nothing was seen.
        here = VecNormalize(here, training=False, norm_reward=False, **normalized)
        here.obs_rms = env.obs_rms
        there = VecNormalize.load(str(beside), there)
        assert not there.training and not there.norm_reward
    earned, original = sb3_returns(again, there, seeds), sb3_returns(model, here, seeds)
    np.testing.assert_allclose(earned, original, rtol=1e-6)
    last = slice(trial.committed - 1, trial.committed)
    mine = Policies(trial.weights()[last], trial.obs_mean[last], trial.obs_var[last])
    how: dict[str, Any] = {"activation": "relu", "obs_clip": trial.config["obs_clip"], "backend": "gymnasium"}
    ours = policy_returns(mine, trial.env_id, (8, 8), 3, seed=3, **how)[0]
    drawn = np.random.SeedSequence(3).generate_state(3) >> 1
    np.testing.assert_allclose(sb3_returns(again, there, drawn), ours, rtol=1e-3)
    assert len({*original}) > 1


def test_a_forecast_in_every_form(small_store: Path, tmp_path: Path):
    runtime = pytest.importorskip("onnxruntime")
    file = tmp_path / "forecast.safetensors"
    forecast(small_store, 2, 20, 10, file, episodes=0)
    policy, observations = load_policy(file), np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    again = load_policy(export(file, tmp_path / "again.safetensors"))
    np.testing.assert_array_equal(again(observations), policy(observations))
    network = policy.to_torch()
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    network.load_state_dict(torch.load(export(file, tmp_path / "p.pt"), weights_only=True))
    np.testing.assert_allclose(network(torch.from_numpy(observations)).detach(), policy(observations), atol=1e-6)
    session = runtime.InferenceSession(export(file, tmp_path / "p.onnx"))
    assert session.get_modelmeta().custom_metadata_map["env_id"] == "InvertedPendulum-v4"
    np.testing.assert_allclose(session.run(None, {"observations": observations})[0], policy(observations), atol=1e-5)
    model = PPO.load(export(file, tmp_path / "p.zip"))
    env: Any = VecNormalize.load(str(tmp_path / "p.vecnormalize.pkl"), make_vec_env("InvertedPendulum-v4"))
    actions, _ = model.predict(env.normalize_obs(observations.astype(np.float64)), deterministic=True)
    np.testing.assert_allclose(actions, np.clip(policy(observations), -3, 3), atol=1e-5)
    snapshot = load_policy(export(small_store, tmp_path / "s.safetensors", trial=3, snapshot=7))
    np.testing.assert_array_equal(snapshot(observations), Store.open(small_store).trial(3).policy(7)(observations))
    hand = export(Store.open(small_store).trial(3).policy(7), tmp_path / "h.zip", env_id="InvertedPendulum-v4")
    np.testing.assert_array_equal(PPO.load(hand).policy.log_std.detach(), snapshot.log_std)


def test_without_a_normalizer_there_is_none_to_load(tmp_path: Path):
    """As `tipl collect` stores it: a variance with which observations pass unchanged."""
    tensors = {"actor.0.weight": np.ones((2, 4), np.float32), "actor.0.bias": np.zeros(2, np.float32)}
    policy = Policy(tensors, np.zeros(4), np.full(4, 1 - 1e-8), "tanh", None)
    assert PPO.load(export(policy, tmp_path / "p.zip", env_id="CartPole-v1")).policy is not None
    assert not (tmp_path / "p.vecnormalize.pkl").exists()


def test_of_a_network_that_cannot_run_the_tensors_are_written(tmp_path: Path):
    """As Stable-Baselines3's SAC is recorded; a random walk is such a network as well."""
    store = Store.open(random_walk(tmp_path / "walk", trials=1, snapshots=4, dim=3))
    trial = store.trial(1)
    expected = trial.spec.unflatten(trial.weights(2, 3)[0])
    written = (
        torch.load(export(store.path, tmp_path / "p.pt", snapshot=2), weights_only=True),
        safetensors.numpy.load_file(export(store.path, tmp_path / "p.safetensors", snapshot=2)),
    )
    for tensors in written:
        assert {name: each.tolist() for name, each in tensors.items()} == {k: v.tolist() for k, v in expected.items()}
    with pytest.raises(TiplError, match=r"cannot act here; `tipl export … --out FILE\.pt` writes its tensors"):
        export(store.path, tmp_path / "p.onnx")


def test_what_cannot_be_exported_is_said_in_one_line(small_store: Path, tmp_path: Path, monkeypatch: Any):
    out = tmp_path / "out"
    out.mkdir()

    def refused(source: Any, name: str, **given: Any) -> str:
        with pytest.raises(TiplError) as told:
            export(source, out / name, **given)
        assert not [*out.iterdir()]
        return str(told.value)

    policy = policy_of_shape("tanh", None, False)
    assert "endings" in refused(policy, "p.bin")
    assert "give env_id" in refused(policy, "p.zip")
    assert "takes 5 numbers" in refused(policy, "p.zip", env_id="CartPole-v1")
    small = policy_of_shape("tanh", None, False, (4, 3, 2))
    assert "not for CartPole-v1" in refused(small, "p.zip", env_id="CartPole-v1")
    assert "takes 4 numbers" in refused(small, "p.zip", env_id="FrozenLake-v1")
    assert "several trials" in refused(small_store, "p.onnx")
    assert "snapshots 0 to 80" in refused(small_store, "p.onnx", trial=1, snapshot=81)
    assert "leave it out" in refused(small_store, "p.onnx", trial=1, env_id="CartPole-v1")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "tipl[onnx]" in refused(policy, "p.onnx")
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    assert "tipl[sb3]" in refused(small, "p.zip", env_id="CartPole-v1")
