"""∂φ/∂W, tensor by tensor as they arrive: never more than a few of them exist at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from flerm_core.measure.untouched import gradients_set_aside


def stream_gradients(
    outputs: Tensor,
    direction: Tensor,
    parameters: Mapping[str, nn.Parameter],
    consume: Callable[[str, Tensor], None],
    *,
    retain_graph: bool = False,
) -> None:
    """One backward pass from `outputs` along `direction`; `consume(name, gradient)` is called once per tensor that has one.

    `consume` owns the gradient; it is freed on return. `.grad` is afterwards what it was. Works where gradients appear only
    after accumulation (sharded parameters), and sees the sum over all uses of a tied tensor.
    """

    def taker(name: str) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                with torch.no_grad():
                    consume(name, gradient)

        return take

    handles = [p.register_post_accumulate_grad_hook(taker(name)) for name, p in parameters.items()]
    try:
        with gradients_set_aside(list(parameters.values())):
            torch.autograd.backward(outputs, direction, retain_graph=retain_graph, inputs=list(parameters.values()))
    finally:
        for handle in handles:
            handle.remove()
