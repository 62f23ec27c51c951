"""An agent drives the rate inside Hugging Face's Trainer: `python examples/hf_trainer.py [agent]`.

The model is a tiny LLaMA made from a configuration, trained on Python's reference, one character a token.
"""

from __future__ import annotations

import sys
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from lrenv.data import load
from lrenv.home.integrations.transformers import LRControllerCallback


def main(agent: str = "greedy-bounded:peak=0.003:patience=0", steps: int = 100) -> list[tuple[int, float, float]]:
    """Gives the decisions: step, rate and validation loss."""
    set_seed(0)
    data = load("text")
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=data.classes, **size))
    train = [{"input_ids": ids, "labels": ids} for ids in data.train.inputs[:2000]]
    held_out = data.val.inputs[:64]

    def validate(model: Any) -> Tensor:
        ids = held_out.to(model.device)
        return model(input_ids=ids, labels=ids).loss

    callback = LRControllerCallback(agent, every=5, evaluate=validate)
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=8, gradient_accumulation_steps=2, learning_rate=1e-2,
            lr_scheduler_type="constant",  # the agent sets the rate, and no scheduler beside it
            report_to=[], save_strategy="no", disable_tqdm=True, logging_strategy="no", use_cpu=True,
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=train, callbacks=[callback]).train()
    history = callback.controller.history
    for decision in history:
        print(f"step {decision.step:3}: rate {decision.rates[0]:.1e}, validation loss {decision.val_loss:.3f}")
    return [(decision.step, decision.rates[0], decision.val_loss) for decision in history]


if __name__ == "__main__":
    main(*sys.argv[1:2])
