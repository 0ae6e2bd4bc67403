"""Architectures made of torch.nn's own modules."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.zoo.architecture import EXAMPLES, VOCABULARY, Architecture, images, plain, tokens


class Residual(nn.Module):
    """x + W2 tanh(W1 x), `2 * depth` times, between an input and an output map."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        size = 16 * width
        self.input = nn.Linear(16, size)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(size, 24 * width), nn.Tanh(), nn.Linear(24 * width, size))
            for _ in range(2 * depth)
        )
        self.readout = nn.Linear(size, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        for layer in self.layers:
            x = x + layer(x)
        found: Tensor = self.readout(x)
        return found


class LayerDrop(Residual):
    """As `Residual`; each layer is left out of a training step with probability 0.3."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        for layer in self.layers:
            if not (self.training and torch.rand(()) < 0.3):
                x = x + layer(x)
        found: Tensor = self.readout(x)
        return found


class Recurrent(nn.Module):
    """A language model on a recurrent layer of torch.nn."""

    def __init__(self, layer: nn.Module, size: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, size)
        self.rnn = layer
        self.readout = nn.Linear(size, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.readout(self.rnn(self.embed(x))[0])
        return found


def recurrent(kind: type[nn.RNNBase]) -> Callable[[int, int], nn.Module]:
    """Builds `Recurrent` of nn.LSTM, nn.GRU or nn.RNN."""

    def build(width: int, depth: int) -> nn.Module:
        size = 16 * width
        return Recurrent(kind(size, size, num_layers=depth, batch_first=True), size)

    return build


class Encoder(nn.Module):
    """nn.TransformerEncoder on tokens."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 16 * width)
        layer = nn.TransformerEncoderLayer(16 * width, 2, 24 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2 * depth)
        self.readout = nn.Linear(16 * width, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.readout(self.encoder(self.embed(x)))
        return found


class Bag(nn.Module):
    """nn.EmbeddingBag, nn.Bilinear and nn.PReLU."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        size = 16 * width
        self.bag = nn.EmbeddingBag(VOCABULARY, size, mode="mean")
        self.bilinear = nn.Bilinear(size, size, size)
        self.activation = nn.PReLU(size)
        self.layers = nn.ModuleList(nn.Linear(size, size) for _ in range(2 * depth))
        self.readout = nn.Linear(size, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bag(x)
        h = self.activation(self.bilinear(h, h))
        for layer in self.layers:
            h = h + torch.tanh(layer(h))
        found: Tensor = self.readout(h)
        return found


class Warped(nn.Module):
    """nn.functional.grid_sample at learnt places, between two convolutions."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8 * width, 3, stride=4)
        self.places = nn.Parameter(0.5 * torch.randn(4, 4, 2))
        self.second = nn.Conv2d(8 * width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.tanh(self.places).expand(len(x), -1, -1, -1)
        sampled = nn.functional.grid_sample(self.first(x), places, align_corners=False)
        found: Tensor = self.second(torch.tanh(sampled))
        return found


def convolutions(width: int, depth: int) -> nn.Module:
    """Grouped convolutions, nn.GroupNorm and nn.ConvTranspose2d."""
    layers: list[nn.Module] = [nn.Conv2d(3, 8 * width, 3, stride=4), nn.GroupNorm(2, 8 * width)]
    for _ in range(depth):
        layers += [nn.GELU(), nn.Conv2d(8 * width, 8 * width, 3, padding=1, groups=2)]
    layers += [nn.ConvTranspose2d(8 * width, 4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers)


def batch_normed(width: int, depth: int) -> nn.Module:
    """Convolutions with nn.BatchNorm2d."""
    size = 8 * width
    return nn.Sequential(
        nn.Conv2d(3, size, 3, stride=4), nn.BatchNorm2d(size), nn.ReLU(),
        nn.Conv2d(size, size, 3, padding=1), nn.BatchNorm2d(size), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(size, 4),
    )  # fmt: skip


NORMED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "legacy weight_norm": nn.utils.weight_norm,
    "legacy spectral_norm": nn.utils.spectral_norm,
}


def normed(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[int, int], nn.Module]:
    """Builds a `Residual` with one matrix of each layer normed."""

    def build(width: int, depth: int) -> nn.Module:
        model = Residual(width, depth)
        for layer in model.layers:
            wrap(layer.get_submodule("0"))
        return model

    return build


def vectors(generator: torch.Generator) -> Tensor:
    """Vectors [examples, 16]."""
    return torch.randn(EXAMPLES, 16, generator=generator)


def architectures() -> list[Architecture]:
    """All that this file holds. Layers inside nn.LSTM and its kin are no blocks."""
    wide = ("width",)
    return [
        Architecture("residual MLP", "torch", Residual, vectors, plain),
        Architecture(
            "residual MLP, layer drop", "torch", LayerDrop, vectors, plain, draws_numbers=True
        ),
        Architecture("LSTM", "torch", recurrent(nn.LSTM), tokens, plain, wide),
        Architecture("GRU", "torch", recurrent(nn.GRU), tokens, plain, wide),
        Architecture("RNN", "torch", recurrent(nn.RNN), tokens, plain, wide),
        Architecture("TransformerEncoder", "torch", Encoder, tokens, plain),
        Architecture("EmbeddingBag, Bilinear, PReLU", "torch", Bag, tokens, plain),
        Architecture("grid_sample", "torch", Warped, images, plain, wide),
        Architecture("convolutions, GroupNorm", "torch", convolutions, images, plain, wide),
        Architecture(
            "convolutions, BatchNorm", "torch", batch_normed, images, plain, wide,
            couples_examples=True,
        ),
        *(
            Architecture(f"residual MLP, {kind}", "torch", normed(wrap), vectors, plain)
            for kind, wrap in NORMED.items()
        ),
    ]  # fmt: skip
