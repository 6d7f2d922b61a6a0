"""The forecasters that a model has to beat, their few settings chosen on validation trials.

In: stores and their split.  Out: a list of forecasters, persistence first.

Most are weighted sums of the snapshots seen. The linear autoregression is the one to beat.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np

from tipl.forecasting.autoregression import (
    RIDGES,
    Advance,
    Autoregression,
    banded_grams,
    difference_features,
    joined_equations,
    normal_equations,
)
from tipl.forecasting.forecaster import Forecaster, WeightedSum
from tipl.forecasting.subspace import DMD, PathProducts, PrefixLine
from tipl.progress import steps_progress
from tipl.representation import read_weights
from tipl.store import History, Store, Trial

Kind = TypeVar("Kind", bound=Forecaster)

WINDOWS = (5, 20, 50)  # snapshots of a mean or a line
DAMPED_WINDOWS = (2, 5, 10, 20, 50)
DAMPINGS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
PREFIX_RANKS, PREFIX_WINDOWS = (2, 8), (10, 50)
DMD_RANKS, DMD_WINDOWS = (2, 4), (10, 30)
FITTED = ("damped-line", "autoregression", "prefix-line", "dmd", "train-mean")
"""Names of the baselines that learn something from trials, if only which of their settings is best."""
_ORIGINS_TO_CHOOSE, _ORIGINS_TO_TRY = 200, 12  # of each validation trial
_BLOCK_BYTES = 64 << 20  # of snapshots averaged at once


@dataclass(frozen=True)
class Source:
    """A store, its trials that baselines are fitted on, and those that they are chosen by."""

    store: Store
    train: tuple[Trial, ...]
    judges: tuple[Trial, ...]

    @property
    def choosing(self) -> tuple[Trial, ...]:
        """The training trials where there is none to choose by."""
        return self.judges or self.train


def fitted_baselines(
    sources: Sequence[Source], shapes: Sequence[Sequence[int]], horizons: Sequence[int], seed: int
) -> list[Forecaster]:
    """Every baseline, fitted on the training trials of some stores and chosen on their validation trials.

    The mean of the training trials is of policies of these shapes alone, and left out where no store has them; all
    others are for any policy. Without a store those are made that take no fit. Several stores count alike.
    """
    middle, last = [], []
    if sources:
        middle = _chosen(sources, horizons)
        alike = [
            source for source in sources if tuple(map(tuple, source.train[0].spec.shapes)) == tuple(map(tuple, shapes))
        ]
        last = [TrainMean([trial for source in alike for trial in source.train])] if alike else []
    return [
        persistence(),
        *(mean_of_last(count) for count in WINDOWS),
        last_difference(),
        *(line(count) for count in WINDOWS),
        *middle,
        *last,
        RandomDisplacement(max(horizons), seed),
    ]


def _chosen(sources: Sequence[Source], horizons: Sequence[int]) -> list[Forecaster]:
    """The damped line, the autoregression, the line in a prefix and the DMD with the best mean skill of all stores."""
    trials = sum(len(source.train) + 2 * len(source.choosing) for source in sources)
    with steps_progress("evaluate: baselines", trials) as advance:
        equations = joined_equations(
            [normal_equations(source.train, difference_features(), horizons, advance) for source in sources]
        )
        damped = [damped_line(count, damping) for count in DAMPED_WINDOWS for damping in DAMPINGS]
        autoregressions = [Autoregression.fit(horizons, equations, ridge) for ridge in RIDGES]
        sums = [damped, autoregressions]
        best_sums = _best(sums, [skills(sums, source.choosing, horizons, advance) for source in sources])
        products = PathProducts()
        prefix_lines = [PrefixLine(rank, count, products) for rank in PREFIX_RANKS for count in PREFIX_WINDOWS]
        tried = [prefix_lines, [DMD(rank, count) for rank in DMD_RANKS for count in DMD_WINDOWS]]
        best_tried = _best(tried, [skills_by_trying(tried, source.choosing, horizons, advance) for source in sources])
    return [*best_sums, *best_tried]


def skills(
    groups: Sequence[Sequence[WeightedSum]],
    trials: Sequence[Trial],
    horizons: Sequence[int],
    advance: Advance = lambda steps, note: None,
) -> np.ndarray:
    """The skill of every candidate of all groups on these trials, on average over the horizons.

    From inner products alone: with Σ_k a_k = 0 the error of a weighted sum s = Σ_k a_k φ_{t−k} is the quadratic form
    |φ_{t+h} − φ_t|² − 2 s · (φ_{t+h} − φ_t) + |s|².
    """
    candidates = [candidate for group in groups for candidate in group]
    context, ahead = max(_context(candidate) for candidate in candidates), np.array(horizons)
    error, moved = np.zeros((len(candidates), len(horizons))), np.zeros(len(horizons))
    for trial in trials:
        indices = trial.epoch_index
        step = max(1, trial.committed // _ORIGINS_TO_CHOOSE)
        for first, gram in banded_grams(trial, context, max(horizons)):
            for row in range(context - 1, len(gram) - max(horizons)):
                if (first + row) % step:
                    continue
                window = slice(row - context + 1, row + 1)
                future = row + ahead
                true = gram[future, future] - 2 * gram[row, future] + gram[row, row]
                toward = gram[window][:, future] - gram[window, row][:, None]
                moved += true
                for i, candidate in enumerate(candidates):
                    a = np.zeros((len(horizons), context))
                    a[:, context - _context(candidate) :] = candidate.coefficients(int(indices[first + row]), horizons)
                    a[:, -1] -= a.sum(axis=1)
                    error[i] += true - 2 * np.einsum("hk,kh->h", a, toward)
                    error[i] += (a @ gram[window, window] * a).sum(axis=1)
        advance(1, "lines and autoregressions")
    return _mean_skills(error, moved)


def skills_by_trying(
    groups: Sequence[Sequence[Forecaster]], trials: Sequence[Trial], horizons: Sequence[int], advance: Advance
) -> np.ndarray:
    """As `skills`, for forecasters that are no weighted sums known beforehand: by forecasts at a few origins."""
    candidates = [candidate for group in groups for candidate in group]
    error, moved = np.zeros((len(candidates), len(horizons))), np.zeros(len(horizons))
    for trial in trials:
        _try(candidates, trial, np.array(horizons), error, moved)
        advance(1, "lines in a prefix and DMD")
    return _mean_skills(error, moved)


def _try(
    candidates: Sequence[Forecaster], trial: Trial, horizons: np.ndarray, error: np.ndarray, moved: np.ndarray
) -> None:
    """Add one trial's squared errors [candidates, H] and displacements [H]; its weights are gone when this returns."""
    weights, indices = read_weights(trial), trial.epoch_index
    for t in np.linspace(1, trial.committed - 1 - horizons.max(), _ORIGINS_TO_TRY).astype(int):
        true = weights[t + horizons] - weights[t]
        moved += (true**2).sum(axis=1)
        for i, candidate in enumerate(candidates):
            first = 0 if candidate.context is None else max(0, t + 1 - candidate.context)
            seen = History(trial.seed, int(t), weights[first : t + 1], int(indices[t]))
            made = candidate.forecast([seen], horizons.tolist())[0] - weights[t]
            error[i] += ((true - made).astype(np.float64) ** 2).sum(axis=1)


def _mean_skills(error: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """[candidates], over the horizons; 1 where nothing moved, so that all are alike."""
    return (1 - np.divide(error, moved, out=np.ones_like(error), where=moved > 0)).mean(axis=1)


def _best(groups: Sequence[Sequence[Kind]], skills: Sequence[np.ndarray]) -> list[Kind]:
    """Of each group the one with the highest skill, on average over stores; the first of equal ones."""
    left, best = np.mean(skills, axis=0).tolist(), []
    for group in groups:
        own, left = left[: len(group)], left[len(group) :]
        best.append(group[int(np.argmax(own))])
    return best


def _context(forecaster: WeightedSum) -> int:
    assert forecaster.context is not None
    return forecaster.context


class FixedSum(WeightedSum):
    """A weighted sum whose coefficients are known beforehand.

    Args:
        weight: of the snapshot k before the origin, in a forecast h ahead.
        context: snapshots it takes.
    """

    def __init__(self, name: str, label: str, context: int, weight: Callable[[np.ndarray, int], np.ndarray]) -> None:
        self.name, self.label, self.context = name, label, context
        self._weight = weight

    def coefficients(self, epoch_index: int, horizons: Sequence[int]) -> np.ndarray:
        assert self.context is not None
        return _coefficients(self._weight, self.context, tuple(horizons))


@lru_cache(maxsize=512)
def _coefficients(
    weight: Callable[[np.ndarray, int], np.ndarray], context: int, horizons: tuple[int, ...]
) -> np.ndarray:
    """Those of a `FixedSum`, [H, context]; read-only, since asked for at every origin."""
    back = np.arange(context - 1, -1, -1)
    made = np.stack([weight(back, h) for h in horizons])
    made.flags.writeable = False
    return made


def persistence() -> FixedSum:
    """φ̃_{t+h} = φ_t: doing nothing."""
    return FixedSum("persistence", "persistence", 1, _nothing)


def mean_of_last(count: int) -> FixedSum:
    """The mean of the last `count` snapshots."""
    return FixedSum(f"mean-{count}", f"mean of the last {count}", count, equal_shares)


def last_difference() -> FixedSum:
    """φ_t + h (φ_t − φ_{t−1})."""
    return FixedSum("last-difference", "last difference × h", 2, _last_step)


def line(count: int) -> FixedSum:
    """The least-squares line through the last `count` snapshots, taken h ahead."""
    return FixedSum(f"line-{count}", f"line through the last {count}", count, _on_the_line)


def damped_line(count: int, damping: float) -> FixedSum:
    """φ_t + (γ + … + γ^h) times the slope of the line through the last `count` (Gardner & McKenzie 1985)."""
    weight = partial(_along_the_line, damping=damping)
    return FixedSum("damped-line", f"damped line (last {count}, γ = {damping})", count, weight)


# Weights of the snapshots `back` before the origin, in a forecast h ahead: functions by name, which can be pickled.


def _nothing(back: np.ndarray, h: int) -> np.ndarray:
    return np.zeros(len(back))


def equal_shares(back: np.ndarray, h: int) -> np.ndarray:
    """Those of a mean, whatever the horizon."""
    return np.full(len(back), 1 / len(back))


def _last_step(back: np.ndarray, h: int) -> np.ndarray:
    return -h * (back == 1).astype(float)


def _on_the_line(back: np.ndarray, h: int) -> np.ndarray:
    time = -back - (-back).mean()
    return 1 / len(back) + (h - (-back).mean()) * time / (time**2).sum()


def _along_the_line(back: np.ndarray, h: int, damping: float) -> np.ndarray:
    time = -back - (-back).mean()
    return (damping ** np.arange(1, h + 1)).sum() * time / (time**2).sum()


class RandomDisplacement(Forecaster):
    """φ_t and a random displacement as long as the last h snapshots' own: what length alone is worth."""

    name, label = "random", "random displacement of equal length"

    def __init__(self, longest: int, seed: int = 0) -> None:
        self.context = longest + 1
        self._seed = seed

    def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
        assert self.context is not None
        out = []
        for history in histories:
            window = history.last(self.context)
            rng = np.random.default_rng([self._seed, history.trial, history.origin])
            direction = rng.standard_normal(window.shape[1], np.float32)
            direction /= np.linalg.norm(direction)
            lengths = np.linalg.norm(window[[-1 - h for h in horizons]] - window[-1], axis=1)
            out.append(window[-1] + lengths[:, None] * direction)
        return np.stack(out).astype(np.float32)


class TrainMean(Forecaster):
    """φ_t and what the training trials moved on average from snapshot t to t + h; the last one stands for later."""

    name, label, context = "train-mean", "mean step of the training trials at t", 1

    def __init__(self, trials: Sequence[Trial]) -> None:
        length, size = min(trial.committed for trial in trials), trials[0].spec.size
        self._mean = np.zeros((length, size), np.float32)  # all that is held: as much as one trial
        height = max(1, _BLOCK_BYTES // (4 * size))
        for start in range(0, length, height):
            stop = min(start + height, length)
            for trial in trials:
                self._mean[start:stop] += trial.weights(start, stop) / len(trials)

    def forecast(self, histories: Sequence[History], horizons: Sequence[int]) -> np.ndarray:
        last = len(self._mean) - 1
        out = []
        for history in histories:
            now, ahead = min(history.origin, last), np.minimum(history.origin + np.array(horizons), last)
            out.append(history.weights[-1] + self._mean[ahead] - self._mean[now])
        return np.stack(out)
