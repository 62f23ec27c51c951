"""The trainings of `drawn_ablation.py` that `lrenv train ppo` lacks: on changed tasks, from a clone, by evolution.

All of them end with a controller that is a `PPOController`, so that it is the training alone in which they differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lrenv.agents.outer.folder import Folder
from lrenv.agents.outer.gradient_estimators import evaluated, paired, perturbations
from lrenv.agents.outer.training import Training, begin_adam, on_host, train
from lrenv.agents.outer.validation import Validation, fall_of
from lrenv.agents.ppo.agent import Architecture, PPOController
from lrenv.agents.ppo.multi_task import MultiTaskTraining
from lrenv.agents.ppo.settings import PPOSettings
from lrenv.agents.ppo.tasks import Drawn, Tasks, tasks_of
from lrenv.agents.universal.agent import universal
from lrenv.benchmark.evaluation import evaluate
from lrenv.controllers.agent import View
from lrenv.envs.episode import Episode, EpisodeState
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.networks.architectures import NetworkFactory, Shape
from lrenv.randomness import draws
from lrenv.randomness.named import Chance
from lrenv.randomness.seeds import seeds_for
from lrenv.runtime.memory import choose_device
from lrenv.training.rollout import rollout
from lrenv.training.tasks import Task

Array = NDArray[Any]

SHOWN, SHOWN_RUNS = 48, 32
"""The tasks that a clone learns from, and the runs on each: a minute of one core."""
OF_CLONES = 10_000
"""Their places among the tasks of the training, beyond those that the training itself comes to."""
PASSES, CLONE_LR, LEAST_LOG_STD = 30, 1e-3, -1.5
"""Over what is to be cloned; and the least that a clone explores, since a policy without noise learns nothing."""
SIGMA, EVOLUTION_LR, SPREAD = 0.1, 0.03, 0.05
"""Of evolution strategies, as `lrenv train universal` has them."""
WEIGHT_FACTORS = (0.3, 3.0)
"""Between which augmentation divides the weights of layers."""


def from_folder(kind: Callable[[PPOSettings], Training[Any]], settings: PPOSettings) -> PPOController:
    """Trains, or goes on where a training stopped, and loads what came of it.

    Args:
        kind: the training.
        settings: of it.
    """
    begun = Folder(settings.out).begun
    return PPOController.load(train(kind, replace(settings, resume=begun)))


def by_ppo(settings: PPOSettings) -> PPOController:
    """Trains on drawn tasks as they are."""
    return from_folder(MultiTaskTraining, settings)


@dataclass(frozen=True)
class Changed(Tasks):
    """Drawn tasks, each of them changed.

    Attributes:
        drawn: the tasks.
        change: (task, its chance) -> what takes its place; None to take another.
        choice: from how many drawn tasks each is taken, the first that isn't passed over.
    """

    drawn: Drawn
    change: Callable[[Task, Chance], Task | None]
    choice: int
    scales = 1

    def task(self, place: int) -> Task:
        """Returns the first of some drawn tasks that isn't passed over, changed."""
        for drawn in range(self.choice):
            task = self.drawn.task(place * self.choice + drawn)
            if (changed := self.change(task, Chance("ablation", task.name))) is not None:
                return changed
        raise AssertionError(f"none of {self.choice} drawn tasks in a row is as wanted")

    def scale(self, place: int) -> int:
        """Returns 0, as all tasks share one statistic."""
        return 0

    def validation(self, number: int) -> list[Task]:
        """Returns drawn tasks as they are."""
        return self.drawn.validation(number)


def on_changed(change: Callable[[Task, Chance], Task | None], settings: PPOSettings, choice: int = 1) -> PPOController:
    """Trains with PPO on drawn tasks that are changed, or chosen."""

    def training(settings: PPOSettings) -> MultiTaskTraining:
        return MultiTaskTraining(settings, Changed(_drawn(settings), change, choice))

    return from_folder(training, settings)


def _drawn(settings: PPOSettings) -> Drawn:
    tasks = tasks_of(settings.tasks, settings.seed, settings.reward, settings.controls, {})
    assert isinstance(tasks, Drawn)
    return tasks


def begun_at(rate: float, task: Task, chance: Chance) -> Task:
    """The task with one first rate for all runs."""
    return replace(task, initial_lr=rate)


def with_optimizers(names: tuple[str, ...], task: Task, chance: Chance) -> Task | None:
    """The task, if it has one of these optimizers."""
    return task if task.optimizer in names else None


def augmented(task: Task, chance: Chance) -> Task:
    """The task with layers whose weights are divided and outputs multiplied; targets are drawn on any scale anyway."""
    return replace(task, network=Reparametrised(task.network, chance))


class Multiplied(nn.Module):
    """A linear layer with weights that are divided by a factor, and the outputs multiplied by it.

    Args:
        layer: the linear layer, whose function this has before the first step.
        factor: by which.
    """

    def __init__(self, layer: nn.Linear, factor: float) -> None:
        super().__init__()
        self.layer, self.factor = layer, factor
        with torch.no_grad():
            for weight in layer.parameters():
                weight.div_(factor)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the outputs."""
        outputs: Tensor = self.factor * self.layer(x)
        return outputs


@dataclass(frozen=True)
class Reparametrised:
    """A network with other weights and the same function: as good as another rate for each of its linear layers.

    Attributes:
        network: the network.
        chance: of the factors.
    """

    network: NetworkFactory
    chance: Chance

    def __call__(self, shape: Shape, outputs: int) -> nn.Module:
        """Builds a freshly initialised module."""
        module = self.network(shape, outputs)
        for name, layer in list(module.named_modules()):
            if type(layer) is nn.Linear:
                parent, _, own = name.rpartition(".")
                setattr(module.get_submodule(parent), own, Multiplied(layer, self._factor(name)))
        return module

    def _factor(self, layer: str) -> float:
        return self.chance.scale(layer, *WEIGHT_FACTORS)


@dataclass(frozen=True)
class Demonstrations:
    """What an actor would have observed and done that has the rates of `universal`, or comes as near as it can.

    Attributes:
        observations: (m, observation), of all decisions of all runs.
        actions: (m, action).
        returns: (m,), the sums of rewards from each decision on.
        collected: (m,), and until then.
    """

    observations: Array
    actions: Array
    returns: Array
    collected: Array


def demonstrations(settings: PPOSettings) -> Demonstrations:
    """Runs `universal` on drawn tasks, and actions with the same rates where the policy's first rate is another one."""
    tasks, parts = _drawn(settings), []
    for place in range(OF_CLONES, OF_CLONES + SHOWN):
        task = tasks.task(place)
        seeds = seeds_for("training", SHOWN_RUNS, OF_CLONES * settings.envs + place * SHOWN_RUNS, settings.seed)
        rates = evaluate(universal(), task, seeds).curves["lr"][1:]
        parts.append(_shown(settings, task, seeds, rates))
    return Demonstrations(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _shown(settings: PPOSettings, task: Task, seeds: list[int], rates: Array) -> tuple[Array, ...]:
    """Observations, actions, returns and collected rewards of runs (n,) on a task, whose rates (D, n) are wanted."""
    envs = LearningRateVectorEnv(
        len(seeds), task, control=settings.controls, observe=settings.observed(), reward=settings.reward
    )
    observation, info = envs.reset(seed=seeds)
    seen, done, rewards, alive = [], [], [], [np.ones(len(seeds), bool)]
    for wanted in rates:
        with np.errstate(invalid="ignore"):
            action = np.log10(wanted / info["lr"]).clip(-1, 1).astype(np.float32)[:, None]
        seen.append(observation)
        done.append(np.nan_to_num(action))
        observation, reward, terminated, _, info = envs.step(done[-1])
        rewards.append(reward)
        alive.append(alive[-1] & ~terminated & np.isfinite(wanted))
    going, gained = np.stack(alive[:-1]), np.stack(rewards) * np.stack(alive[:-1])
    collected = gained.cumsum(0)
    returns = collected[-1] - collected + gained
    return tuple(each[going] for each in (np.stack(seen), np.stack(done), returns, collected))


def know(training: MultiTaskTraining, name: str, values: Array) -> None:
    """Gives a training's statistics of that name the mean and variance of values (m, ...)."""
    statistics = training.statistics()[name]
    statistics.mean, statistics.var = values.mean(0, dtype=np.float64), values.var(0, dtype=np.float64)
    statistics.count = float(len(values))


def cloned(settings: PPOSettings) -> MultiTaskTraining:
    """A training whose actor begins as a clone of `universal`, and whose critic knows what that gets."""
    training, shown = MultiTaskTraining(settings), demonstrations(settings)
    know(training, "obs_rms", shown.observations)
    know(training, "returns 0", shown.collected)
    observations = torch.from_numpy(training.scaled.normalize_obs(shown.observations))
    actions = torch.from_numpy(shown.actions)
    returns = torch.from_numpy(shown.returns / shown.collected.std()).float()
    policy = training.model.policy
    optimizer = torch.optim.Adam(policy.parameters(), CLONE_LR)
    order = torch.Generator().manual_seed(settings.seed)
    for _ in range(PASSES):
        for batch in torch.randperm(len(actions), generator=order).split(1024):
            values, log_chance, _ = policy.evaluate_actions(observations[batch], actions[batch])
            loss = (values[:, 0] - returns[batch]).square().mean() / 2 - log_chance.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            policy.log_std.data.clamp_(min=LEAST_LOG_STD)
    return training


def clone(settings: PPOSettings) -> PPOController:
    """The clone itself."""
    return cloned(settings).controller()


def ppo_from_clone(settings: PPOSettings) -> PPOController:
    """Trains the clone with PPO."""
    return from_folder(cloned, settings)


class Evolution(Training[PPOSettings]):
    """Evolution strategies over whole runs, of the actor that PPO has.

    With whole runs, they are persistent evolution strategies, too, whose truncation is the run. What is descended is
    what compares controllers, log(last validation loss / first one), and the gradients of tasks are divided by the
    differences of their pairs, as in `lrenv.agents.universal.training`.

    Args:
        settings: how to train; `envs` trainees per iteration, in antithetic pairs, shared by `groups` tasks.
        begin: gives the training whose actor and statistics this begins with.
    """

    unit = "episodes"

    def __init__(self, settings: PPOSettings, begin: Callable[[PPOSettings], MultiTaskTraining]) -> None:
        first = begin(settings).controller()
        self.tasks = _drawn(settings)
        super().__init__(settings, self.tasks.task(0))
        self.first, self.device = first, choose_device(settings.device)
        self.names = [name for name in _ACTOR if name in first.policy.state_dict()]
        weights = [first.policy.state_dict()[name] for name in self.names]
        self.shapes = [weight.shape for weight in weights]
        self.theta = nn.Parameter(torch.cat([weight.flatten() for weight in weights]))
        self.optimizer = torch.optim.Adam([self.theta], EVOLUTION_LR)
        begin_adam(self.optimizer)
        self.validation = Validation(self.tasks.validation(settings.eval_tasks), settings.eval_seeds, settings.device)

    @property
    def iterations(self) -> int:
        """The number of updates of the whole training."""
        return -(-self.settings.episodes // self.settings.envs)

    @property
    def units(self) -> int:
        """Trainees per update."""
        return self.settings.envs

    @property
    def episodes(self) -> int:
        """The number of trainees so far."""
        return self.iteration * self.settings.envs

    @property
    def runs_per_validation(self) -> int:
        """The number of trainees that a comparison trains."""
        return self.validation.runs

    def held_out_loss(self, controller: Any) -> float:
        """Returns the controller's score."""
        return self.validation.score(controller)

    def iterate(self) -> dict[str, float]:
        """Runs a population on a few new tasks, and moves theta; gives what to log."""
        groups = self.settings.groups
        found = [self._estimate(place) for place in range(self.iteration * groups, (self.iteration + 1) * groups)]
        gradient, loss = (torch.stack(parts).mean(0) for parts in zip(*found, strict=True))
        self.theta.grad = gradient
        for group in self.optimizer.param_groups:
            group["lr"] = EVOLUTION_LR * (1 - self.iteration / self.iterations)
        self.optimizer.step()
        return on_host({"outer/loss": loss, "outer/gradient_norm": gradient.norm()})

    def _estimate(self, place: int) -> tuple[Tensor, Tensor]:
        settings = self.settings
        pairs = settings.envs // settings.groups // 2
        generator = draws.generator(settings.seed, draws.POLICY, place)
        theta = self.theta.detach()
        noise = perturbations(pairs, theta, SIGMA, generator)
        episode = Episode(self.tasks.task(place), settings.controls, settings.observed(), device=self.device)
        state = paired(episode.reset(self.training_seeds(pairs, place * pairs))[0])
        samples = evaluated(self._run(episode), theta, noise, SIGMA, state, differentiate=False)
        difference = 2 * SIGMA**2 * (samples.es.square().sum(1) / noise.square().sum(1)).mean().sqrt()
        return samples.es.mean(0) / difference.clamp(min=SPREAD), samples.loss.mean()

    def _run(self, episode: Episode) -> Callable[[Tensor, EpisodeState], tuple[Tensor, EpisodeState]]:
        mean, std = (torch.from_numpy(x).float() for x in (self.first.mean, self.first.std))

        def decision(theta: Tensor, state: EpisodeState, _: int) -> tuple[tuple[()], EpisodeState]:
            observation = episode.time_step(state).observation
            assert isinstance(observation, Tensor)
            seen = ((observation - mean) / std).clamp(-self.first.CLIP, self.first.CLIP)
            w1, b1, w2, b2 = self._parts(theta)
            hidden = (torch.einsum("nhi,ni->nh", w1, seen) + b1).tanh()
            action = (torch.einsum("nah,nh->na", w2, hidden) + b2).clamp(-1, 1)
            return (), episode.step(state, action)[0]

        def whole(theta: Tensor, state: EpisodeState) -> tuple[Tensor, EpisodeState]:
            first = state.dynamics.val_loss
            _, end = rollout(decision, theta, state, range(episode.decisions))
            return fall_of(first, end.dynamics.val_loss, end.diverged), end

        return whole

    def _parts(self, theta: Tensor) -> list[Tensor]:
        """The weights (n, *shape) in thetas (n, D)."""
        sizes = [shape.numel() for shape in self.shapes]
        return [part.unflatten(1, shape) for part, shape in zip(theta.split(sizes, 1), self.shapes, strict=True)]

    def status(self, row: dict[str, float]) -> str:
        """Returns the mean loss."""
        return f"log loss {row['outer/loss']:.3f}"

    def controller(self) -> PPOController:
        """Returns the controller with theta as it is now."""
        architecture: Architecture = self.first.architecture
        policy = architecture.build()
        parts = {name: part[0] for name, part in zip(self.names, self._parts(self.theta.detach()[None]), strict=True)}
        policy.load_state_dict(self.first.policy.state_dict() | parts)
        policy.set_training_mode(False)
        view = View(self.settings.controls, self.settings.observed())
        return PPOController(policy, self.first.mean, self.first.std, view, architecture)

    def state(self) -> dict[str, Any]:
        """Returns everything on which the next update depends."""
        return {"theta": self.theta.detach(), "adam": self.optimizer.state[self.theta]}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Restores a state, after which the training goes on exactly as it would have."""
        self.theta.data.copy_(state["theta"])
        self.optimizer.state[self.theta] = state["adam"]


_ACTOR = (
    "mlp_extractor.policy_net.0.weight", "mlp_extractor.policy_net.0.bias", "action_net.weight", "action_net.bias"
)  # fmt: skip
"""The names of an actor's weights in Stable-Baselines3's policies, from its inputs to its outputs."""


def untrained(settings: PPOSettings) -> MultiTaskTraining:
    """A training with the statistics of the clone, and with an actor that has learned nothing."""
    training = MultiTaskTraining(settings)
    know(training, "obs_rms", demonstrations(settings).observations)
    return training


def by_evolution(begin: Callable[[PPOSettings], MultiTaskTraining], settings: PPOSettings) -> PPOController:
    """Trains by evolution strategies what a training begins with."""
    return from_folder(lambda settings: Evolution(settings, begin), settings)
