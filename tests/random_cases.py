"""Small environments of any view, and random actions for them: what properties and the soak test share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from helpers import blobs
from numpy.typing import NDArray
from torch import nn

from lrenv import networks
from lrenv.envs.env import LearningRateEnv
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.training.tasks import Task, make_task

Array = NDArray[Any]
MODES = ("NextStep", "SameStep", "Disabled")
BLOBS = blobs()
WIDE = blobs((2, 4, 4))


def conv_net(shape: networks.Shape, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(shape[0], 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(12, classes)
    )


TASKS = (
    Task("perceptron", lambda: BLOBS, networks.mlp(4)),
    Task("convolution", lambda: WIDE, conv_net, augment="crop-flip"),
    make_task("noisy-quadratic"),
    make_task("two-minima"),
)
CALM = TASKS[:3]
"""Those that small rates train without chaos."""
ODD = (0.0, -0.0, 5e-324, -5e-324, 1e-310, 1.0, -1.0, 0.5, -0.25)
"""Actions in [-1, 1] that arithmetic may stumble over."""
DEADLY = (1e308, -1e308, 1e200, 3e38)
"""Raw rates that kill, or nearly."""


@dataclass(frozen=True)
class Case:
    """A vector environment and what happens to it."""

    task: Task
    view: dict[str, Any]
    n: int
    seed: int
    noise: int

    def envs(self, n: int | None = None, kind: Callable[..., Any] = LearningRateVectorEnv, **more: Any) -> Any:
        return kind(self.n if n is None else n, self.task, **({"device": "cpu", "dtype": "float64"} | self.view | more))

    def alone(self, dtype: str = "float64") -> LearningRateEnv:
        return LearningRateEnv(self.task, device="cpu", dtype=dtype, **self.view)

    @property
    def decisions(self) -> int:
        return -(-self.task.budget // self.task.interval)

    def actions(self, envs: LearningRateVectorEnv, number: int, odd: bool = True, deaths: float = 0.0) -> list[Array]:
        """Actions (n, ...) inside the space, of any of `ODD` where that is asked for, and of `DEADLY` in that share.

        Rates stay so small that training is not chaotic where neither is asked for.
        """
        space, rng = envs.single_action_space, np.random.default_rng(self.noise)
        shape = (envs.num_envs, *(space.shape or ()))
        kind = self.control.partition("/")[0]
        if kind == "discrete":
            return [rng.integers(0, 3 if odd else 2, shape) for _ in range(number)]
        chosen = []
        for _ in range(number):
            action = rng.uniform(-1, 1 if odd else 0, shape)
            raw = action[:, : envs.episode.control.rates]
            if kind == "set-raw":
                raw *= 0.05
            if kind == "set" and not odd:
                raw[:] = rng.uniform(-1, 0.2, raw.shape)
            if odd:
                spots = rng.random(shape) < 0.3
                action[spots] = rng.choice(ODD, int(spots.sum()))
            if kind == "set-raw" and deaths:
                rows = rng.random(len(raw)) < deaths
                raw[rows] = rng.choice(DEADLY, int(rows.sum()))[:, None]
            most = np.finfo(space.dtype).max
            chosen.append(action.clip(-most, most).astype(space.dtype))
        return chosen

    @property
    def control(self) -> str:
        chosen = self.view["control"]
        return str(chosen[0] if isinstance(chosen, tuple) else chosen)
