"""A gRPC connection to a registry: a channel per process, a deadline on every call, our errors, retries while unreachable."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

# Before grpc is imported: without it a channel made in a forked child fails now and then.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "1")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import grpc

from flerm_client.registry.address import RegistryAddress, Token
from flerm_core.errors import FlermError, InvalidInput, Unauthenticated, Unreachable
from flerm_proto.status_codes import error_of
from flerm_proto.v1.registry_pb2_grpc import RegistryStub

UNARY_SECONDS = 15.0
STREAM_SECONDS = 300.0

_OPTIONS = [
    # The first is also how long one attempt to connect may take: a host that swallows packets is given up after it.
    ("grpc.min_reconnect_backoff_ms", 3000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5000),
    # A connection that went dead without a word (a firewall, a host that is gone) is found out.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]


def backoff(attempt: int, longest: float = 10.0) -> float:
    """Seconds to wait after failure number `attempt` + 1: doubling from 0.2, jittered lest a fleet come back at once."""
    return float(min(0.2 * 2.0 ** min(attempt, 16), longest) * random.uniform(0.5, 1.0))


class Connection:
    """Calls to one registry. `patience`: seconds that a call goes on trying while the registry cannot be reached.

    Every call carries a deadline and raises errors of `flerm_core.errors` with the registry's sentence. A process that
    forked gets a channel of its own.
    """

    def __init__(self, address: RegistryAddress, token: Token, *, patience: float = 0.0) -> None:
        self.address = address
        self.patience = patience
        self._token = token
        self._channel: grpc.Channel | None = None
        self._stub: Any = None
        self._pid = 0

    def unary(
        self,
        method: str,
        request: Any,
        *,
        seconds: float = UNARY_SECONDS,
        until: float | None = None,
    ) -> Any:
        """The answer of one unary method. `until`: the monotonic moment by which all tries must have ended."""
        return self._patiently(
            lambda left: getattr(self._ready(), method)(
                request, timeout=min(seconds, left), metadata=self._metadata()
            ),
            until,
        )

    def stream(self, method: str, request: Any, *, until: float | None = None) -> Iterator[Any]:
        """The answers of a method that streams. Retries until the first one came."""

        def first(left: float) -> tuple[Any, Iterator[Any]]:
            timeout = min(STREAM_SECONDS, left)
            answers = getattr(self._ready(), method)(
                request, timeout=timeout, metadata=self._metadata()
            )
            return next(answers, None), answers

        head, rest = self._patiently(first, until)
        if head is None:
            return
        yield head
        try:
            yield from rest
        except grpc.RpcError as error:
            raise self._translated(error) from None

    def reset(self) -> None:
        """Drops the channel: the next call resolves the name and connects anew."""
        if self._channel is not None and self._pid == os.getpid():
            self._channel.close()
        self._channel = self._stub = None

    def _ready(self) -> Any:
        if self._channel is None or self._pid != os.getpid():
            self._channel = self._open()
            self._stub = RegistryStub(self._channel)
            self._pid = os.getpid()
        return self._stub

    def _open(self) -> grpc.Channel:
        options = [*_OPTIONS, *([("grpc.enable_http_proxy", 0)] if self.address.local else [])]
        if self.address.scheme == "grpcs":
            return grpc.secure_channel(self.address.target, grpc.ssl_channel_credentials(), options)
        return grpc.insecure_channel(self.address.target, options)

    def _metadata(self) -> list[tuple[str, str]]:
        token = self._token()
        if token and not (token.isascii() and token.isprintable()):
            raise InvalidInput("token: only printable ASCII characters are allowed")
        return [("authorization", f"Bearer {token}")] if token else []

    def _patiently(self, call: Callable[[float], Any], until: float | None) -> Any:
        end = time.monotonic() + self.patience if until is None else until
        attempt = 0
        while True:
            try:
                return call(math.inf if until is None else max(until - time.monotonic(), 0.1))
            except grpc.RpcError as error:
                translated = self._translated(error)
            pause = backoff(attempt)
            if not isinstance(translated, Unreachable) or time.monotonic() + pause > end:
                raise translated from None
            attempt += 1
            time.sleep(pause)

    def _translated(self, error: Any) -> FlermError:
        code, details = error.code(), error.details() or ""
        if code == grpc.StatusCode.UNAUTHENTICATED:
            return Unauthenticated(
                details or f"{self.address.text} wants a token: set FLERM_TOKEN or FLERM_TOKEN_FILE"
            )
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return Unreachable(f"{self.address.text} did not answer in time")
        if code == grpc.StatusCode.UNAVAILABLE:
            return Unreachable(f"{self.address.text} cannot be reached: {_brief(details)}")
        if code == grpc.StatusCode.UNIMPLEMENTED:
            return FlermError(
                f"{self.address.text} does not know this call: it is no FLeRM registry, or of another version"
            )
        return error_of(code, details or f"{self.address.text} answered {code.name}")


def _brief(details: str) -> str:
    """The last cause in gRPC's account of a failed connection, without its repetitions."""
    text = (
        details.rpartition("; last error: ")[2].partition(": ")[2]
        if "; last error: " in details
        else details
    )
    return " ".join(text.split()) or "no reason given"
