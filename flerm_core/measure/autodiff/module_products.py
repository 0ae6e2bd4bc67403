"""How a module's output moves when one of its own tensors does: ⟨δy, ∂φ/∂y⟩ before it is summed over an example's positions.

Closed forms for the modules that hold nearly all parameters; for everything else the module's own forward-mode derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F

from flerm_core.measure.autodiff.jvp import derivative
from flerm_core.measure.output_projection import floating_tensors
from flerm_core.measure.state_guard import RandomState


@dataclass
class Use:
    """One call of a module in a probe's forward, and what it was given, detached."""

    module: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    randomness: RandomState | None = None
    tangents: dict[str, list[Tensor]] = field(default_factory=dict)

    @property
    def input(self) -> Tensor:
        """The tensor that a module of one input was called with."""
        found: Tensor = self.args[0] if self.args else next(iter(self.kwargs.values()))
        return found


# (module, input, local name, ΔW, ∂φ/∂y) -> products whose leading dimensions are those of y.
Product = Callable[[Any, Tensor, str, Tensor, Tensor], Tensor]


def _linear(module: nn.Linear, x: Tensor, name: str, change: Tensor, gradient: Tensor) -> Tensor:
    if name == "bias":
        return gradient @ change
    # In place into the product, and over the narrower side: one temporary, the smallest there is.
    if module.in_features <= module.out_features and gradient.ndim == x.ndim:
        return (gradient @ change).mul_(x)
    return (x.to(change.dtype) @ change.T) * gradient


def _embedding(
    module: nn.Embedding, x: Tensor, name: str, change: Tensor, gradient: Tensor
) -> Tensor:
    products = (F.embedding(x, change) * gradient).sum(-1)
    if module.padding_idx is not None:  # constant in the eyes of backward
        products = products.masked_fill(x == module.padding_idx, 0.0)
    return products


def _convolution(module: Any, x: Tensor, name: str, change: Tensor, gradient: Tensor) -> Tensor:
    if name == "bias":
        return gradient * _along_channels(change, gradient)
    products: Tensor = module._conv_forward(x.to(change.dtype), change, None) * gradient
    return products


def _along_channels(change: Tensor, gradient: Tensor) -> Tensor:
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
        return gradient * _along_channels(change, gradient)
    return gradient * F.group_norm(x.to(change.dtype), module.num_groups, change, None, module.eps)


def _batch_norm(module: Any, x: Tensor, name: str, change: Tensor, gradient: Tensor) -> Tensor:
    if name == "bias":
        return gradient * _along_channels(change, gradient)
    own = module.training or module.running_mean is None
    mean, variance = (None, None) if own else (module.running_mean, module.running_var)
    return gradient * F.batch_norm(
        x.to(change.dtype), mean, variance, change, None, own, 0.0, module.eps
    )


_CLOSED: dict[type[nn.Module], Product] = {
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
    """The class of `module`, below the one that FSDP2 makes of it."""
    return next(
        c
        for c in type(module).__mro__
        if issubclass(c, nn.Module) and not issubclass(c, FSDPModule)
    )


def has_closed_form(module: nn.Module) -> bool:
    """Whether `module` is exactly of a known kind: a subclass may compute something else."""
    return module_type(module) in _CLOSED and not getattr(module, "scale_grad_by_freq", False)


def closed_form(use: Use, name: str, change: Tensor, gradient: Tensor) -> Tensor:
    """The products of a module of a known kind, in the dtype of `change`."""
    return _CLOSED[module_type(use.module)](
        use.module, use.input, name, change, gradient.to(change.dtype)
    )


def forward_mode(
    use: Use, names: Mapping[str, str], tensor: str, change: Tensor, index: int, gradient: Tensor
) -> Tensor:
    """The products of any module: its own derivative along ΔW of `tensor`, output `index` against its gradient.

    `names` maps the module's local parameter paths to tensor names; a tied tensor moves at all its places. The module runs
    again with the randomness that it ran with.
    """
    if tensor not in use.tangents:
        use.tangents[tensor] = _tangents(
            use, [path for path, name in names.items() if name == tensor], change
        )
    return use.tangents[tensor][index].to(change.dtype) * gradient.to(change.dtype)


def _tangents(use: Use, paths: list[str], change: Tensor) -> list[Tensor]:
    outside = RandomState()
    if use.randomness is not None:
        use.randomness.restore()
    try:
        return derivative(
            use.module, dict.fromkeys(paths, change), use.args, use.kwargs, floating_tensors
        )[1]
    finally:
        outside.restore()
