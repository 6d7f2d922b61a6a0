"""What of a torch policy is recorded, and whether it is an actor that the kernels can run.

In: a module or named parameters.  Out: a `Subject`: the parameters in the order of a snapshot, their spec and layers.

An actor is known by CleanRL's names and by what it computes: its network, and the log-probabilities that the agent
gives, are held against what the kernels make of the parameters.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from tipl.collection.flat import check_parameters, tried, undisturbed
from tipl.config.presets import Activation
from tipl.errors import TiplError
from tipl.rl.policies import policy_spec
from tipl.store.spec import ParamSpec

_TRIED = 16  # observations at which a network is held against what the kernels make of it
_METHODS = ("forward", "act", "get_action")  # that loops ask for actions, beside CleanRL's
_NO_NOISE = -20.0  # a log-std with which what is drawn is the mean
_ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "elu": nn.functional.elu}


class Subject(NamedTuple):
    """What is recorded."""

    parameters: Sequence[Tensor]
    """In the order of the snapshot."""
    spec: ParamSpec
    hidden_sizes: list[int] | None
    """Of an actor that can be run; None for all else."""
    activation: Activation | None
    """Of its hidden layers; None for all else."""
    obs_dim: int
    """Its inputs; 0 for all else."""


def subject_of(policy: nn.Module | Iterable[tuple[str, Tensor]], names: Sequence[str]) -> Subject:
    while isinstance(inner := getattr(policy, "_orig_mod", getattr(policy, "module", None)), nn.Module):
        policy = inner  # of torch.compile, or of data in parallel
    try:
        named = dict(policy.named_parameters() if isinstance(policy, nn.Module) else policy)
    except (TypeError, ValueError) as error:
        raise TiplError("The policy is neither a module nor (name, parameter) pairs; give one of these.") from error
    for wanted in names:
        if not any(_is_within(name, wanted) for name in named):
            raise TiplError(f"There is no parameter or module {wanted!r} to record; there are: {', '.join(named)}.")
    if names:
        named = {name: value for name, value in named.items() if any(_is_within(name, wanted) for wanted in names)}
    if not named:
        raise TiplError("There are no parameters to record; give a module that has some.")
    check_parameters(named.items())
    spec = ParamSpec(tuple(named), tuple(tuple(value.shape) for value in named.values()))
    whole = Subject([*named.values()], spec, None, None, 0)
    for actor in (_mlp_actor(policy, discrete=False), _mlp_actor(policy, discrete=True)):
        if actor and set(map(id, actor.parameters)) == set(map(id, whole.parameters)):
            return actor
    return whole


def _is_within(name: str, wanted: str) -> bool:
    return name == wanted or name.startswith(f"{wanted}.")


def _mlp_actor(policy: object, *, discrete: bool) -> Subject | None:
    """The actor of a module with the attributes of CleanRL's agent for such actions, in the order of `policy_spec`.

    None if it has none that the kernels can run.
    """
    network = getattr(policy, "actor" if discrete else "actor_mean", None)
    log_stds = [] if discrete else [getattr(policy, "actor_logstd", None)]
    if not isinstance(network, nn.Sequential) or not all(isinstance(each, nn.Parameter) for each in log_stds):
        return None
    linears = [layer for layer in list(network)[::2] if isinstance(layer, nn.Linear)]
    between: list[Activation | None] = [_activation(layer) for layer in list(network)[1::2]]
    if not linears or len(linears) != len(between) + 1 or len(network) != len(linears) + len(between):
        return None
    activation = between[0] if between else "tanh"
    if activation is None or set(between) - {activation}:
        return None
    obs_dim, *hidden_sizes = (layer.in_features for layer in linears)
    spec = policy_spec(obs_dim, hidden_sizes, linears[-1].out_features, discrete=discrete)
    parameters = [*network.parameters(), *log_stds]
    shapes = [tuple(parameter.shape) for parameter in network.parameters()]
    sizes = [parameter.numel() for parameter in parameters]
    if shapes != [*spec.shapes[: len(shapes)]] or sizes != [*spec.sizes]:  # no biases, or a layer twice
        return None
    if not _computes(policy, network, log_stds, spec, activation, discrete=discrete):
        return None
    return Subject(parameters, spec, hidden_sizes, activation, obs_dim)


@torch.no_grad()
def _computes(
    policy: Any, network: nn.Sequential, log_stds: Sequence[Any], spec: ParamSpec, activation: Activation, *,
    discrete: bool,
) -> bool:  # fmt: skip
    """Whether the network gives what the kernels make of its parameters, and the agent, if it has CleanRL's method,
    the log-probabilities of these outputs: names and types alone do not say that.

    Tried with large weights, which are taken back: an actor begins with outputs so small that tanh changes nothing.
    """
    parameters = [*network.parameters(), *log_stds]
    whole = policy if isinstance(policy, nn.Module) else None
    weights = large_weights(spec.size)
    without_noise = weights.copy()
    without_noise[spec.size - sum(each.numel() for each in log_stds) :] = _NO_NOISE
    with undisturbed(parameters, whole):
        with tried(parameters, weights):
            if not _computes_now(policy, network, log_stds, spec, activation, discrete=discrete):
                return False
        with tried(parameters, without_noise):
            return discrete or _acts_so(policy, network, spec.shapes[0][1])


def large_weights(size: int) -> np.ndarray:
    """[P]"""
    return 0.5 * np.random.default_rng(0).standard_normal(size, np.float32)


def _computes_now(
    policy: Any, network: nn.Sequential, log_stds: Sequence[Any], spec: ParamSpec, activation: Activation, *,
    discrete: bool,
) -> bool:  # fmt: skip
    like = next(network.parameters())
    obs_dim = spec.shapes[0][1]
    drawn = np.random.default_rng(0).standard_normal((_TRIED, obs_dim))
    observations = torch.tensor(drawn, dtype=like.dtype, device=like.device)
    expected = observations
    linears: list[Any] = list(network)[::2]
    for layer in linears:
        expected = nn.functional.linear(expected, layer.weight, layer.bias)
        expected = expected if layer is linears[-1] else _ACTIVATIONS[activation](expected)
    try:
        if not _alike(network(observations), expected):
            return False
    except Exception:  # whatever its own forward does
        return False
    law: Any = Categorical(logits=expected)
    if not discrete:
        law = Normal(expected, log_stds[0].reshape(1, -1).exp().expand_as(expected), validate_args=False)
    actions = law.sample()
    try:
        said = policy.get_action_and_value(observations, actions)[1]
    except Exception:  # no such method, or one of another kind under that name
        return True
    return _alike(said.reshape(-1), law.log_prob(actions).reshape(_TRIED, -1).sum(dim=1))


def _acts_so(policy: Any, network: nn.Sequential, obs_dim: int) -> bool:
    """Whether what other methods of an agent give as actions are the network's means, clipped to bounds or not."""
    like = next(network.parameters())
    drawn = np.random.default_rng(1).standard_normal((_TRIED, obs_dim))
    observations = torch.tensor(drawn, dtype=like.dtype, device=like.device)
    expected = network(observations)
    for name in _METHODS:
        try:
            found = getattr(policy, name)(observations)
        except Exception:  # no such method, or one of another kind under that name
            continue
        found = next(iter(found), None) if isinstance(found, tuple | list) else found
        if isinstance(found, Tensor) and found.shape == expected.shape:
            clipped = (found == found.amin(dim=0)) | (found == found.amax(dim=0))
            if not _alike(torch.where(clipped, expected, found), expected):
                return False
    return True


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


def _activation(layer: nn.Module) -> Activation | None:
    """Its name; None if the kernels have no such activation."""
    if isinstance(layer, nn.ELU) and layer.alpha != 1:
        return None
    names: dict[type[nn.Module], Activation] = {nn.Tanh: "tanh", nn.ReLU: "relu", nn.ELU: "elu"}
    return names.get(type(layer))
