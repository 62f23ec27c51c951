"""Installs a wheel into a fresh environment outside the checkout and uses it there.

Run as `python tests/try_wheel.py dist/lrenv-*.whl`; the dependencies are borrowed from the running interpreter. Beside
it stands a distribution that owns a top-level package `agents`, as PyPI's `openai-agents` does: both must work,
whichever was installed last, and the one must outlive the other.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path
from zipfile import ZipFile

USE = """
import sys
from pathlib import Path

import agents
import gymnasium as gym

import lrenv
import lrenv.agents

assert agents.owner == "somebody else", f"{agents.__file__} is not the other package's"
for package in (lrenv, lrenv.agents):
    assert Path(package.__file__).is_relative_to(sys.prefix), f"{package.__file__} is not the wheel's"
assert (Path(lrenv.__file__).parent / "py.typed").exists(), "the wheel lacks py.typed"
envs = gym.make_vec("lrenv/digits-mlp-v0", num_envs=2, budget=20)
envs.reset(seed=0)
_, reward, *_ = envs.step(envs.action_space.sample())
assert (reward < 0).all()
cosine = lrenv.make_agent("cosine", peak=1e-2)
assert lrenv.evaluate(cosine, lrenv.make_task("digits-mlp", budget=20), [0]).test_loss < 3
lrenv.make_agent("metz2019-cpu")  # the wheel holds its file
lrenv.make_agent("universal")
print("the wheel works")
"""
TRAIN = ("ppo", "--task", "noisy-quadratic:budget=4:interval=2", "--envs", "2", "--episodes", "2", "--out", "trained")


def other_owner(folder: Path) -> Path:
    """A wheel of a distribution that installs a top-level package `agents`."""
    path, info = folder / "other_agents-1.0-py3-none-any.whl", "other_agents-1.0.dist-info"
    content = {
        "agents/__init__.py": 'owner = "somebody else"\n',
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: other-agents\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    content[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*content, f"{info}/RECORD"])
    with ZipFile(path, "w") as file:
        for name, text in content.items():
            file.writestr(name, text)
    return path


def main(wheel: Path) -> None:
    """Raises CalledProcessError or AssertionError if the wheel doesn't install or work."""
    with ZipFile(wheel) as file:
        tops = {name.partition("/")[0] for name in file.namelist() if ".dist-info/" not in name}
    assert tops == {"lrenv"}, f"the wheel installs {sorted(tops)}, where it owns lrenv alone"
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"

        def pip(*arguments: str | Path) -> None:
            subprocess.run([python, "-m", "pip", "--disable-pip-version-check", *arguments], check=True, cwd=folder)

        # A plain path in a .pth file lends the dependencies, but not the editable install beside them.
        own = subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        )
        (Path(own.strip()) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        ours, others = wheel.resolve(), other_owner(Path(folder))
        for order in ((others, ours), (ours, others)):
            for each in order:
                pip("install", "--quiet", "--no-deps", "--force-reinstall", each)
            subprocess.run([python, "-c", USE], check=True, cwd=folder)
        subprocess.run([python.parent / "lrenv", "tasks"], check=True, cwd=folder, stdout=subprocess.DEVNULL)
        subprocess.run([python.parent / "lrenv", "train", *TRAIN], check=True, cwd=folder)
        pip("uninstall", "--quiet", "--yes", "lrenv")
        subprocess.run([python, "-c", "import agents; assert agents.owner == 'somebody else'"], check=True, cwd=folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
