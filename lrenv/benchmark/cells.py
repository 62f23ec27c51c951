"""The cells of a comparison in a file: what is finished is kept, and run again the comparison goes on from there.

A cell is a batch of runs. The file holds JSON lines: a header with everything that results depend on, then a line per
cell, appended as the cell ends and brought to the disk. A process that dies loses the cell at work and nothing else: a
last line that is torn is cut off, and its cell runs again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lrenv.benchmark.evaluation import ARRAYS, Result
from lrenv.runtime.files import append_line, json_lines, lock, writing
from lrenv.runtime.json_values import json_value

OWN = ("agent", "task", "metric", "seconds", "view")
"""The attributes of a `Result` that belong to all of its runs."""
FORMAT, VERSION = "lrenv-comparison", 2


class Cells:
    """Results by cell, kept in a file; a context manager that closes it.

    Args:
        path: the file; made, and its folder with it, if it isn't there.
        settings: everything that results depend on, as JSON values.
        about: what else is worth keeping of the first run, as JSON values.
        beside: files that belong to a comparison in the same folder.
        overwrite: discard the file and those beside it.

    Attributes:
        about: that of the run which began the file.

    Raises:
        FileExistsError: the file holds a comparison with other settings, or other results are beside it.
        OSError: the file can't be written, or another process writes it.
        ValueError: the file is damaged in its midst, or something else.
    """

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        about: dict[str, Any],
        beside: Iterable[Path] = (),
        overwrite: bool = False,
    ) -> None:
        self.path, self.about, self._overwrite = path, about, overwrite
        self._results: dict[str, Result] = {}
        if not overwrite and not path.exists() and (found := [old.name for old in beside if old.exists()]):
            raise FileExistsError(
                f"{path.parent} holds {', '.join(found)} of another program or version; choose another --out, or add "
                "--overwrite to replace them"
            )
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            lock(self._file, path)
            if overwrite:
                os.ftruncate(self._file, 0)
                for old in beside:
                    old.unlink(missing_ok=True)
            self._begin(settings)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._file)

    def __len__(self) -> int:
        return len(self._results)

    @property
    def told(self) -> str:
        """What to say to somebody who interrupts."""
        return (
            f"{len(self)} finished cells are saved in {self.path}; the same command goes on from there"
            + ", without --overwrite" * self._overwrite
        )

    def once(self, key: dict[str, Any], run: Callable[[], Result]) -> Result:
        """Returns the result of the cell `key` from the file, or else that of `run`, which the file then holds."""
        name = json.dumps(key, sort_keys=True)
        if name not in self._results:
            result = run()
            self._append({"cell": key, "result": encoded(result)})
            self._results[name] = result
        return self._results[name]

    def _begin(self, settings: dict[str, Any]) -> None:
        """Reads what is there, cuts off a torn end, and writes the header of a new file."""
        # What a reader of JSON would make of them: tuples are lists, and so on.
        settings = json.loads(json.dumps(settings))
        try:
            found = json_lines(self.path)
        except ValueError as error:
            raise ValueError(f"{error}; --overwrite starts anew") from error
        if not found:
            self._append({"format": FORMAT, "version": VERSION, "settings": settings, "about": self.about})
            return
        header, *entries = found
        self._agree(header, settings)
        self.about = header["about"]
        for number, entry in enumerate(entries, 2):
            try:
                self._results[json.dumps(entry["cell"], sort_keys=True)] = decoded(entry["result"])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                told = f"{self.path} is damaged at line {number} ({error!r}); --overwrite starts anew"
                raise ValueError(told) from error

    def _agree(self, header: dict[str, Any], settings: dict[str, Any]) -> None:
        """Raises FileExistsError where the file's settings are others."""
        if header.get("format") != FORMAT or not isinstance(header.get("settings"), dict) or "about" not in header:
            raise ValueError(f"{self.path} is no comparison of lrenv's; choose another --out, or add --overwrite")
        before = header["settings"]
        if "contents" in settings:  # earlier versions didn't look at data that come from files
            before = {"contents": settings["contents"]} | before
        if header.get("version") != VERSION:
            before = before | {"format": header.get("version")}
            settings = settings | {"format": VERSION}
        names = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
        if names:
            told = "; ".join(_difference(name, before.get(name), settings.get(name)) for name in names)
            raise FileExistsError(
                f"{self.path.parent} holds a comparison with other settings: {told}. Choose another --out, or add "
                "--overwrite to discard it"
            )

    def _append(self, entry: dict[str, Any]) -> None:
        """Writes a line to the end of the file and to the disk."""
        append_line(self.path, json.dumps(entry, allow_nan=False))
        with writing(self.path):
            os.fsync(self._file)


def encoded(result: Result) -> dict[str, Any]:
    """Returns a result as JSON values that `decoded` makes the same result of, bit for bit."""
    arrays = {name: _encoded(getattr(result, name)) for name in ARRAYS}
    curves = {name: _encoded(curve) for name, curve in result.curves.items()}
    own = {name: getattr(result, name) for name in OWN}
    return own | arrays | {"curves": curves}


def decoded(values: dict[str, Any]) -> Result:
    """Returns the result that `encoded` made these values of."""
    arrays: dict[str, Any] = {name: _decoded(values[name]) for name in ARRAYS}
    curves = {name: _decoded(curve) for name, curve in values["curves"].items()}
    own = {name: values[name] for name in OWN}
    own["view"] = {name: tuple(x) if isinstance(x, list) else x for name, x in values["view"].items()}
    return Result(**own, **arrays, curves=curves)


def _encoded(array: NDArray[Any]) -> dict[str, Any]:
    return {"dtype": str(array.dtype), "values": json_value(array.tolist(), exact=True)}


def _decoded(values: dict[str, Any]) -> NDArray[Any]:
    return np.array(values["values"], np.dtype(values["dtype"]))


def _difference(name: str, before: Any, now: Any) -> str:
    """What differs in a setting, told by its parts where it has some."""
    if isinstance(before, dict) and isinstance(now, dict):
        parts = [part for part in {**before, **now} if before.get(part) != now.get(part)]
        return "; ".join(_difference(f"{name}'s {part}", before.get(part), now.get(part)) for part in parts)
    return f"{name} {json.dumps(before)}, now {json.dumps(now)}"
