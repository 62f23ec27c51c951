"""What drawn tasks look like: `python benchmarks/drawn_tasks.py` prints the table of `lrenv/training/drawn.py`.

Nothing is trained, nor is any data generated.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro

from lrenv.training.drawn import LIMIT, TaskDistribution

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclass(frozen=True)
class Settings:
    """The settings: which tasks to describe."""

    number: int = 1000
    """How many."""
    purpose: str = "training"
    """Those of which purpose, as the ledger of seeds has them."""
    limit: float = LIMIT
    """The most FLOPs of an episode of one trainee."""


def shown(value: float) -> str:
    """Returns FLOPs with two digits, and counts as they are."""
    return f"{value:.1e}".replace("e+0", "e") if value > 1e5 else f"{value:,.0f}"


def shares(name: str, told: list[dict[str, Any]], key: Any) -> str:
    """Returns a line of percentages, the largest first."""
    counts = Counter(key(each) for each in told)
    parts = (f"{value} {100 * count / len(told):.0f}" for value, count in counts.most_common())
    return f"{name} (%): {', '.join(parts)}"


def network_kind(told: dict[str, Any]) -> str:
    """Returns the network in two words at most."""
    name = str(told["network"])
    kinds = ("linear model", "residual", "transformer", "layer norm")
    return next((kind for kind in kinds if kind in name), "perceptron")


def main(settings: Settings) -> None:
    """Prints quantiles and shares."""
    distribution = TaskDistribution(settings.limit)
    numbers = (
        int(task.name.split("=")[1].split(":")[0]) for task in distribution.tasks(settings.purpose, settings.number)
    )
    told = [distribution.describe(number) for number in numbers]
    print(f"| quantile | {' | '.join('least' if q == 0 else 'most' if q == 1 else f'{q:.0%}' for q in QUANTILES)} |")
    print(f"|---|{'---:|' * len(QUANTILES)}")
    for name in ("flops", "budget", "decisions", "interval", "batch_size"):
        values = np.quantile([each[name] for each in told], QUANTILES, method="lower")
        print(f"| {name.replace('_', ' ')} | {' | '.join(map(shown, values))} |")
    print()
    print(shares("data", told, lambda each: each["kind"]))
    print(shares("network", told, network_kind))
    print(shares("loss", told, lambda each: each["loss"]))
    print(shares("optimizer", told, lambda each: each["optimizer"]))
    print(shares("weight decay", told, lambda each: "some" if each["weight_decay"] else "none"))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
