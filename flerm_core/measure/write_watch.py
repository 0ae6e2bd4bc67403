"""Finds the parameters that a forward writes into, at the moment of the write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from flerm_core.measure.tensor_versions import versions_kept

OnWrite = Callable[[nn.Parameter, Tensor], None]


def is_ordinary(parameter: nn.Parameter) -> bool:
    """Whether the parameter holds plain values in memory of its own."""
    if is_lazy(parameter) or type(parameter.data) is not Tensor:
        return False
    has_values = not (parameter.is_meta or parameter.is_inference())
    return has_values and parameter.layout is torch.strided


class WriteWatch:
    """Parameters whose values are copied when something is about to write into them.

    A copy in advance would take as much memory as the parameters, of which a forward may write
    into none, or into others at each step. Writes through `parameter.data` are seen too, and other
    data that is put in a parameter's place.

    written: the parameters that were written into since `kept` began.
    usable: whether the model's forward runs inside `watching`; else nothing is watched.
    """

    def __init__(self) -> None:
        self.written: list[nn.Parameter] = []
        self._before: dict[nn.Parameter, Tensor] = {}  # their values before
        self.usable = True
        self._on_write: OnWrite | None = None
        self._held: list[tuple[nn.Parameter, Tensor]] = []
        self._by_storage: dict[int, list[tuple[nn.Parameter, Tensor]]] = {}

    @contextmanager
    def kept(
        self, parameters: Iterable[nn.Parameter], on_write: OnWrite | None = None
    ) -> Iterator[None]:
        """Afterwards `parameters` have the values of now, and autograd knows of no change.

        What writes into them inside must run inside `watching`.

        on_write: is called once for each that is written into, with the values before.
        """
        global _current
        before, _current = _current, self
        self.written, self._on_write = [], on_write
        self._held = [(each, each.data) for each in parameters if is_ordinary(each)]
        self._by_storage = {}
        for pair in self._held:
            self._by_storage.setdefault(pair[1].untyped_storage().data_ptr(), []).append(pair)
        with versions_kept(parameter for parameter, _ in self._held):
            try:
                yield
            finally:
                _current = before
                self.restore()
                self._held, self._by_storage, self._before = [], {}, {}

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the values back, to start another forward."""
        for parameter, data in self._held:
            if parameter.data_ptr() != data.data_ptr():
                parameter.data = data
        for parameter, content in self._before.items():
            parameter.copy_(content)

    def note_replaced(self) -> None:
        """Notes the parameters that have other data by now. To be called after a forward."""
        for parameter, data in self._held if self.usable else ():
            if parameter.data_ptr() != data.data_ptr() and parameter not in self._before:
                self._note(parameter, data)

    @contextmanager
    def seeing(self) -> Iterator[None]:
        """Inside, what is written is seen."""
        with _Writes(self._before_write) if self._by_storage and self.usable else nullcontext():
            yield

    def _before_write(self, tensor: Tensor) -> None:
        for parameter, data in self._by_storage.get(tensor.untyped_storage().data_ptr(), ()):
            if parameter not in self._before:
                self._note(parameter, data.clone())

    def _note(self, parameter: nn.Parameter, before: Tensor) -> None:
        self.written.append(parameter)
        self._before[parameter] = before
        if self._on_write is not None:
            self._on_write(parameter, before)


_current: WriteWatch | None = None
_inside = False


@contextmanager
def watching() -> Iterator[None]:
    """Inside, the `WriteWatch` whose `kept` is open, if any, sees what is written."""
    global _inside
    if _current is None or _inside:
        yield
        return
    _inside = True
    try:
        with _current.seeing():
            yield
    finally:
        _inside = False


class _Writes(TorchDispatchMode):
    """Calls `before_write` with each tensor that an operator is about to write into."""

    supports_higher_order_operators = True

    def __init__(self, before_write: Callable[[Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._before_write = before_write

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        written = _written_arguments(func)
        if written:
            values = [args[at] if at < len(args) else kwargs.get(name) for at, name in written]
            for value in values:
                for each in value if isinstance(value, list | tuple) else (value,):
                    if type(each) in (Tensor, nn.Parameter):
                        self._before_write(each)
        return func(*args, **kwargs)


_known: dict[Any, tuple[tuple[int, str], ...]] = {}


def _written_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    """Position and name of the arguments that operator `func` writes into."""
    found = _known.get(func)
    if found is None:
        arguments = getattr(getattr(func, "_schema", None), "arguments", ())
        found = tuple(
            (at, each.name)
            for at, each in enumerate(arguments)
            if each.alias_info is not None and each.alias_info.is_write
        )
        _known[func] = found
    return found
