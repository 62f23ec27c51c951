"""Finding the settings of an agent for a task: a grid that is extended until its best is inside, and random draws.

Both choose by the validation loss at the end of runs on the seeds for tuning, and what was found is a record that a
file can keep (`Records`), so that the next run of a suite needs no search.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from lrenv import sources
from lrenv.benchmark.comparison import described_setting
from lrenv.benchmark.evaluation import ARRAYS, Result, evaluate, joined
from lrenv.benchmark.suite import Entry, Suite
from lrenv.benchmark.tuning import AT_ONCE, Once, extended
from lrenv.controllers.agent import AgentError, agent_factory, make_agent, view_of
from lrenv.randomness.seeds import seeds_for
from lrenv.runtime.files import json_lines
from lrenv.runtime.json_values import json_value
from lrenv.specs import parse
from lrenv.training.optimizers import make_optimizer
from lrenv.training.tasks import Task

Settings = dict[str, Any]
Record = dict[str, Any]
DECAY = "weight_decay"


@dataclass
class Records:
    """What searches found, by what they depended on.

    Attributes:
        known: key -> record, as a file held them.
        used: those that were asked for, and those that were made.
    """

    known: dict[str, Record]
    used: dict[str, Record]

    @classmethod
    def read(cls, path: Path) -> Records:
        """Those of a file; none if there is no file.

        Raises:
            ValueError: the file is damaged, or something else.
        """
        found = json_lines(path, keep=True)
        if any(not isinstance(record.get("key"), str) for record in found):
            raise ValueError(f"{path} holds no records of searches; delete it, or choose another")
        return cls({record["key"]: record for record in found}, {})

    def once(self, about: Record, make: Callable[[], Record]) -> Record:
        """The record of a search about which this is known: an old one, or what `make` gives."""
        described = json.dumps(json_value(about), sort_keys=True, default=repr)
        key = hashlib.sha256(described.encode()).hexdigest()[:16]
        if key not in self.used:
            found = self.known.get(key)
            if found is None:
                told = {"key": key} | {name: about[name] for name in ("search", "task", "agent")}
                # What JSON makes of it, so that a record is the same when it comes from a file.
                found = json.loads(json.dumps(told | json_value(make(), exact=True)))
            self.used[key] = found
        return self.used[key]

    def text(self) -> str:
        """The lines of a file."""
        return "".join(f"{json.dumps(record, allow_nan=False)}\n" for record in self.used.values())


@dataclass(frozen=True)
class Search:
    """An agent to be tuned on a task.

    Attributes:
        entry: the agent.
        task: the task.
        name: how the suite calls the task.
        spec: that of the task; of a task in one's own file, with a digest of the file, and where data or the network
            may change, with their checksums.
        suite: seeds and weight decays.
        device: where the trainees live.
        once: runs a batch, or knows its result.
        given: settings that no grid holds, of a run of another agent (`after_another`).
    """

    entry: Entry
    task: Task
    name: str
    spec: str
    suite: Suite
    device: str | None
    once: Once
    given: Settings = field(default_factory=dict)

    def about(self, kind: str, tried: Any) -> Record:
        """What the outcome depends on, as far as settings tell it: code counts by the version of the package alone.

        So a file of records that is committed holds on other machines and for other versions of Python.
        """
        plain = (str, int, float, type(None))
        task = {
            f.name: value for f in fields(self.task)
            if isinstance(value := getattr(self.task, f.name), plain) and f.name != "summary"
        }  # fmt: skip
        about = {
            "search": kind, "task": self.name, "agent": self.entry.label, "spec": self.entry.agent, "tried": tried,
            "task_spec": self.spec, "settings": task, "seeds": self.suite.tuning_seeds, "weight_decay": self.decays(),
            "version": version("lrenv"),
        }  # fmt: skip
        other = self.first().entry if self.entry.after else None
        entries = [self.entry] if other is None else [self.entry, other]
        if files := [sources.own_path(own) for entry in entries if (own := parse(entry.agent).own) is not None]:
            about["files"] = [sources.digest(path) for path in files]
        if other is not None:
            about["after"] = [other.label, other.agent, {name: axis.of(100) for name, axis in other.grid.items()}]
        return about

    def first(self) -> Search:
        """That of the agent which this one comes after."""
        return replace(self, entry=next(entry for entry in self.suite.agents if entry.label == self.entry.after))

    def decays(self) -> list[float | None]:
        """The weight decays to try; None, which is the task's own, unless the optimizer decouples it.

        An agent that is given one of its own, by its spec, grid or draws, is not tried with others.
        """
        if DECAY in {**parse(self.entry.agent).settings, **self.entry.grid, **self.entry.draws}:
            return [None]
        own = view_of(sample_of(self.entry, self.task.budget)).optimizer
        wraps = isinstance(own, str) and own.startswith("+")  # such as "+ema", around the task's own
        optimizer = self.task.optimizer if own is None or wraps else own
        tried = bool(self.suite.weight_decay) and not callable(optimizer) and make_optimizer(optimizer).decoupled
        return list(self.suite.weight_decay) if tried else [None]

    def takes(self, name: str, value: Any) -> bool:
        """Whether the agent can be made with this value of one hyperparameter, and the first ones of the others."""
        first = {key: axis.of(self.task.budget)[0] for key, axis in self.entry.grid.items()}
        try:
            make_agent(self.entry.agent, **stand_ins(self.entry), **first | {name: value})
        except Exception:  # whatever it says of a value that is too high
            return False
        return True

    def parted(self, settings: Settings) -> tuple[Settings, Task]:
        """The agent's settings of those that were found, and the task with the weight decay that may be among them."""
        if self.decays() == [None]:
            return settings, self.task
        own = {name: value for name, value in settings.items() if name != DECAY}
        decay = settings.get(DECAY)
        return own, self.task if decay is None else replace(self.task, weight_decay=decay)

    def run(self, combinations: list[Settings], seeds: list[int], key: Record) -> Iterator[Result]:
        """Runs each combination on all seeds, batches of `AT_ONCE` at most; a result per combination, in order."""
        spec = parse(self.entry.agent)
        factory = agent_factory(spec.name)
        tried = self.decays() != [None]
        of = [combination.get(DECAY) if tried else None for combination in combinations]
        parted = [self.parted(combination) for combination in combinations]
        found: dict[int, Result] = {}
        for decay in dict.fromkeys(of):
            places = [i for i, each in enumerate(of) if each == decay]
            pairs = [(i, seed) for i in places for seed in seeds]
            task = parted[places[0]][1]

            def batch(part: list[tuple[int, int]], task: Task = task) -> Result:
                names = parted[part[0][0]][0]
                values = {name: np.array([parted[i][0][name] for i, _ in part]) for name in names}
                agent = factory(**self.given | spec.settings | values)  # what the suite says counts more
                run = evaluate(agent, task, [s for _, s in part], name=self.entry.label, device=self.device)
                return replace(run, curves={})  # nothing is chosen by them

            parts = [pairs[first : first + AT_ONCE] for first in range(0, len(pairs), AT_ONCE)]
            whole = key | {"task": self.name, "agent": self.entry.label, DECAY: decay}
            runs = [
                self.once(whole | {"part": number}, lambda part=part: batch(part))  # type: ignore[misc]
                for number, part in enumerate(parts)
            ]
            together = joined(runs)
            for order, i in enumerate(places):
                found[i] = _rows(together, slice(order * len(seeds), (order + 1) * len(seeds)), len(pairs))
        for i in range(len(combinations)):
            yield found[i]


def sample_of(entry: Entry, budget: int = 100) -> Any:
    """The agent with the first value of whatever is tuned, or else of what is drawn, on a task with this budget."""
    first = {name: axis.of(budget)[0] for name, axis in entry.grid.items()}
    drawn = {name: x.ends(budget)[0] for name, x in entry.draws.items()}
    return make_agent(entry.agent, **stand_ins(entry), **(first or drawn))


def stand_ins(entry: Entry) -> Settings:
    """Settings of an agent that comes after another, where it is only looked at; the settings proper differ by task.

    Raises:
        ValueError: the agent takes no settings from the runs of another, or has those in its grid, too.
    """
    if not entry.after:
        return {}
    factory = agent_factory(parse(entry.agent).name)
    if not hasattr(factory, "after"):
        raise ValueError(f"agents.{entry.label}.after: {entry.agent} takes no settings from another agent's runs")
    sample = dict(factory.sample)  # type: ignore[attr-defined]
    if own := sample.keys() & {*entry.grid, *entry.draws}:
        raise ValueError(
            f"agents.{entry.label}.after: a run of {entry.after} gives {', '.join(sorted(own))}: leave it out of grid "
            "and draws"
        )
    return sample


def _rows(result: Result, rows: slice, of: int) -> Result:
    """Some of the runs, with their share of the seconds."""
    arrays: dict[str, Any] = {name: getattr(result, name)[rows] for name in ARRAYS}
    return replace(result, **arrays, seconds=result.seconds * len(arrays["seeds"]) / of)


def grid_search(search: Search) -> Record:
    """The combination of a grid with the lowest validation loss at the end, the mean over the seeds for tuning.

    Where the best value of a geometric axis is the lowest or the highest, two more values are tried on that side, with
    all of the other axes; where every run diverged, on the lower side.

    Returns:
        `settings`, its `val_loss`, the number of `runs`, their `seconds`, and whether the best is `inside` of all
        geometric axes.

    Raises:
        AgentError: runs diverge with every combination.
    """
    entry, budget = search.entry, search.task.budget
    axes: dict[str, list[Any]] = {name: axis.of(budget) for name, axis in entry.grid.items()}
    decays = search.decays()
    if decays != [None]:
        axes[DECAY] = decays
    seeds = seeds_for("tuning", search.suite.tuning_seeds)
    losses: dict[tuple[Any, ...], float] = {}
    seconds, before = 0.0, axes
    for number in itertools.count():
        new = [values for values in itertools.product(*axes.values()) if values not in losses]
        combinations = [dict(zip(axes, values, strict=True)) for values in new]
        try:
            results = list(search.run(combinations, seeds, {"grid": number}))
        except Exception as error:
            if not number or isinstance(error, OSError):
                raise
            axes = before
            break  # an agent that fails beyond its grid has the best of it
        for values, result in zip(new, results, strict=True):
            losses[values] = float(result.final_val_loss.mean())
            seconds += result.seconds
        losses = {key: math.inf if math.isnan(loss) else loss for key, loss in losses.items()}
        best = min(losses, key=losses.__getitem__)
        grown = _grown(axes, dict(zip(axes, best, strict=True)), math.isinf(losses[best]), search)
        if grown == axes:
            break
        before, axes = axes, grown
    if math.isinf(losses[best]):
        raise AgentError(
            f"agent {entry.label!r} on task {search.name!r}: runs diverge with all {len(losses)} settings of its grid "
            f"({', '.join(axes)})"
        )
    chosen = dict(zip(axes, best, strict=True))
    inside = all(
        min(axes[name]) < chosen[name] < max(axes[name]) for name, axis in entry.grid.items() if axis.factor is not None
    )
    runs = len(losses) * len(seeds)
    return {"settings": chosen, "val_loss": losses[best], "runs": runs, "seconds": seconds, "inside": inside}


def after_another(search: Search, records: Records) -> tuple[Search, int, float]:
    """A search with the settings that come from one run of another agent, as tuned; the runs and seconds it took.

    Raises:
        AgentError: runs of the other agent diverge with every combination.
        ValueError: its run diverged, or it is no agent that this one can come after.
    """
    other = search.first()
    tuned = grid_found(other, records)
    settings, task = other.parted(tuned["settings"])

    def given() -> Record:
        factory = agent_factory(parse(search.entry.agent).name)
        begin = time.monotonic()
        found = factory.after(make_agent(other.entry.agent, **settings), task, search.device)  # type: ignore[attr-defined]
        return {"given": found, "seconds": time.monotonic() - begin}

    found = records.once(search.about("after", tuned["settings"]), given)
    return replace(search, given=found["given"]), tuned["runs"] + 1, tuned["seconds"] + found["seconds"]


def grid_found(search: Search, records: Records) -> Record:
    """What the search over the agent's grid finds, or found."""
    return records.once(search.about("grid", described_setting(search.entry.grid)), partial(grid_search, search))


def pool_found(search: Search, records: Records) -> Record:
    """What random draws of the agent are worth, or were."""
    suite = search.suite
    drawn = [described_setting(search.entry.draws), suite.pool, suite.draw_seeds or suite.seeds]
    whole = after_another(search, records)[0] if search.entry.after else search
    return records.once(search.about("pool", drawn), partial(pool, whole))


def _grown(axes: Mapping[str, list[Any]], best: Settings, dead: bool, search: Search) -> dict[str, list[Any]]:
    """The axes, with more values where the best one is at an end of a geometric axis and the agent takes others."""
    return dict(axes) | {
        name: extended(axes[name], axis.factor, None if dead else best[name], partial(search.takes, name))
        for name, axis in search.entry.grid.items()
        if axis.factor is not None
    }


def pool(search: Search) -> Record:
    """Random draws of the settings, each run on the seeds for tuning, to be chosen by, and on those for reports.

    Returns:
        `settings`, a dict per draw; `val_loss`, the mean at the end of the runs that choose; `test_loss`, a list per
        draw of those at the end of the runs that are reported; and the `seconds`.
    """
    entry, suite = search.entry, search.suite
    seed = hashlib.sha256(f"{search.name}|{entry.label}".encode()).digest()
    random = np.random.default_rng(list(seed))
    drawn = {name: x.draw(random, suite.pool, search.task.budget).tolist() for name, x in entry.draws.items()}
    decays = search.decays()
    if decays != [None]:
        drawn[DECAY] = [decays[i] for i in random.integers(len(decays), size=suite.pool)]
    combinations = [dict(zip(drawn, values, strict=True)) for values in zip(*drawn.values(), strict=True)]
    choosing, reported = seeds_for("tuning", suite.tuning_seeds), seeds_for("report", suite.draw_seeds or suite.seeds)
    found = list(search.run(combinations, choosing + reported, {"pool": suite.pool}))
    return {
        "settings": combinations,
        "val_loss": [float(result.final_val_loss[: len(choosing)].mean()) for result in found],
        "test_loss": [result.final_test_loss[len(choosing) :].tolist() for result in found],
        "seconds": sum(result.seconds for result in found),
    }
