"""ΔW as modules need it in a backward pass: whole, several tensors from one collective.

A gather of a small tensor takes as long as its ranks need to meet. Which tensors are asked for one after the other is known
from an earlier pass, so those that come next are gathered along, up to a few megabytes at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Placement

from flerm_core.measure.distributed.sharding import LocalShard, Sharding, cuts
from flerm_core.measure.update.weight_update import WeightUpdate

TOGETHER = 2**20  # numbers


class AllGather:
    """The changes of `update`, one pass long. `order`: the names an earlier pass asked for, in turn.

    All ranks ask for the same names in the same order.
    """

    def __init__(self, sharding: Sharding, update: WeightUpdate, order: Sequence[str]) -> None:
        self._sharding, self._update, self._order = sharding, update, order
        self._held: dict[str, Tensor] = {}
        self.asked: list[str] = []

    def change(self, name: str) -> Tensor:
        """ΔW of `name` as `Sharding.for_forward` gives it."""
        change = self._held.get(name)
        if change is None and (cut := find_cut(self._sharding, name)) is not None:
            self._held = {}  # what is here no more is freed before more comes
            self._held = self._gathered(name, cut)
            change = self._held[name]
        elif change is None:
            change = self._sharding.for_forward(name, self._update.change(name))
        self.asked.append(name)
        return change

    def _gathered(self, name: str, cut: Cut) -> dict[str, Tensor]:
        found, numbers = {name: cut}, cut.numbers
        following = self._order[len(self.asked) :]
        for other in dict.fromkeys(following if following[:1] == [name] else ()):
            also = find_cut(self._sharding, other)
            if also is None:
                continue
            if not self._alike(other, also, name, cut):
                break
            if other != name:
                numbers += also.numbers
                if numbers > TOGETHER:
                    break
                found[other] = also
        changes = [self._update.change(each) for each in found]
        return dict(zip(found, gather(list(found.values()), changes), strict=True))

    def _alike(self, other: str, also: Cut, name: str, cut: Cut) -> bool:
        parameters = self._update.parameters
        return (also.mesh, also.dim, parameters[other].dtype) == (
            cut.mesh,
            cut.dim,
            parameters[name].dtype,
        )


@dataclass(frozen=True)
class Cut:
    """A tensor that is cut into `pieces` along its dimension `along`, over dimension `dim` of a mesh, and must be whole there.

    `shape` is its shape once it is; `left`, its placements then.
    """

    part: LocalShard
    dim: int
    along: int
    shape: tuple[int, ...]
    left: tuple[Placement, ...]

    @property
    def mesh(self) -> DeviceMesh:
        """On which the tensor lies."""
        return self.part.mesh

    @property
    def pieces(self) -> int:
        """One a rank."""
        return self.mesh.size(self.dim)

    @property
    def piece(self) -> list[int]:
        """The shape of the largest piece, with dimension `along` first."""
        rest = [size for at, size in enumerate(self.shape) if at != self.along]
        return [-(-self.shape[self.along] // self.pieces), *rest]

    @property
    def numbers(self) -> int:
        """How many come of a gather."""
        return self.pieces * prod(self.piece)

    def whole(self, pieces: Tensor) -> Tensor:
        """The tensor from its `pieces` [pieces, numbers of one]: a DTensor only where it is still cut."""
        length, *rest = self.piece
        joined = (
            pieces.reshape(self.pieces * length, *rest)[: self.shape[self.along]]
            .movedim(0, self.along)
            .contiguous()
        )
        if all(cuts(placement) is None for placement in self.left):
            return joined
        shape, stride = self.part.shape, self.part.stride
        return DTensor.from_local(
            joined, self.mesh, self.left, run_check=False, shape=shape, stride=stride
        )


def find_cut(sharding: Sharding, name: str) -> Cut | None:
    """How `name` is cut among ranks that have batches of their own; None where it is not, or not in one way only."""
    part = sharding.parts.get(name)
    if part is None:
        return None
    left = sharding.in_forward(name, part)
    changed = [
        dim
        for dim, (own, then) in enumerate(zip(part.placements, left, strict=True))
        if own != then
    ]
    if len(changed) != 1 or (along := cuts(part.placements[changed[0]])) is None:
        return None
    # Others may cut the same dimension, if they did so first: FSDP2 over tensor parallel.
    first = prod(
        part.mesh.size(dim) for dim, placement in enumerate(left) if cuts(placement) == along
    )
    if first != getattr(part.placements[changed[0]], "split_factor", 1):
        return None
    shape = list(part.shape)
    for dim, placement in enumerate(left):
        if (axis := cuts(placement)) is not None:
            piece = -(-shape[axis] // part.mesh.size(dim))
            shape[axis] = min(piece, max(0, shape[axis] - part.mesh.get_local_rank(dim) * piece))
    return Cut(part, changed[0], along, tuple(shape), left)


def gather(found: Sequence[Cut], values: Sequence[Tensor]) -> list[Tensor]:
    """All whole, from this rank's parts of them. One collective."""
    first = found[0]
    lengths = [prod(each.piece) for each in found]
    own = torch.zeros(sum(lengths), dtype=values[0].dtype, device=first.mesh.device_type)
    for place, value, each in zip(own.split(lengths), values, found, strict=True):
        place[: value.numel()] = value.movedim(each.along, 0).reshape(-1)
    everyones = own.new_empty(first.pieces, len(own))
    dist.all_gather(list(everyones), own, group=first.mesh.get_group(first.dim))
    return [
        each.whole(pieces)
        for each, pieces in zip(found, everyones.split(lengths, dim=1), strict=True)
    ]
