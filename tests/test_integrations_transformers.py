"""The callback of Hugging Face's Trainer, in the Trainer, on a tiny language model made from a configuration."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from reacting import Everything, TrainingLosses
from torch import Tensor, nn

import lrenv
from lrenv.agents import BaseAgent

pytestmark = pytest.mark.filterwarnings("ignore:::(transformers|accelerate)")
STEPS, ACCUMULATE = 12, 4
FOR_TRAINER = ("optimizers", "compute_loss_func", "eval_dataset")


@pytest.fixture(scope="module")
def transformers() -> Any:
    pytest.importorskip("accelerate")
    return pytest.importorskip("transformers")


def network(transformers: Any) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=17, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config)


def data() -> list[dict[str, Tensor]]:
    """Sequences of which some end early: a batch has more or fewer tokens to predict."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(17, (2 * ACCUMULATE * STEPS, 8), generator=generator)
    ends = torch.randint(3, 9, (len(tokens), 1), generator=generator)
    labels = torch.where(torch.arange(8) < ends, tokens, -100)
    return [{"input_ids": x, "labels": y} for x, y in zip(tokens, labels, strict=True)]


def batches(examples: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    pairs = zip(examples[::2], examples[1::2], strict=True)
    return [{name: torch.stack([a[name], b[name]]) for name in a} for a, b in pairs]


def validate(model: Any) -> tuple[Tensor, Tensor]:
    assert not model.training
    batch = batches(data()[:8])
    x, y = torch.cat([b["input_ids"] for b in batch]), torch.cat([b["labels"] for b in batch])
    logits = model(input_ids=x).logits[:, :2]
    return logits, y[:, 1:3].clamp(min=0)


def trainer_of(
    transformers: Any, folder: Path, *callbacks: Any, kind: Any = None, model: Any = None, **settings: Any
) -> Any:
    for_trainer = {name: settings.pop(name) for name in FOR_TRAINER if name in settings}
    usual = {
        "lr_scheduler_type": "constant", "learning_rate": 1e-2, "per_device_train_batch_size": 2, "max_steps": STEPS,
        "gradient_accumulation_steps": ACCUMULATE, "report_to": [], "logging_steps": 1, "use_cpu": True,
        "save_strategy": "no", "disable_tqdm": True, "max_grad_norm": 0.0, "train_sampling_strategy": "sequential",
        "seed": 0,
    }  # fmt: skip
    args = transformers.TrainingArguments(str(folder), **{**usual, **settings})
    kind = kind or transformers.Trainer
    return kind(model or network(transformers), args, train_dataset=data(), callbacks=list(callbacks), **for_trainer)


def callback_of(agent: Any, **settings: Any) -> Any:
    from lrenv.home.integrations.transformers import LRControllerCallback

    return LRControllerCallback(agent, **settings)


def logged(trainer: Any, name: str = "learning_rate") -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


def plain(transformers: Any, agent: BaseAgent[Any], evaluate: bool) -> list[float]:
    """The rates of a loop of one's own that does the same."""
    model = network(transformers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    controller = lrenv.LRController(
        optimizer, agent, STEPS, evaluate=(lambda: validate(model)) if evaluate else None, module=model
    )
    rates, examples = [], batches(data())
    for step in range(STEPS):
        parts = examples[step * ACCUMULATE : (step + 1) * ACCUMULATE]
        tokens = sum(int((part["labels"][:, 1:] >= 0).sum()) for part in parts)
        loss = sum(model(**part, num_items_in_batch=tokens).loss for part in parts)
        optimizer.zero_grad()
        loss.backward()
        controller.start(loss)
        optimizer.step()
        rates.append(controller.get_last_lr()[0])
        controller.step(loss)
    return rates


@pytest.mark.parametrize("agent", [Everything, TrainingLosses])
def test_the_rates_are_those_of_a_loop_of_ones_own(agent: Any, transformers: Any, tmp_path: Path) -> None:
    evaluate = agent is Everything
    callback = callback_of(agent(), evaluate=validate if evaluate else None)
    trainer = trainer_of(transformers, tmp_path, callback)
    trainer.train()
    assert callback.controller.last_epoch == callback.controller.horizon == trainer.state.global_step == STEPS
    expected = plain(transformers, agent(), evaluate)
    assert logged(trainer) == pytest.approx(expected, rel=1e-3)
    assert len(set(expected)) > 2
    losses, history = logged(trainer, "loss"), callback.controller.history
    assert [d.train_loss for d in history][1:] == pytest.approx(
        [sum(losses[i - 3 : i]) / 3 for i in range(3, STEPS, 3)], rel=1e-5
    )
    assert not trainer.model._forward_hooks


def test_the_losses_of_a_model_that_knows_of_no_other_batches_are_averaged(transformers: Any, tmp_path: Path) -> None:
    class Bigrams(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(17, 17)

        def forward(self, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.table(input_ids[:, :-1])
            return nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()), logits

    callback = callback_of(TrainingLosses())
    evaluating = {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": data()[:4]}  # whose losses don't count
    trainer = trainer_of(transformers, tmp_path, callback, model=Bigrams(), **evaluating)
    trainer.train()
    losses = logged(trainer, "loss")
    means = [sum(losses[i - 3 : i]) / 3 for i in range(3, STEPS, 3)]
    assert [d.train_loss for d in callback.controller.history][1:] == pytest.approx(means, rel=1e-5)


def test_an_epoch_whose_last_step_has_fewer_batches(transformers: Any, tmp_path: Path) -> None:
    callback = callback_of(TrainingLosses())
    settings = {"gradient_accumulation_steps": 20, "max_steps": -1, "logging_steps": 2}
    trainer = trainer_of(transformers, tmp_path, callback, **settings)
    trainer.args.num_train_epochs = 2
    trainer.train()
    assert callback.controller.last_epoch == callback.controller.horizon == trainer.state.global_step == 6


@pytest.mark.parametrize("at", [3, 5, 10])
def test_saved_and_loaded_in_the_middle_the_rates_are_the_same(at: int, transformers: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": at}
    whole = trainer_of(transformers, tmp_path, callback_of(Everything(), evaluate=validate), **settings)
    whole.train()
    callback = callback_of(Everything(), evaluate=validate)
    second = trainer_of(transformers, tmp_path, callback, **settings)
    second.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
    assert logged(second) == logged(whole)
    assert [d.step for d in callback.controller.history] == [
        step for step in range(at, STEPS) if not step % 3 and step > at
    ]
    assert callback.controller.last_epoch == STEPS


def test_a_longer_run_goes_on_from_a_checkpoint(transformers: Any, tmp_path: Path) -> None:
    first = trainer_of(transformers, tmp_path, callback_of("linear:peak=0.1"), save_strategy="steps", save_steps=6)
    first.train()
    callback = callback_of("linear:peak=0.1")
    second = trainer_of(transformers, tmp_path, callback, max_steps=24)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert callback.controller.horizon == 24
    assert logged(second)[7:] == pytest.approx([0.1 * (1 - t / 24) for t in range(7, 24)])


def test_a_second_training_begins_anew(transformers: Any, tmp_path: Path) -> None:
    trainer = trainer_of(transformers, tmp_path, callback_of("linear:peak=0.1"))
    trainer.train()
    first = logged(trainer)
    trainer.train()
    assert logged(trainer) == first == pytest.approx([0.1 * (1 - t / STEPS) for t in range(STEPS)])


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_scaler_skips_do_not_count(fused: bool, transformers: Any, tmp_path: Path) -> None:
    callback = callback_of("linear:peak=0.1")
    trainer = trainer_of(transformers, tmp_path, callback, optim="adamw_torch_fused" if fused else "adamw_torch")
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-40)
    before = trainer.model.lm_head.weight.clone()
    taken = []

    class Watching(transformers.TrainerCallback):
        def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            nonlocal before
            taken.append(not torch.equal(before, trainer.model.lm_head.weight))
            before = trainer.model.lm_head.weight.clone()

    trainer.add_callback(Watching())
    trainer.train()
    assert 0 < sum(taken) < STEPS == len(taken)
    assert callback.controller.state_dict()["last_epoch"] == sum(taken)


def test_another_loss_of_the_trainers_is_told_or_taken(transformers: Any, tmp_path: Path) -> None:
    class Doubling(transformers.Trainer):
        def compute_loss(self, *args: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            loss, outputs = super().compute_loss(*args, return_outputs=True, **kwargs)
            return (2 * loss, outputs) if return_outputs else 2 * loss

    with pytest.warns(UserWarning, match="the Trainer trains on another loss"):
        trainer_of(transformers, tmp_path, callback_of(TrainingLosses()), kind=Doubling).train()

    class Telling(Doubling):
        def compute_loss(self, *args: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            loss, outputs = super().compute_loss(*args, return_outputs=True, **kwargs)
            callback.record(loss, of_items=True)
            return (loss, outputs) if return_outputs else loss

    callback = callback_of(TrainingLosses())
    held_out = {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": data()[:6]}  # its losses don't count
    trainer = trainer_of(transformers, tmp_path, callback, kind=Telling, **held_out)
    trainer.train()
    losses = logged(trainer, "loss")
    means = [sum(losses[i - 3 : i]) / 3 for i in range(3, STEPS, 3)]
    assert [d.train_loss for d in callback.controller.history][1:] == pytest.approx(means, rel=1e-5)

    def own(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        loss: Tensor = outputs.logits.square().mean()
        return loss

    with pytest.raises(ValueError, match="call this callback's record"):
        trainer_of(transformers, tmp_path, callback_of(TrainingLosses()), compute_loss_func=own).train()
    trainer_of(transformers, tmp_path, callback_of("linear:peak=0.1"), compute_loss_func=own).train()


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant_with_warmup"])
def test_a_scheduler_that_sets_the_rates_too_is_refused(scheduler: str, transformers: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"lr_scheduler_type": scheduler, "warmup_steps": 3}
    with pytest.raises(ValueError, match='pass lr_scheduler_type="constant"'):
        trainer_of(transformers, tmp_path, callback_of("linear:peak=0.1"), **settings).train()


def test_a_scheduler_of_ones_own_is_refused_and_a_shadow_leaves_it_alone(transformers: Any, tmp_path: Path) -> None:
    model = network(transformers)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pair = (optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2))
    with pytest.raises(ValueError, match=r"scheduler \(StepLR"):
        trainer_of(transformers, tmp_path, callback_of("linear:peak=0.1"), optimizers=pair).train()

    alone = trainer_of(transformers, tmp_path, lr_scheduler_type="cosine")
    alone.train()
    shadow = callback_of("linear:peak=0.1", shadow=True)
    settings: dict[str, Any] = {"lr_scheduler_type": "cosine", "save_strategy": "steps", "save_steps": 5}
    beside = trainer_of(transformers, tmp_path, shadow, **settings)
    beside.train()
    assert logged(beside) == logged(alone)
    again = callback_of("linear:peak=0.1", shadow=True)
    resumed = trainer_of(transformers, tmp_path, again, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert logged(resumed) == logged(alone)
    proposed = [d.proposed for d in shadow.controller.history]
    assert [d.proposed for d in again.controller.history] == proposed[6:]


def test_what_an_agent_lacks_is_told_as_training_begins(transformers: Any, tmp_path: Path) -> None:
    trainer = trainer_of(transformers, tmp_path, callback_of("plateau:peak=0.1", every=3))
    with pytest.raises(ValueError, match="observes the validation loss: pass evaluate="):
        trainer.train()
    bare = trainer_of(transformers, tmp_path, save_strategy="steps", save_steps=5)
    bare.train()
    late = trainer_of(transformers, tmp_path, callback_of("linear:peak=0.1"))
    with pytest.warns(UserWarning, match="begins at step 5 as if it were the first one"):
        late.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert logged(late)[-1] == pytest.approx(0.1 / 7)


def test_groups_that_a_checkpoint_could_not_be_loaded_into_are_refused(transformers: Any, tmp_path: Path) -> None:
    agent = "linear:peak=0.1:fan_in=0.5"
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5}
    trainer = trainer_of(transformers, tmp_path, callback_of(agent), **saving)
    with pytest.raises(ValueError, match="could not load a checkpoint of an optimizer whose groups were split"):
        trainer.train()
    assert len(trainer.optimizer.param_groups) == 2
    callback = callback_of(agent, layers="groups")
    trainer_of(transformers, tmp_path, callback, **saving).train()
    assert len(callback.controller.history[0].rates) == 2
    with pytest.warns(UserWarning, match="parameter groups were split"):
        trainer_of(transformers, tmp_path, callback_of(agent)).train()


def test_the_model_can_be_copied_and_pickled_in_training(transformers: Any, tmp_path: Path) -> None:
    copies = []

    class Copying(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            copies.append(copy.deepcopy(kwargs["model"]))
            copies.append(pickle.loads(pickle.dumps(kwargs["model"])))

    callback = callback_of("greedy:peak=0.01", evaluate=validate)
    trainer_of(transformers, tmp_path, callback, Copying()).train()
    losses = [float(x) for x in callback._losses]
    copies[0](**batches(data())[0])
    copies[1](**batches(data())[0])
    assert [float(x) for x in callback._losses] == losses, "a copy tells nobody of its losses"
