"""Shared fixtures: made-up data and tasks small enough to be trained in milliseconds.

Tests compare numbers of the CPU. Cards are hidden, from child processes, too, so that the CPU is the default device
where there is a card; `benchmarks/gpu_check.py` is what runs on one.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import blobs

from lrenv import networks, sources
from lrenv.data import Data
from lrenv.training.tasks import Task

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # nothing has asked for a card yet: importing torch does not
torch.set_num_threads(1)


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Imports a script of `benchmarks/` by its name; it is forgotten after the test, and what it imports from there."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "").parent == BENCHMARKS:
            del sys.modules[name]


@pytest.fixture
def make_blobs() -> Callable[..., Data]:
    """`blobs`, for tests that need data of a certain shape or size."""
    return blobs


@pytest.fixture
def toy() -> Callable[..., Task]:
    """A function that gives a small task: a 6-5-3 perceptron on blobs unless told otherwise."""

    def make(data: Data | None = None, **settings: Any) -> Task:
        held = blobs() if data is None else data
        defaults: dict[str, Any] = {
            "network": networks.mlp(5, activation=torch.nn.Tanh),
            "optimizer": "sgd",
            "batch_size": 4,
            "budget": 12,
            "interval": 4,
            "initial_lr": 0.1,
        }
        return Task("toy", lambda: held, **(defaults | settings))

    return make


@pytest.fixture
def advertise(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A function that advertises an agent as another package would: its name, and `module:factory`; or what the entry
    points of another group stand for."""
    points = {group: list(entry_points(group=group)) for group in ("lrenv.agents", "lrenv.tasks", "lrenv.trainings")}
    monkeypatch.setattr(sources, "entry_points", lambda group: points[group])

    def add(name: str, factory: str, group: str = "lrenv.agents") -> None:
        points[group].append(EntryPoint(name, factory, group))
        sources.advertised.cache_clear()

    yield add
    sources.advertised.cache_clear()
