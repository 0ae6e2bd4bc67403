"""What a module was called with, held the way autograd holds the tensors that it saves for backward.

So whatever the training does to save their memory, it does to these: under activation checkpointing they are gone after the
forward and come back with the recomputation, offloaded ones wait in host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class _Slot:
    """Stands for a tensor."""

    index: int


class _Save(torch.autograd.Function):
    """A node beside the graph that does nothing but save `tensors`."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return torch.empty(0)


class SavedInputs:
    """`args` and `kwargs` of one call. Every run of the call under checkpointing, the first and each recomputation, must keep
    what it is given at the same place: recomputed tensors are told apart by their order."""

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        tensors: list[Tensor] = []

        def put_away(tensor: Tensor) -> _Slot:
            # Not the tensor itself: what happens to it in place afterwards is no error, as it is none in training.
            tensors.append(tensor.data)
            return _Slot(len(tensors) - 1)

        self._given = replaced((args, dict(kwargs)), Tensor, put_away)
        with torch.enable_grad():
            self._node: Any = _Save.apply(torch.empty(0, requires_grad=True), *tensors).grad_fn  # type: ignore[no-untyped-call]

    def take(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Both, detached, and for the last time. Under checkpointing that recomputes the forward if nothing has yet."""
        tensors, self._node = self._node.saved_tensors, None
        given: tuple[tuple[Any, ...], dict[str, Any]] = replaced(
            self._given, _Slot, lambda slot: tensors[slot.index]
        )
        return given


def replaced(value: Any, kind: type, by: Callable[[Any], Any]) -> Any:
    """`value` with everything of a `kind` in its tuples, lists and dictionaries replaced."""
    if isinstance(value, kind):
        return by(value)
    if isinstance(value, dict):
        return {key: replaced(item, kind, by) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(replaced(item, kind, by) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(replaced(item, kind, by) for item in value)
    return value
