"""Running a suite: every agent is tuned on each task, or comes as it is, and runs on the seeds for reports.

A suite is a run of cells (`lrenv.benchmark.cells`), each a batch of runs, kept in a file as they end: the same command
goes on from there, and comes to the same numbers. What searches found is read from the file of records that lies beside
a suite, `quick.tuned.jsonl` beside `quick.toml`, where there is one, and written to the folder of results.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lrenv import sources, specs
from lrenv.benchmark import held_out
from lrenv.benchmark.cells import Cells
from lrenv.benchmark.comparison import described_setting, failure_line, runs_of
from lrenv.benchmark.contenders import Contender, contenders_of, digests, version_of
from lrenv.benchmark.evaluation import Result, evaluate
from lrenv.benchmark.privileges import Privileges, privileges_of
from lrenv.benchmark.rows import Runs
from lrenv.benchmark.search import (
    Record,
    Records,
    Search,
    after_another,
    grid_found,
    pool_found,
    sample_of,
    stand_ins,
)
from lrenv.benchmark.suite import Axis, Entry, Suite
from lrenv.benchmark.tuning import AT_ONCE, grid_of
from lrenv.controllers.agent import make_agent, view_of
from lrenv.envs.actions import is_relative
from lrenv.envs.snapshots import contents_of
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.lookup import what_is
from lrenv.randomness.seeds import seeds_for
from lrenv.runtime.files import replace_file
from lrenv.runtime.memory import choose_device
from lrenv.runtime.process import command_line, commit, machine
from lrenv.runtime.progress import progress
from lrenv.training.tasks import Task, make_task

FILES = ("results.jsonl", "tuned.jsonl", "table.md", "table.csv", "budgets.json", "budgets.png")
"""What is made of a suite's cells, in its folder."""


@dataclass(frozen=True)
class Line:
    """One agent on one task, from one initial rate.

    Attributes:
        agent: its label.
        task: as the suite calls it.
        start: the initial rate, of agents that scale it.
        settings: what it was tuned to, or given.
        runs: trainings that it has cost before these.
        seconds: of its tuning; those of its runs are the result's.
        inside: whether tuning found its best inside of the grid.
        result: its runs; None if it failed.
        failure: why it failed.
    """

    agent: str
    task: str
    start: float | None
    settings: dict[str, Any]
    runs: Runs
    seconds: float = 0.0
    inside: bool = True
    result: Result | None = None
    failure: str = ""


@dataclass(frozen=True)
class Outcome:
    """What the runs of a suite gave.

    Attributes:
        suite: what was run.
        tasks: those of the suite that could be run -> the optimizer that they train with.
        lines: a line per agent, task and start.
        privileges: agent -> what it makes use of.
        pools: (agent, task) -> its random draws.
        records: what searches found.
        skipped: what was left out, a sentence each.
        about: command, machine, commit and settings of the run that began it.
        undrawn: (agent, task) -> why its random draws failed.
    """

    suite: Suite
    tasks: dict[str, str]
    lines: list[Line]
    privileges: dict[str, Privileges]
    pools: dict[tuple[str, str], Record]
    records: Records
    skipped: list[str]
    about: dict[str, Any]
    undrawn: dict[tuple[str, str], str] = field(default_factory=dict)


def run_suite(
    suite: Suite, out: Path, records: Path | None = None, device: str | None = None, overwrite: bool = False
) -> Outcome:
    """Runs a suite, or what is left of it.

    Args:
        suite: what to run.
        out: the folder that keeps what is finished.
        records: a file with what earlier searches found; None searches anew.
        device: where the trainees live.
        overwrite: discard another benchmark that `out` holds.

    Raises:
        FileExistsError: `out` holds a benchmark with other settings or of other versions.
        OSError: `out` can't be written.
        ValueError: an agent or a task is unknown or can't be made, or nothing of the suite can be run here.
        KeyboardInterrupt: the run was interrupted; the message says what is kept.
    """
    named, skipped = _tasks(suite, device)
    tasks = {name: make_task(spec) for name, spec in named.items()}
    entries, contenders, left_out = _agents(suite)
    skipped += left_out
    if suite.reference not in [entry.label for entry in entries]:
        raise ValueError(f"the reference, {suite.reference}, can't take part: {' '.join(left_out)}")
    found = Records.read(records) if records is not None else Records({}, {})
    own = {f"task {name}": specs.parse(spec).own for name, spec in named.items()}
    settings = {
        "suite": described_setting(suite),
        "tasks": {name: described_setting(task) for name, task in tasks.items()},
        "agents": [entry.label for entry in entries], "files": digests(list(contenders.values()), own),
        "tuned": sources.digest(records) if records is not None and records.exists() else None,
        "device": str(choose_device(device)), "at_once": AT_ONCE, "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("lrenv", "torch", "numpy")},
    }  # fmt: skip
    contents = {
        name: made for name, task in tasks.items()
        if specs.parse(named[name]).name != held_out.SPEC and (made := contents_of(task))  # whose data are checked
    }  # fmt: skip
    if contents:
        settings["contents"] = contents
    about = {"command": command_line(), "machine": machine(), "commit": commit(), "versions": settings["versions"]}
    # Records that were asked for may be those of the run that is discarded.
    asked = None if records is None else records.resolve()
    beside = [out / name for name in FILES if (out / name).resolve() != asked]
    cells = Cells(out / "cells.jsonl", settings, about, beside, overwrite)
    lines, pools, undrawn = [], {}, {}
    task_specs = {
        name: " ".join(filter(None, (spec, settings["files"].get(f"task {name}"), *contents.get(name, {}).values())))
        for name, spec in named.items()
    }
    with cells, progress(len(tasks) * len(entries), "agents on tasks") as report:
        try:
            for place, (name, entry) in enumerate((name, entry) for name in tasks for entry in entries):
                report(place, f"{entry.label} on {name}")
                search = Search(entry, tasks[name], name, task_specs[name], suite, device, cells.once)
                lines += (new := [] if entry.only_drawn else _lines(contenders[entry.label], search, found))
                if entry.draws and suite.pool and not any(line.failure for line in new):
                    try:
                        pools[entry.label, name] = pool_found(search, found)
                    except OSError:
                        raise
                    except Exception as error:
                        undrawn[entry.label, name] = failure_line(error)
            report(len(tasks) * len(entries))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(cells.told) from None
    if cells.about.get("commit") != about["commit"]:
        skipped.append(f"The first runs are of commit {cells.about.get('commit')}, the last of {about['commit']}.")
    privileges = {entry.label: privileges_of(sample_of(entry)) for entry in entries}
    replace_file(out / "tuned.jsonl", found.text())
    optimizers = {
        name: task.optimizer if isinstance(task.optimizer, str) else what_is(task.optimizer)
        for name, task in tasks.items()
    }
    return Outcome(suite, optimizers, lines, privileges, pools, found, skipped, cells.about, undrawn)


def _tasks(suite: Suite, device: str | None) -> tuple[dict[str, str], list[str]]:
    """The specs of the tasks by their names in tables, and what is left out since its data aren't there.

    Each is tried, so that what can't be made is told before anything runs.
    """
    found, skipped = {}, []
    for spec in suite.tasks:
        task = make_task(spec)
        try:
            LearningRateVectorEnv(1, task, device=device)
            if specs.parse(spec).name == held_out.SPEC:
                held_out.check_data(task)
        except FileNotFoundError as error:
            skipped.append(f"Task {spec} is left out: {error}")
        except ValueError as error:
            raise ValueError(f"task {spec!r} can't be made: {error}") from error
        else:
            found[spec] = task
    if not found:
        raise ValueError(f"no task is left: {' '.join(skipped)}")
    times = Counter(task.name for task in found.values())
    return {task.name if times[task.name] == 1 else spec: spec for spec, task in found.items()}, skipped


def _agents(suite: Suite) -> tuple[list[Entry], dict[str, Contender], list[str]]:
    """Who takes part, and who is left out since a package is missing."""
    entries, contenders, skipped = [], {}, []
    for entry in suite.agents:
        if entry.needs and not _installed(entry.needs):
            skipped.append(f"Agent {entry.label} is left out: the package {entry.needs} is not installed.")
            continue
        try:
            given = entry.grid or entry.draws
            (contender,) = contenders_of([entry.agent], [entry.label]) if not given else (_tuned(entry),)
            if given or not contender.tuned:
                view_of(sample_of(entry))
            _check_draws(entry)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"agent {entry.label!r} can't be made: {error}") from error
        if contender.tuned and not given:  # not one of the suite's
            own = grid_of(contender.name)
            entry = replace(entry, grid={name: Axis(tuple(values)) for name, values in own.items()})
        entries.append(entry)
        contenders[entry.label] = contender
    return entries, contenders, skipped


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False


def _tuned(entry: Entry) -> Contender:
    spec = specs.parse(entry.agent)
    if spec.is_path:
        raise ValueError("a controller file takes no settings, so it has no grid")
    return Contender(entry.agent, spec.name, spec.settings, entry.label, tuned=True)


def _check_draws(entry: Entry) -> None:
    """Makes the agent with both ends of each range, so that what it doesn't take is told before anything runs.

    Raises:
        ValueError: it can't be made.
    """
    ends = {name: x.ends(100) for name, x in entry.draws.items()}
    first = {name: values[0] for name, values in ends.items()}
    for name, values in ends.items():
        for value in values:
            make_agent(entry.agent, **stand_ins(entry), **first | {name: value})


def _lines(contender: Contender, search: Search, records: Records) -> list[Line]:
    """The lines of one agent on one task: one, or one from each start."""
    entry, suite, task = search.entry, search.suite, search.task
    spent = runs_of(contender)
    line = partial(Line, entry.label, search.name)
    settings, seconds, inside = dict(contender.settings), 0.0, True
    try:
        if entry.grid:
            search, before, seconds = after_another(search, records) if entry.after else (search, 0, 0.0)
            tuned = grid_found(search, records)
            settings |= tuned["settings"]
            seconds, inside = seconds + tuned["seconds"], tuned["inside"]
            spent = replace(spent, tuning=before + tuned["runs"])
        own, task = search.parted(settings)
        agent = contender.make(search.given | own)
        relative = is_relative(view_of(agent).control)
    except OSError:
        raise
    except Exception as error:
        return [line(None, settings, spent, failure=failure_line(error))]
    lines = []
    for start in suite.initial_rates if relative else (None,):
        made = partial(line, start, settings, spent, seconds, inside)
        key = {"task": search.name, "agent": entry.label, "start": start} | version_of(agent)
        try:
            result = search.once(key, partial(_reported, agent, task, entry.label, suite.seeds, start, search.device))
        except OSError:
            raise
        except Exception as error:
            lines.append(made(failure=failure_line(error)))
        else:
            lines.append(made(result))
    return lines


def _reported(agent: Any, task: Task, label: str, seeds: int, start: float | None, device: str | None) -> Result:
    result = evaluate(agent, task, seeds_for("report", seeds), initial_lr=start, name=label, device=device)
    return replace(result, curves={})


def json_of(line: Line) -> dict[str, Any]:
    """A line as JSON values, without what outcomes share."""
    shared: dict[str, Any] = {
        "agent": line.agent, "task": line.task, "start": line.start, "settings": line.settings, "inside": line.inside,
        "cost": {"runs": asdict(line.runs), "tuning_seconds": line.seconds},
    }  # fmt: skip
    if line.result is None:
        return shared | {"failure": line.failure}
    shared["cost"]["seconds"] = line.result.seconds
    numbers = {name: values.tolist() for name, values in line.result.numbers().items()}
    return shared | {"seeds": line.result.seeds.tolist(), **numbers, "diverged": line.result.diverged.tolist()}
