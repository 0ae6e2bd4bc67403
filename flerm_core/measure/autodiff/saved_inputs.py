"""The inputs of a module's call, kept as autograd keeps the tensors that it saves for backward.

So these inputs take no more memory than the training's own activations. Activation checkpointing
frees them after the forward and computes them again in the backward pass. Offloading keeps them in
host memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flerm_core.measure.autodiff.structure import replace_instances


@dataclass(frozen=True, slots=True)
class _Placeholder:
    """Stands for saved tensor number `index`."""

    index: int


class _Save(torch.autograd.Function):
    """A node beside the graph that does nothing but save `tensors`."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return torch.empty(0)


class SavedInputs:
    """`args` and `kwargs` of one call.

    Activation checkpointing tells recomputed tensors apart by their order. So each recomputation of
    the call must make a `SavedInputs` at the same point as the first run did.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        tensors: list[Tensor] = []

        def save(tensor: Tensor) -> _Placeholder:
            # `.data`, so that a later change of the input in place is no error, as in training.
            tensors.append(tensor.data)
            return _Placeholder(len(tensors) - 1)

        self._structure = replace_instances((args, dict(kwargs)), Tensor, save)
        with torch.enable_grad():
            self._node: Any = _Save.apply(torch.empty(0, requires_grad=True), *tensors).grad_fn  # type: ignore[no-untyped-call]

    def pop(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns `args` and `kwargs`, detached, and frees them. It can be called only once.

        Under activation checkpointing this call recomputes the forward, unless the backward pass
        has already done so.
        """
        tensors, self._node = self._node.saved_tensors, None
        args, kwargs = replace_instances(
            self._structure, _Placeholder, lambda placeholder: tensors[placeholder.index]
        )
        return args, kwargs
