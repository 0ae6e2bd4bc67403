"""transformers' Trainer: accumulation, a cosine, shuffled data, its own checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed as dist
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from flerm_client.integrations.transformers import FLeRMCallback
from tests.scripts.loop import HALF, STEPS, Run, Trained, own, text, weights

VOCABULARY, LENGTH, BATCH = 32, 12, 4


class StopAtHalf(TrainerCallback):
    """Ends training after the checkpoint, as a time limit does."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= HALF


def trainer_of(run: Run, data: list[dict[str, torch.Tensor]]) -> Trainer:
    """The script's Trainer."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM",
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(run.folder), max_steps=STEPS, per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=2, learning_rate=1e-2, lr_scheduler_type="cosine",
        warmup_steps=2, weight_decay=0.1, logging_steps=1, save_strategy="steps", save_steps=HALF,
        report_to="none", use_cpu=True, disable_tqdm=True,
        ddp_backend="gloo" if dist.is_initialized() else None,
    )  # fmt: skip
    return Trainer(GPT2LMHeadModel(config), arguments, train_dataset=data)


def train(run: Run) -> Trained:
    """The loop, as a script's main function would be."""
    data = [{"input_ids": ids, "labels": ids} for ids in text(64, LENGTH, VOCABULARY, seed=1)]
    probe = [{"input_ids": text(8, LENGTH, VOCABULARY, own(seed))} for seed in range(4)]
    trainer = trainer_of(run, data)
    if run.stop:
        trainer.add_callback(StopAtHalf())
    callback = None
    if run.record:
        callback = FLeRMCallback(run.mode, probe=probe, **run.keywords).add_to(trainer)
    trainer.train(
        resume_from_checkpoint=str(run.folder / f"checkpoint-{HALF}") if run.resume else None
    )
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Trained(
        losses[HALF:] if run.resume else losses,
        weights(trainer.model),
        callback.flerm if callback is not None else None,
    )
