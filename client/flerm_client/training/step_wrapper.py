"""Being there when an optimiser steps: around the whole of `step`, once, whatever it does inside (docs/decisions.md, 4)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import MethodType
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks


class CopySafeHook:
    """A hook on a module. Copies of the module (an average of its weights, a pickle) have one that hears nothing, and no part
    of the run."""

    def __init__(self, hear: Callable[..., None] | None = None) -> None:
        self._hear = hear

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """As torch calls it."""
        if self._hear is not None:
            self._hear(*args, **kwargs)

    def __reduce__(self) -> tuple[type[CopySafeHook], tuple[()]]:
        return CopySafeHook, ()


class StepWrapper:
    """`optimizer.step` on this instance runs inside `around()`, until `detach`.

    A bound method with the original's signature and attributes, as LR schedulers and GradScaler look for both: they may wrap
    it in turn, before or after.
    """

    def __init__(
        self, optimizer: Optimizer, around: Callable[[], AbstractContextManager[None]]
    ) -> None:
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


@contextmanager
def between_user_hooks(
    optimizer: Optimizer,
    before: Callable[[], None],
    after_pre: Callable[[], None],
    after_post: Callable[[], None],
) -> Iterator[None]:
    """A step of `optimizer` runs inside: `before` is called before the hooks that users have put on it, `after_pre` after
    those that come first, `after_post` after those that come last. Where there are no hooks (or an optimiser of a kind that has
    none), nothing is."""
    with ExitStack() as stack:
        for hooks, after in (
            (_global_optimizer_pre_hooks, after_pre),
            (getattr(optimizer, "_optimizer_step_pre_hooks", None), after_pre),
            (getattr(optimizer, "_optimizer_step_post_hooks", None), after_post),
            (_global_optimizer_post_hooks, after_post),
        ):
            if hooks:
                stack.enter_context(_enclosed(optimizer, hooks, before, after))
        yield


@contextmanager
def _enclosed(
    optimizer: Optimizer, hooks: Any, before: Callable[[], None], after: Callable[[], None]
) -> Iterator[None]:
    """`before` and `after` are the first and the last of the ordered `hooks`."""

    def heard(call: Callable[[], None]) -> Callable[..., None]:
        def hook(stepping: Optimizer, *_: Any) -> None:
            if stepping is optimizer:  # global hooks hear of all
                call()

        return hook

    first, last = object(), object()
    hooks[first], hooks[last] = heard(before), heard(after)
    hooks.move_to_end(first, last=False)
    try:
        yield
    finally:
        del hooks[first], hooks[last]
