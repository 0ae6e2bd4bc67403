"""Which gRPC calls reach the service: checks of the token and of the load."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from flerm_core.errors import FlermError, LimitExceeded, PermissionDenied, Unauthenticated
from flerm_server.auth.authenticator import RECHECK_SECONDS, Authenticator
from flerm_server.auth.permissions import rpc_needs
from flerm_server.auth.principal import Principal
from flerm_server.rpc.receiver import HARD_MESSAGE_BYTES, Receiver
from flerm_server.shared_limit import SharedLimit

APPENDS_PER_CLIENT = 64
MESSAGE_SECONDS = 60.0
MESSAGE_MEMORY = 32 * HARD_MESSAGE_BYTES
MESSAGE_MEMORY_SHARE = 0.25
MEMORY_SECONDS = 10.0  # for how long a call waits for memory
# Calls without a token: probes send their message along with the call.
OPEN_MESSAGE_SECONDS = 5.0
OPEN_WAITING = 6
OPEN_STREAMS = 20
OPEN_REQUEST_STREAMS = 4  # those that take one message after another: reflection
OPEN_THREADS = OPEN_STREAMS + OPEN_REQUEST_STREAMS + OPEN_WAITING + 8
EXAMINING_THREADS = 2  # so few that what they refuse holds nobody up
MAX_REMEMBERED = 10_000  # authorizations
KNOWN_SECONDS = 0.25
CROWDED = 0.5  # of the calls that one caller may have


@dataclass(frozen=True, slots=True)
class CallKind:
    """What the limits of a call depend on.

    method: `/package.Service/Method`.
    streaming: whether the call's answers are a stream.
    requests: whether the call's messages are a stream.
    name: the method without its service.
    needs_token: whether the call is not open to everybody.
    """

    method: str
    streaming: bool = False
    requests: bool = False
    name: str = field(init=False)
    needs_token: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.method.rsplit("/", 1)[-1])
        object.__setattr__(self, "needs_token", rpc_needs(self.method) is not None)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call is refused.

    token: the id of the call's token, where that has no room; else empty.
    """

    error: FlermError
    token: str = ""


@dataclass(frozen=True, slots=True)
class _Authorization:
    """What calls of a method by one authorization are told.

    token: the id of its token; empty for an error, and on a registry without tokens.
    error: why they are refused.
    until: for how long this holds, by `time.monotonic`.
    """

    token: str
    error: FlermError | None
    until: float


class Admission:
    """Decides which calls are let in, and counts those in flight."""

    def __init__(self, authenticator: Authenticator, *, calls: int, streams: int) -> None:
        """calls: how many calls with a token there may be at once.
        streams: how many of these may be streaming calls, so that threads are left for the others.
        """
        self._authenticator = authenticator
        self._calls = SharedLimit("calls", calls, "calls are in flight")
        self._streams = SharedLimit("streams", streams, "streams are open")
        self._open_streams = SharedLimit("streams", OPEN_STREAMS, "streams are open", share=1)
        self._open_request_streams = SharedLimit(
            "streams", OPEN_REQUEST_STREAMS, "streams are open", share=1
        )
        self._memory = SharedLimit(
            "message_memory",
            MESSAGE_MEMORY,
            "bytes of messages are held",
            share=MESSAGE_MEMORY_SHARE,
        )
        self.receiver = Receiver("message_seconds", MESSAGE_SECONDS)
        self.open_receiver = Receiver(
            "message_seconds", OPEN_MESSAGE_SECONDS, most_waiting=OPEN_WAITING
        )
        # By the hashes of authorizations, so that no secret is kept.
        self._welcome: dict[int, None] = {}
        self._authorizations: dict[tuple[str, int], _Authorization] = {}  # by the method too
        self._lock = threading.Lock()
        self._appends: Counter[str] = Counter()  # by the client's connection

    def start(self) -> None:
        """Begins to end the calls whose messages do not come."""
        self.receiver.start()
        self.open_receiver.start()

    def stop(self) -> None:
        """Ends the threads that `start` began."""
        self.receiver.stop()
        self.open_receiver.stop()

    def authenticate(self, method: str, authorization: str) -> Principal | None:
        """Whose call of `method` this is; None for a method that needs no token.

        authorization: the metadata of that name.

        Raises `Unauthenticated` and `PermissionDenied`.
        """
        needed = rpc_needs(method)
        if needed is None:
            return None
        try:
            principal = self._authenticator.from_header(authorization)
            principal.require(needed)
        except (Unauthenticated, PermissionDenied):  # not where the database does not answer
            self._welcome.pop(hash(authorization), None)
            raise
        return principal

    def is_welcome(self, authorization: str) -> bool:
        """Whether a call with this authorization was let in lately, and room is left for more."""
        return hash(authorization) in self._welcome

    def examine(self, kind: CallKind, authorization: str) -> Refusal | None:
        """Why a call is to be refused, if it is.

        A call of somebody without a token counts by its connection, and is not counted here.
        """
        known = self._known(kind.method, authorization)
        if known.error is not None:
            return Refusal(known.error)
        try:
            for limit in self._limits(kind) if known.token else ():
                limit.require_room(known.token)
        except LimitExceeded as error:
            return Refusal(error, known.token)
        return None

    def _known(self, method: str, authorization: str) -> _Authorization:
        """What is known of an authorization, for a moment without asking the database."""
        key, now = (method, hash(authorization)), time.monotonic()
        known = self._authorizations.get(key)
        if known is None or now >= known.until:
            token: str = ""
            refused: FlermError | None = None
            try:
                principal = self.authenticate(method, authorization)
                token = principal.token_id if principal else ""
            except (Unauthenticated, PermissionDenied) as error:
                refused = error
            known = _Authorization(token, refused, now + KNOWN_SECONDS)
            if len(self._authorizations) >= MAX_REMEMBERED:
                self._authorizations.clear()
            self._authorizations[key] = known
        return known

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
    def in_flight(
        self, kind: CallKind, authorization: str, caller: str, peer: str
    ) -> Iterator[None]:
        """Counts a call as long as the block runs.

        authorization: of whom `is_welcome` then says whether there is room for more.
        caller: the token's id, or the client's connection on a registry without tokens.
        peer: the client's connection.

        Raises `LimitExceeded`, which names the limit.
        """
        held: list[SharedLimit] = []
        appends = kind.name == "Append"
        try:
            for limit in self._limits(kind):
                limit.take(caller)
                held.append(limit)
            if kind.needs_token:
                self._remember(authorization, held, caller)
            if appends:
                self._begin_append(peer)
            try:
                yield
            finally:
                if appends:
                    self._end_append(peer)
        finally:
            for limit in held:
                limit.give_back(caller)

    def _remember(self, authorization: str, held: Sequence[SharedLimit], caller: str) -> None:
        key = hash(authorization)
        if any(limit.is_crowded(caller, CROWDED) for limit in held):
            self._welcome.pop(key, None)
        elif key not in self._welcome:
            with self._lock:
                if len(self._welcome) >= MAX_REMEMBERED:
                    self._welcome.clear()
                self._welcome[key] = None

    def _limits(self, kind: CallKind) -> Sequence[SharedLimit]:
        if kind.needs_token:
            return (self._streams, self._calls) if kind.streaming else (self._calls,)
        if kind.requests:
            return (self._open_request_streams,)
        return (self._open_streams,) if kind.streaming else ()

    @contextmanager
    def message_memory(self, caller: str) -> Iterator[Callable[[int], None]]:
        """Keeps memory for the largest message that gRPC receives, as long as the block runs.

        Gives a function that takes the bytes of the message that came, and gives the rest back.
        Raises `LimitExceeded` where others do not give back enough in time.
        """
        reserved = HARD_MESSAGE_BYTES
        self._memory.take(caller, reserved, wait=MEMORY_SECONDS)

        def keep(size: int) -> None:
            nonlocal reserved
            self._memory.give_back(caller, reserved - size)
            reserved = size

        try:
            yield keep
        finally:
            self._memory.give_back(caller, reserved)

    def _begin_append(self, peer: str) -> None:
        with self._lock:
            if self._appends[peer] >= APPENDS_PER_CLIENT:
                raise LimitExceeded(
                    f"appends_per_client: {APPENDS_PER_CLIENT} appends of this connection are in "
                    "flight, the most that may be; wait for answers"
                )
            self._appends[peer] += 1

    def _end_append(self, peer: str) -> None:
        with self._lock:
            self._appends[peer] -= 1
            if not self._appends[peer]:
                del self._appends[peer]
