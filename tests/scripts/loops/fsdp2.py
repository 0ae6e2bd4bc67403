"""FSDP2 by hand: made on the meta device, sharded block by block, and then filled by rank 0.

The checkpoint is a distributed one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard

from flerm_client import FLeRM
from tests.scripts.loop import HALF, Run, Trained, own, text, weights
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


def state(
    model: nn.Module, optimizer: torch.optim.Optimizer, flerm: FLeRM | None
) -> dict[str, Any]:
    """What a checkpoint holds: sharded states, and of each rank what is its own."""
    weights, moments = get_state_dict(model, optimizer)
    rank = dist.get_rank()
    own_part = {f"random {rank}": torch.get_rng_state(), f"flerm {rank}": flerm}
    return {"model": weights, "optimizer": moments, **own_part}


def resume(
    run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, flerm: FLeRM | None
) -> None:
    """Puts everything where it was when `state` was saved."""
    found = state(model, optimizer, flerm)
    checkpoint.load(found, checkpoint_id=run.folder / "state")
    set_state_dict(
        model, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"]
    )
    torch.set_rng_state(found[f"random {dist.get_rank()}"])


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
    begin = 0
    if run.resume:
        resume(run, model, optimizer, flerm)
        begin = HALF
    losses = []
    assert isinstance(model, FSDPModule)
    for step in range(begin, run.steps):
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
    if run.stop:
        checkpoint.save(state(model, optimizer, flerm), checkpoint_id=run.folder / "state")
    if flerm is not None:
        flerm.close("interrupted" if run.stop else "completed")
    return Trained(losses, weights(model), flerm)
