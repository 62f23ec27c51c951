"""Mutated controller files, each of which must be refused in a sentence or be harmless.

    python tests/fuzz_controller_files.py --mutations 2000

prints a table, kind of file x kind of mutation x outcome, and ends with status 1 if there is another outcome than

    refused   a `ControllerFileError` of one line
    harmless  it loads, and what it holds acts on a small task with finite actions; a checkpoint is read, but no agent

Files are loaded by a child whose address space is limited to 200 MB more than it has after loading one of each kind.
Mutation i depends on the seed and i alone. `pack` writes the format by itself, with checksums that fit, so that what
lies behind the checksums is tried, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import select
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32", "U8": "uint8",
          "BOOL": "bool"}  # fmt: skip
HEADROOM = 200 * 2**20
PATIENCE = 60.0
"""Seconds without an outcome after which a file counts as one that hangs."""


@dataclass(frozen=True)
class Parts:
    """A controller file, taken apart: name -> (dtype, shape, bytes), and the metadata."""

    tensors: dict[str, tuple[str, tuple[int, ...], bytes]]
    metadata: Any


def unpack(data: bytes) -> Parts:
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    metadata = json.loads(header.pop("__metadata__")["lrenv"])
    body = data[8 + size :]
    return Parts(
        {name: (x["dtype"], tuple(x["shape"]), body[slice(*x["data_offsets"])]) for name, x in header.items()}, metadata
    )


def pack(parts: Parts, text: str | None = None) -> bytes:
    """The file of these parts with checksums that fit; `text` stands for the metadata if it is given."""
    if text is None:
        digest = hashlib.sha256()
        for name in sorted(parts.tensors):
            dtype, shape, data = parts.tensors[name]
            digest.update(json.dumps([name, f"torch.{DTYPES[dtype]}", list(shape)]).encode() + data)
        metadata = parts.metadata
        if isinstance(metadata, dict) and "sha256" in metadata:
            metadata = metadata | {"sha256": digest.hexdigest()}
        text = json.dumps(metadata)
    header: dict[str, Any] = {
        "__metadata__": {"lrenv": text, "sha256": hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()}
    }
    body = b""
    for name, (dtype, shape, data) in parts.tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    line = json.dumps(header).encode()
    line += b" " * (-len(line) % 8)
    return struct.pack("<Q", len(line)) + line + body


def array(tensor: tuple[str, tuple[int, ...], bytes]) -> np.ndarray[Any, Any]:
    dtype, shape, data = tensor
    return np.frombuffer(data, DTYPES[dtype]).reshape(shape).copy()


def held(x: np.ndarray[Any, Any]) -> tuple[str, tuple[int, ...], bytes]:
    dtype = next(short for short, name in DTYPES.items() if name == x.dtype.name)
    return dtype, x.shape, x.tobytes()


Rng = np.random.Generator
ODD: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 7, 64, 10**4, 10**6, 10**9, 10**18, 2**63, 10**400, -0.0, 0.5, 1.0, 2.5, 1e308, 5e-324, 1e-30,
    float("nan"), float("inf"), float("-inf"), "", "7", "x" * 5000, "\ud800", None, True, False, [], {}, [[]], [1, 2],
    [3] * 1000, {"a": 1}, "scale", "set", "set-raw", "discrete", "paper", "clock", "dynamics", "mean_gradient", "adam",
    "unit", "momentum", "sgd", "cosine", "ppo", "noh", "controller", "checkpoint", ["scale"], ["scale", "momentum"],
    ["set-raw", "weight_decay"], ["dynamics", "dynamics"], ["dynamics", "clock"],
)  # fmt: skip
SIZES = (0, -1, 1, 5, 100, 10**4, 10**6, 10**9, 2**31, 2**63, 10**30)
NUMBERS = (0.0, -0.0, -1.0, 1e-45, 1e-30, 100.0, 1e6, 1e9, 1e20, 3e38, -3e38)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield (*path, key)
        yield from places(below, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Callable[[Any], Any]) -> Any:
    """A JSON value with something else at a path."""
    if not path:
        return new(value)
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], new)
    return copy


def pick(rng: Rng, choices: Any) -> Any:
    choices = list(choices)
    return choices[rng.integers(len(choices))]


OWN = ("agent", "kind", "view", "architecture", "optimizer", "iteration")
"""What a controller is built from; the other fields say how it was trained."""


def place(rng: Rng, metadata: Any) -> tuple[Any, ...]:
    """The path of a field, mostly of one that something is built from."""
    fields = [path for path in places(metadata) if isinstance(path[-1], str)]
    own = rng.random() < 0.7
    return pick(rng, [path for path in fields if (path[0] in OWN) == own])


def flipped_bits(rng: Rng, data: bytes) -> bytes:
    copy = bytearray(data)
    size = struct.unpack("<Q", data[:8])[0]
    for _ in range(pick(rng, (1, 1, 1, 2, 8))):
        # As many in the header, which is short, as in the body.
        i = rng.integers(8 + size) if rng.random() < 0.5 else rng.integers(len(data))
        copy[i] ^= 1 << int(rng.integers(8))
    return bytes(copy)


def truncated(rng: Rng, data: bytes) -> bytes:
    if rng.random() < 0.2:
        return data + rng.bytes(int(rng.integers(1, 100)))
    return data[: rng.integers(len(data))]


def header_edited(rng: Rng, data: bytes) -> bytes:
    size = struct.unpack("<Q", data[:8])[0]
    header, body = data[8 : 8 + size], data[8 + size :]
    how = rng.integers(6)
    if how == 0:
        return struct.pack("<Q", pick(rng, (0, 1, size - 8, size + 8, 2**22, 2**32, 2**63, 2**64 - 1))) + header + body
    if how == 1:  # as long as it says, and longer than any header
        return struct.pack("<Q", 2**23) + header.ljust(2**23) + body
    table = json.loads(header)
    name = pick(rng, (name for name in table if name != "__metadata__"))
    if how == 2:
        table[name]["dtype"] = pick(rng, ("F64", "F16", "BF16", "I32", "U8", "F8_E5M2", "F4", "C64", "BOOL", "X", ""))
    elif how == 3:
        table[name]["shape"] = pick(rng, ([], [0], [-1], [2**62, 4], [1, *table[name]["shape"]], [10**9], "3", None))
    elif how == 4:
        table[name]["data_offsets"] = pick(rng, ([0, 0], [0, 2**63], [8, 4], [-1, 3], [0], table[name]["shape"]))
    else:
        table[pick(rng, ("__metadata__", "other", "x" * 1000))] = pick(rng, ODD)
    line = json.dumps(table).encode()
    return struct.pack("<Q", len(line)) + line + body


def metadata_replaced(rng: Rng, data: bytes) -> bytes:
    parts = unpack(data)
    text = pick(
        rng,
        ("null", "[]", "{}", "0", '"x"', "[" * 100_000, "[" * 900 + "]" * 900, '{"a":' * 100_000, "", "\x00", "NaN",
         "9" * 5000, '{"format": "lrenv-controller"}', '{"format": "lrenv-controller", "version": 2}',
         "[" + "[]," * 40_000 + "[]]", "[" * 200_000, json.dumps(parts.metadata)[:-1]),
    )  # fmt: skip
    return pack(parts, text)


def field_changed(rng: Rng, data: bytes) -> bytes:
    parts, odd = unpack(data), pick(rng, ODD)
    where = place(rng, parts.metadata)
    return pack(replace(parts, metadata=changed(parts.metadata, where, lambda _: odd)))


def field_removed(rng: Rng, data: bytes) -> bytes:
    parts = unpack(data)
    where = place(rng, parts.metadata)

    def without(value: Any) -> Any:
        return {name: x for name, x in value.items() if name != where[-1]}

    return pack(replace(parts, metadata=changed(parts.metadata, where[:-1], without)))


def size_changed(rng: Rng, data: bytes) -> bytes:
    """A number of the view or the architecture; where there is none, any number."""
    parts = unpack(data)
    numbers = []
    for path in places(parts.metadata):
        value = parts.metadata
        for key in path:
            value = value[key]
        if type(value) in (int, float):
            numbers.append(path)
    own = [path for path in numbers if path[0] in ("view", "architecture")]
    size = pick(rng, SIZES)
    return pack(replace(parts, metadata=changed(parts.metadata, pick(rng, own or numbers), lambda _: size)))


def kind_swapped(rng: Rng, data: bytes) -> bytes:
    """Another agent's name, and sometimes the description of a file of that kind as well."""
    parts = unpack(data)
    others = [unpack(other) for name, other in base_files().items() if other != data]
    other = pick(rng, others).metadata
    how = rng.integers(3)
    if how == 0:
        parts.metadata["agent"] = other.get("agent", "learned-optimizer")
    elif how == 1:
        parts.metadata["kind"] = pick(rng, ("controller", "checkpoint", "model"))
        parts.metadata.pop("agent", None)
    else:
        parts = replace(parts, metadata=other)
    return pack(parts)


def _with_values(rng: Rng, data: bytes, values: tuple[float, ...]) -> bytes:
    parts = unpack(data)
    name = pick(rng, parts.tensors)
    x, value = array(parts.tensors[name]), pick(rng, values)
    with np.errstate(all="ignore"):
        if x.dtype.kind != "f":
            value = 1
        if x.size and rng.random() < 0.5:
            x.reshape(-1)[rng.integers(x.size)] = value
        else:
            x[...] = value
    return pack(replace(parts, tensors=parts.tensors | {name: held(x)}))


def not_finite(rng: Rng, data: bytes) -> bytes:
    return _with_values(rng, data, (float("nan"), float("inf"), float("-inf")))


def extreme_values(rng: Rng, data: bytes) -> bytes:
    return _with_values(rng, data, NUMBERS)


def statistics(rng: Rng, data: bytes) -> bytes:
    """A standard deviation of 0 or -1 where there is one, else an extreme value."""
    parts = unpack(data)
    name = next((name for name in ("std", "policy.log_std") if name in parts.tensors and rng.random() < 0.8), None)
    if name is None:
        return extreme_values(rng, data)
    x = array(parts.tensors[name])
    x[rng.integers(len(x))] = pick(rng, (0.0, -1.0, 5e-324, -1e9, 1e9, 1e308) if name == "std" else (-1e9, 1e9, 1e3))
    return pack(replace(parts, tensors=parts.tensors | {name: held(x)}))


def other_dtype(rng: Rng, data: bytes) -> bytes:
    parts = unpack(data)
    names = list(parts.tensors) if rng.random() < 0.3 else [pick(rng, parts.tensors)]
    dtype = pick(rng, ("int64", "int32", "uint8", "float16", "bool", "float32", "float64"))
    with np.errstate(all="ignore"):
        converted = {name: held(array(parts.tensors[name]).astype(dtype)) for name in names}
    return pack(replace(parts, tensors=parts.tensors | converted))


def other_shape(rng: Rng, data: bytes) -> bytes:
    parts = unpack(data)
    name = pick(rng, parts.tensors)
    x = array(parts.tensors[name])
    shapes = (x.reshape(-1), x[None], x.T, x[:0] if x.ndim else x[None], x.repeat(2, -1) if x.ndim else x[None])
    return pack(replace(parts, tensors=parts.tensors | {name: held(np.ascontiguousarray(pick(rng, shapes)))}))


def other_names(rng: Rng, data: bytes) -> bytes:
    parts = unpack(data)
    names = list(parts.tensors)
    how = rng.integers(3)
    if how == 0:
        shuffled = rng.permutation(names).tolist()
        return pack(replace(parts, tensors=dict(zip(shuffled, parts.tensors.values(), strict=True))))
    lost = pick(rng, names)
    tensors = {name: x for name, x in parts.tensors.items() if name != lost}
    new = pick(rng, ("", "x" * 3000, lost + ".", "../" + lost, "\x00", lost.upper()))
    return pack(replace(parts, tensors=tensors if how == 1 else tensors | {new: parts.tensors[lost]}))


MUTATIONS: tuple[Callable[[Rng, bytes], bytes], ...] = (
    flipped_bits, truncated, header_edited, metadata_replaced, field_changed, field_removed, size_changed, kind_swapped,
    not_finite, extreme_values, statistics, other_dtype, other_shape, other_names,
)  # fmt: skip
_BASES: dict[str, bytes] = {}


def base_files() -> dict[str, bytes]:
    """A sound file of each kind."""
    if not _BASES:
        with tempfile.TemporaryDirectory() as folder:
            for name, save in _savers().items():
                path = Path(folder, f"{name}.safetensors")
                save(path)
                _BASES[name] = path.read_bytes()
    return _BASES


def _savers() -> dict[str, Callable[[Path], Any]]:
    import torch

    from lrenv.agents import View
    from lrenv.agents.fds.agent import FDS
    from lrenv.agents.fds.random_search import Search
    from lrenv.agents.learned_optimizer import agent as learned_optimizer
    from lrenv.agents.noh import lstm as coordinatewise
    from lrenv.agents.noh.agent import NOH, DMopt
    from lrenv.agents.ppo import agent as ppo
    from lrenv.agents.universal.agent import UniversalController
    from lrenv.agents.universal.policy import Architecture as Universal
    from lrenv.controllers import controller_file

    torch.manual_seed(0)
    trained = {
        "episodes": 12, "val_loss": 0.5, "command": "made for a test", "settings": {"seed": 0, "out": "runs"},
        "runs": {"training": 12, "selection": 4}, "finished": True,
    }  # fmt: skip

    def controller(lstm: bool) -> ppo.PPOController:
        architecture = ppo.Architecture(8, 1, (), 4, lstm)
        policy = architecture.build()
        policy.set_training_mode(False)
        return ppo.PPOController(policy, np.zeros(8), np.ones(8), View("scale", "dynamics", 2), architecture)

    universal = Universal(hidden=4)
    lstm, small = coordinatewise.Architecture(2, 4), learned_optimizer.Architecture(4)
    tensors = {
        "policy.weight": torch.randn(3, 4), "count": torch.tensor(3), "ended": torch.tensor([True, False]),
        "torch_state": torch.get_rng_state(), "losses": torch.tensor([1.0, torch.nan], dtype=torch.float64),
    }  # fmt: skip
    state = {"settings": {"seed": 0, "budget": None}, "iteration": 3, "best_val_loss": float("inf"), "episodes": 12}
    agents: dict[str, Any] = {
        "ppo": controller(False), "ppo-lstm": controller(True), "noh": NOH(lstm, 2, "adam"),
        "dmopt": DMopt(lstm, 1, "unit"), "fds": FDS((0.1, 0.01), (0.9,)), "search": Search((0.1,)),
        "learned-optimizer": learned_optimizer.LearnedOptimizer(small.init(0), small),
        "universal-policy": UniversalController(universal.init(0), universal),
    }  # fmt: skip
    savers: dict[str, Callable[[Path], Any]] = {
        name: lambda path, agent=agent: agent.save(path, trained) for name, agent in agents.items()
    }
    return savers | {"checkpoint": lambda path: controller_file.write(path, tensors, state)}


def mutated(seed: int, i: int) -> tuple[str, str, bytes]:
    """Kind of file, kind of mutation, and the file of mutation i."""
    names = tuple(base_files())
    name, mutation = names[i % len(names)], MUTATIONS[i // len(names) % len(MUTATIONS)]
    return name, mutation.__name__, mutation(np.random.default_rng((seed, i)), base_files()[name])


def outcome(path: Path) -> str:
    """What becomes of a file: "refused", "harmless", or what went wrong."""
    from lrenv.agents import make_agent
    from lrenv.controllers import controller_file
    from lrenv.controllers.controller_file import ControllerFileError

    try:
        kind = "checkpoint" if controller_file.read_metadata(path)["kind"] == "checkpoint" else "controller"
        if kind == "checkpoint":
            tensors, _ = controller_file.read(path)
            if any(x.data_ptr() % 64 for x in tensors.values()):
                return "not aligned"
        agent = make_agent(path)
    except ControllerFileError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError) or "memory" in str(cause):
                return f"too much memory: {error}"
            cause = cause.__cause__
        if len(str(error)) > 1000 or "\n" in str(error):
            return f"not a line: {str(error)[:300]}"
        try:
            controller_file.read(path)
        except ControllerFileError:
            return "refused"
        return "harmless" if "state of a training" in str(error) else "refused"
    except BaseException as error:
        return f"at load, {type(error).__name__}: {error}"[:300]
    if kind == "checkpoint":
        return "an agent from a checkpoint"
    try:
        act(agent)
    except BaseException as error:
        return f"in use, {type(error).__name__}: {error}"[:300]
    return "harmless"


def act(agent: Any) -> None:
    """A few decisions on small networks; environments refuse actions that aren't finite."""
    from lrenv import networks
    from lrenv.data import from_arrays
    from lrenv.envs.vector_env import LearningRateVectorEnv
    from lrenv.training.tasks import Task

    rng = np.random.default_rng(0)
    arrays = [x for size in (12, 6, 6) for x in (rng.standard_normal((size, 5)), np.arange(size) % 3)]
    data = from_arrays(*arrays)
    task = Task(
        "small", lambda: data, networks.mlp(4), optimizer="momentum", batch_size=4, budget=4, interval=2,
        initial_lr=0.1,
    )  # fmt: skip
    settings = {"interval": 2} | agent.view.settings()
    settings["interval"] = min(settings["interval"], task.budget)
    envs = LearningRateVectorEnv(2, task, device="cpu", autoreset_mode="Disabled", **settings)
    observation, _ = envs.reset(seed=0)
    memory, start, ended = None, np.ones(2, dtype=bool), np.zeros(2, dtype=bool)
    while not ended.all():
        action, memory = agent.predict(observation, memory, start, deterministic=True)
        observation, _, ended, _, _ = envs.step(action)
        start = np.zeros(2, dtype=bool)


def child(seed: int, first: int, last: int) -> None:
    """Prints a line of JSON for each mutation; with a limit on memory beyond what sound files take."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        for name, data in base_files().items():
            path.write_bytes(data)
            sound = outcome(path)
            assert sound == "harmless", f"{name}: {sound}"
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + HEADROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for i in range(first, last):
            name, mutation, data = mutated(seed, i)
            path.write_bytes(data)
            del data
            begin = time.perf_counter()
            result = outcome(path)
            seconds = time.perf_counter() - begin
            print(json.dumps([i, name, mutation, result, seconds]), flush=True)


def fuzz(mutations: int, seed: int = 0) -> list[tuple[int, str, str, str, float]]:
    """Index, kind of file, kind of mutation, outcome and seconds of each mutation."""
    found: list[tuple[int, str, str, str, float]] = []
    while len(found) < mutations:
        arguments = [sys.executable, __file__, "--child", str(seed), str(len(found)), str(mutations)]
        root = str(Path(__file__).parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            while select.select([process.stdout], [], [], PATIENCE)[0] and (line := process.stdout.readline()):
                found.append(tuple(json.loads(line)))
            hangs = process.poll() is None and len(found) < mutations
            if hangs:
                process.kill()
            status = process.wait()
        if len(found) < mutations:
            assert found or hangs, f"the child ended with status {status} before the first mutation"
            name, mutation, _ = mutated(seed, len(found))
            how = f"no answer in {PATIENCE} s" if hangs else f"the process died with status {status}"
            found.append((len(found), name, mutation, how, PATIENCE))
    return found


def table(found: list[tuple[int, str, str, str, float]]) -> str:
    """Refused + harmless (+ faults) for each kind of file and of mutation, and what was slow or faulty."""
    names = list(dict.fromkeys(name for _, name, *_ in found))
    counts: dict[tuple[str, str], Counter[str]] = {}
    for _, name, mutation, result, _ in found:
        word = result if result in ("refused", "harmless") else "fault"
        for column in (name, "all"):
            for row in (mutation, "all"):
                counts.setdefault((row, column), Counter())[word] += 1
    lines = [f"{'refused/harmless/fault':24}" + "".join(f"{name:>18}" for name in [*names, "all"])]
    for row in [*dict.fromkeys(mutation for _, _, mutation, *_ in found), "all"]:
        cells = (counts.get((row, column), Counter()) for column in [*names, "all"])
        lines.append(f"{row:24}" + "".join(f"{c['refused']}/{c['harmless']}/{c['fault']}".rjust(18) for c in cells))
    faults = [f"{i} {name} {mutation}: {result}" for i, name, mutation, result, _ in found]
    lines += [fault for fault, x in zip(faults, found, strict=True) if x[3] not in ("refused", "harmless")]
    slowest = max(found, key=lambda x: x[4])
    return "\n".join([*lines, f"slowest: {slowest[4]:.3f} s, {slowest[:4]}"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=int, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return 0
    found = fuzz(arguments.mutations, arguments.seed)
    print(table(found))
    return int(any(x[3] not in ("refused", "harmless") for x in found))


if __name__ == "__main__":
    sys.exit(main())
