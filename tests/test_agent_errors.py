"""Errors of agents and tasks say who, where and when, and what was wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lrenv.agents import AgentError, View, make_agent
from lrenv.benchmark import evaluate
from lrenv.training.tasks import Task, make_task

NOISY = make_task("noisy-quadratic", budget=20, interval=5)


class Acting:
    """Does as it is told from its third decision on, and raises what it is told to raise."""

    view: Any = View(control="scale", observe="clock")

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __repr__(self) -> str:
        return "acting"

    def predict(self, observation: Any, state: Any = None, *_: Any, **__: Any) -> Any:
        if observation[0, 0] < 10:
            return np.zeros((len(observation), 1), np.float32), state
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def action(*values: float) -> tuple[Any, None]:
    return np.array(values)[:, None], None


WHERE = "agent 'acting' on task 'noisy-quadratic', decision 3 (inner step 10), environments "
ALL, ONE = "0, 1, 2 (seeds 7, 8, 12): ", "1 (seeds 8): "
BOX = "it must be an array (3, 1), a row per environment, each inside Box(-1.0, 1.0, (1,), float32)"
PAIR = "predict must give a pair of actions and memory: `return action, state`, with None for no memory; it gave "


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (KeyError("lr"), f"{ALL}predict raised KeyError: 'lr' (test_agent_errors.py:"),
        (RuntimeError("a\n b"), f"{ALL}predict raised RuntimeError: a b (test_agent_errors.py:"),
        (np.zeros((3, 1)), f"{ALL}{PAIR}a ndarray"),
        (None, f"{ALL}{PAIR}None"),
        ((np.zeros((3, 1)), None, 0), f"{ALL}{PAIR}a tuple of 3"),
        (action(0, np.nan, 0), f"{ONE}its action is no good: actions of environments [1] are NaN"),
        (action(0, 3, 0), f"{ONE}its action is no good: actions of environments [1] lie outside Box"),
        (action(0, 0), f"{ALL}its action is no good: actions must have shape (3, 1) (environments first), not (2, 1); "
                        + BOX),
        ((torch.zeros(3, 1, requires_grad=True), None), f"{ALL}its action is no good: actions must be an array"),
        (([[0.1], [0.1, 0.2], [0.1]], None), f"{ALL}its action is no good: actions must be an array"),
        ((np.zeros(3), None), f"{ALL}its action is no good: actions must have shape (3, 1)"),
        ((np.array([["a"]] * 3), None), f"{ALL}its action is no good: actions must be numbers"),
        ((torch.zeros(3, 2), None), f"{ALL}its action is no good: actions must have shape (3, 1)"),
        ((None, None), f"{ALL}its action is no good: actions must have shape (3, 1)"),
    ],
)  # fmt: skip
def test_a_decision_that_fails(answer: Any, message: str) -> None:
    with pytest.raises(AgentError) as failed:
        evaluate(Acting(answer), NOISY, [7, 8, 12], device="cpu")
    assert str(failed.value).startswith(WHERE + message)
    assert "\n" not in str(failed.value)
    wrapped = isinstance(answer, Exception)
    assert failed.value.__cause__ is answer if wrapped else (failed.value.__cause__ is None) == (PAIR in message)


def test_many_environments_are_cut_short() -> None:
    with pytest.raises(AgentError, match=r"environments 0, 1, 2, 3, 4, 5, 6, 7, ... \(seeds 5, .*, 12, ...\): predict"):
        evaluate(Acting(KeyError("lr")), NOISY, range(5, 25), device="cpu")


@pytest.mark.parametrize(("view", "held"), [({"control": "scale"}, "a dict"), (None, "none"), ("scale", "a str")])
def test_a_view_that_is_none(view: Any, held: str) -> None:
    agent = Acting(None)
    agent.view = view
    with pytest.raises(AgentError, match=rf"agent 'acting' must have a `view` .*View\(control=.* it has {held}"):
        evaluate(agent, NOISY, [0], device="cpu")


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (View(control="scal"), "unknown control 'scal': did you mean 'scale'"),
        (View(observe="clok"), "unknown observation 'clok'"),
        (View(control=("scale", "momentum")), "this optimizer has no momentum"),
        (View(optimizer="sdg"), "unknown optimizer 'sdg'"),
        (View(interval=0), "interval must be at least 1"),
    ],
)
def test_a_view_that_the_task_cannot_offer(view: View, message: str) -> None:
    agent = Acting(None)
    agent.view = view
    with pytest.raises(AgentError, match=f"agent 'acting' can't act on task 'noisy-quadratic': .*{message}"):
        evaluate(agent, NOISY, [0], device="cpu")


def test_errors_of_the_task_are_not_the_agents(toy: Callable[..., Task]) -> None:
    few = toy(network=lambda shape, classes: torch.nn.Linear(shape[0], 2))
    data = Task("tuples", lambda: (1, 2, 3, 4), few.network)  # type: ignore[arg-type, return-value]
    for task, message in (
        (few, r"task 'toy': for 4 examples its network gives \(4, 2\), but loss 'cross_entropy' needs \(4, 3\)"),
        (data, "task 'tuples': its data function must give a lrenv.data.Data, not a tuple of 4"),
        (toy(batch_size=1000), "task 'toy': batch_size=1000 is larger"),
    ):
        with pytest.raises((ValueError, TypeError), match=message) as failed:
            evaluate(make_agent("constant", peak=0.1), task, [0], device="cpu")
        assert not isinstance(failed.value, AgentError)
    with pytest.raises(ValueError, match="device='abacus' can't be used here"):
        evaluate(make_agent("constant", peak=0.1), NOISY, [0], device="abacus")
