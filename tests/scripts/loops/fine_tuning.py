"""Supervised fine-tuning: rows of many lengths, a padding collator, losses on answers alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from tests.scripts.loop import STEPS, Run, Trained, own, own_file, replicated, text, weights

VOCABULARY, PAD, BATCH = 32, 0, 8
Row = tuple[Tensor, Tensor]


def rows() -> list[Row]:
    """Prompt and answer of each conversation, of 2 to 7 tokens each."""
    words = text(STEPS * BATCH, 14, VOCABULARY - 1, own(2)) + 1
    lengths = torch.randint(2, 8, (len(words), 2), generator=torch.Generator().manual_seed(own(3)))
    return [(row[:a], row[7 : 7 + b]) for row, (a, b) in zip(words, lengths.tolist(), strict=True)]


def collate(batch: list[Row]) -> dict[str, Tensor]:
    """Padded ids, their mask, and labels that leave prompts and padding out."""
    whole = [torch.cat(row) for row in batch]
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad(whole, batch_first=True, padding_value=PAD)
    answers = [torch.cat([torch.full_like(prompt, -100), answer]) for prompt, answer in batch]
    labels = pad(answers, batch_first=True, padding_value=-100)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels}


def outputs(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The logits."""
    logits: Tensor = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits


def train(run: Run) -> Trained:
    """The loop, as a script's main function would be."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16,
        )
    )  # fmt: skip
    model.gradient_checkpointing_enable()
    model.train()
    called = replicated(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    conversations = rows()
    flerm = None
    if run.record:
        probe = [collate(conversations[at : at + BATCH]) for at in range(0, 4 * BATCH, BATCH)]
        flerm = run.attach(called, optimizer, probe=probe, output=outputs, **run.keywords)
    begin = 0
    if run.resume:
        model.load_state_dict(torch.load(own_file(run.folder, "model.pt"), weights_only=True))
        saved = torch.load(own_file(run.folder, "trainer_state.pt"), weights_only=True)
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        begin = saved["step"]
        if flerm is not None:
            flerm.load_state_dict(saved["flerm"])
    losses = []
    loader = DataLoader(conversations, BATCH, collate_fn=collate)  # type: ignore[arg-type]
    for step, batch in enumerate(loader):
        if not begin <= step < run.steps:
            continue
        loss = called(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if run.stop:
        torch.save(model.state_dict(), own_file(run.folder, "model.pt"))
        state = {
            "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
            "step": run.steps, "flerm": flerm.state_dict() if flerm is not None else None,
        }  # fmt: skip
        torch.save(state, own_file(run.folder, "trainer_state.pt"))
    if flerm is not None:
        flerm.close("interrupted" if run.stop else "completed")
    return Trained(losses, weights(model), flerm)
