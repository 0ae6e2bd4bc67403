"""How ranks share tensors. Everything here follows from the placements of DTensors.

A DTensor lies on a mesh of ranks. Along each mesh dimension the ranks either hold different parts,
cut along one of the tensor's own dimensions (`Shard`, or `_StridedShard` where two mesh dimensions
cut the same tensor dimension), or hold the same values (`Replicate`). So FSDP2, HSDP, tensor
parallel and their products are one case: a sum over a tensor's elements is the sum over the ranks'
parts, where one of several equal parts counts.
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


def to_local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor, detached, sharing its memory; any other tensor detached."""
    detached = tensor.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


def shard_dim(placement: Placement) -> int | None:
    """The tensor dimension that a placement cuts; None where it cuts none."""
    dim = getattr(placement, "dim", None)
    return dim if isinstance(dim, int) else None


def redistributed(tensor: DTensor, placements: tuple[Placement, ...]) -> DTensor:
    """`tensor` with other placements on its own mesh; the tensor itself where it has them."""
    if tuple(tensor.placements) == placements:
        return tensor
    return tensor.redistribute(placements=placements)


class LocalShard:
    """This rank's part of one DTensor. `shape` and `stride` are those of the full tensor."""

    def __init__(self, tensor: DTensor) -> None:
        self.mesh, self.placements = tensor.device_mesh, tuple(tensor.placements)
        self.shape, self.stride = tensor.shape, tensor.stride()

    @cached_property
    def is_primary_replica(self) -> bool:
        """Whether this part counts in a sum over all ranks: it is the first of its replicas."""
        coordinate: Sequence[int] = self.mesh.get_coordinate() or ()
        return all(
            shard_dim(placement) is not None or at == 0
            for placement, at in zip(self.placements, coordinate, strict=True)
        )

    @cached_property
    def shard_dims(self) -> frozenset[int]:
        """The dimensions along which the tensor is cut."""
        return frozenset(dim for p in self.placements if (dim := shard_dim(p)) is not None)

    def indices(self, dim: int) -> Tensor:
        """Where the part's elements along `dim` lie in the full tensor.

        int64 [size of the part along `dim`].
        """
        along = torch.arange(self.shape[dim], device=self.mesh.device_type)
        shape = [1] * len(self.shape)
        shape[dim] = self.shape[dim]
        placements = [p if shard_dim(p) == dim else Replicate() for p in self.placements]
        placed = distribute_tensor(along.reshape(shape), self.mesh, placements, src_data_rank=None)
        return placed.to_local().reshape(-1)

    def sum_numel(self, dim: int) -> int:
        """The number of elements of `sum_over(·, dim)`."""
        return self.shape.numel() // self.shape[dim] if self.shape[dim] else 0

    def sum_over(self, values: Tensor, dim: int) -> Tensor:
        """This rank's part `values` summed over `dim`, at its place in the full tensor's sum.

        float64 [sum_numel(dim)], zero outside this part: summed over ranks, these are the full sum.
        """
        part = values.sum(dim, dtype=torch.float64)
        rest = [d for d in range(len(self.shape)) if d != dim]
        if not self.shard_dims.intersection(rest):
            return part.reshape(-1)
        full = part.new_zeros([self.shape[d] for d in rest])
        full[torch.meshgrid(*(self.indices(d).to(part.device) for d in rest), indexing="ij")] = part
        return full.reshape(-1)

    def to_dtensor(self, values: Tensor) -> DTensor:
        """The DTensor whose part on this rank is `values`."""
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
    """How the ranks that measure a model share its tensors.

    shards: this rank's part of each sharded tensor, by name.
    averaged_over: tensor name to the number of data-parallel ranks over which FSDP2 averages its
        gradient before anyone sees it. Absent: the gradient is this rank's own.
    data_axes: the names of the mesh dimensions along which ranks have batches of their own.
    model_parallel_coordinates: this rank's coordinate along each other mesh dimension, by name.
        Ranks along these dimensions work on one batch.
    sum_world: sums a tensor over all ranks, in place.
    sum_model_parallel: sums a tensor over the ranks that work on this rank's batch, in place.
    all_equal: whether a value is the same on all ranks; takes the value and a device.
    device: the type of device on which the tensors lie.
    """

    shards: Mapping[str, LocalShard] = field(default_factory=dict)
    averaged_over: Mapping[str, float] = field(default_factory=dict)
    data_axes: frozenset[str] = frozenset()
    model_parallel_coordinates: Mapping[str, int] = field(default_factory=dict)
    sum_world: Callable[[Tensor], Tensor] = lambda values: values
    sum_model_parallel: Callable[[Tensor], Tensor] = lambda values: values
    all_equal: Callable[[object, str], bool] = lambda value, device: True
    device: str = "cpu"
    _outputs_checked: bool = False

    @property
    def is_model_parallel(self) -> bool:
        """Whether several ranks work on one batch."""
        return bool(self.model_parallel_coordinates)

    @property
    def is_first_model_parallel_rank(self) -> bool:
        """Whether this rank is the first of those that work on its batch."""
        return not any(self.model_parallel_coordinates.values())

    def any_rank(self, flag: bool) -> bool:
        """Whether `flag` is set on any of the ranks whose forwards wait for each other.

        This rank's own flag where tensors are not sharded. Else one all-reduce.
        """
        if not self.shards:
            return flag
        return bool(self.sum_world(torch.tensor([float(flag)], device=self.device)).item())

    def check_outputs(self, outputs: Tensor) -> None:
        """Checks once that plain outputs are whole on each of the ranks that work on one batch.

        Raises `Unsupported` where they differ. They are then slices of a larger output, and a plain
        tensor does not say which slice it is.
        """
        if self._outputs_checked or not self.is_model_parallel or isinstance(outputs, DTensor):
            return
        self._outputs_checked = True
        flat = outputs.detach().double().reshape(-1)
        weighted = flat * torch.arange(1.0, len(flat) + 1.0, device=flat.device).cos()
        sums = torch.stack([flat.abs().sum(), flat.sum(), weighted.sum()])
        count, *totals = self.sum_model_parallel(
            torch.cat([sums.new_ones(1), sums, sums.square()])
        ).tolist()
        total, squared = totals[:3], totals[3:]
        # All values s are equal exactly when n Σ s² = (Σ s)². The allowance is for rounding.
        if any(
            count * b - a * a > 1e-6 * total[0] ** 2 for a, b in zip(total, squared, strict=True)
        ):
            raise Unsupported(
                "the outputs differ between the ranks that work on one batch "
                "(a vocabulary-sharded readout?): return a DTensor, with use_local_output=False "
                "in its ColwiseParallel"
            )

    def check_order(self, calls: Sequence[object]) -> None:
        """Raises `MeasurementError` on all ranks where their modules run in different orders.

        In each module's turn the ranks gather its tensors, so the orders must agree.
        """
        if self.shards and not self.all_equal(calls, self.device):
            raise MeasurementError(
                "ranks run the model's modules in different orders, which `example` cannot follow "
                "when sharded"
            )

    def is_primary_replica(self, name: str) -> bool:
        """Whether this rank's part of tensor `name` counts in a sum over all ranks."""
        shard = self.shards.get(name)
        if shard is None:
            return self.is_first_model_parallel_rank
        axes = shard.mesh.mesh_dim_names or tuple(self.model_parallel_coordinates)
        elsewhere = (at for axis, at in self.model_parallel_coordinates.items() if axis not in axes)
        return shard.is_primary_replica and not any(elsewhere)

    def local_gradient(self, name: str, gradient: Tensor) -> Tensor:
        """This rank's part of tensor `name`'s gradient, summed over data-parallel ranks.

        Where nothing reduces the gradient over ranks, it is this rank's own.
        """
        shard = self.shards.get(name)
        if shard is None:
            return to_local(gradient)
        if not isinstance(gradient, DTensor):
            raise MeasurementError(
                f"the gradient of {name} is no DTensor, though the tensor is one"
            )
        averaged_over = self.averaged_over.get(name, 1.0)
        return to_local(redistributed(gradient, shard.placements)) * averaged_over

    def gather_for_forward(self, name: str, values: Tensor) -> Tensor:
        """What the module of tensor `name` computes with, from this rank's part `values`.

        The result is whole along data-parallel mesh dimensions and cut along the others; it is a
        DTensor only where it is cut. One gather. Called by all ranks at the same point.
        """
        shard = self.shards.get(name)
        if shard is None:
            return values
        gathered = redistributed(shard.to_dtensor(values), self.forward_placements(name, shard))
        is_cut = any(shard_dim(p) is not None for p in gathered.placements)
        return gathered if is_cut else gathered.to_local()

    def forward_placements(self, name: str, shard: LocalShard) -> tuple[Placement, ...]:
        """How the tensor `name` is placed on the mesh while its module computes with it."""
        axes = shard.mesh.mesh_dim_names or ("",) * len(shard.placements)
        return tuple(
            Replicate()
            if axis in self.data_axes or (name in self.averaged_over and not axis)
            else placement
            for axis, placement in zip(axes, shard.placements, strict=True)
        )


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a DTensor, on every rank; any other tensor itself.

    Called by all ranks of its mesh at the same point.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    return redistributed(tensor, (Replicate(),) * tensor.device_mesh.ndim).to_local()


def sharded_like(template: Tensor, values: Tensor) -> Tensor:
    """`values` expanded to the shape of `template` and sharded as it is, without communication.

    values: the same on all ranks, broadcastable to `template`. Returned as they are where
        `template` is no DTensor.
    """
    if not isinstance(template, DTensor):
        return values
    expanded = values.expand(template.shape).contiguous()
    mesh, placements = template.device_mesh, template.placements
    return distribute_tensor(expanded, mesh, placements, src_data_rank=None)


def local_shards(parameters: Mapping[str, nn.Parameter]) -> dict[str, LocalShard]:
    """This rank's part of each sharded parameter, by name."""
    return {name: LocalShard(p) for name, p in parameters.items() if isinstance(p, DTensor)}
