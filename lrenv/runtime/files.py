"""Files that a kill at any moment leaves whole: written aside and renamed, or appended to by whole lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # on Windows, where two processes that write in one place are not told apart
    fcntl = None  # type: ignore[assignment]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says which file can't be written, and what to do, whatever the system calls it.

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
    """Writes a file aside and renames it: there is always the old content or the new one.

    Aside is a file whose name ends in `.partial`; the next write replaces it if this one is killed. Folders are made.

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
    with suppress(OSError):  # without it, a loss of power may bring the old file back, but no half of one
        _sync(path.parent)


def _sync(folder: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line(path: Path, line: str) -> None:
    """Appends a line that holds no line break, in one write; `whole_lines` tells whether all of it got there.

    Raises:
        OSError: the file can't be written, or the disk is full; the lines before it stay as they were.
    """
    with writing(path), path.open("ab", buffering=0) as file:
        before, content = file.tell(), line.encode() + b"\n"
        try:
            written = file.write(content)
            while written < len(content):  # a full disk takes a part, and refuses the next
                written += file.write(content[written:])
        except OSError:
            file.truncate(before)
            raise


def whole_lines(path: Path) -> list[str]:
    """Returns the lines of a file that ends with a line break each; none where there is no file.

    A write that was cut short leaves a torn last line, which the next one must not go on from: it is cut off.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        replace_file(path, whole)
    return whole.decode().split("\n")[:-1]


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the JSON objects of a file that holds one per line, as `append_line` writes them; none where there is no file.

    A last line that is torn, or that the disk lost, is cut off.

    Raises:
        OSError: the file can't be written.
        ValueError: another line holds no object, or the only one, which then is the beginning of somebody's own file.
    """
    found: list[dict[str, Any]] = []
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, 1):
        entry = _json_object(line)
        if entry is None:
            if number < len(lines) or (number == 1 and line.endswith(b"\n")):
                raise ValueError(f"{path} is damaged at line {number}")
            with writing(path):
                os.truncate(path, sum(map(len, lines[:-1])))
            break
        found.append(entry)
    return found


def _json_object(line: bytes) -> dict[str, Any] | None:
    """What a line holds; None of one that is torn or holds something else."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def lock(descriptor: int, path: Path) -> None:
    """Keeps an open file or folder for this process, until the descriptor is closed.

    Raises:
        OSError: another process has it.
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
def alone(folder: Path) -> Iterator[None]:
    """Makes a folder, and keeps it for this process within the block.

    Raises:
        OSError: it can't be made, or another process has it.
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
