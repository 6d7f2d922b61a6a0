"""Forecasts corrected in the run: by what came of the earlier ones, and by the run's own last differences.

In: forecasters.  Out: another one, which sees the run from φ_0 on.

What was learned elsewhere may be too timid or too bold for this run. At every snapshot s of it the regressors X_s are
the forecasters' displacements and (φ_s − φ_{s−k}) / √k for a few k, and at each horizon apart
φ̃_{t+h} = φ_t + Σ_m a_m X_{t,m}, where a is the least-squares solution over all s whose future is known at t, the
older the lighter (recursive least squares with forgetting; Haykin, Adaptive Filter Theory), with a ridge towards the
forecasters' mean. Several that were learned alike are better than each (Bates and Granger 1969). The ridge grows with
√h: windows that overlap say less. All from inner products.

Shapes: M regressors, P weights, H horizons.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from tipl.checks import Count, checked_arguments
from tipl.errors import TiplError
from tipl.forecasting.forecaster import Forecaster, asked, usable
from tipl.store import History, Trial
from tipl.store.history import Seen

LAGS = (1, 2, 3, 5, 10, 20, 50, 100)
FORGETTING = 0.997  # a snapshot
RIDGE, LAG_RIDGE = 20.0, 100.0  # snapshots' worth of belief in the forecasters' mean, and in no lags; times √h
_BYTES = 64 << 20  # of the runs that are remembered, beside the last one


class OnlineCorrected(Forecaster):
    """The mean of forecasters, rescaled and mixed with the run's own differences by how they did in it so far.

    It goes through every run once and remembers what it found, so that forecasts from later origins are cheap. Of a
    run that are the displacements whose future is not known yet, Σh of them for each forecaster; runs that were not
    asked about for longest are forgotten where all take more than 64 MiB.
    """

    context = None

    @checked_arguments
    def __init__(self, forecasters: Sequence[Any], snapshots_per_iteration: Count = 1) -> None:
        """
        Args:
            forecasters: at least one.
            snapshots_per_iteration: by which the epoch indices of earlier origins are known.

        Raises:
            TiplError: there is no forecaster, one is none, or takes context tokens, which earlier origins lack.
        """
        for each in forecasters:
            if usable(each).takes_tokens:
                raise TiplError(f"{each.name} takes context tokens and cannot be adapted in the run; leave it out.")
        if not forecasters or snapshots_per_iteration < 1:
            raise TiplError(
                "OnlineCorrected takes at least one forecaster, and a snapshots_per_iteration of at least 1."
            )
        self.name = f"{'+'.join(each.name for each in forecasters)}-adapted"
        self.label = f"{' and '.join(each.label for each in forecasters)}, adapted in the run"
        self.causal = all(each.causal for each in forecasters)
        self.is_model = any(each.is_model for each in forecasters)
        self._forecasters, self._snapshots_per_iteration = tuple(forecasters), snapshots_per_iteration
        self._runs: list[_Run] = []  # the last asked about last

    def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
        horizons = asked(histories, horizons)
        out = np.empty((len(histories), len(horizons), histories[0].weights.shape[1]), np.float32)
        for b, history in enumerate(histories):
            run = self._run_of(history, tuple(horizons))
            for s in range(run.seen, history.origin):
                run.learn(history.weights[: s + 1], self._displacements(history, s, horizons))
            made_FHP = self._displacements(history, history.origin, horizons)
            if run.seen == history.origin:
                run.learn(history.weights, made_FHP)
            a_HM, lags_LP = run.solved[history.origin].astype(np.float32), _lags(history.weights)
            out[b] = history.weights[-1] + np.einsum("hf,fhp->hp", a_HM[:, : len(made_FHP)], made_FHP)
            out[b] += a_HM[:, len(made_FHP) :] @ lags_LP
            self._forget()
        return out

    def _run_of(self, history: History, horizons: tuple[int, ...]) -> "_Run":
        """What is remembered of this very run; nothing, of a new one."""
        if history.epoch_index >= self._snapshots_per_iteration:
            raise TiplError(
                f"Snapshot {history.origin} has epoch_index {history.epoch_index}, and OnlineCorrected was told of "
                f"{self._snapshots_per_iteration} snapshots an iteration; give snapshots_per_iteration."
            )
        if len(history.weights) != history.origin + 1:
            raise TiplError(
                f"OnlineCorrected goes through a run from φ_0 on and was shown {len(history.weights)} snapshots at "
                f"origin {history.origin}; give all {history.origin + 1}."
            )
        run = next((run for run in self._runs if run.horizons == horizons and run.known.is_of(history.weights)), None)
        if run is None:
            return self._remembered(_Run(len(self._forecasters), horizons))
        self._runs.remove(run)
        return self._remembered(run)

    def _remembered(self, run: "_Run") -> "_Run":
        self._runs.append(run)
        return run

    def _forget(self) -> None:
        while len(self._runs) > 1 and sum(run.nbytes for run in self._runs) > _BYTES:
            del self._runs[0]

    def _displacements(self, history: History, s: int, horizons: Sequence[int]) -> np.ndarray:
        """[F, H, P], each forecaster's from snapshot s of this history."""
        index, count = history.epoch_index, self._snapshots_per_iteration
        if index >= 0:
            index = (index - (history.origin - s)) % count
        made = []
        for forecaster in self._forecasters:
            first = 0 if forecaster.context is None else max(0, s + 1 - forecaster.context)
            earlier = History(history.trial, s, history.weights[first : s + 1], index, count)
            made.append(forecaster.forecast([earlier], horizons)[0] - history.weights[s])
        return np.stack(made)


def online_corrected(forecasters: Sequence[Forecaster], trial: Trial) -> OnlineCorrected:
    """For runs that are made as this trial is."""
    return OnlineCorrected(forecasters, int(trial.epoch_index.max()) + 1)


class _Run:
    """What one run has taught: coefficients for every origin that it was followed to.

    solved: [H, M] of each origin, the forecasters' first.
    """

    def __init__(self, forecasters: int, horizons: Sequence[int]) -> None:
        count, regressors = len(horizons), forecasters + len(LAGS)
        self._prior = np.repeat((1 / forecasters, 0.0), (forecasters, len(LAGS)))
        self._ridge = np.repeat((RIDGE, LAG_RIDGE), (forecasters, len(LAGS)))
        self.horizons, self.known = tuple(horizons), Seen()
        self._products = np.zeros((count, regressors, regressors))  # Σ w X Xᵀ, forgetting
        self._toward = np.zeros((count, regressors))  # Σ w X · (φ_{s+h} − φ_s)
        self._counts = np.zeros(count)
        self._waiting: list[deque[np.ndarray]] = [deque() for _ in horizons]  # [F, P] whose future comes
        self.solved: list[np.ndarray] = []

    @property
    def seen(self) -> int:
        return len(self.solved)

    @property
    def nbytes(self) -> int:
        """Of the displacements that wait."""
        return sum(len(waiting) * waiting[0].nbytes for waiting in self._waiting if waiting)

    def learn(self, weights_TP: np.ndarray, made_FHP: np.ndarray) -> None:
        """Snapshot t, the last of these, has come, and the forecasters' displacements from there."""
        t = len(weights_TP) - 1
        self.known.extend(weights_TP)
        solved = np.tile(self._prior, (len(self.horizons), 1))
        for i, h in enumerate(self.horizons):
            self._waiting[i].append(made_FHP[:, i].copy())
            if t >= h:
                self._match(i, weights_TP[: t - h + 1], weights_TP[t] - weights_TP[t - h])
                solved[i] = self._solve(i)
        self.solved.append(solved)

    def _match(self, i: int, before_SP: np.ndarray, moved_P: np.ndarray) -> None:
        """What came `horizons[i]` after the last of `before`."""
        lags_LP = _lags(before_SP)
        regressors_MP = np.concatenate([self._waiting[i].popleft(), lags_LP])
        # Origins count alike though steps shrink; one that moves by chance less than its last step not for many.
        square = float(moved_P @ moved_P) + self.horizons[i] * float(lags_LP[0] @ lags_LP[0])
        self._products[i] *= FORGETTING
        self._toward[i] *= FORGETTING
        self._counts[i] *= FORGETTING
        if square > 0:
            self._products[i] += regressors_MP @ regressors_MP.T / square
            self._toward[i] += regressors_MP @ moved_P / square
            self._counts[i] += 1

    def _solve(self, i: int) -> np.ndarray:
        """[M]"""
        sizes = np.diagonal(self._products[i]) / max(self._counts[i], 1)
        ridge = np.where(sizes > 0, self._ridge * np.sqrt(self.horizons[i]) * sizes, 1)
        return np.linalg.solve(self._products[i] + np.diag(ridge), self._toward[i] + ridge * self._prior)


def _lags(weights_TP: np.ndarray) -> np.ndarray:
    """(φ_t − φ_{t−k}) / √k [LAGS, P]; before φ_0 a run stood still."""
    t = len(weights_TP) - 1
    earlier = weights_TP[np.maximum(t - np.array(LAGS), 0)]
    return (weights_TP[t] - earlier) / np.sqrt(np.array(LAGS, np.float32))[:, None]
