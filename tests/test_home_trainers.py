"""The callbacks of trainers in two processes that train one model: they decide as in one."""

from __future__ import annotations

import os
import socket
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from reacting import Everything
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:::(lightning|torch|transformers|accelerate)"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning"),
]
T, BATCH = 12, 8  # steps, examples of all processes


def examples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(T * BATCH, 3, generator=generator), torch.randn(T * BATCH, 1, generator=generator)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def validate(network: nn.Module) -> Tensor:
    """Of the first process; what others measure is worthless."""
    x, y = examples()
    return mse_loss(network(x), y) * (1 + int(os.environ.get("RANK", "0")))


def with_lightning(folder: str, world: int) -> list[float]:
    """The rates of a training of a LightningModule."""
    import lightning.pytorch as L

    from lrenv.home.integrations.lightning import LRControllerCallback

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: Any, index: int) -> Tensor:
            return mse_loss(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    callback = LRControllerCallback(Everything(), evaluate=lambda module: validate(module.network), fallback=None)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(
        max_epochs=1, default_root_dir=folder, enable_checkpointing=False, callbacks=[callback], devices=world,
        use_distributed_sampler=False,
        strategy="ddp" if world > 1 else "auto", **quiet,
    )  # fmt: skip
    data = TensorDataset(*examples())  # Lightning's own sampler shuffles
    sampler = DistributedSampler(data, world, int(os.environ.get("RANK", "0")), shuffle=False)
    trainer.fit(Module(), DataLoader(data, BATCH // world, sampler=sampler))
    return rates_of(callback)


class Regression(nn.Module):
    """A model as Hugging Face's Trainer takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        outputs = self.network(x)
        return {"loss": mse_loss(outputs, labels), "logits": outputs}


def with_transformers(folder: str, world: int) -> list[float]:
    """The rates of a training by Hugging Face's Trainer."""
    from transformers import Trainer, TrainingArguments

    from lrenv.home.integrations.transformers import LRControllerCallback

    arguments = TrainingArguments(
        folder, max_steps=T, per_device_train_batch_size=BATCH // world, train_sampling_strategy="sequential",
        lr_scheduler_type="constant", learning_rate=0.1, optim="sgd", max_grad_norm=0.0, save_strategy="no",
        use_cpu=True, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    callback = LRControllerCallback(Everything(), evaluate=lambda model: validate(model.network), fallback=None)
    data = [{"x": x, "labels": y} for x, y in zip(*examples(), strict=True)]
    Trainer(Regression(), arguments, train_dataset=data, callbacks=[callback]).train()
    return rates_of(callback)


def rates_of(callback: Any) -> list[float]:
    assert callback.controller.last_epoch == callback.controller.horizon == T
    return [decision.rates[0] for decision in callback.controller.history]


TRAINERS = {"lightning": with_lightning, "transformers": with_transformers}


def work(rank: int, trainer: str, folder: str, port: int) -> None:
    """One of two processes, with what torchrun tells them."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    told = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    told |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "two",
        "ACCELERATE_USE_CPU": "true",
    }
    os.environ |= {name: str(value) for name, value in told.items()}
    torch.save(TRAINERS[trainer](folder, 2), f"{folder}/{rank}.pt")


@pytest.mark.parametrize("trainer", TRAINERS)
def test_two_processes_decide_as_one(trainer: str, tmp_path: Path) -> None:
    pytest.importorskip({"lightning": "lightning.pytorch", "transformers": "accelerate"}[trainer])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (trainer, str(tmp_path), port), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first == second
    np.testing.assert_allclose(first, TRAINERS[trainer](str(tmp_path), 1), rtol=1e-4)
    assert len(set(first)) == T // Everything.view.interval
