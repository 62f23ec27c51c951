"""Rewards and observations of one's own that specs name: `my_rewards.py:mine` is registered under the name `mine`.

Environments, views and controller files know it by that name alone. Where a controller file names an observation that
nobody has registered, it is refused: no file of data makes code run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lrenv import sources, specs
from lrenv.envs.observations import OBSERVATIONS, register_observation
from lrenv.envs.rewards import REWARDS, register_reward


def reward_name(spec: str) -> str:
    """Returns the name of the reward that a spec names: a registered one, or one's own, which is then registered.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: the file holds no reward under that name.
        ValueError: the file raises, or another reward has the name.
    """
    return _name(spec, "reward", REWARDS, register_reward)


def observation_name(spec: str) -> str:
    """Returns the name of the observation that a spec names; raises as `reward_name` does."""
    return _name(spec, "observation", OBSERVATIONS, register_observation)


def _name(text: str, kind: str, known: Mapping[str, Any], register: Callable[[str, Any], Any]) -> str:
    spec = specs.parse(text)
    if spec.own is None:
        return text
    if spec.settings:
        raise ValueError(f"a {kind} takes no settings, but {text!r} gives {', '.join(spec.settings)}")
    found = sources.load_own(spec.own)
    if known.get(spec.own.name) is not found:
        register(spec.own.name, found)
    return spec.own.name
