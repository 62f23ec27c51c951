"""The paper that lrenv is named for: Xu et al. 2019, "Learning an adaptive learning rate schedule" (arXiv:1909.09712).

    python reproductions/xu2019.py --scale cpu --out runs/xu2019

Rows are a data set (Fashion-MNIST, CIFAR-10) and a network (a CNN like LeNet, a ResNet of 18 layers), trained by Adam
in batches of 1,000 for 1,000 steps. On each, the best of 48 step decays (section 3.2; by validation loss, on one tuning
seed) and linear and cosine decay, each the best of 14, stand against controllers trained with PPO, with a perceptron or
an LSTM as actor (tables 1 and 2, figures 1 and 2). Two other LeNets can be asked for, to see how much is due to the
network, which the paper doesn't give. Controllers are trained in two settings, which are never mixed:

- `paper`: the paper's observation and reward (the validation loss of every decision), with few episodes an update.
- `ours`: observations on a log scale, the fall of the log loss as reward, no discount, 16 episodes an update. It was
  chosen on other tasks.

The paper leaves open PPO's discount (0.99 here), clipping (0.2), epochs (10) and minibatches (400 decisions), the range
of the scaling factor (1/2 to 2), which of its episodes' controllers is reported (here, the best on held-out seeds), and
from which of the three first rates (here, from each, in rows of their own; at `cpu` from 1e-3). For its networks see
`xu2019_tasks`.

Work is cut into pieces: a few runs, or a training, whose checkpoint is in `trainings` until it ends. Each is a line of
`runs.jsonl`. Data that are missing are told, and their rows skipped.

`--again` makes the reported runs of the lines once more, from the controllers' files, and says whether every number is
the same to the last digit, as it is on one machine.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import flow
from flow import LINES, Lines, Report, Reproduction, Result, command, cut, short, told
from lrenv.agents import Agent
from lrenv.agents.outer.folder import Folder
from lrenv.agents.ppo.agent import PPOController
from lrenv.agents.ppo.settings import PPOSettings
from lrenv.benchmark.evaluation import evaluate
from lrenv.benchmark.selection import selection_losses
from lrenv.controllers.agent import agent_factory
from lrenv.controllers.controller_file import read_metadata
from lrenv.randomness.seeds import seeds_for
from lrenv.runtime.json_values import to_json
from lrenv.runtime.memory import choose_device
from xu2019_cells import SCHEDULES, best
from xu2019_report import report
from xu2019_tasks import NETWORKS, SCALES, Scale, available, task_of
from xu2019_training import SETTINGS, Carried, Timed, digest, runs_spent


@dataclass(frozen=True)
class Piece:
    """Runs that are made together, or a training; all fields together are its name."""

    stage: Literal["tune", "train", "report"]
    data: str
    network: str
    method: str
    """A schedule, or the setting and the actor of a controller."""
    source: str
    """The data set that the method was tuned or trained on."""
    start: float = 0.0
    """The first rate of a controller; 0 for schedules, which choose it."""
    part: int = 0
    """Which of the batches that its runs are cut into."""


@dataclass(frozen=True, kw_only=True)
class Settings(flow.Settings):
    """What to run."""

    scale: Literal["smoke", "cpu", "gpu", "paper"] = "cpu"
    """How much: smoke for seconds, cpu for some 27 hours of a core, gpu for hours on an H100, paper for days on one."""
    out: Path = Path("runs/xu2019")
    """Where results go."""
    networks: tuple[str, ...] = field(default_factory=tuple)
    """Only these; other LeNets, cnn-caffe and cnn-tensorflow, are run only where they are named."""
    data: tuple[str, ...] = field(default_factory=tuple)
    """Only rows of these data sets."""
    sources: tuple[str, ...] = field(default_factory=tuple)
    """Only what was tuned or trained on these data sets; with --data, the rows of table 2 alone can be asked for."""
    methods: tuple[str, ...] = field(default_factory=tuple)
    """Only these: schedules, and controllers such as ours-mlp or paper-lstm."""
    episodes: int | None = None
    """Of each training, instead of the scale's; one that is interrupted can be ended sooner so."""
    beside: Path | None = None
    """Another folder of results, whose whole runs of schedules stand in the claims where this one has no whole ones."""
    again: bool = False
    """Make the reported runs once more and compare them with the lines."""
    device: str | None = None
    """Where trainees live; CUDA where there is any by default."""


ROOT = Path(__file__).resolve().parent.parent


def folder(out: Path, piece: Piece) -> Path:
    """Where a training has its files."""
    return out / "trainings" / f"{piece.source}-{piece.network}-{piece.method}"


def part_of(things: Sequence[Any], piece: Piece, scale: Scale) -> Sequence[Any]:
    """The piece's part of the things that it runs; what runs together doesn't depend on what is there already."""
    return list(cut(things, scale.like(piece.network, scale.at_once)))[piece.part]


def tuned(piece: Piece, scale: Scale, device: str | None) -> Result:
    """Runs of some of a schedule's combinations, all on one tuning seed."""
    combinations = part_of(scale.grid(piece.network, piece.method), piece, scale)
    arrays = {name: [combination[name] for combination in combinations] for name in combinations[0]}
    task = task_of(piece.data, piece.network, scale.like(piece.network, scale.reported))
    agent = agent_factory(piece.method)(**arrays)
    seeds = seeds_for("tuning", 1) * len(combinations)
    result = evaluate(agent, task, seeds, device=device, capture=True)
    losses = selection_losses(result.val_loss, result.diverged)
    return {
        "combinations": [combination | {"val_loss": short([loss])[0]}
                         for combination, loss in zip(combinations, losses, strict=True)],
        "seconds": round(result.seconds, 1),
    }  # fmt: skip


def agent_of(piece: Piece, scale: Scale, lines: Lines, out: Path) -> Agent | None:
    """Who controls the runs of a reported piece; None if it isn't tuned or trained yet.

    Raises:
        ValueError: the controller's file is not that of the training.
    """
    if piece.method in SCHEDULES:
        chosen = best(lines, piece.source, piece.network, piece.method)
        if chosen is None or any(wanted not in chosen.tried for wanted in scale.grid(piece.network, piece.method)):
            return None
        return agent_factory(piece.method)(**chosen.settings)
    found = lines.where(stage="train", data=piece.source, network=piece.network, method=piece.method)
    if not found:
        return None
    file = out / found[0]["file"]
    if digest(file) != found[0]["sha256"]:
        raise ValueError(f"{file} is not the controller that was trained here; bring it back, or begin another --out")
    return Carried(PPOController.load(file))


def reported(piece: Piece, agent: Agent, scale: Scale, device: str | None) -> Result:
    """Runs on the seeds that tables are about, with their curves."""
    seeds = list(part_of(seeds_for("report", scale.seeds), piece, scale))
    version = scale.like(piece.network, scale.reported)
    task = task_of(piece.data, piece.network, version)
    result = evaluate(agent, task, seeds, initial_lr=piece.start or None, device=device, capture=True)
    names = {"val_loss": "val_loss", "test_loss": "test_loss", "test_accuracy": "test_metric", "diverged": "diverged"}
    numbers = {name: getattr(result, own).tolist() for name, own in names.items()}
    curves = {name: [short(run) for run in result.curves[name].T] for name in ("val_loss", "lr")}
    return {"seeds": seeds, **numbers, "version": list(version), "curves": curves, "seconds": round(result.seconds, 1)}


def pieces(scale: Scale, data: Sequence[str | None], networks: Sequence[str]) -> Iterator[Piece]:
    """All pieces in the order of their worth: a network's rows, each with what it needs, and then what is carried.

    Args:
        scale: how much.
        data: what there is of Fashion-MNIST and CIFAR-10.
        networks: which.
    """
    target, source = data
    for network in networks:
        at_once = scale.like(network, scale.at_once)

        def parts(number: int, at_once: int = at_once) -> range:
            return range(-(-number // at_once))

        def report_pieces(row: str, method: str, source: str, network: str = network, parts: Any = parts) -> Any:
            starts = (0.0,) if method in SCHEDULES else scale.starts
            for start, part in itertools.product(starts, parts(scale.seeds)):
                yield Piece("report", row, network, method, source, start, part)

        methods = scale.run_on(network)
        for row, method in itertools.product((name for name in data if name), methods):
            if method in SCHEDULES:
                combinations = scale.grid(network, method)
                yield from (Piece("tune", row, network, method, row, part=p) for p in parts(len(combinations)))
            else:
                yield Piece("train", row, network, method, row)
            yield from report_pieces(row, method, row)
        if target and source:
            for method in methods:
                if method not in ("linear", "cosine"):
                    yield from report_pieces(target, method, source)


class Xu2019(Reproduction[Settings, Piece]):
    """Controllers against schedules.

    Raises:
        ValueError: an unknown network, data set or method, or a folder without results.
    """

    paper, title = "Xu et al. 2019", "Learning an adaptive learning rate schedule"
    name, scales = Piece, SCALES

    def __init__(self, settings: Settings) -> None:
        scale = SCALES[settings.scale]
        networks = settings.networks or scale.networks
        for name, given, known in (
            ("networks", settings.networks, tuple(name for name in NETWORKS if scale.like(name, scale.episodes))),
            ("methods", settings.methods, tuple(dict.fromkeys(sum(map(scale.run_on, networks), ())))),
            ("data", settings.data, sum(scale.data, ())),
            ("sources", settings.sources, sum(scale.data, ())),
        ):
            if unknown := set(given) - set(known):
                raise ValueError(f"--{name} {' '.join(sorted(unknown))}: this scale has {', '.join(known)}")
        if settings.beside is not None and not (settings.beside / LINES).exists():
            raise ValueError(f"--beside {settings.beside}: there is no {LINES}")
        super().__init__(settings)

    def runs(self) -> Iterator[list[Piece]]:
        """The pieces one by one."""
        asked = self.settings
        there = [available(names) for names in self.scale.data]
        for piece in pieces(self.scale, there, asked.networks or self.scale.networks):
            wanted = ((piece.data, asked.data), (piece.source, asked.sources), (piece.method, asked.methods))
            if all(not names or name in names for name, names in wanted):
                yield [piece]

    def compute(self, batch: Sequence[Piece]) -> list[Result] | None:
        """What a piece gives; None of a report on what is not tuned or trained yet."""
        (piece,) = batch
        if piece.stage == "tune":
            return [tuned(piece, self.scale, self.settings.device)]
        if piece.stage == "train":
            return [self.trained(piece)]
        agent = agent_of(piece, self.scale, self.lines, self.out)
        return None if agent is None else [reported(piece, agent, self.scale, self.settings.device)]

    def report(self) -> Report:
        """Contests by row, shapes of schedules, levels, costs."""
        beside = self.settings.beside
        return report(self.lines, None if beside is None else Lines(beside / LINES, list(Piece.__annotations__)))

    def run(self) -> None:
        """As every reproduction runs; or again, and compares.

        Raises:
            SystemExit: `again` found another number, or nothing to make again.
        """
        if not self.settings.again:
            super().run()
            return
        made = [piece for (piece,) in self.runs() if piece.stage == "report" and self.made(piece)]
        differ = [piece for piece in made if not self.is_same_again(piece)]
        print(f"{len(made)} of {len(self.lines.where(stage='report'))} lines of reported runs were made again")
        if differ or not made:
            raise SystemExit(f"{len(differ)} pieces came out otherwise; on one machine and device none should")

    def arguments(self) -> str:
        """The scale, and what stands beside."""
        beside = self.settings.beside
        if beside is None:
            return super().arguments()
        shown = beside.resolve()
        return f"{super().arguments()} --beside {shown.relative_to(ROOT) if shown.is_relative_to(ROOT) else shown}"

    def trained(self, piece: Piece) -> Result:
        """Trains a controller, or goes on; gives its file and what it took.

        Raises:
            ValueError: there is one that was trained on something else.
        """
        setting, actor = piece.method.split("-")
        scale, asked = self.scale, self.settings
        version = scale.like(piece.network, scale.trained)
        envs, episodes = scale.envs[setting], scale.like(piece.network, scale.episodes)
        own = PPOSettings(
            task=task_of(piece.data, piece.network, version).name, out=folder(self.out, piece), envs=envs,
            episodes=asked.episodes or episodes, lstm=actor == "lstm", device=asked.device,
            compile="graph" if choose_device(asked.device).type == "cuda" else False,
            eval_every=-(-episodes // envs // scale.evaluations), eval_seeds=scale.eval_seeds, **SETTINGS[setting],
        )  # fmt: skip
        file = self.controller_of(Timed, own)
        if (there := read_metadata(file)["settings"]["task"]) != own.task:
            raise ValueError(f"{file} was trained on {there}, not on {own.task}; begin another --out")
        # It is for going on alone, and by far the largest file.
        Folder(own.out).checkpoint.unlink(missing_ok=True)
        name = file.relative_to(self.out).as_posix()
        return {"file": name, "sha256": digest(file), "version": list(version), **runs_spent(own.out)}

    def is_same_again(self, piece: Piece) -> bool:
        """Whether the reported runs of a piece, made once more, give the same numbers.

        Raises:
            ValueError: what they were tuned or trained by is missing.
        """
        (before,) = self.lines.where(**asdict(piece))
        agent = agent_of(piece, self.scale, self.lines, self.out)
        if agent is None:
            raise ValueError(f"{told(piece)} is there, but the lines of what it was tuned or trained by are not")
        now = json.loads(to_json(reported(piece, agent, self.scale, self.settings.device)))
        names = ("seeds", "val_loss", "test_loss", "test_accuracy", "diverged", "curves")
        same = all(now[name] == before[name] for name in names)
        print(f"{told(piece)}: {'the same' if same else 'DIFFERENT'}", flush=True)
        return same


if __name__ == "__main__":
    sys.exit(command(Xu2019, Settings, __doc__))
