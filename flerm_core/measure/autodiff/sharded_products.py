"""⟨δy, ∂φ/∂y⟩ where ranks share the work on one batch (tensor and sequence parallel).

c = Σ over positions, output features o and input features i of ∂φ/∂y[·, o] x[·, i] ΔW[o, i]. Whatever index the ranks divide
among them, each can sum over its own part of it, if all factors that have that index are cut along it and all others are
whole. So along each mesh dimension one index is chosen, the one that the activations or ΔW are cut along anyway, and the sum
over the ranks is the whole c; where none is cut, one rank's counts.
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
    Use,
    closed_form,
    has_closed_form,
    module_type,
)
from flerm_core.measure.distributed.sharding import as_placed, cuts, local

Factors = tuple[Placement, Placement, Placement]  # of ∂φ/∂y, x, ΔW


def find_split_layout(gradient: Tensor, chosen: Tensor) -> Layout | None:
    """`find_layout` for a gradient that may be cut, along other dimensions than the one that counts examples."""
    if not isinstance(gradient, DTensor):
        return find_layout(gradient, chosen)
    layout = find_layout(local(_summed(gradient)), chosen)
    forbidden = (layout.axis if layout.kind == "axis" else 0) if layout is not None else None
    return (
        None
        if any(cuts(p) is not None and cuts(p) == forbidden for p in gradient.placements)
        else layout
    )


def split_products(
    use: Use, path: str, change: Tensor, gradient: Tensor, *, first: bool
) -> Tensor | None:
    """This rank's part of the products of `closed_form`; None where another rank has the same, and that one counts.

    `first`: this is the first of the ranks that share a batch.

    Raises `EstimatorNotApplicable` for a module without closed form.
    """
    x = use.input
    given = [tensor for tensor in (gradient, x, change) if isinstance(tensor, DTensor)]
    if "." in path or not has_closed_form(use.module):
        raise EstimatorNotApplicable(
            f"{type(use.module).__name__} computes on sharded tensors in a way of its own"
        )
    if not given:
        return closed_form(use, path, change, gradient) if first else None
    mesh = given[0].device_mesh
    if isinstance(change, DTensor) and change.device_mesh != mesh:
        change = _on(change, mesh)
    everywhere = (Replicate(),) * mesh.ndim
    factors = [
        _summed(t)
        if isinstance(t, DTensor)
        else DTensor.from_local(t, mesh, everywhere, run_check=False)
        for t in (gradient, x, change)
    ]
    plans = [
        _plan(use.module, path, tuple(f.placements[i] for f in factors), gradient.ndim)
        for i in range(mesh.ndim)
    ]
    gradient, own_x, change = (
        local(as_placed(f, tuple(plan[i] for plan in plans))) for i, f in enumerate(factors)
    )
    coordinate: Sequence[int] = mesh.get_coordinate() or ()
    if any(
        cuts(plan[0]) is None and cuts(plan[2]) is None and at
        for plan, at in zip(plans, coordinate, strict=True)
    ):
        return None
    return closed_form(Use(use.module, (own_x,), {}), path, change, gradient)


def _plan(module: nn.Module, path: str, given: tuple[Placement, ...], rank: int) -> Factors:
    """How ∂φ/∂y, x and ΔW must lie along one mesh dimension for their products to be each rank's part."""
    gradient, _, change = (cuts(placement) for placement in given)
    last, whole = rank - 1, Replicate()
    kind = module_type(module)
    if gradient is not None and gradient != last:  # positions
        return Shard(gradient), Shard(gradient), whole
    if kind is nn.Linear:
        if gradient == last or change == 0:  # output features
            return Shard(last), whole, Shard(0)
        if change == 1 and path == "weight":  # input features
            return whole, Shard(last), Shard(1)
    if kind is nn.Embedding and (gradient == last or change == 1):
        return Shard(last), whole, Shard(1)
    return whole, whole, whole


def _summed(tensor: DTensor) -> DTensor:
    """`tensor` with what is still to be summed over ranks summed."""
    return as_placed(tensor, tuple(Replicate() if p.is_partial() else p for p in tensor.placements))


def _on(tensor: DTensor, mesh: DeviceMesh) -> DTensor:
    """A tensor that is whole along its other mesh dimensions, on the mesh of the activations alone."""
    names = mesh.mesh_dim_names or ()
    axes = tensor.device_mesh.mesh_dim_names or ()
    placements = [
        placement for axis, placement in zip(axes, tensor.placements, strict=True) if axis in names
    ]
    return DTensor.from_local(
        tensor.to_local(),
        mesh,
        placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )
