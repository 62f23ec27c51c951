"""What is observed of a loop: measured and put into signals by the functions that environments use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrenv.envs.observations import Observer
from lrenv.home.gradients import FirstGradient, Gradients
from lrenv.home.groups import Groups
from lrenv.home.needs import Needs, clock
from lrenv.home.processes import agreed, from_first, mean_of_processes
from lrenv.home.validation import Validated, Validation
from lrenv.runtime.ambient import without_gradients
from lrenv.training.dynamics import Dynamics, DynamicsMeter, Setup, Trained

STILL = ("loss_spread", "first_update", "last_update")
"""Signals that are logarithms of what is 0 in trainings, too: one loss has no spread, and a rate of 0 moves nothing."""


class Seen(NamedTuple):
    """What an agent is shown at a decision, and what is known beside it."""

    dynamics: Dynamics
    observation: Tensor | dict[str, Tensor]  # (1, signals), or such and white-box parts
    outside: Tensor  # (1, signals) bool, which signals lie outside the bounds of their space
    finite: Tensor  # (1,) bool, whether losses, weights and gradients are numbers


class Observing:
    """Looks at one loop: what changes between two looks is kept here.

    Args:
        observer: what the agent observes.
        needs: what it looks at; only this is measured, and the rest is NaN.
        validation: None if nothing is measured on validation data.
        watched: the weights of the first and the last layer; None if the agent doesn't look at any.
        untrained: has seen the first gradient; None if the agent doesn't look at it.
        gradients: shows gradients, and what else environments show besides signals; None if the agent observes none.
        constant: what is shown besides, and stays the same: part -> (1, K).
        like: gives the dtype and the device of what is observed.
        interval: N, steps between two decisions.
        setup: of the training.

    Attributes:
        watched: the parameters that are looked at, also for their gradients.
        interval: N.
    """

    def __init__(
        self,
        observer: Observer,
        needs: Needs,
        validation: Validation | None,
        watched: tuple[Tensor, Tensor] | None,
        untrained: FirstGradient | None,
        gradients: Gradients | None,
        constant: Mapping[str, Tensor],
        like: Tensor,
        interval: int,
        setup: Setup,
    ) -> None:
        self._observer, self._needs, self._validation = observer, needs, validation
        self._untrained, self._gradients, self._constant = untrained, gradients, constant
        self._watched, self._like, self.interval, self._setup = watched, like, interval, setup
        self.watched: Sequence[Tensor] = [*(watched or ()), *(() if gradients is None else gradients.parameters)]
        self._before: Trained | None = None
        self._dynamics: Dynamics | None = None
        self._displacements: tuple[Tensor, ...] = ()
        self._latest: tuple[Trained, Dynamics, tuple[Tensor, ...]] | None = None

    def look(self, step: int, horizon: float, losses: Tensor | None, lr: Tensor) -> Seen:
        """Measures, and remembers it for the next look.

        Args:
            step: optimizer steps so far.
            horizon: T.
            losses: (k,) of the steps since the last look; None if there are none.
            lr: (1, K), of these steps.
        """
        if not self._needs.measured:
            return self._shown(clock(self._like.new_full((1,), step), horizon, self.interval, self._setup))
        now = self._now(step)
        # Before the first step, the loss on a batch is expected to be that on validation data.
        losses = from_first(now.val_loss) if losses is None else self.averaged(losses)
        return self._measured(now, losses, lr, horizon)

    def averaged(self, losses: Tensor) -> Tensor:
        """The losses (k,) of the whole batches, of which each process has seen a share."""
        return mean_of_processes(losses.to(self._like))

    @without_gradients
    def _measured(self, now: Trained, losses: Tensor, lr: Tensor, horizon: float) -> Seen:
        meter = DynamicsMeter(horizon, int(min(self.interval, horizon)), self._needs.motion, self._setup)
        before = now if self._before is None else self._before
        if before.predictions.shape != now.predictions.shape:
            raise ValueError(
                f"evaluate gave predictions {tuple(now.predictions.shape[1:])}, and the time before "
                f"{tuple(before.predictions.shape[1:])}: give those on the same validation examples each time"
            )
        displacements = meter.still(now.layers) if self._before is None else self._displacements
        lr = lr.to(self._like)
        untrained = None if self._untrained is None else self._untrained.sizes()
        dynamics, displacements = meter.measure(before, now, losses[None], lr, displacements, self._dynamics, untrained)
        dynamics = agreed(dynamics)
        self._latest = now, dynamics, displacements
        return self._shown(dynamics)

    def keep(self) -> None:
        """Remembers the last look as the one before the next; a look at broken numbers is better not remembered."""
        if self._latest is not None:
            now, self._dynamics, self._displacements = self._latest
            first, last = now.layers
            # Copies of what the optimizer changes in place.
            self._before = now._replace(layers=(first.clone(), last.clone())) if self._needs.motion else now
            self._latest = None

    def leaves_out(self, groups: Groups) -> bool:
        """Whether gradients are observed, and those of some trained parameters are not among them."""
        return self._gradients is not None and groups.others(self._gradients.parameters)

    def clear(self) -> None:
        """Begins the sums of gradients anew, after a decision."""
        if self._gradients is not None:
            self._gradients.clear()

    def state(self) -> dict[str, Any]:
        """What the next look depends on: tensors by name, and the state of `Gradients`."""
        shown: dict[str, Any] = {} if self._gradients is None else {"gradients": self._gradients.state()}
        if self._untrained is not None and not self._untrained.pending:
            shown["untrained"] = torch.stack(self._untrained.sizes())
        if self._before is None or self._dynamics is None:
            return shown
        before = self._before
        kept = {"step": before.step, "val_loss": before.val_loss, "dynamics": torch.stack(self._dynamics, -1)}
        if self._needs.predictions:
            kept["predictions"] = before.predictions
        if self._needs.motion:
            kept |= {f"{name}_weights": x for name, x in zip(("first", "last"), before.layers, strict=True)}
            kept |= {f"{name}_moved": x for name, x in zip(("first", "last"), self._displacements, strict=True)}
        return shown | {name: x.clone() for name, x in kept.items()}

    def restoring(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Reads what `state` gave, and returns what goes on from it.

        Raises:
            ValueError: it is of layers of other sizes.
        """
        kept = {name: x for name, x in state.items() if name not in ("gradients", "untrained")}
        before, dynamics, displacements = self._read(kept) if kept else (None, None, ())
        shown = None if self._gradients is None else self._gradients.restoring(state["gradients"])

        def restore() -> None:
            if shown is not None:
                shown()
            if self._untrained is not None:
                self._untrained.restore(state.get("untrained"))
            self._before, self._dynamics, self._displacements, self._latest = before, dynamics, displacements, None

        return restore

    def _read(self, state: Mapping[str, Tensor]) -> tuple[Trained, Dynamics, tuple[Tensor, ...]]:
        kept = {name: x.to(self._like.device).clone() for name, x in state.items()}
        nothing = self._like.new_zeros(1, 1)
        layers = kept.get("first_weights", nothing), kept.get("last_weights", nothing)
        predictions = kept.get("predictions", nothing[None])
        displacements = (kept["first_moved"], kept["last_moved"]) if self._needs.motion else ()
        sizes = [weights.numel() for weights in self._watched or ()] if self._needs.motion else []
        for held in (layers, displacements) if sizes else ():
            if (found := [x.numel() for x in held]) != sizes:
                raise ValueError(f"its first and last layer have {found} weights, and here they have {sizes}")
        dynamics = Dynamics(*kept["dynamics"].unbind(-1))
        return Trained(kept["step"], layers, kept["val_loss"], predictions), dynamics, displacements

    @without_gradients
    def _shown(self, dynamics: Dynamics) -> Seen:
        parts = {} if self._gradients is None else {k: from_first(x) for k, x in self._gradients.shown().items()}
        observation = self._observer.observe(dynamics, {**self._constant, **parts})
        finite = torch.ones(1, dtype=torch.bool, device=self._like.device)
        for part in parts.values():
            finite = finite & part.isfinite().all()
        if self._needs.training:
            finite = finite & dynamics.train_loss.isfinite()
        if self._validation is not None:
            finite = finite & dynamics.val_loss.isfinite()
        if self._needs.untrained:
            finite = finite & dynamics.relative_gradient.isfinite()
        if self._needs.weights:
            finite = finite & dynamics.weight_mean.isfinite()
        outside = self._observer.outside(dynamics) if self._observer.names else finite.new_zeros(1, 0)
        for i, name in enumerate(self._observer.names):
            if name in STILL:
                outside[:, i] &= getattr(dynamics, name) != 0
            if name in self._observer.of_budget:  # a run without an end is none that an agent was not made for
                outside[:, i] &= dynamics.budget.isfinite()
        return Seen(dynamics, observation, outside, finite)

    def _validated(self) -> Validated:
        if self._validation is None:
            return Validated(self._like.new_full((1,), torch.nan), self._like.new_zeros(1, 1, 1))
        return self._validation(self._like)

    def _now(self, step: int) -> Trained:
        validated = self._validated()
        steps = torch.full((1,), step, dtype=torch.int64, device=self._like.device)
        nothing = self._like.new_zeros(1, 1)
        watched = self._watched or (nothing, nothing)
        first, last = (weights.detach().reshape(1, -1).to(self._like) for weights in watched)
        return Trained(steps, (first, last), validated.loss, validated.predictions)
