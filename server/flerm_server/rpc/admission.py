"""Which gRPC calls reach the service: checks of the token, the message's size and the load."""

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

# gRPC has a limit of its own, whose error does not name it. Ours is lower, and its error does.
MAX_MESSAGE_BYTES = 4 << 20
HARD_MESSAGE_BYTES = 2 * MAX_MESSAGE_BYTES
APPENDS_PER_CLIENT = 64


@dataclass(frozen=True, slots=True)
class RejectedMessage:
    """Stands in for a message that was not read, and says why not."""

    error: FlermError


def size_limited(deserializer: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """`deserializer` for messages of at most `MAX_MESSAGE_BYTES`.

    Gives a `RejectedMessage` instead of raising: gRPC would report an exception in a deserialiser
    as a fault of the server.
    """

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
    """The message; raises the error of a `RejectedMessage`."""
    if isinstance(message, RejectedMessage):
        raise message.error
    return message


class Admission:
    """Decides which calls are let in, and counts those in flight."""

    def __init__(self, authenticator: Authenticator, *, streams: int) -> None:
        """streams: how many streaming calls may be open at once, so that threads are left for the
        other calls."""
        self._authenticator = authenticator
        self._max_streams = streams
        self._lock = threading.Lock()
        self._streams: Counter[bool] = Counter()  # by whether the call needs no token
        self._appends: Counter[str] = Counter()  # by the client's connection

    def authenticate(self, method: str, authorization: str) -> Principal | None:
        """Whose call of `method` this is; None for a method that needs no token.

        authorization: the metadata of that name. Raises `Unauthenticated` and `PermissionDenied`.
        """
        needed = rpc_needs(method)
        if needed is None:
            return None
        principal = self._authenticator.from_header(authorization)
        principal.require(needed)
        return principal

    def recheck_token(self, method: str, authorization: str) -> Callable[[], None]:
        """A function to call repeatedly while a streaming call goes on.

        It raises as `authenticate` does once the token was revoked, and asks the database at most
        every `RECHECK_SECONDS`.
        """
        checked = time.monotonic()

        def recheck() -> None:
            nonlocal checked
            if time.monotonic() - checked >= RECHECK_SECONDS:
                checked = time.monotonic()
                self.authenticate(method, authorization)

        return recheck

    @contextmanager
    def in_flight(self, method: str, peer: str, *, streaming: bool) -> Iterator[None]:
        """Counts a call as long as the block runs.

        peer: the client's connection. Raises `LimitExceeded`, which names the limit.
        """
        appends = method.rsplit("/", 1)[-1] == "Append"
        # Calls without a token, such as watching the health, have a small share of the streams of
        # their own, so that they cannot take those of clients with a token.
        open_to_all = rpc_needs(method) is None
        most = self._max_streams // 8 if open_to_all else self._max_streams
        with self._lock:
            if streaming and self._streams[open_to_all] >= most:
                raise LimitExceeded(
                    f"streams: {most} streams are open at this server, the most that may be; "
                    "try again later"
                )
            if appends and self._appends[peer] >= APPENDS_PER_CLIENT:
                raise LimitExceeded(
                    f"appends_per_client: {APPENDS_PER_CLIENT} appends of this connection are in "
                    "flight, the most that may be; wait for answers"
                )
            self._streams[open_to_all] += streaming
            self._appends[peer] += appends
        try:
            yield
        finally:
            with self._lock:
                self._streams[open_to_all] -= streaming
                self._appends[peer] -= appends
                if not self._appends[peer]:
                    del self._appends[peer]
