"""Draws controller-rates.png, the figure of README.md, from the runs that `make demo` leaves.

python docs/figures/controller_rates.py runs/demo/compare
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

COLOURS = ("#0077bb", "#ee7733", "#009988")


def rates(folder: Path) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Agent -> inner steps (k,), and the learning rates (seeds, k) from the initial one on."""
    curves: dict[str, list[dict[str, list[float]]]] = {}
    for line in (folder / "results.jsonl").read_text().splitlines():
        run = json.loads(line)
        curves.setdefault(run["agent"], []).append(run["curves"])
    return {
        agent: (np.array(runs[0]["inner_step"]), np.array([run["lr"] for run in runs], dtype=np.float64))
        for agent, runs in curves.items()
    }


def figure(folder: Path) -> Figure:
    """The controller's rates from each initial rate, a line per seed and the median, beside the tuned schedules."""
    found = rates(folder)
    drawn = Figure(figsize=(7.6, 3.4), dpi=120, layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.add_subplot()
    for name, dashes in (("linear", (5.0, 2.0)), ("cosine", (1.5, 1.5))):
        step, lr = found[name]
        # The first rate is that before a schedule's first action.
        axes.plot(step[1:], np.median(lr, 0)[1:], color="#777777", dashes=dashes, linewidth=1.3, label=f"tuned {name}")
    for colour, name in zip(COLOURS, [name for name in found if name.startswith("ppo from ")], strict=True):
        step, lr = found[name]
        axes.plot(step, lr.T, color=colour, alpha=0.25, linewidth=0.7)
        axes.plot(step, np.median(lr, 0), color=colour, linewidth=2, label=name.replace("ppo", "PPO controller"))
    axes.set(xlabel="inner step of the network in training", ylabel="learning rate", yscale="log")
    axes.set_ylim(5e-5, 0.2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize="small", loc="lower center")
    return drawn


def main() -> None:
    """Draws it from the folder that is named."""
    if len(sys.argv) != 2:
        raise SystemExit("name the folder of the demo's comparison: controller_rates.py runs/demo/compare")
    figure(Path(sys.argv[1])).savefig(Path(__file__).with_name("controller-rates.png"))


if __name__ == "__main__":
    main()
