"""Exact FSLRs by central differences in float64, without any code of the product."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tests.zoo.architecture import EXAMPLES, Architecture

STEP = 1e-5
"""By how much of its own size a tensor is moved: too little to change which experts are chosen."""


@dataclass(frozen=True)
class Exact:
    """One tensor's exact FSLR, and how far a measurement lies from that value.

    fslr: in output units per unit learning rate. deviation: the relative standard deviation of the
    squared FSLR from one draw of `example` a batch. With c_n = Σ_k ω_nk δ_nk the estimate
    Σ c_n² / (NK) has the mean Σ |δ_n|² / (NK) and the variance 2 Σ |δ_n|⁴ / (NK)².
    one_sample: the same where c is one number for each batch, so that n counts batches.
    """

    fslr: float
    deviation: float
    one_sample: float


class Reference:
    """The architecture's base model in float64, at its first weights."""

    def __init__(self, architecture: Architecture, stepped: nn.Module, batches: list[Any]) -> None:
        """stepped: the model after its step, whose buffers are taken."""
        self.architecture = architecture
        self.model = architecture.model()
        # A parametrisation of torch keeps a tensor's norm in a buffer, which a forward changes.
        self.model.load_state_dict(dict(stepped.named_buffers()), strict=False)
        self.model.double()
        # transformers' grouped matrix product of experts knows no float64.
        if callable(use_experts := getattr(self.model, "set_experts_implementation", None)):
            use_experts("eager")
        self.parameters = dict(self.model.named_parameters())
        self.buffers = {name: b.clone() for name, b in self.model.named_buffers()}
        apart = architecture.couples_examples or architecture.draws_numbers
        self.batches = [as_double(each) for each in (batches if apart else [joined(batches)])]

    @torch.no_grad()
    def exact(self, name: str, change: Tensor) -> Exact:
        """Of the tensor `name`, for ΔW = `change` at learning rate 1."""
        size = self.parameters[name].norm().item() or 0.02 * math.sqrt(change.numel())
        factor = STEP * size / change.norm().item()
        step, scale = factor * change.double(), (2 * factor) ** 2
        of_examples, outputs = [], 0
        for number, batch in enumerate(self.batches):
            moved = self._outputs(name, step, batch, number) - self._outputs(
                name, -step, batch, number
            )
            of_examples += moved.reshape(len(moved), -1).square().sum(1).div(scale).tolist()
            outputs += moved.numel()
        by_batch = np.reshape(of_examples, (-1, EXAMPLES)).sum(1)
        total = by_batch.sum()
        if total == 0:
            return Exact(0.0, 0.0, 0.0)
        between = 0.0
        if self.architecture.draws_numbers:  # The measurement and this value draw their own.
            between = 2 * np.square(by_batch - by_batch.mean()).sum()
        deviation, one_sample = (
            math.sqrt(2 * np.square(each).sum() + between) / total
            for each in (of_examples, by_batch)
        )
        return Exact(math.sqrt(total / outputs), deviation, one_sample)

    def _outputs(self, name: str, step: Tensor, batch: Any, number: int) -> Tensor:
        """The outputs with one tensor moved, everything else as at first."""
        for buffer, value in self.buffers.items():
            self.model.get_buffer(buffer).copy_(value)
        parameter = self.parameters[name]
        start = parameter.clone()
        parameter.add_(step)
        torch.manual_seed(number)
        with InFloat64():
            outputs = self.architecture.output(self.model, batch).double()
        parameter.copy_(start)
        return outputs


class InFloat64(TorchFunctionMode):
    """Inside, whoever asks for float32 gets float64, as norms and softmax of many models do."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls `func` with the dtype replaced."""
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(torch.float64 if each is torch.float32 else each for each in args)
        kwargs = {
            key: torch.float64 if value is torch.float32 else value
            for key, value in (kwargs or {}).items()
        }
        return func(*args, **kwargs)


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
