"""A page per agent: what it is, its equation and source, its file, its settings, what it needs, and its limits."""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, get_type_hints

import numpy as np
import torch
from torch import nn

import lrenv
from generator import docstrings
from generator.links import linked
from generator.source import modules
from lrenv import sources
from lrenv.agents.hyperparameters import LIMITS
from lrenv.agents.noh.settings import DMoptSettings, NOHSettings
from lrenv.agents.ppo.agent import Architecture, PPOController
from lrenv.agents.universal.policy import Architecture as UniversalArchitecture
from lrenv.benchmark.privileges import privileges_of
from lrenv.cli import TRAININGS
from lrenv.controllers.agent import Agent, View, agent_factory, agents, view_of
from lrenv.controllers.optimizer_agent import OptimizerAgent

AGENTS = "lrenv.agents"
HORIZON = 100
"""Inner steps of the run in which agents are tried."""


def _ppo(factory: Any) -> Agent:
    architecture = Architecture(observation=8, action=1)
    return PPOController(architecture.build(), np.zeros(8), np.ones(8), View(), architecture)


def _policy(settings: NOHSettings) -> Callable[[Any], Agent]:
    return lambda kind: kind(settings.architecture, settings.interval, settings.optimizer)


def _universal(kind: Any) -> Agent:
    architecture = UniversalArchitecture()
    agent: Agent = kind(torch.zeros(architecture.size), architecture)
    return agent


EXAMPLES: dict[str, Callable[[Any], Agent]] = {
    "refined": lambda factory: factory(norms=(1.0, 1.0), peak=0.1),
    "fds": lambda factory: factory(lr=(0.1,)),
    "search": lambda factory: factory(lr=(0.1,)),
    "noh": _policy(NOHSettings()),
    "dmopt": _policy(DMoptSettings()),
    "learned-optimizer": lambda _: agent_factory("metz2019-cpu")(),
    "ppo": _ppo,
    "universal-policy": _universal,
}
"""Agent whose factory has neither defaults nor a grid -> what makes one; what is trained has untrained weights. Of
others that need more than that, what they see and set isn't told."""
USES = {
    "validation": "validation losses, or predictions on validation data",
    "gradients": "gradients or weights",
    "optimizer": "an optimizer of its own choice",
}
"""Privilege -> what it is."""
TRAINED_BY = {"search": "fds", "universal-policy": "universal"}
"""Agent -> the training that makes its files, where that has another name."""


@dataclass(frozen=True)
class Known:
    """What is known of an agent by its name.

    Attributes:
        name: the agent's.
        factory: what makes it.
        agent: one of them; None where none can be made without a file.
        module: where the factory is written.
        package: the folder of the method.
    """

    name: str
    factory: Any
    agent: Agent | None
    module: str
    package: str

    @property
    def row(self) -> dict[str, str]:
        """What the table of the package's docstring has of it, column -> cell; empty where there is no such row."""
        lines = [line for line in modules()[self.package].docstring.splitlines() if line.startswith("|")]
        for line in lines:
            cells = _cells(line)
            if cells[0] == f"`{self.name}`":
                return dict(zip(_cells(lines[0])[1:], cells[1:], strict=True))
        return {}

    @property
    def file(self) -> str:
        """The file in which it is written."""
        return str(modules()[self.module].path)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def known_agents() -> list[Known]:
    """Returns all agents that lrenv itself advertises."""
    found = []
    for name in agents():
        factory = agent_factory(name)
        module = factory.__module__
        if module.startswith(f"{AGENTS}."):
            found.append(Known(name, factory, _example(name, factory), module, ".".join(module.split(".")[:3])))
    return found


def _example(name: str, factory: Any) -> Agent | None:
    if name in EXAMPLES:
        return EXAMPLES[name](factory)
    given = {key: values[0] for key, values in getattr(factory, "grid", {}).items()}
    parameters = inspect.signature(factory).parameters.values()
    if any(each.default is each.empty and each.name not in given for each in parameters):
        return None
    agent: Agent = factory(**given)
    return agent


def pages() -> dict[str, str]:
    """Returns a page per agent, one per folder that has several kinds of them, and the list of all."""
    every = known_agents()
    families: dict[str, list[Known]] = {}
    for known in every:
        families.setdefault(known.package, []).append(known)
    made = {f"agents/{known.name}": _page(known) for known in every}
    entries, lists = [], []
    for package, members in families.items():
        title = _title(package)
        if len(members) > 2:
            name = _family(package, members)
            made[f"agents/{name}"] = _family_page(package, members)
            entries.append(name)
            head = f"## [{title}]({name}.md)"
        else:
            entries += [known.name for known in members]
            head = f"## {title}"
        rows = [[f"[`{known.name}`]({known.name}.md)", _one_line(known), f"`{known.file}`"] for known in members]
        lists.append(f"{head}\n\n{docstrings.table(['agent', 'what it does', 'file'], rows)}")
    made["agents/index"] = (
        f"# Agents\n\n{len(every)} agents come with lrenv. `lrenv.make_agent` and every command that takes agents "
        "take these names, with settings behind them: `cosine:peak=0.01:warmup=0.05`. Each page has the equation, the "
        "source, the file, all settings, what the agent sees and needs, and what it can't do. Your own agent takes "
        "part as well: [](../../extending.md).\n\n" + "\n\n".join(lists) + _toc(entries)
    )
    return made


def _family(package: str, members: Sequence[Known]) -> str:
    """The name of the page of a folder, which no agent's page may have."""
    name = package.rpartition(".")[2].replace("_", "-")
    return name + "-controllers" * any(known.name == name for known in members)


def _title(package: str) -> str:
    """What a folder has, in few words: the beginning of its docstring."""
    return re.split(r"[:,.] |\.$| \(", docstrings.parse(modules()[package].docstring).summary)[0]


def _one_line(known: Known) -> str:
    return _rich(docstrings.parse(known.factory.__doc__).summary, known)


def _toc(entries: list[str]) -> str:
    return "\n\n```{toctree}\n:hidden:\n:maxdepth: 1\n\n" + "\n".join(entries) + "\n```\n"


def _family_page(package: str, members: list[Known]) -> str:
    docstring = docstrings.parse(modules()[package].docstring)
    rest = docstrings.with_papers(linked(docstring.text, package))
    rest = re.sub(
        r"^\| `([\w-]+)` \|",
        lambda m: f"| [`{m[1]}`]({m[1]}.md) |" if m[1] in {known.name for known in members} else m[0],
        rest,
        flags=re.MULTILINE,
    )
    title = _title(package)
    shared = ""
    if f"{package}.base" in modules():  # what all of them share
        shared = "\n\n## What all of them share\n\n" + linked(
            docstrings.parse(modules()[f"{package}.base"].docstring).rest, f"{package}.base"
        )
    limits = f"\n\n## Limits\n\n{_with_pages(docstring.limits)}" if docstring.limits else ""
    return f"# {title}\n\n{rest}{shared}{limits}" + _toc([known.name for known in members])


def _page(known: Known) -> str:
    docstring = docstrings.parse(known.factory.__doc__)
    parts = [
        f"# {known.name}",
        _rich(docstring.text, known),
        docstrings.table(["", ""], [[a, b] for a, b in _facts(known)]),
        _method(known),
        _settings(known, docstring),
        _training(known),
        _limits(known, docstring),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _rich(text: str, known: Known) -> str:
    return docstrings.with_papers(linked(text, known.module))


def _facts(known: Known) -> list[tuple[str, str]]:
    made = getattr(known.factory, "__qualname__", known.name)
    facts = [("file", f"`{known.file}`"), ("in Python", f"{{py:obj}}`{made} <{known.module}.{made}>`")]
    row = {name: text for name, text in known.row.items() if text}
    if callable(getattr(known.agent, "schedule", None)):
        row.pop("rate at step t")  # the page shows the formula by itself
    facts += [(name, _rich(text, known)) for name, text in row.items()]
    if known.agent is None:
        return facts
    view, privileges = view_of(known.agent), privileges_of(known.agent)
    if isinstance(known.agent, OptimizerAgent):
        facts.append(("sets", "everything: it is the optimizer, in the place of the task's"))
    else:
        facts += [
            ("sets", _names(view.control, "actions")),
            ("observes", _names(view.observe, "observations")),
            ("decides", "every inner step" if view.interval == 1 else _interval(view.interval)),
            ("optimizer", _optimizer(view)),
        ]
    facts.append(("knows the budget", "yes" if privileges.horizon else "no"))
    used = [words for name, words in USES.items() if getattr(privileges, name)]
    facts.append(
        (
            "makes use of",
            ", ".join(used) or ("the time alone" if view.observe == "clock" else "what is seen of training alone"),
        )
    )
    grid = getattr(known.factory, "grid", {})
    if grid:
        facts.append(("tuned over", "; ".join(f"`{name}` {_values(values)}" for name, values in grid.items())))
    return facts


def _names(names: str | tuple[str, ...], page: str) -> str:
    listed = (names,) if isinstance(names, str) else names
    return ", ".join(f"[`{name}`](../catalogue/{page}.md)" for name in listed)


def _interval(interval: int | None) -> str:
    return "every `interval` inner steps, the task's" if interval is None else f"every {interval} inner steps"


def _optimizer(view: View) -> str:
    if view.optimizer is None:
        return "the task's"
    if isinstance(view.optimizer, str):
        own = view.optimizer.startswith("+")
        return f"the task's, with an average (`{view.optimizer}`)" if own else f"`{view.optimizer}`"
    return "the agent itself"


def _values(values: tuple[Any, ...]) -> str:
    numbers = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    if len(numbers) > 6:
        numbers = [*numbers[:3], "…", numbers[-1]]
    return ", ".join(numbers)


def _method(known: Known) -> str:
    """The equation and where it is from: of a formula, of a file of its own, or of the folder."""
    schedule = getattr(known.agent, "schedule", None)
    if callable(schedule):
        formula = docstrings.parse(schedule.__doc__)
        place = f"{{py:obj}}`formulas.{schedule.__name__} <{schedule.__module__}.{schedule.__name__}>`"
        return f"## Equation\n\nThe rate at inner step t of a budget T, {place}:\n\n{_displayed(formula.text, known)}"
    stem = known.module.rpartition(".")[2]
    if stem != "agent":
        return f"## Equation and source\n\n{_rich(_without_doctests(modules()[known.module].docstring), known)}"
    if known.row:
        return ""
    docstring = docstrings.parse(modules()[known.package].docstring)
    return f"## Equation and source\n\n{docstrings.with_papers(linked(docstring.text, known.package))}"


def _displayed(text: str, known: Known) -> str:
    """A text of which a formula that is its first paragraph stands by itself."""
    alone = re.match(r"`([^`]+)`\.?(?=\n\n|$)", text)
    if not alone:
        return _rich(text, known)
    return f"```python\n{alone[1]}\n```\n\n{_rich(text[alone.end() :].strip(), known)}"


def _without_doctests(text: str) -> str:
    """A docstring whose examples are marked as Python's, so that they are coloured."""
    text = docstrings.parse(text).text
    return re.sub(
        r"(?:^ {4}(?:>>> |\.\.\. ?|\S).*\n?)+",
        lambda m: f"```pycon\n{inspect.cleandoc(m[0])}\n```\n" if ">>>" in m[0] else m[0],
        text,
        flags=re.MULTILINE,
    )


def _settings(known: Known, docstring: docstrings.Docstring) -> str:
    parameters = inspect.signature(known.factory).parameters.values()
    if hasattr(known.factory, "load") and isinstance(known.factory, type) and known.name not in ("fds", "search"):
        return ""  # made from a file
    told = _shared(known) | docstring.sections.get("Attributes", {}) | _arguments(known, known.factory)
    rows = []
    for parameter in parameters:
        default = "must be given" if parameter.default is parameter.empty else f"`{parameter.default!r}`"
        limits = LIMITS.get(parameter.name)
        text = told.get(parameter.name, "")
        if limits:
            text = f"{text.rstrip('.')}. Must be {limits[1]}." if text else f"Must be {limits[1]}."
        rows.append([f"`{parameter.name}`", default, _rich(text, known)])
    if not rows:
        return ""
    return "## Settings\n\n" + docstrings.table(["setting", "default", "what it does"], rows)


def _arguments(known: Known, factory: Any) -> dict[str, str]:
    """What a factory's docstring says of its settings; what is "as in" another factory stands as it does there."""
    docstring = docstrings.parse(factory.__doc__)
    own = docstring.sections.get("Args", {})
    resolved: dict[str, str] = {}
    for text in (docstring.text, *own.values()):
        for name in re.findall(r"as in `(\w+)`", text):
            other = getattr(inspect.getmodule(factory), name, None)
            resolved = _arguments(known, other) if inspect.isfunction(other) else resolved
    for name, text in own.items():
        more = re.sub(r"^as in `\w+`(?:, and so are the others)?[.;]? ?", "", text)
        if more == text or name not in resolved:
            resolved[name] = text
        elif more:
            resolved[name] = f"{resolved[name]} {more}"
    return resolved


_LISTED = re.compile(r"^- ((?:`\w+`(?:, )?)+): ((?:.+\n?)(?:  .+\n?)*)", re.MULTILINE)


def _shared(known: Known) -> dict[str, str]:
    """What the lists in the docstrings of a folder's files say of settings."""
    told: dict[str, str] = {}
    for module in (f"{known.package}.base", known.module):
        if module in modules():
            for names, text in _LISTED.findall(modules()[module].docstring):
                told |= {name: " ".join(text.split()) for name in re.findall(r"\w+", names) if name not in told}
    return told


def _training(known: Known) -> str:
    """How it is trained, where it is."""
    name = TRAINED_BY.get(known.name, known.name)
    if name not in sources.advertised(TRAININGS):
        return ""
    function = sources.load_advertised(TRAININGS, name, "training")
    kind = next(type_ for argument, type_ in get_type_hints(function).items() if argument != "return")
    told: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        told |= docstrings.parse(base.__doc__ if base is not object else "").sections.get("Attributes", {})
    rows = [
        [f"`--{f.name.replace('_', '-')}`", _default(f), linked(told.get(f.name, ""))]
        for f in sorted(fields(kind), key=lambda f: list(kind.__annotations__).index(f.name)
                        if f.name in kind.__annotations__ else math.inf)
    ]  # fmt: skip
    summary = docstrings.parse(function.__doc__).summary
    return (
        f"## Training\n\n`lrenv train {name}`: {summary} The file that it writes, `controller.safetensors`, is then "
        "named wherever an agent is.\n\n" + docstrings.table(["setting", "default", "what it does"], rows)
    )


def _default(field: Any) -> str:
    value = field.default if field.default is not MISSING else field.default_factory()
    return f"`{value}`" if value != "" else ""


def _with_pages(text: str) -> str:
    """A text in which the names of pages are links to them."""
    return re.sub(r"`docs/([\w-]+)\.md`", r"[](../../\1.md)", text)


def _limits(known: Known, docstring: docstrings.Docstring) -> str:
    own = docstring.limits or docstrings.parse(modules()[known.module].docstring).limits
    whole = docstrings.parse(modules()[known.package].docstring).limits
    listed = [_with_pages(_rich(text, known)) for text in (own, whole) if text]
    if known.agent is not None and privileges_of(known.agent).horizon:
        listed.append("It must know the budget, the number of inner steps, before training begins.")
    listed.append("What it needs, its controller file says." if known.agent is None else _at_home(known.agent))
    return "## Limits\n\n" + "\n".join(f"- {text}" for text in dict.fromkeys(listed))


def _at_home(agent: Agent) -> str:
    """Whether it drives a loop of one's own; tried, so that it is what happens."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of another optimizer than it was trained with
            lrenv.LRController(
                optimizer, agent, horizon=HORIZON, every=10, module=model, batch_size=2,
                evaluate=lambda: (model(torch.ones(2, 2)), torch.zeros(2, dtype=torch.int64)),
            )  # fmt: skip
    except ValueError as error:
        why = re.match(r"agent .*?['\")] (\w+ .*?): agents that work", str(error))
        return f"It can't drive your own loop: {f'it {why[1]}' if why else error}."
    return "It works in your own loop, by `lrenv.LRController` ([](../../at-home.md))."
