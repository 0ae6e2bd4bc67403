"""Receiving the messages of calls, each within a time and a part of the server's memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError

from flerm_core.errors import InvalidInput, LimitExceeded
from flerm_server.rpc.message_entries import count_entries

# gRPC has a limit of its own, whose error does not name it. Ours is lower, and its error does.
MAX_MESSAGE_BYTES = 4 << 20
HARD_MESSAGE_BYTES = 2 * MAX_MESSAGE_BYTES
# The largest message that validation accepts has 1,000 rows of 64 scalars and 16 vectors.
MAX_MESSAGE_ENTRIES = 250_000
ENTRY_BYTES = 2  # at least, on the wire: a key and a length
LOOK_SECONDS = 0.5  # how often overdue calls are looked for


@dataclass(slots=True, eq=False)
class _Wait:
    """A call whose message has not come."""

    context: grpc.ServicerContext
    until: float
    reason: str = field(default="")


class Receiver:
    """Waits for messages, for each at most `seconds`.

    gRPC gives no time limit to a server that waits for a message. A thread of this class therefore
    cancels the calls that are overdue.
    """

    def __init__(self, name: str, seconds: float, *, most_waiting: int = 0) -> None:
        """name: of the time limit, for its sentence.
        most_waiting: how many calls may wait at once; one more ends the wait of the call that has
            waited longest. 0: any number.
        """
        self._name, self._seconds, self._most = name, seconds, most_waiting
        self._lock = threading.Lock()
        self._waits: dict[_Wait, None] = {}  # oldest first
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"grpc-{name}", daemon=True)

    def start(self) -> None:
        """Begins to end the waits that are overdue."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()

    def receive(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """The next of a call's messages.

        Raises `LimitExceeded` where it does not come in time, `InvalidInput` where the client has
        none, and `grpc.RpcError` where the client has left.
        """
        wait = _Wait(context, time.monotonic() + self._seconds)
        with self._lock:
            if self._most and len(self._waits) >= self._most:
                self._end(next(iter(self._waits)), "waited longest of too many calls without one")
            self._waits[wait] = None
        try:
            return next(messages)
        except StopIteration:
            raise InvalidInput("message: the call ended without one; one is needed") from None
        except grpc.RpcError:
            if wait.reason:
                raise LimitExceeded(f"{self._name}: the call {wait.reason}") from None
            raise
        finally:
            with self._lock:
                self._waits.pop(wait, None)

    def _watch(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            now = time.monotonic()
            with self._lock:
                for wait in [each for each in self._waits if each.until <= now]:
                    self._end(wait, f"sent no message within {self._seconds:g} s")

    def _end(self, wait: _Wait, reason: str) -> None:
        wait.reason = reason
        del self._waits[wait]
        wait.context.cancel()


def parse(data: bytes, parser: Callable[[bytes], Any], message: Descriptor) -> Any:
    """The message in `data`.

    Raises `LimitExceeded` for a message that is too large, or would be once it is parsed, and
    `InvalidInput` for bytes that are no such message.
    """
    size = len(data)
    if size > MAX_MESSAGE_BYTES:
        raise LimitExceeded(
            f"max_message_bytes: a message of {size} bytes; at most {MAX_MESSAGE_BYTES} are "
            "allowed: send fewer rows"
        )
    if (
        size > ENTRY_BYTES * MAX_MESSAGE_ENTRIES
        and count_entries(data, message, MAX_MESSAGE_ENTRIES) > MAX_MESSAGE_ENTRIES
    ):
        raise LimitExceeded(
            f"max_message_entries: a message of more than {MAX_MESSAGE_ENTRIES} texts, lists and "
            "rows; send fewer rows"
        )
    try:
        return parser(data)
    except DecodeError as error:
        raise InvalidInput(
            f"message: {size} bytes that are no request of this call ({error})"
        ) from None
