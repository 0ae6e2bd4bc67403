"""The threads on which gRPC calls are answered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from typing_extensions import override


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
