"""Suites: which agents run on which tasks, and the grids and ranges that they are tuned over, read from TOML.

    seeds = 3                                  # runs that are reported of each agent on each task
    tuning_seeds = 2                           # runs of each combination of a grid, on other seeds
    reference = "linear"                       # the agent that losses are relative to
    initial_rates = [1e-4, 1e-3, 1e-2]         # where agents that scale the rate start
    weight_decay = [0.0, 0.01]                 # in every grid without one, where the optimizer decouples it
    cap = 10.0                                 # a run that diverged counts as so many times the reference's loss
    pool = 30                                  # random draws per agent with `draws` and task, for `budgets`
    draw_seeds = 3                             # runs that are reported of each draw; by default as many as `seeds`
    budgets = [1, 3, 10, 30]                   # numbers of tuning runs whose expected best is shown
    tasks = ["digits-mlp:budget=100", "co2-mlp"]

    [axes]                                     # values of a grid, by name
    peak = { low = 1e-3, high = 0.1, factor = 2.0 }
    warmup = { of_budget = [0.0, 0.05] }

    [ranges]                                   # what random draws are taken from, by name
    peak = { log = [1e-5, 1.0] }

    [agents.linear]
    grid = { peak = "peak", warmup = "warmup" }
    draws = { peak = "peak" }

    [agents.untuned]
    agent = "constant:peak=0.001"              # a spec; that of an agent called as the table if it is left out
    needs = "some_package"                     # skipped where this module is not installed

    [agents.refined]
    after = "linear"                           # one run of that agent, tuned, gives the settings that no grid holds
    grid = { peak = "peak" }

An axis is a list of values, `{ of_budget = [...] }` in fractions of the task's budget, `{ low, high, factor }`, a
geometric grid that is extended until the best value is inside, or the name of one in `[axes]`. A range is a list to
choose from, `{ log = [low, high] }`, `{ uniform = [low, high] }`, `{ of_budget = [low, high] }`, or a name in
`[ranges]`. An agent with `draws` and no `grid` shows what random draws of it are worth, and is in no other table.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrenv.lookup import lookup, what_is
from lrenv.randomness.seeds import seeds_for

FOLDER = Path(__file__).parent / "suites"
"""The suites that come with the package."""
NUMBER = int | float


@dataclass(frozen=True)
class Axis:
    """The values of one hyperparameter in a grid.

    Attributes:
        values: in the order in which they are tried.
        of_budget: whether they are fractions of the task's budget, and the hyperparameter is a whole number of steps.
        factor: of a geometric grid that may be extended on either side; None of a fixed one.
    """

    values: tuple[Any, ...]
    of_budget: bool = False
    factor: float | None = None

    def of(self, budget: int) -> list[Any]:
        """The values for a task with this budget, each once."""
        return list(dict.fromkeys(round(x * budget) for x in self.values)) if self.of_budget else list(self.values)


@dataclass(frozen=True)
class Range:
    """What random draws of one hyperparameter are taken from.

    Attributes:
        kind: "choice", "log", "uniform" or "of_budget".
        values: to choose from, or the lowest and the highest.
    """

    kind: str
    values: tuple[Any, ...]

    def ends(self, budget: int) -> list[Any]:
        """All that there is to choose from, or the lowest and the highest value, for a task with this budget."""
        return [round(x * budget) for x in self.values] if self.kind == "of_budget" else list(self.values)

    def draw(self, random: np.random.Generator, number: int, budget: int) -> NDArray[Any]:
        """(number,) independent draws for a task with this budget."""
        if self.kind == "choice":
            return np.array(self.values)[random.integers(len(self.values), size=number)]
        low, high = self.values
        if self.kind == "log":
            return np.exp(random.uniform(math.log(low), math.log(high), number))
        drawn = random.uniform(low, high, number)
        return np.rint(drawn * budget).astype(np.int64) if self.kind == "of_budget" else drawn


@dataclass(frozen=True)
class Entry:
    """An agent of a suite.

    Attributes:
        label: what it is called in tables.
        agent: its spec.
        grid: hyperparameter -> the values whose product is searched; empty of an agent that isn't tuned, or, where its
            spec is a bare name, over the grid that it comes with.
        draws: hyperparameter -> what its random draws are taken from; empty of an agent without.
        needs: a module without which the agent is left out.
        after: the label of an agent; the `after` that this one's factory carries makes settings of one run of it.
    """

    label: str
    agent: str
    grid: Mapping[str, Axis]
    draws: Mapping[str, Range]
    needs: str = ""
    after: str = ""

    @property
    def only_drawn(self) -> bool:
        """Whether it shows what random draws are worth, and nothing else."""
        return bool(self.draws) and not self.grid


@dataclass(frozen=True)
class Suite:
    """What a benchmark runs; the module's text explains the fields."""

    name: str
    tasks: tuple[str, ...]
    agents: tuple[Entry, ...]
    seeds: int = 3
    tuning_seeds: int = 2
    reference: str = "linear"
    initial_rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    weight_decay: tuple[float, ...] = ()
    cap: float = 10.0
    pool: int = 0
    draw_seeds: int = 0
    budgets: tuple[int, ...] = (1, 3, 10, 30, 100)


def suites() -> list[str]:
    """The names of the suites that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def path_of(suite: str | Path) -> Path:
    """The file of a suite.

    Args:
        suite: a name in `suites()`, or the path of a TOML file.

    Raises:
        ValueError: there is no such suite; the message lists the near names.
        FileNotFoundError: there is no such file.
    """
    path = Path(suite)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}; a suite is one of {', '.join(suites())}, or a TOML file")
        return path
    return lookup({name: FOLDER / f"{name}.toml" for name in suites()}, str(suite), "suite")


def read_suite(suite: str | Path) -> Suite:
    """The suite of that name, or in that file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no TOML, has an unknown key, and the message gives the near ones, or a value that can't be
            meant.
    """
    path = path_of(suite)
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    try:
        return _suite(path.stem, found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def entry_of(label: str, given: Mapping[str, Any], shared: Mapping[str, Any] | None = None) -> Entry:
    """An agent of a suite from its table; `shared` has `axes` and `ranges` by name.

    Raises:
        ValueError: an unknown key, or a value that can't be meant.
    """
    shared = {"axes": {}, "ranges": {}} if shared is None else shared
    where = f"agents.{label}"
    _known(where, given, ("agent", "grid", "draws", "needs", "after"))
    grid, draws = (_typed(given.get(name, {}), dict, f"{where}.{name}") for name in ("grid", "draws"))
    return Entry(
        label,
        _typed(given.get("agent", label), str, f"{where}.agent"),
        {name: _named(x, shared["axes"], "axis", _axis, f"{where}.grid.{name}") for name, x in grid.items()},
        {name: _named(x, shared["ranges"], "range", _range, f"{where}.draws.{name}") for name, x in draws.items()},
        *(_typed(given.get(name, ""), str, f"{where}.{name}") for name in ("needs", "after")),
    )


def chosen(suite: Suite, agents: Sequence[str] = (), tasks: Sequence[str] = (), seeds: int | None = None) -> Suite:
    """A suite with these agents, tasks and number of seeds in the place of its own.

    Args:
        suite: what to change.
        agents: labels of its entries, or specs of other agents, of which a bare name with a grid of its own is tuned
            over that; all of the suite's own if empty. The reference takes part in any case, and so does what one of
            them comes `after`.
        tasks: specs; its own if empty.
        seeds: None leaves them.

    Raises:
        ValueError: no seeds, or what can't be meant.
    """
    known = {entry.label: entry for entry in suite.agents}
    if agents:
        wanted = [*agents, suite.reference]
        before = [known[name].after for name in wanted if name in known and known[name].after]
        named = dict.fromkeys([*agents, *before, suite.reference])
        suite = replace(suite, agents=tuple(known.get(name) or entry_of(name, {}) for name in named))
    if seeds is not None:
        suite = replace(suite, seeds=seeds, draw_seeds=min(suite.draw_seeds, seeds))
    suite = replace(suite, tasks=tuple(tasks) or suite.tasks)
    _check(suite)
    return suite


def _suite(name: str, found: dict[str, Any]) -> Suite:
    plain = {f.name: f.default for f in fields(Suite) if f.name not in ("name", "tasks", "agents")}
    _known("the suite", found, (*plain, "tasks", "agents", "axes", "ranges"))
    makers: dict[str, Any] = {"axes": _axis, "ranges": _range}
    shared = {
        kind: {key: make(x, f"{kind}.{key}") for key, x in _typed(found.get(kind, {}), dict, kind).items()}
        for kind, make in makers.items()
    }
    tasks = tuple(_typed(task, str, "tasks") for task in _typed(found.get("tasks", []), list, "tasks"))
    tables = _typed(found.get("agents", {}), dict, "agents")
    agents = tuple(entry_of(label, _typed(x, dict, f"agents.{label}"), shared) for label, x in tables.items())
    settings: dict[str, Any] = {}
    for key, default in plain.items():
        if key in found and isinstance(default, tuple):
            kind = int if key == "budgets" else NUMBER
            settings[key] = tuple(_typed(x, kind, key) for x in _typed(found[key], list, key))
        elif key in found:
            settings[key] = _typed(found[key], NUMBER if isinstance(default, float) else type(default), key)
    suite = Suite(name, tasks, agents, **settings)
    _check(suite)
    return suite


def _check(suite: Suite) -> None:
    """Refuses what can't be meant."""
    if not suite.tasks or not suite.agents:
        raise ValueError("a suite needs tasks = [...], and a table [agents.name] per agent")
    labels = {entry.label: entry for entry in suite.agents}
    lookup(labels, suite.reference, "reference among the agents")
    for entry in suite.agents:
        if entry.only_drawn and not suite.pool:
            raise ValueError(
                f"agents.{entry.label} has draws and no grid, and the suite makes none: set pool, or a grid"
            )
        if entry.only_drawn and entry.label == suite.reference:
            raise ValueError(f"the reference, {entry.label}, must be run, not only drawn: give it a grid")
        if entry.after:
            other = lookup(labels, entry.after, f"agent in agents.{entry.label}.after")
            if not entry.grid or not other.grid or other.after:
                raise ValueError(
                    f"agents.{entry.label}.after: it needs a grid, and an agent with a grid and no `after`"
                )
    if not suite.initial_rates:
        raise ValueError("initial_rates is empty: agents that scale the rate need one to begin with")
    for key, least in (("seeds", 1), ("tuning_seeds", 1), ("pool", 0), ("draw_seeds", 0)):
        if getattr(suite, key) < least:
            raise ValueError(f"{key} must be {least} or more, not {getattr(suite, key)}")
    seeds_for("report", suite.seeds)
    seeds_for("tuning", suite.tuning_seeds)
    if suite.draw_seeds > suite.seeds:
        raise ValueError(f"draw_seeds={suite.draw_seeds} are more than seeds={suite.seeds}: lower draw_seeds")
    if not suite.cap > 1:
        raise ValueError(f"cap must be above 1, not {suite.cap}: it is the loss of a run that diverged")
    if any(x <= 0 for x in (*suite.initial_rates, *suite.budgets)) or any(x < 0 for x in suite.weight_decay):
        raise ValueError("initial_rates and budgets must be positive, and weight_decay 0 or more")
    if suite.pool and not any(number <= suite.pool for number in suite.budgets):
        raise ValueError(f"no budget is within the pool of {suite.pool} draws: raise pool, or lower budgets")


def _named(given: Any, shared: Mapping[str, Any], kind: str, make: Any, where: str) -> Any:
    return lookup(shared, given, f"{kind} in {where}") if isinstance(given, str) else make(given, where)


def _axis(given: Any, where: str) -> Axis:
    if isinstance(given, list):
        return Axis(_some(given, where))
    table = _typed(given, dict, where)
    _known(where, table, ("of_budget", "low", "high", "factor"))
    if set(table) == {"of_budget"}:
        return Axis(_fractions(table["of_budget"], f"{where}.of_budget"), of_budget=True)
    if set(table) != {"low", "high", "factor"}:
        raise ValueError(f"{where} must be a list, {{ of_budget = [...] }}, or {{ low, high, factor }}")
    low, high, factor = (float(_typed(table[name], NUMBER, f"{where}.{name}")) for name in ("low", "high", "factor"))
    if not (0 < low <= high < math.inf and 1 < factor < math.inf):
        raise ValueError(f"{where} must have 0 < low <= high and factor above 1")
    steps = round(math.log(high / low) / math.log(factor))
    return Axis(tuple(low * factor**i for i in range(steps + 1)), factor=factor)


def _range(given: Any, where: str) -> Range:
    if isinstance(given, list):
        return Range("choice", _some(given, where))
    table = _typed(given, dict, where)
    _known(where, table, ("log", "uniform", "of_budget"))
    if len(table) != 1:
        raise ValueError(f"{where} must be a list, or one of {{ log }}, {{ uniform }}, {{ of_budget }} = [low, high]")
    ((kind, bounds),) = table.items()
    ends = tuple(float(_typed(x, NUMBER, where)) for x in _typed(bounds, list, where))
    if len(ends) != 2 or ends[0] > ends[1] or (kind == "log" and ends[0] <= 0):
        raise ValueError(f"{where} must be [low, high]{', both positive' * (kind == 'log')}")
    return Range(kind, ends if kind != "of_budget" else _fractions(list(ends), where))


def _fractions(given: Any, where: str) -> tuple[float, ...]:
    values = tuple(float(_typed(x, NUMBER, where)) for x in _some(given, where))
    if not all(0 <= x <= 1 for x in values):
        raise ValueError(f"{where} must be fractions of the budget, from 0 to 1")
    return values


def _some(given: Any, where: str) -> tuple[Any, ...]:
    values: list[Any] = _typed(given, list, where)
    if not values:
        raise ValueError(f"{where} is empty")
    return tuple(values)


def _known(where: str, given: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in given:
        lookup(dict.fromkeys(keys), key, f"key of {where}")


def _typed(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = {dict: "a table", list: "a list", str: "a text", int: "a whole number"}.get(kind, "a number")
        raise ValueError(f"{where} must be {wanted}, not {what_is(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} must be a finite number, not {value}")
    return value
