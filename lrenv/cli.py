"""The command line: `lrenv tasks`, `lrenv agents`, `lrenv compare`, `lrenv download`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from lrenv import data, specs
from lrenv.benchmark.comparison import compare
from lrenv.benchmark.report import save_report, table
from lrenv.controllers.agent import agents
from lrenv.lookup import count
from lrenv.runtime.process import keep_memory, status_of
from lrenv.training.tasks import make_task, tasks
from lrenv.training.trainee import Trainee


@dataclass(frozen=True)
class Tasks:
    """Lists the tasks."""

    memory: bool = False
    """Also predict how much memory trainees take; reads the data sets, and leaves out what isn't there."""
    envs: int = 64
    """Trainees in the prediction's total."""


@dataclass(frozen=True)
class Agents:
    """Lists the agents that are installed."""


@dataclass(frozen=True)
class Download:
    """Downloads a published data set."""

    name: tyro.conf.Positional[str]
    """mnist, fashion-mnist, cifar10 or svhn."""


@dataclass(frozen=True)
class Compare:
    """Compares agents on a task: tunes the schedules, runs everyone on the same seeds, shows and saves the results."""

    task: str = "digits-mlp"
    """What to train; a name from `lrenv tasks`, or name:setting=value."""
    agents: str = "constant,step,cosine"
    """Names, name:setting=value, or controller files, separated by commas; those in brackets and quotes don't count."""
    seeds: int = 10
    """Runs of each agent."""
    initial_lr: str = ""
    """Rates separated by commas: agents that scale the rate get a row from each. By default the task's."""
    baseline: str | None = None
    """Whom the others are tested against; step if it takes part, else the first."""
    budget: int | None = None
    """Inner steps; the task's own by default."""
    device: str | None = None
    """Where the trainees live; CUDA where there is any by default."""
    out: Path = Path("runs/compare")
    """Folder for cells.jsonl, from which the same command goes on if it was interrupted, and for results.jsonl,
    summary.json, comparison.png and report.html."""
    overwrite: bool = False
    """Discard another comparison that the folder holds."""


def _tasks(command: Tasks) -> None:
    if command.memory:
        _memory(command.envs)
        return
    shown = Table("task", "what", "batch", "budget", "optimizer")
    for name in tasks():
        task = make_task(name)
        shown.add_row(name, task.summary, str(task.batch_size), str(task.budget), str(task.optimizer))
    Console().print(shown)


def _memory(envs: int) -> None:
    count("envs", envs)
    shown = Table(title="MiB, on a CPU, beside the process itself: of the data, and of each trainee")
    shown.add_column("task", no_wrap=True)
    for column in ("data", "held", "training", "measuring", "at once", f"all {envs}"):
        shown.add_column(column, justify="right")
    for name in tasks():
        try:
            trainee = Trainee(make_task(name))
        except (OSError, TypeError):  # data that isn't there, or a folder that isn't named
            continue
        bytes_ = trainee.memory
        numbers = (bytes_.data, bytes_.held, bytes_.training, bytes_.measuring)
        total = bytes_.total(envs, trainee.at_once)
        at_once = str(min(envs, trainee.at_once))
        shown.add_row(name, *(f"{x / 2**20:,.1f}" for x in numbers), at_once, f"{total / 2**20:,.0f}")
    Console().print(shown)


def _agents(command: Agents) -> None:
    print("\n".join(agents()))


def _download(command: Download) -> None:
    found = data.load(command.name, download=True)
    print(f"{command.name}: {', '.join(str(len(split.targets)) for split in found[:3])} examples in {data.data_root()}")


def _compare(command: Compare) -> None:
    try:
        rates = [float(rate) for rate in command.initial_lr.split(",")] if command.initial_lr else []
    except ValueError as error:
        raise ValueError(f"--initial-lr takes numbers separated by commas: {error}") from None
    task = make_task(command.task, **({} if command.budget is None else {"budget": command.budget}))
    if command.out.exists() and not command.out.is_dir():
        raise ValueError(f"--out {command.out} is a file; name a folder")
    comparison = compare(
        task, specs.split(command.agents), command.seeds, baseline=command.baseline, initial_lrs=rates,
        device=command.device, out=command.out, overwrite=command.overwrite,
    )  # fmt: skip
    Console().print(table(comparison))
    print(f"report: {save_report(comparison, command.out)}")
    if comparison.failed:
        failed = ", ".join(row.label for row in comparison.failed)
        raise ValueError(f"{failed} failed, as the table says; the same command tries again, and keeps what has run")


def run(commands: Mapping[str, tuple[type[Any], Callable[[Any], Any]]], description: str) -> int:
    """Parses the command line into one of the settings classes and calls its function.

    Args:
        commands: name -> (dataclass of its settings, function of them).
        description: of the program.

    Returns:
        The exit status: 0, 2 for errors that the user can mend, 130 for an interruption.
    """

    def work() -> None:
        functions = dict(commands.values())
        parsed = tyro.extras.subcommand_cli_from_dict(
            {name: kind for name, (kind, _) in commands.items()}, description=description
        )
        functions[type(parsed)](parsed)

    keep_memory()
    return status_of(work)


def main() -> int:
    """The `lrenv` command."""
    commands: dict[str, tuple[type[Any], Callable[[Any], Any]]] = {
        "tasks": (Tasks, _tasks),
        "agents": (Agents, _agents),
        "compare": (Compare, _compare),
        "download": (Download, _download),
    }
    return run(commands, "Networks in training as environments, for agents that control the learning rate.")
