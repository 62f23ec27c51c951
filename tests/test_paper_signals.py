"""Observation, action and reward of Xu et al. 2019, as environments give them, against the paper in NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from reference import xu2019 as reference

from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.training.tasks import Task


def test_environments_are_the_papers(toy: Callable[..., Task]) -> None:
    """Networks trained beside the environment, in plain PyTorch, with the rates that the paper's action gives."""
    task = toy(initial_lr=0.1, budget=12, interval=4)
    envs = LearningRateVectorEnv(
        2, task, control="scale", observe="paper", reward="val_loss", dtype="float64", device="cpu"
    )
    observation, _ = envs.reset(seed=[3, 8])
    trainee = envs.episode.trainee
    start = trainee.init([3, 8])
    inputs, targets = trainee.train
    rows = trainee.batch_indices(start, task.budget)
    modules, rates = [], [0.1, 0.1]
    for i in range(2):
        module = task.module().double()
        torch.nn.utils.vector_to_parameters(start.params[i], module.parameters())
        modules.append(module)
    logits = [module(trainee.val.inputs).detach().numpy() for module in modules]
    np.testing.assert_allclose(observation[:, 6], rates)
    for decision, actions in enumerate(np.random.default_rng(0).uniform(-1, 1, size=(3, 2, 1))):
        observation, rewards, *_ = envs.step(actions)
        for i, module in enumerate(modules):
            rates[i] = reference.scaled(rates[i], float(actions[i, 0]))
            optimizer, losses = torch.optim.SGD(module.parameters(), lr=rates[i]), []
            for batch in rows[i, 4 * decision : 4 * decision + 4]:
                loss = torch.nn.functional.cross_entropy(module(inputs[batch]), targets[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            outputs = module(trainee.val.inputs).detach()
            val_loss = float(torch.nn.functional.cross_entropy(outputs, trainee.val.targets))
            last_layer = list(module.parameters())[-2].detach().numpy()
            expected = reference.observation(
                np.array(losses), val_loss, outputs.numpy(), logits[i], last_layer, rates[i]
            )
            np.testing.assert_allclose(observation[i], expected, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(rewards[i], reference.reward(val_loss), rtol=1e-9)
            logits[i] = outputs.numpy()
