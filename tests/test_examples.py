"""The examples run as they stand, and do what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrenv.training.tasks import make_task

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_tested(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60
    assert f'example("{path.stem}")' in Path(__file__).read_text()


def test_own_loop(capsys: pytest.CaptureFixture[str]) -> None:
    assert example("own_loop").main() < 0.4
    assert capsys.readouterr().out.startswith("validation loss 0.")


def test_shadow(capsys: pytest.CaptureFixture[str]) -> None:
    rates = example("shadow").main()
    np.testing.assert_allclose(rates, [0.005 * (1 + np.cos(np.pi * t / 300)) for t in range(300)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 15
    assert lines[0].startswith("step   0: rate 1.0e-02, would be 1.0e-02")


def test_own_agent() -> None:
    in_benchmark, in_loop = example("own_agent").main()
    assert in_benchmark < 1.0
    assert in_loop < 1.0


def test_own_task() -> None:
    losses = example("own_task").main()
    assert all(0 < loss < 0.5 for loss in losses.values())
    assert make_task(f"{EXAMPLES / 'own_task.py'}:diabetes").loss == "huber"
