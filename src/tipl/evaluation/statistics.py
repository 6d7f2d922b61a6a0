"""Point estimates and their uncertainty over trials: IQM, intervals, paired differences, many comparisons at once.

In: one row a trial (sums over its origins, or one score), a statistic of the rows, a seeded numpy Generator.
Out: Intervals, one for every column (horizon), in which None says that a number is not defined by the data.

Trials are independent, the origins of one trial are not: whatever is resampled here is trials (Agarwal et al. 2021,
"Deep Reinforcement Learning at the Edge of the Statistical Precipice"). Percentiles of resamples are too narrow for the
few trials that there are, so the intervals here are studentized; `studies/intervals.py` simulates how often they
cover. Shapes: N trials, H horizons, R resamples.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.special  # whose distributions take a fifth of the time of scipy.stats to import
from numpy.typing import ArrayLike

Statistic = Callable[..., np.ndarray]
"""``statistic(*samples, axis)``: reduces every sample along `axis`, the trials, and keeps the other axes."""

# One gather of resampled rows; many resamples of many horizons are worked through in pieces of this size.
_CHUNK_BYTES = 64 * 2**20


LEAST_TRIALS = 5
"""From fewer trials there is no interval: none of the methods that were tried covers there and says anything."""

_WIDEST_DEGREES = 2  # of freedom: Student's t whose quantiles bound those of the studentized resamples


class Interval(NamedTuple):
    """A statistic with its interval.

    value: None where the statistic has no finite value at the data (a denominator of zero).
    low, high: None where `value` is, where there are fewer than `LEAST_TRIALS` trials or a stratum has only one, and
        where some resample has no finite value, because the interval is then unbounded. Equal to `value` where all
        trials agree.
    trials: how many stand behind it.
    """

    value: float | None
    low: float | None
    high: float | None
    trials: int

    @property
    def bounds(self) -> list[float] | None:
        """[low, high], as JSON has them; None where there are none."""
        return None if self.low is None or self.high is None else [self.low, self.high]


class Scale(NamedTuple):
    """A scale on which a statistic's error is nearly symmetric, and the way back; both increase or both decrease."""

    to: Callable[[np.ndarray], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray]


PLAIN = Scale(lambda x: x, lambda x: x)
POSITIVE = Scale(np.log, np.exp)
"""Of statistics above zero, such as a mean error or a ratio of costs."""
BELOW_ONE = Scale(lambda x: np.log(1 - x), lambda x: 1 - np.exp(x))
"""Of one minus a ratio of errors: `skill`, R²."""


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


def paired_improvement(x: ArrayLike, y: ArrayLike, axis: int = 0) -> np.ndarray:
    """P(x > y) + P(x = y) / 2 over trials that have both an x and a y; a `Statistic`.

    The probability of improvement (Agarwal et al. 2021) where two are judged on the same trials: what makes one trial
    harder than another does not blur it.
    """
    x_N, y_N = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return ((x_N > y_N) + 0.5 * (x_N == y_N)).mean(axis=axis)


def bootstrap_interval(
    statistic: Statistic,
    *samples: ArrayLike,
    rng: np.random.Generator,
    strata: ArrayLike | None = None,
    resamples: int = 2_000,
    level: float = 0.95,
    scale: Scale = PLAIN,
) -> list[Interval]:
    """Return a statistic of the trials with an interval that covers, also with few and skewed trials.

    The interval joins two, on `scale`: Student's t times the larger of the jackknife's and the bootstrap's standard
    error, and the studentized bootstrap (Efron and Tibshirani 1993, chapter 12), whose quantiles count no further than
    those of Student's t of two degrees of freedom. The first is right for symmetric trials and for medians and
    trimmed means, the second for skewed ones. Rows are drawn with replacement, the same rows from every sample and for
    every horizon, so that a ratio of sums such as `skill` keeps the sums of a trial together. A share of trials
    (`paired_improvement`) has the exact interval of Clopper and Pearson instead.

    Args:
        statistic: takes `samples` and the axis of the trials.
        samples: [N] or [N, H] each, all finite; rows of one trial stand at the same place in all of them.
        rng: draws the resamples; the same state gives the same intervals.
        strata: [N] labels; each stratum (say, an environment) keeps its number of trials in every resample.
        resamples: number of resamples.
        level: probability that the interval covers.
        scale: where the statistic is studentized; `PLAIN` is taken instead for a horizon that is not finite there.

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
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if count < LEAST_TRIALS or min(map(len, groups)) < 2:
        return [Interval(_number(value), None, None, count) for value in value_H]
    if statistic is paired_improvement:
        return [_share(value, count, level) for value in value_H]

    left_NH = _leave_one_out(statistic, rows, np.arange(count)[None])[0].reshape(count, -1)
    drawn_RH, left_RNH = _resampled(statistic, rows, groups, resamples, rng)
    intervals = []
    for h, value in enumerate(value_H):
        of = value, left_NH[:, h], drawn_RH[:, h], left_RNH[:, :, h]
        bounds = _joined(*of, groups, level, scale) or _joined(*of, groups, level, PLAIN)
        intervals.append(Interval(_number(value), *(bounds or (None, None)), count))
    return intervals


def paired_difference(
    statistic: Statistic,
    first: Sequence[ArrayLike],
    second: Sequence[ArrayLike],
    *,
    rng: np.random.Generator,
) -> list[Interval]:
    """Return statistic(*first) − statistic(*second) with its interval, on the same trials in every resample.

    What all trials share (hard trials, noise of the returns) cancels, so the interval is narrower than the two
    intervals apart would suggest; it lies above zero where the data say that `first` is the larger.

    Args and Returns: as `bootstrap_interval`; `first` and `second` hold the samples of the two.
    """

    def difference(*samples: np.ndarray, axis: int) -> np.ndarray:
        return statistic(*samples[: len(first)], axis=axis) - statistic(*samples[len(first) :], axis=axis)

    return bootstrap_interval(difference, *first, *second, rng=rng)


def p_value(interval: Interval, null: float) -> float | None:
    """Return the two-sided p-value of `null` that a 95% interval and its number of trials stand for.

    The side of the interval that faces `null` is read as Student's t times a standard error, of one degree of freedom
    less than trials. None where there is no interval.
    """
    value, low, high, trials = interval
    if value is None or low is None or high is None or trials < 2:
        return None
    side, distance = (value - low, value - null) if value > null else (high - value, null - value)
    if side <= 0:
        return 0.0 if distance > 0 else 1.0
    ratio = distance / side * scipy.special.stdtrit(trials - 1, 0.975)
    return float(2 * scipy.special.stdtr(trials - 1, -ratio))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that hold for many comparisons at once (Holm 1979).

    Those at most 0.05 are wrong about any of the comparisons in at most 5% of studies: what a sentence needs that
    speaks of many horizons or of many arms.
    """
    count = len(p_values)
    order = np.argsort(p_values, kind="stable")
    factor = np.arange(count, 0, -1)
    adjusted = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, np.float64)[order] * factor))
    return adjusted[np.argsort(order, kind="stable")].tolist()


def _joined(
    value: float, left_N: np.ndarray, drawn_R: np.ndarray, left_RN: np.ndarray, groups: Sequence[np.ndarray],
    level: float, scale: Scale,
) -> tuple[float, float] | None:  # fmt: skip
    """The interval of one horizon from the statistic without each trial and in the resamples; None where one of these
    is not finite on the scale."""
    with np.errstate(all="ignore"):
        value, left_N, drawn_R, left_RN = (scale.to(np.asarray(each)) for each in (value, left_N, drawn_R, left_RN))  # pyright: ignore[reportAssignmentType]
        if not (np.isfinite(value) and np.isfinite(left_N).all() and np.isfinite(drawn_R).all()):
            return None
        error, degrees = _jackknife(left_N, groups)
        error_R, _ = _jackknife(left_RN, groups)
        moved_R = drawn_R - value
        student_R = np.where(error_R > 0, moved_R / error_R, np.sign(moved_R) * np.inf)  # NaN is no larger than 0
        student_R[np.isnan(student_R)] = 0.0  # which has not moved
    few = min(map(len, groups))
    widest = max(float(error), float(drawn_R.std()) * np.sqrt(few / (few - 1)))
    usual, most = (float(scipy.special.stdtrit(d, (1 + level) / 2)) for d in (degrees, min(_WIDEST_DEGREES, degrees)))
    low, high = np.quantile(student_R, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    below = max(usual * widest, min(max(high, usual), most) * error)
    above = max(usual * widest, min(max(-low, usual), most) * error)
    ends = scale.back(np.array([value - below, value + above]))
    return float(ends.min()), float(ends.max())


def _jackknife(left_XN: np.ndarray, groups: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
    """The standard error [X] of a statistic from its values without each trial, strata apart; and the degrees of
    freedom of the first (Satterthwaite's)."""
    parts = [
        (len(group) - 1) ** 2 / len(group) * left_XN[..., group].var(axis=-1, ddof=1) for group in groups
    ]  # of each stratum, its share of the variance
    total = np.sum(parts, axis=0)
    freedom = np.array([len(group) - 1 for group in groups], np.float64)
    first = np.array([np.ravel(part)[0] for part in parts])
    spread = np.sum(first**2 / freedom)
    return np.sqrt(total), float(first.sum() ** 2 / spread) if spread > 0 else float(freedom.sum())


def _resampled(
    statistic: Statistic, rows: Sequence[np.ndarray], groups: Sequence[np.ndarray], resamples: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The statistic [R, H] of rows drawn within each stratum, and without each of the drawn rows [R, N, H]."""
    count = len(rows[0])
    index_RN = np.empty((resamples, count), np.int64)
    for members in groups:
        index_RN[:, members] = members[rng.integers(0, len(members), (resamples, len(members)))]
    chunk = max(1, _CHUNK_BYTES // max(1, count * sum(row.nbytes for row in rows)))
    drawn, left = [], []
    for start in range(0, resamples, chunk):
        part = index_RN[start : start + chunk]
        drawn.append(_quietly(statistic, [row[part] for row in rows], axis=1).reshape(len(part), -1))
        left.append(_leave_one_out(statistic, rows, part).reshape(len(part), count, -1))
    return np.concatenate(drawn), np.concatenate(left)


def _leave_one_out(statistic: Statistic, rows: Sequence[np.ndarray], index_RN: np.ndarray) -> np.ndarray:
    """[R, N, …] the statistic of the rows `index_RN` without each one of them."""
    count = index_RN.shape[1]
    others = np.array([[j for j in range(count) if j != i] for i in range(count)])
    return _quietly(statistic, [row[index_RN[:, others]] for row in rows], axis=2)


def _share(value: float, count: int, level: float) -> Interval:
    """Clopper and Pearson's interval of a share of trials; ties, which count half, leave it a little wide."""
    hits, tail = value * count, (1 - level) / 2
    low = 0.0 if hits == 0 else float(scipy.special.betaincinv(hits, count - hits + 1, tail))
    high = 1.0 if hits == count else float(scipy.special.betaincinv(hits + 1, count - hits, 1 - tail))
    return Interval(float(value), low, high, count)


def _quietly(statistic: Statistic, rows: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """The statistic without floating-point warnings: what is not finite becomes None in the Interval."""
    with np.errstate(all="ignore"):
        return np.asarray(statistic(*rows, axis=axis), np.float64)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
