"""The whole environment as pure functions of a batched state: `reset`, `step`, `time_step`, `test`.

`step(state, action) -> (state, time step)`: the adapters to Gymnasium and Stable-Baselines3 only call this, and bring
each time step to the host. Nothing here waits for the device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map

from lrenv.envs.actions import Control
from lrenv.envs.observations import FAN_IN, Observe, Observer
from lrenv.envs.rewards import BUILT_IN, Reward, make_reward
from lrenv.networks.copies import Tensors
from lrenv.randomness import draws
from lrenv.runtime.ambient import with_own_settings, without_gradients
from lrenv.runtime.compiling import Captured, Compile, compiled, cuda_graph
from lrenv.runtime.trees import cut, join, select
from lrenv.training.dynamics import Dynamics, DynamicsMeter, Setup, Trained, Untrained
from lrenv.training.gradient_observer import MEAN, PRODUCTS, GradientObserver
from lrenv.training.optimizers import Hyper
from lrenv.training.tasks import InitialLR, LogUniform, Task, initial_rates
from lrenv.training.trainee import Measurement, Observed, Trainee, TraineeState


class Checkpoint(NamedTuple):
    """The networks with the lowest validation loss of their episodes so far."""

    val_loss: Tensor  # (n,)
    params: Tensor  # (n, P)
    buffers: Tensors


class EpisodeState(NamedTuple):
    """n episodes between two decisions; every leaf has the env axis first."""

    trainee: TraineeState
    lr: Tensor  # (n, K)
    hyper: Hyper  # name -> (n, 1)
    dynamics: Dynamics
    metric: Tensor  # (n,), on the validation split; NaN where nothing is measured beside the loss
    predictions: Tensor  # (n, k, p), on validation examples
    displacement: tuple[Tensor, ...]  # of the watched weights over the last interval, (n, size)
    best: Checkpoint
    diverged: Tensor  # (n,) bool
    observed: Observed | tuple[()]  # of gradients, where the observation has some


class TimeStep(NamedTuple):
    """What n environments give an agent; every leaf has the env axis first."""

    observation: Tensor | dict[str, Tensor]  # (n, signals); with white-box parts, name -> (n, size)
    reward: Tensor  # (n,), of the decision that led here
    terminated: Tensor  # (n,) bool
    info: dict[str, Tensor]  # name -> (n,), `lr` is (n, K) where there are several


class Episode:
    """The environment's dynamics.

    Args:
        task: what the trainees learn. An interval beyond its budget is the budget: one decision, as it is observed.
        control: what an action sets (`lrenv.envs.actions`).
        observe: what agents see: names, or observations of one's own (`lrenv.envs.observations`).
        reward: what agents are to maximise: a name, or a function of one's own (`lrenv.envs.rewards`).
        device: where trainees live.
        dtype: of trainees, observations and Box actions.
        compile: True compiles the inner steps (`lrenv.training.trainee.Trainee`), the measurements and the signals. On
            CUDA, True and "graph" capture each decision as one CUDA graph, "graph" without compiling anything.
        precision: "tf32" rounds the inputs of products on CUDA, "bf16" runs networks in bfloat16
            (`lrenv.training.trainee.Trainee`).
        chunk_size: trainees that go through a decision together at most (`lrenv.training.trainee.Trainee`).

    Raises:
        ValueError: an unknown name, or settings that contradict each other.
    """

    @without_gradients
    def __init__(
        self,
        task: Task,
        control: str | tuple[str, ...] = "scale",
        observe: Observe = "dynamics",
        reward: str | Reward = "val_loss",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        compile: Compile = False,
        precision: str = "full",
        chunk_size: int | None = None,
    ) -> None:
        if task.interval > task.budget:  # one decision, whose end is measured in any case
            task = replace(task, interval=task.budget, measure_interval=None)
        self.task = task
        self.reward = make_reward(reward)
        self.trainee = Trainee(task, device, dtype, compile, precision, chunk_size)
        self.rounds_products = self.trainee.rounds_products
        network = self.trainee.network
        self.control = Control(control, self.trainee.rates, task.hyper, dtype)
        sizes = {"rates": self.control.rates, "parameters": network.size}
        self.observer = Observer(observe, dtype, sizes)
        own_reward = not isinstance(reward, str) or reward not in BUILT_IN
        layers = len(network.pieces["layer"])
        setup = Setup(self.trainee.optimizer.adaptive, task.hyper.get("momentum", 0.0), task.batch_size, layers)
        self._meter = DynamicsMeter(task.budget, task.interval, self.observer.motion or own_reward, setup)
        self._looks_at_untrained = self.observer.untrained or own_reward
        gradients = [part for part in self.observer.white_box if part in (*PRODUCTS, MEAN)]
        self._gradients = GradientObserver(self.trainee, gradients, self.control.granularity) if gradients else None
        self._constant = {}
        if FAN_IN in self.observer.white_box:
            self._constant[FAN_IN] = network.fan_in(self.control.granularity).to(self.trainee.device, dtype)
        # An interval that the budget cuts short needs trainees to stand still; others are spared the masks.
        self._until = task.budget if task.budget % task.interval else None
        self._measure = compiled(self._measured, compile, self.trainee.device)
        self._captured = None
        if compile and self.trainee.device.type == "cuda":
            what = f"a decision of task {task.name!r} with optimizer {task.optimizer!r}"
            self._captured = Captured(self._decided, cuda_graph(self.trainee.device), what)

    @property
    def decisions(self) -> int:
        """Decisions per episode; the last interval is shorter if the interval doesn't divide the budget."""
        return -(-self.task.budget // self.task.interval)

    @with_own_settings
    def reset(self, seeds: Sequence[int], initial_lr: InitialLR | None = None) -> tuple[EpisodeState, TimeStep]:
        """Starts n episodes without training anything: the first observation is that of untrained networks.

        Args:
            seeds: one per episode.
            initial_lr: instead of the task's.
        """
        initial_lr = self.task.initial_lr if initial_lr is None else initial_lr
        order = iter(seeds)
        chunks = self.trainee.chunks(len(seeds))
        return join([self._begin(list(itertools.islice(order, size)), initial_lr) for size in chunks])

    def _begin(self, seeds: Sequence[int], initial_lr: InitialLR) -> tuple[EpisodeState, TimeStep]:
        trainee, n = self.trainee.init(seeds), len(seeds)
        lr = self._initial_lr(trainee.seed, initial_lr)
        first_batch = self.trainee.batch_indices(trainee, 1)[:, 0]
        train_loss, _ = self.trainee.loss(trainee.params, trainee, first_batch)
        measured = self.trainee.evaluate(trainee.params, trainee.buffers, self.trainee.val)
        hyper = self.trainee.hyper(n, self.control.hyperparameters)
        untrained = Trained(trainee.step, self._layers(trainee), measured.loss, measured.predictions)
        still = self._meter.still(untrained.layers)
        sizes = self._sizes(trainee, first_batch) if self._looks_at_untrained else None
        losses = train_loss[:, None]
        dynamics, displacements = self._meter.measure(untrained, untrained, losses, lr[:, None], still, untrained=sizes)
        state = EpisodeState(
            trainee,
            lr[:, None].repeat(1, self.control.rates),
            hyper,
            dynamics,
            measured.metric,
            measured.predictions,
            displacements,
            Checkpoint(measured.loss, trainee.params, trainee.buffers),
            torch.zeros(n, dtype=torch.bool, device=lr.device),
            self._gradients.start(trainee, hyper) if self._gradients else (),
        )
        # Each leaf a tensor of its own: a compiler would take one that stands in two places as a promise.
        own: EpisodeState = tree_map(torch.clone, state)
        return own, self.time_step(own)

    def _sizes(self, trainee: TraineeState, first_batch: Tensor) -> Untrained:
        """The sizes of the weights and of the gradient on the first batch (n, b)."""
        network = self.trainee.network
        gradient = self.trainee.gradient(trainee, first_batch).grads
        gradient_squares, weight_squares = (network.summed(x.square(), "layer") for x in (gradient, trainee.params))
        return Untrained.of(gradient_squares, weight_squares, network.pieces["layer"])

    def measurement_due(self, inner_step: NDArray[np.int64], ended: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
        """Returns which environments are measured on the validation split at the end of their next decision (n,).

        The end of the budget is measured in any case.

        Args:
            inner_step: (n,), inner steps that the trainees have taken.
            ended: (n,), which episodes are over. These are measured when all others are, so that they alone cause no
                measurement.

        Returns:
            None where the task measures every decision.
        """
        if self.task.measure_interval is None:
            return None
        after = np.minimum(inner_step + self.task.interval, self.task.budget)
        due = (after % self.task.measure_interval == 0) | (after == self.task.budget)
        followed: NDArray[np.bool_] = np.where(ended, due[~ended].all(), due)
        return followed

    @with_own_settings
    def step(
        self, state: EpisodeState, action: Tensor, due: NDArray[np.bool_] | None = None, donate: bool = False
    ) -> tuple[EpisodeState, TimeStep]:
        """Makes one decision: applies the actions (n, A), trains for an interval, measures.

        The action already applies to this interval. A trainee with a non-finite loss or weight has diverged:
        its episode terminates, and what it computes from here on touches no other.

        Args:
            state: n episodes.
            action: (n, A).
            due: (n,), which environments to measure on the validation split, as `measurement_due` says.
            donate: the caller has no more use for `state`, which may be overwritten, and none for the state and the
                time step that come out after the next step. It spares copies where decisions are captured.

        Returns:
            The state after the decision, and its time step.

        Raises:
            ValueError: the task is not measured at every decision, and `due` was left out.
        """
        if due is None and self.task.measure_interval is not None:
            raise ValueError("this task has a measure_interval: say which are due, by `Episode.measurement_due`")
        chunks = self.trainee.chunks(len(action))
        shares = [None] * len(chunks) if due is None else np.split(due, np.cumsum(chunks)[:-1])
        decide = self._decided
        if self._captured is not None and not torch.is_grad_enabled():
            decide = partial(self._captured, donate=donate and len(chunks) == 1)
        parts = zip(cut(state, chunks), cut(action, chunks), shares, strict=True)
        return join([decide(own, acts, _all_or_some(asked, action.device)) for own, acts, asked in parts])

    def holds(self, tree: Any) -> bool:
        """Returns whether the next step with `donate` may overwrite a state, a time step, or a tree of them."""
        return self._captured is not None and self._captured.holds(tree)

    @with_own_settings
    def trained(
        self, state: EpisodeState, trainee: TraineeState, losses: Tensor, lr: Tensor, due: NDArray[np.bool_] | None
    ) -> tuple[EpisodeState, TimeStep]:
        """Returns a decision as `step` makes it, of trainees that something else has trained for the interval.

        Args:
            state: n episodes before the interval.
            trainee: after it, with the weights that are to be measured.
            losses: (n, N) of its steps.
            lr: (n, K) rates to report.
            due: as for `step`.
        """
        return self._measure(state, trainee, losses, lr, state.hyper, {}, _all_or_some(due, lr.device))

    def _decided(self, state: EpisodeState, action: Tensor, due: Tensor | bool) -> tuple[EpisodeState, TimeStep]:
        """A decision of one chunk; `due` (n,) tells which environments to measure, True means all, False none."""
        lr, hyper = self.control.apply(action, state.lr, state.hyper)
        trainee, observed, losses = self.trainee.inner_loop(
            state.trainee, lr, hyper, self.task.interval, self._until, self._gradients, state.observed
        )
        after, time_step = self._measure(state, trainee, losses, lr, hyper, _sums(observed), due)
        return after._replace(observed=observed), time_step

    def _measured(
        self,
        state: EpisodeState,
        trainee: TraineeState,
        losses: Tensor,
        lr: Tensor,
        hyper: Hyper,
        sums: dict[str, Tensor],
        due: Tensor | bool,
    ) -> tuple[EpisodeState, TimeStep]:
        """The state and the time step after an interval that began in `state` and had the training losses (n, N).

        Args:
            state: before it.
            trainee: after it.
            losses: (n, N).
            lr: the rates of the interval.
            hyper: its hyperparameters.
            sums: over its gradients.
            due: (n,); the others keep what was last measured on the validation split.
        """
        # A tensor of its own: the loss before stays in the state, too.
        last = Measurement(state.dynamics.val_loss.clone(), state.metric, state.predictions)
        weights = self.trainee.optimizer.evaluated(trainee.params, trainee.opt)
        measured = last if due is False else self.trainee.evaluate(weights, trainee.buffers, self.trainee.val)
        if isinstance(due, Tensor):
            measured = select(due, measured, last)
        start = state.trainee
        before = Trained(start.step, self._layers(start), state.dynamics.val_loss, state.predictions)
        now = Trained(trainee.step, self._layers(trainee), measured.loss, measured.predictions)
        dynamics, displacements = self._meter.measure(before, now, losses, lr, state.displacement, state.dynamics)
        diverged = state.diverged | ~(dynamics.train_loss.isfinite() & measured.loss.isfinite())
        diverged = diverged | ~trainee.params.sum(1).isfinite()  # one pass: a sum keeps NaN and infinity
        best = state.best
        if due is not False:
            present = Checkpoint(measured.loss, weights, trainee.buffers)
            best = select((measured.loss < state.best.val_loss) & ~diverged, present, state.best)
        after = EpisodeState(
            trainee, lr, hyper, dynamics, measured.metric, measured.predictions, displacements, best, diverged, ()
        )
        return after, self._time_step(after, sums)

    def _layers(self, trainee: TraineeState) -> tuple[Tensor, Tensor]:
        """The weights (n, size) of the first and of the last layer."""
        network = self.trainee.network
        return trainee.params[:, network.first], trainee.params[:, network.last]

    @with_own_settings
    def time_step(self, state: EpisodeState) -> TimeStep:
        """Returns the time step of a state, which `step` and `reset` give with it, computed from the state alone."""
        return self._time_step(state, _sums(state.observed))

    def _time_step(self, state: EpisodeState, sums: dict[str, Tensor]) -> TimeStep:
        ended = state.trainee.step >= self.task.budget
        info = {
            "train_loss": state.dynamics.train_loss,
            "val_loss": state.dynamics.val_loss,
            "lr": state.lr[:, 0] if state.lr.shape[1] == 1 else state.lr,
            "inner_step": state.trainee.step,
            "diverged": state.diverged,
        }
        if self.trainee.metric:
            info[f"val_{self.trainee.metric}"] = state.metric
        reward = self.reward(state.dynamics, state.diverged)
        constant = {name: x.expand(len(state.lr), -1) for name, x in self._constant.items()}
        white_box = {"parameters": state.trainee.params} | constant | sums
        observation = self.observer.observe(state.dynamics, white_box)
        return TimeStep(observation, reward, state.diverged | ended, info)

    @with_own_settings
    def test(self, state: EpisodeState, rows: Tensor) -> dict[str, Tensor]:
        """Returns test loss and metric, (m,) each, of both results of the episodes `rows` (m,).

        They are `test_loss` and so on of the best checkpoints, and `final_test_loss` and so on of the last networks.
        Where a run diverged its final loss is infinite, and its final metric NaN.
        """
        parts = cut(rows, self.trainee.chunks(len(rows)))
        best = join([self._tested(state.best.params, state.best.buffers, part) for part in parts])
        weights = self.trainee.optimizer.evaluated(state.trainee.params, state.trainee.opt)
        last = join([self._tested(weights, state.trainee.buffers, part) for part in parts])
        diverged, metric = state.diverged[rows], self.trainee.metric
        measured = {"test_loss": best.loss, "final_test_loss": last.loss.masked_fill(diverged, math.inf)}
        if metric:
            final = last.metric.masked_fill(diverged, math.nan)
            measured |= {f"test_{metric}": best.metric, f"final_test_{metric}": final}
        return measured

    def _tested(self, params: Tensor, buffers: Tensors, rows: Tensor) -> Measurement:
        own = {name: buffer[rows] for name, buffer in buffers.items()}
        return self.trainee.evaluate(params[rows], own, self.trainee.test)

    def _initial_lr(self, seed: Tensor, initial_lr: InitialLR) -> Tensor:
        rates = torch.tensor(initial_rates(initial_lr), dtype=self.trainee.dtype).to(seed.device)
        chance = draws.uniform(draws.fold(seed, draws.INITIAL_LR), dtype=self.trainee.dtype)
        if isinstance(initial_lr, LogUniform):
            return rates[0] * (rates[1] / rates[0]) ** chance
        return rates[(chance * len(rates)).long()]


def _all_or_some(due: NDArray[np.bool_] | None, device: torch.device) -> Tensor | bool:
    """Which environments are due (n,), or True where all are, and False where none is."""
    if due is None or due.all():
        return True
    return torch.from_numpy(due).to(device) if due.any() else False


def _sums(observed: Observed | tuple[()]) -> dict[str, Tensor]:
    return observed.sums if isinstance(observed, Observed) else {}
