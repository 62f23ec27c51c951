"""Agents side by side: what an agent is, how it is run, tuned and compared, and how results are shown."""

from __future__ import annotations

from lrenv.benchmark.comparison import compare
from lrenv.benchmark.evaluation import Result, evaluate
from lrenv.benchmark.rows import Comparison
from lrenv.benchmark.tuning import Tuned, tune
from lrenv.controllers.agent import Agent, AgentError, View, agents, make_agent
from lrenv.controllers.sb3_agent import SB3Agent

__all__ = [
    "Agent",
    "AgentError",
    "Comparison",
    "Result",
    "SB3Agent",
    "Tuned",
    "View",
    "agents",
    "compare",
    "evaluate",
    "make_agent",
    "tune",
]
