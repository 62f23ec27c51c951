"""The search for the best peaks of drawn tasks, and the fit of power laws to them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lrenv.agents.universal.policy import EXPONENT, PEAK, SCHEDULE
from lrenv.agents.universal.settings import UniversalSettings
from lrenv.agents.universal.training import UniversalTraining
from lrenv.benchmark.comparison import runs_of
from lrenv.benchmark.contenders import contenders_of
from lrenv.randomness.seeds import seeds_for

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def drawn_peaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import drawn_peaks

    yield drawn_peaks
    sys.modules.pop("drawn_peaks")


def test_a_power_law_is_found_again(drawn_peaks: Any) -> None:
    """Parabolas over log peak, whose lowest points lie on a law; the bound is far above."""
    generator = torch.Generator().manual_seed(0)
    logs = {name: torch.randn(200, generator=generator) for name in ("batch_size", "layers")} | {"one": torch.ones(200)}
    law = {"one": math.log(0.02), "batch_size": 0.4, "layers": -0.7}
    best = sum(a * logs[name] for name, a in law.items())
    peaks = torch.from_numpy(5e-3 * drawn_peaks.FACTORS).log()
    losses = 0.1 * (peaks - best[:, None]) ** 2
    curves = drawn_peaks.Curves(logs, torch.zeros(200), losses[:, None].float(), 5e-3, math.log(10.0))
    found = curves.fitted(list(law))
    for name, a in law.items():
        assert float(found[name]) == pytest.approx(a, abs=0.05)
    bounded = drawn_peaks.Curves(logs, torch.zeros(200), losses[:, None].float(), 5e-3, math.log(0.01))
    exponents = {name: torch.tensor(a) for name, a in law.items()}
    assert float(bounded.regret(exponents).mean()) > float(curves.regret(exponents).mean())


def test_runs_of_the_search_are_those_of_a_policy_with_that_peak(drawn_peaks: Any, tmp_path: Path) -> None:
    training = UniversalTraining(UniversalSettings(layers=True, out=tmp_path, device="cpu"))
    task = next(task for task in training.distribution.tasks("training", 9) if task.optimizer != "momentum")
    found = drawn_peaks.searched(training, task, (0.0, EXPONENT))
    run, episode = training.run(task)
    theta = training.architecture.init(0)
    for place, (family, name) in enumerate(training.architecture.exponents, len(SCHEDULE)):
        theta[place] = -PEAK[family][name] + math.log(found["peaks"][3]) * (name == "one")
    state, _ = episode.reset(seeds_for("selection", drawn_peaks.SEEDS))
    with torch.no_grad():
        expected = run(theta.expand(drawn_peaks.SEEDS, -1), state)[0].mean()
    assert found["log_loss"][1][3] == pytest.approx(float(expected), abs=2e-3)
    assert found["log_loss"][0][3] != found["log_loss"][1][3]


def test_what_the_power_laws_cost_is_counted(drawn_peaks: Any) -> None:
    universal, linear = contenders_of(["universal", "linear"])
    settings, peaks = drawn_peaks.Settings(), len(drawn_peaks.FACTORS) * drawn_peaks.SEEDS
    spent = runs_of(universal)
    assert spent.training == settings.fitted * peaks
    assert spent.selection == settings.tasks * peaks * len(drawn_peaks.EXPONENTS["selection"])
    assert str(runs_of(linear)) == "0"
