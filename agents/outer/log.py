"""Logs of trainings that survive a kill: a table, and TensorBoard's events."""

from __future__ import annotations

import csv
import io
import math
import os
import time
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from lrenv.runtime.files import append_line, replace_file, whole_lines, writing


class CSVLog(KVWriter):
    """A table of what is logged, a row per iteration, in the order in which columns first appear.

    Rows are appended. Where a row has a new column, the table is written aside and renamed.

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
        kept = [row for row in rows if self._iteration(row) <= iteration]
        if len(kept) < len(rows):
            self._replace(kept)

    def _iteration(self, row: list[str]) -> float:
        """Gives the iteration of a row; infinity for one that was cut or changed, so that it is not kept."""
        place = self._columns.index("iteration")
        return int(row[place]) if len(row) == len(self._columns) and row[place].isdecimal() else math.inf

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
        """Does nothing: no file is held open."""

    def _replace(self, rows: list[list[str]]) -> None:
        width = len(self._columns)
        table = [self._columns, *(row + [""] * (width - len(row)) for row in rows)]
        replace_file(self._path, "".join(_line(row) + "\n" for row in table))


def _line(row: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(row)
    return text.getvalue()


class EventLog(KVWriter):
    """TensorBoard's events, written in this thread: TensorBoard's own writer has a thread, whose failures are silent.

    Args:
        out: the folder; each command of a training writes a file of its own there.
        iteration: what earlier commands logged is shown up to this one.
    """

    def __init__(self, out: Path, iteration: int) -> None:
        self._path = out / f"events.out.tfevents.{time.time():.6f}.{os.getpid()}"
        with writing(self._path):
            self._file = self._path.open("ab")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        self._write(step=iteration + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Adds the numbers of an iteration.

        Raises:
            OSError: the file can't be written, or the disk is full.
        """
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in key_values.items()]
        self._write(step=step, summary=Summary(value=values))

    def close(self) -> None:
        """Closes the file."""
        with writing(self._path):
            self._file.close()

    def _write(self, **fields: Any) -> None:
        with writing(self._path):
            self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())
            self._file.flush()
