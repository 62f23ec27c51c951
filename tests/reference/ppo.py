"""The PPO controller's forward pass (Xu et al. 2019, section 3.3). The module is `agents/ppo/agent.py`.

The actor has one hidden layer of tanh units, or is an LSTM; an action is the mean of its Gaussian, in [-1, 1], or the
most likely choice. Observations are normalised by the statistics of training and clipped at 10.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Array]
"""By the names of Stable-Baselines3."""


def normalised(observation: Array, mean: Array, std: Array) -> Array:
    return np.clip((observation - mean) / std, -10, 10)


def perceptron(x: Array, weights: Weights) -> Array:
    """The outputs of the actor: means, or logits of each choice."""
    hidden = np.tanh(weights["mlp_extractor.policy_net.0.weight"] @ x + weights["mlp_extractor.policy_net.0.bias"])
    return weights["action_net.weight"] @ hidden + weights["action_net.bias"]


def lstm(x: Array, h: Array, c: Array, weights: Weights) -> tuple[Array, Array, Array]:
    """The outputs of the recurrent actor, and its state."""
    gates = weights["lstm_actor.weight_ih_l0"] @ x + weights["lstm_actor.bias_ih_l0"]
    gates += weights["lstm_actor.weight_hh_l0"] @ h + weights["lstm_actor.bias_hh_l0"]
    i, f, g, o = np.split(gates, 4)
    c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
    h = np.tanh(c) / (1 + np.exp(-o))
    return weights["action_net.weight"] @ h + weights["action_net.bias"], h, c


def action(outputs: Array, discrete: bool) -> Array:
    return np.argmax(outputs) if discrete else np.clip(outputs, -1, 1)
