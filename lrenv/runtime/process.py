"""Settings of the whole process, and what signals do to it. Entry points use them; importing the package never does."""

from __future__ import annotations

import ctypes
import platform
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import gymnasium as gym
import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What asks a process to end: Ctrl-C, a scheduler, a terminal that is closed."""
GRACE_SECONDS = 3.0
"""Signals that follow one sooner than this are the same request: they must not cut short what it has begun."""
BURST_SECONDS = 0.1
"""An interrupted command waits so long for more of them before it ends: none is to hit the interpreter's shutdown."""
MENDABLE = (
    ValueError, TypeError, OSError, ImportError, MemoryError, OverflowError, gym.error.Error, torch.OutOfMemoryError,
)  # fmt: skip
"""Errors that the user can mend. Others are defects of lrenv or of the user's own code, which a traceback finds."""

Handler = Callable[[int, FrameType | None], Any]


def keep_memory() -> bool:
    """Tells glibc's allocator to keep freed memory instead of handing it back to the system.

    By default each large tensor is mapped afresh and costs a page fault for every 4 KiB; kept memory has none. On two
    cores LeNet-5 at batch 1,000 trained 1.9 times as fast in a plain loop (`benchmarks/against_loop.py`), and 64
    perceptrons were measured 1.1 times as fast (`benchmarks/allocator.py`).

    Returns:
        Whether it took effect: only where the C library is glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, (1 << 31) - 1), (M_TOP_PAD, 1 << 28))
    return all(mallopt(name, value) for name, value in settings)


def command_line() -> str:
    """What this process was started with, to be kept beside results: the program without its folder, and arguments."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def machine() -> str:
    """What this process runs on, to be kept beside results: processor, threads, card if there is one, versions."""
    card = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    threads = f"{torch.get_num_threads()} threads"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, lrenv {version('lrenv')}"
    return ", ".join([platform.machine(), threads, *card, versions])


@contextmanager
def _handled(handler: Handler) -> Iterator[None]:
    """`SIGNALS` go to the handler, but those that the process was started to ignore, as by nohup.

    Only the main thread can say what signals do; elsewhere, nothing changes.
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
def interruptible() -> Iterator[None]:
    """INT, TERM and HUP raise KeyboardInterrupt within the block, once for all that arrive at about the same time.

    So long work needs to know one way of being interrupted, and can save what it has on the way out.
    """
    last = -GRACE_SECONDS

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        again, last = now - last < GRACE_SECONDS, now
        if not again:
            raise KeyboardInterrupt

    with _handled(interrupt):
        yield


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Within the block, INT, TERM and HUP wait; the last one that came is delivered after it."""
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
        The exit status: 0, 2 after an error that the user can mend (`MENDABLE`), which is told in a line, and 130 after
        an interruption.
    """
    with interruptible():
        try:
            work()
        except MENDABLE as error:
            print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as error:
            print(f"interrupted: {error}" if str(error) else "interrupted", file=sys.stderr)
            time.sleep(BURST_SECONDS)
            return 130
    return 0
