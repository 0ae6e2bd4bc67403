"""Copies of what modules are called with, so that a call can be repeated as it was.

A forward may write to its arguments: to a cache of keys and values, or a list of auxiliary losses.
So containers and objects are copied, and the caller chooses what takes the place of each tensor.
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

    Lists, tuples and dictionaries are copied with their contents, and so are other objects for
    which `is_copied` holds. An object that occurs twice is copied or replaced once. Modules,
    classes, functions, and objects that cannot be copied (generators, locks) are not copied: the
    copy refers to the same objects.
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
        # By id: the value and its copy. The value is kept so that no other object gets its id.
        self._done: dict[int, tuple[Any, Any]] = {}

    def copied(self, value: Any) -> Any:
        if id(value) not in self._done:
            self._done[id(value)] = value, self._made(value)
        return self._done[id(value)][1]

    def _made(self, value: Any) -> Any:
        if isinstance(value, self._kind):
            return self._replacement(value)
        if isinstance(value, tuple):
            items = [self.copied(item) for item in value]
            # `_make` avoids constructors that check their arguments, as PackedSequence's does.
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
        """A copy of a container or an object, with its contents copied too."""
        try:
            own = copy.copy(value)
        except Exception:  # a class may raise whatever it likes
            return value
        if own is value:
            return value
        # Noted before the contents are copied, because the contents may refer back to `value`.
        self._done[id(value)] = value, own
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
    """The names and values of an object's attributes, from its dictionary and its slots."""
    yield from getattr(value, "__dict__", {}).items()
    for each in type(value).__mro__:
        slots = vars(each).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)
