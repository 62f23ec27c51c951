"""Statistics of results."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t, ttest_1samp, ttest_ind


def mean_std(values: NDArray[Any]) -> tuple[float, float]:
    """Mean and sample standard deviation, which is NaN for a single value, and where a value is infinite."""
    values = values.astype(np.float64)
    known = len(values) > 1 and not np.isinf(values).any()
    return float(np.mean(values)), float(np.std(values, ddof=1)) if known else float("nan")


def welch(values: NDArray[Any], baseline: NDArray[Any]) -> float:
    """Two-sided p-value of Welch's t-test, which assumes no equal variances; NaN for fewer than two values per side.

    Infinite ones have no p-value either.
    """
    values, baseline = values.astype(np.float64), baseline.astype(np.float64)
    if min(len(values), len(baseline)) < 2 or not (np.isfinite(values).all() and np.isfinite(baseline).all()):
        return float("nan")
    if np.ptp(values) == 0 and np.ptp(baseline) == 0:  # no variance to test against
        return float(values[0] == baseline[0])
    with _nearly_equal_allowed():
        return float(ttest_ind(values, baseline, equal_var=False).pvalue)


@contextmanager
def _nearly_equal_allowed() -> Iterator[None]:
    """SciPy warns of values that differ by rounding alone; their tiny variance gives the p-value that is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Precision loss occurred", RuntimeWarning)
        yield


def paired(values: NDArray[Any], baseline: NDArray[Any]) -> float:
    """`paired_t` of runs on the same seeds, in the same order."""
    if not (np.isfinite(values).all() and np.isfinite(baseline).all()):
        return float("nan")
    return paired_t(values.astype(np.float64) - baseline.astype(np.float64))


def paired_t(differences: NDArray[Any]) -> float:
    """Two-sided p-value of the t-test that paired runs, which share seeds, don't differ; NaN for fewer than two.

    Args:
        differences: (seeds,); infinite ones, as at the end of runs that diverged, have no p-value either.
    """
    if len(differences) < 2 or not np.isfinite(differences).all():
        return float("nan")
    if np.ptp(differences) == 0:  # no variance to test against
        return float(differences[0] == 0)
    with _nearly_equal_allowed():
        return float(ttest_1samp(differences, 0.0).pvalue)


def paired_interval(values: NDArray[Any], baseline: NDArray[Any], level: float = 0.95) -> tuple[float, float]:
    """How far runs are above the baseline's runs of the same seeds, by Student's t.

    The interval of mean ± half width leaves 0 out exactly where the p-value of `paired` is below 1 - level.

    Args:
        values: (seeds,).
        baseline: (seeds,), in the same order of seeds.
        level: how often such an interval holds the true mean difference.

    Returns:
        The mean of the differences, and half the width of its confidence interval. The width is NaN for fewer than two
        seeds, and both are where a value is not finite.
    """
    if not (np.isfinite(values).all() and np.isfinite(baseline).all()):
        return float("nan"), float("nan")
    differences = values.astype(np.float64) - baseline.astype(np.float64)
    mean, deviation = mean_std(differences)
    return mean, float(t.ppf((1 + level) / 2, max(len(differences) - 1, 1))) * deviation / len(differences) ** 0.5


def holm(p_values: NDArray[Any]) -> NDArray[np.float64]:
    """P-values that hold for several tests at once.

    Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6: the i-th
    lowest of m is multiplied by m + 1 - i, is no lower than those before it, and at most 1. Rejecting what is below a
    level errs anywhere at most that often, whatever the tests' dependence.

    Args:
        p_values: (m,); NaN is no test, and stays.
    """
    p_values = np.asarray(p_values, np.float64)
    adjusted, tests = np.full_like(p_values, np.nan), np.flatnonzero(~np.isnan(p_values))
    order = tests[p_values[tests].argsort(kind="stable")]
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted


def expected_best(chosen_by: NDArray[Any], values: NDArray[Any], k: int) -> float:
    """The mean, over all sets of k of n draws, of the value of that draw of the set which is lowest in `chosen_by`.

    The draw of rank i, counted from 0, is the lowest of C(n - 1 - i, k - 1) of the C(n, k) sets. Among draws that are
    equal in `chosen_by` each is chosen as often.

    Args:
        chosen_by: (n,), such as validation losses; infinite ones come last.
        values: (n,), such as test losses of the same draws.
        k: draws in a set, from 1 to n.

    Raises:
        ValueError: there are no k draws.
    """
    n = len(values)
    if not 1 <= k <= n:
        raise ValueError(f"the best of {k} can't be taken of {n} draws")
    sets = math.comb(n, k)
    weights = np.array([math.comb(n - 1 - i, k - 1) / sets for i in range(n)])
    _, rank, counts = np.unique(chosen_by, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    shared = [weights[end - count : end].mean() for end, count in zip(ends, counts, strict=True)]
    chance = np.array(shared)[rank]
    return float(np.sum(chance[chance > 0] * values[chance > 0]))  # one that is never chosen may be infinite


def bootstrap_interval(
    differences: NDArray[Any], level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """A percentile interval of the mean over tasks: tasks are drawn with replacement, and seeds within each drawn one.

    Tasks are what results are to carry over to, so that many seeds of few tasks give no narrow interval.

    Args:
        differences: (tasks, seeds), of runs that share a seed, such as logarithms of ratios.
        level: how much of the resampled means the interval holds.
        resamples: how many are drawn.
        seed: of the draws.

    Returns:
        The interval's ends; NaN for fewer than two tasks or two seeds, which tell nothing of the spread.
    """
    tasks, seeds = differences.shape
    if min(tasks, seeds) < 2:
        return float("nan"), float("nan")
    random = np.random.default_rng(seed)
    drawn = random.integers(tasks, size=(resamples, tasks))
    runs = random.integers(seeds, size=(resamples, tasks, seeds))
    means = differences[drawn[..., None], runs].mean((1, 2))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
