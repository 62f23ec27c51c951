"""The time that observing gradients takes: `python benchmarks/white_box.py --compile`.

Environments that observe one part each take turns; the baseline observes losses and the clock. Small intervals show the
most: `--interval 1` is how hypergradient descent acts. `--steps-alone` leaves out measuring and all that crosses to the
host, so that the time of accumulating one-step hypergradients remains.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import tyro

from environments import decisions
from harness import STEPS_RATE, Build, Sized, Turn, race, rate, report
from lrenv.runtime.process import keep_memory
from lrenv.training.gradient_observer import GradientObserver
from lrenv.training.tasks import make_task
from lrenv.training.trainee import Trainee

PARTS = {
    "hypergradient": ("set-raw", "hypergradient"),
    "hypergradient of each layer": ("set-raw/layer", "hypergradient"),
    "hypergradient of each parameter": ("set-raw/parameter", "hypergradient"),
    "mean gradient": ("set-raw", "mean_gradient"),
}
"""Contestant -> control and part."""


@dataclass(frozen=True)
class WhiteBox(Sized):
    """The settings of the race between observations."""

    interval: int = 10
    """Inner steps per decision. The validation split is measured every ten inner steps in any case."""
    steps_alone: bool = False
    """Time inner steps, not decisions."""


def inner_steps(settings: WhiteBox, granularity: str | None) -> Turn:
    """Builds trainees that accumulate hypergradients at a granularity, or don't; a turn is in trainee-steps/s."""
    keep_memory()
    trainee = Trainee(
        make_task(settings.task, interval=settings.interval, **settings.options), compile=settings.compile
    )
    state, rates = trainee.init(range(settings.envs)), torch.full((settings.envs, 1), 1e-3)
    hyper = trainee.hyper(settings.envs)
    observer = GradientObserver(trainee, ["hypergradient"], granularity) if granularity else None

    @torch.no_grad()
    def run() -> None:
        trainee.inner_loop(state, rates, hyper, settings.interval, None, observer, observed)

    with torch.no_grad():
        observed = observer.start(state, hyper) if observer else ()
    run()
    return partial(rate, run, settings.decisions, settings.envs * settings.interval)


def main(settings: WhiteBox) -> None:
    """Runs and reports the race."""
    if settings.steps_alone:
        steps: dict[str, Build] = {"inner steps": partial(inner_steps, settings, None)}
        for piece in ("trainee", "layer", "tensor", "parameter"):
            steps[f"a hypergradient for each {piece}"] = partial(inner_steps, settings, piece)
        title = f"{settings.variant}: inner steps of {settings.envs} trainees that accumulate hypergradients"
        report(race(title, STEPS_RATE, steps, settings.turns, "inner steps"), settings.record)
        return
    options = settings.options | {"interval": settings.interval, "measure_interval": max(10, settings.interval)}
    own = partial(decisions, settings.task, settings.envs, settings.decisions, settings.compile, **options)
    contestants: dict[str, Build] = {"losses and the clock": partial(own, observe="clock")}
    for name, (control, part) in PARTS.items():
        contestants[name] = partial(own, control=control, observe=("clock", part))
    title = f"{settings.variant}: {settings.envs} environments that observe gradients, interval {settings.interval}"
    report(race(title, STEPS_RATE, contestants, settings.turns, "losses and the clock"), settings.record)


if __name__ == "__main__":
    main(tyro.cli(WhiteBox, description=__doc__))
