"""The workloads `mlp` (with ReLU) and `mlp-linear`: deep networks without biases.

A network has an input map, hidden maps of one width, and a readout. The linear networks are those
of "A Proof of Learning Rate Transfer under µP". That paper proves for them that under µP the best
learning rate tends to a constant as the width grows, and that it does not under the standard and
the neural-tangent parametrisation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flerm_experiments.workloads.base import Scale
from flerm_experiments.workloads.images import CLASSES, ImageData, ImageWorkload
from flerm_experiments.workloads.init import LINEAR, RELU, he_normal

BASE_HIDDEN, BASE_LAYERS = 32, 3


class MLP(nn.Module):
    """readout(σ(layers[j](… σ(input(x)) …))), initialised by He's rule with fan-in.

    hidden: width.
    layers: number of hidden maps.
    features: the number of values of an image.
    linear: whether σ is the identity and not ReLU.
    init_scale: factor on the initial weights of `layers`.
    seed: of the initialisation.
    """

    def __init__(
        self,
        hidden: int,
        layers: int,
        features: int,
        *,
        linear: bool,
        init_scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.input = nn.Linear(features, hidden, bias=False)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in range(layers))
        self.readout = nn.Linear(hidden, CLASSES, bias=False)
        for name, parameter in self.named_parameters():
            gain = LINEAR if linear or name.startswith("input.") else RELU
            he_normal(
                parameter, name, seed, gain, init_scale if name.startswith("layers.") else 1.0
            )

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, 10] of flattened images [batch, features]."""
        hidden = self.input(images)
        for layer in self.layers:
            hidden = layer(hidden if self.linear else torch.relu(hidden))
        logits: Tensor = self.readout(hidden if self.linear else torch.relu(hidden))
        return logits


class MLPOnImages(ImageWorkload):
    """`MLP`s, 3 hidden maps of size 32 at scale 1."""

    def __init__(self, data: ImageData, *, linear: bool) -> None:
        super().__init__(data)
        self.linear = linear
        self.name = "mlp-linear" if linear else "mlp"

    def make(self, scale: Scale, seed: int) -> nn.Module:
        """An `MLP` of hidden size 32 · width and 3 · depth hidden maps."""
        sizes = self.sizes(scale)
        return MLP(
            sizes["hidden"],
            sizes["layers"],
            self.data.features,
            linear=self.linear,
            init_scale=scale.init_scale,
            seed=seed,
        )

    def sizes(self, scale: Scale) -> Mapping[str, int]:
        """Hidden size and number of hidden maps."""
        return {"hidden": BASE_HIDDEN * scale.width, "layers": BASE_LAYERS * scale.depth}
