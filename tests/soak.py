"""Many random decisions over every embedded task, with deaths, masked resets and snapshots, in memory that stays flat.

    python tests/soak.py --decisions 100000

Each environment has a random view, plays for a while with random actions, and is thrown away. A line of JSON for each
tenth says what happened and how much memory the process holds. The exit status is 1 if memory grew after the first.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from argparse import ArgumentParser
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from random_cases import MODES, TASKS, Case
from torch.utils._pytree import tree_leaves

from lrenv.envs.actions import KINDS
from lrenv.envs.observations import OBSERVATIONS, WHITE_BOX
from lrenv.envs.rewards import REWARDS
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.runtime.process import keep_memory
from lrenv.training.optimizers import OPTIMIZERS
from lrenv.training.tasks import Task, make_task, tasks

PLAYED = 200
"""Decisions of each environment."""
GROWTH = 48
"""MiB that the allocator may spread by after the first tenth; a leak of a kilobyte a decision is twice that."""
EMBEDDED = [task for name in tasks() if (task := make_task(name)).data in ("digits", "mnist1d") or callable(task.data)]


def resident() -> float:
    """MiB that the process holds now, or at most so far where the system doesn't tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return pages * resource.getpagesize() / 2**20


def random_case(rng: np.random.Generator) -> Case:
    """A random view of a random task, small enough for milliseconds."""
    task = [*EMBEDDED, *TASKS[:2]][rng.integers(len(EMBEDDED) + 2)]
    kind, optimizer = (str(rng.choice(sorted(names))) for names in (KINDS, OPTIMIZERS))
    known = make_task("digits-mlp", optimizer=optimizer).hyper
    beside = [name for name in known if kind != "discrete" and rng.random() < 0.3]
    interval = int(rng.integers(1, 4))
    settings: dict[str, Any] = {"optimizer": optimizer, "interval": interval, "budget": int(rng.integers(1, 40))}
    settings["batch_size"] = 1 if task.name == "two-minima" else 8
    settings["measure_interval"] = [None, interval, 3 * interval][rng.integers(3)]
    control = kind + str(rng.choice(["", "/layer", "/tensor", "/parameter"]))
    observe = rng.choice([*OBSERVATIONS, *WHITE_BOX], int(rng.integers(1, 3)), replace=False)
    view = {
        "control": (control, *beside), "observe": tuple(map(str, observe)), "reward": str(rng.choice(sorted(REWARDS))),
        "dtype": str(rng.choice(["float32", "float64"])), "autoreset_mode": str(rng.choice(MODES)),
    }  # fmt: skip
    small: Task = make_task(task, **settings, val_examples=50)
    return Case(small, view, int(rng.integers(1, 4)), int(rng.integers(2**62)), int(rng.integers(2**31)))


def stepped(envs: LearningRateVectorEnv, action: NDArray[Any], seen: Counter[str]) -> list[NDArray[Any]]:
    """One decision, checked; the numbers of the answer."""
    observation, reward, terminated, _, info = envs.step(action)
    assert envs.observation_space.contains(observation), "an observation outside its space"
    assert np.isfinite(reward).all(), "a reward that is no number"
    final = info.get("final_info", info)
    seen["deaths"] += int((final["diverged"] & terminated).sum())
    seen["episodes"] += int(terminated.sum())
    return [*tree_leaves((observation, reward, terminated)), info["lr"], info["val_loss"]]


def play(case: Case, rng: np.random.Generator, number: int, seen: Counter[str]) -> None:
    """One environment's life of that many decisions."""
    envs = case.envs()
    envs.reset(seed=case.seed)
    actions = case.actions(envs, 8, deaths=0.1)
    for _ in range(number):
        action = actions[rng.integers(len(actions))]
        chance = rng.random()
        if chance < 0.02:
            snapshot = envs.snapshot()
            first = stepped(envs, action, seen)
            envs.restore(snapshot)
            second = stepped(envs, action, Counter())
            assert all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in zip(first, second, strict=True))
            seen["snapshots"] += 1
        else:
            stepped(envs, action, seen)
        if chance > 0.97 or (case.view["autoreset_mode"] == "Disabled" and chance > 0.8):
            mask = rng.random(case.n) < 0.5
            mask[rng.integers(case.n)] = True
            envs.reset(options={"reset_mask": mask})
            seen["resets"] += 1
        seen["decisions"] += 1


def main() -> int:
    """Plays, and says how it went."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--decisions", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    keep_memory()
    rng, seen, begin = np.random.default_rng(chosen.seed), Counter[str](), time.perf_counter()
    memory: list[float] = []
    while seen["decisions"] < chosen.decisions:
        left = (len(memory) + 1) * chosen.decisions // 10 - seen["decisions"]
        case = random_case(rng)
        try:
            play(case, rng, min(PLAYED, left), seen)
        except Exception:
            print(f"after {seen['decisions']} decisions, in {case}", file=sys.stderr)
            raise
        if left <= PLAYED:
            memory.append(resident())
            seconds = round(time.perf_counter() - begin, 1)
            print(json.dumps(dict(seen) | {"rss_mib": round(memory[-1], 1), "seconds": seconds}), flush=True)
    growth = max(memory[1:]) - memory[0]
    print(json.dumps({"grew_by_mib": round(growth, 1), "allowed": GROWTH, "tasks": [task.name for task in EMBEDDED]}))
    return int(growth > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
