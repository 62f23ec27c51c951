"""Settings and signals of the whole process. Entry points use them; importing the package never does."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

import gymnasium as gym
import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that ask a process to end: by Ctrl-C, a scheduler, or a terminal that is closed."""
GRACE_SECONDS = 3.0
"""The time within which further signals are the same request; they must not interrupt the saving that it has begun."""
BURST_SECONDS = 0.1
"""The time that an interrupted command waits for more signals, so that none arrives in the interpreter's shutdown."""
UNREAD = 141
"""The exit status where a pipe's reader has left: 128 and the number of SIGPIPE, as shells have it of other tools."""
MENDABLE = (
    ValueError, TypeError, OSError, ImportError, MemoryError, OverflowError, gym.error.Error, torch.OutOfMemoryError,
)  # fmt: skip
"""The errors that the user can correct; others are defects of lrenv or of the user's own code, and show a traceback."""

Handler = Callable[[int, FrameType | None], Any]


def keep_memory() -> bool:
    """Makes glibc's allocator keep freed memory instead of returning it to the system.

    By default each large tensor is mapped anew, with a page fault per 4 KiB; memory that is kept has none. On two cores
    LeNet-5 at batch 1,000 trained 1.9 times as fast in a plain loop (`benchmarks/against_loop.py`), and 64 perceptrons
    were measured 1.1 times as fast (`benchmarks/allocator.py`).

    Returns:
        Whether it took effect, which it does only where the C library is glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, (1 << 31) - 1), (M_TOP_PAD, 1 << 28))
    return all(mallopt(name, value) for name, value in settings)


def command_line() -> str:
    """Returns this process's program, without its folder, and arguments, to be kept with results."""
    program = Path(sys.argv[0])
    # `python -m lrenv` is the command `lrenv`.
    return shlex.join([program.parent.name if program.name == "__main__.py" else program.name, *sys.argv[1:]])


def machine(*packages: str) -> str:
    """Returns processor, cores, number of threads, GPU if there is one, and versions, to be kept with results.

    Args:
        packages: others whose versions are told, where they are installed.
    """
    cpuinfo = Path("/proc/cpuinfo")  # of Linux; elsewhere the name is seldom known
    model = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    processor = model[1] if model else platform.processor()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    installed = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    for package in ("lrenv", *packages):
        with suppress(PackageNotFoundError):
            installed.append(f"{package} {version(package)}")
    parts = (processor, platform.machine(), _counted(cores, "core"), _counted(torch.get_num_threads(), "thread"), card)
    return ", ".join([part for part in parts if part] + installed)


def _counted(number: int | None, unit: str) -> str:
    return f"{number} {unit}{'s' * (number != 1)}"


def commit() -> str | None:
    """Returns the commit of the checkout that this code is in, to be kept with results; None outside of one.

    Returns:
        Twelve digits, and a "+" behind them if files differ from the commit; files that git doesn't know don't count.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + "+" * bool(changed.stdout.strip())


@contextmanager
def _handled(handler: Handler) -> Iterator[None]:
    """Sets the handler of `SIGNALS` within the block, but not of those that are ignored, as after nohup.

    Only the main thread can set handlers; in others, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Makes INT, TERM and HUP raise KeyboardInterrupt within the block, once for all within `GRACE_SECONDS`.

    So there is one kind of interruption, after which a long computation can save its state.

    Yields:
        The signals that have interrupted the block so far.
    """
    last = -GRACE_SECONDS
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        again, last = now - last < GRACE_SECONDS, now
        if not again:
            came.append(number)
            raise KeyboardInterrupt

    with _handled(interrupt):
        yield came


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delays INT, TERM and HUP to the end of the block, where the last one that came is delivered."""
    came: list[int] = []
    try:
        with _handled(lambda number, frame: came.append(number)):
            yield
    finally:
        if came:
            signal.raise_signal(came[-1])


def status_of(work: Callable[[], Any]) -> int:
    """Does the work of a command.

    Returns:
        The exit status: 0, `UNREAD` where standard output is a pipe that nobody reads any more, 2 after an error that
        the user can correct (`MENDABLE`), which is printed in one line, and after an interruption 128 and the number of
        the signal, as shells have it: 130 after INT, also where none came.
    """
    with interruptible() as came:
        try:
            work()
            print(end="", flush=True)
        except BrokenPipeError:
            # Who read the output, such as `head`, has left. What is still to be written must not fail at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return UNREAD
        except MENDABLE as error:
            print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as error:
            print(f"interrupted: {error}" if str(error) else "interrupted", file=sys.stderr)
            time.sleep(BURST_SECONDS)
            return 128 + (came[-1] if came else signal.SIGINT)
    return 0
