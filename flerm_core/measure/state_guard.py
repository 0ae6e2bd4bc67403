"""A measurement leaves no trace: whatever it could change is restored bit for bit."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch.nn.utils import parametrize

from flerm_core.errors import MeasurementError
from flerm_core.measure.attribute_state import AttributeState, put_back
from flerm_core.measure.tensor_versions import versions_kept


class RandomState:
    """The state of every generator that a model or a data set may draw from.

    These are Python's, NumPy's, and torch's on the CPU and on each accelerator in use.
    """

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy: Any = np.random.get_state()
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore(self) -> None:
        """Sets all generators back to this state."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._cpu)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: plain values and tensors."""
        kind, keys, *rest = self._numpy
        return {
            "python": self._python,
            "numpy": (kind, torch.tensor(keys, dtype=torch.int64), *rest),
            "cpu": self._cpu,
            "cuda": self._cuda,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> RandomState:
        """The state that `state_dict` gave.

        Where the number of accelerators has changed since, the states of theirs are left out.
        """
        self = cls.__new__(cls)
        python = state["python"]
        self._python = (python[0], tuple(python[1]), python[2])
        kind, keys, *rest = state["numpy"]
        self._numpy = (kind, keys.numpy().astype(np.uint32), *rest)
        self._cpu = state["cpu"]
        devices = torch.cuda.device_count() if torch.cuda.is_initialized() else 0
        self._cuda = state["cuda"] if len(state["cuda"]) == devices else []
        return self


def seed_generators(seed: int) -> None:
    """Begins the streams of Python, NumPy and torch anew."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class PrivateRandomness:
    """Streams of random numbers for the probe alone.

    Inside `active`, all global generators continue where the last `active` left them. So neither
    the dropout masks of a measurement nor a probe loader that shuffles changes the training's
    generators or depends on them.

    `state` is None before the first `active`, which starts the streams from `seed`.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.state: RandomState | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the global generators are the probe's; afterwards they are as they were."""
        outside = RandomState()
        if self.state is None:
            seed_generators(self._seed)
        else:
            self.state.restore()
        try:
            yield
        finally:
            try:
                self.state = RandomState()
            finally:
                outside.restore()


class BufferState:
    """The buffers of a model, such as BatchNorm's statistics, as they are now.

    What a forward makes where there was nothing (a mask of the batch's length, a layer of its
    width) is taken away again, so that the training's forward makes its own.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        tables: list[Any] = [own for each in modules for own in (each._buffers, each._modules)]
        # Those of torch.jit are no dictionaries, and a forward cannot change them.
        self._held = [(table, dict(table)) for table in tables if isinstance(table, dict)]
        # A parameter that is there already may be FSDP2's, which puts another in its place.
        self._parameters = [
            (own, {name: own[name] for name in own if own[name] is None}, set(own))
            for own in (each._parameters for each in modules)
            if isinstance(own, dict)
        ]
        self._contents = [(each, each.detach().clone()) for each in model.buffers()]

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the same tensors back with the same contents, bit for bit."""
        for table, before in self._held:
            if not _same_entries(table, before):
                table.clear()
                table.update(before)
        for own, empty, known in self._parameters:
            for name in own.keys() - known:
                del own[name]
            own.update(empty)
        # Every buffer, because the tensor's version does not tell which have changed: batch_norm's
        # kernel writes its statistics without raising it.
        for buffer, content in self._contents:
            put_back(buffer, content)


def _same_entries(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return list(one) == list(other) and all(map(is_, one.values(), other.values()))


class ParameterState:
    """The values of `parameters` as they are now.

    A forward may write into a codebook, the weights of a momentum encoder, or the rows of an
    embedding with `max_norm`.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._held = [(each, each.data, each.detach().clone()) for each in parameters]

    @torch.no_grad()
    def restore(self) -> list[nn.Parameter]:
        """Puts the values back, bit for bit. Returns the parameters that had others."""
        found = []
        for parameter, data, content in self._held:
            if parameter.data_ptr() != data.data_ptr() or not torch.equal(parameter, content):
                parameter.data = data
                parameter.copy_(content)
                found.append(parameter)
        return found

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Afterwards the values are those of now, and autograd knows of no change."""
        with versions_kept(parameter for parameter, _, _ in self._held):
            try:
                yield
            finally:
                self.restore()


class ForwardStart:
    """The generators, buffers and attributes from which a model's forward started.

    parameters: those that the forward writes into; their values are kept too.
    written: those that were found to have other values when they were put back.
    """

    def __init__(self, model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
        self.written: dict[nn.Parameter, None] = {}
        self._states = RandomState(), BufferState(model), AttributeState(model)
        self._parameters = ParameterState(parameters)

    def restore(self) -> None:
        """Sets everything back, to start another forward."""
        for state in self._states:
            state.restore()
        self.written.update(dict.fromkeys(self._parameters.restore()))


def eager_execution() -> AbstractContextManager[None]:
    """Inside, nothing is compiled: compiled code does not see hooks that are added later.

    Raises `MeasurementError` inside a function that is compiled itself.
    """
    if get_eval_frame_callback() not in (None, False):
        raise MeasurementError(
            "the optimizer's step was given to torch.compile after FLeRM was attached, and nothing "
            "can be measured inside compiled code: compile the step first "
            "(optimizer.step = torch.compile(optimizer.step)), then attach FLeRM"
        )
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def preserve_model_state(model: nn.Module) -> Iterator[None]:
    """Restores buffers (BatchNorm's statistics), attributes and train/eval modes.

    Inside, gradients are on.
    """
    buffers, attributes = BufferState(model), AttributeState(model)
    modes = {module: module.training for module in model.modules()}
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        versions_kept(chain(model.buffers(), attributes.tensors)),
        _parametrizations_uncached(),
    ):
        try:
            yield
        finally:
            buffers.restore()
            attributes.restore()
            for module, mode in modes.items():
                module.training = mode


@contextmanager
def _parametrizations_uncached() -> Iterator[None]:
    """Inside, parametrised weights are computed anew, and not taken from `parametrize.cached()`.

    A step inside the user's `cached()` finds there weights whose graph is used up.
    """
    enabled, cache = parametrize._cache_enabled, parametrize._cache
    parametrize._cache_enabled, parametrize._cache = 0, {}
    try:
        yield
    finally:
        parametrize._cache_enabled, parametrize._cache = enabled, cache


@contextmanager
def requires_grad_enabled(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Inside, gradients are recorded for `parameters`, also for those that are frozen.

    Two optimisers may take turns, each with the other's parameters frozen. The step of both is
    measured after the second's, when the first's parameters are frozen.
    """
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@contextmanager
def grads_stashed(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Inside, `.grad` is None everywhere; afterwards each is the same tensor object as before."""
    stashed: list[Tensor | None] = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, stashed, strict=True):
            parameter.grad = gradient


@contextmanager
def hooks_disabled(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Inside, no hook on the gradients of `parameters` is called that was there before.

    The dictionaries of hooks are emptied, not replaced: autograd holds each of them once it exists.
    """
    disabled: list[tuple[dict[int, Any], dict[int, Any]]] = []
    for parameter in parameters:
        for hooks in (parameter._backward_hooks, parameter._post_accumulate_grad_hooks):
            if hooks:
                disabled.append((hooks, dict(hooks)))
                hooks.clear()
    try:
        yield
    finally:
        for hooks, content in disabled:
            hooks.update(content)


@dataclass(frozen=True)
class AutocastContext:
    """In which precision the training's forward ran, for a measurement's forward.

    regions: the autocast regions that were open: (device type, dtype).
    default_dtype: the dtype of tensors that the forward makes. None: the present one.
    """

    regions: tuple[tuple[str, torch.dtype], ...] = ()
    default_dtype: torch.dtype | None = None

    @classmethod
    def current(cls, device_type: str) -> AutocastContext:
        """The region that is open now for `device_type`, and the default dtype of now."""
        regions: tuple[tuple[str, torch.dtype], ...] = ()
        if torch.is_autocast_enabled(device_type):
            regions = ((device_type, torch.get_autocast_dtype(device_type)),)
        return cls(regions, torch.get_default_dtype())

    @contextmanager
    def open(self, device_type: str) -> Iterator[None]:
        """Opens the regions, or switches autocast off for `device_type` where there are none.

        Without autocast's cache of cast weights, because weights change inside (W_old, tangents).
        """
        with ExitStack() as stack:
            if self.default_dtype is not None:
                stack.callback(torch.set_default_dtype, torch.get_default_dtype())
                torch.set_default_dtype(self.default_dtype)
            if not self.regions:
                stack.enter_context(torch.autocast(device_type, enabled=False))
            for region, dtype in self.regions:
                stack.enter_context(torch.autocast(region, dtype=dtype, cache_enabled=False))
            yield
