"""State that modules keep outside of buffers: attributes that are tensors or numbers."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

_OWN_NAMES = frozenset(vars(nn.Module()))  # of every module: parameters, hooks, …
_NUMBERS = (bool, int, float, complex, str, type(None))


class AttributeState:
    """The plain attributes of a model's modules, such as a memory or a count, as they are now.

    Plain are tensors, numbers, strings and None, and lists, dictionaries, tuples and deques of
    these. Other objects are left alone.
    """

    def __init__(self, model: nn.Module) -> None:
        self._held = [(vars(module), _plain_attributes(module)) for module in model.modules()]
        self._contents: list[tuple[Any, Any]] = []
        for _, plain in self._held:
            for value in plain.values():
                self._keep(value)

    def _keep(self, value: Any) -> None:
        if isinstance(value, Tensor):
            if value.grad_fn is None:
                self._contents.append((value, value.detach().clone()))
        elif not isinstance(value, _NUMBERS):
            if not isinstance(value, tuple):
                self._contents.append((value, value.copy()))
            for item in value.values() if isinstance(value, dict) else value:
                self._keep(item)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the same values back with the same contents; attributes made since are deleted."""
        for attributes, plain in self._held:
            for name in [n for n, v in attributes.items() if n not in plain and _is_state(n, v)]:
                del attributes[name]
            attributes.update(plain)
        for value, content in self._contents:
            if isinstance(value, Tensor):
                if not torch.equal(value, content):  # a write would end the graph that has saved it
                    value.copy_(content)
            else:
                value.clear()
                value.update(content) if isinstance(value, dict) else value.extend(content)


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if _is_state(name, value)}


def _is_state(name: str, value: Any) -> bool:
    return name not in _OWN_NAMES and _is_plain(value)


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple, deque):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value.values()))
    return type(value) is Tensor or isinstance(value, _NUMBERS)
