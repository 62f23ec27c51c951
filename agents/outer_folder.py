"""The folder of a training: its checkpoint, its best controller and its log, which a kill at any moment leaves in step.

The checkpoint decides. A controller that is better than the last one lies beside it under a name of its own until the
checkpoint that knows of it is written, and then takes its place; so there is a checkpoint before there is a controller,
and no controller that the checkpoint does not know. Rows of the log beyond the checkpoint are cut off when the training
goes on: their iterations are done once more.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat
from torch import Tensor

from lrenv.benchmark import controller_file
from lrenv.files import append_line, replace_file, whole_lines
from lrenv.process import uninterrupted


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

    def start(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Writes a training's first checkpoint, and only then removes what the last training left."""
        self.save(tensors, metadata)
        for old in (self.log, *self.out.glob("events.out.tfevents.*")):
            old.unlink(missing_ok=True)

    def save(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Writes a checkpoint, and puts the controller that it knows in its place; signals wait for both.

        Raises:
            OSError: the folder can't be written, or is full; what was there before is still there.
        """
        with uninterrupted(), self._written(self.checkpoint):
            controller_file.write(self.checkpoint, tensors, metadata)
            self._settle(metadata["best_iteration"])

    def propose(self, iteration: int, save: Callable[[Path], None]) -> None:
        """Writes the best controller so far, for the checkpoint of this iteration to put in its place."""
        path = self._proposed(iteration)
        with self._written(path):
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
            with uninterrupted(), self._written(self.controller):
                controller_file.write(self.controller, tensors, metadata | marks)

    def logger(self, iteration: int) -> Logger:
        """CSV and TensorBoard logs that go on after `iteration`."""
        return Logger(str(self.out), [CSVLog(self.log, iteration), TensorBoardOutputFormat(str(self.out))])

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

    @contextmanager
    def _written(self, path: Path) -> Iterator[None]:
        """Errors in a sentence; the half of a file that a full disk took is given back."""
        try:
            yield
        except (SafetensorError, OSError) as error:
            for half in path.parent.glob(f"{path.name}*.partial"):
                half.unlink()
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise OSError(f"can't write {path} ({reason}): make room there, or choose another --out") from error


class CSVLog(KVWriter):
    """A table of what is logged, a row at a time, in the order in which columns first appear.

    Rows are appended. Where a row brings a new column, the table is written aside and renamed.

    Args:
        path: the file.
        iteration: rows of a log that is there already are kept up to this one.

    Raises:
        ValueError: the file is no such log.
    """

    def __init__(self, path: Path, iteration: int) -> None:
        self._path = path
        rows = list(csv.reader(whole_lines(path)))
        self._columns = rows.pop(0) if rows else []
        if self._columns and "iteration" not in self._columns:
            raise ValueError(f"{path} is no log of a training: move it away, or choose another --out")
        kept = [row for row in rows if int(row[self._columns.index("iteration")]) <= iteration]
        if len(kept) < len(rows):
            self._replace(kept)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Adds a row.

        Raises:
            OSError: the file can't be written, or the disk is full; the rows before it stay as they were.
        """
        new = [name for name in key_values if name not in self._columns]
        row = [str(key_values.get(name, "")) for name in self._columns + new]
        if not new:
            append_line(self._path, _line(row))
            return
        rows = list(csv.reader(whole_lines(self._path)))[1:]
        self._columns += new
        self._replace([*rows, row])

    def close(self) -> None:
        """Nothing is held open."""

    def _replace(self, rows: list[list[str]]) -> None:
        width = len(self._columns)
        table = [self._columns, *(row + [""] * (width - len(row)) for row in rows)]
        replace_file(self._path, "".join(_line(row) + "\n" for row in table))


def _line(row: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(row)
    return text.getvalue()
