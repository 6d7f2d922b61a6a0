"""How many directions hold the energy of a run, beside random walks of equal size.

In: trials.  Out: the `spectrum` of metrics.json: counts over learning and by tensor, and the energy curves.

*The Ladder in Chaos* (Tang et al. 2023) finds that a few directions of the temporal SVD hold nearly all of a run. So
they do for a walk without any direction of its own, whose k-th direction holds about 1/k² (Antognini and
Sohl-Dickstein 2018). Every count here therefore stands beside those of two driftless walks with the trial's T, P, φ_0
length and sum of squared steps: one with constant steps, one whose steps shrink linearly to 0 as PPO's learning rate
does. Of each, two matrices are decomposed:

    weights         φ_0 … φ_t as they are, as the paper has it: the first direction is mostly the initialization
    displacements   φ_0 − φ_0 … φ_t − φ_0: what training did; also of each tensor alone

Shapes: T snapshots, P weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tipl.collection.random_walk import walk_coordinates
from tipl.progress import steps_progress
from tipl.representation.grams import ENERGY_SHARES, Gram, directions, read_weights, spectrum
from tipl.representation.linear_algebra import covariance
from tipl.store import Trial

POINTS = (1 / 8, 1 / 4, 1 / 2, 1.0)  # of the run, at which directions are counted
ANCHORS: Mapping[str, int | None] = {"displacements": 0, "weights": None}
SOURCES = ("trials", "walk", "annealed-walk")
_CURVE_POINTS = 60


def spectra(trials: Sequence[Trial], seed: int) -> dict[str, Any]:
    """The spectra of these trials, and of one walk of each kind like the first of them.

    In memory: one trial, a few T×T matrices. In time: a product of inner products for each trial, and the eigenvalues
    of some four T×T matrices for each trial and walk (of P×P ones where P < T).

    Args:
        seed: of the walks.

    Returns:
        As JSON, by matrix and source: see metrics.json in ARCHITECTURE.md.
    """
    with steps_progress("spectra", len(trials) + len(SOURCES) - 1) as advance:
        measured = []
        for trial in trials:
            measured.append(_of_trial(trial))
            advance(1, "trials")
        shapes = measured[0][1]
        found = {"trials": [counts for counts, _ in measured]}
        for kind, source in enumerate(SOURCES[1:]):
            found[source] = [_of_walk(shapes, source, np.random.default_rng([seed, kind]))]
            advance(1, "walks")
    return {
        of if source == "trials" else f"{of}-{source}": {
            "of": of,
            "source": source,
            "trials": [trial.seed for trial in trials][: len(runs)],
            **_as_json([run[of] for run in runs], shapes),
        }
        for of in ANCHORS
        for source, runs in found.items()
    }


@dataclass(frozen=True)
class _Counts:
    """Of one run: energy[k − 1] is the share of the energy in its first k directions; the others are how many
    directions hold each of ENERGY_SHARES, at each of POINTS and in each tensor."""

    energy: np.ndarray
    snapshots: list[int]
    over_learning: list[list[int]]
    by_tensor: dict[str, list[int]]


@dataclass(frozen=True)
class _Shape:
    """What a walk has from the path that it stands beside."""

    count: int
    size: int
    start: float
    """|φ_0|"""
    squares: float
    """Σ |φ_{t+1} − φ_t|²"""

    @classmethod
    def of(cls, rows_TP: np.ndarray) -> "_Shape":
        count, size = rows_TP.shape
        steps = (after - before for before, after in pairwise(rows_TP))
        squares = sum(float(np.square(step, dtype=np.float64).sum()) for step in steps)
        return cls(count, size, float(np.linalg.norm(rows_TP[0].astype(np.float64))), squares)

    def walk(self, source: str, rng: np.random.Generator) -> np.ndarray:
        """A walk's snapshots in coordinates of its own."""
        steps = self.count - 1
        pace = np.linspace(1, 0, steps, endpoint=False) if source == "annealed-walk" else np.ones(steps)
        pace *= np.sqrt(self.squares / max(float(np.square(pace).sum()), 1.0))
        return walk_coordinates(pace, self.size, self.start, rng)


WHOLE = ""


def _of_trial(trial: Trial) -> tuple[dict[str, _Counts], dict[str, _Shape]]:
    """What is counted, by matrix, and the shape of the whole and of each tensor; the weights are gone afterwards."""
    weights_TP, spec = read_weights(trial), trial.spec
    shapes = {WHOLE: _Shape.of(weights_TP)}
    by_tensor: dict[str, list[int]] = {}
    whole: Gram | None = None
    for name, offset, size in zip(spec.names, spec.offsets, spec.sizes, strict=True):
        rows = weights_TP[:, offset : offset + size]
        shapes[name] = _Shape.of(rows)
        gram = Gram.of(rows) if spec.size >= len(rows) else None
        by_tensor[name] = directions(_Path(rows, gram).singular_values(len(rows), ANCHORS["displacements"]))
        if gram is not None:  # inner products of whole snapshots are the sums of their tensors'
            whole = gram if whole is None else whole + gram
    return _counted(_Path(weights_TP, whole), by_tensor), shapes


def _of_walk(shapes: Mapping[str, _Shape], source: str, rng: np.random.Generator) -> dict[str, _Counts]:
    by_tensor = {
        name: directions(_Path(shape.walk(source, rng)).singular_values(shape.count, ANCHORS["displacements"]))
        for name, shape in shapes.items()
        if name != WHOLE
    }
    return _counted(_Path(shapes[WHOLE].walk(source, rng)), by_tensor)


def _counted(path: "_Path", by_tensor: dict[str, list[int]]) -> dict[str, _Counts]:
    lengths = [max(1, round(path.length * point)) for point in POINTS]
    found = {}
    for of, anchor in ANCHORS.items():
        values = [path.singular_values(length, anchor) for length in lengths]
        energy = np.cumsum(np.square(values[-1]))
        share = energy / energy[-1] if energy[-1] > 0 else np.ones_like(energy)
        tensors = by_tensor if of == "displacements" else {}
        found[of] = _Counts(share, lengths, [directions(each) for each in values], tensors)
    return found


class _Path:
    """Rows of snapshots, reduced to whichever is the smaller: their inner products, or themselves."""

    def __init__(self, rows_TP: np.ndarray, gram: Gram | None = None) -> None:
        self.length, self._size = rows_TP.shape
        is_wide = self._size >= self.length
        self._gram = (gram or Gram.of(rows_TP)) if is_wide else None
        self._rows_TP = None if is_wide else rows_TP

    def singular_values(self, count: int, anchor: int | None) -> np.ndarray:
        """Of the first `count` snapshots less snapshot `anchor`, descending."""
        if self._gram is not None:
            return spectrum(self._gram.inner(slice(count), slice(count), anchor))
        assert self._rows_TP is not None
        mean_P = np.zeros(self._size) if anchor is None else self._rows_TP[anchor].astype(np.float64)
        return spectrum(covariance(self._rows_TP[:count], mean_P))


def _as_json(runs: Sequence[_Counts], shapes: Mapping[str, _Shape]) -> dict[str, Any]:
    most = max(len(run.energy) for run in runs)
    at = np.unique(np.geomspace(1, most, _CURVE_POINTS).round().astype(int))
    padded = [np.concatenate([run.energy, np.ones(most - len(run.energy))]) for run in runs]
    return {
        "directions": at.tolist(),
        "energy": np.mean(padded, axis=0)[at - 1].tolist(),
        "needed": _by_share([run.over_learning[-1] for run in runs]),
        "over_learning": [
            {
                "share_of_run": point,
                "snapshots": [run.snapshots[i] for run in runs],
                "needed": _by_share([run.over_learning[i] for run in runs]),
            }
            for i, point in enumerate(POINTS)
        ],
        "by_tensor": {
            name: {"size": shapes[name].size, "needed": _by_share([run.by_tensor[name] for run in runs])}
            for name in runs[0].by_tensor
        },
    }


def _by_share(counts: Sequence[Sequence[int]]) -> dict[str, list[int]]:
    """How many directions each run needs, by the share of the energy."""
    return {str(share): [row[i] for row in counts] for i, share in enumerate(ENERGY_SHARES)}
