"""Finds out in which autocast region the training's forward runs, without a trace on the model.

The optimiser steps outside the user's region, so a measurement must know the region to open it
again. A hook on the model reads the region. Nothing else may notice the hook:

- `torch.compile` would compile anew whenever a value changes that the hook reads, or break its
  graph. Inside compiled code the hook is therefore a constant: it reads the region while the graph
  is traced, and torch traces anew for every other region.
- Copies and pickles of the module are made without the hook (`__getstate__`), so that `torch.save`
  writes plain values only.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from flerm_core.measure.state_guard import AutocastContext

_listeners: weakref.WeakValueDictionary[int, AutocastListener] = weakref.WeakValueDictionary()
_keys = itertools.count()


class AutocastListener:
    """Reads the region whenever the training calls one of `modules`.

    modules: the model, and a layer inside it, if any. A framework may open the region inside the
        model's forward (Accelerate), or never call the model as a whole (Lightning's
        training_step). The layer's region therefore takes precedence.
    on_region: is called with the region of each forward with gradients.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        device_type: str,
        on_region: Callable[[AutocastContext], None],
    ) -> None:
        self._device_type = device_type
        self._on_region = on_region
        self._around_model = AutocastContext()
        # By the region around the model's call: compiled code does not tell at each call.
        self._inside: dict[AutocastContext, AutocastContext] = {}
        torch.compiler.assume_constant_result(_note_while_tracing)  # marks the function
        key = next(_keys)
        _listeners[key] = self
        self._attached = [
            _Attached(module, _Hook(key, number > 0)) for number, module in enumerate(modules)
        ]

    def note_region(self, is_layer: bool) -> None:
        """Notes the region in which the model is called, or the layer inside it."""
        if not torch.is_grad_enabled():
            return
        context = AutocastContext.current(self._device_type)
        if is_layer:
            self._inside[self._around_model] = context
        else:
            self._around_model = context
            context = self._inside.get(context, context)
        self._on_region(context)

    def detach(self) -> None:
        """Takes the hooks off."""
        for each in self._attached:
            each.detach()


class _Hook:
    """A forward pre-hook. It holds plain numbers only; a copy of the hook does nothing."""

    def __init__(self, key: int, is_layer: bool) -> None:
        self._key, self._is_layer = key, is_layer

    def __call__(self, module: nn.Module, args: Any) -> None:
        """As torch calls it."""
        if torch.compiler.is_compiling():
            _note_while_tracing(self._key, self._is_layer)
        else:
            _note_region(self._key, self._is_layer)

    def __reduce__(self) -> tuple[type[_Hook], tuple[int, bool]]:
        return _Hook, (-1, self._is_layer)


def _note_region(key: int, is_layer: bool) -> None:
    listener = _listeners.get(key)
    if listener is not None:
        listener.note_region(is_layer)


def _note_while_tracing(key: int, is_layer: bool) -> int:
    _note_region(key, is_layer)
    return 0


class _Attached:
    """`hook` on the forward of `module`, which copies and pickles of the module do not have."""

    def __init__(self, module: nn.Module, hook: _Hook) -> None:
        self._module = module
        self._handle = module.register_forward_pre_hook(hook)
        self._own = partial(_state_without, self._handle.id, module.__getstate__)
        self._before: Any = module.__dict__.get("__getstate__")
        # A class that reduces itself does not ask for the state.
        if type(module).__reduce__ is object.__reduce__:
            module.__dict__["__getstate__"] = self._own

    def detach(self) -> None:
        """Takes the hook off."""
        self._handle.remove()
        if self._module.__dict__.get("__getstate__") is self._own:
            del self._module.__dict__["__getstate__"]
            if self._before is not None:
                self._module.__dict__["__getstate__"] = self._before


def _state_without(handle_id: int, get_state: Callable[[], Any]) -> Any:
    """What `get_state` returns for a module, without the hook `handle_id` and this function."""
    state = get_state()
    if isinstance(state, tuple):  # of a class with slots: (attributes, slots)
        return (_attributes_without(handle_id, state[0]), *state[1:])
    return _attributes_without(handle_id, state)


def _attributes_without(handle_id: int, attributes: Any) -> Any:
    if not isinstance(attributes, dict):
        return attributes
    kept = {name: value for name, value in attributes.items() if name != "__getstate__"}
    if handle_id in kept.get("_forward_pre_hooks", ()):
        kept["_forward_pre_hooks"] = kept["_forward_pre_hooks"].copy()
        del kept["_forward_pre_hooks"][handle_id]
    return kept
