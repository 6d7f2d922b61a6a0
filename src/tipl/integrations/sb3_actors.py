"""What of a model of Stable-Baselines3 or sb3-contrib acts, and what trains it.

In: a model.  Out: an actor under CleanRL's names where the package's kernels can run it, otherwise its parameters.

Models are known by the names of their classes, since sb3-contrib need not be installed.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import Tensor, nn
from torch.distributions import Normal

from tipl.collection.flat import tried, undisturbed
from tipl.collection.recorded_actor import large_weights
from tipl.errors import TiplError

ON_POLICY = ("PPO", "A2C", "TRPO", "MaskablePPO", "RecurrentPPO")
KNOWN = (*ON_POLICY, "DQN", "QRDQN", "SAC", "TD3", "TQC", "CrossQ", "ARS")
WITHOUT_STEPS = ("TRPO", "ARS")
"""Those whose actors no optimizer steps."""
_CRITIC = ("value_net", "mlp_extractor.value_net", "vf_features_extractor", "lstm_critic", "critic")
_LIBRARIES = ("stable_baselines3", "sb3_contrib")
_TRIED = 16  # observations at which a network is held against its policy


def kind_of(model: Any) -> str:
    """Return the name of a model's algorithm, or of the one that it derives from.

    Raises:
        TiplError: it is none that is known here.
    """
    for each in type(model).__mro__:
        if each.__name__ in KNOWN and each.__module__.partition(".")[0] in _LIBRARIES:
            return each.__name__
    raise TiplError(f"SB3Recorder records {', '.join(KNOWN)}, not {type(model).__name__}.")


def acting_parameters(policy: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Those of an actor-critic that are not its critic's alone."""
    return [(name, each) for name, each in policy.named_parameters() if not name.startswith(_CRITIC)]


def actor_of(model: Any) -> tuple[nn.Module | Sequence[tuple[str, Tensor]], Any]:
    """Return what of a model acts, and the optimizer that trains it, or whose learning rate is the model's."""
    match kind_of(model):
        case "DQN":
            return list(model.q_net.named_parameters()), model.policy.optimizer
        case "QRDQN":
            return list(model.quantile_net.named_parameters()), model.policy.optimizer
        case "SAC" | "TD3" | "TQC" | "CrossQ":
            return list(model.actor.named_parameters()), model.actor.optimizer
        case "ARS":  # never stepped: it knows the learning rate
            parameters = list(model.policy.named_parameters())
            return parameters, torch.optim.SGD([each for _, each in parameters], lr=model.lr_schedule(1.0))
    policy = model.policy
    named = acting_parameters(policy)
    if (
        not isinstance(policy, ActorCriticPolicy)  # MaskablePPO's acts by a mask as well
        or type(policy.action_dist) not in (DiagGaussianDistribution, CategoricalDistribution)
        or type(policy.mlp_extractor) is not MlpExtractor
        or any(True for _ in policy.pi_features_extractor.parameters())
        or hasattr(policy, "lstm_actor")
    ):
        return named, policy.optimizer
    actor = nn.Module()  # the same parameters under CleanRL's names
    network = nn.Sequential(*policy.mlp_extractor.policy_net, policy.action_net)
    if type(policy.action_dist) is CategoricalDistribution:
        actor.actor = network
    else:
        actor.actor_mean, actor.actor_logstd = network, policy.log_std
    return (actor if _acts_by(policy, network) else named), policy.optimizer


@torch.no_grad()
def _acts_by(policy: ActorCriticPolicy, network: nn.Module) -> bool:
    """Whether a policy's distribution and its actions are what the network makes of flattened observations.

    Tried with large weights, which are taken back: an actor begins with outputs so small that tanh changes nothing.
    """
    log_stds = [policy.log_std] if isinstance(policy.action_dist, DiagGaussianDistribution) else []
    parameters = [*network.parameters(), *log_stds]
    size = sum(parameter.numel() for parameter in parameters)
    with undisturbed(parameters, policy), tried(parameters, large_weights(size)):
        return _acts_by_now(policy, network)


def _acts_by_now(policy: ActorCriticPolicy, network: nn.Module) -> bool:
    space = deepcopy(policy.observation_space)
    space.seed(0)
    observations = [space.sample() for _ in range(_TRIED)]
    flat = np.array([spaces.flatten(space, each) for each in observations], np.float32)
    if isinstance(space, spaces.Dict):
        batch: Any = {name: np.array([each[name] for each in observations]) for name in space.spaces}
    else:
        batch = np.array(observations)
    head = network(torch.as_tensor(flat, device=policy.device))
    try:
        tensors, _ = policy.obs_to_tensor(batch)
        law: Any = policy.get_distribution(tensors).distribution
        acted = policy._predict(tensors, deterministic=True).reshape(_TRIED, -1)
        if isinstance(law, Normal):
            pairs = [(law.mean, head), (law.stddev, policy.log_std.exp().expand_as(head)), (acted, head)]
        else:
            likeliest = head.argmax(1, keepdim=True)
            pairs = [(law.logits, head.log_softmax(1)), (acted.float(), likeliest.float())]
    except Exception:  # whatever a policy of the user's does
        return False
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)
