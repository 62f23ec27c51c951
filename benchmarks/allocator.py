"""What `lrenv.process.keep_memory` gains: `python benchmarks/allocator.py`.

Times the validation pass and a training step before and after the setting, in one process; medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import tyro

from lrenv.process import keep_memory
from lrenv.tasks import make_task
from lrenv.trainee import Trainee


def median_ms(work: Callable[[], object], repeats: int = 30) -> float:
    """Milliseconds of one call, after one that doesn't count."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)


def main(task: str = "mnist1d-mlp", envs: int = 64) -> None:
    """Prints milliseconds with the default allocator and with kept memory."""
    trainee = Trainee(make_task(task))
    state, hyper = trainee.init(range(envs)), trainee.hyper(envs)
    lr, indices = torch.full((envs, 1), 1e-3), trainee.batch_indices(state, 1)[:, 0]

    def validate() -> object:
        return trainee.evaluate(state.params, state.buffers, trainee.val)

    def step() -> object:
        return trainee.train_step(state, lr, hyper, indices)

    with torch.no_grad():
        before = median_ms(validate), median_ms(step)
        if not keep_memory():
            raise SystemExit("the C library is not glibc: nothing to set")
        after = median_ms(validate), median_ms(step)
    for name, old, new in zip(("validation", "training step"), before, after, strict=True):
        print(f"{task}, {envs} envs, {name}: {old:.1f} ms -> {new:.1f} ms, ratio {old / new:.2f}")


if __name__ == "__main__":
    tyro.cli(main)
