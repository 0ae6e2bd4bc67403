"""Before a call reaches the service: who asks, is it small enough, are there too many of its kind already."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from flerm_core.errors import FlermError, InvalidInput, LimitExceeded
from flerm_server.auth.authenticator import RECHECK_SECONDS, Authenticator
from flerm_server.auth.permissions import rpc_needs
from flerm_server.auth.principal import Principal

# gRPC's own limit answers in its own words and only knows bytes; ours is below it and says which limit it is.
MAX_MESSAGE_BYTES = 4 << 20
HARD_MESSAGE_BYTES = 2 * MAX_MESSAGE_BYTES
APPENDS_PER_CLIENT = 64


@dataclass(frozen=True, slots=True)
class RejectedMessage:
    """Stands for a message that was not read: why not."""

    refusal: FlermError


def size_limited(deserializer: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """`deserializer`, for messages up to `MAX_MESSAGE_BYTES`. What it cannot read would be our own error by gRPC's account."""

    def read(data: bytes) -> Any:
        size = len(data)
        if size > MAX_MESSAGE_BYTES:
            most = f"at most {MAX_MESSAGE_BYTES} are allowed: send fewer rows"
            return RejectedMessage(
                LimitExceeded(f"max_message_bytes: a message of {size} bytes; {most}")
            )
        try:
            return deserializer(data)
        except DecodeError as error:
            return RejectedMessage(
                InvalidInput(f"message: {size} bytes that are no request of this call ({error})")
            )

    return read


def raise_if_rejected(message: Any) -> Any:
    """The message. Raises why it was not read."""
    if isinstance(message, RejectedMessage):
        raise message.refusal
    return message


class Admission:
    """Lets calls in. `streams`: how many calls that may last may be open at once, so that threads are left for the others."""

    def __init__(self, gate: Authenticator, *, streams: int) -> None:
        self._gate = gate
        self._most_streams = streams
        self._lock = threading.Lock()
        self._streams: Counter[bool] = Counter()  # by whether anybody may open them
        self._appends: Counter[str] = Counter()

    def identify(self, method: str, authorization: str) -> Principal | None:
        """Who asks for `method`; None where that is open to everybody. Raises `Unauthenticated`, `PermissionDenied`."""
        needed = rpc_needs(method)
        if needed is None:
            return None
        identity = self._gate.from_header(authorization)
        identity.require(needed)
        return identity

    def recheck_token(self, method: str, authorization: str) -> Callable[[], None]:
        """What to call while such a call goes on: raises once its token was revoked. Asks at most once a second."""
        asked = time.monotonic()

        def again() -> None:
            nonlocal asked
            if time.monotonic() - asked >= RECHECK_SECONDS:
                asked = time.monotonic()
                self.identify(method, authorization)

        return again

    @contextmanager
    def in_flight(self, method: str, peer: str, *, streaming: bool) -> Iterator[None]:
        """Counts the call while it goes on. Raises `LimitExceeded` naming the limit."""
        appends = method.rsplit("/", 1)[-1] == "Append"
        anybody = (
            rpc_needs(method) is None
        )  # who watches the health must not take the streams of those who have a token
        most = self._most_streams // 8 if anybody else self._most_streams
        with self._lock:
            if streaming and self._streams[anybody] >= most:
                raise LimitExceeded(
                    f"streams: {most} streams are open at this server, the most that may be; try again later"
                )
            if appends and self._appends[peer] >= APPENDS_PER_CLIENT:
                raise LimitExceeded(
                    f"appends_per_client: {APPENDS_PER_CLIENT} appends of this connection are in flight, the most that may be; "
                    "wait for answers"
                )
            self._streams[anybody] += streaming
            self._appends[peer] += appends
        try:
            yield
        finally:
            with self._lock:
                self._streams[anybody] -= streaming
                self._appends[peer] -= appends
                if not self._appends[peer]:
                    del self._appends[peer]
