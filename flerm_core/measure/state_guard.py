"""A measurement leaves no trace: what it could change is put back bit for bit (design, method 5)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class RandomState:
    """Every generator a model or a data set may draw from: Python's, NumPy's, torch's on the CPU and on each accelerator in
    use."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy: Any = np.random.get_state()
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore(self) -> None:
        """Sets all of them back to this state."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._cpu)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)

    def state_dict(self) -> dict[str, Any]:
        """The state, for a checkpoint: plain values and tensors."""
        kind, keys, *rest = self._numpy
        return {
            "python": self._python,
            "numpy": (kind, torch.tensor(keys, dtype=torch.int64), *rest),
            "cpu": self._cpu,
            "cuda": self._cuda,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> RandomState:
        """The state that `state_dict` wrote; the number of accelerators may have changed, then theirs starts anew."""
        self = cls.__new__(cls)
        python = state["python"]
        self._python = (python[0], tuple(python[1]), python[2])
        kind, keys, *rest = state["numpy"]
        self._numpy = (kind, keys.numpy().astype(np.uint32), *rest)
        self._cpu = state["cpu"]
        devices = torch.cuda.device_count() if torch.cuda.is_initialized() else 0
        self._cuda = state["cuda"] if len(state["cuda"]) == devices else []
        return self


class PrivateRandomness:
    """A stream of randomness for the probe alone: inside `active`, all global generators continue where the last `active`
    left them.

    So neither a dropout mask of a measurement nor a shuffling probe loader moves, or follows, the training's generators.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.state: RandomState | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Swaps the streams in and out."""
        outside = RandomState()
        if self.state is None:
            random.seed(self._seed)
            np.random.seed(self._seed % 2**32)
            torch.manual_seed(self._seed)
        else:
            self.state.restore()
        try:
            yield
        finally:
            self.state = RandomState()
            outside.restore()


@contextmanager
def preserve_model_state(model: nn.Module) -> Iterator[None]:
    """Buffers (BatchNorm's statistics) and train/eval modes of `model` are, after it, what they were; gradients are recorded
    inside."""
    modules = list(model.modules())
    buffers = [(module, dict(module._buffers)) for module in modules if module._buffers]
    contents = {
        id(b): (b, b.detach().clone()) for _, own in buffers for b in own.values() if b is not None
    }
    modes = {module: module.training for module in modules}
    with torch.inference_mode(False), torch.enable_grad():
        try:
            yield
        finally:
            with torch.no_grad():
                for module, own in buffers:
                    module._buffers.update(own)
                # Always: batch_norm's kernel writes its statistics without raising the tensor's version.
                for buffer, content in contents.values():
                    buffer.copy_(content)
            for module, mode in modes.items():
                module.training = mode


@contextmanager
def requires_grad_enabled(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Inside, gradients are recorded for `parameters`, also for those that training has switched off by now: of two optimisers
    that take turns, each with the other's parameters off, the step is measured after the second's."""
    off = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in off:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in off:
            parameter.requires_grad_(False)


@contextmanager
def grads_stashed(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Inside, `.grad` is None everywhere; afterwards each is the very tensor that it was."""
    held: list[Tensor | None] = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, held, strict=True):
            parameter.grad = gradient


@contextmanager
def hooks_disabled(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Inside, no hook of anyone else hears of gradients of `parameters`, nor changes them. Emptied, not replaced: autograd
    holds on to a dictionary of hooks once it has one."""
    theirs: list[tuple[dict[int, Any], dict[int, Any]]] = []
    for parameter in parameters:
        for hooks in (parameter._backward_hooks, parameter._post_accumulate_grad_hooks):
            if hooks:
                theirs.append((hooks, dict(hooks)))
                hooks.clear()
    try:
        yield
    finally:
        for hooks, content in theirs:
            hooks.update(content)


@dataclass(frozen=True)
class AutocastContext:
    """The autocast regions that were open in the training's forward, to be opened again around a measurement's."""

    regions: tuple[tuple[str, torch.dtype], ...] = ()

    @classmethod
    def current(cls, device_type: str) -> AutocastContext:
        """What is open at this moment for `device_type`."""
        if torch.is_autocast_enabled(device_type):
            return cls(((device_type, torch.get_autocast_dtype(device_type)),))
        return cls()

    @contextmanager
    def open(self, device_type: str) -> Iterator[None]:
        """The same regions, without the weight cache: weights change under it (W_old, tangents)."""
        with ExitStack() as stack:
            if not self.regions:
                stack.enter_context(torch.autocast(device_type, enabled=False))
            for region, dtype in self.regions:
                stack.enter_context(torch.autocast(region, dtype=dtype, cache_enabled=False))
            yield
