"""What is chosen: never a run that died, never a loss that is no number."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lrenv.benchmark.selection import improves, selection_losses

NAN, INF = math.nan, math.inf


def test_a_run_that_died_is_infinitely_bad() -> None:
    losses = np.array([[0.1, 0.2, NAN], [INF, -INF, 3.0]], np.float32)
    died = np.array([[True, False, False], [False, False, False]])
    found = selection_losses(losses, died)
    assert found.tolist() == [[INF, pytest.approx(0.2), INF], [INF, INF, 3.0]]
    assert found.dtype == losses.dtype, "means round as those of the losses do"
    assert losses[0, 0] == pytest.approx(0.1), "the losses are left as they are"


@pytest.mark.parametrize(
    ("loss", "best", "expected"),
    [
        (1.0, None, True), (INF, None, True), (NAN, None, False),
        (1.0, INF, True), (INF, INF, False), (NAN, INF, False),
        (1.0, NAN, True), (NAN, NAN, False), (1.0, 2.0, True), (2.0, 1.0, False), (1.0, 1.0, False), (NAN, 1.0, False),
    ],
)  # fmt: skip
def test_what_is_better(loss: float, best: float | None, expected: bool) -> None:
    assert improves(loss, best) is expected
