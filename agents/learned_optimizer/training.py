"""Training a learned optimizer by outer gradients: Metz et al. 2019, algorithm 1 and appendix C.3.

Several workers train populations of networks, each on a problem of its own and at another stage of it, as the paper's
asynchronous workers are. An update takes one truncation of every worker; the estimates of all their pairs are merged.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrenv.agents.learned_optimizer.agent import LearnedOptimizer
from lrenv.agents.learned_optimizer.problems import problems
from lrenv.agents.learned_optimizer.settings import LearnedOptimizerSettings
from lrenv.agents.outer.gradient_estimators import (
    DIFFERENTIATED,
    ESTIMATORS,
    Rollout,
    Samples,
    evaluated,
    one_of_each,
    paired,
    perturbations,
    survivors,
)
from lrenv.agents.outer.training import Controller, Training, begin_adam, on_host
from lrenv.benchmark.evaluation import evaluate
from lrenv.benchmark.selection import selection_losses
from lrenv.data import Split
from lrenv.randomness import draws
from lrenv.runtime.memory import choose_device
from lrenv.runtime.trees import select
from lrenv.training.rollout import rollout
from lrenv.training.tasks import Task
from lrenv.training.trainee import Trainee, TraineeState

VALIDATED = 256
"""The number of validation examples that the objective `valid` measures at a time; each time the next ones."""
BETAS = (0.5, 0.999)
"""beta_1 and beta_2 of Adam, for outer gradients that are not stationary: the former is that of appendix C.3, the
latter Adam's default."""


class Worker(NamedTuple):
    """A worker: a population in training on a problem."""

    problem: int
    left: int  # inner steps until it starts another problem
    taken: int  # inner steps that its longest trained networks have taken
    trainees: TraineeState  # of 2m, those at theta + e before those at theta - e
    accumulated: Tensor  # (m, D), perturbations since the start


class Truncation(NamedTuple):
    """A truncation of a worker in an update, before it is known which pairs have diverged."""

    worker: Worker  # before it
    steps: int  # inner steps
    accumulated: Tensor  # (m, D)
    samples: Samples[TraineeState]  # of all m pairs
    first: Tensor  # (m,) bool, the pairs that go on from their trainee at theta + e


def unrolled(trainee: Trainee, steps: int, objective: str, taken: int = 0) -> Rollout[TraineeState]:
    """Returns a truncation as a rollout: its loss is the mean of the objective over its steps (figure 2).

    Each interval is trained a second time on the way back, so that the memory of a gradient is that of one interval.

    Args:
        trainee: what is trained.
        steps: of the truncation.
        objective: train or valid.
        taken: inner steps that the trainees have taken; `valid` measures other examples after each interval.
    """
    interval = trainee.task.interval
    intervals = [range(start, min(start + interval, steps)) for start in range(0, steps, interval)]

    def train(theta: Tensor, state: TraineeState, own: range) -> tuple[Tensor, TraineeState]:
        rates = torch.ones_like(theta[:, :1])
        state, losses = trainee.unroll(state, rates, trainee.hyper(len(theta)) | {"theta": theta}, len(own))
        return (losses if objective == "train" else _validated(trainee, state, taken + own.stop)), state

    def truncation(theta: Tensor, state: TraineeState) -> tuple[Tensor, TraineeState]:
        losses, state = rollout(train, theta, state, intervals, recompute=True)
        if objective == "train":
            # The loss before the first step doesn't depend on theta, the one after the last step does.
            last, _ = trainee.loss(state.params, state, trainee.batch_indices(state, 1)[:, 0])
            losses = [losses[0][:, 1:], *losses[1:], last.unsqueeze(1)]
        return torch.cat(losses, 1).mean(1), state

    return truncation


def _validated(trainee: Trainee, state: TraineeState, taken: int) -> Tensor:
    """The loss (n, 1) on validation examples, which are other ones after each interval."""
    rows = min(VALIDATED, len(trainee.val.targets))
    turn = taken // trainee.task.interval
    start = turn * rows % (len(trainee.val.targets) - rows + 1)
    split = Split(*(x[start : start + rows] for x in trainee.val))
    return trainee.evaluate(state.params, state.buffers, split).loss.unsqueeze(1)


def _fetched(samples: list[Samples[TraineeState]]) -> tuple[NDArray[np.bool_], list[int]]:
    """The pairs that are left (workers, m), and the number of inner steps of the longest trained of each worker.

    Whether pairs begin anew depends on it, so this waits for the device, once per update before its log.
    """
    kept = torch.stack([own.kept for own in samples])
    taken = torch.stack([own.state.step.where(own.kept.repeat(2), 0).max() for own in samples])
    found = torch.cat([kept.to(taken.dtype), taken[:, None]], 1).cpu().numpy()
    return found[:, :-1].astype(bool), found[:, -1].tolist()


class LearnedOptimizerTraining(Training[LearnedOptimizerSettings]):
    """A training of a learned optimizer.

    Args:
        settings: of the training.
    """

    unit = "updates"

    def __init__(self, settings: LearnedOptimizerSettings) -> None:
        self.problems, self.held_out = problems(settings)
        super().__init__(settings, self.problems[0])
        self.device = choose_device(settings.device)
        self.theta = torch.nn.Parameter(settings.architecture.init(settings.seed).to(self.device))
        self.optimizer = torch.optim.Adam([self.theta], settings.rate, BETAS)
        begin_adam(self.optimizer)
        self.started = self.trained = 0
        self._trainees: dict[int, Trainee] = {}
        self.workers = [self._new_worker(share=(i + 1) / settings.workers) for i in range(settings.workers)]

    @property
    def tasks_trained_on(self) -> list[Task]:
        """Those whose classes the problems are of."""
        return self.settings.each_task()

    @property
    def iterations(self) -> int:
        """The number of updates of the whole training."""
        return self.settings.updates

    @property
    def episodes(self) -> int:
        """The number of trainees that were trained so far, in budgets."""
        return self.trained // self.task.budget

    def iterate(self) -> dict[str, float]:
        """Runs a truncation of every worker and updates theta; gives what to log."""
        settings = self.settings
        truncations = [self._truncation(i) for i in range(settings.workers)]
        kept, taken = _fetched([truncation.samples for truncation in truncations])
        for i, truncation in enumerate(truncations):
            self.workers[i] = self._next(truncation, kept[i], taken[i])
        left = [survivors(truncation.samples, own)[:3] for truncation, own in zip(truncations, kept, strict=True)]
        loss, es, reparameterisation = (torch.cat(parts) for parts in zip(*left, strict=True))
        row = {
            "outer/diverged": int((~kept).sum()),
            "outer/unroll": settings.unroll(self.iteration, 0.5, self.task.budget),
        }
        nothing = torch.full((), torch.nan, device=loss.device)
        seen = {"outer/loss": loss.mean()}
        if len(loss) < 2:  # too few for variances, so theta stays as it is
            return row | on_host(seen | {"outer/gradient_norm": nothing})
        samples = Samples(loss, es, reparameterisation, torch.from_numpy(kept.flatten()), None)
        gradient = ESTIMATORS[settings.estimator](samples)
        self.theta.grad = gradient * (settings.clip / gradient.norm()).clamp(max=1)
        self.optimizer.step()
        for name, x in {"es": es, "reparameterisation": reparameterisation}.items():
            seen[f"outer/{name}_variance"] = x.double().var(0).mean() if len(x) else nothing
        return row | on_host(seen | {"outer/gradient_norm": gradient.norm()})

    def _truncation(self, i: int) -> Truncation:
        """Runs the next truncation of worker i."""
        settings, worker = self.settings, self.workers[i]
        trainee, pes = self._trainee(worker.problem), settings.estimator == "pes"
        generator = draws.generator(settings.seed, self.iteration, i)
        chance = float(torch.rand((), generator=generator))
        interval, wanted = trainee.task.interval, settings.unroll(self.iteration, chance, trainee.task.budget)
        steps = min(worker.left, max(1, round(wanted / interval)) * interval)
        noise = perturbations(settings.pairs, self.theta, settings.sigma, generator)
        accumulated = worker.accumulated + noise
        samples = evaluated(
            unrolled(trainee, steps, settings.objective, worker.taken), self.theta.detach(), noise, settings.sigma,
            worker.trainees, settings.estimator in DIFFERENTIATED, accumulated if pes else None,
        )  # fmt: skip
        self.trained += 2 * settings.pairs * steps
        first = torch.rand(settings.pairs, generator=generator) < 0.5
        return Truncation(worker, steps, accumulated, samples, first.to(self.device))

    def _next(self, truncation: Truncation, kept: NDArray[np.bool_], taken: int) -> Worker:
        """The worker after its truncation, with the pairs `kept` (m,) and new ones in place of the others."""
        worker, steps, accumulated, samples, first = truncation
        if worker.left == steps:
            return self._new_worker()
        trainees = samples.state if self.settings.estimator == "pes" else paired(one_of_each(samples.state, first))
        if not kept.all():
            trainees = select(samples.kept.repeat(2), trainees, self._untrained(worker.problem))
            accumulated = accumulated.where(samples.kept.unsqueeze(1), 0)
        return worker._replace(left=worker.left - steps, taken=taken, trainees=trainees, accumulated=accumulated)

    def _new_worker(self, share: float = 1.0) -> Worker:
        """A worker on another problem, drawn at random, which it leaves after this share of the budget."""
        key = draws.fold(torch.tensor(self.settings.seed), self.started)
        problem = int(key % len(self.problems))
        task = self.problems[problem]
        left = min(task.budget, max(1, round(share * task.budget / task.interval)) * task.interval)
        nothing = torch.zeros(self.settings.pairs, len(self.theta), device=self.device)
        return Worker(problem, left, 0, self._untrained(problem), nothing)

    def _untrained(self, problem: int) -> TraineeState:
        """Pairs of untrained networks, with seeds that were not used before."""
        seeds = self.training_seeds(self.settings.pairs, self.started * self.settings.pairs)
        self.started += 1
        return paired(self._trainee(problem).init(seeds))

    def _trainee(self, problem: int) -> Trainee:
        if problem not in self._trainees:
            task = replace(self.problems[problem], optimizer=self.controller())
            self._trainees[problem] = Trainee(task, self.device, compile=self.settings.compile)
        return self._trainees[problem]

    def status(self, row: dict[str, float]) -> str:
        """Returns the length of truncations, the objective, and the number of pairs that diverged."""
        return f"unroll {row['outer/unroll']:.0f}  loss {row['outer/loss']:.4f}  diverged {row['outer/diverged']:.0f}"

    @property
    def runs_per_validation(self) -> int:
        """The number of trainees that `held_out_loss` trains."""
        return len(self.held_out) * self.settings.eval_seeds

    def held_out_loss(self, controller: Controller) -> float:
        """Returns the held-out objective: mean training loss or best validation loss; infinite if one diverges."""
        losses = []
        for task in self.held_out:
            result = evaluate(controller, task, self.held_out_seeds, device=self.settings.device)
            own = result.curves["train_loss"][1:].mean(0) if self.settings.objective == "train" else result.val_loss
            losses.append(selection_losses(own, result.diverged))
        return float(np.mean(losses))

    def controller(self) -> LearnedOptimizer:
        """Returns the optimizer with theta so far."""
        return LearnedOptimizer(self.theta.detach().cpu().clone(), self.settings.architecture)

    def state(self) -> dict[str, Any]:
        """Returns everything on which the next update depends."""
        own = {"theta": self.theta.detach(), "adam": self.optimizer.state[self.theta], "workers": self.workers}
        return own | {"started": self.started, "trained": self.trained}

    def template(self, values: dict[str, Any]) -> dict[str, Any]:
        """Returns a state whose workers are on the problems of the one to restore, as networks may have other sizes."""
        problems = [values.get(f"workers.{i}.problem", 0) for i in range(self.settings.workers)]
        return self.state() | {
            "workers": [w._replace(trainees=self._untrained(p)) for w, p in zip(self.workers, problems, strict=True)]
        }

    def restore_state(self, state: dict[str, Any]) -> None:
        """Restores a state, after which the training goes on exactly as it would have."""
        self.theta.data.copy_(state["theta"])
        self.optimizer.state[self.theta] = state["adam"]
        self.workers, self.started, self.trained = (state[name] for name in ("workers", "started", "trained"))
