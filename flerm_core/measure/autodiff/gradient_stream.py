"""∂φ/∂W, tensor by tensor as backward forms them, so that few gradients exist at any time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor

from flerm_core.measure.distributed.fsdp2 import all_parameters
from flerm_core.measure.measured_model import MeasuredModel
from flerm_core.measure.state_guard import grads_stashed, hooks_disabled

Consume = Callable[[str, Tensor], None]


def stream_gradients(
    outputs: Tensor, direction: Tensor, model: MeasuredModel, consume: Consume
) -> None:
    """One backward pass from `outputs` along `direction` = ∂φ/∂f.

    `consume(name, gradient)` is called once per tensor that has a gradient: the sum over all uses
    of a tied tensor. The gradient is freed when `consume` returns.

    No other hook on a gradient runs: none of the user's, of DDP's reducer, or of an optimiser that
    steps in backward. Afterwards `.grad` is as it was before.

    Gradients of sharded tensors are read from `.grad`, because FSDP2 and tensor parallel put the
    reduced gradients only there. The same holds under reentrant activation checkpointing.
    """
    if model.sharding is None and not is_reentrant(outputs):
        _from_tensor_hooks(outputs, direction, model, consume)
    else:
        _from_grad_attributes(outputs, direction, model, consume)


def is_reentrant(outputs: Tensor) -> bool:
    """Whether reentrant activation checkpointing hides a part of the graph behind `outputs`."""
    seen = {outputs.grad_fn}
    stack = [outputs.grad_fn]
    while stack:
        node = stack.pop()
        if node is None:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        new = [after for after, _ in node.next_functions if after is not None and after not in seen]
        seen.update(new)
        stack += new
    return False


def _from_tensor_hooks(
    outputs: Tensor, direction: Tensor, model: MeasuredModel, consume: Consume
) -> None:
    def hook_for(name: str) -> Callable[[Tensor], Tensor]:
        def hook(gradient: Tensor) -> Tensor:
            with torch.no_grad():
                consume(name, gradient.to_dense())
            if gradient.is_sparse:  # small, and a hook must return a sparse gradient as well
                return gradient
            # Autograd keeps what the hook returns until the pass ends. An expanded zero takes no
            # memory.
            return gradient.new_zeros(()).expand(gradient.shape)

        return hook

    trained = {name: p for name, p in model.parameters.items() if p.requires_grad}
    with hooks_disabled(list(trained.values())), ExitStack() as stack:
        for name, parameter in trained.items():
            stack.callback(parameter.register_hook(hook_for(name)).remove)
        if trained:
            torch.autograd.grad(outputs, list(trained.values()), direction, allow_unused=True)


def _from_grad_attributes(
    outputs: Tensor, direction: Tensor, model: MeasuredModel, consume: Consume
) -> None:
    def hook_for(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                with torch.no_grad():
                    consume(name, gradient)

        return hook

    everything = all_parameters(model.module)
    with grads_stashed(everything), hooks_disabled(everything), ExitStack() as stack:
        for name, parameter in model.parameters.items():
            if parameter.requires_grad:
                handle = parameter.register_post_accumulate_grad_hook(hook_for(name))
                stack.callback(handle.remove)
        torch.autograd.backward(outputs, direction)
