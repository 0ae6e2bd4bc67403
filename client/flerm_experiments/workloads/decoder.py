"""The `decoder…` workloads: the decoder-only transformers of the paper's Appendix A.2 on text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from flerm_experiments.workloads.base import Scale, Workload
from flerm_experiments.workloads.corpus import (
    BYTE_VOCABULARY,
    BYTES,
    Text,
    probe_batches,
    training_batches,
)
from flerm_experiments.workloads.init import LINEAR, RELU, he_normal, normal

NormPlacement = Literal["prenorm", "postnorm", "prenormpostmod"]
NORMS: tuple[NormPlacement, ...] = get_args(NormPlacement)
BASE_MODEL, BASE_HEADS, BASE_BLOCKS = 32, 2, 2


class Attention(nn.Module):
    """Causal self-attention over [batch, time, d]. Queries and keys are normalised per head.

    The scores are computed without `scaled_dot_product_attention`: the estimator `exact` needs
    forward mode, which the fused CPU kernel of that function does not have.
    """

    def __init__(self, d_model: int, heads: int, context: int, affine: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(d_model, d_model)
        self.k = nn.Linear(d_model, d_model)
        self.v = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, d_model)
        self.q_norm = nn.LayerNorm(d_model // heads, elementwise_affine=affine)
        self.k_norm = nn.LayerNorm(d_model // heads, elementwise_affine=affine)
        self.register_buffer(
            "future", torch.ones(context, context, dtype=torch.bool).triu(1), persistent=False
        )
        self.future: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, d] to the same shape. Each position reads itself and earlier positions."""
        batch, time, width = x.shape
        q, k, v = (
            projected.view(batch, time, self.heads, -1).transpose(1, 2)
            for projected in (self.q(x), self.k(x), self.v(x))
        )
        scores = self.q_norm(q) @ self.k_norm(k).transpose(-2, -1) / math.sqrt(width // self.heads)
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
        """[batch, time, d] to the same shape, position by position."""
        y: Tensor = self.down(torch.relu(self.up(x)))
        return y


class Block(nn.Module):
    """Attention, then feed-forward, each as a residual branch with a norm.

    With f for either of them, x becomes

    * x + branch · f(norm(x)) where `norm` is "prenorm",
    * norm(x + branch · f(x)) where `norm` is "postnorm",
    * x + branch · norm(f(x)) where `norm` is "prenormpostmod".

    d_model: width.
    heads: attention heads.
    context: longest sequence.
    norm: placement of the norms.
    branch: factor on each residual branch.
    affine: whether norms have a gain and a bias.
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        context: int,
        norm: NormPlacement,
        branch: float,
        affine: bool,
    ) -> None:
        super().__init__()
        self.attn = Attention(d_model, heads, context, affine)
        self.ff = FeedForward(d_model)
        self.attn_norm = nn.LayerNorm(d_model, elementwise_affine=affine)
        self.ff_norm = nn.LayerNorm(d_model, elementwise_affine=affine)
        self.placement = norm
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, d] to the same shape."""
        for part, norm in ((self.attn, self.attn_norm), (self.ff, self.ff_norm)):
            if self.placement == "prenorm":
                x = x + self.branch * part(norm(x))
            elif self.placement == "postnorm":
                x = norm(x + self.branch * part(x))
            else:
                x = x + self.branch * norm(part(x))
        return x


class Decoder(nn.Module):
    """A decoder-only transformer: embeddings of tokens and positions, blocks, a norm, a readout.

    Initialisation is He's by fan-in with biases 0. The entries of an embedding have variance 1,
    because an embedding has one active input. The forward pass multiplies residual branches by
    1/√blocks (Appendix A.2), so that the size of the initial outputs does not depend on depth.

    d_model: width.
    heads: attention heads.
    blocks: number of blocks.
    context: longest sequence.
    norm: placement of the norms.
    affine: whether norms have a gain, initially 1, and a bias, initially 0.
    vocabulary: number of different tokens.
    init_scale: factor on the blocks' initial weights, not on embeddings and readout.
    seed: of the initialisation.
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        blocks: int,
        context: int,
        *,
        norm: NormPlacement = "prenorm",
        affine: bool = False,
        vocabulary: int = BYTE_VOCABULARY,
        init_scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        branch = 1 / math.sqrt(blocks)
        self.embedding = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(context, d_model)
        self.layers = nn.ModuleList(
            Block(d_model, heads, context, norm, branch, affine) for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(d_model, elementwise_affine=affine)
        self.readout = nn.Linear(d_model, vocabulary)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith("norm.weight"):
                nn.init.ones_(parameter)
            elif name in ("embedding.weight", "positions.weight"):
                normal(parameter, name, seed, 1.0)
            else:
                gain = RELU if name.endswith("ff.down.weight") else LINEAR
                he_normal(
                    parameter, name, seed, gain, init_scale if name.startswith("layers.") else 1.0
                )

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, time, vocabulary] for the token after each of `tokens`.

        tokens: int64 [batch, time ≤ context].
        """
        # Positions are looked up for each example and not once for all, so that the estimator
        # `example` can tell which lookup belongs to which example.
        x = self.embedding(tokens) + self.positions(
            torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        )
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.readout(self.norm(x))
        return logits


class DecoderOnText(Workload):
    """Decoders of 2 blocks, d_model 32 and 2 heads at scale 1. A step has 16 × 64 tokens.

    A run sees each token at most once.
    """

    batch = 16
    context = 64
    tokens_per_step = batch * context

    def __init__(
        self, norm: NormPlacement = "prenorm", *, affine: bool = False, text: Text = BYTES
    ) -> None:
        self.norm: NormPlacement = norm
        self.affine = affine
        self.text = text
        named = {norm: norm != "prenorm", "affine": affine, text.name: text is not BYTES}
        self.name = "-".join(["decoder", *(name for name, said in named.items() if said)])

    @property
    def steps_available(self) -> int:  # type: ignore[override]
        """Steps of `batch` whole chunks in the text's training part.

        The number is computed when it is asked for, because the text must be read for it.
        """
        return len(self.text.read(self.context).training) // self.batch

    def build(self, scale: Scale, *, seed: int) -> nn.Module:
        """A `Decoder` of d_model 32 · width, 2 · width heads and 2 · depth blocks."""
        # torch's layers first draw initial values from the global generator, which the `with`
        # statement restores.
        with torch.random.fork_rng(devices=[]):
            return Decoder(
                BASE_MODEL * scale.width,
                BASE_HEADS * scale.width,
                BASE_BLOCKS * scale.depth,
                self.context,
                norm=self.norm,
                affine=self.affine,
                vocabulary=self.text.vocabulary,
                init_scale=scale.init_scale,
                seed=seed,
            )

    def config(self, scale: Scale) -> Mapping[str, Any]:
        """The model's sizes, and what the text is: it differs between versions of Python."""
        return {
            "workload": self.name,
            "norm": self.norm,
            "affine": self.affine,
            "d_model": BASE_MODEL * scale.width,
            "heads": BASE_HEADS * scale.width,
            "blocks": BASE_BLOCKS * scale.depth,
            "context": self.context,
            "data": self.text.read(self.context).description,
        }

    def batches(
        self, *, seed: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, labels) of each step, int64 [16 / world, 64], in one pass over the text."""
        return training_batches(
            self.text.read(self.context), self.batch, self.shard(rank, world), seed=seed
        )

    def probe(self, *, seed: int, rank: int = 0, world: int = 1) -> Iterator[Tensor]:
        """Held-out tokens int64 [16, 64] of this rank, in a new order at each pass."""
        self.shard(rank, world)
        return probe_batches(
            self.text.read(self.context), self.batch, seed=seed, rank=rank, world=world
        )

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token."""
        return functional.cross_entropy(output.flatten(0, -2), labels.flatten())
