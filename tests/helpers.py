"""What several test files use: small data, networks and settings, and what they leave behind or hold in memory."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lrenv import networks
from lrenv.agents.learned_optimizer.settings import LearnedOptimizerSettings
from lrenv.controllers import controller_file
from lrenv.data import Data, from_arrays

ROOT = Path(__file__).parents[1]


def blobs(shape: tuple[int, ...] = (6,), classes: int = 3, train: int = 24, held_out: int = 10) -> Data:
    """Classes that are Gaussian blobs: learnable examples of any shape."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((classes, *shape))
    arrays: list[Any] = []
    for count in (train, held_out, held_out):
        labels = np.arange(count) % classes
        arrays += [centres[labels] + rng.standard_normal((count, *shape)), labels]
    return from_arrays(*arrays)


def smooth_conv_net(shape: networks.Shape, classes: int) -> nn.Module:
    """Smooth everywhere, so that finite differences are exact to rounding."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, classes)
    )


def learned_settings(out: Path, **others: Any) -> LearnedOptimizerSettings:
    """Of a training of a learned optimizer that takes a fraction of a second."""
    small: dict[str, Any] = {
        "task": "digits-logreg", "out": out, "budget": 12, "interval": 3, "first_unroll": 3, "curriculum": 4,
        "updates": 6, "workers": 2, "pairs": 2, "hidden": 4, "eval_every": 3, "eval_seeds": 2, "val_examples": 50,
        "device": "cpu",
    }  # fmt: skip
    return LearnedOptimizerSettings(**small | others)


def interpreted(script: str) -> dict[str, Any]:
    """What a script of this folder prints where Triton interprets its kernels; skips where it can't."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if "[unavailable]" in done.stdout:
        pytest.skip("Triton's interpreter does not run here")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(out: Path) -> list[dict[str, str]]:
    """The log of a training, without what depends on the time."""
    with (out / "progress.csv").open() as file:
        return [{name: x for name, x in row.items() if "time" not in name} for row in csv.DictReader(file)]


def assert_same_file(one: Path, other: Path) -> None:
    """The files of two trainings hold the same tensors and metadata, but for where and how they were begun."""
    (a, first), (b, second) = controller_file.read(one), controller_file.read(other)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, equal_nan=True, msg=name)
    apart = ("command", "settings")
    assert {k: v for k, v in first.items() if k not in apart} == {k: v for k, v in second.items() if k not in apart}


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made under this mode held at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._storages:
                storage = tensor.untyped_storage()
                self._storages.add(storage._cdata)
                self._add(storage.nbytes())
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return made

    def _add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)

    def _freed(self, storage: int, size: int) -> None:
        self._storages.discard(storage)
        self._add(-size)
