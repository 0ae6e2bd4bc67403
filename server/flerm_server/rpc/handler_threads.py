"""The threads on which gRPC calls are answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
from typing_extensions import override

from flerm_server.rpc.admission import Refusal


class HandlerThreads(ThreadPoolExecutor):
    """A pool that works with the threads it has where the system gives no more of them.

    gRPC hands calls to a pool on the one thread that serves all calls. An exception of the pool
    would end that thread.
    """

    @override
    def _adjust_thread_count(self) -> None:
        """Begins one more thread where a call has none. Raises `RuntimeError` for the first one."""
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if not self._threads:
                raise


class ExaminedCall:
    """What gRPC calls for a call that is examined before it gets a thread for its work."""

    __slots__ = ("_answer", "_examine", "experimental_thread_pool", "refusal")

    def __init__(
        self,
        answer: Callable[[Iterator[bytes], grpc.ServicerContext, Refusal | None], Any],
        examine: Callable[[], Refusal | None],
        threads: ExaminingThreads,
    ) -> None:
        """answer: answers the call, or refuses it for the reason that it is given.
        examine: finds out whether the call is to be refused.
        """
        self._answer, self._examine = answer, examine
        self.experimental_thread_pool = threads  # where gRPC looks for the call's threads
        self.refusal: Refusal | None = None

    def examine(self) -> bool:
        """Whether the call may go on. It may where there is a bug, which its answer then meets."""
        with suppress(Exception):
            self.refusal = self._examine()
        return self.refusal is None

    def __call__(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        """Answers the call, or refuses it."""
        return self._answer(messages, context, self.refusal)


class ExaminingThreads(HandlerThreads):
    """Few threads, which refuse calls themselves and hand all others on.

    Each thread that runs takes its turn at Python's interpreter lock. Two hundred calls that are
    refused on two hundred threads hold every other call up until the last of them is done.
    """

    def __init__(self, count: int, others: ThreadPoolExecutor) -> None:
        """others: the threads for calls that are not refused."""
        super().__init__(count, thread_name_prefix="grpc-examining")
        self._others = others

    @override
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Examines the `ExaminedCall` among the arguments, then runs it."""
        call = next(each for each in args if isinstance(each, ExaminedCall))
        done: Future[Any] = Future()

        def run() -> None:
            try:
                fn(*args, **kwargs)
            finally:
                done.set_result(None)

        def examine() -> None:
            if call.examine():
                try:
                    self._others.submit(run)
                except RuntimeError:  # they cannot begin a thread: this one does the work
                    run()
            else:
                run()

        super().submit(examine)
        return done
