"""A `TrainerCallback` that lets an agent drive the learning rate of Hugging Face's Trainer.

    from lrenv.home.integrations.transformers import LRControllerCallback

    args = TrainingArguments("out", lr_scheduler_type="constant")
    trainer = Trainer(model, args, train_dataset=data, callbacks=[LRControllerCallback("linear:peak=5e-5")])

The Trainer hands metrics to two schedulers of its own only, and steps every other one without a loss, so this is a
callback. Its constant scheduler, which would set the rates back after each step, is silenced.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lrenv.home.integrations.callback import ControllerCallback
from lrenv.home.layers import MODULE, Layers

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as missing:
    sentence = "this needs Hugging Face's transformers: pip install 'lrenv[transformers]'"
    raise ModuleNotFoundError(sentence, name="transformers") from missing

KEY = "lrenv_controller"
"""Under which the state of the Trainer's scheduler, in `scheduler.pt` of a checkpoint, holds that of the controller."""
TOLERANCE = 0.01
"""How far, as a fraction, the loss that the Trainer logs may be from that of the model."""


class LRControllerCallback(ControllerCallback, TrainerCallback):  # type: ignore[misc]  # the package may be missing
    """Drives the rates of a Trainer's optimizer; see `ControllerCallback` for what it takes.

    Steps of the optimizer are counted, whatever `gradient_accumulation_steps` is; those that a gradient scaler skips
    are not, though `state.global_step` counts them. The loss of a step is the one that the model gives in training,
    over all batches of the step; where the Trainer computes another one (`compute_loss_func`, `label_smoothing_factor`,
    a `compute_loss` of one's own), pass that to `record`. The controller's state is in the Trainer's checkpoints.

    Raises:
        ValueError: as training begins: a scheduler of the Trainer's sets the rates, too; or the agent needs what there
            is not.
    """

    _hook: Any = None
    _model: Any = None
    _own = _told = False

    def record(self, loss: Tensor | float, of_items: bool = False) -> None:
        """Takes the loss of a batch instead of the one that the model gives; call it once a batch.

        Those of evaluations, in which the model is in evaluation mode, are left aside.

        Args:
            loss: of the batch.
            of_items: whether it is divided by `num_items_in_batch`, so that the step's loss is the sum of those of its
                batches, and not their mean.
        """
        if self._model is None or not self._model.training:  # the Trainer computes losses of evaluations there, too
            return
        if not self._own:
            self._own, self._losses = True, []
        self._of_items = of_items
        self._record(loss)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Makes the controller, after the checkpoint was loaded."""
        optimizer, scheduler, model = kwargs["optimizer"], kwargs["lr_scheduler"], kwargs["model"]
        if not self._shadow and not _is_constant(scheduler, state.max_steps):
            raise ValueError(
                f"the Trainer's scheduler ({type(scheduler).__name__}, lr_scheduler_type={args.lr_scheduler_type!s}) "
                'sets the rates, too: pass lr_scheduler_type="constant" to TrainingArguments and no scheduler of your '
                "own, or shadow=True to watch what the agent would do"
            )
        if args.deepspeed:
            raise ValueError(
                "DeepSpeed takes the optimizer's steps itself, of weights that it partitions, which a controller can't "
                "follow: leave this callback out, and choose one of the Trainer's schedulers by lr_scheduler_type"
            )
        saved = vars(scheduler).pop(KEY, None)
        # Accelerate's wrapper keeps the optimizer's step where there is a scaler: it is made to look at it anew, for
        # the controller has put one in its place that tells of steps.
        inner = getattr(optimizer, "optimizer", optimizer)
        if not self._shadow and args.save_strategy != "no":
            self._check_groups(inner.param_groups, model)
        self._begin(inner, model, state.max_steps, state.global_step, saved)
        self._extend()
        if inner is not optimizer:
            optimizer.__setstate__(optimizer.__getstate__())
        self._carry(scheduler)
        self._own = self._of_items = self._started = False
        self._share = args.world_size if args.average_tokens_across_devices else 1
        self._total, self._since = torch.zeros(()), state.global_step
        self.on_train_end()  # of a run that was broken off
        self._model, self._hook = model, model.register_forward_hook(Hook(self), with_kwargs=True)

    def _check_groups(self, groups: list[dict[str, Any]], model: Any) -> None:
        """Refuses to split groups, for the Trainer loads an optimizer's state before a callback can split them again.

        Raises:
            ValueError: they would have to be split.
        """
        layers = Layers(groups, model, self._granularity, False, self._settings.get("layers", MODULE))
        if layers.splits(groups):
            raise ValueError(
                f"the agent sets a rate per {self._granularity}, and the Trainer could not load a checkpoint of an "
                "optimizer whose groups were split: pass it optimizers=(optimizer, None) with a parameter group for "
                f"each {self._granularity}, or layers='groups' to this callback to take the Trainer's groups for "
                "layers, or save_strategy='no'"
            )

    def _carry(self, scheduler: Any) -> None:
        """Puts the controller's state into that of the Trainer's scheduler, which sets no rate any more.

        In shadow mode it goes on setting them. Of this one object the class is replaced by one derived from it.
        """
        kind = type(scheduler)
        own: dict[str, Any] = {"state_dict": lambda scheduler: kind.state_dict(scheduler) | {KEY: self._state()}}
        if not self._shadow:
            own |= {"step": lambda scheduler, *args, **kwargs: None, "get_last_lr": lambda scheduler: self._rates()}
        scheduler.__class__ = type(kind.__name__, (kind,), own)

    def _state(self) -> dict[str, Any]:
        assert self.controller is not None
        return self.controller.state_dict()

    def _rates(self) -> list[Any]:
        assert self.controller is not None
        return self.controller.get_last_lr()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Leaves the model as it was."""
        self._model = None
        if self._hook is not None:
            self._hook.remove()

    def _hear(self, model: Any, kwargs: Mapping[str, Any], outputs: Any) -> None:
        """Keeps the loss that the model gives in training."""
        if not model.training or self._own or not self._looks_at_training:
            return
        first = outputs[0] if isinstance(outputs, tuple) and outputs else None
        given = outputs.get("loss") if isinstance(outputs, Mapping) else first
        if isinstance(given, Tensor) and given.numel() == 1:
            self._of_items = kwargs.get("num_items_in_batch") is not None
            # A share of a sum over all processes is a share of their mean so many times as large.
            self._record(given.detach() * self._share if self._of_items else given)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Lets the agent decide before the first step, with the loss of the first batch."""
        if not self._started and self.controller is not None:
            self.controller.start(self._loss())
            self._started = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Counts a step, if one was taken."""
        loss = self._loss()
        self._losses = []
        assert self.controller is not None
        self.controller.step(loss)
        self._make_ready(control)
        if loss is not None:
            self._total = self._total.to(loss) + loss

    def _loss(self) -> Tensor | None:
        """The loss of the step whose batches were seen; None if nobody looks at it.

        Raises:
            ValueError: the agent does, and there is none.
        """
        if not self._looks_at_training:
            return None
        if not self._losses:
            raise ValueError(
                "the agent looks at training losses, and the model gives none, for the Trainer computes it elsewhere "
                "(compute_loss_func, label_smoothing_factor or a compute_loss of its own): call this callback's "
                "record(loss) there, once a batch"
            )
        losses = torch.stack(self._losses)
        return losses.sum() if self._of_items else losses.mean()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint may follow."""
        self._make_ready(control)

    def _make_ready(self, control: Any) -> None:
        """Before a checkpoint, which holds the state of the first process; evaluations may decide to save."""
        if self.controller is not None and (control.should_save or control.should_evaluate):
            self.controller.average_losses()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Compares the loss that the Trainer logs with that of the model, and says so if they differ."""
        logged, steps = (logs or {}).get("loss"), state.global_step - self._since
        if logged is None or self._own or not self._looks_at_training or args.world_size > 1 or not steps:
            return
        mean, self._total, self._since = float(self._total) / steps, torch.zeros(()), state.global_step
        if not abs(mean - logged) <= TOLERANCE * abs(logged) and math.isfinite(mean - logged) and not self._told:
            self._told = True
            warnings.warn(
                f"the Trainer trains on another loss ({logged:.4g}) than the one that the model gives and the agent "
                f"looks at ({mean:.4g}): call this callback's record(loss) where it is computed, once a batch",
                stacklevel=1,
            )


class Hook:
    """What the model calls with its outputs, for one callback alone: copies of the model have hooks that do nothing."""

    def __init__(self, callback: LRControllerCallback | None = None) -> None:
        self._callback = callback

    def __call__(self, model: Any, args: Any, kwargs: Mapping[str, Any], outputs: Any) -> None:
        """Hands them on."""
        if self._callback is not None:
            self._callback._hear(model, kwargs, outputs)

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        """The controller can't be copied or pickled."""
        return Hook, ()


def _is_constant(scheduler: Any, steps: int) -> bool:
    """Whether a scheduler of the Trainer's leaves the rates alone."""
    factors = getattr(scheduler, "lr_lambdas", [])
    return bool(factors) and all(factor(step) == 1 for factor in factors for step in (0, 1, steps // 2, steps))
