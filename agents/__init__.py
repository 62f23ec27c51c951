"""Agents that control learning rates. `make_agent(name)` finds one, ours or another package's."""

from __future__ import annotations

from lrenv.benchmark.agent import Agent, View, agents, make_agent

__all__ = ["Agent", "View", "agents", "make_agent"]
