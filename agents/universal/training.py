"""Training a universal controller by evolution strategies over whole runs of drawn tasks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrenv.agents.outer.gradient_estimators import Rollout, evaluated, orthogonal_perturbations, paired
from lrenv.agents.outer.training import Controller, Training, begin_adam, on_host
from lrenv.agents.outer.validation import Validation, fall_of
from lrenv.agents.universal.agent import UniversalController, action_of_rates, view_of_policy
from lrenv.agents.universal.policy import Memory, Observation, decide, first_memory, shown
from lrenv.agents.universal.settings import UniversalSettings
from lrenv.envs.episode import Episode, EpisodeState
from lrenv.randomness import draws
from lrenv.randomness.seeds import seeds_for
from lrenv.runtime.memory import choose_device
from lrenv.training.drawn import TaskDistribution
from lrenv.training.rollout import rollout
from lrenv.training.tasks import Task

KEPT = 0.9
"""The part of the average of theta that is kept at an update: tasks differ, and so theta wanders."""
BETAS = (0.9, 0.99)
"""Of Adam for theta: moments that reach back over the tasks of a hundred updates."""

Between = tuple[EpisodeState, Observation, Memory]
"""Trainees, what is seen of them, and what is remembered between two decisions."""


class UniversalTraining(Training[UniversalSettings]):
    """A training of a universal controller.

    Args:
        settings: of the training.
    """

    unit = "updates"

    def __init__(self, settings: UniversalSettings) -> None:
        self.distribution = TaskDistribution(settings.limit)
        self.architecture = settings.architecture
        (first,) = seeds_for("training", 1, training=settings.seed)
        super().__init__(settings, self.distribution.task(first))
        self.device = choose_device(settings.device)
        tasks = self.distribution.tasks("validation", settings.eval_tasks)
        self.validation = Validation(tasks, settings.eval_seeds, settings.device, measured=False)
        self.theta = torch.nn.Parameter(self.architecture.init(settings.seed).to(self.device))
        self.optimizer = torch.optim.Adam([self.theta], settings.outer_lr, BETAS)
        begin_adam(self.optimizer)
        self.average = self.theta.detach().clone()

    @property
    def iterations(self) -> int:
        """The number of updates of the whole training."""
        return self.settings.updates

    @property
    def episodes(self) -> int:
        """The number of trainees that were trained so far, each for its task's budget."""
        return self.iteration * self.settings.tasks * 2 * self.settings.pairs

    def _task(self, place: int) -> Task:
        """The task at a place in the training."""
        (number,) = self.training_seeds(1, place)
        return self.distribution.task(number)

    def iterate(self) -> dict[str, float]:
        """Runs a population on each of a few new tasks, and moves theta; gives what to log."""
        settings = self.settings
        first = self.iteration * settings.tasks
        found = [self._estimate(place) for place in range(first, first + settings.tasks)]
        gradient, loss, difference = (torch.stack(parts).mean(0) for parts in zip(*found, strict=True))
        self.theta.grad = gradient
        for group in self.optimizer.param_groups:
            group["lr"] = settings.outer_lr * (1 - self.iteration / settings.updates)
        self.optimizer.step()
        self.average.lerp_(self.theta.detach(), 1 - KEPT)
        return on_host({"outer/loss": loss, "outer/difference": difference, "outer/gradient_norm": gradient.norm()})

    def _estimate(self, place: int) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient (D,) on the task at a place, the mean loss, and the typical difference of its pairs."""
        settings = self.settings
        generator = draws.generator(settings.seed, draws.POLICY, place)
        noise = orthogonal_perturbations(settings.pairs, self.theta.detach(), settings.sigma, generator)
        seeds = self.training_seeds(settings.pairs, place * settings.pairs)
        run, episode = self.run(self._task(place))
        state = paired(episode.reset(seeds)[0])
        samples = evaluated(run, self.theta.detach(), noise, settings.sigma, state, differentiate=False)
        # g_es = difference / (2 sigma^2) e, so this is the root mean square of differences without another number kept.
        difference = 2 * settings.sigma**2 * (samples.es.square().sum(1) / noise.square().sum(1)).mean().sqrt()
        return samples.es.mean(0) / difference.clamp(min=settings.spread), samples.loss.mean(), difference

    def run(self, task: Task) -> tuple[Rollout[EpisodeState], Episode]:
        """A whole run on a task, from its start, as a rollout whose loss is L; and the environment's episode.

        Policies see nothing of the validation split, so it is measured at both ends alone.
        """
        view = view_of_policy(self.architecture)
        episode = Episode(replace(task, measure_interval=task.budget), view.control, view.observe, device=self.device)

        def decision(theta: Tensor, between: Between, last: bool) -> tuple[Tensor, Between]:
            state, seen, memory = between
            made = decide(self.architecture, theta, seen, memory)
            due = np.full(len(theta), last)
            state, step = episode.step(state, action_of_rates(made.rates), due)
            return state.dynamics.val_loss, (state, shown(step), made.memory)

        def whole(theta: Tensor, state: EpisodeState) -> tuple[Tensor, EpisodeState]:
            seen = shown(episode.time_step(state))
            start = state, seen, first_memory(seen)
            given = [number == episode.decisions - 1 for number in range(episode.decisions)]
            losses, (end, _, _) = rollout(decision, theta, start, given)
            return fall_of(state.dynamics.val_loss, losses[-1], end.diverged), end

        return whole, episode

    @property
    def runs_per_validation(self) -> int:
        """The number of trainees that `held_out_loss` trains."""
        return self.validation.runs

    def held_out_loss(self, controller: Controller) -> float:
        """Returns the controller's score on tasks that are drawn for choosing controllers."""
        return self.validation.score(controller)

    def status(self, row: dict[str, float]) -> str:
        """Returns the mean loss, and by how much policies of a pair differ in it."""
        return f"log loss {row['outer/loss']:.3f}  differences {row['outer/difference']:.3f}"

    def controller(self) -> UniversalController:
        """Returns the controller with the average of theta so far."""
        return UniversalController(self.average.cpu().clone(), self.architecture)

    def state(self) -> dict[str, Any]:
        """Returns everything on which the next update depends."""
        return {"theta": self.theta.detach(), "average": self.average, "adam": self.optimizer.state[self.theta]}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Restores a state, after which the training goes on exactly as it would have."""
        self.theta.data.copy_(state["theta"])
        self.average.copy_(state["average"])
        self.optimizer.state[self.theta] = state["adam"]
