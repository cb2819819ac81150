"""Intervals, paired tests and effect sizes: small, vectorised, with a generator of their own.

Every random procedure takes a `seed` and draws from its own `numpy.random.Generator`, so a number
never depends on what ran before it. Nothing here touches numpy's global generator.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from diffrl.base.errors import UserError

Floats = NDArray[np.floating]

RESAMPLES = 10_000  # smallest reachable p-value: 1 / (RESAMPLES + 1)
LEVEL = 0.05  # of significance, everywhere here


class Interval(NamedTuple):
    """An estimate and its confidence limits, all in the unit of the data."""

    value: float
    low: float
    high: float


class McNemar(NamedTuple):
    """Exact McNemar test: how often only one of two paired arms succeeded, and the p-value."""

    only_first: int
    only_second: int
    p: float


def wilson(successes: ArrayLike, trials: ArrayLike, confidence: float = 0.95) -> tuple[Any, Any]:
    """Wilson score interval of a binomial rate (Wilson 1927).

    successes, trials: scalars or arrays of one shape. Returns (low, high) of that shape in [0, 1];
    NaN where trials is 0. Raises UserError when successes lie outside [0, trials].

    >>> [round(limit, 3) for limit in wilson(45, 50)]
    [0.786, 0.957]
    """
    k, n = np.broadcast_arrays(np.asarray(successes, float), np.asarray(trials, float))
    if np.any((k < 0) | (k > n)):
        raise UserError("Wilson interval: successes must lie between 0 and the number of trials.")
    z = special.ndtri(0.5 + confidence / 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = k / n
        centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    # At k = 0 and k = n the limit is exactly 0 and 1; rounding would leave 1e-17 there.
    low = np.where(k == 0, np.where(n > 0, 0.0, np.nan), centre - half)
    high = np.where(k == n, np.where(n > 0, 1.0, np.nan), centre + half)
    return (float(low), float(high)) if low.ndim == 0 else (low, high)


def mean_interval(
    values: ArrayLike, confidence: float = 0.95, axis: int = 0
) -> tuple[Any, Any, Any]:
    """Mean over `axis` with Student's t interval, e.g. over the seeds of a learning curve.

    values (n, ...): NaN counts as missing. Returns (mean, low, high) without `axis`. With one value
    the limits are NaN: one run says nothing about the spread of runs.
    """
    values = np.asarray(values, float)
    n = np.sum(np.isfinite(values), axis=axis)
    total = np.nansum(values, axis=axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / n
        residual = values - np.expand_dims(mean, axis)
        std = np.sqrt(np.nansum(residual**2, axis=axis) / np.where(n > 1, n - 1, np.nan))
        half = special.stdtrit(np.maximum(n - 1, 1), 0.5 + confidence / 2) * std / np.sqrt(n)
    return mean, mean - half, mean + half


def stratified_mean_interval(
    values: ArrayLike, strata: ArrayLike | None, confidence: float = 0.95
) -> Interval:
    """Mean with Student's t interval where the strata (tasks) are given, and values vary in them.

    values (n,) finite, strata (n,) labels. The spread is pooled from the k strata, with n - k
    degrees of freedom. Differences between strata do not count: they are no error of the mean over
    these strata. Returns Interval; its limits are NaN when no stratum holds two values.
    """
    values, groups = _finite(values, "stratified mean"), _strata(strata, len(values))
    squares = sum(((values[rows] - values[rows].mean()) ** 2).sum() for rows in groups)
    freedom = len(values) - len(groups)
    mean = float(np.mean([values[rows].mean() for rows in groups]))
    if not freedom:
        return Interval(mean, np.nan, np.nan)
    share = sum(1 / len(rows) for rows in groups) / len(groups) ** 2
    half = special.stdtrit(freedom, 0.5 + confidence / 2) * np.sqrt(squares / freedom * share)
    return Interval(mean, float(mean - half), float(mean + half))


def interval_over_tasks(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean over tasks with Student's t interval: how much another choice of tasks might change it.

    values (k,): one number a task, in which start states, trajectories and training seeds are
    averaged already. That is the analysis of cluster-level summaries (Donner & Klar 2000; Hayes &
    Moulton 2017, ch. 10): all that one expert made counts as one observation. Returns Interval;
    its limits are NaN for a single task, and where tasks do not differ, as no spread is known then.
    Raises UserError on empty or non-finite input.

    >>> interval = interval_over_tasks([0.8, 0.9, 1.0])
    >>> [round(number, 3) for number in interval]
    [0.9, 0.652, 1.148]
    """
    values = _finite(values, "interval over tasks")
    mean, low, high = mean_interval(values, confidence)
    if np.ptp(values) <= 1e-12 * np.abs(values).max():
        low = high = np.nan
    return Interval(float(mean), float(low), float(high))


def mantel_haenszel(tables: ArrayLike) -> float:
    """Odds ratio common to strata, first over second (Mantel & Haenszel 1959).

    tables (k, 4): successes and failures of first, then those of second. Returns NaN where no
    stratum says anything, 0 or inf where it is unbounded.
    """
    a, b, c, d = np.asarray(tables, float).T
    total = a + b + c + d
    kept = total > 0
    forth, back = (a * d)[kept] / total[kept], (b * c)[kept] / total[kept]
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(forth.sum() / back.sum())


def odds_ratio_over_tasks(
    tables: ArrayLike, tasks: ArrayLike, confidence: float = 0.95
) -> Interval:
    """Mantel-Haenszel odds ratio with its interval over tasks.

    tables (n, 4) as `mantel_haenszel`, tasks (n,) labels; a task may have several strata. The
    variance of ln(ratio) is the jackknife's, a whole task left out at a time (Miller 1974), with
    Student's t: start states of one task are no replicates, so the formula of Robins et al. 1986
    would be too narrow. Returns Interval; its limits are NaN where a ratio is 0 or infinite, for a
    single task, and where tasks do not differ, as no spread is known then.
    """
    tables = np.asarray(tables, float)
    ratio, groups = mantel_haenszel(tables), _strata(tasks, len(tables))
    k = len(groups)
    with np.errstate(invalid="ignore", divide="ignore"):
        left = np.log([mantel_haenszel(np.delete(tables, rows, axis=0)) for rows in groups])
    if k < 2 or not np.all(np.isfinite(left)) or np.ptp(left) <= 1e-12:
        return Interval(ratio, np.nan, np.nan)
    error = np.sqrt((k - 1) / k * np.sum((left - left.mean()) ** 2))
    half = special.stdtrit(k - 1, 0.5 + confidence / 2) * error
    return Interval(ratio, float(ratio * np.exp(-half)), float(ratio * np.exp(half)))


def stratified_bootstrap(
    values: ArrayLike,
    strata: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean over strata (tasks) of the mean within each, with a percentile bootstrap interval.

    Values are resampled within their stratum, so every task keeps its weight (Agarwal et al. 2021).
    values (n,) finite; strata (n,) labels, None = one stratum. Returns Interval; its limits are NaN
    when no stratum holds two values. Raises UserError on empty or non-finite input.
    """
    value, means = _resampled_means(values, strata, resamples, np.random.default_rng(seed))
    return _percentiles(value, means, confidence)


def bootstrap_difference(
    first: ArrayLike,
    second: ArrayLike,
    strata_first: ArrayLike | None = None,
    strata_second: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Interval of first − second for two unpaired arms, else as `stratified_bootstrap`."""
    rng = np.random.default_rng(seed)
    a, means_a = _resampled_means(first, strata_first, resamples, rng)
    b, means_b = _resampled_means(second, strata_second, resamples, rng)
    return _percentiles(a - b, means_a - means_b, confidence)


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Exact two-sided McNemar test of two arms tried on the same start states (McNemar 1947).

    first, second (n,) bool: outcome of each arm on trial i. Only discordant trials count; under
    the null each falls to either arm with probability 1/2. Raises UserError on unequal lengths.

    >>> mcnemar([True, True, True, False], [False, False, True, False])
    McNemar(only_first=2, only_second=0, p=0.5)
    """
    from scipy.stats import binomtest  # large: no worker should load it at its start

    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape:
        raise UserError(f"McNemar pairs trials one to one, got {first.size} and {second.size}.")
    b, c = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    p = 1.0 if b + c == 0 else float(binomtest(min(b, c), b + c).pvalue)
    return McNemar(b, c, p)


def holm(p_values: ArrayLike, least: ArrayLike = 0.0) -> Floats:
    """Holm's step-down correction (Holm 1979): adjusted p-values of the same shape.

    NaN marks a test that was not made: it stays NaN and does not count. `least` is the smallest p
    that a test can give (see `least_p`): where not even that is below LEVEL after the correction,
    for so many tests, all are NaN. "Not significant" would be known before the data.
    """
    p = np.asarray(p_values, float)
    flat = p.ravel()
    made = np.flatnonzero(np.isfinite(flat))
    order = made[np.argsort(flat[made], kind="stable")]
    adjusted = np.full(flat.shape, np.nan)
    possible = np.broadcast_to(least, p.shape).ravel()[made]
    if len(made) and len(made) * possible.min() >= LEVEL:
        return adjusted.reshape(p.shape)
    scaled = flat[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted.reshape(p.shape)


def least_p(n: ArrayLike, resamples: int = RESAMPLES) -> Floats:
    """The smallest p that `sign_flip_test` can give for n differences, with so many resamples."""
    n = np.asarray(n, float)
    return np.where(n <= np.log2(resamples), 2.0 ** (1 - n), 1 / (resamples + 1))


def sign_flip_test(
    differences: ArrayLike,
    strata: ArrayLike | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> float:
    """Two-sided paired permutation test: p-value of "the mean difference is zero" (Fisher 1935).

    differences (n,): first minus second arm, one per pair; strata (n,) labels, weighted equally.
    All 2^n sign patterns are enumerated when they are fewer than `resamples`, else they are drawn.
    Returns NaN for one difference, whose two signs are equally far from zero: that is no test.
    """
    d = _finite(differences, "sign-flip test")
    if len(d) == 1:
        return np.nan
    weighted = np.empty(len(d))
    for rows in (groups := _strata(strata, len(d))):
        weighted[rows] = d[rows] / (len(rows) * len(groups))
    exact = 2 ** len(d) <= resamples
    if exact:
        signs = 1 - 2 * ((np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(resamples, len(d)))
    return _p_value(signs @ weighted, weighted.sum(), np.abs(weighted).sum(), exact)


def permutation_test(
    first: ArrayLike,
    second: ArrayLike,
    strata_first: ArrayLike | None = None,
    strata_second: ArrayLike | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> float:
    """Two-sided unpaired permutation test of equal means, labels shuffled within each stratum.

    first (n,), second (m,) with their strata labels. Strata that only one arm has are refused.
    """
    first, second = _finite(first, "permutation test"), _finite(second, "permutation test")
    labels_a = np.zeros(len(first)) if strata_first is None else np.asarray(strata_first)
    labels_b = np.zeros(len(second)) if strata_second is None else np.asarray(strata_second)
    if set(labels_a) != set(labels_b):
        raise UserError("Permutation test: both arms must cover the same tasks; drop the others.")
    rng, groups = np.random.default_rng(seed), np.unique(labels_a)
    observed, scale, drawn = 0.0, 0.0, np.zeros(resamples)
    for group in groups:
        a, b = first[labels_a == group], second[labels_b == group]
        pooled = np.concatenate([a, b])
        weights = np.r_[np.full(len(a), 1 / len(a)), np.full(len(b), -1 / len(b))] / len(groups)
        observed += pooled @ weights
        scale += np.abs(pooled) @ np.abs(weights)
        drawn += rng.permuted(np.tile(pooled, (resamples, 1)), axis=1) @ weights
    return _p_value(drawn, observed, scale, exact=False)


def cliffs_delta(first: ArrayLike, second: ArrayLike) -> float:
    """Cliff's delta, P(first > second) - P(first < second), in [-1, 1] (Cliff 1993)."""
    first, second = _finite(first, "Cliff's delta"), np.sort(_finite(second, "Cliff's delta"))
    smaller = np.searchsorted(second, first, side="left")  # (n,) how many of second lie below
    larger = len(second) - np.searchsorted(second, first, side="right")
    return float((smaller - larger).sum() / (len(first) * len(second)))


def _resampled_means(
    values: ArrayLike, strata: ArrayLike | None, resamples: int, rng: np.random.Generator
) -> tuple[float, Floats]:
    """Mean over strata of the mean within, of the data and (resamples,) of its resamples.

    The mean of n values drawn from n has (n - 1)/n of the variance that it should have, which
    shows where a stratum has five: the deviations are widened to make up for it (Rao & Wu 1988).
    """
    values = _finite(values, "stratified bootstrap")
    groups = [values[rows] for rows in _strata(strata, len(values))]
    means = np.zeros(resamples)
    for group in groups:
        n, center = len(group), group.mean()
        draws = rng.integers(n, size=(resamples, n))
        widened = (group[draws].mean(axis=1) - center) * np.sqrt(n / max(n - 1, 1))
        means += (center + widened) / len(groups)
    if max(map(len, groups)) < 2:
        means[:] = np.nan  # single values cannot be resampled: no interval is claimed
    return float(np.mean([group.mean() for group in groups])), means


def _percentiles(value: float, means: Floats, confidence: float) -> Interval:
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def _p_value(drawn: Floats, observed: float, scale: float, exact: bool) -> float:
    """Share of the null at least as extreme; ties within rounding (of `scale`) count as such."""
    extreme = int(np.sum(np.abs(drawn) >= abs(observed) - 1e-12 * scale))
    return extreme / len(drawn) if exact else (extreme + 1) / (len(drawn) + 1)


def _strata(strata: ArrayLike | None, n: int) -> list[NDArray[np.intp]]:
    """Row numbers of each stratum, strata in sorted order."""
    if strata is None:
        return [np.arange(n)]
    labels = np.asarray(strata)
    if labels.shape != (n,):
        raise UserError(f"Strata must label each of the {n} values, got shape {labels.shape}.")
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _finite(values: ArrayLike, what: str) -> Floats:
    values = np.asarray(values, float)
    if values.ndim != 1 or values.size == 0 or not np.all(np.isfinite(values)):
        raise UserError(
            f"{what}: needs a non-empty list of finite numbers, got shape {values.shape} with "
            f"{int(np.sum(~np.isfinite(values)))} not finite; leave undefined values out first."
        )
    return values
