"""Exact FSLRs by central differences in float64, without any code of the product."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.architecture import Architecture


@dataclass(frozen=True)
class Exact:
    """One tensor's exact FSLR, and how far one draw of `example` a batch lies from that value.

    fslr: in output units per unit learning rate. deviation: the relative standard deviation of the
    squared FSLR. With c_n = Σ_k ω_nk δ_nk the estimate Σ c_n² / (NK) has the mean Σ |δ_n|² / (NK)
    and the variance 2 Σ |δ_n|⁴ / (NK)².
    """

    fslr: float
    deviation: float


class Reference:
    """The architecture's base model in float64, at its first weights.

    Models compute norms and softmax in float32 whatever their dtype is: a difference is therefore
    taken over a hundredth of a tensor's size, in which that rounding does not count.
    """

    def __init__(self, architecture: Architecture, stepped: nn.Module, batches: list[Any]) -> None:
        """stepped: the model after its step, whose buffers are taken."""
        self.architecture = architecture
        self.model = architecture.model()
        # A parametrisation of torch keeps a tensor's norm in a buffer, which a forward changes.
        self.model.load_state_dict(dict(stepped.named_buffers()), strict=False)
        self.model.double()
        self.parameters = dict(self.model.named_parameters())
        self.buffers = {name: b.clone() for name, b in self.model.named_buffers()}
        apart = architecture.couples_examples or architecture.draws_numbers
        self.batches = [as_double(each) for each in (batches if apart else [joined(batches)])]

    @torch.no_grad()
    def exact(self, name: str, change: Tensor) -> Exact:
        """Of the tensor `name`, for ΔW = `change` at learning rate 1."""
        size = self.parameters[name].norm().item() or 0.02 * math.sqrt(change.numel())
        step = 1e-2 * size / change.norm().item() * change.double()
        scale = (2e-2 * size / change.norm().item()) ** 2
        squares, fourth, outputs = [], 0.0, 0
        for number, batch in enumerate(self.batches):
            moved = self._outputs(name, step, batch, number) - self._outputs(
                name, -step, batch, number
            )
            by_example = moved.reshape(len(moved), -1).square().sum(1) / scale
            squares.append(by_example.sum().item())
            fourth += by_example.square().sum().item()
            outputs += moved.numel()
        total = sum(squares)
        if total == 0:
            return Exact(0.0, 0.0)
        variance = 2 * fourth / total / total
        if self.architecture.draws_numbers:  # The measurement and this value draw their own.
            mean = total / len(squares)
            variance += 2 * sum((each - mean) ** 2 for each in squares) / total / total
        return Exact(math.sqrt(total / outputs), math.sqrt(variance))

    def _outputs(self, name: str, step: Tensor, batch: Any, number: int) -> Tensor:
        """The outputs with one tensor moved, everything else as at first."""
        for buffer, value in self.buffers.items():
            self.model.get_buffer(buffer).copy_(value)
        parameter = self.parameters[name]
        start = parameter.clone()
        parameter.add_(step)
        torch.manual_seed(number)
        outputs = self.architecture.output(self.model, batch).double()
        parameter.copy_(start)
        return outputs


def joined(batches: list[Any]) -> Any:
    """All batches as one, along dimension 0."""
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat(batches)
    if isinstance(first, Mapping):
        return {key: joined([batch[key] for batch in batches]) for key in first}
    return tuple(joined(list(parts)) for parts in zip(*batches, strict=True))


def as_double(batch: Any) -> Any:
    """A batch with its real numbers in float64."""
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, Mapping):
        return {key: as_double(value) for key, value in batch.items()}
    return tuple(as_double(item) for item in batch)
