"""Copies of what modules are called with, so that a call can be repeated as it was.

A forward may fill what it is given: a cache of keys and values, a list of auxiliary losses. So
containers and objects are copied, and tensors are replaced by a choice of the caller.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn


def replace_instances(
    value: Any,
    kind: type,
    replacement: Callable[[Any], Any],
    is_copied: Callable[[Any], bool] = lambda _: True,
) -> Any:
    """A copy of `value` with each instance of `kind` in it replaced.

    Lists, tuples and dictionaries are copied with what they hold, and so are other objects for
    which `is_copied` holds. What is held twice is replaced once. Modules, classes and functions are
    the same objects in the copy, and so is what cannot be copied (generators, locks).
    """
    return _Copier(kind, replacement, is_copied).copied(value)


class _Copier:
    """One call of `replace_instances`."""

    def __init__(
        self,
        kind: type,
        replacement: Callable[[Any], Any],
        is_copied: Callable[[Any], bool],
    ) -> None:
        self._kind, self._replacement, self._is_copied = kind, replacement, is_copied
        self._done: dict[int, tuple[Any, Any]] = {}  # with the value, so that its id stays its own

    def copied(self, value: Any) -> Any:
        if id(value) not in self._done:
            self._done[id(value)] = value, self._made(value)
        return self._done[id(value)][1]

    def _made(self, value: Any) -> Any:
        if isinstance(value, self._kind):
            return self._replacement(value)
        if isinstance(value, tuple):
            items = [self.copied(item) for item in value]
            # `_make` passes by a constructor that checks its arguments, as PackedSequence's does.
            make = getattr(type(value), "_make", type(value))
            return make(items)
        if callable(value) or isinstance(value, nn.Module):
            return value
        is_container = isinstance(value, list | dict | deque)
        is_object = next(_attributes(value), None) is not None
        if is_container or (is_object and self._is_copied(value)):
            return self._filled(value)
        return value

    def _filled(self, value: Any) -> Any:
        """A copy of a container or an object, with what it holds copied."""
        try:
            own = copy.copy(value)
        except Exception:  # a class may raise whatever it likes
            return value
        if own is value:
            return value
        self._done[id(value)] = value, own  # before what it holds, which may hold it
        if isinstance(own, dict):
            for key, item in value.items():
                own[key] = self.copied(item)
        elif isinstance(own, list | deque):
            for index, item in enumerate(value):
                own[index] = self.copied(item)
        for name, attribute in _attributes(value):
            object.__setattr__(own, name, self.copied(attribute))
        return own


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds in its dictionary and its slots."""
    yield from getattr(value, "__dict__", {}).items()
    for each in type(value).__mro__:
        slots = vars(each).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)
