"""The ablation of PPO on drawn tasks: its own trainings, rewards and tasks, each against a second way to the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrenv.agents.ppo.settings import PPOSettings
from lrenv.agents.universal.settings import UniversalSettings
from lrenv.benchmark.evaluation import evaluate
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.networks.families import Perceptron, ResidualPerceptron, Transformer
from lrenv.randomness.named import Chance
from lrenv.training.drawn import drawn
from lrenv.training.tasks import Task, make_task

SEEDS = [40_300, 40_301]


@pytest.fixture
def trainings(script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    found = script("ablation_trainings")
    for name, small in {"SHOWN": 2, "SHOWN_RUNS": 4, "PASSES": 400, "ITERATIONS": 1}.items():
        monkeypatch.setattr(found, name, small)
    return found


@pytest.fixture(scope="module")
def small() -> Task:
    """A drawn task that is quick."""
    return make_task(drawn(1_000_003), budget=60, interval=3)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Task) -> PPOSettings:
    monkeypatch.setattr("lrenv.training.drawn.TaskDistribution.task", lambda *_: small)
    return PPOSettings(
        tasks="drawn", control="scale10", observe="scale-free,dynamics", reward="improvement", gamma=1.0,
        envs=8, groups=2, episodes=8, rollout=8, eval_every=100, eval_tasks=1, eval_seeds=1, out=tmp_path / "run",
    )  # fmt: skip


@pytest.mark.parametrize(
    "network", [Perceptron((5, 4), "tanh"), ResidualPerceptron(4, 2), Transformer(8, 2, 1)], ids=str
)
def test_other_weights_make_the_same_function(network: Any, trainings: Any) -> None:
    shape = (6,)
    x = torch.randint(3, (2, *shape)) if isinstance(network, Transformer) else torch.randn(2, *shape)
    modules = []
    for factory in (network, trainings.Reparametrised(network, Chance("any"))):
        torch.manual_seed(0)
        modules.append(factory(shape, 3))
    plain, other = modules
    torch.testing.assert_close(other(x), plain(x))
    named = dict(plain.named_parameters())
    moved = {
        name.replace(".layer.", "."): (weight / named[name.replace(".layer.", ".")]).nanmedian().item()
        for name, weight in other.named_parameters()
        if ".layer." in name
    }
    assert len(moved) >= 2
    assert all(abs(ratio - 1) > 1e-3 for name, ratio in moved.items() if name.endswith("weight"))


def test_a_demonstration_has_the_rates_of_its_model_as_soon_as_it_can(
    trainings: Any, settings: PPOSettings, small: Task
) -> None:
    wanted = np.geomspace(1e-3, 1e-4, 20)[:, None].repeat(2, 1)
    observations, actions, returns, collected = trainings._shown(settings, small, SEEDS, wanted)
    envs = LearningRateVectorEnv(2, small, control="scale10", observe=settings.observed(), reward="improvement")
    seen, info = envs.reset(seed=SEEDS)
    first, rewards = info["lr"], []
    np.testing.assert_array_equal(observations[:2], seen)
    for decision, action in enumerate(actions.reshape(20, 2, 1)):
        _, reward, _, _, info = envs.step(action)
        rewards.append(reward)
        reached = np.clip(wanted[decision], first / 10 ** (decision + 1), first * 10 ** (decision + 1))
        np.testing.assert_allclose(info["lr"], reached, rtol=1e-5)
    sums = np.cumsum(np.stack(rewards)[::-1], 0)[::-1]
    np.testing.assert_allclose(returns.reshape(20, 2), sums, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(collected.reshape(20, 2)[-1], sums[0], rtol=1e-4, atol=1e-6)


def test_a_clone_does_what_it_was_shown(trainings: Any, settings: PPOSettings) -> None:
    shown = trainings.demonstrations(settings)
    errors = []
    for training in (trainings.untrained(settings), trainings.cloned(settings)):
        controller = training.controller()
        actions, _ = controller.act(shown.observations, controller.start(shown.observations))
        errors.append(np.abs(actions - shown.actions).mean())
        np.testing.assert_allclose(controller.mean, shown.observations.mean(0, dtype=np.float64))
    assert errors[1] < errors[0] / 2


def evolution(trainings: Any, settings: PPOSettings) -> Any:
    own = UniversalSettings(updates=2, tasks=1, pairs=4, eval_tasks=1, eval_seeds=1, out=settings.out)
    return trainings.Evolution(own, trainings.untrained(settings).controller())


def test_the_actors_of_evolution_act_as_the_controller_that_is_saved(
    trainings: Any, settings: PPOSettings, small: Task
) -> None:
    training = evolution(trainings, settings)
    training.average += 0.3 * torch.randn(training.average.shape, generator=torch.Generator().manual_seed(0))
    result = evaluate(training.controller(), small, SEEDS)
    run, episode = training.run(small)
    with torch.no_grad():
        falls, end = run(training.average.expand(2, -1), episode.reset(SEEDS)[0])
    np.testing.assert_allclose(end.lr[:, 0], result.curves["lr"][-1], rtol=1e-4)
    first, last = result.curves["val_loss"][0], result.final_val_loss
    np.testing.assert_allclose(falls, np.minimum(np.log(last / first), 1), rtol=1e-3, atol=1e-4)


def test_evolution_moves_the_actor_and_saves_it(
    trainings: Any, settings: PPOSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainings, "UPDATES", 1)
    made = trainings.by_evolution(trainings.untrained, settings).policy.state_dict()
    begun = trainings.untrained(settings).controller().policy.state_dict()
    moved = {name for name, weight in begun.items() if (made[name] != weight).any()}
    assert moved == set(trainings._ACTOR)


@pytest.mark.parametrize("wanted", [("adam", "adamw"), ("momentum",)])
def test_tasks_are_chosen_by_their_optimizer_and_come_once(wanted: tuple[str, ...], trainings: Any) -> None:
    settings = PPOSettings(tasks="drawn", reward="improvement")

    def chosen(task: Task, chance: Chance) -> Task | None:
        found: Task | None = trainings.with_optimizers(wanted, task, chance)
        return found

    tasks = [trainings.Changed(settings, chosen, 30).task(place) for place in range(4)]
    assert {task.optimizer for task in tasks} <= set(wanted)
    assert len({task.name for task in tasks}) == 4


@pytest.mark.parametrize("lr", [1e-3, 1e38])
def test_rewards_for_ends_and_for_all_losses_are_sums_of_improvements(
    lr: float, script: Callable[[str], Any], small: Task
) -> None:
    ablation, sums, listed = script("drawn_ablation"), [], []
    for reward in ("improvement", ablation.fall_at_end, ablation.all_losses):
        task = replace(small, optimizer="sgd", momentum=None, weight_decay=None)
        envs = LearningRateVectorEnv(2, task, control="set-raw", observe="dynamics", reward=reward)
        envs.reset(seed=SEEDS)
        rewards, going = [], np.ones(2, bool)
        for _ in range(20):
            _, reward_now, ended, _, info = envs.step(np.full((2, 1), lr, np.float32))
            rewards.append(np.where(going, reward_now, 0))
            going &= ~ended
            if not going.any():
                break
        sums.append(np.sum(rewards, 0))
        listed.append(rewards)
    assert info["diverged"].all() == (lr > 1)
    assert not np.any(listed[1][:-1])
    np.testing.assert_allclose(sums[1], sums[0], rtol=1e-4)
    if lr < 1:
        np.testing.assert_allclose(listed[2], np.cumsum(listed[0], 0), rtol=1e-3, atol=1e-5)
    else:  # as if all the rest of the run were at the cap
        np.testing.assert_allclose(listed[2][-1], -1 - np.log(4) * (21 - len(listed[2])), rtol=1e-4)


def test_parts_of_the_runs_begin_at_each_first_rate(script: Callable[[str], Any], small: Task) -> None:
    ablation = script("drawn_ablation")
    envs = ablation.FromEachRate(6, small, control="scale10", observe="dynamics", reward="improvement")
    _, info = envs.reset(seed=SEEDS * 3)
    np.testing.assert_allclose(info["lr"], np.repeat(ablation.FIRST_RATES, 2), rtol=1e-6)
    single = LearningRateVectorEnv(2, small, control="scale10", observe="dynamics", initial_lr=1e-5)
    np.testing.assert_array_equal(info["val_loss"][:2], single.reset(seed=SEEDS)[1]["val_loss"])
    np.testing.assert_array_equal(info["val_loss"][2:4], info["val_loss"][:2])


def test_a_command_that_is_repeated_trains_nothing_again(
    script: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    settings: PPOSettings,
) -> None:  # fmt: skip
    ablation = script("drawn_ablation")
    monkeypatch.setattr(ablation, "PEAKS", (1e-3, 1e-2))
    own = {name: getattr(settings, name) for name in ("envs", "groups", "episodes", "rollout")}
    arms = {
        name: replace(ablation.ARMS[name], changes=ablation.ARMS[name].changes | own) for name in ("base", "factor 2")
    }
    monkeypatch.setattr(ablation, "ARMS", arms)
    monkeypatch.setattr(script("ablation_trainings"), "ITERATIONS", 1)
    names = ("universal", ablation.TUNED, *arms)
    given = ablation.Settings(names, tasks=2, runs=tmp_path / "runs", out=tmp_path / "rows.jsonl")
    ablation.main(given)
    first, table = given.out.read_text(), capsys.readouterr().out
    assert len(first.splitlines()) == len(names)
    ablation.main(given)
    assert given.out.read_text() == first
    assert capsys.readouterr().out in table
    assert [json.loads(line).get("runs") for line in first.splitlines()] == [None, None, 8, 8]
    arms["factor 2"] = replace(arms["factor 2"], changes=arms["factor 2"].changes | {"control": "scale3"})
    ablation.main(replace(given, agents=("factor 2",)))
    changed = given.out.read_text().splitlines()
    assert [json.loads(line)["changes"]["control"] for line in changed[-2:]] == ["scale", "scale3"]
    table = capsys.readouterr().out
    assert table.count("| factor 2 |") == 1
    with pytest.raises(SystemExit, match="no factor 3"):
        ablation.main(replace(given, agents=("factor 3",)))


def test_a_table_tells_differences_to_whom_it_is_asked_for_and_leaves_tasks_out(script: Callable[[str], Any]) -> None:
    ablation = script("drawn_ablation")
    shared = {"seed": 0, "tasks": 4, "optimizers": ["adam", "adam", "momentum", "momentum"]}

    def row(arm: str, losses: list[float], diverged: list[int]) -> dict[str, Any]:
        return shared | {"arm": arm, "log_loss": [[x] * 3 for x in losses], "diverged": diverged}

    rows = [row("base", [-1, -2, -1, 0], [0] * 4), row("factor 2", [-2, -2, -1, 1], [0, 0, 0, 3])]
    cells = {line.split(" | ")[0][2:]: line.split(" | ")[5:] for line in ablation.told(rows).splitlines()[2:]}
    assert cells["base"] == ["-1.000", "", "-1.500", "-0.500", "0.0% |"]
    assert cells["factor 2"] == ["+0.000 (0.408)", "+0.000", "-0.500 (0.500)", "+0.500 (0.500)", "12.5% |"]
    without = ablation.told(rows, "factor 2", (3,)).splitlines()[2:]
    assert "| base | 1 | +0.333 (0.333) | +0.333 (0.333) | +0.333 (0.333) | +0.333 (0.333) | +0.000 |" in without[0]
    assert without[1].startswith("| factor 2 | 1 | -1.667 |")
    assert without[1].endswith("| 0.0% |")
