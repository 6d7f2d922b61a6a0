"""The batch on torch tensors against the batch of kernels: whole iterations, and its own state.

Run on the CPU; on CUDA as well where there is one.
"""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from test_trial_batch import PENDULUM, assert_same, small, small_discrete

from tipl.cli.main import main
from tipl.collection.collect import collect, run_stack
from tipl.collection.settings import trial_config
from tipl.config.presets import CollectConfig, Device, DiscretePPOConfig, PPOConfig
from tipl.errors import TiplError
from tipl.rl.trial_batch import TrialBatch
from tipl.rl.trial_batch_torch import TorchTrialBatch
from tipl.store import Store, create_store, data_verify

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
CONFIGS = {
    "pendulum": small(PENDULUM),
    # Two actions. HalfCheetah makes of the last bit of an action another run within 60 steps.
    "reacher": small("Reacher-v4", hidden_sizes=(16, 24)),
    # No setting is the default.
    "settings": small(
        PENDULUM,
        activation="elu",
        snapshot_every_epochs=1,
        ppo=PPOConfig(
            learning_rate=1e-3,
            anneal_lr=False,
            num_envs=2,
            num_steps=128,
            num_minibatches=4,
            update_epochs=3,
            gamma=0.9,
            gae_lambda=0.8,
            clip_coef=0.1,
            clip_vloss=False,
            norm_adv=False,
            ent_coef=0.02,
            vf_coef=0.3,
            max_grad_norm=0.1,
            adam_eps=1e-4,
        ),
    ),
    "discrete": small_discrete(activation="relu"),
    "normalized": small_discrete("Acrobot-v1", ppo=DiscretePPOConfig(num_envs=2, normalize=True)),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_two_iterations_are_those_of_the_kernels(config: CollectConfig, device: Device) -> None:
    ours, kernels = TorchTrialBatch(config, [11, 5, 8], device=device), TrialBatch(config, [11, 5, 8])
    for _ in range(2):
        one, other = ours.iterate(), kernels.iterate()
        assert (one.number, one.learning_rate) == (other.number, other.learning_rate)
        moved = np.abs(other.snapshots - other.snapshots[:, :1]).max()
        assert moved > 1e-3  # the tolerance below is small beside what an iteration does
        np.testing.assert_allclose(one.snapshots, other.snapshots, rtol=0, atol=1e-4)
        # What `accelerate` judges a jump by.
        np.testing.assert_allclose(ours.log_probs, kernels.log_probs, rtol=0, atol=1e-4)
        np.testing.assert_allclose(ours.advantages, kernels.advantages, rtol=1e-3, atol=1e-3)
        for found, expected in zip(one.episodes, other.episodes, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4)
    for trial in range(3):
        expected = kernels.state(trial)
        for name, array in ours.state(trial).items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", [CONFIGS["pendulum"], CONFIGS["discrete"]], ids=["pendulum", "discrete"])
def test_restore_goes_on_to_the_bit(config: CollectConfig, device: Device) -> None:
    batch = TorchTrialBatch(config, [1, 2], device=device)
    for _ in range(2):
        batch.iterate()
    states = [{name: array.copy() for name, array in batch.state(trial).items()} for trial in range(2)]
    restored = TorchTrialBatch(config, [1, 2], device=device)
    restored.restore(states)
    expected, found = batch.iterate(), restored.iterate()
    for trial in range(2):
        assert_same(found, trial, expected, trial)


def test_a_state_goes_from_one_kind_of_stack_to_the_other() -> None:
    config = small(PENDULUM)
    batch = TrialBatch(config, [4])
    batch.iterate()
    restored = TorchTrialBatch(config, [4], device="cpu")
    restored.restore([batch.state(0)])
    np.testing.assert_allclose(restored.iterate().snapshots, batch.iterate().snapshots, rtol=0, atol=1e-4)


def test_threads_of_the_environment_change_nothing() -> None:
    one, three = (TorchTrialBatch(small(PENDULUM), [1, 2, 3], threads=threads, device="cpu") for threads in (1, 3))
    for _ in range(2):
        expected, found = one.iterate(), three.iterate()
        for trial in range(3):
            assert len(expected.episodes[trial]) > 5
            assert_same(found, trial, expected, trial)


@pytest.mark.parametrize("begins_on_torch", [True, False])
def test_a_store_begun_with_one_kind_goes_on_with_the_other(begins_on_torch: bool, tmp_path: Path) -> None:
    config = small(PENDULUM, trials=2, total_steps=256 * 3)
    kinds = functools.partial(TorchTrialBatch, threads=2, device="cpu"), TrialBatch
    first, second = kinds if begins_on_torch else kinds[::-1]
    path = create_store(tmp_path / "store").path
    run_stack(config, path, config.seeds, lambda *_: None, stopped=lambda: True, make_batch=first)
    assert [Store.open(path).trial(seed).committed for seed in config.seeds] == [3, 3] and data_verify(path)["ok"]
    run_stack(config, path, config.seeds, lambda *_: None, make_batch=second)
    assert data_verify(path)["ok"]
    batch = TrialBatch(config, config.seeds)
    results = [batch.iterate() for _ in range(3)]
    for n, seed in enumerate(config.seeds):
        trial = Store.open(path).trial(seed)
        assert trial.complete and trial.config == trial_config(config) and "numba" in trial.versions
        assert (trial.versions.get("device"), "torch" in trial.versions) == (
            ("cpu", True) if begins_on_torch else (None, False)
        )
        weights = np.concatenate([result.snapshots[n] for result in results])
        np.testing.assert_allclose(trial.weights()[1:], weights, rtol=0, atol=1e-4)
        episodes = np.concatenate([result.episodes[n] for result in results])
        np.testing.assert_allclose(np.stack(trial.episodes, 1), episodes, rtol=1e-4)
    collect(config, path)  # both kinds' trials are complete trials of this config


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_collected_on_a_gpu(tmp_path: Path) -> None:
    config = small(PENDULUM, trials=3, total_steps=256 * 2)
    gpu, cpu = (Store.open(collect(config, tmp_path / device, device=device)) for device in ("cuda", "cpu"))
    assert data_verify(gpu.path)["ok"]
    for seed in config.seeds:
        assert gpu.trial(seed).complete and gpu.trial(seed).versions["device"].startswith("cuda")
        np.testing.assert_allclose(gpu.trial(seed).weights(), cpu.trial(seed).weights(), rtol=0, atol=1e-4)


def test_a_missing_gpu_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TiplError, match="no CUDA device"):
        TorchTrialBatch(small(PENDULUM), [1])
    assert main(["collect", "--device", "cuda", "--out", str(tmp_path / "store")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tipl: error: --device cuda: ") and error.count("\n") == 1
    assert not (tmp_path / "store").exists()
