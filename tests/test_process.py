"""Signals that come once, or many at a time; files that a full disk leaves whole."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from lrenv.runtime import process
from lrenv.runtime.files import append_line, json_lines, replace_file, whole_lines
from lrenv.runtime.process import SIGNALS, interruptible, status_of, uninterrupted


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Signals raise KeyboardInterrupt, as Ctrl-C does by default."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_burst_of_signals_is_one_interruption(number: signal.Signals) -> None:
    saved = []

    def work() -> None:
        try:
            signal.raise_signal(number)
        finally:
            for other in (number, *SIGNALS):
                signal.raise_signal(other)
                saved.append(other)

    with pytest.raises(KeyboardInterrupt), interruptible():
        work()
    assert saved == [number, *SIGNALS]
    assert signal.getsignal(number) is signal.default_int_handler


def test_a_signal_that_comes_later_interrupts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(process.time, "monotonic", lambda: now[0])
    with interruptible():
        for wait, raises in ((0, True), (1, False), (2.9, False), (3.1, True), (50, True)):
            now[0] += wait
            try:
                signal.raise_signal(signal.SIGINT)
                raised = False
            except KeyboardInterrupt:
                raised = True
            assert raised == raises, wait


def test_what_must_not_be_cut_short_is_not() -> None:
    done = []

    def work() -> None:
        for number, what in ((signal.SIGTERM, "written"), (signal.SIGINT, "renamed")):
            signal.raise_signal(number)
            done.append(what)

    with pytest.raises(KeyboardInterrupt), uninterrupted():
        work()
    assert done == ["written", "renamed"]
    with uninterrupted():
        pass


def test_an_error_is_not_hidden_by_waiting() -> None:
    with pytest.raises(OSError, match="full"), uninterrupted():
        raise OSError("full")


def test_what_is_ignored_stays_ignored() -> None:
    """As below nohup, or in the background of a script."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interruptible():
        signal.raise_signal(signal.SIGHUP)
        with uninterrupted():
            signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_in_another_thread_nothing_changes() -> None:
    done = []

    def work() -> None:
        with interruptible(), uninterrupted():
            done.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [signal.default_int_handler]


def test_the_status_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    def ends(error: BaseException | None) -> int:
        def work() -> None:
            if error is not None:
                raise error

        return status_of(work)

    assert [ends(error) for error in (None, ValueError("mend it"), OSError("no room"), KeyboardInterrupt("saved"))] == [
        0, 2, 2, 130,
    ]  # fmt: skip
    assert capsys.readouterr().err == "error: mend it\nerror: no room\ninterrupted: saved\n"
    with pytest.raises(RuntimeError):
        ends(RuntimeError("a defect"))


@pytest.mark.parametrize("number", SIGNALS)
def test_the_status_tells_the_signal(number: signal.Signals) -> None:
    """As a shell gives it for a process that the signal ends; the others come while the work is saved."""

    def work() -> None:
        try:
            signal.raise_signal(number)
        finally:
            for other in SIGNALS:
                signal.raise_signal(other)
            raise KeyboardInterrupt("saved")

    assert status_of(work) == 128 + number
    assert [128 + each for each in (signal.SIGINT, signal.SIGTERM)] == [130, 143]


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_what_is_kept_with_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = process.machine("numpy", "no-such-package")
    assert f"Python {platform.python_version()}, torch {torch.__version__}, lrenv {version('lrenv')}, numpy " in told
    assert "no-such-package" not in told
    assert re.search(r", \d+ cores?, 1 thread, ", told)
    monkeypatch.setattr(process, "__file__", str(tmp_path / "process.py"))
    assert process.commit() is None, "it is in no checkout"
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # where commits may have to be signed
    for name, value in (("NAME", "a"), ("EMAIL", "a@b")):
        for who in ("AUTHOR", "COMMITTER"):
            monkeypatch.setenv(f"GIT_{who}_{name}", value)
    file = tmp_path / "x"
    file.write_text("one")
    for words in (["init", "-q"], ["add", "x"], ["commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    (tmp_path / "y").write_text("git doesn't know it")
    head = process.commit()
    assert re.fullmatch("[0-9a-f]{12}", head or "")
    file.write_text("two")
    assert process.commit() == f"{head}+"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    replace_file(path, "old")
    assert path.read_text() == "old"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for owner, name in ((os, "fsync"), (os, "replace")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, full)
            with pytest.raises(OSError, match="No space"):
                replace_file(path, b"new")
        assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("x", "old")]
    replace_file(path, b"new")
    assert path.read_text() == "new"


def test_lines_are_appended_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert whole_lines(path) == []
    append_line(path, "one")
    append_line(path, "zwölf")
    assert whole_lines(path) == ["one", "zwölf"]
    inode = path.stat().st_ino
    assert whole_lines(path) == ["one", "zwölf"]
    assert path.stat().st_ino == inode, "what is whole is left alone"
    with path.open("ab") as file:
        file.write("halb ö".encode()[:-1])
    assert whole_lines(path) == ["one", "zwölf"]
    assert path.read_bytes() == "one\nzwölf\n".encode()


def test_json_lines_are_read_up_to_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert json_lines(path) == []
    first, second = '{"a": 1}\n', '{"b": [2, null]}\n'
    for torn in ("", '{"c": 3}', "\0\0\n", "[4]\n", "[" * 99_999 + "\n"):
        path.write_text(first + second + torn)
        assert json_lines(path) == [{"a": 1}, {"b": [2, None]}]
        assert path.read_text() == first + second
    for damaged, number in ((first + "x\n" + second, 2), ("[1]\n" + second, 1), ("somebody's own\n", 1)):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=f"x is damaged at line {number}$"):
            json_lines(path)
        assert path.read_text() == damaged


def test_a_full_disk_leaves_no_half_of_a_line(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "x"
    append_line(path, "a" * 999)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        with pytest.raises(OSError):  # noqa: PT011 - whichever the system says
            append_line(path, "b" * 999)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "a" * 999 + "\n"


def test_a_pipe_that_nobody_reads_ends_the_command_quietly() -> None:
    code = "import sys; from lrenv.runtime.process import status_of; sys.exit(status_of(lambda: print('much')))"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (process.UNREAD, "")
