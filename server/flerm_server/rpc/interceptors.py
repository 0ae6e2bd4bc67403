"""What every call passes: admission, errors into statuses, a request id, one log line, metrics."""

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
# Said at once, so that the log tells who changed what; rows and renewals come by the thousand.
TOLD = frozenset(name for name, scope in RPCS.items() if scope >= Scope.WRITE) - {
    "Append",
    "RenewLease",
}

log = structlog.get_logger("flerm.grpc")


@dataclass(slots=True)
class Call:
    """One call on its way."""

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
        """What it presents."""
        return self.metadata.get("authorization", "")


class CallInterceptor(grpc.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Wraps every handler, of whatever kind.

    What a handler raises on purpose (`FlermError`) becomes its status code and sentence; anything else is a bug: INTERNAL
    with the request id, and the traceback in the log.
    """

    def __init__(self, metrics: Metrics, admission: Admission) -> None:
        """Counts into `metrics`, lets in what `admission` does."""
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

            def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
                act = handler.stream_stream if handler.request_streaming else handler.unary_stream
                call = Call(method, metadata, context)
                with (
                    self._call(call),
                    self._admission.in_flight(method, context.peer(), streaming=True),
                ):
                    yield from self._stream(call, act, request)

            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(stream, reader, handler.response_serializer)

        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            call = Call(method, metadata, context)
            with (
                self._call(call),
                self._admission.in_flight(method, context.peer(), streaming=False),
            ):
                identity = self._identify(call)
                return copy_context().run(
                    _act, identity, handler.unary_unary, raise_if_rejected(request), context
                )

        return grpc.unary_unary_rpc_method_handler(unary, reader, handler.response_serializer)

    def _identify(self, call: Call) -> Principal | None:
        identity = self._admission.identify(call.method, call.authorization)
        call.token = identity.token_id if identity else ""
        return identity

    def _stream(self, call: Call, act: Any, request: Any) -> Iterator[Any]:
        """The answers. They are made in a context of their own: a generator may be continued and closed from any thread."""
        context = copy_context()
        identity = self._identify(call)
        # Only reflection, which is open to everybody, takes a stream of requests.
        if identity is None:
            several = isinstance(request, Iterator)
            yield from act(
                map(raise_if_rejected, request) if several else raise_if_rejected(request),
                call.context,
            )
            return
        still_welcome = self._admission.recheck_token(call.method, call.authorization)
        answers = context.run(_act, identity, act, raise_if_rejected(request), call.context)
        end = object()
        while (answer := context.run(next, answers, end)) is not end:
            yield answer
            still_welcome()

    @contextmanager
    def _call(self, call: Call) -> Iterator[None]:
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
            code, message = (
                grpc.StatusCode.INTERNAL,
                f"internal error of the registry; its log has it as request {call.request_id}",
            )
            # A client that hung up makes the stream's own iterator raise: that is no bug of ours.
            if call.context.is_active():
                log.exception("bug", method=call.name, request_id=call.request_id, token=call.token)
        finally:
            seconds = time.perf_counter() - started
            self._metrics.in_flight.labels("grpc").dec()
            self._metrics.calls.labels("grpc", call.name, code.name).inc()
            self._metrics.seconds.labels("grpc", call.name).observe(seconds)
            tell = log.info if call.name in TOLD else log.debug
            tell(
                "call",
                method=call.name,
                code=code.name,
                seconds=round(seconds, 6),
                message=message,
                request_id=call.request_id,
                token=call.token,
            )
        if message:
            call.context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
            call.context.abort(code, message)


def _act(identity: Principal | None, act: Any, request: Any, context: grpc.ServicerContext) -> Any:
    if identity is not None:
        act_as(identity)
    return act(request, context)
