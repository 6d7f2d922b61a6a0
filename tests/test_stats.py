"""Statistics against scipy, the published definitions and closed forms."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from tipl.evaluation.statistics import (
    BELOW_ONE,
    POSITIVE,
    Interval,
    bootstrap_interval,
    holm,
    iqm,
    p_value,
    paired_difference,
    paired_improvement,
    skill,
)


def mean(x: np.ndarray, axis: int) -> np.ndarray:
    return np.mean(x, axis=axis)


def numbers(*intervals: Interval) -> np.ndarray:
    """[intervals, 4], all of them defined."""
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


def test_paired_improvement_counts_trials_and_not_pairs() -> None:
    x, y = [1.0, 2.0, 9.0, 10.0], [0.0, 2.0, 10.0, 9.0]
    assert paired_improvement(x, y) == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    # Always a little better, on trials of very different height: certain.
    y = np.random.default_rng(0).normal(size=50) * 100
    (found,) = bootstrap_interval(paired_improvement, y + 1, y, rng=np.random.default_rng(1))
    assert found.value == found.high == 1
    np.testing.assert_array_equal(paired_improvement(np.eye(3), np.zeros((3, 3)), axis=1), np.full(3, 2 / 3))


def by_plain_loop(statistic, samples, seed: int, groups: list[list[int]], resamples: int) -> tuple[float, float]:
    """The interval as it is defined, one resample and one left-out trial after another; both ends on a plain scale."""

    def jackknife(rows: list[int]) -> float:
        total = 0.0
        for group in groups:  # positions, whose rows are drawn within their stratum
            left = [statistic(*(x[np.delete(rows, i)] for x in samples), axis=0) for i in group]
            total += (len(group) - 1) / len(group) * sum((each - np.mean(left)) ** 2 for each in left)
        return float(np.sqrt(total))

    count, rng = len(samples[0]), np.random.default_rng(seed)
    drawn = np.empty((resamples, count), int)
    for group in groups:
        drawn[:, group] = np.array(group)[rng.integers(0, len(group), (resamples, len(group)))]
    value, error = statistic(*samples, axis=0), jackknife(list(range(count)))
    found = [statistic(*(x[rows] for x in samples), axis=0) for rows in drawn]
    student = np.sort([(each - value) / jackknife(list(rows)) for each, rows in zip(found, drawn, strict=True)])
    few = len(groups[0])
    usual = scipy.stats.t.ppf(0.975, count - len(groups)) * max(error, np.std(found) * np.sqrt(few / (few - 1)))
    most = scipy.stats.t.ppf(0.975, 2)
    high = student[int(np.ceil(0.975 * resamples)) - 1]
    low = student[int(np.ceil(0.025 * resamples)) - 1]
    return value - max(usual, min(high, most) * error), value + max(usual, min(-low, most) * error)


@pytest.mark.parametrize("statistic", [mean, iqm, skill])
def test_interval_equals_a_plain_loop(statistic) -> None:
    rng = np.random.default_rng(1)
    samples = [rng.gamma(2.0, size=11) for _ in range(2 if statistic is skill else 1)]
    (ours,) = bootstrap_interval(statistic, *samples, rng=np.random.default_rng(2), resamples=199)
    expected = by_plain_loop(statistic, samples, 2, [list(range(11))], 199)
    np.testing.assert_allclose(numbers(ours)[0, 1:3], expected, rtol=1e-9)
    assert ours.trials == 11 and ours.value == pytest.approx(float(statistic(*samples, axis=0)))


def test_stratified_interval_equals_a_plain_loop() -> None:
    """Strata of one size and one spread, so that the degrees of freedom are those of all rows less the strata."""
    x = np.random.default_rng(3).gamma(2.0, size=6)
    x, labels = np.concatenate([x, x + 7.0]), np.repeat(["ant", "hopper"], 6)
    (ours,) = bootstrap_interval(mean, x, rng=np.random.default_rng(4), strata=labels, resamples=199)
    expected = by_plain_loop(mean, [x], 4, [list(range(6)), list(range(6, 12))], 199)
    np.testing.assert_allclose(numbers(ours)[0, 1:3], expected, rtol=1e-9)


def test_interval_holds_students() -> None:
    """Of a mean it is never narrower than Student's t, and of many symmetric trials hardly wider."""
    rng = np.random.default_rng(5)
    for count in (5, 10, 80):
        x = rng.standard_normal(count)
        (ours,) = bootstrap_interval(mean, x, rng=rng)
        theirs = scipy.stats.ttest_1samp(x, 0).confidence_interval()
        low, high = numbers(ours)[0, 1:3]
        assert low <= theirs.low + 1e-12 and theirs.high <= high + 1e-12
    assert high - low < 1.2 * (theirs.high - theirs.low)


def test_a_scale_bounds_what_it_is_of() -> None:
    """However few and skewed the trials: an error is above 0 and a skill below 1, and both scales say the same."""
    rng = np.random.default_rng(6)
    errors, moved = np.exp(2 * rng.standard_normal((2, 6)))
    (of_skill,) = bootstrap_interval(skill, errors, moved, rng=np.random.default_rng(7), scale=BELOW_ONE)
    (of_ratio,) = bootstrap_interval(
        lambda x, y, axis: x.sum(axis) / y.sum(axis), errors, moved, rng=np.random.default_rng(7), scale=POSITIVE
    )
    plain = bootstrap_interval(skill, errors, moved, rng=np.random.default_rng(7))[0]
    assert of_skill.high < 1 < plain.high and of_ratio.low > 0  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]
    np.testing.assert_allclose(numbers(of_skill)[0, :3], 1 - numbers(of_ratio)[0, [0, 2, 1]], rtol=1e-9)
    # Without errors there is no logarithm: that horizon is taken on the plain scale, the others are not.
    both = np.stack([errors, np.zeros(6)], axis=1), np.stack([moved, moved], axis=1)
    mine, never = bootstrap_interval(skill, *both, rng=np.random.default_rng(7), scale=BELOW_ONE)
    assert mine == of_skill and never == Interval(1.0, 1.0, 1.0, 6)


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
    monkeypatch.setattr("tipl.evaluation.statistics._CHUNK_BYTES", 10 * x_NH.nbytes)
    assert bootstrap_interval(iqm, x_NH, rng=np.random.default_rng(8), resamples=101) == whole


def coverage_module():
    path = Path(__file__).parents[1] / "studies" / "intervals.py"
    spec = importlib.util.spec_from_file_location("coverage_of_intervals", path)
    module = importlib.util.module_from_spec(spec)  # pyright: ignore[reportArgumentType]
    sys.modules[spec.name] = module  # pyright: ignore[reportOptionalMemberAccess]
    spec.loader.exec_module(module)  # pyright: ignore[reportOptionalMemberAccess]
    return module


COVERAGE = coverage_module()


@pytest.mark.parametrize("case", COVERAGE.CASES, ids=lambda case: case.name)
def test_intervals_cover_with_few_trials(case) -> None:
    """At 5, 10 and 20 trials; `results/intervals` has the same simulation with more data sets."""
    sets = {5: 400, 10: 200, 20: 80}
    held = {n: COVERAGE.covered(case, n, count, resamples=200, seed=n)["ours"] for n, count in sets.items()}
    wrong = sum((1 - held[n]) * count for n, count in sets.items()) / sum(sets.values())
    assert wrong <= (0.10 if case.beyond else 0.07), held


def test_strata_keep_their_sizes() -> None:
    """Between-stratum differences add nothing: strata that are constant inside leave no uncertainty at all."""
    x = np.array([1.0, 1.0, 1.0, 9.0, 9.0])
    labels = ["ant", "ant", "ant", "hopper", "hopper"]
    (plain,) = bootstrap_interval(mean, x, rng=np.random.default_rng(11), resamples=1000)
    (stratified,) = bootstrap_interval(mean, x, rng=np.random.default_rng(11), strata=labels, resamples=1000)
    assert plain.low is not None and plain.high is not None and plain.high - plain.low > 3
    np.testing.assert_allclose(numbers(stratified), [[4.2, 4.2, 4.2, 5]])


def test_stratified_interval_in_closed_form() -> None:
    """Of a mean of two strata: Welch's standard error and degrees of freedom, weighted by the strata's sizes."""
    rng = np.random.default_rng(12)
    small, large = rng.normal(0, 1, 40), rng.normal(20, 3, 40)
    (interval,) = bootstrap_interval(
        mean, np.concatenate([small, large]), rng=rng, strata=np.repeat([0, 1], 40), resamples=4000
    )
    test = scipy.stats.ttest_ind(small, -large, equal_var=False).confidence_interval()  # of the sum of their means
    assert interval.low is not None and interval.high is not None
    assert interval.high - interval.low == pytest.approx((test.high - test.low) / 2, rel=0.06)


def test_paired_difference_cancels_what_trials_share() -> None:
    rng = np.random.default_rng(13)
    shared = rng.normal(0, 10, 20)
    better, worse = shared + 1, shared + rng.normal(0, 0.1, 20)
    (paired,) = paired_difference(mean, [better], [worse], rng=np.random.default_rng(14))
    (direct,) = bootstrap_interval(mean, better - worse, rng=np.random.default_rng(14))
    np.testing.assert_allclose(numbers(paired), numbers(direct), rtol=1e-9)
    assert paired.low is not None and paired.low > 0.9


def test_paired_difference_of_skills() -> None:
    """With one reference the difference of skills is a ratio of sums itself: Σ (worse − better) / Σ reference."""
    rng = np.random.default_rng(15)
    better_NH, worse_NH, reference_NH = rng.gamma(1.0, size=(3, 14, 2))
    paired = paired_difference(
        skill, [better_NH, reference_NH], [worse_NH, reference_NH], rng=np.random.default_rng(16)
    )
    direct = bootstrap_interval(
        lambda gap, reference, axis: gap.sum(axis) / reference.sum(axis),
        worse_NH - better_NH,
        reference_NH,
        rng=np.random.default_rng(16),
    )
    np.testing.assert_allclose(numbers(*paired), numbers(*direct), rtol=1e-9)


@pytest.mark.parametrize("count", [5, 12])
def test_a_share_of_trials_has_the_exact_interval(count: int) -> None:
    for hits in range(count + 1):
        x = np.arange(count) < hits
        (ours,) = bootstrap_interval(paired_improvement, x, np.full(count, 0.5), rng=np.random.default_rng(0))
        theirs = scipy.stats.binomtest(hits, count).proportion_ci(method="exact")
        np.testing.assert_allclose(numbers(ours)[0], (hits / count, theirs.low, theirs.high, count), atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_too_few_trials_have_values_and_no_interval(count: int) -> None:
    x = np.arange(2.0 * count).reshape(count, 2)
    expected = [Interval(float(value), None, None, count) for value in x.mean(axis=0)]
    assert bootstrap_interval(mean, x, rng=np.random.default_rng(0)) == expected
    (share,) = bootstrap_interval(paired_improvement, x[:, 0], x[:, 1], rng=np.random.default_rng(0))
    assert share == Interval(0.0, None, None, count)


def test_a_stratum_of_one_trial_has_no_interval() -> None:
    labels = ["a", "a", "a", "a", "b"]
    found = bootstrap_interval(mean, np.arange(5.0), rng=np.random.default_rng(0), strata=labels)
    assert found == [Interval(2.0, None, None, 5)]


def test_a_zero_denominator_is_none_and_only_where_it_is() -> None:
    errors_NH = np.array([[1.0] * 3] + [[2.0] * 3] * 4)
    reference_NH = np.array([[4.0, 0.0, 4.0]] + [[4.0, 0.0, 0.0]] * 4)
    defined, never, sometimes = bootstrap_interval(
        skill, errors_NH, reference_NH, rng=np.random.default_rng(0), resamples=200
    )
    assert defined.value == 1 - 9 / 20 and defined.low is not None and defined.low < 1 - 9 / 20
    assert never == Interval(None, None, None, 5)
    # Resamples without the first trial have no reference error: the interval is unbounded.
    assert sometimes == Interval(1 - 9 / 4, None, None, 5)


@pytest.mark.parametrize("null", [-2.0, 0.1, 5.0])
def test_p_value_is_students_where_the_interval_is(null: float) -> None:
    x = np.random.default_rng(18).standard_normal(9)
    test = scipy.stats.ttest_1samp(x, null)
    bounds = test.confidence_interval()
    found = p_value(Interval(float(x.mean()), bounds.low, bounds.high, 9), null)
    assert found == pytest.approx(test.pvalue, rel=1e-9)  # pyright: ignore[reportAttributeAccessIssue]


def test_p_value_at_the_ends_of_an_interval() -> None:
    skewed = Interval(0.4, 0.1, 1.9, 7)
    assert p_value(skewed, 0.1) == pytest.approx(0.05) and p_value(skewed, 1.9) == pytest.approx(0.05)
    assert p_value(Interval(0.4, None, None, 3), 0.0) is None and p_value(Interval(0.4, 0.1, 0.9, 1), 0.0) is None
    assert p_value(Interval(1.0, 1.0, 1.0, 5), 0.0) == 0 and p_value(Interval(1.0, 1.0, 1.0, 5), 1.0) == 1


def test_holm_by_hand() -> None:
    # In order 0.01, 0.02, 0.03 and 0.04 count 4, 3, 2 and 1 times, and none less than the one before it.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([0.04]) == [0.04] and holm([]) == []


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(AssertionError, match="NaN"):
        bootstrap_interval(mean, [1.0, np.nan], rng=np.random.default_rng(0))
