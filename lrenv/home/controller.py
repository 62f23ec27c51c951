"""`LRController`: a learning-rate scheduler for any PyTorch loop, whose rates an agent chooses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from lrenv.controllers.agent import Agent
from lrenv.envs.actions import is_relative
from lrenv.home.assembly import Settings, assemble
from lrenv.home.deciding import LATE
from lrenv.home.fallback import Schedule
from lrenv.home.gradients import Gradients
from lrenv.home.layers import Layer
from lrenv.home.processes import is_first
from lrenv.home.saving import Progress, of_other_horizon, read, state_of
from lrenv.home.stepping import Losses, Steps, listeners_of, loss_of
from lrenv.home.validation import Evaluate
from lrenv.lookup import count
from lrenv.runtime.ambient import own_settings

IDLE = 100
"""Calls of `step` in a row without a step of the optimizer, after which that is said: gradients are seldom accumulated
over as many batches, and a GradScaler, which halves its scale at each step that it skips, begins at 2^16. The same
number of steps without a call of `step` is told of, too."""

FAR_ABOVE = 10.0
"""A first step at so many times the rate that the agent chooses for it, or more, is told of."""

MOST_UNSETTLED = 10_000
"""The steps at most that wait to be asked whether a fused optimizer took them: each keeps a number on the device."""


class LRController(LRScheduler):
    """Drives the learning rate of a PyTorch loop with an agent; `step(loss)` after each step of the optimizer.

        controller = lrenv.LRController(optimizer, "controller.safetensors", horizon=5000, evaluate=validate)
        for x, y in batches:
            loss = loss_function(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            controller.step(loss)

    The agent decides before the first step of the optimizer and then every `every` steps; in between, `step` only keeps
    the loss where it is, and nothing waits for the device. What the agent observes is computed by the functions that
    environments use, and what it does is carried out by them: it chooses the rates that it would choose in an
    environment of the same task. To the last detail this needs `start(loss)` before the first step, for an environment
    shows the loss of the first batch before it is trained on; otherwise the validation loss stands for it, or where
    there is none, the agent first decides when the first `step` brings that loss.

    Steps are those that the optimizer took: calls of `step` while a GradScaler skips steps, or gradients are
    accumulated, don't count, nor does their loss. With several processes, losses are averaged over them, and the
    first one's measurements and decisions are everyone's. Schedules look at no loss, and so ask for none.

    Losses are compared with the first one, on a log scale by most agents that look at them: it should be well above 0.

    An agent that observes gradients decides within `optimizer.step`, before the step, at the gradient that it will be
    taken with; one that looks at the first gradient alone decides so once, and for it that gradient is kept. One that
    sets a rate per layer has the optimizer's groups split by layer, once and for all; a warning says so.

    A loss, weight or gradient that is no number leaves the rate as it is until there are numbers again, and so does an
    agent that asks for a rate below 0.

    It can't be copied or pickled, for it listens to this one optimizer: make another and load `state_dict` into it.

    Args:
        optimizer: whose rates are driven. The agent sets that of the group whose rate is the highest when the
            controller is made, among those that are trained: relative controls start from it, and the other groups keep
            their ratio to it, or to their layer's. The rate of a group that is added later counts as an initial one:
            from the next step on, the group's ratio is that of its own rate to the first rate of that group, not to
            that of the moment.
        agent: a name (`cosine:peak=0.1`), the path of a controller file, an agent, or a model of Stable-Baselines3.
        horizon: T, steps of the optimizer in all; None for a run without an end, for agents that don't look at it.
        every: N, steps between two decisions; by default the agent's own interval, 1 for schedules, and a hundredth of
            the horizon for others.
        evaluate: called at decisions: gives the validation loss, or (logits, targets) of the same examples each time.
            No gradients are recorded meanwhile; a loss that is made of some says `with torch.enable_grad()`.
        bounds: the rate that the agent sets is kept between these two, and the highest of the optimizer's own at a
            first step that is taken before the agent decides. A group that is added or unfrozen later, whose first rate
            is higher, has more.
        shadow: whether to change nothing, and only keep in `history` what would be done to the rates that there are.
        module: is in evaluation mode while `evaluate` runs, has the layers of agents that set a rate for each, and its
            order of parameters tells the first and the last one; without it, that of the optimizer's groups does.
        first: the weight of the first layer, or its name in `module`; found as in environments if None.
        last: that of the last layer.
        layers: what agents that set a rate per layer take for one: "module", the modules that hold parameters, as in
            environments; or "groups", the optimizer's parameter groups as they are.
        loss: what logits and targets give, a name in `lrenv.training.losses.LOSSES`.
        batch_size: the number of examples that a step of the optimizer sees, on all processes and in all accumulated
            batches, for agents that observe it.
        target_std: the standard deviation of the training targets where they are numbers; by default that of the
            validation targets.
        fallback: a schedule that takes over from the rate of the moment, over the steps that are left, if the agent saw
            what it was not trained on at more than `patience` decisions in a row; None for never.
        patience: how many such decisions are let pass.

    Attributes:
        history: the latest decisions (`lrenv.home.history.History`).
        horizon: T.
        every: N.
        last_epoch: steps so far, as torch's schedulers call them.
        base_lrs: the initial rates of all groups; one that is added later is among them from the next step on.

    Raises:
        ValueError: the agent needs what there is not: a horizon, an evaluation, a module, further gradients, rates per
            parameter; or the model is frozen, or settings can't be meant. The message says what to do.
        TypeError: something else than what is asked for.
        FileNotFoundError: no such controller file.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        agent: str | Path | Agent,
        horizon: int | None = None,
        every: int | None = None,
        evaluate: Evaluate | None = None,
        bounds: tuple[float, float] | None = None,
        shadow: bool = False,
        *,
        module: nn.Module | None = None,
        first: Layer = None,
        last: Layer = None,
        layers: str = "module",
        loss: str = "cross_entropy",
        batch_size: int | None = None,
        target_std: float | Tensor | None = None,
        fallback: str | None = "linear",
        patience: int = 10,
    ) -> None:
        # The constructor of torch's schedulers, which is not called, would set rates at once.
        self.optimizer = optimizer
        horizon = None if horizon is None else count("horizon", horizon)
        settings = Settings(
            horizon, every, evaluate, bounds, shadow, module, first, last, layers, loss, batch_size, target_std,
            fallback, patience,
        )  # fmt: skip
        with own_settings():  # such as a default device
            assembled = assemble(optimizer, agent, settings)
        self._decider, self._gradients, self._untrained, self.every, self._can_begin = assembled
        self._driver, self._rates = self._decider.driver, self._decider.rates
        self._tell, self.history = self._decider.tell, self._decider.history
        self.horizon, self._shadow, self._stepped = horizon, shadow, False
        self._every_given = every is not None
        self._begun = False
        self._first: Tensor | None = None  # the loss (1,) that the agent is shown before the first step
        self._losses = Losses()
        self._idle = self.last_epoch = 0
        self._due = 0.0  # the step at which there is something to do next
        self._plan()
        self.base_lrs: Any = self._rates.groups.initial()
        self._at_gradients = self._gradients is not None or self._untrained is not None
        self._stepping = Steps(optimizer, self._before_step, self._at_gradient, self._looks_at_this_step)

    def __repr__(self) -> str:
        return f"LRController({self._driver.name}, step {self.last_epoch} of {self.horizon or 'any number'})"

    def __reduce__(self) -> NoReturn:
        """Refuses `copy.copy`, `copy.deepcopy` and `pickle`: a copy would hear of no step of the copied optimizer."""
        raise TypeError(
            "an LRController can't be copied or pickled, for it listens to the steps of its one optimizer: make a new "
            "one for the other optimizer, and give it what state_dict() gives by load_state_dict()"
        )

    def start(self, loss: Tensor | float | None = None) -> None:
        """Lets the agent decide before the first step; without this call, that happens as the optimizer steps first.

        An agent that observes gradients, or the first one, decides as the optimizer steps in any case, and is shown
        this loss.

        Args:
            loss: of the first batch, before it is trained on; once the agent has decided, nothing happens.
        """
        if self._begun:
            return
        self._first = self._first if loss is None else loss_of(loss).reshape(1)
        if not self._at_gradients:
            self._begin()

    def _begin(self, late: bool = False) -> None:
        """Takes the first decision; late, after a step at the optimizer's own rates."""
        relative = is_relative(self._driver.view.control)
        if relative and not self._shadow and (told := self._rates.groups.moved()):
            self._tell("moved", told)
        own = self.get_last_lr() if late and not self._shadow else []
        self._decide(self._first, (LATE,) if late else ())
        self._begun, self._first = True, None
        for rate, chosen in zip(own, self.get_last_lr(), strict=False):
            if rate >= FAR_ABOVE * chosen and rate:
                self._tell(
                    "late",
                    f"the first step was taken at the optimizer's own rate of {rate:g}, and agent "
                    f"{self._driver.name!r} sets {chosen:g}: call start(loss) with the loss of the first batch "
                    "before that step, or give the optimizer a low rate",
                )

    def _before_step(self) -> None:
        if not self._stepped:
            self._stepped = True
            self._check_alone()
            self._driver.check_whole(self._rates.groups.parameters())  # Accelerate parts them after the controller
        if self._stepping.taken == IDLE:
            self._tell(
                "forgotten",
                f"the optimizer took {IDLE} steps without a call of the controller's step, so that the agent decides "
                "nothing: call step(loss) after each",
            )
        if (self._begun or self._rates.held) and self._rates.complete():
            self.base_lrs = self._rates.groups.initial()
        if not self._begun:
            self._rates.keep_within()
        if self._can_begin and not self._at_gradients:
            self.start()

    def _at_gradient(self) -> None:
        if not self._at_gradients:
            return
        found_inf = getattr(self.optimizer, "found_inf", None) if self._looks_at_this_step() else None
        if found_inf is not None and bool(found_inf):  # a fused optimizer under a GradScaler: it won't move
            return
        if self._untrained is not None:
            self._untrained.see()
        if self._gradients is not None:
            self._look_at(self._gradients)
        elif not self._begun and (self._can_begin or self._first is not None):
            self._begin()

    def _looks_at_this_step(self) -> bool:
        """Whether the gradient that stands there is looked at; it may take waiting for the device."""
        return self._gradients is not None or (self._untrained is not None and self._untrained.pending)

    def _look_at(self, gradients: Gradients) -> None:
        """Looks at the gradient of the step that the optimizer is about to take, and decides at it if that is due."""
        if self._due == math.inf:  # training goes on after its end
            gradients.forget()
            return
        gradients.see()
        if not self._begun:
            if self._can_begin or self._first is not None:
                self._begin(late=self.last_epoch > 0)
        elif self.last_epoch >= self._due:
            self._arrive()
        gradients.leave()

    def step(self, loss: Any = None, stepped: bool | None = None) -> None:
        """Counts a step of the optimizer, after it; every `every` steps the agent decides.

        Args:
            loss: of the batch that was trained on: a tensor on any device, or a number. None will do for agents that
                don't look at training losses.
            stepped: whether the optimizer took a step since the last call; None if that is to be noticed, as it can be
                where `optimizer.step` is called by Python and not by a captured graph.

        Raises:
            TypeError: a loss that is no number.
            ValueError: no loss, where the agent looks at it.
        """
        training = self._driver.needs.training
        value = loss_of(loss) if training else None
        noticed = self._stepping.since()
        if not (noticed if stepped is None else stepped):
            self._idle += 1
            if self._idle == IDLE:
                self._tell(
                    "idle",
                    f"step was called {IDLE} times since the optimizer's last step, and doesn't count these calls: "
                    "unless gradients are accumulated over as many batches, pass the optimizer that trains the model, "
                    "or stepped=True where its steps are in a captured graph",
                )
            return
        self._idle = 0
        if stepped is None and noticed > 1 and self._stepping.found_inf is None:  # a GradScaler's may be skipped
            self._tell(
                "several",
                f"the optimizer took {noticed} steps since the last call of step, which counts them as one: call "
                "step(loss) after each, or pass stepped=True if that is meant",
            )
        if self._gradients is not None and not noticed:
            self._tell("unseen", f"agent {self._driver.name!r} observes gradients, and saw none of this step: let "
                       "Python call optimizer.step, and not a captured graph")  # fmt: skip
        if not self._begun:
            if noticed and self._stepping.skipped():
                return
            self._first = self._first if value is None else value.reshape(1)
            if self._gradients is None:
                if self._untrained is not None:
                    self._untrained.see()  # where a captured graph has stepped
                self._begin(late=True)
        self.last_epoch += 1
        self._losses.add(value if self._due < math.inf else None, self._stepping.found_inf)
        if self._losses.unsettled >= MOST_UNSETTLED:  # after the end, where nothing else asks
            self.last_epoch -= self._losses.settle()
        if self.last_epoch >= self._due and self._gradients is None:
            self._arrive()

    def _arrive(self) -> None:
        """What happens at the step that was planned for."""
        self.last_epoch -= self._losses.settle()
        if self.last_epoch < self._due:
            return
        if self.last_epoch > self._end:
            self._due = math.inf
            self._losses.restore(None)
            self._tell("overrun", f"training goes on after horizon={self.horizon} steps: the last rate stays; "
                      "extend(steps) lets the agent go on")  # fmt: skip
            return
        self._decide(self._losses.stacked())
        self._losses.restore(None)
        self._plan()

    def _plan(self) -> None:
        """When there is something to do next: a decision, or one step after the horizon, of which there is to tell."""
        following = self.last_epoch - self.last_epoch % self.every + self.every
        self._due = following if following < self._end else self._end + 1

    def _decide(self, losses: Tensor | None, remarks: Sequence[str] = ()) -> None:
        """A decision, after steps with the losses (k,)."""
        if len(self._drivers()) > 1:  # of which there is a warning already
            self._tell.never("changed")
        self._decider.decide(self.last_epoch, self._end, losses, remarks)
        self.base_lrs = self._rates.groups.initial()

    @property
    def _end(self) -> float:
        return math.inf if self.horizon is None else float(self.horizon)

    def hold(self, lr: float | Sequence[float] | None = None) -> None:
        """Keeps a rate from now on, whatever the agent does; it goes on watching.

        Args:
            lr: the rate to keep instead of the agent's; that of the moment if None. Where the agent sets several, one
                for all layers, or a list with one for each.

        Raises:
            ValueError: no number of 0 or more, or not finite; or in shadow mode, which changes nothing.
        """
        self._rates.hold(lr)

    def release(self) -> None:
        """Lets the agent go on after `hold`, from the rate that was held, at its next decision."""
        self._rates.release()

    def extend(self, steps: int) -> None:
        """Moves the horizon; an agent that had reached the end goes on at once.

        Only where it looks at training losses, and steps were taken after the end, whose losses weren't kept, it
        decides after the next step.

        Args:
            steps: how many more.

        Raises:
            ValueError: the run has no end, or not at least one step more.
        """
        if self.horizon is None:
            raise ValueError("this run has no horizon, so there is nothing to extend")
        end, self.horizon = self.horizon, self.horizon + count("steps", steps)
        self._tell.again("overrun")
        self.last_epoch -= self._losses.settle()
        spared = self._begun and end <= self.last_epoch - self.last_epoch % self.every  # a decision that the end spared
        if self._due > self.last_epoch:  # else a decision waits for the optimizer's next step
            self._plan()
        if spared and self.last_epoch < self.horizon:
            lacking = self._driver.needs.training and self._losses.stacked() is None
            self._due = float(self.last_epoch + lacking)
            if not lacking and self._gradients is None:
                self._arrive()

    def rate_at(self, step: int) -> float:
        """The rate that a schedule sets at a step, between the bounds; after the end, the last one.

        Of a schedule with a rate per layer, this is that of the first layer.

        Args:
            step: optimizer steps before it, 0 or more.

        Raises:
            TypeError: a step that is no integer.
            ValueError: a step below 0, or the agent reacts to training.
        """
        at = min(count("step", step, 0), self._end - 1)
        schedule = Schedule(self._driver.agent, self._rates.groups.layers, self._driver.setup)
        return self._rates.within(schedule.rates(int(at - at % self.every), self._end, self.every)[0])

    def get_last_lr(self) -> list[Any]:
        """The rates of the parameter groups; before the first step, or `start`, the optimizer's own."""
        return self._rates.groups.rates()

    def get_lr(self) -> list[Any]:
        """As `get_last_lr`."""
        return self._rates.groups.rates()

    def average_losses(self) -> None:
        """Averages the losses since the last decision over the processes, all of which must call it.

        A state that is taken within an interval has losses that the next decision looks at. Call this before one
        process saves it for all; where each saves and loads its own, and for agents that look at no losses, there is no
        need.
        """
        self.last_epoch -= self._losses.settle()
        if (losses := self._losses.stacked()) is not None:
            self._losses.restore(self._decider.averaged(losses))
        if self._first is not None:
            self._first = self._decider.averaged(self._first)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later decisions depend on, for `torch.save` and `torch.load(weights_only=True)`.

        It is small, but for agents that observe how layers move: these need the weights of the first and the last layer
        at the last decision, and how far they had moved. `history` is not in it.
        """
        self.last_epoch -= self._losses.settle()
        progress = Progress(
            self.every, self.horizon, self.last_epoch, self._due, self._begun, self._first, self._losses
        )
        return state_of(progress, self._decider)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on exactly as the controller would have whose state this is, with the rates that it had set.

        The optimizer's state may be loaded before or after. The state's horizon holds, and if this controller was made
        with another, a warning says so. Its `every` holds, too, if none was given here. What is refused changes
        nothing.

        Raises:
            ValueError: the state of something else, of another agent, with another `every` than was given, or with
                parts that are missing or can't be meant.
        """
        made_for = self.horizon
        progress, restore = read(state_dict, self.every if self._every_given else None, self._decider)
        self.every, self.horizon, self.last_epoch, self._due, self._begun, self._first, self._losses = progress
        restore()
        self.base_lrs = self._rates.groups.initial()
        if self._begun or self._rates.held:
            self._rates.write()
        if (other := of_other_horizon(self.horizon, made_for)) and is_first():
            warnings.warn(other, stacklevel=2)

    def _drivers(self) -> list[LRController]:
        """The controllers that set this optimizer's rates, the earliest first."""
        listeners = listeners_of(self.optimizer)
        there = [] if listeners is None else listeners.there()
        return [x for x in there if isinstance(x, LRController) and not x._shadow]

    def _check_alone(self) -> None:
        """Says so if the rates are set by an earlier controller, too, that is still there."""
        # Where Accelerate has put a step of its own in the place of the optimizer's, none is seen.
        if not self._shadow and any(driver is not self for driver in self._drivers()[:1]):
            self._tell(
                "two",
                "two LRControllers set the rates of this optimizer: delete the earlier one, or make one of them with "
                "shadow=True",
            )
