"""Checkpoints of others as stores: real ones of Stable-Baselines3 against its own evaluation; what is refused.

In: tiny trainings, state dicts, archives.  Out: the same weights in order of steps; the same returns; one line.
"""

import json
import os
import pickle
import shutil
import zipfile
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from tipl import EvaluateConfig, Store, TiplError, data_import, data_verify, evaluate, forecast, policy_returns
from tipl.catalog.card import read_card
from tipl.cli.main import main
from tipl.rl.returns import Policies, episode_seeds, why_not_run
from tipl.store import Trial

pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")

SHORT: dict[str, Any] = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "device": "cpu"}
FAST: dict[str, Any] = {"policy_kwargs": {"net_arch": [8, 8]}}


@pytest.fixture(scope="module")
def sb3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty checkpoints of PPO with VecNormalize, as CheckpointCallback leaves them."""
    folder = tmp_path_factory.mktemp("sb3") / "logs"
    env = VecNormalize(make_vec_env("Pendulum-v1", seed=1), clip_obs=5.0)
    model = PPO("MlpPolicy", env, seed=1, policy_kwargs={"net_arch": [8, 8], "activation_fn": nn.ReLU}, **SHORT)
    model.learn(50 * 64, callback=CheckpointCallback(64, str(folder), save_vecnormalize=True))
    assert len([*folder.glob("rl_model_*_steps.zip")]) == 50
    return folder


def save_normalizers(folder: Path) -> None:
    """What the refusal of a pickle tells the user to do."""
    for path in folder.glob("*vecnormalize*.pkl"):
        env = pickle.loads(path.read_bytes())
        name = path.with_suffix(".npz")
        np.savez(name, obs_mean=env.obs_rms.mean, obs_var=env.obs_rms.var, obs_count=env.obs_rms.count,
                 clip_obs=env.clip_obs, epsilon=env.epsilon)  # fmt: skip


def returns_here(trial: Trial, t: int, episodes: int) -> np.ndarray:
    how = {name: trial.config[name] for name in ("activation", "backend", "obs_clip")}
    policies = Policies(trial.weights(t, t + 1), trial.obs_mean[t : t + 1], trial.obs_var[t : t + 1])
    return policy_returns(policies, trial.env_id, trial.config["hidden_sizes"], episodes, **how)[0]


def returns_there(path: Path, env_id: str, normalizer: Path | None, episodes: int, algorithm: Any = PPO) -> np.ndarray:
    env: Any = make_vec_env(env_id)
    if normalizer is not None:
        env = VecNormalize.load(str(normalizer), env)
        env.training = env.norm_reward = False
    model = algorithm.load(path, device="cpu")
    found = []
    for seed in episode_seeds(0, episodes).tolist():
        env.seed(seed)
        found.append(evaluate_policy(model, env, n_eval_episodes=1, deterministic=True)[0])
    return np.array(found)


def test_fifty_checkpoints_of_sb3_earn_what_sb3_says(sb3: Path, tmp_path: Path, capsys: Any) -> None:
    folder = shutil.copytree(sb3, tmp_path / "logs")
    out = tmp_path / "store"
    line = ["data", "import", str(folder), "--out", str(out), "--env-id", "Pendulum-v1"]
    assert main(line) == 2 and not out.exists()
    told = capsys.readouterr().err
    assert "_vecnormalize_1024_steps.pkl is a pickle, which can run code and is not opened. Save" in told
    assert told.count("\n") == 1
    save_normalizers(folder)
    assert main(line) == 0
    store = Store.open(out)
    trial = store.trial(1)
    assert data_verify(out)["ok"] and why_not_run(trial) is None
    assert trial.env_step.tolist() == [64 * n for n in range(1, 51)]
    assert trial.config["hidden_sizes"] == [8, 8] and trial.config["activation"] == "relu"
    assert trial.config["run"]["algorithm"] == "PPO" and trial.config["run"]["gamma"] == 0.99
    policy = PPO.load(folder / "rl_model_3200_steps.zip", device="cpu").policy
    parts = [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters(), policy.log_std]
    np.testing.assert_array_equal(trial.weights()[-1], nn.utils.parameters_to_vector(parts).detach().numpy())
    for t in (0, 17, 49):
        name = folder / f"rl_model_{64 * (t + 1)}_steps.zip"
        pickled = folder / f"rl_model_vecnormalize_{64 * (t + 1)}_steps.pkl"
        expected = returns_there(name, "Pendulum-v1", pickled, 3)
        np.testing.assert_allclose(returns_here(trial, t, 3), expected, rtol=1e-4)
    assert read_card(out)["algorithm"] == "PPO" and "does not say: license, citation" in capsys.readouterr().err


def test_what_was_imported_is_forecast_and_judged(sb3: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sb3, tmp_path / "logs")
    save_normalizers(folder)
    out = data_import([folder] * 3, tmp_path / "store", env_id="Pendulum-v1", seed=5)
    assert Store.open(out).seeds == [5, 6, 7]
    config = EvaluateConfig(
        horizons=(1, 5), return_horizons=(1,), origins=2, return_origins=2, episodes=2, spectrum_trials=0
    )
    found = json.loads((evaluate(out, tmp_path / "eval", config) / "metrics.json").read_text())
    assert found["test_trials"] == [7] and found["forecasters"]["persistence"]["repw"]["1"] is not None
    made = forecast(out, 7, 40, 5, tmp_path / "f.safetensors")
    assert made.horizon == 5


@pytest.mark.parametrize(("algorithm", "env_id"), [(PPO, "CartPole-v1"), (A2C, "CartPole-v1"), (A2C, "Pendulum-v1")])
def test_other_algorithms_and_actions(tmp_path: Path, algorithm: Any, env_id: str) -> None:
    model = algorithm("MlpPolicy", env_id, seed=1, device="cpu", n_steps=64, **deepcopy(FAST))
    (tmp_path / "run").mkdir()
    for number in (9, 10):
        model.learn(64, reset_num_timesteps=False)
        model.save(tmp_path / f"run/model-{number}")
    trial = Store.open(data_import([tmp_path / "run"], tmp_path / "store", env_id=env_id)).trial(1)
    assert trial.env_step.tolist() == [64, 128] and trial.config["run"]["algorithm"] == algorithm.__name__
    expected = returns_there(tmp_path / "run/model-10.zip", env_id, None, 3, algorithm)
    np.testing.assert_allclose(returns_here(trial, 1, 3), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("algorithm", "env_id", "settings", "names", "why"),
    [
        (SAC, "Pendulum-v1", FAST, ("latent_pi", "mu", "log_std"), "none that is known"),
        (DQN, "CartPole-v1", FAST, ("q_net",), "none that is known"),
        (PPO, "Pendulum-v1", FAST | {"use_sde": True}, ("mlp_extractor", "action_net", "log_std"), "gSDE"),
        (
            PPO, "Pendulum-v1", {"policy_kwargs": {"activation_fn": nn.GELU, "net_arch": [8]}},
            ("mlp_extractor", "action_net", "log_std"), "its activation is not known",
        ),
    ],
)  # fmt: skip
def test_networks_that_cannot_be_run_are_judged_by_weights(
    tmp_path: Path, capsys: Any, algorithm: Any, env_id: str, settings: dict[str, Any], names: tuple[str, ...], why: str
) -> None:
    model = algorithm("MlpPolicy", env_id, device="cpu", **deepcopy(settings))
    (tmp_path / "run").mkdir()
    for step in range(1, 7):
        for parameter in model.policy.parameters():
            parameter.data += 0.01 * step
        model.num_timesteps = step
        model.save(tmp_path / f"run/step_{step}")
    out = data_import([tmp_path / "run"] * 3, tmp_path / "store", env_id="Pendulum-v1")
    trial = Store.open(out).trial(2)
    assert {name.split(".")[0] for name in trial.spec.names} == set(names)
    assert trial.config["hidden_sizes"] is None and why in capsys.readouterr().err
    config = EvaluateConfig(horizons=(1,), return_horizons=(1,), origins=2, spectrum_trials=0)
    evaluate(out, tmp_path / "eval", config, returns=False)
    with pytest.raises(TiplError, match="is not known"):
        trial.policy(0)


# Other formats.


def agent(step: int, discrete: bool = False, hidden: int = 4) -> nn.Module:
    """CleanRL's."""
    torch.manual_seed(step)
    made = nn.Module()
    sizes = [3, hidden, hidden, 2]
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.Tanh())][:-1]
    made.critic = nn.Sequential(nn.Linear(3, 1))
    if discrete:
        made.actor = nn.Sequential(*layers)
    else:
        made.actor_mean, made.actor_logstd = nn.Sequential(*layers), nn.Parameter(torch.zeros(1, 2))
    return made


def acting(module: nn.Module) -> np.ndarray:
    named = {name: p for name, p in module.named_parameters() if not name.startswith("critic")}
    order = sorted(named, key=lambda name: name == "actor_logstd")
    return torch.cat([named[name].reshape(-1) for name in order]).detach().numpy()


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("kind", ["cleanrl_model", "pt", "nested.pth", "compiled.pt", "safetensors", "npz"])
def test_state_dicts(tmp_path: Path, kind: str, discrete: bool, capsys: Any) -> None:
    for step in (100, 9, 20):
        state = agent(step, discrete).state_dict()
        path = tmp_path / f"run/agent_{step}.{kind}"
        path.parent.mkdir(exist_ok=True)
        match kind:
            case "safetensors":
                safetensors.torch.save_file(state, path)
            case "npz":
                np.savez(path, **{name: each.numpy() for name, each in state.items()})
            case "nested.pth":
                torch.save({"epoch": step, "model_state_dict": state, "optimizer": {}}, path)
            case "compiled.pt":
                torch.save({f"_orig_mod.{name}": each for name, each in state.items()}, path)
            case _:
                torch.save(state, path)
    (tmp_path / "run/notes.txt").write_text("of another kind")
    trial = Store.open(data_import([tmp_path / "run"], tmp_path / "store", env_id="Nowhere-v0")).trial(1)
    assert trial.env_step.tolist() == [9, 20, 100] and trial.config["hidden_sizes"] == [4, 4]
    np.testing.assert_array_equal(trial.weights(), np.stack([acting(agent(step, discrete)) for step in (9, 20, 100)]))
    observations = torch.randn(5, 3)
    with torch.no_grad():
        network: Any = agent(20, discrete)
        heads = (network.actor if discrete else network.actor_mean)(observations)
    expected = heads.argmax(1) if discrete else heads
    np.testing.assert_allclose(trial.policy(1)(observations.numpy()), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert "to be judged by weights" in capsys.readouterr().err  # there is no such environment


def test_normalizers_in_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for step in (1, 2):
        state = {name: each.numpy() for name, each in agent(step).state_dict().items()}
        np.savez(tmp_path / f"run/{step}.npz", **state, obs_mean=np.full(3, 1.5 * step), obs_var=np.full(3, 2.0),
                 obs_count=100 * step, epsilon=0.5)  # fmt: skip
    trial = Store.open(data_import([tmp_path / "run"], tmp_path / "store", env_id="Nowhere-v0")).trial(1)
    assert trial.obs_mean.tolist() == [[1.5] * 3, [3.0] * 3] and trial.config["obs_clip"] == 10
    np.testing.assert_allclose(trial.obs_var, 2.5 - 1e-8, rtol=1e-12)
    assert trial.config["hidden_sizes"] == [4, 4]


def test_hub_revisions_in_shards_and_half_precision(tmp_path: Path) -> None:
    """As RELEX publishes a run: a folder a revision, bfloat16, in several files."""
    expected = []
    for step in (50, 100, 150):
        folder = tmp_path / f"relex/step_{step}"
        folder.mkdir(parents=True)
        torch.manual_seed(step)
        tensors = {f"model.layers.{i}.weight": torch.randn(6, 4, dtype=torch.bfloat16) for i in range(4)}
        for shard in range(2):
            part = {name: each for i, (name, each) in enumerate(tensors.items()) if i // 2 == shard}
            safetensors.torch.save_file(part, folder / f"model-0000{shard + 1}-of-00002.safetensors")
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../../etc/passwd"}}')
        expected.append(torch.cat([each.float().reshape(-1) for each in tensors.values()]).numpy())
    trial = Store.open(data_import([tmp_path / "relex"], tmp_path / "store", env_id="gsm8k")).trial(1)
    assert trial.env_step.tolist() == [50, 100, 150] and trial.spec.names[1] == "model.layers.1.weight"
    np.testing.assert_array_equal(trial.weights(), np.stack(expected))
    some = data_import([tmp_path / "relex"], tmp_path / "some", env_id="gsm8k", tensors=["model.layers.[12].*"])
    np.testing.assert_array_equal(Store.open(some).trial(1).weights(), np.stack(expected)[:, 24:72])
    with pytest.raises(TiplError, match=r"There is no tensor 'x\*' to take; there are: model\.layers\.0\.weight"):
        data_import([tmp_path / "relex"], tmp_path / "none", env_id="gsm8k", tensors=["x*"])


def test_artifacts_of_wandb(tmp_path: Path) -> None:
    for version in (0, 1, 10):
        folder = tmp_path / f"artifacts/run-abc123-model:v{version}"
        folder.mkdir(parents=True)
        torch.save(agent(version).state_dict(), folder / "agent.pt")
        (folder / "metadata.json").write_text("{}")
    trial = Store.open(data_import([tmp_path / "artifacts"], tmp_path / "store", env_id="Nowhere-v0")).trial(1)
    assert trial.env_step.tolist() == [0, 1, 10]


# What is refused.


def _save(path: Path, step: int = 1, **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(agent(step, **how).state_dict(), path)


def _code(path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {path.parent / 'ran'}",)

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"w": Runs()}, path)


def _pickled_arrays(path: Path) -> None:
    np.savez(path, w=np.array([{}], dtype=object))


def _sb3_said(path: Path, steps: int) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        torch.save(agent(1).state_dict(), path.with_suffix(".tmp"))
        archive.write(path.with_suffix(".tmp"), "policy.pth")
        archive.writestr("data", json.dumps({"num_timesteps": steps}))
    path.with_suffix(".tmp").unlink()


def _broken_array(path: Path) -> None:
    np.savez(path, w=np.arange(1000.0))
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)


def _normalized(path: Path, size: int) -> None:
    np.savez(path, obs_mean=np.zeros(size), obs_var=np.ones(size))


def _another_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../policy.pth", "x")


def _named_outside(path: Path) -> None:
    safetensors.torch.save_file({"../../w": torch.zeros(2)}, path)


def _link(path: Path) -> None:
    _save(path.parents[1] / "real.pt")
    path.symlink_to(path.parents[1] / "real.pt")


REFUSED: dict[str, tuple[list[tuple[str, Any]], str]] = {
    "another shape in the middle": (
        [("a_1.pt", _save), ("a_2.pt", lambda p: _save(p, hidden=5)), ("a_3.pt", _save)],
        r"a_2\.pt has actor_mean\.0\.weight of the shape \[5, 3\], and .*a_1\.pt has it of \[4, 3\]",
    ),
    "another network": (
        [("a_1.pt", _save), ("a_2.pt", lambda p: _save(p, discrete=True))], r"a_2\.pt has no actor_mean\.0\.weight",
    ),
    "one step twice": ([("a_1.pt", _save), ("a_01.pt", _save)], r"a_1\.pt are both of step 1; move one of them away"),
    "steps that go back": (
        [("m_1.zip", lambda p: _sb3_said(p, 200)), ("m_2.zip", lambda p: _sb3_said(p, 100))],
        r"m_2\.zip was saved at 100 environment steps, and the checkpoint before it by name at 200",
    ),
    "two kinds": (
        [(name, _save) for name in ("Env-v1.pt", "a_1.pt", "a_2.pt")], r"in more than a number; .* --files 'a_\*\.pt'",
    ),
    "two numbers": ([("a_1_seed_1.pt", _save), ("a_2_seed_2.pt", _save)], "differ in several numbers"),
    "no number": ([("best.pt", _save)], r"best\.pt has no step in its name"),
    "nothing": ([("a.txt", lambda p: p.write_text("x"))], r"has no checkpoints: files of \.safetensors"),
    "code": ([("a_1.pt", _code)], r"a_1\.pt cannot be read as a checkpoint"),
    "no state dict": ([("a_1.pt", lambda p: torch.save(torch.zeros(3), p))], "holds no state dict, tensors by name"),
    "whole numbers": ([("a_1.pt", lambda p: torch.save({"w": torch.zeros(3, dtype=torch.int8)}, p))], "no tensors of"),
    "noise": ([("a_1.safetensors", lambda p: p.write_bytes(b"x" * 100))], "cannot be read as a checkpoint"),
    "cut short": ([("a_1.pt", lambda p: (_save(p), p.write_bytes(p.read_bytes()[:700])))], "cannot be read as"),
    "pickled arrays": ([("a_1.npz", _pickled_arrays)], "holds pickled objects, which can run code and are not opened"),
    "another zip": ([("a_1.zip", _another_zip)], "is no model that Stable-Baselines3 saved: it has no policy.pth"),
    "other bits": ([("a_1.npz", _broken_array)], r"a_1\.npz cannot be read as a checkpoint \(Bad CRC-32"),
    "normalizers of two sizes": (
        [("a_1.pt", _save), ("a_2.pt", _save), ("normalizer_1.npz", lambda p: _normalized(p, 3)),
         ("normalizer_2.npz", lambda p: _normalized(p, 4))],
        "Step 2 has no normalizer like the others'",
    ),
    "a name outside": ([("a_1.safetensors", _named_outside)], r"a tensor called '\.\./\.\./w', which is no name"),
    "a link": ([("a_1.pt", _link)], r"a_1\.pt is a link, which is not followed"),
    "half a normalizer": (
        [("a_1.pt", _save), ("normalizer_1.npz", lambda p: np.savez(p, obs_mean=np.zeros(3)))],
        r"The normalizer beside .*a_1\.pt has no obs_mean and obs_var; save it with",
    ),
    "a normalizer of other observations": (
        [("a_1.pt", _save), ("normalizer_1.npz", lambda p: np.savez(p, obs_mean=np.zeros(4), obs_var=np.ones(4)))],
        "has 4 means and the network 3 inputs",
    ),
    "a normalizer for some": (
        [("a_1.pt", _save), ("a_2.pt", _save),
         ("normalizer_1.npz", lambda p: np.savez(p, obs_mean=np.zeros(3), obs_var=np.ones(3)))],
        "Step 2 has no normalizer like the others'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_one_line_and_nothing_half_written(tmp_path: Path, capsys: Any, case: str) -> None:
    files, told = REFUSED[case]
    folder = tmp_path / "in/run"
    folder.mkdir(parents=True)
    for name, write in files:
        write(folder / name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TiplError, match=told) as error:
        data_import([folder], tmp_path / "store", env_id="Nowhere-v0")
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_refusals_of_the_call(tmp_path: Path) -> None:
    _save(tmp_path / "run/a_1.pt")
    with pytest.raises(TiplError, match="There is nothing to import"):
        data_import([], tmp_path / "store", env_id="x")
    with pytest.raises(TiplError, match="is no folder; give the folder that the checkpoints of one run lie in"):
        data_import([tmp_path / "run/a_1.pt"], tmp_path / "store", env_id="x")
    with pytest.raises(TiplError, match="run exists already; give another --out"):
        data_import([tmp_path / "run"], tmp_path / "run", env_id="x")
    _save(tmp_path / "other/a_1.pt", hidden=5)
    with pytest.raises(TiplError, match="A store holds trials that differ in nothing but their seeds"):
        data_import([tmp_path / "run", tmp_path / "other"], tmp_path / "store", env_id="x")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "other"}
