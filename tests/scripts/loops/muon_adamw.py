"""Muon for the matrices of a GPT's blocks, AdamW beside it for all else; one schedule each.

On several ranks gradients are averaged by hand.
"""

from __future__ import annotations

import torch
from torch import distributed as dist
from torch import nn

from tests.scripts.loop import Run, Trained, own, own_file, text, weights
from tests.scripts.loops.nano_gpt import GPT, LENGTH, VOCABULARY


def train(run: Run) -> Trained:
    """The loop, as a script's main function would be."""
    torch.manual_seed(42)
    model = GPT()
    matrices = [p for p in model.h.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    optimizers = [
        torch.optim.Muon(matrices, lr=2e-2, momentum=0.9),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.8, 0.95)),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(each, lambda step: 1.0 - step / 10) for each in optimizers
    ]
    ranks = dist.group.WORLD if dist.is_initialized() else None
    flerm = None
    if run.record:
        flerm = run.attach(
            model, optimizers, probe=[text(8, LENGTH, VOCABULARY, own(s)) for s in range(90, 94)],
            output=lambda model, ids: model(ids)[0], lr=3e-3, process_group=ranks, **run.keywords,
        )  # fmt: skip
    kept: dict[str, object] = {"model": model}
    kept |= {f"optimizer {at}": each for at, each in enumerate(optimizers)}
    kept |= {f"schedule {at}": each for at, each in enumerate(schedules)}
    if flerm is not None:
        kept["flerm"] = flerm
    begin = 0
    if run.resume:
        saved = torch.load(own_file(run.folder, "state.pt"), weights_only=False)
        for name, each in kept.items():
            each.load_state_dict(saved[name])  # type: ignore[attr-defined]
        torch.set_rng_state(saved["random"])
        begin = saved["step"]
    losses = []
    for step in range(begin, run.steps):
        ids = text(8, LENGTH + 1, VOCABULARY, own(step))
        logits = model(ids[:, :-1])[0]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        for parameter in model.parameters() if ranks is not None else ():
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad(set_to_none=True)
        losses.append(loss.item())
    if run.stop:
        state = {name: each.state_dict() for name, each in kept.items()}  # type: ignore[attr-defined]
        extra = {"random": torch.get_rng_state(), "step": run.steps}
        torch.save(state | extra, own_file(run.folder, "state.pt"))
    if flerm is not None:
        flerm.close("interrupted" if run.stop else "completed")
    return Trained(losses, weights(model), flerm)
