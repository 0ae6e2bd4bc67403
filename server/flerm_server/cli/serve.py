"""`flerm serve`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from flerm_server.cli.common import DEFAULT_DB, Db, one_sentence


def serve(
    db: Db = DEFAULT_DB,
    grpc: Annotated[
        str, typer.Option(help="HOST:PORT of the gRPC side; port 0 takes a free one")
    ] = "127.0.0.1:50051",
    http: Annotated[
        str, typer.Option(help="HOST:PORT of REST, pages and metrics")
    ] = "127.0.0.1:8080",
    tls_cert: Annotated[
        Path | None,
        typer.Option(help="Certificate chain (PEM) for both ports; read again when renewed"),
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM)")] = None,
    tls_terminated_upstream: Annotated[
        bool,
        typer.Option(
            "--tls-terminated-upstream",
            help="A proxy in front speaks TLS, and only it reaches these ports",
        ),
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this host without tokens and TLS")
    ] = False,
    announce: Annotated[
        Path | None, typer.Option(help="Write the real addresses to this file, as JSON")
    ] = None,
    drain: Annotated[
        float, typer.Option(help="Seconds that calls in flight may take after SIGTERM", min=0)
    ] = 10.0,
    lease: Annotated[
        float,
        typer.Option(help="Seconds after which a silent recording reads as interrupted", min=1),
    ] = 120.0,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="A site whose pages may read REST (CORS), such as https://dash.example; repeatable"
        ),
    ] = None,
    recordings_per_token: Annotated[
        int, typer.Option(help="Most recordings that one token may start", min=1)
    ] = 100_000,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error")] = "info",
) -> None:
    """Serves a registry: gRPC for jobs, HTTP for everybody else.

    Example: flerm serve --db sqlite:///runs.db --grpc 127.0.0.1:50051 --http 127.0.0.1:8080
    """
    with one_sentence():
        # gRPC's own log lines tell nothing that our sentences do not; who debugs gRPC sets the variable.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        # Here, not above: `flerm --help` need not wait for SQLAlchemy and FastAPI.
        from flerm_server.logs import configure
        from flerm_server.server import Server, run
        from flerm_server.settings import ListenAddress, Settings

        configure(log_level)
        settings = Settings(
            db=db,
            grpc=ListenAddress.parse("grpc", grpc),
            http=ListenAddress.parse("http", http),
            tls_cert=tls_cert,
            tls_key=tls_key,
            tls_terminated_upstream=tls_terminated_upstream,
            insecure=insecure,
            drain_seconds=drain,
            lease_seconds=lease,
            announce=announce,
            allowed_origins=tuple(allow_origin or ()),
            recordings_per_token=recordings_per_token,
        )

        def say(server: Server) -> None:
            s = "s" if tls_cert else ""
            typer.echo(
                f"registry: grpc{s}://{server.grpc_address.text}  http{s}://{server.http_address.text}/"
            )
            sys.stdout.flush()

        run(settings, say)
