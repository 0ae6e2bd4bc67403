"""`decoder`: the decoder-only transformers of the paper's Appendix A.2 on the bytes of Python's standard library."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from flerm_client.workloads.base import Scale, Workload
from flerm_client.workloads.corpus import VOCABULARY, corpus, probe_batches, training_batches
from flerm_client.workloads.initialise import LINEAR, RELU, he_normal, normal

Norm = Literal["prenorm", "postnorm", "prenormpostmod"]
BASE_MODEL, BASE_HEADS, BASE_BLOCKS = 32, 2, 2


class Attention(nn.Module):
    """Causal self-attention over [batch, time, d], with queries and keys normalised per head before their product.

    Written out instead of `scaled_dot_product_attention`, whose fused CPU kernel has no forward mode: exact FSLRs need it.
    """

    def __init__(self, d_model: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(d_model, d_model)
        self.k = nn.Linear(d_model, d_model)
        self.v = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, d_model)
        self.qk_norm = nn.LayerNorm(d_model // heads, elementwise_affine=False)
        self.register_buffer("future", torch.ones(context, context, dtype=torch.bool).triu(1), persistent=False)
        self.future: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, d] from the same, each position from itself and those before it."""
        batch, time, width = x.shape
        q, k, v = (
            projected.view(batch, time, self.heads, -1).transpose(1, 2) for projected in (self.q(x), self.k(x), self.v(x))
        )
        scores = self.qk_norm(q) @ self.qk_norm(k).transpose(-2, -1) / math.sqrt(width // self.heads)
        weights = scores.masked_fill(self.future[:time, :time], float("-inf")).softmax(dim=-1)
        mixed: Tensor = self.out((weights @ v).transpose(1, 2).reshape(batch, time, width))
        return mixed


class FeedForward(nn.Module):
    """down(relu(up(x))), d → 4 d → d."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, 4 * d_model)
        self.down = nn.Linear(4 * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, d] from the same, position by position."""
        y: Tensor = self.down(torch.relu(self.up(x)))
        return y


class Block(nn.Module):
    """Attention, then feed-forward, each a residual branch f times `branch`, in one of three placements of the norm."""

    def __init__(self, d_model: int, heads: int, context: int, norm: Norm, branch: float) -> None:
        super().__init__()
        self.attn = Attention(d_model, heads, context)
        self.ff = FeedForward(d_model)
        self.norm = nn.LayerNorm(d_model, elementwise_affine=False)
        self.placement = norm
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, d] from the same."""
        for part in (self.attn, self.ff):
            if self.placement == "prenorm":
                x = x + self.branch * part(self.norm(x))
            elif self.placement == "postnorm":
                x = self.norm(x + self.branch * part(x))
            else:
                x = x + self.branch * self.norm(part(x))
        return x


class Decoder(nn.Module):
    """Learned token embedding and positions, blocks, a last norm, readout: logits [batch, time, 256] of bytes [batch, time].

    Norms have no affine part. He initialisation by fan-in, biases 0; an embedding has one active input, so its variance is 1.
    The residual branches are multiplied by 1/√blocks in the forward pass (Appendix A.2), which makes the initial outputs' size
    independent of depth. `init_scale` multiplies the blocks' weights, not the embeddings and readout.
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        blocks: int,
        context: int,
        *,
        norm: Norm = "prenorm",
        init_scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, d_model)
        self.positions = nn.Embedding(context, d_model)
        self.layers = nn.ModuleList(Block(d_model, heads, context, norm, 1 / math.sqrt(blocks)) for _ in range(blocks))
        self.norm = nn.LayerNorm(d_model, elementwise_affine=False)
        self.readout = nn.Linear(d_model, VOCABULARY)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name in ("embedding.weight", "positions.weight"):
                normal(parameter, name, seed, 1.0)
            else:
                gain = RELU if name.endswith("ff.down.weight") else LINEAR
                he_normal(parameter, name, seed, gain, init_scale if name.startswith("layers.") else 1.0)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, time, 256] for the byte that follows each of `tokens`, int64 [batch, time ≤ context]."""
        # One row of positions for each example, not one for all: what a row did to an example's outputs can then be told.
        x = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens))
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.readout(self.norm(x))
        return logits


class DecoderOnBytes(Workload):
    """Decoders, 2 blocks of d_model 32 and 2 heads at scale 1; steps of 16 × 64 bytes, each byte seen once."""

    batch = 16
    context = 64
    tokens_per_step = batch * context

    def __init__(self, norm: Norm = "prenorm") -> None:
        self.norm: Norm = norm
        self.name = "decoder" if norm == "prenorm" else f"decoder-{norm}"
        self.description = f"{norm} transformer (Appendix A.2) on the bytes of Python's standard library"

    @property
    def steps_available(self) -> int:  # type: ignore[override]  # counted only when asked for: it reads the library's files
        """Whole steps in the training part."""
        return len(corpus(self.context).training) // self.batch

    def build(self, scale: Scale, *, seed: int) -> nn.Module:
        """A `Decoder` of d_model 32 · width, 2 · width heads and 2 · depth blocks."""
        with torch.random.fork_rng(devices=[]):  # torch's layers draw initial values of their own first
            return Decoder(
                BASE_MODEL * scale.width,
                BASE_HEADS * scale.width,
                BASE_BLOCKS * scale.depth,
                self.context,
                norm=self.norm,
                init_scale=scale.init_scale,
                seed=seed,
            )

    def config(self, scale: Scale) -> Mapping[str, Any]:
        """Sizes, and which standard library it was (it differs between Python versions)."""
        return {
            "workload": self.name,
            "width": scale.width,
            "depth": scale.depth,
            "init_scale": scale.init_scale,
            "norm": self.norm,
            "d_model": BASE_MODEL * scale.width,
            "heads": BASE_HEADS * scale.width,
            "blocks": BASE_BLOCKS * scale.depth,
            "context": self.context,
            "data": corpus(self.context).description,
        }

    def batches(self, *, seed: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Bytes int64 [16 / world, 64] and the bytes one on; ends when every training chunk was seen once."""
        return training_batches(corpus(self.context), self.batch, self.shard(rank, world), seed=seed)

    def probe(self, *, seed: int, rank: int = 0, world: int = 1) -> Iterator[Tensor]:
        """Bytes int64 [16, 64] of the held-out chunks, which the ranks share out and shuffle anew at each pass."""
        self.shard(rank, world)
        return probe_batches(corpus(self.context), self.batch, seed=seed, rank=rank, world=world)

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats per byte."""
        return functional.cross_entropy(output.flatten(0, -2), labels.flatten())
