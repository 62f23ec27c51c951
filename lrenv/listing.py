"""What there is to choose from, in words: tasks, agents and what can be set, as `lrenv tasks` and --help show it."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, fields
from typing import Any, Union, get_args, get_origin

from rich.table import Table

from lrenv.controllers.agent import agent_factory, agents
from lrenv.data.folder import folder
from lrenv.data.types import DataMissing
from lrenv.envs.actions import HYPERPARAMETERS, KINDS
from lrenv.envs.observations import OBSERVATIONS, WHITE_BOX
from lrenv.envs.rewards import REWARDS
from lrenv.lookup import count, error_line
from lrenv.training.optimizers import OPTIMIZERS
from lrenv.training.tasks import Task, make_task, tasks
from lrenv.training.trainee import Trainee

PLAIN = (int, float, str, bool, type(None))
"""What a spec can write, alone or in lists and tuples."""
DESCRIBED = ("name", "data", "network", "summary", "data_options")
"""The fields of a task that a spec doesn't change."""


def tasks_table() -> Table:
    """Returns a row per task, and below them what can be set."""
    shown = Table("task", "what", "batch", "budget", "optimizer", caption_justify="left")
    for name in tasks():
        try:
            task = make_task(name)
        except Exception as error:  # its package is broken
            shown.add_row(name, _told(error), *"---")
            continue
        shown.add_row(name, task.summary, str(task.batch_size), str(task.budget), str(task.optimizer))
    settings = ", ".join(
        f.name if f.default is MISSING else f"{f.name}={f.default!r}" for f in fields(Task) if f.name not in DESCRIBED
    )
    shown.caption = (
        "A task takes settings, as in digits-mlp:budget=500:batch_size=32. There are, with what holds where a task "
        f"says nothing else: {settings}. Those of a folder of images besides: {', '.join(_settings(folder))}. Of the "
        "drawn ones, drawn:number=1000017 names another. A task of your own is named by its file: my_tasks.py:name."
    )
    return shown


def memory(envs: int) -> Table:
    """Returns a table of the memory that trainees of each task take.

    Args:
        envs: how many trainees the total is for.
    """
    count("envs", envs)
    shown = Table(title="MiB, on a CPU, beside the process itself: of the data, and of each trainee")
    shown.add_column("task", no_wrap=True)
    for column in ("data", "held", "training", "measuring", "at once", f"all {envs}"):
        shown.add_column(column, justify="right")
    for name in tasks():
        try:
            task = make_task(name)
            if task.data == "folder" and not task.data_options:  # which folder is not said
                continue
            trainee = Trainee(task)
        except DataMissing:
            continue
        except Exception as error:  # damaged data, or a broken package
            shown.add_row(name, _told(error), *"-----")
            continue
        bytes_ = trainee.memory
        numbers = (bytes_.data, bytes_.held, bytes_.training, bytes_.measuring)
        total = bytes_.total(envs, trainee.chunk_size)
        chunk_size = str(min(envs, trainee.chunk_size))
        shown.add_row(name, *(f"{x / 2**20:,.1f}" for x in numbers), chunk_size, f"{total / 2**20:,.0f}")
    return shown


def agents_lines(trainings: Collection[str]) -> list[str]:
    """Returns two lines per agent: what it is, and what can be set.

    Args:
        trainings: what `lrenv train` trains.
    """
    width = max(map(len, agents()))
    lines = []
    for name in agents():
        try:
            factory = agent_factory(name)
            lines += [f"{name:{width}}  {_summary(factory)}", f"{'':{width}}  {_offers(name, factory, trainings)}"]
        except Exception as error:  # its package is broken
            lines.append(f"{name:{width}}  {_told(error)}")
    named = "Settings follow a name, as in cosine:peak=0.01:warmup=30; an agent of your own is my_agents.py:Name."
    return [*lines, "", named]


def _told(error: Exception) -> str:
    """What is wrong, in a line; lrenv's own errors say so by themselves."""
    return str(error) if isinstance(error, ValueError) else error_line(error)


def _offers(name: str, factory: Callable[..., Any], trainings: Collection[str]) -> str:
    """What can be set, and where else an agent comes from."""
    settings, grid = _settings(factory), getattr(factory, "grid", None)
    offers = []
    if _writable(factory):
        offers.append(f"settings: {', '.join(settings)}" if settings else "no settings")
    if grid:
        offers.append(f"lrenv compare tunes {', '.join(grid)} if nothing is set")
    if hasattr(factory, "load"):
        trained = f" of `lrenv train {name}`" if name in trainings else ""
        offers.append(f"the path of a controller file{trained} instead of the name")
    return "; ".join(offers)


def _summary(thing: Any) -> str:
    """The first sentence of a docstring."""
    first, _, _ = (inspect.getdoc(thing) or "").partition("\n\n")
    return " ".join(first.split())


def _parameters(factory: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(factory, eval_str=True).parameters.values())


def _settings(factory: Callable[..., Any]) -> list[str]:
    """The parameters that a spec can give, each with its default."""
    return [
        p.name if p.default is p.empty else f"{p.name}={p.default!r}"
        for p in _parameters(factory)
        if _plain(p.annotation)
    ]


def _writable(factory: Callable[..., Any]) -> bool:
    """Whether a spec can give all that must be given."""
    return all(_plain(p.annotation) for p in _parameters(factory) if p.default is p.empty)


def _plain(kind: Any) -> bool:
    """Whether some value of a type can be written in a spec."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return any(map(_plain, get_args(kind)))
    if origin in (tuple, list, Sequence):
        return all(_plain(each) for each in get_args(kind) if each is not ...)
    return kind in PLAIN or kind is inspect.Parameter.empty


def choices() -> dict[str, str]:
    """Returns, per setting of a command, what it can be."""
    return {
        "task": f"{', '.join(tasks())}, or my_tasks.py:name",
        "agents": f"{', '.join(agents())}, my_agents.py:Name, or a controller file",
        "optimizer": f"{', '.join(OPTIMIZERS)}; +ema behind it, or alone, measures an average of the weights",
        "control": f"{', '.join(KINDS)}, scale10 by up to 10, also /layer, /tensor or /parameter; with "
        f"{', '.join(HYPERPARAMETERS)}",
        "observe": f"{', '.join((*OBSERVATIONS, *WHITE_BOX))}, or my_observations.py:name",
        "reward": f"{', '.join(REWARDS)}, or my_rewards.py:name",
    }


def explained(settings: type[Any]) -> str:
    """Returns what a command does, and what its settings can be."""
    names = {f.name for f in fields(settings)}
    listed = [f"--{name}: {choice}." for name, choice in choices().items() if name in names]
    return "\n".join([_summary(settings), *listed])
