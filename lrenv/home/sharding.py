"""Weights that several processes hold in parts, and optimizers with one inside: what can't be driven there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

PARTS = {
    "placements": "a DTensor, as FSDP's fully_shard and tensor parallelism make them",
    "_fsdp_flattened": "a part of what FSDP has flattened",
    "_is_flat_param": "flattened by FSDP",
    "ds_id": "partitioned by DeepSpeed",
}
"""Attribute that a weight has where this process may hold a part of it alone -> what it is."""


def check_whole(agent: str, weights: Iterable[Tensor]) -> None:
    """Refuses weights of which a process holds a part alone, for an agent that looks at weights, gradients or layers.

    Raises:
        ValueError: there are such.
    """
    found = next((what for p in weights for mark, what in PARTS.items() if hasattr(p, mark)), None)
    if found is not None:
        raise ValueError(
            f"agent {agent!r} looks at weights, gradients or layers, and of these a process holds a part alone (one is "
            f"{found}): take an agent with one rate that looks at losses or the time, such as plateau or linear"
        )


def stepping(optimizer: Any) -> Any:
    """The optimizer that takes the steps: the one inside of torch's `ZeroRedundancyOptimizer`, or itself."""
    inside = getattr(optimizer, "optim", None)
    return inside if hasattr(inside, "param_groups") else optimizer


def check_split(agent: str, granularity: str, optimizer: Any) -> None:
    """Refuses to split the groups of an optimizer that hands them on to another one inside, group by group.

    Raises:
        ValueError: it is such a one.
    """
    if stepping(optimizer).param_groups is not optimizer.param_groups:
        raise ValueError(
            f"agent {agent!r} sets a rate per {granularity}, for which groups would have to be split, and those of "
            f"{type(optimizer).__name__} must be those of the optimizer inside: give it a parameter group for each "
            f"{granularity}, or pass layers='groups' to take its groups for layers"
        )


def check_steps(optimizer: Any) -> None:
    """Refuses an optimizer of DeepSpeed's engine, which steps another one as often as it has partitions.

    Raises:
        ValueError: it is one, or a stand-in of Accelerate's for one.
    """
    modules = [kind.__module__.split(".") for kind in type(optimizer).__mro__]
    if any("deepspeed" in names and names[:2] != ["deepspeed", "ops"] for names in modules):
        raise ValueError(
            f"{type(optimizer).__name__} takes DeepSpeed's steps, of weights that it partitions, which a controller "
            "can't follow: give DeepSpeed a scheduler of torch, whose rates a schedule's may be "
            "(lrenv.agents.schedules.formulas)"
        )
