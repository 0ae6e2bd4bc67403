"""δy ⊙ ∂φ/∂y where several ranks work on one batch (tensor and sequence parallel).

For a linear map, c = Σ ∂φ/∂y[·, o] x[·, i] ΔW[o, i], summed over positions, output features o and
input features i. Each rank can sum over its own part of one of these indices, if all factors that
have the index are cut along it and all other factors are whole. The sum over the ranks is then c.
So for each mesh dimension an index is chosen along which the activations or ΔW are cut anyway.
Where nothing is cut, all ranks have the same c, and only the first rank's c counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from flerm_core.errors import EstimatorNotApplicable
from flerm_core.measure.autodiff.example_layout import Layout, find_layout
from flerm_core.measure.autodiff.module_products import (
    ModuleCall,
    closed_form_products,
    has_closed_form,
    module_type,
)
from flerm_core.measure.distributed.sharding import redistributed, shard_dim, to_local

FactorPlacements = tuple[Placement, Placement, Placement]  # of ∂φ/∂y, x and ΔW


def find_sharded_layout(gradient: Tensor, chosen: Tensor) -> Layout | None:
    """`find_layout` for a gradient that may be cut, but not along the dimension of the examples."""
    if not isinstance(gradient, DTensor):
        return find_layout(gradient, chosen)
    layout = find_layout(to_local(_reduced(gradient)), chosen)
    if layout is None:
        return None
    example_dim = layout.axis if layout.kind == "axis" else 0
    is_cut = any(shard_dim(placement) == example_dim for placement in gradient.placements)
    return None if is_cut else layout


def sharded_products(
    call: ModuleCall, path: str, change: Tensor, gradient: Tensor, *, is_first: bool
) -> Tensor | None:
    """This rank's part of `closed_form_products`; None where only an equal part elsewhere counts.

    call, path, change, gradient: as in `closed_form_products`; they may be DTensors.
    is_first: whether this rank is the first of the ranks that work on its batch.

    Raises `EstimatorNotApplicable` for a module without a closed form.
    """
    if not has_closed_form(call.module, path):
        raise EstimatorNotApplicable(
            f"{type(call.module).__name__} computes on sharded tensors in a way of its own"
        )
    given = (gradient, call.input, change)
    meshes = [tensor.device_mesh for tensor in given if isinstance(tensor, DTensor)]
    if not meshes:
        return closed_form_products(call, path, change, gradient) if is_first else None
    mesh = meshes[0]
    factors = [_on_mesh(tensor, mesh) for tensor in given]
    plans = [
        _factor_placements(
            call.module, path, tuple(factor.placements[dim] for factor in factors), gradient.ndim
        )
        for dim in range(mesh.ndim)
    ]
    local_gradient, local_input, local_change = (
        to_local(redistributed(factor, tuple(plan[i] for plan in plans)))
        for i, factor in enumerate(factors)
    )
    coordinate: Sequence[int] = mesh.get_coordinate() or ()
    for plan, at in zip(plans, coordinate, strict=True):
        is_cut = shard_dim(plan[0]) is not None or shard_dim(plan[2]) is not None
        if not is_cut and at > 0:
            return None
    local_call = ModuleCall(call.module, (local_input,), {})
    return closed_form_products(local_call, path, local_change, local_gradient)


def _factor_placements(
    module: nn.Module, path: str, given: tuple[Placement, ...], ndim: int
) -> FactorPlacements:
    """How to cut ∂φ/∂y, x and ΔW along one mesh dimension, so that each rank has its part of c.

    given: how the three are cut now.
    ndim: the number of dimensions of ∂φ/∂y.
    """
    gradient_dim, _, change_dim = (shard_dim(placement) for placement in given)
    last, whole = ndim - 1, Replicate()
    kind = module_type(module)
    if gradient_dim is not None and gradient_dim != last:  # cut along positions
        return Shard(gradient_dim), Shard(gradient_dim), whole
    if kind is nn.Linear:
        if gradient_dim == last or change_dim == 0:  # along output features
            return Shard(last), whole, Shard(0)
        if change_dim == 1 and path == "weight":  # along input features
            return whole, Shard(last), Shard(1)
    if kind is nn.Embedding and (gradient_dim == last or change_dim == 1):
        return Shard(last), whole, Shard(1)
    return whole, whole, whole


def _reduced(tensor: DTensor) -> DTensor:
    """`tensor` with all pending sums over ranks carried out."""
    placements = tuple(Replicate() if p.is_partial() else p for p in tensor.placements)
    return redistributed(tensor, placements)


def _on_mesh(tensor: Tensor, mesh: DeviceMesh) -> DTensor:
    """`tensor` as a DTensor on `mesh`, with all pending sums over ranks carried out.

    A plain tensor is the same on all ranks. A DTensor on a larger mesh keeps how it is cut along
    the dimensions of `mesh`, and must be whole along the others.
    """
    if not isinstance(tensor, DTensor):
        return DTensor.from_local(tensor, mesh, (Replicate(),) * mesh.ndim, run_check=False)
    if tensor.device_mesh == mesh:
        return _reduced(tensor)
    names = mesh.mesh_dim_names or ()
    axes = tensor.device_mesh.mesh_dim_names or ()
    placements = [
        placement for axis, placement in zip(axes, tensor.placements, strict=True) if axis in names
    ]
    moved = DTensor.from_local(
        tensor.to_local(),
        mesh,
        placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )
    return _reduced(moved)
