"""What all workloads that classify images share: form and order of the data, and the loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from flerm_experiments.workloads.base import Scale, Workload
from flerm_experiments.workloads.init import generator

CLASSES = 10


class Images(NamedTuple):
    """Images to train on, and images that are held out for probes.

    images, held_out_images: float32 [n, features], flattened.
    labels, held_out_labels: int64 [n].
    """

    images: Tensor
    labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor


@dataclass(frozen=True, slots=True)
class ImageData:
    """A data set of images in ten classes, which is read when it is first needed.

    name: the data set's part in a workload's name.
    description: what the data set is, as recordings name it.
    features: the number of values of a flattened image.
    load: reads the images.
    """

    name: str
    description: str
    features: int
    load: Callable[[], Images]


class ImageWorkload(Workload):
    """Trains on steps of 64 flattened images, for any number of epochs."""

    batch = 64

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def build(self, scale: Scale, *, seed: int) -> nn.Module:
        """The model at `scale`."""
        # torch's layers first draw initial values from the global generator, which the `with`
        # statement restores.
        with torch.random.fork_rng(devices=[]):
            return self.make(scale, seed)

    @abstractmethod
    def make(self, scale: Scale, seed: int) -> nn.Module:
        """The model at `scale`, which maps images [batch, features] to logits [batch, 10].

        `seed` decides the initial weights.
        """

    @abstractmethod
    def sizes(self, scale: Scale) -> Mapping[str, int]:
        """The model's sizes."""

    def config(self, scale: Scale) -> Mapping[str, Any]:
        """The scale, the model's sizes, and what the data is."""
        return {"workload": self.name, **self.sizes(scale), "data": self.data.description}

    def batches(
        self, *, seed: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [64 / world, features] and their labels. Each epoch has an order of its own."""
        shard = self.shard(rank, world)
        data = self.data.load()
        shuffle = generator(seed, f"{self.data.name} order")

        def walk() -> Iterator[tuple[Tensor, Tensor]]:
            while True:
                for indices in torch.randperm(len(data.images), generator=shuffle).split(
                    self.batch
                ):
                    yield data.images[indices[shard]], data.labels[indices[shard]]

        return walk()

    def probe(self, *, seed: int, rank: int = 0, world: int = 1) -> Iterator[Tensor]:
        """Batches [64, features] of different held-out images. Each batch is drawn anew."""
        self.shard(rank, world)
        held_out = self.data.load().held_out_images
        draw = generator(seed, f"{self.data.name} probe {rank}")
        return (
            held_out[torch.randperm(len(held_out), generator=draw)[: self.batch]]
            for _ in iter(int, 1)
        )

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats."""
        return functional.cross_entropy(output, labels)
