"""What of an optimizer has a rate of its own: the layers and tensors of its module, or the user's parameter groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lrenv.envs.observations import FAN_IN
from lrenv.lookup import what_is
from lrenv.networks.pieces import Pieces, outer_weights

Group = dict[str, Any]
Layer = str | Tensor | None
MODULE, GROUPS = "module", "groups"
"""Whose pieces have rates of their own."""
ALIGNED = ("params", "param_names")
"""Options of a group that have an entry for each parameter."""


def trained_parameters(groups: Sequence[Group], module: nn.Module | None) -> dict[str, Tensor]:
    """The parameters that the optimizer trains, by name, in the module's order; without one, in the optimizer's.

    Raises:
        ValueError: there are none, or none of the module's; or their sizes aren't known yet.
    """
    trained = {id(p): p for group in groups for p in group["params"] if p.requires_grad}
    if any(is_lazy(p) for p in trained.values()):
        raise ValueError(
            "the model has lazy layers, whose sizes aren't known yet: run one batch through it before the controller "
            "is made"
        )
    if not trained:
        raise ValueError(
            "the model is frozen: no parameter of the optimizer requires a gradient; unfreeze what to train"
        )
    if module is None:
        return {str(i): p for i, p in enumerate(trained.values())}
    named: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if id(p) in trained}
    if not named:
        raise ValueError("the optimizer trains no parameter of module: pass the module that it was made for")
    return named


def watched_weights(
    groups: Sequence[Group], module: nn.Module | None, first: Layer, last: Layer
) -> tuple[Tensor, Tensor]:
    """The weights of the first and the last layer, found as in environments (`lrenv.networks.pieces`).

    Args:
        groups: the optimizer's, which hold what is trained.
        module: whose order of parameters counts; that of the groups if None.
        first: the first layer's weight, or its name in the module; found if None.
        last: as `first`.

    Raises:
        ValueError: nothing is trained, or no parameter of that name is.
    """
    named = trained_parameters(groups, module)
    trained = {id(p) for group in groups for p in group["params"] if p.requires_grad}
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


class Layers:
    """The pieces that have rates of their own.

    Args:
        groups: of the optimizer, before anything is split.
        module: what it trains.
        granularity: what a piece is: "trainee", "layer" or "tensor".
        looked_at: whether the agent looks at layers, whatever it sets.
        of: `MODULE` for the module's layers as environments define them, modules that hold parameters
            (`lrenv.networks.pieces`); `GROUPS` for the optimizer's groups in their place.

    Attributes:
        granularity: as above.
        parameters: those that are trained, end to end in the order of the pieces' columns.
        pieces: of these columns.
        number: K, how many pieces there are.

    Raises:
        ValueError: the module is needed and was left out, or lacks a parameter that the optimizer trains; or the model
            is frozen; or groups are asked for in the place of tensors.
    """

    def __init__(
        self, groups: Sequence[Group], module: nn.Module | None, granularity: str, looked_at: bool, of: str
    ) -> None:
        if of not in (MODULE, GROUPS):
            raise ValueError(
                f"layers must be {MODULE!r}, whose layers have a rate each, or {GROUPS!r}, for the optimizer's own "
                f"groups in their place, not {of!r}"
            )
        self.granularity = granularity
        named = trained_parameters(groups, module)
        owners = None
        if granularity != "trainee" or looked_at:
            does = "looks at layers" if granularity == "trainee" else f"sets a rate per {granularity}"
            if of == GROUPS and granularity == "tensor":
                raise ValueError(f"layers={of!r} gives a rate per group, and the agent {does}: leave layers out")
            if of == MODULE and module is None:
                raise ValueError(
                    f"the agent {does}: pass module=, the network that the optimizer trains, or layers={GROUPS!r} to "
                    "take its parameter groups for layers"
                )
            held = {id(p) for p in named.values()}
            if any(id(p) not in held for group in groups for p in group["params"] if p.requires_grad):
                raise ValueError(
                    f"the agent {does}, and the optimizer trains parameters that module doesn't hold: pass the module "
                    "that holds all of them"
                )
            if of == GROUPS:
                place = {id(p): i for i, group in enumerate(groups) for p in group["params"]}
                named = dict(sorted(named.items(), key=lambda item: place[id(item[1])]))
                owners = [str(place[id(p)]) for p in named.values()]
        self.parameters = list(named.values())
        self.pieces = Pieces({name: p.shape for name, p in named.items()}, owners)
        self.number = len(self.pieces.sizes[granularity])
        numbers = self.pieces.of_tensors(granularity)
        self._piece_of = {id(p): k for p, k in zip(self.parameters, numbers, strict=True)}
        if module is not None and owners is None:
            self._count_frozen(module)

    def _count_frozen(self, module: nn.Module) -> None:
        """Frozen parameters belong to their layer, or where all of it is frozen, to the piece before them."""
        last = 0
        of_layer: dict[str, int] = {}
        named = list(module.named_parameters())
        for name, p in named:
            if id(p) in self._piece_of:
                of_layer.setdefault(name.rpartition(".")[0], self._piece_of[id(p)])
        for name, p in named:
            last = self._piece_of.setdefault(id(p), of_layer.get(name.rpartition(".")[0], last))

    def constant(self, like: Tensor) -> dict[str, Tensor]:
        """What agents may observe of the pieces that stays the same: part -> (1, K)."""
        return {FAN_IN: self.pieces.fan_in(self.granularity).to(like)[None]}

    def pieces_in(self, group: Group) -> list[int]:
        """The pieces, by number, of which a group has parameters."""
        if self.granularity == "trainee":
            return [0]
        return sorted({self._piece_of[id(p)] for p in group["params"] if id(p) in self._piece_of})

    def splits(self, groups: Sequence[Group]) -> bool:
        """Whether some of these groups have parameters of several pieces, which have rates of their own."""
        return any(len(self.pieces_in(group)) > 1 for group in groups)

    def split(self, optimizer: Any) -> bool:
        """Splits the groups of an optimizer into those of one piece each; tells whether there was anything to split.

        Every option of a group is kept, and so is the optimizer's state, which belongs to parameters. Tensors among the
        options, such as rates that compiled steps read, are copied, for each group is set by itself.
        """
        if not self.splits(optimizer.param_groups):
            return False
        optimizer.param_groups[:] = [part for group in optimizer.param_groups for part in self._parts(group)]
        return True

    def _parts(self, group: Group) -> list[Group]:
        numbers = self.pieces_in(group)
        if len(numbers) < 2:
            return [group]
        members = [self._piece_of.get(id(p), numbers[0]) for p in group["params"]]
        parts = []
        for k in numbers:
            own = {key: _copied(value) for key, value in group.items() if key not in ALIGNED}
            own |= {
                key: [x for x, piece in zip(group[key], members, strict=True) if piece == k]
                for key in ALIGNED
                if key in group
            }
            parts.append(own)
        group |= {key: parts[0][key] for key in ALIGNED if key in group}  # the user may hold it, and its tensors
        return [group, *parts[1:]]


def _copied(value: Any) -> Any:
    """A value whose tensors are copies."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple):
        return tuple(_copied(x) for x in value)
    return value


def overall(rates: Sequence[float]) -> float:
    """One rate for several: the geometric mean of their sizes, 0 if one of them is."""
    if len(rates) == 1:
        return rates[0]
    if not all(rates):
        return 0.0
    return math.exp(math.fsum(math.log(abs(rate)) for rate in rates) / len(rates))
