"""Who takes part in a comparison: agents by their specs, and agents that were given as objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lrenv import sources, specs
from lrenv.benchmark.tuning import grid_of
from lrenv.controllers.agent import Agent, agent_factory, called, make_agent, view_of
from lrenv.controllers.optimizer_agent import OptimizerAgent
from lrenv.controllers.sb3_agent import as_agent

CONTROLLER = "controller.safetensors"
"""What trainings call the file of their controller."""


@dataclass(frozen=True)
class Contender:
    """An agent that takes part.

    Attributes:
        spec: the agent as it was asked for; of an object, its label.
        name: the agent's name, its path, or the file and the name in it; of an object, its label.
        settings: the settings that the spec gives.
        label: what the agent is called in tables.
        file: the controller file, if the agent was trained.
        tuned: whether the agent's settings are to be searched.
        given: the agent itself, if it was given as an object.
    """

    spec: str
    name: str
    settings: dict[str, Any]
    label: str
    file: Path | None = None
    tuned: bool = False
    given: Agent | None = None

    def make(self, settings: dict[str, Any]) -> Agent:
        """Returns the agent with these settings."""
        return as_agent(make_agent(self.name, **settings)) if self.given is None else self.given


def version_of(agent: Agent) -> dict[str, Any]:
    """What tells an agent from another version of it under the same name, in the cells of comparisons.

    That of an optimizer's package, or the agent's own, `version`, a number or a text; nothing of agents without.
    """
    if isinstance(agent, OptimizerAgent):
        return {"source": agent.source()}
    version = getattr(agent, "version", None)
    return {"version": version} if isinstance(version, int | str) else {}


def contenders_of(agents: Sequence[str | Path | Agent], labels: Sequence[str] = ()) -> list[Contender]:
    """Returns the agents that take part; one that can't be made raises an error.

    Args:
        agents: specs, and agents themselves.
        labels: what they are to be called, in the same order. By default they are called by their names; where several
            have one name, by their specs, and files by the shortest ends of their paths that differ.
    """
    if not agents:
        raise ValueError("name at least one agent, as in --agents constant,step,cosine")
    found = []
    for number, agent in enumerate(agents):
        one = _contender(str(agent)) if isinstance(agent, str | Path) else _given(agent)
        label = labels[number] if labels else one.label
        one = replace(one, label=label)
        found.append(one if one.given is None else replace(one, spec=label, name=label))
    twice = [spec for spec, times in Counter(contender.spec for contender in found).items() if times > 1]
    if twice:
        hint = "; give each a label, as in {'a': first, 'b': second}" if any(one.given for one in found) else ""
        raise ValueError(f"an agent is named twice: {', '.join(twice)}{hint}")
    shared = Counter(contender.label for contender in found)
    taken = {label for label, times in shared.items() if times == 1}
    files = [c.spec for c in found if shared[c.label] > 1 and c.given is None and specs.Spec(c.name, {}).is_path]
    ends = _ends(files, taken)
    return [replace(c, label=ends.get(c.spec, c.spec)) if shared[c.label] > 1 else c for c in found]


def _ends(files: Sequence[str], taken: Set[str]) -> dict[str, str]:
    """The shortest ends of paths that tell files apart, and from names that are taken; whole ones if none do.

    What commands call `controller.safetensors` is called by its folder.
    """
    paths = {file: Path(file) for file in files}
    paths = {
        file: path.parent if path.name == CONTROLLER and path.parent.name else path for file, path in paths.items()
    }
    for parts in range(1, max((len(path.parts) for path in paths.values()), default=0) + 1):
        ends = {file: str(Path(*path.parts[-parts:])) for file, path in paths.items()}
        if len(set(ends.values())) == len(ends) and not taken & set(ends.values()):
            return ends
    return {}


def _contender(agent: str) -> Contender:
    """The agent that a spec names."""
    spec = specs.parse(agent)
    name, settings = spec
    grid = {} if spec.is_path else grid_of(name)
    several = [key for key in grid if isinstance(settings.get(key), tuple | list)]
    if several:
        raise ValueError(
            f"agent {_spec(agent)!r}: {several[0]} must be one number, for a row is about one setting; name the agent "
            "again for each other"
        )
    tuned = not settings and bool(grid)
    made = None if tuned else make_agent(name, **settings)
    file = Path(name) if spec.is_path else getattr(agent_factory(name), "file", None)
    return Contender(_spec(agent), name, settings, called(made) if spec.is_path else spec.short_name, file, tuned)


def _given(agent: Agent) -> Contender:
    """An agent that was given as an object."""
    agent = as_agent(agent)
    view_of(agent)
    return Contender(called(agent), called(agent), {}, called(agent), given=agent)


def baseline_of(contenders: Sequence[Contender], baseline: str | None) -> str:
    """Returns the spec of the agent that the others are held against."""
    names = [contender.spec for contender in contenders]
    if baseline is None or not baseline.strip():
        return "step" if "step" in names else names[0]
    of_labels = {contender.label: contender.spec for contender in contenders}
    found = of_labels.get(baseline.strip()) or _spec(baseline)
    if found not in names:
        raise ValueError(f"the baseline {baseline!r} is not among the agents {', '.join(names)}")
    return found


def _spec(text: str) -> str:
    """A spec as it is shown: of a quoted path, the path."""
    spec = specs.parse(text)
    return spec.name if spec.is_path else text.strip()


def digests(contenders: Sequence[Contender], others: Mapping[str, specs.Own | None]) -> dict[str, str]:
    """Returns hashes of the files that results depend on: controllers, and one's own code.

    Args:
        contenders: who takes part.
        others: what else may be one's own, each under what it is called.
    """
    paths = {contender.spec: contender.file for contender in contenders if contender.file is not None}
    own = {c.spec: specs.Spec(c.name, {}).own for c in contenders if c.given is None}
    paths |= {spec: sources.own_path(found) for spec, found in {**own, **others}.items() if found is not None}
    return {spec: sources.digest(path) for spec, path in paths.items()}
