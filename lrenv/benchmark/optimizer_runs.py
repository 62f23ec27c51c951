"""Runs of agents that are optimizers: each seed has an optimizer of its own, all else is as for stacked trainees.

Initial weights, batches, losses, measurements, best checkpoints and what counts as divergence are those of
`lrenv.envs.episode.Episode`. The gradients of all runs come from one pass over the stacked networks, which gives those
of each module alone; then each run's optimizer takes its step on parameters of its own. So an optimizer sees what it
would see in a loop over one `torch.nn.Module`.

An optimizer may have weights of its own to be measured at (`eval` and `train`). Running statistics, which belong to the
weights that were trained, are then estimated anew for those that are measured, from `REFRESHED` batches in training
mode, as the authors of schedule-free advise (README of `schedulefree` 1.4.1, "Caveats").
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lrenv.controllers.agent import AgentError
from lrenv.controllers.optimizer_agent import OptimizerAgent
from lrenv.envs.episode import Episode
from lrenv.lookup import error_line, what_is
from lrenv.networks.copies import Tensors
from lrenv.runtime.ambient import without_gradients
from lrenv.runtime.transfer import to_host
from lrenv.training.tasks import Task
from lrenv.training.trainee import Trainee, TraineeState

T = TypeVar("T")
REFRESHED = 50
"""Batches that running statistics are estimated from."""
SHOWN = ("inner_step", "train_loss", "val_loss", "lr")
"""The curves."""


class Runs(NamedTuple):
    """What came of n runs."""

    metric: str | None
    arrays: dict[str, NDArray[Any]]  # name -> (n,), as in `lrenv.benchmark.evaluation.Result`
    curves: dict[str, NDArray[Any]]  # name -> (decisions + 1, n)


@without_gradients
def run_optimizers(
    agent: OptimizerAgent,
    name: str,
    task: Task,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Runs:
    """Trains a network per seed, each with an optimizer of its own.

    Args:
        agent: makes the optimizers.
        name: the agent's, for errors.
        task: what to train.
        seeds: of the initial weights and batches.
        device: where networks live.
        dtype: of weights and losses; float64 for tests.

    Raises:
        AgentError: a package is missing, or the optimizer fails; the message says where and when.
    """
    # The task's own optimizer has no part in it: neither its state nor an average that it would be measured at.
    bare = replace(task, optimizer="sgd", momentum=None, weight_decay=None)
    episode = Episode(bare, control="set-raw", observe="clock", device=device, dtype=dtype)
    order = iter(seeds)
    chunks = [list(itertools.islice(order, size)) for size in episode.trainee.chunks(len(seeds))]
    parts = [_together(agent, name, task, episode, chunk) for chunk in chunks]
    arrays = {key: np.concatenate([part.arrays[key] for part in parts]) for key in parts[0].arrays}
    curves = {key: np.concatenate([part.curves[key] for part in parts], 1) for key in SHOWN}
    running = np.isfinite(curves["inner_step"]).any(1)  # nothing is shown of the time after all have ended
    return Runs(parts[0].metric, arrays, {key: curve[running] for key, curve in curves.items()})


class _Run:
    """One network with its optimizer.

    Args:
        agent: makes the optimizer.
        who: the agent, the task and the seed, for errors.
        weights: each of a network's tensors.
        task: what it is trained on.
    """

    def __init__(self, agent: OptimizerAgent, who: str, weights: list[Tensor], task: Task) -> None:
        self._agent, self._who, self._taken, self._budget = agent, who, 0, task.budget
        self._parameters = [nn.Parameter(w.clone()) for w in weights]

        def make() -> Any:
            return agent.optimizer(self._parameters, task)

        self._optimizer = self._asked(make)
        if not callable(getattr(self._optimizer, "step", None)):
            raise AgentError(
                f"{who}: optimizer must give a torch.optim.Optimizer, or an object with a method `step`; it gave "
                f"{what_is(self._optimizer)}"
            )
        self.averages = hasattr(self._optimizer, "eval")
        if self.averages:
            self._asked(self._optimizer.train)

    def step(self, gradients: list[Tensor], loss: Tensor) -> None:
        """An inner step."""
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        self._asked(lambda: self._agent.step(self._optimizer, loss, self._taken / self._budget))
        self._taken += 1

    def weights(self) -> Tensor:
        """The weights (P,) that are trained."""
        return torch.cat([parameter.detach().flatten() for parameter in self._parameters])

    def measured_weights(self) -> Tensor:
        """The weights (P,) that are to be measured."""
        if not self.averages:
            return self.weights()
        self._asked(self._optimizer.eval)
        weights = self.weights()
        self._asked(self._optimizer.train)
        return weights

    def rate(self) -> float:
        """The learning rate."""
        return self._asked(lambda: float(self._agent.rate(self._optimizer)))

    def _asked(self, question: Callable[[], T]) -> T:
        try:
            return question()
        except AgentError:
            raise
        except Exception as error:
            raise AgentError(f"{self._who}, inner step {self._taken}: {error_line(error)}") from error


def _together(agent: OptimizerAgent, name: str, task: Task, episode: Episode, seeds: list[int]) -> Runs:
    """The runs of one chunk of trainees; curves go on to the end of the budget."""
    n, budget, interval = len(seeds), task.budget, episode.task.interval
    state, time_step = episode.reset(seeds)
    training = state.trainee
    tensors = list(episode.trainee.network.named(training.params).values())
    runs = [
        _Run(agent, f"agent {name!r} on task {task.name!r}, seed {seed}", [x[i] for x in tensors], task)
        for i, seed in enumerate(seeds)
    ]
    lr = _column([run.rate() for run in runs], state.lr)
    info = to_host(time_step.info | {"lr": lr[:, 0]})
    curves: dict[str, list[NDArray[Any]]] = {key: [info[key]] for key in SHOWN}
    ended, steps = np.zeros(n, dtype=bool), np.zeros(n, dtype=np.int64)
    while not ended.all():
        due = episode.measurement_due(steps, ended)
        number = min(interval, budget - int(steps[0]))
        training, losses = _interval(episode.trainee, training, runs, number, ended)
        measured = training._replace(params=torch.stack([run.measured_weights() for run in runs]))
        if runs[0].averages and training.buffers and (due is None or due.any()):
            measured = measured._replace(buffers=_statistics(episode.trainee, measured))
        lr = _column([run.rate() for run in runs], lr)
        state, time_step = episode.trained(state, measured, losses, lr, due)
        info = to_host(time_step.info)
        for key in SHOWN:
            curves[key].append(np.where(ended, np.nan, info[key]))
        ended, steps = ended | to_host(time_step.terminated), steps + number
    longest = episode.decisions + 1
    tested = to_host(episode.test(state, torch.arange(n, device=lr.device)))
    metric, diverged = episode.trainee.metric, info["diverged"]
    arrays = {
        "val_loss": to_host(state.best.val_loss),
        "final_val_loss": np.where(diverged, np.inf, info["val_loss"]),
        "diverged": diverged,
    }
    for when in ("", "final_"):
        arrays[f"{when}test_loss"] = tested[f"{when}test_loss"]
        arrays[f"{when}test_metric"] = tested[f"{when}test_{metric}"] if metric else np.full(n, np.nan)
    for rows in curves.values():
        rows += [np.full(n, np.nan)] * (longest - len(rows))
    return Runs(metric, arrays, {key: np.stack(rows) for key, rows in curves.items()})


def _interval(
    trainee: Trainee, training: TraineeState, runs: list[_Run], steps: int, ended: NDArray[np.bool_]
) -> tuple[TraineeState, Tensor]:
    """So many inner steps of each run.

    An optimizer is not asked to go on from a loss or a gradient that is not finite, which some refuse with an error:
    from there on the run's losses are NaN, by which it has diverged.

    Returns:
        The trainees after the steps, with the weights that are trained, and their losses (n, steps).
    """
    dead = torch.from_numpy(ended).to(training.params.device)
    losses = []
    for indices in trainee.batch_indices(training, steps).unbind(1):
        gradient = trainee.gradient(training, indices)
        dead = dead | ~(gradient.loss.isfinite() & gradient.grads.isfinite().all(1))
        losses.append(gradient.loss.masked_fill(dead, torch.nan))
        tensors = list(trainee.network.named(gradient.grads).values())
        for i, (run, over) in enumerate(zip(runs, dead.tolist(), strict=True)):
            if not over:
                run.step([x[i] for x in tensors], gradient.loss[i])
        params = torch.stack([run.weights() for run in runs])
        training = training._replace(params=params, buffers=gradient.buffers, step=training.step + 1)
    return training, torch.stack(losses, 1)


def _statistics(trainee: Trainee, measured: TraineeState) -> Tensors:
    """Buffers (n, *shape) after the batches of the inner steps to come, in training mode, at fixed weights."""
    for indices in trainee.batch_indices(measured, REFRESHED).unbind(1):
        _, buffers = trainee.loss(measured.params, measured, indices, first_order=True)
        measured = measured._replace(buffers=buffers)
    return measured.buffers


def _column(numbers: list[float], like: Tensor) -> Tensor:
    """Numbers as a column (n, 1)."""
    return torch.tensor(numbers, dtype=like.dtype).to(like.device)[:, None]
