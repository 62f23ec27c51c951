"""Agents that control learning rates. `make_agent(name)` finds one, ours or another package's."""

from __future__ import annotations

from lrenv.benchmark.agent import Agent, View, agents, make_agent
from lrenv.benchmark.sb3_agent import SB3Agent

__all__ = ["Agent", "SB3Agent", "View", "agents", "make_agent"]
