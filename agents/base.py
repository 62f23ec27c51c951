"""The base of agents: they are written as `start` and `act`, and called as models of Stable-Baselines3 are.

An agent's state between two decisions is its carry (JAX's word): a tuple of arrays or tensors whose first axis is that
of the environments, best a NamedTuple, so that its parts have names. `BaseAgent` passes it on, clears it where episodes
start, and refuses that of another batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrenv.controllers.agent import State, View
from lrenv.lookup import what_is

C = TypeVar("C", bound=tuple[Any, ...])


class BaseAgent(ABC, Generic[C]):
    """An agent whose author writes `view`, `start` and `act`.

    One that halves the rate whenever the validation loss has risen:

        >>> import numpy as np
        >>> class Halving(BaseAgent):
        ...     view = View(control="set-raw", observe="clock")
        ...
        ...     def start(self, observation):
        ...         return np.full(len(observation), 0.4), observation[:, 4]
        ...
        ...     def act(self, observation, carry):
        ...         rate, before = carry
        ...         rate = np.where(observation[:, 4] > before, rate / 2, rate)
        ...         return rate[:, None], (rate, observation[:, 4])
        >>> from lrenv.benchmark import evaluate
        >>> evaluate(Halving(), "noisy-quadratic", seeds=range(2)).agent
        'Halving'

    Here `observation` is a clock (n, 5), whose last column is the validation loss, and the action is (n, 1). An agent
    without memory writes `act` alone; its carry is `()`.
    """

    view: View
    """What the agent observes and controls."""

    def start(self, observation: Any) -> C:
        """Returns the carry with which n environments begin an episode.

        Args:
            observation: (n, ...), or a dict of such where the view observes white-box parts.

        Returns:
            A tuple of arrays or tensors (n, ...); an empty one by default.
        """
        return ()  # type: ignore[return-value]

    @abstractmethod
    def act(self, observation: Any, carry: C) -> tuple[Any, C]:
        """Makes one decision for each of n environments.

        Args:
            observation: as in `start`.
            carry: what `start` gave where an episode begins, what the last decision gave elsewhere; left as it is.

        Returns:
            Actions (n, ...), an array or a tensor, and the next carry, of the shapes that `start` gave.
        """

    def sample(self, observation: Any, carry: C) -> tuple[Any, C]:
        """Makes a decision as `act` does. A stochastic policy draws its actions here, and gives their mode in `act`."""
        return self.act(observation, carry)

    def predict(
        self,
        observation: Any,
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State]:
        """Makes one decision for each of n environments, without gradients (`lrenv.agents.Agent`).

        Args:
            observation: as in `start`.
            state: the carry that the last call gave, as it was or as arrays; None at the start.
            episode_start: (n,), True where an episode starts and the carry must be cleared.
            deterministic: whether `act` decides, or `sample`.

        Returns:
            Actions (n, ...) on the host, floating-point ones in the dtype of the observation, and the carry; None if
            it is empty.

        Raises:
            ValueError: the observation is not of the view, or `state` or `episode_start` is of another batch.
            TypeError: `start` or `act` gives something else than it should.
        """
        with torch.no_grad():
            initial = self._initial(observation)
            held = initial if state is None else _restored(initial, state)
            carry = held if episode_start is None else _cleared(initial, held, episode_start)
            decided: Any = (self.act if deterministic else self.sample)(observation, carry)
        if not isinstance(decided, tuple) or len(decided) != 2 or not isinstance(decided[1], tuple):
            raise TypeError("act must give a pair of actions and carry, which is a tuple: `return action, carry`")
        action, after = decided
        if _shapes(after) != _shapes(initial):
            raise TypeError(f"act gives a carry of shapes {_shapes(after)}, but start one of {_shapes(initial)}")
        return _on_host(action, observation), after or None

    def _initial(self, observation: Any) -> C:
        """The carry from `start`, checked."""
        initial = self.start(observation)
        if not isinstance(initial, tuple):
            raise TypeError(f"start must give a tuple of arrays, such as (rate,); it gave {what_is(initial)}")
        shapes = _shapes(initial)
        n = len(first_part(observation))
        if any(shape[:1] != (n,) for shape in shapes):
            raise TypeError(
                f"start must give arrays whose first axis is that of the {n} environments of the observation, not "
                f"shapes {shapes}"
            )
        return initial


def _shapes(carry: tuple[Any, ...]) -> list[tuple[int, ...]]:
    return [tuple(np.shape(x)) for x in carry]


def _restored(initial: C, state: tuple[Any, ...]) -> C:
    """The state as the agent's own carry: with its names, and tensors where those of `initial` are.

    Raises:
        ValueError: the state is that of another batch, or of another agent.
    """
    if _shapes(state) != _shapes(initial):
        raise ValueError(
            f"the state is that of another batch or agent: its arrays have shapes {_shapes(state)}, not "
            f"{_shapes(initial)}; pass None to restart"
        )
    pairs = zip(state, initial, strict=True)
    return _like(initial, [torch.as_tensor(x, device=y.device) if isinstance(y, Tensor) else x for x, y in pairs])


def _cleared(initial: C, held: C, episode_start: NDArray[np.bool_]) -> C:
    """Per env, `initial` where an episode starts and `held` elsewhere.

    Raises:
        ValueError: `episode_start` is of another batch.
    """
    start = np.asarray(episode_start, dtype=bool)
    if initial and start.shape != np.shape(initial[0])[:1]:
        raise ValueError(
            f"episode_start must hold one flag for each of {len(initial[0])} environments, not have shape {start.shape}"
        )
    if not start.any():  # as at most decisions: carries are spared a copy
        return held
    return _like(initial, [_where(start, *pair) for pair in zip(initial, held, strict=True)])


def _where(start: NDArray[np.bool_], new: Any, old: Any) -> Any:
    mask = start.reshape(-1, *(1,) * (new.ndim - 1))
    if isinstance(new, Tensor):
        return torch.where(torch.from_numpy(mask).to(new.device), new, old)
    return np.where(mask, new, old)


def _like(initial: C, parts: list[Any]) -> C:
    """The parts as a carry of the type of `initial`."""
    carry: C = type(initial)._make(parts) if hasattr(initial, "_make") else type(initial)(parts)
    return carry


def first_part(observation: Any) -> Any:
    """The observation (n, ...), or the first one in a dict of such."""
    return next(iter(observation.values())) if isinstance(observation, Mapping) else observation


def _on_host(action: Any, observation: Any) -> NDArray[Any]:
    """The action as an array; a floating-point one in the observation's dtype."""
    array: NDArray[Any] = action.cpu().numpy() if isinstance(action, Tensor) else np.asarray(action)
    dtype = np.asarray(first_part(observation)).dtype
    return array.astype(dtype, copy=False) if array.dtype.kind == dtype.kind == "f" else array
