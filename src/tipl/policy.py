"""The policy: which numbers a snapshot holds, how they begin, and what its networks compute.

In: layer sizes, a seed, flat float32 weights.  Out: ParamSpec, initial weights, numba kernels for tanh networks.

CleanRL's continuous agent: a tanh network for the mean action, one log standard deviation an action dimension that
does not depend on the state, and a critic of the same widths. All networks live in flat vectors, layer after layer,
each layer's weight [out, in] before its bias [out], as `torch.nn.Linear` has them.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import njit

# Reassociation lets LLVM vectorize sums and fuse multiply-adds; NaN and infinity keep their meaning.
FASTMATH = {"reassoc", "contract", "arcp", "nsz"}

F1 = np.float32(1)
# A policy sees (obs − mean) / √(var + VAR_EPSILON), clipped to ± OBS_CLIP: Gymnasium's NormalizeObservation, then
# CleanRL's TransformObservation.
OBS_CLIP, VAR_EPSILON = 10.0, 1e-8
_INLINED = ("policy.py", "ppo.py")  # the files whose kernels are compiled into kernels of other files


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`numba.njit` with these options, as every kernel is compiled that is kept on disk.

    numba believes a kept kernel while the kernel's own file is unchanged, even if it holds code of a file that has
    changed. So each state of `_INLINED` has a folder of its own.

    x / 0 is infinite. Python's rule, an exception, is a branch that LLVM does not vectorize: with it the update takes
    twice as long.
    """
    package = Path(__file__).parent
    state = hashlib.sha256(b"".join((package / name).read_bytes() for name in _INLINED)).hexdigest()[:16]

    def compile_later(function: Callable[..., Any]) -> Callable[..., Any]:
        config: Any = numba.config  # pyright: ignore[reportPrivateImportUsage]
        users = config.CACHE_DIR
        config.CACHE_DIR = str(Path(users or package / "__pycache__") / f"tipl-{state}")
        try:
            return njit(cache=True, error_model="numpy", **options)(function)
        finally:
            config.CACHE_DIR = users

    return compile_later


@dataclass(frozen=True)
class ParamSpec:
    """The tensors of a snapshot and their places in the flat vector φ ∈ R^P."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor begins."""
        return tuple(sum(self.sizes[:i]) for i in range(len(self.sizes)))

    @property
    def size(self) -> int:
        """P."""
        return sum(self.sizes)

    def flatten(self, tensors: Mapping[str, Any]) -> np.ndarray:
        """Tensors by name to one float32 vector [P]."""
        return np.concatenate([np.asarray(tensors[name], np.float32).reshape(-1) for name in self.names])

    def unflatten(self, weights_P: np.ndarray) -> dict[str, np.ndarray]:
        """One vector [P] to tensors by name; views, not copies."""
        assert weights_P.shape == (self.size,), (weights_P.shape, self.size)
        parts = zip(self.names, self.shapes, self.offsets, self.sizes, strict=True)
        return {name: weights_P[start : start + size].reshape(shape) for name, shape, start, size in parts}

    def to_json(self) -> list[dict[str, Any]]:
        rows = zip(self.names, self.shapes, self.offsets, strict=True)
        return [{"name": name, "shape": list(shape), "offset": offset} for name, shape, offset in rows]

    @classmethod
    def from_json(cls, rows: Sequence[Mapping[str, Any]]) -> "ParamSpec":
        return cls(tuple(row["name"] for row in rows), tuple(tuple(row["shape"]) for row in rows))


def layer_sizes(obs_dim: int, hidden_sizes: Sequence[int], out_dim: int) -> np.ndarray:
    """[layers + 1] int64: inputs of the first layer, then the outputs of each."""
    return np.array([obs_dim, *hidden_sizes, out_dim], np.int64)


def network_size(sizes: np.ndarray) -> int:
    """Number of weights and biases of a network with these layer sizes."""
    return int(sum(fan_out * (fan_in + 1) for fan_in, fan_out in pairwise(sizes)))


def policy_spec(obs_dim: int, hidden_sizes: Sequence[int], action_dim: int) -> ParamSpec:
    """The snapshot of a Gaussian policy: the mean network, then the log standard deviations."""
    names: list[str] = []
    shapes: list[tuple[int, ...]] = []
    sizes = layer_sizes(obs_dim, hidden_sizes, action_dim).tolist()
    for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        # The place in CleanRL's nn.Sequential, where every other module is the activation.
        names += [f"actor_mean.{2 * layer}.weight", f"actor_mean.{2 * layer}.bias"]
        shapes += [(fan_out, fan_in), (fan_out,)]
    return ParamSpec((*names, "actor_logstd"), (*shapes, (action_dim,)))


def initial_weights(
    obs_dim: int, hidden_sizes: Sequence[int], action_dim: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Orthogonal weights, zero biases, zero log-std, as CleanRL's `layer_init`.

    Gains: √2 in hidden layers, 0.01 in the mean's head, 1 in the critic's.

    Returns:
        The policy's float32 vector [P] and the critic's.
    """
    actor = _initial_network(layer_sizes(obs_dim, hidden_sizes, action_dim), 0.01, rng)
    critic = _initial_network(layer_sizes(obs_dim, hidden_sizes, 1), 1.0, rng)
    return np.concatenate([actor, np.zeros(action_dim, np.float32)]), critic


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


@njit(inline="always", fastmath=FASTMATH, error_model="numpy")
def tanh32(x):
    """tanh of a float32 to 4e-7, in arithmetic that LLVM vectorizes (libm's tanh is one call a number).

    A rational function x·p(x²)/q(x²) of degree 4/4 in x², fitted for least relative error on [-9, 9]. It is held at ±8,
    within 3e-7 of ±1: beyond, rounding takes it over 1, where the derivative 1 − tanh² is negative. NaN stays NaN.
    """
    x = min(max(x, np.float32(-8)), np.float32(8)) if x == x else x
    s = x * x
    p = np.float32(1.3355200265616488e-08)
    p = p * s + np.float32(2.060952269604112e-05)
    p = p * s + np.float32(0.0034956170648061855)
    p = p * s + np.float32(0.13381050786285503)
    p = p * s + np.float32(0.9999999796765364)
    q = np.float32(7.776794219335686e-07)
    q = q * s + np.float32(0.0003285680609103197)
    q = q * s + np.float32(0.0258770946245834)
    q = q * s + np.float32(0.4671436645559244)
    q = q * s + F1
    return x * p / q


@kernel(fastmath=FASTMATH)
def forward_one(theta, offset, sizes, x, scratch, out):
    """One input through one tanh network: the matrix-vector products of a rollout step.

    Args:
        theta: flat weights; the network begins at `offset`. Float32, as all else.
        sizes: [layers + 1].
        x: [sizes[0]].
        scratch: [2, max(sizes)], overwritten.
        out: [sizes[-1]], overwritten with the linear output.
    """
    layers = len(sizes) - 1
    source = x
    for layer in range(layers):
        fan_in, fan_out = sizes[layer], sizes[layer + 1]
        bias = offset + fan_out * fan_in
        target = out if layer == layers - 1 else scratch[layer % 2]
        for j in range(fan_out):
            row = theta[offset + j * fan_in : offset + (j + 1) * fan_in]
            total = np.float32(0)
            for i in range(fan_in):
                total += row[i] * source[i]
            target[j] = total + theta[bias + j]
        if layer < layers - 1:
            for j in range(fan_out):
                target[j] = tanh32(target[j])
        source = target
        offset = bias + fan_out


@kernel(fastmath=FASTMATH)
def forward_batch(theta, offset, sizes, x, acts):
    """A batch through one tanh network by matrix products, every layer's output kept for the gradient.

    Args:
        theta, offset, sizes: as in `forward_one`.
        x: [B, sizes[0]].
        acts: [≥ B · sum(sizes[1:])] scratch; layer l's output stands at B · sum(sizes[1:l]), shape [B, sizes[l]].
    Returns:
        The last layer's output [B, sizes[-1]], a view of `acts`.
    """
    batch = x.shape[0]
    layers = len(sizes) - 1
    start = 0
    source = x
    for layer in range(layers):
        fan_in, fan_out = sizes[layer], sizes[layer + 1]
        weight = theta[offset : offset + fan_out * fan_in].reshape(fan_out, fan_in)
        bias = theta[offset + fan_out * fan_in : offset + fan_out * (fan_in + 1)]
        target = acts[start : start + batch * fan_out].reshape(batch, fan_out)
        np.dot(source, weight.T, target)
        if layer < layers - 1:
            for b in range(batch):
                for j in range(fan_out):
                    target[b, j] = tanh32(target[b, j] + bias[j])
        else:
            for b in range(batch):
                for j in range(fan_out):
                    target[b, j] += bias[j]
        source = target
        start += batch * fan_out
        offset += fan_out * (fan_in + 1)
    return source
