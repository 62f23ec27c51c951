"""The loop in which agents are trained."""
