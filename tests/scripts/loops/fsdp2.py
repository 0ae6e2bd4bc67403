"""FSDP2 by hand: a model made on the meta device, sharded block by block, then filled by rank 0."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard

from tests.scripts.loop import Run, Trained, own, text, weights
from tests.scripts.loops.nano_gpt import GPT, LENGTH, VOCABULARY


def sharded() -> nn.Module:
    """The model, of which each rank holds its part."""
    torch.manual_seed(7)
    whole = GPT(tied=False).state_dict()
    with torch.device("meta"):
        model = GPT(tied=False)
    for block in model.h:
        fully_shard(block)
    fully_shard(model)
    model.to_empty(device="cpu")
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, whole, options=options)
    return model


def train(run: Run) -> Trained:
    """The loop, as a script's main function would be."""
    model = sharded()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    flerm = None
    if run.record:
        flerm = run.attach(
            model, optimizer, probe=[text(8, LENGTH, VOCABULARY, own(s)) for s in range(90, 94)],
            output=lambda model, ids: model(ids)[0], **run.keywords,
        )  # fmt: skip
    torch.manual_seed(own(5))
    losses = []
    assert isinstance(model, FSDPModule)
    for step in range(run.steps):
        total = 0.0
        for half, part in enumerate(text(8, LENGTH + 1, VOCABULARY, own(step)).chunk(2)):
            model.set_requires_gradient_sync(half == 1)
            _, loss = model(part[:, :-1], part[:, 1:])
            (loss / 2).backward()
            total += loss.item() / 2
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    if flerm is not None:
        flerm.close()
    return Trained(losses, weights(model), flerm)
