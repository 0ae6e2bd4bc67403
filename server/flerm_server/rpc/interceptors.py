"""What every gRPC call passes: admission, a request id, status codes, a log line, metrics."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any

import grpc
import structlog

from flerm_core.errors import FlermError, PermissionDenied, Unauthenticated
from flerm_proto.status_codes import code_of
from flerm_server.auth.permissions import RPCS
from flerm_server.auth.principal import Principal, Scope, act_as
from flerm_server.metrics import Metrics
from flerm_server.rpc.admission import Admission, raise_if_rejected, size_limited
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
    """One call. name: the method without its service. token: the id of the token, once known."""

    method: str
    metadata: dict[str, str]
    context: grpc.ServicerContext
    token: str = ""
    name: str = field(init=False)
    request_id: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.method.rsplit("/", 1)[-1]
        given = self.metadata.get(REQUEST_ID, "")[:MAX_REQUEST_ID]
        self.request_id = given if given.isprintable() and given else uuid.uuid4().hex

    @property
    def authorization(self) -> str:
        """The metadata of that name; empty: none."""
        return self.metadata.get("authorization", "")


class CallInterceptor(grpc.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Wraps every handler, unary or streaming.

    A `FlermError` of a handler becomes its status code and sentence. Any other exception is a bug:
    the client gets INTERNAL with the request's id, the log the traceback.
    """

    def __init__(self, metrics: Metrics, admission: Admission) -> None:
        """metrics: counts the calls. admission: decides which calls reach their handler."""
        self._metrics = metrics
        self._admission = admission

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler, wrapped."""
        handler: Any = continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        metadata = {
            key: str(value) for key, value in handler_call_details.invocation_metadata or ()
        }
        reader = size_limited(handler.request_deserializer)
        if handler.response_streaming:
            return self._streaming_handler(handler, method, metadata, reader)

        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            call = Call(method, metadata, context)
            with (
                self._observed(call),
                self._admission.in_flight(method, context.peer(), streaming=False),
            ):
                principal = self._authenticate(call)
                message = raise_if_rejected(request)
                return copy_context().run(_act, principal, handler.unary_unary, message, context)

        return grpc.unary_unary_rpc_method_handler(unary, reader, handler.response_serializer)

    def _streaming_handler(
        self, handler: Any, method: str, metadata: dict[str, str], reader: Callable[[bytes], Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            act = handler.stream_stream if handler.request_streaming else handler.unary_stream
            call = Call(method, metadata, context)
            with (
                self._observed(call),
                self._admission.in_flight(method, context.peer(), streaming=True),
            ):
                yield from self._answers(call, act, request)

        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        return make(stream, reader, handler.response_serializer)

    def _authenticate(self, call: Call) -> Principal | None:
        principal = self._admission.authenticate(call.method, call.authorization)
        call.token = principal.token_id if principal else ""
        return principal

    def _answers(self, call: Call, act: Any, request: Any) -> Iterator[Any]:
        """The answers of a streaming call.

        They are made in a context of their own, because gRPC may continue and close a generator on
        any thread.
        """
        context = copy_context()
        principal = self._authenticate(call)
        if principal is None:
            # Only reflection takes a stream of requests, and it needs no token.
            several = isinstance(request, Iterator)
            yield from act(
                map(raise_if_rejected, request) if several else raise_if_rejected(request),
                call.context,
            )
            return
        recheck = self._admission.recheck_token(call.method, call.authorization)
        answers = context.run(_act, principal, act, raise_if_rejected(request), call.context)
        end = object()
        while (answer := context.run(next, answers, end)) is not end:
            yield answer
            recheck()

    @contextmanager
    def _observed(self, call: Call) -> Iterator[None]:
        """Counts, times and logs the call in the block, and turns its exception into a status."""
        code, message = grpc.StatusCode.OK, ""
        started = time.perf_counter()
        self._metrics.in_flight.labels("grpc").inc()
        try:
            with span(call.name, call.metadata, request_id=call.request_id):
                yield
        except FlermError as error:
            code, message = code_of(error), str(error)
            if isinstance(error, Unauthenticated | PermissionDenied):
                self._metrics.turned_away.labels("grpc", code.name).inc()
        except GeneratorExit:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception:
            code = grpc.StatusCode.INTERNAL
            message = f"internal error of the registry; its log has it as request {call.request_id}"
            # When a client leaves, the iterator of its stream raises: that is no bug.
            if call.context.is_active():
                log.exception("bug", method=call.name, request_id=call.request_id, token=call.token)
        finally:
            self._record(call, code, message, time.perf_counter() - started)
        if message:
            call.context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
            call.context.abort(code, message)

    def _record(self, call: Call, code: grpc.StatusCode, message: str, seconds: float) -> None:
        self._metrics.in_flight.labels("grpc").dec()
        self._metrics.calls.labels("grpc", call.name, code.name).inc()
        self._metrics.seconds.labels("grpc", call.name).observe(seconds)
        write = log.info if call.name in LOGGED_CALLS else log.debug
        write(
            "call",
            method=call.name,
            code=code.name,
            seconds=round(seconds, 6),
            message=message,
            request_id=call.request_id,
            token=call.token,
        )


def _act(principal: Principal | None, act: Any, request: Any, context: grpc.ServicerContext) -> Any:
    if principal is not None:
        act_as(principal)
    return act(request, context)
