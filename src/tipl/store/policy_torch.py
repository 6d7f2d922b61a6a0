"""A stored policy as a torch module.

In: a `Policy`.  Out: an `nn.Module` with its normalizer, whose parameters have the names of CleanRL's agents.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tipl.config.presets import Activation

_ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}


class TorchPolicy(nn.Module):
    """The network (`actor_mean` and `actor_logstd`, or `actor`) and the normalizer (buffers) of a policy."""

    obs_mean: Tensor
    obs_deviation: Tensor

    def __init__(
        self,
        layers: Sequence[tuple[np.ndarray, np.ndarray]],
        log_std: np.ndarray | None,
        activation: Activation,
        obs_mean: np.ndarray,
        obs_deviation: np.ndarray,
        obs_clip: float | None,
    ) -> None:
        """As `Policy` has them; `layers`: the weight [out, in] and the bias [out] of each."""
        super().__init__()
        modules: list[nn.Module] = []
        for weight, bias in layers:
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.weight, linear.bias = (nn.Parameter(torch.from_numpy(np.array(each))) for each in (weight, bias))
            modules += [linear, _ACTIVATIONS[activation]()]
        network = nn.Sequential(*modules[:-1])
        self.discrete, self.obs_clip = log_std is None, obs_clip
        self.register_buffer("obs_mean", torch.from_numpy(np.array(obs_mean, np.float64)))
        self.register_buffer("obs_deviation", torch.from_numpy(np.array(obs_deviation, np.float64)))
        if log_std is None:
            self.actor = network
        else:
            self.actor_mean = network
            self.actor_logstd = nn.Parameter(torch.from_numpy(np.array(log_std)).reshape(1, -1))

    def heads(self, observations: Tensor) -> Tensor:
        """Return what the network gives at raw observations [N, O]: means or logits [N, F]."""
        z = (observations.double() - self.obs_mean) / self.obs_deviation
        z = z if self.obs_clip is None else z.clamp(-self.obs_clip, self.obs_clip)
        return (self.actor if self.discrete else self.actor_mean)(z.float())

    def forward(self, observations: Tensor) -> Tensor:
        """Return the mean actions [N, F] at raw observations [N, O], or the most likely ones, [N] from 0."""
        heads = self.heads(observations)
        return heads.argmax(dim=-1) if self.discrete else heads
