"""Agents as objects and as files: what an agent is, how one is found by name, and controller files.

An agent is any object with Stable-Baselines3's `predict` and a `view`, which tells what it observes and controls. A
controller is a trained agent in a file of tensors and JSON, which is checked part by part before anything is built from
it; no file runs code.

Read `agent.py` first (`Agent`, `View`, `make_agent`), then `controller_file.py` (reading and writing), `schema.py`
(what the metadata of a file must be) and `state_file.py` (the state of a training as such a file). `sb3_agent.py` makes
agents of Stable-Baselines3 models, and `optimizer_agent.py` of PyTorch's optimizers.
"""
