"""Being there when an optimiser steps: around the whole of `step`, once, whatever it does inside (docs/decisions.md, 4)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import MethodType
from typing import Any

from torch.optim import Optimizer


class Hearing:
    """A hook on a module. Copies of the module (an average of its weights, a pickle) have one that hears nothing, and no part
    of the run."""

    def __init__(self, hear: Callable[..., None] | None = None) -> None:
        self._hear = hear

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """As torch calls it."""
        if self._hear is not None:
            self._hear(*args, **kwargs)

    def __reduce__(self) -> tuple[type[Hearing], tuple[()]]:
        return Hearing, ()


class Attachment:
    """`optimizer.step` on this instance runs inside `around()`, until `detach`.

    A bound method with the original's signature and attributes, as LR schedulers and GradScaler look for both: they may wrap
    it in turn, before or after.
    """

    def __init__(self, optimizer: Optimizer, around: Callable[[], AbstractContextManager[None]]) -> None:
        self._optimizer = optimizer
        self._before: Any = optimizer.__dict__.get("step")
        self._around: Callable[[], AbstractContextManager[None]] | None = around
        inner = optimizer.step

        @functools.wraps(inner)
        def step(_: Optimizer, *args: Any, **kwargs: Any) -> Any:
            if self._around is None:
                return inner(*args, **kwargs)
            with self._around():
                return inner(*args, **kwargs)

        self._own = MethodType(step, optimizer)
        optimizer.step = self._own  # type: ignore[method-assign]

    def detach(self) -> None:
        """Takes the wrapping off; where someone has wrapped it since, leaves it as a plain passage."""
        self._around = None
        if self._optimizer.__dict__.get("step") is self._own:
            if self._before is None:
                del self._optimizer.step
            else:
                self._optimizer.step = self._before  # type: ignore[method-assign]
