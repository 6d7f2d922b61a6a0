"""Point estimates and their uncertainty over trials: IQM, bootstrap intervals, paired differences.

In: one row a trial (sums over its origins, or one score), a statistic of the rows, a seeded numpy Generator.
Out: Intervals, one for every column (horizon), in which None says that a number is not defined by the data.

Trials are independent, the origins of one trial are not: whatever is resampled here is trials (Agarwal et al. 2021,
"Deep Reinforcement Learning at the Edge of the Statistical Precipice"). Shapes: N trials, H horizons, R resamples.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Statistic = Callable[..., np.ndarray]
"""``statistic(*samples, axis)``: reduces every sample along `axis`, the trials, and keeps the other axes."""

# One gather of resampled rows; many resamples of many horizons are worked through in pieces of this size.
_CHUNK_BYTES = 64 * 2**20


class Interval(NamedTuple):
    """A statistic with its percentile bootstrap interval.

    value: None where the statistic has no finite value at the data (a denominator of zero).
    low, high: None where `value` is, where no stratum has a second trial, and where some resample has no finite value,
        because the interval is then unbounded. Equal to `value` where all trials agree.
    """

    value: float | None
    low: float | None
    high: float | None

    @property
    def bounds(self) -> list[float] | None:
        """[low, high], as JSON has them; None where there are none."""
        return None if self.low is None or self.high is None else [self.low, self.high]


def iqm(x: ArrayLike, axis: int | None = None) -> np.ndarray:
    """Interquartile mean: the mean of what is left when the lowest and the highest ⌊n/4⌋ values are dropped.

    As rliable defines it, a trimmed mean with a cut of 25% on either side. `axis=None` takes all values together.
    """
    values = np.asarray(x, np.float64)
    if axis is None:
        values, axis = values.reshape(-1), 0
    count = values.shape[axis]
    assert count >= 1, "the IQM of no values"
    cut = count // 4
    middle = np.moveaxis(np.sort(values, axis=axis), axis, 0)[cut : count - cut]
    return middle.mean(axis=0)


def ratio_of_iqms(x: ArrayLike, y: ArrayLike, axis: int = 0) -> np.ndarray:
    """IQM of x over that of y; a `Statistic`."""
    return iqm(x, axis) / iqm(y, axis)


def skill(errors: ArrayLike, reference_errors: ArrayLike, axis: int = 0) -> np.ndarray:
    """1 − Σ errors / Σ reference errors over trials; a `Statistic`.

    A reference that makes no error gives NaN or −inf, which `bootstrap_interval` turns to None.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - np.sum(errors, axis=axis) / np.sum(reference_errors, axis=axis)


def probability_of_improvement(x: ArrayLike, y: ArrayLike, axis: int = 0) -> np.ndarray:
    """P(X > Y) + P(X = Y) / 2 over all pairs of a value of x and one of y along `axis`; a `Statistic`.

    The Mann-Whitney U statistic of x over the number of pairs. Above 0.5: x tends to be larger. x and y may differ in
    their number of trials.
    """
    x_N = np.moveaxis(np.asarray(x, np.float64), axis, -1)[..., :, None]
    y_N = np.moveaxis(np.asarray(y, np.float64), axis, -1)[..., None, :]
    return ((x_N > y_N) + 0.5 * (x_N == y_N)).mean(axis=(-2, -1))


def paired_improvement(x: ArrayLike, y: ArrayLike, axis: int = 0) -> np.ndarray:
    """P(x > y) + P(x = y) / 2 over trials that have both an x and a y; a `Statistic`.

    The probability of improvement where two forecasters are judged on the same trials: what makes one trial harder
    than another does not blur it.
    """
    x_N, y_N = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return ((x_N > y_N) + 0.5 * (x_N == y_N)).mean(axis=axis)


def bootstrap_interval(
    statistic: Statistic,
    *samples: ArrayLike,
    rng: np.random.Generator,
    strata: ArrayLike | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
) -> list[Interval]:
    """Percentile bootstrap of a statistic of the trials (Efron 1979).

    Rows are drawn with replacement, the same rows from every sample and for every horizon, so that a ratio of sums such
    as `skill` keeps the sums of a trial together.

    Args:
        statistic: takes `samples` and the axis of the trials.
        samples: [N] or [N, H] each, all finite; rows of one trial stand at the same place in all of them.
        rng: draws the resamples; the same state gives the same intervals.
        strata: [N] labels; each stratum (say, an environment) keeps its number of trials in every resample.
        resamples: number of resamples.
        level: probability that the interval covers.

    Returns:
        One Interval a horizon; a list of one where no sample has horizons.
    """
    rows = [np.asarray(sample, np.float64) for sample in samples]
    count = len(rows[0])
    assert count >= 1 and all(len(row) == count for row in rows), [row.shape for row in rows]
    assert all(np.isfinite(row).all() for row in rows), "a sample holds NaN or infinity"
    assert resamples >= 1 and 0 < level < 1, (resamples, level)
    labels = np.zeros(count) if strata is None else np.asarray(strata)
    assert labels.shape == (count,), (labels.shape, count)

    value_H = np.atleast_1d(_quietly(statistic, rows, axis=0))
    index_RN, varies = _resampled_rows(labels, resamples, rng)
    if not varies:
        return [Interval(_number(value), None, None) for value in value_H]

    chunk = max(1, _CHUNK_BYTES // max(1, sum(row.nbytes for row in rows)))
    drawn_RH = np.concatenate(
        [
            _quietly(statistic, [row[index_RN[start : start + chunk]] for row in rows], axis=1).reshape(
                -1, value_H.size
            )
            for start in range(0, resamples, chunk)
        ]
    )
    intervals = []
    for value, drawn_R in zip(value_H, drawn_RH.T, strict=True):
        if np.isfinite(value) and np.isfinite(drawn_R).all():
            low, high = np.quantile(drawn_R, [(1 - level) / 2, (1 + level) / 2])
            intervals.append(Interval(float(value), float(low), float(high)))
        else:
            intervals.append(Interval(_number(value), None, None))
    return intervals


def paired_difference(
    statistic: Statistic,
    first: Sequence[ArrayLike],
    second: Sequence[ArrayLike],
    *,
    rng: np.random.Generator,
    strata: ArrayLike | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
) -> list[Interval]:
    """statistic(*first) − statistic(*second) with its bootstrap interval, on the same trials in every resample.

    What all trials share (hard trials, noise of the returns) cancels, so the interval is narrower than the two
    intervals apart would suggest; it lies above zero where `first` is beyond doubt the larger.

    Args and Returns: as `bootstrap_interval`; `first` and `second` hold the samples of the two.
    """

    def difference(*samples: np.ndarray, axis: int) -> np.ndarray:
        return statistic(*samples[: len(first)], axis=axis) - statistic(*samples[len(first) :], axis=axis)

    return bootstrap_interval(difference, *first, *second, rng=rng, strata=strata, resamples=resamples, level=level)


def _resampled_rows(labels: np.ndarray, resamples: int, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    """Row numbers [R, N], drawn within each stratum, and whether any stratum has more than one row to draw from."""
    index_RN = np.empty((resamples, len(labels)), np.int64)
    varies = False
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        index_RN[:, members] = members[rng.integers(0, len(members), (resamples, len(members)))]
        varies |= len(members) > 1
    return index_RN, varies


def _quietly(statistic: Statistic, rows: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """The statistic without floating-point warnings: what is not finite becomes None in the Interval."""
    with np.errstate(all="ignore"):
        return np.asarray(statistic(*rows, axis=axis), np.float64)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
