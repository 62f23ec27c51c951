"""How a controller is trained with PPO; the command line is made from this."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lrenv.tasks import count


@dataclass(frozen=True)
class PPOSettings:
    """How to train a controller; the defaults are the paper's where it gives any.

    Attributes:
        task: what the trainees learn; a name from `lrenv tasks`.
        out: folder for controller.safetensors, checkpoint.safetensors, progress.csv and TensorBoard's events.
        envs: trainees in parallel.
        episodes: trainees in all; rounded up to whole iterations of `envs`.
        budget: inner steps of an episode; the task's own by default, as for the next three.
        interval: inner steps between two actions.
        optimizer: the trainees'.
        val_examples: validation examples that a decision measures.
        control: what actions turn.
        observe: what the controller sees.
        reward: what it is paid for.
        hidden: units of the hidden layer of actor and critic (section 3.3), or of the LSTM.
        lstm: an LSTM as actor.
        actor_lr: Adam's rate for the actor (section 3.3).
        critic_lr: Adam's rate for the critic (section 3.3).
        gamma: discount a decision.
        gae_lambda: of generalised advantage estimation.
        epochs: passes over an iteration's decisions.
        minibatch: decisions in a minibatch, about; one that divides an iteration is used.
        clip: of the probability ratio (equation 1).
        entropy: weight of the entropy bonus.
        eval_every: iterations between two evaluations of the controller on held-out seeds.
        eval_seeds: how many of them.
        compile: compile the trainees' decisions, which pays in long trainings.
        seed: of initial weights, exploration and episodes.
        device: where the trainees live; CUDA where there is any by default.
        resume: go on from the checkpoint in `out`, with its settings; one given here that is not the default must
            agree with them, but `episodes` may be another.
        overwrite: start anew although `out` holds a training.
    """

    task: str = "digits-mlp"
    out: Path = Path("runs/ppo")
    envs: int = 64
    episodes: int = 1024
    budget: int | None = None
    interval: int | None = None
    optimizer: str | None = None
    val_examples: int | None = None
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
    eval_every: int = 4
    eval_seeds: int = 16
    compile: bool = False
    seed: int = 0
    device: str | None = None
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError for a setting that cannot be meant."""
        for name in ("envs", "episodes", "hidden", "epochs", "minibatch", "eval_every", "eval_seeds"):
            count(name, getattr(self, name))
        if self.resume and self.overwrite:
            raise ValueError("--resume goes on with a training and --overwrite discards it: choose one")
        if self.control.startswith("set-raw"):
            raise ValueError("a policy of bounded actions can't control by 'set-raw'; use 'scale' or 'set'")
        for name in ("actor_lr", "critic_lr"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")

    def as_json(self) -> dict[str, Any]:
        """All settings as JSON values."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    def essence(self) -> dict[str, Any]:
        """The settings that a resumed training must share with its beginning, as JSON values."""
        free = ("out", "resume", "overwrite", "episodes", "device")
        return {name: value for name, value in self.as_json().items() if name not in free}
