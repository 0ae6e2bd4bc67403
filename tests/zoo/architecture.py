"""An architecture of the zoo: a tiny random model at any width and depth, and its batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

EXAMPLES = 8
POSITIONS = 8
VOCABULARY = 32
SIDE = 32
"""Height and width of an image, in pixels."""


@dataclass(frozen=True)
class Architecture:
    """A model at any width and depth, its batches and its outputs.

    name: as the table shows the architecture.
    package: where the model comes from.
    build: (width, depth) to the model; (1, 1) is the base.
    batch: a generator to one batch of `EXAMPLES` examples.
    output: f(model, batch) [examples, ...], as users give the function to `FLeRM.record`.
    scales: of "width" and "depth", what `build` doubles. Depth counts equal blocks only.
    couples_examples: whether the outputs of an example depend on the other examples of its batch.
    draws_numbers: whether a forward in training mode draws random numbers.
    """

    name: str
    package: str
    build: Callable[[int, int], nn.Module]
    batch: Callable[[torch.Generator], Any]
    output: Callable[[nn.Module, Any], Tensor]
    scales: tuple[str, ...] = ("width", "depth")
    couples_examples: bool = False
    draws_numbers: bool = False

    @property
    def installed(self) -> bool:
        """Whether the package can be imported here."""
        return find_spec(self.package) is not None

    def model(self, width: int = 1, depth: int = 1) -> nn.Module:
        """A model in training mode; all calls with the same scale give the same weights."""
        torch.manual_seed(0)
        return self.build(width, depth).train()

    def batches(self, count: int, seed: int) -> list[Any]:
        """`count` batches from `seed`."""
        generator = torch.Generator().manual_seed(seed)
        return [self.batch(generator) for _ in range(count)]


@dataclass(frozen=True)
class Wide:
    """A number in a configuration that grows with the width."""

    base: int


@dataclass(frozen=True)
class Deep:
    """A number, or a list that is repeated, in a configuration that grows with the depth."""

    base: Any


def at_scale(value: Any, width: int, depth: int) -> Any:
    """A configuration with its `Wide` and `Deep` values filled in."""
    if isinstance(value, Wide):
        return value.base * width
    if isinstance(value, Deep):
        return value.base * depth
    if isinstance(value, Mapping):
        return {key: at_scale(item, width, depth) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(at_scale(item, width, depth) for item in value)
    return value


def shaken(model: nn.Module) -> nn.Module:
    """The model as after some training: at zero, a head or a token hides or distorts all others."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def tokens(generator: torch.Generator) -> Tensor:
    """Token ids [examples, positions] from 3 up: models read 0 to 2 as padding and ends."""
    return torch.randint(3, VOCABULARY, (EXAMPLES, POSITIONS), generator=generator)


def images(generator: torch.Generator) -> Tensor:
    """Images [examples, 3, side, side]."""
    return torch.randn(EXAMPLES, 3, SIDE, SIDE, generator=generator)


def logits(model: nn.Module, batch: Any) -> Tensor:
    """The logits of a transformers model for token ids, pixels or sound."""
    found: Tensor = model(batch).logits
    return found


def plain(model: nn.Module, batch: Any) -> Tensor:
    """`model(batch)`."""
    found: Tensor = model(batch)
    return found
