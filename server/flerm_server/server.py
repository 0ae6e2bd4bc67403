"""The registry's process: gRPC and HTTP on one store, from start to a clean end."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import grpc
import structlog
import uvicorn
from fastapi import FastAPI
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from flerm_core._files import atomic_write
from flerm_core.errors import Refused
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from flerm_server import tracing
from flerm_server.auth.authenticator import Authenticator
from flerm_server.auth.authorized_store import AuthorizedStore
from flerm_server.auth.sql_tokens import SqlTokenStore
from flerm_server.http.api.events import EventStreams
from flerm_server.http.app import create_app
from flerm_server.http.public_site import PublicSite
from flerm_server.http.request_timeout import TimeLimitProtocol
from flerm_server.http.web.pages import PAGE_FAMILIES
from flerm_server.http.web.templating import PublicAddress
from flerm_server.metrics import Metrics
from flerm_server.open_files import raise_open_files
from flerm_server.precedence import Precedence, yielding_loop
from flerm_server.reading_ahead import ReadingAhead
from flerm_server.rpc.admission import Admission
from flerm_server.rpc.handler_threads import HandlerThreads
from flerm_server.rpc.interceptors import CallInterceptor
from flerm_server.rpc.receiver import HARD_MESSAGE_BYTES
from flerm_server.rpc.service import RegistryService
from flerm_server.settings import ListenAddress, Settings
from flerm_server.stop_request import StopRequest
from flerm_server.store.interface import Store
from flerm_server.store.quotas import Quotas
from flerm_server.store.sql.store import open_store
from flerm_server.tls import Certificate

SERVICE = pb.DESCRIPTOR.services_by_name["Registry"].full_name
# Each open stream occupies a thread, so many clients need many threads.
THREADS = 256
THREADS_FOR_UNARY_CALLS = 64  # never occupied by streams
MAX_CALLS = 4096  # those that wait for a thread included
HANDSHAKE_SECONDS = 20.0
SWITCH_SECONDS = 0.001
SIGNAL_SECONDS = 0.5  # how often the main thread looks whether a signal came
STOP_SECONDS = 10.0  # after the drain time: more than a statement of the database may take

log = structlog.get_logger("flerm.serve")


class StillBusy(Refused):
    """Threads of the server do not end. The process would wait for them without end."""


class Server:
    """A running registry. `grpc_address` and `http_address` have the ports that are in use."""

    def __init__(self, settings: Settings, stop_request: StopRequest | None = None) -> None:
        """Opens the store and listens on both ports.

        stop_request: what `wait` waits for.

        Raises `Refused`, `InvalidInput` or `Unreachable`, and then leaves nothing open.
        """
        self.settings = settings
        self._stop_request = stop_request or StopRequest()
        certificate = _certificate(settings)
        store = open_store(settings.db, lease_seconds=settings.lease_seconds)
        self._store: Store = store
        tokens = SqlTokenStore(store.engine)
        metrics, authenticator = Metrics(), Authenticator(tokens)
        authorized = AuthorizedStore(store, quotas=_quotas(settings))
        self._health = health.HealthServicer()
        self._precedence = Precedence()
        self._admission = Admission(
            authenticator, calls=THREADS, streams=THREADS - THREADS_FOR_UNARY_CALLS
        )
        try:
            settings.check(has_tokens=(has_tokens := authenticator.tokens_required))
            for sentence in settings.opened(has_tokens=has_tokens):
                log.warning(sentence)
            self._socket = listen(settings.http)
            try:
                self._threads = HandlerThreads(THREADS, thread_name_prefix="grpc")
                self._interceptor = CallInterceptor(
                    metrics, self._admission, self._threads, self._precedence
                )
                self._grpc = _grpc_server(
                    RegistryService(authorized, metrics),
                    self._interceptor,
                    self._threads,
                    self._health,
                    settings,
                )
                self.grpc_address = _bind(self._grpc, settings.grpc, certificate)
            except BaseException:
                self._socket.close()
                raise
        except BaseException:
            store.close()
            raise
        self.http_address = ListenAddress(settings.http.host, self._socket.getsockname()[1])
        self._streams = EventStreams(metrics.event_streams)
        app = create_app(
            authorized,
            authenticator,
            metrics,
            local_only=settings.local_only,
            site=_public_site(settings),
            event_streams=self._streams,
            public_address=PublicAddress(
                "grpcs" if settings.secure else "grpc", self.grpc_address.port
            ),
            allowed_origins=settings.allowed_origins,
        )
        self._http = _http_server(app, certificate, settings)
        self._http_thread = threading.Thread(target=self._run_http, name="http")
        self._ahead = ReadingAhead(store, PAGE_FAMILIES)

    def start(self) -> None:
        """Begins to answer on both ports, then writes the announcement.

        Raises `Refused` where the announcement cannot be written, or the system gives no threads.
        """
        try:
            self._admission.start()
            self._grpc.start()
            self._http_thread.start()
            self._ahead.start()
        except RuntimeError as error:
            raise Refused(
                f"threads: the system refuses them ({error}); allow this process some hundred, "
                "by `ulimit -u` or the container's limit of processes"
            ) from error
        self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        if self.settings.announce:
            self._announce(self.settings.announce)

    def _announce(self, path: Path) -> None:
        content = {
            "grpc": self.grpc_address.text,
            "http": self.http_address.text,
            "pid": os.getpid(),
        }
        try:
            atomic_write(path, json.dumps(content))
        except OSError as error:
            raise Refused(f"announce {path}: cannot be written ({error.strerror})") from error

    def stop(self) -> None:
        """Takes no more calls, gives those in flight the drain time, and closes the store.

        Raises `StillBusy` where one of the two sides has not ended `STOP_SECONDS` later.
        """
        end = time.monotonic() + self.settings.drain_seconds + STOP_SECONDS
        self._health.enter_graceful_shutdown()
        self._http.should_exit = True
        self._streams.close_all()  # else the pages that follow recordings hold the HTTP side open
        try:
            drained = self._grpc.stop(self.settings.drain_seconds)
        except RuntimeError as error:  # no thread for it
            raise StillBusy(f"the gRPC side cannot drain ({error}); ended by force") from error
        if self._http_thread.ident is None:  # the start failed before the thread
            self._socket.close()
        else:
            self._http_thread.join(end - time.monotonic())
        if not drained.wait(max(0.0, end - time.monotonic())) or self._http_thread.is_alive():
            side = "HTTP" if drained.is_set() else "gRPC"
            sentence = f"the {side} side of the registry did not end, and was ended by force"
            failure = self._stop_request.failure
            raise StillBusy(f"{failure}; {sentence}" if failure else sentence)
        self._admission.stop()
        self._threads.shutdown(wait=False)
        self._interceptor.close()
        self._ahead.stop()
        self._store.close()

    def wait(self) -> None:
        """Returns once a stop was requested.

        Raises `Refused` where the server cannot go on, which is a bug.
        """
        # Polled: Python runs signal handlers on this thread only, and a signal that came to another
        # thread, or just before a wait without end, would not end that wait.
        while not self._stop_request.wait(SIGNAL_SECONDS):
            pass
        if self._stop_request.failure:
            raise Refused(self._stop_request.failure)

    def _run_http(self) -> None:
        with asyncio.Runner(loop_factory=partial(yielding_loop, self._precedence)) as runner:
            runner.run(self._http.serve(sockets=[self._socket]))
        if not self._http.should_exit:
            self._stop_request.make("the HTTP side of the registry ended by itself, which is a bug")


def run(settings: Settings, on_ready: Callable[[Server], None]) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    on_ready: called once both ports answer.

    Raises `Refused` where the server could not go on, and `StillBusy` where one of its threads does
    not end: the process then has to be ended by force.
    """
    others = threading.enumerate()
    stop_request = StopRequest()
    # Before anything listens, so that a signal during the start ends the server too.
    with stop_request.made_by_signals(), stop_request.made_by_dead_threads():
        raise_open_files()
        # Of two threads that compute, one waits so long for the other. An append waits several
        # times, and its p50 beside six readers of pages is 1.3 to 2 times less than with 5 ms.
        sys.setswitchinterval(SWITCH_SECONDS)
        tracing.configure()
        server = Server(settings, stop_request)
        try:
            server.start()
            on_ready(server)
            server.wait()
        finally:
            server.stop()
            tracing.flush()
            _join_all_but(others)


def _join_all_but(others: Collection[threading.Thread]) -> None:
    """Waits for the threads that the process waits for at its end. Raises `StillBusy`."""
    end = time.monotonic() + STOP_SECONDS
    # Python waits for the threads of a pool though they are daemons, which they are because a
    # daemon began them.
    left = [
        each
        for each in threading.enumerate()
        if each not in others and (not each.daemon or each.name.startswith("grpc"))
    ]
    for each in left:
        each.join(max(0.0, end - time.monotonic()))
    busy = sorted(each.name for each in left if each.is_alive())
    if busy:
        raise StillBusy(
            f"threads of the registry did not end, and were ended by force: {', '.join(busy)}"
        )


def _certificate(settings: Settings) -> Certificate | None:
    if settings.tls_cert and settings.tls_key:
        return Certificate(settings.tls_cert, settings.tls_key)
    return None


def _quotas(settings: Settings) -> Quotas:
    return Quotas(
        recordings_per_token=settings.recordings_per_token,
        families_per_token=settings.families_per_token,
        attempts_per_recording=settings.attempts_per_recording,
    )


def _public_site(settings: Settings) -> PublicSite:
    return PublicSite(
        settings.root_path,
        settings.trusted_proxies,
        settings.tls_terminated_upstream,
        settings.insecure,
    )


def listen(address: ListenAddress) -> socket.socket:
    """A listening socket for HTTP. Raises `Refused` where the address cannot be had."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # asyncio turns off Nagle's algorithm where a socket's protocol is named. With the algorithm,
    # the second part of an answer waits 40 ms for the client's system to acknowledge the first.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise Refused(
            f"http {address.text}: cannot listen there ({error.strerror}); "
            "choose another with --http"
        ) from error
    return listener


def _http_server(
    app: FastAPI, certificate: Certificate | None, settings: Settings
) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        http=TimeLimitProtocol,
        ws="none",  # no route has a WebSocket, and such a connection would escape the time limits
        log_config=None,
        access_log=False,
        proxy_headers=False,  # uvicorn would believe every process of this host
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )
    if certificate is not None:
        config.load()
        config.ssl = certificate.context()
    return uvicorn.Server(config)


def _grpc_server(
    service: RegistryService,
    interceptor: CallInterceptor,
    threads: HandlerThreads,
    health_service: health.HealthServicer,
    settings: Settings,
) -> grpc.Server:
    server = grpc.server(
        threads,
        interceptors=[interceptor],
        maximum_concurrent_rpcs=MAX_CALLS,
        options=[
            ("grpc.so_reuseport", 0),  # two servers must not share a port by accident
            ("grpc.max_receive_message_length", HARD_MESSAGE_BYTES),
            ("grpc.max_connection_age_ms", round(settings.connection_seconds * 1000)),
            ("grpc.server_handshake_timeout_ms", round(HANDSHAKE_SECONDS * 1000)),
            *_keepalive(settings.keepalive_seconds),
        ],
    )
    rpc.add_RegistryServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    reflection.enable_server_reflection(
        (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    return server


def _keepalive(seconds: float) -> list[tuple[str, int]]:
    """Options by which a silent peer is asked whether it is there, and dropped if it is not."""
    milliseconds = round(seconds * 1000)
    return [
        ("grpc.keepalive_time_ms", milliseconds),
        ("grpc.keepalive_timeout_ms", milliseconds),
        # Without this option a minute passes, whatever keepalive_timeout_ms says.
        ("grpc.http2.ping_timeout_ms", milliseconds),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def _bind(
    server: grpc.Server, address: ListenAddress, certificate: Certificate | None
) -> ListenAddress:
    try:
        if certificate is None:
            port = server.add_insecure_port(address.text)
        else:
            port = server.add_secure_port(address.text, certificate.server_credentials())
    except RuntimeError as error:
        raise Refused(
            f"grpc {address.text}: cannot listen there; choose another with --grpc"
        ) from error
    if not port:
        raise Refused(f"grpc {address.text}: cannot listen there; choose another with --grpc")
    return ListenAddress(address.host, port)
