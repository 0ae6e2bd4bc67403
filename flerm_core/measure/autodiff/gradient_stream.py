"""∂φ/∂W, tensor by tensor as they arrive: never more than a few of them exist at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor

from flerm_core.measure.distributed.fsdp2 import all_parameters
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.measure.state_guard import grads_stashed, hooks_disabled


def stream_gradients(
    outputs: Tensor,
    direction: Tensor,
    subject: MeasuredModel,
    consume: Callable[[str, Tensor], None],
) -> None:
    """One backward pass from `outputs` along `direction`; `consume(name, gradient)` is called once per tensor that has one.

    The gradient is the sum over all uses of a tied tensor, and is freed on return. Nothing that is attached to gradients of
    parameters hears of it (a user's hooks, DDP's reducer, an optimiser stepping in backward); `.grad` is what it was. Sharded
    gradients come as FSDP2 or tensor parallel leaves them in `.grad`, reduced, which is the only place where they ever are; and
    reentrant activation checkpointing knows no other way.
    """
    if subject.sharding is None and not is_reentrant(outputs):
        _captured(outputs, direction, subject, consume)
    else:
        _accumulated(outputs, direction, subject, consume)


def is_reentrant(outputs: Tensor) -> bool:
    """Whether a part of the graph behind `outputs` is hidden by reentrant activation checkpointing."""
    seen = {outputs.grad_fn}
    stack = [outputs.grad_fn]
    while stack:
        node = stack.pop()
        if node is None:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        fresh = [
            after for after, _ in node.next_functions if after is not None and after not in seen
        ]
        seen.update(fresh)
        stack += fresh
    return False


def _captured(
    outputs: Tensor,
    direction: Tensor,
    subject: MeasuredModel,
    consume: Callable[[str, Tensor], None],
) -> None:
    def taker(name: str) -> Callable[[Tensor], Tensor]:
        def take(gradient: Tensor) -> Tensor:
            with torch.no_grad():
                consume(name, gradient.to_dense())
            if gradient.is_sparse:  # an embedding's, of a few rows; a hook may not change the kind
                return gradient
            return gradient.new_zeros(()).expand(
                gradient.shape
            )  # what autograd holds on to costs no memory

        return take

    moving = {name: p for name, p in subject.parameters.items() if p.requires_grad}
    with hooks_disabled(list(moving.values())), ExitStack() as stack:
        for name, parameter in moving.items():
            stack.callback(parameter.register_hook(taker(name)).remove)
        if moving:
            torch.autograd.grad(outputs, list(moving.values()), direction, allow_unused=True)


def _accumulated(
    outputs: Tensor,
    direction: Tensor,
    subject: MeasuredModel,
    consume: Callable[[str, Tensor], None],
) -> None:
    def taker(name: str) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                with torch.no_grad():
                    consume(name, gradient)

        return take

    everything = all_parameters(subject.module)
    with grads_stashed(everything), hooks_disabled(everything), ExitStack() as stack:
        for name, parameter in subject.parameters.items():
            if parameter.requires_grad:
                handle = parameter.register_post_accumulate_grad_hook(taker(name))
                stack.callback(handle.remove)
        torch.autograd.backward(outputs, direction)
