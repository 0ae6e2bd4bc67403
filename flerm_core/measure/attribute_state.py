"""State that modules keep outside of buffers: the attributes that they set themselves."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_OWN_NAMES = frozenset(vars(nn.Module()))  # of every module: parameters, hooks, …
_MAPPINGS = (dict, OrderedDict, defaultdict, Counter)
_LISTS = (list, deque)
_CONTAINERS = (*_MAPPINGS, *_LISTS, set, tuple)

Restore = Callable[[], None]


class AttributeState:
    """The attributes of a model's modules, such as a memory or a count, as they are now.

    Each attribute is the same object afterwards. The contents of tensors, NumPy arrays, random
    generators, lists, dictionaries, sets, deques and tuples are put back too, also inside each
    other. What other objects hold is left alone.

    tensors: those whose contents are put back.
    """

    def __init__(self, model: nn.Module) -> None:
        self._held = [(vars(module), _attributes(module)) for module in model.modules()]
        self._restores: list[Restore] = []
        self.tensors: list[Tensor] = []
        self._known: dict[int, Any] = {}  # the containers, because one may hold itself
        for _, attributes in self._held:
            for value in attributes.values():
                self._keep(value)

    def _keep(self, value: Any) -> None:
        kind = type(value)
        if kind in _CONTAINERS:
            if id(value) not in self._known:
                self._known[id(value)] = value
                if kind is not tuple:
                    self._restores.append(_restore_container(value))
                for item in value.values() if kind in _MAPPINGS else value:
                    self._keep(item)
        elif kind is Tensor and value.grad_fn is None:
            self.tensors.append(value)
            self._restores.append(partial(put_back, value, value.detach().clone()))
        elif kind in _RESTORES:
            self._restores.append(_RESTORES[kind](value))

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the same values back with the same contents; attributes made since are deleted."""
        for held, before in self._held:
            for name in [n for n in held if n not in before and n not in _OWN_NAMES]:
                del held[name]
            held.update(before)
        for restore in self._restores:
            restore()


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OWN_NAMES}


def _restore_container(value: Any) -> Restore:
    kind = type(value)
    content = list(value.items() if kind in _MAPPINGS else value)
    fill: Any = kind.extend if kind in _LISTS else kind.update
    if kind is Counter:
        fill = dict.update  # its own would add

    def restore() -> None:
        value.clear()
        fill(value, content)

    return restore


def put_back(tensor: Tensor, content: Tensor) -> None:
    """Gives `tensor` the shape and the values of `content`, bit for bit."""
    if tensor.shape != content.shape:  # observers of quantisation resize theirs
        tensor.resize_(content.shape)
    tensor.copy_(content)


def _by(get: Callable[[Any], Any], put: Callable[[Any, Any], Any]) -> Callable[[Any], Restore]:
    def make(value: Any) -> Restore:
        content = get(value)
        return lambda: put(value, content)

    return make


def _set_array(array: np.ndarray[Any, Any], content: np.ndarray[Any, Any]) -> None:
    if array.flags.writeable:
        array[...] = content


def _set_bits(generator: np.random.Generator, state: Any) -> None:
    generator.bit_generator.state = state


_GENERATORS = (torch.Generator, random.Random, np.random.RandomState, np.random.Generator)
_RESTORES: Mapping[type, Callable[[Any], Restore]] = {
    np.ndarray: _by(np.ndarray.copy, _set_array),
    torch.Generator: _by(torch.Generator.get_state, torch.Generator.set_state),
    random.Random: _by(random.Random.getstate, random.Random.setstate),
    np.random.RandomState: _by(np.random.RandomState.get_state, np.random.RandomState.set_state),
    np.random.Generator: _by(lambda each: each.bit_generator.state, _set_bits),
}


@contextmanager
def own_attributes_kept(holder: object) -> Iterator[None]:
    """Afterwards `holder` has the same attributes, and its random generators are as before.

    What else its attributes hold is left alone: a data module may hold gigabytes.
    """
    attributes = dict(vars(holder))
    restores = [_RESTORES[type(it)](it) for it in attributes.values() if type(it) in _GENERATORS]
    try:
        yield
    finally:
        vars(holder).clear()
        vars(holder).update(attributes)
        for restore in restores:
            restore()
