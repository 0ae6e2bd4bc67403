"""One interceptor for what every call has in common: request id, errors as status, log line, metrics."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import structlog

from flerm_core.errors import FlermError
from flerm_proto.status import code_of
from flerm_server.metrics import Metrics

REQUEST_ID = "x-request-id"
MAX_REQUEST_ID = 64

log = structlog.get_logger("flerm.grpc")


class CallInterceptor(grpc.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Wraps every handler, of whatever kind.

    What a handler raises on purpose (`FlermError`) becomes its status code and sentence; anything else is a bug: INTERNAL
    with the request id, and the traceback in the log.
    """

    def __init__(self, metrics: Metrics) -> None:
        """Counts into `metrics`."""
        self._metrics = metrics

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler, wrapped."""
        handler: Any = continuation(handler_call_details)
        if handler is None:
            return None
        name = handler_call_details.method.rsplit("/", 1)[-1]
        given = next((value for key, value in handler_call_details.invocation_metadata or () if key == REQUEST_ID), "")
        request_id = str(given)[:MAX_REQUEST_ID] or uuid.uuid4().hex

        if handler.response_streaming:

            def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
                act = handler.stream_stream if handler.request_streaming else handler.unary_stream
                with self._call(name, request_id, context):
                    yield from act(request, context)

            make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
            return make(stream, handler.request_deserializer, handler.response_serializer)

        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            act = handler.stream_unary if handler.request_streaming else handler.unary_unary
            with self._call(name, request_id, context):
                return act(request, context)

        single = grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        return single(unary, handler.request_deserializer, handler.response_serializer)

    @contextmanager
    def _call(self, name: str, request_id: str, context: grpc.ServicerContext) -> Iterator[None]:
        code, message = grpc.StatusCode.OK, ""
        started = time.perf_counter()
        self._metrics.in_flight.labels("grpc").inc()
        try:
            yield
        except FlermError as error:
            code, message = code_of(error), str(error)
        except GeneratorExit:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception:
            code, message = grpc.StatusCode.INTERNAL, f"internal error of the registry; its log has it as request {request_id}"
            # A client that hung up makes the stream's own iterator raise: that is no bug of ours.
            if context.is_active():
                log.exception("bug", method=name, request_id=request_id)
        finally:
            seconds = time.perf_counter() - started
            self._metrics.in_flight.labels("grpc").dec()
            self._metrics.calls.labels("grpc", name, code.name).inc()
            self._metrics.seconds.labels("grpc", name).observe(seconds)
            log.debug("call", method=name, code=code.name, seconds=round(seconds, 6), message=message, request_id=request_id)
        if message:
            context.set_trailing_metadata(((REQUEST_ID, request_id),))
            context.abort(code, message)
