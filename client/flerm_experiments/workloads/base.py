"""What a workload is: a family of models together with the data that trains them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from flerm_core.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Which member of the family: multiples of the base model's width and depth, of its hidden weights' standard deviation, and
    of its adapters' rank. A workload takes those in its `scales`.

    Raises `InvalidInput` for a width, depth or rank below 1 or an initialisation scale that is not positive and finite.
    """

    width: int = 1
    depth: int = 1
    init_scale: float = 1.0
    rank: int = 1

    def __post_init__(self) -> None:
        for name in ("width", "depth", "rank"):
            if getattr(self, name) < 1:
                raise InvalidInput(
                    f"{name} is {getattr(self, name)}, but it must be a whole number of at least 1"
                )
        if not 0.0 < self.init_scale < float("inf"):
            raise InvalidInput(
                f"init_scale is {self.init_scale}, but it must be positive and finite"
            )

    @property
    def label(self) -> str:
        """As a table names it: `width ×4, depth ×2`; `base` at scale 1."""
        names = {"width": "width", "depth": "depth", "init_scale": "init scale", "rank": "rank"}
        differing = [
            f"{name} ×{getattr(self, key):g}"
            for key, name in names.items()
            if getattr(self, key) != 1
        ]
        return ", ".join(differing) or "base"


class Workload(ABC):
    """A family of models and its data. Two builds, or two walks over the data, with equal arguments are equal bit for bit.

    One step uses `batch` examples in all, however many ranks share them: a run has the same losses at every world size,
    up to rounding.
    """

    name: str
    description: str
    batch: int
    tokens_per_step: int | None = None
    """Tokens that one step of all ranks sees; None where the data has no tokens."""
    steps_available: int | None = None
    """Steps until the data is used up; None where it is walked through again and again."""

    scales: frozenset[str] = frozenset({"width", "depth", "init_scale"})
    """The fields of `Scale` that it takes; the others are 1."""

    def check(self, scale: Scale) -> None:
        """Raises `InvalidInput` for a scale that this workload does not have."""
        for each in fields(scale):
            if each.name not in self.scales and getattr(scale, each.name) != each.default:
                raise InvalidInput(
                    f"{each.name} is {getattr(scale, each.name)}, but {self.name} has no such scale; it has "
                    f"{', '.join(sorted(self.scales))}"
                )

    def fixed_rate(self, name: str) -> float | None:
        """The learning rate of the tensor `name` where it is not the one that is swept; None where it is."""
        return None

    def output(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """The model's outputs, dimension 0 counting examples."""
        outputs: Tensor = model(inputs)
        return outputs

    @abstractmethod
    def build(self, scale: Scale, *, seed: int) -> nn.Module:
        """The model at `scale`, initialised from `seed` alone (global random state is neither read nor advanced)."""

    @abstractmethod
    def config(self, scale: Scale) -> Mapping[str, Any]:
        """The model's sizes and what the data is, for the registry. JSON-like."""

    @abstractmethod
    def batches(
        self, *, seed: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Rank `rank`'s part of each step's (inputs, labels), in training order, drawn from `seed`.

        Dimension 0 counts examples, batch / world of them; the ranks' parts are disjoint and together independent of `world`.
        """

    @abstractmethod
    def probe(self, *, seed: int, rank: int = 0, world: int = 1) -> Iterator[Tensor]:
        """Endless batches of inputs that training never sees, `batch` examples each, other ones on every rank."""

    @abstractmethod
    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """The mean training loss, a scalar, of the model's `output` for `labels`."""

    def shard(self, rank: int, world: int) -> slice:
        """Rank `rank`'s examples within a step. Raises `InvalidInput` when the ranks cannot share a batch evenly."""
        if self.batch % world:
            raise InvalidInput(
                f"{world} ranks cannot share the {self.batch} examples of a {self.name} step evenly: use a divisor of it"
            )
        return slice(rank, None, world)
