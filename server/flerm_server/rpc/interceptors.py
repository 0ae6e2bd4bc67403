"""What every gRPC call passes: admission, a request id, status codes, a log line, metrics."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import grpc
import structlog
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pool import Default as default_pool

from flerm_core.errors import FlermError, PermissionDenied, Unauthenticated
from flerm_proto.status_codes import code_of
from flerm_proto.v1 import registry_pb2 as pb
from flerm_server.auth.permissions import RPCS
from flerm_server.auth.principal import Principal, Scope, act_as
from flerm_server.logs import public_sentence
from flerm_server.metrics import Metrics
from flerm_server.precedence import Arrival, Precedence
from flerm_server.presence import CallerGone, Presence, work_for
from flerm_server.rpc.admission import (
    EXAMINING_THREADS,
    OPEN_THREADS,
    Admission,
    CallKind,
    Refusal,
)
from flerm_server.rpc.handler_threads import ExaminedCall, ExaminingThreads, HandlerThreads
from flerm_server.rpc.receiver import parse
from flerm_server.tracing import span

REQUEST_ID = "x-request-id"
MAX_REQUEST_ID = 64
MAX_LOGGED_NAME = 200  # characters of an id or a name, which nobody has checked yet
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
    changes: what the call is to change, once known: see `named_changes`.
    """

    kind: CallKind
    context: grpc.ServicerContext
    token: str = ""
    changes: dict[str, str] = field(default_factory=dict)
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


class _Method:
    """A method as gRPC calls it.

    On the wire a stream of bytes is the same as one message.
    """

    def __init__(self, kind: CallKind, answer: Any, serializer: Any) -> None:
        self.kind, self.answer, self._serializer = kind, answer, serializer
        self.handler = self.handled_by(answer)

    def handled_by(self, answer: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """What gRPC asks for: `answer` takes messages and a context."""
        make = (
            grpc.stream_stream_rpc_method_handler
            if self.kind.streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return make(answer, None, self._serializer)


class CallInterceptor(grpc.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Wraps every handler, unary or streaming.

    gRPC waits for the message of a unary call, and parses it, before it calls the handler; each
    such call takes a thread. The wrapped handlers therefore take a stream of bytes: they look at
    the token first, and only then receive a message.

    A `FlermError` of a handler becomes its status code and sentence. Any other exception is a bug:
    the client gets INTERNAL with the request's id, the log the traceback.
    """

    def __init__(
        self,
        metrics: Metrics,
        admission: Admission,
        threads: HandlerThreads,
        precedence: Precedence,
    ) -> None:
        """metrics: counts the calls.
        admission: decides which calls reach their handler, and on which threads.
        threads: the server's own.
        precedence: of calls that need a token, over HTTP.
        """
        self._metrics = metrics
        self._admission = admission
        self._precedence = precedence
        # Three kinds of call that cannot take each other's threads: those that need no token, those
        # that are refused, and all others, which have the server's own.
        self._open_threads = HandlerThreads(OPEN_THREADS, thread_name_prefix="grpc-open")
        self._examining_threads = ExaminingThreads(EXAMINING_THREADS, threads)
        self._methods: dict[str, _Method] = {}

    def close(self) -> None:
        """Ends the threads, once there are no more calls."""
        self._open_threads.shutdown(wait=False)
        self._examining_threads.shutdown(wait=False)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler, wrapped once for all its calls."""
        name = handler_call_details.method
        if name not in self._methods:
            handler = continuation(handler_call_details)
            if handler is None:
                return None
            self._methods[name] = self._wrapped(name, handler)
        method = self._methods[name]
        if not method.kind.needs_token:
            return method.handler
        metadata = dict(handler_call_details.invocation_metadata or ())
        authorization = str(metadata.get("authorization", ""))
        answer = partial(method.answer, arrival=self._precedence.arrive())
        if self._admission.is_welcome(authorization):
            return method.handled_by(answer)
        examine = partial(self._admission.examine, method.kind, authorization)
        return method.handled_by(ExaminedCall(answer, examine, self._examining_threads))

    def _wrapped(self, method: str, handler: Any) -> _Method:
        kind = CallKind(
            method, streaming=handler.response_streaming, requests=handler.request_streaming
        )

        def unary(
            messages: Iterator[bytes],
            context: grpc.ServicerContext,
            refusal: Refusal | None = None,
            arrival: Arrival | None = None,
        ) -> Any:
            call = Call(kind, context)
            with (
                nullcontext() if arrival is None else closing(arrival),
                self._observed(call),
                self._admitted(call, refusal) as principal,
                self._received(call, handler, messages) as message,
            ):
                act, presence = handler.unary_unary, _presence(context)
                return copy_context().run(_act, principal, presence, act, message, context)

        def stream(
            messages: Iterator[bytes],
            context: grpc.ServicerContext,
            refusal: Refusal | None = None,
            arrival: Arrival | None = None,
        ) -> Iterator[Any]:
            if arrival is not None:
                arrival.close()  # a stream waits for its client most of the time
            call = Call(kind, context)
            with self._observed(call), self._admitted(call, refusal) as principal:
                if kind.requests:  # reflection, which needs no token
                    read = (_parse(handler, method, each) for each in messages)
                    yield from handler.stream_stream(read, context)
                    return
                with self._received(call, handler, messages) as message:
                    yield from self._answers(call, principal, handler.unary_stream, message)

        answer: Any = stream if kind.streaming else unary
        if not kind.needs_token:
            answer.experimental_thread_pool = self._open_threads
        return _Method(kind, answer, handler.response_serializer)

    @contextmanager
    def _admitted(self, call: Call, refusal: Refusal | None) -> Iterator[Principal | None]:
        """Whose call it is, which is counted as long as the block runs.

        refusal: what the call's examination found.
        """
        if refusal is not None:
            call.token = refusal.token
            raise refusal.error.with_traceback(None)
        principal = self._admission.authenticate(call.kind.method, call.authorization)
        call.token = principal.token_id if principal else ""
        peer = call.context.peer()
        with self._admission.in_flight(call.kind, call.authorization, call.caller, peer):
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
            message = _parse(handler, call.kind.method, data)
            if call.kind.name in LOGGED_CALLS:
                call.changes = named_changes(message)
            yield message

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
            **call.changes,
        )


def named_changes(message: Any) -> dict[str, str]:
    """The family and the recording that one of `LOGGED_CALLS` is to change, for its log line.

    Of an import these are the number of recordings and the first of them.
    """
    match message:
        case pb.RegisterFamilyRequest():
            found = {"family": message.name}
        case pb.RenameFamilyRequest():
            found = {"family": message.name, "new_name": message.new_name}
        case pb.StartRecordingRequest():
            found = {"family": message.spec.family, "recording": message.spec.id}
        case pb.ImportRecordingsRequest():
            ids = dict.fromkeys(each.recording_id for each in message.parts)
            found = {"recordings": str(len(ids)), "recording": next(iter(ids), "")}
        case _:
            found = {"recording": message.recording_id}
    return {name: text[:MAX_LOGGED_NAME] for name, text in found.items()}


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
