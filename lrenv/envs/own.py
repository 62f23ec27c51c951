"""Rewards and observations of one's own that specs name: `my_rewards.py:mine` is registered under the name `mine`.

Environments, views and controller files know it by that name alone; a file that was changed meanwhile replaces what it
had registered. Where a controller file names an observation that
nobody has registered, it is refused: no file of data makes code run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lrenv import sources, specs
from lrenv.envs import observations, rewards
from lrenv.envs.observations import OBSERVATIONS, register_observation
from lrenv.envs.rewards import REWARDS, register_reward

_FILES: dict[tuple[str, str], tuple[Path, Any]] = {}
"""(kind, name) -> the file that has been named, and what it held under that name."""


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


def _name(text: str, kind: str, known: Mapping[str, Any], register: Callable[..., Any]) -> str:
    spec = specs.parse(text)
    if spec.own is None:
        return text
    if spec.settings:
        raise ValueError(f"a {kind} takes no settings, but {text!r} gives {', '.join(spec.settings)}")
    found, name, path = sources.load_own(spec.own), spec.own.name, sources.own_path(spec.own)
    theirs = known.get(name)
    if theirs is found:
        return name
    before, registered = _FILES.get((kind, name), (path, None))
    if theirs is not None and name not in (rewards if known is REWARDS else observations).BUILT_IN:
        if theirs is not registered:
            raise ValueError(f"{kind} {name!r} is registered already; give that of {path} another name")
        if before != path:
            raise ValueError(f"{kind} {name!r} is that of {before} already; give that of {path} another name")
    register(name, found, replace_existing=theirs is not None)
    _FILES[kind, name] = path, found
    return name
