"""Agents side by side: what an agent is, how it is run, tuned and compared, and how results are shown."""

from __future__ import annotations

from lrenv.benchmark.agent import Agent, View, agents, make_agent
from lrenv.benchmark.comparison import Comparison, compare
from lrenv.benchmark.evaluation import Result, Tuned, evaluate, tune

__all__ = ["Agent", "Comparison", "Result", "Tuned", "View", "agents", "compare", "evaluate", "make_agent", "tune"]
