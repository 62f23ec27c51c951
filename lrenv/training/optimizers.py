"""Optimizers as pairs of pure functions, `init` and `direction`; the learning rate acts in `descend` alone.

An optimizer turns gradients into a direction and never sees a learning rate, so that any optimizer works
with any agent, and the one-step hypergradient of all of them is -<g_t, direction_(t-1)>
(Baydin et al. 2018, equation 5). Directions agree with `torch.optim` step for step.

The parameters of n trainees are one tensor (n, P), each row a trainee's parameters laid end to end, so that an
update is a handful of passes however many tensors the network has.

`tests/reference/optimizers.py` has the directions in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from lrenv.lookup import error_line, lookup, what_is

OptState = dict[str, Tensor]
"""Slot -> (n, P) for moments, (n, k, P) for k of them, (n, 1) for counters."""
Hyper = dict[str, Tensor]
"""Hyperparameter -> (n, 1). Without `weight_decay` there is none, and its pass over the weights is saved.

A learned optimizer also reads its own parameters here, `theta` (n, D), where each trainee has others."""


def descend(params: Tensor, direction: Tensor, lr: Tensor) -> Tensor:
    """Takes one step of descent, `params - lr * direction`: the only place where a learning rate acts.

    Args:
        params: (n, P).
        direction: (n, P).
        lr: (n, 1) for one rate per trainee, (n, P) for one per parameter.
    """
    return torch.addcmul(params, lr, direction, value=-1)


def _as_they_are(params: Tensor, state: OptState) -> Tensor:
    return params


@dataclass(frozen=True)
class Optimizer:
    """A pair of pure functions and the hyperparameters that they read.

    Attributes:
        init: parameters -> state.
        direction: (gradients, state, parameters, hyperparameters) -> (direction, state).
        hyper: default of each hyperparameter that an agent may also control while training:
            `momentum` (beta_1 for the Adam family) and `weight_decay`.
        decoupled: weight decay is no part of the loss that is minimised (AdamW), but a step of its own.
        evaluated: (parameters, state) -> the parameters that are measured, kept as best checkpoint, and tested, such as
            an average of the iterates; the iterates themselves by default.
        adaptive: directions are scaled to about 1 whatever the scale of the loss, so that good rates are alike
            everywhere (Adam and its kind); those of SGD grow with the gradient.
    """

    init: Callable[[Tensor], OptState]
    direction: Callable[[Tensor, OptState, Tensor, Hyper], tuple[Tensor, OptState]]
    hyper: dict[str, float] = field(default_factory=dict)
    decoupled: bool = False
    evaluated: Callable[[Tensor, OptState], Tensor] = _as_they_are
    adaptive: bool = False

    def regularised(self, grads: Tensor, params: Tensor, hyper: Hyper) -> Tensor:
        """Gradients (n, P) of what is minimised: of the loss, and of the L2 penalty unless it is decoupled."""
        return grads if self.decoupled else _decayed(grads, params, hyper)


OptimizerFactory = Callable[[Sequence[int]], Optimizer]
"""(numbers of columns of the network's tensors, in order) -> an optimizer that treats each tensor by itself."""


def _decayed(grads: Tensor, params: Tensor, hyper: Hyper) -> Tensor:
    """Adds the gradient of an L2 penalty, weight_decay / 2 * |w|^2."""
    return torch.addcmul(grads, hyper["weight_decay"], params) if "weight_decay" in hyper else grads


def sgd() -> Optimizer:
    """Returns stochastic gradient descent, whose direction is the gradient."""

    def direction(grads: Tensor, state: OptState, params: Tensor, hyper: Hyper) -> tuple[Tensor, OptState]:
        return _decayed(grads, params, hyper), state

    return Optimizer(lambda params: {}, direction, {"weight_decay": 0.0})


def momentum(nesterov: bool = False) -> Optimizer:
    """Returns SGD with heavy-ball momentum v = mu v + g, or with Nesterov's look-ahead g + mu v.

    Sutskever et al. 2013, in the form of `torch.optim.SGD(momentum=mu, nesterov=nesterov)`.
    """

    def init(params: Tensor) -> OptState:
        return {"velocity": torch.zeros_like(params)}

    def direction(grads: Tensor, state: OptState, params: Tensor, hyper: Hyper) -> tuple[Tensor, OptState]:
        grads = _decayed(grads, params, hyper)
        velocity = torch.addcmul(grads, hyper["momentum"], state["velocity"])
        ahead = torch.addcmul(grads, hyper["momentum"], velocity) if nesterov else velocity
        return ahead, {"velocity": velocity}

    return Optimizer(init, direction, {"momentum": 0.9, "weight_decay": 0.0})


def rmsprop(alpha: float = 0.99, eps: float = 1e-8, eps_root: float = 0.0) -> Optimizer:
    """Returns RMSprop (Tieleman & Hinton 2012), with the defaults of `torch.optim.RMSprop`.

    `eps_root` is added under the root, as in `adam`.
    """

    def init(params: Tensor) -> OptState:
        return {"square": torch.zeros_like(params)}

    def direction(grads: Tensor, state: OptState, params: Tensor, hyper: Hyper) -> tuple[Tensor, OptState]:
        grads = _decayed(grads, params, hyper)
        square = torch.addcmul(alpha * state["square"], grads, grads, value=1 - alpha)
        return grads / (_root(square, eps_root) + eps), {"square": square}

    return Optimizer(init, direction, {"weight_decay": 0.0}, adaptive=True)


def adam(beta2: float = 0.999, eps: float = 1e-8, eps_root: float = 0.0, decoupled: bool = False) -> Optimizer:
    """Returns Adam (Kingma & Ba 2015, algorithm 1), or AdamW (Loshchilov & Hutter 2019, algorithm 2).

    Args:
        beta2: decay of the second moment. beta_1 is the hyperparameter `momentum`, 0.9.
        eps: added to the root.
        eps_root: added under the root, as optax does. Without it the root's derivative at 0, which is infinite, is
            taken to be 0: right where gradients stay 0, as behind dead ReLUs, for nothing moves there.
        decoupled: weight decay beside the scaled gradient (AdamW) instead of inside the gradient (Adam).
    """

    def init(params: Tensor) -> OptState:
        # Running products instead of beta ** t: they stay right when an agent changes beta_1 on the way.
        ones = torch.ones_like(params[:, :1])
        moments = {"mean": torch.zeros_like(params), "square": torch.zeros_like(params)}
        return moments | {"beta1_power": ones, "beta2_power": ones.clone()}

    def direction(grads: Tensor, state: OptState, params: Tensor, hyper: Hyper) -> tuple[Tensor, OptState]:
        beta1 = hyper["momentum"]
        if not decoupled:
            grads = _decayed(grads, params, hyper)
        mean = torch.lerp(grads, state["mean"], beta1)
        square = torch.addcmul(beta2 * state["square"], grads, grads, value=1 - beta2)
        beta1_power, beta2_power = state["beta1_power"] * beta1, state["beta2_power"] * beta2
        # mean / c1 / (sqrt(square / c2 + eps_root) + eps), with the bias corrections c1 and c2, which are one
        # number per trainee, moved to where they cost no pass over the weights.
        c1, c2 = 1 - beta1_power, 1 - beta2_power
        scaled = mean / torch.addcmul(c1 * eps, c1 / c2.sqrt(), _root(square, c2 * eps_root if eps_root else 0.0))
        if decoupled and "weight_decay" in hyper:
            scaled = torch.addcmul(scaled, hyper["weight_decay"], params)
        powers = {"beta1_power": beta1_power, "beta2_power": beta2_power}
        return scaled, {"mean": mean, "square": square, **powers}

    hyper = {"momentum": 0.9, "weight_decay": 0.01 if decoupled else 0.0}
    return Optimizer(init, direction, hyper, decoupled, adaptive=True)


def unit() -> Optimizer:
    """Returns no optimizer but the direction 1 everywhere, so that rates, one per parameter, are the update itself.

    For agents that put out updates, such as learned optimizers (Andrychowicz et al. 2016, equation 1).
    """
    return Optimizer(lambda params: {}, lambda grads, state, params, hyper: (torch.ones_like(grads), state))


def ema(optimizer: Optimizer, decay: float = 0.99) -> Optimizer:
    """Returns an optimizer whose evaluation weights are an exponential moving average of iterates (Polyak averaging).

    After step t they are the mean of w_0, ..., w_t with weights decay^(t - i), so that the initial weights count as one
    iterate among the others and the mean needs no correction of its bias:

        s_t = 1 + decay s_(t-1),    e_t = e_(t-1) + (w_t - e_(t-1)) / s_t,    s_(-1) = 0.

    The first average is w_0 to the last bit, and with a decay of 0 all of them are the iterates. Steps are those of
    the optimizer. What layers keep besides, such as running means of batch norm, belongs to the iterates and is not
    averaged.

    Args:
        optimizer: any other.
        decay: per inner step, the hyperparameter `ema`; an average reaches back about 1 / (1 - decay) steps.

    Raises:
        ValueError: the optimizer has evaluation weights already.
    """
    if optimizer.evaluated is not _as_they_are:
        raise ValueError("this optimizer has evaluation weights already: leave out one +ema")
    slots = ("ema", "ema_weight", "ema_decay")

    def init(params: Tensor) -> OptState:
        nothing = torch.zeros_like(params[:, :1])
        average = {"ema": torch.zeros_like(params), "ema_weight": nothing, "ema_decay": nothing.clone()}
        return optimizer.init(params) | average

    def averaged(params: Tensor, state: OptState, decay: Tensor) -> tuple[Tensor, Tensor]:
        weight = 1 + decay * state["ema_weight"]
        return torch.lerp(state["ema"], params, 1 / weight), weight

    def direction(grads: Tensor, state: OptState, params: Tensor, hyper: Hyper) -> tuple[Tensor, OptState]:
        average, weight = averaged(params, state, hyper["ema"])
        own = {name: slot for name, slot in state.items() if name not in slots}
        steps, own = optimizer.direction(grads, own, params, hyper)
        # The decay is kept for the iterate that this step leads to; a copy, for no two leaves of a state are one.
        return steps, own | {"ema": average, "ema_weight": weight, "ema_decay": hyper["ema"].clone()}

    def evaluated(params: Tensor, state: OptState) -> Tensor:
        return averaged(params, state, state["ema_decay"])[0]

    hyper = optimizer.hyper | {"ema": decay}
    return Optimizer(init, direction, hyper, optimizer.decoupled, evaluated, optimizer.adaptive)


def _root(square: Tensor, eps_root: Tensor | float) -> Tensor:
    if isinstance(eps_root, Tensor) or eps_root != 0:
        return (square + eps_root).sqrt()
    if torch.is_grad_enabled():
        # The derivative of a root is infinite at 0, where gradients have been 0 so far: that of this one is 0.
        square = square.clamp(min=torch.finfo(square.dtype).tiny)
    return square.sqrt()


OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {
    "sgd": sgd,
    "momentum": momentum,
    "nesterov": lambda: momentum(nesterov=True),
    "rmsprop": rmsprop,
    "adam": adam,
    "adamw": lambda: adam(decoupled=True),
    "unit": unit,
}
"""Name -> factory. Plug-ins may pass an `Optimizer`, or an `OptimizerFactory`, wherever a name is taken."""
WRAPPERS: dict[str, Callable[[Optimizer], Optimizer]] = {"ema": ema}
"""Name -> what makes another optimizer of one, as in "adam+ema"; "+ema" stands for the task's own with an average."""


def make_optimizer(optimizer: str | Optimizer | OptimizerFactory, sizes: Sequence[int] = (1,)) -> Optimizer:
    """Returns the optimizer of that name, or the given one.

    Args:
        optimizer: a name, also with wrappers, as in "adam+ema"; an optimizer; or what makes one for a network.
        sizes: columns of each of the network's tensors; what an optimizer is called and reads is the same for all.

    Raises:
        TypeError: one of `torch.optim`, which trains modules and not stacked tensors, or a function of one's own that
            makes something else or raises an error.
        ValueError: no optimizer has that name; the message lists the near ones.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    kind = optimizer if isinstance(optimizer, type) else type(optimizer)
    if issubclass(kind, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer can't be torch.optim's {kind.__name__}, which updates one network: give one of the names "
            f"{', '.join(OPTIMIZERS)}, or a lrenv.training.optimizers.Optimizer"
        )
    if callable(optimizer):
        try:
            made = optimizer(sizes)
        except Exception as error:
            raise TypeError(
                "optimizer is a function, called with the number of columns of each of the network's tensors, such as "
                f"{list(sizes[:2])}, to make a lrenv.training.optimizers.Optimizer; it raised {error_line(error)}"
            ) from error
        if not isinstance(made, Optimizer):
            raise TypeError(f"optimizer must make a lrenv.training.optimizers.Optimizer, not {what_is(made)}")
        return made
    base, *wrappers = optimizer.split("+") if isinstance(optimizer, str) else [optimizer]
    return _wrapped(lookup(OPTIMIZERS, base, "optimizer")(), wrappers, sizes)


def wrapped(optimizer: str | Optimizer | OptimizerFactory, wrappers: str) -> str | Optimizer | OptimizerFactory:
    """Returns an optimizer with wrappers, such as "+ema", put around it."""
    if isinstance(optimizer, str):
        return optimizer + wrappers
    return partial(_wrapped, optimizer, tuple(wrappers.split("+")[1:]))


def _wrapped(optimizer: Optimizer | OptimizerFactory, wrappers: Sequence[str], sizes: Sequence[int]) -> Optimizer:
    made = make_optimizer(optimizer, sizes)
    for name in wrappers:
        made = lookup(WRAPPERS, name, "wrapper of an optimizer")(made)
    return made
