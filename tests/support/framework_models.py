"""A language model, its data, and a Trainer, all of a size for tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

VOCABULARY, LENGTH, BATCH = 50, 12, 8


def gpt2(width: int = 16, dropout: float = 0.1) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY,
        "n_positions": LENGTH,
        "n_embd": width,
        "n_layer": 2,
        "n_head": 2,
    }
    noise = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    return GPT2LMHeadModel(
        GPT2Config(**sizes, **noise, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM")
    )


def examples(count: int = 64, seed: int = 1) -> list[dict[str, Tensor]]:
    tokens = torch.randint(
        0, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(seed)
    )
    return [{"input_ids": row, "labels": row} for row in tokens]


def batches(count: int = 4, seed: int = 2, size: int = BATCH) -> list[dict[str, Tensor]]:
    """Probe batches, the same for every run that is compared."""
    rows = examples(count * size, seed)
    return [
        {"input_ids": torch.stack([row["input_ids"] for row in rows[at : at + size]])}
        for at in range(0, len(rows), size)
    ]


class Stream(IterableDataset):
    """The examples in their order, over and over."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            yield from examples()


def trainer_of(
    folder: Path,
    model: Any = None,
    *,
    steps: int = 6,
    data: Any = None,
    callbacks: Any = None,
    **settings: Any,
) -> Trainer:
    given = {
        "max_steps": steps,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "include_num_input_tokens_seen": "all",
    }
    arguments = TrainingArguments(output_dir=str(folder), **given | settings)
    model = gpt2() if model is None else model
    return Trainer(model, arguments, train_dataset=data or examples(), callbacks=callbacks)


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = dict(other.named_parameters())
    return all(torch.equal(value, theirs[name]) for name, value in one.named_parameters())
