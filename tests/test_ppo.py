"""Training controllers: the paper's two rates, trainings that go further, and policies that learn."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same_file, table
from reference import ppo as reference
from stable_baselines3.common.logger import Logger

from lrenv import make_task
from lrenv.agents import make_agent
from lrenv.agents.outer import training as outer_training
from lrenv.agents.ppo.agent import PPOController
from lrenv.agents.ppo.settings import PPOSettings
from lrenv.agents.ppo.training import PPOTraining
from lrenv.benchmark import evaluate
from lrenv.controllers import controller_file

ITERATIONS = 4
train = partial(outer_training.train, PPOTraining)


def settings(out: Path, **others: Any) -> PPOSettings:
    small: dict[str, Any] = {
        "task": "noisy-quadratic", "out": out, "envs": 4, "episodes": 4 * ITERATIONS, "budget": 12, "interval": 3,
        "hidden": 8, "epochs": 2, "minibatch": 8, "eval_every": 2, "eval_seeds": 3, "device": "cpu",
    }  # fmt: skip
    return PPOSettings(**small | others)


def begin(chosen: PPOSettings) -> PPOTraining:
    """A training that logs nowhere."""
    training = PPOTraining(chosen)
    training.model.set_logger(Logger(None, []))
    return training


def test_a_resumed_training_can_go_further(tmp_path: Path) -> None:
    train(settings(tmp_path / "long"))
    train(settings(tmp_path / "short", episodes=8))
    train(settings(tmp_path / "short", episodes=16, resume=True))
    assert_same_file(tmp_path / "long" / "checkpoint.safetensors", tmp_path / "short" / "checkpoint.safetensors")


def test_training_is_a_function_of_its_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(settings(tmp_path / name, episodes=4, seed=seed))
    a, b, c = (controller_file.read(tmp_path / name / "controller.safetensors")[0] for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


@pytest.mark.parametrize("lstm", [False, True])
def test_actor_and_critic_have_their_own_rates(tmp_path: Path, lstm: bool) -> None:
    training = begin(settings(tmp_path, lstm=lstm))
    policy = training.model.policy
    names = {id(parameter): name for name, parameter in policy.named_parameters()}

    def groups() -> dict[str, tuple[float, list[str]]]:
        found = {g["name"]: (g["lr"], [names[id(p)] for p in g["params"]]) for g in policy.optimizer.param_groups}
        assert len(found) == len(policy.optimizer.param_groups)
        return found

    before, weights = groups(), {name: p.detach().clone() for name, p in policy.named_parameters()}
    assert (before["actor"][0], before["critic"][0]) == (1e-3, 5e-3)
    listed = before["actor"][1] + before["critic"][1]
    assert sorted(listed) == sorted(names.values()), "every parameter is in one group"
    assert all(("value" in name or "critic" in name) == (name in before["critic"][1]) for name in listed)
    assert any("lstm_actor" in name for name in before["actor"][1]) == lstm
    training.iterate()
    assert groups() == before, "Stable-Baselines3 did not set its own"
    assert all(not torch.equal(weights[name], p) for name, p in policy.named_parameters()), "all of them learn"


def test_a_first_update_moves_each_group_by_its_rate(tmp_path: Path) -> None:
    """Adam's first step is the rate times the sign of the gradient, wherever the gradient is not tiny."""
    one_step = settings(tmp_path, epochs=1, minibatch=16, actor_lr=1e-2, critic_lr=3e-2)
    training = begin(one_step)
    policy = training.model.policy
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    training.iterate()
    moved = {name: float((p.detach() - before[name]).abs().max()) for name, p in policy.named_parameters()}
    for rate, critic in ((1e-2, False), (3e-2, True)):
        distances = [distance for name, distance in moved.items() if ("value" in name) == critic]
        assert max(distances) == pytest.approx(rate, rel=0.01)
        assert max(distances) <= rate * 1.0001


def test_a_file_acts_as_the_controller_in_memory(tmp_path: Path) -> None:
    training = begin(settings(tmp_path, observe="scale-free", lstm=True))
    training.iterate()
    memory = training.controller()
    memory.save(tmp_path / "controller.safetensors", {})
    loaded = make_agent(tmp_path / "controller.safetensors")
    assert isinstance(loaded, PPOController)
    rms: Any = training.normalised.obs_rms
    np.testing.assert_array_equal(loaded.mean, rms.mean)
    np.testing.assert_allclose(loaded.std**2, rms.var + training.normalised.epsilon, rtol=1e-12)
    assert loaded.view == memory.view
    a, b = (evaluate(agent, training.task, range(5), device="cpu") for agent in (memory, loaded))
    np.testing.assert_array_equal(a.curves["lr"], b.curves["lr"])
    np.testing.assert_array_equal(a.test_loss, b.test_loss)
    # What training feeds its policy is what the controller feeds it.
    observation: Any = training.envs.reset()
    normalised: Any = training.normalised.normalize_obs(observation)
    np.testing.assert_allclose(normalised, (observation - loaded.mean) / loaded.std, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("control", "lstm"), [("scale", False), ("scale", True), ("discrete", False)])
def test_the_forward_pass_is_the_papers(tmp_path: Path, control: str, lstm: bool) -> None:
    """Three decisions of two trainees, of which one starts another episode before the last."""
    training = begin(settings(tmp_path, control=control, lstm=lstm))
    training.iterate()
    agent = training.controller()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        agent.policy.action_net.weight.copy_(torch.randn(agent.policy.action_net.weight.shape, generator=generator))
    weights = {name: x.double().numpy() for name, x in agent.policy.state_dict().items()}
    rng, state, held = np.random.default_rng(0), None, [(np.zeros(agent.architecture.hidden),) * 2] * 2
    for decision in range(3):
        observation = rng.normal(size=(2, agent.architecture.observation)) * 3
        start = np.array([False, decision == 2])
        found, state = agent.predict(observation, state, start, deterministic=True)
        for i in range(2):
            x = reference.normalised(observation[i], agent.mean, agent.std)
            if lstm:
                h, c = (np.zeros_like(part) if start[i] else part for part in held[i])
                outputs, *after = reference.lstm(x, h, c, weights)
                held[i] = tuple(after)
            else:
                outputs = reference.perceptron(x, weights)
            expected = reference.action(outputs, control == "discrete")
            np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-5)


def test_the_best_controller_is_kept(tmp_path: Path) -> None:
    path = train(settings(tmp_path, eval_every=1))
    rows = table(tmp_path)
    losses = [float(row["eval/val_loss"]) for row in rows]
    metadata = controller_file.read_metadata(path)
    assert metadata["val_loss"] == pytest.approx(min(losses), rel=1e-5)
    assert metadata["episodes"] == 4 * (1 + int(np.argmin(losses)))
    assert metadata["agent"] == "ppo"
    assert metadata["settings"]["budget"] == 12
    task = make_task("noisy-quadratic", budget=12, interval=3)
    result = evaluate(str(path), task, range(20_000, 20_003), device="cpu")
    assert result.val_loss.mean() == pytest.approx(metadata["val_loss"], rel=1e-6)


def test_what_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing to resume.*leave --resume out"):
        train(settings(tmp_path, resume=True))
    train(settings(tmp_path, episodes=4))
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="--resume, --overwrite"):
        train(settings(tmp_path))
    with pytest.raises(ValueError, match=r"envs=5 \(was 4\).*start anew"):
        train(settings(tmp_path, envs=5, resume=True))
    with pytest.raises(ValueError, match=r"gamma=0\.5 \(was 0\.99\)"):
        train(settings(tmp_path, gamma=0.5, resume=True))
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    train(settings(tmp_path, episodes=8, seed=3, overwrite=True))
    assert controller_file.read_metadata(tmp_path / "checkpoint.safetensors")["settings"]["seed"] == 3
    assert [row["iteration"] for row in table(tmp_path)] == ["1", "2"]


def test_resuming_takes_the_settings_of_the_beginning(tmp_path: Path) -> None:
    train(settings(tmp_path, episodes=4))
    train(PPOSettings(out=tmp_path, episodes=8, resume=True))
    metadata = controller_file.read_metadata(tmp_path / "checkpoint.safetensors")
    assert metadata["iteration"] == 2
    assert metadata["settings"]["task"] == "noisy-quadratic"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"envs": 0}, "envs must be at least 1"),
        ({"episodes": -3}, "episodes must be at least 1"),
        ({"actor_lr": 0.0}, "actor_lr must lie between 0 and 1"),
        ({"gamma": 1.5}, "gamma must lie between 0 and 1"),
        ({"control": " , "}, "name what is controlled and what is observed: give one or more"),
        ({"control": "scale,set-raw"}, "can't control by 'set-raw'"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, **wrong)


def test_bad_names_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for wrong, message in (({"task": "digit-mlp"}, "'digits-mlp'"), ({"control": "scael"}, "'scale'")):
        with pytest.raises(ValueError, match=f"did you mean .*{message}"):
            train(settings(tmp_path / "out", **wrong))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lstm", [False, True])
@pytest.mark.parametrize("control", ["set", "scale/layer", "discrete", "discrete/layer"])
def test_every_control_can_be_trained(tmp_path: Path, control: str, lstm: bool) -> None:
    path = train(settings(tmp_path, task="digits-mlp", control=control, lstm=lstm, episodes=8, reward="improvement"))
    agent = make_agent(path)
    assert agent.view.control == control
    result = evaluate(agent, make_task("digits-mlp", budget=6, interval=3), [0, 1], device="cpu")
    assert np.isfinite(result.test_loss).all()


@pytest.mark.parametrize("lstm", [False, True])
def test_it_learns_to_raise_a_rate_that_is_far_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lstm: bool
) -> None:
    slow = make_task("noisy-quadratic", name="slow-quadratic", budget=30, interval=5, initial_lr=0.01)
    monkeypatch.setitem(importlib.import_module("lrenv.training.tasks")._TASKS, "slow-quadratic", slow)
    many = {"envs": 32, "episodes": 512, "epochs": 10, "minibatch": 64, "hidden": 32, "eval_every": 8}
    path = train(
        PPOSettings(task="slow-quadratic", out=tmp_path, reward="improvement", lstm=lstm, device="cpu", **many)  # type: ignore[arg-type]
    )
    seeds = range(40)
    learned = evaluate(str(path), slow, seeds, device="cpu")
    constant = evaluate(make_agent("constant", peak=0.01), slow, seeds, device="cpu")
    assert learned.val_loss.mean() < 0.9 * constant.val_loss.mean()
    assert np.median(learned.curves["lr"][-1]) > 0.05


def test_the_price_of_divergence_is_not_clipped(tmp_path: Path) -> None:
    normalised = begin(settings(tmp_path)).normalised
    normalised.ret_rms.var = np.array(4.0)
    np.testing.assert_allclose(normalised.normalize_reward(np.array([-1e6])), [-5e5], rtol=1e-6)


def test_the_view_remembers_the_optimizer(tmp_path: Path) -> None:
    path = train(settings(tmp_path, optimizer="momentum"))
    assert make_agent(path).view.optimizer == "momentum"


def test_contradictory_settings_are_refused(tmp_path: Path) -> None:
    train(settings(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="choose one"):
        train(settings(tmp_path, resume=True, overwrite=True))
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}, "nothing is lost"
    with pytest.raises(ValueError, match="'set-raw'"):
        settings(tmp_path, control="set-raw/layer")


def test_several_controls_and_observations_are_separated_by_commas(tmp_path: Path) -> None:
    several = {"control": "scale,momentum", "observe": "dynamics,clock", "optimizer": "momentum"}
    path = train(settings(tmp_path, task="digits-mlp", episodes=8, reward="improvement", **several))
    agent = make_agent(path)
    assert (agent.view.control, agent.view.observe) == (("scale", "momentum"), ("dynamics", "clock"))
    result = evaluate(agent, make_task("digits-mlp", budget=6, interval=3), [0, 1], device="cpu")
    assert np.isfinite(result.test_loss).all()
    resumed = settings(tmp_path, task="digits-mlp", episodes=12, reward="improvement", resume=True, **several)
    assert make_agent(train(resumed)).view.control == ("scale", "momentum")


def test_minibatches_have_two_decisions_or_more(tmp_path: Path) -> None:
    assert make_agent(train(settings(tmp_path, episodes=4, minibatch=1))) is not None
    with pytest.raises(ValueError, match="needs at least two decisions: raise envs or budget"):
        train(settings(tmp_path / "one", envs=1, budget=3, interval=3))


def test_names_are_text(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="control must be text, with commas between several names"):
        settings(tmp_path, control=("scale", "momentum"))
