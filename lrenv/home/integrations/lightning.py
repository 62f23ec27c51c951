"""A `Callback` of PyTorch Lightning that lets an agent drive the learning rate.

from lrenv.home.integrations.lightning import LRControllerCallback

trainer = L.Trainer(max_epochs=10, callbacks=[LRControllerCallback("linear:peak=0.01")])
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from lrenv.home.integrations.callback import ControllerCallback
from lrenv.home.processes import is_first
from lrenv.home.stepping import loss_of

try:
    from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
except ModuleNotFoundError as missing:
    try:
        from pytorch_lightning.callbacks import Callback, GradientAccumulationScheduler
    except ModuleNotFoundError:
        sentence = "this needs PyTorch Lightning: pip install 'lrenv[lightning]'"
        raise ModuleNotFoundError(sentence, name="lightning") from missing


class LRControllerCallback(ControllerCallback, Callback):  # type: ignore[misc]  # the package may be missing
    """Drives the rates of a LightningModule's optimizer; see `ControllerCallback` for what it takes.

    `configure_optimizers` gives the optimizer alone, without a scheduler. Steps of the optimizer are counted, whatever
    `accumulate_grad_batches` is; those that a gradient scaler skips are not, though `trainer.global_step` counts them.
    The loss of a step is the mean over its batches. The controller's state is in the Trainer's checkpoints.

    Raises:
        ValueError: as training begins: the module has not one optimizer, optimizes by hand, or has a scheduler that
            sets the rates, too; or the agent needs what there is not.
    """

    _loaded: tuple[int, dict[str, Any]] | None = None
    _steps = 0
    _started = False
    _loss: Any = None

    @property
    def state_key(self) -> str:
        """What the state is found by in a checkpoint: a shadow and what drives may stand side by side."""
        return str(self._generate_state_key(shadow=self._shadow))

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keeps what a checkpoint that training goes on from holds, until there is an optimizer."""
        if trainer.state.fn == "fit":
            self._loaded = checkpoint["global_step"], checkpoint.get("callbacks", {}).get(self.state_key, {})

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Makes the controller, before the optimizer's state is loaded: groups that it splits are there by then."""
        # A trainer that has fitted before goes on counting, with a new optimizer.
        loaded, self._loaded = self._loaded, None
        done, state = loaded or (trainer.global_step, self.state_dict())
        if not pl_module.automatic_optimization:
            raise ValueError(
                "this LightningModule optimizes by hand (automatic_optimization=False): make an lrenv.LRController "
                "for each optimizer in it, and call its step(loss) after optimizer.step()"
            )
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"an agent drives one optimizer, and this LightningModule has {len(trainer.optimizers)}: give one in "
                "configure_optimizers"
            )
        if trainer.lr_scheduler_configs and not self._shadow:
            names = ", ".join(type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs)
            raise ValueError(
                f"configure_optimizers gives a scheduler, which sets the rates, too ({names}): give the optimizer "
                "alone, or pass shadow=True to watch what the agent would do"
            )
        # Where a GradientAccumulationScheduler changes the batches of a step, the Trainer's number is another one.
        changes = any(isinstance(x, GradientAccumulationScheduler) and len(x.scheduling) > 1 for x in trainer.callbacks)
        steps = None if changes or self._horizon is not None else trainer.estimated_stepping_batches
        known = None if steps is None or steps < 0 or math.isinf(steps) else int(steps)
        saved = state.get("controller") if done else None
        if loaded and saved is not None and state.get("steps", done) != done and is_first():
            warnings.warn(
                f"the checkpoint is of step {done}, and this callback had counted {state['steps']} when another one "
                "saved it, behind which the agent stays: put this callback before those that save",
                stacklevel=1,
            )
        self._begin(trainer.optimizers[0], pl_module, known, done, saved)
        self._started, self._loss = False, None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begins to count, with the optimizer's state and the data at hand."""
        self._steps = trainer.global_step
        self._extend()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Keeps the loss of a batch of the first step."""
        if not self._started:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            self._loss = loss_of(loss) / (1.0 if scaler is None else scaler.get_scale())

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Lets the agent decide before the first step, with the loss of the first batches."""
        if not self._started and self._loss is not None:
            self._started = True
            assert self.controller is not None
            whole = self._loss * trainer.accumulate_grad_batches
            self.controller.start(torch.stack([*(x.to(whole) for x in self._losses), whole]).mean())

    def _measured(self, model: Any) -> Any:
        with model.trainer.precision_plugin.forward_context():
            return super()._measured(model)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Counts a step, if one was taken."""
        if isinstance(outputs, Mapping) and "loss" in outputs:
            # Lightning divides losses by the number of batches of a step, though the last step of an epoch has fewer.
            self._record(outputs["loss"] * trainer.accumulate_grad_batches)
        if trainer.global_step != self._steps:
            self._steps = trainer.global_step
            loss = self._taken()
            assert self.controller is not None
            # Where training_step gave no loss, there are no gradients, though the optimizer was called.
            self.controller.step(0.0 if loss is None else loss, stepped=False if loss is None else None)

    def state_dict(self) -> dict[str, Any]:
        """What goes into a checkpoint."""
        return {} if self.controller is None else {"controller": self.controller.state_dict(), "steps": self._steps}

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Saves the losses of all processes: each is asked for its state, and that of the first is saved.

        A process that has failed saves alone, and what it has.
        """
        if self.controller is not None and trainer.state.status != "interrupted":
            self.controller.average_losses()
            checkpoint.get("callbacks", {})[self.state_key] = self.state_dict()
