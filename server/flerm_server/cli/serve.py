"""`flerm serve`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from flerm_server.cli.common import Db, one_sentence
from flerm_server.settings import ListenAddress, Settings

if TYPE_CHECKING:
    from flerm_server.server import Server

DEFAULT = Settings()

Grpc = Annotated[str, Option(help="HOST:PORT for gRPC; port 0 takes a free one")]
Http = Annotated[str, Option(help="HOST:PORT for REST, pages and metrics")]
TlsCert = Annotated[
    Path | None, Option(help="Certificate chain (PEM) for both ports; read again when it changes")
]
TlsKey = Annotated[Path | None, Option(help="Private key of the certificate (PEM)")]
TlsUpstream = Annotated[
    bool,
    Option(
        "--tls-terminated-upstream",
        help="A proxy in front speaks TLS, and only the proxy can reach these ports",
    ),
]
Insecure = Annotated[
    bool,
    Option("--insecure", help="Listen where others can reach the server, without tokens and TLS"),
]
Announce = Annotated[Path | None, Option(help="Write the real addresses to this file, as JSON")]
Drain = Annotated[float, Option(help="Seconds that calls in flight may take after SIGTERM", min=0)]
Lease = Annotated[
    float,
    Option(help="Seconds without news after which a running recording is interrupted", min=1),
]
AllowOrigin = Annotated[
    list[str] | None,
    Option(
        help="A site whose pages may read REST (CORS), such as https://dash.example; repeatable"
    ),
]
RootPath = Annotated[
    str, Option(help="The path under which a proxy has the pages and REST, such as /flerm")
]
TrustedProxies = Annotated[
    list[str] | None,
    Option(help="Address or network of a proxy whose X-Forwarded-For and -Proto count; repeatable"),
]
RecordingsPerToken = Annotated[int, Option(help="Most recordings that one token may start", min=1)]
FamiliesPerToken = Annotated[int, Option(help="Most families that one token may make", min=1)]
AttemptsPerRecording = Annotated[
    int, Option(help="How often one recording may be opened, resumes included", min=1)
]
LogLevel = Annotated[str, Option(help="debug, info, warning or error")]


def serve(
    db: Db = DEFAULT.db,
    grpc: Grpc = DEFAULT.grpc.text,
    http: Http = DEFAULT.http.text,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_terminated_upstream: TlsUpstream = False,
    insecure: Insecure = False,
    announce: Announce = None,
    drain: Drain = DEFAULT.drain_seconds,
    lease: Lease = DEFAULT.lease_seconds,
    root_path: RootPath = DEFAULT.root_path,
    trusted_proxies: TrustedProxies = None,
    allow_origin: AllowOrigin = None,
    recordings_per_token: RecordingsPerToken = DEFAULT.recordings_per_token,
    families_per_token: FamiliesPerToken = DEFAULT.families_per_token,
    attempts_per_recording: AttemptsPerRecording = DEFAULT.attempts_per_recording,
    log_level: LogLevel = "info",
) -> None:
    """Serve a registry: gRPC for training jobs; REST and pages over HTTP.

    Example: flerm serve --db sqlite:///runs.db --grpc 127.0.0.1:50051 --http 127.0.0.1:8080
    """
    with one_sentence():
        # gRPC's own log lines say nothing that our errors do not; to debug gRPC, set the variable.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        # Here, not above: `flerm --help` need not wait for SQLAlchemy and FastAPI.
        from flerm_server.logs import configure
        from flerm_server.server import StillBusy, run

        configure(log_level)
        settings = Settings(
            db=db,
            grpc=ListenAddress.parse("grpc", grpc),
            http=ListenAddress.parse("http", http),
            tls_cert=tls_cert,
            tls_key=tls_key,
            tls_terminated_upstream=tls_terminated_upstream,
            insecure=insecure,
            announce=announce,
            drain_seconds=drain,
            lease_seconds=lease,
            root_path=root_path,
            trusted_proxies=tuple(trusted_proxies or ()),
            allowed_origins=tuple(allow_origin or ()),
            recordings_per_token=recordings_per_token,
            families_per_token=families_per_token,
            attempts_per_recording=attempts_per_recording,
        )
        try:
            run(settings, _print_addresses)
        except StillBusy as error:
            typer.echo(f"Error: {error}", err=True)
            # Python waits at its end for each thread, and these do not end.
            os._exit(error.exit_code)


def _print_addresses(server: Server) -> None:
    s = "s" if server.settings.tls_cert else ""
    typer.echo(
        f"registry: grpc{s}://{server.grpc_address.text}  http{s}://{server.http_address.text}/"
    )
    sys.stdout.flush()
