"""Statistics against scipy, the published definitions and closed forms."""

import numpy as np
import pytest
import scipy.stats

from tipl.stats import (
    Interval,
    bootstrap_interval,
    iqm,
    paired_difference,
    paired_improvement,
    probability_of_improvement,
    skill,
)


def mean(x: np.ndarray, axis: int) -> np.ndarray:
    return np.mean(x, axis=axis)


def numbers(*intervals: Interval) -> np.ndarray:
    """[intervals, 3], all of them defined."""
    assert not any(part is None for interval in intervals for part in interval)
    return np.array(intervals, np.float64)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 50])
def test_iqm_is_scipys_trimmed_mean(count: int) -> None:
    x = np.random.default_rng(count).standard_normal((count, 3))
    np.testing.assert_allclose(iqm(x, axis=0), scipy.stats.trim_mean(x, 0.25, axis=0))
    np.testing.assert_allclose(iqm(x.T, axis=1), scipy.stats.trim_mean(x, 0.25, axis=0))
    np.testing.assert_allclose(iqm(x), scipy.stats.trim_mean(x.reshape(-1), 0.25))


def test_iqm_by_hand() -> None:
    assert iqm([100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -70.0]) == 3.5


def test_probability_of_improvement_is_mann_whitney_u_over_pairs() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, (9, 2)).astype(float)  # integers, so that there are ties
    y = rng.integers(1, 7, (5, 2)).astype(float)
    expected = [scipy.stats.mannwhitneyu(x[:, i], y[:, i]).statistic / 45 for i in range(2)]
    np.testing.assert_allclose(probability_of_improvement(x, y), expected)
    np.testing.assert_allclose(probability_of_improvement(x.T, y.T, axis=1), expected)


def test_probability_of_improvement_by_hand() -> None:
    # Pairs: 1 > 0, 1 = 1, 1 < 5, 2 > 0, 2 > 1, 2 < 5.
    assert probability_of_improvement([1, 2], [0, 1, 5]) == pytest.approx((1 + 0.5 + 0 + 1 + 1 + 0) / 6)


def test_paired_improvement_counts_trials_and_not_pairs() -> None:
    x, y = [1.0, 2.0, 9.0, 10.0], [0.0, 2.0, 10.0, 9.0]
    assert paired_improvement(x, y) == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert probability_of_improvement(x, y) != pytest.approx(2.5 / 4)
    # Always a little better, on trials of very different height: certain when paired, hardly to be seen otherwise.
    y = np.random.default_rng(0).normal(size=50) * 100
    (found,) = bootstrap_interval(paired_improvement, y + 1, y, rng=np.random.default_rng(1))
    assert tuple(found) == (1, 1, 1) and probability_of_improvement(y + 1, y) < 0.55
    np.testing.assert_array_equal(paired_improvement(np.eye(3), np.zeros((3, 3)), axis=1), np.full(3, 2 / 3))


@pytest.mark.parametrize("statistic", [mean, iqm])
def test_interval_equals_scipys_percentile_bootstrap(statistic) -> None:
    """scipy draws its rows with the same call, so the same generator gives the same interval to the last digit."""
    x = np.random.default_rng(1).gamma(2.0, size=23)
    theirs = scipy.stats.bootstrap(
        (x,), statistic, n_resamples=3000, method="percentile", rng=np.random.default_rng(2), vectorized=True
    ).confidence_interval
    ours = bootstrap_interval(statistic, x, rng=np.random.default_rng(2), resamples=3000)
    assert len(ours) == 1
    np.testing.assert_allclose(numbers(ours[0])[0], (statistic(x, axis=0), theirs.low, theirs.high), rtol=1e-12)


def test_ratio_of_sums_equals_scipys_paired_bootstrap() -> None:
    rng = np.random.default_rng(3)
    errors, reference = rng.gamma(2.0, size=15), rng.gamma(3.0, size=15)
    theirs = scipy.stats.bootstrap(
        (errors, reference),
        skill,
        paired=True,
        vectorized=True,
        axis=0,
        n_resamples=2000,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(4),
    ).confidence_interval
    (ours,) = bootstrap_interval(skill, errors, reference, rng=np.random.default_rng(4), resamples=2000, level=0.9)
    assert ours.value == pytest.approx(1 - errors.sum() / reference.sum())
    np.testing.assert_allclose(numbers(ours)[0, 1:], [theirs.low, theirs.high], rtol=1e-12)


def test_horizons_are_vectorized_and_share_their_resamples() -> None:
    rng = np.random.default_rng(5)
    errors_NH, reference_NH = rng.gamma(2.0, size=(12, 4)), rng.gamma(3.0, size=(12, 4))
    together = bootstrap_interval(skill, errors_NH, reference_NH, rng=np.random.default_rng(6), resamples=500)
    for h in range(4):
        alone = bootstrap_interval(
            skill, errors_NH[:, h], reference_NH[:, h], rng=np.random.default_rng(6), resamples=500
        )
        np.testing.assert_allclose(numbers(together[h]), numbers(*alone), rtol=1e-12)


def test_working_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x_NH = np.random.default_rng(7).standard_normal((10, 3))
    whole = bootstrap_interval(iqm, x_NH, rng=np.random.default_rng(8), resamples=101)
    monkeypatch.setattr("tipl.stats._CHUNK_BYTES", 10 * x_NH.nbytes)
    assert bootstrap_interval(iqm, x_NH, rng=np.random.default_rng(8), resamples=101) == whole


def test_two_trials_in_closed_form() -> None:
    # The mean of a resample is 2, 3 or 4 with probability 1/4, 1/2, 1/4: 95% of it is [2, 4], 40% of it [3, 3].
    rng = np.random.default_rng(9)
    assert bootstrap_interval(mean, [2.0, 4.0], rng=rng, resamples=2000) == [Interval(3.0, 2.0, 4.0)]
    assert bootstrap_interval(mean, [2.0, 4.0], rng=rng, resamples=2000, level=0.4) == [Interval(3.0, 3.0, 3.0)]


def test_coverage_of_the_mean_interval() -> None:
    """40 normal trials: the interval is close to mean ± 1.96 s/√n and covers the truth in about 19 of 20 data sets."""
    rng = np.random.default_rng(10)
    covered = 0
    for _ in range(400):
        x = rng.standard_normal(40) + 5
        (interval,) = bootstrap_interval(mean, x, rng=rng, resamples=400)
        assert interval.low is not None and interval.high is not None
        covered += interval.low <= 5 <= interval.high
    assert 0.91 <= covered / 400 <= 0.97


def test_strata_keep_their_sizes() -> None:
    """Between-stratum differences add nothing: strata that are constant inside leave no uncertainty at all."""
    x = np.array([1.0, 1.0, 1.0, 9.0, 9.0])
    labels = ["ant", "ant", "ant", "hopper", "hopper"]
    (plain,) = bootstrap_interval(mean, x, rng=np.random.default_rng(11), resamples=1000)
    (stratified,) = bootstrap_interval(mean, x, rng=np.random.default_rng(11), strata=labels, resamples=1000)
    assert plain.low is not None and plain.high is not None and plain.high - plain.low > 3
    np.testing.assert_allclose(numbers(stratified), [[4.2, 4.2, 4.2]])


def test_stratified_variance_in_closed_form() -> None:
    """Variance of a stratified resampled mean: Σ_s n_s σ_s² / N², σ_s² the variance inside stratum s."""
    rng = np.random.default_rng(12)
    x = np.concatenate([rng.normal(0, 1, 30), rng.normal(20, 3, 10)])
    labels = np.repeat([0, 1], [30, 10])
    (interval,) = bootstrap_interval(mean, x, rng=rng, strata=labels, resamples=20_000)
    deviation = np.sqrt(30 * x[:30].var() + 10 * x[30:].var()) / 40
    assert interval.low is not None and interval.high is not None
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * deviation, rel=0.03)


def test_paired_difference_cancels_what_trials_share() -> None:
    rng = np.random.default_rng(13)
    shared = rng.normal(0, 10, 20)
    better, worse = shared + 1, shared + rng.normal(0, 0.1, 20)
    (paired,) = paired_difference(mean, [better], [worse], rng=np.random.default_rng(14), resamples=2000)
    (direct,) = bootstrap_interval(mean, better - worse, rng=np.random.default_rng(14), resamples=2000)
    np.testing.assert_allclose(numbers(paired), numbers(direct), rtol=1e-9)
    assert paired.low is not None and paired.low > 0.9


def test_paired_difference_of_skills() -> None:
    """With one reference the difference of skills is a ratio of sums itself: Σ (worse − better) / Σ reference."""
    rng = np.random.default_rng(15)
    better_NH, worse_NH, reference_NH = rng.gamma(1.0, size=(3, 14, 2))
    paired = paired_difference(
        skill, [better_NH, reference_NH], [worse_NH, reference_NH], rng=np.random.default_rng(16), resamples=700
    )
    direct = bootstrap_interval(
        lambda gap, reference, axis: gap.sum(axis) / reference.sum(axis),
        worse_NH - better_NH,
        reference_NH,
        rng=np.random.default_rng(16),
        resamples=700,
    )
    np.testing.assert_allclose(numbers(*paired), numbers(*direct), rtol=1e-9)


def test_probability_of_improvement_takes_an_interval() -> None:
    rng = np.random.default_rng(17)
    y = rng.standard_normal((10, 2))
    x = np.stack([y[:, 0] + 100, y[:, 1]], axis=1)
    certain, even = bootstrap_interval(probability_of_improvement, x, y, rng=rng, resamples=300)
    assert certain == Interval(1.0, 1.0, 1.0)
    assert even == Interval(0.5, 0.5, 0.5)  # the same rows of x and y are drawn


def test_one_trial_has_a_value_and_no_interval() -> None:
    assert bootstrap_interval(mean, [[3.0, 4.0]], rng=np.random.default_rng(0)) == [
        Interval(3.0, None, None),
        Interval(4.0, None, None),
    ]
    one_a_stratum = bootstrap_interval(mean, [3.0, 4.0], rng=np.random.default_rng(0), strata=["a", "b"])
    assert one_a_stratum == [Interval(3.5, None, None)]


def test_a_zero_denominator_is_none_and_only_where_it_is() -> None:
    errors_NH = np.array([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    reference_NH = np.array([[4.0, 0.0, 0.0], [4.0, 0.0, 4.0]])
    defined, never, sometimes = bootstrap_interval(
        skill, errors_NH, reference_NH, rng=np.random.default_rng(0), resamples=200
    )
    np.testing.assert_allclose(numbers(defined), [[1 - 3 / 8, 0.5, 0.75]])
    assert never == Interval(None, None, None)
    # Resamples that hold the first trial alone have no reference error: the interval is unbounded.
    assert sometimes == Interval(0.25, None, None)


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(AssertionError, match="NaN"):
        bootstrap_interval(mean, [1.0, np.nan], rng=np.random.default_rng(0))
