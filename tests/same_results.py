"""Holds the results before a change of the code against those after it, to the last digit.

    python tests/same_results.py record before.json
    python tests/same_results.py record after.json --only demo fu2017
    python tests/same_results.py compare before.json after.json --only demo fu2017

`record` runs the demo, every reproduction at `--scale smoke`, and every controller file that git knows, on two tasks.
It only calls command lines of the checkout that this file lies in, on the CPU with one thread, and imports none of the
code, so that files may move in between. A part is written as it ends, and one that the file holds is not made again:
after an interruption the same command goes on; after a change of the code, name another file.

A part's numbers are those in the files that its commands leave: results as JSON and JSON lines, the tables of
results.md, the logs of trainings, the weights of controllers. What tells durations, versions and paths is left out. The
same code gives the same numbers on one machine; another CPU or version of torch may round differently.

`compare` says of each part whether it is the same, and else how many numbers differ, the largest relative difference
and the first of them. The exit status is 1 if any differs, or if a part is missing from one of the files.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
DEMO = (
    "train_controller.py ppo --task mnist1d-mlp --episodes 1024 --val-examples 500 --reward improvement --gamma 1 "
    "--out {out}",
    "-m lrenv compare --task mnist1d-mlp --baseline linear --initial-lr 1e-2,1e-3,1e-4 "
    "--agents constant,step,linear,cosine,{out}/controller.safetensors --out {out}/compare",
)
"""The commands of `make demo`."""
REPRODUCTIONS = ("baydin2018", "fu2017", "metz2019", "metz2019_hypergradients", "micaelli2021", "xu2019")
TASKS = ("digits-mlp", "mnist1d-mlp")
"""What committed controllers act on: all of them can, and nothing has to be downloaded."""
LEFT_OUT = re.compile(r"about|machine|settings|threads|versions?|.*\b(seconds?|time)\b.*")
"""Names, columns and rows that tell durations, or what the results were made with."""
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|\binf\b|\bnan\b)", re.IGNORECASE)
SHOWN = 5
"""Differing numbers that `compare` shows of a part."""


def parts() -> dict[str, list[str]]:
    """Name -> arguments of Python, command by command, with {out} for the folder where files go."""
    found = {"demo": list(DEMO)}
    found |= {name: [f"reproductions/{name}.py --scale smoke --out {{out}}"] for name in REPRODUCTIONS}
    files = subprocess.check_output(["git", "ls-files", "*.safetensors"], cwd=ROOT, text=True).split()
    for file in files:
        # Only the end of the path counts, "metz2019/train" or "metz2019-cpu", for folders move.
        name = file.removesuffix("/controller.safetensors").rpartition("results/")[2]
        name = Path(name).stem if name == file else name
        act = f"-m lrenv compare --agents {file} --seeds 3 --budget 100 --initial-lr 1e-2,1e-3"
        found[name] = [f"{act} --task {task} --out {{out}}/{task}" for task in TASKS]
    return found


def made(commands: Sequence[str]) -> dict[str, Any]:
    """Runs a part's commands; gives file -> its numbers.

    Raises:
        RuntimeError: a command failed; the message ends with what it said.
    """
    same = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        advertise(Path(folder))
        same["PYTHONPATH"] = f"{ROOT}{os.pathsep}{folder}"
        out = Path(folder) / "out"
        for command in commands:
            argv = [sys.executable, *(word.format(out=out) for word in command.split())]
            done = subprocess.run(argv, cwd=ROOT, env=os.environ | same, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(argv)} has the exit status {done.returncode}: {done.stderr[-2000:]}")
        found = {path.relative_to(out).as_posix(): numbers(path) for path in sorted(out.rglob("*"))}
    return {name: own for name, own in found.items() if own}


def advertise(folder: Path) -> None:
    """Makes the checkout's entry points known to a Python with the folder on its path, whatever else is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = project.get("entry-points", {}).items()
    lines = [line for name, own in groups for line in (f"[{name}]", *map(" = ".join, own.items()))]
    info = folder / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    (info / "entry_points.txt").write_text("\n".join(lines))


def numbers(path: Path) -> Any:
    """The numbers in a file; None where it has none, or only those that a training goes on from."""
    if path.suffix == ".safetensors" and path.stem != "checkpoint":
        return {name: values.ravel().tolist() for name, values in sorted(load_file(path).items())}
    if path.suffix in (".json", ".jsonl"):
        text = path.read_text()
        return kept([json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text))
    if path.suffix == ".csv":
        return kept(list(csv.DictReader(path.read_text().splitlines())))
    return tables(path.read_text()) if path.suffix == ".md" else None


def kept(value: Any) -> Any:
    """JSON values without text, unless it is a number, and without what `LEFT_OUT` names."""
    if isinstance(value, dict):
        return {name: kept(own) for name, own in value.items() if not LEFT_OUT.fullmatch(name.lower())}
    if isinstance(value, list):
        return [kept(own) for own in value]
    if isinstance(value, str):
        return float(value) if NUMBER.fullmatch(value) else {}
    return value


def tables(text: str) -> list[list[float]]:
    """The numbers in each row of the tables of a Markdown text."""
    found, columns = [], None
    for line in text.lower().splitlines():
        if not line.startswith("|"):
            columns = None
            continue
        cells = line.split("|")[1:-1]
        if columns is None:
            columns = [not LEFT_OUT.fullmatch(cell.strip()) for cell in cells]
        elif not LEFT_OUT.fullmatch(cells[0].strip()):
            shown = [cell for cell, shows in zip(cells, columns, strict=True) if shows]
            found.append([float(number) for cell in shown for number in NUMBER.findall(cell)])
    return found


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Each number under the names and places that lead to it."""
    if isinstance(value, dict | list):
        for key, own in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(own, f"{name}/{key}")
    else:
        yield name, value


def differences(before: Any, after: Any) -> list[str]:
    """What differs in a part's numbers: a line of how many do, then the first ones; empty if none."""
    old, new = dict(flat(before)), dict(flat(after))
    found, largest = [], 0.0
    for name in old | new:
        if name not in old or name not in new:
            found.append(f"{name} is only {'before' if name in old else 'after'}")
            continue
        a, b = old[name], new[name]
        if a != b and not (a != a and b != b):  # NaN is unlike itself
            finite = all(x is not None and math.isfinite(x) for x in (a, b))
            largest = max(largest, abs(a - b) / max(abs(a), abs(b)) if finite else math.inf)
            found.append(f"{name}: {a!r}, then {b!r}")
    head = f"{len(found)} of {len(old | new)} numbers differ, relatively by {largest:.2g} at most"
    return [head, *found[:SHOWN]] if found else []


def moved(before: Any, after: Any) -> list[str]:
    """What is gone of the numbers of each file, wherever they stand in it: a line per file; empty if nothing is."""
    told = []
    for file in before | after:
        old, new = (Counter(repr(x) for _, x in flat(own.get(file, {}))) for own in (before, after))
        if gone := old - new:
            told.append(f"{file}: {gone.total()} of {old.total()} numbers are gone, as {', '.join(list(gone)[:SHOWN])}")
    return told


def record(file: Path, only: Sequence[str]) -> int:
    """Makes the parts that the file lacks; the exit status is 1 if any failed."""
    known, found, failed = parts(), json.loads(file.read_text()) if file.exists() else {}, False
    if unknown := [name for name in only if name not in known]:
        raise SystemExit(f"no part is called {', '.join(unknown)}; there are {', '.join(known)}")
    for name in [name for name in only or known if name not in found]:
        begin = time.monotonic()
        try:
            own = made(known[name])
        except RuntimeError as error:
            print(f"{name} failed: {error}", flush=True)
            failed = True
            continue
        seconds = round(time.monotonic() - begin, 1)
        # Read anew, for another process may have made other parts meanwhile.
        found = (json.loads(file.read_text()) if file.exists() else {}) | {name: {"seconds": seconds, "numbers": own}}
        partial = file.with_name(f"{file.name}.partial")
        partial.write_text(json.dumps(found))
        partial.replace(file)
        print(f"{name}: {len(list(flat(own)))} numbers in {seconds} s", flush=True)
    return int(failed)


def compare(before: Path, after: Path, only: Sequence[str], values: bool = False) -> int:
    """Says what differs; the exit status is 1 if anything does. `values`: names and places of numbers don't count."""
    old, new, differ = json.loads(before.read_text()), json.loads(after.read_text()), False
    for name in only or old | new:
        told = [f"missing from {file}" for file, own in ((before, old), (after, new)) if name not in own]
        told = told or (moved if values else differences)(old[name]["numbers"], new[name]["numbers"])
        print(f"{name}: " + "\n    ".join(told or ["same to the last digit"]))
        differ = differ or bool(told)
    return int(differ)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one of the two commands; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for command, files in ((record, ["file"]), (compare, ["before", "after"])):
        own = commands.add_parser(command.__name__, help=command.__doc__)
        for name in files:
            own.add_argument(name, type=Path)
        own.add_argument("--only", nargs="+", default=[], metavar="NAME", help="parts; all by default")
        if command is compare:
            own.add_argument("--values", action="store_true", help="let names and places of numbers change")
        own.set_defaults(run=command)
    chosen = vars(parser.parse_args(arguments))
    status: int = chosen.pop("run")(**chosen)
    return status


if __name__ == "__main__":
    sys.exit(main())
