"""Comparing agents on one task: tuned on some seeds, reported on others, the same runs' randomness for everyone.

A comparison is a run of cells, each a batch of runs: of a tuning, or of an agent from one start on a group of seeds.
Given a folder it keeps them there as they end (`lrenv.benchmark.cells`), and the same comparison goes on from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, is_dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lrenv import specs
from lrenv.benchmark.cells import Cells
from lrenv.benchmark.contenders import Contender, baseline_of, contenders_of, digests, version_of
from lrenv.benchmark.evaluation import evaluate, joined
from lrenv.benchmark.rows import FILES, Comparison, Row, Runs
from lrenv.benchmark.statistics import paired, welch
from lrenv.benchmark.tuning import AT_ONCE, TUNING_SEEDS, Once, afresh, grid_of, tune
from lrenv.controllers.agent import Agent, AgentError, agent_factory, view_of
from lrenv.controllers.controller_file import read_metadata
from lrenv.envs.actions import is_relative
from lrenv.envs.own import observation_name
from lrenv.envs.snapshots import contents_of, described
from lrenv.lookup import count, error_line
from lrenv.randomness.seeds import seeds_for
from lrenv.runtime.memory import choose_device
from lrenv.runtime.process import command_line, machine
from lrenv.runtime.progress import progress
from lrenv.training.tasks import InitialLR, LogUniform, Task, initial_rates, make_task

GROUP = 64
"""Seeds of a cell. It is fixed, since a batch's size moves the last bits of its results: a comparison that was
interrupted has the same ones. Larger batches run faster, and lose more when they are cut off."""


def compare(
    task: Task | str,
    agents: str | Sequence[str | Path | Agent] | Mapping[str, str | Path | Agent],
    seeds: int = 10,
    *,
    baseline: str | None = None,
    initial_lrs: Sequence[float] = (),
    tuning_seeds: Sequence[int] = TUNING_SEEDS,
    observations: Sequence[str] = (),
    device: str | None = None,
    out: Path | str | None = None,
    overwrite: bool = False,
) -> Comparison:
    """Runs each agent on the seeds for reports and holds them against a baseline.

    An agent that fails has a row that says why, and the others go on.

    Args:
        task: a task, or the spec of one.
        agents: specs (`lrenv.specs`), or a text with several: names, `name:setting=value:...`, `my_agents.py:Name`, or
            controller files; or agents themselves, Stable-Baselines3's models included. With labels they are a mapping
            label -> agent. A bare name whose factory has a grid is tuned.
        seeds: how many runs each agent makes, on as many of the seeds for reports (`lrenv.randomness.seeds`).
        baseline: one of `agents`, or its label; `step` if it is among them, else the first.
        initial_lrs: agents that scale the rate get a row from each of these; from each of the task's if it is empty.
            Where the task draws them from a range, so does the row.
        tuning_seeds: the seeds that grids are searched on, none of them for reports.
        observations: specs of observations of one's own that controller files need, `my_file.py:name`.
        device: where the trainees live.
        out: the folder that keeps what is finished; called again with the same settings, the comparison goes on from
            there. Nothing is kept if it is None. Of one's own files that specs name, a change is noticed, but not of
            what they import; and so is one of data that come from files, and of the data and the network that one's own
            task makes. Runs of agents that are given as objects are not kept, since nothing tells in another process
            that an object is the same: they run again.
        overwrite: discard a comparison that `out` holds.

    Raises:
        FileExistsError: `out` holds a comparison with other settings.
        OSError: data aren't there, or `out` can't be written.
        ValueError: an agent or the task is unknown, settings are unfit, there are fewer seeds for reports, or the
            baseline doesn't take part.
        KeyboardInterrupt: the comparison was interrupted; the message says what is kept.
    """
    if out is not None and not str(out).strip():
        raise ValueError("out is empty, which would be the current folder; name a folder, or None to keep nothing")
    own = {spec: specs.parse(spec).own for spec in observations}
    own |= {"task": specs.parse(task).own} if isinstance(task, str) else {}
    for spec in observations:
        observation_name(spec)
    task = make_task(task)
    reported = seeds_for("report", count("seeds", seeds))
    if both := sorted(set(reported) & set(tuning_seeds)):
        raise ValueError(f"tuning_seeds and the seeds of the report share {both[0]}: tune on others, as by default")
    labels = dict(agents) if isinstance(agents, Mapping) else {}
    listed = specs.split(agents) if isinstance(agents, str) else list(labels.values() if labels else agents)
    contenders = contenders_of(listed, tuple(labels))  # every error before any work
    names = [contender.spec for contender in contenders]
    baseline = baseline_of(contenders, baseline)
    starts = _starts(initial_rates(tuple(initial_lrs)) if initial_lrs else task.initial_lr)
    where = choose_device(device)
    task.load()
    about = {"command": command_line(), "machine": machine()}
    settings = {
        "task": described_setting(task), "agents": names, "baseline": baseline,
        "labels": {c.spec: label for c, label in zip(contenders, labels, strict=False)},
        "files": digests(contenders, own),
        "seeds": seeds, "initial_lr": described_setting(starts), "tuning_seeds": list(tuning_seeds),
        "device": str(where),
        "group": GROUP, "at_once": AT_ONCE, "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("lrenv", "torch", "numpy")},
    }  # fmt: skip
    kept = None
    if out is not None:
        if contents := contents_of(task):
            settings["contents"] = contents
        folder = Path(out)
        kept = Cells(folder / "cells.jsonl", settings, about, [folder / name for name in FILES], overwrite)
        about = kept.about
    rows: list[Row] = []
    with nullcontext() if kept is None else kept:
        once = afresh if kept is None else kept.once
        try:
            with progress(len(contenders), "agents") as report:
                for number, contender in enumerate(contenders):
                    report(number, contender.spec)
                    keeping = once if contender.given is None else afresh
                    rows += _rows(contender, task, reported, starts, tuning_seeds, device, keeping)
                    report(number + 1, contender.spec)
        except KeyboardInterrupt:
            if kept is None:
                raise
            raise KeyboardInterrupt(kept.told) from None
    reference = next(row for row in rows if row.spec == baseline)
    return Comparison(task, seeds, reference.label, [_tested(row, reference) for row in rows], about)


def _starts(initial_lr: InitialLR) -> list[tuple[str, InitialLR]]:
    """What agents that scale the rate start from, each with its name in tables."""

    def shown(rate: float) -> str:
        return f"{rate:g}" if float(f"{rate:g}") == rate else repr(rate)

    if isinstance(initial_lr, LogUniform):
        return [(f"from {shown(initial_lr.low)} to {shown(initial_lr.high)}", initial_lr)]
    return [(f"from {shown(rate)}", rate) for rate in dict.fromkeys(initial_rates(initial_lr))]


def _rows(
    contender: Contender,
    task: Task,
    seeds: list[int],
    starts: list[tuple[str, InitialLR]],
    tuning_seeds: Sequence[int],
    device: str | None,
    once: Once,
) -> list[Row]:
    """The rows of one agent: one, or one from each start."""
    runs, settings, label = runs_of(contender), contender.settings, contender.label
    failed = partial(Row, contender.spec, label, _text(settings), runs, None)
    try:
        if contender.tuned:
            version = version_of(contender.make({key: values[0] for key, values in grid_of(contender.name).items()}))
            tuned = tune(
                contender.name, task, tuning_seeds, AT_ONCE, device, lambda key, run: once(key | version, run)
            )  # fmt: skip
            settings = tuned.settings
            runs = replace(runs, tuning=len(tuned.combinations) * len(tuning_seeds))
        agent = contender.make(settings)
        view = view_of(agent)
        relative = is_relative(view.control)
    except OSError:
        raise
    except Exception as error:
        return [failed(failure_line(error))]
    rows = []
    for start, initial_lr in starts if relative else [("", None)]:
        name = f"{label} {start}".rstrip()
        row = partial(Row, contender.spec, name, _text(settings), runs, horizon=view.horizon)
        parts = []
        try:
            for group in (seeds[first : first + GROUP] for first in range(0, len(seeds), GROUP)):
                run = partial(evaluate, agent, task, group, initial_lr=initial_lr, name=name, device=device)
                key = {"agent": contender.spec, "start": start, "first_seed": group[0]}
                parts.append(once(key | version_of(agent), run))
        except OSError:
            raise
        except Exception as error:
            rows.append(row(result=None, failure=failure_line(error)))
        else:
            rows.append(row(result=joined(parts)))
    return rows


def failure_line(error: Exception) -> str:
    """Why an agent failed, in a line."""
    return " ".join(str(error).split()) if isinstance(error, AgentError) else error_line(error)


def _tested(row: Row, reference: Row) -> Row:
    """The row with its p-values."""
    if row is reference or row.result is None or reference.result is None:
        return row
    ours, theirs = row.result.test_loss, reference.result.test_loss
    return replace(row, paired=paired(ours, theirs), welch=welch(ours, theirs))


def runs_of(contender: Contender) -> Runs:
    """What an agent's learning took, as its file says, or where there is none, its factory's `learning_runs`."""
    if contender.file is None:
        spent = {} if contender.given is not None else getattr(agent_factory(contender.name), "learning_runs", {})
        return Runs(0, spent.get("training", 0), spent.get("selection", 0))
    metadata = read_metadata(contender.file)
    spent = metadata.get("runs")
    if isinstance(spent, dict):
        return Runs(0, spent.get("training", 0), spent.get("selection"))
    return Runs(0, metadata.get("episodes", 0), None)


def _text(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key}={f'{value:g}' if isinstance(value, float) else value}" for key, value in settings.items())


def described_setting(value: Any) -> Any:
    """A setting as JSON values that are the same in every process; functions and tensors as for snapshots."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, dict):
        return {str(key): described_setting(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [described_setting(x) for x in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: described_setting(getattr(value, f.name)) for f in fields(value)}
    return described(value)
