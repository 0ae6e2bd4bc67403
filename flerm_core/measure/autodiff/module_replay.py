"""Repeats a module's call with other parameters and buffers, and leaves the module unchanged.

A replay starts with the random generators and buffers of the original call's start. Afterwards
everything that the replay changed is put back: buffers, plain attributes (a weight that a hook
computes), lists of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from flerm_core.errors import EstimatorNotApplicable
from flerm_core.measure.autodiff.structure import replace_instances
from flerm_core.measure.distributed.sharding import full_tensor
from flerm_core.measure.output_projection import floating_tensors
from flerm_core.measure.state_guard import RandomState
from flerm_core.measure.write_watch import watching

# torch's hooks that compute a module's weight from other tensors before each forward.
_WEIGHT_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)
# The attributes that every module has: parameters, hooks, …
_OWN_ATTRIBUTES = frozenset(vars(nn.Module()))


class CallStart:
    """Random generators and buffers as they are at the start of a module's call.

    Integer and boolean buffers (masks, positions) are left out, because they are large and no
    forward writes them. The vectors of a power iteration (spectral norm) are left out too, because
    the gradient treats them as constants with the values that they have after the call.
    """

    def __init__(self, module: nn.Module) -> None:
        self._random_state = RandomState()
        self._buffers = {
            path: buffer.detach().clone()
            for inner_path, inner in module.named_modules()
            if not _iterates_power(inner)
            for path, buffer in _own_buffers(inner_path, inner)
            if buffer.is_floating_point()
        }

    @contextmanager
    def generators(self) -> Iterator[None]:
        """Inside, the random generators start as at the call's start. Afterwards they are as
        before.
        """
        current = RandomState()
        self._random_state.restore()
        try:
            yield
        finally:
            current.restore()

    def buffers_of(self, module: nn.Module) -> dict[str, Tensor]:
        """Copies of the buffers by path, for a replay to write to."""
        copies: dict[int, Tensor] = {}
        found: dict[str, Tensor] = {}
        for inner_path, inner in module.named_modules(remove_duplicate=False):
            for path, buffer in _own_buffers(inner_path, inner):
                if id(buffer) not in copies:
                    copies[id(buffer)] = self._buffers.get(path, buffer).detach().clone()
                found[path] = copies[id(buffer)]
        return found


def replay(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """What `module` returns for copies of `args` and `kwargs`.

    tensors: the tensors, by path, that take the place of the module's parameters and buffers.

    Of the module's own hooks only torch's that compute a weight run. The others must not: `args`
    and `kwargs` already went through the hooks before the forward, and FSDP2's hooks would gather
    and reshard parameters.

    Raises `EstimatorNotApplicable` where FSDP2 wraps modules inside `module`, because FSDP2 gathers
    the parameters of such a module in that module's own forward only.
    """
    if any(isinstance(inner, FSDPModule) for inner in module.modules() if inner is not module):
        raise EstimatorNotApplicable(
            f"{type(module).__name__} must be differentiated as a whole, but FSDP2 wraps modules "
            "inside it"
        )
    own_args, own_kwargs = replace_instances((args, dict(kwargs)), Tensor, torch.clone)
    with _attributes_kept(module), _replaced(module, tensors):
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, _WEIGHT_HOOKS):
                hook(module, ())
        with watching():
            return module.forward(*own_args, **own_kwargs)


def gathered_parameters(module: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """The module's parameters by path, detached; those that FSDP2 has sharded are gathered.

    A gathered parameter is cast to the dtype of `inputs`, which is the dtype of FSDP2's mixed
    precision. All ranks must call this at the same point.
    """
    dtype = next((tensor.dtype for tensor in floating_tensors(inputs)), None)
    return {
        path: full_tensor(p.detach()).to(dtype or p.dtype) if isinstance(p, DTensor) else p.detach()
        for path, p in module.named_parameters(remove_duplicate=False)
    }


@contextmanager
def _replaced(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, `module` computes with `tensors`. Each path of a tied tensor is set by itself."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    places: set[tuple[int, str]] = set()
    try:
        for path, tensor in tensors.items():
            inner_path, _, name = path.rpartition(".")
            inner = module.get_submodule(inner_path)
            held: dict[str, Any] = (
                inner._parameters if name in inner._parameters else inner._buffers
            )
            if (id(inner), name) not in places:  # a module at two paths of `module` is one place
                places.add((id(inner), name))
                before.append((held, name, held[name]))
                held[name] = tensor
        yield
    finally:
        for held, name, value in before:
            held[name] = value


@contextmanager
def _attributes_kept(module: nn.Module) -> Iterator[None]:
    """Inside, power iterations stand still; afterwards all plain attributes are as they were."""
    restore: list[Callable[[], None]] = []
    for inner in module.modules():
        restore.append(_restorer(inner))
        if _iterates_power(inner):
            inner.training = False
    try:
        yield
    finally:
        for each in restore:
            each()


def _restorer(module: nn.Module) -> Callable[[], None]:
    """A function that puts the present attributes of `module` back.

    It also puts back the present contents of attributes that are lists or dictionaries.
    """
    attributes = vars(module)
    before = dict(attributes)
    contents = {
        name: value.copy()
        for name, value in before.items()
        if type(value) in (list, dict) and name not in _OWN_ATTRIBUTES
    }

    def restore() -> None:
        for name in attributes.keys() - before.keys():
            del attributes[name]
        attributes.update(before)
        for name, content in contents.items():
            held = before[name]
            held.clear()
            held.update(content) if isinstance(held, dict) else held.extend(content)

    return restore


def _iterates_power(module: nn.Module) -> bool:
    hooks = module._forward_pre_hooks.values()
    return isinstance(module, _SpectralNorm) or any(isinstance(h, SpectralNorm) for h in hooks)


def _own_buffers(module_path: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, buffer in module._buffers.items():
        if buffer is not None:
            yield f"{module_path}.{name}" if module_path else name, buffer
