"""`resmlp`: the residual MLP of the paper's Appendix A.1 on handwritten digits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flerm_client.workloads.base import Scale, Workload
from flerm_client.workloads.digits import CLASSES, FEATURES, digits
from flerm_client.workloads.initialise import LINEAR, RELU, generator, he_normal

BASE_HIDDEN, BASE_BLOCKS = 32, 4


class ResMLP(nn.Module):
    """x ← input(x); x ← x + layers[j](relu(x)) for each block j; logits [batch, 10] = readout(relu(x)).

    No norms. He initialisation, biases 0. The blocks' weights carry 1/√blocks, so that outputs at initialisation do not depend
    on depth; as a factor of the weights, not of the forward pass, it does not act on later updates (Appendix A.1).
    """

    def __init__(self, hidden: int, blocks: int, *, init_scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        self.input = nn.Linear(FEATURES, hidden)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(blocks))
        self.readout = nn.Linear(hidden, CLASSES)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.startswith("layers."):
                he_normal(parameter, name, seed, RELU, init_scale / math.sqrt(blocks))
            else:
                he_normal(parameter, name, seed, LINEAR if name.startswith("input.") else RELU)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, 10] of flattened images [batch, 64]."""
        hidden = self.input(images)
        for layer in self.layers:
            hidden = hidden + layer(torch.relu(hidden))
        logits: Tensor = self.readout(torch.relu(hidden))
        return logits


class ResMLPOnDigits(Workload):
    """Residual MLPs, 4 blocks of hidden size 32 at scale 1; steps of 64 flattened digits, walked through again and again."""

    name = "resmlp"
    description = "residual MLP (Appendix A.1) on handwritten digits"
    batch = 64

    def build(self, scale: Scale, *, seed: int) -> nn.Module:
        """A `ResMLP` of hidden size 32 · width and 4 · depth blocks."""
        with torch.random.fork_rng(devices=[]):  # torch's layers draw initial values of their own first
            return ResMLP(BASE_HIDDEN * scale.width, BASE_BLOCKS * scale.depth, init_scale=scale.init_scale, seed=seed)

    def config(self, scale: Scale) -> Mapping[str, Any]:
        """Sizes, and the data's name."""
        return {
            "workload": self.name,
            "width": scale.width,
            "depth": scale.depth,
            "init_scale": scale.init_scale,
            "hidden": BASE_HIDDEN * scale.width,
            "blocks": BASE_BLOCKS * scale.depth,
            "data": "scikit-learn digits",
        }

    def batches(self, *, seed: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [64 / world, 64] and labels: every epoch a new permutation of the training part."""
        data, shard = digits(), self.shard(rank, world)
        shuffle = generator(seed, "digits order")

        def walk() -> Iterator[tuple[Tensor, Tensor]]:
            while True:
                for indices in torch.randperm(len(data.images), generator=shuffle).split(self.batch):
                    yield data.images[indices[shard]], data.labels[indices[shard]]

        return walk()

    def probe(self, *, seed: int, rank: int = 0, world: int = 1) -> Iterator[Tensor]:
        """Images [64, 64] drawn without replacement from the 261 held-out ones, anew for each batch."""
        self.shard(rank, world)
        held_out = digits().held_out_images
        draw = generator(seed, f"digits probe {rank}")
        return (held_out[torch.randperm(len(held_out), generator=draw)[: self.batch]] for _ in iter(int, 1))

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats."""
        return functional.cross_entropy(output, labels)
