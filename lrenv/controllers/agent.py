"""What an agent is, and how one is found by name.

An agent is any object with Stable-Baselines3's `predict` and a `view`, which says what it observes and controls;
`lrenv.agents.BaseAgent` is the easiest way to write one. Agents are advertised as entry points of the group
`lrenv.agents`, a name and a factory each: those of this package, and those of others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lrenv import specs
from lrenv.controllers.controller_file import ControllerFileError, agent_name
from lrenv.lookup import lookup, what_is
from lrenv.runtime.ambient import settled
from lrenv.training.optimizers import Optimizer, OptimizerFactory

State = tuple[Any, ...] | None
"""An agent's state between two decisions (`carry` in `lrenv.agents.BaseAgent`): arrays, or tensors on a device of the
agent's own, with the env axis first; None before the first decision. Callers pass it back as it was given."""


@dataclass(frozen=True)
class View:
    """What an agent needs of an environment; None stands for whatever the task has.

    Attributes:
        control: what its actions set or scale (`lrenv.envs.actions`).
        observe: what it observes (`lrenv.envs.observations`).
        interval: N, inner steps between two of its actions.
        optimizer: the trainee's optimizer; an agent that is an optimizer itself gives itself.
    """

    control: str | tuple[str, ...] = "scale"
    observe: str | tuple[str, ...] = "dynamics"
    interval: int | None = None
    optimizer: str | Optimizer | OptimizerFactory | None = None

    def settings(self) -> dict[str, Any]:
        """Gives the environment's keyword arguments that this view asks for."""
        return {name: value for name, value in vars(self).items() if value is not None}


@runtime_checkable
class Agent(Protocol):
    """Controls the learning rate of n trainees at once.

    An agent that computes with tensors may also have a method `on_device(device)` that gives the agent on that device:
    evaluations call it with the device where the trainees live. Other agents decide on the host.
    """

    @property
    def view(self) -> View:
        """What the agent observes and controls."""

    def predict(
        self,
        observation: Any,
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State]:
        """Makes one decision for each of n environments.

        Args:
            observation: (n, ...), or a dict of such where the view observes white-box parts.
            state: what the last call gave, None at the start.
            episode_start: (n,), True where a new episode begins and the state must be cleared.
            deterministic: whether to take the mode of the policy instead of a sample.

        Returns:
            Actions (n, ...) and the state to pass in with the next observation.
        """


class AgentError(ValueError):
    """An agent failed in an evaluation; the message says who, where and when, and the cause is chained."""


def view_of(agent: Agent) -> View:
    """Gives the agent's view.

    Raises:
        AgentError: it has none, or something else under that name; the message says what to do.
    """
    view: object = getattr(agent, "view", None)
    if isinstance(view, View):
        return view
    held = "none" if view is None else what_is(view)
    raise AgentError(
        f"agent {called(agent)!r} must have a `view` that says what it observes and controls, such as "
        f'View(control="scale", observe="dynamics"), a lrenv.agents.View; it has {held}'
    )


def called(agent: object) -> str:
    """Gives what an agent is called in tables: its `repr`, or its class if that would be an address in memory."""
    own = type(agent).__repr__ is not object.__repr__
    return repr(agent) if own else type(agent).__name__


Factory = Callable[..., Agent]
"""Makes an agent from keyword arguments. It may have an attribute `grid`, hyperparameter -> values worth trying, and an
attribute `file`, the controller file that it loads; it must have `load(path)` if controller files name it."""


@cache
def _entry_points() -> Mapping[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="lrenv.agents")}


def agents() -> tuple[str, ...]:
    """Gives the names of all agents that are installed."""
    return tuple(sorted(_entry_points()))


def agent_factory(name: str) -> Factory:
    """Gives the factory that is registered under `name`.

    Raises:
        ValueError: no installed agent has that name, and the message lists the near ones; or its package is broken.
    """
    point = lookup(_entry_points(), name, "agent")
    try:
        factory: Factory = point.load()
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"agent {name!r} is advertised as {point.value}, which can't be loaded ({error}); install its package again"
        ) from error
    return factory


@settled
def make_agent(agent: str | Path, **settings: Any) -> Agent:
    """Makes an agent: by name, `make_agent("cosine", peak=1e-2)`, or from a file, `make_agent("x/best.safetensors")`.

    Args:
        agent: a name in `agents()`, a spec such as `cosine:peak=0.01` (`lrenv.specs`), or the path of a controller
            file.
        **settings: keyword arguments of the agent's factory.

    Raises:
        ValueError: an unknown name, unfit settings, or a file that is no controller.
        FileNotFoundError: no such file.
    """
    spec = specs.Spec(str(agent), {}) if isinstance(agent, Path) else specs.parse(agent)
    settings = spec.settings | settings
    if isinstance(agent, Path) or spec.is_path:
        path = Path(spec.name)
        if settings:
            raise ValueError(f"a controller file takes no settings, but got {', '.join(settings)}")
        return _loaded(path)
    factory = agent_factory(spec.name)
    try:
        return factory(**settings)
    except TypeError as error:
        hint = "; it is trained, so give its controller file instead of its name" if hasattr(factory, "load") else ""
        raise ValueError(f"agent {spec.name!r}: {error}{hint}") from error


def _loaded(path: Path) -> Agent:
    """The agent in a controller file."""
    name = agent_name(path)
    try:
        factory = agent_factory(name)
    except ValueError as error:
        raise ControllerFileError(f"{path} holds an agent that isn't installed: {error}") from error
    if not hasattr(factory, "load"):
        raise ControllerFileError(f"{path} holds the agent {name!r}, which has no files; take another file")
    agent: Agent = factory.load(path)
    return agent
