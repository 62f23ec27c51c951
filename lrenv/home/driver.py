"""One agent for one loop: its needs, its carry, and what its actions do to the rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrenv.controllers.agent import Agent, State, called, make_agent
from lrenv.controllers.sb3_agent import as_agent
from lrenv.envs.actions import Control
from lrenv.envs.observations import FAN_IN, WHITE_BOX, Observer
from lrenv.home.layers import Layers
from lrenv.home.needs import SIZES, Needs, checked_view, clock, granularity_of, needs_of
from lrenv.home.sharding import check_whole
from lrenv.runtime.ambient import without_gradients
from lrenv.runtime.transfer import to_host
from lrenv.training.dynamics import Setup
from lrenv.training.optimizers import Hyper

Shown = NDArray[Any] | Mapping[str, NDArray[Any]]
"""An observation (n, signals), or a dict of such and of white-box parts."""


class Act(NamedTuple):
    """What the agent does."""

    action: tuple[float, ...]
    lr: Tensor  # (1, K)
    hyper: Hyper  # name -> (1, 1)
    remarks: tuple[str, ...] = ()  # what the agent says of it


class Foreseen(NamedTuple):
    """A decision of a schedule."""

    act: Act
    observation: dict[str, float]  # signal -> value


class Ahead(NamedTuple):
    """Decisions of a schedule."""

    step: int  # of the first one
    run: tuple[float, int]  # T and N
    observations: NDArray[Any]  # (k, signals)
    actions: NDArray[Any]  # (k, A)


AHEAD = 256
"""Decisions of a schedule that are worked out at once: one by one, they would take longer than small networks train."""


class Driver:
    """An agent that drives one loop, in which it decides on the host.

    Args:
        agent: a name, a controller file, an agent, or a model of Stable-Baselines3.

    Attributes:
        agent: the agent.
        name: what it is called.
        view: what it observes and controls.
        granularity: what has a rate of its own: "trainee", "layer" or "tensor".
        needs: what it looks at.

    Raises:
        ValueError: it can't be made, or drives no loop; the message says which agents do.
        FileNotFoundError: no such file.
    """

    def __init__(self, agent: str | Path | Agent) -> None:
        self.agent = make_agent(agent) if isinstance(agent, str | Path) else as_agent(agent)
        self.name = called(self.agent)
        self.view = checked_view(self.agent)
        self.granularity = granularity_of(self.view) or "trainee"
        observer = self.observer(torch.float64)
        self.needs: Needs = needs_of(self.agent, observer)
        self._names = observer.names
        reads = getattr(self.agent, "reads", self._names)
        self._read = np.array([name in reads for name in self._names])
        self._memory: State = None
        self._asked = False
        self._foreseeable = self.needs.clock_alone
        self._ahead = Ahead(0, (0, 0), np.empty((0, 0)), np.empty((0, 0)))

    def observer(self, dtype: torch.dtype) -> Observer:
        """Makes its observations in this dtype."""
        return Observer(self.view.observe, dtype, SIZES)

    def check_whole(self, weights: Iterable[Tensor]) -> None:
        """Refuses weights of which a process holds a part alone, if the agent looks at weights, gradients or layers.

        Raises:
            ValueError: it does, and there are such.
        """
        needs = self.needs
        if needs.weights or needs.untrained or needs.parts or needs.layers or self.granularity != "trainee":
            check_whole(self.name, weights)

    def attach(self, hyper: tuple[str, ...], dtype: torch.dtype, layers: Layers | None, setup: Setup) -> None:
        """Says what there is to control.

        Args:
            hyper: the hyperparameters that the optimizer has besides the rate.
            dtype: of observations.
            layers: what has a rate of its own; None for the network as a whole.
            setup: of the training.

        Raises:
            ValueError: the agent controls a hyperparameter that the optimizer has not.
        """
        number = 1 if layers is None else layers.number
        self.control = Control(self.view.control, {self.granularity: number}, hyper, dtype)
        self._constant = {} if layers is None else layers.constant(torch.zeros((), dtype=torch.float64, device="cpu"))
        self.setup = setup

    @without_gradients
    def act(self, observation: Shown, lr: Tensor, hyper: Hyper) -> Act:
        """Asks the agent, which then remembers the observation.

        Raises:
            ValueError: its action is none that its control takes.
        """
        start = np.array([not self._asked])
        action, memory = self.agent.predict(observation, self._memory, start, deterministic=True)
        checked = self._checked(action, 1)
        self._memory, self._asked = memory, True
        rates, others = self.control.apply(torch.from_numpy(checked), lr, hyper)
        remarks = tuple(self.agent.remarks(memory)) if hasattr(self.agent, "remarks") else ()
        return Act(tuple(checked[0].tolist()), rates, others, remarks)

    @without_gradients
    def foreseen(self, step: int, horizon: float, every: int, lr: Tensor, hyper: Hyper) -> Foreseen | None:
        """What a schedule sees and does at a step. It is asked for many decisions at once, as if each were a trainee.

        None for agents that look at more than the time, have a memory, or act for one trainee alone.
        """
        if not self._foreseeable:
            return None
        row = (step - self._ahead.step) // every
        if (horizon, every) != self._ahead.run or not 0 <= row < len(self._ahead.actions) or step % every:
            dynamics = clock(torch.arange(step, step + AHEAD * every, every).double(), horizon, every, self.setup)
            constant = {name: x.expand(AHEAD, -1) for name, x in self._constant.items()}
            seen, row = to_host(self.observer(torch.float64).observe(dynamics, constant)), 0
            actions, memory = self.agent.predict(seen, None, np.ones(AHEAD, bool), deterministic=True)
            if memory is not None or np.shape(actions)[:1] != (AHEAD,):
                self._foreseeable = False
                return None
            self._ahead = Ahead(step, (horizon, every), self.signals(seen), self._checked(actions, AHEAD))
        action = self._ahead.actions[row : row + 1]
        act = Act(tuple(action[0].tolist()), *self.control.apply(torch.from_numpy(action), lr, hyper))
        return Foreseen(act, self.named(self._ahead.observations[row : row + 1]))

    def _checked(self, action: Any, n: int) -> NDArray[Any]:
        try:
            return self.control.check(action, n)
        except ValueError as error:
            raise ValueError(f"agent {self.name!r}: {error}") from error

    def signals(self, observation: Shown) -> NDArray[Any]:
        """The signals (n, signals) of an observation, which white-box parts may stand beside."""
        if not isinstance(observation, Mapping):
            return observation
        tables = [x for name, x in observation.items() if name not in WHITE_BOX]
        n = len(next(iter(observation.values())))
        return np.concatenate(tables, 1) if tables else np.empty((n, 0))

    def unfamiliar(self, observation: Shown, outside: NDArray[np.bool_]) -> list[str]:
        """The signals that it reads whose values are not like those that it was trained on.

        Args:
            observation: of one loop.
            outside: (1, signals), which of them lie outside the bounds of their space.
        """
        seen, signals = getattr(self.agent, "observation_range", None), self.signals(observation)
        strange = outside[0] if seen is None else (signals[0] < seen[0]) | (signals[0] > seen[1])
        return [name for name, read, odd in zip(self._names, self._read, strange, strict=True) if read and odd]

    def named(self, observation: Shown) -> dict[str, float]:
        """What it reads of an observation of one loop, name -> value; parts have a number for each rate.

        Parts with a number per parameter, and what stays the same, are left out.
        """
        values = zip(self._names, self._read, self.signals(observation)[0].tolist(), strict=True)
        named = {name: value for name, read, value in values if read}
        for name, part in observation.items() if isinstance(observation, Mapping) else ():
            if WHITE_BOX.get(name) == "rates" and name != FAN_IN:
                numbers = part[0].tolist()
                named |= {f"{name}.{k}": x for k, x in enumerate(numbers)} if len(numbers) > 1 else {name: numbers[0]}
        return named

    def state(self) -> dict[str, Any]:
        """Its memory, as tensors.

        Raises:
            TypeError: it is made of something else than arrays and tensors.
        """
        memory = () if self._memory is None else self._memory
        if not all(isinstance(x, np.ndarray | Tensor) for x in memory):
            raise TypeError(f"agent {self.name!r} has a memory that is no tuple of arrays, which can't be saved")
        kept = [torch.as_tensor(np.array(x) if isinstance(x, np.ndarray) else x.cpu()).clone() for x in memory]
        arrays = [isinstance(x, np.ndarray) for x in memory]
        return {"asked": self._asked, "memory": None if self._memory is None else kept, "arrays": arrays}

    def restoring(self, state: dict[str, Any]) -> Callable[[], None]:
        """Reads what `state` gave, and returns what goes on from it."""
        asked = bool(state["asked"])
        memory = None
        if state["memory"] is not None:
            pairs = zip(state["memory"], state["arrays"], strict=True)
            memory = tuple(x.clone().numpy() if array else x.clone() for x, array in pairs)

        def restore() -> None:
            self._asked, self._memory = asked, memory

        return restore
