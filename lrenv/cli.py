"""The command line: `lrenv tasks`, `agents`, `compare`, `benchmark`, `train` and `download`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Union, get_type_hints

import tyro
from rich.console import Console

from lrenv import data, listing, sources, specs
from lrenv.runtime.process import keep_memory, status_of

DESCRIPTION = (
    "Networks in training as environments, for agents that control the learning rate. `lrenv --version` tells the "
    "version."
)
TRAININGS = "lrenv.trainings"
"""The entry points under which packages advertise trainings: functions of one argument, the settings, whose annotation
is a dataclass with a default for each field. They return the path of the controller, which is printed, or None."""

Command = tuple[type[Any], Callable[[Any], Any]]
"""The dataclass of a command's settings, and the function of them that does the work."""


@dataclass(frozen=True)
class Tasks:
    """Lists the tasks, and what can be set."""

    memory: bool = False
    """Predict how much memory trainees take instead; this reads the data sets, and leaves out what isn't there."""
    envs: int = 64
    """How many trainees the prediction's total is for."""


@dataclass(frozen=True)
class Agents:
    """Lists the agents that are installed, and what can be set."""


@dataclass(frozen=True)
class Train:
    """Trains an agent that learns; `lrenv train --help` lists them."""


@dataclass(frozen=True)
class Download:
    """Downloads a published data set."""

    name: tyro.conf.Positional[str]
    """The data set: mnist, fashion-mnist, cifar10 or svhn."""


@dataclass(frozen=True)
class Compare:
    """Compares agents on a task: tunes the schedules, runs all on the same seeds, shows and saves the results."""

    task: str = "digits-mlp"
    """The task: a name from `lrenv tasks`, name:setting=value, or my_tasks.py:name for one of your own."""
    agents: str = "constant,step,cosine"
    """The agents, separated by commas: names from `lrenv agents`, name:setting=value, my_agents.py:Name for one of your
    own, or controller files. Commas within brackets and quotes separate nothing."""
    seeds: int = 10
    """How many runs each agent makes."""
    initial_lr: str = ""
    """Initial rates, separated by commas: agents that scale the rate get a row from each. By default they are the
    task's."""
    baseline: str | None = None
    """The agent that the others are tested against; by default it is step if that takes part, and else the first."""
    observations: str = ""
    """Observations of your own that controller files need, my_file.py:name, separated by commas."""
    budget: int | None = None
    """How many inner steps a run has; by default as many as the task says."""
    device: str | None = None
    """The device where the trainees live; by default it is CUDA where there is any."""
    out: Path = Path("runs/compare")
    """The folder for cells.jsonl, from which the same command goes on if it was interrupted, and for results.jsonl,
    summary.json, comparison.png and report.html."""
    overwrite: bool = False
    """Discard another comparison that the folder holds."""


@dataclass(frozen=True)
class Benchmark:
    """Runs a suite: agents on several tasks, each tuned over the suite's grids, and their scores relative to one."""

    suite: str = "quick"
    """The suite: quick, standard, or a TOML file of your own, whose keys `lrenv/benchmark/suite.py` explains."""
    agents: str = ""
    """Only these agents, separated by commas: those of the suite by their names there, with their grids, and others by
    their specs, a bare name with a grid of its own being tuned over that. The reference takes part in any case. By
    default all of the suite."""
    tasks: str = ""
    """Only these tasks, separated by commas; by default those of the suite."""
    seeds: int | None = None
    """How many runs are reported of each agent on each task; by default as many as the suite says."""
    device: str | None = None
    """The device where the trainees live; by default it is CUDA where there is any."""
    out: Path = Path("runs/benchmark")
    """The folder for cells.jsonl, from which the same command goes on if it was interrupted, and for results.jsonl,
    table.md, table.csv, tuned.jsonl, budgets.json and budgets.png."""
    tuned: Path | None = None
    """What earlier searches found, as an earlier run left it in tuned.jsonl; by default the file beside the suite, such
    as quick.tuned.jsonl, if there is one."""
    retune: bool = False
    """Search all settings anew, whatever earlier searches found."""
    overwrite: bool = False
    """Discard another benchmark that the folder holds."""


def _tasks(command: Tasks) -> None:
    Console().print(listing.memory(command.envs) if command.memory else listing.tasks_table())


def _agents(command: Agents) -> None:
    print("\n".join(listing.agents_lines(sources.advertised(TRAININGS))))


def _download(command: Download) -> None:
    found = data.load(command.name, download=True)
    print(f"{command.name}: {', '.join(str(len(split.targets)) for split in found[:3])} examples in {data.data_root()}")


def _compare(command: Compare) -> None:
    # Matplotlib and SciPy take a second, and --help needs neither; likewise below.
    from lrenv.benchmark.comparison import compare
    from lrenv.benchmark.report import save_report, table

    several = specs.split(command.task)
    if len(several) > 1 and not specs.parse(several[0]).settings:  # or else the comma may belong to a value
        raise ValueError(
            f"compare takes one task, not {len(several)}; `lrenv benchmark --tasks {','.join(several)}` takes several"
        )
    try:
        rates = [float(rate) for rate in command.initial_lr.split(",")] if command.initial_lr else []
    except ValueError as error:
        raise ValueError(f"--initial-lr takes numbers separated by commas: {error}") from None
    if command.out.exists() and not command.out.is_dir():
        raise ValueError(f"--out {command.out} is a file; name a folder")
    comparison = compare(
        command.task if command.budget is None else f"{command.task}:budget={command.budget}",
        specs.split(command.agents), command.seeds, baseline=command.baseline, initial_lrs=rates,
        observations=specs.split(command.observations), device=command.device, out=command.out,
        overwrite=command.overwrite,
    )  # fmt: skip
    report = save_report(comparison, command.out)
    Console().print(table(comparison))
    print(f"report: {report}")
    _check_failures((row.label for row in comparison.failed), command.overwrite)


def _benchmark(command: Benchmark) -> None:
    from lrenv.benchmark.run_suite import run_suite
    from lrenv.benchmark.score_tables import markdown, save
    from lrenv.benchmark.scores import scored
    from lrenv.benchmark.suite import chosen, path_of, read_suite

    if command.out.exists() and not command.out.is_dir():
        raise ValueError(f"--out {command.out} is a file; name a folder")
    if command.tuned is not None and not command.tuned.is_file():
        raise ValueError(f"there is no file {command.tuned}; leave --tuned out to search anew")
    suite = read_suite(command.suite)
    suite = chosen(suite, specs.split(command.agents), specs.split(command.tasks), command.seeds)
    records = None if command.retune else command.tuned or path_of(command.suite).with_suffix(".tuned.jsonl")
    outcome = run_suite(suite, command.out, None if command.retune else records, command.device, command.overwrite)
    scores = scored(outcome)
    save(scores, command.out)
    print(markdown(scores))
    print(f"results: {command.out}")
    failed = [(line.agent, line.task) for line in outcome.lines if line.failure] + list(outcome.undrawn)
    _check_failures((f"{agent} on {task}" for agent, task in failed), command.overwrite)


def _check_failures(failed: Iterable[str], overwrite: bool) -> None:
    """Raises ValueError if any agent failed, so that the command's exit status tells it."""
    if names := list(dict.fromkeys(failed)):
        told = ", ".join(names)
        without = ", without --overwrite," * overwrite
        raise ValueError(
            f"{told} failed, as the table says; the same command{without} tries again, and keeps what has run"
        )


COMMANDS: dict[str, Command] = {
    "tasks": (Tasks, _tasks),
    "agents": (Agents, _agents),
    "compare": (Compare, _compare),
    "benchmark": (Benchmark, _benchmark),
    "train": (Train, lambda _: None),
    "download": (Download, _download),
}


def parse(settings: Any, arguments: Sequence[str], program: str | None = None, description: str | None = None) -> Any:
    """The settings that arguments ask for; like every parser of commands, it exits on --help and on bad usage.

    An empty path, as a shell makes of a variable that isn't set, is refused: it would be the current folder.

    Args:
        settings: a dataclass, or a union of several as subcommands.
        arguments: the words after the command's name.
        program: how the command is called.
        description: what it does; the docstring of the settings if None.
    """
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def _paths(
        info: tyro.constructors.PrimitiveTypeInfo,
    ) -> tyro.constructors.PrimitiveConstructorSpec[Path] | None:
        if info.type is not Path:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=lambda words: _path(words[0]),
            is_instance=lambda value: isinstance(value, Path),
            str_from_instance=lambda path: [str(path)],
        )

    with registry:
        return tyro.cli(settings, args=list(arguments), prog=program, description=description)


def _path(text: str) -> Path:
    if not text.strip():
        raise ValueError("an empty path would be the current folder; name one, or write .")
    return Path(text)


def run(
    commands: Mapping[str, Command],
    description: str,
    arguments: Sequence[str] | None = None,
    program: str | None = None,
) -> int:
    """Parses the command line into the settings of one of several commands, and calls its function.

    Args:
        commands: name -> its settings and its function.
        description: what the program does.
        arguments: the words of the command line; those of the process if None.
        program: how the program is called; as the process was started if None.

    Returns:
        The exit status (`lrenv.runtime.process.status_of`).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    program = Path(sys.argv[0]).name if program is None else program
    return _command(lambda: _dispatch(commands, description, words, program))


def _command(work: Callable[[], Any]) -> int:
    """Does the work of a process that is this program's own; gives the exit status."""
    keep_memory()
    return status_of(work)


def _dispatch(commands: Mapping[str, Command], description: str, words: list[str], program: str) -> None:
    if words and words[0] in commands:
        kind, function = commands[words[0]]
        function(parse(kind, words[1:], f"{program} {words[0]}", listing.explained(kind)))
    else:  # help, or an error that lists the commands
        kinds = tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, (kind, _) in commands.items())
        parse(Union[kinds], words, program, description)  # noqa: UP007


def train(arguments: Sequence[str], program: str = "lrenv train") -> int:
    """`lrenv train`: trains an agent that learns; gives the exit status."""

    def work() -> None:
        known = sources.advertised(TRAININGS)
        wanted = arguments[:1] if arguments and arguments[0] in known else known
        commands = {name: _training(name) for name in wanted}
        _dispatch(commands, "Trains an agent that controls learning rates.", list(arguments), program)

    return _command(work)


def _training(name: str) -> Command:
    """A training that a package advertises."""
    function = sources.load_advertised(TRAININGS, name, "training")
    kinds = [kind for argument, kind in get_type_hints(function).items() if argument != "return"]

    def work(settings: Any) -> None:
        if (controller := function(settings)) is not None:
            print(f"controller: {controller}")

    return kinds[0], work


def main() -> int:
    """The `lrenv` command; gives the exit status."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(f"lrenv {version('lrenv')}")
        return 0
    if arguments[:1] == ["train"]:
        return train(arguments[1:])
    return run(COMMANDS, DESCRIPTION, arguments, "lrenv")
