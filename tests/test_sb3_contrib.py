"""Agents of sb3-contrib, recorded on real, tiny runs.

In: Pendulum-v1 and CartPole-v1.  Out: failures.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.env_util import make_vec_env

from tipl import JumpConfig, Store, TiplError
from tipl.integrations.sb3 import SB3Accelerator, SB3Recorder
from tipl.rl.returns import why_not_run

contrib = pytest.importorskip("sb3_contrib", reason="needs sb3-contrib: pip install sb3-contrib")

ON_POLICY: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "device": "cpu", "seed": 3}
OFF_POLICY: dict[str, Any] = {"learning_starts": 16, "buffer_size": 100, "batch_size": 8, "device": "cpu", "seed": 3}
SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": [6, 5]}}
AGENTS: dict[str, tuple[str, dict[str, Any], str, tuple[str, ...]]] = {
    # environment, settings, unit, what of the policy is not the actor's
    "TRPO": ("Pendulum-v1", ON_POLICY | SMALL, "rollout", ("mlp_extractor.value_net", "value_net")),
    "MaskablePPO": ("CartPole-v1", ON_POLICY | SMALL, "gradient step", ("mlp_extractor.value_net", "value_net")),
    "RecurrentPPO": (
        "CartPole-v1", ON_POLICY | {"policy_kwargs": {"net_arch": [6], "lstm_hidden_size": 4}}, "gradient step",
        ("mlp_extractor.value_net", "value_net", "lstm_critic"),
    ),
    "TQC": ("Pendulum-v1", OFF_POLICY | SMALL, "gradient step", ("critic", "critic_target")),
    "CrossQ": ("Pendulum-v1", OFF_POLICY | SMALL, "gradient step", ("critic", "critic_target")),
    "QRDQN": ("CartPole-v1", OFF_POLICY | SMALL, "gradient step", ("quantile_net_target",)),
    "ARS": ("CartPole-v1", {"n_delta": 2, "device": "cpu", "seed": 3} | SMALL, "rollout", ()),
}  # fmt: skip


class Last(BaseCallback):
    """Copies all parameters of the policy when the training ends."""

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        named = self.model.policy.named_parameters()
        self.parameters = {name: each.detach().numpy().copy() for name, each in named}


@pytest.mark.parametrize("name", AGENTS)
def test_agents_of_sb3_contrib_are_recorded(tmp_path: Path, name: str):
    """The last snapshot holds every parameter that acts, to the bit, and the first ones others."""
    from sb3_contrib.common.wrappers import ActionMasker

    env_id, settings, unit, others = AGENTS[name]
    policy = {"RecurrentPPO": "MlpLstmPolicy"}.get(name, "MlpPolicy")
    masked: Any = (lambda env: ActionMasker(env, lambda _: np.ones(2, np.bool_))) if name == "MaskablePPO" else None
    env = make_vec_env(env_id, seed=3, wrapper_class=masked)
    model, last = getattr(contrib, name)(policy, env, **deepcopy(settings)), Last()
    model.learn(96, callback=CallbackList([last, SB3Recorder(tmp_path / "s", every=1, unit=unit)]))  # pyright: ignore
    trial = Store.open(tmp_path / "s").trial(3)
    acting = [each for each in last.parameters if not each.startswith(others)]
    assert trial.complete and 0 < len(acting) == len(trial.spec.names)
    path = trial.weights()
    ends = np.concatenate([last.parameters[each].reshape(-1) for each in _in_order(acting, name)])
    np.testing.assert_array_equal(path[-1], ends)
    assert len(path) > 2 and np.abs(path[-1] - path[0]).max() > 0
    assert trial.config["run"]["algorithm"] == name
    reason = why_not_run(trial)
    assert (reason is None) == (name == "TRPO"), reason


def _in_order(acting: list[str], name: str) -> list[str]:
    """As they are stored: TRPO's under CleanRL's names, the log-std last."""
    return [*acting[1:], acting[0]] if name == "TRPO" else acting


@pytest.mark.parametrize("name", ["TRPO", "ARS"])
def test_actors_without_optimizer_steps_are_recorded_by_the_rollout(tmp_path: Path, name: str):
    env_id, settings, *_ = AGENTS[name]
    model = getattr(contrib, name)("MlpPolicy", env_id, **deepcopy(settings))
    with pytest.raises(TiplError, match="unit='rollout'"):
        model.learn(64, callback=SB3Recorder(tmp_path / "s", every=1))
    assert not (tmp_path / "s").exists()


def test_what_has_no_optimizer_is_not_accelerated():
    with pytest.raises(TiplError, match="a replay buffer, not ARS"):
        contrib.ARS("LinearPolicy", "CartPole-v1", n_delta=2, device="cpu").learn(5, callback=SB3Accelerator())


def test_tqc_jumps_as_sac_does():
    accelerate = SB3Accelerator("line", jump=JumpConfig(horizon=1, full_trust=0.0, surrogate=False), period=20)
    model = contrib.TQC("MlpPolicy", "Pendulum-v1", **OFF_POLICY)
    model.learn(model.learning_starts + 60, callback=accelerate)
    assert sum(accelerate.counts.values()) == 60 // 20
