"""CODES on disk: what `fit_svd` leaves, and how it is read back.

In: a zarr group.  Out: codes, bases, Gram matrices and spectra, trial by trial.

Shapes: T snapshots, P weights, K context, D code.
"""

from pathlib import Path
from typing import Any

import numpy as np
import zarr

from tipl.errors import TiplError
from tipl.presets import SVDConfig
from tipl.representation.basis import Basis
from tipl.representation.grams import Gram

FORMAT = "tipl-codes"
VERSION = 1


class Codes:
    """What `fit_svd` wrote, read trial by trial."""

    def __init__(self, group: zarr.Group, path: Path) -> None:
        """Use `Codes.open`."""
        self._group = group
        attributes: dict[str, Any] = dict(group.attrs)
        self.config = SVDConfig(**attributes["config"])
        self.context: int | None = attributes["context"]
        """K of a basis that is made anew at every origin; None for the others."""
        self.tensors: list[str] = list(attributes.get("tensors") or [])
        """By name those that have a basis each; empty where one basis has all weights."""
        self.name = f"{self.config.basis} by tensor" if self.tensors else self.config.basis
        """The basis, in words."""
        self.store = (path.resolve().parent / attributes["store"]).resolve()
        self.seeds = [int(seed) for seed in attributes["trials"]]
        self.look_ahead = self.config.basis == "full"
        """The codes of a snapshot depend on what came after it."""

    @classmethod
    def open(cls, path: Path) -> "Codes":
        """Raises TiplError where `path` is no CODES, of another version, or unfinished."""
        path = Path(path)
        attributes = codes_attributes(path)
        if attributes is None:
            raise TiplError(f"{path} is not a CODES folder; make one with tipl fit-svd.")
        if attributes.get("version") != VERSION:
            version = attributes.get("version")
            raise TiplError(f"{path} holds codes of version {version}, this is version {VERSION}; fit them again.")
        if not attributes.get("finished"):
            raise TiplError(f"{path} is unfinished; run the same tipl fit-svd again, it goes on.")
        return cls(zarr.open_group(path, mode="r"), path)

    def codes(self, seed: int) -> np.ndarray:
        """The float32 codes of a trial.

        Returns:
            full, pooled: [T, D], a code a snapshot.
            window: [T, K, D], at each origin t the codes of φ_{t−K} − φ_t … φ_{t−1} − φ_t.
            prefix: [T, K, D], at each origin t the codes of φ_{t−K+1} … φ_t.
            What lies before snapshot 0 is zeros, as are directions that the origin has not got. By tensor D is the sum
            over tensors.
        """
        return self._array(seed, "codes")

    def basis(self, seed: int) -> Basis:
        """The basis of a trial, full or pooled; window and prefix have one for each origin, made from `gram(seed)`."""
        assert self.context is None, f"{self.config.basis} has a basis for each origin"
        pooled = self.config.basis == "pooled"
        components_DP = stored(self._group, "pooled/components") if pooled else self._array(seed, "components")
        values = self.singular_values(seed)
        mean_P = self._array(seed, "mean") if self.config.centered else np.zeros(components_DP.shape[1], np.float32)
        return Basis(mean_P, components_DP, values[: len(components_DP)], values, self.look_ahead)

    def gram(self, seed: int, tensor: str | None = None) -> Gram:
        """The Gram matrix of a trial, or of one of `tensors`, for `window_basis` and `prefix_bases`; window and prefix
        only."""
        assert self.context is not None, f"{self.config.basis} has one basis for a trial and keeps no Gram matrix"
        assert (tensor is None) == (not self.tensors), f"name one of {self.tensors}"
        number = "" if tensor is None else f"-{self.tensors.index(tensor)}"
        lower_TT = self._array(seed, f"gram{number}")
        return Gram(lower_TT + np.tril(lower_TT, -1).T, self._array(seed, f"initial{number}"))

    def singular_values(self, seed: int) -> np.ndarray:
        """Float64 spectrum.

        Returns:
            full: [min(T, P)], of the trial. pooled: of the stacked training trials, as many as were kept.
            window, prefix: [T, D], the largest at each origin. By tensor: [D] or [T, D], those of the directions.
        """
        if self.config.basis == "pooled":
            self._trial(seed)
            return stored(self._group, "pooled/singular_values")
        return self._array(seed, "singular_values")

    @property
    def dropped_energy(self) -> float:
        """The share of Σ σ² that a pooled basis let go between trials, of the tensor with the largest share by tensor;
        0 is exact (always where P ≤ 8,192)."""
        assert self.config.basis == "pooled"
        return float(self._group["pooled"].attrs["dropped_energy"])  # type: ignore[arg-type]

    def _trial(self, seed: int) -> str:
        if seed not in self.seeds:
            raise TiplError(f"{self.store} has no codes of trial {seed}; it has {self.seeds[0]} to {self.seeds[-1]}.")
        return f"trials/{seed}"

    def _array(self, seed: int, name: str) -> np.ndarray:
        return stored(self._group, f"{self._trial(seed)}/{name}")


def write_arrays(place: zarr.Group, arrays: dict[str, np.ndarray]) -> None:
    """Payload first, then the mark that it is complete."""
    for name, values in arrays.items():
        place.create_array(name, data=values, overwrite=True)
    place.attrs["complete"] = True


def stored(group: zarr.Group, name: str) -> np.ndarray:
    array = group[name]
    assert isinstance(array, zarr.Array)
    return np.asarray(array[:])


def codes_attributes(path: Path) -> dict[str, Any] | None:
    """The attributes of a CODES group of any version; None where there is none."""
    try:
        attributes = dict(zarr.open_group(path, mode="r", zarr_format=3).attrs)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    return attributes if attributes.get("format") == FORMAT else None
