"""`mlp`, `mlp-linear`: deep ReLU and linear networks.

For these the transfer of learning rates by µP was proved.

These are the deep linear networks of "A Proof of Learning Rate Transfer under µP" and the same with
ReLU: an input map, hidden maps of one width, a readout, no biases. Under µP the best rate tends to
a constant as the width grows. Under the standard and the neural-tangent parametrisation it does
not.
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
    """readout(σ(layers[j](… σ(input(x)) …))) with σ the identity where `linear`, else ReLU.

    hidden: width.
    layers: number of hidden maps.
    features: of an image.
    init_scale: multiplies the weights of `layers`, which are else He's by fan-in.
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
        self.description = f"deep {'linear' if linear else 'ReLU'} network on {data.description}"

    def make(self, scale: Scale, seed: int) -> nn.Module:
        """An `MLP` of hidden size 32 · width and 3 · depth hidden maps."""
        sizes = self.sizes(scale)
        features = self.data.features
        return MLP(
            sizes["hidden"],
            sizes["layers"],
            features,
            linear=self.linear,
            init_scale=scale.init_scale,
            seed=seed,
        )

    def sizes(self, scale: Scale) -> Mapping[str, int]:
        """Hidden size and number of hidden maps."""
        return {"hidden": BASE_HIDDEN * scale.width, "layers": BASE_LAYERS * scale.depth}
