"""Forecasts corrected in the run: by what came of the earlier ones, and by the run's own last differences.

In: any forecaster.  Out: another one, which sees the run from φ_0 on.

What a model has learned elsewhere may be too timid or too bold for this run. At every snapshot s of it the regressors
X_s are the forecaster's displacement and (φ_s − φ_{s−k}) / √k for a few k, and at each horizon apart
φ̃_{t+h} = φ_t + Σ_m a_m X_{t,m}, where a is the least-squares solution over all s whose future is known at t, the
older the lighter (recursive least squares with forgetting; Haykin, Adaptive Filter Theory), with a ridge towards the
forecaster as it is. The ridge grows with h: windows that overlap say less. All from inner products.

Shapes: M regressors, P weights, H horizons.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

from tipl.forecast import Forecaster, History
from tipl.store import Trial
from tipl.windows import places_in_iteration

LAGS = (1, 2, 3, 5, 10, 20, 50, 100)
FORGETTING = 0.99  # a snapshot
_RUNS = 16  # that are remembered
RIDGE = 10.0  # snapshots' worth of belief in the forecaster, at each horizon times h


class Adapted(Forecaster):
    """A forecaster whose displacements are rescaled, and mixed with the run's own, by how it did in this run so far.

    It goes through every run once and remembers what it found, so that forecasts from later origins are cheap; its
    memory is that of the forecaster's displacements at the last max(h) snapshots.
    """

    context = None

    def __init__(self, forecaster: Forecaster, per_iteration: int = 1) -> None:
        """
        Args:
            per_iteration: snapshots of one PPO iteration, by which the places of earlier origins are known.
        """
        self.name, self.label = f"{forecaster.name}-adapted", f"{forecaster.label}, adapted in the run"
        self.basis, self.causal, self.is_model = forecaster.basis, forecaster.causal, forecaster.is_model
        self._forecaster, self._per_iteration = forecaster, per_iteration
        self._runs: dict[tuple[int, tuple[int, ...]], _Run] = {}

    def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
        out = np.empty((len(histories), len(horizons), histories[0].weights.shape[1]), np.float32)
        for b, history in enumerate(histories):
            key = history.trial, tuple(horizons)
            run = self._runs.get(key)
            if run is None or not run.is_of(history.weights):
                self._runs.pop(key, None)
                if len(self._runs) == _RUNS:
                    del self._runs[next(iter(self._runs))]
                run = self._runs[key] = _Run(horizons)
            for s in range(run.seen, history.origin + 1):
                run.learn(history.weights[: s + 1], self._displacements(history, s, horizons))
            made = self._displacements(history, history.origin, horizons)
            a_HM, lags_LP = run.solved[history.origin], _lags(history.weights)
            out[b] = history.weights[-1] + a_HM[:, :1] * made + a_HM[:, 1:] @ lags_LP
        return out

    def _displacements(self, history: History, s: int, horizons: Sequence[int]) -> np.ndarray:
        """[H, P] from snapshot s of this history."""
        place = history.place
        if place >= 0:
            place = (place - (history.origin - s)) % self._per_iteration
        first = 0 if self._forecaster.context is None else max(0, s + 1 - self._forecaster.context)
        now = history.weights[s]
        earlier = History(history.trial, s, history.weights[first : s + 1], place)
        return self._forecaster.forecast([earlier], horizons)[0] - now


def adapted(forecaster: Forecaster, trial: Trial) -> Adapted:
    """For runs that are made as this trial is."""
    return Adapted(forecaster, int(places_in_iteration(trial).max()) + 1)


class _Run:
    """What one run has taught: coefficients for every origin that it was followed to.

    solved: [H, M] of each origin, the forecaster's first.
    """

    def __init__(self, horizons: Sequence[int]) -> None:
        regressors = 1 + len(LAGS)
        self._horizons = tuple(horizons)
        self._products = np.zeros((len(horizons), regressors, regressors))  # Σ X Xᵀ / |φ_{s+h} − φ_s|², forgetting
        self._toward = np.zeros((len(horizons), regressors))  # Σ X · (φ_{s+h} − φ_s) / |φ_{s+h} − φ_s|²
        self._counts = np.zeros(len(horizons))
        self._waiting: list[deque[np.ndarray]] = [deque() for _ in horizons]  # displacements whose future comes
        self._first = self._last = np.empty(0, np.float32)
        self.solved: list[np.ndarray] = []

    @property
    def seen(self) -> int:
        return len(self.solved)

    def is_of(self, weights_TP: np.ndarray) -> bool:
        """Whether it was learned from this run, as far as its first snapshot and the last that both know tell."""
        if not np.array_equal(weights_TP[0], self._first):
            return False
        return len(weights_TP) < self.seen or np.array_equal(weights_TP[self.seen - 1], self._last)

    def learn(self, weights_TP: np.ndarray, made_HP: np.ndarray) -> None:
        """Snapshot t, the last of these, has come, and the forecaster's displacements from there."""
        t = len(weights_TP) - 1
        if t == 0:
            self._first = weights_TP[0].copy()
        self._last = weights_TP[t].copy()
        solved = np.zeros(self._toward.shape)
        solved[:, 0] = 1
        for i, h in enumerate(self._horizons):
            self._waiting[i].append(made_HP[i])
            if t >= h:
                self._match(i, weights_TP[: t - h + 1], weights_TP[t] - weights_TP[t - h])
                solved[i] = self._solve(i, h)
        self.solved.append(solved)

    def _match(self, i: int, before_SP: np.ndarray, moved_P: np.ndarray) -> None:
        """What came `horizons[i]` after the last of `before`."""
        square = float(moved_P.astype(np.float64) @ moved_P)
        regressors_MP = np.concatenate([self._waiting[i].popleft()[None], _lags(before_SP)])
        self._products[i] *= FORGETTING
        self._toward[i] *= FORGETTING
        self._counts[i] *= FORGETTING
        if square > 0:
            self._products[i] += regressors_MP @ regressors_MP.T / square
            self._toward[i] += regressors_MP @ moved_P / square
            self._counts[i] += 1

    def _solve(self, i: int, h: int) -> np.ndarray:
        """[M]"""
        products = self._products[i]
        sizes = np.diagonal(products) / max(self._counts[i], 1)
        ridge = np.where(sizes > 0, RIDGE * h * sizes, 1)
        toward = self._toward[i].copy()
        toward[0] += ridge[0]
        return np.linalg.solve(products + np.diag(ridge), toward)


def _lags(weights_TP: np.ndarray) -> np.ndarray:
    """(φ_t − φ_{t−k}) / √k [LAGS, P]; before φ_0 a run stood still."""
    t = len(weights_TP) - 1
    earlier = weights_TP[np.maximum(t - np.array(LAGS), 0)]
    return (weights_TP[t] - earlier) / np.sqrt(np.array(LAGS, np.float32))[:, None]
