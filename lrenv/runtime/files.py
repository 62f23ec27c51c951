"""Files that are whole even if the process is killed: replaced by renaming, or appended to by whole lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # on Windows, where a second process that writes to the same folder is not noticed
    fcntl = None  # type: ignore[assignment]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError of the block into one that names the file that can't be written and says what to do.

    Raises:
        OSError: the block raised one.
    """
    try:
        yield
    except OSError as error:
        raise OSError(
            f"can't write {path} ({error.strerror or error}): make room there, or choose another place"
        ) from error


def replace_file(path: Path, content: bytes | str) -> None:
    """Replaces a file in one step, so that it always has either the old content or the new one.

    The content is written to a file whose name ends in `.partial` and is then renamed; if the process is killed
    meanwhile, the next write replaces that file. Missing folders are made.

    Raises:
        OSError: the folder can't be written, or is full; the old file stays as it was.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
    with suppress(OSError):  # without it, the old file may be there after a loss of power, but no half of one
        _sync(path.parent)


def _sync(folder: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line(path: Path, line: str) -> None:
    """Appends a line, which must hold no line break, in one write; `whole_lines` leaves out one that was cut short.

    Raises:
        OSError: the file can't be written, or the disk is full; the lines before it stay as they were.
    """
    with writing(path), path.open("ab", buffering=0) as file:
        before, content = file.tell(), line.encode() + b"\n"
        try:
            written = file.write(content)
            while written < len(content):  # a full disk writes a part, and fails at the next
                written += file.write(content[written:])
        except OSError:
            file.truncate(before)
            raise


def whole_lines(path: Path) -> list[str]:
    """Returns the lines of a file that end with a line break; none where there is no file.

    A write that was cut short leaves an incomplete last line, which is removed from the file, so that the next one
    begins a line of its own.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        replace_file(path, whole)
    return whole.decode().split("\n")[:-1]


def json_lines(path: Path, keep: bool = False) -> list[dict[str, Any]]:
    """Returns the JSON objects of a file that holds one per line, as `append_line` writes them.

    Where there is no file, there are none. An incomplete or damaged last line is removed from the file.

    Args:
        path: the file.
        keep: leave the file as it is: its last line may lack the line's end, and must hold an object.

    Raises:
        OSError: the file can't be written.
        ValueError: a line before the last one holds no object, or the last one of a file that is kept; or the only line
            is whole and holds none, in which case the file was written by something else.
    """
    found: list[dict[str, Any]] = []
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, 1):
        entry = _json_object(line if not keep or line.endswith(b"\n") else line + b"\n")
        if entry is None:
            if keep or number < len(lines) or (number == 1 and line.endswith(b"\n")):
                raise ValueError(f"{path} is damaged at line {number}")
            with writing(path):
                os.truncate(path, sum(map(len, lines[:-1])))
            break
        found.append(entry)
    return found


def _json_object(line: bytes) -> dict[str, Any] | None:
    """Returns the object that a line holds; None if it is incomplete or holds something else."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def lock(descriptor: int, path: Path) -> None:
    """Locks an open file or folder for this process, until the descriptor is closed.

    Raises:
        OSError: another process has locked it.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(f"another process writes {path}; wait for it, or choose another --out") from None
    except OSError:  # a file system without locks
        return


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Makes a folder, and locks it for this process within the block.

    Raises:
        OSError: it can't be made, or another process has locked it.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)
