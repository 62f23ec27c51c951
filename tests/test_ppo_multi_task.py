"""PPO on several tasks: which tasks and seeds come, how rewards are scaled, how controllers are compared, resuming."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same_file, table
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.running_mean_std import RunningMeanStd

from lrenv import make_task
from lrenv.agents import make_agent
from lrenv.agents.outer import training as outer_training
from lrenv.agents.outer.validation import FLOOR, WORST, Validation, fall_of
from lrenv.agents.ppo.multi_task import MultiTaskTraining, ppo_training
from lrenv.agents.ppo.settings import PPOSettings
from lrenv.agents.ppo.tasks import Drawn, Listed, check_not_held_out, tasks_of
from lrenv.agents.ppo.training import PPOTraining
from lrenv.benchmark import evaluate
from lrenv.benchmark.held_out import held_out
from lrenv.controllers import controller_file
from lrenv.training.drawn import TaskDistribution

TASKS = "noisy-quadratic:budget=12:interval=3,noisy-quadratic:budget=10:interval=2:batch_size=4"
"""Tasks of 4 and of 5 decisions."""
train = partial(outer_training.train, ppo_training)


def settings(out: Path, **others: Any) -> PPOSettings:
    """A training whose rollouts of 3 decisions are cut in the middle of all episodes."""
    small: dict[str, Any] = {
        "tasks": TASKS, "out": out, "envs": 4, "groups": 2, "rollout": 3, "episodes": 16, "hidden": 4, "epochs": 2,
        "minibatch": 6, "eval_every": 3, "eval_seeds": 2, "control": "scale10", "reward": "improvement",
        "device": "cpu",
    }  # fmt: skip
    return PPOSettings(**small | others)


def begin(chosen: PPOSettings) -> MultiTaskTraining:
    training = MultiTaskTraining(chosen)
    training.model.set_logger(Logger(None, []))
    return training


@pytest.mark.parametrize("lstm", [False, True])
def test_a_training_interrupted_within_episodes_ends_with_the_same_controller(
    tmp_path: Path, lstm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(settings(tmp_path / "whole", lstm=lstm))
    iterate, left = MultiTaskTraining.iterate, [2, 3, 100]

    def interrupted(self: MultiTaskTraining) -> dict[str, float]:
        if not left[0]:
            left.pop(0)
            raise KeyboardInterrupt
        left[0] -= 1
        return iterate(self)

    monkeypatch.setattr(MultiTaskTraining, "iterate", interrupted)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt, match="episodes are saved"):
            train(settings(tmp_path / "parts", lstm=lstm, resume=resume))
        metadata = controller_file.read_metadata(tmp_path / "parts" / "checkpoint.safetensors")
        assert any(metadata["values"][f"envs.groups.{i}.decisions"] for i in range(2)), "in the middle of an episode"
    # What to train on comes from the checkpoint.
    train(PPOSettings(out=tmp_path / "parts", resume=True))
    for name in ("checkpoint.safetensors", "controller.safetensors"):
        assert_same_file(tmp_path / "whole" / name, tmp_path / "parts" / name)
    assert table(tmp_path / "whole") == table(tmp_path / "parts")


def test_runs_and_episodes_are_counted(tmp_path: Path) -> None:
    path = train(settings(tmp_path, episodes=12, eval_every=2))
    metadata = controller_file.read_metadata(path)
    rows = table(tmp_path)
    validations = sum(bool(row["eval/val_loss"]) for row in rows)
    ended = sum(float(row["episode/ended"]) + float(row["episode/truncated"]) for row in rows)
    assert float(rows[-1]["episodes"]) == ended >= 12 > float(rows[-2]["episodes"])
    # Two tasks with two seeds each, in every comparison; four more trainees are at work.
    assert metadata["runs"] == {"training": ended + 4, "selection": 4 * validations}
    assert bool(rows[-1]["eval/val_loss"])
    assert metadata["val_loss"] == pytest.approx(min(float(row["eval/val_loss"] or "inf") for row in rows), rel=1e-6)


def test_the_controller_acts_as_often_as_any_task_says(tmp_path: Path) -> None:
    agent = make_agent(train(settings(tmp_path, episodes=4)))
    assert (agent.view.control, agent.view.interval, agent.view.optimizer) == ("scale10", None, None)
    result = evaluate(agent, make_task("noisy-quadratic", budget=21, interval=7), [0, 1], device="cpu")
    assert len(result.curves["lr"]) == 4
    assert np.isfinite(result.test_loss).all()


def test_rewards_are_divided_by_the_spread_of_their_own_tasks_returns(tmp_path: Path) -> None:
    """By the formula, over several cohorts of both groups."""
    training = begin(settings(tmp_path, reward="val_loss", gamma=0.9))
    scaled = training.scaled
    scaled.reset()
    returns, spread = np.zeros(4), [RunningMeanStd(shape=()) for _ in range(2)]
    rng = np.random.default_rng(0)
    for _ in range(14):
        _, found, dones, _ = scaled.step(rng.uniform(-1, 1, (4, 1)).astype(np.float32))
        rewards = scaled.get_original_reward()
        returns = 0.9 * returns + rewards
        for i in range(2):
            own = training.envs.places % 2 == i
            if own.any():
                spread[i].update(returns[own])
            np.testing.assert_allclose(found[own], rewards[own] / np.sqrt(spread[i].var + 1e-8), rtol=1e-5)
        returns[dones] = 0.0
    assert len(training.statistics()) == 3
    assert spread[0].var != pytest.approx(spread[1].var, rel=0.01)


def test_a_trainee_that_is_cut_off_is_worth_what_the_critic_thinks(tmp_path: Path) -> None:
    """Stable-Baselines3 adds the value of the terminal observation where an episode was cut off, and only there."""
    training = begin(settings(tmp_path, rollout=4, gamma=0.5))
    step, shown = training.envs.step_wait, []

    def cut_off() -> Any:
        observations, rewards, dones, infos = step()
        if dones[0]:
            infos[0]["TimeLimit.truncated"] = True
        shown.append((dones.copy(), [info.get("terminal_observation") for info in infos]))
        return observations, rewards, dones, infos

    training.envs.step_wait = cut_off  # type: ignore[method-assign]
    critic = training.model.policy.predict_values
    values = {}

    def noted(observations: torch.Tensor, *arguments: Any) -> torch.Tensor:
        value: torch.Tensor = critic(observations, *arguments)
        values[observations.numpy().tobytes()] = value
        return value

    training.model.policy.predict_values = noted
    added = []
    add = training.model.rollout_buffer.add

    def kept(observation: Any, action: Any, reward: Any, *others: Any) -> None:
        added.append((reward.copy(), training.scaled.normalize_reward(training.scaled.old_reward)))
        add(observation, action, reward, *others)

    training.model.rollout_buffer.add = kept
    training.iterate()
    (dones, _), (rewards, plain) = shown[3], added[3]
    assert dones[:2].all()
    assert len(values) == 2, "one that was cut off, and the last observations"
    bootstrapped = next(iter(values.values())).item()
    assert rewards[0] == pytest.approx(plain[0] + 0.5 * bootstrapped, rel=1e-4)
    assert rewards[1] == plain[1]


def test_listed_tasks_come_in_turn() -> None:
    tasks = tasks_of(TASKS, 0, "val_loss", "scale/layer", {"val_examples": 7})
    assert isinstance(tasks, Listed)
    assert [tasks.task(k).budget for k in range(5)] == [12, 10, 12, 10, 12]
    assert [tasks.scale(k) for k in range(4)] == [0, 1, 0, 1]
    assert [task.val_examples for task in tasks.validation(1)] == [7, 7]


def test_drawn_tasks_are_those_of_the_ledger() -> None:
    tasks = tasks_of("drawn:limit=5e8", 3, "improvement", "scale10", {})
    assert isinstance(tasks, Drawn)
    distribution = TaskDistribution(5e8)
    assert [tasks.task(k) for k in (0, 17)] == [distribution.task(4_000_000), distribution.task(4_000_017)]
    assert [task.name for task in tasks.validation(2)] == [distribution.task(i).name for i in (20_000, 20_001)]
    assert (tasks.scales, tasks.scale(17)) == (1, 0)
    assert isinstance(tasks_of("drawn:number=1000000,drawn:number=1000001", 0, "val_loss", "scale", {}), Listed)


@pytest.mark.parametrize("task", held_out(), ids=lambda task: task.name)
def test_held_out_tasks_are_refused(task: Any) -> None:
    for changed in (task, make_task(task, name="mine", budget=7, optimizer="sgd", momentum=None, weight_decay=None)):
        with pytest.raises(ValueError, match=rf"{changed.name!r} is on the held-out list.*train on other data"):
            check_not_held_out(changed)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": "digits-mlp,photo-siren:budget=100"}, "'photo-siren' is on the held-out list"),
        ({"tasks": "drawn:number=20000,digits-mlp"}, "drawn:number=20000.*is not for training"),
        ({"tasks": "drawn,digits-mlp"}, "drawn stands alone"),
        ({"tasks": "drawn", "budget": 10, "interval": 5}, "with their own budget and interval: leave"),
        ({"tasks": "drawn:budget=10"}, "with their own budget; give limit alone"),
        ({"tasks": "drawn", "reward": "val_loss"}, "'val_loss' has the unit of the loss.*improvement or log_val_loss"),
        ({"tasks": "drawn", "control": "scale10/layer"}, "several rates per trainee.*use 'scale10'"),
        ({"tasks": "drawn:limit=3"}, "too few for a drawn task"),
        ({"tasks": " , "}, "names no task"),
        ({"tasks": "digits-mpl"}, "did you mean 'digits-mlp'"),
        ({"tasks": "digits-mlp,digits-logreg", "control": "scale/layer"}, "'digits-mlp' and 'digits-logreg'.*actions"),
        ({"groups": 3}, "envs=4 trainees can't be shared equally by groups=3 tasks"),
        ({"groups": 0}, "groups must be at least 1"),
        ({"tasks": ""}, "groups=2 is for trainings on several tasks: add tasks, or leave it out"),
        ({"task": "mnist1d-mlp"}, "stands instead of task: leave task='mnist1d-mlp' out"),
        ({"compile": True}, "leave compile out"),
        ({"tasks": "drawn", "eval_tasks": 6000}, "10000 seeds for validation, not 12000"),
        ({"tasks": "digits-mlp,mnist1d-mlp", "eval_tasks": 3}, "eval_tasks=3 would do nothing"),
        ({"tasks": "drawn:number=1000017", "eval_tasks": 3}, "eval_tasks=3 would do nothing"),
        ({"tasks": " 'drawn',", "eval_tasks": 6000}, "10000 seeds for validation, not 12000"),
        ({"tasks": "drawn", "control": "momentum,scale/layer"}, "'scale/layer' sets several rates.*use 'scale'"),
        ({"control": "scale1"}, "'scale1': the factor behind scale must be a decimal number above 1"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_anything_is_written(
    tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(settings(tmp_path / "out", **wrong))
    assert not (tmp_path / "out").exists()


def test_one_task_is_trained_as_ever(tmp_path: Path) -> None:
    assert type(ppo_training(settings(tmp_path, tasks="", groups=8, rollout=64))) is PPOTraining


def test_a_score_is_a_mean_logarithm_of_the_fall() -> None:
    tasks = "noisy-quadratic:budget=4:interval=2", "digits-logreg:budget=6:interval=2"
    validation = Validation([make_task(task) for task in tasks], 3, "cpu")
    assert validation.runs == 6
    assert not set(validation.seeds[0]) & set(validation.seeds[1])
    agent = make_agent("constant", peak=0.3)
    expected = []
    for task, seeds in zip(validation.tasks, validation.seeds, strict=True):
        result = evaluate(agent, task, seeds, device="cpu")
        expected.append(np.log(result.final_val_loss / result.curves["val_loss"][0]).mean())
    assert validation.score(agent) == pytest.approx(np.mean(expected), rel=1e-6)
    unmeasured = Validation([make_task(task) for task in tasks], 3, "cpu", measured=False)
    assert unmeasured.score(agent) == pytest.approx(np.mean(expected), rel=1e-6)


def test_no_fall_outweighs_all_others() -> None:
    first, last = torch.full((6,), 2.0), torch.tensor([1.0, 0.0, 100.0, torch.inf, torch.nan, 1.0])
    dead = torch.tensor([False] * 5 + [True])
    expected = torch.tensor([np.log(0.5), np.log(FLOOR / 2), *[WORST] * 4], dtype=torch.float32)
    torch.testing.assert_close(fall_of(first, last, dead), expected)


def test_one_dead_run_costs_as_much_as_the_worst_that_goes_on() -> None:
    validation = Validation([make_task("noisy-quadratic", budget=4, interval=2)], 2, "cpu")
    assert validation.score(make_agent("constant", peak=1e30)) == WORST
    assert validation.score(make_agent("constant", peak=3.0)) == WORST, "each step makes weights some times as large"
