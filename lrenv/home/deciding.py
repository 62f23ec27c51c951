"""One decision after another: what is seen, what the agent does, what stands in its way, and what is set."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrenv.home.driver import Act, Driver
from lrenv.home.fallback import Fallback
from lrenv.home.history import Decision, History
from lrenv.home.observing import Observing
from lrenv.home.processes import from_first
from lrenv.home.rates import BELOW, Rates
from lrenv.home.telling import Telling
from lrenv.runtime.transfer import to_host
from lrenv.training.optimizers import Hyper

CHANGED = "something else had set the rate"
"""Why the rate of the steps before was not the controller's."""
LATE = "taken after the first step, which was at the optimizer's own rate"
"""Why the rate of the first step was not the controller's, where it was not shown the loss before."""
REPLACED = "the optimizer's groups were replaced"
"""Why the ratios of rates are others than before."""


class Outcome(NamedTuple):
    """What came of a decision."""

    act: Act  # what the agent, or the schedule that took over, asks for
    observation: dict[str, float]  # signal -> value
    train_loss: float
    val_loss: float
    why: tuple[str, ...]  # what is remarkable about it


class Decider:
    """Decides for a loop.

    Args:
        driver: the agent.
        observing: looks at the loop.
        fallback: takes over where the agent was not trained.
        rates: what the loop's optimizer is driven with.
        every: N, steps between two decisions.
        device: of what processes send to one another.

    Attributes:
        driver, rates: as above.
        tell: says each kind of thing to the user once.
        history: the latest decisions.
    """

    def __init__(
        self, driver: Driver, observing: Observing, fallback: Fallback, rates: Rates, every: int, device: torch.device
    ) -> None:
        self.driver, self.rates = driver, rates
        self._observing, self._fallback, self._every, self._device = observing, fallback, every, device
        self.tell, self.history = Telling(), History()

    def decide_every(self, every: int) -> None:
        """Sets N, the steps between two decisions."""
        self._every = every
        self._observing.interval = every

    def decide(self, step: int, horizon: float, losses: Tensor | None, remarks: Sequence[str] = ()) -> None:
        """A decision, which is carried out as far as it may be, and remembered.

        Args:
            step: optimizer steps so far.
            horizon: T.
            losses: (k,) of the steps since the last decision; None if there are none.
            remarks: what is remarkable about it already.
        """
        groups = self.rates.groups
        replaced = groups.replaced()
        if replaced:
            self.driver.check_whole(groups.parameters())
        if not groups.hold(self._observing.watched):
            self.tell(
                "replaced",
                "the optimizer's groups were replaced, and it no longer trains the layers that are looked at: make a "
                "new controller for it",
            )
        elif replaced:
            self.tell(
                "regrouped",
                "the optimizer's groups were replaced: the new ones' rates keep their ratios to the first rate of the "
                f"old ones, {groups.base:g}; make a new controller if that isn't meant",
            )
        if self._observing.leaves_out(groups):
            self.tell(
                "added",
                f"agent {self.driver.name!r} observes gradients, and not those of all parameters that are trained "
                "now: pass the module that holds them, or make a new controller where they came later",
            )
        if changed := groups.changed():
            self.tell(
                "changed",
                f"something else has set the optimizer's rate before step {step}, and the controller sets its own at "
                "every decision: take the other scheduler out of the loop, or try the agent beside it with shadow=True",
            )
        outcome = self._decided(step, horizon, losses, self.rates.lr, self.rates.hyper)
        proposed = outcome.act.lr[0].tolist()
        why = self.rates.decide(proposed, outcome.act.hyper)
        if BELOW in why:
            self.tell(
                "negative",
                f"agent {self.driver.name!r} asked for the rate {min(proposed):g} at step {step}: the rate stays as it "
                "is until it asks for one of 0 or more",
            )
        self._observing.clear()
        hyper = {name: float(value) for name, value in outcome.act.hyper.items()}
        self.history.add(
            Decision(
                step, groups.rates_of_cells(), groups.rates_at(proposed), hyper, outcome.train_loss, outcome.val_loss,
                outcome.observation, outcome.act.action,
                (*remarks, *outcome.why, *why, *[CHANGED] * changed, *[REPLACED] * replaced),
            )
        )  # fmt: skip

    def _decided(self, step: int, horizon: float, losses: Tensor | None, lr: Tensor, hyper: Hyper) -> Outcome:
        """What the agent, or the schedule that took over from it, asks for after steps with these rates (1, K)."""
        # Where training had gone on after the end, a schedule joins in between two decisions.
        foreseen = self.driver.foreseen(step - step % self._every, horizon, self._every, lr, hyper)
        if foreseen is not None:
            return Outcome(foreseen.act, foreseen.observation, torch.nan, torch.nan, ())
        seen = self._observing.look(step, horizon, losses, lr)
        # In one transfer, for which the device is waited for.
        host = to_host((seen.observation, seen.outside, seen.finite, seen.dynamics.train_loss, seen.dynamics.val_loss))
        observation, outside, finite, train_loss, val_loss = host
        act, why = Act((), lr, hyper), []
        if not finite[0]:
            what = "a loss, a weight or a gradient"
            why.append(f"{what} is not finite")
            self.tell("broken", f"{what} was not finite at step {step}: the rate stays until they are")
        else:
            self._observing.keep()
            if strange := self.driver.unfamiliar(observation, outside):
                why.append(f"outside what the agent was trained on: {', '.join(strange)}")
            if self._fallback.notice(bool(strange), step, lr[0].tolist()):
                endless = ", at which one that decays to an end stays, for the run has none" * math.isinf(horizon)
                self.tell(
                    "fallback",
                    f"for {self._fallback.patience + 1} decisions in a row the agent saw what it was not trained on "
                    f"({', '.join(strange)}): from step {step} the schedule {self._fallback.name!r} goes on from the "
                    f"rate of that moment{endless}",
                )
            if self._fallback.since is None:
                act = self.driver.act(observation, lr, hyper)
                why += act.remarks
            else:
                why.append(f"the schedule {self._fallback.name!r} has taken over")
                rates = self._fallback.rates(step, horizon, self._every)
                act = act._replace(lr=torch.tensor([rates], dtype=lr.dtype, device=lr.device))
        named = self.driver.named(observation)
        return Outcome(self._agreed(act), named, float(train_loss[0]), float(val_loss[0]), tuple(why))

    def averaged(self, losses: Tensor) -> Tensor:
        """The losses (k,) of the whole batches, of which each process has seen a share."""
        return self._observing.averaged(losses)

    def _agreed(self, act: Act) -> Act:
        """What the first process decided."""
        rate, *others = (from_first(x.to(self._device)).cpu() for x in (act.lr, *act.hyper.values()))
        return act._replace(lr=rate, hyper=dict(zip(act.hyper, others, strict=True)))

    def state(self) -> dict[str, Any]:
        """What later decisions depend on: plain values and tensors."""
        return {
            "rates": self.rates.state(),
            "driver": self.driver.state(),
            "observing": self._observing.state(),
            "fallback": self._fallback.state(),
        }

    def restoring(self, state: dict[str, Any]) -> Callable[[], None]:
        """Reads what `state` gave, and returns what goes on from it: nothing changes if some of it can't be read."""
        restores = (
            self.rates.restoring(state["rates"]),
            self.driver.restoring(state["driver"]),
            self._observing.restoring(state["observing"]),
            self._fallback.restoring(state["fallback"]),
        )

        def restore() -> None:
            for each in restores:
                each()

        return restore
