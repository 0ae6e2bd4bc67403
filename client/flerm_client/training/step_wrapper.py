"""Code around an optimiser's whole `step`, and between a user's hooks on `step`.

A wrapped `step` runs once, whatever it calls inside (docs/decisions.md, 4).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

Around = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class StepWrapper:
    """`optimizer.step(...)` of this instance calls `around(step, args, kwargs)`, until `detach`.

    around: calls `step(*args, **kwargs)` once, and returns what that call returned.

    `step` is replaced by a bound method with the signature and attributes of the original, because
    LR schedulers and GradScaler look at both. Either may wrap `step` in turn, before or after.
    """

    def __init__(self, optimizer: Optimizer, around: Around) -> None:
        self._optimizer = optimizer
        self._before: Any = optimizer.__dict__.get("step")
        self._around: Around | None = around
        inner = optimizer.step

        @functools.wraps(inner)
        def step(_: Optimizer, *args: Any, **kwargs: Any) -> Any:
            if self._around is None:
                return inner(*args, **kwargs)
            return self._around(inner, args, kwargs)

        self._own = MethodType(step, optimizer)
        optimizer.step = self._own  # type: ignore[method-assign]

    def detach(self) -> None:
        """Takes the wrapper off.

        Where someone else has wrapped `step` since, this wrapper stays and only passes calls on.
        """
        self._around = None
        if self._optimizer.__dict__.get("step") is self._own:
            if self._before is None:
                del self._optimizer.step
            else:
                self._optimizer.step = self._before  # type: ignore[method-assign]


def with_closure(
    args: tuple[Any, ...], kwargs: dict[str, Any], wrap: Callable[[Callable[[], Any]], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a `step`, with `wrap(closure)` in place of a closure among them."""
    if args and callable(args[0]):
        return (wrap(args[0]), *args[1:]), kwargs
    if callable(kwargs.get("closure")):
        return args, kwargs | {"closure": wrap(kwargs["closure"])}
    return args, kwargs


@contextmanager
def between_user_hooks(
    optimizer: Optimizer,
    before: Callable[[], None],
    after_pre: Callable[[], None],
    after_post: Callable[[], None],
) -> Iterator[None]:
    """A step of `optimizer` runs inside; calls go before and after the user's hooks on the step.

    before: called before each group of hooks that is not empty.
    after_pre: called after the hooks that run before the update, global and own.
    after_post: called after the hooks that run after the update, own and global.

    Where there are no hooks, or the optimiser has no such hooks, nothing is called.
    """
    with ExitStack() as stack:
        for hooks, after in (
            (_global_optimizer_pre_hooks, after_pre),
            (getattr(optimizer, "_optimizer_step_pre_hooks", None), after_pre),
            (getattr(optimizer, "_optimizer_step_post_hooks", None), after_post),
            (_global_optimizer_post_hooks, after_post),
        ):
            if hooks:
                stack.enter_context(_first_and_last(optimizer, hooks, before, after))
        yield


@contextmanager
def _first_and_last(
    optimizer: Optimizer, hooks: Any, before: Callable[[], None], after: Callable[[], None]
) -> Iterator[None]:
    """Inside, `before` is the first and `after` the last of the ordered `hooks`."""

    def as_hook(call: Callable[[], None]) -> Callable[..., None]:
        def hook(stepping: Optimizer, *_: Any) -> None:
            if stepping is optimizer:  # a global hook is called for every optimiser
                call()

        return hook

    first, last = object(), object()
    hooks[first], hooks[last] = as_hook(before), as_hook(after)
    hooks.move_to_end(first, last=False)
    try:
        yield
    finally:
        del hooks[first], hooks[last]
