"""A policy as one of Stable-Baselines3 (`pip install 'tipl[sb3]'`).

In: a policy and its environment.  Out: OUT for `PPO.load`, and OUT.vecnormalize.pkl for `VecNormalize.load`.

Nothing is believed: the two have to act as the policy does, or nothing is written.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import MultiBinary, MultiDiscrete
from torch import nn

from tipl.config.env_spec import EnvId
from tipl.errors import TiplError
from tipl.files import write_file
from tipl.rl.envs import GymnasiumEnv
from tipl.store.policy import VAR_EPSILON, Policy

NORMALIZER = ".vecnormalize.pkl"
_TRIED = 16  # observations at which both act
_ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}


def normalizer_path(out: Path) -> Path:
    """Where the normalizer of a model lies: policy.vecnormalize.pkl beside policy.zip."""
    return out.with_name(out.stem + NORMALIZER)


def write_ppo(policy: Policy, env_id: EnvId, out: Path) -> None:
    """Write both, the model last.

    Raises:
        TiplError: Stable-Baselines3 is not installed, or has no such policy.
    """
    try:
        from stable_baselines3 import PPO
        from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
    except ImportError as error:
        raise TiplError(f"This takes Stable-Baselines3 ({error}): pip install 'tipl[sb3]'.") from error
    env = GymnasiumEnv(env_id, [0])
    _require_flat(env, env_id, policy)
    copies = DummyVecEnv([lambda: env.copies[0]])
    sizes = [len(bias) for _, bias in policy.layers[:-1]]
    kwargs = {"net_arch": {"pi": sizes, "vf": sizes}, "activation_fn": _ACTIVATIONS[policy.activation]}
    model: Any = PPO("MlpPolicy", copies, policy_kwargs=kwargs, device="cpu")
    acting = [*model.policy.mlp_extractor.policy_net.parameters(), *model.policy.action_net.parameters()]
    tensors = [each for layer in policy.layers for each in layer]
    if policy.log_std is not None:
        acting, tensors = [*acting, model.policy.log_std], [*tensors, policy.log_std]
    with torch.no_grad():
        for parameter, tensor in zip(acting, tensors, strict=True):
            parameter.copy_(torch.as_tensor(np.array(tensor)))
    normalizer: Any = None
    deviation = np.sqrt(policy.obs_var + VAR_EPSILON)
    if policy.obs_clip is not None or policy.obs_mean.any() or np.abs(deviation - 1).max() > VAR_EPSILON:
        clip = np.inf if policy.obs_clip is None else policy.obs_clip
        normalizer = VecNormalize(copies, training=False, norm_reward=False, clip_obs=clip, epsilon=VAR_EPSILON)
        normalizer.obs_rms.mean, normalizer.obs_rms.var = policy.obs_mean.copy(), policy.obs_var.copy()
    _require_alike(policy, model, normalizer, env_id)
    with tempfile.TemporaryDirectory(prefix="tipl-") as scratch:
        made = Path(scratch, "policy.zip")
        if normalizer is not None:
            normalizer.save(str(made.with_suffix(NORMALIZER)))
            write_file(normalizer_path(out), made.with_suffix(NORMALIZER).read_bytes())
        model.save(made)
        write_file(out, made.read_bytes())


def _require_flat(env: GymnasiumEnv, env_id: EnvId, policy: Policy) -> None:
    shape = getattr(env.obs_space, "shape", None)
    if shape != (len(policy.obs_mean),):
        raise TiplError(
            f"{env_id} gives {env.obs_space}, and the policy takes {len(policy.obs_mean)} numbers; for "
            "Stable-Baselines3 only policies of flat observations are written: take .onnx or .pt."
        )
    if isinstance(env.copies[0].action_space, MultiDiscrete | MultiBinary):
        raise TiplError(f"{env_id} takes several discrete actions, here one number; take .onnx or .pt.")
    outputs = len(policy.layers[-1][1])
    if env.policy_outputs != outputs or env.discrete != (policy.log_std is None):
        raise TiplError(
            f"The policy is not for {env_id}: it has {outputs} outputs; give the environment that it is for."
        )
    if env.discrete and env.first_action != 0:
        raise TiplError(f"{env_id} counts its actions from {env.first_action}, which Stable-Baselines3 does not.")


@torch.no_grad()
def _require_alike(policy: Policy, model: Any, normalizer: Any, env_id: EnvId) -> None:
    space = model.observation_space
    deviation = np.sqrt(policy.obs_var + VAR_EPSILON)
    drawn = np.random.default_rng(0).standard_normal((_TRIED, len(policy.obs_mean)))
    observations = np.clip(policy.obs_mean + deviation * drawn, space.low, space.high)
    seen = observations if normalizer is None else normalizer.normalize_obs(observations)
    actions = model.policy._predict(torch.as_tensor(seen, dtype=torch.float32), deterministic=True).numpy()
    if not np.allclose(actions, policy(observations), rtol=1e-4, atol=1e-5):
        raise TiplError(f"Stable-Baselines3's policy for {env_id} acts otherwise than this one; take .onnx or .pt.")
