"""Forecasters of policy weights: the interface, and the trained models behind it (baselines.py has the others).

In: histories that end at their origin.  Out: forecast weights at the asked horizons.

Causal by construction: a forecaster is handed nothing later than the origin. One that knows the trial's own future
through its basis (`full`, the paper's) says so by `causal = False`. Before φ_0 a run is taken to have stood still.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tipl.model import CodeModel, load
from tipl.presets import SVDConfig
from tipl.representation import Codes, fit_svd
from tipl.store import Store, Trial
from tipl.train import CURVE_FILE


@dataclass(frozen=True)
class History:
    """What a forecaster sees of one trial: its snapshots up to the origin t.

    weights: [n, P], oldest first, the last is φ_t.
    place: of φ_t in its PPO iteration, from 0; -1 where the trial has no iterations.
    """

    trial: int
    origin: int
    weights: np.ndarray
    place: int

    def last(self, count: int) -> np.ndarray:
        """The last `count` snapshots [count, P]; φ_0 again where there are fewer."""
        missing = count - len(self.weights)
        if missing <= 0:
            return self.weights[-count:]
        return np.concatenate([np.repeat(self.weights[:1], missing, axis=0), self.weights])


class Forecaster(ABC):
    """History in, weights at the asked horizons out."""

    name: str
    label: str
    basis: str | None = None
    causal: bool = True
    is_model: bool = False
    """Trained by train/; all others are baselines."""
    codes: Codes | None = None
    """What it forecasts in, where it forecasts codes."""
    context: int | None = 1
    """How many snapshots up to the origin it is given; None: all of them."""

    @abstractmethod
    def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
        """Forecast weights [B, H, P] of B histories at H horizons, in snapshots from the origin."""


class WeightedSum(Forecaster):
    """A forecast in the span of the snapshots seen: φ̃_{t+h} = φ_t + Σ_k a_{h,k} (φ_{t−k} − φ_t)."""

    @abstractmethod
    def coefficients(self, place: int, horizons: Sequence[int]) -> np.ndarray:
        """a [H, context], the oldest snapshot first; the last column, φ_t's own, has no effect."""

    def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
        assert self.context is not None
        out = np.empty((len(histories), len(horizons), histories[0].weights.shape[1]), np.float32)
        for b, history in enumerate(histories):
            window = history.last(self.context)
            a = self.coefficients(history.place, horizons).astype(np.float32)
            out[b] = window[-1] + a @ (window - window[-1])
        return out


def places_in_iteration(trial: Trial) -> np.ndarray:
    """[T]: how many snapshots of the same PPO iteration come before each one; φ_0 stands where an iteration ends.

    -1 everywhere where the trial has no iterations (all its snapshots bear one number).
    """
    iteration = np.asarray(trial.iteration)
    starts = np.flatnonzero(np.r_[True, np.diff(iteration) != 0])
    if len(starts) == 1:
        return np.full(len(iteration), -1)
    places = np.arange(len(iteration)) - np.repeat(starts, np.diff(np.r_[starts, len(iteration)]))
    places[0] = places.max()
    return places


class ModelForecaster(Forecaster):
    """A trained model over the codes of each trial's own temporal SVD, step after step.

    The `full` basis is made from the whole trial, so it has seen the future of every origin: not causal.
    """

    def __init__(self, model: CodeModel, codes: Codes, name: str) -> None:
        self.name, self.is_model = name, True
        self.basis = codes.config.basis
        self.causal = not codes.look_ahead
        kind = f"{model.title}, residual" if model.config.residual else model.title
        self.label = f"{kind} ({self.basis} basis{': sees the future' if codes.look_ahead else ''})"
        self.context = 1  # of weights; its codes come from the basis
        self.codes = codes
        self._model = model

    def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
        length, dim = self._model.config.context, self._model.config.dim
        codes = torch.zeros(len(histories), length, dim)
        times = torch.zeros(len(histories), length, dtype=torch.long)
        valid = torch.zeros(len(histories), length, dtype=torch.bool)
        assert self.codes is not None
        known = {trial: self.codes.codes(trial) for trial in {history.trial for history in histories}}
        for b, history in enumerate(histories):
            seen = np.arange(max(0, history.origin - length + 1), history.origin + 1)
            codes[b, -len(seen) :] = torch.from_numpy(known[history.trial][seen])
            times[b, -len(seen) :] = torch.from_numpy(seen)
            valid[b, -len(seen) :] = True
        ahead = self._model.rollout(codes, times, valid, max(horizons)).numpy()[:, [h - 1 for h in horizons]]
        bases = {trial: self.codes.basis(trial) for trial in known}
        decoded = [bases[history.trial].decode(ahead[b]) for b, history in enumerate(histories)]
        return np.stack(decoded).astype(np.float32)


def load_forecaster(folder: Path, store: Store, scratch: Path) -> ModelForecaster:
    """A trained model, over the codes of the store that it is judged on.

    Args:
        folder: what `train` wrote. The codes that it was trained on are used where they are this store's.
        scratch: where codes of another store are fitted to, in the model's kind of basis.
    """
    folder = Path(folder)
    model = load(folder)
    path = Path(json.loads((folder / CURVE_FILE).read_text())["codes"]["trials"]["codes"])
    if not path.exists() or Codes.open(path).store != store.path.resolve():
        path = scratch / f"{folder.name}-codes.zarr"
        basis = model.config.basis or "full"
        fit_svd(store.path, path, SVDConfig(basis=basis, dim=model.config.dim, centered=model.config.centered))
    return ModelForecaster(model, Codes.open(path), name=folder.name)
