"""What makes the server's process stop: a signal, or the death of one of its threads."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import FrameType

import structlog

log = structlog.get_logger("flerm.serve")


class StopRequest:
    """Whether the server is to stop. Any thread and any signal handler may ask for that.

    failure: why the server cannot go on, as a sentence; empty where somebody wanted it to stop.
    """

    def __init__(self) -> None:
        self.failure = ""
        self._signal = 0
        self._made = False
        # Not an Event: a signal handler that sets one waits without end for the lock of the Event,
        # where the signal came while its own thread held that lock.
        self._wakeups: SimpleQueue[None] = SimpleQueue()

    def make(self, failure: str = "") -> None:
        """Asks the server to stop. The first failure stands."""
        self.failure = self.failure or failure
        self._made = True
        self._wakeups.put(None)

    def wait(self, seconds: float) -> bool:
        """Whether the stop was requested, after at most so many seconds. For one thread."""
        if not self._made:
            with suppress(Empty):
                self._wakeups.get(timeout=seconds)
        if self._signal:
            log.info("stopping", signal=signal.Signals(self._signal).name)
            self._signal = 0
        return self._made

    @contextmanager
    def made_by_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT make the request while the block runs, and SIGHUP, which a terminal
        sends when it is closed.

        SIGHUP does not where it is ignored already, as after `nohup`.
        """

        def request_stop(number: int, _: FrameType | None) -> None:
            # No log line here: its lock may be held by what the signal has interrupted.
            self._signal = number
            self.make()

        signals = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signals.append(signal.SIGHUP)
        before = {number: signal.signal(number, request_stop) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def made_by_dead_threads(self) -> Iterator[None]:
        """The exception that ends a thread makes the request while the block runs.

        No thread of the server ends by an exception unless there is a bug. A part of the server
        would then be missing, which nobody would notice.
        """

        def thread_died(args: threading.ExceptHookArgs) -> None:
            name = args.thread.name if args.thread else "unknown"
            error = (args.exc_type, args.exc_value, args.exc_traceback)
            log.error("bug", thread=name, exc_info=error)
            self.make(
                f"the thread {name!r} of the server ended by {args.exc_type.__name__}, which is "
                "a bug; the log has the traceback; start the server again"
            )

        before, threading.excepthook = threading.excepthook, thread_died
        try:
            yield
        finally:
            threading.excepthook = before
