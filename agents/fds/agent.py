"""Schedules of learning rate, momentum and weight decay as agents; `lrenv.agents.fds.training` finds them.

A schedule has a few values of each hyperparameter, each for an equal segment of the budget, so that one found on a
short budget can be followed over a long one:

    >>> import numpy as np
    >>> agent = FDS(lr=(0.5, 0.1), momentum=(0.9,))
    >>> agent
    fds(lr=(0.5, 0.1), momentum=(0.9,), weight_decay=())
    >>> agent.view.control
    ('set-raw', 'momentum')
    >>> clock = np.array([[99, 200, 1, 2.3, 2.3], [100, 200, 1, 0.9, 0.8]])
    >>> agent.predict(clock)[0].round(6).tolist()
    [[0.5, -0.333333], [0.1, -0.333333]]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from lrenv.agents.base import BaseAgent
from lrenv.agents.hyperparameters import show
from lrenv.agents.schedules.base import read_clock
from lrenv.controllers import controller_file, schema
from lrenv.controllers.agent import View
from lrenv.controllers.controller_file import TensorSpec
from lrenv.envs.actions import action_of
from lrenv.training.optimizers import OPTIMIZERS

HIGHEST = {"lr": np.inf, "momentum": 0.999, "weight_decay": 0.1}
"""Hyperparameter -> the highest value that actions can set it to (`lrenv.envs.actions`). The lowest is 0."""


@dataclass(frozen=True, repr=False)
class FDS(BaseAgent[tuple[()]]):
    """An agent that follows a schedule: of S values, number floor(t S / T) holds at inner step t of T.

    A decision sets values for its whole interval, so they change at the first decision within their segment.

    Attributes:
        lr: learning rates.
        momentum: momenta, between 0 and 0.999; empty to leave the task's own.
        weight_decay: weight decays, between 0 and 0.1; empty to leave the task's own.
        optimizer: the trainees' optimizer that the schedule is for; None for whichever the task has.
    """

    NAME: ClassVar[str] = "fds"
    reads: ClassVar[tuple[str, ...]] = ("inner_step", "budget")

    lr: tuple[float, ...]
    momentum: tuple[float, ...] = ()
    weight_decay: tuple[float, ...] = ()
    optimizer: str | None = "momentum"

    def __post_init__(self) -> None:
        """Raises ValueError for a schedule that cannot be followed."""
        for name, high in HIGHEST.items():
            values = np.array(getattr(self, name), np.float64)
            if values.ndim != 1 or (name == "lr" and not values.size):
                raise ValueError(
                    f"{name}={getattr(self, name)} must be a value for each segment, such as {name}=(0.1,)"
                )
            if not (np.isfinite(values) & (values >= 0) & (values <= high)).all():
                raise ValueError(f"{name}={getattr(self, name)}: values must be finite, and between 0 and {high}")

    def __repr__(self) -> str:
        return show(self.NAME, [(name, getattr(self, name)) for name in HIGHEST])

    @property
    def view(self) -> View:  # type: ignore[override]
        """It observes the clock, and controls the hyperparameters that it has values of."""
        beside = [name for name in ("momentum", "weight_decay") if getattr(self, name)]
        return View(("set-raw", *beside), "clock", optimizer=self.optimizer)

    def act(self, observation: NDArray[Any], carry: tuple[()]) -> tuple[NDArray[Any], tuple[()]]:
        """Gives actions (n, hyperparameters).

        Raises:
            ValueError: the observation is no clock.
        """
        clock = read_clock(observation)
        columns = []
        for name in ("lr", *self.view.control[1:]):
            values = torch.tensor(getattr(self, name), dtype=torch.float64)
            actions = (values if name == "lr" else action_of(name, values)).numpy()
            segment = (clock["inner_step"] * len(actions) // clock["budget"]).astype(np.int64)
            columns.append(actions[segment.clip(max=len(actions) - 1)])
        return np.stack(columns, 1), ()

    def save(self, path: Path, trained: dict[str, Any]) -> None:
        """Writes the schedule to a controller file, with the metadata `trained` of its search."""
        tensors = {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in HIGHEST}
        controller_file.write(path, tensors, {"agent": self.NAME, "optimizer": self.optimizer, **trained})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a schedule.

        Raises:
            FileNotFoundError: no such file.
            lrenv.controllers.controller_file.ControllerFileError: no schedule, damaged, or of another version.
        """
        with controller_file.opened_agent(path, cls.NAME) as file:
            schema.record({"optimizer": schema.optional(schema.one_of(OPTIMIZERS))}, {})("metadata", file.metadata)
            tensors = file.tensors(dict.fromkeys(HIGHEST, TensorSpec((None,), ("F64",), low=0)))
            schedule = cls(
                **{name: tuple(x.tolist()) for name, x in tensors.items()}, optimizer=file.metadata["optimizer"]
            )
            schema.spaces(schedule.view.settings() | {"optimizer": schedule.optimizer}, rates=1)
            return schedule
