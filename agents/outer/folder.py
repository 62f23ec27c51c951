"""The folder of a training: its checkpoint, its best controller and its log, which agree wherever a kill comes.

The checkpoint decides. A better controller is written first, under a name with its iteration; then comes the checkpoint
that names this iteration; then the controller is renamed to controller.safetensors. So there is a checkpoint before
there is a controller, and no controller that the checkpoint does not name. Rows of the log beyond the checkpoint are
removed when the training goes on: their iterations are done once more.
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
    """The files of a training.

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
        """Whether the folder holds anything that starting anew would lose."""
        if self.controller.exists() or self.log.exists():
            return True
        return self.checkpoint.exists() and bool(controller_file.read_metadata(self.checkpoint).get("iteration"))

    def discard_logs(self) -> None:
        """Removes the logs of an earlier training, once the first checkpoint of another has taken its place."""
        for old in (self.log, *self.out.glob("events.out.tfevents.*")):
            old.unlink(missing_ok=True)

    def save(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Writes a checkpoint, and renames the controller that it names; signals wait for both.

        Raises:
            OSError: the folder can't be written, or is full; what was there before is still there.
        """
        with uninterrupted():
            controller_file.write(self.checkpoint, tensors, metadata)
            self._settle(metadata["best_iteration"])

    def propose(self, iteration: int, save: Callable[[Path], None]) -> None:
        """Writes the best controller so far, under the name that it has until the checkpoint is written."""
        path = self._proposed(iteration)
        save(path)

    def settle(self, best_iteration: int | None) -> None:
        """Renames the controller of a checkpoint, where a kill kept that from happening.

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
        """Marks the controller as that of a finished training, with the number of trainees that it took."""
        tensors, metadata = controller_file.read(self.controller)
        marks = {"finished": True, "runs": runs}
        if any(metadata.get(name) != mark for name, mark in marks.items()):
            with uninterrupted():
                controller_file.write(self.controller, tensors, metadata | marks)

    def logger(self, iteration: int) -> Logger:
        """Opens the CSV and TensorBoard logs, which go on after `iteration`."""
        return Logger(str(self.out), [CSVLog(self.log, iteration), EventLog(self.out, iteration)])

    def _proposed(self, iteration: int) -> Path:
        return self.out / f"controller-after-{iteration}.safetensors"

    def _settle(self, best_iteration: int | None) -> None:
        """Renames the controller that the checkpoint names, and removes others that were not renamed."""
        if best_iteration is None:
            self.controller.unlink(missing_ok=True)
        elif (waiting := self._proposed(best_iteration)).exists():
            os.replace(waiting, self.controller)
        for other in self.out.glob("controller-after-*"):
            other.unlink()
