"""Installs a wheel into a fresh environment outside the checkout and uses it there.

Run as `python tests/try_wheel.py dist/lrenv-*.whl`; the dependencies are borrowed from the running interpreter.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

USE = """
import sys
from pathlib import Path

import gymnasium as gym

import lrenv.agents
import lrenv
from lrenv.benchmark.evaluation import evaluate

for package in (lrenv, agents):
    assert Path(package.__file__).is_relative_to(sys.prefix), f"{package.__file__} is not the wheel's"
assert (Path(lrenv.__file__).parent / "py.typed").exists(), "the wheel lacks py.typed"
envs = gym.make_vec("lrenv/digits-mlp-v0", num_envs=2, budget=20)
envs.reset(seed=0)
_, reward, *_ = envs.step(envs.action_space.sample())
assert (reward < 0).all()
assert evaluate(agents.make_agent("cosine", peak=1e-2), lrenv.make_task("digits-mlp", budget=20), [0]).test_loss < 3
agents.make_agent("metz2019-cpu")  # the wheel holds its file
print("the wheel works")
"""


def main(wheel: Path) -> None:
    """Raises CalledProcessError if the wheel doesn't install or work."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel.resolve()], check=True)
        # A plain path in a .pth file lends the dependencies, but not the editable install beside them.
        own = subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        )
        (Path(own.strip()) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run([python, "-c", USE], check=True, cwd=folder)
        subprocess.run([python.parent / "lrenv", "tasks"], check=True, cwd=folder, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
