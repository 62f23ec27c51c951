"""What an agent is, and how one is found by name.

An agent is any object with Stable-Baselines3's `predict` and a `view`, which tells what it observes and controls;
`lrenv.agents.BaseAgent` is the easiest way to write one. Packages, lrenv among them, advertise agents as entry points
of the group `lrenv.agents`, with a name and a factory each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lrenv import sources, specs
from lrenv.controllers.controller_file import ControllerFileError, agent_name
from lrenv.envs.observations import quantities_of
from lrenv.lookup import check_settings, error_line, what_is
from lrenv.runtime.ambient import with_own_settings
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
        horizon: whether it knows the budget. None stands for what the observations tell, and becomes True or False. A
            schedule may observe the budget without heeding it, and says so. `lrenv benchmark` ranks agents that know it
            and those that don't in leagues of their own; `lrenv compare` has all in one table, and tells which know it.
    """

    control: str | tuple[str, ...] = "scale"
    observe: str | tuple[str, ...] = "dynamics"
    interval: int | None = None
    optimizer: str | Optimizer | OptimizerFactory | None = None
    horizon: bool | None = None

    def __post_init__(self) -> None:
        """Derives the horizon."""
        if self.horizon is None:
            object.__setattr__(self, "horizon", "budget" in quantities_of(self.observe))

    @property
    def names(self) -> dict[str, Any]:
        """The environment's keyword arguments, None for what the task decides, as files of controllers hold them."""
        return {name: value for name, value in vars(self).items() if name != "horizon"}

    def settings(self) -> dict[str, Any]:
        """Returns the environment's keyword arguments that this view asks for."""
        return {name: value for name, value in self.names.items() if value is not None}


@runtime_checkable
class Agent(Protocol):
    """The interface of agents, each of which controls the learning rates of n trainees.

    An agent that computes with tensors may also have a method `on_device(device)` that returns the agent on that
    device: evaluations call it with the device of the trainees. Other agents decide on the host.

    An agent that counts the validation losses of its decisions, as those do that wait for some without an improvement,
    has `counts_measurements = True`: where fewer are measured than there are decisions, evaluations refuse it.

    Three attributes spare or tell something, where an agent has them: `reads`, the names of the signals in its
    observation, and nothing else but the carry, that its actions depend on, without which it reads all: a loop of one's
    own (`lrenv.LRController`) measures no more than these are made of, and tables tell by them whether the agent uses
    validation losses; and in such loops `observation_range`, a pair of arrays (signals,), between which nearly all
    observations lay when it was trained; and `remarks`, a function of the state after a decision, whose sentences the
    history tells.
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
    """An error: an agent failed in an evaluation; the message names agent, task and step, and the cause is chained."""


def view_of(agent: Agent) -> View:
    """Returns the agent's view.

    Raises:
        AgentError: it has none, or something else under that name, or it is a class; the message says what to do.
    """
    if isinstance(agent, type):
        raise AgentError(f"{agent.__name__} is a class, which is no agent yet: pass {agent.__name__}()")
    view: object = getattr(agent, "view", None)
    if isinstance(view, View):
        return view
    held = "none" if view is None else what_is(view)
    raise AgentError(
        f"agent {called(agent)!r} must have a `view` that says what it observes and controls, such as "
        f'View(control="scale", observe="dynamics"), a lrenv.agents.View; it has {held}'
    )


def called(agent: object) -> str:
    """Returns what an agent is called in tables: its `repr`, or its class if that would be an address in memory."""
    own = type(agent).__repr__ is not object.__repr__
    return repr(agent) if own else type(agent).__name__


Factory = Callable[..., Agent]
"""A function (keyword arguments) -> an agent.

It may have an attribute `grid`, hyperparameter -> values worth trying, and an attribute `file`, the controller file
that it loads; it must have `load(path)` if controller files name it. One whose settings come from a run of another
agent has `after`, (agent, task, device) -> these settings, and `sample`, settings that stand for them where it is only
looked at (`lrenv.benchmark.suite`)."""


GROUP = "lrenv.agents"
"""The group of entry points under which packages advertise agents."""


def agents() -> tuple[str, ...]:
    """Returns the names of all agents that are installed."""
    return tuple(sources.advertised(GROUP))


def agent_factory(name: str) -> Factory:
    """Returns the factory of an agent that a package advertises, or that is in one's own file, `my_agents.py:Mine`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no installed agent has that name, and the message lists similar names; or its package, or the file,
            raises an error; or the file has something else under that name.
    """
    own = specs.Spec(name, {}).own
    if own is None:
        return _installed(name)
    found = sources.load_own(own)
    if hasattr(found, "predict") and not isinstance(found, type):
        agent: Agent = found

        def as_it_stands() -> Agent:
            return agent

        return as_it_stands
    if not callable(found):
        raise ValueError(f"{name} must be an agent, its class or a function that gives one, not {what_is(found)}")
    factory: Factory = found
    return factory


def _installed(name: str) -> Factory:
    factory: Factory = sources.load_advertised(GROUP, name, "agent")
    return factory


@with_own_settings
def make_agent(agent: str | Path, **settings: Any) -> Agent:
    """Makes an agent: by name, `make_agent("cosine", peak=1e-2)`, or from a file, `make_agent("x/best.safetensors")`.

    Args:
        agent: a name in `agents()`, the path of a controller file, or a class or function of one's own in a Python
            file, `my_agents.py:Mine`; a spec may hold settings, such as `cosine:peak=0.01` (`lrenv.specs`).
        **settings: the keyword arguments of the agent's factory.

    Raises:
        ValueError: the name is unknown, the settings don't fit, a file is no controller, or one's own file raises an
            error.
        FileNotFoundError: there is no such file.
    """
    spec = specs.Spec(str(agent), {}) if isinstance(agent, Path) else specs.parse(agent)
    settings = spec.settings | settings
    if isinstance(agent, Path) or spec.is_path:
        path = Path(spec.name)
        if settings:
            raise ValueError(f"a controller file takes no settings, but got {', '.join(settings)}")
        return _loaded(path)
    factory = agent_factory(spec.name)
    hint = "; it is trained, so give its controller file instead of its name" if hasattr(factory, "load") else ""
    check_settings(f"agent {spec.name!r}", factory, settings, hint)
    try:
        made = factory(**settings)
    except TypeError as error:
        raise ValueError(f"agent {spec.name!r}: {error}{hint}") from error
    except (Exception, SystemExit) as error:
        if spec.own is None or isinstance(error, ValueError):
            raise
        raise ValueError(f"agent {spec.name!r} raised {error_line(error)} when it was made") from error
    if not hasattr(made, "predict"):
        raise ValueError(f"agent {spec.name!r} must have a method `predict`, but it is {what_is(made)}")
    return made


def _loaded(path: Path) -> Agent:
    """Returns the agent in a controller file."""
    name = agent_name(path)
    try:
        factory = _installed(name)  # a file of data makes no code run but that of packages
    except ValueError as error:
        raise ControllerFileError(f"{path} holds an agent that isn't installed: {error}") from error
    if not hasattr(factory, "load"):
        raise ControllerFileError(f"{path} holds the agent {name!r}, which has no files; take another file")
    agent: Agent = factory.load(path)
    return agent
