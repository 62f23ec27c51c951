"""Agents that change the rate by the gradient of the loss by it."""
