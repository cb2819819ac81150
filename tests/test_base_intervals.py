"""Intervals and tests agree with published values, with scipy, and with their own definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from diffrl.base import intervals
from diffrl.base.errors import UserError


def test_wilson_equals_the_published_example():
    # Newcombe 1998, table I: 81 of 263 → 0.2553–0.3662.
    assert intervals.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@settings(derandomize=True)
@given(st.integers(0, 60), st.integers(1, 60))
def test_wilson_lies_in_the_unit_interval_and_around_the_rate(k, extra):
    low, high = intervals.wilson(k, k + extra)
    assert 0 <= low <= k / (k + extra) <= high <= 1


def test_wilson_is_vectorised_symmetric_and_undefined_without_trials():
    low, high = intervals.wilson([0, 7, 50, 0], [50, 50, 50, 0])
    assert low[0] == 0
    assert high[2] == 1
    assert low[2] == pytest.approx(1 - high[0])
    assert np.isnan(low[3])
    assert np.isnan(high[3])


def test_wilson_refuses_more_successes_than_trials():
    with pytest.raises(UserError, match="between 0 and"):
        intervals.wilson(5, 4)


def test_mean_interval_equals_scipys_t_interval_and_skips_missing_values():
    values = np.random.default_rng(0).normal(size=(6, 3))
    values[2, 1] = np.nan
    _, low, high = intervals.mean_interval(values)
    kept = np.delete(values[:, 1], 2)
    expected = stats.t.interval(0.95, 4, loc=kept.mean(), scale=stats.sem(kept))
    assert (low[1], high[1]) == pytest.approx(expected)
    assert np.isnan(intervals.mean_interval(values[:1])[1]).all()


def test_the_mean_over_given_strata_has_the_interval_of_what_varies_within_them():
    values, strata = np.array([1.0, 3.0, 11.0, 13.0]), ["a", "a", "b", "b"]
    mean, low, high = intervals.stratified_mean_interval(values, strata)
    # s² = (1 + 1 + 1 + 1) / 2 degrees of freedom = 2, of a mean of four: 2 / 4
    half = stats.t.ppf(0.975, 2) * np.sqrt(2 / 4)
    assert (mean, low, high) == pytest.approx((7, 7 - half, 7 + half))
    one = intervals.stratified_mean_interval(values, ["a"] * 4)
    assert one == pytest.approx([float(x) for x in intervals.mean_interval(values)])
    assert np.isnan(intervals.stratified_mean_interval([1.0, 2.0], ["a", "b"]).low)


def test_the_interval_over_tasks_is_students_t_and_one_task_claims_none():
    mean, low, high = intervals.interval_over_tasks([1.0, 2.0, 6.0])
    # s² = (4 + 1 + 9) / 2 = 7, of a mean of three; t.975 of two degrees of freedom is 4.30265
    half = 4.30265 * np.sqrt(7 / 3)
    assert (mean, low, high) == pytest.approx((3, 3 - half, 3 + half), rel=1e-5)
    assert np.isnan(intervals.interval_over_tasks([0.4]).low)
    assert np.isnan(intervals.interval_over_tasks([0.1, 0.1, 0.1]).high)


def test_mantel_haenszel_equals_the_ratio_by_hand_and_that_of_a_single_table():
    # (8·5 + 9·4) / 20 over (2·5 + 1·6) / 20 = 76 / 16
    assert intervals.mantel_haenszel([[8, 2, 5, 5], [9, 1, 6, 4]]) == pytest.approx(76 / 16)
    assert intervals.mantel_haenszel([[819, 181, 693, 307]]) == pytest.approx(2.0045, abs=1e-4)
    assert intervals.mantel_haenszel([[5, 0, 4, 1]]) == np.inf
    assert np.isnan(intervals.mantel_haenszel([[5, 0, 5, 0]]))


def test_the_odds_ratios_interval_over_tasks_is_the_jackknifes_by_hand():
    tables = np.array([[8, 2, 5, 5], [9, 1, 6, 4], [7, 3, 7, 3]])
    ratio, low, high = intervals.odds_ratio_over_tasks(tables, ["a", "b", "c"])
    assert ratio == pytest.approx((40 + 36 + 21) / (10 + 6 + 21))
    left = np.log([(36 + 21) / (6 + 21), (40 + 21) / (10 + 21), (40 + 36) / (10 + 6)])
    half = 4.30265 * np.sqrt(2 / 3 * ((left - left.mean()) ** 2).sum())
    assert (low, high) == pytest.approx((ratio * np.exp(-half), ratio * np.exp(half)), rel=1e-5)
    # the same start states many times over are no more tasks, so the interval stays as wide
    assert intervals.odds_ratio_over_tasks(50 * tables, ["a", "b", "c"]) == pytest.approx(
        (ratio, low, high)
    )
    assert np.isnan(intervals.odds_ratio_over_tasks(tables[:1], ["a"]).low)


def test_the_odds_ratios_interval_covers_the_truth_about_as_often_as_it_says():
    rng, hits = np.random.default_rng(3), 0
    for _ in range(300):
        first = rng.normal(2.0, 0.5, 10)  # log-odds of ten tasks, the gap 0.7 on each
        tables = []
        for odds in first:
            a, c = (rng.binomial(100, 1 / (1 + np.exp(-x))) for x in (odds, odds - 0.7))
            tables.append([a, 100 - a, c, 100 - c])
        _, low, high = intervals.odds_ratio_over_tasks(tables, range(10))
        hits += low <= np.exp(0.7) <= high
    assert 0.91 <= hits / 300 <= 0.99


def test_bootstrap_repeats_with_its_seed_whatever_the_global_generator_did():
    values = np.random.default_rng(1).normal(size=30)
    first = intervals.stratified_bootstrap(values, seed=3)
    np.random.seed(99)  # noqa: NPY002
    assert intervals.stratified_bootstrap(values, seed=3) == first
    assert intervals.stratified_bootstrap(values, seed=4) != first


def test_bootstrap_gives_every_task_the_same_weight():
    values = np.r_[np.zeros(90), np.ones(10)]
    strata = ["easy"] * 90 + ["hard"] * 10
    assert intervals.stratified_bootstrap(values, strata) == (0.5, 0.5, 0.5)


def test_bootstrap_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        values = np.r_[rng.normal(0, 1, 25), rng.normal(4, 2, 25)]
        strata = np.repeat([0, 1], 25)
        _, low, high = intervals.stratified_bootstrap(values, strata, resamples=400, seed=trial)
        hits += low <= 2 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_bootstrap_of_small_strata_is_as_wide_as_the_textbook_says():
    rng = np.random.default_rng(6)
    tasks = rng.normal(0, 1, (40, 5))
    _, low, high = intervals.stratified_bootstrap(
        tasks.ravel(), np.repeat(np.arange(40), 5), resamples=4000
    )
    error = np.sqrt((tasks.var(axis=1, ddof=1) / 5).sum()) / 40
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_bootstrap_of_single_values_claims_no_interval():
    assert np.isnan(intervals.stratified_bootstrap([1.0, 2.0], ["a", "b"]).low)


def test_mcnemar_counts_only_discordant_trials():
    first = np.r_[np.ones(20), np.ones(9), np.zeros(1), np.zeros(5)].astype(bool)
    second = np.r_[np.ones(20), np.zeros(9), np.ones(1), np.zeros(5)].astype(bool)
    result = intervals.mcnemar(first, second)
    assert (result.only_first, result.only_second) == (9, 1)
    assert result.p == pytest.approx(2 * (1 + 10) / 2**10)
    assert intervals.mcnemar(first, first).p == 1


def test_holm_equals_the_step_down_by_hand_and_ignores_missing_tests():
    adjusted = intervals.holm([0.01, 0.04, np.nan, 0.03, 0.005])
    assert adjusted == pytest.approx([0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True)


@settings(derandomize=True)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_keeps_the_order_and_never_lowers_a_p_value(p_values):
    p, adjusted = np.array(p_values), intervals.holm(p_values)
    assert np.all(adjusted >= p)
    assert np.all(adjusted <= 1)
    assert np.all(np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0)


def test_sign_flip_enumerates_few_pairs_exactly():
    # Of the 2^5 patterns only "all plus" and "all minus" reach the observed mean.
    assert intervals.sign_flip_test([1, 2, 3, 4, 5]) == pytest.approx(2 / 32)
    assert intervals.sign_flip_test([0.0, 0.0, 0.0]) == 1
    assert np.isnan(intervals.sign_flip_test([1.0]))  # no test, rather than p = 1


def test_least_p_is_what_differences_of_one_sign_give():
    for n in (2, 5, 9):
        assert intervals.sign_flip_test(np.ones(n)) == pytest.approx(intervals.least_p(n))
    many = np.ones(60)  # of their 2^60 patterns some are drawn, and none of these is the observed
    for resamples in (intervals.RESAMPLES, 99):
        p = intervals.sign_flip_test(many, resamples=resamples)
        assert p == pytest.approx(intervals.least_p(60, resamples))
    assert intervals.least_p([13, 14]) == pytest.approx([2**-12, 1 / 10_001])
    assert intervals.least_p(16, 2**16) == pytest.approx(2**-15)


def test_holm_of_tests_that_could_never_be_significant_gives_none():
    assert np.isnan(intervals.holm([0.0625, 0.5], least=0.0625)).all()
    assert np.isnan(intervals.holm([0.03, 0.03], least=intervals.least_p([6, 6]))).all()
    assert intervals.holm([0.01, 0.5], least=0.01) == pytest.approx([0.02, 0.5])


def test_sign_flip_by_sampling_agrees_with_scipy():
    d = np.random.default_rng(2).normal(0.35, 1, 40)
    theirs = stats.permutation_test(
        (d,), lambda x, axis: x.mean(axis), permutation_type="samples", rng=0, vectorized=True
    )
    assert intervals.sign_flip_test(d) == pytest.approx(theirs.pvalue, abs=0.01)


def test_p_values_are_uniform_when_there_is_no_difference():
    rng = np.random.default_rng(7)
    p = [intervals.sign_flip_test(rng.normal(size=20), resamples=300) for _ in range(300)]
    q = [
        intervals.permutation_test(rng.normal(size=9), rng.normal(size=12), resamples=300)
        for _ in range(300)
    ]
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert stats.kstest(q, "uniform").pvalue > 1e-3


def test_permutation_test_removes_the_difference_between_tasks():
    rng = np.random.default_rng(3)
    easy, hard = rng.normal(0, 1, 40), rng.normal(50, 1, 40)
    a, b = np.r_[easy[:30], hard[:10]], np.r_[easy[30:], hard[10:]]
    tasks_a, tasks_b = np.repeat([0, 1], [30, 10]), np.repeat([0, 1], [10, 30])
    assert intervals.permutation_test(a, b) < 0.01  # the mix of tasks differs …
    assert intervals.permutation_test(a, b, tasks_a, tasks_b) > 0.05  # … the arms do not
    with pytest.raises(UserError, match="same tasks"):
        intervals.permutation_test(a, b, tasks_a, tasks_b + 1)


@settings(max_examples=30, derandomize=True)
@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=12),
    st.lists(st.integers(-5, 5), min_size=1, max_size=12),
)
def test_cliffs_delta_equals_its_definition_over_all_pairs(first, second):
    a, b = np.array(first)[:, None], np.array(second)[None]
    assert intervals.cliffs_delta(first, second) == pytest.approx(np.sign(a - b).mean())


def test_undefined_values_are_refused_by_name():
    with pytest.raises(UserError, match="1 not finite"):
        intervals.stratified_bootstrap([1.0, np.nan])
    with pytest.raises(UserError, match="label each of the 2"):
        intervals.stratified_bootstrap([1.0, 2.0], ["a"])
