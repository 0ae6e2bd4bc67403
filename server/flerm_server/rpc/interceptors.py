"""What every gRPC call passes: admission, a request id, status codes, a log line, metrics."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import grpc
import structlog
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pool import Default as default_pool

from flerm_core.errors import FlermError, PermissionDenied, Unauthenticated
from flerm_proto.status_codes import code_of
from flerm_server.auth.permissions import RPCS
from flerm_server.auth.principal import Principal, Scope, act_as
from flerm_server.logs import public_sentence
from flerm_server.metrics import Metrics
from flerm_server.presence import CallerGone, Presence, work_for
from flerm_server.rpc.admission import (
    OPEN_THREADS,
    REFUSING_THREADS,
    Admission,
    CallKind,
)
from flerm_server.rpc.handler_threads import HandlerThreads
from flerm_server.rpc.receiver import parse
from flerm_server.tracing import span

REQUEST_ID = "x-request-id"
MAX_REQUEST_ID = 64
# Logged at level info, so that the log says who changed what. Rows and lease renewals come by the
# thousand and are logged at level debug, as reading calls are.
LOGGED_CALLS = frozenset(name for name, scope in RPCS.items() if scope >= Scope.WRITE) - {
    "Append",
    "RenewLease",
}

log = structlog.get_logger("flerm.grpc")


@dataclass(slots=True)
class Call:
    """One call.

    token: the id of the token, once known.
    """

    kind: CallKind
    context: grpc.ServicerContext
    token: str = ""
    metadata: dict[str, str] = field(init=False)
    request_id: str = field(init=False)

    def __post_init__(self) -> None:
        self.metadata = {key: str(value) for key, value in self.context.invocation_metadata() or ()}
        given = self.metadata.get(REQUEST_ID, "")[:MAX_REQUEST_ID]
        self.request_id = given if given.isprintable() and given else uuid.uuid4().hex

    @property
    def caller(self) -> str:
        """Whose share of the limits the call takes: the token's id, else the connection."""
        return self.token or self.context.peer()

    @property
    def authorization(self) -> str:
        """The metadata of that name; empty: none."""
        return self.metadata.get("authorization", "")


class CallInterceptor(grpc.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Wraps every handler, unary or streaming.

    gRPC waits for the message of a unary call, and parses it, before it calls the handler; each
    such call takes a thread. The wrapped handlers therefore take a stream of bytes: they look at
    the token first, and only then receive a message. On the wire both are the same.

    A `FlermError` of a handler becomes its status code and sentence. Any other exception is a bug:
    the client gets INTERNAL with the request's id, the log the traceback.
    """

    def __init__(self, metrics: Metrics, admission: Admission) -> None:
        """metrics: counts the calls.
        admission: decides which calls reach their handler, and on which threads.
        """
        self._metrics = metrics
        self._admission = admission
        # Three kinds of call that cannot take each other's threads: those that need no token, those
        # that need one and have none, and all others, which have the server's own.
        self._open_threads = HandlerThreads(OPEN_THREADS, thread_name_prefix="grpc-open")
        self._refusing_threads = HandlerThreads(
            REFUSING_THREADS, thread_name_prefix="grpc-refusing"
        )
        # By method, and whether the call is refused for the lack of a token.
        self._handlers: dict[tuple[str, bool], grpc.RpcMethodHandler[Any, Any]] = {}

    def close(self) -> None:
        """Ends the threads, once there are no more calls."""
        self._open_threads.shutdown(wait=False)
        self._refusing_threads.shutdown(wait=False)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler, wrapped once for all its calls."""
        method = handler_call_details.method
        metadata = dict(handler_call_details.invocation_metadata or ())
        refused = self._admission.is_refused(method, str(metadata.get("authorization", "")))
        if (method, refused) not in self._handlers:
            handler = continuation(handler_call_details)
            if handler is None:
                return None
            self._handlers[method, refused] = self._wrapped(method, handler, refused)
        return self._handlers[method, refused]

    def _wrapped(self, method: str, handler: Any, refused: bool) -> grpc.RpcMethodHandler[Any, Any]:
        kind = CallKind(
            method, streaming=handler.response_streaming, requests=handler.request_streaming
        )

        def unary(messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            call = Call(kind, context)
            with (
                self._observed(call),
                self._admitted(call) as principal,
                self._received(call, handler, messages) as message,
            ):
                act, presence = handler.unary_unary, _presence(context)
                return copy_context().run(_act, principal, presence, act, message, context)

        def stream(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
            call = Call(kind, context)
            with self._observed(call), self._admitted(call) as principal:
                if kind.requests:  # reflection, which needs no token
                    read = (_parse(handler, method, each) for each in messages)
                    yield from handler.stream_stream(read, context)
                    return
                with self._received(call, handler, messages) as message:
                    yield from self._answers(call, principal, handler.unary_stream, message)

        act: Any = stream if kind.streaming else unary
        if not kind.needs_token:
            act.experimental_thread_pool = self._open_threads
        elif refused:
            act.experimental_thread_pool = self._refusing_threads
        make = (
            grpc.stream_stream_rpc_method_handler
            if kind.streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return make(act, None, handler.response_serializer)

    @contextmanager
    def _admitted(self, call: Call) -> Iterator[Principal | None]:
        """Whose call it is, which is counted as long as the block runs."""
        principal = self._admission.authenticate(call.kind.method, call.authorization)
        call.token = principal.token_id if principal else ""
        with self._admission.in_flight(call.kind, call.caller, call.context.peer()):
            yield principal

    @contextmanager
    def _received(self, call: Call, handler: Any, messages: Iterator[bytes]) -> Iterator[Any]:
        """The call's one message; memory is kept for it as long as the block runs."""
        if not call.kind.needs_token:
            data = self._admission.open_receiver.receive(messages, call.context)
            yield _parse(handler, call.kind.method, data)
            return
        with self._admission.message_memory(call.caller) as keep:
            data = self._admission.receiver.receive(messages, call.context)
            keep(len(data))
            yield _parse(handler, call.kind.method, data)

    def _answers(
        self, call: Call, principal: Principal | None, act: Any, message: Any
    ) -> Iterator[Any]:
        """The answers of a streaming call.

        They are made in a context of their own, because gRPC may continue and close a generator on
        any thread.
        """
        context = copy_context()
        recheck = self._admission.recheck_token(call.kind.method, call.authorization)
        presence = _presence(call.context)
        answers = context.run(_act, principal, presence, act, message, call.context)
        end = object()
        while (answer := context.run(next, answers, end)) is not end:
            yield answer
            recheck()

    @contextmanager
    def _observed(self, call: Call) -> Iterator[None]:
        """Counts, times and logs the call in the block, and turns its exception into a status."""
        code, message, told = grpc.StatusCode.OK, "", ""
        started = time.perf_counter()
        self._metrics.in_flight.labels("grpc").inc()
        try:
            with span(call.kind.name, call.metadata, request_id=call.request_id):
                yield
        except FlermError as error:
            code, message, told = code_of(error), str(error), public_sentence(error)
            if isinstance(error, Unauthenticated | PermissionDenied):
                self._metrics.turned_away.labels("grpc", code.name).inc()
        except GeneratorExit:
            code = grpc.StatusCode.CANCELLED
            raise
        except (CallerGone, grpc.RpcError):  # the second: before its message came
            code = grpc.StatusCode.CANCELLED
            message = "the client has left"
        except Exception:
            code = grpc.StatusCode.INTERNAL
            message = f"internal error of the registry; its log has it as request {call.request_id}"
            # When a client leaves, the iterator of its stream raises: that is no bug.
            if call.context.is_active():
                log.exception(
                    "bug", method=call.kind.name, request_id=call.request_id, token=call.token
                )
        finally:
            self._record(call, code, message, time.perf_counter() - started)
        if message:
            call.context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
            call.context.abort(code, told or message)

    def _record(self, call: Call, code: grpc.StatusCode, message: str, seconds: float) -> None:
        self._metrics.in_flight.labels("grpc").dec()
        self._metrics.calls.labels("grpc", call.kind.name, code.name).inc()
        self._metrics.seconds.labels("grpc", call.kind.name).observe(seconds)
        write = log.info if call.kind.name in LOGGED_CALLS else log.debug
        write(
            "call",
            method=call.kind.name,
            code=code.name,
            seconds=round(seconds, 6),
            message=message,
            request_id=call.request_id,
            token=call.token,
        )


def _presence(context: grpc.ServicerContext) -> Presence:
    """That of the caller, until the call is over."""
    presence = Presence()
    if not context.add_callback(presence.end):
        presence.end()  # the call is over already
    return presence


def _act(
    principal: Principal | None,
    presence: Presence,
    act: Any,
    request: Any,
    context: grpc.ServicerContext,
) -> Any:
    if principal is not None:
        act_as(principal)
    work_for(presence)
    return act(request, context)


def _parse(handler: Any, method: str, data: bytes) -> Any:
    return parse(data, handler.request_deserializer, _message_type(method))


@cache
def _message_type(method: str) -> Descriptor:
    """What a call of `/package.Service/Method` is asked with."""
    found: Descriptor = (
        default_pool().FindMethodByName(method.strip("/").replace("/", ".")).input_type
    )
    return found
