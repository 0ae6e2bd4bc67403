"""A gRPC connection to a registry server: one channel per process, deadlines, retries, our errors.

Retries are made here and not by a `retryPolicy` of gRPC's service config. gRPC caps such a policy
at five attempts, sends the token of the first attempt with each of them, and reports only its own
sentence.
"""

from __future__ import annotations

import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

# Both must be set before grpc is imported. Without the first, a channel that a forked child opens
# sometimes fails.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "1")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import grpc

from flerm_client.registry.address import RegistryAddress, Token
from flerm_client.registry.calls import UNARY_SECONDS, RegistryCalls
from flerm_core.errors import FlermError, InvalidInput, Unauthenticated, Unreachable, printable
from flerm_proto.status_codes import error_of
from flerm_proto.v1.registry_pb2_grpc import RegistryStub

# How long a stream may send nothing. How long all of it takes depends on how much it has to say.
SILENT_SECONDS = 120.0

_OPTIONS = [
    # The first is also the time limit of one attempt to connect: it ends the wait for a host that
    # drops packets.
    ("grpc.min_reconnect_backoff_ms", 3000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5000),
    # Keepalive detects a connection that died without a message (a firewall, a host that is gone).
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]

Answer = TypeVar("Answer")


def backoff(failures: int) -> float:
    """Seconds to wait after `failures` earlier failures and one more: 0.2, doubled by each, to 10.

    The time is jittered by up to one half, so that many jobs do not all come back at once.
    """
    return float(min(0.2 * 2.0 ** min(failures, 16), 10.0) * random.uniform(0.5, 1.0))


class Connection(RegistryCalls):
    """Calls to the registry at `address` over gRPC.

    `token`: gives the token of each try.
    `patience`: seconds for which a call is tried again while the registry cannot be reached.
    `deadline`: value of `time.monotonic()` by which every try must have ended; it replaces
    `patience`.

    Every call has a deadline, and raises errors of `flerm_core.errors` with the registry's
    sentence. A forked process opens a channel of its own.
    """

    def __init__(
        self,
        address: RegistryAddress,
        token: Token,
        *,
        patience: float = 0.0,
        deadline: float | None = None,
    ) -> None:
        self.address = address
        self._token = token
        self._patience = patience
        self._deadline = deadline
        self._channel: grpc.Channel | None = None
        self._stub: Any = None
        self._pid = 0

    def unary(self, method: str, request: Any, *, seconds: float = UNARY_SECONDS) -> Any:
        """See `RegistryCalls.unary`."""
        return self._with_retries(lambda left: self._call(method, request, min(seconds, left)))

    def ahead(self, method: str, request: Any) -> Callable[[], Any]:
        """See `RegistryCalls.ahead`. Where the call that was begun fails, it is made again."""
        started = self._call(method, request, UNARY_SECONDS, begin=True)
        began_in = os.getpid()

        def answer() -> Any:
            if os.getpid() == began_in:
                with suppress(grpc.RpcError):
                    return started.result()
            return self.unary(method, request)

        return answer

    def stream(self, method: str, request: Any) -> Iterator[Any]:
        """See `RegistryCalls.stream`.

        The call is tried again until the first answer has come. Each further answer must come
        within `SILENT_SECONDS`.
        """

        def first(left: float) -> tuple[Any, _Answers]:
            answers = _Answers(self._call(method, request, None), min(SILENT_SECONDS, left))
            return next(answers, None), answers

        head, rest = self._with_retries(first)
        if head is None:
            return
        rest.seconds = SILENT_SECONDS
        try:
            yield head
            yield from rest
        except grpc.RpcError as error:
            raise self._error_of(error) from None
        finally:
            rest.cancel()

    def close(self) -> None:
        """Closes the channel. The next call resolves the host name and connects again."""
        if self._channel is not None and self._pid == os.getpid():
            self._channel.close()
        self._channel = self._stub = None

    def _call(
        self, method: str, request: Any, seconds: float | None, *, begin: bool = False
    ) -> Any:
        """The call's answer, its answers, or with `begin` the future of its answer."""
        if self._channel is None or self._pid != os.getpid():
            self._channel = self._open_channel()
            self._stub = RegistryStub(self._channel)
            self._pid = os.getpid()
        call = getattr(self._stub, method)
        act = call.future if begin else call
        return act(request, timeout=seconds, metadata=self._metadata())

    def _open_channel(self) -> grpc.Channel:
        options = [*_OPTIONS, *([("grpc.enable_http_proxy", 0)] if self.address.local else [])]
        if self.address.scheme == "grpcs":
            return grpc.secure_channel(self.address.target, grpc.ssl_channel_credentials(), options)
        return grpc.insecure_channel(self.address.target, options)

    def _metadata(self) -> list[tuple[str, str]]:
        token = self._token()
        if token and not (token.isascii() and token.isprintable()):
            raise InvalidInput("token: only printable ASCII characters are allowed")
        if token:
            self.address.refuse_open_token(token)
        return [("authorization", f"Bearer {token}")] if token else []

    def _with_retries(self, attempt: Callable[[float], Answer]) -> Answer:
        """What `attempt` returns. It is called with the seconds left, and again after a failure."""
        deadline = self._deadline
        end = time.monotonic() + self._patience if deadline is None else deadline
        failures = 0
        while True:
            try:
                return attempt(
                    math.inf if deadline is None else max(deadline - time.monotonic(), 0.1)
                )
            except grpc.RpcError as failure:
                error = self._error_of(failure)
            pause = backoff(failures)
            if not isinstance(error, Unreachable) or time.monotonic() + pause > end:
                raise error from None
            failures += 1
            time.sleep(pause)

    def _error_of(self, error: Any) -> FlermError:
        code, details = error.code(), printable(error.details() or "")
        if code == grpc.StatusCode.UNAUTHENTICATED:
            return Unauthenticated(
                details or f"{self.address.text} wants a token: set FLERM_TOKEN or FLERM_TOKEN_FILE"
            )
        if code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
            return Unreachable(f"{self.address.text} did not answer in time")
        if code == grpc.StatusCode.UNAVAILABLE:
            return Unreachable(f"{self.address.text} cannot be reached: {_last_cause(details)}")
        if code == grpc.StatusCode.UNIMPLEMENTED:
            return FlermError(
                f"{self.address.text} does not know this call: "
                "it is no FLeRM registry, or of another version"
            )
        return error_of(code, details or f"{self.address.text} answered {code.name}")


class _Answers(Iterator[Any]):
    """The answers of a streaming call, which is cancelled where one takes too long.

    seconds: how long to wait for the next answer. How long the reader takes does not count. The
        value may be raised, and not lowered.

    A thread watches the call until the call has ended.
    """

    def __init__(self, call: Any, seconds: float) -> None:
        self.seconds = seconds
        self._call = call
        self._until = math.inf  # when the answer must have come that the reader waits for
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def __next__(self) -> Any:
        self._until = time.monotonic() + self.seconds
        try:
            return next(self._call)
        except BaseException:
            self._ended.set()
            raise
        finally:
            self._until = math.inf

    def cancel(self) -> None:
        """Ends the call; nothing where it has ended."""
        self._ended.set()
        self._call.cancel()

    def _watch(self) -> None:
        # No wait here is longer than `seconds`, so that none ends after the time by which an answer
        # must come that the reader asked for meanwhile.
        wait = self.seconds
        while not self._ended.wait(wait):
            wait = min(self._until - time.monotonic(), self.seconds)
            if wait <= 0:
                self._call.cancel()
                return


def _last_cause(details: str) -> str:
    """The last cause that gRPC's report of a failed connection names, without its repetitions."""
    _, found, last = details.rpartition("; last error: ")
    text = last.partition(": ")[2] if found else details
    return " ".join(text.split()) or "no reason given"
