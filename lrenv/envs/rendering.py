"""Pictures and lines of text of trainees in training."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrenv.training.dynamics import one_rate_of
from lrenv.training.tasks import Task

FOLLOWED = 16
"""The most envs of a batch that are drawn: drawing one takes longer than many a decision."""


class History:
    """What the first envs of a batch have shown since their episodes began.

    Args:
        num_envs: how many there are; the first `FOLLOWED` are drawn.
        task: gives the length of the axes.
    """

    def __init__(self, num_envs: int, task: Task) -> None:
        self._task = task
        self._num_envs = num_envs
        self._rows: list[list[tuple[float, float, float, float]]] = [[] for _ in range(min(num_envs, FOLLOWED))]

    def add(self, info: dict[str, Any], restarted: NDArray[np.bool_]) -> None:
        """Appends a decision; a restarted env begins anew."""
        rates = one_rate_of(info["lr"])
        for i, row in enumerate(self._rows):
            if restarted[i]:
                row.clear()
            lr = float(rates[i])
            row.append((float(info["inner_step"][i]), float(info["train_loss"][i]), float(info["val_loss"][i]), lr))

    def line(self, info: dict[str, Any]) -> str:
        """Returns a line on the whole batch."""
        lr = one_rate_of(info["lr"])
        return (
            f"{self._task.name} step {info['inner_step'].mean():.0f}/{self._task.budget}"
            f" | train loss {_spread(info['train_loss'])} | val loss {_spread(info['val_loss'])}"
            f" | lr {_spread(lr)} | diverged {int(info['diverged'].sum())}/{len(lr)}"
        )

    def draw(self) -> tuple[NDArray[np.uint8], ...]:
        """Draws one image (height, width, 3) per env: losses and learning rate over inner steps.

        Those of envs that aren't followed are one white image.
        """
        drawn = [self._draw(row) for row in self._rows]
        return (*drawn, *[np.full_like(drawn[0], 255)] * (self._num_envs - len(drawn)))

    def _draw(self, row: list[tuple[float, float, float, float]]) -> NDArray[np.uint8]:
        # Matplotlib takes half a second to import, and only those who look need it.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.8, 3.6), dpi=100, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        losses, rate = figure.subplots(2, sharex=True, height_ratios=(2, 1))
        step, train, val, lr = np.array(row).T
        losses.semilogy(step, train, label="training", color="tab:gray")
        losses.semilogy(step, val, label="validation", color="tab:blue")
        losses.set_ylabel("loss")
        losses.legend(loc="upper right", frameon=False)
        losses.set_title(self._task.name)
        rate.semilogy(step, np.where(lr > 0, lr, np.nan), color="tab:red", drawstyle="steps-pre")
        rate.set_ylabel("learning rate")
        rate.set_xlabel("inner step")
        rate.set_xlim(0, self._task.budget)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _spread(values: NDArray[Any]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{np.mean(values):.4g} ({np.min(values):.4g} to {np.max(values):.4g})"
