"""Checks and timings of lrenv on a CUDA card: `python benchmarks/gpu_check.py`.

Each part stands alone (`--part speed`) and takes half a minute to two on an H100, most of it in compilers. Results are
appended to `--out` as JSON lines as they come, and are shown as tables at the end. A part that fails is reported, the
others go on, and the command exits with 1. `--dry-run` runs everything that needs no card on the CPU, with tiny sizes.

Images are random numbers in the shapes of Fashion-MNIST and CIFAR-10: speed doesn't depend on what they show.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch._C._autograd import DeviceType
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.profiler import ProfilerActivity, profile

from loops import modules
from lrenv.agents.outer.gradient_estimators import ESTIMATORS, perturbations, sampled
from lrenv.agents.ppo.settings import PPOSettings
from lrenv.agents.ppo.training import PPOTraining
from lrenv.data import Data, Split
from lrenv.envs.episode import Episode
from lrenv.envs.vector_env import LearningRateVectorEnv
from lrenv.networks.architectures import lenet5, resnet18
from lrenv.runtime.compiling import Compile
from lrenv.runtime.process import commit, keep_memory
from lrenv.training.hypergradients import forward
from lrenv.training.tasks import Task, make_task
from lrenv.training.trainee import Trainee
from throughput import clocked

MODES: dict[str, Compile] = {"eager": False, "captured": "graph", "compiled": True}
Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Settings:
    """The settings: what to check."""

    part: tuple[str, ...] = ()
    """The parts to run; all of them by default."""
    out: Path = Path("runs/gpu_check.jsonl")
    """Where results are appended, a line each."""
    dry_run: bool = False
    """On the CPU, with tiny sizes, and without what only CUDA has."""
    mode: tuple[str, ...] = tuple(MODES)
    """How decisions run: one kernel after the other, as one captured graph, compiled and captured."""
    precision: tuple[str, ...] = ("full", "tf32")
    """Of products, in the environment and in JAX, whose default is TF32."""
    envs: tuple[int, ...] = (1, 64, 1024, 8192, 32768)
    """Numbers of trainees that speed is measured at."""
    seconds: float = 270.0
    """Start no part later than this."""

    @property
    def device(self) -> str:
        """The device of trainees."""
        return "cpu" if self.dry_run else "cuda"

    @property
    def modes(self) -> dict[str, Compile]:
        """The modes, as `Episode` takes them."""
        return {"eager": False} if self.dry_run else {mode: MODES[mode] for mode in self.mode}

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that the device has."""
        return ("full",) if self.dry_run else self.precision

    def size(self, full: int, tiny: int) -> int:
        """Returns a size, or what stands for it in a dry run."""
        return tiny if self.dry_run else full


def card(settings: Settings) -> Rows:
    """Returns the machine, and its measured ceilings."""
    yield {
        "card": "none" if settings.dry_run else torch.cuda.get_device_name(),
        "torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version(),
        "tf32": torch.backends.cuda.matmul.allow_tf32, "cudnn_tf32": torch.backends.cudnn.allow_tf32,
    }  # fmt: skip
    side, numbers = settings.size(8192, 64), settings.size(2**28, 2**10)
    a = torch.randn(side, side, device=settings.device)
    source, target = (torch.randn(numbers, device=settings.device) for _ in range(2))
    for dtype in (torch.float32, torch.bfloat16):
        x = a.to(dtype)
        yield {"TFLOP/s": round(2 * side**3 / timed(settings, partial(torch.mm, x, x)) / 1e12, 1), "dtype": str(dtype)}
    copied = 2 * source.nbytes / timed(settings, lambda: target.copy_(source))
    yield {"copied TB/s": round(copied / 1e12, 2)}


def correct(settings: Settings) -> Rows:
    """Compares numbers of all modes with a CPU in float64: digits-mlp, and a convolutional network with batch norm."""
    lenet = images("lenet", lenet5, (1, 28, 28), settings.size(2000, 40), settings.size(64, 8), 20)
    for task in (make_task("digits-mlp", budget=60), lenet):
        expected = played(task, "cpu", "float64", False)
        for dtype in ("float64", "float32"):
            for mode, compile in settings.modes.items():
                got = played(task, settings.device, dtype, compile)
                again = played(task, settings.device, dtype, compile)
                # Compiling another size takes as long as all the rest.
                alone = None if compile is True else played(task, settings.device, dtype, compile, only=1)
                yield {
                    "task": task.name, "mode": mode, "dtype": dtype,
                    "largest relative error": float(np.max(np.abs(got / expected - 1))),
                    "alone": None if alone is None else float(np.max(np.abs(alone / expected[:, 1:2] - 1))),
                    "twice the same bits": bool((got == again).all()),
                }  # fmt: skip


def resets(settings: Settings) -> Rows:
    """Compares diverging, restarting and restored runs, captured and compiled, with eager ones."""
    task = make_task("digits-mlp", budget=60, interval=10)
    runs = {mode: staggered(task, settings.device, compile) for mode, compile in settings.modes.items()}
    for mode, (losses, restored) in runs.items():
        off = np.abs(losses - runs["eager"][0]) / (1e-3 + np.abs(runs["eager"][0]))
        yield {"mode": mode, "largest relative difference": float(np.nanmax(off)), "restored": restored}


def syncs(settings: Settings) -> Rows:
    """Returns whether a decision waits for the device."""
    for name in ("digits-mlp", "lenet"):
        task = make_task("digits-mlp", budget=60)
        if name == "lenet":
            task = images("lenet", lenet5, (1, 28, 28), settings.size(2000, 40), settings.size(64, 8), 20)
        for mode, compile in settings.modes.items():
            step = decider(task, 3, settings.device, compile)
            step(2)
            if not settings.dry_run:
                torch.cuda.set_sync_debug_mode("error")
            try:
                step(2)
            finally:
                if not settings.dry_run:
                    torch.cuda.set_sync_debug_mode("default")
            yield {"task": name, "mode": mode, "waits": False}


def launches(settings: Settings) -> Rows:
    """Counts the kernels that a decision runs, and calls of the host that start them."""
    if settings.dry_run:
        return
    task = make_task("digits-mlp")
    for mode, compile in settings.modes.items():
        run = decider(task, 64, settings.device, compile)
        run(2)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            run(1)
            torch.cuda.synchronize()
        events = profiler.key_averages()
        started = re.compile("cu(da)?(LaunchKernel|GraphLaunch|Memcpy|Memset)")
        yield {
            "task": task.name, "n": 64, "mode": mode,
            "kernels": sum(e.count for e in events if e.device_type == DeviceType.CUDA),
            "launches": sum(e.count for e in events if started.match(e.key)),
        }  # fmt: skip


def speed(settings: Settings) -> Rows:
    """Measures trainee-steps/s of digits-mlp over n, validation and observation at every decision included."""
    task = make_task("digits-mlp")
    for n in (2, 3) if settings.dry_run else settings.envs:
        for (mode, compile), precision in product(settings.modes.items(), settings.precisions):
            yield measured(settings, task, n, mode, compile, precision)


def whole(settings: Settings) -> Rows:
    """Returns the same from NumPy to NumPy, through the vector environment with restarts."""
    for n in (2,) if settings.dry_run else settings.envs:
        envs = LearningRateVectorEnv(
            n, "digits-mlp", device=settings.device, compile=not settings.dry_run, autoreset_mode="SameStep"
        )
        action = np.zeros((n, 1), np.float32)
        begin = time.perf_counter()
        envs.reset(seed=0)
        reset = time.perf_counter() - begin
        decisions = envs.episode.decisions
        seconds = timed(settings, lambda: [envs.step(action) for _ in range(decisions)], settings.size(3, 1))  # noqa: B023
        rate = n * envs.task.budget / seconds
        yield {"n": n, "vector environment, trainee-steps/s": round(rate), "seconds of a reset": round(reset, 3)}


def rivals(settings: Settings) -> Rows:
    """Returns the same work in JAX, in a loop over modules, and in `torch.func` over stacked modules."""
    decisions = settings.size(10, 1)
    for n, precision in product((2,) if settings.dry_run else settings.envs, settings.precisions):
        rate = in_jax(n, decisions, precision)
        yield {"n": n, "rival": "JAX", "precision": precision, "trainee-steps/s": rate}
    loop = modules("digits-mlp", decisions, device=settings.device)
    yield {"n": 1, "rival": "loop over modules", "trainee-steps/s": round(loop())}
    for n in (2,) if settings.dry_run else settings.envs:
        yield {"n": n, "rival": "torch.func", "trainee-steps/s": stacked_modules(settings, n)}


def convolutions(settings: Settings) -> Rows:
    """Measures LeNet at batch 1,000 with 10,000 validation images, and ResNet-18 at batch 128."""
    lenet = images("lenet", lenet5, (1, 28, 28), settings.size(50_000, 40), settings.size(1000, 8), 10_000)
    for n in (2,) if settings.dry_run else (1, 16, 64):
        for mode, compile in settings.modes.items():
            yield measured(settings, lenet, n, mode, compile, "full", turns=3, decisions=3)
    resnet = images("resnet18", resnet18, (3, 32, 32), settings.size(2000, 40), settings.size(128, 4), 100)
    for n in (1,) if settings.dry_run else (1, 8):
        yield measured(settings, resnet, n, "eager", False, "full", turns=1, decisions=1)


def ppo(settings: Settings) -> Rows:
    """Measures PPO as a whole, and its share of the time outside the environment."""
    n = settings.size(1024, 4)
    training = PPOTraining(
        PPOSettings("digits-mlp", envs=n, reward="improvement", gamma=1.0, device=settings.device,
                    compile=not settings.dry_run, episodes=4 * n)
    )  # fmt: skip
    spent = [clocked(training.envs, name) for name in ("step_wait", "reset")]
    training.iterate()
    inside = sum(map(sum, spent))
    begin = time.perf_counter()
    training.iterate()
    seconds = time.perf_counter() - begin
    inside = sum(map(sum, spent)) - inside
    yield {"n": n, "episodes/s": round(n / seconds, 1), "outside the environment": round(1 - inside / seconds, 2)}


def outer(settings: Settings) -> Rows:
    """Returns a forward hypergradient, and an update by evolution strategies."""
    n, steps = settings.size(1024, 2), settings.size(300, 4)
    trainee = Trainee(make_task("digits-mlp"), settings.device)
    schedule = {"lr": torch.full((n, 2), 1e-3, device=settings.device)}
    start = trainee.init(range(n))
    seconds = timed(settings, lambda: forward(trainee, start, schedule, steps), 1)
    yield {"n": n, "forward hypergradient of 2 values, trainee-steps/s": round(n * steps / seconds)}
    theta = torch.zeros(1, device=settings.device)

    def rollout(rates: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        with torch.no_grad():
            state, losses = trainee.unroll(state, 1e-3 * rates.exp(), trainee.hyper(n), steps)
        return losses.mean(1), state

    noise = perturbations(n // 2, theta, 0.1)
    seconds = timed(
        settings, lambda: ESTIMATORS["es"](sampled(rollout, theta, noise, 0.1, start, differentiate=False)), 1
    )
    yield {"n": n, "an ES update, trainee-steps/s": round(n * steps / seconds)}


PARTS: dict[str, Callable[[Settings], Rows]] = {
    part.__name__: part
    for part in (card, correct, resets, syncs, launches, speed, whole, rivals, convolutions, ppo, outer)
}  # fmt: skip


def images(
    name: str, network: Callable[..., Any], shape: tuple[int, ...], number: int, batch_size: int, val: int
) -> Task:
    """Returns a task with random images, ten classes, and decisions every 10 steps."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
        return Split(pixels, torch.randint(0, 10, (count,), generator=generator))

    mean, std = torch.full((shape[0], 1, 1), 127.0), torch.full((shape[0], 1, 1), 74.0)
    data = Data(split(number), split(val), split(20), mean, std, 10)
    return Task(
        name=name, data=lambda: data, network=network, optimizer="adam", batch_size=batch_size, budget=1000, interval=10
    )


def played(task: Task, device: str, dtype: str, compile: Compile, only: int | None = None) -> Any:
    """Returns validation losses (decisions, n) of three trainees, or of one of them by itself."""
    seeds = [3, 4, 5] if only is None else [[3, 4, 5][only]]
    envs = LearningRateVectorEnv(
        len(seeds), task, control="set-raw", device=device, dtype=dtype, compile=compile, budget=60, interval=10
    )
    envs.reset(seed=seeds)
    rates = np.array([[1e-4], [3e-4], [1e-3]] if only is None else [[[1e-4], [3e-4], [1e-3]][only]])
    return np.array([envs.step(rates.astype(dtype))[4]["val_loss"] for _ in range(5)])


def staggered(task: Task, device: str, compile: Compile) -> tuple[Any, bool]:
    """Returns losses of three envs of which some diverge and restart, and whether snapshots repeat bit for bit."""
    envs = LearningRateVectorEnv(
        3, task, control="set-raw", device=device, compile=compile, dtype="float64", autoreset_mode="NextStep"
    )
    envs.reset(seed=0)
    rng = np.random.default_rng(0)
    losses, snapshot, after, actions = [], envs.snapshot(), [], []
    for decision in range(12):
        rates = rng.uniform(1e-3, 1e-2, (3, 1))
        rates[rng.integers(3)] = 1e300 if decision % 3 == 1 else 1e-3
        if decision == 5:
            snapshot = envs.snapshot()
        loss = envs.step(rates)[4]["val_loss"]
        losses.append(np.where(np.isfinite(loss), loss, 0.0))
        if decision >= 5:
            actions.append(rates)
            after.append(loss)
    envs.restore(snapshot)
    same = [np.array_equal(envs.step(a)[4]["val_loss"], x, equal_nan=True) for a, x in zip(actions, after, strict=True)]
    return np.array(losses), all(same)


def decider(task: Task, n: int, device: str, compile: Compile, precision: str = "full") -> Callable[[int], None]:
    """Returns a function that takes a number of decisions in n trainees, from the same state each time."""
    episode = Episode(task, "set-raw", device=device, compile=compile, precision=precision)
    action = torch.full((n, 1), 1e-3, device=device)
    start, _ = episode.reset(range(n))

    @torch.no_grad()
    def run(number: int) -> None:
        state = start
        for _ in range(number):
            state, _ = episode.step(state, action, donate=True)

    return run


def measured(
    settings: Settings,
    task: Task,
    n: int,
    mode: str,
    compile: Compile,
    precision: str,
    turns: int = 5,
    decisions: int = 10,
) -> dict[str, Any]:
    """Returns a row of speed and memory."""
    if not settings.dry_run:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    run = decider(task, n, settings.device, compile, precision)
    run(2)
    synchronize(settings)
    built = time.perf_counter() - begin
    decisions = settings.size(decisions, 1)
    seconds = timed(settings, partial(run, decisions), settings.size(turns, 1)) / decisions
    peak = 0.0 if settings.dry_run else torch.cuda.max_memory_reserved() / 2**30
    trainee = Trainee(task, settings.device)
    predicted = trainee.memory.total(n, trainee.chunks(n)[0]) / 2**30
    return {
        "task": task.name, "n": n, "mode": mode, "precision": precision, "ms per decision": round(1e3 * seconds, 3),
        "trainee-steps/s": round(n * task.interval / seconds), "built in s": round(built, 1),
        "GiB": round(peak, 2), "predicted GiB": round(predicted, 2),
    }  # fmt: skip


def in_jax(n: int, decisions: int, precision: str) -> int | str:
    """Measures JAX's rate in a process of its own, with products of the same precision."""
    script = f"from jax_trainees import trainees; print(trainees('digits-mlp', {n}, {decisions}, observed=True)())"
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path])
    products = {"full": "highest", "tf32": "tensorfloat32"}[precision]
    environment = os.environ | {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_DEFAULT_MATMUL_PRECISION": products, "PYTHONPATH": path
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    if "No module named 'jax'" in done.stderr:
        return "not installed"
    done.check_returncode()
    return round(float(done.stdout.split()[-1]))


def stacked_modules(settings: Settings, n: int) -> int:
    """Returns a function that takes Adam steps by `torch.func` over stacked modules, as in its tutorial."""
    task = make_task("digits-mlp")
    networks = [task.module() for _ in range(n)]
    params, _ = stack_module_state(networks)
    data = task.load()
    inputs = ((data.train.inputs - data.mean) / data.std).to(settings.device)
    targets = data.train.targets.to(settings.device)

    def loss(params: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(functional_call(networks[0], params, (x,)), y)

    step = vmap(grad(loss))
    held = {name: p.detach().to(settings.device) for name, p in params.items()}
    optimizer = torch.optim.Adam(list(held.values()), 1e-3)

    def interval() -> None:
        for _ in range(task.interval):
            rows = torch.randint(len(targets), (n, task.batch_size), device=settings.device)
            for name, gradient in step(held, inputs[rows], targets[rows]).items():
                held[name].grad = gradient
            optimizer.step()

    interval()
    return round(n * task.interval / timed(settings, interval, settings.size(5, 1)))


def about() -> dict[str, str]:
    """Returns the settings and versions that made the lines that follow."""
    return {
        "commit": commit() or "unknown",
        "command": shlex.join(["python", "benchmarks/gpu_check.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def synchronize(settings: Settings) -> None:
    """Waits for the card."""
    if not settings.dry_run:
        torch.cuda.synchronize()


def timed(settings: Settings, work: Callable[[], object], turns: int = 5) -> float:
    """Returns the median seconds of some turns, after one that doesn't count."""
    work()
    seconds = []
    for _ in range(turns):
        synchronize(settings)
        begin = time.perf_counter()
        work()
        synchronize(settings)
        seconds.append(time.perf_counter() - begin)
    return median(seconds)


def main(settings: Settings) -> int:
    """Runs the parts; returns the exit status."""
    unknown = set(settings.part) - set(PARTS)
    if unknown:
        print(f"error: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    if not (settings.dry_run or torch.cuda.is_available()):
        print("error: no CUDA card here; --dry-run checks everything that needs none", file=sys.stderr)
        return 2
    keep_memory()
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    begin, failed, rows = time.perf_counter(), [], []
    with settings.out.open("a") as file:
        file.write(json.dumps({"part": "about"} | about()) + "\n")
        for name in settings.part or PARTS:
            part_begin = time.perf_counter()
            if part_begin - begin > settings.seconds:
                print(f"{name}: not started after {settings.seconds:.0f} s")
                failed.append(name)
                continue
            try:
                for row in PARTS[name](settings):
                    rows.append({"part": name} | row)
                    file.write(json.dumps(rows[-1]) + "\n")
                    file.flush()
                    print(name, row, flush=True)
            except Exception:
                traceback.print_exc()
                failed.append(name)
            print(f"{name}: {time.perf_counter() - part_begin:.1f} s", flush=True)
    _show(rows)
    print(f"{time.perf_counter() - begin:.0f} s" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def _show(rows: list[dict[str, Any]]) -> None:
    for name in dict.fromkeys(row["part"] for row in rows):
        own = [row for row in rows if row["part"] == name]
        columns = list(dict.fromkeys(key for row in own for key in row if key != "part"))
        table = Table(*columns, title=name)
        for row in own:
            table.add_row(*(f"{row[c]:,}" if isinstance(row.get(c), int) else str(row.get(c, "")) for c in columns))
        Console(width=160).print(table)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
