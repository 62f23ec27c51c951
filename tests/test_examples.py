"""The examples run as they stand, and do what they say."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrenv.training.tasks import make_task

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_tested(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60
    assert f'example("{path.stem}")' in Path(__file__).read_text()


def test_own_loop(capsys: pytest.CaptureFixture[str]) -> None:
    assert example("own_loop").main() < 0.4
    assert capsys.readouterr().out.startswith("validation loss 0.")


def test_shadow(capsys: pytest.CaptureFixture[str]) -> None:
    rates = example("shadow").main()
    np.testing.assert_allclose(rates, [0.005 * (1 + np.cos(np.pi * t / 300)) for t in range(300)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 15
    assert lines[0].startswith("step   0: rate 1.0e-02, would be 1.0e-02")


def test_own_agent() -> None:
    in_benchmark, in_loop = example("own_agent").main()
    assert in_benchmark < 1.0
    assert in_loop < 1.0


def test_own_task() -> None:
    losses = example("own_task").main()
    assert all(0 < loss < 0.5 for loss in losses.values())
    assert make_task(f"{EXAMPLES / 'own_task.py'}:diabetes").loss == "huber"


def test_language_model() -> None:
    assert example("language_model").main() < 4.0


def test_train_ppo() -> None:
    on_task, in_loop = example("train_ppo").main(episodes=64)
    assert on_task < math.log(10)
    assert in_loop < math.log(10)


def test_cleanrl_loop() -> None:
    returns = example("cleanrl_loop").main()
    assert len(returns) == 12
    assert sum(returns[-3:]) > 1.2 * sum(returns[:3])


def test_accelerate_loop(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    steps, val_loss = example("accelerate_loop").main(folder=str(tmp_path))
    assert steps == 8 * 19  # of 75 batches, four a step
    assert val_loss < 0.4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:::(lightning|torch)")
def test_lightning_callback() -> None:
    pytest.importorskip("lightning")
    decisions = example("lightning_callback").main()
    assert [step for step, _, _ in decisions] == list(range(0, 190, 10))
    assert decisions[-1][1] < decisions[0][1]
    assert decisions[-1][2] < 0.4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:::(transformers|accelerate)")
def test_hf_trainer() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    decisions = example("hf_trainer").main()
    assert [step for step, _, _ in decisions] == list(range(0, 100, 5))
    assert len({rate for _, rate, _ in decisions}) > 2
    assert decisions[-1][2] < 3.0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:::optuna")
def test_optuna_threads() -> None:
    pytest.importorskip("optuna")
    module = example("optuna_threads")
    best, loss = module.main()
    assert module.validation_loss(**best) == pytest.approx(loss, rel=1e-5)  # as alone


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:::(torchrl|tensordict)")
def test_torchrl_ppo() -> None:
    pytest.importorskip("torchrl")
    returns = example("torchrl_ppo").main()
    assert sum(returns[-3:]) > 1.2 * sum(returns[:3])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:::(ray|gymnasium|subprocess)")
def test_rllib_ppo() -> None:
    pytest.importorskip("ray.rllib")
    returns = example("rllib_ppo").main()
    assert returns[-1] > 1.2 * returns[0]


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_and_is_stored_without_outputs(path: Path, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    images = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(images) >= 3
