"""Makes signal handlers wait while a step changes weights and parameter groups."""

from __future__ import annotations

import signal
import threading

# The functions of `signal` make enums of signals and handlers, which takes 0.3 ms a step.
from _signal import getsignal  # type: ignore[import-not-found]
from _signal import signal as set_handler
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

_Handler = Callable[[int, FrameType | None], Any]
_CATCHABLE = tuple(map(int, signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))


class SignalDeferral:
    """From `defer` on, Python's signal handlers wait; they run when the block is left.

    A handler may raise (Ctrl-C does) between any two instructions, also inside a `finally`, which
    then does not end its work: weights would stay at W_old, parameter groups at scaled rates. A
    step that changes neither does not call `defer`, and costs no time.

    `run_open` lets handlers run at once, in the user's code. `run_pending` runs those that wait.
    Python runs all handlers in the main thread, so that nothing is deferred in another thread.
    """

    def __init__(self) -> None:
        self._deferred: dict[int, _DeferredHandler] = {}
        self._pending: list[Callable[[], Any]] = []
        self._deferring = False
        self._open = False
        self._ended = False

    def __enter__(self) -> SignalDeferral:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def defer(self) -> None:
        """From now on handlers wait, except in `run_open`. A second call does nothing."""
        if not self._deferring:
            self._deferring = True
            self._defer_handlers()

    def run_open(self, call: Callable[[], Any]) -> Any:
        """Calls `call` and returns its result. Meanwhile handlers run at once.

        After a handler has raised, all others wait again, so that none interrupts while the
        exception leaves the step.
        """
        try:
            self._open = True
            self.run_pending()
            return call()
        finally:
            self._open = False
            if self._deferring:
                self._defer_handlers()  # also those that `call` has set

    def run_closed(self, call: Callable[[], None]) -> None:
        """Runs `call`, which is called within `run_open`. Meanwhile handlers wait."""
        before, self._open = self._open, False
        try:
            call()
        finally:
            self._open = before
            if before:
                self.run_pending()

    def run_pending(self) -> None:
        """Runs all handlers that wait, the remaining ones also after one has raised.

        Where several raise, the last exception is raised, and the others are its context.
        """
        try:
            while self._pending:
                self._pending.pop(0)()
        finally:
            if self._pending:
                self.run_pending()

    def between(self, items: Iterator[Any]) -> Iterator[Any]:
        """An iterator over `items` that runs the waiting handlers before it fetches each item."""
        return _Interruptible(items, self)

    def handle(self, call: Callable[[], Any]) -> None:
        """Runs `call`, the handler of a signal that has come, now or when handlers may run."""
        if self._ended:
            call()
        elif self._open:
            # Closed first: where `call` raises, no other handler may raise in a `finally`.
            self._open = False
            call()
            self._open = True
            self.run_pending()
        else:
            self._pending.append(call)

    def _defer_handlers(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in _CATCHABLE:
            handler = getsignal(signum)
            if callable(handler) and handler is not self._deferred.get(signum):
                self._deferred[signum] = _DeferredHandler(handler, self)
                set_handler(signum, self._deferred[signum])

    def _end(self) -> None:
        """Puts the handlers back, and runs those that wait."""
        self._open, self._ended = False, True  # from now on signals are passed on
        try:
            while self._deferred:
                signum = next(reversed(self._deferred))
                if getsignal(signum) is self._deferred[signum]:
                    # First runs handlers whose signals have come, and these may raise.
                    set_handler(signum, self._deferred[signum].original)
                del self._deferred[signum]
        finally:
            if self._deferred:
                self._end()
            self.run_pending()


class _DeferredHandler:
    """Stands in place of a signal's handler."""

    def __init__(self, original: _Handler, signals: SignalDeferral) -> None:
        self.original = original
        self._signals = signals

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self._signals.handle(lambda: self.original(signum, frame))


class _Interruptible:
    """An iterator between whose items signal handlers run."""

    def __init__(self, items: Iterator[Any], signals: SignalDeferral) -> None:
        self._items, self._signals = items, signals

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self._signals.run_pending()
        return next(self._items)
