"""`resmlp`, `resmlp-cifar10`: the residual MLP of the paper's Appendix A.1 on images."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flerm_experiments.workloads.base import Scale
from flerm_experiments.workloads.digits_data import DIGITS
from flerm_experiments.workloads.images import CLASSES, ImageData, ImageWorkload
from flerm_experiments.workloads.init import LINEAR, RELU, he_normal

BASE_HIDDEN, BASE_BLOCKS = 32, 4


class ResMLP(nn.Module):
    """A residual MLP with logits [batch, 10].

    x ← input(x); x ← x + layers[j](relu(x)) for each block j; logits = readout(relu(x)).

    There are no norms. Initialisation is He's by fan-in, with biases 0. The blocks' initial weights
    are divided by √blocks, so that the size of the initial outputs does not depend on depth. The
    forward pass has no such factor, so updates are not divided by √blocks (Appendix A.1).

    hidden: width.
    blocks: number of blocks.
    features: the number of values of an image.
    init_scale: factor on the blocks' initial weights.
    seed: of the initialisation.
    """

    def __init__(
        self, hidden: int, blocks: int, features: int, *, init_scale: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__()
        self.input = nn.Linear(features, hidden)
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
        """Logits [batch, 10] of flattened images [batch, features]."""
        hidden = self.input(images)
        for layer in self.layers:
            hidden = hidden + layer(torch.relu(hidden))
        logits: Tensor = self.readout(torch.relu(hidden))
        return logits


class ResMLPOnImages(ImageWorkload):
    """Residual MLPs, 4 blocks of hidden size 32 at scale 1."""

    def __init__(self, data: ImageData) -> None:
        super().__init__(data)
        self.name = "resmlp" if data is DIGITS else f"resmlp-{data.name}"

    def make(self, scale: Scale, seed: int) -> nn.Module:
        """A `ResMLP` of hidden size 32 · width and 4 · depth blocks."""
        sizes = self.sizes(scale)
        return ResMLP(
            sizes["hidden"],
            sizes["blocks"],
            self.data.features,
            init_scale=scale.init_scale,
            seed=seed,
        )

    def sizes(self, scale: Scale) -> Mapping[str, int]:
        """Hidden size and blocks."""
        return {"hidden": BASE_HIDDEN * scale.width, "blocks": BASE_BLOCKS * scale.depth}
