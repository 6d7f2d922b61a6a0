"""The policy: which numbers a snapshot holds, how they begin, and what noise makes its actions random.

In: layer sizes, a seed.  Out: ParamSpec, initial weights, noise. What the networks compute is in kernels.py.

CleanRL's agents: a network for the mean action and one log standard deviation an action dimension that does not depend
on the state; or, where actions are discrete, a network for their logits and nothing else, which is how kernels tell the
two apart. Beside it a critic of the same widths. All networks live in flat vectors, layer after layer, each layer's
weight [out, in] before its bias [out], as `torch.nn.Linear` has them.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from tipl.store.spec import ParamSpec


def layer_sizes(obs_dim: int, hidden_sizes: Sequence[int], out_dim: int) -> np.ndarray:
    """[layers + 1] int64: inputs of the first layer, then the outputs of each."""
    return np.array([obs_dim, *hidden_sizes, out_dim], np.int64)


def network_size(sizes: np.ndarray) -> int:
    """Number of weights and biases of a network with these layer sizes."""
    return int(sum(fan_out * (fan_in + 1) for fan_in, fan_out in pairwise(sizes)))


def policy_spec(obs_dim: int, hidden_sizes: Sequence[int], outputs: int, *, discrete: bool = False) -> ParamSpec:
    """The snapshot of a Gaussian policy: the mean network, then the log standard deviations, [1, outputs].

    Of a categorical one, if `discrete`: the network of the logits. Names and shapes are those of CleanRL's agents, so
    that what `unflatten` gives loads into one.
    """
    names: list[str] = []
    shapes: list[tuple[int, ...]] = []
    sizes = layer_sizes(obs_dim, hidden_sizes, outputs).tolist()
    network = "actor" if discrete else "actor_mean"  # in CleanRL's two agents
    for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        # The place in CleanRL's nn.Sequential, where every other module is the activation.
        names += [f"{network}.{2 * layer}.weight", f"{network}.{2 * layer}.bias"]
        shapes += [(fan_out, fan_in), (fan_out,)]
    if not discrete:
        names.append("actor_logstd")
        shapes.append((1, outputs))
    return ParamSpec(tuple(names), tuple(shapes))


def initial_weights(
    obs_dim: int, hidden_sizes: Sequence[int], outputs: int, rng: np.random.Generator, *, discrete: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Orthogonal weights, zero biases, zero log-std (none if `discrete`), as CleanRL's `layer_init`.

    Gains: √2 in hidden layers, 0.01 in the policy's head, 1 in the critic's.

    Returns:
        The policy's float32 vector [P] and the critic's.
    """
    actor = _initial_network(layer_sizes(obs_dim, hidden_sizes, outputs), 0.01, rng)
    critic = _initial_network(layer_sizes(obs_dim, hidden_sizes, 1), 1.0, rng)
    return np.concatenate([actor, np.zeros(0 if discrete else outputs, np.float32)]), critic


def _initial_network(sizes: np.ndarray, head_gain: float, rng: np.random.Generator) -> np.ndarray:
    parts = []
    last = len(sizes) - 2
    for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        gain = head_gain if layer == last else math.sqrt(2)
        parts += [(gain * _orthogonal(int(fan_out), int(fan_in), rng)).reshape(-1), np.zeros(fan_out)]
    return np.concatenate(parts).astype(np.float32)


def _orthogonal(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """A uniformly random (semi-)orthogonal matrix (Saxe et al. 2013), as `torch.nn.init.orthogonal_` draws it."""
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    q *= np.sign(np.diag(r))  # makes the draw uniform
    return q if rows >= columns else q.T


def action_noise(rng: np.random.Generator, shape: tuple[int, ...], *, discrete: bool) -> np.ndarray:
    """What makes the outputs of a policy's network a drawn action, of their shape [..., F]; float32.

    Standard normal ε of the action μ + σ ε; or standard Gumbel g, with which argmax(z + g) is drawn from softmax(z).
    Zeros instead give the mean action, and the most likely one.
    """
    if discrete:
        return rng.gumbel(size=shape).astype(np.float32)
    return rng.standard_normal(shape, np.float32)
