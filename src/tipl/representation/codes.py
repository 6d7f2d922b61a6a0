"""CODES on disk: what `fit_svd` leaves, and how it is read back.

In: arrays and what they are of.  Out: codes, bases, Gram matrices and spectra, trial by trial.

    CODES/codes.json                    what the codes are of: settings, store, trials; whether all are there
    CODES/pooled.safetensors            the basis that all trials share, if they do
    CODES/trials/<seed>.safetensors     the arrays of a trial

Every file is sealed, written whole, and says which CODES and which trial it belongs to.

Shapes: T snapshots, P weights, K context, D code.
"""

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tipl.bundle import read_bundle, write_bundle
from tipl.checks import AnyPath, checked
from tipl.config.presets import SVDConfig
from tipl.errors import TiplError
from tipl.files import Absent, Damaged, check_seal, parse_json, read_file, require, write_json
from tipl.representation.basis import Basis
from tipl.representation.grams import Gram
from tipl.shapes import Each, OneOf, Whole

FORMAT = "tipl-codes"
VERSION = 2
CODES_FILE = "codes.json"
POOLED = "pooled"

_AGAIN = "fit them again, with another --out or after removing it"
_IDENTITY = {
    "identity": str,
    "config": dict,
    "context": (Whole(1), None),
    "tensors": ([str], None),
    "store": str,
    "trials": Each({"snapshots": Whole(1), "weights": Whole(1), "last": Whole()}),
    "finished": bool,
}


class Codes:
    """What `fit_svd` wrote, read trial by trial."""

    def __init__(self, facts: dict[str, Any], path: Path) -> None:
        """Use `Codes.open`."""
        self._path, self._trials = path, facts["trials"]
        self._identity: str = facts["identity"]
        self.config = SVDConfig(**facts["config"])
        self.context: int | None = facts["context"]
        """K of a basis that is made anew at every origin; None for the others."""
        self.tensors: list[str] = facts["tensors"] or []
        """By name those that have a basis each; empty where one basis has all weights."""
        self.name = f"{self.config.basis} by tensor" if self.tensors else self.config.basis
        """The basis, in words."""
        self.store = (path.resolve().parent / facts["store"]).resolve()
        self.seeds = [int(seed) for seed in facts["trials"]]
        self.look_ahead = self.config.basis == "full"
        """The codes of a snapshot depend on what came after it."""

    @classmethod
    def open(cls, path: AnyPath) -> "Codes":
        """Return the codes in a folder.

        Raises:
            TiplError: `path` is no CODES, damaged, of another version, or unfinished.
        """
        path = Path(checked("The folder of codes", path, AnyPath))
        facts = read_identity(path)
        if facts is None:
            raise TiplError(f"{path} is not a CODES folder; make one with tipl fit-svd.")
        if not facts["finished"]:
            raise TiplError(f"{path} is unfinished; run the same tipl fit-svd again, it goes on.")
        try:
            return cls(facts, path)
        except TypeError as error:
            raise TiplError(f"{path / CODES_FILE} has settings that are unknown here ({error}); {_AGAIN}.") from error

    def codes(self, seed: int) -> np.ndarray:
        """Return the float32 codes of a trial.

        Returns:
            full, pooled: [T, D], a code a snapshot.
            window: [T, K, D], at each origin t the codes of φ_{t−K} − φ_t … φ_{t−1} − φ_t.
            prefix: [T, K, D], at each origin t the codes of φ_{t−K+1} … φ_t.
            What lies before snapshot 0 is zeros, as are directions that the origin has not got. By tensor D is the sum
            over tensors.
        """
        return self._arrays(seed)["codes"]

    def basis(self, seed: int) -> Basis:
        """Return the basis of a trial, full or pooled; window and prefix make one for each origin from `gram(seed)`."""
        assert self.context is None, f"{self.config.basis} has a basis for each origin"
        own = self._arrays(seed)
        shared = self._pooled() if self.config.basis == POOLED else own
        components_DP, values = shared["components"], shared["singular_values"]
        mean_P = own["mean"] if self.config.centered else np.zeros(components_DP.shape[1], np.float32)
        return Basis(mean_P, components_DP, values[: len(components_DP)], values, self.look_ahead)

    def gram(self, seed: int) -> Gram:
        """Return the Gram matrix of a trial, for `window_basis` and `prefix_bases`; window and prefix only."""
        assert self.context is not None, f"{self.config.basis} has one basis for a trial and keeps no Gram matrix"
        own = self._arrays(seed)
        lower_TT = np.zeros((len(own["initial"]),) * 2)
        lower_TT[np.tri(len(lower_TT), dtype=np.bool_)] = own["gram"]
        return Gram(lower_TT + np.tril(lower_TT, -1).T, own["initial"])

    def singular_values(self, seed: int) -> np.ndarray:
        """Return the singular values, float64, largest first.

        Returns:
            full: [min(T, P)], of the trial. pooled: of the stacked training trials, as many as were kept.
            window, prefix: [T, D], the largest at each origin. By tensor: [D], those of the directions.
        """
        self._facts(seed)
        return (self._pooled() if self.config.basis == POOLED else self._arrays(seed))["singular_values"]

    def _facts(self, seed: int) -> dict[str, int]:
        if seed not in self.seeds:
            raise TiplError(f"{self.store} has no codes of trial {seed}; it has {self.seeds[0]} to {self.seeds[-1]}.")
        return self._trials[str(seed)]

    def _arrays(self, seed: int) -> dict[str, np.ndarray]:
        facts = self._facts(seed)
        arrays = read_arrays(self._path, self._identity, str(seed))
        rows, weights = facts["snapshots"], facts["weights"]
        right = arrays["codes"].ndim == (2 if self.context is None else 3) and len(arrays["codes"]) == rows
        if self.context is not None:
            right = right and arrays["codes"].shape[1] == self.context
            right = right and arrays["initial"].shape == (rows,) and arrays["gram"].shape == (rows * (rows + 1) // 2,)
        elif self.config.basis != POOLED:
            right = right and arrays["components"].shape == (arrays["codes"].shape[1], weights)
        if self.config.centered and self.context is None:
            right = right and arrays["mean"].shape == (weights,)
        if not right:
            raise Damaged(
                f"The codes of trial {seed} in {self._path} have other sizes than {CODES_FILE} says; {_AGAIN}."
            )
        return arrays

    def _pooled(self) -> dict[str, np.ndarray]:
        return read_arrays(self._path, self._identity, POOLED)


def read_identity(path: Path) -> dict[str, Any] | None:
    """What a CODES folder says that it holds; None where there is none.

    Raises:
        TiplError: it is damaged, or of another version.
    """
    try:
        content = read_file(path / CODES_FILE, 64 << 20, _AGAIN)
    except Absent:
        return None
    found = parse_json(content, str(path / CODES_FILE), _AGAIN)
    require(found, {"format": OneOf(FORMAT), "version": Whole()}, str(path / CODES_FILE), _AGAIN)
    if found["version"] != VERSION:
        raise TiplError(f"{path} holds codes of version {found['version']}, this is version {VERSION}; fit them again.")
    check_seal(path / CODES_FILE, content, _AGAIN)
    require(found, _IDENTITY, str(path / CODES_FILE), _AGAIN)
    if not all(seed.isdecimal() for seed in found["trials"]) or not found["trials"]:
        raise Damaged(f"{path / CODES_FILE} names trials that are none; {_AGAIN}.")
    return found


def write_identity(path: Path, facts: dict[str, Any], finished: bool) -> None:
    write_json(path / CODES_FILE, {**facts, "finished": finished}, seal=True)


def arrays_path(path: Path, name: str) -> Path:
    """Where the arrays of a trial lie, by its seed, or those of the pooled basis."""
    return path / f"{name}.safetensors" if name == POOLED else path / "trials" / f"{name}.safetensors"


def write_arrays(path: Path, identity: str, name: str, arrays: dict[str, np.ndarray]) -> None:
    arrays = {key: np.asarray(values, order="C") for key, values in arrays.items()}
    write_bundle(arrays_path(path, name), arrays, {"identity": identity, "of": name}, safetensors.numpy)


def read_arrays(path: Path, identity: str, name: str) -> dict[str, np.ndarray]:
    """The arrays of a trial, by its seed, or those of the pooled basis.

    Raises:
        Absent: they are not there.
        Damaged: they are damaged, of other codes or of another trial, or not finite.
    """
    file = arrays_path(path, name)
    again = "run the same tipl fit-svd again, it makes them anew"
    arrays, facts = read_bundle(file, {"identity": str, "of": str}, safetensors.numpy, again)
    if (facts["identity"], facts["of"]) != (identity, name):
        raise Damaged(f"{file} is of other codes or of another trial; {again}.")
    expected = {"components", "singular_values", "dropped_energy"} if name == POOLED else {"codes"}
    if not expected <= arrays.keys() or not all(np.isfinite(values).all() for values in arrays.values()):
        raise Damaged(f"{file} lacks arrays or holds numbers that are not finite; {again}.")
    return {key: np.array(values) for key, values in arrays.items()}  # that may be written to
