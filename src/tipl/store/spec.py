"""Which tensors a snapshot holds, and where each lies in the flat vector.

In: names and shapes of a policy's tensors.  Out: a `ParamSpec`, which turns tensors into a vector and back.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tipl.errors import TiplError


@dataclass(frozen=True)
class ParamSpec:
    """The tensors of a snapshot and their places in the flat vector φ ∈ R^P."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor begins."""
        return tuple(sum(self.sizes[:i]) for i in range(len(self.sizes)))

    @functools.cached_property
    def size(self) -> int:
        """P."""
        return sum(self.sizes)

    def flatten(self, tensors: Mapping[str, Any]) -> np.ndarray:
        """Tensors by name to one float32 vector [P].

        Raises:
            TiplError: one is missing, or has another number of weights.
        """
        for name, size in zip(self.names, self.sizes, strict=True):
            if name not in tensors or np.size(tensors[name]) != size:
                found = f"has {np.size(tensors[name])} weights, not {size}" if name in tensors else "is missing"
                raise TiplError(f"The tensor {name!r} {found}; give those of this spec: {', '.join(self.names)}.")
        return np.concatenate([np.asarray(tensors[name], np.float32).reshape(-1) for name in self.names])

    def unflatten(self, weights_P: np.ndarray) -> dict[str, np.ndarray]:
        """One vector [P] to tensors by name; views, not copies.

        Raises:
            TiplError: it is no such vector.
        """
        if np.shape(weights_P) != (self.size,):
            raise TiplError(f"Weights of shape {np.shape(weights_P)} are no vector of the {self.size} of this spec.")
        parts = zip(self.names, self.shapes, self.offsets, self.sizes, strict=True)
        return {name: weights_P[start : start + size].reshape(shape) for name, shape, start, size in parts}

    def to_json(self) -> list[dict[str, Any]]:
        rows = zip(self.names, self.shapes, self.offsets, strict=True)
        return [{"name": name, "shape": list(shape), "offset": offset} for name, shape, offset in rows]

    @classmethod
    def from_json(cls, rows: Sequence[Mapping[str, Any]]) -> "ParamSpec":
        return cls(tuple(row["name"] for row in rows), tuple(tuple(row["shape"]) for row in rows))
