"""What a loop shows of its gradients: the gradient before each step of the optimizer, and the direction of the step.

As environments do (`lrenv.training.gradient_observer`), each gradient g_(t+1) is multiplied with the direction d_t of
the step before it, w_(t+1) = w_t - lr d_t. The gradient is what stands in `grad` when the optimizer is about to step:
accumulated, averaged over processes, unscaled and clipped, if the loop does that. Directions are computed by lrenv's
own optimizers from the state of torch's, for weights before and after a step would give them to few digits, and none
where the rate is 0.

Each step takes passes over the weights for the direction and one for each product; one direction, and for each product
one sum, are kept, which are as large as the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrenv.home.groups import Groups
from lrenv.home.layers import Group, Layers
from lrenv.home.needs import WORKS
from lrenv.runtime.ambient import without_gradients
from lrenv.training.dynamics import Untrained
from lrenv.training.gradient_observer import CHANGE, MEAN, PRODUCTS, Step, Sums
from lrenv.training.optimizers import Hyper, Optimizer, adam, momentum, rmsprop, sgd

PARAMETERS = "parameters"
"""The part that is the weights themselves."""


class Kind(NamedTuple):
    """One of torch's optimizers."""

    made: Callable[[Group], Optimizer]  # lrenv's, with a group's options
    slots: dict[str, str]  # slot of lrenv's state -> of torch's
    without: tuple[str, ...]  # options that lrenv's doesn't have


_ADAM = Kind(
    lambda group: adam(float(group["betas"][1]), float(group["eps"]), decoupled=bool(group["decoupled_weight_decay"])),
    {"mean": "exp_avg", "square": "exp_avg_sq"},
    ("maximize", "amsgrad"),
)
KINDS: dict[type, Kind] = {
    torch.optim.SGD: Kind(
        lambda group: momentum(bool(group["nesterov"])) if group["momentum"] else sgd(),
        {"velocity": "momentum_buffer"},
        ("maximize", "dampening"),
    ),
    torch.optim.RMSprop: Kind(
        lambda group: rmsprop(float(group["alpha"]), float(group["eps"])),
        {"square": "square_avg"},
        ("maximize", "centered", "momentum"),
    ),
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
}
"""torch's optimizers -> how their directions are computed."""


def check_gradients(
    optimizer: Any, groups: Groups, agent: str, parts: Sequence[str], controlled: Collection[str]
) -> None:
    """Refuses what a loop can't show of its gradients.

    Args:
        optimizer: of the loop.
        groups: its groups.
        agent: what the agent is called.
        parts: what it observes.
        controlled: the hyperparameters that it controls besides the rate.

    Raises:
        ValueError: a part that takes further gradients, or an optimizer whose directions aren't known, or would not be
            with the hyperparameters that the agent sets.
    """
    if CHANGE in parts:
        raise ValueError(
            f"agent {agent!r} observes {CHANGE}, which takes another gradient per step than a loop computes, of the "
            f"next batch at the weights before the step: {WORKS}"
        )
    kind = KINDS.get(type(optimizer))
    without = () if kind is None else kind.without
    lacking = [f"{name}={group[name]}" for name in without for group in groups.all if group.get(name)]
    lacking += [f"{name} that the agent sets" for name in without if name in controlled]
    if kind is None or lacking:
        held = type(optimizer).__name__ + (f" with {lacking[0]}" if lacking else "")
        raise ValueError(
            f"agent {agent!r} observes gradients and the directions of steps, which are known of torch.optim's SGD, "
            f"RMSprop, Adam and AdamW without {', '.join(dict.fromkeys(x for k in KINDS.values() for x in k.without))},"
            f" and this optimizer is {held}"
        )


def scale_of(optimizer: Any) -> Tensor | None:
    """What gradients are divided by as the optimizer steps: a GradScaler lets fused ones unscale by themselves."""
    scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    return scale


def dense(x: Tensor) -> Tensor:
    """A tensor of any layout as an ordinary one."""
    return x.to_dense() if x.layout != torch.strided else x


class FirstGradient:
    """The gradient of the first step, and the weights before it, for agents that look at their sizes.

    Args:
        optimizer: of the loop, whichever it is.
        layers: of the network.
        like: gives the dtype and the device of what is observed.

    Attributes:
        pending: whether a gradient is still to be seen: where one is no number, the next counts as the first.
    """

    def __init__(self, optimizer: Any, layers: Layers, like: Tensor) -> None:
        self._optimizer, self._parameters, self._like = optimizer, layers.parameters, like
        self._layer_of = torch.tensor(layers.pieces.of_tensors("layer"), device=like.device)
        self._numbers = layers.pieces.sizes["layer"]
        self.pending = True
        self.restore(None)

    @without_gradients
    def see(self) -> None:
        """Looks at what stands in `grad` now, if that is the first gradient."""
        if not self.pending or all(p.grad is None for p in self._parameters):
            return
        gradient = self._squares([p.grad for p in self._parameters])
        scale = scale_of(self._optimizer)
        if scale is not None:
            gradient = gradient / scale.to(self._like) ** 2
        sizes = Untrained.of(gradient, self._squares(self._parameters), self._numbers)
        if bool(sizes.relative_gradient.isfinite().all()):
            self._sizes, self.pending = sizes, False

    def sizes(self) -> Untrained:
        """What was seen; NaN before that."""
        return self._sizes

    def restore(self, sizes: Tensor | None) -> None:
        """Goes on with sizes (2, 1) that were seen, or without."""
        seen = self._like.new_full((2, 1), torch.nan) if sizes is None else sizes.to(self._like).clone()
        self._sizes, self.pending = Untrained(*seen.unbind()), sizes is None

    def _squares(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """The sum of squares for each layer, (1, K)."""
        of_tensors = [
            self._like.new_zeros(()) if x is None else dense(x).to(self._like).square().sum() for x in tensors
        ]
        sums = self._like.new_zeros(len(self._numbers)).index_add(0, self._layer_of, torch.stack(of_tensors))
        return sums[None]


class Gradients:
    """Watches the gradients and the steps of one optimizer.

    Args:
        optimizer: one of `KINDS`.
        groups: its groups.
        layers: what has rates of its own.
        parts: what is observed: names in `PRODUCTS`, `MEAN`, and `PARAMETERS`.
        like: gives the dtype and the device of what is observed.

    Attributes:
        parameters: those whose gradients are looked at.
    """

    def __init__(self, optimizer: Any, groups: Groups, layers: Layers, parts: Sequence[str], like: Tensor) -> None:
        self._optimizer, self._groups, self._layers, self._like = optimizer, groups, layers, like
        self._kind = KINDS[type(optimizer)]
        self.parameters = layers.parameters
        self._known = {id(p) for p in layers.parameters}
        self._shows_weights = PARAMETERS in parts
        self._sums = Sums(
            [part for part in parts if part in (*PRODUCTS, MEAN)],
            lambda x: layers.pieces.summed(x, layers.granularity),
        )
        self.forget()

    def forget(self) -> None:
        """Begins anew: no step has been taken, and nothing is summed up."""
        self._direction: Tensor | None = None
        self._held: dict[str, Tensor] = {}
        self._taken = 0
        self._seen = False  # the gradient of the step to come

    @without_gradients
    def see(self) -> None:
        """Adds the gradient that the optimizer is about to step with, and the direction of the step before it.

        Once per step: a step is tried again where an evaluation fails.
        """
        if self._seen:
            return
        gradient = self._of_groups(self._regularised)
        direction = torch.zeros_like(gradient) if self._direction is None else self._direction
        self._held = self._sums.added(
            Step(direction, gradient, gradient.new_zeros(0)), self._held or self._sums.zeros(gradient), in_place=True
        )
        self._taken += 1
        self._seen = True

    @without_gradients
    def shown(self) -> dict[str, Tensor]:
        """What is observed: part -> (1, K) or (1, P)."""
        parts = self._sums.reduced(self._held, max(self._taken, 1))
        return parts | ({PARAMETERS: self._flat(self.parameters)} if self._shows_weights else {})

    def clear(self) -> None:
        """Begins the sums anew."""
        self._taken = 0
        for x in self._held.values():
            x.zero_()

    @without_gradients
    def leave(self) -> None:
        """Keeps the direction of the step that the optimizer is about to take."""
        ratios = {id(group): ratio for group, ratio in zip(self._groups.all, self._groups.ratios(), strict=True)}
        self._direction = self._of_groups(lambda group, own: self._directed(group, own, ratios[id(group)]))
        self._seen = False

    def state(self) -> dict[str, Any]:
        """What the next look depends on: tensors, and how many steps are summed up."""
        held = self._held if self._taken else {}
        return {"direction": self._direction, "sums": {k: x.clone() for k, x in held.items()}, "taken": self._taken}

    def restoring(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Reads what `state` gave, and returns what goes on from it.

        Raises:
            ValueError: it is of a network of another size.
        """
        sums = {name: x.to(self._like.device).clone() for name, x in state["sums"].items()}
        direction = None if state["direction"] is None else state["direction"].to(self._like.device).clone()
        taken = int(state["taken"])
        columns = sum(p.numel() for p in self.parameters)
        for x in (*sums.values(), *([] if direction is None else [direction])):
            if x.shape != (1, columns):
                raise ValueError(f"its network has {x.numel()} weights, and here are {columns}")

        def restore() -> None:
            self._held, self._direction, self._taken, self._seen = sums, direction, taken, False

        return restore

    def _of_groups(self, compute: Callable[[Group, list[Tensor]], Tensor]) -> Tensor:
        """What is computed of each group's parameters that have gradients, end to end (1, P); 0 for the others."""
        found: dict[int, Tensor] = {}
        for group in self._groups.all:
            own = [p for p in group["params"] if id(p) in self._known and p.grad is not None]
            if own:
                parts = compute(group, own).split([p.numel() for p in own], 1)
                found |= {id(p): part for p, part in zip(own, parts, strict=True)}
        columns = [found[id(p)] if id(p) in found else self._like.new_zeros(1, p.numel()) for p in self.parameters]
        return torch.cat(columns, 1)

    def _flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors end to end, (1, P)."""
        return torch.cat([dense(x).detach().reshape(1, -1).to(self._like) for x in tensors], 1)

    def _gradient(self, own: Sequence[Tensor]) -> Tensor:
        gradients = self._flat([p.grad for p in own if p.grad is not None])
        scale = scale_of(self._optimizer)
        return gradients if scale is None else gradients / scale.to(self._like)

    def _hyper(self, group: Group) -> Hyper:
        values = {"momentum": group["betas"][0] if "betas" in group else group["momentum"]}
        if group["weight_decay"]:
            values["weight_decay"] = group["weight_decay"]
        return {name: self._number(value) for name, value in values.items()}

    def _number(self, value: Any) -> Tensor:
        """A number, or a tensor of one, as (1, 1)."""
        return torch.as_tensor(value, dtype=self._like.dtype, device=self._like.device).reshape(1, 1)

    def _regularised(self, group: Group, own: list[Tensor]) -> Tensor:
        gradient = self._gradient(own)
        weights = self._flat(own) if group["weight_decay"] else gradient  # which are not looked at
        return self._kind.made(group).regularised(gradient, weights, self._hyper(group))

    def _directed(self, group: Group, own: list[Tensor], ratio: float) -> Tensor:
        """The direction by the agent's rate, to which the group's keeps a ratio."""
        optimizer, gradient, hyper = self._kind.made(group), self._gradient(own), self._hyper(group)
        weights = self._flat(own) if group["weight_decay"] else gradient
        state = optimizer.init(gradient)
        for slot, name in self._kind.slots.items():
            held = [self._optimizer.state.get(p, {}).get(name) for p in own]
            if slot in state and any(x is not None for x in held):
                pairs = zip(held, own, strict=True)
                state[slot] = self._flat([torch.zeros_like(p) if x is None else x for x, p in pairs])
        if "beta1_power" in state:
            steps = self._steps(own)
            beta2 = self._number(group["betas"][1])
            state |= {"beta1_power": hyper["momentum"] ** steps, "beta2_power": beta2**steps}
        direction, _ = optimizer.direction(gradient, state, weights, hyper)
        return direction if ratio == 1 else direction * ratio

    def _steps(self, own: list[Tensor]) -> Tensor:
        """How many steps each parameter has taken, (1, 1) or (1, p) if they differ, or it would take a sync to know."""
        held = [self._optimizer.state.get(p, {}).get("step", 0.0) for p in own]
        device = next((x.device for x in held if isinstance(x, Tensor)), None)
        steps = torch.stack([torch.as_tensor(x, dtype=torch.float64, device=device).reshape(()) for x in held])
        if steps.device.type == "cpu" and bool((steps == steps[0]).all()):
            return steps[:1].to(self._like)[None]
        sizes = torch.tensor([p.numel() for p in own], device=steps.device)
        return steps.repeat_interleave(sizes, output_size=sum(p.numel() for p in own)).to(self._like)[None]
