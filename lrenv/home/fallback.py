"""What takes over where an agent sees what it was never trained on: a schedule from the rate that it had reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from lrenv import specs
from lrenv.controllers.agent import Agent, called, make_agent
from lrenv.envs.actions import Control
from lrenv.envs.observations import Observer
from lrenv.home.layers import Layers, overall
from lrenv.home.needs import SIZES, checked_view, clock, granularity_of, needs_of
from lrenv.lookup import count
from lrenv.runtime.ambient import without_gradients
from lrenv.runtime.transfer import to_host
from lrenv.training.dynamics import Setup


class Schedule:
    """An agent whose rate is a function of the time alone.

    Args:
        agent: of the view of schedules; it sets the rate by the clock.
        layers: what has a rate of its own; None for the network as a whole.
        setup: of the training, for agents that look at it.

    Raises:
        ValueError: another agent.
    """

    def __init__(self, agent: Agent, layers: Layers | None = None, setup: Setup | None = None) -> None:
        view = checked_view(agent)
        self._agent, self._setup = agent, setup
        self._observer = Observer(view.observe, torch.float64, SIZES)
        granularity = granularity_of(view) or "trainee"
        if granularity != "trainee" and layers is None:
            raise ValueError(
                f"agent {called(agent)!r} sets a rate per {granularity}, and here is one: leave fan_in out"
            )
        sizes = {granularity: 1 if layers is None else layers.number}
        self._control = Control(view.control, sizes, ("momentum", "weight_decay"), torch.float64)
        main = view.control if isinstance(view.control, str) else view.control[0]
        if main.partition("/")[0] not in ("set", "set-raw") or not needs_of(agent, self._observer).clock_alone:
            raise ValueError(f"agent {called(agent)!r} has no rate as a function of the step: it reacts to training")
        self._constant = {} if layers is None else layers.constant(torch.zeros((), dtype=torch.float64, device="cpu"))

    @without_gradients
    def rates(self, step: int, horizon: float, interval: int) -> list[float]:
        """The rates (K) at a step of a run of so many."""
        dynamics = clock(torch.tensor([step], dtype=torch.float64, device="cpu"), horizon, interval, self._setup)
        observation = to_host(self._observer.observe(dynamics, self._constant))
        action, memory = self._agent.predict(observation, None, np.array([True]), deterministic=True)
        if memory is not None:
            raise ValueError(
                f"agent {called(self._agent)!r} has a memory, so its rate is no function of the step alone"
            )
        given = torch.from_numpy(self._control.check(action, 1))
        before = torch.zeros(1, self._control.rates, dtype=torch.float64, device="cpu")
        rates: list[float] = self._control.apply(given, before, {})[0][0].tolist()
        return rates


class Fallback:
    """Takes over after many decisions in a row at which the agent saw what it was not trained on.

    Args:
        name: a schedule's spec, such as "linear" or "constant:warmup=100"; None never takes over. Without a `peak`, it
            goes on from the rate of the moment, over the steps that are left. Where there is a rate per piece, their
            ratios stay, and the schedule gives the geometric mean of those that aren't 0, which stay 0.
        patience: how many such decisions in a row are let pass, 0 or more.

    Raises:
        TypeError: a patience that is no integer.
        ValueError: one below 0, or no such schedule.

    Attributes:
        name, patience: as above.
        since: the step at which it took over; None if it has not.
    """

    def __init__(self, name: str | None, patience: int) -> None:
        self.name, self.patience = name, count("patience", patience, 0)
        self._strange = 0
        self.since: int | None = None
        self._peaks = [0.0]  # the rates that it goes on from
        self._schedule: Schedule | None = None  # made once, as it takes over
        if name is not None:
            self._made(1e-3)

    def notice(self, strange: bool, step: int, lr: Sequence[float]) -> bool:
        """Counts a decision; tells whether the schedule takes over at it, from the rates `lr` (K)."""
        self._strange = self._strange + 1 if strange else 0
        if self.name is None or self.since is not None or self._strange <= self.patience:
            return False
        self.since, self._peaks, self._schedule = step, list(lr), self._made(_level(lr))
        return True

    def rates(self, step: int, horizon: float, interval: int) -> list[float]:
        """The rates (K) at a step, after it took over."""
        assert self.since is not None
        assert self._schedule is not None
        (rate,) = self._schedule.rates(step - self.since, horizon - self.since, interval)
        peak = _level(self._peaks)
        return [rate if own == peak else rate * own / peak for own in self._peaks]

    def state(self) -> dict[str, Any]:
        """What it depends on, as plain values."""
        return {"strange": self._strange, "since": self.since, "peaks": self._peaks}

    def restoring(self, state: dict[str, Any]) -> Callable[[], None]:
        """Reads what `state` gave, and returns what goes on from it.

        Raises:
            ValueError: a schedule has taken over, and here is none.
        """
        strange, peaks = int(state["strange"]), [float(x) for x in state["peaks"]]
        since = None if state["since"] is None else int(state["since"])
        if since is not None and self.name is None:
            raise ValueError("a schedule had taken over, and this controller has fallback=None")
        schedule = None if since is None else self._made(_level(peaks))

        def restore() -> None:
            self._strange, self.since, self._peaks, self._schedule = strange, since, peaks, schedule

        return restore

    def _made(self, peak: float) -> Schedule:
        assert self.name is not None
        own = specs.parse(self.name).settings
        return Schedule(make_agent(self.name, **({} if "peak" in own else {"peak": peak})))


def _level(rates: Sequence[float]) -> float:
    """The rate that a schedule goes on from in the place of several: those of 0 would make it 0, too."""
    return overall([rate for rate in rates if rate] or [0.0])
