"""The layers: a file imports only from files above it, and importing lrenv stays cheap."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    "lookup", "specs", "sources",
    "runtime", "runtime.files", "runtime.json_values", "runtime.ambient", "runtime.process", "runtime.progress",
    "runtime.trees", "runtime.memory", "runtime.compiling", "runtime.transfer",
    "randomness", "randomness.draws", "randomness.mersenne", "randomness.named", "randomness.seeds",
    "data.types", "data.store", "data.embedded", "data.packaged", "data.folder", "data.published", "data.registry",
    "data", "data.augment", "data.generated",
    "networks.architectures", "networks.perceptrons", "networks.sequences", "networks.gated", "networks",
    "networks.families", "networks.pooling",
    "networks.kernels", "networks.convolution_kernels", "networks.convolutions", "networks.linear_kernels",
    "networks.linears",
    "networks.copies", "networks.layers", "networks.initialisation", "networks.pieces", "networks.stacked",
    "training", "training.losses", "training.optimizers", "training.analytic", "training.power_law",
    "training.tasks", "training.built_in_tasks", "training.drawn",
    "training.power_law_optimum", "training.objective", "training.trainee", "training.dynamics",
    "training.gradient_observer", "training.rollout", "training.scheduled", "training.hypergradients",
    "envs", "envs.quantities", "envs.observations", "envs.rewards", "envs.actions", "envs.own", "envs.episode",
    "envs.snapshots",
    "envs.episode_seeds", "envs.rendering",
    "envs.vector_env", "envs.env", "envs.sb3_vec_env", "envs.multi_task_vec_env",
    "controllers", "controllers.schema", "controllers.controller_file", "controllers.state_file", "controllers.agent",
    "controllers.sb3_agent", "controllers.optimizer_agent",
    "home", "home.processes", "home.telling", "home.sharding", "home.stepping", "home.layers", "home.groups",
    "home.rates",
    "home.history", "home.needs", "home.gradients", "home.validation", "home.observing", "home.driver",
    "home.fallback", "home.deciding", "home.assembly", "home.saving", "home.controller",
    "home.integrations", "home.integrations.callback", "home.integrations.lightning", "home.integrations.transformers",
    "benchmark.held_out", "benchmark.statistics", "benchmark.selection", "benchmark.optimizer_runs",
    "benchmark.evaluation", "benchmark.tuning",
    "benchmark.cells",
    "benchmark.rows", "benchmark.contenders", "benchmark.comparison", "benchmark.figures", "benchmark.wording",
    "benchmark.page", "benchmark.report", "benchmark.privileges", "benchmark.suite", "benchmark.search",
    "benchmark.run_suite", "benchmark.scores", "benchmark.score_tables", "benchmark", "", "listing", "cli", "__main__",
)  # fmt: skip
"""Modules of lrenv from the bottom up; "" is the package itself."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "lrenv").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path, modules: set[str]) -> set[str]:
    """Everything of `lrenv` and `agents` that a file imports, wherever in it, as modules."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from lrenv.randomness import draws` imports a module, `from lrenv.data import load` a name of one.
            submodules = {name for name in below if name.removeprefix("lrenv.") in modules}
            found |= submodules if submodules == below else submodules | {node.module}
    return {name for name in found if name.split(".")[0] == "lrenv"}


FILES = {
    module_of(path): path
    for path in sorted((ROOT / "lrenv").rglob("*.py"))
    if "agents" not in path.relative_to(ROOT).parts
}


def test_every_module_has_its_layer() -> None:
    assert set(FILES) == set(LAYERS)


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_point_down(module: str) -> None:
    for name in imported_modules(FILES[module], set(FILES)):
        _, _, target = name.partition(".")
        assert not target.startswith("agents"), f"lrenv.{module} imports {name}, but agents import lrenv"
        assert LAYERS.index(target) < LAYERS.index(module), f"lrenv.{module} imports {name}, which is above it"


def test_the_guard_sees_imports_of_every_form(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text(
        "import lrenv.training.tasks\nfrom lrenv.randomness import draws\nfrom lrenv import networks\n"
        "from lrenv.data import load\n"
        "def f():\n    from lrenv.agents.ppo.agent import PPOController\n"
    )
    expected = {
        "lrenv.training.tasks",
        "lrenv.randomness.draws",
        "lrenv.networks",
        "lrenv.data",
        "lrenv.agents.ppo.agent",
    }
    assert imported_modules(source, set(FILES)) == expected


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*.py")), ids=lambda path: path.name)
def test_no_test_file_imports_another(path: Path) -> None:
    """What several need is in a file of its own, such as `helpers.py`, which holds no test."""
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in imports if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.startswith("test_") or name == "conftest"]
    assert path.name.startswith("test_") or "\ndef test_" not in path.read_text()


def test_importing_lrenv_is_cheap() -> None:
    heavy = (
        "matplotlib",
        "stable_baselines3",
        "sb3_contrib",
        "torchvision",
        "sklearn",
        "mnist1d",
        "tensorboard",
        "lightning",
        "transformers",
        "accelerate",
        "torchrl",
        "optuna",
        "ray",
        "lrenv.agents",
    )
    code = f"import lrenv, sys; print(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    code = "import lrenv.cli, sys; print(*({'matplotlib', 'scipy.stats'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_agents_are_one_package() -> None:
    """`import agents`, which would load every module a second time, is refused with a sentence."""
    done = subprocess.run([sys.executable, "-c", "import agents"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode
    assert "from lrenv.agents import" in done.stderr
    done = subprocess.run([sys.executable, "-c", "import agents.ppo.agent"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode
    assert "from lrenv.agents import" in done.stderr
    import lrenv.agents

    # A link in a checkout, and the folder itself in a source archive.
    assert Path(lrenv.agents.__file__).samefile(ROOT / "lrenv" / "agents" / "__init__.py")


def test_a_link_that_became_a_file_is_told(tmp_path: Path) -> None:
    """Git writes the link's target into a file where it may make no links."""
    shutil.copytree(ROOT / "lrenv", tmp_path / "lrenv", ignore=shutil.ignore_patterns("agents", "__pycache__"))
    (tmp_path / "lrenv" / "agents").write_text("../agents")
    code = [sys.executable, "-c", "import lrenv.agents"]
    done = subprocess.run(code, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "must be a symbolic link to the folder agents/" in last
    assert "git config core.symlinks true" in last


def test_what_is_used_first_of_all_is_imported_late() -> None:
    import lrenv
    from lrenv.agents import make_agent
    from lrenv.benchmark import compare, evaluate

    assert (lrenv.compare, lrenv.evaluate, lrenv.make_agent) == (compare, evaluate, make_agent)
    assert all(hasattr(lrenv, name) for name in lrenv.__all__)
    fresh = "import lrenv; print(*(set(lrenv.__all__) - set(dir(lrenv))))"
    done = subprocess.run([sys.executable, "-c", fresh], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    with pytest.raises(AttributeError, match="no attribute 'comprae'"):
        _ = lrenv.comprae  # type: ignore[attr-defined]
