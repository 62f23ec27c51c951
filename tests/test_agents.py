"""Agents: found by entry point, all of one protocol, and exchangeable with Stable-Baselines3's."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stable_baselines3.common.evaluation import evaluate_policy
from torch import nn

from lrenv.agents import Agent, View, agents, make_agent
from lrenv.agents.learned_optimizer.agent import Architecture as Perceptron
from lrenv.agents.learned_optimizer.agent import LearnedOptimizer
from lrenv.agents.noh.agent import NOH, DMopt, LSTMPolicy
from lrenv.agents.noh.lstm import Architecture as LSTMArchitecture
from lrenv.agents.noh.lstm import CoordinateLSTM
from lrenv.agents.ppo.agent import Architecture as PPOArchitecture
from lrenv.agents.ppo.agent import PPOController
from lrenv.agents.universal.agent import UniversalController
from lrenv.agents.universal.policy import Architecture as Universal
from lrenv.benchmark import evaluate
from lrenv.controllers import controller_file
from lrenv.controllers.agent import State, agent_factory
from lrenv.controllers.controller_file import ControllerFileError
from lrenv.envs.sb3_vec_env import LearningRateVecEnv
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.training.tasks import Task, make_task

TASK = make_task("noisy-quadratic", budget=20, interval=5)
OWN = [point for point in entry_points(group="lrenv.agents") if point.value.startswith("lrenv.")]
MINE = [point.name for point in OWN if ".tuning_free." not in point.value]
"""Agents that act; the others are optimizers (`test_tuning_free.py`)."""
N = 3


def by_grid(name: str) -> Agent:
    """With the first hyperparameters of its grid."""
    grid: dict[str, tuple[float, ...]] = agent_factory(name).grid  # type: ignore[attr-defined]
    return make_agent(name, **{key: values[0] for key, values in grid.items()})


def stirred(module: nn.Module) -> nn.Module:
    """Weights that nothing was made for, so that outputs depend on all that goes in."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return module


def ppo(lstm: bool, control: str = "scale") -> PPOController:
    shape = PPOArchitecture(8, *((1,) if control == "scale" else (0, (3,))), hidden=4, lstm=lstm)
    policy: Any = stirred(shape.build())
    return PPOController(policy, np.linspace(-1, 1, 8), np.linspace(1, 2, 8), View(control, "dynamics", 2), shape)


def lstm_policy(kind: type[LSTMPolicy], optimizer: str, per: str = "parameter") -> LSTMPolicy:
    shape = LSTMArchitecture(layers=2, hidden=4, scale=1e-3)
    network: Any = stirred(CoordinateLSTM(shape))
    return kind(shape, 2, optimizer, network, per)


def universal(shape: Universal) -> UniversalController:
    return UniversalController(0.3 * torch.randn(shape.size, generator=torch.Generator().manual_seed(1)), shape)


TABLE: dict[str, Callable[[], Agent]] = {
    "constant": lambda: by_grid("constant"),
    "constant-ema": lambda: make_agent("constant-ema", peak=0.1, ema=0.9),
    "step": lambda: make_agent("step", peak=0.1, discount_step=3, discount_factor=0.5),
    "exponential": lambda: by_grid("exponential"),
    "linear": lambda: by_grid("linear"),
    "cosine": lambda: make_agent("cosine", peak=0.1, warmup=3),
    "one-cycle": lambda: by_grid("one-cycle"),
    "sgdr": lambda: make_agent("sgdr", peak=0.1, period=4),
    "inverse-sqrt": lambda: make_agent("inverse-sqrt", peak=0.1, timescale=2),
    "wsd": lambda: make_agent("wsd", peak=0.1, decay_fraction=0.9),
    "power": lambda: make_agent("power", peak=0.1, power=2),
    "rex": lambda: make_agent("rex", peak=0.1, weight_decay=0.01),
    "rex, by fan-in": lambda: make_agent("rex", peak=0.1, warmup=0.1, fan_in=0.5),
    "refined": lambda: make_agent("refined", norms=(3.0, 2.0, 1.0, 2.0), peak=0.1),
    "plateau": lambda: make_agent("plateau", peak=1.0, patience=0),
    "plateau, by fan-in": lambda: make_agent("plateau", peak=1.0, patience=0, fan_in=1, weight_decay=0.1),
    "greedy": lambda: make_agent("greedy", peak=1.0, patience=0),
    "greedy-bounded": lambda: make_agent("greedy-bounded", peak=1.0, patience=0),
    "sgd-hd": lambda: by_grid("sgd-hd"),
    "sgd-hd, multiplicative": lambda: make_agent("sgd-hd", initial_lr=0.1, rule="multiplicative", granularity="layer"),
    "nesterov-hd": lambda: by_grid("nesterov-hd"),
    "adam-hd": lambda: by_grid("adam-hd"),
    "adam-hd, in its loop": lambda: make_agent("adam-hd", beta=1e-3, in_loop=True),
    "gala": lambda: by_grid("gala"),
    "osgm": lambda: make_agent("osgm", adagrad_lr=0.1, granularity="parameter"),
    "fds": lambda: make_agent("fds", lr=(0.1, 0.01, 0.001), momentum=(0.9, 0.5)),
    "search": lambda: make_agent("search", lr=(0.1, 0.01)),
    "noh": lambda: lstm_policy(NOH, "adam"),
    "noh, per layer": lambda: lstm_policy(NOH, "adam", per="layer"),
    "dmopt": lambda: lstm_policy(DMopt, "unit"),
    "learned-optimizer": lambda: LearnedOptimizer(Perceptron(hidden=4).init(0), Perceptron(hidden=4)),
    "metz2019-cpu": lambda: make_agent("metz2019-cpu"),
    "universal": lambda: make_agent("universal"),
    "universal-anytime": lambda: make_agent("universal-anytime"),
    "universal-policy": lambda: universal(Universal(hidden=4)),
    "universal-policy, per layer": lambda: universal(Universal(True, False, True, hidden=4)),
    "ppo": lambda: ppo(lstm=False),
    "ppo, discrete": lambda: ppo(lstm=False, control="discrete"),
    "ppo-lstm": lambda: ppo(lstm=True),
    "ppo-lstm, discrete": lambda: ppo(lstm=True, control="discrete"),
}
"""Every agent with settings that show what it does within a few decisions; those that are trained have random weights.
Further cases of an agent have something behind its name."""
WITH_MEMORY = (
    "plateau",
    "greedy",
    "greedy-bounded",
    "sgd-hd",
    "nesterov-hd",
    "adam-hd",
    "gala",
    "osgm",
    "noh",
    "dmopt",
    "universal",
    "universal-anytime",
    "universal-policy",
    "ppo-lstm",
)


def advertised(case: str) -> str:
    """The name under which the agent of a case is installed."""
    return case.split(",")[0].removesuffix("-lstm")


def test_our_agents_are_installed_and_the_table_has_them_all() -> None:
    assert {advertised(case) for case in TABLE} == set(MINE) <= set(agents())
    assert list(agents()) == sorted(agents())


class Decision(NamedTuple):
    """What an agent saw, held and did."""

    observation: Any
    state: State
    action: NDArray[Any]
    after: State


def rows(observation: Any, chosen: slice) -> Any:
    """Those of some environments."""
    if isinstance(observation, dict):
        return {name: part[chosen] for name, part in observation.items()}
    return observation[chosen]


def decisions(agent: Agent, task: Task, number: int = 7) -> list[Decision]:
    """The first decisions of an episode; the environments check every action."""
    envs = LearningRateVectorEnv(N, task, **agent.view.settings(), device="cpu")
    observation, _ = envs.reset(seed=0)
    state: State = None
    start, made = np.ones(N, dtype=bool), []
    for _ in range(number):
        action, after = agent.predict(observation, state, start, deterministic=True)
        made.append(Decision(observation, state, action, after))
        observation, _, start, *_ = envs.step(action)
        state = after
    assert not start.any(), "an episode that lasts longer"
    return made


@pytest.fixture
def task(toy: Callable[..., Task]) -> Task:
    return toy(budget=40, interval=2)


def assert_acts_alike(case: str, one: Any, other: Any) -> None:
    """To the bit where agents compute with NumPy; torch's products round otherwise in another batch."""
    torchy = advertised(case) in ("noh", "dmopt", "ppo", "universal-policy")
    np.testing.assert_allclose(one, other, rtol=1e-4 if torchy else 0, atol=1e-6 if torchy else 0)


@pytest.mark.parametrize("case", TABLE)
class TestContract:
    """What holds of every agent."""

    def test_it_keeps_the_protocol_and_changes_nothing_that_it_is_given(self, case: str, task: Task) -> None:
        agent = TABLE[case]()
        assert isinstance(agent, Agent)
        assert repr(agent).startswith(
            case.split(",")[0].replace("metz2019-cpu", "learned-optimizer").removesuffix("-policy")
        )
        for made in decisions(agent, task):
            held = [np.array(np.asarray(x)) for x in made.state or ()]
            again, after = agent.predict(made.observation, made.state, np.zeros(N, dtype=bool), deterministic=True)
            np.testing.assert_array_equal(again, made.action)
            assert len(after or ()) == len(made.after or ())
            for x, y in zip(held, made.state or (), strict=True):
                np.testing.assert_array_equal(x, y, err_msg="a state is a value")

    def test_an_environment_alone_is_the_same_run(self, case: str, task: Task) -> None:
        agent, alone = TABLE[case](), [None] * N
        for made in decisions(agent, task):
            for i in range(N):
                seen = rows(made.observation, slice(i, i + 1))
                action, alone[i] = agent.predict(seen, alone[i], deterministic=True)  # type: ignore[call-overload]
                assert_acts_alike(case, action[0], made.action[i])

    def test_memory_is_cleared_where_an_episode_starts(self, case: str, task: Task) -> None:
        agent = TABLE[case]()
        remembers = case.split(",")[0] in WITH_MEMORY
        last = decisions(agent, task)[-1]
        assert (last.state is not None) == remembers
        started = np.array([True, False, True])
        action, after = agent.predict(last.observation, last.state, started, deterministic=True)
        anew, anew_after = agent.predict(last.observation, None, np.ones(N, dtype=bool), deterministic=True)
        kept = (~started).reshape(N, *(1,) * (action.ndim - 1))
        np.testing.assert_array_equal(action, np.where(kept, last.action, anew))
        for new, old, mixed in zip(anew_after or (), last.after or (), after or (), strict=True):
            mask = (~started).reshape(N, *(1,) * (np.ndim(mixed) - 1))
            np.testing.assert_array_equal(mixed, np.where(mask, old, new))
        if remembers:
            differ = zip(anew_after or (), last.after or (), strict=True)
            assert any(not np.array_equal(x, y) for x, y in differ), "a memory that is always the same shows nothing"

    def test_states_of_another_batch_are_refused(self, case: str, task: Task) -> None:
        agent = TABLE[case]()
        last = decisions(agent, task, 2)[-1]
        if last.after is None:
            return
        with pytest.raises(ValueError, match=r"the state is that of .*pass None to restart"):
            agent.predict(rows(last.observation, slice(0, 2)), last.after, np.zeros(2, dtype=bool))
        with pytest.raises(ValueError, match=r"\(3,"):
            agent.predict(last.observation, tuple(x[:2] for x in last.after))

    def test_it_acts_alike_from_a_file(self, case: str, task: Task, tmp_path: Path) -> None:
        agent: Any = TABLE[case]()
        path = tmp_path / "x.safetensors"
        if not hasattr(agent, "save"):
            controller_file.write(path, {}, {"agent": advertised(case)})
            with pytest.raises(ControllerFileError, match="has no files; take another file"):
                make_agent(path)
            return
        agent.save(path, {"command": "made for a test"})
        loaded = make_agent(path)
        assert type(loaded) is type(agent)
        assert repr(loaded) == repr(agent)
        assert str(loaded.view) == str(agent.view)
        for one, other in zip(decisions(agent, task), decisions(loaded, task), strict=True):
            np.testing.assert_array_equal(one.action, other.action)

    def test_it_refuses_files_that_it_cannot_use(self, case: str, tmp_path: Path) -> None:
        agent: Any = TABLE[case]()
        if not hasattr(agent, "save"):
            return
        load, path = type(agent).load, tmp_path / "x.safetensors"
        with pytest.raises(FileNotFoundError, match=r"x\.safetensors"):
            load(path)
        agent.save(path, {})
        tensors, metadata = controller_file.read(path)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ControllerFileError, match=r"x\.safetensors"):
            load(path)
        controller_file.write(path, tensors, metadata | {"agent": "cosine"})
        with pytest.raises(ControllerFileError, match="cosine"):
            load(path)
        first = next(iter(tensors))
        controller_file.write(path, {name: tensors[name] for name in tensors if name != first}, metadata)
        with pytest.raises(ControllerFileError, match=first):
            load(path)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("lstm", [False, True])
def test_a_controller_decides_as_its_policy_in_stable_baselines(lstm: bool, deterministic: bool) -> None:
    """That clears LSTM states by itself, and has them with the layers first."""
    agent, rng = ppo(lstm), np.random.default_rng(0)
    state: State = None
    theirs: Any = None
    for start in ([True, True, True], [False, True, False], [False, False, False], [True, False, True]):
        observation, begins = rng.normal(0, 3, (N, 8)), np.array(start)
        torch.manual_seed(5)
        action, state = agent.predict(observation, state, begins, deterministic)
        seen = np.clip((observation - agent.mean) / agent.std, -10, 10).astype(np.float32)
        torch.manual_seed(5)
        expected, theirs = agent.policy.predict(seen, theirs, begins, deterministic)
        np.testing.assert_array_equal(action, expected)


@pytest.mark.parametrize(("name", "near"), [("cosin", "cosine"), ("one_cycle", "one-cycle"), ("constants", "constant")])
def test_unknown_agents_list_near_names(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"unknown agent '{name}': did you mean .*'{near}'.*Known: .*sgdr"):
        make_agent(name)


@pytest.mark.parametrize(
    ("agent", "settings", "message"),
    [
        (
            "cosine",
            {"peek": 0.1},
            "unknown setting of agent 'cosine': 'peek': did you mean 'peak'.*Known: fan_in",
        ),
        ("cosine", {}, "peak"),
        ("cosine", {"peak": -1}, "peak=-1"),
        ("fds", {"rate": 0.1}, "unknown setting of agent 'fds': 'rate'.*it is trained, so give its controller file"),
        ("universal", {"peak": 0.1}, "agent 'universal' takes no settings, but got peak"),
    ],
)
def test_unfit_settings_are_refused(agent: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_agent(agent, **settings)


class Foreign:
    """An agent of another package: it halves the rate with every decision."""

    view = View(control="discrete", observe="paper", interval=4)

    def predict(
        self,
        observation: NDArray[Any],
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State]:
        return np.zeros(len(observation), np.int64), state


def test_agents_of_other_packages_are_found(advertise: Callable[[str, str], None]) -> None:
    advertise("halving", f"{__name__}:Foreign")
    assert "halving" in agents()
    assert "constant" in agents()
    agent = make_agent("halving")
    assert type(agent).__name__ == "Foreign"
    result = evaluate("halving", TASK, [0, 1], initial_lr=0.8, device="cpu")
    np.testing.assert_allclose(result.curves["lr"][:, 0], 0.8 * 0.5 ** np.arange(6), rtol=1e-6)
    assert result.curves["inner_step"][:, 0].tolist() == [0, 4, 8, 12, 16, 20]


def test_a_view_says_whether_the_horizon_is_known() -> None:
    known = {name: TABLE[name]().view.horizon for name in TABLE}
    assert all(isinstance(x, bool) for x in known.values())
    unaware = [name for name, x in known.items() if not x]
    assert unaware == [
        "constant", "constant-ema", "step", "sgdr", "inverse-sqrt", "plateau", "plateau, by fan-in", "greedy",
        "greedy-bounded", "sgd-hd", "sgd-hd, multiplicative", "nesterov-hd", "adam-hd", "adam-hd, in its loop", "gala",
        "osgm", "noh", "noh, per layer", "dmopt", "learned-optimizer", "metz2019-cpu",
        "universal-anytime", "universal-policy, per layer",
    ]  # fmt: skip
    assert View("scale", ("paper", "gradient_square")).horizon is False
    assert View("scale", ("paper", "scale-free")).horizon is True
    assert View("scale", "of_my_own").horizon is True, "nothing is known of it"
    assert View("set-raw", "clock", horizon=False).horizon is False
    assert "horizon" not in View(horizon=False).settings()


def test_a_view_names_settings() -> None:
    assert View().settings() == {"control": "scale", "observe": "dynamics"}
    view = View(("scale", "momentum"), "paper", 7, "sgd")
    expected = {"control": ("scale", "momentum"), "observe": "paper", "interval": 7, "optimizer": "sgd"}
    assert view.settings() == expected


def test_sb3_evaluates_our_agents() -> None:
    agent: Any = make_agent("cosine", peak=0.3)
    envs = LearningRateVecEnv(2, TASK, **agent.view.settings(), device="cpu")
    envs.seed(5)
    returns, lengths = evaluate_policy(agent, envs, n_eval_episodes=2, return_episode_rewards=True, warn=False)
    assert lengths == [4, 4]
    result = evaluate(agent, TASK, [5, 6], device="cpu")
    np.testing.assert_allclose(returns, -result.curves["val_loss"][1:].sum(0), rtol=1e-5)


@pytest.mark.parametrize("factory", ["nowhere:Agent", f"{__name__}:Missing"])
def test_a_broken_package_is_told(advertise: Callable[[str, str], None], factory: str) -> None:
    advertise("broken", factory)
    with pytest.raises(ValueError, match=f"agent 'broken' is advertised as {factory}, which can't be loaded"):
        make_agent("broken")
