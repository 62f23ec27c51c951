"""The trainings of `drawn_ablation.py` that `lrenv train ppo` lacks: on changed tasks, from a clone, by evolution.

All of them end with a controller that is a `PPOController`, so that it is the training alone in which they differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lrenv.agents.outer.folder import Folder
from lrenv.agents.outer.gradient_estimators import Rollout
from lrenv.agents.outer.training import Training, begin_adam, train
from lrenv.agents.outer.validation import Validation, fall_of
from lrenv.agents.ppo.agent import PPOController
from lrenv.agents.ppo.multi_task import MultiTaskTraining
from lrenv.agents.ppo.settings import PPOSettings
from lrenv.agents.ppo.tasks import Drawn, Tasks, tasks_of
from lrenv.agents.universal.agent import universal
from lrenv.agents.universal.settings import UniversalSettings
from lrenv.agents.universal.training import BETAS, UniversalTraining
from lrenv.benchmark.evaluation import evaluate
from lrenv.envs.episode import Episode, EpisodeState, TimeStep
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.networks.architectures import NetworkFactory, Shape
from lrenv.randomness.named import Chance
from lrenv.randomness.seeds import seeds_for
from lrenv.training.rollout import rollout
from lrenv.training.tasks import Task

Array = NDArray[Any]
S = TypeVar("S", PPOSettings, UniversalSettings)
Between = tuple[EpisodeState, Tensor]
"""Trainees, and what is observed of them, between two decisions."""
Change = Callable[[Task, Chance], Task | None]
"""(a drawn task, its chance) -> what takes its place; None to pass it over."""

ITERATIONS = 32
"""Of trainings with PPO, of so many decisions each as the settings say: about 3,000 runs, some minutes of one core."""

SHOWN, SHOWN_RUNS = 48, 32
"""The tasks that a clone learns from, and the runs on each: a minute of one core."""
OF_CLONES, OF_DEMONSTRATIONS = 10_000, 500_000
"""The places of the first task and of the first seed among those of the training, beyond those that it comes to."""
PASSES, CLONE_LR, LEAST_LOG_STD = 30, 1e-3, -1.5
"""Over what is to be cloned; and the least that a clone explores, since a policy without noise learns nothing."""
UPDATES = 24
"""Of evolution strategies, of 64 runs on each of eight tasks: as many minutes as PPO takes, or a few more."""
WEIGHT_FACTORS = (0.3, 3.0)
"""Between which augmentation divides the weights of layers."""


class OfIterations(MultiTaskTraining):
    """A training of a fixed number of iterations.

    Trainees that diverge are followed by others, so that with a number of trainees, trainings of which many diverge
    would make fewer decisions, and see fewer tasks.

    Args:
        settings: how to train.
        tasks: what on, in the place of drawn ones.
        spread: of the returns, by which rewards are divided; None to find it on the way.
    """

    unit = "iterations"

    def __init__(self, settings: PPOSettings, tasks: Tasks | None = None, spread: float | None = None) -> None:
        super().__init__(settings, tasks)
        if spread is not None:
            know(self, "returns 0", np.array([-spread, spread]), weight=1e12)

    @property
    def iterations(self) -> int:
        """The number of iterations in the whole training."""
        return ITERATIONS

    @property
    def length(self) -> int:
        """The same."""
        return ITERATIONS

    @property
    def done(self) -> int:
        """The number that is done."""
        return self.iteration


def know(training: MultiTaskTraining, name: str, values: Array, weight: float | None = None) -> None:
    """Gives a training's statistics of that name the mean and variance of values (m, ...), as if of `weight` values."""
    statistics = training.statistics()[name]
    statistics.mean, statistics.var = values.mean(0, dtype=np.float64), values.var(0, dtype=np.float64)
    statistics.count = float(len(values)) if weight is None else weight


def from_folder(kind: Callable[[S], Training[S]], settings: S) -> PPOController:
    """Trains, or goes on where a training stopped, and loads what came of it.

    Args:
        kind: the training.
        settings: of it.
    """
    begun = Folder(settings.out).begun
    return PPOController.load(train(kind, replace(settings, resume=begun)))


def by_ppo(settings: PPOSettings) -> PPOController:
    """Trains on drawn tasks as they are."""
    return from_folder(OfIterations, settings)


def by_ppo_with(spread: float, settings: PPOSettings) -> PPOController:
    """The same, with rewards that are divided by a given number."""
    return from_folder(partial(OfIterations, spread=spread), settings)


class Changed(Drawn):
    """Drawn tasks, each of them changed.

    Args:
        settings: of the training.
        change: (task, its chance) -> what takes its place; None to take another.
        choice: from how many drawn tasks each is taken, the first that isn't passed over.
    """

    def __init__(self, settings: PPOSettings, change: Change, choice: int) -> None:
        drawn = drawn_for(settings)
        super().__init__(drawn.distribution, drawn.training)
        self.change, self.choice = change, choice

    def task(self, place: int) -> Task:
        """Returns the first of some drawn tasks that isn't passed over, changed."""
        for drawn in range(self.choice):
            task = super().task(place * self.choice + drawn)
            if (changed := self.change(task, Chance("ablation", task.name))) is not None:
                return changed
        raise AssertionError(f"none of {self.choice} drawn tasks in a row is as wanted")


def on_changed(change: Change, settings: PPOSettings, choice: int = 1) -> PPOController:
    """Trains with PPO on drawn tasks that are changed, or chosen."""
    return from_folder(lambda settings: OfIterations(settings, Changed(settings, change, choice)), settings)


def drawn_for(settings: PPOSettings) -> Drawn:
    """The drawn tasks of a training."""
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
        collected: (m,), the sums of rewards up to each decision, its own included.
    """

    observations: Array
    actions: Array
    returns: Array
    collected: Array


def demonstrations(settings: PPOSettings) -> Demonstrations:
    """Runs `universal` on drawn tasks, and actions with the same rates where the policy's first rate is another one."""
    tasks, parts = drawn_for(settings), []
    for place in range(OF_CLONES, OF_CLONES + SHOWN):
        task = tasks.task(place)
        seeds = seeds_for("training", SHOWN_RUNS, OF_DEMONSTRATIONS + (place - OF_CLONES) * SHOWN_RUNS, settings.seed)
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
        alive[-1] = alive[-1] & np.isfinite(wanted)
        with np.errstate(invalid="ignore"):
            action = np.log10(wanted / info["lr"]).clip(-1, 1).astype(np.float32)[:, None]
        seen.append(observation)
        done.append(np.nan_to_num(action))
        observation, reward, terminated, _, info = envs.step(done[-1])
        rewards.append(reward)
        alive.append(alive[-1] & ~terminated)
    going, gained = np.stack(alive[:-1]), np.stack(rewards) * np.stack(alive[:-1])
    collected = gained.cumsum(0)
    returns = collected[-1] - collected + gained
    return tuple(each[going] for each in (np.stack(seen), np.stack(done), returns, collected))


def cloned(settings: PPOSettings) -> MultiTaskTraining:
    """A training whose actor begins as a clone of `universal`, and whose critic knows what that gets."""
    training, shown = OfIterations(settings), demonstrations(settings)
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


class Evolution(UniversalTraining):
    """The training of `lrenv train universal`, but of the actor that PPO has: evolution strategies over whole runs.

    These are persistent evolution strategies, too, whose truncation is the run.

    Args:
        settings: of the training.
        begun: the controller whose actor and statistics this begins with.
    """

    def __init__(self, settings: UniversalSettings, begun: PPOController) -> None:
        super().__init__(settings)
        self.validation = Validation(self.validation.tasks, settings.eval_seeds, settings.device)
        self.begun, weights = begun, begun.policy.state_dict()
        self.shapes = [weights[name].shape for name in _ACTOR]
        theta = torch.cat([weights[name].flatten() for name in _ACTOR]).to(self.device)
        self.theta = nn.Parameter(theta)
        self.optimizer = torch.optim.Adam([self.theta], settings.outer_lr, BETAS)
        begin_adam(self.optimizer)
        self.average = theta.clone()

    def run(self, task: Task) -> tuple[Rollout[EpisodeState], Episode]:
        """A whole run on a task, from its start, as a rollout, and the environment's episode."""
        view = self.begun.view
        episode = Episode(task, view.control, view.observe, device=self.device)
        mean, std = (torch.from_numpy(x).float().to(self.device) for x in (self.begun.mean, self.begun.std))

        def decision(theta: Tensor, between: Between, _: int) -> tuple[tuple[()], Between]:
            state, seen = between
            normalised = ((seen - mean) / std).clamp(-self.begun.CLIP, self.begun.CLIP)
            w1, b1, w2, b2 = self._parts(theta)
            hidden = (torch.einsum("nhi,ni->nh", w1, normalised) + b1).tanh()
            action = (torch.einsum("nah,nh->na", w2, hidden) + b2).clamp(-1, 1)
            state, step = episode.step(state, action)
            return (), (state, observed(step))

        def whole(theta: Tensor, state: EpisodeState) -> tuple[Tensor, EpisodeState]:
            start = state, observed(episode.time_step(state))
            _, (end, _) = rollout(decision, theta, start, range(episode.decisions))
            return fall_of(state.dynamics.val_loss, end.dynamics.val_loss, end.diverged), end

        return whole, episode

    def _parts(self, theta: Tensor) -> list[Tensor]:
        """The weights (n, *shape) in thetas (n, D)."""
        sizes = [shape.numel() for shape in self.shapes]
        return [part.unflatten(1, shape) for part, shape in zip(theta.split(sizes, 1), self.shapes, strict=True)]

    def controller(self) -> PPOController:  # type: ignore[override]
        """Returns the controller with the average of theta so far."""
        policy = self.begun.architecture.build()
        parts = {name: part[0] for name, part in zip(_ACTOR, self._parts(self.average.cpu()[None]), strict=True)}
        policy.load_state_dict(self.begun.policy.state_dict() | parts)
        policy.set_training_mode(False)
        return PPOController(policy, self.begun.mean, self.begun.std, self.begun.view, self.begun.architecture)


def observed(step: TimeStep) -> Tensor:
    """What a policy of a few numbers observes (n, observation)."""
    assert isinstance(step.observation, Tensor)
    return step.observation


_ACTOR = (
    "mlp_extractor.policy_net.0.weight", "mlp_extractor.policy_net.0.bias", "action_net.weight", "action_net.bias"
)  # fmt: skip
"""The names of an actor's weights in Stable-Baselines3's policies, from its inputs to its outputs."""


def untrained(settings: PPOSettings) -> MultiTaskTraining:
    """A training with the statistics of the clone, and with an actor that has learned nothing."""
    training = OfIterations(settings)
    know(training, "obs_rms", demonstrations(settings).observations)
    return training


def by_evolution(begin: Callable[[PPOSettings], MultiTaskTraining], settings: PPOSettings) -> PPOController:
    """Trains by evolution strategies what a training begins with."""
    begun = begin(settings).controller()
    own = UniversalSettings(
        limit=drawn_for(settings).distribution.limit, seed=settings.seed, out=settings.out, updates=UPDATES,
        tasks=settings.groups, eval_every=settings.eval_every, eval_tasks=1, eval_seeds=1,
    )  # fmt: skip
    return from_folder(lambda settings: Evolution(settings, begun), own)
