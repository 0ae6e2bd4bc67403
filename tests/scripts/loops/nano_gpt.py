"""A small GPT loop: accumulation, rates set by hand, clipping, a hand-made checkpoint; DDP."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.scripts.loop import STEPS, Run, Trained, own, own_file, replicated, text, weights

VOCABULARY, LENGTH, SIZE, ACCUMULATION = 32, 12, 16, 2


class Block(nn.Module):
    """Causal attention and an MLP, each behind a norm and beside a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(SIZE), nn.LayerNorm(SIZE)
        self.c_attn = nn.Linear(SIZE, 3 * SIZE)
        self.c_proj = nn.Linear(SIZE, SIZE)
        self.mlp = nn.Sequential(
            nn.Linear(SIZE, 2 * SIZE), nn.GELU(), nn.Linear(2 * SIZE, SIZE), nn.Dropout(0.1)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = self.c_attn(self.ln_1(x)).split(SIZE, dim=2)
        q, k, v = (part.unflatten(2, (2, -1)).transpose(1, 2) for part in parts)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Embeddings, where tied shared with the readout, positions, two blocks."""

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, SIZE)
        self.wpe = nn.Embedding(LENGTH, SIZE)
        self.h = nn.ModuleList(Block() for _ in range(2))
        self.ln_f = nn.LayerNorm(SIZE)
        self.lm_head = nn.Linear(SIZE, VOCABULARY, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        if targets is None:
            return logits, None
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def rate(step: int) -> float:
    """Warm-up, then a cosine."""
    if step < 2:
        return 1e-2 * (step + 1) / 2
    return 1e-3 + 0.5 * 9e-3 * (1 + math.cos(math.pi * step / STEPS))


def train(run: Run) -> Trained:
    """The loop, as a script's main function would be."""
    torch.manual_seed(1337)
    model = GPT()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=1e-2, betas=(0.9, 0.95),
    )  # fmt: skip
    called = replicated(model)
    torch.manual_seed(own(0))
    flerm = None
    if run.record:
        flerm = run.attach(
            called, optimizer,
            probe=[text(8, LENGTH, VOCABULARY, own(seed)) for seed in range(90, 94)],
            output=lambda model, ids: model(ids)[0], lr=1e-2, **run.keywords,
        )  # fmt: skip
    checkpoint = own_file(run.folder, "ckpt.pt")
    begin = 0
    if run.resume:
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
        if flerm is not None:
            flerm.load_state_dict(saved["flerm"])
        begin = saved["step"]
    losses = []
    for step in range(begin, run.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        total = 0.0
        for part in range(ACCUMULATION):
            ids = text(8, LENGTH + 1, VOCABULARY, own(ACCUMULATION * step + part))
            last = part == ACCUMULATION - 1
            many = isinstance(called, DistributedDataParallel)
            with called.no_sync() if many and not last else nullcontext():
                _, loss = called(ids[:, :-1], ids[:, 1:])
                (loss / ACCUMULATION).backward()
            total += loss.item() / ACCUMULATION
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
    if run.stop:
        torch.save(
            {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                "random": torch.get_rng_state(), "step": run.steps,
                "flerm": flerm.state_dict() if flerm is not None else None,
            },
            checkpoint,
        )  # fmt: skip
    if flerm is not None:
        flerm.close("interrupted" if run.stop else "completed")
    return Trained(losses, weights(model), flerm)
