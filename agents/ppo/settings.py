"""How a controller is trained with PPO; the command line is made from this."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lrenv import specs
from lrenv.agents.outer.settings import OuterSettings
from lrenv.agents.ppo.tasks import is_distribution
from lrenv.controllers import schema
from lrenv.envs.observations import WHITE_BOX
from lrenv.envs.own import observation_name
from lrenv.randomness.seeds import seeds_for

OF_SEVERAL = ("groups", "rollout", "eval_tasks")
"""The settings of trainings on several tasks alone."""


@dataclass(frozen=True)
class PPOSettings(OuterSettings):
    """How to train a controller with PPO; the defaults are those of Xu et al. 2019 where the paper gives any.

    Attributes:
        tasks: specs of several tasks to train on side by side, separated by commas, instead of `task`; or "drawn", also
            with a limit as in "drawn:limit=5e8", for drawn tasks, each of which comes once (`lrenv.training.drawn`).
        envs: the number of trainees that train in parallel.
        groups: the number of tasks at work at a time, each with an equal share of `envs`; only with `tasks`, like the
            next two settings. More of them make an update depend less on single tasks, but take longer, as the time of
            a small batch hardly depends on its size.
        rollout: the number of decisions per environment in an iteration; with one task, those of an episode.
        eval_tasks: the number of drawn tasks on which controllers are compared, each from `eval_seeds` seeds of its
            own. Listed tasks are themselves what they are compared on.
        episodes: the number of trainees in all, rounded up to whole iterations of `envs`; with `tasks`, to whole
            iterations.
        control: what the actions set or scale (`lrenv.envs.actions`), several names separated by commas.
        observe: what the controller observes (`lrenv.envs.observations`), likewise.
        reward: what the controller maximises the discounted sum of (`lrenv.envs.rewards`).
        hidden: the number of units in the hidden layer of actor and critic (section 3.3), or in the LSTM.
        lstm: whether the actor is an LSTM.
        actor_lr: Adam's learning rate for the actor (section 3.3).
        critic_lr: Adam's learning rate for the critic (section 3.3).
        gamma: the discount of rewards per decision.
        gae_lambda: lambda of generalised advantage estimation, between 0 (one step of reward) and 1 (all of them).
        epochs: the number of passes over an iteration's decisions.
        minibatch: the number of decisions in a minibatch; the nearest that divides an iteration's is used.
        clip: epsilon, by which the ratio of probabilities may differ from 1 (equation 1).
        entropy: the weight of the bonus for the policy's entropy.
    """

    LENGTH: ClassVar[str] = "episodes"
    COUNTS: ClassVar[tuple[str, ...]] = (
        *OuterSettings.COUNTS, "envs", "hidden", "epochs", "minibatch", "groups", "rollout", "eval_tasks",
    )  # fmt: skip

    out: Path = Path("runs/ppo")
    tasks: str = ""
    envs: int = 64
    groups: int = 8
    rollout: int = 64
    eval_tasks: int = 8
    episodes: int = 1024
    control: str = "scale"
    observe: str = "dynamics"
    reward: str = "val_loss"
    hidden: int = 32
    lstm: bool = False
    actor_lr: float = 1e-3
    critic_lr: float = 5e-3
    gamma: float = 0.99
    gae_lambda: float = 0.95
    epochs: int = 10
    minibatch: int = 400
    clip: float = 0.2
    entropy: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError for a setting that cannot be meant."""
        super().__post_init__()
        schema.integer(1, schema.LARGEST_SIZE)("hidden", self.hidden)
        for name in ("control", "observe"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be text, with commas between several names, not {getattr(self, name)!r}")
        controls, observed = specs.split(self.control), specs.split(self.observe)
        if not controls or not observed:
            raise ValueError("control and observe name what is controlled and what is observed: give one or more")
        if any(name.startswith("set-raw") for name in controls):
            raise ValueError("a policy of bounded actions can't control by 'set-raw'; use 'scale' or 'set'")
        if WHITE_BOX.keys() & set(observed):
            raise ValueError(f"a policy of a few numbers can't observe {self.observe!r}; use 'dynamics' or another set")
        if self.tasks and self.envs % self.groups:
            raise ValueError(f"envs={self.envs} trainees can't be shared equally by groups={self.groups} tasks")
        if self.tasks and self.compile:
            raise ValueError("compiling takes half a minute per task, of which tasks has many: leave compile out")
        if self.tasks and self.task != type(self).task:
            raise ValueError(f"tasks={self.tasks!r} stands instead of task: leave task={self.task!r} out")
        if self.tasks:
            each = specs.split(self.tasks)
            drawn = any(map(is_distribution, each))
            self.refuse(eval_tasks=drawn)
            seeds_for("validation", self.eval_seeds * (self.eval_tasks if drawn else len(each)))
        for name in OF_SEVERAL if not self.tasks else ():
            if getattr(self, name) != getattr(type(self), name):
                raise ValueError(
                    f"{name}={getattr(self, name)} is for trainings on several tasks: add tasks, or leave it out"
                )
        for name in ("actor_lr", "critic_lr"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")
        if self.clip <= 0 or self.entropy < 0:
            raise ValueError(f"clip must be positive and entropy at least 0, not {self.clip} and {self.entropy}")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")

    @property
    def controls(self) -> str | tuple[str, ...]:
        """What the actions set or scale, as environments take it."""
        return _one_or_several(specs.split(self.control))

    def observed(self) -> str | tuple[str, ...]:
        """Returns what the controller observes, as environments take it; what is one's own is registered."""
        return _one_or_several([observation_name(spec) for spec in specs.split(self.observe)])


def _one_or_several(names: list[str]) -> str | tuple[str, ...]:
    return names[0] if len(names) == 1 else tuple(names)
