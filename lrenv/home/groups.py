"""The hyperparameters of an optimizer's parameter groups: an agent sets a rate per piece, and one of each other."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lrenv.home.layers import Group, Layers, overall
from lrenv.home.sharding import stepping
from lrenv.training.optimizers import Hyper

FAMILIES = {
    "sgd": "SGD without momentum", "momentum": "SGD with momentum", "nesterov": "SGD with momentum",
    "rmsprop": "RMSprop", "adam": "Adam", "adamw": "Adam",
}  # fmt: skip
"""lrenv's optimizers -> the families within which rates carry over."""
OF_TORCH = {"Adam": "Adam", "AdamW": "Adam", "NAdam": "Adam", "RAdam": "Adam", "RMSprop": "RMSprop"}
LEAST_MOMENTUM = 1e-12
"""With a momentum of exactly 0, torch's SGD leaves its buffer alone, which would be stale when there is some again."""


class Groups:
    """The parameter groups of an optimizer.

    An agent sets one rate, that of the group whose rate is the highest when the controller is made, among those that
    are trained. Others keep the ratio to it that they were made with, which stands in each group as `initial_lr`, as
    with torch's schedulers. So a checkpoint of the optimizer has it, too. The rate of a group that is added later
    counts as an initial rate: its ratio is to the initial rate of that group, whatever the rate of the moment is. Where
    groups may not be changed, the first rates are kept here alone.

    An agent that sets a rate per layer or tensor sets one of these for each, and groups keep their ratios to it. A
    group that is added later, of parameters of no piece or of several, follows their geometric mean.

    Args:
        optimizer: with `param_groups`.

    Attributes:
        base: the highest first rate of a group that is trained.
        layers: what has a rate of its own; None for the network as a whole.

    Raises:
        ValueError: it has no groups, or none with a rate; or it wraps another optimizer.
    """

    def __init__(self, optimizer: Any) -> None:
        if hasattr(getattr(optimizer, "optimizer", None), "param_groups"):
            raise ValueError(
                f"{type(optimizer).__name__} wraps an optimizer, which may not step when it does: make the controller "
                "for the one inside, before it is wrapped (before accelerator.prepare)"
            )
        self._optimizer, self._write = optimizer, False
        self.layers: Layers | None = None
        self._set: list[tuple[Group, float]] = []  # groups as they were when rates were last set, and these
        self._first: list[float] = []  # rates of the groups that were seen, or that a checkpoint tells of
        self._trained: set[int] = set()  # the parameters at the last look
        self.base = self.highest(self.initial())

    def highest(self, rates: Sequence[float]) -> float:
        """The highest of the groups' rates, among those that are trained if there are any."""
        trained = [any(p.requires_grad for p in group["params"]) for group in self.all]
        return max([rate for rate, is_trained in zip(rates, trained, strict=True) if is_trained] or rates)

    def use(self, layers: Layers | None, write: bool) -> bool:
        """Gives each piece a rate of its own; nothing was changed before.

        Args:
            layers: the pieces; None for the network as a whole.
            write: whether groups may be changed at all.

        Returns:
            Whether groups were split, so that each has parameters of one piece.
        """
        self.layers, self._write = layers, write
        split = write and layers is not None and layers.split(self._optimizer)
        if write:
            # Groups without a rate of their own, also those that are added later, share this tensor.
            defaults = getattr(self._optimizer, "defaults", {})
            if isinstance(defaults.get("lr"), Tensor):
                defaults["lr"] = defaults["lr"].detach().clone()
        if split:
            self._first = []  # each group has its own
        self.initial()
        return split

    @property
    def all(self) -> list[Group]:
        """The groups as they are now: loading a state puts new ones in their place.

        Raises:
            ValueError: there are none.
        """
        groups: list[Group] = list(getattr(self._optimizer, "param_groups", ()))
        if not groups or any(group.get("lr") is None for group in groups):
            raise ValueError(
                "the optimizer has no parameter groups with a rate `lr` each: pass the one that trains the model, and "
                "give it a rate"
            )
        return groups

    def initial(self) -> list[float]:
        """The rates that the groups were made with."""
        groups = self.all
        for group in groups[len(self._first) :]:
            self._first.append(float(group["initial_lr"] if "initial_lr" in group else group["lr"]))
        if not self._write:
            return self._first[: len(groups)]
        self._part_tensors(groups)
        return [float(group.setdefault("initial_lr", lr)) for group, lr in zip(groups, self._first, strict=False)]

    def _part_tensors(self, groups: Sequence[Group]) -> None:
        """Gives each group whose rate is the tensor of another one a tensor of its own: each is set by itself."""
        taken = [getattr(self._optimizer, "defaults", {}).get("lr")]
        for group in groups:
            if isinstance(group["lr"], Tensor) and any(group["lr"] is other for other in taken):
                group["lr"] = group["lr"].detach().clone()
            taken.append(group["lr"])

    def moved(self) -> str | None:
        """A sentence for the user whose agent starts from the rates of before, where somebody has set others since."""
        rates, initial = self.rates(), self.initial()
        # Where rates were set here already, the user held them. Others are often float32, and torch's schedulers come
        # back to a rate but for its last bits.
        if self._set or all(math.isclose(now, first, rel_tol=1e-5) for now, first in zip(rates, initial, strict=True)):
            return None
        now, starts = (", ".join(f"{rate:g}" for rate in of) for of in (rates, initial))
        return (
            f"the agent starts from the rates that the optimizer's groups began with ({starts}), which stand in them "
            f"as initial_lr, and not from those of now ({now}): if these are meant, delete initial_lr from the groups "
            "and make the controller anew"
        )

    def restore(self, base: float, initial: Sequence[float]) -> None:
        """Goes on with the ratios of a checkpoint, also of groups that are added only later."""
        self.base, self._first = base, list(initial)
        if self._write:
            for group, lr in zip(self.all, initial, strict=False):
                group["initial_lr"] = lr

    def ratios(self) -> list[float]:
        """What the agent's rates are multiplied by in each group."""
        return [initial / self.base if self.base else 1.0 for initial in self.initial()]

    def _cells(self) -> list[tuple[int, int | None]]:
        """Group and piece of each rate. Groups have one each, but for those of a shadow, which are not split."""
        if self.layers is None:
            return [(i, 0) for i in range(len(self.all))]
        cells: list[tuple[int, int | None]] = []
        for i, group in enumerate(self.all):
            pieces = self.layers.pieces_in(group)
            one = len(pieces) == 1 or not self._write
            cells += [(i, piece) for piece in pieces] if pieces and one else [(i, None)]
        return cells

    def rates_at(self, lr: Sequence[float]) -> tuple[float, ...]:
        """The rates of all groups where those of the pieces are `lr` (K), a shadow's groups taken as if split."""
        ratios, mean = self.ratios(), overall(lr)
        return tuple((mean if piece is None else lr[piece]) * ratios[i] for i, piece in self._cells())

    def rates(self) -> list[float]:
        """The rates of all groups now."""
        return [float(group["lr"]) for group in self.all]

    def rates_of_cells(self) -> tuple[float, ...]:
        """The rates now to which those of `rates_at` belong."""
        rates = self.rates()
        return tuple(rates[i] for i, _ in self._cells())

    def pieces_now(self) -> list[float]:
        """The rates (K) of the pieces now, as the groups have them."""
        rates, ratios = self.rates(), self.ratios()
        number = 1 if self.layers is None else self.layers.number
        found: dict[int | None, float] = {}
        for i, piece in self._cells():
            if ratios[i]:
                found.setdefault(piece, rates[i] if ratios[i] == 1 else rates[i] / ratios[i])
        return [found.get(k, 0.0) for k in range(number)]

    def set_rates(self, lr: Sequence[float]) -> None:
        """Sets the rates of all groups; tensors are filled, so that compiled and captured steps see them."""
        for group, rate in zip(self.all, self.rates_at(lr), strict=True):
            _put(group, "lr", rate)
        self._set = [(group, float(group["lr"])) for group in self.all]

    def complete(self, lr: Sequence[float]) -> bool:
        """Sets the rates of the groups that don't have those that were set: new ones, or all of a loaded state.

        Args:
            lr: (K), as they were set.

        Returns:
            Whether there were such groups.
        """
        known = {id(group) for group, _ in self._set}
        if not self._set or all(id(group) in known for group in self.all):
            return False
        if not {id(parameter) for group, _ in self._set for parameter in group["params"]} <= self._ids():
            return False  # others have taken their place, which the next decision finds
        for group, rate in zip(self.all, self.rates_at(lr), strict=True):
            if id(group) not in known:
                _put(group, "lr", rate)
                self._set.append((group, float(group["lr"])))
        present = {id(group) for group in self.all}
        self._set = [(group, rate) for group, rate in self._set if id(group) in present]
        return True

    def scale(self, factor: float) -> None:
        """Multiplies the rates that the groups have now."""
        for group in self.all:
            _put(group, "lr", float(group["lr"]) * factor)

    def changed(self) -> bool:
        """Whether something else has set a rate since; loading a state puts other groups in the place of these."""
        now = self.all
        return any(float(group["lr"]) != rate for group, rate in self._set if any(group is own for own in now))

    def names(self) -> tuple[str, ...]:
        """The hyperparameters besides the rate that agents can control here."""
        group = self.all[0]
        held = {"momentum": "momentum" in group or "betas" in group, "weight_decay": "weight_decay" in group}
        return tuple(name for name, there in held.items() if there)

    def hyper(self, names: Collection[str], dtype: torch.dtype) -> Hyper:
        """The first group's values, name -> (1, 1)."""
        return {name: torch.tensor([[_value(self.all[0], name)]], dtype=dtype, device="cpu") for name in names}

    def set_hyper(self, hyper: dict[str, float]) -> None:
        """Sets momentum (beta_1 where there are betas) in all groups that have it, and weight decay.

        Groups that began without weight decay are left without, if others began with some: biases and norms are often
        spared. How they began stands in each group as `initial_weight_decay`.
        """
        for name, value in hyper.items():
            having = [group for group in self.all if _value(group, name) is not None]
            if name == "weight_decay":
                for group in having:
                    group.setdefault("initial_weight_decay", _value(group, name))
                having = [group for group in having if group["initial_weight_decay"]] or having
            for group in having:
                if name == "momentum" and "betas" in group:
                    _put_beta(group, value)
                elif name == "momentum":
                    _put(group, name, max(value, LEAST_MOMENTUM))
                else:
                    _put(group, name, value)

    def others(self, parameters: Sequence[Tensor]) -> bool:
        """Whether others than these are trained."""
        known = {id(parameter) for parameter in parameters}
        return any(p.requires_grad and id(p) not in known for p in self.parameters())

    def hold(self, parameters: Sequence[Tensor]) -> bool:
        """Whether all of these are among those that are trained."""
        return not parameters or {id(parameter) for parameter in parameters} <= self._ids()

    def replaced(self) -> bool:
        """Whether parameters that were trained at the last look no longer are: somebody has made other groups.

        Their first rates are then read anew, those of the old ones in the same places being others'.
        """
        before, self._trained = self._trained, self._ids()
        gone = self._write and not before <= self._trained
        if gone:
            self._first = []
        return gone

    def parameters(self) -> Iterator[Tensor]:
        """All that are trained now."""
        return (parameter for group in self.all for parameter in group["params"])

    def _ids(self) -> set[int]:
        return {id(parameter) for parameter in self.parameters()}

    def unlike(self, trained_on: object, fitted_to: Collection[str] = ()) -> str | None:
        """In which way this optimizer is not like those of lrenv that an agent is for, if it is of another family.

        Args:
            trained_on: the name of lrenv's optimizer; of anything else nothing is known.
            fitted_to: the names of several.
        """
        names, own = (str(trained_on), *fitted_to), self.family()
        families = list(dict.fromkeys(FAMILIES[name] for name in names if name in FAMILIES))
        if not families or own in families:
            return None
        made = f"fitted to {' and '.join(families)}" if fitted_to else f"made for {trained_on!r} ({families[0]})"
        return f"was {made}, and this optimizer is {own}: rates that suit one may not suit the other"

    def adaptive(self) -> bool:
        """Whether it scales gradients: torch's SGD and ASGD don't, nor do others with SGD's `dampening`."""
        plain = isinstance(stepping(self._optimizer), torch.optim.SGD | torch.optim.ASGD)
        return not (plain or "dampening" in self.all[0])

    def momentum(self) -> float:
        """The first group's momentum, beta_1 where there are betas; 0 of an optimizer without."""
        return _value(self.all[0], "momentum") or 0.0

    def family(self) -> str:
        """What kind of optimizer it is."""
        name = type(stepping(self._optimizer)).__name__
        if name != "SGD":
            return OF_TORCH.get(name, name)
        return "SGD with momentum" if self.momentum() else "SGD without momentum"


def _value(group: Group, name: str) -> float | None:
    """A group's hyperparameter, beta_1 for the momentum where there are betas; None of a group without."""
    if name == "momentum" and "betas" in group:
        return float(group["betas"][0])
    return float(group[name]) if name in group else None


def _put(group: Group, name: str, value: float) -> None:
    if isinstance(group[name], Tensor):
        with torch.no_grad():
            group[name].fill_(value)
    else:
        group[name] = value


def _put_beta(group: Group, value: float) -> None:
    first, *others = group["betas"]
    if isinstance(first, Tensor):
        with torch.no_grad():
            first.fill_(value)
    else:
        group["betas"] = (value, *others)
