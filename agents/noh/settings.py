"""The settings of the training of coordinatewise LSTMs, from which the command lines are made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal

from lrenv.agents.noh.lstm import ARCHITECTURE, Architecture
from lrenv.agents.outer.settings import OuterSettings
from lrenv.lookup import count

HYPERGRADIENT = "hypergradient"
"""The estimator that is the paper's."""


@dataclass(frozen=True)
class NOHSettings(OuterSettings):
    """How to train an LSTM that sets learning rates; the defaults are the paper's where it gives any.

    Attributes:
        envs: number of trainees in parallel; each meta-iteration has new ones.
        meta_iterations: number of training runs, each of `budget` inner steps (section 3).
        unroll: number of decisions per window, through which the LSTM is differentiated (section 3). Each window ends
            in an update.
        layers: number of layers of the LSTM (section 3).
        hidden: number of units of each layer (section 3).
        cut: c of the gradients' preprocessing (section 2.2; 10 in Andrychowicz et al. 2016, appendix A).
        scale: rate of an untrained policy, by which the exponential of its output is multiplied. The default lies
            between the two best of the constant rates of Adam in `reproductions/fu2017.py`.
        gain: factor on the initial weights of the LSTM, those of `torch.nn.LSTM`, with which three layers hardly
            distinguish one gradient from another.
        memory: number of decisions over which units of an untrained LSTM keep their cells at most; None for the biases
            of `torch.nn.LSTM`, which forget within a few decisions and can't distinguish the beginning of a run from
            its end. The default is more than the 400 decisions of a run of 2000 inner steps.
        meta_lr: learning rate of Adam for the LSTM's weights. The paper's 1e-7 moves a weight by 4e-6 at most in the 40
            updates that five runs have.
        per: what has an LSTM and a rate of its own. Those of larger pieces than a parameter see the norm of the piece's
            gradient, and the cosine between it and the steps before.
        estimator: of the gradient of the LSTM's weights. `hypergradient` is the paper's. The others perturb the
            weights, and estimate how the last validation loss of whole runs depends on them
            (`lrenv.agents.outer.gradient_estimators`): evolution strategies, `es`, make an update per meta-iteration,
            persistent ones, `pes`, one per window; `merged` and `reparameterisation` also differentiate through the
            whole run, and make an update per meta-iteration.
        pairs: number of antithetic pairs of trainees in a meta-iteration, instead of `envs`, for estimators that
            perturb. Both of a pair share their initial weights and batches.
        sigma: standard deviation of the perturbations.
    """

    LENGTH: ClassVar[str] = "meta_iterations"
    COUNTS: ClassVar[tuple[str, ...]] = (*OuterSettings.COUNTS, "envs", "unroll", "layers", "hidden", "pairs")
    UNIT: ClassVar[bool] = False
    """Whether the policy gives updates, which need the optimizer `unit`."""

    task: str = "mnist-mlp20"
    out: Path = Path("runs/noh")
    interval: int | None = 5
    optimizer: str | None = "adam"
    eval_every: int = 2
    eval_seeds: int = 4
    envs: int = 1
    meta_iterations: int = 5
    unroll: int = 50
    layers: int = 3
    hidden: int = 20
    cut: float = 10.0
    scale: float = 5e-3
    gain: float = 3.0
    memory: int | None = 1000
    meta_lr: float = 7e-3
    per: Literal["parameter", "tensor", "layer", "trainee"] = "parameter"
    estimator: Literal["hypergradient", "es", "pes", "merged", "reparameterisation"] = "hypergradient"
    pairs: int = 16
    sigma: float = 0.1

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError for a setting that cannot be meant."""
        super().__post_init__()
        for name in ("cut", "scale", "gain", "meta_lr", "sigma"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        ARCHITECTURE("settings", asdict(self.architecture))  # what its file will be read by
        if self.memory is not None and count("memory", self.memory) < 2:
            raise ValueError("memory=1 would let units keep nothing; give 2 decisions or more, or None")
        if (self.optimizer == "unit") != self.UNIT:
            raise ValueError(
                "dmopt gives updates, which need the optimizer 'unit'; leave optimizer out"
                if self.UNIT
                else "noh sets the rates of an optimizer with a direction of its own; choose another than 'unit'"
            )
        if self.UNIT and self.interval != 1 and self.estimator == HYPERGRADIENT:
            raise ValueError(
                f"hypergradients are those of an update at each step; leave interval={self.interval} out, or choose "
                "another estimator, such as es"
            )
        if self.UNIT and self.per != "parameter":
            raise ValueError(f"an update per {self.per} would move all its weights alike; leave per={self.per!r} out")
        self._check_estimator()

    def _check_estimator(self) -> None:
        """Raises ValueError for settings that the estimator has no use for."""
        default = {f.name: f.default for f in fields(self)}
        for name, used, instead in (
            ("envs", self.estimator == HYPERGRADIENT, "trains pairs of trainees; say how many by pairs"),
            ("unroll", self.windowed, "looks at whole runs, not at windows"),
            ("pairs", self.estimator != HYPERGRADIENT, "compares no pairs; say how many trainees by envs"),
            ("sigma", self.estimator != HYPERGRADIENT, "perturbs nothing; choose another estimator, such as es"),
        ):
            if not used and getattr(self, name) != default[name]:
                raise ValueError(
                    f"the estimator {self.estimator} {instead}, and leave {name}={getattr(self, name)} out"
                )
        if self.estimator == "merged" and self.pairs < 2:
            raise ValueError("the estimator merged needs variances, so at least two pairs, not 1; raise pairs")

    @property
    def windowed(self) -> bool:
        """Whether runs are cut into windows."""
        return self.estimator in (HYPERGRADIENT, "pes")

    @property
    def architecture(self) -> Architecture:
        """The architecture of the LSTM."""
        return Architecture(self.layers, self.hidden, self.cut, self.scale)


@dataclass(frozen=True)
class DMoptSettings(NOHSettings):
    """How to train an LSTM that gives updates: the same, with the settings of Andrychowicz et al. 2016."""

    UNIT: ClassVar[bool] = True

    out: Path = Path("runs/dmopt")
    interval: int | None = 1
    optimizer: str | None = "unit"
    eval_every: int = 40
    layers: int = 2
    scale: float = 0.1
    memory: int | None = None
    meta_lr: float = 3e-3
