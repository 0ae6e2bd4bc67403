"""A causal language model on text, as transformers' run_clm does: grouped blocks, evaluation.

The text is the standard library's source, and its bytes are the tokens. FLeRM is given no probe.
"""

from __future__ import annotations

import argparse
import ast
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from flerm_client.integrations.transformers import FLeRMCallback
from tests.scripts.loop import HALF, STEPS, Run, Trained, weights

VOCABULARY, BLOCK = 256, 24


class StopAtHalf(TrainerCallback):
    """Ends training after the checkpoint, as a time limit does."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step >= HALF


def grouped(documents: list[list[int]]) -> list[dict[str, list[int]]]:
    """All documents in one row, cut into blocks; what is left at the end is dropped."""
    row = list(chain.from_iterable(documents))
    blocks = [row[at : at + BLOCK] for at in range(0, len(row) - BLOCK + 1, BLOCK)]
    return [
        {"input_ids": block, "attention_mask": [1] * BLOCK, "labels": block} for block in blocks
    ]


def train(run: Run) -> Trained:
    """The loop, as the script's main function would be."""
    set_seed(42)
    documents = [list(Path(each.__file__).read_bytes()[:6000]) for each in (argparse, ast)]
    data = grouped(documents)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=BLOCK, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM",
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(run.folder), max_steps=STEPS, per_device_train_batch_size=4,
        per_device_eval_batch_size=8, learning_rate=1e-2, warmup_steps=1, weight_decay=0.1,
        eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=HALF,
        logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
        ddp_backend="gloo" if dist.is_initialized() else None,
    )  # fmt: skip
    trainer = Trainer(
        AutoModelForCausalLM.from_config(config), arguments, train_dataset=data[16:],
        eval_dataset=data[:16], data_collator=default_data_collator,
        callbacks=[StopAtHalf()] if run.stop else [],
    )  # fmt: skip
    callback = None
    if run.record:
        callback = FLeRMCallback(run.mode, **run.keywords).add_to(trainer)
    checkpoint = str(run.folder / f"checkpoint-{HALF}") if run.resume else None
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    assert torch.isfinite(torch.tensor(trainer.evaluate()["eval_loss"]))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trained = weights(trainer.model)
    return Trained(losses[HALF:] if run.resume else losses, trained, callback and callback.flerm)
