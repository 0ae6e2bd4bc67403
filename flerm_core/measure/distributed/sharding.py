"""Where the parts of a sharded tensor are: everything that follows from a DTensor's placements, and nothing else does.

A DTensor lies on a mesh of ranks. Along each dimension of the mesh it is cut along one of its own dimensions (`Shard`, or
`_StridedShard` where two mesh dimensions cut the same one), or every rank has the same (`Replicate`). So FSDP2, HSDP, tensor
parallel and their products are one case: a sum over elements is a sum over the ranks' parts, where of equal parts one counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor.placement_types import Placement

from flerm_core.errors import MeasurementError, Unsupported


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor, sharing its memory; any other tensor itself."""
    detached = tensor.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


def cuts(placement: Placement) -> int | None:
    """Along which of its dimensions a placement cuts a tensor; None where it does not."""
    dim = getattr(placement, "dim", None)
    return dim if isinstance(dim, int) else None


def as_placed(tensor: DTensor, placements: tuple[Placement, ...]) -> DTensor:
    """`tensor` with other placements on its own mesh; itself where they are these."""
    return (
        tensor
        if tuple(tensor.placements) == placements
        else tensor.redistribute(placements=placements)
    )


class LocalShard:
    """This rank's part of one DTensor."""

    def __init__(self, tensor: DTensor) -> None:
        self.mesh, self.placements = tensor.device_mesh, tuple(tensor.placements)
        self.shape, self.stride = tensor.shape, tensor.stride()

    @cached_property
    def counts(self) -> bool:
        """Whether this part counts in a sum over all ranks: of ranks with equal parts, the first one's does."""
        coordinate: Sequence[int] = self.mesh.get_coordinate() or ()
        return all(
            cuts(p) is not None or at == 0
            for p, at in zip(self.placements, coordinate, strict=True)
        )

    @cached_property
    def cut(self) -> frozenset[int]:
        """The dimensions along which the tensor is cut."""
        return frozenset(dim for p in self.placements if (dim := cuts(p)) is not None)

    def indices(self, dim: int) -> Tensor:
        """Where the part's elements along `dim` are in the whole tensor: int64 [size of the part along `dim`]."""
        along = torch.arange(self.shape[dim], device=self.mesh.device_type)
        shape = [1] * len(self.shape)
        shape[dim] = self.shape[dim]
        placements = [p if cuts(p) == dim else Replicate() for p in self.placements]
        placed = distribute_tensor(along.reshape(shape), self.mesh, placements, src_data_rank=None)
        return placed.to_local().reshape(-1)

    def sum_length(self, dim: int) -> int:
        """How long `sum_over(·, dim)` is."""
        return self.shape.numel() // self.shape[dim] if self.shape[dim] else 0

    def sum_over(self, values: Tensor, dim: int) -> Tensor:
        """This rank's part, summed over `dim`, in its place in the whole's sum (flat, zero elsewhere): sums over ranks of
        these are the whole's."""
        own = values.sum(dim, dtype=torch.float64)
        rest = [d for d in range(len(self.shape)) if d != dim]
        if not self.cut.intersection(rest):
            return own.reshape(-1)
        whole = own.new_zeros([self.shape[d] for d in rest])
        whole[torch.meshgrid(*(self.indices(d).to(own.device) for d in rest), indexing="ij")] = own
        return whole.reshape(-1)

    def tensor(self, values: Tensor) -> DTensor:
        """The DTensor that has `values` as this rank's part."""
        return DTensor.from_local(
            values,
            self.mesh,
            self.placements,
            run_check=False,
            shape=self.shape,
            stride=self.stride,
        )


@dataclass
class Sharding:
    """How the tensors of a model are held by the ranks that measure it together.

    `parts`: those of the sharded tensors. `total`, `total_split`: sums over all ranks, and over those that work on this rank's
    batch. `reduced`: tensor name to the number of data-parallel ranks over which its gradient arrives averaged (FSDP2), where
    it does. `data_axes`: names of the mesh dimensions along which ranks have batches of their own. `split`: the others,
    along which ranks work on one batch, each with this rank's coordinate. `same`: whether a value is the same on all ranks.
    """

    parts: Mapping[str, LocalShard] = field(default_factory=dict)
    reduced: Mapping[str, float] = field(default_factory=dict)
    data_axes: frozenset[str] = frozenset()
    split: Mapping[str, int] = field(default_factory=dict)
    total: Callable[[Tensor], Tensor] = lambda values: values
    total_split: Callable[[Tensor], Tensor] = lambda values: values
    same: Callable[[object, str], bool] = lambda value, device: True
    device: str = "cpu"
    _compared: bool = False

    @property
    def first_of_split(self) -> bool:
        """Whether this rank is the first among those that work on one and the same batch."""
        return not any(self.split.values())

    def anywhere(self, flag: bool) -> bool:
        """Whether `flag` is set on any of the ranks whose forwards wait for each other; else on this one."""
        return (
            bool(self.total(torch.tensor([float(flag)], device=self.device)).item())
            if self.parts
            else flag
        )

    def check_outputs(self, outputs: Tensor) -> None:
        """Once: plain outputs must be whole on each of the ranks that work on one batch.

        Raises `Unsupported` where they differ: slices that do not say what they are slices of.
        """
        if self._compared or not self.split or isinstance(outputs, DTensor):
            return
        self._compared = True
        flat = outputs.detach().double().reshape(-1)
        seen = torch.stack(
            [
                flat.abs().sum(),
                flat.sum(),
                (flat * torch.arange(1.0, len(flat) + 1.0, device=flat.device).cos()).sum(),
            ]
        )
        count, *sums = self.total_split(torch.cat([seen.new_ones(1), seen, seen.square()])).tolist()
        first, second = sums[:3], sums[3:]
        if any(
            count * b - a * a > 1e-6 * (first[0] ** 2) for a, b in zip(first, second, strict=True)
        ):
            raise Unsupported(
                "the outputs differ between the ranks that work on one batch (a vocabulary-sharded readout?): return a "
                "DTensor, with use_local_output=False in its ColwiseParallel"
            )

    def agree_on_order(self, order: Sequence[object]) -> None:
        """Raises `MeasurementError` on all ranks alike where their modules run in different orders: they gather together."""
        if not self.parts:
            return
        if not self.same(order, self.device):
            raise MeasurementError(
                "ranks run the model's modules in different orders, which `example` cannot follow when sharded"
            )

    def counts(self, name: str) -> bool:
        """Whether this rank's part of `name` counts in a sum over all ranks."""
        part = self.parts.get(name)
        if part is None:
            return self.first_of_split
        axes = part.mesh.mesh_dim_names or tuple(self.split)
        return part.counts and not any(at for axis, at in self.split.items() if axis not in axes)

    def gradient(self, name: str, gradient: Tensor) -> Tensor:
        """This rank's part of the sum over data-parallel ranks of the gradient of `name`; where it is not reduced, of this
        rank's own gradient."""
        part = self.parts.get(name)
        if part is None:
            return local(gradient)
        if not isinstance(gradient, DTensor):
            raise MeasurementError(
                f"the gradient of {name} is no DTensor, though the tensor is one"
            )
        return local(as_placed(gradient, part.placements)) * self.reduced.get(name, 1.0)

    def for_forward(self, name: str, values: Tensor) -> Tensor:
        """From this rank's part of a tensor like `name` to what its module computes with: whole along data-parallel dimensions,
        cut along the others (a DTensor only where it is still cut). One gather; called by all ranks at the same point."""
        part = self.parts.get(name)
        if part is None:
            return values
        gathered = as_placed(part.tensor(values), self.in_forward(name, part))
        return (
            gathered
            if any(cuts(p) is not None for p in gathered.placements)
            else gathered.to_local()
        )

    def in_forward(self, name: str, part: LocalShard) -> tuple[Placement, ...]:
        """The placements of what the module of `name` computes with."""
        axes = part.mesh.mesh_dim_names or ("",) * len(part.placements)
        return tuple(
            Replicate()
            if axis in self.data_axes or (name in self.reduced and not axis)
            else placement
            for axis, placement in zip(axes, part.placements, strict=True)
        )


def whole(tensor: Tensor) -> Tensor:
    """All of a DTensor, on every rank; any other tensor itself. Called by all ranks of its mesh at the same point."""
    if not isinstance(tensor, DTensor):
        return tensor
    return as_placed(tensor, (Replicate(),) * tensor.device_mesh.ndim).to_local()


def placed_like(placed: Tensor, values: Tensor) -> Tensor:
    """`values`, the same on all ranks and broadcastable to `placed`, sharded as that is; no communication."""
    if not isinstance(placed, DTensor):
        return values
    return distribute_tensor(
        values.expand(placed.shape).contiguous(),
        placed.device_mesh,
        placed.placements,
        src_data_rank=None,
    )


def find_parts(parameters: Mapping[str, nn.Parameter]) -> dict[str, LocalShard]:
    """The parts of those parameters that are sharded."""
    return {name: LocalShard(p) for name, p in parameters.items() if isinstance(p, DTensor)}
