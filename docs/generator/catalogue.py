"""The catalogue: tasks and data sets, observations, actions, rewards, optimizers and losses, from their registries."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from generator import docstrings
from generator.links import linked
from generator.source import modules
from lrenv import networks
from lrenv.data import datasets
from lrenv.data.types import DataMissing
from lrenv.envs import actions, observations, rewards
from lrenv.training import optimizers
from lrenv.training.tasks import LogUniform, Task, make_task, tasks

EMBEDDED = ("digits", "mnist1d", "text", "shuttle", "doctor-visits", "co2", "photo")
"""Data sets that need no file from elsewhere."""


def pages() -> dict[str, str]:
    """Returns the pages of the catalogue."""
    parts = {
        "tasks": _tasks(),
        "data": _data(),
        "observations": _observations(),
        "actions": _actions(),
        "rewards": _rewards(),
        "optimizers": _optimizers(),
    }
    return {f"catalogue/{name}": text for name, text in parts.items()}


def _doc(module: str) -> str:
    docstring = docstrings.parse(modules()[module].docstring)
    return docstrings.with_papers(linked(docstring.text, module))


def _tasks() -> str:
    groups: dict[str, list[list[str]]] = {"Nothing to download": [], "Published data, read from `LRENV_DATA`": []}
    for name in tasks():
        task = make_task(name)
        free = not isinstance(task.data, str) or task.data in EMBEDDED
        weights = f", {_parameters(task)} weights" if free else ""
        usual = task.initial_lr == Task.initial_lr
        rates = "" if usual else f", from {_rates(task)}"
        groups[list(groups)[not free]].append([
            f"`{name}`", linked(task.summary), _data_of(task) + weights, f"`{task.loss}`, `{task.optimizer}`{rates}",
            f"{task.batch_size:,}", f"{task.budget:,} / {task.interval}",
        ])  # fmt: skip
    header = ["task", "what it is", "data", "loss, optimizer", "batch", "budget / interval"]
    lists = "\n\n".join(f"## {title}\n\n{docstrings.table(header, rows)}" for title, rows in groups.items())
    return (
        "# Tasks\n\nA task is data, network, loss, optimizer, batch size and budget. Each is an environment, "
        "`gym.make_vec(\"lrenv/<task>-v0\", num_envs=64)`, and a name for every command. What stands in the table is "
        "the default: `lrenv.make_task(\"digits-mlp\", budget=500)`, or `digits-mlp:budget=500` where a command wants "
        "a name, changes it. Budgets and intervals are inner steps. The first rate is drawn from "
        f"{_rates(make_task('digits-mlp'))} where nothing else stands. Your own task: [](../../extending.md).\n\n"
        f"{lists}\n\n## All settings\n\n{_fields(Task)}\n\n`drawn:number=1000017` is another task for each number: "
        f"{linked(docstrings.parse(modules()['lrenv.training.drawn'].docstring).summary)}\n"
    )  # fmt: skip


def _data_of(task: Task) -> str:
    name = task.data if isinstance(task.data, str) else getattr(task.data, "__name__", "its own").replace("_", " ")
    options = ", ".join(f"{key}={value}" for key, value in task.data_options.items())
    return f"{name} ({options})" if options else name


def _parameters(task: Task) -> str:
    try:
        return f"{sum(each.numel() for each in task.module().parameters()):,}"
    except DataMissing:
        return ""


def _rates(task: Task) -> str:
    if isinstance(task.initial_lr, LogUniform):
        return f"{task.initial_lr.low:g} to {task.initial_lr.high:g}"
    rates = task.initial_lr if isinstance(task.initial_lr, tuple) else (task.initial_lr,)
    return ", ".join(f"{rate:g}" for rate in rates)


def _fields(kind: Any) -> str:
    told = docstrings.parse(kind.__doc__).sections["Attributes"]
    return docstrings.table(["setting", "what it is"], [[f"`{name}`", linked(text)] for name, text in told.items()])


def _data() -> str:
    docstring = docstrings.parse(modules()["lrenv.data"].docstring)
    load = next(each for each in modules()["lrenv.data.registry"].public if each.name == "load")
    loading = docstrings.parse(load.docstring)
    missing = [name for name in datasets() if f"`{name}`" not in loading.rest]
    if missing:
        raise ValueError(f"the docstring of lrenv.data.load doesn't tell of {', '.join(missing)}")
    return (
        f"# Data sets\n\n{docstrings.with_papers(linked(docstring.text, 'lrenv.data'))}\n\n## The sets\n\n"
        f"{docstrings.with_papers(linked(loading.rest, 'lrenv.data.registry'))}\n"
    )


def _observations() -> str:
    sets = []
    for name, observation in observations.OBSERVATIONS.items():
        if isinstance(observation, Mapping):
            rows = [
                [f"`{key}`", f"{signal.low:g}", f"{signal.high:g}", _formula(signal.value)]
                for key, signal in observation.items()
            ]
            listed = docstrings.table(["signal", "from", "to", "value"], rows)
        else:
            listed = f"A function: {docstrings.parse(inspect.getdoc(observation)).summary}"
        sets.append(f"## `{name}`\n\n{_told(observation)}\n\n{listed}")
    dynamics = docstrings.parse(modules()["lrenv.training.dynamics"].docstring).rest
    told = _doc("lrenv.envs.observations")
    missing = [name for name in observations.WHITE_BOX if f"| `{name}` |" not in told]
    if missing:
        raise ValueError(f"the docstring of lrenv.envs.observations doesn't tell of {', '.join(missing)}")
    return (
        f"# Observations\n\n{told}\n\n"
        f"## The quantities\n\n{linked(dynamics, 'lrenv.training.dynamics')}\n\n" + "\n\n".join(sets) + "\n"
    )


def _told(observation: Any) -> str:
    """The docstring of the variable that holds an observation."""
    for each in modules()["lrenv.envs.observations"].public:
        if getattr(observations, each.name, None) is observation:
            return linked(each.docstring, each.module)
    return ""


@cache
def _lambdas(file: str) -> dict[int, str]:
    """Line -> the body of the lambda there."""
    tree = ast.parse(Path(file).read_text())
    return {node.lineno: ast.unparse(node.body) for node in ast.walk(tree) if isinstance(node, ast.Lambda)}


def _formula(function: Any) -> str:
    """What a signal is computed as, as it stands in the source."""
    code = function.__code__
    return f"`{_lambdas(code.co_filename)[code.co_firstlineno].replace('d.', '')}`"


def _actions() -> str:
    rows = [[f"`{name}`", _body(function)] for name, function in actions.KINDS.items()]
    others = [
        [f"`{name}`", docstrings.parse(inspect.getdoc(function)).summary.removeprefix("Returns "), _body(function)]
        for name, function in actions.HYPERPARAMETERS.items()
    ]
    return (
        f"# Actions\n\n{_doc('lrenv.envs.actions')}\n\n## How a rate follows\n\n"
        f"With bounds {actions.BOUNDS[0]:g} and {actions.BOUNDS[1]:g} (`BOUNDS`), a factor of {actions.FACTOR:g} "
        "(`FACTOR`), `a` the action and `lr` the rate before:\n\n"
        f"{docstrings.table(['control', 'the rate becomes'], rows)}\n\n## Beside the rate\n\n"
        f"{docstrings.table(['control', 'what it is', 'its value'], others)}\n"
    )


def _body(function: Any) -> str:
    """What a function returns, as it stands in the source."""
    tree = ast.parse(inspect.getsource(function)).body[0]
    returned = [node for node in ast.walk(tree) if isinstance(node, ast.Return) and node.value is not None]
    return f"`{ast.unparse(returned[-1].value)}`"  # type: ignore[arg-type]


def _statements(function: Any) -> str:
    """A function's source without its docstring."""
    lines = inspect.getsource(function).splitlines()
    node: Any = ast.parse("\n".join(lines)).body[0]
    first = node.body[1 if ast.get_docstring(node) else 0].lineno
    return "\n".join(lines[: node.body[0].lineno - 1] + lines[first - 1 :])


def _rewards() -> str:
    sections = []
    for name, reward in rewards.REWARDS.items():
        told = docstrings.parse(inspect.getdoc(reward)).text
        sections.append(f"## `{name}`\n\n{linked(told)}\n\n```python\n{_statements(reward)}\n```")
    helpers: list[Any] = [rewards._cap, rewards._capped, rewards._log, rewards._decisions_left]
    used = "\n\n".join(inspect.getsource(each).strip() for each in helpers)
    return (
        f"# Rewards\n\n{_doc('lrenv.envs.rewards')}\n\n" + "\n\n".join(sections) + "\n\n## What they are made of\n\n"
        f"```python\n{used}\n```\n"
    )


def _optimizers() -> str:
    rows = []
    for name in optimizers.OPTIMIZERS:
        made = optimizers.make_optimizer(name)
        decay = "decoupled" if made.decoupled else "in the loss" if "weight_decay" in made.hyper else "none"
        rows.append([f"`{name}`", ", ".join(f"`{key}` {value:g}" for key, value in made.hyper.items()), decay])
    names = ", ".join(linked(f"`lrenv.networks.{name}`") for name in networks.__all__ if name[0].islower())
    header = ["optimizer", "hyperparameters and their defaults", "weight decay"]
    return (
        f"# Optimizers, losses, networks\n\n{_doc('lrenv.training.optimizers')}\n\n{docstrings.table(header, rows)}\n\n"
        f"## Losses\n\n{_doc('lrenv.training.losses')}\n\n## Networks\n\n{_doc('lrenv.networks')}\n\nThose that tasks "
        f"are made of: {names}.\n"
    )
