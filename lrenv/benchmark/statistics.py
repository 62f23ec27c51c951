"""Statistics of results."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t, ttest_1samp, ttest_ind


def mean_std(values: NDArray[Any]) -> tuple[float, float]:
    """Mean and sample standard deviation, which is NaN for a single value, and where a value is infinite."""
    known = len(values) > 1 and not np.isinf(values).any()
    return float(np.mean(values)), float(np.std(values, ddof=1)) if known else float("nan")


def welch(values: NDArray[Any], baseline: NDArray[Any]) -> float:
    """Two-sided p-value of Welch's t-test, which assumes no equal variances; NaN for fewer than two values per side.

    Infinite ones have no p-value either.
    """
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
        differences: (seeds,); infinite ones, of runs that diverged, have no p-value either.
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
