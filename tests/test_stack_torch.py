"""The stack on torch tensors against the stack of kernels: whole iterations, and its own state.

Run on the CPU; on CUDA as well where there is one.
"""

import numpy as np
import pytest
import torch
from test_stack import CARTPOLE, CHEETAH, PENDULUM, assert_same, small, small_discrete

from tipl.errors import TiplError
from tipl.presets import CollectConfig, DiscretePPOConfig, PPOConfig
from tipl.stack import Stack
from tipl.stack_torch import TorchStack

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
CONFIGS = {
    "pendulum": small(PENDULUM),
    "cheetah": small(CHEETAH, hidden_sizes=(16, 24)),
    # No setting is the default.
    "settings": small(
        PENDULUM,
        activation="elu",
        snapshot_every_epochs=1,
        ppo=PPOConfig(
            learning_rate=1e-3, anneal_lr=False, num_envs=2, num_steps=128, num_minibatches=4, update_epochs=3,
            gamma=0.9, gae_lambda=0.8, clip_coef=0.1, clip_vloss=False, norm_adv=False, ent_coef=0.02, vf_coef=0.3,
            max_grad_norm=0.1, adam_eps=1e-4,
        ),
    ),  # fmt: skip
    "discrete": small_discrete(activation="relu"),
    "normalized": small_discrete("Acrobot-v1", ppo=DiscretePPOConfig(num_envs=2, normalize=True)),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_two_iterations_are_those_of_the_kernels(config: CollectConfig, device: str) -> None:
    ours, kernels = TorchStack(config, [11, 5, 8], device=device), Stack(config, [11, 5, 8])
    for _ in range(2):
        one, other = ours.iterate(), kernels.iterate()
        assert (one.number, one.learning_rate) == (other.number, other.learning_rate)
        moved = np.abs(other.snapshots - other.snapshots[:, :1]).max()
        assert moved > 1e-3  # the tolerance below is small beside what an iteration does
        np.testing.assert_allclose(one.snapshots, other.snapshots, rtol=0, atol=1e-4)
        for found, expected in zip(one.episodes, other.episodes, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4)
    for trial in range(3):
        expected = kernels.state(trial)
        for name, array in ours.state(trial).items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", [CONFIGS["pendulum"], CONFIGS["discrete"]], ids=["pendulum", "discrete"])
def test_restore_goes_on_to_the_bit(config: CollectConfig, device: str) -> None:
    stack = TorchStack(config, [1, 2], device=device)
    for _ in range(2):
        stack.iterate()
    states = [{name: array.copy() for name, array in stack.state(trial).items()} for trial in range(2)]
    restored = TorchStack(config, [1, 2], device=device)
    restored.restore(states)
    expected, found = stack.iterate(), restored.iterate()
    for trial in range(2):
        assert_same(found, trial, expected, trial)


def test_a_state_goes_from_one_kind_of_stack_to_the_other() -> None:
    config = small(PENDULUM)
    stack = Stack(config, [4])
    stack.iterate()
    restored = TorchStack(config, [4], device="cpu")
    restored.restore([stack.state(0)])
    np.testing.assert_allclose(restored.iterate().snapshots, stack.iterate().snapshots, rtol=0, atol=1e-4)


def test_threads_of_the_environment_change_nothing() -> None:
    config = small(CHEETAH)
    one, three = (TorchStack(config, [1, 2, 3], threads=threads, device="cpu").iterate() for threads in (1, 3))
    for trial in range(3):
        assert_same(one, trial, three, trial)


def test_a_missing_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TiplError, match="no CUDA device"):
        TorchStack(small(PENDULUM), [1])
