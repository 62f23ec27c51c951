"""Tuning-free optimizers: what their packages do, reached through agents; those that aren't installed are skipped."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lrenv import networks
from lrenv.agents import OptimizerAgent, make_agent
from lrenv.agents.tuning_free.agent import TuningFree
from lrenv.benchmark import compare, evaluate, wording
from lrenv.benchmark.optimizer_runs import run_optimizers
from lrenv.controllers.agent import Agent, AgentError, agents
from lrenv.training.tasks import Task
from lrenv.training.trainee import Trainee

MODULES = {
    "schedule-free": "schedulefree", "prodigy": "prodigyopt", "d-adaptation": "dadaptation", "dog": "dog",
    "mechanic": "mechanic_pytorch", "momo": "momo",
}  # fmt: skip
"""Agent -> the module of its package."""
HORIZON = {
    "schedule-free": True, "schedule-free:base=radam": False, "schedule-free:warmup=10": False,
    "schedule-free:base=sgd:lr=0.3:warmup=0": False, "prodigy": True, "prodigy:schedule=constant": False,
    "d-adaptation": True, "d-adaptation:base=sgd:schedule=constant": False, "dog": False, "dog:layerwise=True": False,
    "dog:averaged=False": False, "mechanic": True, "mechanic:base=sgd:schedule=constant": False, "momo": False,
    "momo:base=sgd": False, "momo:use_fstar=True": False,
}  # fmt: skip
"""Case -> whether the budget is known."""


def made(case: str) -> Any:
    """The agent of a case, where its package is installed."""
    pytest.importorskip(MODULES[case.split(":")[0]])
    return make_agent(case)


def test_all_are_installed_as_agents_and_say_what_they_know() -> None:
    """Making one needs no package."""
    assert set(MODULES) <= set(agents())
    assert {case.split(":")[0] for case in HORIZON} == set(MODULES)
    for case, horizon in HORIZON.items():
        agent: Any = make_agent(case)
        assert isinstance(agent, OptimizerAgent)
        assert isinstance(agent, Agent)
        assert agent.view.horizon is horizon, case


@pytest.mark.parametrize("case", HORIZON)
def test_each_learns(case: str, toy: Callable[..., Task]) -> None:
    """All examples in a batch, with batch norm and weight decay."""
    agent = made(case)
    task = toy(network=networks.batch_norm_mlp(5), optimizer="adamw", batch_size=24, budget=100, interval=25)
    result = evaluate(agent, task, [0], device="cpu")
    losses = result.curves["train_loss"]
    assert not result.diverged.any()
    assert (losses[-1] < losses[0]).all()
    assert (result.curves["lr"][1:] > 0).all()
    package, version = result.view["optimizer"].split()
    assert package == agent.package
    assert version[0].isdigit()


def test_each_run_has_its_own_estimate(toy: Callable[..., Task]) -> None:
    """Prodigy's one number per optimizer: runs together are those alone."""
    agent, task = made("prodigy"), toy(budget=60, interval=20)
    together, alone = (run_optimizers(agent, "", task, seeds, dtype=torch.float64) for seeds in ([0, 1], [1]))
    for name in ("lr", "val_loss"):
        np.testing.assert_allclose(together.curves[name][:, 1], alone.curves[name][:, 0], rtol=1e-9)
    assert together.curves["lr"][-1, 0] != pytest.approx(together.curves["lr"][-1, 1], rel=1e-3)


def test_schedule_free_is_measured_at_its_average(toy: Callable[..., Task]) -> None:
    """Defazio et al. 2024, equations 2 to 4, for SGD in NumPy's terms: x is the mean of z, gradients are those at y."""
    agent = made("schedule-free:base=sgd:lr=0.3:warmup=0")
    task, beta = toy(budget=20, interval=5), 0.9
    trainee = Trainee(task, dtype=torch.float64)
    state = trainee.init([2])
    x = z = state.params
    expected = [float(trainee.evaluate(x, state.buffers, trainee.val).loss)]
    for t, indices in enumerate(trainee.batch_indices(state, task.budget).unbind(1), 1):
        y = (1 - beta) * z + beta * x
        with torch.no_grad():
            z = z - 0.3 * trainee.gradient(state._replace(params=y), indices).grads
        x = (1 - 1 / t) * x + z / t
        if t % task.interval == 0:
            expected.append(float(trainee.evaluate(x, state.buffers, trainee.val).loss))
    runs = run_optimizers(agent, "", task, [2], dtype=torch.float64)
    np.testing.assert_allclose(runs.curves["val_loss"][:, 0], expected, rtol=1e-9)


def test_dog_is_its_formula_with_the_average(toy: Callable[..., Task]) -> None:
    """Ivgi et al. 2023, equation 1 and its initial distance; the average of Shamir and Zhang 2013 with gamma 8."""
    agent = made("dog:reps_rel=0.01")
    task = toy(budget=30, interval=10)
    trainee = Trainee(task, dtype=torch.float64)
    state = trainee.init([2])
    start = w = average = state.params
    distance, squares = float(0.01 * (1 + start.norm())), 1e-8
    expected, rates = [], []
    for t, indices in enumerate(trainee.batch_indices(state, task.budget).unbind(1), 1):
        with torch.no_grad():
            gradient = trainee.gradient(state._replace(params=w), indices).grads
        distance, squares = max(distance, float((w - start).norm())), squares + float((gradient**2).sum())
        w = w - distance / math.sqrt(squares) * gradient
        average = (1 - 9 / (8 + t)) * average + 9 / (8 + t) * w
        if t % task.interval == 0:
            expected.append(float(trainee.evaluate(average, state.buffers, trainee.val).loss))
            rates.append(distance / math.sqrt(squares))
    runs = run_optimizers(agent, "", task, [2], dtype=torch.float64)
    np.testing.assert_allclose(runs.curves["val_loss"][1:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(runs.curves["lr"][1:, 0], rates, rtol=1e-6)


def test_a_network_with_batch_norm_begins_with_longer_steps(toy: Callable[..., Task]) -> None:
    """As the authors of DoG suggest: 1e-4 instead of 1e-6."""
    agent, weights = made("dog"), [nn.Parameter(torch.ones(3))]
    first = [
        agent.optimizer(weights, task).param_groups[0]["reps_rel"]
        for task in (toy(), toy(network=networks.batch_norm_mlp(5)))
    ]
    assert first == [1e-6, 1e-4]


class Recording:
    """Stands for an optimizer, and notes the rates and losses that it is given."""

    def __init__(self, lr: float) -> None:
        self.param_groups = [{"lr": lr}]
        self.seen: list[tuple[float, Any]] = []

    def step(self, **arguments: Any) -> None:
        self.seen.append((self.param_groups[0]["lr"], arguments))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_are_torchs(schedule: str) -> None:
    budget, optimizer, loss = 7, Recording(0.5), torch.tensor(1.0)
    agent: Any = make_agent("prodigy", schedule=schedule, lr=0.5)
    for t in range(budget):
        agent.step(optimizer, loss, t / budget)
    sgd = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.5)
    scheduler: Any = {
        "constant": lambda: torch.optim.lr_scheduler.ConstantLR(sgd, 1.0),
        "linear": lambda: torch.optim.lr_scheduler.LinearLR(sgd, 1.0, 0.0, budget),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(sgd, budget),
    }[schedule]()
    expected = []
    for _ in range(budget):
        expected.append(scheduler.get_last_lr()[0])
        sgd.step()
        scheduler.step()
    np.testing.assert_allclose([rate for rate, _ in optimizer.seen], expected, rtol=1e-12)


def test_momo_is_told_the_loss() -> None:
    loss, optimizer = torch.tensor(2.5), Recording(1e-2)
    agent: Any = make_agent("momo")
    agent.step(optimizer, loss, 0.0)
    assert optimizer.seen == [(1e-2, {"loss": loss})]


@pytest.mark.parametrize("name", MODULES)
def test_weight_decay_is_that_of_the_task(name: str, toy: Callable[..., Task]) -> None:
    agent, parameters = made(name), [nn.Parameter(torch.ones(3))]
    for optimizer, decoupled in (("adam", False), ("adamw", True)):
        inner = agent.optimizer(parameters, toy(optimizer=optimizer, weight_decay=0.25))
        (group,) = inner.param_groups
        assert group["weight_decay"] == 0.25
        if "decouple" in group:
            assert group["decouple"] is decoupled
        if name == "mechanic":
            assert isinstance(inner, torch.optim.AdamW) is decoupled


def test_nothing_is_printed(toy: Callable[..., Task], capfd: pytest.CaptureFixture[str]) -> None:
    for name in MODULES:
        agent: Any = make_agent(name)
        try:
            agent.optimizer([nn.Parameter(torch.ones(3))], toy(optimizer="adamw", weight_decay=0.25))
        except AgentError:
            continue
    assert capfd.readouterr().out == ""


def test_a_missing_package_is_told_and_the_others_go_on(
    toy: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in MODULES.values():
        monkeypatch.setitem(sys.modules, module, None)
    for name in MODULES:
        with pytest.raises(AgentError, match=rf"agent '{name}' needs the package [a-z-]+, .* pip install '?[a-z-]+"):
            evaluate(name, toy(), [0], device="cpu")
    compared = compare(toy(), ["prodigy", "constant:peak=0.1"], 2, device="cpu")
    assert [row.label for row in compared.failed] == ["prodigy"]
    assert compared.failed[0].failure == (
        "agent 'prodigy' needs the package prodigyopt, which isn't installed: pip install prodigyopt, or pip install "
        "'lrenv[baselines]' for those of all tuning-free optimizers"
    )
    assert compared.rows[1].result is not None


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("prodigy:schedule=cosin", "unknown schedule 'cosin': did you mean 'cosine'"),
        ("prodigy:lr=-1.0", "lr=-1.0: lr must be a positive number"),
        ("prodigy:lr=much", "lr='much': lr must be a positive number"),
        ("momo:lr=True", "lr=True: lr must be a positive number"),
        ("dog:reps_rel=0", "reps_rel=0: reps_rel must be a positive number"),
        ("schedule-free:warmup=long", "warmup='long': warmup must be inner steps"),
        ("dog:averaged='no'", "averaged='no': averaged must be True or False"),
        ("dog:layerwise=1", "layerwise=1: layerwise must be True or False"),
        ("momo:use_fstar=no", "use_fstar='no': use_fstar must be True or False"),
        ("momo:base=adamw", "unknown base 'adamw': did you mean 'adam'"),
        ("mechanic:base=lion", "unknown base 'lion'"),
        ("d-adaptation:base=x", "unknown base 'x'"),
        ("schedule-free:warmup=-1", "warmup must be inner steps, or a part of the budget below 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(case: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make_agent(case)


class Fake(OptimizerAgent):
    """Of a package whose version changes."""

    release = "1"
    runs = 0

    def optimizer(self, parameters: list[nn.Parameter], task: Task) -> Any:
        type(self).runs += 1
        return torch.optim.SGD(parameters, lr=0.1)

    def rate(self, optimizer: Any) -> float:
        return 0.1

    def source(self) -> str:
        return f"fake {self.release}"


def test_a_comparison_says_who_ran_alone_and_runs_again_with_another_version(
    toy: Callable[..., Task], tmp_path: Any, advertise: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    advertise("fake", f"{__name__}:Fake")
    advertise("constant", "lrenv.agents.schedules.agent:constant")
    advertise("linear", "lrenv.agents.schedules.agent:linear")
    task = "noisy-quadratic:budget=10"
    for release, runs in (("1", 2), ("1", 2), ("2", 4)):
        monkeypatch.setattr(Fake, "release", release)
        compared = compare(task, ["fake", "constant:peak=0.1"], 2, device="cpu", out=tmp_path / "out")
        assert Fake.runs == runs
    result = compared.rows[0].result
    assert result is not None
    assert "Of Fake() each run has" in wording.caption(compared).replace("fake", "Fake()")
    assert not Fake().view.horizon
    assert "running statistics of batch norm are estimated anew" in wording.caption(compared)
    assert "how long" not in wording.caption(compared), "neither knows it"
    assert [row.horizon for row in compared.rows] == [False, False]
    compared = compare(task, ["constant:peak=0.1", "linear:peak=0.1"], 2, device="cpu")
    assert "linear knows how long training will take; no other does." in wording.caption(compared)
    assert wording.what(result.view) == "optimizer fake 2, one per run, not stacked"
    other = compared.rows[1].result
    assert other is not None
    assert "not stacked" not in wording.what(other.view)


def test_an_agent_is_shown_as_the_call_that_makes_it() -> None:
    assert repr(make_agent("prodigy")) == "prodigy(schedule='cosine', lr=1.0)"
    agent: Any = make_agent("momo:base=sgd")
    assert isinstance(agent, TuningFree)
    assert repr(agent) == "momo(base='sgd', lr=1.0, use_fstar=False)"


def test_the_rate_of_mechanic_is_that_of_its_updates(toy: Callable[..., Task]) -> None:
    """w = w_0 + s times the sum of the other optimizer's updates; the rate is that of these times s."""
    agent = made("mechanic:base=sgd:lr=0.5:schedule=constant")
    w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = agent.optimizer([w], toy())
    start, velocity, total = w.detach().clone(), torch.zeros_like(w), torch.zeros_like(w)
    assert agent.rate(optimizer) == 0
    for t in range(30):
        w.grad = w.detach().clone()  # of |w|^2 / 2
        velocity = 0.9 * velocity + w.grad
        total = total - velocity
        agent.step(optimizer, torch.tensor(1.0), t / 30)
    np.testing.assert_allclose(
        (w.detach() - start).numpy(), (agent.rate(optimizer) * total).detach().numpy(), rtol=1e-2
    )
    assert (w.detach() - start).abs().min() > 1e-7


@pytest.mark.parametrize("spec", ["prodigy:schedule='constant'", "d-adaptation:schedule='constant'",
                                  "d-adaptation:schedule='constant':base=sgd"])  # fmt: skip
def test_the_rate_of_an_estimate_is_that_of_the_step(spec: str, toy: Callable[..., Task]) -> None:
    """D is raised within the step, which takes the one of before."""
    pytest.importorskip(MODULES[spec.split(":")[0]])
    agent, task = make_agent(spec), toy(optimizer="adam")
    parameter = nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = agent.optimizer([parameter], task)  # type: ignore[attr-defined]
    raised = 0
    for _ in range(20):
        parameter.grad = parameter.detach().clone()
        group = optimizer.param_groups[0]
        before = group["d"]
        agent.step(optimizer, parameter.square().sum() / 2, 0.0)  # type: ignore[attr-defined]
        raised += group["d"] > before
        expected = before / (13**0.5 if "sgd" in spec else 1)
        assert agent.rate(optimizer) == pytest.approx(expected, rel=1e-6)  # type: ignore[attr-defined]
    assert raised
