"""δy ⊙ ∂φ/∂y of a module's call: how φ moves when one of the module's own tensors does.

δy is the change of the module's output y under ΔW of one tensor. The functions here return products
element by element; the caller sums them over each example's positions and features. The modules
that hold nearly all parameters have closed forms. `LocalDerivatives` differentiates all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F

from flerm_core.measure.autodiff.local_derivatives import LocalDerivatives
from flerm_core.measure.autodiff.module_replay import CallStart


@dataclass
class ModuleCall:
    """One call of a module in a probe's forward.

    args, kwargs: its inputs, detached.
    start: the random generators and buffers at the call's start; None where closed forms serve all
        tensors of the module.
    output_changes: tensor name to δy of each output, filled in by `replay_products`.
    """

    module: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    start: CallStart | None = None
    output_changes: dict[str, list[Tensor]] = field(default_factory=dict)

    @property
    def input(self) -> Tensor:
        """The first input of the call."""
        found: Tensor = self.args[0] if self.args else next(iter(self.kwargs.values()))
        return found


# (module, x, parameter, ΔW, ∂φ/∂y) -> products whose leading dimensions are those of y
Product = Callable[[Any, Tensor, str, Tensor, Tensor], Tensor]


def _linear(module: nn.Linear, x: Tensor, name: str, change: Tensor, gradient: Tensor) -> Tensor:
    if name == "bias":
        return gradient @ change
    # ⟨ΔW x, g⟩ = ⟨x, ΔWᵀ g⟩. The side with fewer features makes the smaller temporary.
    if module.in_features <= module.out_features and gradient.ndim == x.ndim:
        return (gradient @ change).mul_(x)
    return (x.to(change.dtype) @ change.T) * gradient


def _embedding(
    module: nn.Embedding, x: Tensor, name: str, change: Tensor, gradient: Tensor
) -> Tensor:
    products = (F.embedding(x, change) * gradient).sum(-1)
    if module.padding_idx is not None:  # backward treats this row as a constant
        products = products.masked_fill(x == module.padding_idx, 0.0)
    return products


def _convolution(module: Any, x: Tensor, name: str, change: Tensor, gradient: Tensor) -> Tensor:
    if name == "bias":
        return gradient * _as_channels(change, gradient)
    products: Tensor = module._conv_forward(x.to(change.dtype), change, None) * gradient
    return products


def _as_channels(change: Tensor, gradient: Tensor) -> Tensor:
    return change.reshape(-1, *[1] * (gradient.ndim - 2))


def _layer_norm(
    module: nn.LayerNorm, x: Tensor, name: str, change: Tensor, gradient: Tensor
) -> Tensor:
    if name == "bias":
        return gradient * change
    return gradient * F.layer_norm(
        x.to(change.dtype), module.normalized_shape, change, None, module.eps
    )


def _rms_norm(module: nn.RMSNorm, x: Tensor, name: str, change: Tensor, gradient: Tensor) -> Tensor:
    return gradient * F.rms_norm(
        x.to(change.dtype), list(module.normalized_shape), change, module.eps
    )


def _group_norm(
    module: nn.GroupNorm, x: Tensor, name: str, change: Tensor, gradient: Tensor
) -> Tensor:
    if name == "bias":
        return gradient * _as_channels(change, gradient)
    return gradient * F.group_norm(x.to(change.dtype), module.num_groups, change, None, module.eps)


def _batch_norm(module: Any, x: Tensor, name: str, change: Tensor, gradient: Tensor) -> Tensor:
    if name == "bias":
        return gradient * _as_channels(change, gradient)
    batch_statistics = module.training or module.running_mean is None
    mean, variance = (None, None) if batch_statistics else (module.running_mean, module.running_var)
    return gradient * F.batch_norm(
        x.to(change.dtype), mean, variance, change, None, batch_statistics, 0.0, module.eps
    )


_CLOSED_FORMS: dict[type[nn.Module], Product] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
}


def module_type(module: nn.Module) -> type[nn.Module]:
    """The class of `module`; for one wrapped by FSDP2, the class that it had before."""
    return next(
        each
        for each in type(module).__mro__
        if issubclass(each, nn.Module) and not issubclass(each, FSDPModule)
    )


def has_closed_form(module: nn.Module, path: str) -> bool:
    """Whether `closed_form_products` holds for the module's parameter at `path`.

    The module must be of a known class and use that class's forward, because a subclass or a
    replaced forward may compute something else. The parameter must be the very tensor that the
    forward uses. Where a hook or a parametrization computes that tensor from others (weight norm,
    pruning), it is not. An embedding with `scale_grad_by_freq` is left out, because its gradient is
    not the derivative of its forward.
    """
    return (
        module_type(module) in _CLOSED_FORMS
        and path in ("weight", "bias")
        and path in module._parameters
        and "forward" not in vars(module)
        and not getattr(module, "scale_grad_by_freq", False)
    )


def closed_form_products(call: ModuleCall, path: str, change: Tensor, gradient: Tensor) -> Tensor:
    """δy ⊙ ∂φ/∂y, in the dtype of `change`, for a module that has a closed form.

    path: the parameter's name in the module.
    change: the parameter's ΔW.
    gradient: ∂φ/∂y.

    The leading dimensions of the result are those of y. A closed form may already have summed over
    the last ones.
    """
    form = _CLOSED_FORMS[module_type(call.module)]
    return form(call.module, call.input, path, change, gradient.to(change.dtype))


def replay_products(
    call: ModuleCall,
    derivatives: LocalDerivatives,
    names: Mapping[str, str],
    tensor: str,
    change: Tensor,
    index: int,
    gradient: Tensor,
) -> Tensor:
    """δy ⊙ ∂φ/∂y, shaped like y, for any module: δy comes from a replay of the call.

    call: the call to replay. It keeps δy for the call's other outputs.
    derivatives: differentiates the replayed call.
    names: the tensor's name for each of the module's parameter paths. A tied tensor moves at all
        its paths.
    tensor: the name of the tensor that moves.
    change: ΔW of this tensor.
    index: which of the module's outputs y is.
    gradient: ∂φ/∂y.

    Raises `NoDerivative` where the module cannot be differentiated.
    """
    if tensor not in call.output_changes:
        assert call.start is not None
        changes = {path: change for path, name in names.items() if name == tensor}
        call.output_changes[tensor] = derivatives.output_changes(
            call.module, changes, call.args, call.kwargs, call.start
        )
    return call.output_changes[tensor][index].to(change.dtype) * gradient.to(change.dtype)
