"""ΔW of sharded tensors, gathered as modules need it: several tensors in one collective.

To gather a small tensor takes as long as the ranks need to meet. An earlier backward pass has shown
in which order tensors are needed, so the next ones are gathered together with the one that is
needed now, up to a few megabytes at once.
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

from flerm_core.measure.distributed.sharding import LocalShard, Sharding, shard_dim
from flerm_core.measure.update.weight_update import WeightUpdate

MAX_NUMEL = 2**20  # elements gathered at once


class AllGather:
    """ΔW of `update`, whole where modules need it whole, for one backward pass.

    order: the names that an earlier pass requested, in turn; empty at first.

    All ranks request the same names in the same order. `requested` lists them.
    """

    def __init__(self, sharding: Sharding, update: WeightUpdate, order: Sequence[str]) -> None:
        self._sharding, self._update, self._order = sharding, update, order
        self._ready: dict[str, Tensor] = {}
        self.requested: list[str] = []

    def change(self, name: str) -> Tensor:
        """ΔW of tensor `name`, as `Sharding.gather_for_forward` gives it."""
        change = self._ready.get(name)
        if change is None:
            plan = plan_gather(self._sharding, name)
            if plan is None:
                change = self._sharding.gather_for_forward(name, self._update.change(name))
            else:
                self._ready = {}  # frees the last ones before the next ones come
                self._ready = self._gather_with_next(name, plan)
                change = self._ready[name]
        self.requested.append(name)
        return change

    def _gather_with_next(self, name: str, plan: GatherPlan) -> dict[str, Tensor]:
        """ΔW of tensor `name` and of those that follow it in the earlier pass's order."""
        plans, total = {name: plan}, plan.numel
        following = self._order[len(self.requested) :]
        for other in dict.fromkeys(following if following[:1] == [name] else ()):
            other_plan = plan_gather(self._sharding, other)
            if other_plan is None:
                continue
            if self._collective(other, other_plan) != self._collective(name, plan):
                break
            if other != name:
                total += other_plan.numel
                if total > MAX_NUMEL:
                    break
                plans[other] = other_plan
        changes = [self._update.change(each) for each in plans]
        return dict(zip(plans, all_gather(list(plans.values()), changes), strict=True))

    def _collective(self, name: str, plan: GatherPlan) -> tuple[DeviceMesh, int, torch.dtype]:
        """What tensors that are gathered together have in common."""
        return plan.mesh, plan.mesh_dim, self._update.parameters[name].dtype


@dataclass(frozen=True)
class GatherPlan:
    """How a tensor is gathered along one mesh dimension.

    shard: this rank's part of it.
    mesh_dim: the mesh dimension along which it must be whole afterwards.
    tensor_dim: the tensor dimension that is cut along it.
    shape: the shape on this rank afterwards.
    placements: the placements afterwards.
    """

    shard: LocalShard
    mesh_dim: int
    tensor_dim: int
    shape: tuple[int, ...]
    placements: tuple[Placement, ...]

    @property
    def mesh(self) -> DeviceMesh:
        """The mesh on which the tensor lies."""
        return self.shard.mesh

    @property
    def n_pieces(self) -> int:
        """One per rank along the mesh dimension."""
        return self.mesh.size(self.mesh_dim)

    @property
    def piece_shape(self) -> list[int]:
        """The shape of the largest piece, with dimension `tensor_dim` first."""
        rest = [size for dim, size in enumerate(self.shape) if dim != self.tensor_dim]
        return [-(-self.shape[self.tensor_dim] // self.n_pieces), *rest]

    @property
    def numel(self) -> int:
        """How many elements a gather brings, padding included."""
        return self.n_pieces * prod(self.piece_shape)

    def assemble(self, pieces: Tensor) -> Tensor:
        """The tensor from its `pieces` [n_pieces, elements of one], a DTensor where still cut."""
        length, *rest = self.piece_shape
        joined = (
            pieces.reshape(self.n_pieces * length, *rest)[: self.shape[self.tensor_dim]]
            .movedim(0, self.tensor_dim)
            .contiguous()
        )
        if all(shard_dim(placement) is None for placement in self.placements):
            return joined
        shape, stride = self.shard.shape, self.shard.stride
        return DTensor.from_local(
            joined, self.mesh, self.placements, run_check=False, shape=shape, stride=stride
        )


def plan_gather(sharding: Sharding, name: str) -> GatherPlan | None:
    """How tensor `name` is gathered from the ranks that have batches of their own.

    None where it is not sharded over them, or in another way than evenly along one mesh dimension.
    """
    shard = sharding.shards.get(name)
    if shard is None:
        return None
    placements = sharding.forward_placements(name, shard)
    changed = [
        mesh_dim
        for mesh_dim, (now, then) in enumerate(zip(shard.placements, placements, strict=True))
        if now != then
    ]
    if len(changed) != 1 or (tensor_dim := shard_dim(shard.placements[changed[0]])) is None:
        return None
    # Another mesh dimension may cut the same tensor dimension, if it cuts first (FSDP2 over tensor
    # parallel). DTensor then notes into how many parts.
    cut_before = prod(
        shard.mesh.size(dim) for dim, p in enumerate(placements) if shard_dim(p) == tensor_dim
    )
    if cut_before != getattr(shard.placements[changed[0]], "split_factor", 1):
        return None
    shape = list(shard.shape)
    for mesh_dim, placement in enumerate(placements):
        if (dim := shard_dim(placement)) is not None:
            piece = -(-shape[dim] // shard.mesh.size(mesh_dim))
            start = shard.mesh.get_local_rank(mesh_dim) * piece
            shape[dim] = min(piece, max(0, shape[dim] - start))
    return GatherPlan(shard, changed[0], tensor_dim, tuple(shape), placements)


def all_gather(plans: Sequence[GatherPlan], parts: Sequence[Tensor]) -> list[Tensor]:
    """The tensors of `plans` from this rank's `parts` of them. One collective.

    All plans have the same mesh and mesh dimension.
    """
    first = plans[0]
    lengths = [prod(plan.piece_shape) for plan in plans]
    sent = torch.zeros(sum(lengths), dtype=parts[0].dtype, device=first.mesh.device_type)
    for space, part, plan in zip(sent.split(lengths), parts, plans, strict=True):
        space[: part.numel()] = part.movedim(plan.tensor_dim, 0).reshape(-1)
    received = sent.new_empty(first.n_pieces, len(sent))
    dist.all_gather(list(received), sent, group=first.mesh.get_group(first.mesh_dim))
    return [
        plan.assemble(pieces)
        for plan, pieces in zip(plans, received.split(lengths, dim=1), strict=True)
    ]
