"""A small GPT on the source text of Python's standard library, in one process or by DDP.

    torchrun --nproc-per-node 2 train.py --lr 0.003 --width 64

The lines that FLeRM needs are marked. Without FLERM_MODE in the environment they do nothing.
"""

import argparse
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from flerm_client import FLeRM  # FLeRM

CONTEXT, BATCH = 64, 16


class Block(nn.Module):
    """Attention and a multilayer perceptron, each a residual branch that begins with a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // 16)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N, T, width] to the same shape."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Predicts the next byte of a text."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(256, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Maps bytes [N, T] to logits [N, T, 256]."""
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def text() -> torch.Tensor:
    """The bytes of some modules of the standard library, [T]."""
    folder = Path(sysconfig.get_path("stdlib"))
    content = b"".join(path.read_bytes() for path in sorted(folder.glob("[a-d]*.py")))
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).long()


def batches(data: torch.Tensor, seed: int) -> Iterator[torch.Tensor]:
    """Endless batches of random windows of the text, [N, T + 1]."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(data) - CONTEXT - 1, (BATCH,), generator=generator)
        yield torch.stack([data[start : start + CONTEXT + 1] for start in starts.tolist()])


def main() -> None:
    """Trains one model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rank = int(os.environ.get("RANK", "0"))
    torch.manual_seed(given.seed)
    model: nn.Module = GPT(given.width, given.depth)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            model.cuda()
        model = DistributedDataParallel(model)
    device = next(model.parameters()).device
    optimizer = torch.optim.Adam(model.parameters(), given.lr)
    data = text()
    probe = (each[:, :-1].to(device) for each in batches(data, 10_000 + rank))  # FLeRM
    flerm = FLeRM.auto(model, optimizer, probe=probe, family="gpt")  # FLeRM
    training = batches(data, 1000 * given.seed + rank)
    for step in range(1, given.steps + 1):
        batch = next(training).to(device)
        loss = functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        flerm.log(loss=loss)  # FLeRM
        optimizer.step()
        if rank == 0 and step % 50 == 0:
            print(f"step {step} loss {loss.item():.4f}", flush=True)
    flerm.close()  # FLeRM
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
