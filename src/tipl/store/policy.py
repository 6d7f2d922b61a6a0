"""A policy in hand: a snapshot with its normalizer, as a function from observations to actions.

In: a trial's snapshot, or a file that `tipl forecast` wrote.  Out: actions, in numpy; the same as a torch module.

The package's own runs use compiled kernels (rl/kernels.py), which compute the same; here are no engine, numba or torch.

Shapes: N observations of O numbers, F outputs of the network, P weights.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

from tipl.bundle import read_bundle
from tipl.checks import Place, checked, checked_arguments, is_address
from tipl.config.presets import Activation
from tipl.errors import TiplError
from tipl.files import Damaged
from tipl.remote.pull import pulled

if TYPE_CHECKING:
    from torch import nn

# A policy sees (obs − mean) / √(var + VAR_EPSILON), clipped to ± OBS_CLIP: Gymnasium's NormalizeObservation, then
# CleanRL's TransformObservation.
OBS_CLIP, VAR_EPSILON = 10.0, 1e-8
POLICY_FILE = "policy.safetensors"
"""What a policy's file is called in the folder that it is published as."""
_ADVICE = "write it again with `tipl forecast`"
_FACTS = {"config": dict, "param_spec": [{"name": str}], "env_id": str}


@dataclass(frozen=True, eq=False)
class Policy:
    """A policy that acts: `actions = policy(observations)`. `Trial.policy` and `tipl.load_policy` make one.

    tensors: by name, of each layer the weight [out, in] and the bias [out]; last the log standard deviations [1, F],
        without which actions are discrete.
    obs_mean, obs_var: [O] float64, of the normalizer that it is run with.
    activation: of the hidden layers.
    obs_clip: normalized observations are held within ± this; None: as they are.
    """

    tensors: Mapping[str, np.ndarray]
    obs_mean: np.ndarray
    obs_var: np.ndarray
    activation: Activation = "tanh"
    obs_clip: float | None = OBS_CLIP

    def __post_init__(self) -> None:
        widths = [len(self.obs_mean), *(len(bias) for _, bias in self.layers)]
        shapes = [weight.shape for weight, _ in self.layers]
        fits = shapes == [(out, into) for into, out in pairwise(widths)] and len(self.obs_var) == len(self.obs_mean)
        if not shapes or not fits or (self.log_std is not None and len(self.log_std) != widths[-1]):
            raise TiplError("These tensors are no network from these observations; load them into a network of yours.")

    @property
    def layers(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The weight [out, in] and the bias [out] of each layer."""
        parts = list(self.tensors.values())
        return list(zip(parts[0::2], parts[1::2], strict=False))

    @property
    def log_std(self) -> np.ndarray | None:
        """[F], where actions are continuous."""
        parts = list(self.tensors.values())
        return parts[-1].reshape(-1) if len(parts) % 2 else None

    def __call__(self, observations: Any, rng: np.random.Generator | None = None) -> np.ndarray:
        """Return the actions at raw observations.

        Args:
            observations: [N, O], or one, [O], as the environment gives them.
            rng: draws actions from the policy; default: the mean action, of discrete ones the most likely.

        Returns:
            float32 [N, F], not clipped to the environment's bounds; or, of discrete actions, int64 [N], counted from 0.
            Without N of one observation.

        Raises:
            TiplError: the observations are of another size, or not finite.
        """
        rng = checked("`rng`", rng, np.random.Generator | None)
        x = self._normalized(observations)
        for number, (weight, bias) in enumerate(self.layers, 1):
            x = x @ weight.T + bias
            x = x if number == len(self.layers) else _ACTIVATIONS[self.activation](x)
        if self.log_std is None:
            return np.argmax(x if rng is None else x + rng.gumbel(size=x.shape), axis=-1)
        return x if rng is None else x + np.exp(self.log_std) * rng.standard_normal(x.shape, np.float32)

    def _normalized(self, observations: Any) -> np.ndarray:
        try:
            raw = np.asarray(observations, np.float64)
        except (TypeError, ValueError) as error:
            raise TiplError(f"Observations are no array of numbers ({error}).") from error
        if raw.ndim not in (1, 2) or raw.shape[-1] != len(self.obs_mean):
            raise TiplError(
                f"Observations have the shape {list(raw.shape)}, and this policy takes {len(self.obs_mean)} numbers; "
                f"give [N, {len(self.obs_mean)}]."
            )
        if not np.isfinite(raw).all():
            raise TiplError("An observation is not finite; mend the environment.")
        z = (raw - self.obs_mean) / np.sqrt(self.obs_var + VAR_EPSILON)
        return (z if self.obs_clip is None else np.clip(z, -self.obs_clip, self.obs_clip)).astype(np.float32)

    def to_torch(self) -> "nn.Module":
        """Return an `nn.Module` that gives the same mean or most likely actions [N, F] or [N] at raw observations.

        Its parameters are copies that train, by the names of CleanRL's agents; `heads` gives means or logits. Save its
        `state_dict()`: the class is made here, so that a policy is read without torch, and does not pickle.
        """
        return _torch_policy()(self)


@functools.cache
def _torch_policy() -> Any:
    import torch
    from torch import Tensor, nn

    class TorchPolicy(nn.Module):
        obs_mean: Tensor
        obs_deviation: Tensor

        def __init__(self, policy: Policy) -> None:
            super().__init__()
            modules: list[nn.Module] = []
            for weight, bias in policy.layers:
                linear = nn.Linear(weight.shape[1], weight.shape[0])
                linear.weight, linear.bias = (nn.Parameter(torch.as_tensor(np.array(each))) for each in (weight, bias))
                modules += [linear, {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}[policy.activation]()]
            deviation = np.sqrt(policy.obs_var + VAR_EPSILON)
            self.register_buffer("obs_mean", torch.as_tensor(np.array(policy.obs_mean, np.float64)))
            self.register_buffer("obs_deviation", torch.as_tensor(np.array(deviation, np.float64)))
            self.discrete, self.obs_clip = policy.log_std is None, policy.obs_clip
            setattr(self, "actor" if self.discrete else "actor_mean", nn.Sequential(*modules[:-1]))
            if policy.log_std is not None:
                self.actor_logstd = nn.Parameter(torch.as_tensor(np.array(policy.log_std)).reshape(1, -1))

        def heads(self, observations: Tensor) -> Tensor:
            z = (observations.double() - self.obs_mean) / self.obs_deviation
            z = z if self.obs_clip is None else z.clamp(-self.obs_clip, self.obs_clip)
            network: Any = self.actor if self.discrete else self.actor_mean
            return network(z.float())

        def forward(self, observations: Tensor) -> Tensor:
            heads = self.heads(observations)
            return heads.argmax(dim=-1) if self.discrete else heads

    return TorchPolicy


_ACTIVATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, np.float32(0)))),
}


def policy_of(
    config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], obs_mean: np.ndarray, obs_var: np.ndarray, what: str
) -> Policy:
    """Return the policy of a trial's settings.

    Raises:
        TiplError: its network is not one that is known here.
    """
    if not isinstance(config.get("hidden_sizes"), list) or config.get("activation", "tanh") not in _ACTIVATIONS:
        raise TiplError(
            f"The network of {what} is not known (Linear and Tanh, ReLU or ELU in turn, to logits or to means with a "
            "log-std), so it cannot act here; `tipl export … --out FILE.pt` writes its tensors, for your own."
        )
    clip = checked("obs_clip", config.get("obs_clip", OBS_CLIP), float | None)
    return Policy(tensors, obs_mean, obs_var, config.get("activation", "tanh"), clip)


@checked_arguments
def load_policy(path: Place) -> Policy:
    """Return the policy in a file that `tipl forecast` wrote, with the normalizer of its origin.

    Args:
        path: the .safetensors file; hf://USER/NAME of one that was published, or the folder that it was pulled to.

    Raises:
        TiplError: there is no such file, it cannot be fetched or is damaged, or its network is not known here.
    """
    return read_policy(policy_file(path))[0]


def policy_file(place: Place) -> Path:
    """Return the file of a policy; of hf://USER/NAME it is fetched.

    Raises:
        TiplError: there is none of that name, or it cannot be fetched.
    """
    path = pulled(place) if isinstance(place, str) and is_address(place) else Path(place)
    return path / POLICY_FILE if path.is_dir() else path


def read_policy(path: Path) -> tuple[Policy, dict[str, Any]]:
    """Return the policy in a file, and its facts: `env_id` and `config` of its trial. Raises as `load_policy` does."""
    tensors, facts = read_bundle(path, _FACTS, safetensors.numpy, _ADVICE)
    names = [row["name"] for row in facts["param_spec"]]
    missing = next((name for name in [*names, "obs_mean", "obs_var"] if name not in tensors), None)
    if missing is not None:
        raise Damaged(f"{path} has no tensor {missing!r}; {_ADVICE}.")
    own = {name: tensors[name] for name in names}
    policy = policy_of(facts["config"], own, tensors["obs_mean"], tensors["obs_var"], f"the policy in {path}")
    return policy, facts
