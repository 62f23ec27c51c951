"""The callback of PyTorch Lightning, in its Trainer, on a tiny model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from reacting import Everything, TrainingLosses
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import lrenv
from lrenv.agents import BaseAgent

pytestmark = [
    pytest.mark.filterwarnings("ignore:::lightning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:lightning"),
]
PER_EPOCH = 10  # batches


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4 * PER_EPOCH, 3, generator=generator), torch.randint(2, (4 * PER_EPOCH,), generator=generator)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.0), nn.Linear(4, 2))


class Noting(torch.optim.SGD):
    """Notes the rates of the steps that it takes."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr)
        self.rates: list[float] = []

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        self.rates.append(self.param_groups[0]["lr"])
        return loss


def validate(model: Any) -> tuple[Tensor, Tensor]:
    x, y = data()
    assert not model.training
    return getattr(model, "network", model)(x), y


@pytest.fixture(scope="module")
def lightning() -> Any:
    """Lightning, and a module of it."""
    pytest.importorskip("lightning.pytorch")
    import lightning.pytorch as L

    class Module(L.LightningModule):
        def __init__(self, schedulers: int = 0, optimizers: int = 1, skip: tuple[int, ...] = ()) -> None:
            super().__init__()
            self.network, self.skip = network(), skip
            self.schedulers, self.optimizers_made = schedulers, optimizers

        def training_step(self, batch: Any, index: int) -> Any:
            return None if index in self.skip else cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            made = [Noting(self.parameters(), 0.1) for _ in range(self.optimizers_made)]
            self.automatic_optimization = self.automatic_optimization and len(made) <= 1
            return made, [torch.optim.lr_scheduler.StepLR(made[0], 1) for _ in range(self.schedulers)]

    L.Module = Module
    return L


def fit(L: Any, callback: Any, folder: Path, checkpoint: Any = None, module: Any = None, **settings: Any) -> Any:
    """Trains; gives the trainer."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    settings = {"max_epochs": 3, "default_root_dir": folder, "enable_checkpointing": False, **quiet, **settings}
    callbacks = [*([] if callback is None else [callback]), *settings.pop("callbacks", [])]
    trainer = L.Trainer(callbacks=callbacks, **settings)
    trainer.fit(module or L.Module(), DataLoader(TensorDataset(*data()), 4), ckpt_path=checkpoint)
    return trainer


def rates(trainer: Any) -> list[float]:
    return [float(rate) for rate in trainer.optimizers[0].rates]


def callback_of(agent: Any, **settings: Any) -> Any:
    from lrenv.home.integrations.lightning import LRControllerCallback

    return LRControllerCallback(agent, **settings)


def plain(agent: BaseAgent[Any], evaluate: bool, accumulate: int) -> list[float]:
    """The rates of a loop of one's own that does the same."""
    model = network()
    optimizer = Noting(model.parameters(), 0.1)
    last = [i for i in range(PER_EPOCH) if (i + 1) % accumulate == 0 or i + 1 == PER_EPOCH]
    controller = lrenv.LRController(
        optimizer, agent, 3 * len(last), evaluate=(lambda: validate(model)) if evaluate else None, module=model
    )
    losses = []
    for _ in range(3):
        for i, (x, y) in enumerate(DataLoader(TensorDataset(*data()), 4)):
            losses.append(cross_entropy(model(x), y))
            (losses[-1] / accumulate).backward()
            if i in last:
                if not evaluate:
                    controller.start(torch.stack(losses).mean())
                optimizer.step()
                optimizer.zero_grad()
                controller.step(torch.stack(losses).mean())
                losses = []
    return optimizer.rates


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("agent", [Everything, TrainingLosses])
def test_the_rates_are_those_of_a_loop_of_ones_own(agent: Any, accumulate: int, lightning: Any, tmp_path: Path) -> None:
    evaluate = agent is Everything
    callback = callback_of(agent(), evaluate=validate if evaluate else None)
    trainer = fit(lightning, callback, tmp_path, accumulate_grad_batches=accumulate)
    steps = 3 * (3 if accumulate == 4 else PER_EPOCH)
    assert callback.controller.last_epoch == trainer.global_step == callback.controller.horizon == steps
    expected = plain(agent(), evaluate, accumulate)
    assert rates(trainer) == pytest.approx(expected, rel=1e-4)
    assert len(set(expected)) > 2


@pytest.mark.parametrize("at", [1, 2])
def test_saved_and_loaded_in_the_middle_the_rates_are_the_same(at: int, lightning: Any, tmp_path: Path) -> None:
    whole = fit(lightning, callback_of(Everything(), evaluate=validate), tmp_path)
    saving = lightning.callbacks.ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=at, save_top_k=-1)
    fit(
        lightning, callback_of(Everything(), evaluate=validate), tmp_path, callbacks=[saving], enable_checkpointing=True
    )
    callback = callback_of(Everything(), evaluate=validate)
    second = fit(lightning, callback, tmp_path, tmp_path / f"epoch={at - 1}.ckpt")
    assert rates(second) == rates(whole)[at * PER_EPOCH :]
    assert callback.controller.last_epoch == 3 * PER_EPOCH


def test_saved_within_an_epoch_it_goes_on_from_there(lightning: Any, tmp_path: Path) -> None:
    """Lightning begins the epoch's data anew, which a schedule doesn't look at."""
    saving = lightning.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=7, save_top_k=-1)
    whole = fit(lightning, callback_of("cosine:peak=0.3"), tmp_path, callbacks=[saving], enable_checkpointing=True)
    second = fit(lightning, callback_of("cosine:peak=0.3"), tmp_path, tmp_path / "step=14.ckpt")
    assert rates(second) == rates(whole)[14:]


def test_a_longer_run_trains_at_the_rates_that_its_history_tells(lightning: Any, tmp_path: Path) -> None:
    """The decision that the new end brings stands, although Lightning then loads the optimizer's state."""
    first = fit(lightning, callback_of("linear:peak=0.1", every=5), tmp_path, max_epochs=1)
    first.save_checkpoint(tmp_path / "end.ckpt")

    def evaluate(module: Any) -> Tensor:
        assert module.trainer.train_dataloader is not None
        return cross_entropy(*validate(module))

    callback = callback_of("linear:peak=0.1", every=5, evaluate=evaluate)
    second = fit(lightning, callback, tmp_path, tmp_path / "end.ckpt")
    steps = 3 * PER_EPOCH
    assert rates(second) == pytest.approx([0.1 * (1 - (t - t % 5) / steps) for t in range(PER_EPOCH, steps)])
    assert [(d.step, d.rates[0]) for d in callback.controller.history] == [
        (t, rates(second)[t - PER_EPOCH]) for t in range(PER_EPOCH, steps, 5)
    ]


def test_a_checkpoint_that_another_callback_saved_too_early_is_told(lightning: Any, tmp_path: Path) -> None:
    class Saving(lightning.Callback):  # type: ignore[name-defined, misc]
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 14:
                trainer.save_checkpoint(tmp_path / "early.ckpt")

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    callbacks = [Saving(), callback_of("linear:peak=0.1")]
    first = lightning.Trainer(max_epochs=3, enable_checkpointing=False, callbacks=callbacks, **quiet)
    first.fit(lightning.Module(), DataLoader(TensorDataset(*data()), 4))
    with warnings.catch_warnings(record=True) as told:  # Lightning warns, too
        warnings.simplefilter("always")
        fit(lightning, callback_of("linear:peak=0.1"), tmp_path, tmp_path / "early.ckpt")
    sentence = "is of step 14, and this callback had counted 13"
    assert [sentence in str(warning.message) for warning in told].count(True) == 1


def test_a_refused_checkpoint_is_forgotten(lightning: Any, tmp_path: Path) -> None:
    callback = callback_of("linear:peak=0.1")
    fit(lightning, callback, tmp_path).save_checkpoint(tmp_path / "end.ckpt")
    with pytest.raises(ValueError, match="sets the rates, too"):
        fit(lightning, callback, tmp_path, tmp_path / "end.ckpt", lightning.Module(schedulers=1), max_epochs=6)
    again = fit(lightning, callback, tmp_path)
    assert rates(again) == pytest.approx([0.1 * (1 - t / (3 * PER_EPOCH)) for t in range(3 * PER_EPOCH)])


def test_the_first_decision_sees_the_loss_as_it_is_before_it_is_scaled(lightning: Any, tmp_path: Path) -> None:
    seen = []
    for scale in (1.0, 8.0):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        callback = callback_of(TrainingLosses())
        precision = lightning.plugins.MixedPrecision("16-mixed", "cpu", scaler=scaler)
        fit(lightning, callback, tmp_path, plugins=[precision])
        seen.append(next(iter(callback.controller.history)))
    assert [decision.step for decision in seen] == [0, 0]
    x, y = data()
    assert seen[0].train_loss == pytest.approx(cross_entropy(network()(x[:4]), y[:4]).item(), rel=1e-2)
    assert seen[1].train_loss == pytest.approx(seen[0].train_loss, rel=1e-6)


def test_steps_that_a_scaler_skips_do_not_count(lightning: Any, tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    precision = lightning.plugins.MixedPrecision("16-mixed", "cpu", scaler=scaler)
    callback = callback_of("linear:peak=0.1", evaluate=validate)
    trainer = fit(lightning, callback, tmp_path, plugins=[precision])
    taken = len(rates(trainer))
    assert 0 < taken < trainer.global_step == 3 * PER_EPOCH
    assert callback.controller.last_epoch == taken
    assert rates(trainer) == pytest.approx([0.1 * (1 - t / (3 * PER_EPOCH)) for t in range(taken)])


def test_a_batch_without_a_loss_is_no_step(lightning: Any, tmp_path: Path) -> None:
    callback = callback_of(TrainingLosses())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = fit(lightning, callback, tmp_path, module=lightning.Module(skip=(2, 3)))
    assert trainer.global_step == 3 * PER_EPOCH
    assert callback.controller.last_epoch == 3 * (PER_EPOCH - 2)


def test_a_shadow_stands_beside_a_scheduler_and_beside_a_callback_that_drives(lightning: Any, tmp_path: Path) -> None:
    alone = fit(lightning, None, tmp_path, module=lightning.Module(schedulers=1))
    shadow = callback_of("cosine:peak=0.3", shadow=True)
    beside = fit(lightning, shadow, tmp_path, module=lightning.Module(schedulers=1))
    assert rates(beside) == rates(alone)
    assert [d.rates[0] for d in shadow.controller.history] != [d.proposed[0] for d in shadow.controller.history]

    shadow, driving = callback_of("cosine:peak=0.3", shadow=True), callback_of("linear:peak=0.1")
    both = fit(lightning, driving, tmp_path, callbacks=[shadow])
    both.save_checkpoint(tmp_path / "both.ckpt")
    states = torch.load(tmp_path / "both.ckpt", weights_only=True)["callbacks"]
    assert sorted(state["controller"]["agent"].partition("(")[0] for state in states.values()) == ["cosine", "linear"]


def test_what_can_not_be_driven_is_refused(lightning: Any, tmp_path: Path) -> None:
    linear = "linear:peak=0.1"
    for module, message in (
        (lightning.Module(schedulers=1), r"sets the rates, too \(StepLR\): give the optimizer alone"),
        (lightning.Module(optimizers=2), "optimizes by hand"),
        (lightning.Module(optimizers=0), "this LightningModule has 0"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(lightning, callback_of(linear), tmp_path, module=module)
    with pytest.raises(ValueError, match="so it must know how long training takes"):
        fit(lightning, callback_of(linear), tmp_path, max_epochs=-1)
    with pytest.raises(ValueError, match="observes the validation loss: pass evaluate="):
        fit(lightning, callback_of("plateau:peak=0.1", every=3), tmp_path)


def test_a_fresh_run_forgets_a_checkpoint_that_was_only_validated(lightning: Any, tmp_path: Path) -> None:
    callback = callback_of("linear:peak=0.1")
    trainer = fit(lightning, callback, tmp_path)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    module = lightning.Module()
    module.validation_step = lambda batch, batch_idx: None
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    second = lightning.Trainer(max_epochs=3, enable_checkpointing=False, callbacks=[callback], **quiet)
    second.validate(module, DataLoader(TensorDataset(*data()), 4), tmp_path / "end.ckpt", verbose=False)
    second.fit(module, DataLoader(TensorDataset(*data()), 4))
    assert rates(second) == pytest.approx([0.1 * (1 - t / (3 * PER_EPOCH)) for t in range(3 * PER_EPOCH)])


def test_a_trainer_that_fits_once_more_goes_on(lightning: Any, tmp_path: Path) -> None:
    """It counts on, up to the new number of epochs, and trains with a new optimizer."""
    callback, module = callback_of("linear:peak=0.1"), lightning.Module()
    trainer = fit(lightning, callback, tmp_path, module=module, max_epochs=1)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, DataLoader(TensorDataset(*data()), 4))
    steps = 3 * PER_EPOCH
    assert callback.controller.last_epoch == callback.controller.horizon == steps == trainer.global_step
    assert rates(trainer) == pytest.approx([0.1 * (1 - t / steps) for t in range(PER_EPOCH, steps)])


def test_a_run_that_ends_before_the_horizon_of_its_checkpoint_says_so(lightning: Any, tmp_path: Path) -> None:
    saving = lightning.callbacks.ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1)
    fit(lightning, callback_of("linear:peak=0.1"), tmp_path, callbacks=[saving], enable_checkpointing=True)
    callback = callback_of("linear:peak=0.1")
    with warnings.catch_warnings(record=True) as told:  # Lightning warns, too
        warnings.simplefilter("always")
        fit(lightning, callback, tmp_path, tmp_path / "epoch=0.ckpt", max_epochs=2)
    sentence = f"ends after {2 * PER_EPOCH} steps, and the controller goes on with its horizon of {3 * PER_EPOCH}"
    assert [sentence in str(warning.message) for warning in told].count(True) == 1
    assert callback.controller.horizon == 3 * PER_EPOCH


@pytest.mark.filterwarnings("ignore:the optimizer's 1 parameter groups were split")
def test_a_rate_per_layer_goes_on_too(lightning: Any, tmp_path: Path) -> None:
    agent = "cosine:peak=0.1:fan_in=0.5"
    saving = lightning.callbacks.ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1)
    whole = fit(lightning, callback_of(agent), tmp_path, callbacks=[saving], enable_checkpointing=True)
    assert len({group["lr"] for group in whole.optimizers[0].param_groups}) == 2
    second = fit(lightning, callback_of(agent), tmp_path, tmp_path / "epoch=1.ckpt")
    assert rates(second) == rates(whole)[2 * PER_EPOCH :]
    for mine, its in zip(second.optimizers[0].param_groups, whole.optimizers[0].param_groups, strict=True):
        assert mine["lr"] == its["lr"]


def test_hypergradient_descent_sees_gradients_that_the_trainer_computes_in_a_closure(
    lightning: Any, tmp_path: Path
) -> None:
    class Plain(lightning.Module):  # type: ignore[name-defined, misc]
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    callback = callback_of("sgd-hd:initial_lr=0.1:beta=0.001")
    fit(lightning, callback, tmp_path, module=Plain())
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    controller = lrenv.LRController(optimizer, "sgd-hd:initial_lr=0.1:beta=0.001", 3 * PER_EPOCH, module=model)
    for _ in range(3):
        for x, y in DataLoader(TensorDataset(*data()), 4):
            loss = cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            controller.step(loss)
    expected = [decision.rates[0] for decision in controller.history]
    assert [decision.rates[0] for decision in callback.controller.history] == pytest.approx(expected, rel=1e-5)
    assert len(set(expected)) > 2


def test_the_trainers_number_of_steps_is_not_trusted_where_batches_of_a_step_change(
    lightning: Any, tmp_path: Path
) -> None:
    from lightning.pytorch.callbacks import GradientAccumulationScheduler

    changing = GradientAccumulationScheduler({0: 1, 1: 4})
    with pytest.raises(ValueError, match="pass horizon="):
        fit(lightning, callback_of("linear:peak=0.1"), tmp_path, callbacks=[changing])
    callback = callback_of("linear:peak=0.1", horizon=PER_EPOCH + 6)
    fit(lightning, callback, tmp_path, callbacks=[changing])
    assert callback.controller.last_epoch == callback.controller.horizon
