"""The folder of a training: its checkpoint, its best controller and its log, which a kill at any moment leaves in step.

The checkpoint decides. A controller that is better than the last one lies beside it under a name of its own until the
checkpoint that knows of it is written, and then takes its place; so there is a checkpoint before there is a controller,
and no controller that the checkpoint does not know. Rows of the log beyond the checkpoint are cut off when the training
goes on: their iterations are done once more.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import Logger
from torch import Tensor

from lrenv.agents.outer.log import CSVLog, EventLog
from lrenv.controllers import controller_file
from lrenv.runtime.process import uninterrupted


class Folder:
    """Where a training keeps what it has.

    Args:
        out: the folder; it need not exist.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.checkpoint = out / "checkpoint.safetensors"
        self.controller = out / "controller.safetensors"
        self.log = out / "progress.csv"

    @property
    def begun(self) -> bool:
        """Whether anything has been done here that starting anew would lose."""
        if self.controller.exists() or self.log.exists():
            return True
        return self.checkpoint.exists() and bool(controller_file.read_metadata(self.checkpoint).get("iteration"))

    def discard_logs(self) -> None:
        """Removes the logs of an earlier training, once the first checkpoint of another has taken its place."""
        for old in (self.log, *self.out.glob("events.out.tfevents.*")):
            old.unlink(missing_ok=True)

    def save(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Writes a checkpoint, and puts the controller that it knows in its place; signals wait for both.

        Raises:
            OSError: the folder can't be written, or is full; what was there before is still there.
        """
        with uninterrupted():
            controller_file.write(self.checkpoint, tensors, metadata)
            self._settle(metadata["best_iteration"])

    def propose(self, iteration: int, save: Callable[[Path], None]) -> None:
        """Writes the best controller so far, for the checkpoint of this iteration to put in its place."""
        path = self._proposed(iteration)
        save(path)

    def settle(self, best_iteration: int | None) -> None:
        """Puts the controller of a checkpoint in its place, where a kill kept that from happening.

        Raises:
            FileNotFoundError: the controller is not there, or is another one.
        """
        self._settle(best_iteration)
        if best_iteration is None:
            return
        held = controller_file.read_metadata(self.controller) if self.controller.exists() else {}
        if held.get("iteration") != best_iteration:
            raise FileNotFoundError(
                f"{self.controller} is not the controller of iteration {best_iteration}, which {self.checkpoint} goes "
                "with: put it back, or start anew with --overwrite"
            )

    def finish(self, runs: dict[str, int]) -> None:
        """Marks the controller as the outcome of a training that has ended, and says what that cost."""
        tensors, metadata = controller_file.read(self.controller)
        marks = {"finished": True, "runs": runs}
        if any(metadata.get(name) != mark for name, mark in marks.items()):
            with uninterrupted():
                controller_file.write(self.controller, tensors, metadata | marks)

    def logger(self, iteration: int) -> Logger:
        """CSV and TensorBoard logs that go on after `iteration`."""
        return Logger(str(self.out), [CSVLog(self.log, iteration), EventLog(self.out, iteration)])

    def _proposed(self, iteration: int) -> Path:
        return self.out / f"controller-after-{iteration}.safetensors"

    def _settle(self, best_iteration: int | None) -> None:
        """Of the controllers that wait, that of the checkpoint takes its place; it does not know the others."""
        if best_iteration is None:
            self.controller.unlink(missing_ok=True)
        elif (waiting := self._proposed(best_iteration)).exists():
            os.replace(waiting, self.controller)
        for other in self.out.glob("controller-after-*"):
            other.unlink()
