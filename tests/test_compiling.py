"""Captured functions, with a stand-in for the card; and what a card's compiler would be given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from triton_code import kernels, machine_code, triton_code

from lrenv.agents import AgentError, make_agent
from lrenv.benchmark import evaluate
from lrenv.envs.episode import Episode
from lrenv.randomness import draws
from lrenv.runtime.compiling import WARM_UPS, Captured, CaptureError, checked


class State(NamedTuple):
    now: Tensor
    before: Tensor
    rest: dict[str, Tensor]
    seed: Tensor


def recorded(function: Callable[[], None]) -> Callable[[], object]:
    """What a card does: runs to warm up, one that is recorded, and replays that touch the same memory."""
    for _ in range(WARM_UPS + 1):
        function()
    return function


def step(state: State, add: Tensor, twice: bool) -> tuple[State, dict[str, Tensor]]:
    """States and outputs that are inputs, lie in the memory of others, or are views of them."""
    now = state.now + add * (2 if twice else 1)
    after = State(now, state.now, {"view": state.before[:1].expand(3), "sum": now.cumsum(0)}, state.seed)
    return after, {"new": now, "old": state.now, "view": state.before[1:], "seed": state.seed, "own": now * add}


def fresh() -> State:
    return State(torch.ones(3), torch.arange(3.0), {"view": torch.zeros(3), "sum": torch.zeros(3)}, torch.arange(3))


def equal(one: Any, other: Any) -> bool:
    return torch.utils._pytree.tree_all(
        lambda same: same, torch.utils._pytree.tree_map(lambda a, b: bool(torch.equal(a, b)), one, other)
    )


@pytest.mark.parametrize("donate", [False, True])
def test_a_captured_function_gives_what_it_gives_without(donate: bool) -> None:
    captured = Captured(step, recorded)
    ours = theirs = fresh()
    for decision in range(6):
        add, twice = torch.full((3,), float(decision)), decision % 3 == 0
        (ours, output), (theirs, expected) = captured(ours, add, twice, donate=donate), step(theirs, add, twice)
        assert equal(ours, theirs)
        assert equal(output, expected)


def test_states_stay_as_they_are_unless_they_are_given_away() -> None:
    captured = Captured(step, recorded)
    first = fresh()
    second, output = captured(first, torch.ones(3), False)
    third, _ = captured(second, torch.ones(3), False)
    assert equal(first, fresh())
    assert equal((second, output), step(fresh(), torch.ones(3), False))
    assert not captured.holds((third, output))
    given, output = captured(third, torch.ones(3), False, donate=True)
    assert captured.holds(given)
    assert captured.holds(output)
    assert captured.holds(given._replace(now=torch.zeros(3))), "whatever tree its tensors are in"
    kept = torch.utils._pytree.tree_map(torch.clone, (given, output))
    again, _ = captured(given, torch.ones(3), False, donate=True)
    assert again is given  # in place
    assert not equal(given, kept[0])


def test_a_function_is_recorded_once_for_each_shape_and_plain_value() -> None:
    recordings = []

    def counted(function: Callable[[], None]) -> Callable[[], object]:
        recordings.append(function)
        return recorded(function)

    captured = Captured(step, counted)
    state = fresh()
    for twice in (True, False, True, False):
        state, _ = captured(state, torch.rand(3), twice, donate=True)
    assert len(recordings) == 2
    captured(State(*(torch.ones(2) for _ in range(2)), {"view": torch.ones(3), "sum": torch.ones(2)}, torch.ones(2)),
             torch.ones(2), True)  # fmt: skip
    assert len(recordings) == 3
    captured(state, torch.ones((), dtype=torch.float64).expand(3), False)
    assert len(recordings) == 4


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="must be True, False or 'graph'"):
        checked("yes", torch.device("cpu"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="captures CUDA graphs, which cpu has not"):
        checked("graph", torch.device("cpu"))


def test_a_missing_compiler_is_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def missing() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler.*compile=False"):
        checked(True, torch.device("cpu"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "draw",
    [
        lambda seed, step: draws.epoch_indices(seed, step, 8, 100),
        lambda seed, step: draws.epoch_indices(seed, step, 8, 100, replacement=True),
        lambda seed, step: draws.uniform(draws.fold(seed, draws.DROPOUT), (5, 3)),
    ],
    ids=["without replacement", "with replacement", "uniform"],
)
def test_triton_accepts_the_draws(draw: Callable[[Tensor, Tensor], Tensor]) -> None:
    """It refuses products of an index, which has 32 bits, with the 64-bit constants of the hash."""
    pytest.importorskip("triton")
    sources = kernels(triton_code(draw, [torch.arange(4), torch.zeros(4, 3, dtype=torch.int64)]))
    assert sources
    for source in sources:
        assert ".entry" in machine_code(source)


def test_what_cannot_be_recorded_says_so_and_leaves_the_state() -> None:
    def waits(function: Callable[[], None]) -> Callable[[], object]:
        function()
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCUDA kernel errors ...")

    captured = Captured(step, recorded, "a decision of task 'x' with optimizer 'y'")
    given, _ = captured(fresh(), torch.ones(3), False, donate=True)
    before = torch.utils._pytree.tree_map(torch.clone, given)
    captured._record = waits
    with pytest.raises(
        CaptureError, match="^a decision of task 'x'.*can't be captured.*is capturing.: the network.*compile=False$"
    ):
        captured(given, torch.ones(3), True, donate=True)
    assert equal(given, before)  # what ran to warm up is undone
    captured._record = recorded
    assert equal(captured(given, torch.ones(3), True), step(before, torch.ones(3), True))


def test_a_device_that_goes_away_says_so() -> None:
    def lost(function: Callable[[], None]) -> Callable[[], object]:
        def replay() -> None:
            raise RuntimeError("CUDA error: unspecified launch failure")

        return replay

    with pytest.raises(CaptureError, match="the device failed in the function .*launch failure.*--resume"):
        Captured(step, lost)(fresh(), torch.ones(3), False)


def test_an_evaluation_says_whose_decisions_cannot_be_captured(
    toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise CaptureError("a decision can't be captured; use compile=False")

    monkeypatch.setattr(Episode, "step", fail)
    with pytest.raises(AgentError, match="agent 'slow one': a decision can't be captured; use compile=False"):
        evaluate(make_agent("constant", peak=0.1), toy(), [0], name="slow one")
