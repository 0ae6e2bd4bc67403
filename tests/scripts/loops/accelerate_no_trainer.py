"""Accelerate without a Trainer: accumulation, a schedule, `save_state`, skipped batches."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, get_scheduler

from flerm_client.integrations import accelerate as flerm_accelerate
from tests.scripts.loop import HALF, STEPS, Run, Trained, own, text, weights, world

VOCABULARY, LENGTH, BATCH, ACCUMULATION = 32, 12, 4, 2


def train(run: Run) -> Trained:
    """The loop, as a script's main function would be."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION)
    # Without dropout: the loader draws its base seed from the generator that `load_state` restores.
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM",
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = text(STEPS * ACCUMULATION * BATCH * world()[1], LENGTH, VOCABULARY, seed=1)
    loader = DataLoader([{"input_ids": ids, "labels": ids} for ids in data], batch_size=BATCH)
    schedule = get_scheduler("linear", optimizer, 2 * ACCUMULATION, STEPS * ACCUMULATION)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    flerm = None
    if run.record:
        probe = [{"input_ids": text(8, LENGTH, VOCABULARY, own(seed))} for seed in range(4)]
        attach = getattr(flerm_accelerate, run.mode)
        flerm = attach(accelerator, model, optimizer, probe, **run.keywords)
    begin, batches = 0, loader
    if run.resume:
        accelerator.load_state(str(run.folder / "state"))
        begin = HALF
        batches = accelerator.skip_first_batches(loader, HALF * ACCUMULATION)
    losses, parts = [], []
    steps = begin
    for batch in batches:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        parts.append(loss.item())
        if accelerator.sync_gradients:
            losses.append(sum(parts) / len(parts))
            parts, steps = [], steps + 1
            if run.stop and steps == HALF:
                accelerator.save_state(str(run.folder / "state"))
                break
    if flerm is not None:
        flerm.close("interrupted" if run.stop else "completed")
    trained = weights(accelerator.unwrap_model(model))
    return Trained(losses, trained, flerm)
