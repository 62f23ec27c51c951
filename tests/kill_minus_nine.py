"""Kills commands at random moments and lets them go on: `python tests/kill_minus_nine.py --kills 20`.

Every command is killed with SIGKILL that many times, at moments spread over the whole of an undisturbed run, the first
second among them, and then started again, resumed where there is something to resume, until it ends. What it leaves
must be what the undisturbed run left, to the last bit, and no half of a file beside it.

Processes are forked from one that has imported everything, so that moments fall on the work and not on the imports;
`--spawn` starts each one afresh, as a user does.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
VOLATILE = ("seconds",)
"""Fields of results that say how long something took; in logs, those with `time` in their name."""


class Command(NamedTuple):
    """A command that writes to the folder `out` below the working directory."""

    script: str
    arguments: str
    resume: bool = True
    """Whether it goes on with --resume; else by the same command again."""


SMALL = "--device cpu --out out --eval-seeds 2"
COMMANDS = {
    "ppo": Command(
        "train_controller.py",
        f"ppo {SMALL} --task digits-mlp --budget 60 --interval 10 --envs 8 --episodes 80 --epochs 3 --eval-every 2",
    ),
    "ppo, LSTM": Command(
        "train_controller.py",
        f"ppo {SMALL} --lstm --task digits-mlp --budget 60 --interval 10 --envs 8 --episodes 64 --epochs 2",
    ),
    "noh": Command(
        "train_controller.py",
        f"noh {SMALL} --task digits-logreg --budget 100 --unroll 5 --meta-iterations 3 --hidden 6 --eval-every 2",
    ),
    "learned optimizer": Command(
        "train_controller.py",
        f"learned-optimizer {SMALL} --task digits-mlp --budget 60 --interval 10 --first-unroll 10 --updates 24 "
        "--workers 2 --hidden 8 --val-examples 100 --eval-every 4 --network mlp --widths 4,8 --classes 3",
    ),
    "fds": Command(
        "train_controller.py", f"fds {SMALL} --task digits-mlp --budget 60 --trainees 2 --outer-steps 8 --segments 3"
    ),
    "random search": Command(
        "train_controller.py",
        f"fds {SMALL} --method random --task digits-mlp --budget 100 --trainees 8 --outer-steps 12 --eval-every 3",
    ),
    "micaelli2021": Command("reproductions/micaelli2021.py", "--scale smoke --out out --device cpu", resume=False),
    "fu2017": Command("reproductions/fu2017.py", "--scale smoke --out out", resume=False),
    "lrenv compare": Command(
        "lrenv/__main__.py",
        "compare --device cpu --out out --task digits-logreg --budget 60 --seeds 3 --agents constant,linear,adam-hd",
        resume=False,
    ),
}
"""What is killed. Another command needs a line here: one that goes on by itself has `resume=False`."""


class Ended(NamedTuple):
    """A process that is no more."""

    status: int  # negative: killed by this signal
    said: str


class Outcome(NamedTuple):
    """How a command stood its kills."""

    command: str
    seconds: float  # of the undisturbed run
    kills: int
    too_late: int  # it had ended by itself
    equal: int
    halves: int
    differences: list[str]


@contextmanager
def started(command: Command, folder: Path, spawn: bool, resume: bool = False) -> Iterator[int]:
    """The process id of the command, which runs in a folder and writes what it says to `said`."""
    argv = [str(ROOT / command.script), *command.arguments.split(), *["--resume"] * resume]
    with (folder / "said").open("wb") as said:
        if spawn:
            environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'reproductions'}"}
            process = subprocess.Popen(
                [sys.executable, *argv], cwd=folder, stdout=said, stderr=said, env=environment, start_new_session=True
            )
            yield process.pid
            process.returncode = process.returncode or 0  # it was waited for by its id
            return
        child = os.fork()
        if child == 0:
            status = 70
            try:
                os.setsid()
                os.chdir(folder)
                for descriptor in (1, 2):
                    os.dup2(said.fileno(), descriptor)
                sys.argv = argv
                sys.path.insert(0, str(ROOT / "reproductions"))
                runpy.run_path(argv[0], run_name="__main__")
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 0
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        yield child


def run(command: Command, folder: Path, spawn: bool, resume: bool = False, kill_after: float | None = None) -> Ended:
    """Runs a command to its end, or kills it after some seconds."""
    with started(command, folder, spawn, resume) as pid:
        status = None
        end = None if kill_after is None else time.monotonic() + kill_after
        while status is None and end is not None:
            found, code = os.waitpid(pid, os.WNOHANG)
            status = code if found else None
            if status is None and time.monotonic() >= end:
                os.kill(pid, signal.SIGKILL)
                end = None
            elif status is None:
                time.sleep(0.001)
        status = os.waitpid(pid, 0)[1] if status is None else status
    return Ended(os.waitstatus_to_exitcode(status), (folder / "said").read_text(errors="replace"))


def ended(command: Command, folder: Path, spawn: bool, plain_first: bool) -> Ended:
    """Lets a killed command go on, as its user does: by the same command again, or by --resume."""
    if not command.resume:
        return run(command, folder, spawn)
    tries = (False, True) if plain_first else (True, False)
    found = run(command, folder, spawn, tries[0])
    refused = found.status == 2 and ("--resume" in found.said or "nothing to resume" in found.said)
    return run(command, folder, spawn, tries[1]) if refused else found


def without_durations(value: Any) -> Any:
    """JSON values without how long something took, however deep."""
    if isinstance(value, dict):
        return {name: without_durations(x) for name, x in value.items() if name not in VOLATILE}
    return value


def left(out: Path) -> dict[str, Any]:
    """What a command left, but for durations, the figures, and TensorBoard's events."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_dir() or "tfevents" in name or path.suffix == ".png":
            continue
        if path.suffix == ".csv":
            with path.open() as file:
                found[name] = [{k: x for k, x in row.items() if "time" not in k} for row in csv.DictReader(file)]
        elif path.suffix == ".jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [without_durations(line) for line in lines if "origin" not in line]  # one more per command
        elif path.suffix == ".md":
            found[name] = ""  # drawn from the lines above; may tell durations
        else:
            found[name] = path.read_bytes()
    return found


def halves(out: Path) -> list[str]:
    """Files that were not written to their end, or that wait for something."""
    found = [path for pattern in ("*.partial", "controller-after-*") for path in out.rglob(pattern)]
    tables = [path for pattern in ("*.csv", "*.jsonl") for path in out.rglob(pattern)]
    found += [path for path in tables if not path.read_bytes().endswith(b"\n")]
    return [str(path.relative_to(out)) for path in found]


def tried(name: str, kills: int, seed: int, spawn: bool) -> Outcome:
    """Kills a command so many times, each time a new run of it."""
    command, moments = COMMANDS[name], random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        whole.mkdir()
        begin = time.monotonic()
        undisturbed = run(command, whole, spawn)
        seconds = time.monotonic() - begin
        assert undisturbed.status == 0, undisturbed.said
        expected = left(whole / "out")
        too_late = equal = broken = 0
        differences: list[str] = []
        for kill in range(kills):
            folder = Path(place) / str(kill)
            folder.mkdir()
            # Spread over the run, and the first of them over its first second.
            within = min(1.0, seconds) if kill < max(1, kills // 5) else seconds
            moment = moments.uniform(0, within)
            first = run(command, folder, spawn, kill_after=moment)
            too_late += first.status != -signal.SIGKILL
            last = first if first.status == 0 else ended(command, folder, spawn, kill % 2 == 0)
            assert last.status == 0, f"{name}, killed after {moment:.3f} s: {last.said}"
            found, torn = left(folder / "out"), halves(folder / "out")
            broken += len(torn)
            equal += found == expected
            if found != expected or torn:
                apart = [key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)]
                differences.append(f"{name}, killed after {moment:.3f} s: {', '.join(apart + torn)}")
    return Outcome(name, seconds, kills, too_late, equal, broken, differences)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table of counts; the exit status is 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--only", default=",".join(COMMANDS).replace(", ", " "), help="commands, separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--spawn", action="store_true", help="start each process afresh")
    chosen = parser.parse_args(arguments)
    names = {name.replace(", ", " "): name for name in COMMANDS}
    if not chosen.spawn:
        imported()
    print("| command | seconds | kills | had ended | equal to the last bit | half-written files |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    failed = []
    for name in chosen.only.split(","):
        outcome = tried(names[name], chosen.kills, chosen.seed, chosen.spawn)
        failed += outcome.differences
        counts = (outcome.kills, outcome.too_late, outcome.equal, outcome.halves)
        print(f"| {outcome.command} | {outcome.seconds:.1f} | {' | '.join(map(str, counts))} |", flush=True)
    print("\n".join(failed))
    return bool(failed)


def imported() -> None:
    """Imports what the commands import, before anything is computed and any thread is started."""
    sys.path[:0] = [str(ROOT), str(ROOT / "reproductions")]
    import torch

    torch.set_num_threads(1)
    import fu2017
    import micaelli2021
    from lrenv import cli
    from lrenv.agents.learned_optimizer import training as learned_optimizer_training
    from lrenv.agents.ppo import training as ppo_learner

    assert all((fu2017, micaelli2021, learned_optimizer_training, ppo_learner, cli))


if __name__ == "__main__":
    sys.exit(main())
