"""What a controller keeps in a checkpoint, and how it is read back: nothing changes if some of it can't be read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from lrenv.home.deciding import Decider
from lrenv.home.stepping import Losses
from lrenv.lookup import count

VERSION = 3
"""Of what `state_of` gives."""


class Progress(NamedTuple):
    """How far a loop has come."""

    every: int
    horizon: int | None
    last_epoch: int
    due: float  # the step at which there is something to do next
    begun: bool
    first: Tensor | None  # the loss (1,) before the first step, until the agent has seen it
    losses: Losses


def state_of(progress: Progress, decider: Decider) -> dict[str, Any]:
    """Everything that later decisions depend on: plain values and tensors.

    Args:
        progress: how far the loop has come.
        decider: what decides for it.
    """
    return {
        "version": VERSION,
        "agent": decider.driver.name,
        "every": progress.every,
        "groups": len(decider.rates.groups.all),
        "horizon": progress.horizon,
        "last_epoch": progress.last_epoch,
        "due": None if progress.due == math.inf else int(progress.due),
        "begun": progress.begun,
        "first": progress.first,
        "losses": progress.losses.stacked(),
        "said": list(decider.tell.said),
        "decider": decider.state(),
    }


def read(state: Any, every: int | None, decider: Decider) -> tuple[Progress, Callable[[], None]]:
    """Reads what `state_of` gave; returns how far that loop has come, and what brings the decider there.

    Args:
        state: what is read.
        every: N where the user gave it; None takes that of the state.
        decider: what is to go on.

    Raises:
        ValueError: the state of something else, of another agent, with another `every`, or with parts that are missing
            or can't be meant.
    """
    if not isinstance(state, Mapping) or state.get("version") != VERSION or "decider" not in state:
        raise ValueError("this is no state of an LRController of this version: pass what its state_dict() gave")
    for key, mine in (("agent", decider.driver.name), ("every", every)):
        if mine is not None and state.get(key) != mine:
            raise ValueError(
                f"the state is that of a controller with {key} {state.get(key)!r}, and this one has {mine!r}: make it "
                "with the same settings"
            )
    try:
        losses = Losses()
        losses.restore(state["losses"])
        progress = Progress(
            count("every", state["every"]),
            None if state["horizon"] is None else count("horizon", state["horizon"]),
            count("last_epoch", state["last_epoch"], 0),
            math.inf if state["due"] is None else float(count("due", state["due"], 0)),
            bool(state["begun"]),
            None if state["first"] is None else state["first"].reshape(1).clone(),
            losses,
        )
        said, groups = [str(kind) for kind in state["said"]], count("groups", state["groups"])
        restore_decider = decider.restoring(state["decider"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"the state can't be gone on from ({what}): pass what state_dict() gave, to a controller with the same "
            "settings"
        ) from error

    def restore() -> None:
        restore_decider()
        decider.decide_every(progress.every)
        decider.tell.said = said
        own = decider.rates.groups
        if groups < len(own.all) and own.layers is None:  # fewer may be those that are added only later
            decider.tell(
                "groups",
                f"the optimizer has {len(own.all)} parameter groups, and that of the state had {groups}: as many keep "
                "the ratios of those in the same places there",
            )

    return progress, restore


def of_other_horizon(saved: int | None, made_for: int | None) -> str | None:
    """A sentence for the user of a state whose horizon is not that of the controller that goes on from it."""
    if saved == made_for:
        return None
    more = made_for - saved if made_for is not None and saved is not None else 0
    return (
        f"the state has horizon={saved}, which holds from here, and this controller was made with horizon={made_for}"
        + (f": call extend({more}) to train for {made_for} steps" if more > 0 else "")
    )
