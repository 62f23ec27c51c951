"""Trains coordinatewise LSTMs on running trainees, by hypergradients: both kinds of `lrenv.agents.noh.agent`.

An iteration is a window of decisions. The LSTM is differentiated through all of them, the trainee through none: with
the actions a_k of decision k and the derivatives dl/da_k of the trainee's loss by them, theta descends

    sum_k <dl/da_k, a_k(theta)>,

whose gradient is that of the trainee's loss by the chain rule (Fu et al. 2017, figure 2). Adam takes one step, and the
carry goes on into the next window as a constant. Runs follow one another: a meta-iteration is one run of `budget` inner
steps. What is common to this and to `evolution.py` is `LSTMTraining`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lrenv.agents.noh.agent import CONTROLS, LSTMPolicy
from lrenv.agents.noh.lstm import CoordinateLSTM
from lrenv.agents.noh.settings import NOHSettings
from lrenv.agents.outer.training import Controller, Training, on_host
from lrenv.benchmark.evaluation import Result, evaluate
from lrenv.benchmark.selection import selection_losses
from lrenv.envs.episode import Episode, EpisodeState
from lrenv.runtime.memory import choose_device
from lrenv.training.dynamics import one_rate
from lrenv.training.optimizers import adam, descend
from lrenv.training.rollout import rollout

Between = tuple[EpisodeState, tuple[Tensor, ...]]
"""The trainees and the LSTM's carry between two decisions."""


class LSTMTraining(Training[NOHSettings]):
    """A training of a coordinatewise LSTM.

    Args:
        kind: of the policy.
        settings: of the training.
    """

    unit = "windows"

    def __init__(self, kind: type[LSTMPolicy], settings: NOHSettings) -> None:
        super().__init__(settings, settings.make_task())
        interval, optimizer = self.task.interval, self.task.optimizer
        assert isinstance(optimizer, str)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network = CoordinateLSTM(settings.architecture, settings.gain, settings.memory)
        self.policy = kind(settings.architecture, interval, optimizer, network, settings.per)
        control, device = CONTROLS[settings.per], choose_device(settings.device)
        self._episode = Episode(self.task, control, self._observed, device=device, compile=settings.compile)
        self._network = self.policy.network.to(device)
        self._adam = adam()
        self._moments = self._adam.init(self._weights)
        self._begin(0)

    @property
    def _observed(self) -> tuple[str, ...]:
        """What the episode has to show."""
        assert isinstance(self.policy.view.observe, tuple)
        return self.policy.view.observe

    @property
    def windows(self) -> int:
        """The number of windows of a run; the last one may be shorter."""
        return -(-self._episode.decisions // self.settings.unroll) if self.settings.windowed else 1

    @property
    def iterations(self) -> int:
        """The number of windows of the whole training."""
        return self.settings.meta_iterations * self.windows

    @property
    def _weights(self) -> Tensor:
        return parameters_to_vector(self._network.parameters()).detach()[None]

    def _begin_window(self) -> range:
        """Starts the trainees of a run where one begins; gives the numbers of the decisions of the next window."""
        run, window = divmod(self.iteration, self.windows)
        if self.iteration and window == 0:
            self._begin(run)
        first, decisions = window * self.settings.unroll, self._episode.decisions
        return (
            range(first, min(first + self.settings.unroll, decisions)) if self.settings.windowed else range(decisions)
        )

    @abstractmethod
    def _begin(self, run: int) -> None:
        """Starts the trainees of a run, and the LSTM's carry with them."""

    def _see(self, state: EpisodeState) -> dict[str, Tensor]:
        """What the policy is shown of running trainees."""
        return {part: _finite(state, part) for part in self.policy.view.observe}

    def _descend(self, gradient: Tensor) -> None:
        """Takes a step of Adam on the LSTM's weights along a gradient (D,); one along 0 where it overflows."""
        weights, grads = self._weights, gradient[None]
        grads = grads.where(grads.isfinite().all(), 0)
        beta1, rate = (weights.new_full((1, 1), x) for x in (0.9, self.settings.meta_lr))
        direction, self._moments = self._adam.direction(grads, self._moments, weights, {"momentum": beta1})
        vector_to_parameters(descend(weights, direction, rate)[0], self._network.parameters())

    def held_out_loss(self, controller: Controller) -> float:
        """Returns the mean loss at the end of held-out runs; infinite if one diverges."""
        # Nothing is chosen by validation losses on the way, so they are not measured there.
        task = replace(self.task, measure_interval=self._episode.decisions * self.task.interval)
        result = evaluate(controller, task, self.held_out_seeds, device=self.settings.device)
        return float(selection_losses(self._last_losses(result), result.diverged).mean())

    @abstractmethod
    def _last_losses(self, result: Result) -> NDArray[Any]:
        """The losses (runs,) by which controllers are chosen."""

    def controller(self) -> LSTMPolicy:
        """Returns the policy with its weights so far."""
        return self.policy

    def state(self) -> dict[str, Any]:
        """Returns the tensors that the next window depends on."""
        network = dict(self._network.state_dict())
        return {"network": network, "moments": self._moments, "carry": self._carry, "env": self._state}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Restores a state, after which the training goes on exactly as it would have."""
        self._network.load_state_dict(state["network"])
        self._moments, self._carry, self._state = (state[name] for name in ("moments", "carry", "env"))


class NOHTraining(LSTMTraining):
    """A training by hypergradients, the paper's way. For the arguments see `LSTMTraining`."""

    @property
    def _observed(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*super()._observed, "hypergradient")))

    @property
    def episodes(self) -> int:
        """The number of trainees that were trained so far."""
        return self.iteration * self.settings.envs // self.windows

    def _begin(self, run: int) -> None:
        envs = self.settings.envs
        with torch.no_grad():
            self._state, _ = self._episode.reset(self.training_seeds(envs, run * envs))
        self._carry = self._network.start(*self._state.lr.shape)

    def iterate(self) -> dict[str, float]:
        """Runs a window and updates the LSTM; gives what to log."""
        decisions = self._begin_window()
        outputs, (self._state, carry) = rollout(self._decision, self._network, (self._state, self._carry), decisions)
        action, hypergradients, losses = (torch.stack(parts) for parts in zip(*outputs, strict=True))
        self._carry = tuple(x.detach() for x in carry)
        loss = (self.policy.action_gradients(hypergradients) * action).sum()
        self._descend(parameters_to_vector(torch.autograd.grad(loss, list(self._network.parameters()))))
        rates = one_rate(action.detach())
        row = on_host({
            "train/loss": losses.mean(), "train/loss_last": losses[-1].mean(), "train/rate_first": rates[0].mean(),
            "train/rate_last": rates[-1].mean(), "train/diverged": self._state.diverged.sum(),
        })  # fmt: skip
        return row | {"train/diverged": int(row["train/diverged"])}

    def _decision(self, network: CoordinateLSTM, state: Between, number: int) -> tuple[tuple[Tensor, ...], Between]:
        """Gives the actions (n, P), the loss's derivatives (n, P) by them, and the training losses (n,).

        The actions alone have a graph.
        """
        episode, carry = state
        action, carry = self.policy.act(self._see(episode), carry)
        with torch.no_grad():
            nobody = np.zeros(self.settings.envs, dtype=bool)
            episode, _ = self._episode.step(episode, action.detach(), due=nobody)
        return (action, _finite(episode, "hypergradient"), episode.dynamics.train_loss), (episode, carry)

    def _last_losses(self, result: Result) -> NDArray[Any]:
        """The training losses, means over the last tenth of the decisions."""
        last: NDArray[Any] = result.curves["train_loss"][-math.ceil(self._episode.decisions / 10) :].mean(0)
        return last

    def status(self, row: dict[str, float]) -> str:
        """Returns the training loss, and the first and the last rate of the window."""
        rates = " ".join(f"{row[f'train/rate_{at}']:.1e}" for at in ("first", "last"))
        return f"train loss {row['train/loss']:.4f}  lr {rates}"


def _finite(state: EpisodeState, part: str) -> Tensor:
    """A white-box part (n, P) of the observation; 0 for trainees that have diverged, so that they add no gradient.

    One decision before a trainee diverges, products of finite gradients may overflow; these are 0, too.
    """
    assert state.observed
    sums = state.observed.sums[part]
    return sums.where(~state.diverged[:, None] & sums.isfinite().all(1, keepdim=True), 0)
