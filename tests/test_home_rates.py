"""A controller in a plain loop chooses the rates that it chooses in an environment of the same task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lrenv
from lrenv.agents.base import BaseAgent
from lrenv.agents.ppo.agent import Architecture, PPOController
from lrenv.agents.universal.agent import UniversalController
from lrenv.agents.universal.policy import Architecture as Universal
from lrenv.controllers.agent import Agent, View
from lrenv.data import Data
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.home.groups import Groups
from lrenv.training.losses import LOSSES
from lrenv.training.tasks import Task

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": lambda p, **o: torch.optim.SGD(p, momentum=0.9, **o),
    "nesterov": lambda p, **o: torch.optim.SGD(p, momentum=0.9, nesterov=True, **o),
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def policy(observe: str, lstm: bool, interval: int, control: Any = "scale", size: int = 8) -> PPOController:
    """A controller with random weights, whose actions react to what it sees."""
    torch.manual_seed(3)
    architecture = Architecture(size, 1 if isinstance(control, str) else len(control), lstm=lstm)
    actor = architecture.build()
    with torch.no_grad():
        for name, parameter in actor.named_parameters():
            parameter.normal_(std=0.0 if "bias" in name else 0.3)
    actor.set_training_mode(False)
    return PPOController(actor, np.zeros(size), np.ones(size), View(control, observe, interval), architecture)


def environment_rates(
    task: Task, agent: Agent, seed: int, **settings: Any
) -> tuple[list[list[float]], LearningRateVectorEnv]:
    envs = LearningRateVectorEnv(1, task, dtype="float64", device="cpu", **agent.view.settings() | settings)
    if isinstance(agent, PPOController):  # or else it would ask for the same largest change each time
        envs.reset(seed=seed)
        agent.mean = envs.step(np.zeros_like(envs.action_space.sample()))[0][0]
    observation, _ = envs.reset(seed=seed)
    rates, state = [], None
    for i in range(envs.episode.decisions):
        action, state = agent.predict(observation, state, np.array([i == 0]), deterministic=True)
        observation, _, _, _, info = envs.step(action)
        rates.append(np.atleast_1d(info["lr"][0]).tolist())
    assert len(set(map(tuple, rates))) > 2
    if isinstance(agent, PPOController):
        assert np.ptp(np.diff(np.log2(rates), axis=0)) > 0.05  # it reacts
    return rates, envs


def loop_rates(
    task: Task, agent: Agent, seed: int, envs: LearningRateVectorEnv, closure: bool = False, **settings: Any
) -> list[list[float]]:
    """As a user would write it, on the batches of the environment."""
    trainee = envs.episode.trainee
    torch.manual_seed(seed)
    module = task.module().double()
    assert not isinstance(task.initial_lr, tuple)
    decay = {"weight_decay": task.hyper["weight_decay"]}
    optimizer = OPTIMIZERS[str(task.optimizer)](module.parameters(), lr=task.initial_lr, **decay)
    loss_function = LOSSES[str(task.loss)].per_example
    indices = trainee.batch_indices(trainee.init([seed]), task.budget)[0]
    controller = lrenv.LRController(
        optimizer, agent, horizon=task.budget, evaluate=lambda: (module(trainee.val.inputs), trainee.val.targets),
        module=module, loss=task.loss, batch_size=task.batch_size, fallback=None, **settings,
    )  # fmt: skip
    rates = []
    for batch in indices:
        outputs, targets = module(trainee.train.inputs[batch]), trainee.train.targets[batch]
        loss = loss_function(outputs[None], targets[None]).mean()
        controller.start(loss)
        optimizer.zero_grad()
        if closure:
            optimizer.step(lambda loss=loss: loss.backward() or loss)
        else:
            loss.backward()
            optimizer.step()
        rates.append(controller.get_last_lr())
        controller.step(loss)
    return rates[:: controller.every]


@pytest.mark.parametrize(
    ("observe", "size", "optimizer", "lstm", "budget"),
    [("dynamics", 8, "adam", False, 40), ("dynamics", 8, "adam", True, 42), ("scale-free", 11, "momentum", True, 42)],
)  # fmt: skip
def test_ppo_chooses_the_environments_rates(
    toy: Callable[..., Task], observe: str, size: int, optimizer: str, lstm: bool, budget: int
) -> None:
    """42 steps end in an interval that is cut short."""
    task = toy(optimizer=optimizer, budget=budget, interval=4, initial_lr=0.01)
    agent = policy(observe, lstm, 4, size=size)
    rates, envs = environment_rates(task, agent, 5)
    np.testing.assert_allclose(loop_rates(task, agent, 5, envs), rates, rtol=1e-9)


@pytest.mark.parametrize(
    "agent",
    ["plateau:peak=0.5:patience=0:factor=0.5:warmup=6", "cosine:peak=0.3:warmup=5"],
)  # fmt: skip
def test_schedules_choose_the_environments_rates(toy: Callable[..., Task], agent: str) -> None:
    task = toy(budget=30, interval=3)
    made = lrenv.make_agent(agent)
    rates, envs = environment_rates(task, made, 5)
    np.testing.assert_allclose(loop_rates(task, made, 5, envs, every=3), rates, rtol=1e-12)


def test_of_regression_and_other_modules(toy: Callable[..., Task]) -> None:
    """Predictions are compared in units of the training targets; the last layer is found behind norms."""
    data = _numbers()
    task = toy(data, budget=24, network=_normed, loss="mse", optimizer="adamw", initial_lr=0.01)
    agent = policy("dynamics", False, 4)
    rates, envs = environment_rates(task, agent, 2)
    found = loop_rates(task, agent, 2, envs, target_std=float(data.target_std))
    np.testing.assert_allclose(found, rates, rtol=1e-9)


def test_momentum_and_weight_decay_are_set(toy: Callable[..., Task]) -> None:
    task = toy(optimizer="momentum", budget=24, initial_lr=0.01)
    agent = policy("dynamics", False, 4, control=("scale", "momentum", "weight_decay"))
    rates, envs = environment_rates(task, agent, 2)
    np.testing.assert_allclose(loop_rates(task, agent, 2, envs), rates, rtol=1e-9)


HYPERGRADIENTS = [
    ("adam-hd:initial_lr=0.01:beta=0.001", "adam", {"weight_decay": 0.1}),
    ("adam-hd:initial_lr=0.01:beta=0.001:granularity=layer", "adamw", {"weight_decay": 0.1}),
    ("sgd-hd:initial_lr=0:beta=0.1", "sgd", {"weight_decay": 0.1}),
    ("sgd-hd:initial_lr=0.01:beta=0.1:rule=multiplicative:granularity=tensor", "rmsprop", {"interval": 3}),
    ("nesterov-hd:initial_lr=0.1:beta=0.01:granularity=layer", "nesterov", {"weight_decay": 0.1}),
    ("osgm:adagrad_lr=0.3", "momentum", {"interval": 2}),
]


@pytest.mark.filterwarnings("ignore:agent .* was made for", "ignore:the optimizer's 1 parameter groups were split")
@pytest.mark.parametrize(("spec", "optimizer", "settings"), HYPERGRADIENTS)
def test_hypergradients_choose_the_environments_rates(
    toy: Callable[..., Task], spec: str, optimizer: str, settings: dict[str, Any]
) -> None:
    task = toy(budget=16, optimizer=optimizer, **settings)
    agent = lrenv.make_agent(spec)
    every = settings.get("interval", 1)
    rates, envs = environment_rates(task, agent, 5, interval=every, optimizer=optimizer)
    assert np.min(rates) >= 0
    np.testing.assert_allclose(loop_rates(task, agent, 5, envs, every=every), rates, rtol=1e-9)


@pytest.mark.parametrize(
    "agent", ["cosine:peak=0.3:warmup=5:fan_in=1", "plateau:peak=0.5:patience=0:factor=0.5:fan_in=0.5"]
)
def test_rates_per_layer_are_the_environments(toy: Callable[..., Task], agent: str) -> None:
    task = toy(budget=30, interval=3, network=_normed)
    made = lrenv.make_agent(agent)
    rates, envs = environment_rates(task, made, 5)
    assert len(set(rates[0])) == 2  # of three layers, the norm belongs to the first
    with pytest.warns(UserWarning, match=r"1 parameter groups were split into 3, for agent .* a rate per layer"):
        found = loop_rates(task, made, 5, envs, every=3)
    np.testing.assert_allclose(found, rates, rtol=1e-12)


class Mixed(BaseAgent[tuple[()]]):
    """An agent that looks at everything that a loop can show, and sets rates per layer and momentum."""

    view = View(("scale/layer", "momentum"), ("scale-free", "mean_gradient", "parameters", "gradient_absolute"), 3)

    def act(self, observation: Any, carry: tuple[()]) -> tuple[Any, tuple[()]]:
        seen = 3 * observation["mean_gradient"].mean(1) + observation["parameters"].std(1)
        own = observation["gradient_absolute"] + observation["scale-free"].mean(1, keepdims=True)
        return np.sin(np.concatenate([own, own[:, :1]], 1) + seen[:, None]), ()


@pytest.mark.filterwarnings("ignore:the optimizer's 1 parameter groups were split")
@pytest.mark.parametrize("architecture", [Universal(), Universal(layers=True), Universal(True, True, True)], ids=str)
@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_universal_controllers_choose_the_environments_rates(
    toy: Callable[..., Task], architecture: Universal, optimizer: str
) -> None:
    theta = 0.2 * torch.randn(architecture.size, generator=torch.Generator().manual_seed(2))
    agent = UniversalController(theta, architecture)
    task = toy(optimizer=optimizer, budget=24, interval=4, initial_lr=1e-2)
    rates, envs = environment_rates(task, agent, 5)
    np.testing.assert_allclose(loop_rates(task, agent, 5, envs, every=4), rates, rtol=1e-6)


def test_a_universal_controller_says_what_it_must_know() -> None:
    architecture = Universal()
    agent = UniversalController(torch.zeros(architecture.size), architecture)
    module = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters())
    with pytest.raises(ValueError, match="observes the batch size: pass batch_size=, the number of examples"):
        lrenv.LRController(optimizer, agent, horizon=100, module=module)
    with pytest.raises(ValueError, match="looks at layers: pass module="):
        lrenv.LRController(optimizer, agent, horizon=100, batch_size=8)
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        lrenv.LRController(optimizer, agent, horizon=100, module=module, batch_size=0)
    lrenv.LRController(optimizer, agent, horizon=100, module=module, batch_size=8)


class ByBatchSize(BaseAgent[Any]):
    """Decides by what stays the same, and by nothing that training shows."""

    def __init__(self, remembers: bool) -> None:
        self.view = View("set", ("setup", "horizon"), interval=5)
        self.remembers = remembers

    def start(self, observation: Any) -> Any:
        return (np.zeros((len(observation), 1)),) if self.remembers else ()

    def act(self, observation: Any, carry: Any) -> Any:
        return observation[:, :1] / 9 - 0.5, carry


@pytest.mark.parametrize("remembers", [False, True], ids=["foreseen", "asked at each decision"])
def test_what_stays_the_same_is_known_without_a_look_at_training(remembers: bool) -> None:
    optimizer = torch.optim.SGD(nn.Linear(3, 2).parameters(), 0.1, momentum=0.8)
    controller = lrenv.LRController(optimizer, ByBatchSize(remembers), horizon=20, batch_size=100)
    for _ in range(6):
        optimizer.step()
        controller.step()
    assert len(controller.history) == 2
    for decision in controller.history:
        assert not decision.why
        assert decision.observation["batch_size"] == pytest.approx(2)
        assert decision.observation["kept"] == pytest.approx(np.log10(0.2))
        assert decision.action[0] == pytest.approx(2 / 9 - 0.5)


@pytest.mark.filterwarnings("ignore:the optimizer's 1 parameter groups were split")
def test_all_that_is_observed_stands_side_by_side(toy: Callable[..., Task]) -> None:
    task = toy(budget=18, optimizer="momentum", initial_lr=0.01)
    rates, envs = environment_rates(task, Mixed(), 5)
    for closure in (False, True):
        np.testing.assert_allclose(loop_rates(task, Mixed(), 5, envs, closure), rates, rtol=1e-9)


def _numbers() -> Data:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((44, 6))
    targets = 7 * inputs[:, :2].sum(1, keepdims=True) + rng.standard_normal((44, 1))
    cuts = [slice(24), slice(24, 34), slice(34, 44)]
    arrays = [part for cut in cuts for part in (inputs[cut], targets[cut].astype(np.float32))]
    return lrenv.data.from_arrays(*arrays)


def _normed(shape: Any, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, outputs), nn.Identity())


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def trained(model: nn.Module, optimizer: Any, controller: lrenv.LRController, steps: int) -> list[list[float]]:
    """Trains, and gives the rates of the groups at each step."""
    x, y, rates = torch.randn(8, 3), torch.randint(2, (8,)), []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
        controller.step(loss)
    return rates


class DecayThrough0(BaseAgent[tuple[()]]):
    """Sets the weight decay to 0 at the second step, and to more afterwards."""

    view = View(control=("set", "weight_decay"), observe="clock", horizon=False)
    reads = ("inner_step",)

    def act(self, observation: Any, carry: tuple[()]) -> Any:
        decay = np.where(observation[:, 0] == 1, -1.0, 0.5)
        return np.stack([np.full(len(decay), 0.2), decay], 1), ()


def test_groups_without_weight_decay_stay_so_when_that_of_others_was_0() -> None:
    model = two_layers()
    weights, biases = [[p for p in model.parameters() if (p.ndim == 1) is bias] for bias in (False, True)]
    optimizer = torch.optim.AdamW([{"params": weights}, {"params": biases, "weight_decay": 0.0}], lr=1e-3)
    controller = lrenv.LRController(optimizer, DecayThrough0())
    found = []
    for _ in range(3):
        trained(model, optimizer, controller, 1)
        found.append([group["weight_decay"] for group in optimizer.param_groups])
    assert found[0] == [0, 0]
    assert found[1][0] > 0 == found[1][1]
    assert found[2] == found[1]


class Diverse(torch.optim.Optimizer):
    """Groups with other options each, as of Muon with Adam for some parameters."""

    def __init__(self, groups: Any) -> None:
        super().__init__(groups, {})

    def step(self) -> None:  # type: ignore[override]
        """Does nothing."""


def test_groups_with_other_options_are_driven_each_by_its_own() -> None:
    class Both(BaseAgent[tuple[()]]):
        view = View(control=("set", "momentum"), observe="clock", horizon=False)
        reads = ("inner_step",)

        def act(self, observation: Any, carry: tuple[()]) -> Any:
            return np.full((len(observation), 2), 0.5), ()

    first, second, third = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    optimizer = Diverse([
        {"params": [first], "lr": 0.02, "momentum": 0.95}, {"params": [second], "lr": 3e-4, "betas": (0.9, 0.95)},
        {"params": [third], "lr": 1e-3},
    ])  # fmt: skip
    lrenv.LRController(optimizer, Both()).start()
    own, adam, plain = optimizer.param_groups
    assert own["momentum"] == adam["betas"][0] != 0.95
    assert adam["betas"][1] == 0.95
    assert "momentum" not in plain
    assert own["lr"] / adam["lr"] == pytest.approx(0.02 / 3e-4)


def test_an_optimizer_without_a_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter groups with a rate `lr` each"):
        lrenv.LRController(
            Diverse([{"params": [nn.Parameter(torch.zeros(2))], "lr": None}]), "linear:peak=0.1", horizon=5
        )


@pytest.mark.parametrize("tensor", [False, True])
def test_groups_that_share_the_tensor_of_their_rate_are_set_each(tensor: bool) -> None:
    model = two_layers()
    shared = torch.tensor(0.1) if tensor else 0.1
    optimizer = torch.optim.SGD([{"params": layer.parameters()} for layer in (model[0], model[2])], lr=shared)
    controller = lrenv.LRController(optimizer, "linear:peak=0.1:fan_in=1", horizon=10, module=model)
    (rates,) = trained(model, optimizer, controller, 1)
    assert rates[0] / rates[1] == pytest.approx(4 / 3)
    assert rates == pytest.approx(list(controller.history[0].rates))


@pytest.mark.parametrize("tensor", [False, True])
def test_a_group_that_is_added_later_keeps_the_first_rate_for_its_own(tensor: bool) -> None:
    model = two_layers()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=torch.tensor(0.1) if tensor else 0.1)
    controller = lrenv.LRController(optimizer, "linear:peak=0.1", horizon=10)
    trained(model, optimizer, controller, 4)
    optimizer.add_param_group({"params": list(model[2].parameters())})
    trained(model, optimizer, controller, 1)
    assert controller.base_lrs == pytest.approx([0.1, 0.1])
    (rates,) = trained(model, optimizer, controller, 1)
    assert rates == pytest.approx([controller.rate_at(5)] * 2)


def test_gradients_of_parameters_that_come_later_are_missed_aloud() -> None:
    model = two_layers()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    controller = lrenv.LRController(optimizer, "sgd-hd:initial_lr=0.1")
    trained(model, optimizer, controller, 2)
    optimizer.add_param_group({"params": list(model[2].parameters())})
    with pytest.warns(UserWarning, match="observes gradients, and not those of all parameters that are trained now"):
        trained(model, optimizer, controller, 1)


def losses_of_closures(agent: str | None) -> list[float]:
    """All losses that L-BFGS asks for in three steps at a rate of 0.5, beside a controller if there is one."""
    model = two_layers()
    x, y = torch.randn(16, 3, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 2
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5)
    settings: Any = {"horizon": 100, "module": model, "batch_size": 16, "bounds": (0.5, 0.5)}
    controller = None if agent is None else lrenv.LRController(optimizer, agent, **settings)
    losses = []

    def closure() -> Any:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    for _ in range(3):
        loss = optimizer.step(closure)
        if controller is not None:
            controller.step(loss)
    return losses


@pytest.mark.filterwarnings("ignore:agent 'universal' was fitted to")
@pytest.mark.parametrize("agent", ["universal", "linear:peak=0.5"])
def test_closures_are_called_as_often_as_the_optimizer_wants(agent: str) -> None:
    plain = losses_of_closures(None)
    assert len(plain) > 10
    assert losses_of_closures(agent) == plain


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation (Foret et al. 2021), whose closure gives the gradient where it has climbed to."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": 0.0})

    @torch.no_grad()
    def step(self, closure: Any) -> None:  # type: ignore[override]
        parameters = [p for group in self.param_groups for p in group["params"]]
        length = torch.stack([p.grad.norm() for p in parameters]).norm()
        climbs = [p.grad * (0.05 / length) for p in parameters]
        torch._foreach_add_(parameters, climbs)
        self.zero_grad()
        with torch.enable_grad():
            closure()
        torch._foreach_sub_(parameters, climbs)
        torch._foreach_sub_(parameters, [p.grad * self.param_groups[0]["lr"] for p in parameters])


@pytest.mark.filterwarnings("ignore:agent 'universal' was fitted to")
def test_closures_give_gradients_where_the_optimizer_has_gone() -> None:
    found = []
    x, y = torch.randn(16, 3, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 2
    for driven in (False, True):
        model = two_layers()
        optimizer = SAM(model.parameters(), 0.1)
        settings: Any = {"horizon": 100, "module": model, "batch_size": 16, "bounds": (0.1, 0.1)}
        controller = lrenv.LRController(optimizer, "universal", **settings) if driven else None
        if controller is not None:
            controller.start(nn.functional.cross_entropy(model(x), y))

        def backward(model: nn.Module = model) -> Any:
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.zero_grad()
            loss = backward()
            optimizer.step(backward)
            if controller is not None:
                controller.step(loss)
        found.append([p.detach().clone() for p in model.parameters()])
    torch.testing.assert_close(*found)


@pytest.mark.filterwarnings("ignore:training goes on after horizon=3 steps")
def test_steps_that_nobody_asks_about_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrenv.home.controller.MOST_UNSETTLED", 4)
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    controller = lrenv.LRController(optimizer, "plateau:peak=0.1", horizon=3, every=1, evaluate=lambda: 0.5)
    for i in range(20):
        optimizer.found_inf = torch.tensor(float(i % 5 == 4))  # type: ignore[attr-defined]
        optimizer.step()
        controller.step(1.0)
        assert controller._losses.unsettled < 4
    assert controller.state_dict() is not None
    assert controller.last_epoch == 16


def test_what_is_observed_of_a_training_is_what_the_schedule_was_asked_for() -> None:
    class ByBatch(BaseAgent[tuple[()]]):
        view = View(control="set", observe=("clock", "setup"))
        reads = ("inner_step", "batch_size")

        def act(self, observation: Any, carry: tuple[()]) -> Any:
            return observation[:, 5:6] / 9, ()

    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    controller = lrenv.LRController(optimizer, ByBatch(), horizon=10, batch_size=16)
    (rates,) = trained(model, optimizer, controller, 1)
    assert controller.rate_at(0) == pytest.approx(rates[0])


def test_numbers_of_numpy_are_numbers() -> None:
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    controller = lrenv.LRController(
        optimizer, "plateau:peak=0.1", horizon=np.int64(10), every=np.int64(2),  # type: ignore[arg-type]
        evaluate=lambda: np.float32(0.5),
    )  # fmt: skip
    controller.start()
    controller.step(np.float32(1))
    assert controller.history[-1].val_loss == 0.5
    assert controller.history[-1:] == [controller.history[-1]]
    assert type(controller.state_dict()["horizon"]) is int


def test_a_memory_of_tensors_comes_back_as_tensors() -> None:
    class Remembering:
        view = View(control="scale", observe="clock", horizon=False)
        reads = ("inner_step", "train_loss")
        seen: list[type] = []

        def predict(
            self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
        ) -> Any:
            held = (torch.zeros(len(observation), 1), np.zeros(len(observation))) if state is None else state
            self.seen += [type(x) for x in held]
            return np.zeros((len(observation), 1)), held

    agent, saved = Remembering(), None
    for _ in range(2):
        model = two_layers()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        controller = lrenv.LRController(optimizer, agent, every=1)
        if saved is not None:
            controller.load_state_dict(saved)
        trained(model, optimizer, controller, 2)
        saved = controller.state_dict()
    assert set(agent.seen[::2]) == {torch.Tensor}
    assert set(agent.seen[1::2]) == {np.ndarray}


class SGDOfAnother(torch.optim.Optimizer):
    """An SGD with torch's arguments that isn't torch's, as fused ones are."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": 0.9, "dampening": 0.0, "nesterov": False})


@pytest.mark.parametrize(
    ("kind", "adaptive"),
    [
        (torch.optim.SGD, False),
        (torch.optim.ASGD, False),
        (SGDOfAnother, False),
        (torch.optim.Adam, True),
        (torch.optim.RMSprop, True),
        (torch.optim.Adagrad, True),
    ],
)
def test_optimizers_that_scale_gradients(kind: Any, adaptive: bool) -> None:
    assert Groups(kind([nn.Parameter(torch.ones(2))], lr=0.1)).adaptive() == adaptive
