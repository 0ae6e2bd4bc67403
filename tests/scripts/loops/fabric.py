"""Lightning Fabric: a hand-written loop with accumulation; `fabric.save` and `fabric.load`."""

from __future__ import annotations

import torch
from lightning.fabric import Fabric
from torch import nn

from tests.scripts.loop import Run, Trained, own, own_file, text, weights, world
from tests.scripts.loops.nano_gpt import GPT, LENGTH, VOCABULARY


def train(run: Run) -> Trained:
    """The loop, as a script's main function would be."""
    fabric = Fabric(
        accelerator="cpu", devices=world()[1], strategy="ddp" if world()[1] > 1 else "auto"
    )
    fabric.launch()
    fabric.seed_everything(3, verbose=False)
    model, optimizer = fabric.setup(gpt := GPT(), torch.optim.AdamW(gpt.parameters(), lr=1e-2))
    torch.manual_seed(own(3))
    flerm = None
    if run.record:
        flerm = run.attach(
            model, optimizer, probe=[text(8, LENGTH, VOCABULARY, own(s)) for s in range(90, 94)],
            output=lambda model, ids: model(ids)[0], **run.keywords,
        )  # fmt: skip
    state = {"model": model, "optimizer": optimizer, "step": 0}
    if run.resume:
        fabric.load(run.folder / "state.ckpt", state)
        saved = torch.load(own_file(run.folder, "rank.pt"), weights_only=True)
        torch.set_rng_state(saved["random"])
        if flerm is not None:
            flerm.load_state_dict(saved["flerm"])
    losses = []
    for step in range(state["step"], run.steps):
        ids = text(8, LENGTH + 1, VOCABULARY, own(step))
        for half, part in enumerate(ids.chunk(2)):
            with fabric.no_backward_sync(model, enabled=half == 0):
                logits = model(part[:, :-1])[0]
                loss = nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten())
                fabric.backward(loss / 2)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if run.stop:
        fabric.save(run.folder / "state.ckpt", state | {"step": run.steps})
        own_part = {
            "random": torch.get_rng_state(),
            "flerm": flerm.state_dict() if flerm is not None else None,
        }
        torch.save(own_part, own_file(run.folder, "rank.pt"))
    if flerm is not None:
        flerm.close("interrupted" if run.stop else "completed")
    return Trained(losses, weights(model.module), flerm)
