"""Bound `step` methods that wrappers of an optimiser took before FLeRM wrapped `step`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from torch.optim import Optimizer


def redirect_captured_steps(wrapper: Any, optimizer: Optimizer) -> Callable[[], None]:
    """Makes `wrapper` and what it wraps call the `optimizer.step` of now.

    Accelerate's wrapper has saved an older `step`, as an attribute and inside a function. With a
    GradScaler (fp16), the wrapper assigns the saved one to `optimizer.step`. The attribute and the
    function both get the `step` of now.

    wrapper: the optimiser as the user gave it; `optimizer` itself has nothing to replace.

    Returns a function that puts everything back.
    """
    undo = [
        replace
        for holder in _around(wrapper, optimizer)
        for replace in _replacements(holder, optimizer)
    ]
    for replace, _ in undo:
        replace(optimizer.step)

    def put_back() -> None:
        for replace, before in undo:
            replace(before)
        undo.clear()

    return put_back


def _around(wrapper: Any, optimizer: Optimizer) -> Iterator[Any]:
    while wrapper is not optimizer:
        yield wrapper
        inner = (each for each in vars(wrapper).values() if isinstance(each, Optimizer))
        wrapper = next(inner, optimizer)


def _replacements(
    holder: Any, optimizer: Optimizer
) -> Iterator[tuple[Callable[[Any], None], MethodType]]:
    """A setter for each place in `holder` that holds a step of `optimizer`, and that step."""

    def is_step(value: Any) -> bool:
        return (
            isinstance(value, MethodType)
            and value.__self__ is optimizer
            and value.__name__ == "step"
        )

    for name, value in list(vars(holder).items()):
        if is_step(value):
            yield partial(setattr, holder, name), value
        elif isinstance(value, FunctionType):
            for cell in value.__closure__ or ():
                if is_step(content := _content(cell)):
                    yield partial(setattr, cell, "cell_contents"), content


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return None
