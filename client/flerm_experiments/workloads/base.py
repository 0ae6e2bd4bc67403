"""What a workload is: a family of models together with the data that trains them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from flerm_core.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The size of a training of a workload, as multiples of the base's.

    width: multiple of the base's width.
    depth: multiple of the base's number of blocks.
    init_scale: multiple of the standard deviation of the base's initial hidden weights.
    rank: multiple of the LoRA rank of the base's adapters.
    batch: multiple of the number of examples in a step of the base.

    A workload supports the fields that its `scales` names.

    Raises `InvalidInput` for a width, depth, rank or batch below 1, and for an `init_scale` that is
    not positive and finite.
    """

    width: int = 1
    depth: int = 1
    init_scale: float = 1.0
    rank: int = 1
    batch: int = 1

    def __post_init__(self) -> None:
        for name in ("width", "depth", "rank", "batch"):
            if getattr(self, name) < 1:
                raise InvalidInput(
                    f"{name} is {getattr(self, name)}, but it must be a whole number of at least 1"
                )
        if not 0.0 < self.init_scale < float("inf"):
            raise InvalidInput(
                f"init_scale is {self.init_scale}, but it must be positive and finite"
            )

    @property
    def differing(self) -> tuple[str, ...]:
        """The names of the fields that differ from the base's value."""
        return tuple(each.name for each in fields(self) if getattr(self, each.name) != each.default)

    @property
    def label(self) -> str:
        """The scale as a table names it: `width ×4, depth ×2`; `base` where all fields are 1."""
        texts = (f"{key.replace('_', ' ')} ×{getattr(self, key):g}" for key in self.differing)
        return ", ".join(texts) or "base"


class Workload(ABC):
    """A family of models and its data.

    Two builds with equal arguments give equal models, bit for bit. Two iterators over the data with
    equal arguments give equal batches. All ranks together use `batch` examples in one step of the
    base, so a run has the same losses at every world size, up to rounding.
    """

    name: str
    batch: int
    """Examples of one step of the base, of all ranks together."""
    tokens_per_step: int | None = None
    """Tokens of one step of the base, of all ranks together; None for data without tokens."""
    steps_available: int | None = None
    """Steps of the base until the data is used up; None for data that is repeated."""

    scales: frozenset[str] = frozenset({"width", "depth", "init_scale", "batch"})
    """The fields of `Scale` that this workload supports; the others must be 1."""

    def check(self, scale: Scale) -> None:
        """Raises `InvalidInput` for a scale that this workload does not have."""
        for each in fields(scale):
            if each.name not in self.scales and getattr(scale, each.name) != each.default:
                raise InvalidInput(
                    f"{each.name} is {getattr(scale, each.name)}, but {self.name} has no such "
                    "scale; it has "
                    f"{', '.join(sorted(self.scales))}"
                )

    def fixed_rate(self, name: str) -> float | None:
        """The fixed learning rate of the tensor `name`; None if it trains at the run's rate."""
        return None

    def output(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """The model's outputs. Dimension 0 counts examples."""
        outputs: Tensor = model(inputs)
        return outputs

    def step_batches(
        self, scale: Scale, *, seed: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each step at `scale`, the (inputs, labels) that rank `rank` of `world` trains on.

        A step has the examples of `scale.batch` successive steps of the base. Raises as `batches`
        does.
        """
        parts = self.batches(seed=seed, rank=rank, world=world)
        if scale.batch == 1:
            return parts
        steps = zip(*[parts] * scale.batch, strict=False)
        return (
            (torch.cat([x for x, _ in step]), torch.cat([y for _, y in step])) for step in steps
        )

    @abstractmethod
    def build(self, scale: Scale, *, seed: int) -> nn.Module:
        """The model at `scale`, initialised from `seed` alone.

        The caller's global random state has no influence on the model and stays as it was.
        """

    @abstractmethod
    def config(self, scale: Scale) -> Mapping[str, Any]:
        """The configuration that a recording keeps: sizes of the model, and what the data is.

        All values are JSON-like.

        A recording has the fields of `scales` beside these.
        """

    @abstractmethod
    def batches(
        self, *, seed: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each step of the base, the (inputs, labels) that rank `rank` of `world` trains on.

        Dimension 0 counts examples: `batch` / `world` of them. `seed` decides the order. No example
        of a step goes to two ranks. All ranks together train on the same examples at every `world`.

        Raises `InvalidInput` where `world` does not divide `batch`.
        """

    @abstractmethod
    def probe(self, *, seed: int, rank: int = 0, world: int = 1) -> Iterator[Tensor]:
        """Endless batches of `batch` inputs for measurements. Each rank has batches of its own.

        Training never reads these inputs.
        """

    @abstractmethod
    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """The mean training loss of `output` for `labels`, a scalar."""

    def shard(self, rank: int, world: int) -> slice:
        """The positions of rank `rank`'s examples within a step's batch.

        Raises `InvalidInput` where `world` does not divide `batch`.
        """
        if self.batch % world:
            raise InvalidInput(
                f"{world} ranks cannot share the {self.batch} examples of a {self.name} step "
                f"evenly: use a number of ranks that divides {self.batch}"
            )
        return slice(rank, None, world)
