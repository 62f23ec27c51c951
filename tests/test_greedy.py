"""GreedyLR against its rule written out, and what its bounds do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from reference import schedules as reference

from lrenv.agents import AgentError, make_agent
from lrenv.agents.schedules.greedy import greedy, greedy_bounded
from lrenv.agents.schedules.refined import record_norms
from lrenv.benchmark import evaluate
from lrenv.envs.observations import CLOCK

SETTINGS: list[dict[str, Any]] = [
    {"peak": 0.1, "factor": 0.5, "patience": 2, "margin": 1e-6, "cooldown": 0, "pause": 0, "low": 1e-3, "high": 1.0,
     "window": 1, "reset": 500},
    {"peak": 0.02, "factor": 0.8, "patience": 0, "margin": 0.02, "cooldown": 3, "pause": 2, "low": 0.01, "high": 0.2,
     "window": 5, "reset": 4},
    {"peak": 5e-5, "factor": 0.95, "patience": 1, "margin": 1e-6, "cooldown": 1, "pause": 0, "low": 1e-3, "high": 1.0,
     "window": 1, "reset": 2},
    {"peak": 2.0, "factor": 0.5, "patience": 1, "margin": 1e-6, "cooldown": 0, "pause": 3, "low": 0.5, "high": 1.0,
     "window": 2, "reset": 3},
]  # fmt: skip


def clock(n: int, t: int, val_loss: Any) -> np.ndarray:
    columns = {"inner_step": t, "budget": 1000, "interval": 1, "train_loss": 2.0, "val_loss": val_loss}
    return np.stack([np.broadcast_to(columns[name], n) for name in CLOCK], axis=1).astype(np.float64)


def losses(seed: int, decisions: int = 200) -> np.ndarray:
    """Losses that fall, stall and rise again, (decisions, settings)."""
    rng, t = np.random.default_rng(seed), np.arange(decisions)[:, None]
    level = 2 / (1 + 0.1 * t) + np.where(t > decisions // 2, 0.01 * (t - decisions // 2), 0)
    found: np.ndarray = level + 0.05 * rng.normal(size=(decisions, len(SETTINGS)))
    return found


def rates(agent: Any, seen: np.ndarray) -> np.ndarray:
    state, found = None, []
    for t, row in enumerate(seen):
        action, state = agent.predict(clock(len(row), t, row), state)
        found.append(action[:, 0])
    return np.stack(found)


@pytest.mark.parametrize("seed", range(4))
def test_it_equals_its_rule_with_other_settings_in_every_env(seed: int) -> None:
    seen = losses(seed)
    found = rates(greedy(**{key: np.array([s[key] for s in SETTINGS]) for key in SETTINGS[0]}), seen)
    for i, setting in enumerate(SETTINGS):
        np.testing.assert_allclose(found[:, i], reference.greedy(seen[:, i].tolist(), **setting), rtol=1e-12)
        assert len(np.unique(found[:, i])) > 2, "it reacted"
    assert (found[1:, 1] == 0.02)[(found[:-1, 1] < 0.02)].any(), "one started anew"


def test_a_loss_that_is_no_number_is_no_improvement() -> None:
    agent = greedy(peak=0.1, patience=0)
    seen = np.array([[1.0], [np.nan], [np.nan]])
    np.testing.assert_allclose(rates(agent, seen)[:, 0], [0.1 / 0.95, 0.1, 0.1 * 0.95])


def test_below_the_lowest_rate_the_authors_settings_can_only_rise() -> None:
    rising = np.linspace(1, 2, 100)[:, None]
    assert (rates(greedy(peak=5e-5), rising) == 5e-5).all()
    assert rates(greedy(peak=5e-5), rising[::-1])[-1] > 5e-5
    bounded = rates(greedy_bounded(peak=5e-5), rising)
    np.testing.assert_allclose(bounded[-1], 5e-7)
    np.testing.assert_allclose(rates(greedy_bounded(peak=5e-5), rising[::-1])[-1], 5e-4)


def test_the_first_settings_are_the_authors() -> None:
    agent = greedy(peak=0.1)
    assert repr(agent) == (
        "greedy(peak=0.1, factor=0.95, patience=10, margin=1e-06, cooldown=0, pause=0, low=0.001, high=1.0, window=1, "
        "reset=500, warmup=0)"
    )


@pytest.mark.parametrize("agent", ["plateau:peak=0.1", "greedy:peak=0.1", "greedy-bounded:peak=0.1"])
def test_losses_that_were_measured_once_are_not_counted_twice(agent: str) -> None:
    sentence = r"at each decision, every 5 steps, but they are measured every 10: give the task interval=10"
    with pytest.raises(AgentError, match=sentence):
        evaluate(agent, "noisy-quadratic:budget=20:interval=5:measure_interval=10", [0], device="cpu")
    evaluate(agent, "noisy-quadratic:budget=20:interval=10:measure_interval=10", [0], device="cpu")
    with pytest.raises(ValueError, match="looks at the time alone"):
        record_norms(make_agent(agent), "noisy-quadratic:budget=20:interval=5")
