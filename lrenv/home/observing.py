"""What is observed of a loop: measured and put into signals by the functions that environments use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lrenv.envs.observations import Observer
from lrenv.home.needs import Needs, clock
from lrenv.home.processes import agreed, from_first, mean_of_processes
from lrenv.lookup import lookup, what_is
from lrenv.networks.pieces import outer_weights
from lrenv.runtime.ambient import without_gradients
from lrenv.training.dynamics import Dynamics, DynamicsMeter, Trained
from lrenv.training.losses import LOSSES
from lrenv.training.objective import PROBE

Evaluate = Callable[[], Any]
"""() -> the validation loss, a number or a tensor of one; or (logits, targets)."""
Layer = str | Tensor | None


class Validated(NamedTuple):
    """What was measured on validation data."""

    loss: Tensor  # (1,)
    predictions: Tensor  # (1, k, p); a 0 where they aren't needed


class Validation:
    """Measures on validation data what environments measure there.

    Args:
        evaluate: gives the loss, or logits (m, ...) and targets (m, ...).
        loss: of logits and targets, a name in `lrenv.training.losses.LOSSES`.
        module: is in evaluation mode meanwhile; None leaves that to `evaluate`.
        target_std: the standard deviation of the training targets where they are numbers, the unit in which predictions
            are compared; that of the validation targets if None.
        predictions: whether logits are needed; the loss alone is measured if not.

    Raises:
        ValueError: an unknown loss.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        loss: str,
        module: nn.Module | None,
        target_std: float | Tensor | None,
        predictions: bool,
    ) -> None:
        self._evaluate, self._loss, self._module = evaluate, lookup(LOSSES, loss, "loss"), module
        self._std = None if target_std is None else torch.as_tensor(target_std)
        self._needed = predictions

    def __call__(self, like: Tensor) -> Validated:
        """Measures, with the dtype and on the device of `like`.

        Raises:
            TypeError: `evaluate` gives something else than it should.
            ValueError: it gives a loss alone where predictions are observed.
        """
        with torch.no_grad(), _evaluation_mode(self._module):
            given = self._evaluate()
        if isinstance(given, tuple | list) and len(given) == 2 and all(isinstance(x, Tensor) for x in given):
            return self._of_outputs(given[0], given[1], like)
        loss = torch.as_tensor(given) if isinstance(given, Tensor | float | int) else None
        if loss is None or loss.numel() != 1:
            held = f"a tensor of shape {tuple(loss.shape)}" if loss is not None else what_is(given)
            raise TypeError(f"evaluate must give a loss, which is one number, or a pair (logits, targets), not {held}")
        if self._needed:
            raise ValueError(
                "this agent observes how predictions change, so evaluate must give (logits, targets) and not the loss "
                "alone"
            )
        return Validated(loss.detach().reshape(1).to(like), like.new_zeros(1, 1, 1))

    @without_gradients
    def _of_outputs(self, outputs: Tensor, targets: Tensor, like: Tensor) -> Validated:
        outputs, targets = outputs.detach().to(like)[None], targets.to(like.device)[None]
        if targets.is_floating_point():
            targets = targets.to(like.dtype)
            if self._std is None:
                std = targets[0].double().std(0, correction=0)
                self._std = torch.where(std > 0, std, 1.0)
        std = (torch.ones(()) if self._std is None else self._std).to(like)
        try:
            loss = self._loss.per_example(outputs, targets).mean(1)
        except (RuntimeError, ValueError, IndexError) as error:
            raise TypeError(
                f"evaluate gives logits {tuple(outputs.shape[1:])} and targets {tuple(targets.shape[1:])}, which loss "
                f"{self._loss.name!r} can't take ({error}): name another by loss=, one of {', '.join(LOSSES)}"
            ) from error
        if not self._needed:
            return Validated(loss, like.new_zeros(1, 1, 1))
        probed = max(1, PROBE // math.prod(outputs.shape[2:-1]))
        return Validated(loss, self._loss.predictions(outputs[:, :probed], std))


@contextmanager
def _evaluation_mode(module: nn.Module | None) -> Iterator[None]:
    """Inside, the module is in evaluation mode; afterwards each part is in the mode that it was in."""
    training = [] if module is None else [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def watched_weights(
    groups: Sequence[Mapping[str, Any]], module: nn.Module | None, first: Layer, last: Layer
) -> tuple[Tensor, Tensor]:
    """The weights of the first and the last layer, found as in environments (`lrenv.networks.stacked`).

    Args:
        groups: the optimizer's, which hold what is trained.
        module: whose order of parameters counts; that of the groups if None.
        first: the first layer's weight, or its name in the module; found if None.
        last: as `first`.

    Raises:
        ValueError: nothing is trained, or no parameter of that name is.
    """
    trained = {id(p): p for group in groups for p in group["params"] if p.requires_grad}
    if not trained:
        raise ValueError(
            "the model is frozen: no parameter of the optimizer requires a gradient; unfreeze what to train"
        )
    if module is None:
        named = {str(i): p for i, p in enumerate(trained.values())}
    else:
        named = {name: p for name, p in module.named_parameters() if id(p) in trained}
        if not named:
            raise ValueError("the optimizer trains no parameter of module: pass the module that it was made for")
    found = [named[name] for name in outer_weights({name: p.shape for name, p in named.items()})]
    for i, layer in enumerate((first, last)):
        if layer is None:
            continue
        chosen = layer if isinstance(layer, Tensor) else named.get(layer)
        if chosen is None or id(chosen) not in trained:
            known = f"name one of {', '.join(named)}" if module is not None else "pass module=, or the parameter itself"
            given = what_is(layer) if isinstance(layer, Tensor) else repr(layer)
            raise ValueError(f"{('first', 'last')[i]}={given} is no parameter that the optimizer trains: {known}")
        found[i] = chosen
    return found[0], found[1]


class Seen(NamedTuple):
    """What an agent is shown at a decision, and what is known beside it."""

    dynamics: Dynamics
    observation: Tensor  # (1, signals)
    outside: Tensor  # (1, signals) bool, which signals lie outside the bounds of their space
    finite: Tensor  # (1,) bool, whether losses and weights are numbers


class Observing:
    """Looks at one loop: what changes between two looks is kept here.

    Args:
        observer: what the agent observes.
        needs: what it looks at; only this is measured, and the rest is NaN.
        validation: None if nothing is measured on validation data.
        watched: the weights of the first and the last layer; None if the agent doesn't look at any.
        like: gives the dtype and the device of what is observed.
        interval: N, steps between two decisions.
    """

    def __init__(
        self,
        observer: Observer,
        needs: Needs,
        validation: Validation | None,
        watched: tuple[Tensor, Tensor] | None,
        like: Tensor,
        interval: int,
    ) -> None:
        self._observer, self._needs, self._validation = observer, needs, validation
        self._watched, self._like, self._interval = watched, like, interval
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
            lr: (1, 1), of these steps.
        """
        if self._needs.clock_alone:
            return self._shown(clock(self._like.new_full((1,), step), horizon, self._interval))
        now = self._now(step)
        # Before the first step, the loss on a batch is expected to be that on validation data.
        losses = from_first(now.val_loss) if losses is None else mean_of_processes(losses.to(self._like))
        return self._measured(now, losses, lr, horizon)

    @without_gradients
    def _measured(self, now: Trained, losses: Tensor, lr: Tensor, horizon: float) -> Seen:
        meter = DynamicsMeter(horizon, int(min(self._interval, horizon)), self._needs.motion)
        before = now if self._before is None else self._before
        if before.predictions.shape != now.predictions.shape:
            raise ValueError(
                f"evaluate gave predictions {tuple(now.predictions.shape[1:])}, and the time before "
                f"{tuple(before.predictions.shape[1:])}: give those on the same validation examples each time"
            )
        displacements = meter.still(now.layers) if self._before is None else self._displacements
        lr = lr.to(self._like)
        dynamics, displacements = meter.measure(before, now, losses[None], lr, displacements, self._dynamics)
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

    def state(self) -> dict[str, Any]:
        """What the next look depends on: tensors by name."""
        if self._before is None or self._dynamics is None:
            return {}
        before = self._before
        kept = {"step": before.step, "val_loss": before.val_loss, "dynamics": torch.stack(self._dynamics, -1)}
        if self._needs.predictions:
            kept["predictions"] = before.predictions
        if self._needs.motion:
            kept |= {f"{name}_weights": x for name, x in zip(("first", "last"), before.layers, strict=True)}
            kept |= {f"{name}_moved": x for name, x in zip(("first", "last"), self._displacements, strict=True)}
        return {name: x.clone() for name, x in kept.items()}

    def restoring(self, state: Mapping[str, Tensor]) -> Callable[[], None]:
        """Reads what `state` gave, and returns what goes on from it.

        Raises:
            ValueError: it is of layers of other sizes.
        """
        before, dynamics, displacements = self._read(state) if state else (None, None, ())

        def restore() -> None:
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
        observation = self._observer.observe(dynamics, {})
        assert isinstance(observation, Tensor)
        finite = torch.ones(1, dtype=torch.bool, device=observation.device)
        if self._needs.training:
            finite = finite & dynamics.train_loss.isfinite()
        if self._validation is not None:
            finite = finite & dynamics.val_loss.isfinite()
        if self._needs.weights:
            finite = finite & dynamics.weight_mean.isfinite()
        return Seen(dynamics, observation, self._observer.outside(dynamics), finite)

    def _validated(self) -> Validated:
        if self._validation is None:
            return Validated(self._like.new_full((1,), torch.nan), self._like.new_zeros(1, 1, 1))
        return self._validation(self._like)

    def _now(self, step: int) -> Trained:
        validated = self._validated()
        steps = torch.full((1,), step, dtype=torch.int64, device=self._like.device)
        nothing = self._like.new_zeros(1, 1)
        watched = self._watched or (nothing, nothing)
        first, last = (weights.detach().reshape(1, -1).to(self._like.dtype) for weights in watched)
        return Trained(steps, (first, last), validated.loss, validated.predictions)
