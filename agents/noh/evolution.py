"""Trains coordinatewise LSTMs by what becomes of whole runs, which is not in the paper of Fu et al. 2017.

A hypergradient looks one step ahead, and what is good for the next step, a low rate that averages out the noise of
batches, is bad for the run. Here the LSTM's weights theta descend the loss at the end of the run,

    L = min(1, log(v_T / v_0)),    v_t: the validation loss after t inner steps; L is 1 for runs that diverge,

by the estimators of `lrenv.agents.outer.gradient_estimators`: a population of antithetic pairs, each trainee with an
LSTM of its own weights theta + e or theta - e, is one batch. The last loss is what results are compared by; a mean over
decisions would be short-sighted, too, for it pays for a fast start at the cost of the end. The logarithm and the bound
keep a few perturbed policies that ruin their trainees from outweighing all others.

PES needs a loss for each window of a run, and L is the sum of the rises of min(1, log(v_t / v_0)) over the windows. So
all estimators have the same L.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrenv.agents.noh.agent import LSTMPolicy
from lrenv.agents.noh.settings import HYPERGRADIENT, NOHSettings
from lrenv.agents.noh.training import Between, LSTMTraining, NOHTraining
from lrenv.agents.outer.gradient_estimators import (
    DIFFERENTIATED,
    ESTIMATORS,
    Rollout,
    evaluated,
    paired,
    perturbations,
)
from lrenv.agents.outer.training import on_host
from lrenv.agents.outer.validation import fall_of
from lrenv.benchmark.evaluation import Result
from lrenv.envs.episode import EpisodeState
from lrenv.randomness import draws
from lrenv.training.dynamics import one_rate
from lrenv.training.rollout import rollout


class EvolutionTraining(LSTMTraining):
    """A training by evolution strategies and their like. For the arguments see `LSTMTraining`."""

    @property
    def episodes(self) -> int:
        """The number of trainees that were trained so far."""
        return self.iteration * 2 * self.settings.pairs // self.windows

    def _begin(self, run: int) -> None:
        pairs = self.settings.pairs
        with torch.no_grad():
            self._state = paired(self._episode.reset(self.training_seeds(pairs, run * pairs))[0])
        self._carry = self._network.start(*self._state.lr.shape)
        self._accumulated = self._weights.new_zeros(pairs, self._weights.shape[1])

    def iterate(self) -> dict[str, float]:
        """Runs a population through a window, or a whole run, and moves theta; gives what to log."""
        settings, theta = self.settings, self._weights[0]
        window = self._window(self._begin_window())
        generator = draws.generator(settings.seed, draws.POLICY, self.iteration)
        noise = perturbations(settings.pairs, theta, settings.sigma, generator)
        self._accumulated = self._accumulated + noise
        samples = evaluated(
            window, theta, noise, settings.sigma, (self._state, self._carry), settings.estimator in DIFFERENTIATED,
            self._accumulated if settings.estimator == "pes" else None,
        )  # fmt: skip
        self._state, self._carry = samples.state
        gradient = ESTIMATORS[settings.estimator](samples)
        self._descend(gradient)
        rates = self._state.lr
        row = on_host({
            "outer/loss": samples.loss.mean(), "outer/gradient_norm": gradient.norm(),
            "train/rate_last": one_rate(rates).mean(),
            "train/rate_spread": rates.abs().clamp(min=1e-12).log().std(1, correction=0).mean(),
            "train/diverged": self._state.diverged.sum(), "lowest": self._state.dynamics.initial_val_loss.min(),
        })  # fmt: skip
        if row.pop("lowest") <= 0:
            raise ValueError(
                f"the estimator {settings.estimator} takes logarithms of validation losses, but untrained networks of "
                f"{self.task.name} have losses of 0 or less: add a constant to the loss, or use {HYPERGRADIENT}"
            )
        return row | {"train/diverged": int(row["train/diverged"])}

    def _window(self, decisions: range) -> Rollout[Between]:
        """Some decisions as a rollout; the loss is the rise of L over them. It is measured at their end alone."""

        def decision(theta: Tensor, between: Between, number: int) -> tuple[tuple[()], Between]:
            state, carry = between
            output, carry = self._network.perturbed(theta, self.policy.inputs(self._see(state)), carry)
            due = np.full(len(theta), number == decisions[-1])
            state, _ = self._episode.step(state, self.policy.action(output), due)
            return (), (state, carry)

        def window(theta: Tensor, between: Between) -> tuple[Tensor, Between]:
            _, after = rollout(decision, theta, between, decisions, recompute=True)
            return _loss(after[0]) - _loss(between[0]), after

        return window

    def _last_losses(self, result: Result) -> NDArray[Any]:
        """The last validation losses."""
        return result.final_val_loss

    def status(self, row: dict[str, float]) -> str:
        """Returns L, and the last rate with its spread over what has rates of its own."""
        rates = f"{row['train/rate_last']:.1e} */ {math.exp(row['train/rate_spread']):.2f}"
        return f"log loss {row['outer/loss']:.3f}  lr {rates}"

    def state(self) -> dict[str, Any]:
        """Returns the tensors that the next update depends on; no trainee lives on after a whole run."""
        if self.settings.windowed:
            return super().state() | {"accumulated": self._accumulated}
        return {name: x for name, x in super().state().items() if name in ("network", "moments")}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Restores a state, after which the training goes on exactly as it would have."""
        between = {"carry": self._carry, "env": self._state, "accumulated": self._accumulated}
        super().restore_state(between | state)
        self._accumulated = (between | state)["accumulated"]


def _loss(state: EpisodeState) -> Tensor:
    """L (n,) as it was last measured."""
    return fall_of(state.dynamics.initial_val_loss, state.dynamics.val_loss, state.diverged)


def lstm_training(kind: type[LSTMPolicy], settings: NOHSettings) -> LSTMTraining:
    """Returns the training by the estimator that the settings have."""
    return (NOHTraining if settings.estimator == HYPERGRADIENT else EvolutionTraining)(kind, settings)
