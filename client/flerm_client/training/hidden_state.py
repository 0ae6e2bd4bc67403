"""State of a model that no measurement can put back, found by repeating a forward.

A forward that reads what it wrote the last time is no function of batch and weights. Buffers and
attributes of modules are put back after a measurement; variables of a closure, of a Python module
or of other objects cannot be found, and so go on changing when a probe batch is run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flerm_core.measure.autodiff.module_hooks import named_hookable
from flerm_core.measure.distributed.sharding import to_local
from flerm_core.measure.output_projection import floating_tensors

_ROUNDINGS = 256  # two runs of kernels that add in any order differ by fewer
_PART = 1 << 20  # values converted at once
_MOST = 0.05  # of the largest value, in the dtypes of few bits


def hidden_state(
    model: nn.Module,
    forward: Callable[[], Tensor],
    first: Tensor,
    on_any_rank: Callable[[bool], bool] = bool,
) -> str:
    """One sentence on state of `model` that is out of reach; empty where there is none.

    forward: computes the outputs of one batch, each time from the same generators, buffers and
        attributes.
    first: what it returned already.
    on_any_rank: whether its argument is true on any of the ranks that call the model together.
    """
    if not on_any_rank(not _equal([first], [forward()])):
        return ""
    traces = [_trace(model, forward) for _ in range(2)]
    where = next(
        (
            f"{name or 'the model itself'} ({kind})"
            for (name, kind, one), (other_name, _, two) in zip(*traces, strict=False)
            if name != other_name or not _equal(one, two)
        ),
        "the function output=",
    )
    return (
        f"two forwards of one batch with equal random numbers differ, first in {where}: there is "
        "state in a closure, a global variable or another object, which measuring changes and "
        "cannot put back, so that the run differs from one without FLeRM; keep the state in a "
        "buffer (register_buffer)"
    )


def _trace(model: nn.Module, forward: Callable[[], Tensor]) -> list[tuple[str, str, list[Tensor]]]:
    """Name, class and outputs of every module that `forward` calls, in the order of their ends."""
    found: list[tuple[str, str, list[Tensor]]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            parts = [to_local(each).clone() for each in floating_tensors(output)]
            found.append((name, type(module).__name__, parts))

        return hook

    handles = [each.register_forward_hook(note(name)) for name, each in named_hookable(model)]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _equal(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether the tensors are equal up to rounding."""
    if [each.shape for each in some] != [each.shape for each in others]:
        return False
    return all(map(_close, some, others))


def _close(one: Tensor, other: Tensor) -> bool:
    if not one.numel() or torch.equal(one, other):
        return True
    allowed = min(_ROUNDINGS * torch.finfo(one.dtype).eps, _MOST)
    # In parts: outputs may take gigabytes.
    parts = zip(one.flatten().split(_PART), other.flatten().split(_PART), strict=True)
    apart = torch.stack([(a.double() - b.double()).abs().max() for a, b in parts]).max()
    return not bool(apart > allowed * one.abs().max().double())
