"""What was decided when, and why: a table and a plot."""

from __future__ import annotations

import csv
import math
from collections import deque
from collections.abc import Iterator
from os import PathLike
from typing import Any, NamedTuple, overload

KEPT = 10_000
"""Decisions that are remembered; a schedule that decides at every step of a long run would fill the memory."""


class Decision(NamedTuple):
    """A decision."""

    step: int  # optimizer steps before it
    rates: tuple[float, ...]  # of the parameter groups from here on
    proposed: tuple[float, ...]  # those that the agent asked for
    hyper: dict[str, float]  # other hyperparameters that the agent asked for
    train_loss: float  # mean since the decision before; NaN where it isn't measured
    val_loss: float
    observation: dict[str, float]  # signal -> what the agent saw
    action: tuple[float, ...]  # what it did
    why: tuple[str, ...]  # what came in between, in words; empty where its action was carried out as it was


class History:
    """The latest decisions, oldest first: a sequence of `Decision`."""

    def __init__(self) -> None:
        self._decisions: deque[Decision] = deque(maxlen=KEPT)

    def __repr__(self) -> str:
        return f"History of {len(self)} decisions"

    def __len__(self) -> int:
        return len(self._decisions)

    def __iter__(self) -> Iterator[Decision]:
        return iter(self._decisions)

    @overload
    def __getitem__(self, index: int) -> Decision: ...

    @overload
    def __getitem__(self, index: slice) -> list[Decision]: ...

    def __getitem__(self, index: int | slice) -> Decision | list[Decision]:
        return list(self._decisions)[index] if isinstance(index, slice) else self._decisions[index]

    def add(self, decision: Decision) -> None:
        """Appends one; beyond `KEPT` the oldest is forgotten."""
        self._decisions.append(decision)

    def rows(self) -> list[dict[str, Any]]:
        """A row per decision: one value per column, as a table or a data frame takes them."""
        return [_row(decision) for decision in self]

    def write_csv(self, path: str | PathLike[str]) -> None:
        """Writes `rows` to a file of comma-separated values."""
        rows = self.rows()
        columns = dict.fromkeys(name for row in rows for name in row)
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(rows)

    def plot(self, path: str | PathLike[str] | None = None) -> Any:
        """Draws the highest of the groups' rates and the losses over the steps.

        Where the agent asked for other rates, as in shadow mode, they are a dashed line.

        Args:
            path: of an image to write; None writes none.

        Returns:
            The `matplotlib.figure.Figure`.
        """
        # Matplotlib takes half a second to import, and only those who look need it.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 5), layout="constrained")
        upper, lower = figure.subplots(2, sharex=True)
        steps = [decision.step for decision in self]
        for name, label in (("val_loss", "validation"), ("train_loss", "training")):
            upper.plot(steps, [getattr(decision, name) for decision in self], label=label)
        upper.set_ylabel("loss")
        upper.legend()
        rates, asked = [max(decision.rates) for decision in self], [max(decision.proposed) for decision in self]
        lower.step(steps, rates, where="post", label="learning rate")
        if not all(math.isclose(*pair, rel_tol=1e-5) for pair in zip(rates, asked, strict=True)):
            lower.step(steps, asked, "--", where="post", label="what the agent asked for")
        lower.set_ylabel("learning rate")
        lower.set_xlabel("optimizer step")
        if any(rate > 0 for rate in rates):
            lower.set_yscale("log")
        losses = [x for each in self for x in (each.val_loss, each.train_loss) if math.isfinite(x)]
        if losses and 0 < 10 * min(losses) < max(losses):  # else its labels are hard to read
            upper.set_yscale("log")
        lower.legend()
        if path is not None:
            figure.savefig(path)
        return figure


def _row(decision: Decision) -> dict[str, Any]:
    row: dict[str, Any] = {"step": decision.step}
    row |= {f"lr.{i}": lr for i, lr in enumerate(decision.rates)}
    row |= {f"proposed.{i}": lr for i, lr in enumerate(decision.proposed)}
    row |= decision.hyper
    row |= {"train_loss": decision.train_loss, "val_loss": decision.val_loss}
    row |= {f"saw.{name}": value for name, value in decision.observation.items()}
    row |= {f"action.{i}": value for i, value in enumerate(decision.action)}
    return row | {"why": "; ".join(decision.why)}
