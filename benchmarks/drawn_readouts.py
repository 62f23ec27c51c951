"""What the beginning of a run shows of how far its peak is from the best one, on drawn tasks.

The tasks and the losses at their peaks are those of `drawn_peaks.py`, which has to have run. Here the runs at the peaks
next to that of the power law are made again, up to a fifth of the budget, and looked at a few times. A readout, a small
perceptron, sees what a run shows at that moment, and gives by how much the best peak is above the power law's; it is
fitted to make the regret least on tasks for training, as if the whole run had had the peak that it gives. Other tasks,
for choosing designs, which no readout was fitted to, tell the regret at the power law's peak and at that of the
readout, in runs at the peak of the grid that is next to the power law's.

So this is about what is to be seen early in a run, and how a policy is trained, by evolution strategies or otherwise,
takes no part in it. It is no bound: a larger readout, or one that sees more, may do better.

Beside how far the run's peak is from the power law's, readouts see

- training: the fall, the change and the scatter of the training loss; how far the first and the last layer move, and in
  which direction. Policies see these.
- validation: the fall and the change of the validation loss, its gap to the training loss, and the variance of
  predictions and of their changes (Xu et al. 2019, section 2.2).
- gradients: with the rate r, the training loss L, the gradients g_t and the directions d_t of all layers, summed over
  the last interval, r <g_(t+1), d_t> / L, which is the part of the loss that a step takes away, and its size; the
  largest rate by Polyak's rule, L / norm(g)^2, relative to r; r norm(d); and <g_(t+1), d_t> / (norm(g) norm(d)).
- nothing more.

Signals that stay the same through a run are left to the power law.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor, nn

import drawn_peaks
from drawn_peaks import CENTRE, FACTORS, SEEDS, Curves, log_shape
from lrenv.agents.universal.agent import VERSION as POLICY
from lrenv.agents.universal.agent import action_of_rates
from lrenv.agents.universal.policy import GRADIENTS, HIGHEST, PEAK, power_law, shown, signals
from lrenv.agents.universal.settings import UniversalSettings
from lrenv.agents.universal.training import UniversalTraining
from lrenv.envs.episode import Episode
from lrenv.envs.observations import DYNAMICS, FAN_IN, SCALE_FREE, TRAINING
from lrenv.randomness.seeds import seeds_for
from lrenv.runtime.files import replace_file
from lrenv.runtime.progress import progress
from lrenv.training.drawn import VERSION
from lrenv.training.tasks import Task

MOMENTS = (0.05, 0.1, 0.2)
"""When runs are looked at, as parts of the budget; at the first decision then or later."""
NEAR = 2
"""Runs are at so many peaks of the grid below and above the power law's."""
SEEN = {
    "training": (
        "train_fall", "train_change", "loss_spread", "first_update", "last_update", "first_cosine", "last_cosine",
    ),
    "validation": ("val_fall", "val_change", "gap", "prediction_variance", "prediction_change"),
    "gradients": ("gain", "gain_size", "polyak", "step", "cosine"),
}  # fmt: skip
"""Set -> the signals in it."""
SETS = {"nothing": (), **{name: (name,) for name in SEEN}, "all": tuple(SEEN)}
"""What readouts see."""
HIDDEN, STEPS, LR, DECAY, BATCH = 4, 800, 1e-2, 1e-2, 1024
"""Of the readout: its units, and its training by AdamW."""
REACH = math.log(30)
"""The most that a readout's peak is above or below the power law's."""
FITS = 5
"""Readouts that are fitted from other first weights; none of them is chosen, the table has their mean."""
KEPT = {
    "version": VERSION,
    "policy": POLICY,
    "moments": MOMENTS,
    "near": NEAR,
    "seen": SEEN,
    "peak": PEAK,
    "highest": HIGHEST,
}
"""What runs that were looked at depend on; others are made again."""


@dataclass(frozen=True)
class Settings:
    """The settings: which searched peaks to use, and where to keep what runs showed."""

    peaks: Path = Path("benchmarks/results/drawn_peaks.jsonl")
    """What `drawn_peaks.py` found."""
    fitted: int = 600
    """Tasks for training that readouts are fitted to."""
    tasks: int = 300
    """Other tasks, which tell what they are worth."""
    limit: float = 1e9
    """The most FLOPs of a run."""
    out: Path = Path("runs/drawn_readouts")
    """Where what runs showed is kept, a file for each purpose of tasks: some megabytes, made again in 20 minutes."""


class Looks(NamedTuple):
    """What runs of one task showed; a look is a run at a moment."""

    moment: Tensor  # (looks,), its place in MOMENTS
    law: Tensor  # (looks,), log peak of the power law, the mean over seeds
    distance: Tensor  # (looks,), of the run's log peak from it
    seen: Tensor  # (looks, signals), in the order of SEEN


def looked_at(training: UniversalTraining, task: Task) -> Looks:
    """Runs a task at the peaks near the power law's."""
    observe = ("training", "horizon", "setup", "untrained", "scale-free", "dynamics", FAN_IN, *GRADIENTS)
    episode, architecture = Episode(task, "set", observe, device=training.device), training.architecture
    exponents, seeds = torch.zeros(1, len(architecture.exponents)), seeds_for("selection", SEEDS)
    grid = torch.from_numpy(CENTRE["adaptive" if episode.trainee.optimizer.adaptive else "sgd"] * FACTORS).float().log()
    with torch.no_grad():
        _, step = episode.reset(seeds)
        law = power_law(architecture, exponents, signals(architecture, shown(step))).mean()
        place = int((grid - law).abs().argmin())
        near = grid[max(0, place - NEAR) : place + NEAR + 1]
        peaks = near.repeat_interleave(SEEDS)[:, None]
        state, step = episode.reset(seeds * len(near))
        due = [max(1, math.ceil(moment * episode.decisions)) for moment in MOMENTS]
        looks = []
        for number in range(1, max(due) + 1):
            log_rate = peaks + log_shape(architecture, signals(architecture, shown(step)))
            state, step = episode.step(state, action_of_rates(log_rate.exp()), np.zeros(len(peaks), dtype=bool))
            if number in due:
                looks.append(quantities(shown(step), log_rate))
    distance = (peaks[:, 0] - law).repeat(len(due))
    moment = torch.arange(len(due)).repeat_interleave(len(peaks))
    return Looks(moment, law.expand_as(distance), distance, torch.cat(looks))


def quantities(observation: Any, log_rate: Tensor) -> Tensor:
    """What is seen of runs (n, signals).

    Args:
        observation: what the environment shows.
        log_rate: (n, 1), of the interval that has passed.
    """
    tables = {"training": TRAINING, "scale-free": SCALE_FREE, "dynamics": DYNAMICS}
    found = {
        name: column for each, table in tables.items()
        for name, column in zip(table, observation[each].split(1, -1), strict=True)
    }  # fmt: skip
    product, gradient, direction = (observation[name].sum(1, keepdim=True) for name in GRADIENTS)
    # Sums over the interval; means are per step.
    product, gradient, direction = (x / 10 ** found["steps_per_decision"] for x in (-product, gradient, direction))
    rate, loss = log_rate.exp(), 10 ** found["train_loss"]
    found["gain"] = (rate * product / loss).clamp(-3, 3)
    found["gain_size"] = (rate * product.abs() / loss).clamp(1e-6, 1e3).log10()
    found["polyak"] = (loss / (rate * gradient)).clamp(1e-6, 1e6).log10()
    found["step"] = (rate * direction.sqrt()).clamp(1e-9, 1e6).log10()
    found["cosine"] = product / (gradient * direction).sqrt().clamp(min=1e-30)
    return torch.cat([found[name] for names in SEEN.values() for name in names], 1).nan_to_num(0, 3, -3)


@dataclass(frozen=True)
class Family:
    """What runs of many tasks of one family of optimizers showed.

    Attributes:
        curves: what the tasks lose by a peak.
        task: (looks,), the place of each look's task in `curves`.
        looks: of all tasks.
    """

    curves: Curves
    task: Tensor
    looks: Looks

    def regret(self, look: Tensor, above: Tensor) -> Tensor:
        """What the task of each look loses at a peak so far above the power law's."""
        return self.curves.lost(self.looks.law[look] + above, self.task[look])

    def inputs(self, sets: Sequence[str]) -> Tensor:
        """What a readout of these sets sees, (looks, signals)."""
        names = [(each, name) for each, names in SEEN.items() for name in names]
        seen = self.looks.seen[:, [i for i, (each, _) in enumerate(names) if each in sets]]
        return torch.cat([seen, self.looks.distance[:, None], nn.functional.one_hot(self.looks.moment)], 1)


def fitted(family: Family, sets: Sequence[str], seed: int) -> Any:
    """Fits a readout: inputs (n, signals) -> how far the peak is above the power law's (n,)."""
    inputs = family.inputs(sets)
    mean, spread = inputs.mean(0), inputs.std(0).clamp(min=1e-3)
    torch.manual_seed(seed)
    last = nn.Linear(HIDDEN, 1)
    last.weight.data.mul_(0.1)  # so that it begins near the power law
    net = nn.Sequential(nn.Linear(inputs.shape[1], HIDDEN), nn.Tanh(), last)
    optimizer = torch.optim.AdamW(net.parameters(), LR, weight_decay=DECAY)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)

    def above(inputs: Tensor) -> Tensor:
        return REACH * torch.tanh(net(((inputs - mean) / spread).clamp(-3, 3))[:, 0] / REACH)

    for _ in range(STEPS):
        look = torch.randint(len(inputs), (BATCH,))
        optimizer.zero_grad()
        family.regret(look, above(inputs[look])).mean().backward()
        optimizer.step()
        decay.step()
    return above


def told(family: Family, above: Tensor) -> Tensor:
    """What is lost (tasks, moments) at peaks so far above the power law's (looks,), in the runs next to that.

    Seeds show different things, and so have different peaks; this is their mean.
    """
    looks, tasks = family.looks, len(family.curves.losses)
    apart = looks.distance.abs()
    least = torch.full((tasks,), math.inf).scatter_reduce(0, family.task, apart, "amin")
    nearest = (apart <= least[family.task] + 1e-4).nonzero()[:, 0]
    place = family.task[nearest] * len(MOMENTS) + looks.moment[nearest]
    sums, counts = torch.zeros(2, tasks * len(MOMENTS))
    sums.index_add_(0, place, family.regret(nearest, above[nearest]))
    counts.index_add_(0, place, torch.ones(len(nearest)))
    mean: Tensor = sums / counts
    return mean.view(tasks, len(MOMENTS))


def shown_of(training: UniversalTraining, tasks: Sequence[Task], file: Path) -> dict[str, Any]:
    """What runs of tasks showed, by the task's name; made where the file doesn't have it."""
    kept = torch.load(file) if file.exists() else {}
    looks: dict[str, Any] = kept["looks"] if kept.get("of") == KEPT else {}

    def keep() -> None:
        buffer = io.BytesIO()
        torch.save({"of": KEPT, "looks": looks}, buffer)
        replace_file(file, buffer.getvalue())

    with progress(len(tasks), f"tasks for {file.stem}") as report:
        for done, task in enumerate(tasks):
            report(done)
            if task.name not in looks:
                looks[task.name] = looked_at(training, task)._asdict()
                if len(looks) % 50 == 0:
                    keep()
    keep()
    return {task.name: looks[task.name] for task in tasks}


def families(shown: dict[str, Any], rows: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Family]]:
    """Name -> family, of tasks whose peaks were searched."""
    for name in CENTRE:
        own = [rows[task] for task in shown if rows[task]["family"] == name]
        looks = [Looks(**shown[row["task"]]) for row in own]
        task = torch.arange(len(own)).repeat_interleave(torch.tensor([len(each.law) for each in looks]))
        yield name, Family(Curves.of(own, name), task, Looks(*map(torch.cat, zip(*looks, strict=True))))


def main(settings: Settings) -> None:
    """Looks at runs, fits and prints.

    Raises:
        SystemExit: the peaks of some of the tasks were not searched, or the tasks are too few to tell anything.
    """
    training = UniversalTraining(UniversalSettings(limit=settings.limit))
    rows = drawn_peaks.known(settings.peaks, training)
    tasks = {
        purpose: list(drawn_peaks.tasks_of(training, purpose, number))
        for purpose, number in (("training", settings.fitted), ("selection", settings.tasks))
    }
    for purpose, own in tasks.items():
        if any(task.name not in rows for task in own):
            raise SystemExit(f"{settings.peaks} lacks tasks for {purpose}: run drawn_peaks.py, or ask for fewer")
        if min(sum(rows[task.name]["family"] == name for task in own) for name in CENTRE) < 2:
            raise SystemExit(f"{len(own)} tasks for {purpose} hold less than two of a family; ask for more")
    found = {
        purpose: dict(families(shown_of(training, own, settings.out / f"{purpose}.pt"), rows))
        for purpose, own in tasks.items()
    }
    print("The regret on tasks that no readout was fitted to, and its change by the readout with a standard error:\n")
    print(f"| family | tasks | the readout sees | {' | '.join(f'at {moment:.0%}' for moment in MOMENTS)} |")
    print(f"|---|---:|---|{'---:|' * len(MOMENTS)}")
    for name, other in found["selection"].items():
        still = told(other, torch.zeros(len(other.task)))
        begin, cells = f"| {name} | {len(still)} | ", [f"{x:.3f}" for x in still.mean(0).tolist()]
        print(f"{begin}no readout: the power law | {' | '.join(cells)} |", flush=True)
        for label, sets in SETS.items():
            readouts = [fitted(found["training"][name], sets, seed) for seed in range(FITS)]
            with torch.no_grad():
                lost = torch.stack([told(other, above(other.inputs(sets))) for above in readouts]).mean(0)
            changes = (lost - still).mean(0), (lost - still).std(0) / len(lost) ** 0.5
            numbers = zip(lost.mean(0).tolist(), *(x.tolist() for x in changes), strict=True)
            print(f"{begin}{label} | {' | '.join(f'{x:.3f}, {c:+.3f} ({e:.3f})' for x, c, e in numbers)} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
